"""Write the golden files: a saved model of this version, and its results for some cells.

Run once for a format version, ``PYTHONPATH=tests python tests/helpers/make_golden.py``, and commit the files. They are
never written again: `test_model_file.py` compares all later versions with them.

Version 1 has only genes; version 2 has genes and peaks, and some cells have only one of both; version 3 also has a
circle and an additive decoder. Versions 4 to 6 have topics and no circle, a linear decoder with latent loadings, a flow
posterior, and three clusters, two of them labeled, learned by the score function with a baseline. Version 6 also has
effects of batches
 on single features.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import celldial
from celldial.io.model_file import FORMAT_VERSION
from helpers.simulate import simulate

FOLDER = Path(__file__).resolve().parents[1] / "golden"
N_CELLS, N_GENES, N_PEAKS = 60, 20, 30
# Columns of tables of loadings and topics that are text.
TEXT = ("coordinate", "topic", "modality", "feature")
# The covariates of the topics.
SHOWN = {"batch": "b0", "age": 40.0}
# These genes follow a rhythm, which is not part of the model.
RHYTHM = {"name": "rhythm", "phases": {"day": ["g0", "g2", "g4"], "night": ["g1", "g3", "g5"]}}


def golden_paths(version: int) -> tuple[Path, Path]:
    """Return the paths of the model and of its results."""
    return FOLDER / f"model_v{version}.celldial", FOLDER / f"embedding_v{version}.npz"


def read_cells(path: Path) -> AnnData:
    """Return the cells in a golden file."""
    with np.load(path, allow_pickle=False) as stored:
        obs = {name: stored[name] for name in ("batch", "age", "label", "has_rna", "has_atac") if name in stored}
        var = {name: stored[name] for name in ("feature_types",) if name in stored}
        return AnnData(
            sparse.csr_matrix(stored["counts"]),
            obs=pd.DataFrame(obs, index=stored["cells"]),
            var=pd.DataFrame(var, index=stored["genes"]),
        )


def make_cells() -> AnnData:
    """Simulate genes, and peaks that are open by the same state; a third of the cells have one of both, each half."""
    adata = simulate(N_CELLS, N_GENES + N_PEAKS)
    adata.var_names = [*(f"g{gene}" for gene in range(N_GENES)), *(f"p{peak}" for peak in range(N_PEAKS))]
    adata.var["feature_types"] = ["Gene Expression"] * N_GENES + ["Peaks"] * N_PEAKS
    order_c = np.arange(N_CELLS)
    angle_c = np.random.default_rng(1).uniform(0, 2 * np.pi, N_CELLS)
    x = adata.X.toarray()
    for phase, peak in (("day", np.pi / 2), ("night", 3 * np.pi / 2)):
        for gene in RHYTHM["phases"][phase]:
            x[:, adata.var_names.get_loc(gene)] = np.random.default_rng(2).poisson(15 * np.exp(np.cos(angle_c - peak)))
    adata.obs["has_rna"], adata.obs["has_atac"] = order_c % 6 != 4, order_c % 6 != 5
    adata.obs["label"] = np.where(order_c % 4 == 0, adata.obs["type"].astype(str), "unknown")
    x[~adata.obs["has_rna"], :N_GENES] = 0
    x[~adata.obs["has_atac"], N_GENES:] = 0
    x[:, N_GENES:] = x[:, N_GENES:] > 4
    adata.X = sparse.csr_matrix(x)
    return adata


def main() -> None:
    """Fit a tiny model with a batch and a continuous covariate, and write it with its answers."""
    model_path, cells_path = golden_paths(FORMAT_VERSION)
    adata = make_cells()
    model = celldial.VAE(
        n_latent=3,
        n_hidden=8,
        latent="logistic_normal",
        posterior="flow",
        decoder="linear",
        bayesian_loadings=True,
        n_clusters=3,
        labels_key="label",
        gradient={"z": "reparameterized", "cluster": "score_function"},
        baseline="learned",
        batch_key="batch",
        continuous_covariate_keys=["age"],
    )
    model.fit(adata, max_epochs=10, progress=False)
    FOLDER.mkdir(exist_ok=True)
    model.save(model_path)
    mean, standard_deviation = model.latent_posterior(adata)
    loadings, topics = model.loadings(), model.topics(covariates=SHOWN)
    has = {name: adata.obs[name].to_numpy() for name in ("has_rna", "has_atac")}
    np.savez_compressed(
        cells_path,
        counts=adata.X.toarray().astype(np.int32),
        cells=adata.obs_names.to_numpy(str),
        genes=adata.var_names.to_numpy(str),
        feature_types=adata.var["feature_types"].to_numpy(str),
        batch=adata.obs["batch"].to_numpy(str),
        age=adata.obs["age"].to_numpy(),
        **has,
        embedding=mean,
        standard_deviation=standard_deviation,
        label=adata.obs["label"].to_numpy(str),
        states=model.transform(adata),
        cluster=adata.obs["celldial_cluster"].to_numpy(str),
        cluster_probability=model.clusters(adata).to_numpy(),
        **{f"loadings_{name}": loadings[name].to_numpy(str if name in TEXT else None) for name in loadings},
        **{f"topics_{name}": topics[name].to_numpy(str if name in TEXT else None) for name in topics},
        score=model.score(adata),
        embedding_rna=model.transform(adata[has["has_rna"]], modality="rna"),
        embedding_atac=model.transform(adata[has["has_atac"]], modality="atac"),
        expression=model.denoise(adata, transform_batch="b1").to_numpy(),
        probability=model.impute(adata[has["has_rna"]].copy(), "atac", from_="rna").to_numpy(),
    )
    for path in (model_path, cells_path):
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()

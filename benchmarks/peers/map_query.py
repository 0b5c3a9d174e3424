#!/usr/bin/env python
"""New batches: `map_query` with one batch left out, compared with a refit, a PCA and scVI's `load_query_data`.

    python -m benchmarks.peers.map_query --data DIR --peer-python peers/bin/python --out map_query.json

Each batch in turn is the query, and the other batches with their labels are the reference. With ``--unseen``, one type
is removed from the reference, and the unassigned cells are counted. See benchmarks/README.md for the rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from benchmarks.integration_tasks import thinned_rna
from scipy import sparse
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import celldial as cd

UNKNOWN, UNASSIGNED = "unknown", "unassigned"
N_NEIGHBORS, N_COMPONENTS, N_GENES = 15, 20, 2000


def normalized(adata: ad.AnnData) -> ad.AnnData:
    """Return log1p of counts per 10,000."""
    result = adata.copy()
    sc.pp.normalize_total(result, target_sum=1e4)
    sc.pp.log1p(result)
    return result


def variable(adata: ad.AnnData) -> ad.AnnData:
    """Return the cells with the most variable genes."""
    cells = normalized(adata)
    sc.pp.highly_variable_genes(cells, n_top_genes=min(N_GENES, adata.n_vars))
    return adata[:, cells.var["highly_variable"]].copy()


def with_columns(adata: ad.AnnData, batch: str, label: str) -> ad.AnnData:
    """Return cells with ``batch`` and ``type``."""
    adata.obs["batch"], adata.obs["type"] = adata.obs[batch].astype(str), adata.obs[label].astype(str)
    return adata


def read_cite(folder: Path) -> ad.AnnData:
    """Four donors; genes and proteins, of which some cells lack one."""
    return with_columns(ad.read_h5ad(folder / "cite_mosaic.h5ad"), "batch", "celltype")


def read_rnamix(folder: Path) -> ad.AnnData:
    """RNA mixtures by two protocols."""
    return variable(with_columns(ad.read_h5ad(folder / "rnamix.h5ad"), "batch", "mix"))


def read_kang(folder: Path) -> ad.AnnData:
    """Control cells of eight donors."""
    adata = with_columns(ad.read_h5ad(folder / "kang_ifnb.h5ad"), "donor", "cell_type_ctrl")
    known_c = (adata.obs["condition"] == "ctrl") & (adata.obs["type"] != UNKNOWN) & (adata.obs["batch"] != UNASSIGNED)
    return variable(adata[known_c].copy())


def read_pbmc68k(folder: Path) -> ad.AnnData:
    """Blood cells, half of them thinned gene by gene, as by another technology."""
    return thinned_rna(folder, seed=0).adata


def simulate(folder: Path, n_cells: int = 1500, n_genes: int = 400, n_types: int = 6, n_batches: int = 4) -> ad.AnnData:
    """Types and batches with effects on every gene; batches differ in depth and in the shares of types."""
    random = np.random.default_rng(0)
    share_bk = random.dirichlet(np.full(n_types, 3.0), n_batches)
    batch_c = random.integers(0, n_batches, n_cells)
    type_c = np.array([random.choice(n_types, p=share_bk[batch]) for batch in batch_c])
    effects = [random.normal(0, scale, (n, n_genes)) for scale, n in ((1, 1), (0.7, n_types), (0.5, n_batches))]
    rate_cf = np.exp(effects[0] + effects[1][type_c] + effects[2][batch_c])
    depth_c = random.lognormal(np.log(800), 0.4, n_cells) * np.linspace(0.6, 1.5, n_batches)[batch_c]
    mu_cf = depth_c[:, None] * rate_cf / rate_cf.sum(1, keepdims=True)
    x_cf = random.poisson(mu_cf * random.gamma(5, 1 / 5, mu_cf.shape)).astype(np.float32)
    obs = pd.DataFrame({"batch": [f"b{b}" for b in batch_c], "type": [f"t{k}" for k in type_c]})
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(x_cf), obs.set_axis([f"c{cell}" for cell in range(n_cells)]), var)


READERS: dict[str, Callable[[Path], ad.AnnData]] = {
    "simulation": simulate,
    "cite_mosaic": read_cite,
    "rnamix": read_rnamix,
    "kang_ifnb": read_kang,
    "pbmc68k_counts, thinned": read_pbmc68k,
}


def macro_f1(true_c: np.ndarray, predicted_c: np.ndarray) -> float:
    return float(f1_score(true_c, predicted_c, labels=np.unique(true_c), average="macro", zero_division=0.0))


def neighbors(known_cz: np.ndarray, label_c: np.ndarray, query_cz: np.ndarray) -> np.ndarray:
    """Label cells by the 15 nearest labeled cells."""
    predicted_c: np.ndarray = KNeighborsClassifier(N_NEIGHBORS).fit(known_cz, label_c).predict(query_cz)
    return predicted_c


def split(adata: ad.AnnData, left: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the reference, and the cells of one batch."""
    is_query_c = (adata.obs["batch"] == left).to_numpy()
    return adata[~is_query_c].copy(), adata[is_query_c].copy()


def fit(adata: ad.AnnData, seed: int, max_epochs: Any) -> cd.VAE:
    return cd.VAE(batch_key="batch", labels_key="type", seed=seed).fit(adata, max_epochs=max_epochs, progress=False)


def pca(reference: ad.AnnData, query: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference in its principal components, and the query projected on them."""
    logged = normalized(reference)
    sc.pp.pca(logged, n_comps=N_COMPONENTS)
    centered_cf = normalized(query).X.toarray() - np.asarray(logged.X.mean(0))
    return logged.obsm["X_pca"], centered_cf @ logged.varm["PCs"]


def scvi(reference: ad.AnnData, query: ad.AnnData, python: str, seed: int, max_epochs: Any) -> dict[str, Any]:
    """Return scVI's embeddings of reference and query, and the seconds of the mapping."""
    with TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}" for name in ("reference.h5ad", "query.h5ad", "out.npz")]
        reference.write_h5ad(paths[0])
        query.write_h5ad(paths[1])
        script = Path(__file__).parents[1] / "workers" / "scvi_map.py"
        subprocess.run([python, str(script), *paths, str(max_epochs), str(seed)], check=True)
        return dict(np.load(paths[2]))


def leave_out(adata: ad.AnnData, left: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Map one batch with all methods."""
    reference, query = split(adata, left)
    type_c, label_c = query.obs["type"].to_numpy(), reference.obs["type"].to_numpy()
    batch_c = np.concatenate([reference.obs["batch"], query.obs["batch"]])
    model = fit(reference.copy(), seed, arguments.epochs)
    before_cz = model.transform(reference)
    start = time.process_time()
    cells = query.copy()
    mapped = model.map_query(cells, progress=False)
    seconds = {"celldial": time.process_time() - start}
    f1 = {"celldial": macro_f1(type_c, mapped.clusters(cells).idxmax(axis=1).to_numpy())}
    mixing = {"celldial": cd.metrics.ilisi(np.concatenate([before_cz, cells.obsm["X_celldial"]]), batch_c)}
    whole = ad.concat([reference, query])
    whole.obs.loc[query.obs_names, "type"] = UNKNOWN
    whole.var = adata.var.loc[whole.var_names]
    start = time.process_time()
    refit = fit(whole, seed, arguments.epochs)
    seconds["refit"] = time.process_time() - start
    f1["refit"] = macro_f1(type_c, refit.clusters(whole).loc[query.obs_names].idxmax(axis=1).to_numpy())
    mixing["refit"] = cd.metrics.ilisi(whole.obsm["X_celldial"], batch_c)
    found = {"PCA": pca(reference, query)}
    if arguments.peer_python is not None:
        run = scvi(reference, query, arguments.peer_python, seed, arguments.epochs)
        found["scVI"], seconds["scVI"] = (run["reference"], run["query"]), float(run["seconds"])
    for name, (reference_cz, query_cz) in found.items():
        f1[name] = macro_f1(type_c, neighbors(reference_cz, label_c, query_cz))
        mixing[name] = cd.metrics.ilisi(np.concatenate([reference_cz, query_cz]), batch_c)
    return {
        "f1": f1,
        "ilisi": mixing,
        "seconds": seconds,
        "unassigned": float((cells.obs["celldial_cluster"] == UNASSIGNED).mean()),
        "reference_is_identical": bool((mapped.transform(reference) == before_cz).all()),
    }


def unseen(adata: ad.AnnData, left: str, name: str, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Remove a type from the reference, and count the unassigned cells of this type and of the others."""
    reference, query = split(adata, left)
    model = fit(reference[reference.obs["type"] != name].copy(), seed, arguments.epochs)
    model.map_query(query, progress=False)
    new_c = (query.obs["type"] == name).to_numpy()
    is_unassigned_c = (query.obs["celldial_cluster"] == UNASSIGNED).to_numpy()
    is_far_c = query.obs["celldial_mapping_distance"].to_numpy() < 0.05
    return {
        "unassigned, new": float(is_unassigned_c[new_c].mean()),
        "unassigned, known": float(is_unassigned_c[~new_c].mean()),
        "distance below .05, new": float(is_far_c[new_c].mean()),
        "distance below .05, known": float(is_far_c[~new_c].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--batches", nargs="+", help="batches to leave out (all with at least 100 cells)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", default="auto", type=lambda text: text if text == "auto" else int(text))
    parser.add_argument("--unseen", action="store_true", help="leave out types of at least 20 cells in the query, too")
    parser.add_argument("--peer-python", help="Python with scvi-tools; without it, scVI is left out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        adata = READERS[name](arguments.data)
        sizes = adata.obs["batch"].value_counts()
        for left in arguments.batches or sorted(sizes.index[sizes >= 100]):
            for seed in range(arguments.seeds):
                rows.append({"data": name, "batch": left, "seed": seed, **leave_out(adata, left, arguments, seed)})
                print(json.dumps(rows[-1]), flush=True)
                types = adata.obs["type"][adata.obs["batch"] == left].value_counts() if arguments.unseen else {}
                for removed in [each for each, n_cells in types.items() if n_cells >= 20]:
                    result = unseen(adata, left, removed, arguments, seed)
                    rows.append({"data": name, "batch": left, "seed": seed, "removed": removed, **result})
                    print(json.dumps(rows[-1]), flush=True)
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a table with the median over left-out batches and seeds, for each data set."""
    lines = ["| data | measure | celldial | refit | PCA | scVI |", "|---|---|---|---|---|---|"]
    mapped = [row for row in rows if "f1" in row]
    for name in dict.fromkeys(row["data"] for row in mapped):
        own = [row for row in mapped if row["data"] == name]
        for measure in ("f1", "ilisi", "seconds"):
            values = [
                [row[measure][method] for row in own if method in row[measure]]
                for method in ("celldial", "refit", "PCA", "scVI")
            ]
            texts = [f"{np.median(each):.3f}" if each else "" for each in values]
            lines.append(f"| {name}, {len(own)} fits | {measure} | {' | '.join(texts)} |")
        lost = [row["f1"]["refit"] - row["f1"]["celldial"] for row in own]
        lines.append(f"| | largest loss of F1 against the refit | {max(lost):.3f} | | | |")
    left = [row for row in rows if "removed" in row]
    for name in dict.fromkeys(row["data"] for row in left):
        own = [row for row in left if row["data"] == name]
        new, known = (np.median([row[f"unassigned, {which}"] for row in own]) for which in ("new", "known"))
        lines.append(f"| {name}, {len(own)} types left out | unassigned: new / known | {new:.3f} / {known:.3f} | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Likelihoods of antibody counts: held-out ELBO, embedding of proteins, and counts of proteins that a cell lacks.

Cells of `cite_mosaic` that have proteins, by their proteins alone. A fifth of them is held out. The known negatives are
CD8 in CD4 T cells and CD19 in T cells: the table has their denoised mean divided by their observed mean. PCA of
centered log ratios is the comparison. A second table has RNA and proteins in one model.

    python -m benchmarks.peers.proteins --data DIR --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

import celldial as cd
from celldial.metrics import ilisi, knn_f1, leiden_nmi

LIBRARY_SIZE = 1e4
N_COMPONENTS = 15
T_CELLS = ("CD4 T", "CD8 T")
# Protein to the cell types that lack it.
NEGATIVES = {"cd8": ("CD4 T",), "cd8a": ("CD4 T",), "cd19": T_CELLS}
# Features of a type that celldial does not know have dropout of counts in the encoder, as genes do.
UNKNOWN_TYPE = "tags"
MODELS: dict[str, dict[str, Any]] = {
    "negative binomial, dropout": {"modalities": {"adt": UNKNOWN_TYPE}},
    "negative binomial": {"likelihood": "negative_binomial"},
    "mixture with background": {"likelihood": "negative_binomial_mixture"},
}


def read_proteins(folder: Path) -> ad.AnnData:
    """Return the cells that have proteins, with their proteins alone."""
    adata = ad.read_h5ad(folder / "cite_mosaic.h5ad")
    adata = adata[adata.obs["has_protein"], adata.var["feature_types"] == "Antibody Capture"].copy()
    adata.obs = adata.obs[["batch", "celltype"]].copy()
    return adata


def hide_type(adata: ad.AnnData) -> ad.AnnData:
    """Return the cells with a type of the proteins that celldial does not know."""
    adata = adata.copy()
    adata.var["feature_types"] = adata.var["feature_types"].astype(str).replace("Antibody Capture", UNKNOWN_TYPE)
    return adata


def measure_joint(folder: Path, dropout: bool, seed: int, max_epochs: Any) -> dict[str, float]:
    """Fit RNA and proteins together, and return the measurements of all cells."""
    adata = ad.read_h5ad(folder / "cite_mosaic.h5ad")
    modalities = None
    if dropout:
        adata = hide_type(adata)
        modalities = {"rna": "Gene Expression", "adt": UNKNOWN_TYPE}
        adata.obs["has_adt"] = adata.obs["has_protein"]
    model = cd.VAE(batch_key="batch", modalities=modalities, seed=seed)
    model.fit(adata, max_epochs=max_epochs, progress=False)
    embedding_cz = adata.obsm["X_celldial"]
    mixing = {"iLISI": ilisi(embedding_cz, adata.obs["batch"])}
    return {"ELBO": max(model.history_["elbo_validation"])} | agreement(embedding_cz, adata) | mixing


def clr_components(x_cf: np.ndarray) -> np.ndarray:
    """Return principal components of the log counts minus their mean in each cell."""
    log_cf = np.log1p(x_cf)
    return PCA(N_COMPONENTS, random_state=0).fit_transform(log_cf - log_cf.mean(axis=1, keepdims=True))


def agreement(embedding_cz: np.ndarray, adata: ad.AnnData) -> dict[str, float]:
    """Return how well the embedding separates the cell types."""
    labels = adata.obs["celltype"]
    return {"macro-F1": knn_f1(embedding_cz, labels), "NMI": leiden_nmi(embedding_cz, labels)}


def negatives(model: cd.VAE, adata: ad.AnnData, x_cf: np.ndarray) -> dict[str, float]:
    """Return the denoised mean of each protein in the cells that lack it, divided by its observed mean."""
    (modality,) = model.schema_.modalities
    table = model.denoise(adata, list(NEGATIVES), modality=modality, library_size=LIBRARY_SIZE)
    share_cf = pd.DataFrame(x_cf / x_cf.sum(axis=1, keepdims=True), adata.obs_names, adata.var_names)
    ratios = {}
    for protein, types in NEGATIVES.items():
        lacks_c = adata.obs["celltype"].isin(types).to_numpy()
        ratios[protein] = float(
            table.loc[lacks_c, protein].mean() / (LIBRARY_SIZE * share_cf.loc[lacks_c, protein].mean())
        )
    return ratios


def measure(adata: ad.AnnData, arguments: Mapping[str, Any], seed: int, max_epochs: Any) -> dict[str, float]:
    """Fit one model to the training cells, and return its measurements."""
    held_out_c = np.random.default_rng(0).permutation(adata.n_obs) < adata.n_obs // 5
    if "modalities" in arguments:
        adata = hide_type(adata)
    train = adata[~held_out_c].copy()
    model = cd.VAE(batch_key="batch", seed=seed, **arguments).fit(train, max_epochs=max_epochs, progress=False)
    x_cf = adata.X.toarray()
    elbo = {"ELBO": model.score(adata[held_out_c].copy())}
    return elbo | agreement(model.transform(adata), adata) | negatives(model, adata, x_cf)


def summarize(runs: list[dict[str, float]]) -> list[str]:
    """Return the median of each measurement with the range over seeds."""
    return [
        f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
        if name != "ELBO"
        else f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        for name, values in ((name, [run[name] for run in runs]) for name in runs[0])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of cite_mosaic.h5ad")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=MODELS, nargs="+", default=list(MODELS), help="the models to fit (all)")
    parser.add_argument("--quick", action="store_true", help="two epochs of one seed, to check that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    adata = read_proteins(options.data)
    reference = agreement(clr_components(adata.X.toarray()), adata)
    print("| model | ELBO, held out | macro-F1 | NMI | CD8 | CD8a | CD19 |\n|---|---|---|---|---|---|---|")
    print(f"| PCA of CLR | | {reference['macro-F1']:.3g} | {reference['NMI']:.3g} | | | |", flush=True)
    n_seeds, max_epochs = (1, 2) if options.quick else (options.seeds, "auto")
    for name in options.only:
        runs = [measure(adata, MODELS[name], seed, max_epochs) for seed in range(n_seeds)]
        print(f"| {name} | {' | '.join(summarize(runs))} |", flush=True)
    print("\n| RNA and proteins | ELBO, validation | macro-F1 | NMI | iLISI |\n|---|---|---|---|---|")
    for name, dropout in (("dropout of proteins", True), ("no dropout of proteins", False)):
        runs = [measure_joint(options.data, dropout, seed, max_epochs) for seed in range(n_seeds)]
        print(f"| {name} | {' | '.join(summarize(runs))} |", flush=True)
    if options.quick:
        print("QUICK: few epochs, so these numbers mean nothing.")


if __name__ == "__main__":
    main()

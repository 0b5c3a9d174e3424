#!/usr/bin/env python
"""Fusion and weights of modalities, and the prior on the loadings of peaks, compared on held-out cells.

    python -m benchmarks.ablations.fusion --data DIR [--only paired mosaic cite simulated weights prior] [--seeds 2]
    [--a549-seeds 1] [--fusions aligned_product product]

See benchmarks/README.md for the columns. Medians over seeds.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import torch
from benchmarks.peers.multimodal import TREATMENT, counts_of, log_per_10k, n_held_out
from scipy.sparse import csr_matrix

import celldial as cd
from celldial.metrics import auroc_per_cell, foscttm, ilisi, knn_f1, leiden_nmi, pearson_per_cell
from celldial.model import likelihoods
from celldial.model.fusion import FUSIONS

COLUMNS = {
    "−ELBO": ".1f",
    "log p of RNA": ".1f",
    "log p of ATAC": ".1f",
    "RNA → ATAC, AUROC": ".3f",
    "ATAC → RNA, Pearson": ".3f",
    "FOSCTTM": ".3f",
    "FOSCTTM, training": ".3f",
    "F1": ".3f",
}
COLUMNS_OF_CITE = {"−ELBO": ".1f", "FOSCTTM, training": ".3f", "NMI": ".3f", "F1": ".3f", "iLISI": ".2f"}


@dataclass(frozen=True)
class Variant:
    """Differences from the defaults."""

    fusion: str = "aligned_product"
    atac_weight: float | None = None
    loading_scale: float = likelihoods.Bernoulli.loading_scale


@dataclass(frozen=True, eq=False)
class Data:
    """Cells, of which the first tenth has both modalities and is held out."""

    name: str
    adata: ad.AnnData
    labels: str
    arguments: dict[str, Any]


# --- Data -------------------------------------------------------------------------------------------------------------


@functools.cache
def paired(folder: Path) -> Data:
    adata = ad.read_h5ad(folder / "a549_multiome.h5ad")
    # Cells are sorted by treatment in the file. They are shuffled, so that the first tenth can be held out.
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    return Data("a549", adata, TREATMENT, {})


@functools.cache
def mosaic(folder: Path) -> Data:
    """A third of the training cells keeps RNA only, a third ATAC only. The held-out cells keep both."""
    adata = paired(folder).adata.copy()
    kept_c = np.random.default_rng(1).permutation(np.arange(adata.n_obs) % 3)  # RNA (0), ATAC (1) or both (2)
    kept_c[: n_held_out(adata)] = 2
    adata.obs["has_rna"], adata.obs["has_atac"] = kept_c != 1, kept_c != 0
    of_rna_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    # The counts of missing modalities are removed, too.
    stored = csr_matrix(adata.X).tocoo()
    kept_n = kept_c[stored.row] != np.where(of_rna_f[stored.col], 1, 0)
    adata.X = csr_matrix((stored.data[kept_n], (stored.row[kept_n], stored.col[kept_n])), shape=adata.shape)
    return Data("a549 in thirds", adata, TREATMENT, {})


@functools.cache
def simulated(folder: Path) -> Data:
    return Data("simulated", cd.datasets.simulate_multiome(), "cell_type", {"batch_key": "batch"})


# --- Measuring --------------------------------------------------------------------------------------------------------


@functools.cache
def measure(data: Data, variant: Variant, seed: int, epochs: int | None) -> tuple[float, ...]:
    """Fit one model and return its scores. The defaults are in several tables, but are fitted once."""
    adata = data.adata
    n = n_held_out(adata)
    weights = None if variant.atac_weight is None else {"atac": variant.atac_weight}
    model = cd.VAE(fusion=variant.fusion, modality_weights=weights, seed=seed, **data.arguments)
    options = {} if epochs is None else {"max_epochs": epochs}
    with mock.patch.object(likelihoods.Bernoulli, "loading_scale", variant.loading_scale):
        model.fit(adata, validation_cells=np.arange(adata.n_obs) < n, progress=False, **options)
    kept = int(np.argmax(model.history_["kept"]))
    elbo, rna, atac = (
        model.history_[f"{name}_validation"][kept] for name in ("elbo", "log_likelihood_rna", "log_likelihood_atac")
    )
    held_out = adata[:n].copy()
    open_cf = counts_of(held_out, "Peaks") > 0
    predicted_cf = model.impute(held_out, "atac", from_="rna", dense=True).to_numpy()
    auroc = np.nanmean(auroc_per_cell(open_cf, predicted_cf))
    log_cf = log_per_10k(counts_of(held_out, "Gene Expression"))
    predicted_cf = model.impute(held_out, "rna", from_="atac", library_size=1e4).to_numpy()
    pearson = np.nanmean(pearson_per_cell(log_cf, np.log1p(predicted_cf)))
    match = foscttm(*(model.transform(held_out, modality=name) for name in ("rna", "atac")))
    paired = adata[n:][paired_mask(adata[n:], "atac")].copy()
    match_training = foscttm(*(model.transform(paired, modality=name) for name in ("rna", "atac")))
    f1 = knn_f1(adata.obsm["X_celldial"], adata.obs[data.labels])
    return -elbo, rna, atac, float(auroc), float(pearson), match, match_training, f1


def paired_mask(adata: ad.AnnData, other: str) -> np.ndarray:
    """Return which cells have both RNA and the other modality."""
    columns = [name for name in ("has_rna", f"has_{other}") if name in adata.obs]
    return np.logical_and.reduce([np.ones(adata.n_obs, dtype=bool), *(adata.obs[name] for name in columns)])


def measure_cite(folder: Path, fusion: str, seed: int, epochs: int | None) -> tuple[float, ...]:
    """Fit one model to the mosaic of RNA and proteins, and return its scores."""
    adata = ad.read_h5ad(folder / "cite_mosaic.h5ad")
    model = cd.VAE(fusion=fusion, batch_key="batch", seed=seed)
    model.fit(adata, progress=False, **({} if epochs is None else {"max_epochs": epochs}))
    elbo = model.history_["elbo_validation"][int(np.argmax(model.history_["kept"]))]
    paired = adata[paired_mask(adata, "protein")].copy()
    match = foscttm(*(model.transform(paired, modality=name) for name in ("rna", "protein")))
    z_cz, obs = adata.obsm["X_celldial"], adata.obs
    return -elbo, match, leiden_nmi(z_cz, obs["celltype"]), knn_f1(z_cz, obs["celltype"]), ilisi(z_cz, obs["batch"])


# Variants and data of each part of the table.
BY_FUSION = {name: Variant(fusion=name) for name in FUSIONS}
BY_WEIGHT = {
    "weight of ATAC 1": Variant(atac_weight=1.0),
    "weight by the root of the widths": Variant(),
    "weight of ATAC 0.05": Variant(atac_weight=0.05),
}
BY_PRIOR = {
    f"prior scale {scale:g}": Variant(loading_scale=scale) for scale in (likelihoods.Bernoulli.loading_scale, 1.7, 100)
}
PARTS: dict[str, list[tuple[Callable[[Path], Data], dict[str, Variant]]]] = {
    "paired": [(paired, BY_FUSION)],
    "mosaic": [(mosaic, BY_FUSION)],
    "simulated": [(simulated, BY_FUSION)],
    "weights": [(simulated, BY_WEIGHT), (paired, BY_WEIGHT)],
    "prior": [(paired, BY_PRIOR)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of a549_multiome.h5ad")
    parts = [*PARTS, "cite"]
    parser.add_argument("--only", choices=parts, nargs="+", default=parts, help="the parts to measure (all)")
    parser.add_argument("--fusions", choices=FUSIONS, nargs="+", default=list(FUSIONS), help="in the parts on fusions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--a549-seeds", type=int, help="fewer for the larger data set; by default as many")
    parser.add_argument("--epochs", type=int, help="by default what `fit` chooses")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tables = [part for part in options.only if part != "cite"]
    if tables:
        print_head(COLUMNS)
    for part in tables:
        for load, variants in PARTS[part]:
            data = load(options.data)
            few = load is not simulated and options.a549_seeds is not None
            for name, variant in variants.items():
                if variants is BY_FUSION and name not in options.fusions:
                    continue
                seeds = range(options.a549_seeds if few else options.seeds)
                runs = [measure(data, variant, seed, options.epochs) for seed in seeds]
                print_row(data.name, name, runs, COLUMNS)
    if "cite" in options.only:
        print_head(COLUMNS_OF_CITE)
        for fusion in options.fusions:
            runs = [measure_cite(options.data, fusion, seed, options.epochs) for seed in range(options.seeds)]
            print_row("cite_mosaic", fusion, runs, COLUMNS_OF_CITE)


def print_head(columns: dict[str, str]) -> None:
    print(f"| data | variant | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}", flush=True)


def print_row(data: str, variant: str, runs: list[tuple[float, ...]], columns: dict[str, str]) -> None:
    medians = (median(column) for column in zip(*runs, strict=True))
    cells = [format(value, of) for value, of in zip(medians, columns.values(), strict=True)]
    print(f"| {data} | {variant} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

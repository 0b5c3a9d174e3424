#!/usr/bin/env python
"""Counts of peaks: how much the Bernoulli likelihood loses by reading counts above 1 as 1.

    python -m benchmarks.ablations.peak_counts --data DIR [--cells 3000] [--seeds 3] [--kept 1 0.5 0.25 0.12]

The bins of `pbmc10k_atac` have counts of cut sites. They are halved to fragments (rounded up), and fragments are
thinned at random, so that fewer and fewer bins of a cell have several. Printed: the share of stored counts above 1, and
the agreement of the embedding with the cell types, medians over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import anndata as ad
import numpy as np
import torch
from scipy import sparse

import celldial as cd
from celldial.metrics import knn_f1, leiden_nmi

LABELS = "celltype"


def thinned(cut_sites: sparse.csr_matrix, kept: float, seed: int) -> sparse.csr_matrix:
    """Return a random fraction of the fragments that the cut sites belong to."""
    fragments = sparse.csr_matrix(cut_sites, copy=True)
    number_n = np.ceil(fragments.data / 2).astype(int)
    fragments.data = np.random.default_rng(seed).binomial(number_n, kept).astype(np.float32)
    fragments.eliminate_zeros()
    return fragments


def variants(counts: sparse.csr_matrix, kept: list[float]) -> Iterator[tuple[str, str, sparse.csr_matrix]]:
    """Yield the name of the counts, the likelihood, and the counts."""
    yield "cut sites as stored", "poisson", counts
    for fraction in kept:
        fragments = thinned(counts, fraction, 0)
        for likelihood in ("bernoulli", "poisson"):
            yield f"{fraction:.0%} of the fragments", likelihood, fragments


def main() -> None:
    """Run all variants, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", type=float, nargs="+", default=[1, 0.5, 0.25, 0.12])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    every = ad.read_h5ad(options.data / "pbmc10k_atac.h5ad")
    chosen = np.random.default_rng(0).choice(every.n_obs, min(options.cells, every.n_obs), replace=False)
    cells = every[np.sort(chosen)].copy()
    print(
        f"{cells.n_obs} cells, {options.seeds} seeds\n{'counts':24}{'above 1':>8}  {'likelihood':12}{'F1':>6}{'NMI':>7}"
    )
    for name, likelihood, counts in variants(sparse.csr_matrix(cells.X), options.kept):
        f1, nmi = [], []
        for seed in range(options.seeds):
            adata = ad.AnnData(counts, cells.obs[[LABELS]].copy(), cells.var[[]].copy())
            model = cd.VAE(likelihood=likelihood, modalities={"atac": "Peaks"}, seed=seed)
            adata.var["feature_types"] = "Peaks"
            model.fit(adata, progress=False)
            f1.append(knn_f1(adata.obsm["X_celldial"], adata.obs[LABELS]))
            nmi.append(leiden_nmi(adata.obsm["X_celldial"], adata.obs[LABELS]))
        share = float((counts.data > 1).mean())
        print(f"{name:24}{share:8.1%}  {likelihood:12}{median(f1):6.3f}{median(nmi):7.3f}", flush=True)


if __name__ == "__main__":
    main()

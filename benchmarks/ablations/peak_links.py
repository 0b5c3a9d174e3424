#!/usr/bin/env python
"""Links of peaks to genes on simulated cells with known links: ranks, and the false discovery rate.

    python -m benchmarks.ablations.peak_links [--seeds 5] [--cells 2000] [--genes 400] [--peaks 4000] [--epochs auto]

A link can be found if the gene and the peak change: links of genes that no program regulates leave no trace in the
cells. Reported are the area under the ROC curve over all pairs within 100 kb, for these links and for all, by
correlation, by FDR, and by the correlation of log counts over cells; and the share of false links at an FDR of 0.1. In
the null, positions of genes are permuted, so that no pair is linked.
"""

from __future__ import annotations

import argparse
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.metrics import roc_auc_score

import celldial

LEVEL = 0.1
# A gene changes if its expected log2 share has at least this standard deviation between cells.
MIN_CHANGE = 0.25


def truth(adata: ad.AnnData, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which pairs are links, and which are links of genes and peaks that change."""
    links = adata.uns["simulation"]["links"]
    linked = pd.MultiIndex.from_frame(table[["gene", "peak"]]).isin(pd.MultiIndex.from_frame(links[["gene", "peak"]]))
    log_cf = np.log2(adata.layers["mean"].astype(float))
    is_gene = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    for part in (is_gene, ~is_gene):
        log_cf[:, part] -= np.log2((2 ** log_cf[:, part]).sum(1, keepdims=True))
    batch_c = adata.obs["batch"].cat.codes.to_numpy()
    change_f = np.sqrt(np.mean([log_cf[batch_c == batch].var(0) for batch in np.unique(batch_c)], axis=0))
    change = pd.Series(change_f, adata.var_names)
    changes = (change[table["gene"]].to_numpy() > MIN_CHANGE) & (change[table["peak"]].to_numpy() > MIN_CHANGE)
    return linked, linked & changes


def count_correlation(adata: ad.AnnData, table: pd.DataFrame) -> np.ndarray:
    """Return the correlation of log-normalized counts over cells."""
    is_gene = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    parts = []
    for part in (is_gene, ~is_gene):
        counts = sparse.csr_matrix(adata.X[:, part])
        total_c = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
        level_cf = (sparse.diags(np.median(total_c) / total_c) @ counts).log1p().toarray()
        level_cf -= level_cf.mean(0)
        parts.append(level_cf / np.maximum(np.linalg.norm(level_cf, axis=0), 1e-9))
    gene_n = adata.var_names[is_gene].get_indexer(table["gene"])
    peak_n = adata.var_names[~is_gene].get_indexer(table["peak"])
    return (parts[0].T @ parts[1])[gene_n, peak_n]


def measure(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of one seed."""
    adata = celldial.datasets.simulate_multiome(
        options.cells, options.genes, options.peaks, 5, 2, depth=options.depth, truth=True, seed=seed
    )
    model = celldial.VAE(batch_key="batch", seed=seed).fit(adata, max_epochs=options.epochs, progress=False)
    table = model.link_peaks(adata)
    linked, visible = truth(adata, table)
    kept = visible | ~linked  # invisible links are neither right nor wrong
    by_correlation, by_fdr = table["correlation"].abs(), -table["fdr"] + 1e-3 * table["correlation"].abs()
    by_counts = np.abs(count_correlation(adata, table))
    called = (table["fdr"] <= LEVEL).to_numpy()
    null = adata.copy()
    is_gene = (null.var["feature_types"] == "Gene Expression").to_numpy()
    order = np.random.default_rng(seed).permutation(np.flatnonzero(is_gene))
    for column in ("chrom", "start", "end"):
        null.var[column] = null.var[column].astype(object)
        values = null.var[column].to_numpy(copy=True)
        values[is_gene] = values[order]
        null.var[column] = values
    permuted = model.link_peaks(null)
    return {
        "AUROC, correlation": roc_auc_score(visible[kept], by_correlation[kept]),
        "AUROC, FDR": roc_auc_score(visible[kept], by_fdr[kept]),
        "AUROC, FDR, all links": roc_auc_score(linked, by_fdr),
        "AUROC, counts": roc_auc_score(visible[kept], by_counts[kept]),
        "called": int(called.sum()),
        "false": float((~linked[called]).mean()) if called.any() else 0.0,
        "found": float(called[visible].mean()),
        "called, null": int((permuted["fdr"] <= LEVEL).sum()),
        "p <= 0.05, null": float((permuted["p_value"] <= 0.05).mean()),
    }


def main() -> None:
    """Print the measures of each seed, then means and worst values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--peaks", type=int, default=4000)
    parser.add_argument("--depth", type=float, default=2.0)
    parser.add_argument("--epochs", type=lambda text: text if text == "auto" else int(text), default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.seeds):
        rows.append(measure(seed, options))
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows)
    print("\n| measure | mean | lowest | highest |\n|---|---|---|---|")
    for name in table:
        print(f"| {name} | {table[name].mean():.3f} | {table[name].min():.3f} | {table[name].max():.3f} |")


if __name__ == "__main__":
    main()

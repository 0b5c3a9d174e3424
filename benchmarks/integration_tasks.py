"""Data sets with labels and batches: real ones, and cells whose counts were thinned as by a second technology.

Axis suffixes: ``c`` cells, ``f`` features, ``n`` stored entries, ``s`` batches, ``t`` types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from benchmarks.peers.labels import normalized, read_kang
from scipy.sparse import csr_matrix

LABEL, BATCH = "type", "batch"
N_GENES = 2000
# Simulated types and batches. The first two types are close to each other.
N_TYPES, N_FEATURES, N_CELLS = 6, 600, 1200
# Batch to the type that it lacks in the unbalanced simulation.
LACKING = {0: 1, 1: 3}


@dataclass(frozen=True)
class Task:
    """Cells with ``obs["type"]`` and ``obs["batch"]``, and the parameters of `celldial.VAE` for them."""

    adata: ad.AnnData
    parameters: dict[str, Any] = field(default_factory=dict)


def variable_genes(adata: ad.AnnData, n_genes: int = N_GENES) -> ad.AnnData:
    cells = normalized(adata)
    sc.pp.highly_variable_genes(cells, n_top_genes=n_genes, batch_key=BATCH)
    return adata[:, cells.var["highly_variable"]].copy()


def name_columns(adata: ad.AnnData, label: str, batch: str) -> ad.AnnData:
    adata.obs[LABEL] = adata.obs[label].astype(str).to_numpy()
    adata.obs[BATCH] = adata.obs[batch].astype(str).to_numpy()
    return adata


def rnamix(folder: Path, seed: int) -> Task:
    """Mixtures of RNA of three cell lines, by two protocols."""
    adata = name_columns(ad.read_h5ad(folder / "rnamix.h5ad"), "mix", "batch")
    return Task(variable_genes(adata))


def cite(folder: Path, seed: int) -> Task:
    """RNA of four donors, for the cells that have RNA."""
    adata = ad.read_h5ad(folder / "cite_mosaic.h5ad")
    is_gene_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    adata = adata[adata.obs["has_rna"].to_numpy(dtype=bool), is_gene_f].copy()
    return Task(name_columns(adata, "celltype", "batch"))


def kang(folder: Path, seed: int) -> Task:
    """Control and stimulated blood cells."""
    adata, _ = read_kang(folder)
    return Task(name_columns(adata, "type", "condition"))


def thin(adata: ad.AnnData, seed: int) -> ad.AnnData:
    """Thin the counts of half of the cells, each feature by its own probability."""
    rng = np.random.default_rng(seed)
    counts = csr_matrix(adata.X).copy()
    thinned_c = rng.random(adata.n_obs) < 0.5
    kept_f = 0.15 + 0.85 * rng.beta(1.5, 1.5, adata.n_vars)
    in_thinned_n = thinned_c[np.repeat(np.arange(adata.n_obs), np.diff(counts.indptr))]
    values_n = counts.data[in_thinned_n].astype(int)
    counts.data[in_thinned_n] = rng.binomial(values_n, kept_f[counts.indices[in_thinned_n]])
    counts.eliminate_zeros()
    adata = adata.copy()
    adata.X = counts.astype(np.float32)
    adata.obs["technology"] = np.where(thinned_c, "thinned", "full")
    return adata


def thinned_rna(folder: Path, seed: int) -> Task:
    """Blood cells, half of them thinned."""
    adata = thin(ad.read_h5ad(folder / "pbmc68k_counts.h5ad"), seed)
    return Task(name_columns(adata, "bulk_labels", "technology"))


def thinned_atac(folder: Path, seed: int) -> Task:
    """Fragment counts of 2,000 blood cells, half of them thinned."""
    adata = ad.read_h5ad(folder / "pbmc10k_atac.h5ad")
    adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:2000])]
    adata = thin(adata, seed)
    del adata.var  # the names of the bins would need a type
    return Task(name_columns(adata, "celltype", "technology"), {"likelihood": "poisson"})


def simulate(n_batches: int, lacking: bool, seed: int) -> Task:
    """Types, a continuous state, effects of batches on genes, and effects on genes within types."""
    rng = np.random.default_rng(seed)
    type_tf = rng.normal(0, 0.6, (N_TYPES, N_FEATURES)) * (rng.random((N_TYPES, N_FEATURES)) < 0.3)
    type_tf[1] = type_tf[0] + rng.normal(0, 0.35, N_FEATURES) * (rng.random(N_FEATURES) < 0.2)
    type_c, batch_c = rng.integers(0, N_TYPES, N_CELLS), rng.integers(0, n_batches, N_CELLS)
    if lacking:
        kept_c = ~np.any([(batch_c == batch) & (type_c == of_type) for batch, of_type in LACKING.items()], axis=0)
        type_c, batch_c = type_c[kept_c], batch_c[kept_c]
    batch_sf = rng.normal(0, 0.5, (n_batches, N_FEATURES))
    within_stf = rng.normal(0, 0.2, (n_batches, N_TYPES, N_FEATURES))
    state_cf = rng.normal(size=(len(type_c), 3)) @ rng.normal(0, 0.25, (3, N_FEATURES))
    log_rate_cf = (
        rng.normal(0, 1.5, N_FEATURES) + type_tf[type_c] + batch_sf[batch_c] + within_stf[batch_c, type_c] + state_cf
    )
    share_cf = np.exp(log_rate_cf)
    share_cf /= share_cf.sum(1, keepdims=True)
    depth_c = np.exp(rng.normal(7.3, 0.35, len(type_c)) + rng.normal(0, 0.4, n_batches)[batch_c])
    counts_cf = rng.poisson(rng.gamma(4, depth_c[:, None] * share_cf / 4))
    obs = pd.DataFrame({"t": [f"t{t}" for t in type_c], "b": [f"b{s}" for s in batch_c]})
    obs.index = [f"cell{c}" for c in range(len(obs))]
    return Task(name_columns(ad.AnnData(csr_matrix(counts_cf, dtype=np.float32), obs=obs), "t", "b"))


TASKS: dict[str, Callable[[Path, int], Task]] = {
    "rnamix": rnamix,
    "cite_mosaic, RNA": cite,
    "kang_ifnb, condition": kang,
    "pbmc68k, thinned": thinned_rna,
    "pbmc10k_atac, thinned": thinned_atac,
    "simulation, 2 batches": lambda folder, seed: simulate(2, False, seed),
    "simulation, 4 batches": lambda folder, seed: simulate(4, False, seed),
    "simulation, 4 batches, types lacking": lambda folder, seed: simulate(4, True, seed),
    "simulation, 20 batches": lambda folder, seed: simulate(20, False, seed),
}

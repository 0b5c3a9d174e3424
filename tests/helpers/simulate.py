"""Small simulated data for the tests: two cell types, two batches, one continuous covariate; genes, and peaks."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.data.cells import Cells
from celldial.data.schema import Schema

# A covariate of every kind, as arguments of `VAE` and of `Schema.from_anndata`.
COVARIATES = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}


def simulate(n_cells: int = 60, n_genes: int = 20, seed: int = 0) -> AnnData:
    """Draw negative binomial counts; each gene's share depends on the cell's type, batch and age.

    Cells are c0, c1, ..., genes g0, g1, ...; batches b0 and b1 and donors x, y, z alternate, so that the first few
    cells hold every category. No cell is empty.
    """
    random = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(random.choice(["A", "B"], n_cells)),
            "batch": [f"b{cell % 2}" for cell in range(n_cells)],
            "donor": pd.Categorical(["xyz"[cell % 3] for cell in range(n_cells)]),
            "age": random.uniform(20, 60, n_cells),
        },
        index=[f"c{cell}" for cell in range(n_cells)],
    )
    effect_kf = random.normal(0, [[1.0], [0.5], [0.3]], (3, n_genes))
    level_ck = np.stack([obs["type"] == "B", obs["batch"] == "b1", obs["age"] / 40 - 1], axis=1)
    rate_cf = np.exp(random.normal(0, 0.5, n_genes) + level_ck @ effect_kf)
    library_c1 = random.lognormal(np.log(10 * n_genes / 2), 0.3, (n_cells, 1))
    mu_cf = library_c1 * rate_cf / rate_cf.sum(1, keepdims=True)
    x_cf = random.poisson(mu_cf * random.gamma(5, 1 / 5, mu_cf.shape))
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(sparse.csr_matrix(x_cf, dtype=np.float32), obs, var)


def simulate_cells(n_cells: int = 60, n_genes: int = 20, seed: int = 0, covariates: bool = False) -> Cells:
    """Draw the same counts as `simulate`, as tensors."""
    adata = simulate(n_cells, n_genes, seed)
    return Cells.from_anndata(adata, Schema.from_anndata(adata, **(COVARIATES if covariates else {})))


def simulate_two(
    n_cells: int = 60,
    n_genes: int = 20,
    n_peaks: int = 30,
    seed: int = 0,
    lacking: Mapping[str, Sequence[int]] | None = None,
) -> AnnData:
    """Add peaks p0, p1, ... to the cells of `simulate`, open (1) or not (0); genes come first.

    Each peak's rate depends on the cell's type alone, and every peak is open in some cell. `lacking` says which cells
    have no count of a modality, ``{"atac": [0, 1]}`` say.
    """
    genes = simulate(n_cells, n_genes, seed)
    random = np.random.default_rng([seed, 1])
    rate_cf = np.exp(random.normal(0, 0.5, n_peaks) + np.outer(genes.obs["type"] == "B", random.normal(0, 1, n_peaks)))
    exposure_c1 = random.lognormal(np.log(n_peaks / 3), 0.3, (n_cells, 1))
    x_cf = 1 * (random.poisson(exposure_c1 * rate_cf / rate_cf.sum(1, keepdims=True)) > 0)
    x_cf[np.arange(max(n_cells, n_peaks)) % n_cells, np.arange(max(n_cells, n_peaks)) % n_peaks] = 1
    counts = {"rna": genes.X.toarray(), "atac": x_cf.astype(np.float32)}
    for modality, cells in (lacking or {}).items():
        counts[modality][list(cells)] = 0
    var = pd.DataFrame(
        {"feature_types": ["Gene Expression"] * n_genes + ["Peaks"] * n_peaks},
        index=[*genes.var_names, *(f"p{peak}" for peak in range(n_peaks))],
    )
    return AnnData(sparse.csr_matrix(np.hstack(list(counts.values()))), genes.obs, var)


def simulate_two_cells(
    n_cells: int = 60,
    n_genes: int = 20,
    n_peaks: int = 30,
    seed: int = 0,
    lacking: Mapping[str, Sequence[int]] | None = None,
    covariates: bool = False,
) -> Cells:
    """Draw the same counts as `simulate_two`, as tensors of the modalities "rna" and "atac"."""
    adata = simulate_two(n_cells, n_genes, n_peaks, seed, lacking)
    return Cells.from_anndata(adata, Schema.from_anndata(adata, **(COVARIATES if covariates else {})))


def simulate_groups(sizes: Sequence[int] = (60, 60, 60), n_genes: int = 30, seed: int = 0) -> AnnData:
    """Draw Poisson counts of groups of cells that are far apart, in turns; ``obs["group"]`` names them A, B, ...

    All cells of a group have the same shares, so that there is nothing else to be seen in them. As many groups of the
    same genes and seed are the same ones, whatever their sizes.
    """
    random = np.random.default_rng(seed)
    share_kf = np.exp(random.normal(0, 1, (len(sizes), n_genes)))
    group_c = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    library_c1 = random.lognormal(np.log(10 * n_genes), 0.3, (len(group_c), 1))
    x_cf = random.poisson(library_c1 * (share_kf / share_kf.sum(1, keepdims=True))[group_c])
    obs = pd.DataFrame(
        {"group": [chr(ord("A") + group) for group in group_c]}, index=[f"c{cell}" for cell in range(len(group_c))]
    )
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(sparse.csr_matrix(x_cf, dtype=np.float32), obs, var)


def with_counts(adata: AnnData, x: Any) -> AnnData:
    """Return cells with the same names and columns as `adata`, and the counts `x`."""
    return AnnData(x, adata.obs.copy(), adata.var.copy())


def with_empty_cells(adata: AnnData, *cells: int) -> AnnData:
    """Return the cells of `adata`, some of them without a count."""
    x = adata.X.toarray()
    x[list(cells)] = 0
    return with_counts(adata, sparse.csr_matrix(x))


def write(adata: AnnData, path: Path) -> Path:
    """Write an h5ad file or a zarr store, by the suffix of `path`, and return `path`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats of zarr to come, and of text that becomes categories
        if path.suffix == ".zarr":
            adata.write_zarr(path)
        else:
            adata.write_h5ad(path)
    return path

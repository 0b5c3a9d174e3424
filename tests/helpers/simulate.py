"""Small simulated data for the tests: two cell types, two batches, one continuous covariate; genes, and peaks."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse, stats

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

    The rate of a peak depends only on the type of the cell, and every peak is open in some cell. `lacking` maps a
    modality to the cells without its counts, for example ``{"atac": [0, 1]}``.
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
    """Draw Poisson counts of well-separated groups of cells in random order; ``obs["group"]`` has their names A, B, ...

    All cells of a group have the same shares, so the groups are the only structure. The shares depend on the number
    of groups, the genes and the seed, and not on the sizes of the groups.
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


# --- Several modalities -----------------------------------------------------------------------------------------------

MODALITY_SIZES = {"rna": 20, "atac": 30, "protein": 6}
MODALITIES = tuple(MODALITY_SIZES)
FEATURE_TYPES = {"rna": "Gene Expression", "atac": "Peaks", "protein": "Antibody Capture"}
FEATURE_LETTERS = {"rna": "g", "atac": "p", "protein": "a"}
N_CELLS = 60


def simulate_modalities(*modalities: str, n_cells: int = N_CELLS, seed: int = 0) -> AnnData:
    """Draw paired counts of some modalities, or of all: genes g0, g1, ..., peaks p0, ... and proteins a0, ...

    A few counts of peaks are above 1.
    """
    adata = simulate(n_cells, sum(MODALITY_SIZES.values()), seed)
    modality_f = np.repeat(MODALITIES, list(MODALITY_SIZES.values()))
    adata.var_names = [f"{FEATURE_LETTERS[name]}{f}" for name in MODALITIES for f in range(MODALITY_SIZES[name])]
    adata.var["feature_types"] = [FEATURE_TYPES[name] for name in modality_f]
    x = adata.X.toarray()
    open_cf = x[:, modality_f == "atac"] // 4
    is_counted_cf = np.arange(open_cf.size).reshape(open_cf.shape) % 20 == 0
    x[:, modality_f == "atac"] = np.where(is_counted_cf, open_cf, np.minimum(open_cf, 1))
    adata.X = sparse.csr_matrix(x)
    return adata[:, np.isin(modality_f, modalities or MODALITIES)].copy()


def feature_mask(adata: AnnData, *modalities: str) -> np.ndarray:
    """Return which features of `simulate_modalities` belong to some modalities."""
    return adata.var["feature_types"].isin([FEATURE_TYPES[name] for name in modalities]).to_numpy()


def remove_modalities(adata: AnnData, lacking: Mapping[str, Any], *, columns: bool = True) -> AnnData:
    """Return a copy in which cells lack modalities: their counts are 0, and columns ``has_...`` record it.

    `lacking` maps a modality to a mask of cells.
    """
    adata, x = adata.copy(), adata.X.toarray()
    for modality, lacks_c in lacking.items():
        x[np.ix_(np.asarray(lacks_c), feature_mask(adata, modality))] = 0
        if columns:
            adata.obs[f"has_{modality}"] = ~np.asarray(lacks_c)
    adata.X = sparse.csr_matrix(x)
    return adata


def every_sixth_cell(*modalities: str) -> dict[str, np.ndarray]:
    """Return a mask of cells for each modality: of six cells, one lacks the first modality, one the second, ..."""
    return {name: np.arange(N_CELLS) % 6 == 3 + place for place, name in enumerate(modalities)}


def simulate_mosaic(*modalities: str, columns: bool = True) -> AnnData:
    """Draw cells of some modalities, or of all; each modality is missing in every sixth cell."""
    lacking = every_sixth_cell(*(modalities or MODALITIES))
    return remove_modalities(simulate_modalities(*modalities), lacking, columns=columns)


def swap_counts(adata: AnnData, modality: str) -> AnnData:
    """Return a copy in which each cell has the counts of another cell in one modality."""
    adata, x = adata.copy(), adata.X.toarray()
    feature_f = feature_mask(adata, modality)
    x[:, feature_f] = x[::-1, feature_f]
    adata.X = sparse.csr_matrix(x)
    return adata


# Modalities in which proteins are in ``obsm``, as an argument of `VAE`; and the kinds of tables that may be there.
IN_OBSM = {"rna": "Gene Expression", "atac": "Peaks", "protein": "obsm/adt"}
OBSM_KINDS: dict[str, Callable[[np.ndarray, AnnData], Any]] = {
    "csr": lambda x, adata: sparse.csr_matrix(x),
    "array": lambda x, adata: x,
    "DataFrame": lambda x, adata: pd.DataFrame(x, adata.obs_names, adata.var_names[feature_mask(adata, "protein")]),
    "sparse DataFrame": lambda x, adata: pd.DataFrame.sparse.from_spmatrix(
        sparse.csr_matrix(x), adata.obs_names, adata.var_names[feature_mask(adata, "protein")]
    ),
}


def move_to_obsm(kind: str, adata: AnnData) -> AnnData:
    """Return a copy with the proteins in ``obsm["adt"]``."""
    protein_f = feature_mask(adata, "protein")
    moved = adata[:, ~protein_f].copy()
    moved.obsm["adt"] = OBSM_KINDS[kind](adata.X[:, protein_f].toarray(), adata)
    return moved


# --- Known effects ----------------------------------------------------------------------------------------------------

# The log2 fold change of gene g0 by stimulation; g1 changes by as much in the other direction.
RESPONSE = 2.0


def simulate_response(n_cells: int = 400, n_genes: int = 30) -> AnnData:
    """Draw two cell types, each with control and stimulated cells, as in the interferon data of Kang et al."""
    random = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "type": random.choice(["A", "B"], n_cells),
            "condition": random.choice(["control", "stimulated"], n_cells),
        },
        index=[f"c{cell}" for cell in range(n_cells)],
    )
    log2_rate_cf = random.normal(0, 1, n_genes) + (obs["type"] == "B").to_numpy()[:, None] * random.normal(
        0, 1, n_genes
    )
    log2_rate_cf[:, :2] = 0
    stimulated_c = (obs["condition"] == "stimulated").to_numpy()
    log2_rate_cf[stimulated_c, 0] += RESPONSE
    log2_rate_cf[stimulated_c, 1] -= RESPONSE
    rate_cf = 2**log2_rate_cf
    mu_cf = 500 * rate_cf / rate_cf.sum(1, keepdims=True)
    x_cf = random.poisson(mu_cf * random.gamma(10, 1 / 10, mu_cf.shape)).astype(np.float32)
    return AnnData(sparse.csr_matrix(x_cf), obs, pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)]))


def simulate_linear(n_cells: int, dispersed: bool, n_genes: int = 300) -> tuple[AnnData, np.ndarray, np.ndarray]:
    """Draw counts from a model with one coordinate and a linear decoder; also return the coordinate and loadings."""
    random = np.random.default_rng(0)
    loading_f, level_f = random.normal(0, 0.5, n_genes), random.normal(0, 1, n_genes)
    z_c = stats.zscore(random.normal(size=n_cells))
    rate_cf = np.exp(level_f + np.outer(z_c, loading_f))
    library_c1 = random.lognormal(np.log(n_genes), 0.3, (n_cells, 1))
    mu_cf = library_c1 * rate_cf / rate_cf.sum(1, keepdims=True)
    x_cf = random.poisson(mu_cf * random.gamma(5, 1 / 5, mu_cf.shape) if dispersed else mu_cf)
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(sparse.csr_matrix(x_cf, dtype=np.float32), var=var), z_c, loading_f - loading_f.mean()


# --- Counts given by hand ---------------------------------------------------------------------------------------------

SMALL_COUNTS = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 7]])
STORAGES: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


def build_rna(x: Any = SMALL_COUNTS, dtype: Any = np.float32, **layers: Any) -> AnnData:
    """Build cells c0, c1, ... with genes g0, g1, ... from counts, with covariates of every kind."""
    n_cells, n_genes = x.shape
    obs = pd.DataFrame(
        {
            "batch": [f"b{cell % 2}" for cell in range(n_cells)],
            "donor": pd.Categorical([["x", "y"][cell % 2] for cell in range(n_cells)], categories=["z", "y", "x"]),
            "treated": [cell % 2 == 1 for cell in range(n_cells)],
            "plate": [10 - cell for cell in range(n_cells)],
            "age": [float(cell) for cell in range(n_cells)],
        },
        index=[f"c{cell}" for cell in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(x.astype(dtype), obs, var, layers=layers or None)


def build_cells(x: np.ndarray) -> Cells:
    """Build `build_rna` from counts as tensors, with one categorical and one continuous covariate."""
    adata = build_rna(sparse.csr_matrix(x))
    return Cells.from_anndata(adata, Schema.from_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"]))


def build_mosaic(**lacking: list[int]) -> Cells:
    """Build four cells with two features in each modality named, where the cells listed have no count."""
    x, types = [], []
    for number, (modality, cells) in enumerate(lacking.items()):
        x_cf = np.arange(1, 9, dtype=np.float32).reshape(4, 2) + 10 * number
        x_cf[cells] = 0
        x.append(x_cf)
        types += [modality] * 2
    adata = build_rna(sparse.csr_matrix(np.concatenate(x, axis=1)))
    adata.var["feature_types"] = types
    modalities = {modality: modality for modality in lacking}
    return Cells.from_anndata(
        adata, Schema.from_anndata(adata, batch_key="batch", modalities=modalities, likelihood="poisson")
    )


def build_numbered(n_cells: int, empty: Sequence[int] = ()) -> AnnData:
    """Build cells whose total count is their number (from 1), except for empty ones; `cell_numbers` reads it."""
    x = np.zeros((n_cells, 3), dtype=np.float32)
    x[np.arange(n_cells), np.arange(n_cells) % 3] = 1 + np.arange(n_cells)
    x[list(empty)] = 0
    return build_rna(sparse.csr_matrix(x))


def cell_numbers(cells: Cells) -> list[int]:
    """Return which cells of `build_numbered` these are, from 0."""
    return [int(total) - 1 for total in cells.library_size["rna"]]


# Three genes, two peaks and two proteins. Cell c1 has no peak, cell c3 no protein.
TRIMODAL_COUNTS = np.array([[1, 0, 2, 1, 1, 3, 4], [0, 5, 0, 0, 0, 9, 0], [2, 0, 0, 3, 0, 0, 7], [4, 1, 1, 0, 2, 0, 0]])
TRIMODAL_TYPES = ["Gene Expression"] * 3 + ["Peaks"] * 2 + ["Antibody Capture"] * 2
TRIMODAL_NAMES = ["g0", "g1", "g2", "p0", "p1", "a0", "a1"]


def build_trimodal(x: Any = TRIMODAL_COUNTS, types: Any = TRIMODAL_TYPES) -> AnnData:
    """Build four cells with three genes, two peaks and two proteins, in one matrix."""
    var = pd.DataFrame({"feature_types": types}, index=TRIMODAL_NAMES)
    obs = pd.DataFrame(index=[f"c{cell}" for cell in range(len(TRIMODAL_COUNTS))])
    return AnnData(sparse.csr_matrix(x, dtype=np.float32), obs, var)


def build_with_obsm(matrix: Any) -> AnnData:
    """Build the genes and peaks of `build_trimodal`, with `matrix` in ``obsm["adt"]``."""
    adata = build_trimodal()[:, :5].copy()
    adata.obsm["adt"] = matrix
    return adata


# --- Changed and written cells ----------------------------------------------------------------------------------------


def with_labels(adata: AnnData, share: float = 0.1, without: str = "", seed: int = 0) -> AnnData:
    """Label a share of the cells of `simulate_groups`, at least two of each group, in the column ``label``."""
    random = np.random.default_rng(seed)
    label_c = np.full(adata.n_obs, "unknown", dtype=object)
    for group in sorted(set(adata.obs["group"]) - set(without)):
        member_c = np.flatnonzero(adata.obs["group"] == group)
        label_c[random.choice(member_c, max(2, round(share * len(member_c))), replace=False)] = f"type {group}"
    adata.obs["label"] = label_c
    return adata


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

"""Counts in an AnnData: find the matrix, check its values, and select the features of a model as sparse rows."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.utils.messages import feature_noun, format_names
from celldial.utils.warnings import warn

__all__ = [
    "MIN_OVERLAP",
    "check_anndata",
    "check_counts",
    "check_feature_overlap",
    "check_is_anndata",
    "check_matrix_type",
    "describe_layer",
    "describe_obsm",
    "get_count_matrix",
    "get_obsm_matrix",
    "is_on_disk",
    "match_features",
    "match_obsm_columns",
    "select_columns",
    "to_canonical_csr",
]

MIN_OVERLAP = 0.5
"""Smallest fraction of a modality's features that an AnnData must have. The other features are read as zeros."""

MAX_COUNT = np.finfo(np.float32).max
"""Larger counts would be infinite as float32."""

MAX_ROUNDING = 1e-3
"""Values this close to whole numbers are counts with rounding errors."""

MIN_SUM_BYTES = 4
"""Duplicate entries of integers with fewer bytes are summed as int64."""


def is_on_disk(data: Any) -> bool:
    """Return whether `data` is a path, a list of paths, or a backed AnnData."""
    if isinstance(data, AnnData):
        return bool(data.isbacked)
    paths = data if isinstance(data, list | tuple) else [data]
    return all(isinstance(path, str | PathLike) for path in paths)


def check_is_anndata(adata: Any) -> None:
    """Raise unless `adata` is an AnnData."""
    if not isinstance(adata, AnnData):
        remedy = ": read it first, anndata.read_h5ad(path)" if isinstance(adata, str | PathLike) else ""
        raise TypeError(f"expected an AnnData as adata, got {type(adata).__module__}.{type(adata).__name__}{remedy}")


def check_anndata(adata: Any, needs_features: bool = True) -> None:
    """Raise unless `adata` is an AnnData in memory with cells, features (if needed) and distinct names."""
    check_is_anndata(adata)
    if adata.isbacked:
        raise ValueError("adata is backed by a file: read it into memory first, adata = adata.to_memory()")
    if adata.n_obs == 0 or (needs_features and adata.n_vars == 0):
        raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} features: at least one of each is needed")
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        repeated = index[index.duplicated()]
        if len(repeated) > 0:
            raise ValueError(
                f"adata.{axis}_names has {str(repeated[0])!r} more than once: "
                f"make names distinct with adata.{axis}_names_make_unique()"
            )


# --- Find the matrix --------------------------------------------------------------------------------------------------


def describe_layer(layer: str | None) -> str:
    """Return the code that reads a layer, for messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def describe_obsm(key: str) -> str:
    """Return the code that reads a key of obsm, for messages."""
    return f"adata.obsm[{key!r}]"


def layer_arguments(name: str | None) -> str:
    """Return the arguments that read counts from a layer, in a fit and with a fitted model, for messages."""
    argument, argument_of_method = ("None", '"X"') if name is None else (f'"{name}"', f'"{name}"')
    return f"VAE(layer={argument}) in a fit, or layer={argument_of_method} with a fitted model"


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers, except None, which is ``adata.X`` since anndata 0.13."""
    return [name for name in adata.layers if name is not None]


def get_count_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return the matrix of counts in X or in a layer. Its type is checked, but not its values."""
    layers = layer_names(adata)
    if layer is not None and layer not in layers:
        raise KeyError(
            f"adata has no layer {layer!r}; its layers: {format_names(layers)}. For adata.X, use VAE(layer=None) in a "
            'fit, and layer="X" with a fitted model'
        )
    try:
        matrix = adata.X if layer is None else adata.layers[layer]
    except ValueError as error:  # a view of a boolean matrix that is not in canonical form
        where = describe_layer(layer)
        raise ValueError(
            f"{where} of this view cannot be read ({error}): call {where}.sum_duplicates() before you select cells or "
            "features"
        ) from error
    if matrix is None:
        remedy = f"choose the layer of raw counts, {layer_arguments(layers[0])}" if layers else "store raw counts there"
        raise ValueError(f"adata.X is None; layers: {format_names(layers)}. Please {remedy}")
    check_matrix_type(matrix, describe_layer(layer))
    return matrix


def get_obsm_matrix(adata: AnnData, key: str) -> tuple[Any, tuple[str, ...] | None]:
    """Return the matrix of counts in a key of obsm, and the names of its columns if it is a DataFrame.

    Its type is checked, but not its values.
    """
    if key not in adata.obsm:
        raise KeyError(f"adata.obsm has no {key!r}; its keys: {format_names(adata.obsm)}")
    stored, where = adata.obsm[key], describe_obsm(key)
    if not isinstance(stored, pd.DataFrame):
        check_matrix_type(stored, where)
        if stored.ndim != 2:
            raise TypeError(f"{where} has shape {stored.shape}: counts must be a matrix of cells by features")
        return stored, None
    names = stored.columns.astype(str)
    if names.has_duplicates:
        raise ValueError(f"{where} has the column {names[names.duplicated()][0]!r} more than once: make names distinct")
    for name, dtype in zip(names, stored.dtypes, strict=True):
        if getattr(dtype, "kind", "O") not in "biuf":
            raise TypeError(f"column {name!r} of {where} has dtype {dtype}, which is not numeric: drop this column")
    if all(isinstance(dtype, pd.SparseDtype) for dtype in stored.dtypes):
        accessor: Any = stored.sparse  # pandas-stubs lacks its type
        return accessor.to_coo(), tuple(names)
    # Columns with an extension dtype of pandas become float64. Missing values become NaN, which later checks reject.
    plain = all(isinstance(dtype, np.dtype) for dtype in stored.dtypes)
    return stored.to_numpy() if plain else stored.to_numpy(dtype=np.float64, na_value=np.nan), tuple(names)


def check_matrix_type(matrix: Any, where: str) -> None:
    """Raise unless a matrix has a type and a dtype that can be read."""
    if not is_supported_matrix(matrix):
        kind = f"{type(matrix).__module__}.{type(matrix).__name__} of {getattr(matrix, 'dtype', 'unknown dtype')}"
        raise TypeError(
            f"{where} is a {kind}: convert it to a numpy array or a scipy sparse matrix of int, bool, float32 or "
            "float64 (a dask array: with .compute())"
        )
    check_sparse_structure(matrix, where)


def check_sparse_structure(matrix: Any, where: str) -> None:
    """Raise if the index arrays of a sparse matrix contradict its shape, as in a damaged file.

    Neither scipy nor the compiled loops check them: they would read or write outside of their arrays.
    """
    remedy = "the matrix is damaged; read it from its source again"
    if sparse.issparse(matrix) and matrix.format == "coo":
        for axis, index_n, size in (("row", matrix.row, matrix.shape[0]), ("column", matrix.col, matrix.shape[1])):
            check_range(index_n, size, axis, where, remedy)
    if not sparse.issparse(matrix) or matrix.format not in ("csr", "csc", "bsr"):
        return
    is_bsr = matrix.format == "bsr"
    block = matrix.blocksize if is_bsr else (1, 1)
    n_major, n_minor = (size // by for size, by in zip(matrix.shape, block, strict=True))
    axis = "block of columns" if is_bsr else "column"
    if matrix.format == "csc":
        n_major, n_minor, axis = n_minor, n_major, "row"
    pointers, indices, n_stored = matrix.indptr, matrix.indices, len(matrix.data)
    steps = np.diff(pointers)
    if len(pointers) != n_major + 1 or pointers[0] != 0 or (steps < 0).any() or pointers[-1] > n_stored:
        raise ValueError(f"the row or column pointers of {where} contradict its shape {matrix.shape}: {remedy}")
    if len(indices) < pointers[-1]:
        raise ValueError(f"{where} has {len(indices)} indices for {pointers[-1]} entries: {remedy}")
    check_range(indices[: pointers[-1]], n_minor, axis, where, remedy)


def check_range(index_n: np.ndarray, size: int, axis: str, where: str, remedy: str) -> None:
    """Raise if an index of a sparse matrix is negative or too large."""
    if len(index_n) == 0:
        return
    low, high = int(index_n.min()), int(index_n.max())
    if low < 0 or high >= size:
        raise ValueError(f"{where} has an entry in {axis} {low if low < 0 else high} of {size}: {remedy}")


def is_supported_matrix(matrix: Any) -> bool:
    """Return whether `matrix` is a numpy array or scipy sparse matrix of a dtype that scipy.sparse supports."""
    if not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix)):
        return False
    return matrix.dtype.kind in "biuf" and matrix.dtype != np.float16


# --- Select rows and columns ------------------------------------------------------------------------------------------


def to_canonical_csr(matrix: Any) -> sparse.csr_matrix:
    """Return CSR with sorted columns and without duplicates and stored zeros.

    The result shares memory with `matrix` if that already is in this form.
    """
    if sparse.issparse(matrix) and matrix.dtype.kind in ("b", "i", "u") and matrix.dtype.itemsize < MIN_SUM_BYTES:
        matrix = matrix.astype(np.int64)  # sums of duplicates could overflow
    rows = matrix.tocsr() if sparse.issparse(matrix) else sparse.csr_matrix(np.asarray(matrix))
    # A new object of the same arrays, so that sorting and flags do not change the user's matrix.
    rows = sparse.csr_matrix((rows.data, rows.indices, rows.indptr), shape=rows.shape)
    if not (rows.has_canonical_format and rows.data.all()):
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def match_features(data_names: pd.Index, model_names: tuple[str, ...]) -> np.ndarray:
    """Return the position of each name of the model in the data, int64, shape ``(f,)``; -1 if it is missing."""
    if len(data_names) == len(model_names) and tuple(data_names) == model_names:  # ten times faster than a lookup
        return np.arange(len(model_names))
    return data_names.get_indexer(pd.Index(model_names, dtype=object))


def check_feature_overlap(
    position_f: np.ndarray, data_names: pd.Index, model_names: tuple[str, ...], where: str, modality: str = ""
) -> None:
    """Raise if too many features of the model are missing; warn if some are missing.

    Parameters
    ----------
    position_f
        Result of :func:`match_features`.
    data_names, model_names
        Names of the features in the data and in the model.
    where
        Place of the names in the data, such as ``"adata.var_names"``, for the messages.
    modality
        Name of the modality, for the messages; empty if the model has only one.
    """
    n_present, n_model = int((position_f >= 0).sum()), len(model_names)
    if n_present == n_model:
        return
    features = f"{modality} features" if modality else "features"
    overlap = f"{n_present} of the model's {n_model} {features} ({n_present / n_model:.1%}) are in {where}"
    if n_present < MIN_OVERLAP * n_model:
        raise ValueError(
            f"only {overlap}; at least {MIN_OVERLAP:.0%} are needed. The model has {format_names(model_names, 3)}; "
            f"{where} has {format_names(data_names, 3)}. Use the same kind of names (genes: symbols or Ensembl ids)"
        )
    warn(f"{overlap}; the others are read as zeros")


def select_columns(rows: sparse.csr_matrix, position_f: np.ndarray) -> sparse.csr_matrix:
    """Return the columns at the given positions, in that order; a position of -1 gives a column of zeros.

    Time and memory grow with the entries of `rows`, not with its columns. If nothing changes, the result is `rows`.
    """
    present = np.flatnonzero(position_f >= 0)
    source = position_f[present]
    consecutive = len(source) > 0 and bool((np.diff(source) == 1).all())
    if consecutive and len(source) == len(position_f) == rows.shape[1]:
        return rows
    # A slice is up to three times faster than an index, and both are several times faster than a sparse product.
    selected = rows[:, source[0] : source[-1] + 1] if consecutive else rows[:, source]
    if len(present) < len(position_f):
        column_n = present.astype(selected.indices.dtype)[selected.indices]
        selected = sparse.csr_matrix((selected.data, column_n, selected.indptr), shape=(rows.shape[0], len(position_f)))
    selected.sort_indices()
    return selected


# --- Check the values -------------------------------------------------------------------------------------------------


def invalid_counts(values: np.ndarray) -> np.ndarray:
    """Return a mask of the values that are negative, not finite (as float32) or not whole numbers."""
    if values.dtype.kind in "bu":
        return np.zeros(values.shape, dtype=bool)
    if values.dtype.kind == "i":
        return values < 0
    valid: np.ndarray = (values >= 0) & (values <= MAX_COUNT) & (values == np.rint(values))
    return ~valid


def check_counts(
    rows: sparse.csr_matrix, adata: AnnData, feature_names: Sequence[str], where: str, modality: str
) -> None:
    """Raise unless all entries are counts. The message names the first invalid entry, and where counts may be."""
    invalid = np.flatnonzero(invalid_counts(rows.data))
    if len(invalid) == 0:
        return
    entry = invalid[0]
    value = rows.data[entry]
    cell = adata.obs_names[np.searchsorted(rows.indptr, entry, side="right") - 1]
    place = f"in cell {str(cell)!r}, {feature_noun(modality)} {feature_names[rows.indices[entry]]!r}"
    if np.isnan(value):
        raise ValueError(
            f"{where} has the value nan {place}: it is missing, as after an outer join of samples with other features: "
            "fill these with 0, as by anndata.concat(..., join='outer', fill_value=0), or keep the common features, as "
            "by join='inner'"
        )
    kind = "negative" if value < 0 else "not a whole number" if value <= MAX_COUNT else "not finite as float32"
    # All digits: a rounded number looks whole.
    shown = np.format_float_positional(value, trim="-") if 1e-4 <= abs(value) < 1e9 else repr(value.item())
    raise ValueError(
        f"{where} has the value {shown} {place}, which is {kind}: raw counts are needed. "
        f"{suggest_count_source(adata, where, rows.data)}"
    )


def suggest_count_source(adata: AnnData, where: str, values: np.ndarray) -> str:
    """Return a sentence with the place of raw counts in `adata`, if the values in `where` are invalid."""
    layers = {describe_layer(name): name for name in [None, *layer_names(adata)]}
    if where in layers:  # not in obsm
        for other, name in layers.items():
            if other != where and contains_counts(adata.X if name is None else adata.layers[name]):
                return f"{other} has counts: use {layer_arguments(name)}"
        if adata.raw is not None and contains_counts(adata.raw.X):
            return "adata.raw has counts: use adata.raw.to_adata()"
    if np.isfinite(values).all() and (np.abs(values - np.rint(values)) <= MAX_ROUNDING).all() and (values >= 0).all():
        return f"All values are within {MAX_ROUNDING:g} of whole numbers: round them, {where} = np.rint({where})"
    return "Use the data from before normalization, log transform and scaling"


def contains_counts(matrix: Any) -> bool:
    """Return whether `matrix` is supported and all its entries are nonnegative whole numbers."""
    if not is_supported_matrix(matrix):
        return False
    return not invalid_counts(matrix.data if sparse.issparse(matrix) else np.asarray(matrix)).any()


def match_obsm_columns(
    matrix: Any, found: tuple[str, ...] | None, names: tuple[str, ...], where: str, modality: str
) -> np.ndarray:
    """Return the columns of a matrix in obsm that have the model's features, int64; -1 for a missing feature.

    Columns without names must have the order of the model.
    """
    if found is not None:
        position_f = match_features(pd.Index(found, dtype=object), names)
        check_feature_overlap(position_f, pd.Index(found, dtype=object), names, f"the columns of {where}", modality)
        return position_f
    if matrix.shape[1] != len(names):
        raise ValueError(
            f"{where} has {matrix.shape[1]} columns without names, but the model has {len(names)} features: use the "
            "same columns, or a DataFrame with names"
        )
    return np.arange(len(names))

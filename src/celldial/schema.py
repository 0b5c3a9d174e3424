"""What a model saw when it was fit: features, layer and covariates; and the checks that hold any AnnData against it.

Numbers leave this file as numpy and scipy arrays. Nothing is ever written to an AnnData.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

__all__ = ["MIN_OVERLAP", "Schema"]

MIN_OVERLAP = 0.5
"""Smallest share of the model's features that an AnnData must have; the others are taken as zeros."""

LARGEST = np.finfo(np.float32).max
"""Counts above this would be infinite as float32."""

GENE_EXPRESSION = "Gene Expression"
"""The value of ``var["feature_types"]`` for genes, in files of 10x Genomics."""

logger = logging.getLogger("celldial")


@dataclass(frozen=True)
class Schema:
    """What fit saw, and what every later AnnData must offer.

    Parameters
    ----------
    feature_names
        Modality to the names of its features, in the order of the model.
    layer
        The layer that holds the counts; ``None`` for ``adata.X``.
    batch_key
        The categorical covariate that is the batch, also the first key of `categories`; ``None`` without batches.
    categories
        Categorical covariate to its categories, in the order of their codes.
    continuous
        Continuous covariate to its mean and standard deviation over the cells of fit, in the covariate's own unit.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from celldial.schema import Schema
    >>> obs = pd.DataFrame({"donor": ["b", "a"]}, index=["cell_1", "cell_2"])
    >>> schema = Schema.from_anndata(AnnData(np.eye(2, dtype=np.float32), obs), batch_key="donor")
    >>> schema.categories
    {'donor': ('a', 'b')}
    """

    feature_names: dict[str, tuple[str, ...]]
    layer: str | None
    batch_key: str | None
    categories: dict[str, tuple[str, ...]]
    continuous: dict[str, tuple[float, float]]

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
    ) -> Schema:
        """Note the features and covariates of the cells to fit.

        The counts must be there, but only :meth:`counts` looks at their values, so that they are read once.

        Parameters
        ----------
        adata
            The cells to fit, in memory.
        layer
            The layer that holds raw counts; ``None`` for ``adata.X``.
        batch_key
            Column of ``adata.obs`` with the batch.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns of ``adata.obs``. Categories keep their order where the column is categorical, less the
            unused ones, and are sorted otherwise.

        Raises
        ------
        TypeError
            `adata` is no AnnData, the counts are of an unknown kind, or a continuous covariate is not numeric.
        ValueError
            `adata` is backed or empty, has a name twice, no counts, or features that are not genes; a key is given
            twice; a covariate is missing or infinite in some cell.
        KeyError
            There is no such layer or column.
        """
        check_anndata(adata)
        check_feature_types(adata)
        count_matrix(adata, layer)
        for keys in (categorical_covariate_keys, continuous_covariate_keys):
            if isinstance(keys, str):
                raise TypeError(f"covariate keys must be a list of names, not one string: use [{keys!r}]")
        categorical_keys = [*([] if batch_key is None else [batch_key]), *categorical_covariate_keys]
        all_keys = [*categorical_keys, *continuous_covariate_keys]
        for key in all_keys:
            if all_keys.count(key) > 1:
                raise ValueError(
                    f"covariate {key!r} is given more than once (batch, categorical, continuous): keep one"
                )
        return cls(
            feature_names={"rna": tuple(map(str, adata.var_names))},
            layer=layer,
            batch_key=batch_key,
            categories={key: find_categories(find_column(adata.obs, key), key) for key in categorical_keys},
            continuous={key: location_scale(find_column(adata.obs, key), key) for key in continuous_covariate_keys},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the schema in plain JSON types; :meth:`from_dict` gives it back exactly.

        Keys are listed beside each dict because h5ad files do not keep the order of a dict.
        """
        return {
            "modalities": list(self.feature_names),
            "feature_names": {modality: list(names) for modality, names in self.feature_names.items()},
            "layer": self.layer,
            "batch_key": self.batch_key,
            "categorical_covariate_keys": list(self.categories),
            "categories": {key: list(names) for key, names in self.categories.items()},
            "continuous_covariate_keys": list(self.continuous),
            "continuous": {key: list(mean_sd) for key, mean_sd in self.continuous.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Schema:
        """Read what :meth:`to_dict` gave, also after a way through JSON or through ``adata.uns`` and an h5ad file."""
        return cls(
            feature_names={key: tuple(map(str, stored["feature_names"][key])) for key in stored["modalities"]},
            layer=stored["layer"],
            batch_key=stored["batch_key"],
            categories={
                key: tuple(map(str, stored["categories"][key])) for key in stored["categorical_covariate_keys"]
            },
            continuous={
                key: (float(stored["continuous"][key][0]), float(stored["continuous"][key][1]))
                for key in stored["continuous_covariate_keys"]
            },
        )

    def counts(self, adata: AnnData) -> dict[str, sparse.csr_matrix]:
        """Give the counts of the model's features, checked.

        Features are put in the order of the schema; features that the model does not know are left out, and features
        that `adata` lacks are zeros. A float32 CSR matrix in canonical form that needs none of this is not copied: the
        result then shares its memory, so do not write to it.

        Parameters
        ----------
        adata
            Cells to read, in memory.

        Returns
        -------
        Modality to float32 counts, shape ``(cells, features)``: sorted columns, no duplicates, no stored zeros.

        Raises
        ------
        TypeError
            `adata` is no AnnData, or its counts are neither a numpy array nor a scipy sparse matrix of numbers.
        ValueError
            `adata` is backed or empty or has a name twice; a count is negative, not finite or not a whole number;
            or fewer than `MIN_OVERLAP` of the model's features are present.
        KeyError
            The layer is missing.

        Warns
        -----
        UserWarning
            Some of the model's features are missing.
        """
        check_anndata(adata)
        matrix = canonical(count_matrix(adata, self.layer))
        counts = {}
        for modality, names in self.feature_names.items():
            rows = align(matrix, adata.var_names, names)
            check_counts(rows, adata, names, self.layer)
            counts[modality] = sparse.csr_matrix(
                (rows.data.astype(np.float32, copy=False), rows.indices, rows.indptr), shape=rows.shape
            )
        return counts

    def covariates(
        self,
        obs: AnnData | pd.DataFrame | Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        *,
        n_cells: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode the covariates of some cells.

        Parameters
        ----------
        obs
            Where to find them: an AnnData, its ``obs``, or a dict from key to one value for all cells or one a cell.
        overrides
            Key to one value for all cells, taken in place of the one in `obs`, which may then be absent.
        n_cells
            Number of cells. Needed with a dict; otherwise, where given, it must be the number in `obs`.

        Returns
        -------
        category_ck
            Code of each categorical covariate, int64, shape ``(cells, len(categories))``.
        continuous_ck
            Continuous covariates less the mean of fit, over the standard deviation of fit, float32, shape
            ``(cells, len(continuous))``.

        Raises
        ------
        KeyError
            A covariate is missing, or the model knows none of that name.
        ValueError
            A category was not seen in fit; a value is missing or infinite; or the number of cells is wrong.
        TypeError
            A continuous covariate is not numeric, or an override is not one value.
        """
        known = [*self.categories, *self.continuous]
        overrides = {} if overrides is None else overrides
        given = [*overrides, *(obs if isinstance(obs, Mapping) else ())]
        for key in given:
            if key not in known:
                raise KeyError(f"the model has no covariate {key!r}; its covariates: {listing(known)}")
        for key, value in overrides.items():
            if np.ndim(value) != 0:
                raise TypeError(f"the override of {key!r} must be one value for all cells, not {type(value).__name__}")
        table = covariate_table(obs, n_cells)
        columns = {
            key: as_column(overrides[key], table.index) if key in overrides else find_column(table, key)
            for key in known
        }
        category_ck = np.empty((len(table), len(self.categories)), dtype=np.int64)
        for k, (key, categories) in enumerate(self.categories.items()):
            remedy = f"fit a model with these cells, or set adata.obs[{key!r}] to a category that they are like"
            if key in overrides:
                remedy = "choose a known one"
            category_ck[:, k] = encode(columns[key], key, categories, remedy)
        continuous_ck = np.empty((len(table), len(self.continuous)), dtype=np.float32)
        for k, (key, (mean, deviation)) in enumerate(self.continuous.items()):
            continuous_ck[:, k] = (as_numbers(columns[key], key) - mean) / deviation
        return category_ck, continuous_ck


def listing(names: Iterable[Any], limit: int = 10) -> str:
    """Write names for an error message, the first few where there are many."""
    shown = [repr(str(name)) for name in names]
    if not shown:
        return "none"
    return ", ".join(shown[:limit]) + (f", ... ({len(shown)} in all)" if len(shown) > limit else "")


# --- The AnnData and its counts ---------------------------------------------------------------------------------------


def check_anndata(adata: Any) -> None:
    """Raise unless `adata` is an AnnData in memory with cells, features and distinct names."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"expected an AnnData, got {type(adata).__module__}.{type(adata).__name__}")
    if adata.isbacked:
        raise ValueError("adata is backed by a file: read it into memory first, adata = adata.to_memory()")
    if 0 in adata.shape:
        raise ValueError(f"adata has {adata.n_obs} cells and {adata.n_vars} features: at least one of each is needed")
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        repeated = index[index.duplicated()]
        if len(repeated) > 0:
            raise ValueError(
                f"adata.{axis}_names has {str(repeated[0])!r} more than once: "
                f"make names distinct with adata.{axis}_names_make_unique()"
            )


def check_feature_types(adata: AnnData) -> None:
    """Raise where some features are not genes, as 10x marks them: peaks and proteins need models of their own."""
    others = [name for name in adata.var.get("feature_types", pd.Series(dtype=str)).unique() if name != GENE_EXPRESSION]
    if others:
        raise ValueError(
            f'adata.var["feature_types"] has {listing(others)}, and only gene expression can be modelled: '
            f'fit adata[:, adata.var["feature_types"] == "{GENE_EXPRESSION}"].copy()'
        )


def describe_layer(layer: str | None) -> str:
    """Write where counts are, as the user would."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def layer_names(adata: AnnData) -> list[str]:
    """List the layers, less the one named None, which since anndata 0.13 is ``adata.X``."""
    return [name for name in adata.layers if name is not None]


def count_matrix(adata: AnnData, layer: str | None) -> Any:
    """Find the matrix of counts and check that it is of a kind that is read; its values are not looked at."""
    layers = layer_names(adata)
    if layer is not None and layer not in layers:
        raise KeyError(f"adata has no layer {layer!r}; its layers: {listing(layers)}. Layer None stands for adata.X")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        remedy = f'name the layer that holds raw counts, VAE(layer="{layers[0]}")' if layers else "put raw counts there"
        raise ValueError(f"adata.X is None; layers: {listing(layers)}. Please {remedy}")
    if not is_readable(matrix):
        kind = f"{type(matrix).__module__}.{type(matrix).__name__} of {getattr(matrix, 'dtype', 'unknown dtype')}"
        raise TypeError(
            f"{describe_layer(layer)} is a {kind}: make it a numpy array or a scipy sparse matrix of int, bool, "
            "float32 or float64 (a dask array: with .compute())"
        )
    return matrix


def is_readable(matrix: Any) -> bool:
    """Tell whether this is a numpy array or scipy sparse matrix of a dtype that scipy.sparse can hold."""
    if not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix)):
        return False
    return matrix.dtype.kind in "biuf" and matrix.dtype != np.float16


def canonical(matrix: Any) -> sparse.csr_matrix:
    """Give CSR with sorted columns, no duplicates and no stored zeros; shares the memory of `matrix` if it is that."""
    rows = matrix.tocsr() if sparse.issparse(matrix) else sparse.csr_matrix(np.asarray(matrix))
    # From its three arrays, so that nothing done to the result (sorting, flags) is done to the user's matrix.
    rows = sparse.csr_matrix((rows.data, rows.indices, rows.indptr), shape=rows.shape)
    if not (rows.has_canonical_format and rows.data.all()):
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def align(rows: sparse.csr_matrix, found: pd.Index, wanted: tuple[str, ...]) -> sparse.csr_matrix:
    """Put the columns `found` in the order `wanted`: unknown ones left out, missing ones zero."""
    if tuple(found) == wanted:
        return rows
    target = pd.Index(wanted).get_indexer(found)
    source = np.flatnonzero(target >= 0)
    n_present, n_wanted = len(source), len(wanted)
    overlap = f"{n_present} of the model's {n_wanted} features ({n_present / n_wanted:.1%}) are in adata.var_names"
    if n_present < MIN_OVERLAP * n_wanted:
        raise ValueError(
            f"only {overlap}; at least {MIN_OVERLAP:.0%} are needed. The model's start {listing(wanted, 3)}, those of "
            f"adata {listing(found, 3)}. Give adata the same kind of names (gene symbols or Ensembl ids)"
        )
    if n_present < n_wanted:
        warnings.warn(f"{overlap}; the others are taken as zeros", UserWarning, stacklevel=3)
    if n_present < len(found):
        logger.info("ignoring %d features that the model does not know", len(found) - n_present)
    placement = sparse.csr_matrix(
        (np.ones(n_present, dtype=rows.dtype), (source, target[source])), shape=(len(found), n_wanted)
    )
    aligned = rows @ placement
    aligned.sort_indices()
    return aligned


def not_counts(values: np.ndarray) -> np.ndarray:
    """Mark the values that are negative, not finite (as float32) or not whole numbers."""
    if values.dtype.kind in "bu":
        return np.zeros(values.shape, dtype=bool)
    if values.dtype.kind == "i":
        return values < 0
    good: np.ndarray = (values >= 0) & (values <= LARGEST) & (values == np.rint(values))
    return ~good


def check_counts(rows: sparse.csr_matrix, adata: AnnData, feature_names: Sequence[str], layer: str | None) -> None:
    """Raise unless all entries are counts, naming the first that is not and where counts are to be had."""
    wrong = np.flatnonzero(not_counts(rows.data))
    if len(wrong) == 0:
        return
    entry = wrong[0]
    value = rows.data[entry]
    cell = adata.obs_names[np.searchsorted(rows.indptr, entry, side="right") - 1]
    kind = "negative" if value < 0 else "not a whole number" if value <= LARGEST else "not finite as float32"
    raise ValueError(
        f"{describe_layer(layer)} has the value {value:g} in cell {str(cell)!r}, gene "
        f"{feature_names[rows.indices[entry]]!r}, which is {kind}: raw counts are needed. {find_counts(adata, layer)}"
    )


def find_counts(adata: AnnData, layer: str | None) -> str:
    """Say where else in `adata` there are raw counts."""
    for name in [None, *layer_names(adata)]:
        if name != layer and holds_counts(adata.X if name is None else adata.layers[name]):
            argument = "None" if name is None else f'"{name}"'
            return f"{describe_layer(name)} holds counts: use VAE(layer={argument})"
    if adata.raw is not None and holds_counts(adata.raw.X):
        return "adata.raw holds counts: use adata.raw.to_adata()"
    return "Use the data from before normalization, log transform and scaling"


def holds_counts(matrix: Any) -> bool:
    """Tell whether all entries are nonnegative whole numbers."""
    if not is_readable(matrix):
        return False
    return not not_counts(matrix.data if sparse.issparse(matrix) else np.asarray(matrix)).any()


# --- Covariates -------------------------------------------------------------------------------------------------------


def covariate_table(obs: AnnData | pd.DataFrame | Mapping[str, Any], n_cells: int | None) -> pd.DataFrame:
    """Make a table with one row a cell."""
    if isinstance(obs, Mapping):
        if n_cells is None:
            raise ValueError("covariates in a dict do not tell how many cells there are: give n_cells")
        index = pd.RangeIndex(n_cells)
        for key, value in obs.items():
            if np.ndim(value) != 0 and len(value) != n_cells:
                raise ValueError(
                    f"covariate {key!r} has {len(value)} values for {n_cells} cells: give one, or one a cell"
                )
        return pd.DataFrame({key: as_column(value, index) for key, value in obs.items()}, index=index)
    table = obs.obs if isinstance(obs, AnnData) else obs
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"expected covariates in an AnnData, a DataFrame or a dict, got {type(obs).__name__}")
    if n_cells is not None and n_cells != len(table):
        raise ValueError(f"covariates of {len(table)} cells are given for {n_cells} cells: give one row a cell")
    return table


def as_column(value: Any, index: pd.Index) -> pd.Series:
    """Make a column of one value for all cells, or of one value a cell."""
    if np.ndim(value) == 0:
        return pd.Series(np.asarray(value)[()], index=index)
    # A list goes in as it is, because numpy would turn the NaN in ["a", nan] into text; the labels of a Series are
    # dropped, because values are matched to cells by position.
    return pd.Series(value if isinstance(value, list | tuple) else np.asarray(value), index=index)


def find_column(table: pd.DataFrame, key: str) -> pd.Series:
    """Look a covariate up."""
    if key not in table.columns:
        close = get_close_matches(str(key), [str(column) for column in table.columns])
        hint = f"did you mean {listing(close)}? There" if close else "there"
        raise KeyError(f"covariate {key!r} is not among the columns given; {hint} are: {listing(table.columns)}")
    return table[key]


def check_complete(column: pd.Series, key: str) -> None:
    """Raise where a value is missing."""
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"covariate {key!r} is missing (NaN) in cell {str(column.index[missing[0]])!r} ({len(missing)} of "
            f"{len(column)} cells): fill it in, or leave these cells out"
        )


def find_categories(column: pd.Series, key: str) -> tuple[str, ...]:
    """Find the categories of a column, as text: in their order if it is categorical, else sorted."""
    check_complete(column, key)
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = list(column.cat.remove_unused_categories().cat.categories)
    elif pd.api.types.is_numeric_dtype(column):
        values = sorted(column.unique())
    else:
        values = sorted(map(str, column.unique()))
    return tuple(dict.fromkeys(map(str, values)))  # distinct values may read the same


def encode(column: pd.Series, key: str, categories: tuple[str, ...], remedy: str) -> np.ndarray:
    """Turn categories into their codes, int64, shape ``(cells,)``."""
    check_complete(column, key)
    value_c, values = pd.factorize(column)
    names = [str(value) for value in values]
    code_of_name = {name: code for code, name in enumerate(categories)}
    code_c = np.array([code_of_name.get(name, -1) for name in names], dtype=np.int64)[value_c]
    unseen = np.flatnonzero(code_c < 0)
    if len(unseen) > 0:
        raise ValueError(
            f"covariate {key!r} has categories that were not seen in fit: "
            f"{listing(name for name in names if name not in code_of_name)} (such as in cell "
            f"{str(column.index[unseen[0]])!r}); the model knows {listing(categories)} and cannot place cells of "
            f"others: {remedy}"
        )
    return code_c


def as_numbers(column: pd.Series, key: str) -> np.ndarray:
    """Turn a continuous covariate into float64, shape ``(cells,)``."""
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(
            f"continuous covariate {key!r} is of dtype {column.dtype}, not numeric: convert it to float, or give it as "
            "a categorical covariate"
        )
    check_complete(column, key)
    value_c = column.to_numpy(dtype=np.float64)
    infinite = np.flatnonzero(np.isinf(value_c))
    if len(infinite) > 0:
        raise ValueError(
            f"covariate {key!r} is infinite in cell {str(column.index[infinite[0]])!r}: mend it, or leave the cell out"
        )
    return value_c


def location_scale(column: pd.Series, key: str) -> tuple[float, float]:
    """Compute mean and standard deviation, the latter taken as 1 for a constant."""
    value_c = as_numbers(column, key)
    deviation = float(value_c.std())
    # Rounding can give a constant a deviation above 0, and tiny differences one of 0.
    if deviation == 0 or value_c.min() == value_c.max():
        deviation = 1.0
    return float(value_c.mean()), deviation

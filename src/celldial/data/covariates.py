"""Covariates of cells: tables of covariates, and their columns as checked codes and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.utils.messages import did_you_mean, format_names
from celldial.utils.names import find_name

__all__ = ["encode_categories", "find_categories", "mean_and_std", "to_column", "to_covariate_table", "to_float"]

# The square of a larger value, in the standard deviation, would be infinite.
MAX_VALUE = 1e100


def to_covariate_table(obs: AnnData | pd.DataFrame | Mapping[str, Any], n_cells: int | None) -> pd.DataFrame:
    """Return a table of covariates with one row per cell."""
    if isinstance(obs, Mapping):
        if n_cells is None:
            raise ValueError("covariates in a dict do not determine the number of cells: pass n_cells, too")
        index = pd.RangeIndex(n_cells)
        for key, value in obs.items():
            if np.ndim(value) != 0 and len(value) != n_cells:
                raise ValueError(
                    f"covariate {key!r} has {len(value)} values for {n_cells} cells: pass one value, or one per cell"
                )
        return pd.DataFrame({key: to_column(value, index) for key, value in obs.items()}, index=index)
    table = obs.obs if isinstance(obs, AnnData) else obs
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"expected covariates in an AnnData, a DataFrame or a dict, got {type(obs).__name__}")
    if n_cells is not None and n_cells != len(table):
        raise ValueError(f"there are covariates of {len(table)} cells for {n_cells} cells: pass one row per cell")
    return table


def to_column(value: Any, index: pd.Index) -> pd.Series:
    """Return a column from one value for all cells or from one value per cell."""
    if np.ndim(value) == 0:
        return pd.Series(np.asarray(value)[()], index=index)
    # A list is not converted to an array, because numpy would turn the NaN of ["a", nan] into text. The index of a
    # Series is dropped, because values belong to cells by position.
    return pd.Series(value if isinstance(value, list | tuple) else np.asarray(value), index=index)


def check_not_missing(column: pd.Series, key: str) -> None:
    """Raise if a value is missing."""
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"covariate {key!r} is missing (NaN) in cell {str(column.index[missing[0]])!r} ({len(missing)} of "
            f"{len(column)} cells): fill it in, or remove these cells"
        )


def find_categories(column: pd.Series, key: str) -> tuple[str, ...]:
    """Return the categories of a column as text: in their own order if it is categorical, otherwise sorted."""
    check_not_missing(column, key)
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = list(column.cat.remove_unused_categories().cat.categories)
    elif pd.api.types.is_numeric_dtype(column):
        values = sorted(column.unique())
    else:
        values = sorted(map(str, column.unique()))
    return tuple(dict.fromkeys(map(str, values)))  # distinct values may be the same as text


def encode_categories(column: pd.Series, key: str, categories: tuple[str, ...], remedy: str) -> np.ndarray:
    """Return the codes of the categories of a column, int64, shape ``(cells,)``; `remedy` ends the error message."""
    check_not_missing(column, key)
    value_c, values = pd.factorize(column)
    code_v = np.array([find_name(value, categories) for value in values], dtype=np.int64)
    code_c = code_v[value_c]
    unknown = np.flatnonzero(code_c < 0)
    if len(unknown) > 0:
        raise ValueError(
            f"covariate {key!r} has categories that were not in the training data: "
            f"{format_names(np.asarray(values)[code_v < 0])} (for example in cell "
            f"{str(column.index[unknown[0]])!r}). The model has the categories {format_names(categories)}"
            f"{nearest_category(str(np.asarray(values)[code_v < 0][0]), categories)}: {remedy}"
        )
    return code_c


def nearest_category(name: str, categories: tuple[str, ...]) -> str:
    """Return a note with the known category that is nearest to an unknown one: as a number, or as text."""
    try:
        nearest = min(categories, key=lambda known: abs(float(known) - float(name)))
    except ValueError:
        return did_you_mean(name, categories)
    return f" (nearest to {name!r}: {nearest!r})"


def to_float(column: pd.Series, key: str) -> np.ndarray:
    """Return a continuous covariate as float64, shape ``(cells,)``."""
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(
            f"continuous covariate {key!r} has dtype {column.dtype}, which is not numeric: convert it to float, or use "
            "it as a categorical covariate"
        )
    check_not_missing(column, key)
    value_c = column.to_numpy(dtype=np.float64)
    too_large = np.flatnonzero(np.abs(value_c) > MAX_VALUE)
    if len(too_large) > 0:
        cell = too_large[0]
        found = "infinite" if np.isinf(value_c[cell]) else f"{value_c[cell]:g}"
        raise ValueError(
            f"covariate {key!r} is {found} in cell {str(column.index[cell])!r}: correct the value, or remove the cell"
        )
    return value_c


def mean_and_std(column: pd.Series, key: str) -> tuple[float, float]:
    """Return the mean and the standard deviation of a covariate; the latter is set to 1 for a constant."""
    value_c = to_float(column, key)
    std = float(value_c.std())
    # Because of rounding, a constant can have a deviation above 0, and tiny differences can have a deviation of 0.
    if std == 0 or value_c.min() == value_c.max():
        std = 1.0
    return float(value_c.mean()), std

"""Covariates of cells: tables of them, and their columns as codes and numbers, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.utils.messages import format_names

__all__ = ["encode_categories", "find_categories", "mean_and_std", "to_column", "to_covariate_table", "to_float"]


def to_covariate_table(obs: AnnData | pd.DataFrame | Mapping[str, Any], n_cells: int | None) -> pd.DataFrame:
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
        return pd.DataFrame({key: to_column(value, index) for key, value in obs.items()}, index=index)
    table = obs.obs if isinstance(obs, AnnData) else obs
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"expected covariates in an AnnData, a DataFrame or a dict, got {type(obs).__name__}")
    if n_cells is not None and n_cells != len(table):
        raise ValueError(f"covariates of {len(table)} cells are given for {n_cells} cells: give one row a cell")
    return table


def to_column(value: Any, index: pd.Index) -> pd.Series:
    """Make a column of one value for all cells, or of one value a cell."""
    if np.ndim(value) == 0:
        return pd.Series(np.asarray(value)[()], index=index)
    # A list goes in as it is, because numpy would turn the NaN in ["a", nan] into text; the labels of a Series are
    # dropped, because values are matched to cells by position.
    return pd.Series(value if isinstance(value, list | tuple) else np.asarray(value), index=index)


def check_not_missing(column: pd.Series, key: str) -> None:
    """Raise where a value is missing."""
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"covariate {key!r} is missing (NaN) in cell {str(column.index[missing[0]])!r} ({len(missing)} of "
            f"{len(column)} cells): fill it in, or leave these cells out"
        )


def find_categories(column: pd.Series, key: str) -> tuple[str, ...]:
    """Find the categories of a column, as text: in their order if it is categorical, else sorted."""
    check_not_missing(column, key)
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = list(column.cat.remove_unused_categories().cat.categories)
    elif pd.api.types.is_numeric_dtype(column):
        values = sorted(column.unique())
    else:
        values = sorted(map(str, column.unique()))
    return tuple(dict.fromkeys(map(str, values)))  # distinct values may read the same


def encode_categories(column: pd.Series, key: str, categories: tuple[str, ...], remedy: str) -> np.ndarray:
    """Turn categories into their codes, int64, shape ``(cells,)``."""
    check_not_missing(column, key)
    value_c, values = pd.factorize(column)
    names = [str(value) for value in values]
    code_of_name = {name: code for code, name in enumerate(categories)}
    code_c = np.array([code_of_name.get(name, -1) for name in names], dtype=np.int64)[value_c]
    unseen = np.flatnonzero(code_c < 0)
    if len(unseen) > 0:
        raise ValueError(
            f"covariate {key!r} has categories that were not seen in fit: "
            f"{format_names(name for name in names if name not in code_of_name)} (such as in cell "
            f"{str(column.index[unseen[0]])!r}); the model knows {format_names(categories)} and cannot place cells of "
            f"others: {remedy}"
        )
    return code_c


def to_float(column: pd.Series, key: str) -> np.ndarray:
    """Turn a continuous covariate into float64, shape ``(cells,)``."""
    if not pd.api.types.is_numeric_dtype(column):
        raise TypeError(
            f"continuous covariate {key!r} is of dtype {column.dtype}, not numeric: convert it to float, or give it as "
            "a categorical covariate"
        )
    check_not_missing(column, key)
    value_c = column.to_numpy(dtype=np.float64)
    infinite = np.flatnonzero(np.isinf(value_c))
    if len(infinite) > 0:
        raise ValueError(
            f"covariate {key!r} is infinite in cell {str(column.index[infinite[0]])!r}: mend it, or leave the cell out"
        )
    return value_c


def mean_and_std(column: pd.Series, key: str) -> tuple[float, float]:
    """Compute mean and standard deviation, the latter taken as 1 for a constant."""
    value_c = to_float(column, key)
    deviation = float(value_c.std())
    # Rounding can give a constant a deviation above 0, and tiny differences one of 0.
    if deviation == 0 or value_c.min() == value_c.max():
        deviation = 1.0
    return float(value_c.mean()), deviation

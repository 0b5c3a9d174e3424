"""Selection of cells: one by its name, a group by the value of a column, the two ends of a path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from celldial.utils.messages import did_you_mean, format_names, get_column
from celldial.utils.names import has_value, to_name

__all__ = ["select_cells", "select_endpoints"]


def select_cells(obs: pd.DataFrame, at: Any) -> tuple[np.ndarray, str]:
    """Return the cells that `at` describes.

    Parameters
    ----------
    obs
        Table of all cells.
    at
        None for all cells; a group, as a dict that maps columns to values, or as one column and its value; or the name
        of a cell.

    Returns
    -------
    tuple[np.ndarray, str]
        Positions in ascending order, and a description of the cells.

    Raises
    ------
    KeyError
        There is no such column, value or cell.
    ValueError
        No cell has all of the values.
    """
    if at is None:
        return np.arange(len(obs)), "all cells"
    if isinstance(at, tuple | list):
        if len(at) != 2:
            raise ValueError(f"at is {at!r}: pass (column, value), a dict from column to value, or the name of a cell")
        at = {at[0]: at[1]}
    if not isinstance(at, Mapping):
        return np.array([cell_position(obs, at)]), f"cell {at}"
    chosen_c = np.ones(len(obs), dtype=bool)
    for column, value in at.items():
        chosen_c &= group_mask(get_column(obs, column, "column"), value)
    description = ", ".join(f"{column}: {value}" for column, value in at.items())
    if not chosen_c.any():
        raise ValueError(f"no cell has {description} at once: use fewer of these conditions")
    return np.flatnonzero(chosen_c), description


def select_endpoints(obs: pd.DataFrame, ends: tuple[Any, Any], groupby: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells at both ends of a path.

    Parameters
    ----------
    obs
        Table of all cells.
    ends
        Names of two cells, or two group labels.
    groupby
        Column with the labels. By default the ends are cells if both are names of cells, otherwise groups of the only
        column that has both labels.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Positions of the cells at the first and at the second end.

    Raises
    ------
    KeyError
        There are no such cells or labels.
    ValueError
        Several columns have both labels, or the ends are identical.
    """
    if ends[0] == ends[1]:
        raise ValueError(f"axis goes from {ends[0]!r} to {ends[1]!r}: the two ends must differ")
    if groupby is None:
        if all(end in obs.index for end in ends):
            first, last = (np.array([cell_position(obs, end)]) for end in ends)
            return first, last
        columns = [str(name) for name in obs.columns if all(has_value(obs[name], end).any() for end in ends)]
        if len(columns) > 1:
            raise ValueError(
                f"{ends[0]!r} and {ends[1]!r} are in several columns ({format_names(columns)}): pass groupby"
            )
        if not columns:
            raise KeyError(
                f"{ends[0]!r} and {ends[1]!r} are neither two cells nor two values of one column of adata.obs "
                f"(columns: {format_names(obs.columns)})"
            )
        groupby = columns[0]
    column = get_column(obs, groupby, "groupby")
    first, last = (np.flatnonzero(group_mask(column, end)) for end in ends)
    return first, last


def cell_position(obs: pd.DataFrame, name: Any) -> int:
    """Return the position of a cell, or raise if there is no cell of this name."""
    found = np.flatnonzero(obs.index == name)
    if len(found) == 0:
        raise KeyError(f"there is no cell {name!r}; the cells of adata are {format_names(obs.index, 3)}")
    return int(found[0])


def group_mask(column: pd.Series, value: Any) -> np.ndarray:
    """Return a mask of the cells with a value, or raise if no cell has it."""
    chosen_c = has_value(column, value)
    if not chosen_c.any():
        known = sorted(map(to_name, column.dropna().unique()))
        raise KeyError(
            f"no cell has {column.name} {value!r}{did_you_mean(value, known)}; available: {format_names(known)}"
        )
    return chosen_c

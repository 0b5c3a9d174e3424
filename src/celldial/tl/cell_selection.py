"""Which cells are meant: one by its name, a group by a value of a column, the two ends of a path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from celldial.utils.messages import format_names, get_column

__all__ = ["select_cells", "select_endpoints"]


def select_cells(obs: pd.DataFrame, at: Any) -> tuple[np.ndarray, str]:
    """Find the cells that `at` names.

    Parameters
    ----------
    obs
        Of all cells.
    at
        None for all cells; a dict from column to value, or one column and its value, for a group; else a cell's name.

    Returns
    -------
    tuple[np.ndarray, str]
        Their positions in ascending order, and what they are called.

    Raises
    ------
    KeyError
        There is no such column, value or cell.
    ValueError
        No cell has all of the values.
    """
    if at is None:
        return np.arange(len(obs)), "all cells"
    if isinstance(at, tuple):
        if len(at) != 2:
            raise ValueError(f"at is {at!r}: give (column, value), a dict from column to value, or the name of a cell")
        at = {at[0]: at[1]}
    if not isinstance(at, Mapping):
        return np.array([cell_position(obs, at)]), f"cell {at}"
    chosen_c = np.ones(len(obs), dtype=bool)
    for column, value in at.items():
        chosen_c &= group_mask(get_column(obs, column, "column"), value)
    called = ", ".join(f"{column}: {value}" for column, value in at.items())
    if not chosen_c.any():
        raise ValueError(f"no cell has {called} at once: ask for fewer of these")
    return np.flatnonzero(chosen_c), called


def select_endpoints(obs: pd.DataFrame, ends: tuple[Any, Any], groupby: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Find the cells at either end of a path.

    Parameters
    ----------
    obs
        Of all cells.
    ends
        Names of two cells, or two labels of groups.
    groupby
        The column with the labels. By default the ends are cells where both are names of cells, else groups by the one
        column that has both labels.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Positions of the cells of the first end and of the second.

    Raises
    ------
    KeyError
        There are no such cells or labels.
    ValueError
        Several columns have both labels; or the ends are the same.
    """
    if ends[0] == ends[1]:
        raise ValueError(f"axis goes from {ends[0]!r} to {ends[1]!r}: the two ends must differ")
    if groupby is None:
        if all(end in obs.index for end in ends):
            first, last = (np.array([cell_position(obs, end)]) for end in ends)
            return first, last
        having = [str(name) for name in obs.columns if all((obs[name].astype(object) == end).any() for end in ends)]
        if len(having) > 1:
            raise ValueError(
                f"{ends[0]!r} and {ends[1]!r} are both in several columns ({format_names(having)}): give groupby"
            )
        if not having:
            raise KeyError(
                f"{ends[0]!r} and {ends[1]!r} are neither names of two cells nor two values of one column of adata.obs "
                f"(columns: {format_names(obs.columns)})"
            )
        groupby = having[0]
    column = get_column(obs, groupby, "groupby")
    first, last = (np.flatnonzero(group_mask(column, end)) for end in ends)
    return first, last


def cell_position(obs: pd.DataFrame, name: Any) -> int:
    """Find a cell by its name."""
    found = np.flatnonzero(obs.index == name)
    if len(found) == 0:
        raise KeyError(f"there is no cell {name!r}; those of adata start {format_names(obs.index, 3)}")
    return int(found[0])


def group_mask(column: pd.Series, value: Any) -> np.ndarray:
    """Mark the cells that have a value, or raise where none has it."""
    chosen_c: np.ndarray = (column.astype(object) == value).to_numpy(dtype=bool)
    if not chosen_c.any():
        known = sorted(map(str, column.dropna().unique()))
        raise KeyError(f"no cell has {column.name} {value!r}; there are: {format_names(known)}")
    return chosen_c

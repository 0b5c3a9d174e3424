"""Comparisons of groups of cells: which cells are on either side, and which replicates.

Axis suffixes: ``c`` cells, ``g`` groups, ``s`` sides of comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from celldial.tl.cell_selection import select_cells
from celldial.utils.messages import did_you_mean, format_names, get_column
from celldial.utils.names import find_name

__all__ = ["MIN_CELLS", "REST", "Comparison", "Groups", "find_groups", "pair_up"]

REST = "rest"
# Smallest number of cells on either side of a comparison.
MIN_CELLS = 3


@dataclass(frozen=True)
class Groups:
    """Groups of cells.

    Parameters
    ----------
    column
        Name of the column.
    names
        Names of the groups, as text.
    group_c
        Position of the group of each cell; -1 for cells that are not used.
    """

    column: str
    names: list[str]
    group_c: np.ndarray

    def position(self, name: Any, argument: str) -> int:
        """Return the position of a group, or raise if there is none of this name."""
        position = find_name(name, self.names)
        if position < 0:
            raise KeyError(
                f"{argument}: no cell has {self.column} {str(name)!r}{did_you_mean(name, self.names)}; the groups are "
                f"{format_names(self.names)}"
            )
        return position


@dataclass(frozen=True)
class Comparison:
    """A group and its reference.

    Parameters
    ----------
    group, reference
        Their names.
    member_sg
        1 for the groups that each of the two sides consists of, the group first, 0 for others.
    value_g
        For a trend, the mean value of the cells in each group; the sides are then the cells with high and low values.
    """

    group: str
    reference: str
    member_sg: np.ndarray
    value_g: np.ndarray | None = None


def find_groups(obs: pd.DataFrame, groupby: str, at: Mapping[str, Any] | tuple[str, Any] | None) -> Groups:
    """Return the groups in a column, among the cells that `at` selects. Cells with a missing value have no group.

    Raises
    ------
    KeyError
        There is no such column or value.
    ValueError
        There are fewer than two groups, or each cell has a value of its own.
    """
    column = get_column(obs, groupby, "groupby")
    if isinstance(at, str):
        raise TypeError(f"at is {at!r}: pass a dict from column to value, such as {{'cell_type': 'B'}}")
    chosen = select_cells(obs, at)[0]
    values = column.iloc[chosen]
    categories = (
        values.cat.categories
        if isinstance(values.dtype, pd.CategoricalDtype)
        else sorted(values.dropna().unique(), key=lambda value: (str(type(value)), value))
    )
    code_c = pd.Categorical(values, categories=categories).codes
    present = np.unique(code_c[code_c >= 0])
    if len(present) < 2:
        names = format_names(np.asarray(categories)[present])
        raise ValueError(f"{groupby!r} has only one group among these cells ({names}): a comparison needs two")
    if len(present) > 2 and len(present) > len(chosen) / 2:
        raise ValueError(
            f"{groupby!r} has {len(present)} values among {len(chosen)} cells: groupby must be a column of groups, "
            "such as clusters or conditions"
        )
    group_c = np.full(len(obs), -1, dtype=np.int64)
    group_c[chosen] = np.where(code_c >= 0, np.searchsorted(present, code_c), -1)
    return Groups(groupby, [str(categories[code]) for code in present], group_c)


def pair_up(groups: Groups, chosen: Sequence[Any] | str | None, reference: Any) -> list[Comparison]:
    """Return the comparisons of each chosen group with the reference.

    Raises
    ------
    KeyError
        A group does not exist.
    ValueError
        A group is listed twice or is the reference, or one side has too few cells.
    """
    n_groups = len(groups.names)
    against = (
        None
        if isinstance(reference, str) and reference == REST and REST not in groups.names
        else groups.position(reference, "reference")
    )
    wanted = [chosen] if isinstance(chosen, str) else chosen
    positions = list(range(n_groups)) if wanted is None else [groups.position(name, "groups") for name in wanted]
    if wanted is None and against is not None:
        positions.remove(against)
    if len(set(positions)) < len(positions):
        raise ValueError(f"groups has a group more than once: {format_names(wanted or ())}")
    if not positions or against in positions:
        raise ValueError(f"groups is {wanted!r} and reference is {reference!r}: pass groups other than the reference")
    size_g = np.bincount(groups.group_c[groups.group_c >= 0], minlength=n_groups)
    comparisons = []
    for position in positions:
        member_sg = np.zeros((2, n_groups), dtype=np.int64)
        member_sg[0, position] = 1
        member_sg[1] = 1 - member_sg[0] if against is None else np.arange(n_groups) == against
        name = groups.names[position]
        other = REST if against is None else groups.names[against]
        for side, side_name in enumerate((name, other)):
            size = int(size_g[member_sg[side] > 0].sum())
            if size < MIN_CELLS:
                raise ValueError(
                    f"{groups.column} {side_name!r} has only {size} of the cells: a comparison needs at least "
                    f"{MIN_CELLS} on each side; leave the group out with groups=[...]"
                )
        comparisons.append(Comparison(name, other, member_sg))
    return comparisons

"""What a named axis is to tell of cells: a column of ``obs``, two groups, or a list of genes, as one number a cell.

Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from celldial.utils.messages import listing

__all__ = ["Target", "expression_target", "find_groups", "obs_target", "read_genes"]

# Fewer genes found than this, where more are given, are no list of genes any more.
MIN_GENES = 3
# A numeric target goes from 0 to 1 between these quantiles, so that a few extreme cells do not set its scale.
SCALE = (0.05, 0.95)
PER_TEN_THOUSAND = 1e4


class Target(NamedTuple):
    """What an axis is to tell, float64: 0 where it starts, 1 where it ends, NaN for cells that do not matter."""

    value_c: np.ndarray
    description: str


def obs_target(column: pd.Series, key: str, groups: Sequence[Any] | None = None) -> Target:
    """Make a target of a column of ``obs``.

    Parameters
    ----------
    column
        Of the cells that can take part. With two categories the first is 0 and the second 1; of an ordered categorical
        the first is 0, the last 1, and the others lie evenly between; True and False are 1 and 0; numbers are scaled.
    key
        Its name.
    groups
        Two values of the column, what is to be 0 and what is to be 1. Other cells do not matter.

    Raises
    ------
    TypeError
        `groups` is no pair.
    ValueError
        The column has not two categories, and `groups` is not given; or it has one value only, or fewer than two cells
        of a group; or a value is infinite.
    KeyError
        `groups` names a value that no cell has.
    """
    known = column.notna().to_numpy()
    if groups is None and pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        value_c = np.full(len(column), np.nan)
        value_c[known] = column[known].to_numpy(dtype=np.float64)
        if np.isinf(value_c).any():
            cell = str(column.index[np.flatnonzero(np.isinf(value_c))[0]])
            raise ValueError(
                f"obs column {key!r} is infinite in cell {cell!r}: mend it, or make it NaN to leave it out"
            )
        scaled_c, low, high = _scaled(value_c, f"obs column {key!r}")
        return Target(scaled_c, f"{key}: {low:g} → {high:g}")
    ordered = isinstance(column.dtype, pd.CategoricalDtype) and bool(column.cat.ordered)
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [str(name) for name in column[known].cat.remove_unused_categories().cat.categories]
    else:
        names = sorted(map(str, column[known].unique()))
    if groups is not None:
        names = check_groups(groups)
    elif len(names) < 2 or (len(names) > 2 and not ordered):
        raise ValueError(
            f"obs column {key!r} has {len(names)} categories ({listing(names)}), and an axis goes from one to another: "
            + ("name two of them, groups=(A, B)" if len(names) > 2 else "choose another column")
        )
    text_c = column.astype(object).map(str, na_action="ignore").to_numpy(dtype=object)
    place = {name: i / (len(names) - 1) for i, name in enumerate(names)}
    value_c = np.array([place.get(text, np.nan) for text in text_c], dtype=np.float64)
    for name in (names[0], names[-1]):
        n_cells = int((value_c == place[name]).sum())
        if n_cells == 0:
            raise KeyError(
                f"no cell with counts is {name!r} in obs column {key!r}; there: {listing(sorted(_values(column)))}"
            )
        if n_cells < 2:
            raise ValueError(f"a single cell with counts is {name!r} in obs column {key!r}: two are needed at least")
    return Target(value_c, f"{key}: {names[0]} → {names[-1]}")


def check_groups(groups: Any) -> list[str]:
    """Give two different groups as text, or raise."""
    if isinstance(groups, str) or not isinstance(groups, Sequence) or len(groups) != 2:
        raise TypeError(f"groups is {groups!r}: it must be a pair, from which to which, such as ('ctrl', 'stim')")
    names = [str(name) for name in groups]
    if names[0] == names[1]:
        raise ValueError(f"groups names {names[0]!r} twice: an axis goes from one group to another")
    return names


def find_groups(obs: pd.DataFrame, groups: Any) -> str:
    """Find the one column of text or categories that has both groups, or raise and name those that come near.

    Columns that say the same of all cells, as those that a MuData has of its modalities, are one.
    """
    names = check_groups(groups)
    columns = [str(key) for key in obs if _is_text(obs[key])]
    found = {key: _values(obs[key]) for key in columns}
    having = [key for key, values in found.items() if values.issuperset(names)]
    if having and all(obs[key].astype(object).equals(obs[having[0]].astype(object)) for key in having):
        return min(having, key=len)
    if having:
        raise ValueError(
            f"{len(having)} columns of adata.obs have both {names[0]!r} and {names[1]!r}: {listing(having)}. Name the "
            f"one you mean, obs={having[0]!r}"
        )
    near = [key for key, values in found.items() if values.intersection(names)]
    of = f"columns with one of them: {listing(near)}" if near else f"columns of text or categories: {listing(columns)}"
    raise KeyError(f"no column of adata.obs has both {names[0]!r} and {names[1]!r}; {of}")


def read_genes(genes: Any, feature_names: Sequence[str], nouns: str) -> dict[str, np.ndarray]:
    """Look lists of genes up: which features they are, by name, else by name without regard to case.

    Parameters
    ----------
    genes
        ``{"up": [...], "down": [...]}``; either may be missing.
    feature_names
        Those of the modality.
    nouns
        What they are, for the messages: ``"genes"``.

    Returns
    -------
    dict[str, np.ndarray]
        ``"up"`` and ``"down"``, where given, to the positions in `feature_names`.

    Raises
    ------
    TypeError
        `genes` is no dict of lists.
    ValueError
        It has no genes, a gene in both lists, or fewer than 3 genes of a list are found (all of a shorter one are
        needed).

    Warns
    -----
    UserWarning
        Fewer than half of a list are found.
    """
    if not isinstance(genes, Mapping) or not genes or set(genes) - {"up", "down"}:
        raise TypeError(f"genes is {genes!r}: it must be a dict of lists of names, {{'up': [...], 'down': [...]}}")
    exact = {name: f for f, name in enumerate(feature_names)}
    folded = {name.casefold(): f for name, f in reversed(exact.items())}
    positions = {}
    for side, names in genes.items():
        if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray | pd.Index | pd.Series | set):
            raise TypeError(f"genes[{side!r}] is {names!r}: it must be a list of names")
        wanted = list(dict.fromkeys(map(str, names)))
        if not wanted:
            continue
        found = {name: exact.get(name, folded.get(name.casefold())) for name in wanted}
        missing = [name for name, f in found.items() if f is None]
        said = f"{len(wanted) - len(missing)} of {len(wanted)} {nouns} of genes[{side!r}] are features of the model"
        if len(wanted) - len(missing) < min(MIN_GENES, len(wanted)):
            if len(missing) < len(wanted):
                what = "leave the missing ones out, or name others"
            else:
                what = "give the same kind of names (symbols or Ensembl ids)"
            raise ValueError(
                f"only {said}; missing: {listing(missing)}. The model's start {listing(feature_names[:3])}: {what}"
            )
        if len(missing) > len(wanted) / 2:
            warnings.warn(f"only {said}; missing: {listing(missing)}", UserWarning, stacklevel=3)
        positions[side] = np.unique([f for f in found.values() if f is not None])
    if not positions:
        raise ValueError("genes has no genes: give {'up': [...], 'down': [...]}, either or both")
    both = sorted(set(positions.get("up", ())) & set(positions.get("down", ())))
    if both:
        raise ValueError(f"{feature_names[both[0]]!r} is in genes['up'] and in genes['down']: leave it out of one")
    return positions


def expression_target(
    counts: sparse.csr_matrix, library_size_c: np.ndarray, positions: Mapping[str, np.ndarray], names: Sequence[str]
) -> Target:
    """Make a target of the observed expression of some genes: the mean of those up less the mean of those down.

    Each gene is log-normalized, log(1 + count · 10,000 / library size), and standardized over the cells.

    Parameters
    ----------
    counts
        Of the modality, shape ``(c, f)``.
    library_size_c
        Total count of each cell in the modality; cells with 0 do not matter.
    positions
        What `read_genes` gave.
    names
        Of all features of the modality.
    """
    measured_c = library_size_c > 0
    scale_c = PER_TEN_THOUSAND / library_size_c[measured_c].astype(np.float64)
    value_c = np.full(counts.shape[0], np.nan)
    value_c[measured_c] = 0
    for side, columns in positions.items():
        sign = 1 if side == "up" else -1
        chosen = counts[:, columns][measured_c].tocsc()
        for k in range(len(columns)):
            level_c = np.log1p(chosen[:, [k]].toarray()[:, 0] * scale_c)
            deviation = level_c.std()
            if deviation > 0:
                value_c[measured_c] += sign * (level_c - level_c.mean()) / (deviation * len(columns))
    listed = [
        f"{', '.join(names[f] for f in columns) if len(columns) <= 3 else f'{len(columns)} genes'} {side}"
        for side, columns in positions.items()
    ]
    scaled_c, *_ = _scaled(value_c, f"the expression of {' and '.join(listed)}")
    return Target(scaled_c, " and ".join(listed))


def _scaled(value_c: np.ndarray, what: str) -> tuple[np.ndarray, float, float]:
    """Scale numbers so that two quantiles become 0 and 1, and say what these were."""
    known_c = value_c[~np.isnan(value_c)]
    if len(known_c) == 0 or known_c.min() == known_c.max():
        raise ValueError(f"{what} does not vary over the cells with counts: there is no axis to be found")
    low, high = np.quantile(known_c, SCALE)
    if low == high:  # nearly all cells are alike
        low, high = known_c.min(), known_c.max()
    return (value_c - low) / (high - low), float(low), float(high)


def _is_text(column: pd.Series) -> bool:
    """Tell whether a column holds text or categories."""
    return isinstance(column.dtype, pd.CategoricalDtype) or (
        pd.api.types.is_string_dtype(column) or pd.api.types.infer_dtype(column, skipna=True) == "string"
    )


def _values(column: pd.Series) -> set[str]:
    """Values of a column, as text."""
    return set(map(str, column.dropna().unique()))

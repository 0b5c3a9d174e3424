"""The target of a named axis, one number per cell: from a column of ``obs``, two groups, or lists of features.

Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from celldial.utils.messages import did_you_mean, format_names
from celldial.utils.names import to_name
from celldial.utils.warnings import warn

__all__ = ["Target", "expression_target", "find_groups", "match_features", "obs_target", "resolve_feature_lists"]

# Minimum number of matches of a list of features, unless the list is shorter.
MIN_MATCHES = 3
# A numeric target goes from 0 to 1 between these quantiles, so that a few extreme cells do not set its scale.
SCALE = (0.05, 0.95)
PER_TEN_THOUSAND = 1e4


class Target(NamedTuple):
    """Target of an axis, float64: 0 at its start, 1 at its end, NaN for cells that are not used."""

    value_c: np.ndarray
    description: str


def obs_target(column: pd.Series, key: str, groups: Sequence[Any] | None = None) -> Target:
    """Return the target that a column of ``obs`` defines.

    Parameters
    ----------
    column
        The column, for the cells with counts. Two categories become 0 and 1; the categories of an ordered categorical
        are evenly spaced from 0 to 1; False and True become 0 and 1; numbers are scaled.
    key
        Name of the column.
    groups
        Two values of the column, for 0 and 1. Other cells are not used.

    Raises
    ------
    TypeError
        `groups` is not a pair.
    ValueError
        The column does not have two categories and `groups` is not given; it has only one value, or fewer than two
        cells of a group; or a value is infinite.
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
                f"obs column {key!r} is infinite in cell {cell!r}: correct it, or set it to NaN to leave the cell out"
            )
        scaled_c, low, high = _scaled(value_c, f"obs column {key!r}")
        return Target(scaled_c, f"{key}: {low:g} → {high:g}")
    ordered = isinstance(column.dtype, pd.CategoricalDtype) and bool(column.cat.ordered)
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [to_name(name) for name in column[known].cat.remove_unused_categories().cat.categories]
    else:
        names = sorted(map(to_name, column[known].unique()))
    if groups is not None:
        names = check_groups(groups)
    elif len(names) < 2 or (len(names) > 2 and not ordered):
        raise ValueError(
            f"obs column {key!r} has {len(names)} categories ({format_names(names)}), but an axis needs two: "
            + ("name two of them, groups=(A, B)" if len(names) > 2 else "choose another column")
        )
    text_c = column.astype(object).map(to_name, na_action="ignore").to_numpy(dtype=object)
    place = {name: i / (len(names) - 1) for i, name in enumerate(names)}
    value_c = np.array([place.get(text, np.nan) for text in text_c], dtype=np.float64)
    for name in (names[0], names[-1]):
        n_cells = int((value_c == place[name]).sum())
        if n_cells == 0:
            raise KeyError(
                f"no cell with counts is {name!r} in obs column {key!r}{did_you_mean(name, _values(column))}; "
                f"available: {format_names(sorted(_values(column)))}"
            )
        if n_cells < 2:
            raise ValueError(f"only one cell with counts is {name!r} in obs column {key!r}: an axis needs at least two")
    return Target(value_c, f"{key}: {names[0]} → {names[-1]}")


def check_groups(groups: Any) -> list[str]:
    """Return two different groups as text, or raise."""
    if isinstance(groups, str) or not isinstance(groups, Sequence) or len(groups) != 2:
        raise TypeError(f"groups is {groups!r}: it must be a pair of values, such as ('ctrl', 'stim')")
    names = [to_name(name) for name in groups]
    if names[0] == names[1]:
        raise ValueError(f"groups names {names[0]!r} twice: an axis needs two different groups")
    return names


def find_groups(obs: pd.DataFrame, groups: Any) -> str:
    """Return the only column of text, categories or integers that has both groups, or raise and name similar columns.

    Columns with identical values, such as those that a MuData has for each modality, count as one.
    """
    names = check_groups(groups)
    columns = [str(key) for key in obs if _has_groups(obs[key])]
    found = {key: _values(obs[key]) for key in columns}
    having = [key for key, values in found.items() if values.issuperset(names)]
    if having and all(obs[key].astype(object).equals(obs[having[0]].astype(object)) for key in having):
        return min(having, key=len)
    if having:
        raise ValueError(
            f"{len(having)} columns of adata.obs have both {names[0]!r} and {names[1]!r}: {format_names(having)}. "
            f"Choose "
            f"one, such as obs={having[0]!r}"
        )
    similar = [key for key, values in found.items() if values.intersection(names)]
    hint = (
        f"columns with one of them: {format_names(similar)}"
        if similar
        else f"columns of groups: {format_names(columns)}"
    )
    raise KeyError(f"no column of adata.obs has both {names[0]!r} and {names[1]!r}; {hint}")


def resolve_feature_lists(features: Any, feature_names: Sequence[str], nouns: str) -> dict[str, np.ndarray]:
    """Return the positions of listed features, matched by name, or by name without regard to case.

    Parameters
    ----------
    features
        ``{"up": [...], "down": [...]}``; either may be missing.
    feature_names
        Names of all features of the modality.
    nouns
        Plural noun for the features in messages: ``"genes"``.

    Returns
    -------
    dict[str, np.ndarray]
        ``"up"`` and ``"down"``, if given, to the positions in `feature_names`.

    Raises
    ------
    TypeError
        `features` is not a dict of lists.
    ValueError
        The lists are empty, a feature is in both, or fewer than 3 features of a list are found (a shorter list must
        be found completely).

    Warns
    -----
    UserWarning
        Fewer than half of the features in a list are found.
    """
    if not isinstance(features, Mapping) or not features or set(features) - {"up", "down"}:
        raise TypeError(
            f"features is {features!r}: it must be a dict of lists of names, {{'up': [...], 'down': [...]}}"
        )
    positions = {
        side: match_features(names, f"features[{side!r}]", feature_names, nouns)
        for side, names in features.items()
        if isinstance(names, str) or not hasattr(names, "__len__") or len(names) > 0
    }
    if not positions:
        raise ValueError("features has no names: pass {'up': [...], 'down': [...]}, either or both")
    both = sorted(set(positions.get("up", ())) & set(positions.get("down", ())))
    if both:
        raise ValueError(f"{feature_names[both[0]]!r} is in features['up'] and in features['down']: remove it from one")
    return positions


def match_features(names: Any, argument: str, feature_names: Sequence[str], nouns: str) -> np.ndarray:
    """Return the positions of listed features, matched by name, or by name without regard to case.

    Parameters
    ----------
    names
        Names of features.
    argument
        What the error message calls the list: ``"features['up']"``.
    feature_names
        Names of all features of the modality.
    nouns
        Plural noun for the features in messages: ``"genes"``.

    Raises
    ------
    TypeError
        `names` is not a list.
    ValueError
        Fewer than 3 features are found (a shorter list must be found completely).

    Warns
    -----
    UserWarning
        Fewer than half of the features are found.
    """
    if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray | pd.Index | pd.Series | set):
        raise TypeError(f"{argument} is {names!r}: it must be a list of names")
    exact = {name: f for f, name in enumerate(feature_names)}
    folded = {name.casefold(): f for name, f in reversed(exact.items())}
    wanted = list(dict.fromkeys(map(str, names)))
    if not wanted:
        raise ValueError(f"{argument} has no names: give at least one")
    found = {name: exact.get(name, folded.get(name.casefold())) for name in wanted}
    missing = [name for name, f in found.items() if f is None]
    summary = f"{len(wanted) - len(missing)} of {len(wanted)} {nouns} of {argument} are in the model"
    if len(wanted) - len(missing) < min(MIN_MATCHES, len(wanted)):
        if len(missing) < len(wanted):
            remedy = "remove the missing ones, or choose others"
        else:
            remedy = "use the same kind of names (symbols or Ensembl ids)"
        raise ValueError(
            f"only {summary}; missing: {format_names(missing)}. "
            f"The model has {format_names(feature_names[:3])}, ...: {remedy}"
        )
    if len(missing) > len(wanted) / 2:
        warn(f"only {summary}; missing: {format_names(missing)}")
    return np.unique([f for f in found.values() if f is not None])


def expression_target(
    counts: sparse.csr_matrix, library_size_c: np.ndarray, positions: Mapping[str, np.ndarray], names: Sequence[str]
) -> Target:
    """Return the target from the observed expression of features: mean of those up minus mean of those down.

    Each feature is log-normalized, log(1 + count · 10,000 / library size), and standardized over the cells.

    Parameters
    ----------
    counts
        Counts of the modality, shape ``(c, f)``.
    library_size_c
        Total count of each cell in the modality; cells with 0 are not used.
    positions
        Result of `resolve_feature_lists`.
    names
        Names of all features of the modality.
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
        f"{', '.join(names[f] for f in columns) if len(columns) <= 3 else f'{len(columns)} features'} {side}"
        for side, columns in positions.items()
    ]
    scaled_c, *_ = _scaled(value_c, f"the expression of {' and '.join(listed)}")
    return Target(scaled_c, " and ".join(listed))


def _scaled(value_c: np.ndarray, what: str) -> tuple[np.ndarray, float, float]:
    """Return values scaled so that two quantiles become 0 and 1, and these quantiles."""
    known_c = value_c[~np.isnan(value_c)]
    if len(known_c) == 0 or known_c.min() == known_c.max():
        raise ValueError(f"{what} is the same in all cells with counts: there is no axis to find")
    low, high = np.quantile(known_c, SCALE)
    if low == high:  # nearly all cells have the same value
        low, high = known_c.min(), known_c.max()
    return (value_c - low) / (high - low), float(low), float(high)


def _has_groups(column: pd.Series) -> bool:
    """Return whether a column holds text, categories, integers or booleans."""
    return isinstance(column.dtype, pd.CategoricalDtype) or (
        pd.api.types.is_string_dtype(column)
        or pd.api.types.is_integer_dtype(column)
        or pd.api.types.is_bool_dtype(column)
        or pd.api.types.infer_dtype(column, skipna=True) == "string"
    )


def _values(column: pd.Series) -> set[str]:
    """Return the values of a column as text."""
    return set(map(to_name, column.dropna().unique()))

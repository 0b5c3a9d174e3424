"""Trends: log fold changes per unit of a number of each cell, such as age, dose or pseudotime.

Cells are divided into bins with similar values. By the model, the trend is the slope of the posterior log means of the
bins. Between replicates, each replicate has a slope if the number differs between its cells; otherwise the replicates
differ in the number, and the trend is a regression over replicates.

Axis suffixes: ``b`` bins, ``c`` cells, ``f`` features, ``p`` columns of a design, ``r`` replicates, ``s`` samples (a
replicate, or a replicate in a bin).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from celldial.inference.group_sums import CountSums
from celldial.tl.cell_selection import select_cells
from celldial.tl.comparisons import MIN_CELLS, Comparison, Groups
from celldial.tl.moderated_t import (
    ModeratedEffect,
    log_counts,
    moderated_effect,
    precision_weights,
    trimmed_library_sizes,
)
from celldial.tl.replicate_effects import (
    MIN_COUNTS,
    MIN_REPLICATES,
    TYPICAL_COUNTS,
    Replicates,
    covariates_of_masks,
    independent_columns,
)
from celldial.utils.messages import get_column

__all__ = ["bin_cells", "is_continuous", "replicate_slope", "slope_contrast"]

N_BINS = 10
# Share of the cells at either end whose means are reported.
END = 0.25


def is_continuous(obs: pd.DataFrame, column: str, continuous: bool | None) -> bool:
    """Return whether a column holds numbers to find trends along, rather than groups.

    By default, columns of floating-point numbers with more distinct values than bins do. Whole numbers, such as those
    of clusters, are groups.

    Raises
    ------
    TypeError
        The column should be continuous, but does not hold numbers.
    """
    values = get_column(obs, column, "groupby")
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if continuous and not is_number:
        raise TypeError(f"continuous is True, but {column!r} has {values.dtype} values: it must be a column of numbers")
    if continuous is not None:
        return continuous
    return pd.api.types.is_float_dtype(values) and values.nunique() > N_BINS


def bin_cells(
    obs: pd.DataFrame, column: str, at: Mapping[str, Any] | tuple[str, Any] | None
) -> tuple[Groups, Comparison]:
    """Return bins of cells with similar values, about equally large, and the comparison of the bins.

    Parameters
    ----------
    obs
        Table of all cells.
    column
        Column of numbers; cells without a value are left out.
    at
        Cells to use, as in `differential`.

    Raises
    ------
    ValueError
        A value is infinite, or there are fewer than three cells on either side of the median.
    """
    values = get_column(obs, column, "groupby").astype(float)
    chosen = select_cells(obs, at)[0]
    value_c = values.to_numpy()[chosen]
    if np.isinf(value_c).any():
        cell = obs.index[chosen[np.isinf(value_c)][0]]
        raise ValueError(f"{column!r} is infinite in cell {cell!r}: replace it by a number, or by NaN to leave it out")
    known = ~np.isnan(value_c)
    chosen, value_c = chosen[known], value_c[known]
    edges = distinct = np.unique(value_c)
    if len(distinct) > N_BINS:
        edges = np.unique(np.quantile(value_c, np.linspace(0, 1, N_BINS + 1)[1:-1]))
    used, bin_c = np.unique(np.searchsorted(edges, value_c), return_inverse=True)
    n_bins = len(used)
    size_b = np.bincount(bin_c, minlength=n_bins)
    if n_bins < 2 or size_b.max() > len(value_c) - MIN_CELLS:
        raise ValueError(
            f"{column!r} has {len(distinct)} distinct values among {len(value_c)} cells: a trend needs cells at two "
            f"values or more, and {MIN_CELLS} of them away from the most frequent one"
        )
    group_c = np.full(len(obs), -1, dtype=np.int64)
    group_c[chosen] = bin_c
    value_b = np.bincount(bin_c, value_c) / size_b
    names = [f"{value:g}" for value in value_b]
    comparison = Comparison(column, "low values", _ends(size_b), value_b)
    return Groups(column, names, group_c), comparison


def _ends(size_b: np.ndarray) -> np.ndarray:
    """Return the bins at the high and at the low end, at least a quarter of the cells each."""
    enough = END * size_b.sum()
    member_sb = np.zeros((2, len(size_b)), dtype=np.int64)
    # The number of cells in higher, and in lower bins. The ends do not overlap, however unequal the bins are.
    member_sb[0] = size_b.sum() - np.cumsum(size_b) < enough
    member_sb[0, 0] = 0
    member_sb[1] = np.cumsum(size_b) - size_b < enough
    member_sb[1, member_sb[0] == 1] = 0
    return member_sb


def slope_contrast(value_b: np.ndarray, weight_b: np.ndarray) -> np.ndarray:
    """Return the weights of values in bins whose sum is the slope of their weighted regression.

    Examples
    --------
    >>> float(slope_contrast(np.array([0.0, 1.0, 2.0]), np.ones(3)) @ np.array([1.0, 3.0, 5.0]))
    2.0
    """
    centered_b = value_b - np.average(value_b, weights=weight_b)
    contrast_b: np.ndarray = weight_b * centered_b / (weight_b @ centered_b**2)
    return contrast_b


def replicate_slope(
    comparison: Comparison, sums: CountSums, groups: Groups, replicates: Replicates
) -> tuple[ModeratedEffect, np.ndarray]:
    """Test each feature for a trend, with replicates as the unit.

    If the number differs between the cells of at least half of the replicates, their slopes are tested against 0.
    Covariates, which are constant in a replicate, then cancel. Otherwise replicates are compared with each other.

    Parameters
    ----------
    comparison
        The comparison of the bins.
    sums
        Sums over units, see `Replicates.unit_c`.
    groups, replicates
        The bins, and the replicates.

    Returns
    -------
    tuple[ModeratedEffect, np.ndarray]
        Log2 fold changes per unit of the tested features, and a mask of these features.

    Raises
    ------
    ValueError
        There are too few replicates.
    """
    assert comparison.value_g is not None
    n_replicates = len(replicates.names)
    used_br = sums.n_cells_g.reshape(-1, n_replicates) >= MIN_CELLS
    within_r = used_br.sum(0) > 1
    n_present = int((sums.n_cells_g.reshape(-1, n_replicates).sum(0) >= MIN_CELLS).sum())
    if within_r.sum() >= max(MIN_REPLICATES, n_present / 2):
        used_br = used_br & within_r
        unit_s = np.flatnonzero(used_br.ravel())
        value_s, replicate_s = comparison.value_g[unit_s // n_replicates], unit_s % n_replicates
        return _slopes_within(sums.count_gf[unit_s], sums.library_size_g[unit_s], value_s, replicate_s)
    return _slope_between(comparison.value_g, sums, groups, replicates)


def _slopes_within(
    counts_sf: np.ndarray, size_s: np.ndarray, value_s: np.ndarray, replicate_s: np.ndarray
) -> tuple[ModeratedEffect, np.ndarray]:
    """Test the mean of the slopes of replicates."""
    tested_f = counts_sf.sum(0) >= MIN_COUNTS
    size_s = trimmed_library_sizes(counts_sf, size_s)
    level_sf = log_counts(counts_sf[:, tested_f], size_s)
    is_replicate_sr = replicate_s[:, None] == np.unique(replicate_s)
    design_sp = np.column_stack([value_s, is_replicate_sr.astype(float)])
    weight_sf = precision_weights(level_sf, size_s, design_sp)
    slope_rf, information_rf = [], []
    for own_s in is_replicate_sr.T:
        weight, value, level = weight_sf[own_s], value_s[own_s, None], level_sf[own_s]
        centered = value - (weight * value).sum(0) / weight.sum(0)
        information_rf.append((weight * centered**2).sum(0))
        slope_rf.append((weight * centered * level).sum(0) / information_rf[-1])
    # In units of the spread of the values, so that no number is too small or too large.
    scale = value_s.std()
    one_r1 = np.ones((len(slope_rf), 1))
    typical_f = counts_sf[:, tested_f].sum(0) >= TYPICAL_COUNTS * len(counts_sf)
    effect = moderated_effect(
        np.stack(slope_rf) * scale, np.stack(information_rf) / scale**2, one_r1, np.ones(1), typical_f
    )
    return _per_unit(effect, scale), tested_f


def _slope_between(
    value_b: np.ndarray, sums: CountSums, groups: Groups, replicates: Replicates
) -> tuple[ModeratedEffect, np.ndarray]:
    """Test the slope of a regression over replicates."""
    n_replicates = len(replicates.names)
    size_br = sums.n_cells_g.reshape(-1, n_replicates)
    kept_s = np.flatnonzero(size_br.sum(0) >= MIN_CELLS)
    if len(kept_s) <= MIN_REPLICATES:
        raise ValueError(
            f"only {len(kept_s)} {replicates.column} have {MIN_CELLS} cells or more, and a trend over replicates needs "
            f"{MIN_REPLICATES + 1}: use method='model', which does not describe differences between replicates"
        )
    counts_sf = sums.count_gf.reshape(len(value_b), n_replicates, -1).sum(0)[kept_s]
    size_s = sums.library_size_g.reshape(-1, n_replicates).sum(0)[kept_s]
    value_s = (value_b @ size_br / np.maximum(size_br.sum(0), 1))[kept_s]
    used_c = groups.group_c >= 0
    masks = [used_c & (replicates.replicate_c == replicate) for replicate in kept_s]
    covariate_sp = covariates_of_masks(masks, [replicates.names[r] for r in kept_s], replicates)
    scale = max(float(value_s.std()), np.finfo(float).tiny)
    one_s1 = np.ones((len(kept_s), 1))
    design_sp = independent_columns(value_s[:, None] / scale, np.hstack([one_s1, covariate_sp]))
    tested_f = counts_sf.sum(0) >= MIN_COUNTS
    size_s = trimmed_library_sizes(counts_sf, size_s)
    level_sf = log_counts(counts_sf[:, tested_f], size_s)
    weight_sf = precision_weights(level_sf, size_s, design_sp)
    typical_f = counts_sf[:, tested_f].sum(0) >= TYPICAL_COUNTS * len(counts_sf)
    effect = moderated_effect(level_sf, weight_sf, design_sp, np.eye(design_sp.shape[1])[0], typical_f)
    return _per_unit(effect, scale), tested_f


def _per_unit(effect: ModeratedEffect, scale: float) -> ModeratedEffect:
    """Return an effect per unit, from one per `scale` units."""
    return effect._replace(estimate_f=effect.estimate_f / scale, deviation_f=effect.deviation_f / scale)

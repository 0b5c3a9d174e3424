"""Effects between replicates, such as donors: samples of a comparison, their design, and the test.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` the two sides of a comparison, ``p`` columns of the design, ``r``
replicates, ``s`` samples (a replicate on one side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from celldial.inference.group_sums import CountSums
from celldial.tl.comparisons import MIN_CELLS, Comparison, Groups
from celldial.tl.moderated_t import (
    ModeratedEffect,
    log_counts,
    moderated_effect,
    precision_weights,
    trimmed_library_sizes,
)
from celldial.utils.messages import format_names, get_column

__all__ = [
    "Replicates",
    "Samples",
    "covariates_of_masks",
    "find_replicates",
    "independent_columns",
    "replicate_effect",
    "samples_of",
]

# Smallest number of replicates on either side.
MIN_REPLICATES = 2
# Features with fewer counts in all samples of a comparison are not tested, as by default in edgeR.
MIN_COUNTS = 15
# The common variance is learned from features with so many counts per sample. The log counts of rarer ones hardly vary
# or depend on single counts, which would make the variances of all features less alike.
TYPICAL_COUNTS = 2


@dataclass(frozen=True)
class Replicates:
    """The replicate of each cell.

    Parameters
    ----------
    column
        Name of the column.
    names
        Names of the replicates.
    replicate_c
        Position of the replicate of each cell; -1 if it is missing.
    covariates
        Values of the covariates to adjust for, one row per cell.
    """

    column: str
    names: list[str]
    replicate_c: np.ndarray
    covariates: pd.DataFrame

    def unit_c(self, groups: Groups) -> np.ndarray:
        """Return the unit of each cell: its group × the number of replicates + its replicate, or -1."""
        unit_c = groups.group_c * len(self.names) + self.replicate_c
        return np.where((groups.group_c >= 0) & (self.replicate_c >= 0), unit_c, -1)


@dataclass(frozen=True)
class Samples:
    """The samples of a comparison: first those of the group, then those of the reference.

    Parameters
    ----------
    counts_sf
        Sum of counts.
    library_size_s
        Sum of library sizes.
    is_group_s
        Whether the sample is of the group.
    replicate_s
        Position of the replicate.
    is_paired
        Whether the same replicates are on both sides, in the same order.
    """

    counts_sf: np.ndarray
    library_size_s: np.ndarray
    is_group_s: np.ndarray
    replicate_s: np.ndarray
    is_paired: bool

    def mean_shares(self) -> np.ndarray:
        """Return the share of the counts of each feature on both sides, averaged over replicates, shape ``(k, f)``."""
        share_sf = self.counts_sf / self.library_size_s[:, None]
        return np.stack([share_sf[self.is_group_s == is_group].mean(0) for is_group in (True, False)])


def find_replicates(obs: pd.DataFrame, replicate_key: str, covariates: Sequence[str], groups: Groups) -> Replicates:
    """Return the replicate of each cell and the columns to adjust for.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        A covariate is missing in a cell that is used, or is the column of groups or replicates.
    """
    values = get_column(obs, replicate_key, "replicate_key").astype(object)
    if replicate_key == groups.column:
        raise ValueError(f"replicate_key and groupby are both {replicate_key!r}: they must be different columns")
    used_c = (groups.group_c >= 0) & values.notna().to_numpy()
    names = sorted({str(value) for value in values[used_c]})
    position = {name: i for i, name in enumerate(names)}
    replicate_c = np.array([position.get(str(value), -1) for value in values]) if names else np.full(len(obs), -1)
    replicate_c[~used_c] = -1
    table = pd.DataFrame(index=obs.index)
    for key in covariates:
        if key in (groups.column, replicate_key):
            raise ValueError(f"covariates has {key!r}, which is groupby or replicate_key: leave it out")
        table[key] = get_column(obs, key, "covariate")
        missing_c = table[key].isna().to_numpy() & used_c
        if missing_c.any():
            raise ValueError(
                f"covariate {key!r} is missing in {missing_c.sum()} cells, the first is {obs.index[missing_c][0]!r}: "
                "select cells that have it with at=..., or leave the covariate out"
            )
    return Replicates(replicate_key, names, replicate_c, table)


def samples_of(comparison: Comparison, sums: CountSums, replicates: Replicates) -> Samples:
    """Return the samples of a comparison.

    If at least half of the replicates are on both sides, only these are used, and compared with themselves.

    Parameters
    ----------
    comparison
        The comparison.
    sums
        Sums over units, see `Replicates.unit_c`.
    replicates
        The replicates.

    Raises
    ------
    ValueError
        There are fewer than two replicates on one side.
    """
    n_replicates = len(replicates.names)
    merged = sums.merge(np.kron(comparison.member_sg, np.eye(n_replicates, dtype=np.int64)))
    present_kr = merged.n_cells_g.reshape(2, n_replicates) >= MIN_CELLS
    both_r = present_kr.all(0)
    is_paired = bool(both_r.sum() >= max(MIN_REPLICATES, present_kr.any(0).sum() / 2))
    if is_paired:
        present_kr = np.stack([both_r, both_r])
    for name, present_r in zip((comparison.group, comparison.reference), present_kr, strict=True):
        if present_r.sum() < MIN_REPLICATES:
            names = format_names(np.asarray(replicates.names)[present_r])
            raise ValueError(
                f"{name!r} has {MIN_CELLS} cells or more of only {present_r.sum()} {replicates.column} ({names}), and "
                f"the test needs {MIN_REPLICATES} on each side: leave the group out with groups=[...], or use "
                "method='model', which does not describe differences between replicates"
            )
    sample_s = np.flatnonzero(present_kr.ravel())
    return Samples(
        merged.count_gf[sample_s],
        merged.library_size_g[sample_s],
        sample_s < n_replicates,
        sample_s % n_replicates,
        is_paired,
    )


def covariates_of(samples: Samples, comparison: Comparison, groups: Groups, replicates: Replicates) -> np.ndarray:
    """Return the covariates of each sample as columns of a design."""
    side_c = np.where(groups.group_c >= 0, comparison.member_sg[0][groups.group_c], -1)
    in_comparison_c = (groups.group_c >= 0) & (comparison.member_sg.sum(0)[groups.group_c] > 0)
    masks = [
        in_comparison_c & (side_c == is_group) & (replicates.replicate_c == replicate)
        for is_group, replicate in zip(samples.is_group_s, samples.replicate_s, strict=True)
    ]
    return covariates_of_masks(masks, [replicates.names[replicate] for replicate in samples.replicate_s], replicates)


def covariates_of_masks(masks: Sequence[np.ndarray], names: Sequence[str], replicates: Replicates) -> np.ndarray:
    """Return the covariates of samples as columns of a design: numbers as means, other values as indicators.

    Parameters
    ----------
    masks
        Mask of the cells of each sample.
    names
        Name of the replicate of each sample.
    replicates
        The replicates, with the covariates of each cell.

    Raises
    ------
    ValueError
        A covariate has several values in a sample.
    """
    columns: list[np.ndarray] = []
    for key, values in replicates.covariates.items():
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            columns.append(np.array([values[mask].mean() for mask in masks]))
            continue
        found = [values[mask].astype(str).unique() for mask in masks]
        for unique, name in zip(found, names, strict=True):
            if len(unique) > 1:
                raise ValueError(
                    f"covariate {key!r} has several values ({format_names(unique)}) in {replicates.column} {name!r} on "
                    "one side: a covariate must be constant in each replicate; make replicate_key a column with a "
                    "value for each combination"
                )
        value_s = np.array([unique[0] for unique in found])
        columns += [(value_s == value).astype(float) for value in np.unique(value_s)[1:]]
    return np.stack(columns, 1) if columns else np.zeros((len(masks), 0))


def replicate_effect(samples: Samples, covariate_sp: np.ndarray) -> tuple[ModeratedEffect, np.ndarray]:
    """Test each feature for a difference between the two sides.

    Parameters
    ----------
    samples
        The samples.
    covariate_sp
        Columns to adjust for.

    Returns
    -------
    tuple[ModeratedEffect, np.ndarray]
        Log2 fold changes of the tested features, and a mask of these features.

    Raises
    ------
    ValueError
        The groups cannot be separated from the covariates, or there are too few samples for them.
    """
    tested_f = samples.counts_sf.sum(0) >= MIN_COUNTS
    typical_f = samples.counts_sf[:, tested_f].sum(0) >= TYPICAL_COUNTS * len(samples.counts_sf)
    side_s1 = samples.is_group_s[:, None].astype(float)
    one_s1 = np.ones_like(side_s1)
    library_size_s = trimmed_library_sizes(samples.counts_sf, samples.library_size_s)
    level_sf = log_counts(samples.counts_sf[:, tested_f], library_size_s)
    if samples.is_paired:
        pair_sr = (samples.replicate_s[:, None] == np.unique(samples.replicate_s)).astype(float)
        design_sp = independent_columns(side_s1, np.hstack([pair_sr, covariate_sp]))
    else:
        design_sp = independent_columns(side_s1, np.hstack([one_s1, covariate_sp]))
    weight_sf = precision_weights(level_sf, library_size_s, design_sp)
    if not samples.is_paired:
        contrast_p = np.eye(design_sp.shape[1])[0]
        return moderated_effect(level_sf, weight_sf, design_sp, contrast_p, typical_f), tested_f
    # The difference within a replicate has the sum of both variances.
    half = len(level_sf) // 2
    change_sf, shift_sp = level_sf[:half] - level_sf[half:], covariate_sp[:half] - covariate_sp[half:]
    change_weight_sf = 1 / (1 / weight_sf[:half] + 1 / weight_sf[half:])
    change_design_sp = independent_columns(one_s1[:half], shift_sp)
    contrast_p = np.eye(change_design_sp.shape[1])[0]
    return moderated_effect(change_sf, change_weight_sf, change_design_sp, contrast_p, typical_f), tested_f


def independent_columns(effect_s1: np.ndarray, other_sp: np.ndarray) -> np.ndarray:
    """Return a design of full rank: the effect first, then the other columns without those that add nothing.

    Raises
    ------
    ValueError
        The effect is a combination of the other columns, or no degrees of freedom are left.
    """
    kept: list[np.ndarray] = []
    for column_s in other_sp.T:
        if np.linalg.matrix_rank(np.stack([*kept, column_s], 1)) > len(kept):
            kept.append(column_s)
    design_sp = np.column_stack([effect_s1, *kept])
    if np.linalg.matrix_rank(design_sp) < design_sp.shape[1]:
        raise ValueError(
            "the groups cannot be separated from the covariates, because a combination of covariates has the same "
            "value in all replicates of a group: leave covariates out"
        )
    if len(design_sp) <= design_sp.shape[1]:
        raise ValueError(
            f"{len(design_sp)} samples are too few for {design_sp.shape[1] - 1} columns of covariates: leave "
            "covariates out, or use more replicates"
        )
    return design_sp

"""What `check` measures: one number for each modality and batch, 0 in expectation or as in replicates of the cells.

Axis suffixes: ``b`` batches, ``c`` cells, ``f`` features, ``j`` replicates, ``t`` features with the most counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from celldial.inference.predictive import Discrepancies

__all__ = [
    "CHECKS",
    "MIN_BATCH",
    "Check",
    "Finding",
    "coverages",
    "find",
    "groups_of",
    "holm",
    "measure",
    "measure_all",
]

# Expected counts of a feature, over all cells of a group, below which its dispersion is not measured.
MIN_COUNTS = 20.0
MIN_FEATURES = 10
MIN_BATCH = 30
# Outliers must not decide about a correlation.
MAX_RESIDUAL = 10.0
# Share of the counts that should be inside a predictive interval.
COVERAGE = 0.9


@dataclass(frozen=True)
class Check:
    """A check: its number, how it is displayed, and which deviations matter.

    Parameters
    ----------
    name
        Name in the table.
    tolerance
        Deviation from the replicates, on the scale of the test, that makes no practical difference.
    is_spread
        Whether the number is a root mean square, to which errors of the model can only add. Only values above those of
        the replicates are a failure.
    display
        Converts numbers of the test to those of the table.
    """

    name: str
    tolerance: float
    is_spread: bool = False
    display: Callable[[float], float] = float


CHECKS = {
    check.name: check
    for check in (
        Check("zeros", 0.02),
        Check("dispersion", float(np.log(1.1)), display=lambda value: float(np.exp(value))),
        Check("feature_dispersion", 0.15, is_spread=True),
        Check("mean_variance", 0.05),
        Check("library_size", 0.02),
        Check("correlations", 0.03, is_spread=True),
        Check("coverage", 0.02),
    )
}


@dataclass(frozen=True)
class Finding:
    """The result of one check; bounds and values as in the table, `deviation` on the scale of the test."""

    check: str
    modality: str
    batch: str
    observed: float
    lower: float
    upper: float
    p_value: float
    deviation: float
    matters: bool


def measure(discrepancies: Discrepancies, batch: int | None, is_binary: bool) -> dict[str, float]:
    """Return the number of each check, for the cells of a batch or for all cells."""

    def total(value_bf: np.ndarray) -> np.ndarray:
        total_f: np.ndarray = value_bf.sum(0) if batch is None else value_bf[batch]
        return total_f

    own_c = slice(None) if batch is None else discrepancies.batch_c == batch
    residual_ct = np.clip(discrepancies.residual_ct[own_c], -MAX_RESIDUAL, MAX_RESIDUAL)
    expected_c, library_c = discrepancies.expected_detected_c[own_c], discrepancies.library_size_c[own_c]
    found = {
        "zeros": total(discrepancies.zero_excess_bf).sum() / max(total(discrepancies.zero_room_bf).sum(), 1e-12),
        "library_size": _slope(
            np.log2(library_c), (discrepancies.detected_c[own_c] - expected_c) / max(expected_c.mean(), 1e-12)
        ),
        "correlations": _correlation(residual_ct),
    }
    mean_f = total(discrepancies.mean_bf)
    kept_f = mean_f >= MIN_COUNTS
    if is_binary or kept_f.sum() < MIN_FEATURES:
        return found
    square_f, variance_f = total(discrepancies.square_bf)[kept_f], total(discrepancies.variance_bf)[kept_f]
    ratio_f = np.log(np.maximum(square_f, 1e-12) / variance_f)
    return found | {
        "dispersion": float(ratio_f.mean()),
        "feature_dispersion": float(ratio_f.std()),
        "mean_variance": _slope(np.log(mean_f[kept_f]), ratio_f),
    }


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the slope of a least-squares line; 0 if `x` does not vary."""
    centered = x - x.mean()
    return float(centered @ y / max(float(centered @ centered), 1e-12))


def _correlation(residual_ct: np.ndarray) -> float:
    """Return the root mean square correlation of different features."""
    deviation_t = residual_ct.std(0)
    standard_ct = (residual_ct - residual_ct.mean(0))[:, deviation_t > 0] / deviation_t[deviation_t > 0]
    n_cells, n_features = standard_ct.shape
    if n_features < 2:
        return 0.0
    correlation_tt = standard_ct.T @ standard_ct / n_cells
    sum_of_squares = (correlation_tt**2).sum() - (np.diag(correlation_tt) ** 2).sum()
    return float(np.sqrt(sum_of_squares / (n_features * (n_features - 1))))


def coverages(counts_ct: np.ndarray, drawn_jct: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Return the share of each cell's counts inside the central 90 % interval of their draws, shape ``(c,)`` each.

    The rank of a count among its draws is uniform if both have the same distribution; ties are broken at random. The
    draws are also compared with each other.

    Returns
    -------
    list[numpy.ndarray]
        For the counts, once for each draw that is left out so that all have as many draws; then for each draw.
    """
    n_draws = len(drawn_jct)
    below_jct = np.zeros(drawn_jct.shape, dtype=np.int16)
    equal_jct = np.zeros(drawn_jct.shape, dtype=np.int16)
    for one_ct in drawn_jct:
        below_jct += one_ct < drawn_jct
        equal_jct += one_ct == drawn_jct
    equal_jct -= 1  # a draw equals itself
    below_ct, equal_ct = (drawn_jct < counts_ct).sum(0), (drawn_jct == counts_ct).sum(0)
    ranks = [(below_ct - (one_ct < counts_ct), equal_ct - (one_ct == counts_ct)) for one_ct in drawn_jct]
    ranks += list(zip(below_jct, equal_jct, strict=True))
    return [
        (np.abs((below + random.random(below.shape) * (equal + 1)) / n_draws - 0.5) < COVERAGE / 2).mean(1)
        for below, equal in ranks
    ]


def find(check: Check, place: tuple[str, str], observed: float, replicated: Sequence[float], ratio: float) -> Finding:
    """Compare an observed number with those of replicates.

    Parameters
    ----------
    check
        The check.
    place
        Modality and batch.
    observed
        Number of the observed cells.
    replicated
        Numbers of the replicates.
    ratio
        Cells for each training cell. Parameters that were estimated from few cells deviate by as much as the counts of
        as many cells do.
    """
    replicated_j = np.asarray(replicated, dtype=np.float64)
    inflation = 1 + ratio + 1 / len(replicated_j)
    center, deviation = float(replicated_j.mean()), float(replicated_j.std(ddof=1))
    if check.is_spread:
        center, deviation = center * np.sqrt(1 + ratio), deviation * inflation
    else:
        deviation *= np.sqrt(inflation)
    reference = stats.t(len(replicated_j) - 1)
    standard = (observed - center) / max(deviation, 1e-12)
    if check.is_spread:
        p_value, excess = float(reference.sf(standard)), float(np.sqrt(max(observed**2 - center**2, 0)))
        lower, upper = 0.0, center + reference.ppf(0.95) * deviation
    else:
        p_value, excess = float(2 * reference.sf(abs(standard))), observed - center
        lower, upper = center + reference.ppf(0.025) * deviation, center + reference.ppf(0.975) * deviation
    return Finding(
        check.name,
        *place,
        check.display(observed),
        check.display(lower),
        check.display(upper),
        p_value,
        excess,
        abs(excess) > check.tolerance,
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted for their number, by the method of Holm; missing ones stay missing."""
    p_value = np.asarray(p_values, dtype=np.float64)
    adjusted, known = np.full(len(p_value), np.nan), np.flatnonzero(~np.isnan(p_value))
    order = known[np.argsort(p_value[known], kind="stable")]
    scaled = p_value[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def groups_of(batch_c: np.ndarray, names: Sequence[str]) -> list[tuple[int | None, str]]:
    """Return all cells, as None, and each of several batches that has enough cells, with its name."""
    sizes = np.bincount(batch_c, minlength=len(names))
    large = np.flatnonzero(sizes >= MIN_BATCH).tolist() if (sizes > 0).sum() > 1 else []
    return [(None, "all"), *((batch, names[batch]) for batch in large)]


def measure_all(
    by_modality: Mapping[str, Discrepancies], is_binary: Mapping[str, bool], batches: Sequence[tuple[int | None, str]]
) -> dict[tuple[str, str, str], float]:
    """Return the number of each check in each modality and batch, by check, modality and batch."""
    found = {}
    for modality, discrepancies in by_modality.items():
        for batch, name in batches:
            if batch is None or (discrepancies.batch_c == batch).sum() >= MIN_BATCH:
                numbers = measure(discrepancies, batch, is_binary[modality])
                found.update({(check, modality, name): value for check, value in numbers.items()})
    return found

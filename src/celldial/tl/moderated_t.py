"""Moderated t-tests of pseudobulk counts: weighted regression of log counts, with variances shared between features.

The unit is a sample: the sum of the cells of one replicate (such as a donor) on one side of a comparison. The steps are
those of edgeR and limma: library sizes without the features that change [3]_, log counts per million, precision weights
from the trend of the variance with the mean [1]_, weighted least squares, and variances that are shrunk to a common
value [2]_.

Axis suffixes: ``f`` features, ``p`` columns of the design, ``s`` samples.

References
----------
.. [1] Law et al. (2014), voom: precision weights unlock linear model analysis tools for RNA-seq read counts,
   doi:10.1186/gb-2014-15-2-r29.
.. [2] Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression in microarray
   experiments, doi:10.2202/1544-6115.1027.
.. [3] Robinson and Oshlack (2010), A scaling normalization method for differential expression analysis of RNA-seq
   data, doi:10.1186/gb-2010-11-3-r25.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

__all__ = [
    "PRIOR_COUNT",
    "ModeratedEffect",
    "log_counts",
    "moderated_effect",
    "precision_weights",
    "shrink_variances",
    "trimmed_center",
    "trimmed_library_sizes",
]

# Added to each count before the logarithm.
PRIOR_COUNT = 0.5
# The trend of the variance is a line through the means of bins of at least so many features, and at most so many bins.
MIN_BIN_SIZE, MAX_BINS = 50, 30
# Smaller variances, relative to their median, are rounding errors.
MIN_RELATIVE_VARIANCE = 1e-5
MAX_NEWTON_STEPS = 50
# Share of the features that is left out at either end of the fold changes, and the least number of features to average.
TRIM, MIN_FEATURES = 0.3, 20
# Features with fewer expected counts are left out of the average: the logarithm of their counts is biased.
MIN_EXPECTED = 5.0


class ModeratedEffect(NamedTuple):
    """A coefficient of the regression of each feature.

    Parameters
    ----------
    estimate_f
        The coefficient.
    deviation_f
        Its standard error, from the shrunken variance.
    degrees
        Degrees of freedom of the t-distribution, infinite if all features have the same variance.
    """

    estimate_f: np.ndarray
    deviation_f: np.ndarray
    degrees: float


def trimmed_center(change_f: np.ndarray, weight_f: np.ndarray) -> float:
    """Return the change of most features: the weighted mean of fold changes without both ends.

    If some features take a larger share of the counts, all others take a smaller one. Only few features shift the
    trimmed mean [3]_. It is 0 for fewer than 20 features.

    Parameters
    ----------
    change_f
        Log fold changes.
    weight_f
        Inverse variances.
    """
    if len(change_f) < MIN_FEATURES:
        return 0.0
    low, high = np.quantile(change_f, [TRIM, 1 - TRIM])
    kept_f = (low <= change_f) & (change_f <= high)
    return float(np.average(change_f[kept_f], weights=weight_f[kept_f]))


def trimmed_library_sizes(counts_sf: np.ndarray, library_size_s: np.ndarray) -> np.ndarray:
    """Return library sizes in which the share of most features is the same in all samples, shape ``(s,)``.

    Each sample is compared with the sum of all samples, by the trimmed mean of log fold changes. The geometric mean of
    the factors is 1.
    """
    share_f = counts_sf.sum(0) / library_size_s.sum()
    center_s = np.zeros(len(counts_sf))
    for s, (count_f, size) in enumerate(zip(counts_sf, library_size_s, strict=True)):
        used_f = (share_f * size >= MIN_EXPECTED) & (count_f > 0)
        change_f = np.log(count_f[used_f] / (share_f[used_f] * size))
        center_s[s] = trimmed_center(change_f, share_f[used_f])
    adjusted_s: np.ndarray = library_size_s * np.exp(center_s - center_s.mean())
    return adjusted_s


def log_counts(counts_sf: np.ndarray, library_size_s: np.ndarray) -> np.ndarray:
    """Return log2 counts per million of each sample, shape ``(s, f)``."""
    share_sf = (counts_sf + PRIOR_COUNT) / (library_size_s[:, None] + 2 * PRIOR_COUNT)
    level_sf: np.ndarray = np.log2(1e6 * share_sf)
    return level_sf


def precision_weights(level_sf: np.ndarray, library_size_s: np.ndarray, design_sp: np.ndarray) -> np.ndarray:
    """Return the inverse variance that the trend predicts for each log count, shape ``(s, f)``.

    Parameters
    ----------
    level_sf
        Log2 counts per million.
    library_size_s
        Total count of each sample.
    design_sp
        Design matrix of full rank.
    """
    coefficient_pf = np.linalg.lstsq(design_sp, level_sf, rcond=None)[0]
    fitted_sf = design_sp @ coefficient_pf
    degrees = max(1, len(design_sp) - design_sp.shape[1])
    deviation_f = np.sqrt(((level_sf - fitted_sf) ** 2).sum(0) / degrees)
    to_log2_count_s = np.log2(library_size_s + 2 * PRIOR_COUNT) - np.log2(1e6)
    mean_f = level_sf.mean(0) + to_log2_count_s.mean()
    position_b, root_b = _binned_means(mean_f, np.sqrt(deviation_f))
    root_sf = np.interp(fitted_sf + to_log2_count_s[:, None], position_b, root_b)
    weight_sf: np.ndarray = np.maximum(root_sf, 1e-3) ** -4.0
    return weight_sf


def _binned_means(x_f: np.ndarray, y_f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of `x_f` and `y_f` in bins of features with similar `x_f`."""
    n_bins = min(MAX_BINS, max(1, len(x_f) // MIN_BIN_SIZE))
    parts = np.array_split(np.argsort(x_f, kind="stable"), n_bins)
    return np.array([x_f[part].mean() for part in parts]), np.array([y_f[part].mean() for part in parts])


def moderated_effect(
    level_sf: np.ndarray,
    weight_sf: np.ndarray,
    design_sp: np.ndarray,
    contrast_p: np.ndarray,
    typical_f: np.ndarray | None = None,
) -> ModeratedEffect:
    """Fit a weighted regression to each feature, and return a contrast of its coefficients.

    Parameters
    ----------
    level_sf
        Values to explain.
    weight_sf
        Inverse variance of each value, up to a factor of each feature.
    design_sp
        Design matrix of full rank, with fewer columns than samples.
    contrast_p
        Weights of the coefficients.
    typical_f
        Mask of the features from which the common variance is learned; all by default.
    """
    precision_fpp = np.einsum("sp,sf,sq->fpq", design_sp, weight_sf, design_sp, optimize=True)
    covariance_fpp = np.linalg.inv(precision_fpp)
    product_fp = np.einsum("sp,sf->fp", design_sp, weight_sf * level_sf, optimize=True)
    coefficient_fp = (covariance_fpp @ product_fp[:, :, None])[:, :, 0]
    residual_sf = level_sf - design_sp @ coefficient_fp.T
    degrees = len(design_sp) - design_sp.shape[1]
    variance_f, prior_degrees = shrink_variances((weight_sf * residual_sf**2).sum(0) / degrees, degrees, typical_f)
    unscaled_f = np.einsum("p,fpq,q->f", contrast_p, covariance_fpp, contrast_p)
    # No more degrees of freedom than all features have together.
    total_degrees = min(degrees + prior_degrees, degrees * level_sf.shape[1])
    return ModeratedEffect(coefficient_fp @ contrast_p, np.sqrt(unscaled_f * variance_f), float(total_degrees))


def shrink_variances(
    variance_f: np.ndarray, degrees: int, typical_f: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Shrink variances to a common value by the empirical Bayes method of Smyth (2004).

    Parameters
    ----------
    variance_f
        Residual variances.
    degrees
        Degrees of freedom of each.
    typical_f
        Mask of the features from which the common value is learned; all by default.

    Returns
    -------
    tuple[np.ndarray, float]
        Posterior variances, and the degrees of freedom of the prior, which can be infinite.
    """
    floor = MIN_RELATIVE_VARIANCE * np.median(variance_f)
    variance_f = np.maximum(variance_f, max(floor, np.finfo(float).tiny))
    typical = variance_f if typical_f is None or typical_f.sum() < 2 else variance_f[typical_f]
    if len(typical) < 2:
        return variance_f, 0.0
    # The log of a scaled F-distributed variance has mean and variance in closed form.
    log_f = np.log(typical) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = log_f.var(ddof=1) - special.polygamma(1, degrees / 2)
    if excess <= 0:
        return np.full_like(variance_f, np.exp(log_f.mean())), np.inf
    prior_degrees = 2 * _trigamma_inverse(float(excess))
    prior = np.exp(log_f.mean() + special.digamma(prior_degrees / 2) - np.log(prior_degrees / 2))
    return (degrees * variance_f + prior_degrees * prior) / (degrees + prior_degrees), prior_degrees


def _trigamma_inverse(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma, which is convex."""
    if value > 1e7:
        return 1 / float(np.sqrt(value))
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(MAX_NEWTON_STEPS):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x

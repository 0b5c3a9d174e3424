"""Adaptive shrinkage: the distribution of the true effects of all features, and local false sign rates from it.

The true effects are a mixture of zero and of normal distributions around zero, whose weights are learned from the
estimates of all features together [1]_.

Axis suffixes: ``f`` features, ``k`` components of the mixture, the first of which is zero.

References
----------
.. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, ndtr
from scipy.special import ndtri_exp as norm_quantile
from scipy.stats import false_discovery_control, norm, t

__all__ = ["adjusted", "local_false_sign_rate", "normal_deviation", "tail_probability"]

# Counts that the prior adds to the weight of zero, so that it is rather too large than too small.
NULL_COUNTS = 10.0
# Ratio of neighboring standard deviations of the mixture.
RATIO = 2.0
MAX_STEPS, TOLERANCE = 500, 1e-5


def tail_probability(
    estimate_f: np.ndarray, deviation_f: np.ndarray, delta: float = 0.0, degrees: float = np.inf
) -> np.ndarray:
    """Return the two-sided p-value of the hypothesis that an effect is at most `delta` in absolute value.

    Parameters
    ----------
    estimate_f, deviation_f
        Effects and their standard errors.
    delta
        Largest effect under the hypothesis.
    degrees
        Degrees of freedom of the t-distribution.

    References
    ----------
    McCarthy and Smyth (2009), Testing significance relative to a fold-change threshold is a TREAT,
    doi:10.1093/bioinformatics/btp053.
    """
    distribution = norm() if np.isinf(degrees) else t(degrees)
    size_f = np.abs(estimate_f)
    near_f = distribution.sf((size_f - delta) / deviation_f)
    far_f = distribution.sf((size_f + delta) / deviation_f)
    p_value_f: np.ndarray = np.minimum(near_f + far_f, 1.0)
    return p_value_f


def normal_deviation(estimate_f: np.ndarray, deviation_f: np.ndarray, degrees: float) -> np.ndarray:
    """Return the standard errors of normal distributions that give the p-values of t-distributions."""
    if np.isinf(degrees):
        return deviation_f
    statistic_f = np.maximum(np.abs(estimate_f) / deviation_f, 1e-6)
    # From the logarithm, because p-values can be too small for a float.
    score_f = -norm_quantile(t(degrees).logsf(statistic_f))
    result_f: np.ndarray = deviation_f * statistic_f / np.maximum(score_f, 1e-6)
    return result_f


def adjusted(p_value_f: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by the method of Benjamini and Hochberg (1995); NaN stays NaN."""
    result_f = np.full_like(p_value_f, np.nan)
    known_f = ~np.isnan(p_value_f)
    if known_f.any():
        result_f[known_f] = false_discovery_control(p_value_f[known_f])
    return result_f


def local_false_sign_rate(estimate_f: np.ndarray, deviation_f: np.ndarray, delta: float = 0.0) -> np.ndarray:
    """Return the posterior probability that an effect does not exceed `delta` in the direction of its estimate.

    Parameters
    ----------
    estimate_f, deviation_f
        Effects and their standard errors, finite.
    delta
        Size that an effect should exceed.
    """
    scale_k = _grid(estimate_f, deviation_f)
    log_density_fk = _log_densities(estimate_f, deviation_f, scale_k)
    log_weight_k = _log_weights(log_density_fk)
    log_posterior_fk = log_density_fk + log_weight_k
    posterior_fk = np.exp(log_posterior_fk - logsumexp(log_posterior_fk, axis=1, keepdims=True))
    variance_f1, scale2_k = deviation_f[:, None] ** 2, scale_k[1:] ** 2
    mean_fk = np.abs(estimate_f)[:, None] * scale2_k / (scale2_k + variance_f1)
    deviation_fk = np.sqrt(scale2_k * variance_f1 / (scale2_k + variance_f1))
    # The posterior is symmetric around an estimate of 0, so the more probable direction is that of the estimate. The
    # lower tail is computed as such, because the digits of one minus a probability close to 1 would cancel.
    below_fk = ndtr((delta - mean_fk) / deviation_fk)
    rate_f: np.ndarray = posterior_fk[:, 0] + (posterior_fk[:, 1:] * below_fk).sum(1)
    return np.minimum(rate_f, 1.0)


def _grid(estimate_f: np.ndarray, deviation_f: np.ndarray) -> np.ndarray:
    """Return the standard deviations of the mixture: zero, then from the standard errors to above the largest effect.

    Effects far below all standard errors would be indistinguishable from zero, and would count as half right.
    """
    low = float(np.quantile(deviation_f, 0.05))
    excess = float((estimate_f**2 - deviation_f**2).max(initial=0.0))
    high = 2 * max(np.sqrt(max(excess, 0.0)), 4 * low)
    n = int(np.ceil(np.log(high / low) / np.log(RATIO))) + 1
    return np.concatenate([[0.0], high / RATIO ** np.arange(n)[::-1]])


def _log_densities(estimate_f: np.ndarray, deviation_f: np.ndarray, scale_k: np.ndarray) -> np.ndarray:
    """Return the log density of each estimate under each component, shape ``(f, k)``."""
    variance_fk = deviation_f[:, None] ** 2 + scale_k**2
    return -0.5 * (estimate_f[:, None] ** 2 / variance_fk + np.log(variance_fk))


def _log_weights(log_density_fk: np.ndarray) -> np.ndarray:
    """Return the log weights of the components, by expectation maximization."""
    density_fk = np.exp(log_density_fk - log_density_fk.max(1, keepdims=True))
    n_features, n_components = density_fk.shape
    prior_k = np.zeros(n_components)
    prior_k[0] = NULL_COUNTS
    weight_k = np.full(n_components, 0.5 / max(1, n_components - 1))
    weight_k[0] = 0.5
    for _ in range(MAX_STEPS):
        joint_fk = density_fk * weight_k
        count_k = (joint_fk / joint_fk.sum(1, keepdims=True)).sum(0) + prior_k
        updated_k = count_k / (n_features + NULL_COUNTS)
        change = np.abs(updated_k - weight_k).max()
        weight_k = updated_k
        if change < TOLERANCE:
            break
    return np.log(np.maximum(weight_k, 1e-300))

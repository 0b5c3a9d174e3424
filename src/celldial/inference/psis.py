"""The tail of importance weights: whether an importance-weighted bound can be trusted.

Axis suffixes: ``b`` points of a grid, ``c`` cells, ``n`` draws or the largest weights among them.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["RELIABLE_SHAPE", "pareto_shape"]

RELIABLE_SHAPE = 0.7
"""Up to this shape, the mean of importance weights converges at a practical rate."""

# A weak prior of the shape, 0.5, with the weight of this many draws.
PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5


def pareto_shape(log_weight_nc: np.ndarray) -> np.ndarray:
    """Return the shape k of a generalized Pareto distribution fitted to each cell's largest importance weights.

    Parameters
    ----------
    log_weight_nc
        Logs of importance weights, at least 25 draws of each cell, shape ``(n, c)``.

    Returns
    -------
    numpy.ndarray
        The shape k, shape ``(c,)``; -inf if the largest weights are equal. Weights with k above 1 have no mean.

    References
    ----------
    Vehtari et al. (2024), Pareto smoothed importance sampling, Journal of Machine Learning Research 25 (72), 1-58.
    """
    n_draws = len(log_weight_nc)
    n_tail = math.ceil(min(0.2 * n_draws, 3 * math.sqrt(n_draws)))
    ordered_nc = np.sort(log_weight_nc.astype(np.float64), axis=0)
    weight_nc = np.exp(ordered_nc[-n_tail - 1 :] - ordered_nc[-1])
    return np.array([_shape(exceedance_n) for exceedance_n in (weight_nc[1:] - weight_nc[0]).T])


def _shape(value_n: np.ndarray) -> float:
    """Return the shape of a generalized Pareto distribution of ascending values.

    The estimator is that of Zhang and Stephens (2009), doi:10.1198/tech.2009.08017.
    """
    n_values, largest = len(value_n), value_n[-1]
    if largest <= 1e-12:
        return -math.inf
    n_grid = 30 + int(math.sqrt(n_values))
    quartile = max(value_n[int(n_values / 4 + 0.5) - 1], 1e-12 * largest)
    position_b = 1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))
    ratio_b = 1 / largest + position_b / (3 * quartile)
    shape_b = np.log1p(-ratio_b[:, None] * value_n).mean(1)
    log_likelihood_b = n_values * (np.log(-ratio_b / shape_b) - shape_b - 1)
    weight_b = np.exp(log_likelihood_b - log_likelihood_b.max())
    ratio = float(weight_b @ ratio_b / weight_b.sum())
    shape = float(np.log1p(-ratio * value_n).mean())
    return (n_values * shape + PRIOR_DRAWS * PRIOR_SHAPE) / (n_values + PRIOR_DRAWS)

"""A test of whether the curve of a feature is flat, which allows for the choice of its highest and lowest step.

Every noisy curve has a highest and a lowest step, so the change between these two says little. The test instead
compares a few contrasts of the whole curve, which are chosen before it is seen, with their posterior covariance.

Axis suffixes: ``f`` features, ``k`` and ``l`` contrasts, ``s`` steps.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre
from scipy.stats import chi2

from celldial.model.periodic import N_HARMONICS
from celldial.utils.fourier import fourier_features

__all__ = ["TOLERANCE", "contrasts", "flat_p_value"]

# Contrasts of an open path: polynomials up to this degree.
MAX_DEGREE = 2
# Standard deviation of the coefficients of a closed curve that count as flat, on the scale of natural logarithms.
# Differences between groups of cells that have other angles leak into the circle to this extent.
TOLERANCE = 0.05


def contrasts(n_steps: int, closed: bool) -> np.ndarray:
    """Return the weights of the steps in each contrast, shape ``(k, s)``; those of a contrast sum to 0.

    A contrast is the coefficient of a function of the position, which has a range of at most 2: the harmonics of the
    decoder on a closed path, whose last step repeats the first and has no weight; Legendre polynomials on an open path.
    There are fewer contrasts than distinct steps.
    """
    n_distinct = n_steps - 1 if closed else n_steps
    if closed:
        function_sk = fourier_features(np.arange(n_distinct) * (2 * np.pi / n_distinct), N_HARMONICS)
    else:
        function_sk = legendre.legvander(np.linspace(-1, 1, n_steps), MAX_DEGREE)[:, 1:]
    function_sk = np.column_stack([np.ones(n_distinct), function_sk[:, : max(0, n_distinct - 1)]])
    weight_ks = np.linalg.pinv(function_sk)[1:]
    return np.pad(weight_ks, ((0, 0), (0, n_steps - n_distinct)))


def flat_p_value(mean_sf: np.ndarray, contrast_ks: np.ndarray, covariance_fkl: np.ndarray, closed: bool) -> np.ndarray:
    """Return the p-value of the hypothesis that each feature's curve is flat, by a chi-squared test of all contrasts.

    Parameters
    ----------
    mean_sf
        Mean at each step, above 0.
    contrast_ks
        Weights of the steps in each contrast.
    covariance_fkl
        Posterior covariance of the contrasts of the natural logarithm of the mean.
    closed
        Whether the path is closed. Then small deviations count as flat, see `TOLERANCE`.

    Returns
    -------
    numpy.ndarray
        For two steps it is the two-sided p-value of the change, so half of it is the posterior probability that the
        change has the other sign.
    """
    n_contrasts = len(contrast_ks)
    if n_contrasts == 0:
        return np.ones(mean_sf.shape[1])
    value_fk = np.log(mean_sf.astype(float)).T @ contrast_ks.T
    tolerance = TOLERANCE**2 if closed else 0.0
    covariance_fkl = covariance_fkl.astype(float) + (tolerance + 1e-12) * np.eye(n_contrasts)
    statistic_f = (value_fk * np.linalg.solve(covariance_fkl, value_fk[:, :, None])[:, :, 0]).sum(1)
    p_value_f: np.ndarray = chi2.sf(statistic_f, n_contrasts)
    return p_value_f

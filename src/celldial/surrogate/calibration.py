r"""Calibration of inferred parameters by simulations that the surrogate was not fitted to.

Cells of a surrogate differ slightly from those of the simulator, and many cells together show such differences. The
location l of the likelihood in a coordinate u is therefore :math:`l \sim N(u + b, w + r)`, with the variance w that
follows from the cells, and with a bias b and a variance r of the surrogate. Both are inferred from the calibration
settings, whose u is known, on a grid.

Axis suffixes: ``b`` values of the bias, ``j`` values of the variance, ``k`` parameters, ``n`` draws, ``s`` settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibration", "NormalPosterior", "fit_calibration", "uncalibrated"]

Array = NDArray[np.floating]

# Prior standard deviation of the bias, and the grid.
BIAS_SD = 0.3
BIASES = np.linspace(-1, 1, 41)
VARIANCES = np.concatenate([[0.0], np.geomspace(1e-4, 4, 40)])
# Smallest precision of the likelihood, relative to the prior.
MIN_PRECISION = 1e-6


@dataclass(frozen=True)
class NormalPosterior:
    """A normal posterior of the coordinates, under a standard normal prior.

    Parameters
    ----------
    mean_k
        Mean.
    covariance_kk
        Covariance.
    """

    mean_k: Array
    covariance_kk: Array

    def likelihood(self) -> tuple[Array, Array]:
        """Return location and covariance of the likelihood, from which the prior is removed."""
        precision_kk = np.linalg.inv(self.covariance_kk)
        value_k, vector_kk = np.linalg.eigh(precision_kk - np.eye(len(precision_kk)))
        covariance_kk = (vector_kk / np.maximum(value_k, MIN_PRECISION)) @ vector_kk.T
        return covariance_kk @ precision_kk @ self.mean_k, covariance_kk


@dataclass(frozen=True)
class Calibration:
    """Posterior of bias and variance of the surrogate, for each parameter.

    Parameters
    ----------
    weight_kbj
        Posterior probabilities on the grid.
    """

    weight_kbj: Array

    def draw(self, posterior: NormalPosterior, n_draws: int, random: np.random.Generator) -> Array:
        """Return draws of the coordinates from the calibrated posterior, shape ``(n, k)``."""
        n_parameters = len(self.weight_kbj)
        bias_nk, variance_nk = np.empty((2, n_draws, n_parameters))
        for k, weight_bj in enumerate(self.weight_kbj):
            index_n = random.choice(weight_bj.size, n_draws, p=weight_bj.ravel() / weight_bj.sum())
            bias_index_n, variance_index_n = np.unravel_index(index_n, weight_bj.shape)
            bias_nk[:, k], variance_nk[:, k] = BIASES[bias_index_n], VARIANCES[variance_index_n]
        location_k, covariance_kk = posterior.likelihood()
        precision_nkk = np.linalg.inv(covariance_kk + variance_nk[:, :, None] * np.eye(n_parameters))
        covariance_nkk = np.linalg.inv(np.eye(n_parameters) + precision_nkk)
        mean_nk = (covariance_nkk @ precision_nkk @ (location_k - bias_nk)[..., None])[..., 0]
        noise_nk1 = random.standard_normal((n_draws, n_parameters, 1))
        draws_nk: Array = mean_nk + (np.linalg.cholesky(covariance_nkk) @ noise_nk1)[..., 0]
        return draws_nk

    @property
    def deviation_k(self) -> Array:
        """Standard deviation of the surrogate's error in each coordinate."""
        mean_k: Array = np.sqrt((self.weight_kbj.sum(1) * VARIANCES).sum(1))
        return mean_k


def uncalibrated(n_parameters: int) -> Calibration:
    """Return a calibration of a surrogate without error."""
    weight_kbj = np.zeros((n_parameters, len(BIASES), len(VARIANCES)))
    weight_kbj[:, len(BIASES) // 2, 0] = 1
    return Calibration(weight_kbj)


def fit_calibration(true_sk: Array, posteriors: list[NormalPosterior]) -> Calibration:
    """Infer bias and variance from posteriors of settings that are known.

    Parameters
    ----------
    true_sk
        Coordinates of the settings.
    posteriors
        Posterior of the coordinates of each setting, without calibration.
    """
    weights = []
    for k in range(true_sk.shape[1]):
        variance_s = np.array([min(each.covariance_kk[k, k], 1 - MIN_PRECISION) for each in posteriors])
        mean_s = np.array([each.mean_k[k] for each in posteriors])
        location_s, own_s = mean_s / (1 - variance_s), variance_s / (1 - variance_s)
        total_sbj = (own_s[:, None, None] + VARIANCES) * np.ones((1, len(BIASES), 1))
        posterior_sbj = total_sbj / (1 + total_sbj)
        center_sbj = posterior_sbj * (location_s[:, None, None] - BIASES[:, None]) / total_sbj
        error_sbj = true_sk[:, k, None, None] - center_sbj
        log_p_bj = -0.5 * (error_sbj**2 / posterior_sbj + np.log(posterior_sbj)).sum(0)
        log_p_bj -= 0.5 * (BIASES[:, None] / BIAS_SD) ** 2
        weight_bj = np.exp(log_p_bj - log_p_bj.max())
        weights.append(weight_bj / weight_bj.sum())
    return Calibration(np.stack(weights))

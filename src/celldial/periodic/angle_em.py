"""Expectation maximization of angles: expression of each gene is a Fourier series of the angle plus noise.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features, ``j`` angles of the grid, ``k`` coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from celldial.utils.fourier import fourier_features

__all__ = ["ANGLE_J", "AngleEstimate", "AngleModel", "fit_em", "residual_variance"]

Array = NDArray[np.floating]

N_EM_ANGLES = 96
ANGLE_J = np.arange(N_EM_ANGLES) * (2 * np.pi / N_EM_ANGLES)
"""Grid of angles for which posterior probabilities are computed."""

N_EM_HARMONICS = 2
HARMONIC_PRECISION = (1.0, 16.0)
"""Prior precision of the coefficients of each harmonic, as a number of cells. The second harmonic should be smaller."""

CONSTANT_PRECISION = 1e-3
"""Prior precision of the constant, as a number of cells."""

N_ITERATIONS = 15
INITIAL_CONCENTRATION = 8.0
"""Concentration of the posteriors that the EM starts from, around the given angles."""

SMOOTHING_CONCENTRATION = 10.0
"""Concentration of the von Mises kernel that smooths the density of angles."""

MIN_DENSITY, MIN_VARIANCE, MIN_TOTAL_VARIANCE = 1e-6, 1e-3, 1e-6
"""Small numbers that keep logarithms and quotients finite."""


@dataclass(frozen=True)
class AngleEstimate:
    """Estimated angles of cells.

    Parameters
    ----------
    angle_c
        Posterior mean direction, from 0 to 2π.
    resultant_length_c
        Mean resultant length of the posterior, from 0 (unknown angle) to 1 (certain angle).
    active_c
        Probability that the cell is active.
    """

    angle_c: Array
    resultant_length_c: Array
    active_c: Array


@dataclass(frozen=True)
class AngleModel:
    """Gaussian expression of genes, given the angle.

    Parameters
    ----------
    mean_jf
        Mean of each gene at each angle of the grid.
    variance_f
        Variance of each gene.
    log_prior_j
        Log density of the angles on the grid.
    temper
        Power of the likelihood, from 0 to 1. Below 1, it corrects for genes that depend on each other.
    """

    mean_jf: Array
    variance_f: Array
    log_prior_j: Array
    temper: float

    def posterior(self, value_cf: Array) -> Array:
        """Return the posterior probability of each angle of the grid, shape ``(c, j)``."""
        log_cj = value_cf @ (self.mean_jf / self.variance_f).T - 0.5 * (self.mean_jf**2 / self.variance_f).sum(1)
        log_cj = self.temper * log_cj + self.log_prior_j
        posterior_cj = np.exp(log_cj - log_cj.max(1, keepdims=True))
        return posterior_cj / posterior_cj.sum(1, keepdims=True)

    def infer(self, value_cf: Array) -> AngleEstimate:
        """Return the estimated angles of cells, all of them active."""
        return circular_summary(self.posterior(value_cf))


def circular_summary(posterior_cj: Array) -> AngleEstimate:
    """Return mean direction and mean resultant length of posteriors on the grid."""
    mean_c = posterior_cj @ np.exp(1j * ANGLE_J)
    return AngleEstimate(np.angle(mean_c) % (2 * np.pi), np.abs(mean_c), np.ones(len(mean_c)))


def fit_em(value_cf: Array, angle_c: Array, temper: float) -> tuple[AngleModel, AngleEstimate]:
    """Fit a model of angles by expectation maximization, and return it with the angles of the cells.

    Parameters
    ----------
    value_cf
        Standardized expression of the genes.
    angle_c
        Angles to start from.
    temper
        Power of the likelihood; see `AngleModel`.
    """
    basis_jk = design_matrix(ANGLE_J)
    precision_k = np.array([CONSTANT_PRECISION, *np.repeat(HARMONIC_PRECISION, 2)], dtype=np.float32)
    near_cj = np.exp(INITIAL_CONCENTRATION * (np.cos(ANGLE_J - angle_c[:, None]) - 1))
    posterior_cj = (near_cj / near_cj.sum(1, keepdims=True)).astype(np.float32)
    kernel_j = np.exp(SMOOTHING_CONCENTRATION * (np.cos(ANGLE_J) - 1))
    kernel_spectrum = np.fft.rfft(kernel_j / kernel_j.sum())
    square_f = (value_cf**2).sum(0)
    for _ in range(N_ITERATIONS):
        weight_j, total_jf = posterior_cj.sum(0), posterior_cj.T @ value_cf
        precision_kk = (basis_jk * weight_j[:, None]).T @ basis_jk + np.diag(precision_k)
        mean_jf = basis_jk @ np.linalg.solve(precision_kk, basis_jk.T @ total_jf)
        residual_f = weight_j @ mean_jf**2 - 2 * (total_jf * mean_jf).sum(0) + square_f
        variance_f = np.maximum(residual_f / len(value_cf), MIN_VARIANCE)
        share_j = posterior_cj.mean(0, dtype=np.float64)
        density_j = np.fft.irfft(np.fft.rfft(share_j) * kernel_spectrum, N_EM_ANGLES) + MIN_DENSITY
        model = AngleModel(mean_jf, variance_f, np.log(density_j).astype(np.float32), temper)
        posterior_cj = model.posterior(value_cf)
    return model, circular_summary(posterior_cj)


def design_matrix(angle_c: Array) -> Array:
    """Return a constant, then cosine and sine of each harmonic, float32, shape ``(c, k)``."""
    return np.column_stack([np.ones_like(angle_c), fourier_features(angle_c, N_EM_HARMONICS)]).astype(np.float32)


def residual_variance(value_cf: Array, angle_c: Array) -> Array:
    """Return the fraction of each gene's variance that a Fourier series of the angle does not explain."""
    design_ck = design_matrix(angle_c)
    residual_cf = value_cf - design_ck @ np.linalg.lstsq(design_ck, value_cf, rcond=None)[0]
    fraction_f: Array = (residual_cf**2).mean(0) / np.maximum(value_cf.var(0), MIN_TOTAL_VARIANCE)
    return fraction_f

"""Summary of posterior draws: rates of genes, speed around the circle, durations of phases, ratios of speeds.

Axis suffixes: ``f`` genes, ``g`` groups, ``j`` angles, ``k`` phases, ``n`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from celldial.inference.kinetics.counts import N_BINS
from celldial.inference.kinetics.fit import KineticsPosterior
from celldial.inference.kinetics.parameters import GAMMA_SD, LOG_BETA, LOG_GAMMA, SPEED_SD

__all__ = ["KineticsDraws", "Quantiles", "draw_kinetics", "quantiles"]

LEVEL = 0.9
# A posterior with this share of the standard deviation of the prior is hardly informed by the counts.
UNINFORMED = 0.8
# Finer than the grid of the counts, so that phases start between grid points.
N_FINE = 720


@dataclass(frozen=True)
class Quantiles:
    """Median and 90 % credible interval.

    Parameters
    ----------
    median, lower, upper
        Arrays of the same shape.
    """

    median: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def quantiles(value_n: np.ndarray) -> Quantiles:
    """Return median and 90 % interval over the first axis.

    The median and not the mean: the mean of a log-normal depends on its scale, and is dominated by the tail.
    """
    return Quantiles(*np.quantile(value_n, [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))


@dataclass(frozen=True)
class KineticsDraws:
    """Draws from the posterior, in units of the geometric mean of the degradation rates.

    Parameters
    ----------
    log_beta_nf, log_gamma_nf
        Log rates of splicing and of degradation.
    log_speed_ngj
        Log speed at `N_FINE` angles, in radians per unit of time.
    log_duration_ng
        Log duration of a cycle.
    curve_lgjf
        Unspliced and spliced counts of a cell of size 1 at the posterior mean, at `N_BINS` angles.
    """

    log_beta_nf: np.ndarray
    log_gamma_nf: np.ndarray
    log_speed_ngj: np.ndarray
    log_duration_ng: np.ndarray
    curve_lgjf: np.ndarray

    def speed_on_grid(self) -> np.ndarray:
        """Return the log speed at angles of the grid of the curves, shape ``(n, g, j)``."""
        index_j = np.arange(N_BINS) * N_FINE // N_BINS
        return self.log_speed_ngj[:, :, index_j]

    def phase_shares(self, phase_j: np.ndarray, n_phases: int) -> np.ndarray:
        """Return the share of the cycle's duration in each phase, shape ``(n, g, k)``.

        Parameters
        ----------
        phase_j
            Index of the phase at each of the `N_FINE` angles.
        n_phases
            Number of phases.
        """
        slowness_ngj = np.exp(-self.log_speed_ngj)
        total_ngk = np.stack([slowness_ngj[:, :, phase_j == k].sum(-1) for k in range(n_phases)], -1)
        share_ngk: np.ndarray = total_ngk / total_ngk.sum(-1, keepdims=True)
        return share_ngk

    def uninformed_groups(self) -> np.ndarray:
        """Return a mask of the groups whose duration is about as uncertain as under the prior."""
        return np.asarray(self.log_duration_ng.std(0) > UNINFORMED * SPEED_SD)

    def uninformed_genes(self) -> np.ndarray:
        """Return a mask of the genes whose degradation rate is about as uncertain as under the prior."""
        return np.asarray(self.log_gamma_nf.std(0) > UNINFORMED * GAMMA_SD)


def draw_kinetics(result: KineticsPosterior, n_samples: int, seed: int) -> KineticsDraws:
    """Draw from the posterior of the kinetic parameters, and choose the unit of time.

    Only products of rates and times enter the equations, so that all rates have a common factor that the counts do not
    determine. It is chosen in each draw so that the geometric mean of the degradation rates is 1.
    """
    layout, posterior = result.layout, result.posterior
    draw_np = posterior.sample(n_samples, torch.Generator().manual_seed(seed))
    speed_nm, local_nfd = layout.split(draw_np)
    unit_n1 = local_nfd[..., LOG_GAMMA].mean(1, keepdim=True)
    log_speed_ngj = layout.log_speed(speed_nm, N_FINE) - unit_n1[..., None]
    log_duration_ng = (2 * np.pi * (-log_speed_ngj).exp().mean(-1)).log()
    curve_lgjf = layout.log_curves(*layout.split(posterior.mean_p)).exp()
    return KineticsDraws(
        (local_nfd[..., LOG_BETA] - unit_n1).numpy(),
        (local_nfd[..., LOG_GAMMA] - unit_n1).numpy(),
        log_speed_ngj.numpy(),
        log_duration_ng.numpy(),
        curve_lgjf.numpy(),
    )

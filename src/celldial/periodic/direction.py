"""Direction and rotation of a circle, from the angles at which genes are known to peak.

A circle is fit up to a rotation and a reflection. The likelihood compares the observed peaks of genes with their
reference peaks, for each direction, each rotation, and many warps of the reference. A warp stretches some segments of
the cycle and shortens others, because cells differ in the lengths of their phases. Only the order of the genes is the
same in all cells, and two groups of genes that are half a turn apart have no order: then the order within the groups
decides, or the direction stays open.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``g`` genes, ``i`` ends of segments, ``m`` angles of a table, ``r``
rotations, ``u`` distinct reference peaks, ``w`` warps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, logsumexp

__all__ = ["MIN_PROBABILITY", "DirectionEstimate", "GenePeaks", "estimate_peaks", "infer_direction"]

Array = NDArray[np.floating]

MIN_PROBABILITY = 0.95
"""The direction is open if neither direction has at least this posterior probability."""

N_ROTATIONS, N_TABLE = 64, 192
"""Rotations to compare, and angles for which the density of a peak is tabulated."""

N_PARTS = 12
"""Number of equal parts of the circle that a warp divides between the segments. Each segment has at least one."""

WARP_PRECISION = 16.0
"""Sum of the parameters of the Dirichlet prior of the lengths of the segments, whose mean is the reference."""

CONCENTRATIONS = (1.5, 4.0, 16.0)
"""Possible concentrations of true peaks around their reference, with equal prior probability: standard deviations of
about 1, 0.5 and 0.25 rad."""

OUTLIER_SHARES = (0.1, 0.3, 0.6, 0.9)
"""Possible shares of genes that peak anywhere, with equal prior probability."""

MAX_INDEPENDENT_GENES = 20
"""The likelihood of more genes is tempered, because genes of one program have their errors in common."""

MIN_INFORMATION = 2.0
"""Smallest information about the angle, in nats summed over all cells, of genes that are compared."""

MIN_GENES = 5
"""With fewer genes, the direction is open."""


@dataclass(frozen=True)
class GenePeaks:
    """Observed peaks of genes with a known reference peak.

    Parameters
    ----------
    peak_g
        Angle at which the expression of each gene peaks in the cells.
    information_g
        Half the inverse variance of the peak. Genes that do not follow the angle have a small value.
    reference_g
        Angle at which each gene should peak.
    """

    peak_g: Array
    information_g: Array
    reference_g: Array

    def informative(self) -> GenePeaks:
        """Return the genes with enough information."""
        used_g = self.information_g >= MIN_INFORMATION
        return GenePeaks(self.peak_g[used_g], self.information_g[used_g], self.reference_g[used_g])


@dataclass(frozen=True)
class DirectionEstimate:
    """Direction and rotation of a circle.

    Parameters
    ----------
    probability
        Posterior probability that the circle runs in the direction of the reference.
    rotation
        Angle by which to rotate the circle, after reflecting it if the other direction is more probable.
    n_genes
        Number of genes with enough information.
    """

    probability: float
    rotation: float
    n_genes: int

    @property
    def is_reflected(self) -> bool:
        """Whether the other direction is more probable."""
        return self.probability < 0.5


def estimate_peaks(
    logged_cg: Array, reference_g: Array, angle_c: Array, weight_c: Array, group_c: NDArray[np.integer]
) -> GenePeaks:
    """Estimate the angle at which each gene peaks: the mean direction of cells, weighted by the excess expression.

    Parameters
    ----------
    logged_cg
        Log-normalized expression.
    reference_g
        Angle at which each gene should peak.
    angle_c
        Angles of the cells.
    weight_c
        Weight of each cell, such as its probability of being active.
    group_c
        Codes of groups of cells, such as batches. Differences between them are removed.
    """
    member_cb = np.eye(int(group_c.max()) + 1)[group_c] * weight_c[:, None]
    mean_bg = member_cb.T @ logged_cg / np.maximum(member_cb.sum(0), 1e-9)[:, None]
    excess_cg = logged_cg - mean_bg[group_c]
    total = weight_c.sum()
    # Twice the mean resultant vector is the first harmonic, if cells are all around the circle.
    point_c = np.exp(1j * angle_c)
    harmonic_g = 2 * ((weight_c * (point_c - weight_c @ point_c / total)) @ excess_cg) / total
    amplitude_g = np.abs(harmonic_g)
    noise_g = np.maximum((weight_c @ excess_cg**2) / total - amplitude_g**2 / 2, 1e-9)
    information_g = np.where(amplitude_g > 1e-9, amplitude_g**2 * total / (4 * noise_g), 0.0)
    return GenePeaks(np.angle(harmonic_g) % (2 * np.pi), information_g, reference_g)


def infer_direction(peaks: GenePeaks, knots: Sequence[float], has_direction: bool = True) -> DirectionEstimate:
    """Infer direction and rotation of a circle by the likelihood of the peaks.

    Parameters
    ----------
    peaks
        Peaks of all genes with a reference.
    knots
        Angles that divide the reference cycle into segments, from 0 to 2π, at most `N_PARTS` of them.
    has_direction
        Whether the reference has an order. Otherwise the direction is open, and only the rotation is inferred.
    """
    used = peaks.informative()
    n_genes = len(used.peak_g)
    if n_genes == 0:
        return DirectionEstimate(0.5, 0.0, 0)
    log_prior_w, warp_wi = warps(np.array(knots))
    unwarped = np.array(knots)[None]
    log_sr, log_s = np.empty((2, N_ROTATIONS)), np.empty(2)
    for index, sign in enumerate((1, -1)):
        turned = GenePeaks(sign * used.peak_g, used.information_g, used.reference_g)
        log_s[index] = logsumexp(_log_likelihood(turned, unwarped[0], warp_wi) + log_prior_w[:, None])
        log_sr[index] = _log_likelihood(turned, unwarped[0], unwarped)[0]
    is_known = has_direction and n_genes >= MIN_GENES
    probability = float(np.exp(log_s[0] - logsumexp(log_s))) if is_known else 0.5
    log_r = log_sr[int(probability < 0.5)]
    # The mode, interpolated on the grid by the posterior mean direction.
    weight_r = np.exp(log_r - log_r.max())
    rotation = float(np.angle(weight_r @ np.exp(2j * np.pi * np.arange(N_ROTATIONS) / N_ROTATIONS)))
    return DirectionEstimate(probability, rotation, n_genes)


def warps(knot_i: Array) -> tuple[Array, Array]:
    """Return the log prior of all warps, and the angles to which each one moves the knots, shape ``(w, i)``."""
    n_segments = len(knot_i) - 1
    cut_wi = np.array([(0, *cuts, N_PARTS) for cuts in combinations(range(1, N_PARTS), n_segments - 1)]) / N_PARTS
    length_i = np.diff(knot_i) / (2 * np.pi)
    log_prior_w = np.log(np.diff(cut_wi, axis=1)) @ (WARP_PRECISION * length_i - 1)
    return log_prior_w - logsumexp(log_prior_w), 2 * np.pi * cut_wi


def _log_likelihood(peaks: GenePeaks, knot_i: Array, warp_wi: Array) -> Array:
    """Return the tempered log-likelihood of each warp and rotation, shape ``(w, r)``.

    A gene peaks at its reference, with a von Mises error, or anywhere. The variances of the true peak and of its
    estimate add up. Concentration and share of outliers are integrated out.
    """
    reference_u, position_g = np.unique(peaks.reference_g, return_inverse=True)
    to_table = N_TABLE / (2 * np.pi)
    # Tables of genes with the same reference can be added before the warps are tried.
    peak_g = np.round(peaks.peak_g * to_table).astype(int)
    column_gm = (np.arange(N_TABLE) - peak_g[:, None]) % N_TABLE
    target_wu = np.stack([np.interp(reference_u, knot_i, warp_i) for warp_i in warp_wi])
    shift_wu = np.round(target_wu * to_table).astype(int)
    rotation_r = np.arange(N_ROTATIONS) * (N_TABLE // N_ROTATIONS)
    column_wru = (shift_wu[:, None] - rotation_r[:, None]) % N_TABLE
    angle_m = np.arange(N_TABLE) / to_table
    temper = min(1.0, MAX_INDEPENDENT_GENES / len(peak_g))
    log_lik_wr = []
    for concentration in CONCENTRATIONS:
        concentration_g = 1 / (1 / concentration + 1 / (2 * peaks.information_g))
        density_gm = np.exp(concentration_g[:, None] * (np.cos(angle_m) - 1)) / i0e(concentration_g)[:, None]
        for share in OUTLIER_SHARES:
            log_gm = np.take_along_axis(np.log((1 - share) * density_gm + share), column_gm, axis=1)
            log_um = np.zeros((len(reference_u), N_TABLE))
            np.add.at(log_um, position_g, log_gm)
            log_lik_wr.append(temper * log_um[np.arange(len(reference_u)), column_wru].sum(-1))
    mean_wr: Array = logsumexp(log_lik_wr, axis=0)
    return mean_wr

"""Posterior of the mean of each feature in a group of cells, and of fold changes between groups.

The mean of a group is the decoded mean times a correction, the ratio of observed to expected counts. The correction is
gamma distributed around 1 with a precision that is learned from all features and groups. With few counts the mean is
that of the model, with many counts the observed one.

Axis suffixes: ``f`` features, ``g`` groups, ``h`` inputs of the decoder's last layer, ``k``, ``l`` and ``s`` sets of
groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import digamma, polygamma

from celldial.inference.group_sums import DecodedSums
from celldial.model.networks import Modality

__all__ = ["PRECISION_BOUNDS", "GroupMeans", "correction_precision", "group_means", "log_fold_change"]

# Cells with a count that the dispersion under the likelihood is worth, next to the observed dispersion.
DISPERSION_CELLS = 10.0
# Bounds of the precision of the correction: the model may be wrong by 10 % to 100 % in any feature.
PRECISION_BOUNDS = (1.0, 100.0)
MAX_STEPS = 50
TINY = 1e-12


class GroupMeans(NamedTuple):
    """Means of sets of cells on the scale of natural logarithms.

    Parameters
    ----------
    log_mean_sf
        Posterior mean of the log mean.
    variance_sf
        Its posterior variance without that of the loadings.
    model_share_sf
        Share of the estimate that comes from the model, from 0, the observed mean, to 1, the decoded mean.
    input_sh
        Mean inputs of the decoder's last layer.
    """

    log_mean_sf: np.ndarray
    variance_sf: np.ndarray
    model_share_sf: np.ndarray
    input_sh: np.ndarray


def dispersion(sums: DecodedSums) -> np.ndarray:
    """Return the variance of the sum of counts of each group relative to its mean, shape ``(g, f)``.

    It is an average of the observed squared deviations of cells from what is expected, and of the variance under the
    likelihood, weighted by the number of cells with a count.
    """
    ratio_gf = (sums.count_gf + 1) / (sums.expected_gf + 1)
    square_gf = sums.count_square_gf - 2 * ratio_gf * sums.count_expected_gf + ratio_gf**2 * sums.expected_square_gf
    observed_gf = np.maximum(square_gf, 0) / np.maximum(ratio_gf * sums.expected_gf, TINY)
    expected_gf = sums.variance_gf / np.maximum(sums.expected_gf, TINY)
    weight_gf = sums.expressing_gf / (sums.expressing_gf + DISPERSION_CELLS)
    result_gf: np.ndarray = np.maximum(weight_gf * observed_gf + (1 - weight_gf) * expected_gf, 0.05)
    return result_gf


def correction_precision(sums: DecodedSums) -> float:
    """Return the precision of the ratios of observed to expected counts around 1, beyond their sampling variance.

    This is the estimator of Paule and Mandel (1982) for the variance between studies in a meta-analysis: the weighted
    squared deviations must have their expected sum.
    """
    known_gf = sums.expected_gf > 1
    if not known_gf.any():
        return PRECISION_BOUNDS[1]
    expected = sums.expected_gf[known_gf]
    square = (sums.count_gf[known_gf] / expected - 1) ** 2
    noise = dispersion(sums)[known_gf] / expected
    low, high = (1 / bound for bound in reversed(PRECISION_BOUNDS))
    for _ in range(MAX_STEPS):  # bisection: the sum of squared deviations falls as the variance grows
        middle = np.sqrt(low * high)
        if (square / (noise + middle)).mean() > 1:
            low = middle
        else:
            high = middle
    return float(1 / np.sqrt(low * high))


def group_means(sums: DecodedSums, precision: float, upper_bound: float) -> GroupMeans:
    """Return the posterior of the mean of each set of cells.

    Parameters
    ----------
    sums
        Sums over the sets.
    precision
        Precision of the correction.
    upper_bound
        Largest possible mean.
    """
    n_cells_s1 = np.maximum(sums.n_cells_g, 1)[:, None]
    level_sf = np.maximum(sums.level_gf / n_cells_s1, TINY)
    # Variance between cells and of the state of each cell, which are drawn from a population.
    between_sf = np.maximum(sums.level_square_gf / n_cells_s1 - level_sf**2, 0) / level_sf**2
    dispersion_sf = dispersion(sums)
    shape_sf = precision + sums.count_gf / dispersion_sf
    rate_sf = precision + sums.expected_gf / dispersion_sf
    log_mean_sf = np.log(level_sf) + digamma(shape_sf) - np.log(rate_sf)
    if np.isfinite(upper_bound):
        log_mean_sf = np.minimum(log_mean_sf, np.log(upper_bound))
    return GroupMeans(
        log_mean_sf,
        polygamma(1, shape_sf) + between_sf / n_cells_s1,
        precision / rate_sf,
        sums.input_gh / n_cells_s1,
    )


@torch.no_grad()
def log_fold_change(
    means: GroupMeans, contrast_s: np.ndarray, modality: Modality, library_size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a contrast of log means, and its standard deviation, each of shape ``(f,)``.

    Parameters
    ----------
    means
        Means of sets of cells.
    contrast_s
        Weight of each set, of sum 0: ``[1, -1]`` for the first set against the second.
    modality
        Networks of the modality, with the uncertainty of the loadings.
    library_size
        Library size of the means.
    """
    change_f = contrast_s @ means.log_mean_sf
    variance_f = contrast_s**2 @ means.variance_sf
    if modality.loadings is not None:
        input_kh = torch.from_numpy(means.input_sh).to(modality.loadings.center_h)
        identity_kk = torch.eye(len(input_kh), dtype=input_kh.dtype, device=input_kh.device)
        covariance_fkl = modality.loadings.covariance_of_contrasts(input_kh, identity_kk)
        mean_kf = torch.from_numpy(np.exp(means.log_mean_sf)).to(input_kh)
        elasticity_kf = modality.likelihood.elasticity(mean_kf, input_kh.new_tensor([library_size])).cpu().numpy()
        # As far as the estimate is the observed mean, an error of the loadings cancels.
        weight_kf = means.model_share_sf * elasticity_kf * contrast_s[:, None]
        variance_f = variance_f + np.einsum("kf,fkl,lf->f", weight_kf, covariance_fkl.cpu().numpy(), weight_kf)
    return change_f, np.sqrt(np.maximum(variance_f, TINY))

"""Inference of the kinetic model: angles, parameters and dispersions in turn, then the posterior of the parameters.

Axis suffixes as in `celldial.inference.kinetics.parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from celldial.inference.kinetics.counts import UNSPLICED, CellCounts
from celldial.inference.kinetics.missing import missing_information
from celldial.inference.kinetics.mode import find_mode
from celldial.inference.kinetics.parameters import Layout
from celldial.inference.kinetics.variational import VariationalPosterior, fit_posterior

__all__ = ["KineticsPosterior", "infer_kinetics"]

INITIAL_THETA = 3.0
# Updates of angles and dispersions, and steps toward the mode in each.
N_UPDATES, STEPS_PER_UPDATE = 5, 6


@dataclass(frozen=True)
class KineticsPosterior:
    """Result of the inference.

    Parameters
    ----------
    layout
        Layout of the parameters.
    posterior
        Posterior of the parameters.
    weight_cj
        Posterior probability of the angle of each cell.
    theta_lf
        Inverse dispersions.
    """

    layout: Layout
    posterior: VariationalPosterior
    weight_cj: Tensor
    theta_lf: Tensor


def infer_kinetics(
    cells: CellCounts, prior_cj: Tensor, *, known_angles: bool, harmonics: tuple[int, int] = (2, 3), seed: int = 0
) -> KineticsPosterior:
    """Infer rates and speed from counts of cells, and from what is known about their angles.

    Parameters
    ----------
    cells
        Counts.
    prior_cj
        Probability of each angle of the cells, without regard to unspliced counts. It comes from a model of spliced
        counts.
    known_angles
        Whether the angles are known. Otherwise the unspliced counts update them: without that, the curves of unspliced
        counts would be blurred, and those of spliced counts, which the angles come from, would not.
    harmonics
        Numbers of harmonics of the log speed and of the log rate of transcription.
    seed
        Seed of the random numbers.
    """
    n_genes = cells.counts_lcf.shape[2]
    layout = Layout(cells.n_groups, cells.n_batches, n_genes, *harmonics)
    theta_lf = torch.full((2, n_genes), INITIAL_THETA, dtype=torch.float64)
    weight_cj, parameter_p = prior_cj, None
    for _ in range(N_UPDATES):
        data = cells.sum_in_bins(weight_cj, theta_lf)
        start_p = layout.initial(data) if parameter_p is None else parameter_p
        parameter_p = find_mode(layout, data, start_p, STEPS_PER_UPDATE)
        log_mean_lbjf = layout.log_mean(*layout.split(parameter_p))
        theta_lf = cells.inverse_dispersion(log_mean_lbjf, weight_cj)
        if not known_angles:
            log_lik_cj = cells.log_likelihood(log_mean_lbjf, theta_lf, UNSPLICED)
            weight_cj = (prior_cj.clamp_min(1e-300).log() + log_lik_cj).softmax(1)
    assert parameter_p is not None
    data = cells.sum_in_bins(weight_cj, theta_lf)
    parameter_p = find_mode(layout, data, parameter_p)
    missing_pp = None if known_angles else missing_information(layout, cells, parameter_p, weight_cj, theta_lf)
    generator = torch.Generator().manual_seed(seed)
    posterior = fit_posterior(layout, data, parameter_p, generator, missing_pp)
    return KineticsPosterior(layout, posterior, weight_cj, theta_lf)

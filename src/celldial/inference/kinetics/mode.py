"""The mode of the posterior, by Fisher scoring, and the information about the parameters there.

Axis suffixes as in `celldial.inference.kinetics.parameters`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celldial.inference.kinetics.counts import BinnedCounts
from celldial.inference.kinetics.parameters import Arrow, Layout

__all__ = ["find_mode", "log_joint"]

MAX_STEPS = 60
# The search ends when the log posterior density, in nats, increases by less.
TOLERANCE = 1e-3
# First factor by which the diagonal of the information is increased, and the largest.
DAMPING, MAX_DAMPING = 1e-3, 1e6
# Largest change of a parameter in one step.
MAX_CHANGE = 1.0


def log_joint(layout: Layout, data: BinnedCounts, parameter_p: Tensor) -> Tensor:
    """Return the log-likelihood plus the log prior density, up to a constant."""
    mean_p, scale_p = layout.prior()
    log_prior = -((parameter_p - mean_p) / scale_p).square().sum() / 2
    return data.log_likelihood(layout.log_mean(*layout.split(parameter_p))) + log_prior


def information(layout: Layout, data: BinnedCounts, parameter_p: Tensor) -> tuple[Tensor, Tensor, Arrow]:
    """Return the gradient of the log posterior density in both kinds of parameters, and its expected information."""
    mean_p, scale_p = layout.prior()
    log_mean_lbjf, speed_mlbjf, local_dlbjf = layout.log_mean_and_jacobian(parameter_p)
    score_lbjf, weight_lbjf = data.score_and_information(log_mean_lbjf)
    weighted_mlbjf = weight_lbjf * speed_mlbjf
    local_fdx = local_dlbjf.flatten(1, 3).permute(2, 0, 1)
    weighted_fdx = local_fdx * weight_lbjf.flatten(0, 2).T[:, None]
    arrow = Arrow(
        torch.einsum("mlbjf,nlbjf->mn", weighted_mlbjf, speed_mlbjf),
        weighted_fdx @ speed_mlbjf.flatten(1, 3).permute(2, 1, 0),
        weighted_fdx @ local_fdx.mT,
    )
    prior_m, prior_fd = layout.split(scale_p.pow(-2))
    pull_m, pull_fd = layout.split((mean_p - parameter_p) / scale_p.square())
    gradient_m = torch.einsum("mlbjf,lbjf->m", speed_mlbjf, score_lbjf) + pull_m
    gradient_fd = torch.einsum("dlbjf,lbjf->fd", local_dlbjf, score_lbjf) + pull_fd
    return gradient_m, gradient_fd, arrow.add_diagonal(prior_m, prior_fd)


@torch.no_grad()
def find_mode(layout: Layout, data: BinnedCounts, parameter_p: Tensor, max_steps: int = MAX_STEPS) -> Tensor:
    """Return the parameters of the highest posterior density, by damped Fisher scoring.

    Raises
    ------
    FloatingPointError
        The density is not finite at the initial parameters.
    """
    damping, value = DAMPING, float(log_joint(layout, data, parameter_p))
    if not torch.isfinite(torch.tensor(value)):
        raise FloatingPointError("the kinetic model is not finite for these counts: check both layers")
    for _ in range(max_steps):
        gradient_m, gradient_fd, arrow = information(layout, data, parameter_p)
        gain = 0.0
        while damping < MAX_DAMPING:
            step_p = layout.join(*arrow.scale_diagonal(1 + damping).solve(gradient_m, gradient_fd))
            proposed_p = parameter_p + step_p * (MAX_CHANGE / step_p.abs().max()).clamp_max(1.0)
            gain = float(log_joint(layout, data, proposed_p)) - value
            if gain > 0:
                parameter_p, value, damping = proposed_p, value + gain, damping / 10
                break
            damping = max(damping, DAMPING) * 10
        if gain < TOLERANCE:
            break
    return parameter_p

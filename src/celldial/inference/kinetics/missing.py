"""Information about the parameters that is missing because the angles of cells are uncertain.

With the posterior of the angles held fixed, the curvature of the log-likelihood is the information of cells whose
angles are known. The missing information is the sum over cells of the covariance of the score over the posterior of the
angle (Louis, 1982). A posterior that factorizes over angles and parameters is too narrow by just this part.

Axis suffixes as in `celldial.inference.kinetics.parameters`, and ``i`` orthogonal functions of the angle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celldial.inference.kinetics.counts import LAYERS, CellCounts
from celldial.inference.kinetics.equations import angle_grid
from celldial.inference.kinetics.parameters import Layout

__all__ = ["missing_information"]

# Cells of which the scores are computed at once.
BLOCK_CELLS = 256


@torch.no_grad()
def missing_information(
    layout: Layout, cells: CellCounts, parameter_p: Tensor, weight_cj: Tensor, theta_lf: Tensor
) -> Tensor:
    """Return the missing information, shape ``(p, p)``.

    The score is projected on orthogonal polynomials of the angle up to the second degree, under the posterior of the
    cell. Scores are smooth functions of the angle, and posteriors are narrow, so higher degrees add little.

    Parameters
    ----------
    layout, cells
        Parameters and counts.
    parameter_p
        Parameters at which the information is computed.
    weight_cj
        Posterior probability of each angle.
    theta_lf
        Inverse dispersions.
    """
    log_mean_lbjf, speed_mlbjf, local_dlbjf = layout.log_mean_and_jacobian(parameter_p)
    result_pp = parameter_p.new_zeros(layout.n_parameters, layout.n_parameters)
    for b in range(log_mean_lbjf.shape[1]):
        for index_c in (cells.bin_c == b).nonzero()[:, 0].split(BLOCK_CELLS):
            if len(index_c) == 0:
                continue
            function_icj = _polynomials(weight_cj[index_c])
            score_icp = parameter_p.new_zeros(2, len(index_c), layout.n_parameters)
            for layer in LAYERS:
                size_c11 = cells.size_lc[layer, index_c, None, None]
                mean_cjf = log_mean_lbjf[layer, b].exp() * size_c11
                theta_f = theta_lf[layer]
                residual_cjf = (cells.counts_lcf[layer, index_c, None] - mean_cjf) * theta_f / (theta_f + mean_cjf)
                for i, function_cj in enumerate(function_icj):
                    weighted_cjf = residual_cjf * function_cj[..., None]
                    speed_cm = weighted_cjf.flatten(1) @ speed_mlbjf[:, layer, b].flatten(1).T
                    local_fcd = weighted_cjf.permute(2, 0, 1) @ local_dlbjf[:, layer, b].permute(2, 1, 0)
                    score_icp[i] += layout.join(speed_cm, local_fcd.permute(1, 0, 2))
            flat_np = score_icp.flatten(0, 1)
            result_pp += flat_np.T @ flat_np
    return result_pp


def _polynomials(weight_cj: Tensor) -> Tensor:
    """Return orthonormal polynomials of degree 1 and 2 of the angle, times its probability, shape ``(i, c, j)``."""
    angle_j = angle_grid(weight_cj.shape[1])
    mean_c = torch.atan2(weight_cj @ angle_j.sin(), weight_cj @ angle_j.cos())
    deviation_cj = torch.remainder(angle_j - mean_c[:, None] + torch.pi, 2 * torch.pi) - torch.pi
    ones_cj = torch.ones_like(deviation_cj)
    basis = [ones_cj]
    for degree in (1, 2):
        value_cj = deviation_cj**degree
        for other_cj in basis:
            value_cj = value_cj - (weight_cj * value_cj * other_cj).sum(1, keepdim=True) * other_cj
        norm_c1 = (weight_cj * value_cj.square()).sum(1, keepdim=True).sqrt()
        # A posterior on two points has no second degree.
        basis.append(torch.where(norm_c1 > 1e-6, value_cj / norm_c1.clamp_min(1e-6), 0.0))
    return torch.stack(basis[1:]) * weight_cj

"""How sure a decoder is of its loadings: a Laplace approximation of its last layer.

The log rate of feature *f* in a cell is w_f · h + b_f, with *h* what the last layer is given, up to what all features
share. Given *h*, the posterior of (w_f, b_f) is close to a normal distribution around what training found; its
precision is that of the prior plus the information in the counts, summed over the cells trained on (MacKay 1992, "A
practical Bayesian framework for backpropagation networks"; Kristiadi et al. 2020, arXiv:2002.10118, for the last layer
alone).

The information is not factored into one of features and one of inputs, because a feature that one cell type has says
nothing of itself in the others. It can be kept for every feature, because cells differ in few directions of *h* only.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` inputs of the last layer, ``r`` directions of the inputs, ``q``
entries of a symmetric matrix of (1 + r) rows, each pair once; ``s`` states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BLOCK_FEATURES", "RANK", "Loadings", "packed_outer", "posterior_covariance", "principal_directions"]

# Directions of the hidden units that are told apart. They hold about 99 % of how cells differ; what there is of the
# loadings in the others is as the prior has it.
RANK = 10
# Of a bias: what is never seen is known to within a factor of e^10, not less.
BIAS_PRECISION = 1e-2
BLOCK_FEATURES = 4096


class Loadings(nn.Module):
    """The posterior covariance of the loadings and the bias of each feature of a modality.

    Parameters
    ----------
    centre_h
        Mean inputs of the cells trained on.
    scale_h
        Standard deviation of a loading under its prior.
    basis_hr
        Orthonormal directions of the inputs, times `scale_h`, in which cells differ most.
    covariance_fq
        Posterior covariance of each feature's log rate at the centre and of its slopes along the directions, packed.
    """

    centre_h: Tensor
    scale_h: Tensor
    basis_hr: Tensor
    covariance_fq: Tensor

    def __init__(self, centre_h: Tensor, scale_h: Tensor, basis_hr: Tensor, covariance_fq: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre_h", centre_h)
        self.register_buffer("scale_h", scale_h)
        self.register_buffer("basis_hr", basis_hr)
        self.register_buffer("covariance_fq", covariance_fq)

    def variance(self, input_sh: Tensor) -> Tensor:
        """Posterior variance of each feature's log rate at given inputs, shape ``(s, f)``."""
        away_sh = (input_sh - self.centre_h) * self.scale_h
        place_sr = away_sh @ self.basis_hr
        # In the other directions the loadings vary as the prior has it: by 1, since the inputs are scaled.
        outside_s = (away_sh.square().sum(1) - place_sr.square().sum(1)).clamp_min(0)
        pair_sq = packed_outer(torch.cat([torch.ones_like(place_sr[:, :1]), place_sr], 1))
        return torch.addmm(outside_s[:, None], pair_sq, self.covariance_fq.T).clamp_min_(0)

    def variance_of_change(self, input_sh: Tensor, first_f: Tensor, last_f: Tensor) -> Tensor:
        """Posterior variance of how each feature's log rate differs between two states of its own, shape ``(f,)``.

        Parameters
        ----------
        input_sh
            Inputs at the states.
        first_f, last_f
            The two states of each feature, int64.
        """
        away_sh = (input_sh - self.centre_h) * self.scale_h
        place_sr = away_sh @ self.basis_hr
        outside_sh = away_sh - place_sr @ self.basis_hr.T
        variance_f = torch.cdist(outside_sh, outside_sh)[first_f, last_f].square()
        for start in range(0, len(first_f), BLOCK_FEATURES):
            block = slice(start, start + BLOCK_FEATURES)
            change_fr = place_sr[last_f[block]] - place_sr[first_f[block]]
            pair_fq = packed_outer(torch.cat([torch.zeros_like(change_fr[:, :1]), change_fr], 1))
            variance_f[block] += (pair_fq * self.covariance_fq[block]).sum(1).clamp_min(0)
        return variance_f


def packed_outer(vector_sr: Tensor) -> Tensor:
    """Pack the outer product of each vector with itself, off-diagonal entries doubled, shape ``(s, q)``.

    Its product with a packed symmetric matrix is the quadratic form.
    """
    row_q, column_q = torch.triu_indices(vector_sr.shape[1], vector_sr.shape[1], device=vector_sr.device)
    return vector_sr[:, row_q] * vector_sr[:, column_q] * (1 + (row_q != column_q))


def principal_directions(scaled_ch: Tensor, n_directions: int) -> Tensor:
    """Find the orthonormal directions in which centred inputs differ most, shape ``(h, r)``."""
    _, vector_hh = torch.linalg.eigh(scaled_ch.T @ scaled_ch)
    return vector_hh.flip(1)[:, :n_directions].contiguous()


def posterior_covariance(information_fq: Tensor) -> Tensor:
    """Turn information about intercept and slopes into their posterior covariance, feature by feature.

    Parameters
    ----------
    information_fq
        Σ_c w_cf g_c g_cᵀ of each feature, packed, with w_cf the information in a count about its log rate, and g_c a 1
        and the cell's place along the directions. Slopes have the prior N(0, 1).

    Returns
    -------
    Tensor
        The covariances, packed, in place of the information.
    """
    n_rows = round(((1 + 8 * information_fq.shape[1]) ** 0.5 - 1) / 2)
    row_q, column_q = torch.triu_indices(n_rows, n_rows, device=information_fq.device)
    prior_r = torch.ones(n_rows, dtype=torch.float64, device=information_fq.device)
    prior_r[0] = BIAS_PRECISION
    for start in range(0, len(information_fq), BLOCK_FEATURES):
        block_fq = information_fq[start : start + BLOCK_FEATURES]
        precision_frr = block_fq.new_zeros((len(block_fq), n_rows, n_rows), dtype=torch.float64)
        precision_frr[:, row_q, column_q] = block_fq.double()
        precision_frr[:, column_q, row_q] = block_fq.double()
        covariance_frr = torch.cholesky_inverse(torch.linalg.cholesky(precision_frr + torch.diag(prior_r)))
        block_fq.copy_(covariance_frr[:, row_q, column_q])
    return information_fq

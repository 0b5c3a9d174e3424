"""Laplace approximation of the posterior of the decoder's loadings, the weights of its last layer.

The log rate of feature *f* in a cell is w_f · h + b_f, with *h* the input of the last layer, up to a term that all
features share. Given *h*, the posterior of (w_f, b_f) is close to a normal distribution around the trained values. Its
precision is the precision of the prior plus the information in the counts, summed over the training cells (MacKay 1992,
"A practical Bayesian framework for backpropagation networks"; Kristiadi et al. 2020, arXiv:2002.10118, for the last
layer alone).

The information is not factored into features and inputs, because a feature that only one cell type expresses carries no
information in other cells. It can be stored for every feature, because cells differ in few directions of *h*.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` inputs of the last layer, ``r`` directions of the inputs, ``q``
entries of a symmetric matrix of (1 + r) rows, each pair once; ``s`` states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BLOCK_FEATURES", "RANK", "Loadings", "packed_outer", "posterior_covariance", "principal_directions"]

# Number of directions of the hidden units. They explain about 99 % of the variance between cells. In other directions
# the posterior of the loadings equals the prior.
RANK = 10
# Prior precision of a bias: the rate of a feature without counts is known to within a factor of e^10.
BIAS_PRECISION = 1e-2
# Number of features that are processed together, to limit memory.
BLOCK_FEATURES = 4096


class Loadings(nn.Module):
    """The posterior covariance of the loadings and the bias of each feature of a modality.

    Parameters
    ----------
    center_h
        Mean input over the training cells.
    scale_h
        Prior standard deviation of a loading.
    basis_hr
        Orthonormal directions in which the inputs times `scale_h` differ most between cells.
    covariance_fq
        Posterior covariance of each feature's log rate at the center and of its slopes along the directions, packed.
    """

    center_h: Tensor
    scale_h: Tensor
    basis_hr: Tensor
    covariance_fq: Tensor

    def __init__(self, center_h: Tensor, scale_h: Tensor, basis_hr: Tensor, covariance_fq: Tensor) -> None:
        super().__init__()
        self.register_buffer("center_h", center_h)
        self.register_buffer("scale_h", scale_h)
        self.register_buffer("basis_hr", basis_hr)
        self.register_buffer("covariance_fq", covariance_fq)

    def check_shapes(self, n_features: int, n_hidden: int) -> None:
        """Raise unless the tensors fit each other, and a modality with these features and hidden units."""
        n_inputs, n_directions = self.basis_hr.shape if self.basis_hr.ndim == 2 else (0, 0)
        expected = {
            "center_h": (n_inputs,),
            "scale_h": (n_inputs,),
            "basis_hr": (max(n_inputs, n_hidden), n_directions),
            "covariance_fq": (n_features, (n_directions + 1) * (n_directions + 2) // 2),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(f"{name} of the loadings has shape {tuple(tensor.shape)} and type {tensor.dtype}")

    def variance(self, input_sh: Tensor) -> Tensor:
        """Return the posterior variance of each feature's log rate at these inputs, shape ``(s, f)``."""
        offset_sh, position_sr = self._project(input_sh)
        # In all other directions the variance of a loading is that of the prior: 1, because the inputs are scaled.
        residual_s = (offset_sh.square().sum(1) - position_sr.square().sum(1)).clamp_min(0)
        pair_sq = packed_outer(torch.cat([torch.ones_like(position_sr[:, :1]), position_sr], 1))
        return torch.addmm(residual_s[:, None], pair_sq, self.covariance_fq.T).clamp_min_(0)

    def variance_of_change(self, input_sh: Tensor, first_f: Tensor, last_f: Tensor) -> Tensor:
        """Return the posterior variance of the change of each feature's log rate between two states, shape ``(f,)``.

        Parameters
        ----------
        input_sh
            Inputs at the states.
        first_f, last_f
            The two states of each feature, int64.
        """
        offset_sh, position_sr = self._project(input_sh)
        residual_sh = offset_sh - position_sr @ self.basis_hr.T
        variance_f = torch.cdist(residual_sh, residual_sh)[first_f, last_f].square()
        for start in range(0, len(first_f), BLOCK_FEATURES):
            block = slice(start, start + BLOCK_FEATURES)
            change_fr = position_sr[last_f[block]] - position_sr[first_f[block]]
            pair_fq = packed_outer(torch.cat([torch.zeros_like(change_fr[:, :1]), change_fr], 1))
            variance_f[block] += (pair_fq * self.covariance_fq[block]).sum(1).clamp_min(0)
        return variance_f

    def covariance_of_contrasts(self, input_sh: Tensor, contrast_ks: Tensor) -> Tensor:
        """Return the posterior covariance of contrasts of each feature's log rate between states, shape ``(f, k, k)``.

        Parameters
        ----------
        input_sh
            Inputs at the states.
        contrast_ks
            Weights of the states in each contrast.
        """
        offset_sh, position_sr = self._project(input_sh)
        residual_kh = contrast_ks @ (offset_sh - position_sr @ self.basis_hr.T)
        slope_kr = contrast_ks @ torch.cat([torch.ones_like(position_sr[:, :1]), position_sr], 1)
        row_q, column_q = torch.triu_indices(slope_kr.shape[1], slope_kr.shape[1], device=slope_kr.device)
        product_kkq = slope_kr[:, None, row_q] * slope_kr[None, :, column_q]
        product_kkq = product_kkq + (row_q != column_q) * product_kkq.transpose(0, 1)
        covariance_fkk = torch.einsum("fq,klq->fkl", self.covariance_fq, product_kkq)
        return covariance_fkk + residual_kh @ residual_kh.T

    def _project(self, input_sh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled offsets of inputs from the center, and their positions along the directions."""
        offset_sh = (input_sh - self.center_h) * self.scale_h
        return offset_sh, offset_sh @ self.basis_hr


def packed_outer(vector_sr: Tensor) -> Tensor:
    """Return the packed outer product of each vector with itself, shape ``(s, q)``; off-diagonal entries are doubled.

    Its product with a packed symmetric matrix is the quadratic form.
    """
    row_q, column_q = torch.triu_indices(vector_sr.shape[1], vector_sr.shape[1], device=vector_sr.device)
    return vector_sr[:, row_q] * vector_sr[:, column_q] * (1 + (row_q != column_q))


def principal_directions(scaled_ch: Tensor, n_directions: int) -> Tensor:
    """Return the orthonormal directions in which centered inputs vary most, shape ``(h, r)``."""
    _, vector_hh = torch.linalg.eigh(scaled_ch.T @ scaled_ch)
    return vector_hh.flip(1)[:, :n_directions].contiguous()


def posterior_covariance(information_fq: Tensor) -> Tensor:
    """Return the posterior covariance of each feature's intercept and slopes, given the information about them.

    Parameters
    ----------
    information_fq
        Packed Σ_c w_cf g_c g_cᵀ of each feature. w_cf is the information of a count about its log rate; g_c is a 1
        followed by the position of the cell along the directions. The prior of the slopes is N(0, 1).

    Returns
    -------
    Tensor
        The packed covariances, in the memory of `information_fq`.
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
        root_frr, failed_f = torch.linalg.cholesky_ex(precision_frr + torch.diag(prior_r))
        for f in failed_f.nonzero()[:, 0]:
            # Very large counts: the rounding of the sum exceeds the prior, and an eigenvalue of nearly 0 is negative.
            value_r, vector_rr = torch.linalg.eigh(precision_frr[f])
            rounded_rr = (vector_rr * value_r.clamp_min(0)) @ vector_rr.T
            root_frr[f] = torch.linalg.cholesky(rounded_rr + torch.diag(prior_r))
        covariance_frr = torch.cholesky_inverse(root_frr)
        block_fq.copy_(covariance_frr[:, row_q, column_q])
    return information_fq

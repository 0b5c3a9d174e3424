"""Unspliced and spliced counts of cells with uncertain angles, summed in bins of the angle.

The sum of n negative binomial counts with mean μ and inverse dispersion θ is negative binomial with mean nμ and inverse
dispersion nθ. Cells with the same angle, group and batch therefore count as one, and the time of a fit does not depend
on the number of cells, apart from the inference of their angles. For cells of different sizes, the inverse dispersion
of the sum is chosen so that its variance is right.

Axis suffixes: ``b`` bins of group and batch, ``c`` cells, ``f`` genes, ``j`` angles, ``l`` layers (unspliced, spliced).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from celldial.inference.kinetics.equations import angle_grid
from celldial.ops.log_likelihoods import negative_binomial_entries

__all__ = ["N_BINS", "BinnedCounts", "CellCounts", "angle_weights"]

N_BINS = 64
"""Number of bins of the angle."""

LAYERS = UNSPLICED, SPLICED = 0, 1
# Bounds of inverse dispersions.
MIN_THETA, MAX_THETA = 0.05, 1e4
# Bins with fewer cells are left out.
MIN_CELLS = 1e-3
# Cells of which all bins are in memory at once.
BLOCK_CELLS = 1024


@dataclass(frozen=True)
class CellCounts:
    """Counts of cells in both layers, in float64 on the CPU.

    Parameters
    ----------
    counts_lcf
        Counts.
    size_lc
        Size of each cell, with median 1.
    group_c, batch_c
        Codes of group and batch.
    n_groups, n_batches
        Numbers of groups and of batches.
    """

    counts_lcf: Tensor
    size_lc: Tensor
    group_c: Tensor
    batch_c: Tensor
    n_groups: int
    n_batches: int

    @property
    def bin_c(self) -> Tensor:
        """Bin of group and batch of each cell."""
        return self.group_c * self.n_batches + self.batch_c

    def select_genes(self, column_f: Tensor) -> CellCounts:
        """Return the counts of some genes."""
        return replace(self, counts_lcf=self.counts_lcf[:, :, column_f])

    def sum_in_bins(self, weight_cj: Tensor, theta_lf: Tensor) -> BinnedCounts:
        """Return sums over cells, each weighted by the probability of each angle.

        Parameters
        ----------
        weight_cj
            Probability of each angle.
        theta_lf
            Inverse dispersion of the counts of single cells.
        """
        n_bins, (_, _, n_genes) = self.n_groups * self.n_batches, self.counts_lcf.shape
        total_lbjf = weight_cj.new_zeros(2, n_bins, weight_cj.shape[1], n_genes)
        size_lbj, square_lbj = (weight_cj.new_zeros(2, n_bins, weight_cj.shape[1]) for _ in range(2))
        for b in range(n_bins):
            own_c = (self.bin_c == b).nonzero()[:, 0]
            own_jc = weight_cj[own_c].T
            total_lbjf[:, b] = own_jc @ self.counts_lcf[:, own_c]
            size_lbj[:, b] = (own_jc @ self.size_lc[:, own_c, None])[..., 0]
            square_lbj[:, b] = (own_jc @ self.size_lc[:, own_c, None].square())[..., 0]
        effective_lbj = size_lbj.square() / square_lbj.clamp_min(1e-300)
        used_lbj = effective_lbj > MIN_CELLS
        log_theta_lbjf = effective_lbj.clamp_min(MIN_CELLS).log()[..., None] + theta_lf.log()[:, None, None]
        return BinnedCounts(
            total_lbjf * used_lbj[..., None], torch.where(used_lbj, size_lbj, 0.0), log_theta_lbjf, self.n_batches
        )

    def log_likelihood(self, log_mean_lbjf: Tensor, theta_lf: Tensor, layer: int) -> Tensor:
        """Return the log-likelihood of the counts of a layer at each angle, up to a constant, shape ``(c, j)``.

        Parameters
        ----------
        log_mean_lbjf
            Log mean of a cell of size 1 in each bin.
        theta_lf
            Inverse dispersions.
        layer
            0 for unspliced counts, 1 for spliced counts.
        """
        log_theta_f = theta_lf[layer].log()
        parts = []
        for index_c in torch.arange(len(self.bin_c)).split(BLOCK_CELLS):
            log_size_c1 = self.size_lc[layer, index_c].log()[:, None]
            value_cf, mean_cjf = self.counts_lcf[layer, index_c], log_mean_lbjf[layer][self.bin_c[index_c]]
            parts.append(
                torch.stack(
                    [
                        negative_binomial_entries(value_cf, mean_cjf[:, j] + log_size_c1, log_theta_f).sum(1)
                        for j in range(mean_cjf.shape[1])
                    ],
                    1,
                )
            )
        return torch.cat(parts)

    def inverse_dispersion(self, log_mean_lbjf: Tensor, weight_cj: Tensor) -> Tensor:
        """Return inverse dispersions by the method of moments, shape ``(l, f)``."""
        excess_lf, square_lf = (weight_cj.new_zeros(2, self.counts_lcf.shape[2]) for _ in range(2))
        for b in range(self.n_groups * self.n_batches):
            own_c = (self.bin_c == b).nonzero()[:, 0]
            for layer in LAYERS:
                value_cf, size_c1 = self.counts_lcf[layer, own_c], self.size_lc[layer, own_c, None]
                mean_jf = log_mean_lbjf[layer, b].exp()
                # Moments over the posterior of the angle: the mean count varies within it.
                mean_cf = size_c1 * (weight_cj[own_c] @ mean_jf)
                second_cf = size_c1.square() * (weight_cj[own_c] @ mean_jf.square())
                excess_lf[layer] += (value_cf.square() - 2 * value_cf * mean_cf + second_cf - mean_cf).sum(0)
                square_lf[layer] += second_cf.sum(0)
        theta_lf = square_lf / excess_lf.clamp_min(1e-12)
        return torch.where(excess_lf > 0, theta_lf, MAX_THETA).clamp(MIN_THETA, MAX_THETA)


@dataclass(frozen=True)
class BinnedCounts:
    """Sums of counts in bins.

    Parameters
    ----------
    total_lbjf
        Sums of counts.
    size_lbj
        Sums of sizes of cells.
    log_theta_lbjf
        Log inverse dispersions of the sums.
    n_batches
        Number of batches: bin ``b`` is batch ``b % n_batches`` of group ``b // n_batches``.
    """

    total_lbjf: Tensor
    size_lbj: Tensor
    log_theta_lbjf: Tensor
    n_batches: int

    def log_rate(self, log_mean_lbjf: Tensor) -> Tensor:
        """Return the log mean of the sums, given that of a cell of size 1."""
        return log_mean_lbjf + self.size_lbj.clamp_min(1e-30).log()[..., None]

    def log_likelihood(self, log_mean_lbjf: Tensor) -> Tensor:
        """Return the log-likelihood of all sums, up to a constant; leading axes of samples are allowed."""
        log_p = negative_binomial_entries(self.total_lbjf, self.log_rate(log_mean_lbjf), self.log_theta_lbjf)
        return log_p.sum((-1, -2, -3, -4))

    def score_and_information(self, log_mean_lbjf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative of the log-likelihood in the log mean, and its expected information."""
        mean_lbjf, theta_lbjf = self.log_rate(log_mean_lbjf).exp(), self.log_theta_lbjf.exp()
        share_lbjf = theta_lbjf / (theta_lbjf + mean_lbjf)
        return (self.total_lbjf - mean_lbjf) * share_lbjf, mean_lbjf * share_lbjf


def angle_weights(angle_c: Tensor, length_c: Tensor | None = None, n_bins: int = N_BINS) -> Tensor:
    """Return the probability of each bin of the angle, shape ``(c, j)``.

    Parameters
    ----------
    angle_c
        Mean angle.
    length_c
        Mean resultant length of a power spherical posterior. By default, angles are known exactly, and divided between
        the two nearest bins.
    n_bins
        Number of bins.
    """
    if length_c is None:
        position_c = angle_c.double() / (2 * torch.pi) * n_bins
        lower_c = position_c.floor()
        share_c = position_c - lower_c
        weight_cj = torch.zeros(len(angle_c), n_bins, dtype=torch.float64)
        cell_c = torch.arange(len(angle_c))
        weight_cj[cell_c, lower_c.long() % n_bins] += 1 - share_c
        weight_cj[cell_c, (lower_c.long() + 1) % n_bins] += share_c
        return weight_cj
    concentration_c1 = (length_c.double() / (1 - length_c.double()))[:, None]
    cosine_cj = torch.cos(angle_grid(n_bins) - angle_c.double()[:, None])
    return (concentration_c1 * (1 + cosine_cj).clamp_min(1e-12).log()).softmax(1)

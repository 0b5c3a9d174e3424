"""`Integration`: a term of the loss that pulls batches together in latent space, where they overlap.

A model with a batch covariate can still place the batches apart, because the likelihood is indifferent to it. This term
compares the cells of each batch with all other cells of the minibatch by the energy distance, and reduces it.

- Cells in regions of latent space that the other side does not reach have a low weight, so that a cell type that only
  one batch has is not pulled into the types of the others.
- The term acts as far as the distance exceeds that between random groups of cells, over many minibatches. Batches that
  do not differ stay as they are.

Axis suffixes: ``a`` assignments of cells to batches, ``c`` cells, ``s`` batches (of all assignments, side by side),
``z`` latent coordinates.

References
----------
Székely and Rizzo (2013), Energy statistics: A class of statistics based on distances,
doi:10.1016/j.jspi.2013.03.018.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

__all__ = ["Integration", "batch_distance"]

# Nats per cell for each unit of the distance between batches, at strength 1.
WEIGHT = 5.0
# Decay of the moving averages of the distance.
EMA_DECAY = 0.98
# The term starts to act where the mean excess is above 0 by the first number of standard errors, and acts fully at the
# second.
STANDARD_ERRORS = (1.0, 3.0)
# Standard deviation of the Gaussian kernel that estimates the density of each batch, as a fraction of the mean distance
# between two cells.
BANDWIDTH = 0.4
# Number of cells, distributed as all cells, that are added to each side, because the densities of small batches are
# uncertain.
PSEUDO_CELLS = 2.0
# Smallest weight of a cell. Without it, batches that are far apart at the start of training would stay apart.
MIN_WEIGHT = 0.1
# A side takes part if no single cell has more than this share of its weight.
MAX_WEIGHT = 0.9
# Smallest number of cells in a minibatch.
MIN_CELLS = 8
# Smallest sum to divide by.
TINY = 1e-6


class Integration(nn.Module):
    """The term of the loss, with moving averages that tell how far batches differ beyond chance.

    Parameters
    ----------
    strength
        Weight of the term; 1 suits most data.
    n_batches
        Number of batches.
    """

    excess: Tensor
    excess_square: Tensor
    n_updates: Tensor

    def __init__(self, strength: float, n_batches: int) -> None:
        super().__init__()
        self.strength, self.n_batches = strength, n_batches
        for name in ("excess", "excess_square", "n_updates"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, mu_cz: Tensor, batch_c: Tensor) -> Tensor:
        """Return the term in nats per cell, for the posterior means and the batches of a minibatch."""
        if len(mu_cz) < MIN_CELLS:
            return mu_cz.new_zeros(())
        permuted_c = batch_c[torch.randperm(len(batch_c), device=batch_c.device)]
        # The weights depend on the cells, so the distance is not 0 on average if batches do not differ. That of the
        # permuted batches is the same on average, also in its gradient.
        distance, chance = batch_distance(mu_cz, torch.stack([batch_c, permuted_c], 1), self.n_batches)
        excess = distance - chance
        if self.training:
            self._update(excess.detach())
        return WEIGHT * self.strength * self.significance() * excess

    def _update(self, excess: Tensor) -> None:
        """Update the moving averages; at first, they are plain means."""
        self.n_updates += 1
        weight = torch.clamp(1 / self.n_updates, min=1 - EMA_DECAY)
        self.excess.lerp_(excess, weight)
        self.excess_square.lerp_(excess.square(), weight)

    def significance(self) -> Tensor:
        """Return 0 if the batches do not differ more than by chance, 1 if they clearly do."""
        deviation = (self.excess_square - self.excess.square()).clamp_min(TINY**2).sqrt()
        # Standard error of an exponential moving average, in units of the standard deviation.
        error = deviation * math.sqrt((1 - EMA_DECAY) / (1 + EMA_DECAY))
        low, high = STANDARD_ERRORS
        return ((self.excess / error - low) / (high - low)).clamp(0, 1)


def batch_distance(mu_cz: Tensor, batch_ca: Tensor, n_batches: int) -> Tensor:
    """Return the energy distance of each batch from all other cells, summed over batches by their share of the cells.

    Parameters
    ----------
    mu_cz
        Posterior means of the latent coordinates of the cells of a minibatch.
    batch_ca
        Batch of each cell, int64, under one or more assignments of cells to batches.
    n_batches
        Number of batches. A batch of a single cell contributes 0, and so does a batch without others.

    Returns
    -------
    Tensor
        The distance under each assignment, shape ``(a,)``.
    """
    inside_cs = one_hot(batch_ca, n_batches).to(mu_cz.dtype).flatten(1)
    distance_cc = torch.cdist(mu_cz, mu_cz)  # its gradient is 0 where the distance is 0
    energy_s = weighted_energy(distance_cc, inside_cs, overlap_weights(distance_cc.detach(), inside_cs))
    return energy_s.view(batch_ca.shape[1], n_batches).sum(1)


def weighted_energy(distance_cc: Tensor, inside_cs: Tensor, overlap_cs: Tensor) -> Tensor:
    """Return the energy distance between each batch and the rest, times the share of its cells, shape ``(s,)``.

    Parameters
    ----------
    distance_cc
        Distances between the cells.
    inside_cs
        One for the cells of each batch, zero for others.
    overlap_cs
        Weights of the cells in the comparison of each batch with the rest.
    """
    inside_weight_cs, outside_weight_cs = overlap_cs * inside_cs, overlap_cs * (1 - inside_cs)
    share_s = inside_weight_cs.sum(0) / len(inside_cs)
    inside_weight_cs = inside_weight_cs / inside_weight_cs.sum(0).clamp_min(TINY)
    outside_weight_cs = outside_weight_cs / outside_weight_cs.sum(0).clamp_min(TINY)
    between_s = (inside_weight_cs * (distance_cc @ outside_weight_cs)).sum(0)
    energy_s, takes_part_s = 2 * between_s, torch.ones_like(share_s)
    for weight_cs in (inside_weight_cs, outside_weight_cs):
        # Of two different cells: pairs of a cell with itself would make the estimate biased.
        same_s = weight_cs.square().sum(0)
        within_s = (weight_cs * (distance_cc @ weight_cs)).sum(0) / (1 - same_s).clamp_min(1 - MAX_WEIGHT)
        energy_s = energy_s - within_s
        takes_part_s = takes_part_s * (same_s < MAX_WEIGHT) * (same_s > 0)
    return energy_s * share_s * takes_part_s


def overlap_weights(distance_cc: Tensor, inside_cs: Tensor) -> Tensor:
    """Return how far the other side reaches the place of each cell, up to 1, shape ``(c, s)``.

    For a batch, one side is its cells and the other side is all other cells. The weight of a cell is the density of the
    other side relative to that of its own side, at most 1. The cell itself does not count.

    Parameters
    ----------
    distance_cc
        Distances between the cells.
    inside_cs
        One for the cells of each batch, zero for others.
    """
    bandwidth = (BANDWIDTH * distance_cc.mean()).clamp_min(TINY)
    kernel_cc = torch.exp(-0.5 * (distance_cc / bandwidth).square()).fill_diagonal_(0)
    pseudo_c1 = PSEUDO_CELLS * kernel_cc.sum(1, keepdim=True) / (len(kernel_cc) - 1)
    n_s, n_others_s = inside_cs.sum(0), (1 - inside_cs).sum(0)
    inside_density_cs = (kernel_cc @ inside_cs + pseudo_c1) / (n_s - inside_cs + PSEUDO_CELLS)
    outside_density_cs = (kernel_cc @ (1 - inside_cs) + pseudo_c1) / (n_others_s - (1 - inside_cs) + PSEUDO_CELLS)
    own_cs = torch.where(inside_cs > 0, inside_density_cs, outside_density_cs)
    other_cs = torch.where(inside_cs > 0, outside_density_cs, inside_density_cs)
    return (other_cs / own_cs.clamp_min(TINY)).clamp(MIN_WEIGHT, 1)

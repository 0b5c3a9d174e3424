"""Fusion of the posteriors of several modalities: each encoder returns a Gaussian, and a cell may lack modalities.

A fusion determines which of a cell's modalities are included in a training step, and how the Gaussians of the included
modalities are combined. If a modality is sometimes included alone, or if its posterior is aligned with that of all
modalities, its posterior must be sufficient to decode all modalities.

Axis suffixes: ``m`` modalities, ``c`` cells, ``z`` latent coordinates, ``s`` subsets of the modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["FUSIONS", "Fusion", "FusionName"]

FusionName = Literal["aligned_product", "product", "mixture", "mixture_of_products", "mean"]
# Fusions that multiply the posteriors of the included modalities.
PRODUCTS = ("aligned_product", "product", "mixture_of_products")
FUSIONS: tuple[FusionName, ...] = get_args(FusionName)


@dataclass(frozen=True)
class Fusion:
    r"""Combine Gaussian posteriors of several modalities.

    Parameters
    ----------
    name
        - ``"product"``: product of experts [1]_. Precisions add, including that of the prior.
        - ``"aligned_product"``: the same product. If some cells lack a modality, training subtracts from the ELBO of
          each cell with several modalities the KL divergence of the posterior given all of them from that given one
          [4]_; see `Fusion.alignment`. The embeddings of single modalities then agree. If no cell lacks a modality, it
          is the same as ``"product"``.
        - ``"mixture"``: mixture of experts [2]_. Training uses one modality per cell, drawn at random.
        - ``"mixture_of_products"`` [3]_: training uses the product over a random subset of each cell's modalities, with
          equal probability for all subsets. Outside of training, it is the product over all modalities.
        - ``"mean"``: the mean of the means and of the standard deviations.

    Notes
    -----
    The KL divergence is convex, so the ELBO with a random component is on average a lower bound of the ELBO with the
    mixture.

    References
    ----------
    .. [1] Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning,
       arXiv:1802.05335.
    .. [2] Shi et al. (2019), Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models,
       arXiv:1911.03393.
    .. [3] Sutter et al. (2021), Generalized Multimodal ELBO, arXiv:2105.02470.
    .. [4] Hwang et al. (2021), Multi-View Representation Learning via Total Correlation Objective, Advances in Neural
       Information Processing Systems 34.
    """

    name: FusionName

    def sample_included(self, present_mc: Tensor, training: bool) -> Tensor:
        """Return a mask ``(m, c)`` of the modalities that each posterior uses: all of the cell, or a random subset."""
        if self.name == "mixture":
            return sample_subset(present_mc, max_size=1)
        if self.name == "mixture_of_products" and training:
            return sample_subset(present_mc, max_size=len(present_mc))
        return present_mc

    def combine(self, mu_mcz: Tensor, sigma_mcz: Tensor, included_mc: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the fused Gaussians, each ``(c, z)``.

        Cells without included modalities get the prior. A mixture, which is not Gaussian, is represented by its mean
        and standard deviation.
        """
        included_mc1 = included_mc[:, :, None]
        if self.name in PRODUCTS:
            precision_mcz = included_mc1 * sigma_mcz**-2
            variance_cz = 1 / (1 + precision_mcz.sum(0))
            return variance_cz * (precision_mcz * mu_mcz).sum(0), variance_cz.sqrt()
        weight_mc1 = included_mc1 / included_mc1.sum(0).clamp_min(1)
        mu_cz = (weight_mc1 * mu_mcz).sum(0)
        if self.name == "mean":
            sigma_cz = (weight_mc1 * sigma_mcz).sum(0)
            return mu_cz, torch.where(included_mc1.any(0), sigma_cz, 1)
        # The square root has an infinite gradient at 0. Cells without included modalities get the variance 1 before it.
        square_cz = (weight_mc1 * (sigma_mcz**2 + (mu_mcz - mu_cz) ** 2)).sum(0)
        return mu_cz, torch.where(included_mc1.any(0), square_cz, 1).sqrt()

    def alignment(self, mu_mcz: Tensor, sigma_mcz: Tensor, present_mc: Tensor) -> Tensor | None:
        """Return the penalty on disagreement of modalities in nats, shape ``(c,)``; None for other fusions.

        It is the KL divergence of the posterior given all modalities of a cell from that given one of them, mean over
        its modalities, times the ratio of the cells that lack a modality to those with several, at most 1. It is 0 for
        cells with a single modality, and if no cell lacks one: modalities may then contain different information.
        """
        if self.name != "aligned_product":
            return None
        mu_cz, sigma_cz = self.combine(mu_mcz, sigma_mcz, present_mc)
        # Each posterior includes the prior.
        variance_mcz = 1 / (1 + sigma_mcz**-2)
        error_mcz = sigma_cz**2 + (mu_cz - variance_mcz * sigma_mcz**-2 * mu_mcz) ** 2
        kl_mc = (variance_mcz.log() / 2 - sigma_cz.log() + error_mcz / (2 * variance_mcz) - 0.5).sum(2)
        n_present_c = present_mc.sum(0)
        has_several_c, lacks_some_c = n_present_c > 1, (n_present_c > 0) & (n_present_c < len(present_mc))
        weight = (lacks_some_c.sum() / has_several_c.sum().clamp_min(1)).clamp_max(1)
        # For a cell with one modality, the two are the same up to rounding.
        return weight * torch.where(present_mc & has_several_c, kl_mc, 0).sum(0) / n_present_c.clamp_min(1)


def sample_subset(present_mc: Tensor, max_size: int) -> Tensor:
    """Sample for each cell a subset of its modalities of size 1 to `max_size`, all with equal probability."""
    rows = [row for row in product((False, True), repeat=len(present_mc)) if 1 <= sum(row) <= max_size]
    subset_sm = torch.tensor(rows, device=present_mc.device)
    possible_sc = ~(subset_sm[:, :, None] & ~present_mc).any(1)
    index_c = torch.where(possible_sc, torch.rand(possible_sc.shape, device=present_mc.device), -1).argmax(0)
    # A cell without modalities has no possible subset. The intersection with its modalities is then empty.
    return subset_sm[index_c].T & present_mc

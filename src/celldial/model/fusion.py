"""How the judgements of several encoders on one cell become one: each says a Gaussian, and a cell may lack some.

Two questions make a fusion. Which of a cell's modalities are heard in a training step? And how are those that are heard
combined? A modality that is heard alone now and then must say enough on its own to decode all the others.

Axis suffixes: ``m`` modalities, ``c`` cells, ``z`` latent coordinates, ``s`` subsets of the modalities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass

__all__ = ["FUSIONS", "Fusion", "FusionName"]

FusionName = Literal["product", "mixture", "mixture_of_products", "mean"]


class Fusion:
    r"""Fuse Gaussian posteriors of several modalities.

    Parameters
    ----------
    name
        - ``"product"``: product of experts [1]_; precisions add, that of the prior included.
        - ``"mixture"``: mixture of experts [2]_; in training a modality drawn for each cell stands for all.
        - ``"mixture_of_products"`` [3]_: in training the product over a subset of its modalities drawn for each cell,
          all subsets being as likely; afterwards the product over all.
        - ``"mean"``: the average of means and of standard deviations.

    Notes
    -----
    By the convexity of the KL divergence, the ELBO with a component drawn at random is, on average, a lower bound of
    the ELBO with the mixture.

    References
    ----------
    .. [1] Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning,
       arXiv:1802.05335.
    .. [2] Shi et al. (2019), Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models,
       arXiv:1911.03393.
    .. [3] Sutter et al. (2021), Generalized Multimodal ELBO, arXiv:2105.02470.
    """

    def __init__(self, name: FusionName) -> None:
        self.name = name

    def draw(self, present_mc: Tensor, training: bool) -> Tensor:
        """Say which modalities of each cell are heard, bool, shape ``(m, c)``; all it has where nothing is drawn."""
        if self.name == "mixture":
            return sample_subset(present_mc, largest=1)
        if self.name == "mixture_of_products" and training:
            return sample_subset(present_mc, largest=len(present_mc))
        return present_mc

    def combine(self, mu_mcz: Tensor, sigma_mcz: Tensor, heard_mc: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the fused Gaussians, each ``(c, z)``; the prior for cells that are not heard.

        A mixture, which is no Gaussian, is given its own mean and standard deviation.
        """
        heard_mc1 = heard_mc[:, :, None]
        if self.name in ("product", "mixture_of_products"):
            precision_mcz = heard_mc1 * sigma_mcz**-2
            variance_cz = 1 / (1 + precision_mcz.sum(0))
            return variance_cz * (precision_mcz * mu_mcz).sum(0), variance_cz.sqrt()
        share_mc1 = heard_mc1 / heard_mc1.sum(0).clamp_min(1)
        mu_cz = (share_mc1 * mu_mcz).sum(0)
        if self.name == "mean":
            sigma_cz = (share_mc1 * sigma_mcz).sum(0)
        else:
            # The root of 0 has no gradient, so that cells that are not heard are given their 1 before it.
            square_cz = (share_mc1 * (sigma_mcz**2 + (mu_mcz - mu_cz) ** 2)).sum(0)
            return mu_cz, torch.where(heard_mc1.any(0), square_cz, 1).sqrt()
        return mu_cz, torch.where(heard_mc1.any(0), sigma_cz, 1)


def sample_subset(present_mc: Tensor, largest: int) -> Tensor:
    """Draw for each cell one of the subsets of its modalities that have 1 to `largest` members, each equally likely."""
    rows = [row for row in product((False, True), repeat=len(present_mc)) if 1 <= sum(row) <= largest]
    subset_sm = torch.tensor(rows, device=present_mc.device)
    possible_sc = ~(subset_sm[:, :, None] & ~present_mc).any(1)
    chosen_c = torch.where(possible_sc, torch.rand(possible_sc.shape, device=present_mc.device), -1).argmax(0)
    # For a cell without any modality nothing is possible, and nothing is heard.
    return subset_sm[chosen_c].T & present_mc


FUSIONS: tuple[FusionName, ...] = ("product", "mixture", "mixture_of_products", "mean")


def default_modality_weights(n_features: Mapping[str, int]) -> dict[str, float]:
    """Weigh the modalities: the first by 1, and those that are wider by the root of the ratio of their widths."""
    first = next(iter(n_features.values()))
    return {modality: min(1.0, math.sqrt(first / n)) for modality, n in n_features.items()}

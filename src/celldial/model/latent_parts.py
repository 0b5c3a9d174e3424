"""The interface of the parts of a latent state: coordinates, clusters and the periodic coordinate.

Axis suffixes: ``c`` cells, ``k`` clusters, ``q`` parameters of the angle posterior, ``z`` columns of the latent state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyro.distributions import TorchDistribution
from torch import Tensor

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = ["EncoderOutput", "LatentPart"]


class EncoderOutput(NamedTuple):
    """Parameters of the posterior of each cell's latent state.

    Parameters
    ----------
    mu_cz, sigma_cz
        Mean and standard deviation of the coordinates.
    logits_ck
        Unnormalized log probabilities of the clusters, for a model with clusters.
    angle_params_cq
        Parameters of the angle posterior, for a model with a periodic coordinate; see
        `celldial.model.periodic.Circle.posterior_distributions`.
    alignment_c
        Penalty on disagreement of modalities in nats, in training with a fusion that has it; see
        `celldial.model.fusion.Fusion.alignment`.
    """

    mu_cz: Tensor
    sigma_cz: Tensor
    logits_ck: Tensor | None = None
    angle_params_cq: Tensor | None = None
    alignment_c: Tensor | None = None


class LatentPart(Protocol):
    """A part of the latent state: one or more random variables of each cell.

    `celldial.model.module.Module` loops over its parts in a fixed order. The prior of a part may depend on the
    variables of the parts before it.
    """

    @property
    def analytic_kl(self) -> bool:
        """Whether the KL divergence of the posterior from the prior has a closed form."""

    def prior_distributions(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, TorchDistribution]:
        """Return the prior of each variable, given the variables of the parts before."""

    def posterior_distributions(self, encoded: EncoderOutput, cells: Cells) -> dict[str, TorchDistribution]:
        """Return the approximate posterior of each variable."""

    def sample_prior(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sample each variable for new cells."""

    def state_columns(self, drawn: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the columns of the latent state that the decoder reads, each of shape ``(c, z)``."""

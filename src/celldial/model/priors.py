"""Priors of the latent coordinates, one class each, and the flow of the posterior.

Axis suffixes: ``c`` cells, ``k`` components, ``p`` posterior parameters, ``z`` latent coordinates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from pyro.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    TorchDistribution,
    TransformedDistribution,
)
from pyro.distributions.transforms import AffineAutoregressive, ConditionalAffineAutoregressive
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from celldial.model.latents import Latent

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = [
    "POSTERIORS",
    "PRIORS",
    "Components",
    "Flow",
    "Mixture",
    "PosteriorFlow",
    "PosteriorName",
    "Prior",
    "PriorName",
    "Standard",
]

PriorName = Literal["standard", "mixture", "flow"]
PRIORS: tuple[PriorName, ...] = get_args(PriorName)
PosteriorName = Literal["diagonal", "flow"]
POSTERIORS: tuple[PosteriorName, ...] = get_args(PosteriorName)

# Layers of a flow, and hidden units of each layer per coordinate.
N_LAYERS, UNITS_PER_COORDINATE = 2, 8
# Factor on the initial weights of the last layer of each network in a flow.
HEAD_SCALE = 0.01
# Standard deviation of the initial means of a mixture, and initial standard deviation of its components.
INITIAL_SPREAD, INITIAL_SCALE = 0.7, 0.7


class Prior(nn.Module):
    """Base class of the priors of the coordinates.

    A prior receives the cells, so that it can depend on their covariates.

    Attributes
    ----------
    in_family
        Whether the prior, given the cluster of a cell if there are clusters, is a member of the latent family.
    """

    in_family: ClassVar[bool] = False

    def distribution(self, cells: Cells) -> TorchDistribution:
        """Return the prior of each cell's coordinates, of batch shape ``(c,)``."""
        raise NotImplementedError


class Standard(Prior):
    """The standard member of the latent family, of mean 0 and standard deviation 1."""

    in_family = True

    def __init__(self, latent: Latent) -> None:
        super().__init__()
        self.latent = latent

    def distribution(self, cells: Cells) -> TorchDistribution:
        """Return the prior of each cell's coordinates."""
        return self.latent.prior(len(cells), cells.continuous_ck)


class Components(nn.Module):
    """Weighted components in latent space, each a member of the latent family.

    Parameters
    ----------
    latent
        The latent family.
    n_components
        Number of components.
    spread, scale
        Standard deviation of the initial means, and initial standard deviation of each component. With a spread of 0
        and a scale of 1, all components are the standard prior.
    """

    def __init__(self, latent: Latent, n_components: int, spread: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.latent = latent
        self.logit_k = nn.Parameter(torch.zeros(n_components))
        self.mean_kz = nn.Parameter(spread * torch.randn(n_components, latent.n_latent))
        self.log_scale_kz = nn.Parameter(torch.full((n_components, latent.n_latent), scale).log())

    @property
    def scale_kz(self) -> Tensor:
        """Standard deviations."""
        return self.log_scale_kz.exp()

    def distributions(self) -> Independent:
        """Return the distribution of the coordinates in each component, of batch shape ``(k,)``."""
        return self.latent.posterior(self.mean_kz, self.scale_kz)

    def mixture(self, n_cells: int) -> TorchDistribution:
        """Return the mixture of the components, of batch shape ``(c,)``."""
        mixture: TorchDistribution = MixtureSameFamily(Categorical(logits=self.logit_k), self.distributions())
        expanded: TorchDistribution = mixture.expand([n_cells])
        return expanded

    def log_prob_ck(self, z_cz: Tensor) -> Tensor:
        """Return the log density of points in each component."""
        log_p_ck: Tensor = self.distributions().log_prob(z_cz[:, None])
        return log_p_ck


class Mixture(Prior):
    """A learned mixture, for cells that form several groups."""

    def __init__(self, latent: Latent, n_components: int) -> None:
        super().__init__()
        self.components = Components(latent, n_components, INITIAL_SPREAD, INITIAL_SCALE)

    def distribution(self, cells: Cells) -> TorchDistribution:
        """Return the prior of each cell's coordinates."""
        return self.components.mixture(len(cells))


class Flow(Prior):
    """The standard prior transformed by a masked autoregressive flow. Its density is computed in one pass.

    References
    ----------
    Papamakarios et al. (2017), Masked Autoregressive Flow for Density Estimation, arXiv:1705.07057.
    """

    def __init__(self, latent: Latent) -> None:
        super().__init__()
        self.latent = latent
        n = latent.n_latent
        self.layers = nn.ModuleList(
            AffineAutoregressive(AutoRegressiveNN(n, [UNITS_PER_COORDINATE * n], permutation=order_z))
            for order_z in layer_permutations(n)
        )
        initialize_to_identity(self)

    def distribution(self, cells: Cells) -> TorchDistribution:
        """Return the prior of each cell's coordinates."""
        base = self.latent.prior(len(cells), cells.continuous_ck)
        return TransformedDistribution(base, [layer.inv for layer in reversed(self.layers)])


class PosteriorFlow(nn.Module):
    """An inverse autoregressive flow that transforms a diagonal posterior, conditioned on its mean and deviation.

    References
    ----------
    Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow, arXiv:1606.04934.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        n = n_latent
        self.layers = nn.ModuleList(
            ConditionalAffineAutoregressive(
                ConditionalAutoRegressiveNN(n, 2 * n, [UNITS_PER_COORDINATE * n], permutation=order_z)
            )
            for order_z in layer_permutations(n)
        )
        initialize_to_identity(self)

    def distribution(self, base: Independent) -> TorchDistribution:
        """Return the transformed posterior."""
        context_cp = torch.cat([base.mean, base.stddev.log()], -1)
        return TransformedDistribution(base, [condition(layer, context_cp) for layer in self.layers])


def condition(layer: nn.Module, context_cp: Tensor) -> AffineAutoregressive:
    """Return a layer of a flow conditioned on the posterior of each cell."""
    assert isinstance(layer, ConditionalAffineAutoregressive)
    return layer.condition(context_cp)


def layer_permutations(n_latent: int) -> list[Tensor]:
    """Return the order of the coordinates in each layer of a flow, reversed from layer to layer."""
    order_z = torch.arange(n_latent)
    return [order_z if layer % 2 == 0 else order_z.flip(0) for layer in range(N_LAYERS)]


def initialize_to_identity(flow: nn.Module) -> None:
    """Initialize the last layers near zero, so that the flow starts close to the identity."""
    with torch.no_grad():
        for network in flow.modules():
            if isinstance(network, ConditionalAutoRegressiveNN):
                for parameter in network.layers[-1].parameters():
                    parameter.mul_(HEAD_SCALE)

"""What is known of a cell's latent coordinates before its counts are seen, and flows for what is known after.

Each prior offers ``distribution(n_cells, like)``. Axis suffixes: ``c`` cells, ``k`` components, ``z`` latent
coordinates.
"""

from __future__ import annotations

from typing import Literal, get_args

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

__all__ = ["POSTERIORS", "PRIORS", "Components", "Flow", "Mixture", "PosteriorFlow", "PosteriorName", "PriorName"]

PriorName = Literal["standard", "mixture", "flow"]
PRIORS: tuple[PriorName, ...] = get_args(PriorName)
PosteriorName = Literal["diagonal", "flow"]
POSTERIORS: tuple[PosteriorName, ...] = get_args(PosteriorName)

# Layers of a flow, and hidden units of each for each coordinate.
N_LAYERS, UNITS = 2, 8
# The last layers of their networks start this much below torch's default.
HEAD_SCALE = 0.01
# How far apart the components of a mixture start, and how wide.
INITIAL_SPREAD, INITIAL_SCALE = 0.7, 0.7


class Components(nn.Module):
    """A weighted set of places in latent space, each with a distribution of the latent family around it.

    Parameters
    ----------
    latent
        The family.
    n_components
        Number of places.
    spread, scale
        How far apart their means start, and the standard deviation of each. With a spread of 0 and a scale of 1 all are
        the standard prior.
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

    def each(self) -> Independent:
        """Distribution of the coordinates in each component, of batch shape ``(k,)``."""
        return self.latent.posterior(self.mean_kz, self.scale_kz)

    def log_prob_ck(self, z_cz: Tensor) -> Tensor:
        """Log density of points in each component."""
        log_p_ck: Tensor = self.each().log_prob(z_cz[:, None])
        return log_p_ck


class Mixture(nn.Module):
    """A learned mixture of places: what is common among the cells need not be a single bell."""

    def __init__(self, latent: Latent, n_components: int) -> None:
        super().__init__()
        self.components = Components(latent, n_components, INITIAL_SPREAD, INITIAL_SCALE)

    def distribution(self, n_cells: int, like: Tensor) -> TorchDistribution:
        """Distribution of the coordinates of so many cells."""
        of = self.components
        mixture = MixtureSameFamily(Categorical(logits=of.logit_k), of.each())
        expanded: TorchDistribution = mixture.expand([n_cells])
        return expanded


class Flow(nn.Module):
    """A prior bent by a masked autoregressive flow, whose density is known in one pass.

    References
    ----------
    Papamakarios et al. (2017), Masked Autoregressive Flow for Density Estimation, arXiv:1705.07057.
    """

    def __init__(self, latent: Latent) -> None:
        super().__init__()
        self.latent = latent
        self.layers = nn.ModuleList(
            AffineAutoregressive(AutoRegressiveNN(n, [UNITS * n], permutation=order))
            for n, order in layer_permutations(latent.n_latent)
        )
        initialize_to_identity(self)

    def distribution(self, n_cells: int, like: Tensor) -> TorchDistribution:
        """Distribution of the coordinates of so many cells."""
        base = self.latent.prior(n_cells, like)
        return TransformedDistribution(base, [layer.inv for layer in reversed(self.layers)])


class PosteriorFlow(nn.Module):
    """A posterior bent by an inverse autoregressive flow, which is told where the cell's posterior begins.

    References
    ----------
    Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow, arXiv:1606.04934.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConditionalAffineAutoregressive(ConditionalAutoRegressiveNN(n, 2 * n, [UNITS * n], permutation=order))
            for n, order in layer_permutations(n_latent)
        )
        initialize_to_identity(self)

    def distribution(self, base: Independent) -> TorchDistribution:
        """Bend a diagonal posterior."""
        input_cp = torch.cat([base.mean, base.stddev.log()], -1)
        return TransformedDistribution(base, [bend(layer, input_cp) for layer in self.layers])


def bend(layer: nn.Module, input_cp: Tensor) -> AffineAutoregressive:
    """Tell a layer of a flow where each cell's posterior begins."""
    assert isinstance(layer, ConditionalAffineAutoregressive)
    return layer.condition(input_cp)


def layer_permutations(n_latent: int) -> list[tuple[int, Tensor]]:
    """Order the coordinates for each layer of a flow, each in reverse of the one before."""
    forth = torch.arange(n_latent)
    return [(n_latent, forth if layer % 2 == 0 else forth.flip(0)) for layer in range(N_LAYERS)]


def initialize_to_identity(flow: nn.Module) -> None:
    """Let the last layer of each network say next to nothing, so that hardly anything is bent."""
    with torch.no_grad():
        for network in flow.modules():
            if isinstance(network, ConditionalAutoRegressiveNN):
                for parameter in network.layers[-1].parameters():
                    parameter.mul_(HEAD_SCALE)

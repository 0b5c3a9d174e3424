"""Latent families, one class each: the prior, the posterior and the link from coordinates to what the decoder reads.

To add a family, write a subclass of `Latent` and add it to `LatentName` and `LATENTS`. Its tests need one row in
``tests/helpers/cases.py``.

Axis suffixes: ``c`` cells, ``p`` posterior parameters, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LATENTS", "Latent", "LatentName", "check_latent_states"]

# Smallest standard deviation of a posterior. It keeps the KL divergence finite.
MIN_SCALE = 1e-4
# softplus(INVERSE_SOFTPLUS_OF_ONE) = 1
INVERSE_SOFTPLUS_OF_ONE = 0.5413248546129181
# The exponential link of `LogNormal` continues as a straight line above this value.
LINEAR_FROM = 20.0
# Scale of the softmax of `LogisticNormal`. Under the prior, a cell has about four of ten topics (perplexity).
TOPIC_SCALE = 2.0


class Latent:
    """Base class of the latent families: coordinates u = mu + sigma * noise, and the link to what the decoder reads.

    The coordinates u are real numbers in every family. Posteriors, fusion, traversals and samples are computed in u.
    `link` maps u to z, which the decoder reads and users see. The link does not change KL divergences, because it is
    invertible, except in directions of u that do not change z. In every family, `mu` and `sigma` are the mean and the
    standard deviation of u, and the prior has mean 0 and standard deviation 1.

    Parameters
    ----------
    n_latent
        Number of coordinates.

    Attributes
    ----------
    analytic_kl
        Whether the KL divergence between two members of the family has a closed form.
    coordinate_noun
        Name of a coordinate in tables.
    min_latent
        Smallest number of coordinates.
    """

    analytic_kl: ClassVar[bool] = True
    coordinate_noun: ClassVar[str] = "axis"
    min_latent: ClassVar[int] = 1

    def __init__(self, n_latent: int) -> None:
        self.n_latent = n_latent

    @property
    def n_parameters(self) -> int:
        """Number of encoder outputs per cell."""
        return 2 * self.n_latent

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> TorchDistribution:
        """Return the distribution of each coordinate with this mean and standard deviation."""
        raise NotImplementedError

    def link(self, u_cz: Tensor) -> Tensor:
        """Map coordinates to what the decoder reads."""
        return u_cz

    def inverse_link(self, z_cz: Tensor) -> Tensor:
        """Return the coordinates that `link` maps to these values."""
        return z_cz

    def check_range(self, z_cz: np.ndarray) -> None:
        """Raise a ValueError if values are outside the range of `link`."""

    def prior(self, n_cells: int, like: Tensor) -> Independent:
        """Return the standard prior of the coordinates, on the device and in the precision of `like`."""
        zero_cz = like.new_zeros(n_cells, self.n_latent)
        return self.base_distribution(zero_cz, torch.ones_like(zero_cz)).to_event(1)

    def parameters(self, output_cp: Tensor) -> tuple[Tensor, Tensor]:
        """Map encoder outputs to mean and standard deviation; outputs of 0 map to those of the prior, 0 and 1."""
        mu_cz, raw_cz = output_cp.chunk(2, -1)
        return mu_cz, softplus(raw_cz + INVERSE_SOFTPLUS_OF_ONE) + MIN_SCALE

    def posterior(self, mu_cz: Tensor, sigma_cz: Tensor) -> Independent:
        """Return the joint distribution of independent coordinates with this mean and standard deviation."""
        return self.base_distribution(mu_cz, sigma_cz).to_event(1)


class Gaussian(Latent):
    """Normal coordinates.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> Normal:
        """Return the distribution of each coordinate with this mean and standard deviation."""
        return Normal(mu_cz, sigma_cz)


class Laplace(Latent):
    """Double-exponential coordinates: a peak with heavy tails, so that most cells are near 0 and a few far away."""

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> dist.Laplace:
        """Return the distribution of each coordinate with this mean and standard deviation."""
        return dist.Laplace(mu_cz, sigma_cz * math.sqrt(0.5))


class Logistic(Latent):
    """Logistic coordinates: bell-shaped, with heavier tails than the normal distribution."""

    analytic_kl = False

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> dist.Logistic:
        """Return the distribution of each coordinate with this mean and standard deviation."""
        return dist.Logistic(mu_cz, sigma_cz * (math.sqrt(3) / math.pi))


class LogNormal(Gaussian):
    """Positive coordinates, the exponentials of normal ones: programs that are more or less active, never negative.

    Above `LINEAR_FROM`, 20 times the median of the prior, the exponential continues as a straight line. No draw can
    then multiply a gradient by more than that. Under the prior, one draw in 700 is in the linear part.
    """

    def link(self, u_cz: Tensor) -> Tensor:
        """Map coordinates to what the decoder reads: the exponential, linear above `LINEAR_FROM`."""
        top = math.log(LINEAR_FROM)
        return u_cz.clamp_max(top).exp() + LINEAR_FROM * (u_cz - top).clamp_min(0)

    def inverse_link(self, z_cz: Tensor) -> Tensor:
        """Return the coordinates that `link` maps to these positive values."""
        return z_cz.clamp(torch.finfo(z_cz.dtype).tiny, LINEAR_FROM).log() + (z_cz / LINEAR_FROM - 1).clamp_min(0)

    def check_range(self, z_cz: np.ndarray) -> None:
        """Raise a ValueError unless all values are positive."""
        if not (z_cz > 0).all():
            raise ValueError("z has values that are not above 0: the coordinates of a log-normal model are positive")


class LogisticNormal(Gaussian):
    """Topic proportions, which sum to 1: the softmax of normal coordinates times `TOPIC_SCALE`.

    References
    ----------
    Srivastava and Sutton (2017), Autoencoding Variational Inference For Topic Models, arXiv:1703.01488.
    """

    coordinate_noun = "topic"
    min_latent = 2  # the proportion of a single topic is always 1

    def link(self, u_cz: Tensor) -> Tensor:
        """Map coordinates to what the decoder reads: the proportion of each topic."""
        return torch.softmax(TOPIC_SCALE * u_cz, -1)

    def inverse_link(self, z_cz: Tensor) -> Tensor:
        """Return the coordinates, with mean 0, that `link` maps to these proportions."""
        log_cz = z_cz.clamp_min(torch.finfo(z_cz.dtype).tiny).log() / TOPIC_SCALE
        return log_cz - log_cz.mean(-1, keepdim=True)

    def check_range(self, z_cz: np.ndarray) -> None:
        """Raise a ValueError unless the values of each cell are proportions that sum to 1."""
        if not ((z_cz >= 0).all() and np.allclose(z_cz.sum(1), 1, atol=1e-3)):
            raise ValueError("z has rows that are not topic proportions: values must be at least 0, and rows sum to 1")


LatentName = Literal["gaussian", "laplace", "logistic", "log_normal", "logistic_normal"]
LATENTS: dict[LatentName, type[Latent]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "logistic": Logistic,
    "log_normal": LogNormal,
    "logistic_normal": LogisticNormal,
}


def check_latent_states(z: Any, n_latent: int) -> np.ndarray:
    """Return latent states as float32 of shape ``(cells, n_latent)``, or raise a ValueError."""
    z_cz = np.array(z, dtype=np.float32, ndmin=2)
    if z_cz.ndim != 2 or z_cz.shape[1] != n_latent:
        raise ValueError(f"z has shape {np.shape(z)}: it must be (cells, {n_latent})")
    if not np.isfinite(z_cz).all():
        raise ValueError("z has values that are NaN or infinite: latent states are finite numbers")
    return z_cz

"""Latent families: one class each, with its prior, its posterior and what the encoder must supply for it.

Axis suffixes: ``c`` cells, ``j`` points of a grid on the circle, ``k`` harmonics, ``p`` posterior parameters, ``u`` the
two coordinates of the plane in which the circle lies, ``z`` latent coordinates.
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

from celldial.model.distributions import SOFTPLUS_ONE

# A posterior narrower than this is numerically a point: it keeps the KL divergence finite.
MIN_SCALE = 1e-4


class Latent:
    """What every latent family offers: coordinates u = mu + sigma * noise, and what the decoder reads of them.

    The coordinates are real numbers in every family, and it is in them that cells are judged, fused, moved and drawn.
    `link` takes them to what the decoder reads and what users see. Being invertible, up to what the decoder cannot see
    either, it changes no KL divergence. `mu` and `sigma` are mean and standard deviation in every family, and the prior
    has mean 0 and standard deviation 1.

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
        """Distribution of each coordinate, of given mean and standard deviation."""
        raise NotImplementedError

    def link(self, u_cz: Tensor) -> Tensor:
        """Give what the decoder reads."""
        return u_cz

    def inverse_link(self, z_cz: Tensor) -> Tensor:
        """Give the coordinates that `link` takes to given values."""
        return z_cz

    def prior(self, n_cells: int, like: Tensor) -> Independent:
        """Distribution of the coordinates before any count is seen, on the device and in the precision of ``like``."""
        zero_cz = like.new_zeros(n_cells, self.n_latent)
        return self.base_distribution(zero_cz, torch.ones_like(zero_cz)).to_event(1)

    def parameters(self, output_cp: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation given the encoder's outputs, which start them about 0 and 1."""
        mu_cz, raw_cz = output_cp.chunk(2, -1)
        return mu_cz, softplus(raw_cz + SOFTPLUS_ONE) + MIN_SCALE

    def posterior(self, mu_cz: Tensor, sigma_cz: Tensor) -> Independent:
        """Distribution of the coordinates given counts."""
        return self.base_distribution(mu_cz, sigma_cz).to_event(1)

    def check_range(self, z_cz: np.ndarray) -> None:
        """Raise if values are outside the range of `link`."""


class Gaussian(Latent):
    """Standard normal prior, diagonal Gaussian posterior.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> Normal:
        """Distribution of each coordinate, of given mean and standard deviation."""
        return Normal(mu_cz, sigma_cz)


class Laplace(Latent):
    """Double exponential distributions: peaked, with long tails, so that most cells are near 0 and some far away."""

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> dist.Laplace:
        """Distribution of each coordinate, of given mean and standard deviation."""
        return dist.Laplace(mu_cz, sigma_cz * math.sqrt(0.5))


class Logistic(Latent):
    """Logistic distributions: bells with longer tails than the normal distribution's."""

    analytic_kl = False

    def base_distribution(self, mu_cz: Tensor, sigma_cz: Tensor) -> dist.Logistic:
        """Distribution of each coordinate, of given mean and standard deviation."""
        return dist.Logistic(mu_cz, sigma_cz * (math.sqrt(3) / math.pi))


class LogNormal(Gaussian):
    """Positive coordinates, the exponentials of Gaussian ones: programmes that are more or less on, and never negative.

    Where the exponential is beyond `LINEAR_FROM`, 20 times the median of the prior, it goes on as a straight line, so
    that no draw, however far out, multiplies a gradient by more than that; under the prior that is one draw in 700.
    """

    def link(self, u_cz: Tensor) -> Tensor:
        """Give what the decoder reads: the exponential, at last a line."""
        top = math.log(LINEAR_FROM)
        return u_cz.clamp_max(top).exp() + LINEAR_FROM * (u_cz - top).clamp_min(0)

    def inverse_link(self, z_cz: Tensor) -> Tensor:
        """Give the coordinates that `link` takes to given values, which are positive."""
        return z_cz.clamp(torch.finfo(z_cz.dtype).tiny, LINEAR_FROM).log() + (z_cz / LINEAR_FROM - 1).clamp_min(0)

    def check_range(self, z_cz: np.ndarray) -> None:
        """Raise unless all values are positive."""
        if not (z_cz > 0).all():
            raise ValueError("z has values that are not above 0: the coordinates of a log-normal model are positive")


LINEAR_FROM = 20.0


class LogisticNormal(Gaussian):
    """Shares of topics, which add up to 1: the softmax of Gaussian coordinates, `TOPIC_SCALE` apart.

    References
    ----------
    Srivastava and Sutton (2017), Autoencoding Variational Inference For Topic Models, arXiv:1703.01488.
    """

    coordinate_noun = "topic"
    min_latent = 2  # the share of a single topic is always 1

    def link(self, u_cz: Tensor) -> Tensor:
        """Give what the decoder reads: the share of each topic."""
        return torch.softmax(TOPIC_SCALE * u_cz, -1)

    def inverse_link(self, z_cz: Tensor) -> Tensor:
        """Give the coordinates, of mean 0, that `link` takes to given shares."""
        log_cz = z_cz.clamp_min(torch.finfo(z_cz.dtype).tiny).log() / TOPIC_SCALE
        return log_cz - log_cz.mean(-1, keepdim=True)

    def check_range(self, z_cz: np.ndarray) -> None:
        """Raise unless the values of each cell are shares that sum to 1."""
        if not ((z_cz >= 0).all() and np.allclose(z_cz.sum(1), 1, atol=1e-3)):
            raise ValueError("z has rows that are not topic proportions: each must be at least 0, and sum to 1")


# Under the prior a cell then has about four topics out of ten (perplexity), and not all of them.
TOPIC_SCALE = 2.0

LatentName = Literal["gaussian", "laplace", "logistic", "log_normal", "logistic_normal"]
LATENTS: dict[LatentName, type[Latent]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "logistic": Logistic,
    "log_normal": LogNormal,
    "logistic_normal": LogisticNormal,
}


def check_latent_states(z: Any, n_latent: int) -> np.ndarray:
    """Give latent states as float32 of shape ``(cells, n_latent)``, or raise."""
    z_cz = np.array(z, dtype=np.float32, ndmin=2)
    if z_cz.ndim != 2 or z_cz.shape[1] != n_latent:
        raise ValueError(f"z has the shape {np.shape(z)}: it must be (cells, {n_latent})")
    if not np.isfinite(z_cz).all():
        raise ValueError("z has values that are NaN or infinite: latent states are finite numbers")
    return z_cz

"""Latent families: one class each, with its prior, its posterior and what the encoder must supply for it.

Axis suffixes: ``c`` cells, ``p`` posterior parameters, ``z`` latent coordinates.
"""

from __future__ import annotations

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor
from torch.nn.functional import softplus

# A posterior narrower than this is numerically a point: it keeps the KL divergence finite.
MIN_SCALE = 1e-4


class Gaussian:
    """Standard normal prior, diagonal Gaussian posterior, reparameterized as ``z = mu + sigma * noise``.

    Parameters
    ----------
    n_latent
        Number of coordinates.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def __init__(self, n_latent: int) -> None:
        self.n_latent = n_latent

    @property
    def n_parameters(self) -> int:
        """Number of encoder outputs per cell."""
        return 2 * self.n_latent

    def prior(self, n_cells: int, like: Tensor) -> Independent:
        """Distribution of ``z`` before any count is seen, on the device and in the precision of ``like``."""
        zero_cz = like.new_zeros(n_cells, self.n_latent)
        return Normal(zero_cz, torch.ones_like(zero_cz)).to_event(1)

    def parameters(self, output_cp: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation given the encoder's outputs, which start them about 0 and 1."""
        mu_cz, raw_cz = output_cp.chunk(2, -1)
        return mu_cz, softplus(raw_cz + SOFTPLUS_ONE) + MIN_SCALE

    def posterior(self, mu_cz: Tensor, sigma_cz: Tensor) -> Independent:
        """Distribution of ``z`` given counts."""
        return Normal(mu_cz, sigma_cz).to_event(1)


# softplus(SOFTPLUS_ONE) = 1
SOFTPLUS_ONE = 0.5413248546129181

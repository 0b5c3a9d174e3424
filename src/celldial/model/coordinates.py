"""`Coordinates`: the continuous latent coordinates of a cell.

Axis suffixes: ``c`` cells, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from celldial.model.clusters import Clusters
from celldial.model.latent_parts import EncoderOutput
from celldial.model.latents import Latent
from celldial.model.priors import PosteriorFlow, Prior

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = ["Coordinates"]


class Coordinates(nn.Module):
    """The variable ``"z"``: coordinates of one latent family.

    Parameters
    ----------
    latent
        The latent family.
    prior
        Prior of the coordinates. With `Clusters`, the prior depends on the cluster of the cell.
    posterior_flow
        Flow that transforms the diagonal posterior; None to keep it diagonal.
    """

    def __init__(self, latent: Latent, prior: Prior, posterior_flow: PosteriorFlow | None = None) -> None:
        super().__init__()
        self.latent = latent
        self.prior = prior
        self.posterior_flow = posterior_flow

    @property
    def analytic_kl(self) -> bool:
        """Whether the KL divergence of the posterior from the prior has a closed form."""
        return self.posterior_flow is None and self.prior.in_family and self.latent.analytic_kl

    def prior_distributions(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, TorchDistribution]:
        """Return the prior, given the cluster of each cell if `drawn` has it."""
        if "cluster" in drawn:
            assert isinstance(self.prior, Clusters)
            return {"z": self.prior.conditional(drawn["cluster"], len(cells))}
        return {"z": self.prior.distribution(cells)}

    def posterior_distributions(self, encoded: EncoderOutput, cells: Cells) -> dict[str, TorchDistribution]:
        """Return the approximate posterior."""
        posterior = self.latent.posterior(encoded.mu_cz, encoded.sigma_cz)
        return {"z": posterior if self.posterior_flow is None else self.posterior_flow.distribution(posterior)}

    def sample_prior(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sample the coordinates of new cells."""
        return {"z": self.prior_distributions(cells, drawn)["z"].sample()}

    def state_columns(self, drawn: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the coordinates."""
        return [drawn["z"]]

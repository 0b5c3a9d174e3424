"""The generative story and its inference, as a Pyro ``model`` and ``guide``, and the ELBO that trains them.

Read `Module.model` from top to bottom: it is the whole model. Knows neither AnnData nor the training loop.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyro
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from celldial.latents import Gaussian
from celldial.likelihoods import LIKELIHOODS, Observation
from celldial.nn import Decoder, Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celldial.data import Cells


class Module(nn.Module):
    """A conditional variational autoencoder.

    Parameters
    ----------
    n_features
        Modality to its number of features. Today there is one modality, ``"rna"``.
    likelihood
        Modality to the name of its observation model, a key of `celldial.likelihoods.LIKELIHOODS`.
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    n_latent
        Number of latent coordinates.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers of encoder and decoder, at least 1.
    dropout_rate
        Share of the stored counts that is hidden from the encoder during training.
    """

    def __init__(
        self,
        n_features: Mapping[str, int],
        likelihood: Mapping[str, str],
        n_categories: Sequence[int],
        n_continuous: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
    ) -> None:
        super().__init__()
        covariates = (n_categories, n_continuous)
        self.latent = Gaussian(n_latent)
        self.likelihoods = nn.ModuleDict({m: LIKELIHOODS[likelihood[m]](n) for m, n in n_features.items()})
        self.encoders = nn.ModuleDict(
            {
                m: Encoder(n, *covariates, n_hidden, n_layers, self.latent.n_parameters, dropout_rate)
                for m, n in n_features.items()
            }
        )
        self.decoders = nn.ModuleDict(
            {
                m: Decoder(n_latent, n, self.likelihoods[m].n_heads, *covariates, n_hidden, n_layers)
                for m, n in n_features.items()
            }
        )
        self._elbo = TraceMeanField_ELBO()

    def initialise(self, cells: Cells) -> None:
        """Start biases, input scales and dispersions from the cells to train on."""
        for modality, counts in cells.counts.items():
            library_size_c = cells.library_size[modality]
            self.encoders[modality].initialise(counts, library_size_c)
            self.decoders[modality].initialise(counts)
            self.likelihoods[modality].initialise(counts, library_size_c)

    def model(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """How cells come about: draw a latent state from the prior, decode it with the covariates, draw the counts."""
        with pyro.plate("cells", len(cells)):
            with poutine.scale(scale=kl_weight):
                z_cz = pyro.sample("z", self.latent.prior(len(cells), like=cells.continuous_ck))
            for modality, observation in self.decode(z_cz, cells).items():
                pyro.sample(modality, observation, obs=cells.counts[modality])

    def guide(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """What the latent state of each cell was, judged by its counts."""
        with pyro.plate("cells", len(cells)), poutine.scale(scale=kl_weight):
            pyro.sample("z", self.posterior(cells))

    def posterior(self, cells: Cells) -> TorchDistribution:
        """Distribution of the latent state ``z_cz`` given counts and covariates."""
        (parameters_cp,) = (
            encoder(cells.counts[m], cells.library_size[m], cells.category_ck, cells.continuous_ck)
            for m, encoder in self.encoders.items()
        )
        return self.latent.posterior(parameters_cp)

    def decode(self, z_cz: Tensor, cells: Cells) -> dict[str, Observation]:
        """Distribution of the counts of each modality given latent state, covariates and library size."""
        return {
            m: Observation(
                self.likelihoods[m], decoder(z_cz, cells.category_ck, cells.continuous_ck), cells.library_size[m]
            )
            for m, decoder in self.decoders.items()
        }

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> Tensor:
        """Negative ELBO in nats per cell, differentiable, with one sample per cell."""
        with _without_validation():
            loss: Tensor = self._elbo.differentiable_loss(self.model, self.guide, cells, kl_weight)
        return loss / len(cells)

    def elbo(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Per cell, in nats: log-likelihood at one sample, and KL divergence. Their difference is the ELBO."""
        with _without_validation():
            guide_trace = poutine.trace(self.guide).get_trace(cells)
            model_trace = poutine.trace(poutine.replay(self.model, guide_trace)).get_trace(cells)
            reconstruction_c = sum(model_trace.nodes[m]["fn"].log_prob(rows) for m, rows in cells.counts.items())
            kl_c = kl_divergence(guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"])
        assert isinstance(reconstruction_c, Tensor)
        return reconstruction_c, kl_c


@contextmanager
def _without_validation() -> Iterator[None]:
    """Switch off the checks of every distribution's arguments, which cost more than the distributions themselves."""
    with pyro.validation_enabled(False):
        yield

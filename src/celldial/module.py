"""The generative story and its inference, as a Pyro ``model`` and ``guide``, and the ELBO that trains them.

Read `Module.model` from top to bottom: it is the whole model. Knows neither AnnData nor the training loop.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import kl_divergence

from celldial.latents import Gaussian
from celldial.likelihoods import LIKELIHOODS, Likelihood, Observation
from celldial.nn import Decoder, Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celldial.data import Cells


class MeanFieldELBO(TraceMeanField_ELBO):
    """Pyro's ELBO with an analytic KL term, less what costs time in every step and serves nothing here.

    That is the log-probabilities of the latent sites, which the analytic term replaces, and a warning about NaN in
    each step; `celldial.train` looks once an epoch, and raises.
    """

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate the negative ELBO in nats, summed over cells."""
        traces = self._get_trace(model, guide, args, kwargs)
        _, loss = self._differentiable_loss_particle(*traces)
        return loss

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        return model_trace, guide_trace


class Modality(nn.Module):
    """The networks and the observation model of one kind of measurement."""

    def __init__(self, encoder: Encoder, decoder: Decoder, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood


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
        sizes = (n_categories, n_continuous, n_hidden, n_layers)
        self.latent = Gaussian(n_latent)
        self.modalities = nn.ModuleDict()
        for modality, n in n_features.items():
            observation_model = LIKELIHOODS[likelihood[modality]](n)
            self.modalities[modality] = Modality(
                Encoder(n, *sizes, self.latent.n_parameters, dropout_rate),
                Decoder(n_latent, n, observation_model.n_heads, *sizes),
                observation_model,
            )
        self._elbo = MeanFieldELBO()

    def by_modality(self) -> Iterator[tuple[str, Modality]]:
        """Each modality's name and parts."""
        for name, modality in self.modalities.items():
            assert isinstance(modality, Modality)
            yield name, modality

    def initialise(self, cells: Cells) -> None:
        """Start biases, input scales and dispersions from the cells to train on."""
        for name, modality in self.by_modality():
            counts, library_size_c = cells.counts[name], cells.library_size[name]
            modality.encoder.initialise(counts, library_size_c)
            modality.decoder.initialise(counts)
            modality.likelihood.initialise(counts, library_size_c)

    def model(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Say how cells come about: a latent state from the prior, decoded with the covariates, gives the counts."""
        with pyro.plate("cells", len(cells)):
            with poutine.scale(scale=kl_weight):
                z_cz = pyro.sample("z", self.latent.prior(len(cells), like=cells.continuous_ck))
            for name, observation in self.decode(z_cz, cells).items():
                pyro.sample(name, observation, obs=cells.counts[name])

    def guide(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Judge by its counts what the latent state of each cell was."""
        with pyro.plate("cells", len(cells)), poutine.scale(scale=kl_weight):
            pyro.sample("z", self.posterior(cells))

    def posterior(self, cells: Cells) -> TorchDistribution:
        """Distribution of the latent state ``z_cz`` given counts and covariates."""
        (parameters_cp,) = (
            modality.encoder(cells.counts[name], cells.library_size[name], cells.category_ck, cells.continuous_ck)
            for name, modality in self.by_modality()
        )
        return self.latent.posterior(parameters_cp)

    def decode(self, z_cz: Tensor, cells: Cells) -> dict[str, Observation]:
        """Distribution of the counts of each modality given latent state, covariates and library size."""
        observations = {}
        for name, modality in self.by_modality():
            heads = modality.decoder(z_cz, cells.category_ck, cells.continuous_ck)
            observations[name] = Observation(modality.likelihood, heads, cells.library_size[name])
        return observations

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

"""The generative story and its inference, as a Pyro ``model`` and ``guide``, and the ELBO that trains them.

Read `Module.model` from top to bottom: it is the whole model. Knows neither AnnData nor the training loop.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import kl_divergence

from celldial.fusion import Fusion, FusionName
from celldial.laplace import Loadings
from celldial.latents import N_GRID, Circle, Gaussian, grid, harmonics
from celldial.likelihoods import LIKELIHOODS, Likelihood, Observation
from celldial.nn import Decoder, DecoderName, Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celldial.data import Cells

# Nats per cell for each unit of squared covariance of a latent coordinate with a harmonic of the angle.
INDEPENDENCE = 30.0


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
        self.loadings: Loadings | None = None  # how sure the decoder is of them: known after training


class Module(nn.Module):
    """A conditional variational autoencoder.

    Parameters
    ----------
    n_features
        Modality to its number of features.
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
    fusion
        How the posteriors of several modalities become one; see `celldial.fusion.Fusion`.
    modality_weights
        Modality to the weight of its log-likelihood in training; see `balance` for those that are not named.
    periodic
        Whether there is a circle beside the Gaussian coordinates.
    decoder
        How outputs depend on the latent coordinates; the `kind` of `celldial.nn.Decoder`.
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
        fusion: FusionName = "product",
        modality_weights: Mapping[str, float] | None = None,
        periodic: bool = False,
        decoder: DecoderName = "network",
    ) -> None:
        super().__init__()
        self.fusion = Fusion(fusion)
        self.modality_weights = balance(n_features) | dict(modality_weights or {})
        sizes = (n_categories, n_continuous, n_hidden, n_layers)
        self.latent = Gaussian(n_latent)
        self.circle = Circle() if periodic else None
        n_periodic = 0 if self.circle is None else self.circle.n_features
        self.n_features = dict(n_features)
        self.modalities = nn.ModuleDict()
        for modality, n in n_features.items():
            if hasattr(self.modalities, modality):
                raise ValueError(f"a modality cannot be called {modality!r}, which means something to torch: rename it")
            observation_model = LIKELIHOODS[likelihood[modality]](n)
            self.modalities[modality] = Modality(
                Encoder(n, *sizes, self.latent.n_parameters, dropout_rate),
                Decoder(n_latent, n, observation_model.n_heads, *sizes, n_harmonics=n_periodic, kind=decoder),
                observation_model,
            )
        self._elbo = MeanFieldELBO()

    @property
    def n_states(self) -> int:
        """Number of columns of a latent state: the Gaussian coordinates, and with a circle two more."""
        return self.latent.n_latent + (0 if self.circle is None else 2)

    def by_modality(self) -> Iterator[tuple[str, Modality]]:
        """Each modality's name and parts."""
        for name, modality in self.modalities.items():
            assert isinstance(modality, Modality)
            yield name, modality

    def initialise(self, cells: Cells) -> None:
        """Start biases, input scales and dispersions from the cells to train on."""
        for name, modality in self.by_modality():
            counts, library_size_c = cells.observed(name), cells.library_size[name][cells.has(name)]
            modality.encoder.initialise(counts, library_size_c)
            modality.decoder.initialise(counts)
            modality.likelihood.initialise(counts, library_size_c)

    def model(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Say how cells come about: a latent state from the prior, decoded with the covariates, gives the counts."""
        with pyro.plate("cells", len(cells)), poutine.scale(scale=kl_weight):
            z_cz = pyro.sample("z", self.latent.prior(len(cells), like=cells.continuous_ck))
            if self.circle is not None:
                direction, active = self.circle.prior(len(cells), like=cells.continuous_ck)
                z_cz = join(z_cz, pyro.sample("direction", direction), pyro.sample("active", active))
        if self.circle is not None:
            # What the angle tells is not told again by the other coordinates, which could explain it as well.
            pyro.factor("independence", -INDEPENDENCE * len(cells) * self._dependence(z_cz))
        for name, observation in self.decode(z_cz, cells).items():
            # A minibatch in which no cell has the modality: Pyro knows no plate of nothing.
            (n_cells,) = observation.batch_shape
            plate = pyro.plate(f"cells_{name}", n_cells) if n_cells else nullcontext()
            with plate, poutine.scale(scale=self.modality_weights[name]):
                pyro.sample(f"counts_{name}", observation, obs=cells.observed(name))

    def guide(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """Judge by its counts what the latent state of each cell was."""
        with pyro.plate("cells", len(cells)), poutine.scale(scale=kl_weight):
            for name, posterior in self.posterior(cells, draw=True).items():
                pyro.sample(name, posterior)

    def posterior(self, cells: Cells, draw: bool = False) -> dict[str, TorchDistribution]:
        """Distributions of the parts of the latent state given counts and covariates.

        They are ``"z"``, and with a circle ``"direction"`` and ``"active"``.

        Parameters
        ----------
        cells
            What was observed.
        draw
            Whether the modalities that are heard are drawn, as the fusion has it; otherwise all are that a cell has.
        """
        experts = [
            self.latent.parameters(
                modality.encoder(cells.counts[name], cells.library_size[name], cells.category_ck, cells.continuous_ck)
            )
            for name, modality in self.by_modality()
        ]
        mu_cz, sigma_cz = experts[0]
        if len(experts) > 1:
            mu_mcz, sigma_mcz = (torch.stack(part) for part in zip(*experts, strict=True))
            present_mc = torch.stack([cells.has(name) for name in self.modalities])
            if draw:
                present_mc = self.fusion.draw(present_mc, self.training)
            mu_cz, sigma_cz = self.fusion.combine(mu_mcz, sigma_mcz, present_mc)
        if self.circle is None:
            return {"z": self.latent.posterior(mu_cz, sigma_cz)}
        if cells.belief_cq is None:
            raise ValueError("where the cells are on the circle is not known yet: celldial.phase.located tells it")
        decoder = next(modality.decoder for _, modality in self.by_modality())
        place_cu = cells.belief_cq[:, :2] * cells.belief_cq[:, 3:].sigmoid()
        mu_cz = mu_cz - harmonics(place_cu)[:, :-1] @ decoder.tilt_kz
        direction, active = self.circle.posterior(cells.belief_cq, self.training)
        return {"z": self.latent.posterior(mu_cz, sigma_cz), "direction": direction, "active": active}

    def _dependence(self, state_cz: Tensor) -> Tensor:
        """Squared covariances of the Gaussian coordinates with the harmonics of the angle, summed."""
        z_cz, harmonic_ck = state_cz[:, : self.latent.n_latent], harmonics(state_cz[:, self.latent.n_latent :])[:, :-1]
        covariance_zk = (z_cz - z_cz.mean(0)).T @ (harmonic_ck - harmonic_ck.mean(0)) / len(z_cz)
        return covariance_zk.square().sum()

    def draw_prior(self, n_cells: int) -> Tensor:
        """Draw latent states on the CPU from the prior; angles as they are common among the cells trained on."""
        z_cz: Tensor = self.latent.prior(n_cells, like=torch.empty(0)).sample()
        if self.circle is None:
            return z_cz
        _, active = self.circle.prior(n_cells, like=self.circle.log_density_j)
        drawn_c = torch.multinomial(self.circle.log_density_j.exp().cpu(), n_cells, replacement=True)
        angle_c = grid(z_cz)[drawn_c] + (torch.rand(n_cells) - 0.5) * (2 * math.pi / N_GRID)
        return join(z_cz, torch.stack([angle_c.cos(), angle_c.sin()], 1), active.sample().cpu())

    def decode(self, z_cz: Tensor, cells: Cells) -> dict[str, Observation]:
        """Distribution of each modality's counts, of the cells that have it, given latent state and covariates."""
        return {name: self.decode_one(name, z_cz, cells) for name in self.modalities}

    def decode_one(self, name: str, z_cz: Tensor, cells: Cells) -> Observation:
        """Distribution of the counts of one modality."""
        modality = self.modalities[name]
        assert isinstance(modality, Modality)
        inputs = [z_cz, cells.category_ck, cells.continuous_ck, cells.library_size[name]]
        index_c = cells.having(name)
        if index_c is not None:
            inputs = [tensor[index_c] for tensor in inputs]
        *to_decode, library_size_c = inputs
        return Observation(modality.likelihood, modality.decoder(*to_decode), library_size_c)

    def forward(self, cells: Cells, kl_weight: float = 1.0) -> Tensor:
        """Negative ELBO in nats per cell, differentiable, with one sample per cell."""
        with _without_validation():
            loss: Tensor = self._elbo.differentiable_loss(self.model, self.guide, cells, kl_weight)
        return loss / len(cells)

    def elbo(self, cells: Cells) -> tuple[dict[str, Tensor], Tensor]:
        """Per cell, in nats: log-likelihood of each modality at one sample, and KL divergence.

        The sum of the log-likelihoods, 0 for a modality that a cell lacks, less the KL divergence is the ELBO.
        """
        with _without_validation():
            posterior = self.posterior(cells, draw=True)
            z_cz = posterior["z"].rsample()
            if self.circle is not None:
                z_cz = join(z_cz, posterior["direction"].rsample(), posterior["active"].rsample())
            log_likelihood = {}
            for name, observation in self.decode(z_cz, cells).items():
                log_p_c, index_c = observation.log_prob(cells.observed(name)), cells.having(name)
                if index_c is not None:
                    log_p_c = log_p_c.new_zeros(len(cells)).index_copy(0, index_c, log_p_c)
                log_likelihood[name] = log_p_c
            kl_c = kl_divergence(posterior["z"], self.latent.prior(len(cells), like=cells.continuous_ck))
            if self.circle is not None:
                direction, active = self.circle.prior(len(cells), like=cells.continuous_ck)
                kl_c = kl_c + kl_divergence(posterior["direction"], direction)
                kl_c = kl_c + kl_divergence(posterior["active"], active)
        return log_likelihood, kl_c


def join(z_cz: Tensor, direction_cu: Tensor, active_c: Tensor) -> Tensor:
    """Give whole latent states: the Gaussian coordinates, then the point on the disc."""
    return torch.cat([z_cz, direction_cu * active_c[:, None]], 1)


def balance(n_features: Mapping[str, int]) -> dict[str, float]:
    """Weigh the modalities: the first by 1, and those that are wider by the root of the ratio of their widths."""
    first = next(iter(n_features.values()))
    return {modality: min(1.0, math.sqrt(first / n)) for modality, n in n_features.items()}


@contextmanager
def _without_validation() -> Iterator[None]:
    """Switch off the checks of every distribution's arguments, which cost more than the distributions themselves."""
    with pyro.validation_enabled(False):
        yield

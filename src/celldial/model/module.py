"""The generative story and its inference, as a Pyro ``model`` and ``guide``, and the ELBO that trains them.

Read `Module.model` from top to bottom: it is the whole model. Knows neither AnnData nor the training loop.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates or clusters, ``p`` what encoders say, ``z`` latent
coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy

from celldial.model.clusters import ClusterConditional, Clusters, kl_to_components, temperature
from celldial.model.config import ModuleConfig
from celldial.model.distributions import NonReparameterized
from celldial.model.elbo import (
    Baseline,
    EnumeratedELBO,
    Estimator,
    Gradient,
    MeanFieldELBO,
    ScoreFunctionELBO,
)
from celldial.model.fusion import Fusion, default_modality_weights
from celldial.model.laplace import Loadings
from celldial.model.latents import LATENTS
from celldial.model.likelihoods import LIKELIHOODS, Likelihood, MaskedObservation, SparseObservation
from celldial.model.networks import Decoder, Encoder
from celldial.model.periodic import N_GRID, Circle, angle_grid, fourier_features
from celldial.model.priors import Flow, Mixture, PosteriorFlow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celldial.data.cells import Cells

# Nats per cell for each unit of squared covariance of a latent coordinate with a harmonic of the angle.
INDEPENDENCE_PENALTY = 30.0
# Nats of the loss for each nat by which a known label surprises: few cells have one, and what they tell is sure.
LABEL_WEIGHT = 10.0


class EncoderOutput(NamedTuple):
    """What the encoders say of cells: mean and deviation of each coordinate, and log-odds of the clusters if any."""

    mu_cz: Tensor
    sigma_cz: Tensor
    logits_ck: Tensor | None = None


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
    config
        Structure of the model.
    """

    n_trained: Tensor

    def __init__(self, config: ModuleConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion = Fusion(config.fusion)
        self.modality_weights = default_modality_weights(config.n_features) | dict(config.modality_weights or {})
        self.n_features = dict(config.n_features)
        self.latent = LATENTS[config.latent](config.n_latent)
        self.circle = Circle() if config.periodic else None
        n_outputs = self.latent.n_parameters + (config.n_clusters or 0)
        self.modalities = nn.ModuleDict()
        for name in config.n_features:
            if hasattr(self.modalities, name):
                raise ValueError(f"a modality cannot be called {name!r}, which means something to torch: rename it")
            self.modalities[name] = self._make_modality(name, n_outputs)
        self.learned_prior: Mixture | Flow | None = None
        if config.prior == "mixture":
            self.learned_prior = Mixture(self.latent, config.n_components)
        elif config.prior == "flow":
            self.learned_prior = Flow(self.latent)
        self.flow = PosteriorFlow(config.n_latent) if config.posterior == "flow" else None
        self.clusters = None
        if config.n_clusters is not None:
            self.clusters = Clusters(self.latent, config.n_clusters, config.n_labels, config.straight_through)
            for _, modality in self.by_modality():
                # So that clusters are at first judged by the coordinates alone.
                nn.init.zeros_(modality.encoder.output.weight[-config.n_clusters :])
                nn.init.zeros_(modality.encoder.output.bias[-config.n_clusters :])
        self.bayesian = config.bayesian_loadings
        if self.bayesian or self.clusters is not None:
            self.register_buffer("n_trained", torch.ones(()))
        self.gradient = config.gradient
        n_told = 0 if config.baseline == "moving_average" else n_outputs + 2 * len(config.n_features)
        scored = config.gradient.score_function_sites if config.baseline is not None else ()
        baselines = {name: Baseline(n_told) for name in scored}
        self.baselines = nn.ModuleDict(baselines)
        self.elbo_estimator = self.estimator(config.gradient, baselines)

    def _make_modality(self, name: str, n_outputs: int) -> Modality:
        """Create the networks and the observation model of a modality."""
        config, n_features = self.config, self.config.n_features[name]
        likelihood = LIKELIHOODS[config.likelihood[name]](n_features)
        return Modality(
            Encoder(n_features, n_outputs, config.layer_sizes, config.dropout_rate),
            Decoder(
                n_features,
                likelihood.n_heads,
                self.latent,
                config.layer_sizes,
                kind=config.decoder,
                n_harmonics=0 if self.circle is None else self.circle.n_features,
                bayesian=config.bayesian_loadings,
            ),
            likelihood,
        )

    @property
    def n_states(self) -> int:
        """Number of columns of a latent state: the Gaussian coordinates, and with a circle two more."""
        return self.latent.n_latent + (0 if self.circle is None else 2)

    def constrained(self, state_cz: Tensor) -> Tensor:
        """Give what users see of latent states: coordinates as decoders read them, and the place on a circle."""
        return self._linked(self.latent.link, state_cz)

    def unconstrained(self, constrained_cz: Tensor) -> Tensor:
        """Give the latent states of which users see this."""
        return self._linked(self.latent.inverse_link, constrained_cz)

    def _linked(self, link: Callable[[Tensor], Tensor], state_cz: Tensor) -> Tensor:
        n_latent = self.latent.n_latent
        return torch.cat([link(state_cz[:, :n_latent]), state_cz[:, n_latent:]], 1)

    def by_modality(self) -> Iterator[tuple[str, Modality]]:
        """Each modality's name and parts."""
        for name, modality in self.modalities.items():
            assert isinstance(modality, Modality)
            yield name, modality

    def estimator(self, gradient: Gradient, baselines: Mapping[str, Baseline]) -> Estimator:
        """Make an estimator of the gradient of this module's ELBO."""
        if gradient.score_function_sites:
            return ScoreFunctionELBO(gradient.score_function_sites, baselines)
        if gradient.cluster == "enumerate":
            return EnumeratedELBO()
        return MeanFieldELBO(self.has_analytic_kl)

    @property
    def has_analytic_kl(self) -> bool:
        """Whether the KL divergence of the coordinates' posterior from what is known before has a closed form."""
        return self.flow is None and self.learned_prior is None and self.latent.analytic_kl

    def initialize(self, cells: Cells, n_trained: int | None = None) -> None:
        """Start biases, input scales and dispersions from the cells to train on, or a sample of these `n_trained`."""
        for name, modality in self.by_modality():
            counts, library_size_c = cells.observed_counts(name), cells.library_size[name][cells.mask_with(name)]
            modality.encoder.initialize(counts, library_size_c)
            modality.decoder.initialize(counts)
            modality.likelihood.initialize(counts, library_size_c)
        if self.bayesian or self.clusters is not None:
            self.n_trained.fill_(len(cells) if n_trained is None else n_trained)

    def model(self, cells: Cells, encoded: EncoderOutput, kl_weight: float = 1.0, temperature: float = 1.0) -> None:
        """Say how cells come about: a latent state from the prior, decoded with the covariates, gives the counts.

        Pyro gives model and guide the same arguments; what was encoded is for the guide.
        """
        n_cells, like = len(cells), cells.continuous_ck
        plate = pyro.plate("cells", n_cells)
        loadings = self._loadings(kl_weight * n_cells, known=False)
        if self.clusters is not None:
            pyro.factor("weights", self.clusters.log_prior() * (n_cells / self.n_trained))
        with plate, poutine.scale(scale=kl_weight):
            if self.clusters is None:
                z_cz = pyro.sample("z", self.prior(n_cells, like))
            else:
                logits_ck = self.clusters.log_weight_k.expand(n_cells, -1)
                choice = self.clusters.choice(logits_ck, self.gradient.cluster == "gumbel_softmax", temperature)
                choice_ck = pyro.sample("cluster", choice)
                z_cz = pyro.sample("z", ClusterConditional(self.clusters.components, choice_ck, n_cells))
            if self.circle is not None:
                direction, active = self.circle.prior(n_cells, like)
                z_cz = concat_state(z_cz, pyro.sample("direction", direction), pyro.sample("active", active))
        if self.circle is not None:
            # What the angle tells is not told again by the other coordinates, which could explain it as well.
            pyro.factor("independence", -INDEPENDENCE_PENALTY * n_cells * self._dependence(z_cz))
        for name, observation in self.decode(z_cz, cells, loadings).items():
            with plate, poutine.scale(scale=self.modality_weights[name]):
                among_all = MaskedObservation(observation, cells.indices_with(name), n_cells)
                pyro.sample(f"counts_{name}", among_all, obs=cells.observed_counts(name))

    def guide(self, cells: Cells, encoded: EncoderOutput, kl_weight: float = 1.0, temperature: float = 1.0) -> None:
        """Judge by its counts what the latent state of each cell was."""
        self._loadings(kl_weight * len(cells), known=True)
        with pyro.plate("cells", len(cells)), poutine.scale(scale=kl_weight):
            if self.clusters is not None:
                assert encoded.logits_ck is not None
                logits_ck = self.clusters.override_with_labels(encoded.logits_ck, cells.label_c)
                choice = self.clusters.choice(logits_ck, self.gradient.cluster == "gumbel_softmax", temperature)
                pyro.sample("cluster", choice, infer=self._infer_options("cluster", encoded, cells))
            for name, posterior in self.spread(encoded, cells).items():
                if name == "z" and self.gradient.z == "score_function":
                    posterior = NonReparameterized(posterior)
                pyro.sample(name, posterior, infer=self._infer_options(name, encoded, cells))

    def _loadings(self, weight: float, known: bool) -> dict[str, Tensor]:
        """Draw the loadings of each modality, where they are latent, shape ``(f, h)``; of `weight` cells' share."""
        drawn: dict[str, Tensor] = {}
        if not self.bayesian:
            return drawn
        for name, modality in self.by_modality():
            decoder = modality.decoder
            assert decoder.log_deviation_fh is not None
            mean_fh, deviation_fh = decoder.rate_head.weight, decoder.log_deviation_fh.exp()
            if not known:
                scale = modality.likelihood.loading_scale / math.sqrt(mean_fh.shape[1])
                mean_fh, deviation_fh = torch.zeros_like(mean_fh), torch.full_like(mean_fh, scale)
            with poutine.scale(scale=weight / self.n_trained):
                drawn[name] = pyro.sample(f"loadings_{name}", Normal(mean_fh, deviation_fh).to_event(2))
        return drawn

    def _infer_options(self, name: str, encoded: EncoderOutput, cells: Cells) -> dict[str, Any]:
        """Say how a site of the guide enters the gradient."""
        if name == "cluster" and self.gradient.cluster == "enumerate":
            return {"enumerate": "parallel"}
        if name not in self.baselines:
            return {}
        return {"baseline": {"baseline_value": self.baselines[name](self.baseline_inputs(encoded, cells))}}

    def baseline_inputs(self, encoded: EncoderOutput, cells: Cells) -> Tensor:
        """Gather what baselines are told of each cell, ``(c, p)``: its posterior, and how much was counted and seen."""
        told = [
            encoded.mu_cz,
            encoded.sigma_cz.log(),
            *(total_c.log1p()[:, None] for total_c in cells.library_size.values()),
            *(counts.indptr_c.diff().to(encoded.mu_cz.dtype).log1p()[:, None] for counts in cells.counts.values()),
        ]
        if encoded.logits_ck is not None:
            told.append(encoded.logits_ck)
        return torch.cat(told, 1).detach()

    def prior(self, n_cells: int, like: Tensor) -> TorchDistribution:
        """Distribution of the coordinates before any count is seen, where there are no clusters."""
        if self.learned_prior is None:
            return self.latent.prior(n_cells, like)
        return self.learned_prior.distribution(n_cells, like)

    def encode(self, cells: Cells, draw: bool = False) -> EncoderOutput:
        """Say by counts and covariates where in latent space each cell is, and how sure that is.

        Parameters
        ----------
        cells
            What was observed.
        draw
            Whether the modalities that are heard are drawn, as the fusion has it; otherwise all are that a cell has.
        """
        outputs = [
            modality.encoder(cells.counts[name], cells.library_size[name], cells.category_ck, cells.continuous_ck)
            for name, modality in self.by_modality()
        ]
        n_parameters = self.latent.n_parameters
        experts = [self.latent.parameters(output_cp[:, :n_parameters]) for output_cp in outputs]
        mu_cz, sigma_cz = experts[0]
        correction_ck = outputs[0][:, n_parameters:]
        if len(experts) > 1:
            mu_mcz, sigma_mcz = (torch.stack(part) for part in zip(*experts, strict=True))
            present_mc = torch.stack([cells.mask_with(name) for name in self.modalities])
            if draw:
                present_mc = self.fusion.draw(present_mc, self.training)
            mu_cz, sigma_cz = self.fusion.combine(mu_mcz, sigma_mcz, present_mc)
            correction_mck = torch.stack([output_cp[:, n_parameters:] for output_cp in outputs])
            correction_ck = (correction_mck * present_mc[:, :, None]).sum(0)
        if self.clusters is None:
            return EncoderOutput(mu_cz, sigma_cz)
        return EncoderOutput(mu_cz, sigma_cz, self.clusters.assignment_logits(mu_cz, sigma_cz, correction_ck))

    def posterior(self, cells: Cells, draw: bool = False) -> dict[str, TorchDistribution]:
        """Distributions of the parts of the latent state given counts and covariates; arguments as of `encode`.

        They are ``"z"``, and with a circle ``"direction"`` and ``"active"``.
        """
        return self.spread(self.encode(cells, draw), cells)

    def spread(self, encoded: EncoderOutput, cells: Cells) -> dict[str, TorchDistribution]:
        """Make distributions of what encoders say."""
        mu_cz, sigma_cz, _ = encoded
        if self.circle is None:
            posterior = self.latent.posterior(mu_cz, sigma_cz)
            return {"z": posterior if self.flow is None else self.flow.distribution(posterior)}
        if cells.angle_params_cq is None:
            raise ValueError(
                "the angles of the cells are not inferred yet: call celldial.model.angle_posterior.infer_angles first"
            )
        decoder = next(modality.decoder for _, modality in self.by_modality())
        place_cu = cells.angle_params_cq[:, :2] * cells.angle_params_cq[:, 3:].sigmoid()
        mu_cz = mu_cz - fourier_features(place_cu)[:, :-1] @ decoder.tilt_kz
        direction, active = self.circle.posterior(cells.angle_params_cq, self.training)
        return {"z": self.latent.posterior(mu_cz, sigma_cz), "direction": direction, "active": active}

    def _dependence(self, state_cz: Tensor) -> Tensor:
        """Squared covariances of the Gaussian coordinates with the harmonics of the angle, summed."""
        z_cz, harmonic_ck = (
            state_cz[:, : self.latent.n_latent],
            fourier_features(state_cz[:, self.latent.n_latent :])[:, :-1],
        )
        covariance_zk = (z_cz - z_cz.mean(0)).T @ (harmonic_ck - harmonic_ck.mean(0)) / len(z_cz)
        return covariance_zk.square().sum()

    def draw_prior(self, n_cells: int) -> Tensor:
        """Draw latent states on the CPU from the prior; angles as they are common among the cells trained on."""
        if self.clusters is not None:
            return self.clusters.draw(n_cells).cpu()
        like = torch.empty(0, device=next(self.parameters()).device)
        z_cz: Tensor = self.prior(n_cells, like).sample().cpu()
        if self.circle is None:
            return z_cz
        _, active = self.circle.prior(n_cells, like=self.circle.log_density_j)
        drawn_c = torch.multinomial(self.circle.log_density_j.exp().cpu(), n_cells, replacement=True)
        angle_c = angle_grid(z_cz)[drawn_c] + (torch.rand(n_cells) - 0.5) * (2 * math.pi / N_GRID)
        return concat_state(z_cz, torch.stack([angle_c.cos(), angle_c.sin()], 1), active.sample().cpu())

    def decode(
        self, z_cz: Tensor, cells: Cells, loadings: Mapping[str, Tensor] | None = None
    ) -> dict[str, SparseObservation]:
        """Distribution of each modality's counts, of the cells that have it, given latent state and covariates."""
        loadings = {} if loadings is None else loadings
        return {name: self.decode_one(name, z_cz, cells, loadings.get(name)) for name in self.modalities}

    def decode_one(self, name: str, z_cz: Tensor, cells: Cells, loading_fh: Tensor | None = None) -> SparseObservation:
        """Distribution of the counts of one modality, with other loadings than the decoder's if they are given."""
        modality = self.modalities[name]
        assert isinstance(modality, Modality)
        inputs = [z_cz, cells.category_ck, cells.continuous_ck, cells.library_size[name]]
        index_c = cells.indices_with(name)
        if index_c is not None:
            inputs = [tensor[index_c] for tensor in inputs]
        *to_decode, library_size_c = inputs
        return SparseObservation(modality.likelihood, modality.decoder(*to_decode, loading_fh), library_size_c)

    def forward(self, cells: Cells, kl_weight: float = 1.0, progress: float = 1.0) -> Tensor:
        """Negative ELBO in nats per cell, differentiable, with one sample per cell.

        Parameters
        ----------
        cells
            A minibatch.
        kl_weight
            Of the KL divergence, above 0.
        progress
            The share of training that is done.
        """
        with _without_validation():
            encoded = self.encode(cells, draw=True)
            arguments = (cells, encoded, kl_weight, temperature(progress))
            loss: Tensor = self.elbo_estimator.differentiable_loss(self.model, self.guide, *arguments)
        if self.clusters is not None and cells.label_c is not None:
            assert encoded.logits_ck is not None
            surprise = cross_entropy(encoded.logits_ck, cells.label_c, ignore_index=-1, reduction="sum")
            loss = loss + LABEL_WEIGHT * surprise
        return loss / len(cells)

    def elbo(self, cells: Cells) -> tuple[dict[str, Tensor], Tensor]:
        """Per cell, in nats: log-likelihood of each modality at one sample, and KL divergence.

        The sum of the log-likelihoods, 0 for a modality that a cell lacks, less the KL divergence is the ELBO. Clusters
        are summed out, labels are not told, and latent loadings are at their mean.
        """
        with _without_validation():
            encoded = self.encode(cells, draw=True)
            posterior = self.spread(encoded, cells)
            z_cz = posterior["z"].rsample()
            kl_c = self._kl(posterior["z"], z_cz, encoded.logits_ck)
            if self.circle is not None:
                z_cz = concat_state(z_cz, posterior["direction"].rsample(), posterior["active"].rsample())
                direction, active = self.circle.prior(len(cells), like=cells.continuous_ck)
                kl_c = kl_c + kl_divergence(posterior["direction"], direction)
                kl_c = kl_c + kl_divergence(posterior["active"], active)
            log_likelihood = {
                name: MaskedObservation(observation, cells.indices_with(name), len(cells)).log_prob(
                    cells.observed_counts(name)
                )
                for name, observation in self.decode(z_cz, cells).items()
            }
        return log_likelihood, kl_c

    def _kl(self, posterior: TorchDistribution, z_cz: Tensor, logits_ck: Tensor | None) -> Tensor:
        """KL divergence of coordinates and cluster, shape ``(c,)``; at a draw where there is no closed form."""
        if self.clusters is None:
            prior = self.prior(len(z_cz), z_cz)
            if self.has_analytic_kl:
                return kl_divergence(posterior, prior)
            return posterior.log_prob(z_cz) - prior.log_prob(z_cz)
        assert logits_ck is not None
        log_q_ck = logits_ck.log_softmax(-1)
        components = self.clusters.components
        if self.has_analytic_kl:
            each_ck = kl_to_components(posterior, components)
        else:
            each_ck = posterior.log_prob(z_cz)[:, None] - components.log_prob_ck(z_cz)
        return (log_q_ck.exp() * (log_q_ck - self.clusters.log_weight_k + each_ck)).sum(-1)

    def log_weight(self, cells: Cells) -> Tensor:
        """Log of an importance weight of each cell, at one draw from its posterior, shape ``(c,)``.

        The mean of such weights is an unbiased estimate of the probability of the cell's counts.
        """
        with _without_validation():
            posterior = self.posterior(cells, draw=True)
            state = {name: part.sample() for name, part in posterior.items()}
            prior = {"z": self.clusters or self.prior(len(cells), cells.continuous_ck)}
            if self.circle is not None:
                prior |= dict(
                    zip(("direction", "active"), self.circle.prior(len(cells), cells.continuous_ck), strict=True)
                )
            log_weight_c = sum(
                prior[name].log_prob(draw) - posterior[name].log_prob(draw) for name, draw in state.items()
            )
            z_cz = state["z"] if self.circle is None else concat_state(*state.values())
            for name, observation in self.decode(z_cz, cells).items():
                log_p_c = MaskedObservation(observation, cells.indices_with(name), len(cells)).log_prob(
                    cells.observed_counts(name)
                )
                log_weight_c = log_weight_c + log_p_c
        return log_weight_c


def concat_state(z_cz: Tensor, direction_cu: Tensor, active_c: Tensor) -> Tensor:
    """Give whole latent states: the Gaussian coordinates, then the point on the disc."""
    return torch.cat([z_cz, direction_cu * active_c[:, None]], 1)


@contextmanager
def _without_validation() -> Iterator[None]:
    """Switch off the checks of every distribution's arguments, which cost more than the distributions themselves."""
    with pyro.validation_enabled(False):
        yield

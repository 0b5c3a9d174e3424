"""The generative model and its variational posterior, as a Pyro ``model`` and ``guide``, and the ELBO.

`Module.model` is the complete generative model: read it from top to bottom. The latent state has up to three parts:
`celldial.model.clusters.Clusters`, `celldial.model.coordinates.Coordinates` and `celldial.model.periodic.Circle`. Every
computation loops over them. This file imports neither AnnData nor the training loop.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``k`` covariates or clusters, ``m`` modalities, ``n``
draws, ``p`` encoder outputs or inputs of a baseline, ``q`` parameters of the angle posterior, ``z`` latent coordinates
or columns of the latent state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy

from celldial.data.cells import decode_blocks
from celldial.model import angle_posterior
from celldial.model.clusters import INITIAL_TEMPERATURE, Clusters, annealed_temperature
from celldial.model.config import ModuleConfig
from celldial.model.coordinates import Coordinates
from celldial.model.distributions import NonReparameterized, RelaxableCategorical
from celldial.model.elbo import Baseline, Gradient, baseline_inputs, make_estimator
from celldial.model.fusion import Fusion
from celldial.model.integration import Integration
from celldial.model.latent_parts import EncoderOutput, LatentPart
from celldial.model.latents import LATENTS, Latent
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.networks import Decoder, Encoder, LayerSizes, Modality
from celldial.model.observations import MaskedObservation, SparseObservation
from celldial.model.periodic import Circle, dependence
from celldial.model.priors import Flow, Mixture, PosteriorFlow, Prior, Standard

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = ["Module", "default_modality_weights"]

# Nats per cell for each unit of squared covariance between a latent coordinate and a harmonic of the angle.
INDEPENDENCE_PENALTY = 30.0
# Weight of the cross-entropy of known labels. Few cells have a label, and labels are reliable.
LABEL_WEIGHT = 10.0


class Module(nn.Module):
    """A conditional variational autoencoder.

    Parameters
    ----------
    config
        Structure of the model.
    """

    n_training_cells: Tensor

    def __init__(self, config: ModuleConfig) -> None:
        super().__init__()
        self.config = config
        self.n_features = dict(config.n_features)
        self.fusion = Fusion(config.fusion)
        self.modality_weights = default_modality_weights(config.n_features) | dict(config.modality_weights or {})
        self.latent = LATENTS[config.latent](config.n_latent)
        self.circle = Circle() if config.periodic else None
        self.modalities = nn.ModuleDict()
        for name in config.n_features:
            if hasattr(self.modalities, name):
                raise ValueError(f"torch reserves the name of the modality {name!r}: rename the modality")
            self.modalities[name] = make_modality(name, config, self.latent)
        self.coordinates = make_coordinates(config, self.latent)
        self.integration = Integration(config.integration, config.n_categories[0]) if config.integration > 0 else None
        self.bayesian = config.bayesian_loadings
        if self.bayesian or self.clusters is not None:
            self.register_buffer("n_training_cells", torch.ones(()))
        self.use_gradient(config.gradient, self._make_baselines(), config.straight_through)

    def _make_baselines(self) -> dict[str, Baseline]:
        """Create the baselines of the sites whose gradient is estimated by the score function."""
        config = self.config
        if config.baseline is None:
            return {}
        n_inputs = 0
        if config.baseline == "learned":
            n_inputs = n_encoder_outputs(config, self.latent) + 2 * len(config.n_features)
        return {site: Baseline(n_inputs) for site in config.gradient.score_function_sites}

    def use_gradient(self, gradient: Gradient, baselines: Mapping[str, Baseline], straight_through: bool) -> None:
        """Set how the gradient of the ELBO is estimated.

        Parameters
        ----------
        gradient
            As in `ModuleConfig`.
        baselines
            Baseline of each site with a score-function gradient; a site may have none.
        straight_through
            As in `ModuleConfig`.
        """
        self.gradient, self.straight_through = gradient, straight_through
        self.baselines = nn.ModuleDict(baselines)
        self.elbo_estimator = make_estimator(gradient, baselines, self.coordinates.analytic_kl)

    def initialize(self, cells: Cells, n_training_cells: int | None = None) -> None:
        """Initialize biases, input scales and dispersions from the training cells or a sample of them."""
        for name, modality in self.by_modality():
            present_c = cells.mask_with(name)
            counts, library_size_c = cells.observed_counts(name), cells.library_size[name][present_c]
            modality.encoder.initialize(counts, library_size_c)
            modality.decoder.initialize(counts)
            if modality.decoder.feature_effects is not None:
                modality.decoder.feature_effects.initialize(counts, library_size_c, cells.category_ck[present_c])
            modality.likelihood.initialize(counts, library_size_c)
        if self.bayesian or self.clusters is not None:
            self.n_training_cells.fill_(len(cells) if n_training_cells is None else n_training_cells)

    # --- The generative model -----------------------------------------------------------------------------------------

    def model(
        self, cells: Cells, encoded: EncoderOutput, kl_weight: float = 1.0, temperature: float = INITIAL_TEMPERATURE
    ) -> None:
        """Generate cells: a latent state from the prior, then the counts given latent state and covariates.

        Pyro calls model and guide with the same arguments; `encoded` is for the guide.
        """
        n_cells = len(cells)
        plate = pyro.plate("cells", n_cells)
        loadings = self._sample_loadings(kl_weight * n_cells, from_prior=True)
        if self.clusters is not None:
            pyro.factor("weights", self.clusters.log_weight_prior() * (n_cells / self.n_training_cells))
        drawn: dict[str, Tensor] = {}
        with plate, poutine.scale(scale=kl_weight):
            for part in self.parts:
                for name, distribution in part.prior_distributions(cells, drawn).items():
                    drawn[name] = pyro.sample(name, self._relax(distribution, temperature))
        state_cz = self.state(drawn)
        if self.circle is not None:
            # Otherwise the other coordinates could encode the angle, too.
            z_cz, point_cu = state_cz.split_with_sizes([self.latent.n_latent, 2], 1)
            pyro.factor("independence", -INDEPENDENCE_PENALTY * n_cells * dependence(z_cz, point_cu))
        for name, observation in self.decode(state_cz, cells, loadings).items():
            with plate, poutine.scale(scale=self.modality_weights[name]):
                observed = MaskedObservation(observation, cells.indices_with(name), n_cells)
                pyro.sample(f"counts_{name}", observed, obs=cells.observed_counts(name))

    def guide(
        self, cells: Cells, encoded: EncoderOutput, kl_weight: float = 1.0, temperature: float = INITIAL_TEMPERATURE
    ) -> None:
        """Sample the latent state of each cell from its approximate posterior."""
        self._sample_loadings(kl_weight * len(cells), from_prior=False)
        with pyro.plate("cells", len(cells)), poutine.scale(scale=kl_weight):
            for part in self.parts:
                for name, distribution in part.posterior_distributions(encoded, cells).items():
                    if name == "z" and self.gradient.z == "score_function":
                        distribution = NonReparameterized(distribution)
                    pyro.sample(name, self._relax(distribution, temperature), **self._options(name, encoded, cells))

    @property
    def parts(self) -> list[LatentPart]:
        """The parts of the latent state, in the order of the generative model."""
        return [*([] if self.clusters is None else [self.clusters]), *self.continuous_parts]

    @property
    def continuous_parts(self) -> list[LatentPart]:
        """The parts other than the clusters. Outside of training, the clusters are summed out."""
        return [self.coordinates, *([] if self.circle is None else [self.circle])]

    @property
    def clusters(self) -> Clusters | None:
        """The clusters, or None in a model without clusters."""
        prior = self.coordinates.prior
        return prior if isinstance(prior, Clusters) else None

    def state(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """Return the latent states that decoders read: the coordinates, then the point in the plane of the circle."""
        columns = [column_cz for part in self.continuous_parts for column_cz in part.state_columns(drawn)]
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def _relax(self, distribution: TorchDistribution, temperature: float) -> TorchDistribution:
        """Relax a cluster assignment if its gradient is estimated by the Gumbel-softmax."""
        if self.gradient.cluster == "gumbel_softmax" and isinstance(distribution, RelaxableCategorical):
            return distribution.relaxed(temperature, self.straight_through)
        return distribution

    def _options(self, name: str, encoded: EncoderOutput, cells: Cells) -> dict[str, Any]:
        """Return the options of a site of the guide: enumeration, or the baseline of a score-function gradient."""
        if name == "cluster" and self.gradient.cluster == "enumerate":
            return {"infer": {"enumerate": "parallel"}}
        if name not in self.baselines:
            return {}
        return {"infer": {"baseline": {"baseline_value": self.baselines[name](baseline_inputs(encoded, cells))}}}

    def _sample_loadings(self, weight: float, from_prior: bool) -> dict[str, Tensor]:
        """Sample the loadings ``(f, h)`` of each modality, if they are latent variables.

        All cells share the loadings, so a minibatch contributes only a fraction of their KL divergence:
        ``weight / n_training_cells``.
        """
        drawn: dict[str, Tensor] = {}
        if not self.bayesian:
            return drawn
        for name, modality in self.by_modality():
            decoder = modality.decoder
            assert decoder.log_deviation_fh is not None
            mean_fh, deviation_fh = decoder.rate_head.weight, decoder.log_deviation_fh.exp()
            if from_prior:
                scale = modality.likelihood.loading_scale / math.sqrt(mean_fh.shape[1])
                mean_fh, deviation_fh = torch.zeros_like(mean_fh), torch.full_like(mean_fh, scale)
            with poutine.scale(scale=weight / self.n_training_cells):
                drawn[name] = pyro.sample(f"loadings_{name}", Normal(mean_fh, deviation_fh).to_event(2))
        return drawn

    # --- From counts to the posterior ---------------------------------------------------------------------------------

    def encode(self, cells: Cells, sample_modalities: bool = False) -> EncoderOutput:
        """Return the parameters of the posterior of each cell's latent state.

        Angles are inferred unless the cells have `angle_params_cq`.

        Parameters
        ----------
        cells
            Counts and covariates.
        sample_modalities
            Whether to include only a random subset of each cell's modalities, if the fusion draws such subsets.
            Otherwise all modalities of a cell are included.
        """
        encoded = self._encode_counts(cells, sample_modalities)
        if self.circle is None:
            return encoded
        params_cq = cells.angle_params_cq
        if params_cq is None:
            params_cq = self.infer_angles(cells)
        decoder = next(modality.decoder for _, modality in self.by_modality())  # the offset of all decoders is the same
        offset_cz = decoder.angle_offset(params_cq[:, :2] * params_cq[:, 3:].sigmoid())
        return encoded._replace(mu_cz=encoded.mu_cz - offset_cz, angle_params_cq=params_cq)

    def _encode_counts(self, cells: Cells, sample_modalities: bool = False) -> EncoderOutput:
        """Return the fused output of the encoders."""
        outputs = [
            modality.encoder(cells.counts[name], cells.library_size[name], cells.category_ck, cells.continuous_ck)
            for name, modality in self.by_modality()
        ]
        n_parameters = self.latent.n_parameters
        experts = [self.latent.parameters(output_cp[:, :n_parameters]) for output_cp in outputs]
        mu_cz, sigma_cz = experts[0]
        correction_ck = outputs[0][:, n_parameters:]
        alignment_c = None
        if len(experts) > 1:
            mu_mcz, sigma_mcz = (torch.stack(part) for part in zip(*experts, strict=True))
            included_mc = torch.stack([cells.mask_with(name) for name in self.modalities])
            if sample_modalities and self.training and cells.present:  # no masks if all cells have all modalities
                alignment_c = self.fusion.alignment(mu_mcz, sigma_mcz, included_mc)
            if sample_modalities:
                included_mc = self.fusion.sample_included(included_mc, self.training)
            mu_cz, sigma_cz = self.fusion.combine(mu_mcz, sigma_mcz, included_mc)
            correction_mck = torch.stack([output_cp[:, n_parameters:] for output_cp in outputs])
            correction_ck = (correction_mck * included_mc[:, :, None]).sum(0)
        logits_ck = None
        if self.clusters is not None:
            logits_ck = self.clusters.assignment_logits(mu_cz, sigma_cz, correction_ck)
        return EncoderOutput(mu_cz, sigma_cz, logits_ck, alignment_c=alignment_c)

    @torch.no_grad()
    def encode_means(self, cells: Cells) -> Tensor:
        """Return the means of the coordinates, including the part that depends on the angle, shape ``(c, z)``."""
        return torch.cat([self._encode_counts(block).mu_cz for block in decode_blocks(cells)])

    def infer_angles(self, cells: Cells, learn_prior: bool = False) -> Tensor:
        """Return the parameters of each cell's angle posterior; see `celldial.model.angle_posterior.infer_angles`."""
        assert self.circle is not None
        modalities = dict(self.by_modality())
        return angle_posterior.infer_angles(modalities, self.circle, cells, self.encode_means(cells), learn_prior)

    def posterior(self, cells: Cells, sample_modalities: bool = False) -> dict[str, TorchDistribution]:
        """Return the posteriors of ``"z"`` and, in a model with a circle, of ``"direction"`` and ``"active"``.

        The parameters are those of `encode`.
        """
        return self.posterior_distributions(self.encode(cells, sample_modalities), cells)

    def posterior_distributions(self, encoded: EncoderOutput, cells: Cells) -> dict[str, TorchDistribution]:
        """Return the posterior of each continuous variable, given the output of `encode`."""
        distributions: dict[str, TorchDistribution] = {}
        for part in self.continuous_parts:
            distributions |= part.posterior_distributions(encoded, cells)
        return distributions

    # --- From latent states to counts ---------------------------------------------------------------------------------

    def decode(
        self, state_cz: Tensor, cells: Cells, loadings: Mapping[str, Tensor] | None = None
    ) -> dict[str, SparseObservation]:
        """Return the distribution of each modality's counts, for the cells that have the modality."""
        loadings = {} if loadings is None else loadings
        return {name: self.decode_modality(name, state_cz, cells, loadings.get(name)) for name in self.modalities}

    def decode_modality(
        self, name: str, state_cz: Tensor, cells: Cells, loading_fh: Tensor | None = None
    ) -> SparseObservation:
        """Return the distribution of the counts of one modality; `loading_fh` replaces the loadings of the decoder."""
        modality = self.modalities[name]
        assert isinstance(modality, Modality)
        inputs = [state_cz, cells.category_ck, cells.continuous_ck, cells.library_size[name]]
        index_c = cells.indices_with(name)
        if index_c is not None:
            inputs = [tensor[index_c] for tensor in inputs]
        *decoder_inputs, library_size_c = inputs
        return SparseObservation(modality.likelihood, modality.decoder(*decoder_inputs, loading_fh), library_size_c)

    def sample_prior(self, cells: Cells) -> Tensor:
        """Sample latent states of new cells from the prior; angles follow their density among the training cells."""
        drawn: dict[str, Tensor] = {}
        for part in self.parts:
            drawn |= part.sample_prior(cells, drawn)
        return self.state(drawn)

    # --- The ELBO -----------------------------------------------------------------------------------------------------

    def forward(self, cells: Cells, kl_weight: float = 1.0, progress: float = 1.0) -> Tensor:
        """Return the negative ELBO in nats per cell, differentiable, with one draw per cell, and penalties of training.

        These are the errors of known labels, and the disagreement of modalities for a fusion that aligns them.

        Parameters
        ----------
        cells
            A minibatch.
        kl_weight
            Weight of the KL divergence, above 0.
        progress
            Fraction of training that is done.
        """
        # Pyro's checks of the arguments of distributions take longer than the distributions themselves.
        with pyro.validation_enabled(False):
            encoded = self.encode(cells, sample_modalities=True)
            temperature = INITIAL_TEMPERATURE if self.clusters is None else annealed_temperature(progress)
            arguments = (cells, encoded, kl_weight, temperature)
            loss: Tensor = self.elbo_estimator.differentiable_loss(self.model, self.guide, *arguments)
        if encoded.alignment_c is not None:
            loss = loss + kl_weight * encoded.alignment_c.sum()
        if encoded.logits_ck is not None and cells.label_c is not None:
            error = cross_entropy(encoded.logits_ck, cells.label_c, ignore_index=-1, reduction="sum")
            loss = loss + LABEL_WEIGHT * error
        loss = loss / len(cells)
        if self.integration is not None:
            loss = loss + kl_weight * self.integration(encoded.mu_cz, cells.category_ck[:, 0])
        return loss

    def elbo(self, cells: Cells) -> tuple[dict[str, Tensor], Tensor]:
        """Return each cell's log-likelihood of each modality at one draw, and its KL divergence, in nats.

        The ELBO is the sum of the log-likelihoods, which are 0 for missing modalities, minus the KL divergence.
        Clusters are summed out, labels are not used, and latent loadings are at their mean.
        """
        cells = cells if cells.label_c is None else replace(cells, label_c=None)
        posterior: dict[str, TorchDistribution] = {}
        drawn: dict[str, Tensor] = {}
        with pyro.validation_enabled(False):
            encoded = self.encode(cells, sample_modalities=True)
            kl_c = cells.continuous_ck.new_zeros(len(cells))
            for part in self.parts:
                posterior = part.posterior_distributions(encoded, cells)
                # The probabilities replace a discrete draw, because all terms are linear in it.
                drawn |= {name: q.rsample() if q.has_rsample else q.mean for name, q in posterior.items()}
                for name, p in part.prior_distributions(cells, drawn).items():
                    kl_c = kl_c + kl_at_draw(posterior[name], p, drawn[name], part.analytic_kl)
            log_likelihood = self._log_likelihood(self.state(drawn), cells)
        return log_likelihood, kl_c

    def log_weights(self, cells: Cells, n_samples: int) -> Tensor:
        """Return the logs of importance weights at draws from each cell's posterior, shape ``(n, c)``.

        The mean of the weights is an unbiased estimate of the probability of the cell's counts.
        """
        if self.circle is not None and cells.angle_params_cq is None:
            cells = replace(cells, angle_params_cq=self.infer_angles(cells))  # once for all samples
        with pyro.validation_enabled(False):
            return torch.stack([self._log_weight(cells) for _ in range(n_samples)])

    def _log_weight(self, cells: Cells) -> Tensor:
        encoded = self.encode(cells, sample_modalities=True)
        posterior = self.posterior_distributions(encoded, cells)
        drawn = {name: q.sample() for name, q in posterior.items()}
        log_weight_c = cells.continuous_ck.new_zeros(len(cells))
        for part in self.continuous_parts:
            for name, p in part.prior_distributions(cells, drawn).items():
                log_weight_c = log_weight_c + (p.log_prob(drawn[name]) - posterior[name].log_prob(drawn[name]))
        return sum(self._log_likelihood(self.state(drawn), cells).values(), log_weight_c)

    def _log_likelihood(self, state_cz: Tensor, cells: Cells) -> dict[str, Tensor]:
        """Return the log-likelihood of each modality's counts; 0 for cells without the modality."""
        return {
            name: MaskedObservation(observation, cells.indices_with(name), len(cells)).log_prob(
                cells.observed_counts(name)
            )
            for name, observation in self.decode(state_cz, cells).items()
        }

    # --- Access -------------------------------------------------------------------------------------------------------

    def by_modality(self) -> Iterator[tuple[str, Modality]]:
        """Yield each modality with its name."""
        for name, modality in self.modalities.items():
            assert isinstance(modality, Modality)
            yield name, modality

    @property
    def n_states(self) -> int:
        """Number of columns of a latent state: one per coordinate, and two more in a model with a circle."""
        return self.latent.n_latent + (0 if self.circle is None else 2)

    def constrained(self, state_cz: Tensor) -> Tensor:
        """Return latent states as users see them: the link of the coordinates, and the point in the plane."""
        return self._map_coordinates(self.latent.link, state_cz)

    def unconstrained(self, constrained_cz: Tensor) -> Tensor:
        """Return the latent states that `constrained` maps to these values."""
        return self._map_coordinates(self.latent.inverse_link, constrained_cz)

    def _map_coordinates(self, function: Callable[[Tensor], Tensor], state_cz: Tensor) -> Tensor:
        n_latent = self.latent.n_latent
        return torch.cat([function(state_cz[:, :n_latent]), state_cz[:, n_latent:]], 1)


def make_modality(name: str, config: ModuleConfig, latent: Latent) -> Modality:
    """Create the networks and the observation model of a modality."""
    n_features = config.n_features[name]
    likelihood = LIKELIHOODS[config.likelihood[name]](n_features)
    sizes = LayerSizes(config.n_categories, config.n_continuous, config.n_hidden, config.n_layers)
    encoder = Encoder(n_features, n_encoder_outputs(config, latent), sizes, config.encoder_dropout_rate(name))
    kinds = config.decoder, config.periodic, config.bayesian_loadings
    decoder = Decoder(n_features, likelihood.n_heads, latent, sizes, *kinds)
    if config.dispersion == "feature-batch" and likelihood.dispersion_by_batch:
        decoder.add_dispersions(config.n_categories[0])
    if config.n_clusters is not None:
        # The correction of the cluster assignments starts at 0.
        nn.init.zeros_(encoder.output.weight[-config.n_clusters :])
        nn.init.zeros_(encoder.output.bias[-config.n_clusters :])
    return Modality(encoder, decoder, likelihood)


def default_modality_weights(n_features: Mapping[str, int]) -> dict[str, float]:
    """Return a weight of 1 for the first modality, and lower weights for modalities with more features.

    The weight is the square root of the ratio of the numbers of features.
    """
    first = next(iter(n_features.values()))
    return {modality: min(1.0, math.sqrt(first / n)) for modality, n in n_features.items()}


def n_encoder_outputs(config: ModuleConfig, latent: Latent) -> int:
    """Return the number of outputs of an encoder: parameters of the coordinates, and corrections of the clusters."""
    return latent.n_parameters + (config.n_clusters or 0)


def make_coordinates(config: ModuleConfig, latent: Latent) -> Coordinates:
    """Create the coordinates with their prior and the flow of their posterior.

    The order of creation determines the initial weights at a given seed: the flow comes after a prior, but before
    clusters.
    """
    prior = make_prior(config, latent) if config.n_clusters is None else None
    posterior_flow = PosteriorFlow(config.n_latent) if config.posterior == "flow" else None
    if config.n_clusters is not None:
        prior = Clusters(latent, config.n_clusters, config.n_labels)
    assert prior is not None
    return Coordinates(latent, prior, posterior_flow)


def make_prior(config: ModuleConfig, latent: Latent) -> Prior:
    """Create the prior of the coordinates of a model without clusters."""
    if config.prior == "mixture":
        return Mixture(latent, config.n_components)
    return Flow(latent) if config.prior == "flow" else Standard(latent)


def kl_at_draw(q: TorchDistribution, p: TorchDistribution, draw: Tensor, analytic: bool) -> Tensor:
    """Return the KL divergence of q from p per cell, estimated at a draw from q unless it has a closed form."""
    kl_c: Tensor = kl_divergence(q, p) if analytic else q.log_prob(draw) - p.log_prob(draw)
    return kl_c

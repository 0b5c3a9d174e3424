"""`ModuleConfig`: everything that determines the structure of a `celldial.model.module.Module`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from celldial.model.elbo import BaselineName, Gradient
from celldial.model.fusion import FusionName
from celldial.model.latents import LatentName
from celldial.model.networks import DecoderName, DispersionName
from celldial.model.priors import PosteriorName, PriorName

__all__ = ["ModuleConfig"]


@dataclass(frozen=True)
class ModuleConfig:
    """Configuration of a module.

    Parameters
    ----------
    n_features
        Modality to its number of features.
    likelihood
        Modality to the name of its observation model, a key of `celldial.model.likelihoods.LIKELIHOODS`.
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of columns of the continuous covariates.
    n_latent
        Number of latent coordinates.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers of encoder and decoder, at least 1.
    dropout_rate
        Fraction of the stored counts that dropout sets to zero in the encoder's input during training.
    fusion
        How the posteriors of several modalities are combined; see `celldial.model.fusion.Fusion`.
    modality_weights
        Modality to the weight of its log-likelihood in training. The other modalities get the weight that
        `celldial.model.module.default_modality_weights` computes.
    periodic
        Whether the latent state includes a periodic coordinate.
    decoder
        How outputs depend on the latent coordinates; the `kind` of `celldial.model.networks.Decoder`.
    latent
        Family of the latent coordinates, a key of `celldial.model.latents.LATENTS`.
    prior
        ``"standard"``, ``"mixture"`` with `n_components` components, or ``"flow"``; see `celldial.model.priors`.
    n_components
        Number of components of a mixture prior.
    posterior
        ``"diagonal"`` or ``"flow"``.
    n_clusters
        Number of clusters; None for a model without clusters. Clusters replace the prior.
    n_labels
        Number of clusters that have a label. They come first.
    bayesian_loadings
        Whether the decoder loadings are latent variables.
    gradient
        How the gradient of the ELBO is estimated.
    baseline
        Baseline of the score-function estimator; None for no baseline.
    straight_through
        Whether relaxed cluster assignments are rounded to one cluster.
    dispersion
        Whether dispersions are those of a feature, or of a feature in a batch.
    integration
        How strongly batches, the first categorical covariate, are pulled together in latent space; 0 without batches.
    dense
        Modalities whose counts are rarely 0. The encoder reads all of their counts, without dropout.
    """

    n_features: Mapping[str, int]
    likelihood: Mapping[str, str]
    n_categories: Sequence[int]
    n_continuous: int
    n_latent: int
    n_hidden: int
    n_layers: int
    dropout_rate: float
    fusion: FusionName = "product"
    modality_weights: Mapping[str, float] | None = None
    periodic: bool = False
    decoder: DecoderName = "network"
    latent: LatentName = "gaussian"
    prior: PriorName = "standard"
    n_components: int = 10
    posterior: PosteriorName = "diagonal"
    n_clusters: int | None = None
    n_labels: int = 0
    bayesian_loadings: bool = False
    gradient: Gradient = field(default_factory=Gradient)
    baseline: BaselineName | None = None
    straight_through: bool = False
    integration: float = 0.0
    dispersion: DispersionName = "feature"
    dense: Collection[str] = ()

    def encoder_dropout_rate(self, modality: str) -> float:
        """Return the fraction of the stored counts of a modality that dropout sets to zero in the encoder's input."""
        return 0.0 if modality in self.dense else self.dropout_rate

"""The networks: an encoder that reads sparse counts, and a decoder with an output for every feature.

Covariates enter each layer.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``k`` covariates or Fourier features of the angle,
``p`` posterior parameters, ``u`` the two coordinates of the plane in which the circle lies, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import dropout, silu

from celldial.model.feature_effects import FeatureEffects
from celldial.model.laplace import Loadings
from celldial.model.latents import Latent
from celldial.model.likelihoods import Likelihood
from celldial.model.periodic import HARMONIC_SCALE, N_FOURIER, fourier_features
from celldial.ops.csr import CSRTensor
from celldial.ops.log_likelihoods import sparse_linear

__all__ = [
    "DECODERS",
    "DISPERSIONS",
    "CoordinateUnits",
    "Decoder",
    "DecoderName",
    "DispersionName",
    "Encoder",
    "LayerSizes",
    "Modality",
]

DispersionName = Literal["feature", "feature-batch"]
DISPERSIONS: tuple[DispersionName, ...] = get_args(DispersionName)
DecoderName = Literal["network", "additive", "linear"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)

# Lower bound of the standard deviation by which a feature is divided. Without it, rare features get enormous weights.
MIN_DEVIATION = 0.05
# Factor on the initial weights of the decoder's heads. With few counts per feature, training must first undo random
# weights.
HEAD_SCALE = 0.1
# Scale of the units of an additive decoder. A feature depends on few coordinates, so each may contribute more than its
# share of the variance that the prior of the loadings assigns to all hidden units together.
UNIT_SCALE = 2.0
# Number of units through which the covariates act on the outputs of an additive or linear decoder.
N_COVARIATE_UNITS = 16
# Prior standard deviation of the log inverse dispersion of a feature between batches.
DISPERSION_SCALE = 0.5
# Pseudocounts of each feature for the initial uncertainty of its loadings.
PSEUDOCOUNTS = 10.0


@dataclass(frozen=True)
class LayerSizes:
    """Sizes that the encoders and decoders of a model share.

    Parameters
    ----------
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of columns of the continuous covariates.
    n_hidden
        Width of each hidden layer.
    n_layers
        Number of hidden layers, at least 1.
    """

    n_categories: Sequence[int]
    n_continuous: int
    n_hidden: int
    n_layers: int


class CovariateShift(nn.Module):
    """The shift of a layer's input by covariates: a learned vector per category and per continuous covariate."""

    def __init__(self, n_categories: Sequence[int], n_continuous: int, n_hidden: int) -> None:
        super().__init__()
        self.categorical = nn.ModuleList(nn.Embedding(n, n_hidden) for n in n_categories)
        for embedding in self.categorical:
            assert isinstance(embedding, nn.Embedding)
            # If a batch has no cells with a modality, its vector stays 0. The modality is decoded as in the average
            # batch.
            nn.init.zeros_(embedding.weight)
        self.continuous = nn.Linear(n_continuous, n_hidden, bias=False) if n_continuous else None

    def forward(self, hidden_ch: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        for embedding, category_c in zip(self.categorical, category_ck.unbind(-1), strict=True):
            hidden_ch = hidden_ch + embedding(category_c)
        if self.continuous is not None:
            hidden_ch = hidden_ch + self.continuous(continuous_ck)
        return hidden_ch


class HiddenLayer(nn.Module):
    """The operations between two matrix products: covariate shift, layer norm, nonlinearity."""

    def __init__(self, n_categories: Sequence[int], n_continuous: int, n_hidden: int) -> None:
        super().__init__()
        self.covariates = CovariateShift(n_categories, n_continuous, n_hidden)
        self.norm = nn.LayerNorm(n_hidden)

    def forward(self, hidden_ch: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        shifted_ch = self.covariates(hidden_ch, category_ck, continuous_ck)
        return silu(self.norm(shifted_ch))


class Encoder(nn.Module):
    """The network from sparse counts to the parameters of the posterior.

    The input is the log of one plus the counts per median library size. Zeros stay zeros, so the cost of the first
    layer is proportional to the number of stored counts.

    Parameters
    ----------
    n_features
        Number of features of the modality.
    n_outputs
        Number of outputs per cell.
    sizes
        Covariates and hidden layers.
    dropout_rate
        Fraction of the stored counts that dropout sets to zero in the input during training.
    """

    median_library_size: Tensor

    def __init__(self, n_features: int, n_outputs: int, sizes: LayerSizes, dropout_rate: float) -> None:
        super().__init__()
        n_hidden, n_layers = sizes.n_hidden, sizes.n_layers
        self.dropout_rate = dropout_rate
        self.register_buffer("median_library_size", torch.ones(()))
        self.weight_fh = nn.Parameter(torch.randn(n_features, n_hidden) / math.sqrt(n_features))
        self.bias_h = nn.Parameter(torch.zeros(n_hidden))
        self.linears = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_layers - 1))
        self.layers = nn.ModuleList(
            HiddenLayer(sizes.n_categories, sizes.n_continuous, n_hidden) for _ in range(n_layers)
        )
        self.output = nn.Linear(n_hidden, n_outputs)

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        """Initialize as if all features were standardized, so that rare features weigh as much as common ones."""
        with torch.no_grad():
            self.median_library_size.copy_(library_size_c.median())
            log_n = self.normalize(counts, library_size_c)
            mean_f = counts.sum_columns(log_n) / counts.n_rows
            variance_f = counts.sum_columns(log_n.square()) / counts.n_rows - mean_f.square()
            self.weight_fh.div_(variance_f.clamp_min(MIN_DEVIATION**2).sqrt()[:, None])
            self.bias_h.copy_(-mean_f @ self.weight_fh)

    def normalize(self, counts: CSRTensor, library_size_c: Tensor) -> Tensor:
        """Return the log of one plus the counts per median library size, for the stored entries."""
        return (counts.value_n * counts.expand_rows(self.median_library_size / library_size_c)).log1p()

    def forward(self, counts: CSRTensor, library_size_c: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Return the parameters of the posterior, shape ``(c, p)``."""
        log_n = dropout(self.normalize(counts, library_size_c), self.dropout_rate, self.training)
        hidden_ch = sparse_linear(counts.with_values(log_n), self.weight_fh) + self.bias_h
        hidden_ch = self.layers[0](hidden_ch, category_ck, continuous_ck)
        for linear, layer in zip(self.linears, self.layers[1:], strict=True):
            hidden_ch = layer(linear(hidden_ch), category_ck, continuous_ck)
        # The posterior is in full precision, even if matrix products are not.
        result: Tensor = self.output(hidden_ch).to(self.weight_fh.dtype)
        return result


class CoordinateUnits(nn.Module):
    """The hidden layer of additive and linear decoders: one unit per coordinate, and some units for covariates.

    In an additive decoder, the unit of a coordinate is nearly flat on one side and rises on the other (SiLU), so that
    the coordinate activates one program of features. Without this nonlinearity, a rotation of the coordinates would fit
    the cells equally well. Covariates shift the nonlinearity, too. In a linear decoder, the units are the coordinates.

    Parameters
    ----------
    n_latent
        Number of latent coordinates.
    n_categories, n_continuous
        As in `LayerSizes`.
    nonlinear
        Whether the decoder is additive instead of linear.
    """

    def __init__(self, n_latent: int, n_categories: Sequence[int], n_continuous: int, nonlinear: bool) -> None:
        super().__init__()
        n_covariate_units = N_COVARIATE_UNITS if n_categories or n_continuous else 0
        self.n_units = n_latent + n_covariate_units
        self.shift = None
        if nonlinear:
            self.slope_z = nn.Parameter(torch.ones(n_latent))
            self.offset_z = nn.Parameter(torch.zeros(n_latent))
            self.shift = CovariateShift(n_categories, n_continuous, n_latent)
        self.covariate_units = None
        if n_covariate_units:
            self.covariate_units = CovariateShift(n_categories, n_continuous, n_covariate_units)

    def forward(self, z_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Return the hidden units ``(c, h)``: those of the coordinates in order, then those of the covariates."""
        unit_cz = z_cz
        if self.shift is not None:
            unit_cz = UNIT_SCALE * silu(self.shift(self.slope_z * z_cz + self.offset_z, category_ck, continuous_ck))
        if self.covariate_units is None:
            return unit_cz
        zero_ch = z_cz.new_zeros(len(z_cz), N_COVARIATE_UNITS)
        return torch.cat([unit_cz, self.covariate_units(zero_ch, category_ck, continuous_ck)], 1)


class Decoder(nn.Module):
    """The network from latent states to one or more outputs for every feature.

    A latent state consists of the coordinates and, in a model with a periodic coordinate, of the point of the cell in
    the plane of the circle.

    Parameters
    ----------
    n_features
        Number of features of the modality.
    n_heads
        Number of outputs per feature that the likelihood needs.
    latent
        Family of the latent coordinates. The decoder reads `celldial.model.latents.Latent.link` of them.
    sizes
        Covariates and hidden layers.
    kind
        ``"network"``: hidden layers combine all coordinates. ``"additive"``: every output is a sum of terms, each of
        which depends on one coordinate and the covariates; see `CoordinateUnits`. ``"linear"``: every output is a
        weighted sum of the coordinates plus an effect of the covariates. An additive or linear decoder has no hidden
        layers.
    periodic
        Whether an effect of the angle is added to the first output.
    bayesian
        Whether the loadings of a linear decoder have a posterior, with mean ``heads[0].weight`` and standard deviation
        ``exp(log_deviation_fh)``.

    References
    ----------
    Moinfar and Theis (2024), Unsupervised deep disentangled representation of single-cell omics, bioRxiv
    2024.11.06.622266. Their decoder has a network for each coordinate and pools them by a log-sum-exp.
    """

    angle_feature_mask_f: Tensor
    angle_offset_kz: Tensor

    def __init__(
        self,
        n_features: int,
        n_heads: int,
        latent: Latent,
        sizes: LayerSizes,
        kind: DecoderName = "network",
        periodic: bool = False,
        bayesian: bool = False,
    ) -> None:
        super().__init__()
        n_latent, n_hidden, n_layers = latent.n_latent, sizes.n_hidden, sizes.n_layers
        covariates = sizes.n_categories, sizes.n_continuous
        self.latent = latent
        self.harmonic_scale = HARMONIC_SCALE
        # Effect of the angle on log rates. It is the same in all cells with the same angle.
        self.harmonics = nn.Linear(N_FOURIER, n_features, bias=False) if periodic else None
        if self.harmonics is not None:
            nn.init.zeros_(self.harmonics.weight)
            # The features from which angles are inferred, and the part of the coordinates that depends on the angle.
            # `celldial.model.angle_posterior` sets both; they have no gradients.
            self.register_buffer("angle_feature_mask_f", torch.zeros(n_features, dtype=torch.bool))
            self.register_buffer("angle_offset_kz", torch.zeros(N_FOURIER - 1, n_latent))
        self.units = None if kind == "network" else CoordinateUnits(n_latent, *covariates, kind == "additive")
        if self.units is not None:
            n_hidden, n_layers = self.units.n_units, 0
        widths = [n_latent, *[n_hidden] * (n_layers - 1)][:n_layers]
        self.linears = nn.ModuleList(nn.Linear(width, n_hidden) for width in widths)
        self.layers = nn.ModuleList(HiddenLayer(*covariates, n_hidden) for _ in range(n_layers))
        self.heads = nn.ModuleList(nn.Linear(n_hidden, n_features) for _ in range(n_heads))
        self.log_deviation_fh = nn.Parameter(torch.zeros(n_features, n_hidden)) if bayesian else None
        self.feature_effects = FeatureEffects(sizes.n_categories, n_features) if sizes.n_categories else None
        self.dispersion_effects: FeatureEffects | None = None

    @property
    def rate_head(self) -> nn.Linear:
        """The first head. Its softmax is the share of each feature in the counts of a cell."""
        head = self.heads[0]
        assert isinstance(head, nn.Linear)
        return head

    @property
    def further_heads(self) -> list[nn.Linear]:
        """The heads after the first. Their inputs are the hidden units."""
        return [head for head in self.heads[1:] if isinstance(head, nn.Linear)]

    @property
    def harmonic_weight_fk(self) -> Tensor:
        """Coefficients of the Fourier features of the angle, for a decoder with a periodic coordinate."""
        assert self.harmonics is not None
        return self.harmonics.weight

    def initialize(self, counts: CSRTensor) -> None:
        """Initialize the first head to the log of each feature's mean rate, nearly independent of the latent state."""
        with torch.no_grad():
            for head in self.heads:
                assert isinstance(head, nn.Linear)
                head.weight.mul_(HEAD_SCALE)
            total_f = counts.sum_columns(counts.value_n)
            log_total_f = (total_f + 1).log()
            self.rate_head.bias.copy_(log_total_f - log_total_f.mean())
            if self.log_deviation_fh is not None:
                # The information of a count about a loading is the square of the coordinate, which is 1 on average.
                self.log_deviation_fh.copy_(-0.5 * (total_f + PSEUDOCOUNTS).log()[:, None])

    def add_dispersions(self, n_batches: int) -> None:
        """Add an output: the difference of each feature's log inverse dispersion in the batch of the cell."""
        self.dispersion_effects = FeatureEffects([n_batches], self.rate_head.out_features, DISPERSION_SCALE)

    def split_state(self, state_cz: Tensor) -> tuple[Tensor, Tensor]:
        """Split latent states into the coordinates and the points in the plane of the circle."""
        n_latent = self.latent.n_latent
        return state_cz[:, :n_latent], state_cz[:, n_latent:]

    def angle_offset(self, point_cu: Tensor) -> Tensor:
        """Return the part of the coordinates that depends on the angle, shape ``(c, z)``."""
        return fourier_features(point_cu)[:, :-1] @ self.angle_offset_kz

    def hidden(self, state_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Return the units of the last hidden layer, shape ``(c, h)``."""
        hidden_ch, point_cu = self.split_state(state_cz)
        if self.harmonics is not None:
            hidden_ch = hidden_ch + self.angle_offset(point_cu)
        hidden_ch = self.latent.link(hidden_ch)
        if self.units is not None:
            hidden_ch = self.units(hidden_ch, category_ck, continuous_ck)
        for linear, layer in zip(self.linears, self.layers, strict=True):
            hidden_ch = layer(linear(hidden_ch), category_ck, continuous_ck)
        return hidden_ch

    def inputs(self, state_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Return the inputs of the linear map to the first output, ``(c, h)``: hidden units and Fourier features."""
        hidden_ch = self.hidden(state_cz, category_ck, continuous_ck)
        if self.harmonics is None:
            return hidden_ch
        return torch.cat([hidden_ch, fourier_features(self.split_state(state_cz)[1])], 1)

    def loadings(self) -> tuple[Tensor, Tensor]:
        """Return the weights ``(f, h)`` and biases ``(f,)`` that map `inputs` to the first output."""
        weights = [self.rate_head.weight]
        if self.harmonics is not None:
            weights.append(self.harmonics.weight)
        return torch.cat(weights, 1), self.rate_head.bias

    def forward(
        self, state_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor, loading_fh: Tensor | None = None
    ) -> list[Tensor]:
        """Return one output ``(c, f)`` per head; `loading_fh` replaces the weights of the first head."""
        hidden_ch = self.hidden(state_cz, category_ck, continuous_ck)
        # Likelihoods are computed in full precision, even if matrix products are not.
        if loading_fh is None:
            outputs = [head(hidden_ch).to(state_cz.dtype) for head in self.heads]
        else:
            outputs = [functional.linear(hidden_ch, loading_fh, self.rate_head.bias).to(state_cz.dtype)]
            outputs += [head(hidden_ch).to(state_cz.dtype) for head in self.heads[1:]]
        if self.harmonics is not None:
            harmonic_ck = fourier_features(self.split_state(state_cz)[1])
            outputs[0] = outputs[0] + self.harmonics(harmonic_ck).to(state_cz.dtype)
        if self.feature_effects is not None:
            outputs[0] = self.feature_effects(outputs[0], category_ck)
        if self.dispersion_effects is not None:
            outputs.append(self.dispersion_effects(outputs[0].new_zeros(()), category_ck[:, :1]))
        return outputs


class Modality(nn.Module):
    """The networks and the observation model of one kind of measurement.

    After training, `loadings` holds the posterior of the decoder's loadings.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.loadings: Loadings | None = None

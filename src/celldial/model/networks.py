"""The networks: an encoder that reads sparse counts, a decoder with an output for every feature.

Covariates enter each layer. Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``k`` covariates, ``p``
posterior parameters, ``z`` latent coordinates.
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

from celldial.model.latents import Latent
from celldial.model.periodic import HARMONIC_SCALE, fourier_features
from celldial.ops.csr import CSRTensor
from celldial.ops.log_likelihoods import sparse_linear

__all__ = ["DECODERS", "Decoder", "DecoderName", "Encoder", "LayerSizes"]

DecoderName = Literal["network", "additive", "linear"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)

# A feature seen in almost no cell would otherwise start with an enormous weight.
MIN_DEVIATION = 0.05
# The decoder's weights start this much below torch's default: with few counts a feature, what is drawn at random has to
# be unlearned first.
HEAD_SCALE = 0.1
# A feature answers to few of the latent coordinates, so that each may do more than its share of what the prior on
# loadings expects of all hidden units together.
CURVE_SCALE = 2.0
# Directions, over the features, in which the covariates of an additive or linear decoder move the outputs.
N_COVARIATE_UNITS = 16
# Counts that a feature is given in advance, to say how sure its loadings are at the start.
START_COUNTS = 10.0


@dataclass(frozen=True)
class LayerSizes:
    """Sizes that the encoders and decoders of a model share.

    Parameters
    ----------
    n_categories
        Number of categories of each categorical covariate.
    n_continuous
        Number of continuous covariates.
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
    """What the covariates add to a layer's input: one learned vector per category, one per continuous covariate."""

    def __init__(self, n_categories: Sequence[int], n_continuous: int, n_hidden: int) -> None:
        super().__init__()
        self.categorical = nn.ModuleList(nn.Embedding(n, n_hidden) for n in n_categories)
        for embedding in self.categorical:
            assert isinstance(embedding, nn.Embedding)
            # A batch that was never seen with a modality is then decoded as the average of all, and not at random.
            nn.init.zeros_(embedding.weight)
        self.continuous = nn.Linear(n_continuous, n_hidden, bias=False) if n_continuous else None

    def forward(self, hidden_ch: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        for embedding, category_c in zip(self.categorical, category_ck.unbind(-1), strict=True):
            hidden_ch = hidden_ch + embedding(category_c)
        if self.continuous is not None:
            hidden_ch = hidden_ch + self.continuous(continuous_ck)
        return hidden_ch


class HiddenLayer(nn.Module):
    """Everything between two matrix products: covariates, layer norm, nonlinearity."""

    def __init__(self, n_categories: Sequence[int], n_continuous: int, n_hidden: int) -> None:
        super().__init__()
        self.covariates = CovariateShift(n_categories, n_continuous, n_hidden)
        self.norm = nn.LayerNorm(n_hidden)

    def forward(self, hidden_ch: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        shifted_ch = self.covariates(hidden_ch, category_ck, continuous_ck)
        return silu(self.norm(shifted_ch))


class Encoder(nn.Module):
    """From sparse counts to the parameters of the posterior.

    The input is the log of counts per median library size. Zeros stay zeros, so the first layer costs what the stored
    counts cost.

    Parameters
    ----------
    n_features
        Number of features of the modality.
    n_outputs
        Number of outputs per cell.
    sizes
        Covariates and hidden layers.
    dropout_rate
        Share of the stored counts that is hidden from the network during training.
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
        """Start as if every feature had been standardized, so that a rare marker weighs as much as a ribosomal gene."""
        with torch.no_grad():
            self.median_library_size.copy_(library_size_c.median())
            log_n = self.normalize(counts, library_size_c)
            mean_f = counts.sum_columns(log_n) / counts.n_rows
            variance_f = counts.sum_columns(log_n.square()) / counts.n_rows - mean_f.square()
            self.weight_fh.div_(variance_f.clamp_min(MIN_DEVIATION**2).sqrt()[:, None])
            self.bias_h.copy_(-mean_f @ self.weight_fh)

    def normalize(self, counts: CSRTensor, library_size_c: Tensor) -> Tensor:
        """Log of one plus counts per median library size, of the stored entries."""
        return (counts.value_n * counts.expand_rows(self.median_library_size / library_size_c)).log1p()

    def forward(self, counts: CSRTensor, library_size_c: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Posterior parameters, shape ``(c, p)``."""
        log_n = dropout(self.normalize(counts, library_size_c), self.dropout_rate, self.training)
        hidden_ch = sparse_linear(counts.with_values(log_n), self.weight_fh) + self.bias_h
        hidden_ch = self.layers[0](hidden_ch, category_ck, continuous_ck)
        for linear, layer in zip(self.linears, self.layers[1:], strict=True):
            hidden_ch = layer(linear(hidden_ch), category_ck, continuous_ck)
        # The posterior is computed in full precision, also where matrix products are not.
        result: Tensor = self.output(hidden_ch).to(self.weight_fh.dtype)
        return result


class CoordinateUnits(nn.Module):
    """The hidden layer of additive and linear decoders: one unit a latent coordinate, and some of the covariates alone.

    In an additive decoder a coordinate's unit is nearly flat on one side and rises on the other (SiLU), so that the
    coordinate switches one programme of features on. Without this bend, a rotation of the coordinates would describe
    the cells as well. The covariates move the bends, too. In a linear decoder the units are the coordinates.

    Parameters
    ----------
    n_latent
        Number of latent coordinates.
    n_categories, n_continuous
        As in `Encoder`.
    nonlinear
        Whether the decoder is additive, and not linear.
    """

    def __init__(self, n_latent: int, n_categories: Sequence[int], n_continuous: int, nonlinear: bool) -> None:
        super().__init__()
        n_alone = N_COVARIATE_UNITS if n_categories or n_continuous else 0
        self.n_units = n_latent + n_alone
        self.bend = None
        if nonlinear:
            self.slope_z = nn.Parameter(torch.ones(n_latent))
            self.offset_z = nn.Parameter(torch.zeros(n_latent))
            self.bend = CovariateShift(n_categories, n_continuous, n_latent)
        self.alone = CovariateShift(n_categories, n_continuous, n_alone) if n_alone else None

    def forward(self, z_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Hidden units ``(c, h)``: those of the coordinates in their order, then those of the covariates."""
        unit_cz = z_cz
        if self.bend is not None:
            unit_cz = CURVE_SCALE * silu(self.bend(self.slope_z * z_cz + self.offset_z, category_ck, continuous_ck))
        if self.alone is None:
            return unit_cz
        nothing_ch = z_cz.new_zeros(len(z_cz), N_COVARIATE_UNITS)
        return torch.cat([unit_cz, self.alone(nothing_ch, category_ck, continuous_ck)], 1)


class Decoder(nn.Module):
    """From latent coordinates to one or more outputs for every feature.

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
        ``"network"``: hidden layers in which all coordinates meet. ``"additive"``: every output is a sum of terms, each
        of which depends on one coordinate and the covariates; `n_hidden` and `n_layers` do not matter then. See
        `CoordinateUnits`. ``"linear"``: every output is a weighted sum of the coordinates, and what the covariates add.
    n_harmonics
        Features of the place on the circle that add to the first output; 0 where there is no circle.
    bayesian
        Whether it is known how sure each loading of a linear decoder is: its posterior has the mean ``heads[0].weight``
        and the standard deviation ``exp(log_deviation_fh)``.

    References
    ----------
    Moinfar and Theis (2024), Unsupervised deep disentangled representation of single-cell omics, bioRxiv
    2024.11.06.622266, whose decoder has a network for each coordinate, and pools them by a log-sum-exp.
    """

    cycles_f: Tensor
    tilt_kz: Tensor

    def __init__(
        self,
        n_features: int,
        n_heads: int,
        latent: Latent,
        sizes: LayerSizes,
        kind: DecoderName = "network",
        n_harmonics: int = 0,
        bayesian: bool = False,
    ) -> None:
        super().__init__()
        n_latent, n_hidden, n_layers = latent.n_latent, sizes.n_hidden, sizes.n_layers
        n_categories, n_continuous = sizes.n_categories, sizes.n_continuous
        self.latent = latent
        self.harmonic_scale = HARMONIC_SCALE
        # What the circle says, added to the logarithm of the rates: the same in every cell that has the same angle.
        self.harmonics = nn.Linear(n_harmonics, n_features, bias=False) if n_harmonics else None
        if self.harmonics is not None:
            nn.init.zeros_(self.harmonics.weight)
            # Which features tell the angle: found with the cells' posteriors, not by gradients.
            self.register_buffer("cycles_f", torch.zeros(n_features, dtype=torch.bool))
            # Part of the coordinates that depends on the angle; see `angle_posterior.decorrelate_from_angle`.
            self.register_buffer("tilt_kz", torch.zeros(n_harmonics - 1, n_latent))
        self.curves = (
            None if kind == "network" else CoordinateUnits(n_latent, n_categories, n_continuous, kind == "additive")
        )
        if self.curves is not None:
            n_hidden, n_layers = self.curves.n_units, 0
        widths = [n_latent, *[n_hidden] * (n_layers - 1)][:n_layers]
        self.linears = nn.ModuleList(nn.Linear(width, n_hidden) for width in widths)
        self.layers = nn.ModuleList(HiddenLayer(n_categories, n_continuous, n_hidden) for _ in range(n_layers))
        self.heads = nn.ModuleList(nn.Linear(n_hidden, n_features) for _ in range(n_heads))
        self.log_deviation_fh = nn.Parameter(torch.zeros(n_features, n_hidden)) if bayesian else None

    @property
    def rate_head(self) -> nn.Linear:
        """The head from which the shares of the features come, the first."""
        head = self.heads[0]
        assert isinstance(head, nn.Linear)
        return head

    def initialize(self, counts: CSRTensor) -> None:
        """Start the first head at the log of each feature's mean rate, and hardly dependent on the latent state."""
        with torch.no_grad():
            for head in self.heads:
                assert isinstance(head, nn.Linear)
                head.weight.mul_(HEAD_SCALE)
            total_f = counts.sum_columns(counts.value_n)
            log_total_f = (total_f + 1).log()
            self.rate_head.bias.copy_(log_total_f - log_total_f.mean())
            if self.log_deviation_fh is not None:
                # Each count tells as much of a loading as the coordinate is far from 0, which on average is 1, squared.
                self.log_deviation_fh.copy_(-0.5 * (total_f + START_COUNTS).log()[:, None])

    def hidden(self, z_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Compute the units of the last hidden layer, shape ``(c, h)``."""
        hidden_ch = z_cz[:, : self.latent.n_latent]
        if self.harmonics is not None:
            hidden_ch = hidden_ch + fourier_features(z_cz[:, self.latent.n_latent :])[:, :-1] @ self.tilt_kz
        hidden_ch = self.latent.link(hidden_ch)
        if self.curves is not None:
            hidden_ch = self.curves(hidden_ch, category_ck, continuous_ck)
        for linear, layer in zip(self.linears, self.layers, strict=True):
            hidden_ch = layer(linear(hidden_ch), category_ck, continuous_ck)
        return hidden_ch

    def inputs(self, z_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Compute all that the first output is linear in: hidden units, then what the circle says; ``(c, h)``."""
        hidden_ch = self.hidden(z_cz, category_ck, continuous_ck)
        if self.harmonics is None:
            return hidden_ch
        return torch.cat([hidden_ch, fourier_features(z_cz[:, self.latent.n_latent :])], 1)

    def loadings(self) -> tuple[Tensor, Tensor]:
        """Give the weights ``(f, h)`` and biases ``(f,)`` that lead from `inputs` to the first output."""
        weights = [self.rate_head.weight]
        if self.harmonics is not None:
            weights.append(self.harmonics.weight)
        return torch.cat(weights, 1), self.rate_head.bias

    def forward(
        self, z_cz: Tensor, category_ck: Tensor, continuous_ck: Tensor, loading_fh: Tensor | None = None
    ) -> list[Tensor]:
        """One output ``(c, f)`` per head; the first may be by other loadings than the decoder's."""
        hidden_ch = self.hidden(z_cz, category_ck, continuous_ck)
        # Likelihoods are computed in full precision, also where matrix products are not.
        if loading_fh is None:
            outputs = [head(hidden_ch).to(z_cz.dtype) for head in self.heads]
        else:
            outputs = [functional.linear(hidden_ch, loading_fh, self.rate_head.bias).to(z_cz.dtype)]
            outputs += [head(hidden_ch).to(z_cz.dtype) for head in self.heads[1:]]
        if self.harmonics is not None:
            outputs[0] = outputs[0] + self.harmonics(fourier_features(z_cz[:, self.latent.n_latent :])).to(z_cz.dtype)
        return outputs

"""Observation models, one class each: the distribution of the counts given the outputs of the decoder.

To add one, write a subclass of `Likelihood` and add it to `LIKELIHOODS`. Its tests need one row in
``tests/helpers/cases.py``. A fused log-likelihood in `celldial.ops.log_likelihoods` makes it faster.

Axis suffixes: ``c`` cells, ``f`` features, ``n`` stored entries of a sparse matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn

from celldial.model.distributions import SINGLE_DRAW
from celldial.ops import log_likelihoods
from celldial.ops.csr import CSRTensor

__all__ = [
    "BINARY_LIKELIHOODS",
    "LIKELIHOODS",
    "Bernoulli",
    "Likelihood",
    "MaskedObservation",
    "NegativeBinomial",
    "Poisson",
    "SparseObservation",
    "ZeroInflatedNegativeBinomial",
]

# Bounds of the initial inverse dispersions. Above 100, counts are Poisson for all practical purposes.
THETA_BOUNDS = (0.05, 100.0)
# Default library size to decode counts with.
PER_TEN_THOUSAND = 1e4

Unit = Literal["counts", "probability"]


class Likelihood(nn.Module):
    """Base class of the observation models.

    ``heads`` are the outputs of the decoder, each of shape ``(c, f)``. The softmax of the first head is the share of
    each feature in the counts of a cell.

    Attributes
    ----------
    n_heads
        Number of decoder outputs per feature.
    n_matrices
        Number of matrices of shape ``(c, f)`` that a training step holds at once, from the heads to their gradients.
    loading_scale
        Prior standard deviation of a feature's log rate between cells, for hidden units of size one. The prior of each
        weight from one of n hidden units to a head is normal, with this standard deviation divided by √n.
    binary
        Whether only the presence of a count is modeled. Counts above 1 are then treated as 1.
    dispersion_by_batch
        Whether the dispersion can depend on the batch; see `NegativeBinomial`.
    unit
        Unit of the expected values.
    upper_bound
        Largest possible expected value.
    """

    n_heads: ClassVar[int] = 1
    n_matrices: ClassVar[int] = 2
    loading_scale: ClassVar[float] = 1.7
    binary: ClassVar[bool] = False
    dispersion_by_batch: ClassVar[bool] = False
    unit: ClassVar[Unit] = "counts"
    upper_bound: ClassVar[float] = math.inf

    def __init__(self, n_features: int) -> None:
        super().__init__()

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        """Initialize the parameters, if there are any, from the counts."""

    @staticmethod
    def default_library_size(quantile_q: np.ndarray) -> float:
        """Return the library size to decode with by default, given quantiles of the library sizes of the cells."""
        return PER_TEN_THOUSAND

    def mean(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected value of every entry, shape ``(c, f)``."""
        return self.expected(torch.softmax(heads[0], -1), library_size_c)

    def expected(self, share_cf: Tensor, library_size_c: Tensor) -> Tensor:
        """Return the expected values of features with these shares, shape ``(c, f)``: library size times share."""
        return library_size_c[:, None] * share_cf

    def elasticity(self, mean: Tensor) -> Tensor:
        """Return the derivative of the log expected value by the log rate: 1 if one is proportional to the other."""
        return torch.ones_like(mean)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected Fisher information of each count about its log rate, shape ``(c, f)``."""
        raise NotImplementedError

    def variance(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the variance of every count given the decoder outputs, shape ``(c, f)``."""
        raise NotImplementedError

    def zero_probability(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the probability that a count is 0, shape ``(c, f)``."""
        raise NotImplementedError

    def observed_mean(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the mean of every count as it is observed, after dropout if there is any, shape ``(c, f)``."""
        return self.mean(heads, library_size_c)

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        raise NotImplementedError

    def log_exposure(self, library_size_c: Tensor) -> Tensor:
        """Return the log of each cell's exposure, shape ``(c,)``: rates are exposure times shares."""
        return library_size_c.log()

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Return the log-likelihood of single counts given their log rates, up to a constant, shape ``(c, f)``."""
        raise NotImplementedError

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Sample counts, shape ``(c, f)``."""
        raise NotImplementedError


class Poisson(Likelihood):
    """Counts with mean ``library_size * softmax(logits)`` and no overdispersion."""

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        return log_likelihoods.poisson(heads[0], library_size_c, counts)

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Return the log-likelihood of single counts, up to a constant, shape ``(c, f)``."""
        return value_cf * log_rate_cf - log_rate_cf.exp()

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected Fisher information about the log rate, shape ``(c, f)``: the mean."""
        return self.mean(heads, library_size_c)

    def variance(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the variance of every count, shape ``(c, f)``: the mean."""
        return self.mean(heads, library_size_c)

    def zero_probability(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the probability that a count is 0, shape ``(c, f)``: exp(−μ)."""
        return self.mean(heads, library_size_c).neg().exp()

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Sample counts, shape ``(c, f)``."""
        return torch.poisson(self.mean(heads, library_size_c))


class NegativeBinomial(Likelihood):
    """Counts with mean ``library_size * softmax(logits)`` and variance ``mean + mean**2 / inverse_dispersion``.

    Each feature has a learned inverse dispersion. The decoder may add an output after the first: the difference of the
    log inverse dispersion in the batch of the cell.
    """

    dispersion_by_batch = True

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_inverse_dispersion_f = nn.Parameter(torch.zeros(n_features))

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        """Initialize the inverse dispersions from the moments of the counts, given the library sizes alone.

        The variance between cell types counts as dispersion here, so the initial dispersion tends to be too high.
        """
        total_f, square_f = counts.sum_columns(counts.value_n), counts.sum_columns(counts.value_n**2)
        share_f = total_f / library_size_c.sum()
        cross_f = counts.sum_columns(counts.value_n * library_size_c[counts.row_n])
        mean_square_f = share_f**2 * library_size_c.square().sum()
        # Var = mean + mean^2 / theta. Summed over cells: E(x - mean)^2 - mean = mean^2 / theta.
        excess_f = square_f - 2 * share_f * cross_f + mean_square_f - total_f
        low, high = THETA_BOUNDS
        theta_f = mean_square_f / excess_f.clamp_min(1e-12)
        theta_f = torch.where(excess_f > 0, theta_f, high).clamp(low, high)
        with torch.no_grad():
            self.log_inverse_dispersion_f.copy_(theta_f.log())

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        if len(heads) > self.n_heads:
            log_theta_cf = self.log_inverse_dispersion_f + heads[-1]
            return log_likelihoods.negative_binomial_by_cell(heads[0], log_theta_cf, library_size_c, counts)
        return log_likelihoods.negative_binomial(heads[0], self.log_inverse_dispersion_f, library_size_c, counts)

    def inverse_dispersion(self, heads: Sequence[Tensor]) -> Tensor:
        """Return the inverse dispersions θ, shape ``(f,)``, or ``(c, f)`` if they depend on the batch."""
        log_theta_f = self.log_inverse_dispersion_f
        return (log_theta_f if len(heads) == self.n_heads else log_theta_f + heads[-1]).exp()

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Return the log-likelihood of single counts, up to a constant, zero inflation and batches, ``(c, f)``."""
        log_theta_f = self.log_inverse_dispersion_f[column_f]
        return value_cf * log_rate_cf - (value_cf + log_theta_f.exp()) * torch.logaddexp(log_rate_cf, log_theta_f)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected Fisher information about the log rate, shape ``(c, f)``: μθ / (μ + θ), at most θ."""
        mu_cf, theta_f = self.mean(heads, library_size_c), self.inverse_dispersion(heads)
        return mu_cf * theta_f / (mu_cf + theta_f)

    def variance(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the variance of every count, shape ``(c, f)``: μ + μ² / θ."""
        mu_cf = self.mean(heads, library_size_c)
        return mu_cf + mu_cf.square() / self.inverse_dispersion(heads)

    def zero_probability(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the probability that a count is 0, shape ``(c, f)``: (θ / (θ + μ))^θ."""
        theta_f = self.inverse_dispersion(heads)
        return torch.log1p(self.mean(heads, library_size_c) / theta_f).mul(-theta_f).exp()

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Sample counts as a Gamma mixture of Poissons, shape ``(c, f)``."""
        theta_f = self.inverse_dispersion(heads)
        mu_cf = self.mean(heads, library_size_c)
        gamma_cf = torch.distributions.Gamma(theta_f.expand_as(mu_cf), theta_f / mu_cf.clamp_min(1e-20)).sample()
        return torch.poisson(gamma_cf)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial with dropout: the second head is the log odds that a count is lost."""

    n_heads = 2
    n_matrices = 9
    dispersion_by_batch = False

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        return log_likelihoods.zero_inflated_negative_binomial(
            heads[0], heads[1], self.log_inverse_dispersion_f, library_size_c, counts
        )

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected Fisher information about the log rate, shape ``(c, f)``.

        It is lower than without dropout: a zero is less informative, because it may be a lost count.
        """
        kept_information_cf = super().fisher_information(heads, library_size_c)  # equals minus the score of a zero, too
        theta_f = self.inverse_dispersion(heads)
        zero_cf = (1 + self.mean(heads, library_size_c) / theta_f).log().mul(-theta_f).exp()
        kept_cf = torch.sigmoid(-heads[1])
        lost_fraction_cf = (1 - kept_cf) / (1 - kept_cf * (1 - zero_cf))  # fraction of the zeros that are lost counts
        return kept_cf * (kept_information_cf - lost_fraction_cf * zero_cf * kept_information_cf.square())

    def observed_mean(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the mean of every count as it is observed, after dropout, shape ``(c, f)``."""
        return self.mean(heads, library_size_c) * torch.sigmoid(-heads[1])

    def variance(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the variance of every count, shape ``(c, f)``: that of kept counts, and that of being kept."""
        kept_cf, mu_cf = torch.sigmoid(-heads[1]), self.mean(heads, library_size_c)
        return kept_cf * (super().variance(heads, library_size_c) + (1 - kept_cf) * mu_cf.square())

    def zero_probability(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the probability that a count is 0, shape ``(c, f)``, lost or not."""
        kept_cf = torch.sigmoid(-heads[1])
        return 1 - kept_cf * (1 - super().zero_probability(heads, library_size_c))

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Sample counts, shape ``(c, f)``."""
        kept_cf = torch.bernoulli(torch.sigmoid(-heads[1]))
        return super().sample(heads, library_size_c) * kept_cf


class Bernoulli(Likelihood):
    r"""Presence of a feature, such as an open chromatin peak.

    The fragments of a cell fall on peaks as a Poisson process, and a peak with at least one fragment is open:
    :math:`P(x_{cf} = 1) = 1 - \exp(-\ell_c \, \text{softmax}_f(\text{logits}_c))`. **Depth**: the exposure
    :math:`\ell_c` is a power law of the cell's library size :math:`n_c` (here its number of open peaks),
    :math:`\log \ell_c = a + b \log n_c`, with learned :math:`a` and :math:`b`, because in deeper cells more fragments
    fall on peaks that are already open. The latent state then does not need to encode the depth.
    ``benchmarks/ablations/depth.py`` compares this model on held-out cells with a log-odds offset and with no model of
    depth.

    References
    ----------
    Martens et al. (2023), Modeling fragment counts improves single-cell ATAC-seq analysis,
    doi:10.1038/s41592-023-02112-6.
    """

    # Chromatin differs less between cells than expression, and a modality with many features can overfit.
    loading_scale = 0.6
    binary = True
    unit = "probability"
    upper_bound = 1.0

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.exposure_offset = nn.Parameter(torch.zeros(()))
        self.exposure_slope = nn.Parameter(torch.ones(()))

    @staticmethod
    def default_library_size(quantile_q: np.ndarray) -> float:
        """Return the median library size, because probabilities depend on the depth of the cell."""
        return float(np.median(quantile_q))

    def log_exposure(self, library_size_c: Tensor) -> Tensor:
        """Return the log of the expected number of fragments of each cell, shape ``(c,)``."""
        # A cell that has the modality has an open peak. For other cells, the bound keeps the logarithm finite.
        return self.exposure_offset + self.exposure_slope * library_size_c.clamp_min(1e-6).log()

    def expected(self, share_cf: Tensor, library_size_c: Tensor) -> Tensor:
        """Return the probability that each feature is present, shape ``(c, f)``."""
        return -torch.expm1(-self.log_exposure(library_size_c).exp()[:, None] * share_cf)

    def elasticity(self, mean: Tensor) -> Tensor:
        """Return the derivative of the log probability by the log rate, which falls as the probability rises."""
        rate = -torch.log1p(-mean.clamp(1e-20, 1 - 1e-6))
        return rate / torch.expm1(rate)

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Return the log-likelihood of single features being present or absent, shape ``(c, f)``."""
        rate_cf = log_rate_cf.exp()
        return torch.where(value_cf > 0, torch.log(-torch.expm1(-rate_cf.clamp_min(1e-30))), -rate_cf)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected Fisher information about the log rate, shape ``(c, f)``: λ² / (exp λ − 1)."""
        rate_cf = self.log_exposure(library_size_c).exp()[:, None] * torch.softmax(heads[0], -1)
        return rate_cf.square() / torch.expm1(rate_cf).clamp_min(1e-30)

    def variance(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the variance of every count, shape ``(c, f)``: p (1 − p)."""
        p_cf = self.mean(heads, library_size_c)
        return p_cf * (1 - p_cf)

    def zero_probability(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the probability that a feature is absent, shape ``(c, f)``."""
        return 1 - self.mean(heads, library_size_c)

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``; every stored entry is a success."""
        return log_likelihoods.bernoulli(heads[0], self.log_exposure(library_size_c), counts)

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Sample zeros and ones, shape ``(c, f)``."""
        return torch.bernoulli(self.mean(heads, library_size_c))


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "negative_binomial": NegativeBinomial,
    "poisson": Poisson,
    "bernoulli": Bernoulli,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
}
BINARY_LIKELIHOODS = frozenset(name for name, likelihood in LIKELIHOODS.items() if likelihood.binary)


class SparseObservation(TorchDistribution):
    """The counts of a minibatch as a Pyro distribution, whose values are sparse matrices.

    Pyro's own count distributions take dense values and evaluate the special functions on every zero.

    Parameters
    ----------
    likelihood
        The observation model.
    heads
        Outputs of the decoder.
    library_size_c
        Library size of each cell.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, likelihood: Likelihood, heads: Sequence[Tensor], library_size_c: Tensor) -> None:
        self.likelihood, self.heads, self.library_size_c = likelihood, heads, library_size_c
        super().__init__(heads[0].shape[:1], heads[0].shape[1:], validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> SparseObservation:
        """Return the distribution itself, which already has the shape of the Pyro plate."""
        check_batch_shape(self, batch_shape)
        return self

    @property
    def mean(self) -> Tensor:
        """Expected value of every entry, shape ``(c, f)``."""
        return self.likelihood.mean(self.heads, self.library_size_c)

    def log_prob(self, value: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        return self.likelihood.log_prob(self.heads, self.library_size_c, value)

    def sample(self, sample_shape: Size = SINGLE_DRAW) -> Tensor:
        """Sample counts, shape ``(*sample_shape, c, f)``."""
        sample_shape = Size(sample_shape)
        draws = [self.likelihood.sample(self.heads, self.library_size_c) for _ in range(sample_shape.numel())]
        return torch.stack(draws).reshape(sample_shape + draws[0].shape)


class MaskedObservation(TorchDistribution):
    """The counts of the cells that have a modality, as a distribution over all cells.

    The log-likelihood of cells without the modality is 0.

    Parameters
    ----------
    observation
        Distribution of the counts of the cells that have the modality.
    index_c
        Indices of these cells, int64; None if all cells have the modality.
    n_cells
        Number of all cells.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, observation: SparseObservation, index_c: Tensor | None, n_cells: int) -> None:
        self.observation, self.index_c = observation, index_c
        super().__init__(Size([n_cells]), observation.event_shape, validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> MaskedObservation:
        """Return the distribution itself, as `SparseObservation` does."""
        check_batch_shape(self, batch_shape)
        return self

    def log_prob(self, value: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``, of the counts of the cells that have the modality."""
        log_p_c = self.observation.log_prob(value)
        if self.index_c is None:
            return log_p_c
        return log_p_c.new_zeros(self.batch_shape).index_copy(0, self.index_c, log_p_c)

    def sample(self, sample_shape: Size = SINGLE_DRAW) -> Tensor:
        """Sample counts of the cells that have the modality, shape ``(*sample_shape, c, f)``."""
        return self.observation.sample(sample_shape)


def check_batch_shape(distribution: TorchDistribution, batch_shape: Size) -> None:
    """Raise a ValueError unless a distribution has this batch shape."""
    if tuple(batch_shape) != tuple(distribution.batch_shape):
        shape = tuple(distribution.batch_shape)
        raise ValueError(f"an observation of batch shape {shape} cannot be expanded to {tuple(batch_shape)}")

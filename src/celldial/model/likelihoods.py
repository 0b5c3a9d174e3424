"""Observation models: one class each, from the decoder's outputs to the probability of the counts.

To add one: write the class (a subclass of `Likelihood`), add it to `LIKELIHOODS`, and add its fused log-likelihood to
``ops.py`` if it needs one. The parametrized tests then cover it.

Axis suffixes: ``c`` cells, ``f`` features, ``n`` stored entries of a sparse matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from celldial.ops import log_likelihoods
from celldial.ops.csr import CSRTensor

# Inverse dispersions are started within these bounds: beyond 100 a gene is Poisson for every practical purpose.
THETA_BOUNDS = (0.05, 100.0)
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
        Prior standard deviation of a feature's log rate between cells: that of a normal prior on the weights that lead
        from hidden units of size one to the heads.
    binary
        Whether only the presence of a count is modeled. Counts above 1 are then read as 1.
    unit
        Unit of the expected values.
    upper_bound
        Largest possible expected value.
    """

    n_heads: ClassVar[int] = 1
    n_matrices: ClassVar[int] = 2
    loading_scale: ClassVar[float] = 1.7
    binary: ClassVar[bool] = False
    unit: ClassVar[Unit] = "counts"
    upper_bound: ClassVar[float] = math.inf

    def __init__(self, n_features: int) -> None:
        super().__init__()

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        """Start the parameters from the counts; nothing to do where there are none."""

    @staticmethod
    def default_library_size(quantile_q: np.ndarray) -> float:
        """Return the library size to decode with by default, given quantiles of the library sizes of the cells."""
        return PER_TEN_THOUSAND

    def mean(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Compute the expected value of every entry, shape ``(c, f)``."""
        return self.expected(torch.softmax(heads[0], -1), library_size_c)

    def expected(self, share_cf: Tensor, library_size_c: Tensor) -> Tensor:
        """Compute the expected values of features of given shares, shape ``(c, f)``: library size times share."""
        return library_size_c[:, None] * share_cf

    def elasticity(self, mean: Tensor) -> Tensor:
        """Tell by how much the log of an expected value changes with the log of the rate: 1, if they are the same."""
        return torch.ones_like(mean)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Compute the expected Fisher information in each count about the log of its rate, shape ``(c, f)``."""
        raise NotImplementedError

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``."""
        raise NotImplementedError

    def log_exposure(self, library_size_c: Tensor) -> Tensor:
        """Log of what a cell's shares are multiplied with to give its rates, shape ``(c,)``: its library size."""
        return library_size_c.log()

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Log-likelihood of single counts given their log rates, up to what does not depend on these, ``(c, f)``."""
        raise NotImplementedError

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Draw counts, shape ``(c, f)``."""
        raise NotImplementedError


class Poisson(Likelihood):
    """Counts with mean ``library_size * softmax(logits)`` and no overdispersion."""

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``."""
        return log_likelihoods.poisson(heads[0], library_size_c, counts)

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Log-likelihood of single counts, up to a constant, shape ``(c, f)``."""
        return value_cf * log_rate_cf - log_rate_cf.exp()

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Compute the expected Fisher information about the log rate, shape ``(c, f)``: the mean."""
        return self.mean(heads, library_size_c)

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Draw counts, shape ``(c, f)``."""
        return torch.poisson(self.mean(heads, library_size_c))


class NegativeBinomial(Likelihood):
    """Counts with mean ``library_size * softmax(logits)`` and variance ``mean + mean**2 / inverse_dispersion``.

    The inverse dispersion is one learned number per feature.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_inverse_dispersion_f = nn.Parameter(torch.zeros(n_features))

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        """Start the inverse dispersions from the moments of the counts, given the library sizes alone.

        The variance between cell types counts as dispersion here, so the start errs on the side of too much of it.
        """
        total_f, square_f = counts.sum_columns(counts.value_n), counts.sum_columns(counts.value_n**2)
        share_f = total_f / library_size_c.sum()
        cross_f = counts.sum_columns(counts.value_n * library_size_c[counts.row_n])
        mean_square_f = share_f**2 * library_size_c.square().sum()
        # Var = mean + mean^2 / theta, summed over cells: E(x - mean)^2 - mean = mean^2 / theta.
        excess_f = square_f - 2 * share_f * cross_f + mean_square_f - total_f
        low, high = THETA_BOUNDS
        theta_f = mean_square_f / excess_f.clamp_min(1e-12)
        theta_f = torch.where(excess_f > 0, theta_f, high).clamp(low, high)
        with torch.no_grad():
            self.log_inverse_dispersion_f.copy_(theta_f.log())

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``."""
        return log_likelihoods.negative_binomial(heads[0], self.log_inverse_dispersion_f, library_size_c, counts)

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Log-likelihood of single counts, up to a constant, shape ``(c, f)``; with zero inflation, of kept ones."""
        log_theta_f = self.log_inverse_dispersion_f[column_f]
        return value_cf * log_rate_cf - (value_cf + log_theta_f.exp()) * torch.logaddexp(log_rate_cf, log_theta_f)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Compute the expected Fisher information about the log rate, shape ``(c, f)``: μθ / (μ + θ), at most θ."""
        mu_cf, theta_f = self.mean(heads, library_size_c), self.log_inverse_dispersion_f.exp()
        return mu_cf * theta_f / (mu_cf + theta_f)

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Draw counts as a Gamma mixture of Poissons, shape ``(c, f)``."""
        theta_f = self.log_inverse_dispersion_f.exp()
        mu_cf = self.mean(heads, library_size_c)
        gamma_cf = torch.distributions.Gamma(theta_f.expand_as(mu_cf), theta_f / mu_cf.clamp_min(1e-20)).sample()
        return torch.poisson(gamma_cf)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial whose counts are lost with a probability that the decoder's second head gives."""

    n_heads = 2
    n_matrices = 9

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``."""
        return log_likelihoods.zero_inflated_negative_binomial(
            heads[0], heads[1], self.log_inverse_dispersion_f, library_size_c, counts
        )

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Compute the expected Fisher information about the log rate, shape ``(c, f)``: less than without lost counts.

        Of the information in a kept count, what a zero tells is told less clearly where it may be a lost count.
        """
        kept_information_cf = super().fisher_information(heads, library_size_c)  # also minus the score of a zero
        theta_f = self.log_inverse_dispersion_f.exp()
        zero_cf = (1 + self.mean(heads, library_size_c) / theta_f).log().mul(-theta_f).exp()
        kept_cf = torch.sigmoid(-heads[1])
        lost_share_cf = (1 - kept_cf) / (1 - kept_cf * (1 - zero_cf))  # of all zeros
        return kept_cf * (kept_information_cf - lost_share_cf * zero_cf * kept_information_cf.square())

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Draw counts, shape ``(c, f)``."""
        kept_cf = torch.bernoulli(torch.sigmoid(-heads[1]))
        return super().sample(heads, library_size_c) * kept_cf


class Bernoulli(Likelihood):
    r"""Whether a feature, such as a chromatin peak, is seen at all.

    A cell's fragments fall on peaks as a Poisson process, and a peak is seen open where at least one fragment fell:
    :math:`P(x_{cf} = 1) = 1 - \exp(-\ell_c \, \text{softmax}_f(\text{logits}_c))`. **Depth**: the exposure
    :math:`\ell_c` is a power law of the cell's library size :math:`n_c` (here its number of open peaks), :math:`\log
    \ell_c = a + b \log n_c`, with :math:`a` and :math:`b` learned, because the deeper a cell the more fragments fall on
    peaks that are open already. The latent state need not carry the depth. ``benchmarks/ablations/depth.py`` compares
    this on held-out cells with a log-odds offset and with no model of depth.

    References
    ----------
    Martens et al. (2023), Modeling fragment counts improves single-cell ATAC-seq analysis,
    doi:10.1038/s41592-023-02112-6.
    """

    # Chromatin differs less between cells than expression does, and a wide modality has many weights to overfit with.
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
        """Return the median library size: a probability depends on the depth of the cell."""
        return float(np.median(quantile_q))

    def log_exposure(self, library_size_c: Tensor) -> Tensor:
        """Log of the expected number of fragments of each cell, shape ``(c,)``."""
        # Cells without a single open peak are not observed; those asked for by decoding have a depth.
        return self.exposure_offset + self.exposure_slope * library_size_c.clamp_min(1e-6).log()

    def expected(self, share_cf: Tensor, library_size_c: Tensor) -> Tensor:
        """Compute the probability that each feature is seen, shape ``(c, f)``."""
        return -torch.expm1(-self.log_exposure(library_size_c).exp()[:, None] * share_cf)

    def elasticity(self, mean: Tensor) -> Tensor:
        """Tell by how much the log of a probability changes with the log of the rate: by less, the larger it is."""
        rate = -torch.log1p(-mean.clamp(1e-20, 1 - 1e-6))
        return rate / torch.expm1(rate)

    def entry_log_prob(self, value_cf: Tensor, log_rate_cf: Tensor, column_f: Tensor) -> Tensor:
        """Log-likelihood of single peaks being open or not, shape ``(c, f)``."""
        rate_cf = log_rate_cf.exp()
        return torch.where(value_cf > 0, torch.log(-torch.expm1(-rate_cf.clamp_min(1e-30))), -rate_cf)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Compute the expected Fisher information about the log rate, shape ``(c, f)``: λ² / (exp λ − 1)."""
        rate_cf = self.log_exposure(library_size_c).exp()[:, None] * torch.softmax(heads[0], -1)
        return rate_cf.square() / torch.expm1(rate_cf).clamp_min(1e-30)

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``; every stored entry is a success."""
        return log_likelihoods.bernoulli(heads[0], self.log_exposure(library_size_c), counts)

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Draw zeros and ones, shape ``(c, f)``."""
        return torch.bernoulli(self.mean(heads, library_size_c))


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "negative_binomial": NegativeBinomial,
    "poisson": Poisson,
    "bernoulli": Bernoulli,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
}
BINARY_LIKELIHOODS = frozenset(name for name, likelihood in LIKELIHOODS.items() if likelihood.binary)


class SparseObservation(TorchDistribution):
    """The counts of a minibatch as a Pyro distribution: sparse rows in, nats per cell out.

    Pyro's own count distributions take dense values and evaluate the special functions on every zero.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, likelihood: Likelihood, heads: Sequence[Tensor], library_size_c: Tensor) -> None:
        self.likelihood, self.heads, self.library_size_c = likelihood, heads, library_size_c
        super().__init__(heads[0].shape[:1], heads[0].shape[1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> SparseObservation:
        """Return itself: a Pyro plate asks every distribution in it to take its shape, and this one has it already."""
        if tuple(batch_shape) != tuple(self.batch_shape):
            raise ValueError(f"an observation of {tuple(self.batch_shape)} cells cannot be expanded to {batch_shape}")
        return self

    @property
    def mean(self) -> Tensor:
        """Expected value of every entry, shape ``(c, f)``."""
        return self.likelihood.mean(self.heads, self.library_size_c)

    def log_prob(self, value: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``."""
        return self.likelihood.log_prob(self.heads, self.library_size_c, value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw counts, shape ``(*sample_shape, c, f)``."""
        sample_shape = torch.Size(sample_shape)
        draws = [self.likelihood.sample(self.heads, self.library_size_c) for _ in range(sample_shape.numel())]
        return torch.stack(draws).reshape(sample_shape + draws[0].shape)


class MaskedObservation(TorchDistribution):
    """The counts of those cells that have a modality, as a distribution over all cells: others have probability 1.

    Parameters
    ----------
    observation
        Of the cells that have the modality.
    index_c
        Which they are, int64; None for all.
    n_cells
        Number of all cells.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, observation: SparseObservation, index_c: Tensor | None, n_cells: int) -> None:
        self.observation, self.index_c = observation, index_c
        super().__init__(torch.Size([n_cells]), observation.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> MaskedObservation:
        """Return itself, as `SparseObservation` does."""
        if tuple(batch_shape) != tuple(self.batch_shape):
            raise ValueError(f"observations of {tuple(self.batch_shape)} cells cannot be expanded to {batch_shape}")
        return self

    def log_prob(self, value: CSRTensor) -> Tensor:
        """Log-likelihood in nats, shape ``(c,)``, of counts of the cells that have the modality."""
        log_p_c = self.observation.log_prob(value)
        if self.index_c is None:
            return log_p_c
        return log_p_c.new_zeros(self.batch_shape).index_copy(0, self.index_c, log_p_c)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw counts of the cells that have the modality, shape ``(*sample_shape, c, f)``."""
        return self.observation.sample(sample_shape)

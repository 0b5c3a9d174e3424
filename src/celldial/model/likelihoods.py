"""Observation models, one class each: the distribution of the counts given the outputs of the decoder.

To add one, write a subclass of `Likelihood` and add it to `LIKELIHOODS`. Its tests need one row in
``tests/helpers/cases.py``. A fused log-likelihood in `celldial.ops.log_likelihoods` makes it faster.

Axis suffixes: ``c`` cells, ``f`` features, ``n`` stored entries of a sparse matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from celldial.model.background import estimate_background
from celldial.ops import log_likelihoods, mixture
from celldial.ops.csr import CSRTensor

__all__ = [
    "BINARY_LIKELIHOODS",
    "LIKELIHOODS",
    "Bernoulli",
    "Likelihood",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]

# Bounds of the initial inverse dispersions. Above 100, counts are Poisson for all practical purposes.
THETA_BOUNDS = (0.05, 100.0)
# Default library size to decode counts with.
PER_TEN_THOUSAND = 1e4

# Of mixtures: smallest initial fraction of the counts that is not background, and initial inverse dispersion.
MIN_FOREGROUND = 0.05
INITIAL_THETA = 5.0
ALL = slice(None)

Unit = Literal["counts", "probability"]
Columns = slice | Tensor


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
    has_background
        Whether a part of the expected values is background, so that there is a `foreground`.
    """

    n_heads: ClassVar[int] = 1
    n_matrices: ClassVar[int] = 2
    loading_scale: ClassVar[float] = 1.7
    binary: ClassVar[bool] = False
    dispersion_by_batch: ClassVar[bool] = False
    unit: ClassVar[Unit] = "counts"
    upper_bound: ClassVar[float] = math.inf
    has_background: ClassVar[bool] = False

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
        return self.expected(torch.softmax(heads[0], -1), library_size_c, heads[1:])

    def expected(
        self, share_cf: Tensor, library_size_c: Tensor, further: Sequence[Tensor] = (), columns: Columns = ALL
    ) -> Tensor:
        """Return the expected values of features with these shares, shape ``(c, f)``: library size times share.

        `further` are the heads after the first, which only a likelihood with a background needs. `columns` are the
        features.
        """
        return library_size_c[:, None] * share_cf

    def foreground(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the part of the expected values that is not background, shape ``(c, f)``; all of it by default."""
        return self.mean(heads, library_size_c)

    def elasticity(self, mean: Tensor, library_size_c: Tensor) -> Tensor:
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
        return log_likelihoods.negative_binomial_entries(value_cf, log_rate_cf, self.log_inverse_dispersion_f[column_f])

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
        return self._sample_with_mean(self.mean(heads, library_size_c), self.inverse_dispersion(heads))

    @staticmethod
    def _sample_with_mean(mu_cf: Tensor, theta_f: Tensor) -> Tensor:
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


class NegativeBinomialMixture(NegativeBinomial):
    r"""Counts of an antibody, which are background or foreground.

    Antibodies that are not bound to their protein are counted in every cell. The background of a count has the mean
    :math:`b_{cf} = \ell_c a_f`, with a learned rate :math:`a_f` for each feature. The count is negative binomial with
    this mean with probability :math:`\pi_{cf}`, and with the mean :math:`b_{cf} + \kappa \ell_c
    \text{softmax}_f(\text{logits}_c)` otherwise, with the library size :math:`\ell_c` and a learned factor
    :math:`\kappa`. The second head is the log odds of the background.

    Unlike in totalVI, the background does not depend on the latent state, and all counts are relative to the library
    size.

    References
    ----------
    Gayoso et al. (2021), Joint probabilistic modeling of single-cell multi-omic data with totalVI,
    doi:10.1038/s41592-020-01050-x.
    """

    n_heads = 2
    n_matrices = 20
    dispersion_by_batch = False
    has_background = True

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_background_f = nn.Parameter(torch.full((n_features,), -math.log(n_features)))
        self.exposure_offset = nn.Parameter(torch.zeros(()))

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        """Initialize the background from the cells with the lower counts of each feature."""
        background_f = estimate_background(counts, library_size_c)
        with torch.no_grad():
            self.log_background_f.copy_(background_f.log())
            self.exposure_offset.copy_((1 - background_f.sum()).clamp_min(MIN_FOREGROUND).log())
            self.log_inverse_dispersion_f.fill_(math.log(INITIAL_THETA))

    def log_exposure(self, library_size_c: Tensor) -> Tensor:
        """Return the log of the sum of the foreground's rates beyond the background, shape ``(c,)``."""
        return self.exposure_offset + library_size_c.log()

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        background_f, exposure_c = self.log_background_f - self.exposure_offset, self.log_exposure(library_size_c)
        theta_f = self.log_inverse_dispersion_f
        return mixture.negative_binomial_mixture(heads[0], heads[1], background_f, theta_f, exposure_c, counts)

    def expected(
        self, share_cf: Tensor, library_size_c: Tensor, further: Sequence[Tensor] = (), columns: Columns = ALL
    ) -> Tensor:
        """Return the expected counts, shape ``(c, f)``: background, and foreground times its probability."""
        foreground_cf = self.log_exposure(library_size_c).exp()[:, None] * torch.sigmoid(-further[0]) * share_cf
        return self.background(library_size_c)[:, columns] + foreground_cf

    def background(self, library_size_c: Tensor) -> Tensor:
        """Return the mean counts of the background, shape ``(c, f)``."""
        return library_size_c[:, None] * self.log_background_f.exp()

    def foreground(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the expected counts beyond the background, shape ``(c, f)``."""
        exposure_c1 = self.log_exposure(library_size_c).exp()[:, None]
        return exposure_c1 * torch.sigmoid(-heads[1]) * torch.softmax(heads[0], -1)

    def elasticity(self, mean: Tensor, library_size_c: Tensor) -> Tensor:
        """Return the derivative of the log expected value by the log rate: the fraction that is not background."""
        return (1 - self.background(library_size_c) / mean).clamp(0, 1)

    def components(self, heads: Sequence[Tensor], library_size_c: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the weight and the mean of the background, and those of the foreground, each of shape ``(c, f)``."""
        background_cf = self.background(library_size_c)
        foreground_cf = background_cf + self.log_exposure(library_size_c).exp()[:, None] * torch.softmax(heads[0], -1)
        return (torch.sigmoid(heads[1]), background_cf), (torch.sigmoid(-heads[1]), foreground_cf)

    def fisher_information(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return a lower bound of the Fisher information about the log rate, shape ``(c, f)``.

        That of a mixture has no closed form. The bound is the squared derivative of the mean by the log rate, divided
        by the variance.
        """
        return self.foreground(heads, library_size_c).square() / self.variance(heads, library_size_c)

    def variance(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the variance of every count, shape ``(c, f)``: within and between background and foreground."""
        mu_cf, theta_f = self.mean(heads, library_size_c), self.log_inverse_dispersion_f.exp()
        (p_cf, b_cf), (q_cf, m_cf) = self.components(heads, library_size_c)
        within_cf = p_cf * (b_cf + b_cf.square() / theta_f) + q_cf * (m_cf + m_cf.square() / theta_f)
        return within_cf + p_cf * (b_cf - mu_cf).square() + q_cf * (m_cf - mu_cf).square()

    def zero_probability(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Return the probability that a count is 0, shape ``(c, f)``."""
        theta_f = self.log_inverse_dispersion_f.exp()
        (p_cf, b_cf), (q_cf, m_cf) = self.components(heads, library_size_c)
        zero_of = [torch.log1p(mean_cf / theta_f).mul(-theta_f).exp() for mean_cf in (b_cf, m_cf)]
        return p_cf * zero_of[0] + q_cf * zero_of[1]

    def sample(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        """Sample counts, shape ``(c, f)``."""
        (p_cf, background_cf), (_, foreground_cf) = self.components(heads, library_size_c)
        mean_cf = torch.where(torch.bernoulli(p_cf) > 0, background_cf, foreground_cf)
        return self._sample_with_mean(mean_cf, self.log_inverse_dispersion_f.exp())


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

    def expected(
        self, share_cf: Tensor, library_size_c: Tensor, further: Sequence[Tensor] = (), columns: Columns = ALL
    ) -> Tensor:
        """Return the probability that each feature is present, shape ``(c, f)``."""
        return -torch.expm1(-self.log_exposure(library_size_c).exp()[:, None] * share_cf)

    def elasticity(self, mean: Tensor, library_size_c: Tensor) -> Tensor:
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
    "negative_binomial_mixture": NegativeBinomialMixture,
}
BINARY_LIKELIHOODS = frozenset(name for name, likelihood in LIKELIHOODS.items() if likelihood.binary)

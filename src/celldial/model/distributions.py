"""Distributions that Pyro lacks: on a circle, relaxed discrete distributions, and distributions without gradients.

Axis suffixes: ``c`` cells, ``k`` categories, ``u`` the two coordinates of the plane in which the circle lies.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import (
    OneHotCategorical,
    RelaxedOneHotCategorical,
    RelaxedOneHotCategoricalStraightThrough,
    TorchDistribution,
)
from torch import Size, Tensor
from torch.distributions import Bernoulli, Beta, RelaxedBernoulli, constraints, kl_divergence, register_kl

__all__ = [
    "SINGLE_DRAW",
    "ActivityGate",
    "NonReparameterized",
    "PowerSpherical",
    "RelaxableCategorical",
    "RelaxedCategorical",
]

SINGLE_DRAW = Size()
# Keeps draws away from the mean direction and its opposite, at which gradients are infinite.
EPS = 1e-7
# Temperature of relaxed activities.
GATE_TEMPERATURE = 0.5


class PowerSpherical(TorchDistribution):
    r"""Power spherical distribution on the circle: density proportional to :math:`(1 + \cos(\theta - \mu))^\kappa`.

    It is similar to a von Mises distribution. Its samples are reparameterized without rejection, and its entropy has a
    closed form.

    Parameters
    ----------
    mean_cu
        Unit vectors of the mean direction.
    concentration_c
        Concentration κ, at least 0; 0 is uniform. The mean resultant length is κ / (κ + 1).

    References
    ----------
    De Cao and Aziz (2020), The Power Spherical distribution, arXiv:2006.04437.
    """

    arg_constraints: ClassVar = {"mean_cu": constraints.real_vector, "concentration_c": constraints.nonnegative}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean_cu: Tensor, concentration_c: Tensor, validate_args: bool | None = None) -> None:
        self.mean_cu = mean_cu
        self.concentration_c = concentration_c
        super().__init__(concentration_c.shape, mean_cu.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerSpherical:
        """Return the distribution with its parameters expanded to a batch shape."""
        shape = Size(batch_shape)
        return PowerSpherical(self.mean_cu.expand(*shape, 2), self.concentration_c.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean vector, inside the circle."""
        return self.mean_cu * (self.concentration_c / (self.concentration_c + 1))[..., None]

    def rsample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Sample unit vectors: the haversine (1 - cos Δ) / 2 is Beta(1/2, κ + 1/2), and the sign of Δ is random."""
        concentration_c = self.concentration_c.expand(*sample_shape, *self.batch_shape)
        half = torch.full_like(concentration_c, 0.5)
        haversine = Beta(half, concentration_c + 0.5, validate_args=False).rsample().clamp(EPS, 1 - EPS)
        sign = torch.randint_like(haversine, 2) * 2 - 1
        cos, sin = 1 - 2 * haversine, 2 * sign * (haversine * (1 - haversine)).sqrt()
        x, y = self.mean_cu.unbind(-1)
        return torch.stack([x * cos - y * sin, x * sin + y * cos], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density with respect to the angle."""
        cos = (value * self.mean_cu).sum(-1)
        return self.concentration_c * cos.clamp_min(-1 + EPS).log1p() - self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        kappa = self.concentration_c
        return (kappa + 1) * math.log(2) + 0.5 * math.log(math.pi) + torch.lgamma(kappa + 0.5) - torch.lgamma(kappa + 1)

    def entropy(self) -> Tensor:
        """Return the differential entropy with respect to the angle, in nats."""
        kappa = self.concentration_c
        expected_log = math.log(2) + torch.digamma(kappa + 0.5) - torch.digamma(kappa + 1)
        return self._log_normalizer() - kappa * expected_log


class ActivityGate(TorchDistribution):
    """Whether a cell is active: a Bernoulli distribution, relaxed in training so that draws have a gradient.

    The KL divergence is that of the Bernoulli distribution in both cases.

    Parameters
    ----------
    logit_c
        Log odds of being active.
    relaxed
        Whether draws are relaxed.

    References
    ----------
    Maddison et al. (2017), The Concrete Distribution, arXiv:1611.00712.
    """

    arg_constraints: ClassVar = {"logit_c": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logit_c: Tensor, relaxed: bool = False, validate_args: bool | None = None) -> None:
        self.logit_c = logit_c
        self.relaxed = relaxed
        super().__init__(logit_c.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ActivityGate:
        """Return the distribution with its parameters expanded to a batch shape."""
        return ActivityGate(self.logit_c.expand(batch_shape), self.relaxed, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Probability of being active."""
        return self.logit_c.sigmoid()

    def rsample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Sample the activity: 0 or 1, or between them if relaxed."""
        if self.relaxed:
            temperature = self.logit_c.new_full((), GATE_TEMPERATURE)
            return RelaxedBernoulli(temperature, logits=self.logit_c, validate_args=False).rsample(sample_shape)
        return torch.bernoulli(self.mean.expand(*sample_shape, *self.batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of an activity of 0 or 1."""
        return Bernoulli(logits=self.logit_c, validate_args=False).log_prob(value)


class RelaxableCategorical(OneHotCategorical):
    """A one-hot categorical distribution that can be relaxed.

    It keeps the unnormalized log probabilities, because a second normalization would add rounding errors.

    Parameters
    ----------
    logits_ck
        Unnormalized log probabilities.
    """

    def __init__(self, logits_ck: Tensor, validate_args: bool | None = None) -> None:
        self.logits_ck = logits_ck
        super().__init__(logits=logits_ck, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxableCategorical:
        """Return the distribution with its parameters expanded to a batch shape."""
        return RelaxableCategorical(self.logits_ck.expand(*batch_shape, -1), validate_args=False)

    def relaxed(self, temperature: float, straight_through: bool) -> RelaxedCategorical:
        """Return the relaxed distribution; parameters as in `RelaxedCategorical`."""
        return RelaxedCategorical(self.logits_ck, temperature, straight_through, validate_args=False)


class RelaxedCategorical(TorchDistribution):
    """A one-hot categorical distribution, relaxed so that draws have a gradient: the Gumbel-softmax.

    The KL divergence is that of the categorical distribution.

    Parameters
    ----------
    logits_ck
        Unnormalized log probabilities.
    temperature
        Above 0. At a low temperature, draws are close to one-hot vectors and their gradients are noisy.
    straight_through
        Whether draws are rounded to one-hot vectors and keep the gradient of the relaxed draws.

    References
    ----------
    Jang et al. (2017), Categorical Reparameterization with Gumbel-Softmax, arXiv:1611.01144; Maddison et al. (2017),
    The Concrete Distribution, arXiv:1611.00712.
    """

    arg_constraints: ClassVar = {"logits_ck": constraints.real_vector}
    support = constraints.simplex
    has_rsample = True

    def __init__(
        self,
        logits_ck: Tensor,
        temperature: float,
        straight_through: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.logits_ck = logits_ck.log_softmax(-1)
        self.temperature = temperature
        self.straight_through = straight_through
        super().__init__(logits_ck.shape[:-1], logits_ck.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedCategorical:
        """Return the distribution with its parameters expanded to a batch shape."""
        logits_ck = self.logits_ck.expand(*batch_shape, -1)
        return RelaxedCategorical(logits_ck, self.temperature, self.straight_through, validate_args=False)

    def rsample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Sample vectors of positive entries that sum to 1, or one-hot vectors if `straight_through`."""
        family = RelaxedOneHotCategoricalStraightThrough if self.straight_through else RelaxedOneHotCategorical
        drawn: Tensor = family(
            self.logits_ck.new_full((), self.temperature), logits=self.logits_ck, validate_args=False
        ).rsample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of a one-hot vector; for a relaxed vector, the mean weighted by its entries."""
        return (value * self.logits_ck).sum(-1)


class NonReparameterized(TorchDistribution):
    """A distribution whose draws have no gradient, for the score-function estimator.

    The switch ``has_rsample_`` of Pyro raises an error for the distributions of several coordinates.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, distribution: TorchDistribution) -> None:
        self.distribution = distribution
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> NonReparameterized:
        """Return the distribution expanded to a batch shape."""
        return NonReparameterized(self.distribution.expand(batch_shape))

    def sample(self, sample_shape: Size = SINGLE_DRAW) -> Tensor:
        """Sample without a gradient."""
        drawn: Tensor = self.distribution.sample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        log_p: Tensor = self.distribution.log_prob(value)
        return log_p


@register_kl(PowerSpherical, PowerSpherical)
def _kl_from_uniform(q: PowerSpherical, p: PowerSpherical) -> Tensor:
    """Return the KL divergence from the uniform distribution, the only prior in use."""
    return math.log(2 * math.pi) - q.entropy()


@register_kl(ActivityGate, ActivityGate)
def _kl_of_gates(q: ActivityGate, p: ActivityGate) -> Tensor:
    return kl_divergence(
        Bernoulli(logits=q.logit_c, validate_args=False), Bernoulli(logits=p.logit_c, validate_args=False)
    )


@register_kl(RelaxedCategorical, RelaxedCategorical)
def _kl_of_categoricals(q: RelaxedCategorical, p: RelaxedCategorical) -> Tensor:
    return (q.logits_ck.exp() * (q.logits_ck - p.logits_ck)).sum(-1)

"""Distributions that Pyro lacks: on the circle, for gates, choices and draws without a gradient."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import (
    RelaxedOneHotCategorical,
    RelaxedOneHotCategoricalStraightThrough,
    TorchDistribution,
)
from torch import Size, Tensor
from torch.distributions import Bernoulli, Beta, RelaxedBernoulli, constraints, kl_divergence, register_kl

SINGLE_DRAW = Size()  # the shape of a single draw
# softplus(SOFTPLUS_ONE) = 1
SOFTPLUS_ONE = 0.5413248546129181


class PowerSpherical(TorchDistribution):
    r"""Power spherical distribution on the circle: density proportional to :math:`(1 + \cos(\theta - \mu))^\kappa`.

    It looks like a von Mises distribution; its samples are reparameterized without rejection, and its entropy has a
    closed form.

    Parameters
    ----------
    mean_cu
        Unit vectors, the directions of the mean.
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
        """Repeat along batch dimensions."""
        shape = Size(batch_shape)
        return PowerSpherical(self.mean_cu.expand(*shape, 2), self.concentration_c.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean vector, within the circle."""
        return self.mean_cu * (self.concentration_c / (self.concentration_c + 1))[..., None]

    def rsample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Draw unit vectors: (1 - cos Δ) / 2 is Beta(1/2, κ + 1/2), and either side of the mean is as likely."""
        concentration_c = self.concentration_c.expand(*sample_shape, *self.batch_shape)
        half = torch.full_like(concentration_c, 0.5)
        away = Beta(half, concentration_c + 0.5, validate_args=False).rsample().clamp(EPS, 1 - EPS)
        side = torch.randint_like(away, 2) * 2 - 1
        cos, sin = 1 - 2 * away, 2 * side * (away * (1 - away)).sqrt()
        x, y = self.mean_cu.unbind(-1)
        return torch.stack([x * cos - y * sin, x * sin + y * cos], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the angle."""
        cos = (value * self.mean_cu).sum(-1)
        return self.concentration_c * cos.clamp_min(-1 + EPS).log1p() - self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        kappa = self.concentration_c
        return (kappa + 1) * math.log(2) + 0.5 * math.log(math.pi) + torch.lgamma(kappa + 0.5) - torch.lgamma(kappa + 1)

    def entropy(self) -> Tensor:
        """Differential entropy with respect to the angle, in nats."""
        kappa = self.concentration_c
        expected_log = math.log(2) + torch.digamma(kappa + 0.5) - torch.digamma(kappa + 1)
        return self._log_normalizer() - kappa * expected_log


# A draw nearer to the mean, or to its opposite, has no finite gradient.
EPS = 1e-7


class ActivityGate(TorchDistribution):
    """Whether a cell is active: Bernoulli, in training relaxed so that it has a gradient.

    Its KL divergence is that of the Bernoulli distribution in any case.

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
        """Repeat along batch dimensions."""
        return ActivityGate(self.logit_c.expand(batch_shape), self.relaxed, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Probability to be active."""
        return self.logit_c.sigmoid()

    def rsample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Draw; 0 or 1 unless relaxed."""
        if self.relaxed:
            temperature = self.logit_c.new_full((), TEMPERATURE)
            return RelaxedBernoulli(temperature, logits=self.logit_c, validate_args=False).rsample(sample_shape)
        return torch.bernoulli(self.mean.expand(*sample_shape, *self.batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of being active or not."""
        return Bernoulli(logits=self.logit_c, validate_args=False).log_prob(value)


TEMPERATURE = 0.5


@register_kl(PowerSpherical, PowerSpherical)
def _kl_to_uniform(q: PowerSpherical, p: PowerSpherical) -> Tensor:
    """KL divergence to the uniform distribution, which is the only prior there is."""
    return math.log(2 * math.pi) - q.entropy()


@register_kl(ActivityGate, ActivityGate)
def _kl_of_gates(q: ActivityGate, p: ActivityGate) -> Tensor:
    return kl_divergence(
        Bernoulli(logits=q.logit_c, validate_args=False), Bernoulli(logits=p.logit_c, validate_args=False)
    )


class RelaxedCategorical(TorchDistribution):
    """One of several, as a vector with a single 1; relaxed, so that it has a gradient: the Gumbel-softmax.

    Its KL divergence is that of the categorical distribution in any case.

    Parameters
    ----------
    logits_ck
        Log-odds of each.
    temperature
        Above 0; towards 0 draws become single ones, and the noise of their gradients grows.
    straight_through
        Whether draws are rounded to a single 1, with the gradient of those that are not.

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
        """Repeat along batch dimensions."""
        logits_ck = self.logits_ck.expand(*batch_shape, -1)
        return RelaxedCategorical(logits_ck, self.temperature, self.straight_through, validate_args=False)

    def rsample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Draw; the parts of each draw are positive and sum to 1."""
        family = RelaxedOneHotCategoricalStraightThrough if self.straight_through else RelaxedOneHotCategorical
        drawn: Tensor = family(
            self.logits_ck.new_full((), self.temperature), logits=self.logits_ck, validate_args=False
        ).rsample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of single choices; of relaxed ones, averaged by their parts."""
        return (value * self.logits_ck).sum(-1)


@register_kl(RelaxedCategorical, RelaxedCategorical)
def _kl_of_choices(q: RelaxedCategorical, p: RelaxedCategorical) -> Tensor:
    return (q.logits_ck.exp() * (q.logits_ck - p.logits_ck)).sum(-1)


class NonReparameterized(TorchDistribution):
    """A distribution whose draws have no gradient, so that only the score function can tell it.

    Pyro's own switch, ``has_rsample_``, is not heard by distributions of several coordinates.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, distribution: TorchDistribution) -> None:
        self.distribution = distribution
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> NonReparameterized:
        """Repeat along batch dimensions."""
        return NonReparameterized(self.distribution.expand(batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw."""
        drawn: Tensor = self.distribution.sample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        log_p: Tensor = self.distribution.log_prob(value)
        return log_p

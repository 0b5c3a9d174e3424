"""Latent families: one class each, with its prior, its posterior and what the encoder must supply for it.

Axis suffixes: ``c`` cells, ``j`` points of a grid on the circle, ``k`` harmonics, ``p`` posterior parameters, ``u`` the
two coordinates of the plane in which the circle lies, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Bernoulli, Beta, RelaxedBernoulli, constraints, kl_divergence, register_kl
from torch.nn.functional import softplus

ONE = Size()  # the shape of a single draw

# A posterior narrower than this is numerically a point: it keeps the KL divergence finite.
MIN_SCALE = 1e-4


class Latent:
    """What every latent family offers: coordinates u = mu + sigma * noise, and what the decoder reads of them.

    The coordinates are real numbers in every family, and it is in them that cells are judged, fused, moved and drawn.
    `link` takes them to what the decoder reads and what users see. Being invertible, up to what the decoder cannot see
    either, it changes no KL divergence. `mu` and `sigma` are mean and standard deviation in every family, and the prior
    has mean 0 and standard deviation 1.

    Parameters
    ----------
    n_latent
        Number of coordinates.
    """

    def __init__(self, n_latent: int) -> None:
        self.n_latent = n_latent

    @property
    def n_parameters(self) -> int:
        """Number of encoder outputs per cell."""
        return 2 * self.n_latent

    def noise(self, mu_cz: Tensor, sigma_cz: Tensor) -> TorchDistribution:
        """Distribution of each coordinate, of given mean and standard deviation."""
        raise NotImplementedError

    def link(self, u_cz: Tensor) -> Tensor:
        """Give what the decoder reads."""
        return u_cz

    def unlink(self, z_cz: Tensor) -> Tensor:
        """Give the coordinates that `link` takes to given values."""
        return z_cz

    def prior(self, n_cells: int, like: Tensor) -> Independent:
        """Distribution of the coordinates before any count is seen, on the device and in the precision of ``like``."""
        zero_cz = like.new_zeros(n_cells, self.n_latent)
        return self.noise(zero_cz, torch.ones_like(zero_cz)).to_event(1)

    def parameters(self, output_cp: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation given the encoder's outputs, which start them about 0 and 1."""
        mu_cz, raw_cz = output_cp.chunk(2, -1)
        return mu_cz, softplus(raw_cz + SOFTPLUS_ONE) + MIN_SCALE

    def posterior(self, mu_cz: Tensor, sigma_cz: Tensor) -> Independent:
        """Distribution of the coordinates given counts."""
        return self.noise(mu_cz, sigma_cz).to_event(1)


class Gaussian(Latent):
    """Standard normal prior, diagonal Gaussian posterior.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    def noise(self, mu_cz: Tensor, sigma_cz: Tensor) -> Normal:
        """Distribution of each coordinate, of given mean and standard deviation."""
        return Normal(mu_cz, sigma_cz)


class Laplace(Latent):
    """Double exponential distributions: peaked, with long tails, so that most cells are near 0 and some far away."""

    def noise(self, mu_cz: Tensor, sigma_cz: Tensor) -> dist.Laplace:
        """Distribution of each coordinate, of given mean and standard deviation."""
        return dist.Laplace(mu_cz, sigma_cz * math.sqrt(0.5))


class Logistic(Latent):
    """Logistic distributions: bells with longer tails than the normal distribution's."""

    def noise(self, mu_cz: Tensor, sigma_cz: Tensor) -> dist.Logistic:
        """Distribution of each coordinate, of given mean and standard deviation."""
        return dist.Logistic(mu_cz, sigma_cz * (math.sqrt(3) / math.pi))


class LogNormal(Gaussian):
    """Positive coordinates, the exponentials of Gaussian ones: programmes that are more or less on, and never negative.

    Where the exponential is beyond `LINEAR_FROM`, 20 times the median of the prior, it goes on as a straight line, so
    that no draw, however far out, multiplies a gradient by more than that; under the prior that is one draw in 700.
    """

    def link(self, u_cz: Tensor) -> Tensor:
        """Give what the decoder reads: the exponential, at last a line."""
        top = math.log(LINEAR_FROM)
        return u_cz.clamp_max(top).exp() + LINEAR_FROM * (u_cz - top).clamp_min(0)

    def unlink(self, z_cz: Tensor) -> Tensor:
        """Give the coordinates that `link` takes to given values, which are positive."""
        return z_cz.clamp(torch.finfo(z_cz.dtype).tiny, LINEAR_FROM).log() + (z_cz / LINEAR_FROM - 1).clamp_min(0)


LINEAR_FROM = 20.0


class LogisticNormal(Gaussian):
    """Shares of topics, which add up to 1: the softmax of Gaussian coordinates, `TOPIC_SCALE` apart.

    References
    ----------
    Srivastava and Sutton (2017), Autoencoding Variational Inference For Topic Models, arXiv:1703.01488.
    """

    def link(self, u_cz: Tensor) -> Tensor:
        """Give what the decoder reads: the share of each topic."""
        return torch.softmax(TOPIC_SCALE * u_cz, -1)

    def unlink(self, z_cz: Tensor) -> Tensor:
        """Give the coordinates, of mean 0, that `link` takes to given shares."""
        log_cz = z_cz.clamp_min(torch.finfo(z_cz.dtype).tiny).log() / TOPIC_SCALE
        return log_cz - log_cz.mean(-1, keepdim=True)


# Under the prior a cell then has about four topics out of ten (perplexity), and not all of them.
TOPIC_SCALE = 2.0

LatentName = Literal["gaussian", "laplace", "logistic", "log_normal", "logistic_normal"]
LATENTS: dict[LatentName, type[Latent]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "logistic": Logistic,
    "log_normal": LogNormal,
    "logistic_normal": LogisticNormal,
}

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
        κ, at least 0; 0 is uniform. The mean resultant length is κ / (κ + 1).

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

    def rsample(self, sample_shape: Any = ONE) -> Tensor:
        """Draw unit vectors: (1 - cos Δ) / 2 is Beta(1/2, κ + 1/2), and either side of the mean is as likely."""
        concentration_c = self.concentration_c.expand(*sample_shape, *self.batch_shape)
        half = torch.full_like(concentration_c, 0.5)
        away = Beta(half, concentration_c + 0.5, validate_args=False).rsample().clamp(MIN_AWAY, 1 - MIN_AWAY)
        side = torch.randint_like(away, 2) * 2 - 1
        cos, sin = 1 - 2 * away, 2 * side * (away * (1 - away)).sqrt()
        x, y = self.mean_cu.unbind(-1)
        return torch.stack([x * cos - y * sin, x * sin + y * cos], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the angle."""
        cos = (value * self.mean_cu).sum(-1)
        return self.concentration_c * cos.clamp_min(-1 + MIN_AWAY).log1p() - self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        kappa = self.concentration_c
        return (kappa + 1) * math.log(2) + 0.5 * math.log(math.pi) + torch.lgamma(kappa + 0.5) - torch.lgamma(kappa + 1)

    def entropy(self) -> Tensor:
        """Differential entropy with respect to the angle, in nats."""
        kappa = self.concentration_c
        expected_log = math.log(2) + torch.digamma(kappa + 0.5) - torch.digamma(kappa + 1)
        return self._log_normalizer() - kappa * expected_log


# A draw nearer to the mean, or to its opposite, has no finite gradient.
MIN_AWAY = 1e-7


class Gate(TorchDistribution):
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

    def expand(self, batch_shape: Any, _instance: Any = None) -> Gate:
        """Repeat along batch dimensions."""
        return Gate(self.logit_c.expand(batch_shape), self.relaxed, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Probability to be active."""
        return self.logit_c.sigmoid()

    def rsample(self, sample_shape: Any = ONE) -> Tensor:
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


@register_kl(Gate, Gate)
def _kl_of_gates(q: Gate, p: Gate) -> Tensor:
    return kl_divergence(
        Bernoulli(logits=q.logit_c, validate_args=False), Bernoulli(logits=p.logit_c, validate_args=False)
    )


class Circle(nn.Module):
    r"""A coordinate that lives on a circle, and whether a cell is on it at all.

    A cell is *active* (it cycles) and has an angle, or it is at rest and has none. Its state is the point
    :math:`a (\cos\theta, \sin\theta)` in a plane, with a the activity: on the circle, or in its middle. There is no
    network that judges it: `celldial.phase` works out the posterior of each cell from the decoder, and here it is given
    the form from which reparameterized samples are drawn.
    """

    log_density_j: Tensor
    active_logit: Tensor

    def __init__(self) -> None:
        super().__init__()
        # How common each angle is, and active cells: found with the cells' posteriors, not by gradients.
        self.register_buffer("log_density_j", torch.full((N_GRID,), -math.log(N_GRID)))
        self.register_buffer("active_logit", torch.tensor(ACTIVE_LOGIT))

    @property
    def n_features(self) -> int:
        """Number of features of a state that decoders read; see `harmonics`."""
        return 2 * N_HARMONICS + 1

    def prior(self, n_cells: int, like: Tensor) -> tuple[PowerSpherical, Gate]:
        """Distributions of direction, which is uniform, and activity before any count is seen."""
        mean_cu = like.new_zeros(n_cells, 2)
        mean_cu[:, 0] = 1
        return PowerSpherical(mean_cu, like.new_zeros(n_cells)), Gate(self.active_logit.expand(n_cells))

    def posterior(self, belief_cq: Tensor, relaxed: bool) -> tuple[PowerSpherical, Gate]:
        """Distributions of direction and activity, of given cosine, sine, concentration and log odds of activity."""
        return PowerSpherical(belief_cq[:, :2], belief_cq[:, 2]), Gate(belief_cq[:, 3], relaxed)


def grid(like: Tensor) -> Tensor:
    """Angles that are evenly spaced on the circle, shape ``(j,)``, on the device and in the precision of ``like``."""
    return torch.arange(N_GRID, device=like.device, dtype=like.dtype) * (2 * math.pi / N_GRID)


def harmonics(plane_cu: Tensor) -> Tensor:
    """Compute what decoders read of points on the disc: each harmonic times the activity, and 1 less the activity.

    Harmonic k is divided by k², so that, with one prior for all their loadings, curves are smooth. Without this the
    angle may run faster in one part of the circle than in another, and second harmonics make up for it.
    """
    activity_c = (plane_cu.square().sum(-1) + 1e-12).sqrt()
    x, y = (plane_cu / activity_c[:, None]).unbind(-1)
    parts = [(x, y)]
    for _ in range(1, N_HARMONICS):
        cos, sin = parts[-1]
        parts.append((cos * x - sin * y, sin * x + cos * y))
    turning_ck = torch.stack([part / n**2 for n, pair in enumerate(parts, 1) for part in pair], -1)
    return torch.cat([turning_ck * activity_c[:, None], 1 - activity_c[:, None]], -1)


N_HARMONICS = 2
# Standard deviation of a feature's coefficients under their prior, on the scale of log rates.
HARMONIC_SCALE = 0.3
N_GRID = 64
ACTIVE_LOGIT = 2.0

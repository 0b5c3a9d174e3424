"""Toy models with known gradients: one continuous coordinate, and one categorical choice."""

import copy
import math
from collections.abc import Callable
from typing import Any, Self

import pyro
import pytest
import torch
from pyro.distributions import OneHotCategorical, TorchDistribution
from torch import Tensor

from celldial.model.distributions import NonReparameterized, RelaxedCategorical
from celldial.model.elbo import Baseline, EnumeratedELBO, Estimator, MeanFieldELBO, ScoreFunctionELBO
from celldial.model.latents import LATENTS, LatentName, Logistic

# --- One continuous coordinate: E f(z), plus the KL divergence from a prior -------------------------------------------


N = 100_000
# An estimate without bias is this many standard errors from the truth once in 16,000 times.
ERRORS = 4
BASELINES = pytest.mark.parametrize("baseline", [None, "moving_average", "learned"])
# The families that differ in the distribution of u, and not only in the link.
FAMILIES = pytest.mark.parametrize(
    "family", [name for name, latent in LATENTS.items() if "base_distribution" in vars(latent)]
)


def assert_unbiased(drawn_np: Tensor, exact_p: Tensor, tolerance: float = 0.0) -> None:
    """Assert that the mean over draws, one a row, is within its error of the exact value, which has this tolerance."""
    error_p = drawn_np.std(0) / math.sqrt(len(drawn_np))
    assert ((drawn_np.mean(0) - exact_p).abs() <= ERRORS * error_p + 1e-12 * exact_p.abs() + tolerance).all()


def assert_close(one: Tensor, other: Tensor) -> None:
    """Assert that two tensors are equal up to rounding in double precision."""
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Coordinate:
    """A cell whose counts have the log-likelihood f(z), as a model and a guide of `n` equal cells.

    With `divergent` the prior is standard; otherwise the prior is the posterior itself, so that only f matters.
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], mu: float, sigma: float, family: LatentName = "gaussian", n: int = N
    ) -> None:
        self.f, self.latent, self.n = f, LATENTS[family](1), n
        self.mu_cz = torch.full((n, 1), mu, requires_grad=True)
        self.log_sigma_cz = torch.full((n, 1), math.log(sigma), requires_grad=True)
        self.divergent = False
        self.baseline: Baseline | None = None
        self.scored = False

    @property
    def posterior(self) -> TorchDistribution:
        return self.latent.posterior(self.mu_cz, self.log_sigma_cz.exp())

    def model(self) -> None:
        prior = self.latent.posterior(self.mu_cz.detach(), self.log_sigma_cz.detach().exp())
        with pyro.plate("cells", self.n):
            z_cz = pyro.sample("z", self.latent.prior(self.n, z_like()) if self.divergent else prior)
            pyro.factor("counts_f", self.f(z_cz[:, 0]))

    def guide(self) -> None:
        infer: dict[str, Any] = {}
        if self.baseline is not None:
            infer = {"baseline": {"baseline_value": self.baseline(torch.ones(self.n, 1))}}
        with pyro.plate("cells", self.n):
            pyro.sample("z", NonReparameterized(self.posterior) if self.scored else self.posterior, infer=infer)

    def by(self, estimator: Estimator) -> Tensor:
        """Draw gradients of the ELBO by mean and log of the deviation, shape ``(n, 2)``."""
        self.scored = isinstance(estimator, ScoreFunctionELBO)
        loss = estimator.differentiable_loss(self.model, self.guide)
        return -torch.cat(torch.autograd.grad(loss, [self.mu_cz, self.log_sigma_cz]), 1)

    def reparameterized(self) -> Tensor:
        return self.by(MeanFieldELBO(analytic=not isinstance(self.latent, Logistic)))

    def score_function(self, baseline: str | None = None) -> Tensor:
        if baseline is None:
            return self.by(ScoreFunctionELBO(("z",), {}))
        self.baseline = Baseline(1 if baseline == "learned" else 0)
        estimator = ScoreFunctionELBO(("z",), {"z": self.baseline})
        few = copy.copy(self).of(1000)
        few.scored = True
        learn(self.baseline, lambda: estimator.differentiable_loss(few.model, few.guide) / few.n)
        return self.by(estimator)

    def of(self, n: int) -> Self:
        self.n = n
        self.mu_cz, self.log_sigma_cz = self.mu_cz[:n], self.log_sigma_cz[:n]
        return self

    def exact(self) -> Tensor:
        """Integrate on a fine grid, and differentiate the integral, shape ``(2,)``."""
        mu, log_sigma = (part[0, 0].detach().requires_grad_() for part in (self.mu_cz, self.log_sigma_cz))
        z_s = mu.detach() + log_sigma.detach().exp() * torch.linspace(-60, 60, 400_000)[:, None]  # no point on a kink
        log_q_s = self.latent.posterior(mu.expand(1, 1), log_sigma.exp().expand(1, 1)).log_prob(z_s)
        value_s = self.f(z_s[:, 0])
        if self.divergent:
            value_s = value_s + self.latent.prior(1, z_like()).log_prob(z_s) - log_q_s
        elbo = torch.trapezoid(log_q_s.exp() * value_s, z_s[:, 0])
        return torch.stack(torch.autograd.grad(elbo, [mu, log_sigma]))


def z_like() -> Tensor:
    return torch.zeros(1)


def learn(baseline: Baseline, loss: Callable[[], Tensor], n_steps: int = 60) -> None:
    """Train a baseline, and then fix it."""
    baseline.train()
    parameters = list(baseline.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.03) if parameters else None
    for _ in range(n_steps):
        value = loss()
        if optimizer is not None:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    baseline.eval()


# --- One choice of a cluster ------------------------------------------------------------------------------------------


LOGIT_K = torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=torch.float64)


WEIGHT_K = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


VALUE_K = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)


class Toss:
    """A cell in one of four clusters with log-likelihoods `value_k`; `n` equal cells."""

    def __init__(self, n: int = N, offset: float = 0.0) -> None:
        self.n, self.value_k = n, VALUE_K + offset
        self.logits_ck = LOGIT_K.repeat(n, 1).requires_grad_()
        self.infer: dict[str, Any] = {}
        self.temperature: float | None = None
        self.straight_through = False
        self.baseline: Baseline | None = None

    def choice(self, logits_ck: Tensor) -> TorchDistribution:
        if self.temperature is None:
            return OneHotCategorical(logits=logits_ck)
        return RelaxedCategorical(logits_ck, self.temperature, self.straight_through)

    def model(self) -> None:
        with pyro.plate("cells", self.n):
            choice_ck = pyro.sample("cluster", self.choice(WEIGHT_K.log().expand(self.n, -1)))
            pyro.factor("z", choice_ck @ self.value_k)

    def guide(self) -> None:
        infer = self.infer
        if self.baseline is not None:
            infer = {"baseline": {"baseline_value": self.baseline(torch.ones(self.n, 1))}}
        with pyro.plate("cells", self.n):
            pyro.sample("cluster", self.choice(self.logits_ck), infer=infer)

    def by(self, estimator: Estimator) -> Tensor:
        """Draw gradients of the ELBO by the logits, shape ``(n, k)``."""
        (gradient_ck,) = torch.autograd.grad(estimator.differentiable_loss(self.model, self.guide), self.logits_ck)
        return -gradient_ck

    def enumerated(self) -> Tensor:
        self.infer = {"enumerate": "parallel"}
        return self.by(EnumeratedELBO())

    def relaxed(self, temperature: float, straight_through: bool = False) -> Tensor:
        self.temperature, self.straight_through = temperature, straight_through
        return self.by(MeanFieldELBO())

    def score_function(self, baseline: str | None = None) -> Tensor:
        if baseline is None:
            return self.by(ScoreFunctionELBO(("cluster",), {}))
        self.baseline = Baseline(1 if baseline == "learned" else 0)
        estimator = ScoreFunctionELBO(("cluster",), {"cluster": self.baseline})
        few = copy.copy(self)
        few.n, few.logits_ck = 1000, self.logits_ck[:1000]
        learn(self.baseline, lambda: estimator.differentiable_loss(few.model, few.guide) / few.n)
        return self.by(estimator)

    def elbo(self, logit_k: Tensor) -> Tensor:
        """Sum over the clusters."""
        log_q_k = logit_k.log_softmax(0)
        return (log_q_k.exp() * (WEIGHT_K.log() + self.value_k - log_q_k)).sum()

    def exact(self) -> Tensor:
        logit_k = LOGIT_K.clone().requires_grad_()
        return torch.autograd.grad(self.elbo(logit_k), logit_k)[0]

"""Estimators of gradients: what is known of each on paper, on toy models and on real ones; densities of flows."""

import copy
import importlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from anndata import AnnData
from pyro.distributions import OneHotCategorical, TorchDistribution
from scipy import sparse
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch.distributions import kl_divergence

from celldial import VAE, tl
from celldial.data.cells import Cells
from celldial.model.distributions import NonReparameterized, RelaxedCategorical
from celldial.model.elbo import Baseline, EnumeratedELBO, Estimator, Gradient, MeanFieldELBO, ScoreFunctionELBO
from celldial.model.latents import LATENTS, LatentName, Logistic
from celldial.model.module import EncoderOutput, Module
from celldial.model.priors import Flow, Mixture, PosteriorFlow
from celldial.tl.gradients import EstimatorConfig, Moments, available_estimators, configure_module, draws
from celldial.utils.random import isolate_rng
from helpers.modules import build_module
from helpers.raises import raises
from helpers.simulate import simulate, simulate_cells

gradients = importlib.import_module("celldial.tl.gradients")

N = 100_000
# An estimate without bias is this many standard errors from the truth once in 16,000 times.
ERRORS = 4
BASELINES = pytest.mark.parametrize("baseline", [None, "moving_average", "learned"])
FAMILIES = pytest.mark.parametrize("family", ["gaussian", "laplace", "logistic"])


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(False):  # as in training
        yield
    torch.set_default_dtype(torch.float32)


def assert_unbiased(drawn_np: Tensor, exact_p: Tensor) -> None:
    """Each row is a draw: their mean is within its error of what it should be."""
    error_p = drawn_np.std(0) / math.sqrt(len(drawn_np))
    assert ((drawn_np.mean(0) - exact_p).abs() <= ERRORS * error_p + 1e-12 * exact_p.abs()).all()


# --- One continuous coordinate: E f(z), plus the KL divergence from a prior -------------------------------------------


class Coordinate:
    """A cell whose counts have the log-likelihood f(z), as a model and a guide of `n` equal cells.

    With `divergent` the prior is standard; otherwise the prior is the posterior itself, so that nothing but f counts.
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
    """Train a baseline, which is then left as it is."""
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


def wavy(z_c: Tensor) -> Tensor:
    return 0.7 * z_c + torch.cos(2 * z_c) - 0.4 * z_c**2


def test_gradient_of_a_linear_function_has_no_variance_by_reparameterization() -> None:
    """And by the score function it has that which is known: of a z (z - mu) / sigma², for any mu."""
    slope, mu, sigma = 3.0, 1.5, 0.5
    toy = Coordinate(lambda z_c: slope * z_c, mu, sigma)
    by_mu_c = toy.reparameterized()[:, 0]
    assert float(by_mu_c.var()) == 0
    assert float(by_mu_c[0]) == slope
    scored_c = toy.score_function()[:, 0]
    assert_unbiased(scored_c[:, None], torch.tensor([slope]))
    # With noise e the estimate is a (mu + sigma e) e / sigma, so its variance is a² (mu² / sigma² + 2).
    expected = slope**2 * (mu**2 / sigma**2 + 2)
    assert_unbiased((scored_c - slope).square()[:, None], torch.tensor([expected]))


@pytest.mark.parametrize("sigma", [1.0, 0.1, 0.01, 0.001])
def test_variance_of_a_quadratic_function_falls_by_reparameterization_and_grows_by_the_score_function(
    sigma: float,
) -> None:
    """4 sigma² here, and mu⁴ / sigma² and more there."""
    mu = 1.5
    toy = Coordinate(torch.square, mu, sigma)
    through_c, scored_c = toy.reparameterized()[:, 0], toy.score_function()[:, 0]
    assert_unbiased((through_c - 2 * mu).square()[:, None], torch.tensor([4 * sigma**2]))
    # (mu + sigma e)² e / sigma: squares of the moments of e, which are 1, 3, 15.
    second = mu**4 / sigma**2 + 6 * mu**2 * 3 + 15 * sigma**2
    assert_unbiased(scored_c.square()[:, None], torch.tensor([second]))


@FAMILIES
@pytest.mark.parametrize("divergent", [False, True])
def test_what_has_no_bias_agrees_with_the_integral(family: LatentName, divergent: bool) -> None:
    toy = Coordinate(wavy, 0.6, 0.8, family)
    toy.divergent = divergent
    exact_p = toy.exact()
    assert_unbiased(toy.reparameterized(), exact_p)
    for baseline in (None, "moving_average", "learned"):
        assert_unbiased(toy.score_function(baseline), exact_p)


@FAMILIES
def test_the_integral_is_that_of_the_formula(family: LatentName) -> None:
    """The mean of cos z is the real part of the characteristic function."""
    mu, sigma = 0.6, 0.8
    exact_p = Coordinate(torch.cos, mu, sigma, family).exact()
    log_sigma = torch.tensor(math.log(sigma), requires_grad=True)
    if family == "gaussian":
        size = torch.exp(-(log_sigma.exp() ** 2) / 2)
    elif family == "laplace":
        size = 1 / (1 + log_sigma.exp() ** 2 / 2)
    else:
        size = math.sqrt(3) * log_sigma.exp() / torch.sinh(math.sqrt(3) * log_sigma.exp())
    (by_log_sigma,) = torch.autograd.grad(size * math.cos(mu), log_sigma)
    torch.testing.assert_close(exact_p, torch.stack([-size.detach() * math.sin(mu), by_log_sigma]), rtol=1e-6, atol=0)


@FAMILIES
def test_a_baseline_takes_variance_away_and_leaves_the_mean(family: LatentName) -> None:
    toy = Coordinate(lambda z_c: wavy(z_c) - 1000, 0.6, 0.8, family)
    exact_p = toy.exact()
    drawn = {name: toy.score_function(name) for name in (None, "moving_average", "learned")}
    for drawn_np in drawn.values():
        assert_unbiased(drawn_np, exact_p)
    # Without one, 1000² times the variance of the score; with one, as if the 1000 were not there.
    for name in ("moving_average", "learned"):
        assert (drawn[name].var(0) < 1e-3 * drawn[None].var(0)).all()


def test_a_learned_baseline_can_tell_cells_apart() -> None:
    """Cells have levels of their own, which it is told; a moving average only knows their mean."""
    n = 20_000
    level_c = torch.linspace(-30, 30, n)
    toy = Coordinate(lambda z_c: wavy(z_c) + 10 * level_c, 0.6, 0.8, n=n)
    toy.scored = True
    variance = {}
    for name in ("moving_average", "learned"):
        baseline = Baseline(1 if name == "learned" else 0)
        toy.baseline = lambda _, baseline=baseline: baseline(level_c[:, None] / 30)
        estimator = ScoreFunctionELBO(("z",), {"z": baseline})
        learn(baseline, lambda e=estimator: e.differentiable_loss(toy.model, toy.guide) / n, 150)
        drawn_np = toy.by(estimator)
        assert_unbiased(drawn_np, toy_exact())
        variance[name] = drawn_np.var(0)
    assert (variance["learned"] < 0.02 * variance["moving_average"]).all()


def toy_exact() -> Tensor:
    return Coordinate(wavy, 0.6, 0.8, n=1).exact()


def test_a_baseline_keeps_mean_and_deviation_of_what_it_sees_in_training() -> None:
    cost_tc = 7 + 3 * torch.randn(40, 500)
    baseline = Baseline(0)
    for cost_c in cost_tc[:10]:
        baseline.see(cost_c)
    # At first plain means.
    torch.testing.assert_close(baseline.mean, cost_tc[:10].mean())
    assert float(baseline.deviation) == pytest.approx(3, abs=0.1)
    assert_close(baseline(torch.zeros(5, 0)), baseline.mean.expand(5))
    for _ in range(200):
        baseline.see(cost_tc[0] + 100)
    assert float(baseline.mean) == pytest.approx(107, abs=0.5)  # it moves on
    before = baseline.mean.clone()
    baseline.eval().see(cost_tc[0])
    assert torch.equal(baseline.mean, before)


def test_the_value_of_the_loss_is_the_elbo_whatever_the_gradient() -> None:
    toy = Coordinate(wavy, 0.6, 0.8, "logistic", n=5)
    toy.divergent = True
    for scored, estimator in ((True, ScoreFunctionELBO(("z",), {})), (False, MeanFieldELBO(analytic=False))):
        toy.scored = scored
        torch.manual_seed(1)
        loss = estimator.differentiable_loss(toy.model, toy.guide)
        torch.manual_seed(1)
        z_cz = toy.posterior.sample()
        elbo_c = wavy(z_cz[:, 0]) + toy.latent.prior(5, z_like()).log_prob(z_cz) - toy.posterior.log_prob(z_cz)
        torch.testing.assert_close(loss, -elbo_c.sum())


# --- One choice of a cluster ------------------------------------------------------------------------------------------

LOGIT_K = torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=torch.float64)
WEIGHT_K = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
VALUE_K = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)


class Toss:
    """A cell in one of four clusters, in which what follows has the log-likelihood `value_k`; `n` equal cells."""

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


def test_enumeration_is_the_sum() -> None:
    toss = Toss(n=3)
    torch.testing.assert_close(toss.enumerated(), toss.exact().expand(3, -1))
    loss = EnumeratedELBO().differentiable_loss(toss.model, toss.guide)
    torch.testing.assert_close(loss, -3 * toss.elbo(LOGIT_K))


@BASELINES
def test_score_function_of_a_choice_has_no_bias(baseline: str | None) -> None:
    toss = Toss()
    assert_unbiased(toss.score_function(baseline), toss.exact())


@pytest.mark.parametrize("baseline", ["moving_average", "learned"])
def test_a_baseline_takes_variance_away_from_a_choice(baseline: str) -> None:
    bare, helped = Toss(offset=-100), Toss(offset=-100)
    bare_nk, helped_nk = bare.score_function(), helped.score_function(baseline)
    assert_unbiased(helped_nk, bare.exact())
    assert (helped_nk.var(0) < 0.01 * bare_nk.var(0)).all()


@pytest.mark.parametrize("temperature", [2.0, 0.5, 0.05])
@pytest.mark.parametrize("straight_through", [False, True])
def test_the_largest_part_of_a_relaxed_choice_is_that_of_the_categorical(
    temperature: float, straight_through: bool
) -> None:
    """At any temperature: adding Gumbel noise and taking the largest draws from the categorical distribution."""
    drawn_nk = RelaxedCategorical(LOGIT_K.expand(N, -1), temperature, straight_through).rsample()
    largest_nk = torch.nn.functional.one_hot(drawn_nk.argmax(1), 4).double()
    assert_unbiased(largest_nk, LOGIT_K.softmax(0))
    torch.testing.assert_close(drawn_nk.sum(1), torch.ones(N))
    assert (drawn_nk >= 0).all()


def test_relaxed_choices_tend_to_single_ones_as_the_temperature_falls() -> None:
    temperatures = [2.0, 1.0, 0.5, 0.2, 0.05, 0.01]
    drawn = [RelaxedCategorical(LOGIT_K.expand(N, -1), temperature).rsample() for temperature in temperatures]
    away = [1 - drawn_nk.amax(1) for drawn_nk in drawn]
    for warmer_n, colder_n in pairwise(away):
        error = (warmer_n.var() + colder_n.var()).sqrt() / math.sqrt(N)
        assert warmer_n.mean() - colder_n.mean() > ERRORS * error
    assert away[-1].mean() < 0.01
    assert away[-1].median() < 1e-9
    bias = [(drawn_nk.mean(0) - LOGIT_K.softmax(0)).norm() for drawn_nk in drawn]
    assert bias[0] > bias[1] > bias[2] > bias[3]
    assert_unbiased(drawn[-1], LOGIT_K.softmax(0))


def test_the_bias_of_relaxed_gradients_falls_with_the_temperature_and_their_variance_grows() -> None:
    exact_k = Toss(1).exact()
    bias, error, variance = [], [], []
    for temperature in (2.0, 1.0, 0.5, 0.1):
        drawn_nk = Toss().relaxed(temperature)
        bias.append(float((drawn_nk.mean(0) - exact_k).norm()))
        error.append(float((drawn_nk.var(0).sum() / N).sqrt()))
        variance.append(float(drawn_nk.var(0).sum()))
    for k in range(3):
        assert bias[k] - bias[k + 1] > ERRORS * math.hypot(error[k], error[k + 1])
        assert variance[k + 1] > variance[k]
    assert bias[0] > 10 * ERRORS * error[0]


def test_straight_through_draws_are_single_ones_with_the_gradient_of_relaxed_ones() -> None:
    logits_ck = LOGIT_K.repeat(1000, 1).requires_grad_()
    hard, soft = RelaxedCategorical(logits_ck, 0.5, straight_through=True), RelaxedCategorical(logits_ck, 0.5)
    torch.manual_seed(1)
    hard_ck = hard.rsample()
    torch.manual_seed(1)
    soft_ck = soft.rsample()
    # Rounded as floating point has it: y + (hard - y).
    assert_close(hard_ck, torch.nn.functional.one_hot(soft_ck.argmax(1), 4).double())
    assert_close(hard_ck.amax(1), torch.ones(1000))
    by_hard, by_soft = (torch.autograd.grad((part @ VALUE_K).sum(), logits_ck)[0] for part in (hard_ck, soft_ck))
    assert_close(by_hard, by_soft)
    assert by_hard.abs().sum() > 0


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_divergence_of_choices_is_that_of_categoricals() -> None:
    q, p = (RelaxedCategorical(logit_k.expand(2, -1), 0.5) for logit_k in (LOGIT_K, WEIGHT_K.log()))
    expected = kl_divergence(OneHotCategorical(logits=LOGIT_K), OneHotCategorical(logits=WEIGHT_K.log()))
    assert_close(kl_divergence(q, p), expected.expand(2))
    single_kk = torch.eye(4)
    assert_close(RelaxedCategorical(LOGIT_K.expand(4, -1), 0.5).log_prob(single_kk), LOGIT_K.log_softmax(0))


# --- The module -------------------------------------------------------------------------------------------------------


def make_module(cells: Cells, **options: Any) -> Module:
    """Make a module whose networks say something of each cell."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    n_features = {"rna": cells.counts["rna"].n_columns}
    module = build_module(n_features, "negative_binomial", dropout_rate=0.2, **options)
    module.initialize(cells)
    with torch.no_grad():
        for part in (module.modalities, module.clusters):
            for parameter in () if part is None else part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


CLUSTERED = {"n_clusters": 3, "gradient": Gradient(cluster="enumerate")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"latent": "laplace"},
        {"latent": "logistic"},
        {"latent": "logistic_normal"},
        {"prior": "mixture"},
        {"prior": "flow"},
        CLUSTERED,
        {**CLUSTERED, "latent": "logistic"},
        {**CLUSTERED, "posterior": "flow"},
    ],
    ids=str,
)
def test_estimators_without_bias_agree_on_a_module(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "WARM_UP", 60)
    cells = simulate_cells(4, 12)
    module = make_module(cells, **options)
    with torch.no_grad():
        encoded = module.encode(cells)
    if encoded.logits_ck is not None:
        # Clusters that are hardly ever drawn would need more draws than there are.
        encoded = encoded._replace(logits_ck=torch.randn_like(encoded.logits_ck))
    means = {}
    for seed, (name, way) in enumerate(available_estimators(module).items()):
        if way.gradient.cluster == "gumbel_softmax":
            continue
        torch.manual_seed(seed)
        of_way = configure_module(module, way, cells, encoded, 0.3)
        means[name] = moments_of(of_way, cells, encoded, 8_000)
    first = means.pop(next(iter(means)))
    assert len(means) == 3
    for others in means.values():
        for name, moments in others.items():
            error_cp = (moments.variance_cp / moments.n + first[name].variance_cp / first[name].n).sqrt()
            assert ((moments.mean_cp - first[name].mean_cp).abs() <= ERRORS * error_cp).all()


def moments_of(
    module: Module, cells: Cells, encoded: EncoderOutput, n: int, temperature: float = 0.3
) -> dict[str, Moments]:
    found = {name: Moments() for name in gradients.posterior_of(encoded)}
    for drawn in draws(module, cells, encoded, temperature, n):
        for name, moments in found.items():
            moments.add(drawn[name])
    return found


@pytest.mark.parametrize("latent", ["gaussian", "laplace", "logistic"])
def test_the_loss_of_a_module_with_clusters_is_the_sum_over_them(latent: LatentName) -> None:
    cells = simulate_cells(5, 12)
    module = make_module(cells, latent=latent, **CLUSTERED)
    parameters = [p for p in module.parameters() if p.requires_grad]
    torch.manual_seed(1)
    loss = module(cells)
    found = torch.autograd.grad(loss, parameters)
    torch.manual_seed(1)
    encoded = module.encode(cells)
    posterior = module.spread(encoded, cells)["z"]
    z_cz = posterior.rsample()
    log_p_c = module.decode(z_cz, cells)["rna"].log_prob(cells.counts["rna"])
    log_q_ck = encoded.logits_ck.log_softmax(1)
    of = module.clusters.components
    elbo_c = log_p_c - posterior.log_prob(z_cz)
    for k in range(3):
        place = module.latent.posterior(of.mean_kz[k], of.scale_kz[k])
        log_joint_c = of.logit_k.log_softmax(0)[k] + place.log_prob(z_cz)
        elbo_c = elbo_c + log_q_ck[:, k].exp() * (log_joint_c - log_q_ck[:, k])
    by_hand = -elbo_c.mean() - module.clusters.log_prior() / module.n_trained
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(found, torch.autograd.grad(by_hand, parameters), rtol=1e-4, atol=1e-5)


def test_relaxed_choices_of_a_module_have_a_bias_that_falls_with_the_temperature() -> None:
    cells = simulate_cells(4, 12)
    module = make_module(cells, **CLUSTERED)
    with torch.no_grad():
        encoded = module.encode(cells)
    exact_cp = moments_of(module, cells, encoded, 20_000)["cluster"].mean_cp
    relaxed = configure_module(module, EstimatorConfig(Gradient(cluster="gumbel_softmax")), cells, encoded, 0.3)
    bias = []
    for temperature in (2.0, 0.7, 0.2):
        found = moments_of(relaxed, cells, encoded, 20_000, temperature)["cluster"]
        bias.append(float((found.mean_cp - exact_cp).norm()))
        error = float((found.variance_cp.sum() / found.n).sqrt())
    assert bias[0] > 1.5 * bias[1] > 2 * bias[2]
    assert bias[0] > 2 * ERRORS * error


# --- Mixtures and flows -----------------------------------------------------------------------------------------------

SIDE = torch.linspace(-12, 12, 601, dtype=torch.float64)
PLANE_SZ = torch.cartesian_prod(SIDE, SIDE)
AREA = float(SIDE[1] - SIDE[0]) ** 2


def bent(part: torch.nn.Module, scale: float = 0.4) -> torch.nn.Module:
    """Bend a flow, or spread a mixture, at random."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return part


def decode_blocks(distribution: TorchDistribution, value_sz: Tensor) -> Tensor:
    with torch.no_grad():
        return distribution.expand([len(value_sz)]).log_prob(value_sz)


@pytest.mark.parametrize("family", LATENTS)
@pytest.mark.parametrize("kind", [Mixture, Flow])
def test_densities_of_learned_priors_are_densities(family: LatentName, kind: type) -> None:
    latent = LATENTS[family](2)
    prior = bent(Mixture(latent, 5), 0.3) if kind is Mixture else bent(Flow(latent), 0.1)
    with torch.no_grad():
        log_p_s = prior.distribution(len(PLANE_SZ), PLANE_SZ).log_prob(PLANE_SZ)
    # What the grid misses are the kinks of the Laplace family, and the tails.
    assert float(log_p_s.exp().sum()) * AREA == pytest.approx(1, abs=1e-3)


def test_a_mixture_is_the_sum_of_its_components() -> None:
    mixture = bent(Mixture(LATENTS["laplace"](2), 3))
    z_cz = torch.randn(7, 2)
    of = mixture.components
    by_hand_c = sum(
        of.logit_k.softmax(0)[k] * of.latent.posterior(of.mean_kz[k], of.scale_kz[k]).log_prob(z_cz).exp()
        for k in range(3)
    )
    assert_close(mixture.distribution(7, z_cz).log_prob(z_cz), by_hand_c.log())


def test_a_flow_of_the_prior_has_the_density_of_its_change_of_variables() -> None:
    latent = LATENTS["logistic"](3)
    distribution = bent(Flow(latent)).distribution(1, torch.zeros(1))
    check_change_of_variables(distribution, latent.prior(1, torch.zeros(1)))


def test_a_flow_of_the_posterior_has_the_density_of_its_change_of_variables() -> None:
    base = LATENTS["gaussian"](3).posterior(torch.randn(1, 3), torch.rand(1, 3) + 0.1)
    check_change_of_variables(bent(PosteriorFlow(3)).distribution(base), base)


def test_a_flow_of_the_posterior_is_told_where_it_begins() -> None:
    """Otherwise the decoder could undo it, and nothing would be gained."""
    flow = bent(PosteriorFlow(3))
    mu_cz = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    sigma_cz = torch.tensor([[1.0], [1.0], [0.2]]).expand(3, 3)
    distribution = flow.distribution(LATENTS["gaussian"](3).posterior(mu_cz, sigma_cz))
    z_cz = torch.ones(3, 3)
    for transform in distribution.transforms:
        z_cz = transform(z_cz)
    assert (z_cz[0] - z_cz[1]).abs().max() > 0.01  # by the mean
    assert (z_cz[0] - z_cz[2]).abs().max() > 0.01  # by the width


def check_change_of_variables(distribution: TorchDistribution, base: TorchDistribution) -> None:
    u_z = base.sample()[0]

    def bend(u_z: Tensor) -> Tensor:
        z_cz = u_z[None]
        for transform in distribution.transforms:
            z_cz = transform(z_cz)
        return z_cz[0]

    jacobian_zz = torch.autograd.functional.jacobian(bend, u_z)
    assert (jacobian_zz - torch.eye(3)).abs().max() > 0.1  # something is bent
    expected = base.log_prob(u_z[None])[0] - jacobian_zz.slogdet().logabsdet
    torch.testing.assert_close(distribution.log_prob(bend(u_z)[None])[0], expected)


@pytest.mark.parametrize("prior", [Mixture, Flow])
def test_estimate_of_the_divergence_of_flows_has_no_bias(prior: type) -> None:
    """Against the integral on a grid."""
    latent = LATENTS["gaussian"](2)
    base = latent.posterior(torch.tensor([[0.4, -0.7]]), torch.tensor([[0.6, 0.3]]))
    flow = bent(PosteriorFlow(2), 0.3)
    p = bent(Mixture(latent, 4) if prior is Mixture else Flow(latent), 0.3)
    with torch.no_grad():
        q = flow.distribution(base.expand([N]))
        z_nz = q.sample()
        drawn_n = q.log_prob(z_nz) - p.distribution(N, z_nz).log_prob(z_nz)
        # Around where the posterior is, finely.
        middle_z, radius_z = z_nz.mean(0), 9 * z_nz.std(0)
        grid_sz = torch.cartesian_prod(
            *(torch.linspace(-1, 1, 500) * r + m for m, r in zip(middle_z, radius_z, strict=True))
        )
        area = float((2 * radius_z / 499).prod())
        log_q_s = flow.distribution(base.expand([len(grid_sz)])).log_prob(grid_sz)
        log_p_s = p.distribution(len(grid_sz), grid_sz).log_prob(grid_sz)
    assert float(log_q_s.exp().sum()) * area == pytest.approx(1, abs=1e-4)
    exact = (log_q_s.exp() * (log_q_s - log_p_s)).sum() * area
    assert exact > 0.1
    assert_unbiased(drawn_n[:, None], exact[None])


# --- The comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate(60, 20)


@pytest.fixture(scope="module")
def model(adata: AnnData) -> VAE:
    return VAE(n_latent=3, n_hidden=8).fit(adata, max_epochs=15, progress=False)


@pytest.fixture(scope="module")
def clustered(adata: AnnData) -> VAE:
    return VAE(n_latent=3, n_hidden=8, n_clusters=4).fit(adata.copy(), max_epochs=15, progress=False)


# All of it is measured in single precision, as in training.
SINGLE = pytest.mark.usefixtures("_single_precision")


@pytest.fixture
def _single_precision(_double_precision: None) -> None:
    torch.set_default_dtype(torch.float32)


FEW: dict[str, Any] = {"n_samples": 200, "n_cells": 10, "n_reference": 400}


@SINGLE
def test_the_table_has_a_row_for_each_parameter_and_estimator(model: VAE, adata: AnnData) -> None:
    table = tl.compare_gradients(model, adata, **FEW)
    assert list(table.columns) == ["mean", "bias", "standard_error", "variance", "microseconds"]
    assert list(table.index.names) == ["parameter", "estimator"]
    assert list(table.index.unique("parameter")) == ["mu", "sigma"]
    assert list(table.loc["mu"].index) == list(available_estimators(model.module_))
    assert np.isfinite(table).all(axis=None)
    assert (table > 0).all(axis=None)
    of_mu = table.loc["mu", "variance"]
    assert of_mu["score_function"] > of_mu["score_function + moving_average"] > of_mu["reparameterized"]
    # Nothing has a bias, so what looks like one is chance; the root mean square is over 30 parameters.
    assert (table["bias"] < 2 * table["standard_error"]).all()


@SINGLE
def test_the_table_is_of_single_draws_and_of_others_for_the_reference(model: VAE, adata: AnnData) -> None:
    row = tl.compare_gradients(model, adata, "reparameterized", **FEW).loc[("sigma", "reparameterized")]
    _, cells, encoded = gradients.prepare_inputs(model, adata, None, 10, 0.3, 0)
    module = configure_module(model.module_, EstimatorConfig(Gradient()), cells, encoded, 0.3)
    drawn = []
    for seed, n in ((0, 400), (1, 200)):
        with isolate_rng(seed):
            drawn.append(torch.cat([block["sigma"] for block in draws(module, cells, encoded, 0.3, n)]).double())
    reference_ncp, drawn_ncp = drawn
    expected = {
        "mean": drawn_ncp.mean(0).square().mean().sqrt(),
        "bias": (drawn_ncp.mean(0) - reference_ncp.mean(0)).square().mean().sqrt(),
        "standard_error": (drawn_ncp.var(0) / 200 + reference_ncp.var(0) / 400).mean().sqrt(),
        "variance": drawn_ncp.var(0).mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=1e-9)


@SINGLE
def test_the_table_of_a_model_with_clusters(clustered: VAE, adata: AnnData) -> None:
    names = ["score_function", "enumerate", "gumbel_softmax", "straight_through"]
    table = tl.compare_gradients(clustered, adata, names, **FEW)
    assert list(table.index.unique("parameter")) == ["mu", "sigma", "cluster"]
    assert list(table.loc["cluster"].index) == names
    warm = tl.compare_gradients(clustered, adata, ["gumbel_softmax"], temperature=5.0, **FEW)
    assert (
        warm.loc[("cluster", "gumbel_softmax"), "bias"] > 3 * warm.loc[("cluster", "gumbel_softmax"), "standard_error"]
    )


@SINGLE
def test_the_same_seed_gives_the_same_table_whatever_else_is_compared(model: VAE, adata: AnnData) -> None:
    weights = {name: tensor.clone() for name, tensor in model.module_.state_dict().items()}
    state = torch.get_rng_state()
    names = ["score_function + learned", "reparameterized"]
    whole = tl.compare_gradients(model, adata, names, seed=3, **FEW).drop(columns="microseconds")
    alone = tl.compare_gradients(model, adata, names[1:], seed=3, **FEW).drop(columns="microseconds")
    pd.testing.assert_frame_equal(whole.loc[alone.index], alone)
    other = tl.compare_gradients(model, adata, names[1:], seed=4, **FEW)
    assert (other["mean"] != alone["mean"]).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(model.module_.elbo_estimator, MeanFieldELBO)
    assert not model.module_.baselines
    for name, tensor in model.module_.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert all(parameter.requires_grad for parameter in model.module_.parameters())


@SINGLE
def test_gradients_are_those_of_the_elbo(model: VAE, adata: AnnData) -> None:
    """By finite differences of the mean ELBO, with the same noise."""
    _, cells, encoded = gradients.prepare_inputs(model, adata, None, 5, 0.3, 0)
    module = configure_module(model.module_, EstimatorConfig(Gradient()), cells, encoded, 0.3).double()
    cells = cells_in_double(cells)
    encoded = EncoderOutput(encoded.mu_cz.double(), encoded.sigma_cz.double())
    torch.manual_seed(0)
    drawn = next(draws(module, cells, encoded, 0.3, 1))

    def value(parameters: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(0)
        return gradients.estimate(module, cells, parameters, 0.3)

    step = 1e-5
    for name, start_cp in gradients.posterior_of(encoded).items():
        for cell, place in ((0, 0), (3, 2)):
            shift_cp = torch.zeros_like(start_cp)
            shift_cp[cell, place] = step
            up, down = (value(gradients.posterior_of(encoded) | {name: start_cp + sign * shift_cp}) for sign in (1, -1))
            assert float(drawn[name][0, cell, place]) == pytest.approx(
                float(up - down) / (2 * step), rel=1e-4, abs=1e-5
            )


def cells_in_double(cells: Cells) -> Cells:
    counts = {name: rows.with_values(rows.value_n.double()) for name, rows in cells.counts.items()}
    sizes = {name: total_c.double() for name, total_c in cells.library_size.items()}
    return Cells(counts, sizes, cells.category_ck, cells.continuous_ck.double())


@SINGLE
def test_draws_come_in_blocks_and_are_as_many_as_asked_for(
    model: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "decode_block_size", lambda n_features: 40)
    _, cells, encoded = gradients.prepare_inputs(model, adata, None, 7, 0.3, 0)
    module = configure_module(model.module_, EstimatorConfig(Gradient()), cells, encoded, 0.3)
    assert [drawn["mu"].shape for drawn in draws(module, cells, encoded, 0.3, 12)] == [(5, 7, 3), (5, 7, 3), (2, 7, 3)]
    monkeypatch.setattr(gradients, "decode_block_size", lambda n_features: 1)
    assert [len(drawn["mu"]) for drawn in draws(module, cells, encoded, 0.3, 2)] == [1, 1]


def test_moments_are_those_of_averages() -> None:
    drawn_ncp = 5 + torch.randn(50, 2, 3)
    moments, averages = Moments(), Moments(4)
    for part in drawn_ncp.split([7, 1, 30, 12]):
        moments.add(part)
        averages.add(part)
    assert (moments.n, averages.n) == (50, 12)
    torch.testing.assert_close(moments.mean_cp, drawn_ncp.mean(0))
    torch.testing.assert_close(moments.variance_cp, drawn_ncp.var(0))
    torch.testing.assert_close(averages.variance_cp, drawn_ncp[:48].unflatten(0, (12, 4)).mean(1).var(0))


@SINGLE
def test_the_sweep_measures_widths_and_averages(model: VAE, adata: AnnData) -> None:
    names = ["reparameterized", "score_function"]
    table = tl.sweep_gradients(model, adata, names, widths=[0.1, 10], n_averaged=[4, 16], n_samples=320, n_cells=20)
    assert list(table.columns) == ["parameter", "estimator", "width", "n_averaged", "variance"]
    cases = table[["width", "n_averaged"]].drop_duplicates().sort_values(["width", "n_averaged"])
    assert cases.to_numpy().tolist() == [[0.1, 1], [1, 1], [1, 4], [1, 16], [10, 1]]
    assert len(table) == 2 * 2 * 5
    variance = table.set_index(["parameter", "estimator", "width", "n_averaged"])["variance"]
    for parameter in ("mu", "sigma"):
        assert variance[parameter, "reparameterized", 0.1, 1] < 0.1 * variance[parameter, "reparameterized", 1, 1]
    assert variance["mu", "score_function", 0.1, 1] > 10 * variance["mu", "score_function", 1, 1]
    for name in names:
        assert variance["mu", name, 1, 16] == pytest.approx(variance["mu", name, 1, 1] / 16, rel=0.5)
    again = tl.sweep_gradients(model, adata, names[0], widths=[0.1, 10], n_averaged=[4, 16], n_samples=320, n_cells=20)
    pd.testing.assert_frame_equal(table[table["estimator"] == names[0]].reset_index(drop=True), again)


@SINGLE
def test_a_posterior_that_is_a_flow_is_only_reparameterized(adata: AnnData) -> None:
    model = VAE(n_latent=3, n_hidden=8, posterior="flow").fit(adata.copy(), max_epochs=2, progress=False)
    assert list(tl.compare_gradients(model, adata, **FEW).loc["mu"].index) == ["reparameterized"]
    with raises(ValueError, naming=["'score_function'", "'reparameterized'"]):
        tl.compare_gradients(model, adata, ["score_function"])


@SINGLE
def test_what_else_a_model_may_have(adata: AnnData) -> None:
    """Latent loadings are at their means; cells without counts are left out."""
    model = VAE(
        n_latent=3, decoder="linear", bayesian_loadings=True, latent="laplace", prior="mixture", batch_key="batch"
    )
    model.fit(adata.copy(), max_epochs=2, progress=False)
    cells = adata.copy()
    cells.X = sparse.diags((np.arange(60) >= 50).astype(np.float32)) @ adata.X
    table = tl.compare_gradients(model, cells, n_samples=50, n_cells=100, n_reference=50)
    assert np.isfinite(table).all(axis=None)
    _, chosen, _ = gradients.prepare_inputs(model, cells, None, 100, 0.3, 0)
    assert len(chosen) == 10


@SINGLE
def test_one_cell_is_enough(model: VAE, adata: AnnData) -> None:
    table = tl.compare_gradients(model, adata[:1], n_samples=50, n_reference=50)
    assert np.isfinite(table).all(axis=None)


@SINGLE
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"estimators": ["enumerate"]}, ["'enumerate'", "'reparameterized'"]),
        ({"estimators": "score"}, ["'score'"]),
        ({"n_samples": 1}, ["n_samples", 1, 2]),
        ({"n_reference": 0}, ["n_reference", 0, 2]),
        ({"n_cells": 0}, ["n_cells", 0, 1]),
        ({"temperature": 0}, ["temperature", 0]),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: VAE, adata: AnnData, arguments: dict[str, Any], facts: list[Any]
) -> None:
    with raises(ValueError, naming=facts):
        tl.compare_gradients(model, adata, **arguments)


@SINGLE
def test_sweeps_that_make_no_sense_are_refused(model: VAE, adata: AnnData) -> None:
    with raises(ValueError, naming=["n_samples", 20, 32]):
        tl.sweep_gradients(model, adata, n_averaged=[16], n_samples=20)
    with raises(ValueError, naming=["n_averaged", 0.5]):
        tl.sweep_gradients(model, adata, n_averaged=[0.5])
    with raises(ValueError, naming=["widths", "[0, 1]"]):
        tl.sweep_gradients(model, adata, widths=[0, 1])


@SINGLE
@pytest.mark.filterwarnings("ignore:no feature tells the angle well")
def test_a_model_that_is_not_fitted_or_periodic_is_refused(adata: AnnData) -> None:
    with raises(NotFittedError, naming=["fit"]):
        tl.compare_gradients(VAE(), adata)
    periodic = VAE(n_latent=3, n_hidden=8, periodic=True).fit(adata.copy(), max_epochs=1, progress=False)
    with raises(ValueError, naming=["periodic"]):
        tl.compare_gradients(periodic, adata)

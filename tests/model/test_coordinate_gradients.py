"""Gradient estimators of one continuous coordinate, compared with the exact integral."""

import math

import pytest
import torch
from torch import Tensor

from celldial.model.elbo import Baseline, MeanFieldELBO, ScoreFunctionELBO
from celldial.model.latents import LatentName
from helpers.toys import FAMILIES, Coordinate, assert_close, assert_unbiased, learn, z_like

pytestmark = pytest.mark.usefixtures("double_precision")


def wavy(z_c: Tensor) -> Tensor:
    return 0.7 * z_c + torch.cos(2 * z_c) - 0.4 * z_c**2


def test_the_reparameterized_gradient_of_a_linear_function_is_exact() -> None:
    """The score function estimate is a z (z - mu) / sigma², for any mu, with a known variance."""
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
def test_variances_of_a_quadratic_function(
    sigma: float,
) -> None:
    """The variance is 4 sigma² with reparameterization, but at least mu⁴ / sigma² with the score function."""
    mu = 1.5
    toy = Coordinate(torch.square, mu, sigma)
    reparameterized_c, scored_c = toy.reparameterized()[:, 0], toy.score_function()[:, 0]
    assert_unbiased((reparameterized_c - 2 * mu).square()[:, None], torch.tensor([4 * sigma**2]))
    # Second moment of (mu + sigma e)² e / sigma. The even moments of e are 1, 3, 15.
    second = mu**4 / sigma**2 + 6 * mu**2 * 3 + 15 * sigma**2
    assert_unbiased(scored_c.square()[:, None], torch.tensor([second]))


@FAMILIES
@pytest.mark.parametrize("divergent", [False, True])
def test_unbiased_estimators_agree_with_the_integral(family: LatentName, divergent: bool) -> None:
    toy = Coordinate(wavy, 0.6, 0.8, family)
    toy.divergent = divergent
    exact_p = toy.exact()
    assert_unbiased(toy.reparameterized(), exact_p)
    for baseline in (None, "moving_average", "learned"):
        assert_unbiased(toy.score_function(baseline), exact_p)


@pytest.mark.parametrize("family", ["gaussian", "laplace", "logistic"])
def test_the_exact_gradient_equals_the_closed_form(family: LatentName) -> None:
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
def test_a_baseline_reduces_the_variance_and_keeps_the_mean(family: LatentName) -> None:
    toy = Coordinate(lambda z_c: wavy(z_c) - 1000, 0.6, 0.8, family)
    exact_p = toy.exact()
    drawn = {name: toy.score_function(name) for name in (None, "moving_average", "learned")}
    for drawn_np in drawn.values():
        assert_unbiased(drawn_np, exact_p)
    # Without a baseline, the offset adds 1000² times the variance of the score. With one, it adds nothing.
    for name in ("moving_average", "learned"):
        assert (drawn[name].var(0) < 1e-3 * drawn[None].var(0)).all()


def test_a_learned_baseline_distinguishes_cells() -> None:
    """Each cell has its own level, an input of the learned baseline. A moving average is the same for all cells."""
    n = 6_000
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


def test_a_baseline_tracks_mean_and_deviation_in_training() -> None:
    cost_tc = 7 + 3 * torch.randn(40, 500)
    baseline = Baseline(0)
    for cost_c in cost_tc[:10]:
        baseline.update(cost_c)
    # At first, a plain mean.
    torch.testing.assert_close(baseline.mean, cost_tc[:10].mean())
    assert float(baseline.deviation) == pytest.approx(3, abs=0.1)
    assert_close(baseline(torch.zeros(5, 0)), baseline.mean.expand(5))
    for _ in range(200):
        baseline.update(cost_tc[0] + 100)
    assert float(baseline.mean) == pytest.approx(107, abs=0.5)  # it follows new values
    before = baseline.mean.clone()
    baseline.eval().update(cost_tc[0])
    assert torch.equal(baseline.mean, before)


def test_the_loss_is_the_elbo_for_every_gradient() -> None:
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

"""Distributions of the package: the power spherical distribution on the circle, and the activity gate."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Bernoulli, kl_divergence

from celldial.model.distributions import ActivityGate, PowerSpherical

# --- The power spherical distribution on the circle -------------------------------------------------------------------

CONCENTRATIONS = pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 10.0, 300.0])
STEP = 2 * math.pi / 20_000
ANGLE_S = torch.arange(20_000, dtype=torch.float64) * STEP


def on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def around(angle: float, kappa: float, n: int = 1) -> PowerSpherical:
    """Return a batch of `n` equal distributions."""
    mean_cu = on_circle(torch.full((n,), angle, dtype=torch.float64))
    return PowerSpherical(mean_cu, torch.full((n,), kappa, dtype=torch.float64))


@CONCENTRATIONS
def test_power_spherical_density_entropy_and_divergence_equal_integrals(kappa: float) -> None:
    family = around(1.0, kappa)
    log_p_s = family.log_prob(on_circle(ANGLE_S))
    p_s = log_p_s.exp()
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(p_s.sum()[None] * STEP, one)
    entropy = -(torch.special.xlogy(p_s, p_s).sum() * STEP)
    torch.testing.assert_close(family.entropy(), entropy[None], rtol=1e-5, atol=1e-8)
    uniform = around(0.0, 0.0)
    torch.testing.assert_close(
        kl_divergence(family, uniform), math.log(2 * math.pi) - entropy[None], rtol=1e-5, atol=1e-8
    )
    mean_u = p_s @ on_circle(ANGLE_S) * STEP
    torch.testing.assert_close(family.mean[0], mean_u)
    torch.testing.assert_close(mean_u.norm()[None], kappa / (kappa + 1) * one)


def test_power_spherical_without_concentration_is_uniform() -> None:
    family = around(2.0, 0.0)
    torch.testing.assert_close(family.log_prob(on_circle(ANGLE_S)), torch.full_like(ANGLE_S, -math.log(2 * math.pi)))
    torch.testing.assert_close(family.entropy(), torch.tensor([math.log(2 * math.pi)], dtype=torch.float64))
    assert kl_divergence(family, around(0.0, 0.0)) == pytest.approx(0, abs=1e-12)


@CONCENTRATIONS
def test_power_spherical_draws_have_its_moments(kappa: float) -> None:
    torch.manual_seed(0)
    drawn_cu = around(2.5, kappa, 40_000).sample()
    torch.testing.assert_close(drawn_cu.norm(dim=1), torch.ones(40_000, dtype=torch.float64))
    axes_uk = on_circle(torch.tensor([2.5, 2.5 + math.pi / 2], dtype=torch.float64)).T
    along_c, across_c = (drawn_cu @ axes_uk).unbind(1)
    # (1 - cos) / 2 is Beta(1/2, κ + 1/2).
    second = 1 - 2 / (kappa + 1) + 3 / ((kappa + 1) * (kappa + 2))
    assert along_c.mean() == pytest.approx(kappa / (kappa + 1), abs=0.015)
    assert along_c.square().mean() == pytest.approx(second, abs=0.015)
    assert across_c.mean() == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize("kappa", [0.5, 3.0, 30.0])
def test_gradients_through_draws_are_unbiased(kappa: float) -> None:
    """The means of cos Δ and cos 2Δ are known, and so are their derivatives by κ and by the mean angle."""
    torch.manual_seed(0)
    concentration = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    angle = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    n = 100_000
    drawn_cu = PowerSpherical(on_circle(angle).expand(n, 2), concentration.expand(n)).rsample()
    x, y = drawn_cu.unbind(1)
    cos = x * math.cos(0.7) + y * math.sin(0.7)
    (by_kappa,) = torch.autograd.grad(cos.mean(), concentration, retain_graph=True)
    assert by_kappa == pytest.approx((kappa + 1) ** -2, rel=0.03)
    (by_kappa,) = torch.autograd.grad((2 * cos**2 - 1).mean(), concentration, retain_graph=True)
    expected = 4 / (kappa + 1) ** 2 - 6 * (2 * kappa + 3) / ((kappa + 1) * (kappa + 2)) ** 2
    assert by_kappa == pytest.approx(expected, rel=0.03, abs=1e-3)
    by_angle = [torch.autograd.grad(part.mean(), angle, retain_graph=True)[0] for part in (x, y)]
    length = kappa / (kappa + 1)
    assert by_angle == pytest.approx([-length * math.sin(0.7), length * math.cos(0.7)], abs=0.01)


def test_power_spherical_gradients_equal_finite_differences() -> None:
    angle_c = torch.tensor([0.3, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    kappa_c = torch.tensor([0.7, 3.0, 50.0], dtype=torch.float64, requires_grad=True)
    value_cu = on_circle(torch.tensor([0.0, 1.5, 4.5], dtype=torch.float64))

    def drawn(angle_c: Tensor) -> Tensor:
        torch.manual_seed(0)
        return PowerSpherical(on_circle(angle_c), kappa_c.detach()).rsample()

    assert gradcheck(lambda a, k: PowerSpherical(on_circle(a), k).log_prob(value_cu), (angle_c, kappa_c))
    assert gradcheck(lambda k: PowerSpherical(value_cu, k).entropy(), kappa_c)
    assert gradcheck(lambda k: kl_divergence(PowerSpherical(value_cu, k), around(0.0, 0.0, 3)), kappa_c)
    assert gradcheck(drawn, angle_c)


@pytest.mark.parametrize("kappa", [0.0, 1e-3, 4999.0])
def test_draws_have_finite_gradients_at_any_concentration(kappa: float) -> None:
    torch.manual_seed(0)
    mean_cu = on_circle(torch.linspace(0, 6, 2000)).requires_grad_()
    kappa_c = torch.full((2000,), kappa, requires_grad=True)
    gradients = torch.autograd.grad(PowerSpherical(mean_cu, kappa_c).rsample().sum(), [mean_cu, kappa_c])
    assert all(part.isfinite().all() for part in gradients)


def test_power_spherical_expands() -> None:
    family = PowerSpherical(on_circle(torch.tensor([0.0, 2.0])), torch.tensor([1.0, 5.0]))
    assert (family.batch_shape, family.event_shape) == ((2,), (2,))
    wider = family.expand((3, 2))
    assert (wider.batch_shape, wider.event_shape) == ((3, 2), (2,))
    assert wider.rsample((4,)).shape == (4, 3, 2, 2)
    value_cu = on_circle(torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(wider.log_prob(value_cu), family.log_prob(value_cu).expand(3, 2))
    torch.testing.assert_close(wider.entropy(), family.entropy().expand(3, 2))


# --- Gates ------------------------------------------------------------------------------------------------------------

LOGIT_C = torch.tensor([-6.0, -1.0, 0.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_gate_has_the_divergence_of_a_bernoulli(relaxed: bool) -> None:
    p_c, prior = LOGIT_C.sigmoid(), torch.tensor(0.8, dtype=torch.float64)
    expected_c = p_c * (p_c / prior).log() + (1 - p_c) * ((1 - p_c) / (1 - prior)).log()
    gate = ActivityGate(LOGIT_C, relaxed)
    torch.testing.assert_close(kl_divergence(gate, ActivityGate(torch.logit(prior).expand(4))), expected_c)
    torch.testing.assert_close(gate.mean, p_c)
    open_c = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gate.log_prob(open_c), Bernoulli(p_c).log_prob(open_c))
    assert gate.expand((3, 4)).rsample((2,)).shape == (2, 3, 4)


def test_a_gate_is_0_or_1_unless_it_is_relaxed() -> None:
    torch.manual_seed(0)
    logit_c = LOGIT_C.repeat(10_000).requires_grad_()
    hard_c, soft_c = ActivityGate(logit_c).rsample(), ActivityGate(logit_c, relaxed=True).rsample()
    assert set(hard_c.tolist()) == {0, 1}
    torch.testing.assert_close(hard_c.view(-1, 4).mean(0), LOGIT_C.sigmoid(), atol=0.02, rtol=0)
    assert ((soft_c > 0) & (soft_c < 1)).any()
    # A relaxed draw exceeds one half with the probability of the Bernoulli distribution.
    torch.testing.assert_close((soft_c > 0.5).double().view(-1, 4).mean(0), LOGIT_C.sigmoid(), atol=0.02, rtol=0)
    (gradient_c,) = torch.autograd.grad(soft_c.sum(), logit_c)
    assert gradient_c.isfinite().all()
    assert (gradient_c >= 0).all()
    assert gradient_c.sum() > 0

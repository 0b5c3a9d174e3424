"""Latent families: each against its row in `LATENT_CASES`, and the links of some of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from celldial.model.latents import LATENTS, LINEAR_FROM, MIN_SCALE, TOPIC_SCALE, LatentName, LogisticNormal, LogNormal
from celldial.model.module import kl_at_draw
from helpers.assertions import assert_gradients
from helpers.cases import LATENT_CASES
from helpers.raises import raises
from helpers.toys import assert_unbiased

EVERY_FAMILY = pytest.mark.parametrize("name", LATENT_CASES)
MOMENTS = pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.0)])
COORDINATES = st.lists(st.floats(-50, 50), min_size=1, max_size=6)
ON_LINE = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
N_DRAWS = 20_000


def in_double(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def posterior_of(name: LatentName, mu: float, sigma: float, n_cells: int = 1) -> Distribution:
    """Return the posterior of equal cells with one coordinate, in double precision."""
    return LATENTS[name](1).posterior(in_double([mu]).expand(n_cells, 1), in_double([sigma]).expand(n_cells, 1))


def expectation(name: LatentName, mu: float, sigma: float, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the expectation of functions of u, one per column, by quadrature of the density of the family."""
    q_s = torch.from_numpy(np.exp(LATENT_CASES[name].log_density(ON_LINE.numpy(), mu, sigma)))
    return torch.trapezoid(q_s[:, None] * function(ON_LINE), ON_LINE, dim=0)


def divergence(name: LatentName, mu: float, sigma: float) -> float:
    """Return the KL divergence of a posterior from the standard prior, by quadrature."""
    log_q, log_p = (LATENT_CASES[name].log_density(ON_LINE.numpy(), *moments) for moments in ((mu, sigma), (0.0, 1.0)))
    return float(integrate.trapezoid(np.exp(log_q) * (log_q - log_p), ON_LINE.numpy()))


# --- All families -----------------------------------------------------------------------------------------------------


def test_every_family_has_a_case() -> None:
    assert set(LATENT_CASES) == set(LATENTS)


@EVERY_FAMILY
@MOMENTS
def test_posteriors_have_their_moments_and_densities(name: LatentName, mu: float, sigma: float) -> None:
    posterior = posterior_of(name, mu, sigma)
    torch.testing.assert_close(posterior.mean, in_double([mu]))
    torch.testing.assert_close(posterior.stddev, in_double([sigma]))
    log_q = posterior.log_prob(ON_LINE[:, None, None])[:, 0]
    np.testing.assert_allclose(log_q, LATENT_CASES[name].log_density(ON_LINE.numpy(), mu, sigma), rtol=1e-9, atol=1e-9)


@EVERY_FAMILY
def test_the_prior_is_the_posterior_of_outputs_of_zero(name: LatentName) -> None:
    family, like = LATENTS[name](3), torch.zeros(4, 0, dtype=torch.float64)
    prior = family.prior(4, like)
    assert (prior.batch_shape, prior.event_shape, prior.mean.dtype) == ((4,), (3,), torch.float64)
    assert torch.equal(prior.mean, like.new_zeros(4, 3))
    torch.testing.assert_close(prior.stddev, like.new_ones(4, 3))
    mu_cz, sigma_cz = family.parameters(like.new_zeros(4, family.n_parameters))
    torch.testing.assert_close(mu_cz, prior.mean)
    torch.testing.assert_close(sigma_cz, prior.stddev, atol=2 * MIN_SCALE, rtol=0)


@EVERY_FAMILY
def test_posteriors_have_the_mean_and_the_order_of_the_outputs(name: LatentName) -> None:
    family, output_cp = LATENTS[name](3), torch.randn(4, 6)
    assert family.n_parameters == 6
    posterior = family.posterior(*family.parameters(output_cp))
    assert (posterior.batch_shape, posterior.event_shape) == ((4,), (3,))
    torch.testing.assert_close(posterior.mean, output_cp[:, :3])
    assert (posterior.stddev.diff(dim=0).sign() == output_cp[:, 3:].diff(dim=0).sign()).all()


@EVERY_FAMILY
@pytest.mark.parametrize("raw", [-1e3, 1e3])
def test_the_divergence_is_finite_for_extreme_outputs(name: LatentName, raw: float) -> None:
    family = LATENTS[name](1)
    posterior, prior = family.posterior(*family.parameters(torch.tensor([[0.0, raw]]))), family.prior(1, torch.zeros(1))
    assert posterior.stddev.min() >= MIN_SCALE * (1 - 1e-6)
    assert kl_at_draw(posterior, prior, posterior.rsample(), family.analytic_kl).isfinite().all()


@EVERY_FAMILY
@MOMENTS
def test_draws_have_the_density(name: LatentName, mu: float, sigma: float) -> None:
    bound_j = mu + sigma * torch.tensor([-2, -1, -0.3, 0, 0.5, 1, 2], dtype=torch.float64)

    def functions(u_s: Tensor) -> Tensor:
        return torch.cat([u_s[:, None], (u_s[:, None] - mu) ** 2, (u_s[:, None] < bound_j).double()], 1)

    torch.manual_seed(0)
    u_c = posterior_of(name, mu, sigma, N_DRAWS).sample()[:, 0]
    torch.manual_seed(0)
    assert torch.equal(posterior_of(name, mu, sigma, N_DRAWS).sample()[:, 0], u_c)
    # The quadrature rounds the bounds to its step.
    assert_unbiased(functions(u_c), expectation(name, mu, sigma, functions), tolerance=2e-4)


@EVERY_FAMILY
def test_draws_are_reparameterized(name: LatentName) -> None:
    mu_cz, sigma_cz = torch.randn(4, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64) + 0.2

    def weighted_draws() -> Tensor:
        torch.manual_seed(0)
        u_cz = LATENTS[name](2).posterior(mu_cz, sigma_cz).rsample()
        return (u_cz * torch.arange(1.0, 9.0).view(4, 2)).sum()

    assert posterior_of(name, 0.0, 1.0).has_rsample
    assert_gradients(weighted_draws, [mu_cz, sigma_cz])


@EVERY_FAMILY
@MOMENTS
def test_gradients_of_expectations_are_unbiased(name: LatentName, mu: float, sigma: float) -> None:
    """Both through the draws and by the score function."""

    def wavy(u_s: Tensor) -> Tensor:
        return torch.cos(2 * u_s) + 0.7 * u_s

    def exact(mu: float, sigma: float) -> Tensor:
        return expectation(name, mu, sigma, lambda u_s: wavy(u_s)[:, None])

    step = 1e-4
    by_mu, by_sigma = (
        exact(mu + step, sigma) - exact(mu - step, sigma),
        exact(mu, sigma + step) - exact(mu, sigma - step),
    )
    exact_p = torch.cat([by_mu, by_sigma]) / (2 * step)
    parameters = [torch.full((N_DRAWS, 1), value, dtype=torch.float64, requires_grad=True) for value in (mu, sigma)]
    torch.manual_seed(0)
    posterior = LATENTS[name](1).posterior(*parameters)
    through_cp = torch.cat(torch.autograd.grad(wavy(posterior.rsample()).sum(), parameters, retain_graph=True), 1)
    u_cz = posterior.sample()
    scored_cp = torch.cat(torch.autograd.grad((wavy(u_cz[:, 0]) * posterior.log_prob(u_cz)).sum(), parameters), 1)
    assert_unbiased(through_cp, exact_p)
    assert_unbiased(scored_cp, exact_p)


@EVERY_FAMILY
@MOMENTS
def test_divergences_from_the_prior_are_their_integrals(name: LatentName, mu: float, sigma: float) -> None:
    family, exact = LATENTS[name](1), divergence(name, mu, sigma)
    if family.analytic_kl:
        found = kl_divergence(posterior_of(name, mu, sigma), family.prior(1, ON_LINE)).item()
        assert found == pytest.approx(exact, abs=1e-6)
    torch.manual_seed(0)
    posterior, prior = posterior_of(name, mu, sigma, N_DRAWS), family.prior(N_DRAWS, ON_LINE)
    kl_c = kl_at_draw(posterior, prior, posterior.rsample(), analytic=False)
    assert_unbiased(kl_c[:, None], torch.tensor([exact]), tolerance=1e-6)


@EVERY_FAMILY
@given(values=st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_links_have_an_inverse_and_a_range(name: LatentName, values: list[float]) -> None:
    family, case = LATENTS[name](3), LATENT_CASES[name]
    u_cz = in_double(values).requires_grad_()
    z_cz = family.link(u_cz)
    assert z_cz.shape == u_cz.shape
    assert case.contains(z_cz.detach().numpy())
    family.check_range(z_cz.detach().numpy())
    torch.testing.assert_close(family.link(family.inverse_link(z_cz)), z_cz)
    (gradient_cz,) = torch.autograd.grad(z_cz[:, 0].sum(), u_cz)
    assert gradient_cz.isfinite().all()


@EVERY_FAMILY
def test_links_have_the_gradients_of_finite_differences(name: LatentName) -> None:
    torch.manual_seed(0)
    u_cz, weight_cz = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    assert_gradients(lambda: (LATENTS[name](3).link(u_cz) * weight_cz).sum(), [u_cz])


@EVERY_FAMILY
def test_values_outside_of_the_range_are_rejected(name: LatentName) -> None:
    inside_z = LATENTS[name](3).link(torch.zeros(1, 3))[0].numpy()
    for outside_z in LATENT_CASES[name].outside:
        assert not LATENT_CASES[name].contains(np.array([outside_z]))
        with raises(ValueError, naming=["z"]):
            LATENTS[name](3).check_range(np.array([inside_z, outside_z]))


# --- Links of some families -------------------------------------------------------------------------------------------


@given(COORDINATES)
def test_positive_coordinates_round_trip(values: list[float]) -> None:
    family, u_cz = LogNormal(len(values)), in_double(values)
    z_cz = family.link(u_cz)
    assert (z_cz > 0).all()
    torch.testing.assert_close(family.inverse_link(z_cz), u_cz)


@given(COORDINATES)
def test_positive_coordinates_increase_with_a_bounded_slope(values: list[float]) -> None:
    u_cz = in_double(sorted(values)).requires_grad_()
    z_cz = LogNormal(len(values)).link(u_cz)
    assert (z_cz.diff() >= 0).all()
    (slope_cz,) = torch.autograd.grad(z_cz.sum(), u_cz)
    assert (slope_cz > 0).all()
    assert (slope_cz <= LINEAR_FROM * (1 + 1e-9)).all()
    # In the exponential part, the slope equals the value.
    inside_cz = u_cz < math.log(LINEAR_FROM)
    torch.testing.assert_close(slope_cz[inside_cz], z_cz[inside_cz])


@given(COORDINATES, st.floats(-5, 5))
def test_shares_sum_to_one_and_round_trip_centered(values: list[float], shift: float) -> None:
    family, u_cz = LogisticNormal(len(values)), in_double(values)
    z_cz = family.link(u_cz)
    assert (z_cz >= 0).all()
    torch.testing.assert_close(z_cz.sum(1), torch.ones(1, dtype=torch.float64))
    # A constant added to all coordinates does not change the shares.
    torch.testing.assert_close(family.link(u_cz + shift), z_cz)
    back_cz = family.inverse_link(z_cz)
    torch.testing.assert_close(back_cz, u_cz - u_cz.mean(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(family.link(back_cz), z_cz)


@given(COORDINATES, st.floats(-3, 3), st.data())
def test_a_growing_topic_shrinks_the_others_in_proportion(
    values: list[float], step: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(values) - 1))
    family, u_cz = LogisticNormal(len(values)), in_double(values)
    moved_cz = u_cz.clone()
    moved_cz[0, k] += step
    before_z, after_z = family.link(u_cz)[0], family.link(moved_cz)[0]
    assert (after_z[k] - before_z[k]) * step >= 0
    # The odds of topic k grow by a factor; the ratios of the other topics do not change.
    left, of_others = 1 - before_z[k], torch.arange(len(values)) != k
    if left > 1e-6 and after_z[k] < 1 - 1e-6:
        odds = (after_z[k] / (1 - after_z[k])) / (before_z[k] / left)
        torch.testing.assert_close(odds.log(), torch.tensor(TOPIC_SCALE * step, dtype=torch.float64), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            after_z[of_others] / (1 - after_z[k]), before_z[of_others] / left, atol=1e-6, rtol=1e-6
        )


def test_rounded_proportions_are_accepted() -> None:
    LogisticNormal(3).check_range(np.array([[1.0, 0.0, 0.0], [0.3, 0.3, 0.4001]]))

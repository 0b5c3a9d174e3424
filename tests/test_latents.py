"""Latent families: shapes, the KL divergence in closed form, and draws that gradients flow through."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from celldial.latents import MIN_SCALE, Gaussian

LIKE = torch.zeros(4, 0, dtype=torch.float64)


def posterior_of(family: Gaussian, output_cp: Tensor) -> Distribution:
    """Give the posterior that an encoder's outputs stand for."""
    return family.posterior(*family.parameters(output_cp))


def test_prior_is_standard_normal() -> None:
    prior = Gaussian(3).prior(4, like=LIKE)
    assert (prior.batch_shape, prior.event_shape) == ((4,), (3,))
    assert prior.mean.dtype == torch.float64
    assert torch.equal(prior.mean, torch.zeros(4, 3, dtype=torch.float64))
    assert torch.equal(prior.stddev, torch.ones(4, 3, dtype=torch.float64))


def test_posterior_has_the_mean_that_the_encoder_says() -> None:
    family = Gaussian(3)
    assert family.n_parameters == 6
    parameters_cp = torch.randn(4, 6)
    posterior = posterior_of(family, parameters_cp)
    assert (posterior.batch_shape, posterior.event_shape) == ((4,), (3,))
    torch.testing.assert_close(posterior.mean, parameters_cp[:, :3])
    assert (posterior.stddev.diff(dim=0).sign() == parameters_cp[:, 3:].diff(dim=0).sign()).all()


def test_posterior_starts_as_the_prior() -> None:
    family = Gaussian(3)
    posterior = posterior_of(family, torch.zeros(4, 6))
    torch.testing.assert_close(posterior.stddev, torch.ones(4, 3), atol=2 * MIN_SCALE, rtol=0)
    kl_c = kl_divergence(posterior, family.prior(4, like=torch.zeros(4)))
    torch.testing.assert_close(kl_c, torch.zeros(4), atol=1e-6, rtol=0)


def test_kl_divergence_in_closed_form() -> None:
    torch.manual_seed(0)
    family = Gaussian(3)
    posterior = posterior_of(family, torch.randn(4, 6, dtype=torch.float64))
    mu_cz, sigma_cz = posterior.mean, posterior.stddev
    expected_c = 0.5 * (mu_cz**2 + sigma_cz**2 - 1 - 2 * sigma_cz.log()).sum(-1)
    torch.testing.assert_close(kl_divergence(posterior, family.prior(4, like=LIKE)), expected_c)


@pytest.mark.parametrize("raw", [-1e3, 1e3])
def test_kl_divergence_is_finite_however_sure_the_encoder_is(raw: float) -> None:
    family = Gaussian(1)
    posterior = posterior_of(family, torch.tensor([[0.0, raw]]))
    assert kl_divergence(posterior, family.prior(1, like=torch.zeros(1))).isfinite().all()
    assert posterior.stddev.min() >= MIN_SCALE


def test_draws_are_reparameterized() -> None:
    """With the noise held, dz/dmu is 1 and dz/dsigma is the noise."""
    posterior = posterior_of(Gaussian(2), torch.zeros(3, 4, dtype=torch.float64, requires_grad=True))
    assert posterior.has_rsample
    mu_cz, sigma_cz = posterior.base_dist.loc, posterior.base_dist.scale
    z_cz = posterior.rsample()
    by_mu_cz, by_sigma_cz = torch.autograd.grad(z_cz.sum(), [mu_cz, sigma_cz])
    torch.testing.assert_close(by_mu_cz, torch.ones_like(mu_cz))
    torch.testing.assert_close(by_sigma_cz, (z_cz - mu_cz) / sigma_cz)

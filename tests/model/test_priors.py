"""Densities and divergences of mixtures and flows."""

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from celldial.model.latents import LATENTS, LatentName
from celldial.model.priors import Flow, Mixture, PosteriorFlow
from helpers.modules import bare_cells
from helpers.toys import N, assert_close, assert_unbiased

pytestmark = pytest.mark.usefixtures("double_precision")


SIDE = torch.linspace(-12, 12, 601, dtype=torch.float64)


PLANE_SZ = torch.cartesian_prod(SIDE, SIDE)


AREA = float(SIDE[1] - SIDE[0]) ** 2


def randomize(part: torch.nn.Module, scale: float = 0.4) -> torch.nn.Module:
    """Return a flow or a mixture with random changes of its parameters."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return part


def decode_blocks(distribution: TorchDistribution, value_sz: Tensor) -> Tensor:
    with torch.no_grad():
        return distribution.expand([len(value_sz)]).log_prob(value_sz)


@pytest.mark.parametrize("family", LATENTS)
@pytest.mark.parametrize("kind", [Mixture, Flow])
def test_densities_of_learned_priors_integrate_to_one(family: LatentName, kind: type) -> None:
    latent = LATENTS[family](2)
    prior = randomize(Mixture(latent, 5), 0.3) if kind is Mixture else randomize(Flow(latent), 0.1)
    with torch.no_grad():
        log_p_s = prior.distribution(bare_cells(len(PLANE_SZ), PLANE_SZ.dtype)).log_prob(PLANE_SZ)
    # The grid misses the tails, and the kinks of the Laplace family.
    assert float(log_p_s.exp().sum()) * AREA == pytest.approx(1, abs=1e-3)


def test_a_mixture_is_the_sum_of_its_components() -> None:
    mixture = randomize(Mixture(LATENTS["laplace"](2), 3))
    z_cz = torch.randn(7, 2)
    of = mixture.components
    by_hand_c = sum(
        of.logit_k.softmax(0)[k] * of.latent.posterior(of.mean_kz[k], of.scale_kz[k]).log_prob(z_cz).exp()
        for k in range(3)
    )
    assert_close(mixture.distribution(bare_cells(7, z_cz.dtype)).log_prob(z_cz), by_hand_c.log())


def test_a_flow_of_the_prior_has_the_density_of_its_change_of_variables() -> None:
    latent = LATENTS["logistic"](3)
    distribution = randomize(Flow(latent)).distribution(bare_cells(1))
    check_change_of_variables(distribution, latent.prior(1, torch.zeros(1)))


def test_a_flow_of_the_posterior_has_the_density_of_its_change_of_variables() -> None:
    base = LATENTS["gaussian"](3).posterior(torch.randn(1, 3), torch.rand(1, 3) + 0.1)
    check_change_of_variables(randomize(PosteriorFlow(3)).distribution(base), base)


def test_a_posterior_flow_depends_on_the_diagonal_posterior() -> None:
    """Without this condition, the decoder could undo the flow, and the flow would have no benefit."""
    flow = randomize(PosteriorFlow(3))
    mu_cz = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    sigma_cz = torch.tensor([[1.0], [1.0], [0.2]]).expand(3, 3)
    distribution = flow.distribution(LATENTS["gaussian"](3).posterior(mu_cz, sigma_cz))
    z_cz = torch.ones(3, 3)
    for transform in distribution.transforms:
        z_cz = transform(z_cz)
    assert (z_cz[0] - z_cz[1]).abs().max() > 0.01  # an effect of the mean
    assert (z_cz[0] - z_cz[2]).abs().max() > 0.01  # an effect of the standard deviation


def check_change_of_variables(distribution: TorchDistribution, base: TorchDistribution) -> None:
    u_z = base.sample()[0]

    def transform_point(u_z: Tensor) -> Tensor:
        z_cz = u_z[None]
        for transform in distribution.transforms:
            z_cz = transform(z_cz)
        return z_cz[0]

    jacobian_zz = torch.autograd.functional.jacobian(transform_point, u_z)
    assert (jacobian_zz - torch.eye(3)).abs().max() > 0.1  # the flow is not the identity
    expected = base.log_prob(u_z[None])[0] - jacobian_zz.slogdet().logabsdet
    torch.testing.assert_close(distribution.log_prob(transform_point(u_z)[None])[0], expected)


@pytest.mark.parametrize("prior", [Mixture, Flow])
def test_the_estimated_divergence_of_flows_is_unbiased(prior: type) -> None:
    """Compared with the integral on a grid."""
    latent = LATENTS["gaussian"](2)
    base = latent.posterior(torch.tensor([[0.4, -0.7]]), torch.tensor([[0.6, 0.3]]))
    flow = randomize(PosteriorFlow(2), 0.3)
    p = randomize(Mixture(latent, 4) if prior is Mixture else Flow(latent), 0.3)
    with torch.no_grad():
        q = flow.distribution(base.expand([N]))
        z_nz = q.sample()
        drawn_n = q.log_prob(z_nz) - p.distribution(bare_cells(N, z_nz.dtype)).log_prob(z_nz)
        # A fine grid around the posterior.
        middle_z, radius_z = z_nz.mean(0), 9 * z_nz.std(0)
        grid_sz = torch.cartesian_prod(
            *(torch.linspace(-1, 1, 500) * r + m for m, r in zip(middle_z, radius_z, strict=True))
        )
        area = float((2 * radius_z / 499).prod())
        log_q_s = flow.distribution(base.expand([len(grid_sz)])).log_prob(grid_sz)
        log_p_s = p.distribution(bare_cells(len(grid_sz), grid_sz.dtype)).log_prob(grid_sz)
    assert float(log_q_s.exp().sum()) * area == pytest.approx(1, abs=1e-4)
    exact = (log_q_s.exp() * (log_q_s - log_p_s)).sum() * area
    assert exact > 0.1
    assert_unbiased(drawn_n[:, None], exact[None])

"""Priors: each in `PRIOR_CASES` against integrals on a grid, and the densities of mixtures and flows."""

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from celldial.model.config import ModuleConfig
from celldial.model.coordinates import Coordinates
from celldial.model.latents import LATENTS, LatentName
from celldial.model.module import kl_at_draw, make_prior
from celldial.model.priors import PRIORS, Flow, Mixture, PosteriorFlow, Prior, PriorName
from helpers.assertions import assert_gradients
from helpers.cases import PRIOR_CASES
from helpers.modules import SMALL, bare_cells
from helpers.toys import FAMILIES, assert_close, assert_unbiased

pytestmark = pytest.mark.usefixtures("double_precision")

EVERY_PRIOR = pytest.mark.parametrize("name", PRIOR_CASES)
N_DRAWS = 20_000


def randomize(part: torch.nn.Module, scale: float = 0.4) -> torch.nn.Module:
    """Return a flow or a mixture with random changes of its parameters."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return part


def make(name: PriorName, family: LatentName) -> Prior:
    """Return a prior of two coordinates with random parameters."""
    options = SMALL | {"latent": family, "prior": name} | PRIOR_CASES[name]
    return randomize(make_prior(ModuleConfig({"rna": 1}, {"rna": "poisson"}, **options), LATENTS[family](2)), 0.1)


def log_prob(prior: Prior, z_cz: Tensor) -> Tensor:
    return prior.distribution(bare_cells(len(z_cz), z_cz.dtype)).log_prob(z_cz)


def grid(middle_z: Tensor, radius_z: Tensor, n_steps: int = 401) -> tuple[Tensor, float]:
    """Return points of a plane, and the area of each."""
    sides = [torch.linspace(-1, 1, n_steps) * r + m for m, r in zip(middle_z, radius_z, strict=True)]
    return torch.cartesian_prod(*sides), float((2 * radius_z / (n_steps - 1)).prod())


# --- All priors -------------------------------------------------------------------------------------------------------


def test_every_prior_has_a_case() -> None:
    assert set(PRIOR_CASES) == set(PRIORS)


@EVERY_PRIOR
@FAMILIES
def test_draws_have_the_density_and_it_integrates_to_one(name: PriorName, family: LatentName) -> None:
    prior = make(name, family)
    plane_sz, area = grid(torch.zeros(2), torch.full((2,), 12.0))
    bound_j = torch.tensor([-1.0, 0.2, 1.5])

    def functions(z_cz: Tensor) -> Tensor:
        below_cj = (z_cz.repeat_interleave(3, 1) < bound_j.repeat(2)).double()
        return torch.cat([z_cz, z_cz**2, z_cz.prod(1, keepdim=True), log_prob(prior, z_cz)[:, None], below_cj], 1)

    with torch.no_grad():
        distribution = prior.distribution(bare_cells(N_DRAWS, torch.float64))
        assert (distribution.batch_shape, distribution.event_shape) == ((N_DRAWS,), (2,))
        torch.manual_seed(1)
        z_cz = distribution.sample()
        torch.manual_seed(1)
        assert torch.equal(distribution.sample(), z_cz)
        p_s = log_prob(prior, plane_sz).exp() * area
        # The grid misses the kinks of the Laplace family, the tails, and parts of a step at a bound.
        assert float(p_s.sum()) == pytest.approx(1, abs=2e-3)
        assert_unbiased(functions(z_cz), p_s @ functions(plane_sz), tolerance=0.02)


@EVERY_PRIOR
@FAMILIES
def test_gradients_are_those_of_finite_differences(name: PriorName, family: LatentName) -> None:
    prior, z_cz = make(name, family), torch.randn(5, 2)
    # Copies of the points, because a flow caches the inverse of the last tensor.
    assert_gradients(lambda: log_prob(prior, z_cz.clone()).sum(), [*prior.parameters(), z_cz])


@EVERY_PRIOR
@FAMILIES
@pytest.mark.parametrize("posterior", ["diagonal", "flow"])
def test_divergences_are_their_integrals(name: PriorName, family: LatentName, posterior: str) -> None:
    latent, prior = LATENTS[family](2), make(name, family)
    flow = randomize(PosteriorFlow(2), 0.3) if posterior == "flow" else None
    base = latent.posterior(torch.tensor([[0.4, -0.7]]), torch.tensor([[0.6, 0.3]]))

    def q(n_cells: int) -> TorchDistribution:
        return base.expand([n_cells]) if flow is None else flow.distribution(base.expand([n_cells]))

    with torch.no_grad():
        z_cz, p = q(N_DRAWS).sample(), prior.distribution(bare_cells(N_DRAWS, torch.float64))
        plane_sz, area = grid(z_cz.mean(0), 12 * z_cz.std(0), 501)
        log_q_s = q(len(plane_sz)).log_prob(plane_sz)
        assert float(log_q_s.exp().sum()) * area == pytest.approx(1, abs=2e-3)
        exact = (log_q_s.exp() * (log_q_s - log_prob(prior, plane_sz))).sum() * area
        assert exact > 0.1
        assert_unbiased(kl_at_draw(q(N_DRAWS), p, z_cz, analytic=False)[:, None], exact[None], tolerance=2e-3)
        if Coordinates(latent, prior, flow).analytic_kl:
            torch.testing.assert_close(kl_divergence(q(1), p)[0], exact, rtol=2e-3, atol=0)


# --- Mixtures and flows -----------------------------------------------------------------------------------------------


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

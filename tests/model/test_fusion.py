"""Fusion of Gaussians: each rule in closed form or against draws, and cells with missing modalities."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from celldial.model.fusion import FUSIONS, PRODUCTS, Fusion, sample_subset

EVERY_FUSION = pytest.mark.parametrize("name", FUSIONS)
EVERY_PRODUCT = pytest.mark.parametrize("name", PRODUCTS)
SEEDS = st.integers(0, 10**6)


def experts(n_modalities: int = 2, n_cells: int = 4, n_latent: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_modalities, n_cells, n_latent)
    mu_mcz = torch.randn(shape, generator=generator, dtype=torch.float64)
    return mu_mcz, 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)


def all_included(n_modalities: int = 2, n_cells: int = 4) -> Tensor:
    return torch.ones(n_modalities, n_cells, dtype=torch.bool)


def random_presence(n_modalities: int, n_cells: int, seed: int) -> Tensor:
    return torch.rand(n_modalities, n_cells, generator=torch.Generator().manual_seed(seed)) < 0.5


# --- Combination ------------------------------------------------------------------------------------------------------


@EVERY_PRODUCT
@pytest.mark.parametrize("n_modalities", [2, 3])
def test_product_adds_precisions_including_that_of_the_prior(name: Any, n_modalities: int) -> None:
    mu_mcz, sigma_mcz = experts(n_modalities)
    mu_cz, sigma_cz = Fusion(name).combine(mu_mcz, sigma_mcz, all_included(n_modalities))
    precision_cz = 1 + (1 / sigma_mcz**2).sum(0)
    torch.testing.assert_close(sigma_cz, precision_cz**-0.5)
    torch.testing.assert_close(mu_cz, (mu_mcz / sigma_mcz**2).sum(0) / precision_cz)


@EVERY_PRODUCT
def test_product_is_proportional_to_the_product_of_densities(name: Any) -> None:
    """On a grid: prior times all experts, normalized."""
    mu_m11, sigma_m11 = experts(3, 1, 1)
    mu_cz, sigma_cz = Fusion(name).combine(mu_m11, sigma_m11, all_included(3, 1))
    z_s = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    log_density_s = -(z_s**2) / 2
    for mu, sigma in zip(mu_m11.flatten(), sigma_m11.flatten(), strict=True):
        log_density_s = log_density_s - (z_s - mu) ** 2 / (2 * sigma**2)
    weight_s = torch.softmax(log_density_s, 0)
    torch.testing.assert_close(weight_s @ z_s, mu_cz.squeeze())
    torch.testing.assert_close((weight_s @ z_s**2 - (weight_s @ z_s) ** 2).sqrt(), sigma_cz.squeeze())


def test_mean_averages_means_and_standard_deviations() -> None:
    mu_mcz, sigma_mcz = experts()
    mu_cz, sigma_cz = Fusion("mean").combine(mu_mcz, sigma_mcz, all_included())
    torch.testing.assert_close(mu_cz, mu_mcz.mean(0))
    torch.testing.assert_close(sigma_cz, sigma_mcz.mean(0))


def test_mixture_has_the_moments_of_its_draws() -> None:
    mu_m11, sigma_m11 = experts(3, 1, 1)
    mu_cz, sigma_cz = Fusion("mixture").combine(mu_m11, sigma_m11, all_included(3, 1))
    n_draws, generator = 200_000, torch.Generator().manual_seed(0)
    expert_s = torch.randint(0, 3, (n_draws,), generator=generator)
    noise_s = torch.randn(n_draws, generator=generator, dtype=torch.float64)
    z_s = mu_m11.flatten()[expert_s] + sigma_m11.flatten()[expert_s] * noise_s
    assert abs(z_s.mean() - mu_cz) < 5 * z_s.std() / n_draws**0.5
    square_s = (z_s - mu_cz.squeeze()) ** 2
    assert abs(square_s.mean() - sigma_cz**2) < 5 * square_s.std() / n_draws**0.5


@pytest.mark.parametrize("name", ["mixture", "mean"])
def test_a_single_modality_is_unchanged(name: Any) -> None:
    mu_mcz, sigma_mcz = experts()
    included_mc = torch.tensor([[True, False]] * 2 + [[False, True]] * 2).T
    mu_cz, sigma_cz = Fusion(name).combine(mu_mcz, sigma_mcz, included_mc)
    torch.testing.assert_close(mu_cz, torch.cat([mu_mcz[0, :2], mu_mcz[1, 2:]]))
    torch.testing.assert_close(sigma_cz, torch.cat([sigma_mcz[0, :2], sigma_mcz[1, 2:]]))


@EVERY_PRODUCT
def test_a_single_modality_is_multiplied_with_the_prior(name: Any) -> None:
    mu_mcz, sigma_mcz = experts()
    included_mc = torch.tensor([[True] * 4, [False] * 4])
    mu_cz, sigma_cz = Fusion(name).combine(mu_mcz, sigma_mcz, included_mc)
    torch.testing.assert_close(mu_cz, mu_mcz[0] / (1 + sigma_mcz[0] ** 2))
    torch.testing.assert_close(sigma_cz, sigma_mcz[0] / (1 + sigma_mcz[0] ** 2).sqrt())


@EVERY_FUSION
def test_without_included_modalities_the_result_is_the_prior(name: Any) -> None:
    mu_cz, sigma_cz = Fusion(name).combine(*experts(), ~all_included())
    assert torch.equal(mu_cz, torch.zeros_like(mu_cz))
    assert torch.equal(sigma_cz, torch.ones_like(sigma_cz))


@EVERY_FUSION
@given(seed=SEEDS, order=st.permutations(range(3)))
def test_order_of_modalities_does_not_matter(name: Any, seed: int, order: list[int]) -> None:
    mu_mcz, sigma_mcz = experts(3, seed=seed)
    included_mc = random_presence(3, 4, seed)
    found = Fusion(name).combine(mu_mcz[order], sigma_mcz[order], included_mc[order])
    torch.testing.assert_close(found, Fusion(name).combine(mu_mcz, sigma_mcz, included_mc))


@EVERY_FUSION
@given(seed=SEEDS)
def test_excluded_modalities_do_not_matter(name: Any, seed: int) -> None:
    mu_mcz, sigma_mcz = experts(3, seed=seed)
    included_mc = random_presence(3, 4, seed)
    other_mu_mcz, other_sigma_mcz = experts(3, seed=seed + 1)
    included_mc1 = included_mc[:, :, None]
    mixed = torch.where(included_mc1, mu_mcz, other_mu_mcz), torch.where(included_mc1, sigma_mcz, other_sigma_mcz)
    torch.testing.assert_close(
        Fusion(name).combine(*mixed, included_mc), Fusion(name).combine(mu_mcz, sigma_mcz, included_mc), rtol=0, atol=0
    )


@EVERY_FUSION
@given(seed=SEEDS)
def test_standard_deviation_is_positive_and_at_most_the_narrowest(name: Any, seed: int) -> None:
    mu_mcz, sigma_mcz = experts(3, seed=seed)
    included_mc = random_presence(3, 4, seed)
    mu_cz, sigma_cz = Fusion(name).combine(mu_mcz, sigma_mcz, included_mc)
    assert (sigma_cz > 0).all()
    assert (mu_cz.abs() <= mu_mcz.abs().amax(0) + 1e-6).all()
    if name in PRODUCTS:
        narrowest_cz = torch.where(included_mc[:, :, None], sigma_mcz, 1).amin(0)
        assert (sigma_cz <= narrowest_cz).all()


@EVERY_FUSION
@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e3])
def test_gradients_are_finite_and_zero_for_excluded_modalities(name: Any, sigma: float) -> None:
    """Cells without included modalities are covered, too: the square root of 0 has an infinite gradient."""
    mu_mcz = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma_mcz = torch.full((2, 4, 3), sigma).requires_grad_()
    included_mc = torch.tensor([[True, True, False, False], [True, False, True, False]])
    fused = Fusion(name).combine(mu_mcz, sigma_mcz, included_mc)
    for gradient_mcz in torch.autograd.grad(sum(part.sum() for part in fused), [mu_mcz, sigma_mcz]):
        assert gradient_mcz.isfinite().all()
        assert not gradient_mcz[~included_mc].any()
    by_mu_mcz = torch.autograd.grad(Fusion(name).combine(mu_mcz, sigma_mcz, included_mc)[0].sum(), mu_mcz)[0]
    assert by_mu_mcz[included_mc].all()


# --- Alignment --------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n_modalities=st.integers(2, 4))
def test_alignment_is_the_mean_divergence_from_single_modalities(seed: int, n_modalities: int) -> None:
    mu_mcz, sigma_mcz = experts(n_modalities, seed=seed)
    present_mc = random_presence(n_modalities, 4, seed)
    fusion = Fusion("aligned_product")
    found_c = fusion.alignment(mu_mcz, sigma_mcz, present_mc)
    joint_cz = Normal(*fusion.combine(mu_mcz, sigma_mcz, present_mc))
    n_present_c = present_mc.sum(0)
    n_several, n_lacking = int((n_present_c > 1).sum()), int(((n_present_c > 0) & (n_present_c < n_modalities)).sum())
    for c in range(4):
        alone = [
            Normal(*fusion.combine(mu_mcz, sigma_mcz, torch.arange(n_modalities)[:, None].expand(-1, 4) == m))
            for m in present_mc[:, c].nonzero().flatten()
        ]
        kl = [kl_divergence(joint_cz, each).sum(1)[c] for each in alone]
        expected = sum(kl) / len(kl) if len(kl) > 1 else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(found_c[c], min(1, n_lacking / max(1, n_several)) * expected)


def test_cells_that_have_all_modalities_are_not_aligned() -> None:
    assert not Fusion("aligned_product").alignment(*experts(), all_included()).any()
    # One of four cells lacks a modality.
    present_mc = torch.tensor([[True] * 4, [True] * 3 + [False]])
    one_of_four_c = Fusion("aligned_product").alignment(*experts(), present_mc)
    half_c = Fusion("aligned_product").alignment(*(each[:, 2:] for each in experts()), present_mc[:, 2:])
    torch.testing.assert_close(3 * one_of_four_c[2], half_c[0])


def test_alignment_is_of_one_fusion_only() -> None:
    present_mc = all_included()
    assert [name for name in FUSIONS if Fusion(name).alignment(*experts(), present_mc) is not None] == [
        "aligned_product"
    ]


def test_alignment_has_finite_gradients_and_none_for_missing_modalities() -> None:
    mu_mcz, sigma_mcz = (each.requires_grad_() for each in experts())
    present_mc = torch.tensor([[True, True, False, False], [True, False, True, False]])
    alignment_c = Fusion("aligned_product").alignment(mu_mcz, sigma_mcz, present_mc)
    assert alignment_c[0] > 0
    assert not alignment_c[1:].any()
    for gradient_mcz in torch.autograd.grad(alignment_c.sum(), [mu_mcz, sigma_mcz]):
        assert gradient_mcz.isfinite().all()
        assert gradient_mcz[:, 0].all()
        assert not gradient_mcz[:, 1:].any()


# --- Random subsets ---------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n_modalities=st.integers(1, 4), data=st.data())
def test_a_subset_has_present_modalities_and_is_not_empty(seed: int, n_modalities: int, data: st.DataObject) -> None:
    max_size = data.draw(st.integers(1, n_modalities))
    present_mc = random_presence(n_modalities, 50, seed)
    torch.manual_seed(seed)
    included_mc = sample_subset(present_mc, max_size)
    assert included_mc.dtype == torch.bool
    assert not (included_mc & ~present_mc).any()
    assert (included_mc.sum(0) <= max_size).all()
    assert torch.equal(included_mc.any(0), present_mc.any(0))


@pytest.mark.parametrize("max_size", [1, 2, 3])
@pytest.mark.parametrize("present", [(True, True, True), (True, False, True), (False, True, False)])
def test_all_subsets_are_equally_likely(present: tuple[bool, ...], max_size: int) -> None:
    n_draws = 20_000
    torch.manual_seed(0)
    included_mc = sample_subset(torch.tensor(present)[:, None].expand(-1, n_draws), max_size)
    possible = [
        row
        for row in itertools.product([False, True], repeat=3)
        if 1 <= sum(row) <= max_size and all(has or not included for has, included in zip(present, row, strict=True))
    ]
    times = [int((included_mc == torch.tensor(row)[:, None]).all(0).sum()) for row in possible]
    assert sum(times) == n_draws
    assert len(times) == 1 or chisquare(times).pvalue > 1e-4


@EVERY_FUSION
@pytest.mark.parametrize("training", [True, False])
def test_modalities_that_each_fusion_includes(name: Any, training: bool) -> None:
    present_mc = random_presence(3, 2000, 0)
    torch.manual_seed(0)
    included_mc = Fusion(name).sample_included(present_mc, training)
    assert not (included_mc & ~present_mc).any()
    if name == "mixture":
        assert torch.equal(included_mc.sum(0), present_mc.any(0).long())
    elif name == "mixture_of_products" and training:
        assert set(included_mc[:, present_mc.all(0)].sum(0).tolist()) == {1, 2, 3}
    else:
        assert torch.equal(included_mc, present_mc)


@pytest.mark.parametrize("name", ["mixture", "mixture_of_products"])
def test_subsets_depend_on_the_seed_of_torch(name: Any) -> None:
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(Fusion(name).sample_included(all_included(2, 50), training=True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])

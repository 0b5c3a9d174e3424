"""Clusters: distributions in closed form, initialization, and recovery of groups."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import integrate, stats
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.distributions import kl_divergence

from celldial.model.clusters import (
    FINAL_TEMPERATURE,
    INITIAL_TEMPERATURE,
    LABEL_LOGIT,
    ClusterConditional,
    Clusters,
    annealed_temperature,
    kl_to_components,
)
from celldial.model.latents import LATENTS
from celldial.training import clusters
from helpers.fit import fit_clusters as fit
from helpers.modules import bare_cells
from helpers.raises import raises, warns
from helpers.simulate import simulate_groups, simulate_two

CLUSTER, PROBABILITY = "celldial_cluster", "celldial_cluster_probability"


def agreement(adata: AnnData) -> float:
    return adjusted_rand_score(adata.obs["group"], adata.obs[CLUSTER].astype(str))


# --- Distributions ----------------------------------------------------------------------------------------------------


def make_clusters(latent: str = "gaussian", n_latent: int = 2, n_clusters: int = 3, n_labels: int = 0) -> Clusters:
    """Return clusters with random parameters in double precision."""
    torch.manual_seed(0)
    clusters = Clusters(LATENTS[latent](n_latent), n_clusters, n_labels).double()
    with torch.no_grad():
        for parameter, scale in zip(clusters.parameters(), (1.0, 2.0, 0.4), strict=True):
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64))
    return clusters.requires_grad_(False)


def points(n: int = 5, n_latent: int = 2) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of some cells."""
    torch.manual_seed(1)
    return 2 * torch.randn(n, n_latent).double(), 0.2 + torch.rand(n, n_latent).double()


def log_normal(u: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return torch.from_numpy(stats.norm.logpdf(u.numpy(), mean.numpy(), scale.numpy()))


def test_assignment_is_bayes_rule_if_coordinates_are_known() -> None:
    clusters, (mu_cz, sigma_cz) = make_clusters(), points()
    of = clusters.components
    joint_ck = torch.stack(
        [
            clusters.log_weight_k[k] + log_normal(mu_cz, of.mean_kz[k], of.scale_kz[k]).sum(1)
            for k in range(clusters.n_clusters)
        ],
        1,
    )
    found_ck = clusters.assignment_logits(mu_cz, 1e-6 * sigma_cz, torch.zeros(5, 3))
    torch.testing.assert_close(found_ck.softmax(-1), joint_ck.softmax(-1))


def test_assignment_averages_the_log_density_over_the_posterior() -> None:
    """E[log N(z; m, s²)] under N(μ, σ²) is log N(μ; m, s²) - σ² / 2s²; here it is computed by quadrature."""
    clusters, (mu_cz, sigma_cz) = make_clusters(), points()
    of = clusters.components
    node_n, weight_n = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(20))
    z_ncz = mu_cz + sigma_cz * node_n[:, None, None]
    average_ck = torch.stack(
        [
            torch.einsum("n,ncz->c", weight_n, log_normal(z_ncz, of.mean_kz[k], of.scale_kz[k]))
            / math.sqrt(2 * math.pi)
            for k in range(3)
        ],
        1,
    )
    correction_ck = torch.randn(5, 3).double()
    expected_ck = clusters.log_weight_k + average_ck + correction_ck
    found_ck = clusters.assignment_logits(mu_cz, sigma_cz, correction_ck)
    torch.testing.assert_close(found_ck.log_softmax(-1), expected_ck.log_softmax(-1))


def test_assignment_minimizes_the_divergence() -> None:
    """Among all q(cluster), the assignment has the lowest KL divergence of cluster and coordinates from the prior."""
    clusters, (mu_cz, sigma_cz) = make_clusters(), points()
    each_ck = kl_to_components(clusters.components.latent.posterior(mu_cz, sigma_cz), clusters.components)

    def divergence(logits_ck: Tensor) -> Tensor:
        log_q_ck = logits_ck.log_softmax(-1)
        return (log_q_ck.exp() * (log_q_ck - clusters.log_weight_k + each_ck)).sum()

    best_ck = clusters.assignment_logits(mu_cz, sigma_cz, torch.zeros(5, 3)).requires_grad_()
    divergence(best_ck).backward()
    torch.testing.assert_close(best_ck.grad, torch.zeros(5, 3).double(), atol=1e-9, rtol=0)
    for _ in range(20):
        other_ck = best_ck.detach() + torch.randn(5, 3)
        assert divergence(other_ck) >= divergence(best_ck)


@pytest.mark.parametrize("latent", LATENTS)
def test_conditional_and_marginal_log_densities(latent: str) -> None:
    clusters, (z_cz, _) = make_clusters(latent), points()
    of = clusters.components
    one_hot_ck = torch.eye(3).double()[[0, 2, 1, 1, 0]]
    each_ck = torch.stack(
        [of.latent.posterior(of.mean_kz[k], of.scale_kz[k]).log_prob(z_cz) for k in range(3)], 1
    )  # one cluster at a time
    torch.testing.assert_close(ClusterConditional(of, one_hot_ck, 5).log_prob(z_cz), (one_hot_ck * each_ck).sum(1))
    relaxed_ck = torch.rand(5, 3).double().softmax(-1)
    torch.testing.assert_close(ClusterConditional(of, relaxed_ck, 5).log_prob(z_cz), (relaxed_ck * each_ck).sum(1))
    # Marginalized over clusters.
    found_c = clusters.distribution(bare_cells(5)).log_prob(z_cz)
    torch.testing.assert_close(found_c, (clusters.log_weight_k.exp() * each_ck.exp()).sum(1).log())


@pytest.mark.parametrize("latent", [name for name, family in LATENTS.items() if family.analytic_kl])
def test_divergence_is_the_mean_over_clusters(latent: str) -> None:
    clusters, (mu_cz, sigma_cz) = make_clusters(latent), points()
    of, q = clusters.components, clusters.components.latent.posterior(mu_cz, sigma_cz)
    expected_ck = torch.stack(
        [
            kl_divergence(q, of.latent.posterior(of.mean_kz[k].expand(5, 2), of.scale_kz[k].expand(5, 2)))
            for k in range(3)
        ],
        1,
    )
    torch.testing.assert_close(kl_to_components(q, of), expected_ck)
    choice_ck = torch.rand(5, 3).double().softmax(-1)
    torch.testing.assert_close(kl_divergence(q, ClusterConditional(of, choice_ck, 5)), (choice_ck * expected_ck).sum(1))


@pytest.mark.parametrize("latent", LATENTS)
def test_the_density_integrates_to_one(latent: str) -> None:
    clusters = make_clusters(latent, n_latent=1)
    z_j = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    log_p_j = clusters.distribution(bare_cells(len(z_j))).log_prob(z_j[:, None])
    assert integrate.trapezoid(log_p_j.exp(), z_j) == pytest.approx(1, abs=1e-6)


def test_samples_have_the_weights_means_and_scales_of_clusters() -> None:
    clusters = make_clusters(n_latent=1)
    with torch.no_grad():
        clusters.components.mean_kz.copy_(torch.tensor([[-100.0], [0.0], [100.0]]))
    cells = bare_cells(20_000)
    choice_ck = clusters.sample_prior(cells, {})["cluster"]
    z_c = clusters.conditional(choice_ck, len(cells)).sample()[:, 0]
    for k, mean in enumerate((-100.0, 0.0, 100.0)):
        near_c = (z_c - mean).abs() < 50
        assert near_c.double().mean() == pytest.approx(clusters.log_weight_k[k].exp().item(), abs=0.02)
        assert z_c[near_c].mean() == pytest.approx(mean, abs=0.1)
        assert z_c[near_c].std() == pytest.approx(clusters.components.scale_kz[k].item(), rel=0.1)


def test_known_labels_override_the_assignment() -> None:
    clusters, logits_ck = make_clusters(), torch.randn(4, 3)
    assert clusters.override_with_labels(logits_ck, None) is logits_ck
    overridden_ck = clusters.override_with_labels(logits_ck, torch.tensor([-1, 2, 0, -1]))
    torch.testing.assert_close(overridden_ck[[0, 3]], logits_ck[[0, 3]])
    torch.testing.assert_close(overridden_ck[[1, 2]], LABEL_LOGIT * torch.eye(3)[[2, 0]])
    torch.testing.assert_close(overridden_ck[[1, 2]].softmax(-1), torch.eye(3)[[2, 0]])
    assert overridden_ck.isfinite().all()


def test_the_weight_prior_penalizes_unlabeled_clusters() -> None:
    """At the maximum, the weight of a cluster with n of N cells is (n - d) / (N - K d): d cells are the minimum."""
    n_k = torch.tensor([100.0, 60.0, 40.0]).double()
    clusters = make_clusters(n_latent=2)
    clusters.components.logit_k.copy_(((n_k - 2) / (200 - 6)).log()).requires_grad_()
    ((n_k * clusters.log_weight_k).sum() + clusters.log_weight_prior()).backward()
    torch.testing.assert_close(clusters.components.logit_k.grad, torch.zeros(3).double(), atol=1e-2, rtol=0)
    labeled = make_clusters(n_labels=3)
    assert labeled.log_weight_prior() == 0
    some = make_clusters(n_labels=2)
    torch.testing.assert_close(some.log_weight_prior(), -2 * (some.log_weight_k[2].exp() + 1e-5).log())


def test_the_temperature_falls_geometrically() -> None:
    assert annealed_temperature(0.0) == INITIAL_TEMPERATURE
    assert annealed_temperature(1.0) == pytest.approx(FINAL_TEMPERATURE)
    assert annealed_temperature(0.5) == pytest.approx(math.sqrt(INITIAL_TEMPERATURE * FINAL_TEMPERATURE))


# --- Initialization ---------------------------------------------------------------------------------------------------


def test_a_mixture_is_fitted_to_a_sample_of_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    z_jz = random.normal(np.repeat([[-5.0, 0.0], [5.0, 3.0]], [3000, 1000], axis=0), 1)
    monkeypatch.setattr(clusters, "MAX_DRAWS", 1000)
    log_weight_k, mean_kz, log_scale_kz = clusters.fit_mixture(z_jz, 2, seed=0)
    np.testing.assert_allclose(np.exp(log_weight_k), [0.75, 0.25], atol=0.05)  # the largest first
    np.testing.assert_allclose(mean_kz, [[-5, 0], [5, 3]], atol=0.2)
    np.testing.assert_allclose(np.exp(log_scale_kz), 1, atol=0.1)


def test_an_unconverged_mixture_is_accepted() -> None:
    found = clusters.fit_mixture(np.random.default_rng(0).uniform(size=(500, 2)), 40, seed=0)
    assert all(np.isfinite(part).all() for part in found)


def test_clusters_are_initialized_at_labeled_cells() -> None:
    random = np.random.default_rng(0)
    center_kz = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    truth_j = random.integers(0, 3, 600)
    z_jz = random.normal(center_kz[truth_j], 0.5)
    label_j = np.where(random.random(600) < 0.2, truth_j, -1)
    label_j[truth_j == 2] = -1
    log_weight_k, mean_kz, log_scale_kz = clusters.initialize_from_labels(z_jz, label_j, 3, seed=0)
    np.testing.assert_allclose(mean_kz[:2], center_kz[:2], atol=0.3)
    assert np.exp(log_weight_k).sum() == pytest.approx(1)
    np.testing.assert_allclose(np.exp(log_scale_kz), np.exp(log_scale_kz[[0, 0, 0]]))
    # With one cell and one draw per label, the width is that of all cells, not 0.
    few_j = np.full(600, -1)
    few_j[[np.flatnonzero(truth_j == k)[0] for k in (0, 1)]] = [0, 1]
    found = clusters.initialize_from_labels(z_jz, few_j, 2, seed=0)
    assert all(np.isfinite(part).all() for part in found)
    np.testing.assert_allclose(np.exp(found[2])[0], z_jz.std(0) / math.sqrt(2))


def test_clusters_without_a_label_start_far_from_those_with_one() -> None:
    random = np.random.default_rng(0)
    center_kz = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
    truth_j = random.integers(0, 4, 800)
    z_jz = random.normal(center_kz[truth_j], 0.5)
    label_j = np.where(truth_j < 2, truth_j, -1)
    for seed in range(5):
        log_weight_k, mean_kz, _ = clusters.initialize_from_labels(z_jz, label_j, 4, seed)
        assert sorted(np.linalg.norm(mean_kz[2:, None] - center_kz, axis=2).argmin(1)) == [2, 3]
        # They have the same weight as the others, so that they do not vanish at once.
        np.testing.assert_allclose(np.exp(log_weight_k[2:]), 0.25)


# --- Recovery of groups -----------------------------------------------------------------------------------------------

ESTIMATORS: dict[str, dict[str, Any]] = {
    "enumerate": {},
    "gumbel_softmax": {"gradient": "gumbel_softmax"},
    "straight through": {"gradient": "gumbel_softmax", "straight_through": True},
    "learned": {"gradient": "score_function"},
    "moving average": {"gradient": "score_function", "baseline": "moving_average"},
    "no baseline": {"gradient": {"cluster": "score_function"}, "baseline": None},
}


SLOW = {"straight through", "moving average", "no baseline"}


@pytest.mark.parametrize(
    "estimator", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ESTIMATORS]
)
def test_every_estimator_finds_the_groups(estimator: str) -> None:
    adata = simulate_groups()
    model = fit(adata, n_clusters=3, **ESTIMATORS[estimator])
    assert agreement(adata) > 0.9
    assert adata.obs[CLUSTER].nunique() == 3
    np.testing.assert_allclose(model.module_.clusters.log_weight_k.exp().detach().numpy(), 1 / 3, atol=0.15)


def test_the_score_function_applies_to_coordinates_and_clusters() -> None:
    """The coordinates are then learned too slowly to find groups in few epochs."""
    adata = simulate_groups((20, 20))
    model = fit(adata, max_epochs=3, n_clusters=2, gradient={"z": "score_function", "cluster": "score_function"})
    assert set(model.module_.baselines) == {"z", "cluster"}
    assert np.isfinite(adata.obsm[PROBABILITY].to_numpy()).all()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_clusters_that_are_not_needed_become_empty(seed: int) -> None:
    adata = simulate_groups((150, 150, 150), seed=seed)
    model = fit(adata, seed=seed, n_latent=5, n_clusters=10)
    assert list(adata.obs[CLUSTER].cat.categories) == list("0123456789")
    assert 3 <= adata.obs[CLUSTER].nunique() <= 5
    assert agreement(adata) > 0.9
    weight_k = model.module_.clusters.log_weight_k.exp()
    assert (weight_k < 0.01).sum() >= 2


def test_clusters_do_not_merge_with_many_coordinates() -> None:
    adata = simulate_groups()
    fit(adata, max_epochs=40, n_hidden=128, n_latent=20, n_clusters=3)
    assert agreement(adata) > 0.9


def test_groups_are_found_by_either_modality() -> None:
    adata = simulate_two(240, n_genes=30, n_peaks=120, lacking={"atac": range(0, 40), "rna": range(40, 80)})
    adata.obs["group"] = adata.obs["type"].astype(str)
    model = fit(adata, max_epochs=40, n_clusters=2)
    assert agreement(adata[:40]) > 0.6
    assert agreement(adata[80:]) > 0.9
    by_rna = model.clusters(adata[80:].copy(), modality="rna")
    by_atac = model.clusters(adata[80:].copy(), modality="atac")
    by_both = model.clusters(adata[80:].copy())
    assert not np.allclose(by_rna, by_both)
    assert not np.allclose(by_atac, by_both)
    assert (by_rna.idxmax(axis=1) == by_both.idxmax(axis=1)).mean() > 0.9
    # A cell without peaks is assigned by its genes, with or without `modality`.
    np.testing.assert_allclose(
        model.clusters(adata[:40].copy(), modality="rna"), model.clusters(adata[:40].copy()), atol=1e-5
    )
    with warns(naming=[40, "atac"]):
        without_peaks = model.clusters(adata[:40].copy(), modality="atac")
    np.testing.assert_allclose(without_peaks, np.tile(model.module_.clusters.log_weight_k.exp().detach(), (40, 1)))
    with raises(KeyError, naming=["'protein'"]):
        model.clusters(adata, modality="protein")

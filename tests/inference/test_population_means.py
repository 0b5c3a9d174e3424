"""Means over cells along a path, and their uncertainty."""

import numpy as np
import pytest
import torch

from celldial import VAE
from celldial.inference import population_means, posterior
from celldial.inference.posterior import Covariates
from helpers.assertions import assert_population_means
from helpers.fit import without_loadings
from helpers.modules import build_module


@pytest.mark.parametrize("name", ["rna", "atac"])
@pytest.mark.parametrize("entries", [10, 10**6])
def test_population_means_equal_those_of_the_decoder(
    bimodal_3d: VAE, name: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks or at once: means, and the variance that the draws of each cell have about the cell's mean."""
    monkeypatch.setattr(population_means, "CACHED_ENTRIES", entries)
    monkeypatch.setattr(population_means, "MAX_DECODE_VALUES", entries)
    monkeypatch.setattr(population_means, "BLOCK_FEATURES", 7)
    module = bimodal_3d.module_
    n_cells, n_samples, n_steps = 5, 3, 4
    state_sjz = np.random.default_rng(0).normal(size=(n_steps, n_cells * n_samples, 3)).astype(np.float32)
    covariates = Covariates(np.zeros((15, 0), dtype=np.int64), np.zeros((15, 0), dtype=np.float32))
    with without_loadings(bimodal_3d):
        found = population_means.mean_along_path(module, name, state_sjz, [covariates], 100.0, n_samples, n_cells)
    value_sjf = np.stack(
        [np.concatenate(list(posterior.decode_mean(module, name, z_jz, covariates, 100.0))) for z_jz in state_sjz]
    ).astype(float)
    assert_population_means(found, value_sjf, n_samples)


@pytest.mark.parametrize("entries", [10, 10**6])
def test_population_means_of_counts_with_a_background(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their expected values depend on both outputs of the decoder."""
    monkeypatch.setattr(population_means, "CACHED_ENTRIES", entries)
    monkeypatch.setattr(population_means, "BLOCK_FEATURES", 7)
    module = build_module({"protein": 20}, "negative_binomial_mixture", n_latent=3)
    likelihood = module.modalities["protein"].likelihood
    likelihood.log_background_f.data.copy_(torch.linspace(-6, -3, 20))
    states_sjz = np.random.default_rng(0).normal(0, 3, size=(4, 12, 3)).astype(np.float32)
    covariates = Covariates(np.zeros((12, 0), dtype=np.int64), np.zeros((12, 0), dtype=np.float32))
    found = population_means.mean_along_path(module, "protein", states_sjz, [covariates], 100.0, 3, 4)
    value_sjf = np.stack(
        [np.concatenate(list(posterior.decode_mean(module, "protein", z_jz, covariates, 100.0))) for z_jz in states_sjz]
    )
    np.testing.assert_allclose(found.mean_sf, value_sjf.mean(1), rtol=1e-4)
    low_f, high_f = found.mean_sf.argmin(0), found.mean_sf.argmax(0)
    relative_sjf = (value_sjf / value_sjf.mean(1, keepdims=True)).astype(float)
    column_f = np.arange(20)
    change_nf = (relative_sjf[high_f, :, column_f] - relative_sjf[low_f, :, column_f]).T.reshape(4, 3, 20)
    expected_f = change_nf.var(1, ddof=1).mean(0) * (1 / 4 + 1 / 12)
    np.testing.assert_allclose(found.change_variance_f, expected_f, rtol=1e-3, atol=1e-9)


def test_fewer_cells_give_wider_intervals(bimodal_3d: VAE) -> None:
    """By the variance between cells, which counts less if more cells of the group are sampled."""
    n_cells, n_samples, n_group = 6, 5, 20
    state_jz = np.random.default_rng(0).normal(size=(n_cells, 1, 3)).repeat(n_samples, axis=1)
    state_jz = (state_jz + np.random.default_rng(1).normal(0, 0.1, state_jz.shape)).reshape(-1, 3).astype(np.float32)
    covariates = Covariates(np.zeros((30, 0), dtype=np.int64), np.zeros((30, 0), dtype=np.float32))
    with without_loadings(bimodal_3d):
        found_f, of_all_f = (
            population_means.mean_along_path(
                bimodal_3d.module_, "rna", state_jz[None], [covariates], 1e4, n_samples, n
            ).variance_sf[0]
            for n in (n_group, n_cells)
        )
    (value_jf,) = posterior.decode_mean(bimodal_3d.module_, "rna", state_jz, covariates, 1e4)
    value_cnf = (value_jf / value_jf.mean(0)).reshape(n_cells, n_samples, -1).astype(float)
    within_f = value_cnf.var(1, ddof=1).mean(0)
    between_f = value_cnf.mean(1).var(0, ddof=1) - within_f / n_samples
    posterior_f = within_f * (1 / n_group + 1 / (n_cells * n_samples))
    np.testing.assert_allclose(found_f, posterior_f + between_f * (1 / n_cells - 1 / n_group), rtol=1e-2, atol=1e-7)
    assert (found_f > of_all_f).all()


def test_intervals_add_the_variances_of_states_and_loadings(bimodal_3d: VAE) -> None:
    module = bimodal_3d.module_
    state_sjz = np.zeros((2, 4, 3), dtype=np.float32)  # draws that do not differ
    covariates = Covariates(np.zeros((4, 0), dtype=np.int64), np.zeros((4, 0), dtype=np.float32))
    found = population_means.mean_along_path(module, "rna", state_sjz, [covariates], 1e4, 2, 2)
    decoder, loadings = module.modalities["rna"].decoder, module.modalities["rna"].loadings
    with torch.no_grad():
        inputs = decoder.inputs(torch.zeros(1, 3), *(torch.from_numpy(part[:1]) for part in covariates))
    np.testing.assert_allclose(found.variance_sf[1], loadings.variance(inputs)[0], rtol=1e-4)
    np.testing.assert_allclose(found.change_variance_f, 0, atol=1e-6)


def test_the_variance_of_a_change_is_that_of_its_loadings(bimodal_3d: VAE) -> None:
    module = bimodal_3d.module_
    state_sjz = np.zeros((2, 4, 3), dtype=np.float32)  # samples that do not differ, at two positions
    state_sjz[1] = 1.5
    covariates = Covariates(np.zeros((4, 0), dtype=np.int64), np.zeros((4, 0), dtype=np.float32))
    found = population_means.mean_along_path(module, "rna", state_sjz, [covariates], 1e4, 2, 2)
    decoder, loadings = module.modalities["rna"].decoder, module.modalities["rna"].loadings
    with torch.no_grad():
        at_sh = decoder.inputs(torch.from_numpy(state_sjz[:, 0]), *(torch.from_numpy(part[:2]) for part in covariates))
    first_f = torch.zeros(len(found.change_variance_f), dtype=torch.int64)
    expected_f = loadings.variance_of_change(at_sh, first_f, first_f + 1)
    assert (expected_f > 1e-4).any()
    np.testing.assert_allclose(found.state_variance_f, 0, atol=1e-9)
    contrast_ks = np.array([[-1.0, 1.0], [1.0, 0.0]])
    covariance_fkk = population_means.contrast_covariance(
        module, "rna", state_sjz, [covariates], 1e4, contrast_ks, found.mean_sf
    )
    np.testing.assert_allclose(covariance_fkk[:, 0, 0], expected_f, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(covariance_fkk[:, 1, 1], found.variance_sf[0], rtol=1e-3)
    np.testing.assert_allclose(covariance_fkk[:, 0, 1], covariance_fkk[:, 1, 0], rtol=1e-4, atol=1e-7)
    # The variance of the second state follows from those of the first one and of the change.
    variance_f = covariance_fkk[:, 0, 0] + covariance_fkk[:, 1, 1] + 2 * covariance_fkk[:, 0, 1]
    np.testing.assert_allclose(variance_f, found.variance_sf[1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.change_variance_f, expected_f, rtol=1e-3, atol=1e-6)

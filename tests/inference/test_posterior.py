"""Posteriors of cells that lack modalities, expected values in blocks, and sampled cells."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from celldial.data.cells import Cells
from celldial.inference import posterior
from celldial.inference.posterior import Covariates
from celldial.model.fusion import FUSIONS
from celldial.model.module import Module
from helpers.modules import build_module, sizes_of
from helpers.simulate import simulate_two_cells

LACKING = {"atac": [0, 1, 4], "rna": [4, 5]}


def make_module(cells: Cells, fusion: str = "product") -> Module:
    torch.manual_seed(0)
    likelihood = {"rna": "zero_inflated_negative_binomial", "atac": "bernoulli"}
    module = build_module(likelihood=likelihood, **sizes_of(cells), n_latent=3, dropout_rate=0.2, fusion=fusion)
    module.initialize(cells)
    return module


@pytest.fixture(scope="module")
def cells() -> Cells:
    return simulate_two_cells(lacking=LACKING, covariates=True)


def covariates_of(cells: Cells) -> Covariates:
    return Covariates(cells.category_ck.numpy(), cells.continuous_ck.numpy())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_posterior_uses_the_modalities_of_a_cell(cells: Cells, fusion: str) -> None:
    module = make_module(cells, fusion)
    together = posterior.infer(module, cells)
    for lacked, present in (("atac", "rna"), ("rna", "atac")):
        alone = posterior.infer(module, cells.keep_modalities(present))
        index_c = [c for c in LACKING[lacked] if c != 4]
        np.testing.assert_allclose(together.mean[index_c], alone.mean[index_c], atol=1e-6)
        np.testing.assert_allclose(together.standard_deviation[index_c], alone.standard_deviation[index_c], atol=1e-6)
        assert (np.abs(together.mean[6:] - alone.mean[6:]).max(1) > 1e-4).all()
    assert not together.mean[4].any()
    assert (together.standard_deviation[4] == 1).all()
    assert not module.training


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_posterior_is_deterministic_and_independent_of_blocks(
    cells: Cells, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(cells, fusion)
    before = torch.get_rng_state()
    together = posterior.infer(module, cells)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(posterior, "MAX_DECODE_CELLS", 2)
    np.testing.assert_allclose(posterior.infer(module, cells).mean, together.mean, atol=1e-6)


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_expected_values_come_in_blocks(cells: Cells, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every cell, whether it has the modality or not."""
    module = make_module(cells).eval()
    z_cz = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    everywhere = Cells({}, {modality: torch.full((60,), 50.0)}, cells.category_ck, cells.continuous_ck)
    with torch.no_grad():
        expected_cf = module.decode_modality(modality, torch.from_numpy(z_cz), everywhere).mean.numpy()
    monkeypatch.setattr(posterior, "decode_block_size", lambda n_features: 25)
    found = posterior.decode_mean(module, modality, z_cz, covariates_of(cells), 50.0)
    assert isinstance(found, Iterator)
    blocks = list(found)
    assert [block_cf.shape for block_cf in blocks] == [(n, module.n_features[modality]) for n in (25, 25, 10)]
    assert {block_cf.dtype for block_cf in blocks} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(blocks), expected_cf, rtol=1e-5)
    some = posterior.decode_mean(module, modality, z_cz, covariates_of(cells), 50.0, np.array([3, 0]))
    np.testing.assert_allclose(np.concatenate(list(some)), expected_cf[:, [3, 0]], rtol=1e-5)


def test_gradients_are_not_disabled_between_blocks(cells: Cells) -> None:
    z_cz = np.zeros((60, 3), np.float32)
    next(posterior.decode_mean(make_module(cells), "rna", z_cz, covariates_of(cells), 50.0))
    assert torch.is_grad_enabled()


def test_expected_values_are_counts_or_probabilities(cells: Cells) -> None:
    module, z_cz = make_module(cells), np.zeros((60, 3), np.float32)
    (rna_cf,) = posterior.decode_mean(module, "rna", z_cz, covariates_of(cells), 50.0)
    (atac_cf,) = posterior.decode_mean(module, "atac", z_cz, covariates_of(cells), 50.0)
    np.testing.assert_allclose(rna_cf.sum(1), 50, rtol=1e-5)
    assert ((atac_cf > 0) & (atac_cf < 1)).all()
    np.testing.assert_allclose(-np.log1p(-atac_cf.astype(float)).sum(1), 50, rtol=1e-3)  # the start: all fragments


def test_sampled_cells_have_every_modality(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(cells)
    monkeypatch.setattr(posterior, "decode_block_size", lambda n_features: 25)
    quantiles = {"rna": np.array([100.0, 100.0]), "atac": np.array([5.0, 10.0, 20.0])}
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        library_size = posterior.sample_library_sizes(quantiles, len(cells))
        z_cz = posterior.sample_prior(module, covariates_of(cells))
        draws.append(posterior.sample_counts(module, z_cz, covariates_of(cells), library_size))
    counts = draws[0]
    assert z_cz.shape == (60, 3)
    assert {name: x_cf.shape for name, x_cf in counts.items()} == {"rna": (60, 20), "atac": (60, 30)}
    assert all(x_cf.dtype == np.float32 for x_cf in counts.values())
    assert set(counts["atac"].data) == {1}
    assert counts["rna"].data.max() > 1
    np.testing.assert_array_equal(counts["rna"].data, np.round(counts["rna"].data))
    for name in counts:
        assert (counts[name] != draws[1][name]).nnz == 0
        assert (counts[name] != draws[2][name]).nnz > 0

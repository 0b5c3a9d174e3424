"""Replicates of cells, and the sums that compare counts with their distribution."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from celldial import VAE
from celldial.data.cells import Cells, to_csr_matrix
from celldial.inference import predictive
from celldial.inference.doublets import doublet_signs
from celldial.inference.fitted_model import read_cells
from celldial.inference.predictive import Groups
from helpers.fit import fit, without_loadings
from helpers.simulate import simulate, simulate_groups, simulate_two


def cells_of(model: VAE, n_cells: int = 300) -> Cells:
    return read_cells(model, simulate(n_cells, seed=1))[1]


def groups_of(cells: Cells, n_batches: int = 1) -> Groups:
    top = {name: predictive.top_features(rows, 5) for name, rows in cells.counts.items()}
    return Groups(np.arange(len(cells)) % n_batches, n_batches, top)


def test_replicates_differ_from_their_distribution_by_chance(model: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one latent state for all, the counts come from the distribution that they are compared with."""
    monkeypatch.setattr(predictive, "sample_states", lambda _, cells, n: torch.zeros(len(cells), n, 2))
    cells = cells_of(model)
    # Library sizes as they were: those of the replicate depend on its counts.
    cells = replace(predictive.replicate(model.module_, cells), library_size=cells.library_size)
    found = predictive.compare(model.module_, cells, groups_of(cells))["rna"]
    ratio = found.square_bf.sum() / found.variance_bf.sum()
    assert ratio == pytest.approx(1, abs=0.15)
    assert found.zero_excess_bf.sum() / found.zero_room_bf.sum() == pytest.approx(0, abs=0.03)
    assert found.detected_c.mean() == pytest.approx(found.expected_detected_c.mean(), rel=0.05)


def test_sums_of_batches_are_those_of_all_cells(model: VAE) -> None:
    cells = cells_of(model)
    torch.manual_seed(0)
    together = predictive.compare(model.module_, cells, groups_of(cells))["rna"]
    torch.manual_seed(0)
    apart = predictive.compare(model.module_, cells, groups_of(cells, 3))["rna"]
    for key in ("zero_excess_bf", "zero_room_bf", "square_bf", "variance_bf", "mean_bf"):
        np.testing.assert_allclose(getattr(apart, key).sum(0), getattr(together, key)[0], rtol=1e-4, atol=1e-3)
    counts_cf = to_csr_matrix(cells.counts["rna"]).toarray()
    np.testing.assert_array_equal(apart.detected_c, (counts_cf > 0).sum(1))
    np.testing.assert_array_equal(apart.batch_c, np.arange(300) % 3)
    assert apart.residual_ct.shape == (300, 5)


def test_top_features_have_the_most_counts(model: VAE) -> None:
    rows = cells_of(model).counts["rna"]
    total_f = np.asarray(to_csr_matrix(rows).sum(0)).ravel()
    top_t = predictive.top_features(rows, 5)
    assert set(top_t) == set(np.argsort(-total_f)[:5])
    assert (np.diff(top_t) > 0).all()


def test_cells_keep_the_modalities_that_they_lack() -> None:
    adata = simulate_two(lacking={"atac": range(10), "rna": range(50, 60)})
    model = fit(adata)
    cells = read_cells(model, adata)[1]
    again = predictive.replicate(model.module_, cells)
    assert (again.library_size["atac"][:10] == 0).all()
    assert (again.library_size["rna"][50:] == 0).all()
    assert (again.library_size["rna"][:50] > 0).all()
    found = predictive.compare(model.module_, again, groups_of(again))
    assert len(found["rna"].batch_c) == 50


@pytest.mark.parametrize("n_cells", [60, 600])
def test_the_number_of_training_cells_is_known_from_the_loadings(conditional: VAE, n_cells: int) -> None:
    """54 of 60 cells were used for training."""
    cells = read_cells(conditional, simulate(n_cells, seed=1))[1]
    assert predictive.training_ratio(conditional.module_, cells)["rna"] == pytest.approx(n_cells / 54, rel=0.35)
    with without_loadings(conditional):
        assert predictive.training_ratio(conditional.module_, cells) == {"rna": 1 / 9}


# --- Doublets ---------------------------------------------------------------------------------------------------------


def test_doublets_have_a_slope_of_about_one_and_other_cells_have_none() -> None:
    """Groups are well separated: a cell between them is a doublet, with twice the library size of others."""
    adata = simulate_groups((150, 150, 150))
    model = fit(adata, VAE(3, 32), max_epochs=15, batch_size=50)
    random = np.random.default_rng(0)
    batch_c = np.zeros(450, dtype=np.int64)
    single = doublet_signs(model.module_, read_cells(model, adata)[1], "rna", batch_c, random, 100)
    assert single is not None
    assert abs(single.slope - single.permuted_p.mean()) < 4 * single.permuted_p.std()
    mixed = adata.copy()
    pair_c = np.arange(0, 450, 6)
    x_cf = adata.X.toarray()
    x_cf[pair_c] += x_cf[random.permutation(450)[: len(pair_c)]]
    mixed.X = type(adata.X)(x_cf)
    doublets = doublet_signs(model.module_, read_cells(model, mixed)[1], "rna", batch_c, random, 100)
    assert doublets is not None
    assert doublets.slope > doublets.permuted_p.mean() + 6 * doublets.permuted_p.std()
    assert 0.4 < doublets.slope < 2.5


def test_few_cells_show_no_doublets(model: VAE) -> None:
    cells = cells_of(model, 50)
    assert doublet_signs(model.module_, cells, "rna", np.zeros(50, np.int64), np.random.default_rng(0), 10) is None

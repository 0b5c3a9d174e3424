"""Draws of counts from the posterior predictive distribution: their moments, their form, and bad input."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from celldial import VAE
from helpers.assertions import untouched
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two, write


def test_draws_are_sparse_counts(model: VAE) -> None:
    adata = simulate()
    check = untouched(adata)
    draws = model.posterior_predictive(adata, 3)
    check()
    assert len(draws) == 3
    for draw in draws:
        assert isinstance(draw, sparse.csr_matrix)
        assert (draw.shape, draw.dtype) == (adata.shape, np.float32)
        assert (draw.data > 0).all()
        assert (draw.data == draw.data.round()).all()
    assert (draws[0] != draws[1]).nnz > 0


def test_the_seed_determines_the_draws(model: VAE) -> None:
    adata = simulate()
    first, again, other = (model.posterior_predictive(adata, seed=seed)[0] for seed in (1, 1, 2))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


def test_the_mean_is_that_of_the_decoded_states(model: VAE) -> None:
    """Library sizes are those of the cells, and the mean of draws is that of the decoder at draws of the state."""
    adata = simulate()
    total_cf = sum(draw.toarray() for draw in model.posterior_predictive(adata, 200)) / 200
    library_c = np.asarray(adata.X.sum(1)).ravel()
    np.testing.assert_allclose(total_cf.sum(1), library_c, rtol=0.15)
    share_cf = model.denoise(adata, library_size=1.0).to_numpy()
    expected_f = (share_cf * library_c[:, None]).mean(0)
    np.testing.assert_allclose(total_cf.mean(0), expected_f, rtol=0.1)


def test_cells_without_a_modality_get_no_counts() -> None:
    adata = simulate_two(lacking={"atac": range(10)})
    model = fit(adata)
    (peaks,) = model.posterior_predictive(adata, modality="atac")
    assert peaks.shape == (60, 30)
    assert peaks[:10].nnz == 0
    assert peaks[10:].nnz > 0
    assert set(np.unique(peaks.data)) == {1.0}
    (genes,) = model.posterior_predictive(adata)
    assert genes.shape == (60, 20)
    assert (np.diff(genes.indptr) > 0).all()


def test_files_are_read_in_blocks(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    (drawn,) = model.posterior_predictive([write(adata, tmp_path / "cells.h5ad")])
    assert drawn.shape == adata.shape


@pytest.mark.parametrize(("options", "facts"), [({"n_samples": 0}, ["n_samples", 0])])
def test_bad_numbers_are_named(model: VAE, adata: AnnData, options: dict[str, int], facts: list[object]) -> None:
    with raises(ValueError, naming=facts):
        model.posterior_predictive(adata, **options)
    with raises(KeyError, naming=["'protein'", "'rna'"]):
        model.posterior_predictive(adata, modality="protein")

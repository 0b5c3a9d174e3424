"""The bundled blood cells: raw counts, annotation, and how the log normalization is undone."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy.sparse import csr_matrix, issparse

from celldial.datasets.pbmc68k import _undo_log_normalization, pbmc68k_reduced
from helpers.raises import raises


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return pbmc68k_reduced()


def log_normalized(count_cf: np.ndarray, total_c: np.ndarray, decimals: int = 3) -> csr_matrix:
    log_cf = np.log1p(count_cf / total_c[:, None] * 1e4).round(decimals).astype(np.float32)
    return csr_matrix(log_cf, dtype=np.float64)


def test_pbmc68k_reduced_holds_raw_counts(adata):
    assert adata.shape == (700, 765)
    assert issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices
    np.testing.assert_array_equal(adata.X.data, adata.X.data.round())
    assert adata.X.data.min() == 1
    assert adata.X.data.max() == 259


def test_pbmc68k_reduced_counts_are_within_the_totals_of_the_cells(adata):
    assert (np.asarray(adata.X.sum(axis=1)).ravel() <= adata.obs["n_counts"].to_numpy()).all()


def test_pbmc68k_reduced_keeps_annotation_and_nothing_stale(adata):
    assert adata.obs["bulk_labels"].nunique() == 10
    assert {"phase", "louvain", "n_counts", "n_genes"} <= set(adata.obs)
    assert adata.var.shape == (765, 0)
    assert "CD79A" in adata.var_names
    assert adata.raw is None
    for slot in (adata.uns, adata.obsm, adata.varm, adata.obsp, adata.varp):
        assert len(slot) == 0


def test_pbmc68k_reduced_returns_a_new_object(adata):
    other = pbmc68k_reduced()
    other.X.data[:] = 0
    other.obs["bulk_labels"] = "none"
    assert adata.X.data.min() == 1
    assert pbmc68k_reduced().X.data.min() == 1


def test_pbmc68k_reduced_equals_the_stored_counts(adata, shared_data):
    stored = read_h5ad(shared_data / "pbmc68k_counts.h5ad")
    assert (adata.X != stored.X).nnz == 0
    assert list(adata.obs_names) == list(stored.obs_names)
    assert list(adata.var_names) == list(stored.var_names)
    columns = sorted(stored.obs)
    pd.testing.assert_frame_equal(adata.obs[columns].astype(str), stored.obs[columns].astype(str))


def test_undo_log_normalization_inverts_rounded_logarithms():
    rng = np.random.default_rng(0)
    count_cf = rng.poisson(3.0, size=(20, 30))
    total_c = rng.integers(1000, 5000, size=20).astype(float)
    found_cf = _undo_log_normalization(log_normalized(count_cf, total_c), total_c)
    np.testing.assert_array_equal(found_cf.toarray(), count_cf)


@pytest.mark.parametrize("broken", [0.01, np.nan, -0.5])
def test_undo_log_normalization_rejects_values_that_are_not_counts(broken):
    count_cf = np.arange(1, 13).reshape(3, 4)
    total_c = np.full(3, 2000.0)
    log_cf = log_normalized(count_cf, total_c)
    log_cf[1, 2] = log_cf[1, 2] + broken if broken > 0 else broken
    with raises(RuntimeError, naming=["row 1", "column 2", "1 of 12"]):
        _undo_log_normalization(log_cf, total_c)


def test_undo_log_normalization_rejects_other_totals():
    count_cf = np.arange(1, 13).reshape(3, 4)
    log_cf = log_normalized(count_cf, np.full(3, 2000.0))
    with raises(RuntimeError, naming=["pbmc68k_reduced"]):
        _undo_log_normalization(log_cf, np.full(3, 2900.0))

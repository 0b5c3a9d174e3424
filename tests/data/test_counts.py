"""Counts of an AnnData: storage types, invalid values, and features of new data."""

import logging
from typing import Any

import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from celldial import VAE
from celldial.data.counts import check_sparse_structure, to_canonical_csr
from celldial.data.schema import Schema
from helpers.raises import logged, raises, warns
from helpers.simulate import SMALL_COUNTS, STORAGES, build_rna


def rna(adata: AnnData, schema: Schema | None = None) -> sparse.csr_matrix:
    return (schema or Schema.from_anndata(adata)).read_counts(adata)["rna"]


# --- Counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64, bool, np.uint8])
@pytest.mark.parametrize("storage", STORAGES)
def test_counts_do_not_depend_on_storage(storage: str, dtype: Any) -> None:
    expected = SMALL_COUNTS.astype(dtype).astype(np.float32)
    counts = rna(build_rna(STORAGES[storage](SMALL_COUNTS), dtype))
    assert type(counts) is sparse.csr_matrix
    assert counts.dtype == np.float32
    assert counts.has_canonical_format
    assert counts.nnz == np.count_nonzero(expected)
    np.testing.assert_array_equal(counts.toarray(), expected)


@pytest.mark.parametrize("storage", STORAGES)
@given(x=hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 2**24)))
def test_counts_equal_dense(storage: str, x: np.ndarray) -> None:
    np.testing.assert_array_equal(rna(build_rna(STORAGES[storage](x))).toarray(), x)


@pytest.mark.parametrize("storage", STORAGES)
def test_counts_of_a_view(storage: str) -> None:
    adata = build_rna(STORAGES[storage](SMALL_COUNTS))
    view = adata[[2, 0]]
    np.testing.assert_array_equal(rna(view, Schema.from_anndata(adata)).toarray(), SMALL_COUNTS[[2, 0]])
    assert view.is_view


def test_counts_of_a_layer() -> None:
    adata = build_rna(SMALL_COUNTS / 3, counts=sparse.csr_matrix(SMALL_COUNTS))
    np.testing.assert_array_equal(rna(adata, Schema.from_anndata(adata, layer="counts")).toarray(), SMALL_COUNTS)


def test_unsorted_counts_are_sorted_in_a_copy() -> None:
    # Row 0 has its columns unsorted, column 2 twice and a stored zero.
    x = sparse.csr_matrix((np.array([1, 1, 1, 0], dtype=np.float32), [2, 0, 2, 3], [0, 4, 4]), shape=(2, 4))
    before = [part.copy() for part in (x.data, x.indices, x.indptr)]
    adata = build_rna(x)
    adata.X = x
    counts = rna(adata)
    np.testing.assert_array_equal(counts.toarray(), [[1, 0, 2, 0], [0, 0, 0, 0]])
    assert counts.has_canonical_format
    assert counts.nnz == 2
    for part, old in zip((adata.X.data, adata.X.indices, adata.X.indptr), before, strict=True):
        np.testing.assert_array_equal(part, old)


def test_counts_of_the_training_data_are_not_copied() -> None:
    adata = build_rna(sparse.csr_matrix(SMALL_COUNTS))
    assert np.shares_memory(rna(adata).data, adata.X.data)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("storage", ["csr_matrix", "coo_matrix", "csc_matrix"])
def test_duplicate_entries_are_summed_without_overflow(storage: str, dtype: Any) -> None:
    values = np.array([1, 1, 1] if dtype is bool else [100, 100, 100]).astype(dtype)
    if storage == "coo_matrix":
        matrix = sparse.coo_matrix((values, ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    else:
        matrix = getattr(sparse, storage)((values, [1, 1, 0], [0, 2, 3]), shape=(2, 2))
    single = float(values[0])
    expected = {"csc_matrix": [[0, single], [2 * single, 0]]}.get(storage, [[0, 2 * single], [single, 0]])
    np.testing.assert_array_equal(to_canonical_csr(matrix).toarray(), expected)


@pytest.mark.parametrize("storage", ["csr_matrix", "csc_matrix", "csr_array", "bsr_matrix", "coo_matrix"])
@pytest.mark.parametrize("index", [-1, 4, 2**30])
def test_indices_out_of_range_are_rejected(storage: str, index: int) -> None:
    matrix = getattr(sparse, storage)(sparse.csr_matrix(SMALL_COUNTS))
    (matrix.col if storage == "coo_matrix" else matrix.indices)[-1] = index
    with raises(ValueError, naming=["adata.X", str(index)]):
        check_sparse_structure(matrix, "adata.X")


@pytest.mark.parametrize("position", [0, 1, -1])
@pytest.mark.parametrize("step", [-5, 5, 2**30])
def test_row_pointers_out_of_order_are_rejected(position: int, step: int) -> None:
    matrix = sparse.csr_matrix(SMALL_COUNTS)
    matrix.indptr[position] += step
    with raises(ValueError, naming=["adata.X"]):
        check_sparse_structure(matrix, "adata.X")


def test_damaged_counts_do_not_reach_a_model() -> None:
    adata = build_rna(sparse.csr_matrix(SMALL_COUNTS))
    schema = Schema.from_anndata(adata)
    adata.X.indices[-1] = 1_000_000
    with raises(ValueError, naming=["adata.X", "1000000 of 4"]):
        schema.read_counts(adata)
    with raises(ValueError, naming=["adata.X", "1000000 of 4"]):
        Schema.from_anndata(adata)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1)])
def test_one_cell_or_one_gene(shape: tuple[int, int]) -> None:
    np.testing.assert_array_equal(rna(build_rna(np.ones(shape))).toarray(), np.ones(shape))


@pytest.mark.parametrize("storage", ["dense", "csr_matrix", "csc_array"])
@pytest.mark.parametrize("value", [-1, np.nan, np.inf, -np.inf, 1e39, 0.5])
def test_invalid_counts_are_named(storage: str, value: float) -> None:
    x = SMALL_COUNTS.astype(float)
    x[2, 1], x[2, 3] = value, 0.25
    with raises(ValueError, naming=["adata.X", f"{value:g}", "'c2'", "'g1'"]):
        rna(build_rna(STORAGES[storage](x), np.float64))


def test_negative_integers_are_invalid_counts() -> None:
    with raises(ValueError, naming=[-3, "'c1'", "'g0'"]):
        rna(build_rna(np.array([[1, 2], [-3, 4]]), np.int64))


def test_error_names_where_counts_are() -> None:
    scaled = SMALL_COUNTS - 0.5
    with raises(ValueError, naming=["adata.X"], omitting=["layer=", "adata.raw"]):
        rna(build_rna(scaled, log=scaled))
    with raises(ValueError, naming=["adata.layers['counts']", 'layer="counts"']):
        rna(build_rna(scaled, log=scaled, counts=SMALL_COUNTS))
    adata = build_rna(SMALL_COUNTS, log=scaled)
    with raises(ValueError, naming=["adata.layers['log']", "layer=None"]):
        rna(adata, Schema.from_anndata(adata, layer="log"))
    adata = build_rna(scaled)
    adata.raw = build_rna(sparse.csr_matrix(SMALL_COUNTS))
    with raises(ValueError, naming=["adata.raw"]):
        rna(adata)


def test_not_an_anndata() -> None:
    schema = Schema.from_anndata(build_rna())
    for read in (Schema.from_anndata, schema.read_counts):
        with raises(TypeError, naming=["AnnData", "numpy.ndarray"]):
            read(SMALL_COUNTS)


def test_backed(tmp_path: Any) -> None:
    build_rna().write_h5ad(tmp_path / "cells.h5ad")
    adata = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with raises(ValueError, naming=["to_memory"]):
        Schema.from_anndata(adata)
    np.testing.assert_array_equal(rna(adata.to_memory()).toarray(), SMALL_COUNTS)
    adata.file.close()


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_empty_anndata(shape: tuple[int, int]) -> None:
    with raises(ValueError, naming=shape):
        Schema.from_anndata(build_rna(np.zeros(shape)))


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_names_given_twice() -> None:
    schema = Schema.from_anndata(build_rna())
    for axis in ("obs", "var"):
        adata = build_rna()
        names = list(getattr(adata, f"{axis}_names"))
        setattr(adata, f"{axis}_names", [*names[:-1], names[1]])
        for read in (Schema.from_anndata, schema.read_counts):
            with raises(ValueError, naming=[f"{names[1]!r}", f"{axis}_names_make_unique"]):
                read(adata)


def test_missing_counts() -> None:
    with raises(ValueError, naming=["adata.X", None]):
        Schema.from_anndata(AnnData(obs=build_rna().obs, var=build_rna().var))
    adata = AnnData(obs=build_rna().obs, var=build_rna().var, layers={"raw": SMALL_COUNTS})
    with raises(ValueError, naming=["'raw'", 'layer="raw"']):
        Schema.from_anndata(adata)
    np.testing.assert_array_equal(rna(adata, Schema.from_anndata(adata, layer="raw")).toarray(), SMALL_COUNTS)
    with raises(KeyError, naming=["'counts'", "'raw'"]):
        Schema.from_anndata(adata, layer="counts")


@pytest.mark.parametrize(
    "x", [SMALL_COUNTS.astype(object), SMALL_COUNTS.astype(np.float16), SMALL_COUNTS.astype(complex), object()]
)
def test_counts_of_unsupported_type(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = build_rna()
    monkeypatch.setattr(AnnData, "X", property(lambda self: x))  # replaces dask and other arrays that are not installed
    with raises(TypeError, naming=["adata.X"]):
        Schema.from_anndata(adata)


# --- New data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_features_are_reordered(storage: str, dtype: Any) -> None:
    adata = build_rna(STORAGES[storage](SMALL_COUNTS), dtype)
    counts = rna(adata[:, ["g3", "g0", "g2", "g1"]].copy(), Schema.from_anndata(adata))
    np.testing.assert_array_equal(counts.toarray(), SMALL_COUNTS.astype(dtype))
    assert counts.has_canonical_format
    assert counts.dtype == np.float32


def test_other_features_are_ignored_even_with_invalid_counts(caplog: pytest.LogCaptureFixture) -> None:
    schema = Schema.from_anndata(build_rna()[:, ["g3", "g1"]])
    x = SMALL_COUNTS.astype(float)
    x[:, 0] = np.nan
    with caplog.at_level(logging.INFO, logger="celldial"):
        counts = rna(build_rna(x), schema)
    np.testing.assert_array_equal(counts.toarray(), SMALL_COUNTS[:, [3, 1]])
    assert logged(caplog, naming=[2])


def test_missing_features_are_zeros() -> None:
    adata = build_rna()
    schema = Schema.from_anndata(adata)
    with warns(naming=[3, 4, "75.0%"]):
        counts = rna(adata[:, ["g3", "g0", "g1"]], schema)
    np.testing.assert_array_equal(counts.toarray(), SMALL_COUNTS * [1, 1, 0, 1])
    with warns(naming=[2, 4]):
        schema.read_counts(adata[:, ["g3", "g0"]])


def test_too_few_features() -> None:
    adata = build_rna()
    schema = Schema.from_anndata(adata)
    with raises(ValueError, naming=[1, 4, "25.0%", "'g0'", "'g1'", "'g2'"]):
        schema.read_counts(adata[:, ["g2"]])


def test_invalid_value_is_named_after_reordering() -> None:
    schema = Schema.from_anndata(build_rna())
    x = SMALL_COUNTS.astype(float)
    x[2, 1] = 0.5
    with raises(ValueError, naming=["'c2'", "'g1'"]):
        schema.read_counts(build_rna(x)[:, ["g1", "g3", "g0", "g2"]])


@pytest.mark.parametrize(
    ("value", "facts"), [(6.0000005, ["6.0000005", "np.rint"]), (2.5, ["2.5"]), (np.nan, ["nan", "fill_value=0"])]
)
def test_the_advice_fits_the_kind_of_value(value: float, facts: list[str]) -> None:
    adata = AnnData(sparse.csr_matrix(np.array([[1, value], [2, 3]], dtype=np.float32)))
    with raises(ValueError, naming=["adata.X", *facts]):
        VAE(2, 8).fit(adata, progress=False)
    if value == 6.0000005:
        adata.X = np.rint(adata.X)  # as the message says
        assert adata.X[0, 1] == 6

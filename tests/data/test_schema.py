"""The schema: what it notes at fit, and what it lets pass later."""

import json
import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from celldial.data.schema import Schema
from helpers.raises import logged, raises, warns

COUNTS = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 7]])

STORAGES = {
    "dense": np.array,
    "fortran": np.asfortranarray,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


def make_adata(x: Any = COUNTS, dtype: Any = np.float32, **layers: Any) -> AnnData:
    """Make cells c0, c1, ... with genes g0, g1, ... and one covariate of every kind."""
    n_cells, n_genes = x.shape
    obs = pd.DataFrame(
        {
            "batch": [f"b{cell % 2}" for cell in range(n_cells)],
            "donor": pd.Categorical([["x", "y"][cell % 2] for cell in range(n_cells)], categories=["z", "y", "x"]),
            "treated": [cell % 2 == 1 for cell in range(n_cells)],
            "plate": [10 - cell for cell in range(n_cells)],
            "age": [float(cell) for cell in range(n_cells)],
        },
        index=[f"c{cell}" for cell in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(x.astype(dtype), obs, var, layers=layers or None)


def rna(adata: AnnData, schema: Schema | None = None) -> sparse.csr_matrix:
    return (schema or Schema.from_anndata(adata)).read_counts(adata)["rna"]


# --- Counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64, bool, np.uint8])
@pytest.mark.parametrize("storage", STORAGES)
def test_counts_do_not_depend_on_storage(storage: str, dtype: Any) -> None:
    expected = COUNTS.astype(dtype).astype(np.float32)
    counts = rna(make_adata(STORAGES[storage](COUNTS), dtype))
    assert type(counts) is sparse.csr_matrix
    assert counts.dtype == np.float32
    assert counts.has_canonical_format
    assert counts.nnz == np.count_nonzero(expected)
    np.testing.assert_array_equal(counts.toarray(), expected)


@pytest.mark.parametrize("storage", STORAGES)
@given(x=hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 2**24)))
def test_counts_equal_dense(storage: str, x: np.ndarray) -> None:
    np.testing.assert_array_equal(rna(make_adata(STORAGES[storage](x))).toarray(), x)


@pytest.mark.parametrize("storage", STORAGES)
def test_counts_of_a_view(storage: str) -> None:
    adata = make_adata(STORAGES[storage](COUNTS))
    view = adata[[2, 0]]
    np.testing.assert_array_equal(rna(view, Schema.from_anndata(adata)).toarray(), COUNTS[[2, 0]])
    assert view.is_view


def test_counts_of_a_layer() -> None:
    adata = make_adata(COUNTS / 3, counts=sparse.csr_matrix(COUNTS))
    np.testing.assert_array_equal(rna(adata, Schema.from_anndata(adata, layer="counts")).toarray(), COUNTS)


def test_counts_in_disorder_are_put_in_order_on_a_copy() -> None:
    # Row 0 has its columns unsorted, column 2 twice and a stored zero.
    x = sparse.csr_matrix((np.array([1, 1, 1, 0], dtype=np.float32), [2, 0, 2, 3], [0, 4, 4]), shape=(2, 4))
    before = [part.copy() for part in (x.data, x.indices, x.indptr)]
    adata = make_adata(x)
    adata.X = x
    counts = rna(adata)
    np.testing.assert_array_equal(counts.toarray(), [[1, 0, 2, 0], [0, 0, 0, 0]])
    assert counts.has_canonical_format
    assert counts.nnz == 2
    for part, old in zip((adata.X.data, adata.X.indices, adata.X.indptr), before, strict=True):
        np.testing.assert_array_equal(part, old)


def test_counts_of_the_training_data_are_not_copied() -> None:
    adata = make_adata(sparse.csr_matrix(COUNTS))
    assert np.shares_memory(rna(adata).data, adata.X.data)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1)])
def test_one_cell_or_one_gene(shape: tuple[int, int]) -> None:
    np.testing.assert_array_equal(rna(make_adata(np.ones(shape))).toarray(), np.ones(shape))


def test_nothing_is_written() -> None:
    adata = make_adata(sparse.csr_matrix(COUNTS))
    columns, x = adata.obs.copy(), adata.X.copy()
    schema = Schema.from_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    schema.read_counts(adata)
    schema.encode_covariates(adata, {"batch": "b0"})
    pd.testing.assert_frame_equal(adata.obs, columns)
    assert (x != adata.X).nnz == 0
    assert not adata.uns
    assert not adata.obsm


@pytest.mark.parametrize("storage", ["dense", "csr_matrix", "csc_array"])
@pytest.mark.parametrize("value", [-1, np.nan, np.inf, -np.inf, 1e39, 0.5])
def test_what_is_no_count_is_named(storage: str, value: float) -> None:
    x = COUNTS.astype(float)
    x[2, 1], x[2, 3] = value, 0.25
    with raises(ValueError, naming=["adata.X", f"{value:g}", "'c2'", "'g1'"]):
        rna(make_adata(STORAGES[storage](x), np.float64))


def test_negative_integers_are_no_counts() -> None:
    with raises(ValueError, naming=[-3, "'c1'", "'g0'"]):
        rna(make_adata(np.array([[1, 2], [-3, 4]]), np.int64))


def test_error_says_where_the_counts_are() -> None:
    scaled = COUNTS - 0.5
    with raises(ValueError, naming=["adata.X"], omitting=["layer=", "adata.raw"]):
        rna(make_adata(scaled, log=scaled))
    with raises(ValueError, naming=["adata.layers['counts']", 'layer="counts"']):
        rna(make_adata(scaled, log=scaled, counts=COUNTS))
    adata = make_adata(COUNTS, log=scaled)
    with raises(ValueError, naming=["adata.layers['log']", "layer=None"]):
        rna(adata, Schema.from_anndata(adata, layer="log"))
    adata = make_adata(scaled)
    adata.raw = make_adata(sparse.csr_matrix(COUNTS))
    with raises(ValueError, naming=["adata.raw"]):
        rna(adata)


def test_not_an_anndata() -> None:
    schema = Schema.from_anndata(make_adata())
    for read in (Schema.from_anndata, schema.read_counts):
        with raises(TypeError, naming=["AnnData", "numpy.ndarray"]):
            read(COUNTS)


def test_backed(tmp_path: Any) -> None:
    make_adata().write_h5ad(tmp_path / "cells.h5ad")
    adata = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with raises(ValueError, naming=["to_memory"]):
        Schema.from_anndata(adata)
    np.testing.assert_array_equal(rna(adata.to_memory()).toarray(), COUNTS)
    adata.file.close()


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_nothing_there(shape: tuple[int, int]) -> None:
    with raises(ValueError, naming=shape):
        Schema.from_anndata(make_adata(np.zeros(shape)))


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_names_given_twice() -> None:
    schema = Schema.from_anndata(make_adata())
    for axis in ("obs", "var"):
        adata = make_adata()
        names = list(getattr(adata, f"{axis}_names"))
        setattr(adata, f"{axis}_names", [*names[:-1], names[1]])
        for read in (Schema.from_anndata, schema.read_counts):
            with raises(ValueError, naming=[f"{names[1]!r}", f"{axis}_names_make_unique"]):
                read(adata)


def test_no_counts_there() -> None:
    with raises(ValueError, naming=["adata.X", None]):
        Schema.from_anndata(AnnData(obs=make_adata().obs, var=make_adata().var))
    adata = AnnData(obs=make_adata().obs, var=make_adata().var, layers={"raw": COUNTS})
    with raises(ValueError, naming=["'raw'", 'layer="raw"']):
        Schema.from_anndata(adata)
    np.testing.assert_array_equal(rna(adata, Schema.from_anndata(adata, layer="raw")).toarray(), COUNTS)
    with raises(KeyError, naming=["'counts'", "'raw'"]):
        Schema.from_anndata(adata, layer="counts")


@pytest.mark.parametrize("x", [COUNTS.astype(object), COUNTS.astype(np.float16), COUNTS.astype(complex), object()])
def test_counts_of_unknown_kind(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = make_adata()
    monkeypatch.setattr(AnnData, "X", property(lambda self: x))  # stands for dask and other arrays not installed here
    with raises(TypeError, naming=["adata.X"]):
        Schema.from_anndata(adata)


# --- A later AnnData --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_features_are_reordered(storage: str, dtype: Any) -> None:
    adata = make_adata(STORAGES[storage](COUNTS), dtype)
    counts = rna(adata[:, ["g3", "g0", "g2", "g1"]].copy(), Schema.from_anndata(adata))
    np.testing.assert_array_equal(counts.toarray(), COUNTS.astype(dtype))
    assert counts.has_canonical_format
    assert counts.dtype == np.float32


def test_further_features_are_ignored_even_if_no_counts(caplog: pytest.LogCaptureFixture) -> None:
    schema = Schema.from_anndata(make_adata()[:, ["g3", "g1"]])
    x = COUNTS.astype(float)
    x[:, 0] = np.nan
    with caplog.at_level(logging.INFO, logger="celldial"):
        counts = rna(make_adata(x), schema)
    np.testing.assert_array_equal(counts.toarray(), COUNTS[:, [3, 1]])
    assert logged(caplog, naming=[2])


def test_missing_features_are_zeros() -> None:
    adata = make_adata()
    schema = Schema.from_anndata(adata)
    with warns(naming=[3, 4, "75.0%"]):
        counts = rna(adata[:, ["g3", "g0", "g1"]], schema)
    np.testing.assert_array_equal(counts.toarray(), COUNTS * [1, 1, 0, 1])
    with warns(naming=[2, 4]):
        schema.read_counts(adata[:, ["g3", "g0"]])


def test_too_few_features() -> None:
    adata = make_adata()
    schema = Schema.from_anndata(adata)
    with raises(ValueError, naming=[1, 4, "25.0%", "'g0'", "'g1'", "'g2'"]):
        schema.read_counts(adata[:, ["g2"]])


def test_wrong_value_is_named_after_reordering() -> None:
    schema = Schema.from_anndata(make_adata())
    x = COUNTS.astype(float)
    x[2, 1] = 0.5
    with raises(ValueError, naming=["'c2'", "'g1'"]):
        schema.read_counts(make_adata(x)[:, ["g1", "g3", "g0", "g2"]])


# --- Covariates at fit ------------------------------------------------------------------------------------------------


def test_categories() -> None:
    schema = Schema.from_anndata(
        make_adata(), batch_key="donor", categorical_covariate_keys=["batch", "treated", "plate"]
    )
    assert schema.categories == {
        "donor": ("y", "x"),  # in the order of the column, the unused 'z' dropped
        "batch": ("b0", "b1"),
        "treated": ("False", "True"),
        "plate": ("8", "9", "10"),  # sorted as numbers
    }
    assert next(iter(schema.categories)) == "donor"
    category_ck, continuous_ck = schema.encode_covariates(make_adata())
    np.testing.assert_array_equal(category_ck, [[1, 0, 0, 2], [0, 1, 1, 1], [1, 0, 0, 0]])
    assert category_ck.dtype == np.int64
    assert continuous_ck.shape == (3, 0)
    assert continuous_ck.dtype == np.float32


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 1],
        ["1", "2", "1"],
        pd.array([1, 2, 1], dtype="Int64"),
        pd.array(["1", "2", "1"], dtype="string"),
        pd.Categorical([1, 2, 1]),
        np.array(["1", 2, 1], dtype=object),
    ],
)
def test_categories_match_as_text(values: Any) -> None:
    adata = make_adata()
    adata.obs["key"] = values
    schema = Schema.from_anndata(adata, categorical_covariate_keys=["key"])
    assert schema.categories == {"key": ("1", "2")}
    for other in ([2, 1, 2], ["2", "1", "2"], pd.Categorical(["2", "1", "2"])):
        category_ck, _ = schema.encode_covariates(pd.DataFrame({"key": other}))
        np.testing.assert_array_equal(category_ck[:, 0], [1, 0, 1])


def test_a_single_category() -> None:
    adata = make_adata()[[0, 2]]
    schema = Schema.from_anndata(adata, batch_key="batch")
    assert schema.categories == {"batch": ("b0",)}
    np.testing.assert_array_equal(schema.encode_covariates(adata)[0], [[0], [0]])


def test_no_covariates() -> None:
    category_ck, continuous_ck = Schema.from_anndata(make_adata()).encode_covariates(make_adata())
    assert category_ck.shape == continuous_ck.shape == (3, 0)


def test_continuous_covariates_are_standardized() -> None:
    adata = make_adata()
    adata.obs["whole"], adata.obs["constant"], adata.obs["third"] = [1, 2, 6], [4, 4, 4], [0.1, 0.1, 0.1]
    keys = ["age", "whole", "constant", "treated", "third"]
    schema = Schema.from_anndata(adata, continuous_covariate_keys=keys)
    assert schema.continuous["age"] == pytest.approx((1, np.std([0, 1, 2])))
    assert schema.continuous["constant"] == (4.0, 1.0)
    assert schema.continuous["third"][1] == 1.0
    _, continuous_ck = schema.encode_covariates(adata)
    assert continuous_ck.dtype == np.float32
    np.testing.assert_allclose(continuous_ck.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(continuous_ck.std(0), [1, 1, 0, 1, 0], atol=1e-6)


def test_key_not_there() -> None:
    adata = make_adata()
    for keys in (
        {"batch_key": "bacth"},
        {"categorical_covariate_keys": ["bacth"]},
        {"continuous_covariate_keys": ["bacth"]},
    ):
        with raises(KeyError, naming=["'bacth'", "'batch'", "'plate'", "'age'"]):
            Schema.from_anndata(adata, **keys)


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("'batch'", {"batch_key": "batch", "categorical_covariate_keys": ["batch"]}),
        ("'age'", {"batch_key": "age", "continuous_covariate_keys": ["age"]}),
        ("'plate'", {"categorical_covariate_keys": ["plate"], "continuous_covariate_keys": ["plate"]}),
        ("'donor'", {"categorical_covariate_keys": ["donor", "donor"]}),
    ],
)
def test_key_given_twice(key: str, keys: Any) -> None:
    with raises(ValueError, naming=[key]):
        Schema.from_anndata(make_adata(), **keys)


def test_one_string_is_no_list_of_keys() -> None:
    with raises(TypeError, naming=["['donor']"]):
        Schema.from_anndata(make_adata(), categorical_covariate_keys="donor")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("batch", ["b0", None, "b1"]),
        ("batch", ["b0", np.nan, "b1"]),
        ("donor", pd.Categorical(["x", None, "y"])),
        ("plate", pd.array([1, None, 2], dtype="Int64")),
    ],
)
def test_missing_category(key: str, values: Any) -> None:
    adata = make_adata()
    schema = Schema.from_anndata(adata, batch_key=key)
    adata.obs[key] = values
    with raises(ValueError, naming=[f"{key!r}", "'c1'", 1, 3]):
        Schema.from_anndata(adata, batch_key=key)
    with raises(ValueError, naming=[f"{key!r}", "'c1'"]):
        schema.encode_covariates(adata)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_wrong_continuous_value(value: float) -> None:
    adata = make_adata()
    schema = Schema.from_anndata(adata, continuous_covariate_keys=["age"])
    adata.obs["age"] = [1.0, 2.0, value]
    with raises(ValueError, naming=["'age'", "'c2'"]):
        Schema.from_anndata(adata, continuous_covariate_keys=["age"])
    with raises(ValueError, naming=["'age'", "'c2'"]):
        schema.encode_covariates(adata)


@pytest.mark.parametrize("key", ["batch", "donor"])
def test_continuous_must_be_numeric(key: str) -> None:
    with raises(TypeError, naming=[f"{key!r}"]):
        Schema.from_anndata(make_adata(), continuous_covariate_keys=[key])


# --- Covariates later -------------------------------------------------------------------------------------------------


def make_schema() -> Schema:
    return Schema.from_anndata(
        make_adata(), batch_key="batch", categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"]
    )


def test_unseen_category() -> None:
    adata = make_adata()
    adata.obs["batch"] = ["b0", "new", "newer"]
    with raises(ValueError, naming=["'batch'", "'new'", "'newer'", "'c1'", "'b0'", "'b1'"]):
        make_schema().encode_covariates(adata)
    adata = make_adata()
    adata.obs["donor"] = "w"
    with raises(ValueError, naming=["'donor'", "'w'"], omitting=["transform_batch"]):
        make_schema().encode_covariates(adata)


def test_overrides() -> None:
    adata = make_adata()
    expected = make_schema().encode_covariates(adata)
    del adata.obs["batch"], adata.obs["age"]
    category_ck, continuous_ck = make_schema().encode_covariates(adata, {"batch": "b1", "age": 1})
    np.testing.assert_array_equal(category_ck[:, 0], [1, 1, 1])
    np.testing.assert_array_equal(category_ck[:, 1], expected[0][:, 1])
    np.testing.assert_array_equal(continuous_ck, np.zeros((3, 1)))


def test_wrong_overrides() -> None:
    with raises(ValueError, naming=["'b7'", "'b0'", "'b1'"]):
        make_schema().encode_covariates(make_adata(), {"batch": "b7"})
    with raises(KeyError, naming=["'time'", "'batch'", "'donor'", "'age'"]):
        make_schema().encode_covariates(make_adata(), {"time": 1})
    with raises(KeyError, naming=["'time'"]):
        Schema.from_anndata(make_adata()).encode_covariates(make_adata(), {"time": 1})
    with raises(TypeError, naming=["'batch'", "list"]):
        make_schema().encode_covariates(make_adata(), {"batch": ["b0", "b1", "b1"]})
    with raises(TypeError, naming=["'age'"]):
        make_schema().encode_covariates(make_adata(), {"age": "old"})


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pd.Categorical])
def test_covariates_in_a_dict(kind: Any) -> None:
    expected = make_schema().encode_covariates(make_adata())
    obs = make_adata().obs
    given_values = {"batch": kind(list(obs["batch"])), "donor": kind(list(obs["donor"])), "age": [0.0, 1.0, 2.0]}
    for found, wanted in zip(make_schema().encode_covariates(given_values, n_cells=3), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_covariates_in_a_dict_of_single_values() -> None:
    category_ck, continuous_ck = make_schema().encode_covariates(
        {"batch": "b1", "donor": np.array("y"), "age": np.float64(1)}, n_cells=2
    )
    np.testing.assert_array_equal(category_ck, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(continuous_ck, [[0], [0]])


def test_covariates_of_a_series_go_by_position() -> None:
    age = pd.Series([0.0, 2.0], index=[1, 0])
    _, continuous_ck = make_schema().encode_covariates({"batch": "b0", "donor": "x", "age": age}, n_cells=2)
    assert continuous_ck[0, 0] < continuous_ck[1, 0]


def test_wrong_covariates_in_a_dict() -> None:
    values = {"batch": "b0", "donor": "x", "age": 1.0}
    schema = make_schema()
    with raises(ValueError, naming=["n_cells"]):
        schema.encode_covariates(values)
    with raises(ValueError, naming=["'age'", 3, 2]):
        schema.encode_covariates(values | {"age": [1.0, 2.0, 3.0]}, n_cells=2)
    with raises(KeyError, naming=["'time'"]):
        schema.encode_covariates(values | {"time": 1}, n_cells=2)
    with raises(KeyError, naming=["'age'"]):
        schema.encode_covariates({"batch": "b0", "donor": "x"}, n_cells=2)
    with raises(ValueError, naming=["'batch'", "'1'"]):
        schema.encode_covariates(values | {"batch": ["b0", np.nan]}, n_cells=2)


def test_covariates_in_a_data_frame() -> None:
    obs = make_adata().obs
    expected = make_schema().encode_covariates(make_adata())
    for found, wanted in zip(make_schema().encode_covariates(obs, n_cells=3), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with raises(ValueError, naming=[3, 2]):
        make_schema().encode_covariates(obs, n_cells=2)
    with raises(TypeError, naming=["AnnData", "DataFrame", "dict", "list"]):
        make_schema().encode_covariates([1, 2])


# --- Storage ----------------------------------------------------------------------------------------------------------

NAMES = st.lists(st.text()).map(tuple)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    feature_names = draw(st.dictionaries(st.text(), NAMES))
    per_modality = st.fixed_dictionaries(dict.fromkeys(feature_names, st.text()))
    return Schema(
        feature_names=feature_names,
        sources=draw(per_modality),
        likelihood=draw(per_modality),
        binary=draw(st.fixed_dictionaries(dict.fromkeys(feature_names, st.booleans()))),
        presence_keys={key: draw(st.text()) for key in feature_names if draw(st.booleans())},
        layer=draw(st.none() | st.text()),
        batch_key=draw(st.none() | st.text()),
        categories=draw(st.dictionaries(st.text(), NAMES)),
        continuous=draw(st.dictionaries(st.text(), st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2))),
    )


@given(schema=schemas())
def test_json_round_trip(schema: Schema) -> None:
    back = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert back == schema
    assert list(back.categories) == list(schema.categories)


@pytest.mark.parametrize("kind", ["plain", "covariates", "modalities"])
def test_h5ad_round_trip(kind: str, tmp_path: Any) -> None:
    adata = make_adata()
    if kind == "plain":
        schema = Schema.from_anndata(adata)
    elif kind == "modalities":
        # Keys not in alphabetical order, which is the order an h5ad file gives them back in.
        adata.var["feature_types"] = ["Peaks", "Gene Expression", "Gene Expression", "Peaks"]
        adata.obs["has_atac"] = [True, False, True]
        adata.obsm["counts"] = COUNTS
        modalities = {"z": "obsm/counts", "atac": "Peaks", "rna": "Gene Expression"}
        schema = Schema.from_anndata(adata, modalities=modalities)
        assert list(schema.feature_names) == ["rna", "atac", "z"]
        assert schema.presence_keys == {"atac": "has_atac"}
    else:
        adata.layers["counts"] = adata.X
        # Keys not in alphabetical order, which is the order an h5ad file gives them back in.
        schema = Schema.from_anndata(
            adata,
            layer="counts",
            batch_key="treated",
            categorical_covariate_keys=["donor", "batch"],
            continuous_covariate_keys=["plate", "age"],
        )
    adata.uns["celldial"] = schema.to_dict()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = Schema.from_dict(read_h5ad(tmp_path / "cells.h5ad").uns["celldial"])
    assert back == schema
    assert list(back.categories) == list(schema.categories)
    assert list(back.continuous) == list(schema.continuous)
    assert list(back.feature_names) == list(schema.feature_names)
    assert all(type(name) is str for name in back.feature_names["rna"])

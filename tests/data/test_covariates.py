"""Categorical and continuous covariates in training data, in new data, and as given values."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from celldial.data.covariates import mean_and_std
from celldial.data.schema import Schema
from helpers.raises import raises
from helpers.simulate import build_rna

# --- Training data ----------------------------------------------------------------------------------------------------


def test_categories() -> None:
    schema = Schema.from_anndata(
        build_rna(), batch_key="donor", categorical_covariate_keys=["batch", "treated", "plate"]
    )
    assert schema.categories == {
        "donor": ("y", "x"),  # in the order of the column, the unused 'z' dropped
        "batch": ("b0", "b1"),
        "treated": ("False", "True"),
        "plate": ("8", "9", "10"),  # sorted as numbers
    }
    assert next(iter(schema.categories)) == "donor"
    category_ck, continuous_ck = schema.encode_covariates(build_rna())
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
    adata = build_rna()
    adata.obs["key"] = values
    schema = Schema.from_anndata(adata, categorical_covariate_keys=["key"])
    assert schema.categories == {"key": ("1", "2")}
    for other in ([2, 1, 2], ["2", "1", "2"], pd.Categorical(["2", "1", "2"])):
        category_ck, _ = schema.encode_covariates(pd.DataFrame({"key": other}))
        np.testing.assert_array_equal(category_ck[:, 0], [1, 0, 1])


def test_a_single_category() -> None:
    adata = build_rna()[[0, 2]]
    schema = Schema.from_anndata(adata, batch_key="batch")
    assert schema.categories == {"batch": ("b0",)}
    np.testing.assert_array_equal(schema.encode_covariates(adata)[0], [[0], [0]])


def test_no_covariates() -> None:
    category_ck, continuous_ck = Schema.from_anndata(build_rna()).encode_covariates(build_rna())
    assert category_ck.shape == continuous_ck.shape == (3, 0)


def test_continuous_covariates_are_standardized() -> None:
    adata = build_rna()
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


def test_missing_key() -> None:
    adata = build_rna()
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
        Schema.from_anndata(build_rna(), **keys)


def test_a_string_is_not_a_list_of_keys() -> None:
    with raises(TypeError, naming=["['donor']"]):
        Schema.from_anndata(build_rna(), categorical_covariate_keys="donor")


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
    adata = build_rna()
    schema = Schema.from_anndata(adata, batch_key=key)
    adata.obs[key] = values
    with raises(ValueError, naming=[f"{key!r}", "'c1'", 1, 3]):
        Schema.from_anndata(adata, batch_key=key)
    with raises(ValueError, naming=[f"{key!r}", "'c1'"]):
        schema.encode_covariates(adata)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_invalid_continuous_value(value: float) -> None:
    adata = build_rna()
    schema = Schema.from_anndata(adata, continuous_covariate_keys=["age"])
    adata.obs["age"] = [1.0, 2.0, value]
    with raises(ValueError, naming=["'age'", "'c2'"]):
        Schema.from_anndata(adata, continuous_covariate_keys=["age"])
    with raises(ValueError, naming=["'age'", "'c2'"]):
        schema.encode_covariates(adata)


@pytest.mark.parametrize("key", ["batch", "donor"])
def test_continuous_must_be_numeric(key: str) -> None:
    with raises(TypeError, naming=[f"{key!r}"]):
        Schema.from_anndata(build_rna(), continuous_covariate_keys=[key])


# --- New data and given values ----------------------------------------------------------------------------------------


def make_schema() -> Schema:
    return Schema.from_anndata(
        build_rna(), batch_key="batch", categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"]
    )


def test_unknown_category() -> None:
    adata = build_rna()
    adata.obs["batch"] = ["b0", "new", "newer"]
    with raises(ValueError, naming=["'batch'", "'new'", "'newer'", "'c1'", "'b0'", "'b1'"]):
        make_schema().encode_covariates(adata)
    adata = build_rna()
    adata.obs["donor"] = "w"
    with raises(ValueError, naming=["'donor'", "'w'"], omitting=["transform_batch"]):
        make_schema().encode_covariates(adata)


def test_overrides() -> None:
    adata = build_rna()
    expected = make_schema().encode_covariates(adata)
    del adata.obs["batch"], adata.obs["age"]
    category_ck, continuous_ck = make_schema().encode_covariates(adata, {"batch": "b1", "age": 1})
    np.testing.assert_array_equal(category_ck[:, 0], [1, 1, 1])
    np.testing.assert_array_equal(category_ck[:, 1], expected[0][:, 1])
    np.testing.assert_array_equal(continuous_ck, np.zeros((3, 1)))


def test_invalid_overrides() -> None:
    with raises(ValueError, naming=["'b7'", "'b0'", "'b1'"]):
        make_schema().encode_covariates(build_rna(), {"batch": "b7"})
    with raises(KeyError, naming=["'time'", "'batch'", "'donor'", "'age'"]):
        make_schema().encode_covariates(build_rna(), {"time": 1})
    with raises(KeyError, naming=["'time'"]):
        Schema.from_anndata(build_rna()).encode_covariates(build_rna(), {"time": 1})
    with raises(TypeError, naming=["'batch'", "list"]):
        make_schema().encode_covariates(build_rna(), {"batch": ["b0", "b1", "b1"]})
    with raises(TypeError, naming=["'age'"]):
        make_schema().encode_covariates(build_rna(), {"age": "old"})


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pd.Categorical])
def test_covariates_in_a_dict(kind: Any) -> None:
    expected = make_schema().encode_covariates(build_rna())
    obs = build_rna().obs
    given_values = {"batch": kind(list(obs["batch"])), "donor": kind(list(obs["donor"])), "age": [0.0, 1.0, 2.0]}
    for found, wanted in zip(make_schema().encode_covariates(given_values, n_cells=3), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_covariates_in_a_dict_of_single_values() -> None:
    category_ck, continuous_ck = make_schema().encode_covariates(
        {"batch": "b1", "donor": np.array("y"), "age": np.float64(1)}, n_cells=2
    )
    np.testing.assert_array_equal(category_ck, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(continuous_ck, [[0], [0]])


def test_values_of_a_series_are_matched_by_position() -> None:
    age = pd.Series([0.0, 2.0], index=[1, 0])
    _, continuous_ck = make_schema().encode_covariates({"batch": "b0", "donor": "x", "age": age}, n_cells=2)
    assert continuous_ck[0, 0] < continuous_ck[1, 0]


def test_invalid_covariates_in_a_dict() -> None:
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
    obs = build_rna().obs
    expected = make_schema().encode_covariates(build_rna())
    for found, wanted in zip(make_schema().encode_covariates(obs, n_cells=3), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with raises(ValueError, naming=[3, 2]):
        make_schema().encode_covariates(obs, n_cells=2)
    with raises(TypeError, naming=["AnnData", "DataFrame", "dict", "list"]):
        make_schema().encode_covariates([1, 2])


def test_a_number_whose_square_is_infinite_is_named() -> None:
    with raises(ValueError, naming=["'dose'", "'c1'", "1e+300"]):
        mean_and_std(pd.Series([0.0, 1e300], index=["c0", "c1"]), "dose")

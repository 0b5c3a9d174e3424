"""Names in messages: lists, similar names, and columns that may be missing."""

import pandas as pd
import pytest

from celldial.utils.messages import did_you_mean, feature_noun, format_names, get_column
from helpers.raises import raises


@pytest.mark.parametrize(
    ("names", "text"),
    [([], "none"), (["a"], "'a'"), ([1, 2], "'1', '2'"), (list("abcd"), "'a', 'b', 'c', ... (4 in all)")],
)
def test_names_are_quoted_and_limited(names: list[object], text: str) -> None:
    assert format_names(names, limit=3) == text


@pytest.mark.parametrize(("name", "proposed"), [("cd4", "'CD4'"), ("CD44", "'CD4'"), ("chr1-300", "'chr1:300'")])
def test_a_similar_name_is_proposed(name: str, proposed: str) -> None:
    assert proposed in did_you_mean(name, ["CD4", "chr1:300"])


def test_nothing_is_proposed_without_a_similar_name() -> None:
    assert did_you_mean("GAPDH", ["CD4"]) == ""


def test_a_column_or_an_error_that_names_it() -> None:
    table = pd.DataFrame({"donor": [1], "batch": [2]})
    assert get_column(table, "donor").equals(table["donor"])
    with raises(KeyError, naming=["covariate", "'doner'", "'donor'", "'batch'"]):
        get_column(table, "doner")


def test_features_of_unknown_modalities_have_a_general_noun() -> None:
    assert [feature_noun(modality) for modality in ("rna", "atac", "protein", "spatial")] == [
        "gene",
        "peak",
        "protein",
        "feature",
    ]


def test_a_column_is_one_name_of_one_column() -> None:
    table = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "b"])
    with raises(TypeError, naming=["batch_key", "['a']"]):
        get_column(table, ["a"], "batch_key")  # type: ignore[arg-type]
    with raises(ValueError, naming=["'b'", 2]):
        get_column(table, "b")

"""Targets of named axes: columns of `obs`, groups, and lists of features."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from celldial.tl import axis_targets
from helpers.raises import raises, warns


def column(values: Any, **options: Any) -> pd.Series:
    series = pd.Series(values, **options)
    return series.set_axis([f"c{cell}" for cell in range(len(series))])


@pytest.mark.parametrize(
    ("values", "groups", "expected", "description"),
    [
        (list("baab"), None, [1, 0, 0, 1], "key: a → b"),
        (["b", "a", None, "a", "b"], None, [1, 0, np.nan, 0, 1], "key: a → b"),
        (pd.Categorical(list("baab"), ["b", "unused", "a"]), None, [0, 1, 1, 0], "key: b → a"),
        (list("abcabc"), ("c", "a"), [1, np.nan, 0] * 2, "key: c → a"),
        (pd.Categorical(list("xyzxyz"), list("zyx"), ordered=True), None, [1, 0.5, 0] * 2, "key: z → x"),
        (pd.Categorical(list("xyzxyz"), list("zyx"), ordered=True), ("x", "y"), [0, 1, np.nan] * 2, "key: x → y"),
        ([True, False, False, True], None, [1, 0, 0, 1], "key: False → True"),
        (pd.array([True, None, False, False, True], "boolean"), None, [1, np.nan, 0, 0, 1], "key: False → True"),
        ([3, 3, 7, 7, 5], (7, 3), [1, 1, 0, 0, np.nan], "key: 7 → 3"),
        (np.arange(101.0), None, (np.arange(101) - 5) / 90, "key: 5 → 95"),
        ([0.0, np.nan, *[0.0] * 98, 2.0], None, [0, np.nan, *[0] * 98, 1], "key: 0 → 2"),
        (pd.array([1, None, 3], "Int64"), None, [-0.1 / 1.8, np.nan, 1.9 / 1.8], "key: 1.1 → 2.9"),
    ],
)
def test_columns_as_targets(values: Any, groups: Any, expected: Any, description: str) -> None:
    target = axis_targets.obs_target(column(values), "key", groups)
    np.testing.assert_allclose(target.value_c, expected, atol=1e-12)
    assert target.description == description


@pytest.mark.parametrize(
    ("values", "groups", "error", "facts"),
    [
        (
            list("abc"),
            None,
            ValueError,
            ["'key'", 3, "'a', 'b', 'c'"],
        ),
        (
            list("aaa"),
            None,
            ValueError,
            ["'key'", 1, "'a'"],
        ),
        (list("aabb"), ("a", "c"), KeyError, ["'c'", "'key'", "'a', 'b'"]),
        (list("aab"), None, ValueError, ["'b'", "'key'"]),
        (list("aab"), ("a", "a"), ValueError, ["groups", "'a'"]),
        (list("aab"), "ab", TypeError, ["groups", "'ab'"]),
        (list("aab"), ("a", "b", "c"), TypeError, ["groups", "('a', 'b', 'c')"]),
        ([1.0, 1.0], None, ValueError, ["'key'"]),
        ([np.nan, np.nan], None, ValueError, ["'key'"]),
        ([1.0, np.inf], None, ValueError, ["'key'", "'c1'"]),
    ],
)
def test_columns_that_cannot_be_targets(values: Any, groups: Any, error: type[Exception], facts: list[Any]) -> None:
    with raises(error, naming=facts):
        axis_targets.obs_target(column(values), "key", groups)


def test_groups_are_searched_in_all_text_columns() -> None:
    obs = pd.DataFrame({"a": list("xyz"), "b": pd.Categorical(list("xxw")), "c": [1, 2, 3], "d": list("wzz")})
    assert axis_targets.find_groups(obs, ("x", "y")) == "a"
    assert axis_targets.find_groups(obs, ("w", "x")) == "b"
    with raises(KeyError, naming=["'y'", "'w'", "'a'", "'b'"]):
        axis_targets.find_groups(obs, ("y", "w"))
    assert axis_targets.find_groups(obs, (1, 2)) == "c"
    with raises(KeyError, naming=["'5'", "'6'", "'a'"]):
        axis_targets.find_groups(obs, (5, 6))
    with raises(ValueError, naming=["'x'", "'z'", "'a'", "'e'"]):
        axis_targets.find_groups(obs.assign(e=list("xzx")), ("x", "z"))
    # As joined from a MuData: no question, for they are the same.
    assert (
        axis_targets.find_groups(pd.DataFrame({"rna:a": pd.Categorical(list("xyz")), "a": list("xyz")}), ("x", "y"))
        == "a"
    )


def test_genes_are_matched_by_name_then_ignoring_case() -> None:
    names = ["Isg15", "ISG15", "Mx1", "Cd3d"]
    found = axis_targets.resolve_feature_lists({"up": ["ISG15", "MX1"], "down": ("cd3d",)}, names, "genes")
    assert {side: list(positions) for side, positions in found.items()} == {"up": [1, 2], "down": [3]}
    assert list(axis_targets.resolve_feature_lists({"up": ["isg15"], "down": []}, names, "genes")["up"]) == [0]
    with warns(naming=[3, 7, "['up']", "'A'"]):
        axis_targets.resolve_feature_lists({"up": ["Isg15", "mx1", "Cd3d", *"ABCD"]}, names, "genes")


@pytest.mark.parametrize(
    ("genes", "error", "facts"),
    [
        (
            {"up": ["g1", "A", "B"]},
            ValueError,
            [1, 3, "['up']", "'A'"],
        ),
        ({"down": ["A"]}, ValueError, [0, 1, "['down']", "'A'"]),
        ({"up": ["g1"], "down": ["G1"]}, ValueError, ["'g1'", "['up']", "['down']"]),
        ({"up": [], "down": []}, ValueError, ["features"]),
        ({"up": "g1"}, TypeError, ["['up']", "'g1'"]),
        ({"upwards": ["g1"]}, TypeError, ["'upwards'", "dict"]),
        (["g1"], TypeError, ["['g1']", "dict"]),
        ({}, TypeError, ["{}", "dict"]),
    ],
)
def test_invalid_lists_of_genes(genes: Any, error: type[Exception], facts: list[Any]) -> None:
    with raises(error, naming=facts):
        axis_targets.resolve_feature_lists(genes, ["g0", "g1", "g2"], "genes")


def test_expression_is_normalized_standardized_and_scaled() -> None:
    random = np.random.default_rng(0)
    counts_cf = random.poisson(3, (50, 4)) * np.array([1, 5, 1, 0])
    total_c = counts_cf.sum(1) + 20.0
    total_c[7] = 0  # the modality is missing
    positions = {"up": np.array([0, 3]), "down": np.array([1])}
    target = axis_targets.expression_target(sparse.csr_matrix(counts_cf), total_c, positions, ["a", "b", "c", "d"])
    assert target.description == "a, d up and b down"
    assert np.isnan(target.value_c[7])
    kept = np.delete(np.arange(50), 7)
    level_cf = np.log1p(1e4 * counts_cf[kept] / total_c[kept, None])
    standard_cf = (level_cf - level_cf.mean(0)) / np.where(level_cf.std(0) > 0, level_cf.std(0), 1)
    score_c = standard_cf[:, [0, 3]].mean(1) - standard_cf[:, 1]
    low, high = np.quantile(score_c, [0.05, 0.95])
    np.testing.assert_allclose(target.value_c[kept], (score_c - low) / (high - low))
    with raises(ValueError, naming=["d up"]):
        axis_targets.expression_target(
            sparse.csr_matrix(counts_cf), total_c, {"up": np.array([3])}, ["a", "b", "c", "d"]
        )

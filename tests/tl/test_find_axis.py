"""Which coordinates matter, and named directions: against closed forms, and as the users of `VAE` meet them."""

import re
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.distributions import Normal, kl_divergence

from celldial import VAE
from celldial.tl import axis_targets, rank_axes
from celldial.tl.find_axis import Axis, fit_axis
from celldial.tl.rank_axes import coordinate_table, total_effects
from helpers.raises import raises, warns
from helpers.simulate import COVARIATES, simulate, simulate_two

# --- Which coordinates matter: numbers --------------------------------------------------------------------------------


def test_kl_divergence_is_that_of_torch() -> None:
    random = np.random.default_rng(0)
    mean_cz, deviation_cz = random.normal(size=(7, 3)), random.uniform(0.1, 2, (7, 3))
    prior = Normal(torch.zeros(3), torch.ones(3))
    expected_cz = kl_divergence(Normal(torch.from_numpy(mean_cz), torch.from_numpy(deviation_cz)), prior)
    np.testing.assert_allclose(rank_axes.kl_divergence(mean_cz, deviation_cz), expected_cz.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(rank_axes.kl_divergence(np.zeros((2, 3)), np.ones((2, 3))), 0)


def log_linear(weight_zf: np.ndarray) -> Any:
    return lambda z_cz, part: np.exp(z_cz @ weight_zf)


@given(weights=st.lists(st.integers(-3, 3), min_size=4, max_size=4))
def test_variance_of_two_cells_in_closed_form(weights: list[int]) -> None:
    """With two cells the other one is the only one: half the squared step, features weighted by what is expected."""
    weight_zf = np.array(weights, dtype=float).reshape(2, 2) / 3
    z_cz = np.array([[0.0, 1.0], [2.0, -1.0]])
    expected_f = np.exp(z_cz @ weight_zf).sum(0)
    variance_z = ((2 * weight_zf) ** 2 / 2) @ (expected_f / expected_f.sum())
    found_z = total_effects(z_cz, [[0], [1]], log_linear(weight_zf), 2, np.random.default_rng(0))
    np.testing.assert_allclose(found_z, variance_z, atol=1e-9)


def test_variance_of_independent_coordinates_is_theirs() -> None:
    random = np.random.default_rng(0)
    z_cz = random.normal(0, [1.0, 2.0, 1.0, 1.0], (20_000, 4))
    weight_zf = np.array([[1.0, 1.0], [0.25, -0.25], [0.0, 0.0], [0.0, 0.5]])
    decode = log_linear(weight_zf)
    expected_f = decode(z_cz, slice(None)).sum(0)
    variance_z = (weight_zf**2 * np.array([[1], [4], [1], [1]])) @ (expected_f / expected_f.sum())
    found_z = total_effects(z_cz, [[0], [1], [2], [3]], decode, 1000, random)
    np.testing.assert_allclose(found_z, variance_z, rtol=0.05)
    # Two columns that are one coordinate are replaced together.
    (together,) = total_effects(z_cz, [[0, 1]], decode, 1000, random)
    np.testing.assert_allclose(together, variance_z[0] + variance_z[1], rtol=0.05)


def test_variance_is_streamed() -> None:
    """Whatever the size of the blocks, the result is the same, and no more than a block is decoded at once."""
    random = np.random.default_rng(0)
    z_cz, weight_zf, offset_c = random.normal(size=(11, 2)), random.normal(size=(2, 5)), random.normal(size=11)
    sizes = []

    def decode(z_cz: np.ndarray, part: slice) -> np.ndarray:
        sizes.append(len(z_cz))
        return np.exp(z_cz @ weight_zf + offset_c[part, None])

    whole_z = total_effects(z_cz, [[0], [1]], decode, 100, np.random.default_rng(1))
    sizes.clear()
    parts_z = total_effects(z_cz, [[0], [1]], decode, 4, np.random.default_rng(1))
    np.testing.assert_allclose(parts_z, whole_z)
    assert set(sizes) == {4, 3}


def test_what_a_softmax_rounds_to_nothing_has_a_logarithm() -> None:
    z_cz = np.array([[0.0], [1.0]], dtype=np.float32)
    (variance,) = total_effects(z_cz, [[0]], lambda z, part: np.hstack([1 + z, 0 * z]), 2, np.random.default_rng(0))
    np.testing.assert_allclose(variance, np.log(2) ** 2 / 2, rtol=1e-5)


def test_the_table_ranks_by_the_share_that_modalities_have_on_average() -> None:
    variance = {"rna": np.array([6.0, 3.0, 1.0, 0.0, 0.0]), "atac": np.array([0.0, 0.01, 0.03, 0.0, 0.0])}
    table = coordinate_table(list("abcde"), np.array([1.0, 1.0, 0.05, 2.0, 3.0]), variance)
    assert list(table.index) == list("abcde")
    np.testing.assert_allclose(table["share_atac"], [0, 0.25, 0.75, 0, 0])
    np.testing.assert_allclose(table["share"], [0.3, 0.275, 0.425, 0, 0])
    np.testing.assert_allclose(table["variance"], [3, 1.505, 0.515, 0, 0])
    assert list(table["rank"]) == [1, 2, 0, 4, 3]
    assert list(table["used"]) == [
        True,
        True,
        False,
        False,
        False,
    ]  # c tells nothing, the decoder does not hear d and e
    assert not coordinate_table(["a"], np.ones(1), {"rna": np.zeros(1)})["share"].isna().any()


# --- Named directions: numbers ----------------------------------------------------------------------------------------


def find(z_cz: np.ndarray, target_c: np.ndarray, batch_c: np.ndarray | None = None, n: int = 99, seed: int = 0) -> Axis:
    return fit_axis("name", "A → B", z_cz, target_c, batch_c, n, np.random.default_rng(seed))


def states(n_cells: int = 200, n_latent: int = 3, seed: int = 0) -> np.ndarray:
    mixing_zz = np.random.default_rng(seed).normal(size=(n_latent, n_latent))
    return (np.random.default_rng([seed, 1]).normal(size=(n_cells, n_latent)) @ mixing_zz).astype(np.float32)


@given(seed=st.integers(0, 1000), n_first=st.integers(5, 35))
def test_of_two_groups_the_axis_goes_from_mean_to_mean(seed: int, n_first: int) -> None:
    z_cz, group_c = states(40, seed=seed), np.repeat([0.0, 1.0], [n_first, 40 - n_first])
    axis = find(z_cz, group_c, n=1)
    first_z, second_z = z_cz[group_c == 0].mean(0), z_cz[group_c == 1].mean(0)
    np.testing.assert_allclose(axis.origin_z, first_z, atol=1e-4)
    np.testing.assert_allclose(axis.direction_z, second_z - first_z, atol=1e-4)
    np.testing.assert_allclose(axis.filter_z @ axis.direction_z, 1, atol=1e-3)
    score_c = axis.score(z_cz)
    assert score_c.dtype == np.float32
    np.testing.assert_allclose([score_c[group_c == group].mean() for group in (0, 1)], [0, 1], atol=1e-3)
    np.testing.assert_allclose(
        axis.quantiles, np.quantile(score_c, [0.01, 0.05, 0.5, 0.95, 0.99]), rtol=1e-3, atol=1e-3
    )


def test_a_linear_target_is_found_with_its_strength() -> None:
    z_cz = states(5000)
    slope_z = np.array([1.0, -2.0, 0.5])
    told_c = z_cz @ slope_z
    axis = find(z_cz, told_c + np.random.default_rng(2).normal(0, told_c.std(), 5000))
    assert axis.strength == pytest.approx(0.5, abs=0.03)
    assert axis.p_value == 0.01
    assert np.corrcoef(axis.score(z_cz), told_c)[0, 1] > 0.999
    exact = find(z_cz, told_c)
    assert exact.strength == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(exact.score(z_cz), told_c, atol=0.1 * told_c.std())


def test_the_direction_is_the_way_of_the_cells_and_the_filter_is_not() -> None:
    """The example of Haufe et al.: a coordinate that holds only noise helps to subtract it, but no cell moves along."""
    random = np.random.default_rng(0)
    group_c, noise_c = np.repeat([0.0, 1.0], 2000), random.normal(0, 2, 4000)
    axis = find(np.stack([group_c + noise_c, noise_c + random.normal(0, 0.1, 4000)], axis=1), group_c)
    np.testing.assert_allclose(axis.direction_z, [1, 0], atol=0.2)
    np.testing.assert_allclose(axis.filter_z, [1, -1], atol=0.15)
    assert axis.strength > 0.9


def test_of_a_random_target_strength_is_nothing_and_the_p_value_anything() -> None:
    random = np.random.default_rng(0)
    z_cz, batch_c = states(60), np.arange(60) % 3
    found = [find(z_cz, random.normal(size=60) + 5 * batch_c, batch_c, seed=seed) for seed in range(200)]
    strength, p_value = (np.array([getattr(axis, name) for axis in found]) for name in ("strength", "p_value"))
    assert strength.mean() < 0.03
    assert np.median(strength) < 0.01
    for level in (0.05, 0.2, 0.5):
        assert abs((p_value <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / 200)
    assert p_value.min() >= 0.01


def test_differences_between_batches_are_no_axis() -> None:
    """States and target both differ between batches, and within none have they to do with each other."""
    random = np.random.default_rng(0)
    batch_c = random.integers(0, 3, 900)
    z_cz = states(900) + 4 * batch_c[:, None]
    target_c = batch_c + random.normal(size=900)
    assert find(z_cz, target_c).strength > 0.3
    axis = find(z_cz, target_c, batch_c)
    assert axis.strength < 0.01
    assert axis.p_value > 0.05


@given(seed=st.integers(0, 1000), shift=st.integers(-20, 20))
def test_shifts_of_batches_and_the_order_of_cells_make_no_difference(seed: int, shift: int) -> None:
    random = np.random.default_rng(seed)
    z_cz, batch_c = states(50, seed=seed), random.integers(0, 2, 50)
    target_c = z_cz[:, 0] + random.normal(size=50)
    axis = find(z_cz, target_c, batch_c, n=1)
    for same in (
        find(z_cz + shift * batch_c[:, None], target_c - shift * batch_c, batch_c, n=1),
        find(z_cz[::-1], target_c[::-1], batch_c[::-1], n=1),
    ):
        np.testing.assert_allclose(same.direction_z, axis.direction_z, atol=1e-4)
        np.testing.assert_allclose(same.filter_z, axis.filter_z, atol=1e-3)
        assert same.strength == pytest.approx(axis.strength, abs=1e-6)


def test_cells_without_a_target_take_no_part_but_have_a_place_among_the_scores() -> None:
    z_cz, target_c = states(100), np.random.default_rng(1).normal(size=100)
    without_c = np.where(np.arange(100) < 30, np.nan, target_c)
    axis, of_rest = find(z_cz, without_c), find(z_cz[30:], target_c[30:])
    for name in ("origin_z", "direction_z", "filter_z", "strength", "p_value"):
        np.testing.assert_array_equal(getattr(axis, name), getattr(of_rest, name))
    np.testing.assert_allclose(axis.quantiles[2], np.median(axis.score(z_cz)), rtol=1e-3)


def test_collapsed_coordinates_neither_fail_nor_count() -> None:
    z_cz, group_c = states(100), np.repeat([0.0, 1.0], 50)
    z_cz[:, 1] = 1e-5 * (group_c + np.random.default_rng(0).normal(0, 0.1, 100))  # tells, but is as good as nothing
    assert abs(find(z_cz, group_c).filter_z[1]) < 1
    flat = find(np.zeros((100, 2), dtype=np.float32), group_c)
    np.testing.assert_array_equal(flat.score(z_cz), 0)
    assert (flat.strength, flat.p_value) == (0, 1)


def test_a_column_beyond_the_latent_coordinates_is_not_looked_at() -> None:
    z_cz = states(50)
    axis = find(z_cz, z_cz[:, 0])
    np.testing.assert_array_equal(axis.score(np.hstack([z_cz, z_cz])), axis.score(z_cz))


def test_targets_that_give_no_axis() -> None:
    group_c = np.repeat([0.0, 1.0], 10)
    with raises(ValueError, naming=["batch"], omitting=["latent"]):
        find(states(20), group_c, group_c.astype(int))
    with raises(ValueError, naming=[4, 1, 3]):
        find(states(4), np.arange(4.0))
    with raises(ValueError, omitting=["batch"]):
        find(states(20), np.full(20, 0.1))


# --- Targets ----------------------------------------------------------------------------------------------------------


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
def test_columns_that_are_no_targets(values: Any, groups: Any, error: type[Exception], facts: list[Any]) -> None:
    with raises(error, naming=facts):
        axis_targets.obs_target(column(values), "key", groups)


def test_groups_are_looked_for_in_all_columns_of_text() -> None:
    obs = pd.DataFrame({"a": list("xyz"), "b": pd.Categorical(list("xxw")), "c": [1, 2, 3], "d": list("wzz")})
    assert axis_targets.find_groups(obs, ("x", "y")) == "a"
    assert axis_targets.find_groups(obs, ("w", "x")) == "b"
    with raises(KeyError, naming=["'y'", "'w'", "'a'", "'b'"]):
        axis_targets.find_groups(obs, ("y", "w"))
    with raises(KeyError, naming=["'1'", "'2'", "'a'"]):
        axis_targets.find_groups(obs, (1, 2))
    with raises(ValueError, naming=["'x'", "'z'", "'a'", "'e'"]):
        axis_targets.find_groups(obs.assign(e=list("xzx")), ("x", "z"))
    # As joined from a MuData: no question, for they are the same.
    assert (
        axis_targets.find_groups(pd.DataFrame({"rna:a": pd.Categorical(list("xyz")), "a": list("xyz")}), ("x", "y"))
        == "a"
    )


def test_genes_are_found_by_name_and_else_without_regard_to_case() -> None:
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
def test_lists_of_genes_that_make_no_sense(genes: Any, error: type[Exception], facts: list[Any]) -> None:
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


# --- As users meet it -------------------------------------------------------------------------------------------------


def fit(adata: AnnData, model: VAE, **options: Any) -> VAE:
    return model.fit(adata, **{"max_epochs": 15, "progress": False, **options})


@pytest.fixture(scope="module")
def fitted() -> tuple[VAE, AnnData]:
    """Cells of two types and two batches, and a model that is told the batch."""
    adata = simulate(300, 40)
    return fit(adata, VAE(3, 16, **COVARIATES)), adata


@pytest.fixture
def model(fitted: tuple[VAE, AnnData]) -> VAE:
    return fitted[0]


@pytest.fixture
def adata(fitted: tuple[VAE, AnnData]) -> AnnData:
    return fitted[1].copy()


def snapshot(adata: AnnData) -> dict[str, Any]:
    return {
        "obs": adata.obs.copy(),
        "obsm": sorted(adata.obsm),
        "uns": sorted(adata.uns),
        "celldial": sorted(adata.uns.get("celldial", {})),
        "axes": sorted(adata.uns.get("celldial", {}).get("axes", {})),
    }


def assert_untouched(adata: AnnData, before: dict[str, Any]) -> None:
    after = snapshot(adata)
    pd.testing.assert_frame_equal(after.pop("obs"), before.pop("obs"))
    assert after == before


def test_a_named_axis_is_written_with_its_scores_and_nothing_else(model: VAE, adata: AnnData, tmp_path: Any) -> None:
    before = snapshot(adata)
    axis = model.find_axis(adata, "identity", obs="type")
    assert axis.description == "type: A → B"
    assert axis.strength > 0.5
    assert axis.p_value == 0.001
    score = adata.obs["identity"]
    assert score.dtype == np.float32
    np.testing.assert_array_equal(score, axis.score(model.transform(adata)))
    by_type = score.groupby(adata.obs["type"].to_numpy()).mean()
    np.testing.assert_allclose(by_type, [0, 1], atol=0.05)  # within batches exactly
    assert sorted({*adata.obs} - {*before["obs"]}) == ["identity"]
    assert sorted({*adata.uns["celldial"]} - {*before["celldial"]}) == ["axes"]
    # As other parts of the package, and later programs, read it.
    adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = read_h5ad(tmp_path / "cells.h5ad").uns["celldial"]["axes"]["identity"]
    assert stored["kind"] == "direction"
    assert set(stored) == {"kind", "description", "origin", "direction", "filter", "strength", "p_value"} | {
        "n_permutations",
        "quantiles",
    }
    read = Axis.from_dict("identity", stored)
    for key, value in vars(axis).items():
        np.testing.assert_array_equal(getattr(read, key), value)
        assert type(getattr(read, key)) is type(value)


def test_axes_stand_side_by_side_and_can_be_found_again(model: VAE, adata: AnnData) -> None:
    model.find_axis(adata, "identity", obs="type")
    first = adata.obs["identity"].copy()
    model.find_axis(adata, "age axis", obs="age")
    axis = model.find_axis(adata, "identity", obs="type", groups=("B", "A"))
    assert sorted(adata.uns["celldial"]["axes"]) == ["age axis", "identity"]
    np.testing.assert_allclose(adata.obs["identity"], 1 - first, atol=1e-4)
    again = model.find_axis(adata, "identity", groups=("B", "A"))
    for key, value in vars(axis).items():
        np.testing.assert_array_equal(getattr(again, key), value)
    adata.uns["celldial"]["axes"]["identity"]["direction"][:] = 0  # what is stored is apart from what was returned
    assert again.direction_z.any()


def test_the_batch_of_the_model_is_no_axis(model: VAE, adata: AnnData) -> None:
    before = snapshot(adata)
    with raises(ValueError, naming=["batch: b0 → b1"]):
        model.find_axis(adata, "batch axis", obs="batch")
    assert_untouched(adata, before)


def test_genes_make_an_axis_along_which_they_change(model: VAE, adata: AnnData) -> None:
    share_cf = adata.X.toarray() / adata.X.toarray().sum(1, keepdims=True)
    is_b = (adata.obs["type"] == "B").to_numpy()
    order = np.argsort(np.log((share_cf[is_b].mean(0) + 1e-3) / (share_cf[~is_b].mean(0) + 1e-3)))
    up, down = (list(adata.var_names[part]) for part in (order[-4:], order[:4]))
    axis = model.find_axis(adata, "programme", features={"up": [name.upper() for name in up], "down": down})
    assert axis.description == "4 features up and 4 features down"
    assert axis.strength > 0.5
    assert adata.obs["programme"].groupby(adata.obs["type"].to_numpy()).mean().diff().iloc[-1] > 0.3
    path = np.stack([axis.origin_z, axis.origin_z + axis.direction_z])
    covariates = {"batch": "b0", "donor": "x", "age": 40.0}
    change = pd.Series(np.log(np.divide(*model.decode(path, covariates)[::-1])), adata.var_names)
    assert change[up].min() > change.median() > change[down].max()


def test_cells_without_counts_or_target_take_no_part(model: VAE, adata: AnnData) -> None:
    x = adata.X.toarray()
    x[:20] = 0
    emptied = AnnData(sparse.csr_matrix(x), adata.obs.copy(), adata.var.copy())
    emptied.obs["type"] = emptied.obs["type"].astype(object).where(np.arange(300) >= 50)
    with warns(naming=[20, 300, "'c0'"]):
        axis = model.find_axis(emptied, "identity", obs="type")
    of_rest = model.find_axis(adata[50:].copy(), "identity", obs="type")
    for key in ("origin_z", "direction_z", "filter_z"):
        np.testing.assert_allclose(getattr(axis, key), getattr(of_rest, key), atol=1e-4)
    assert not emptied.obs["identity"].isna().any()
    np.testing.assert_allclose(emptied.obs["identity"].iloc[:20], axis.score(np.zeros((1, 3)))[0])
    with warns(naming=[20, 300]):
        np.testing.assert_allclose(axis.quantiles[2], np.median(axis.score(model.transform(emptied)[20:])), atol=1e-5)


def test_a_loaded_model_finds_axes_in_cells_it_never_saw(model: VAE, adata: AnnData, tmp_path: Any) -> None:
    model.save(tmp_path / "a.celldial")
    new = simulate(300, 40)[:200].copy()
    axis = VAE.load(tmp_path / "a.celldial").find_axis(new, "identity", obs="type")
    assert list(new.uns["celldial"]) == ["axes", "written"]
    np.testing.assert_array_equal(axis.filter_z, model.find_axis(adata[:200].copy(), "identity", obs="type").filter_z)


@pytest.mark.parametrize(
    ("name", "options", "error", "facts"),
    [
        ("age", {"obs": "type"}, ValueError, ["adata.obs", "'age'"]),
        ("axis_3", {"obs": "type"}, ValueError, ["name", "'axis_3'"]),
        ("a/b", {"obs": "type"}, ValueError, ["name", "'a/b'"]),
        ("", {"obs": "type"}, ValueError, ["name", "''"]),
        (3, {"obs": "type"}, ValueError, ["name", 3]),
        ("new", {}, ValueError, ["obs", "groups", "features"]),
        ("new", {"obs": "type", "features": {"up": ["g0"]}}, ValueError, ["obs", "groups", "features"]),
        ("new", {"obs": "type", "modality": "rna"}, ValueError, ["modality", "features"]),
        ("new", {"obs": "typ"}, KeyError, ["'typ'", "'type'"]),
        ("new", {"obs": "donor"}, ValueError, ["'donor'", 3, "'x', 'y', 'z'"]),
        ("new", {"groups": ("A", "x")}, KeyError, ["adata.obs", "'A'", "'x'"]),
        ("new", {"features": {"up": ["g0", "no", "nor"]}}, ValueError, [1, 3, "['up']"]),
        ("new", {"features": {"up": ["g0"]}, "modality": "atac"}, KeyError, ["'atac'"]),
        ("new", {"obs": "type", "n_permutations": 0}, ValueError, ["n_permutations", 0]),
    ],
)
def test_wishes_that_make_no_axis(
    model: VAE, adata: AnnData, name: Any, options: Any, error: type[Exception], facts: list[Any]
) -> None:
    before = snapshot(adata)
    with raises(error, naming=facts):
        model.find_axis(adata, name, **options)
    assert_untouched(adata, before)


def test_the_name_of_the_periodic_axis_is_taken(model: VAE, adata: AnnData) -> None:
    rhythmic = copy(model)
    rhythmic.periodic_ = {"name": "rhythm"}
    with raises(ValueError, naming=["name", "'rhythm'"]):
        rhythmic.find_axis(adata, "rhythm", obs="type")


def test_an_axis_is_shown_in_short(model: VAE, adata: AnnData) -> None:
    shown = repr(model.find_axis(adata, "identity", obs="type"))
    start = r"Axis\(name='identity', description='type: A → B', strength=0\.\d+, p_value=0\.001, n_permutations=999"
    assert re.fullmatch(start + r"\)", shown)


def test_axes_of_a_model_of_another_size_are_not_mixed(model: VAE, adata: AnnData) -> None:
    model.find_axis(adata, "identity", obs="type")
    other = fit(adata.copy(), VAE(2, 8, **COVARIATES), max_epochs=1)
    with raises(ValueError, naming=["'identity'", 3, 2]):
        other.find_axis(adata, "new", obs="type")


# --- The table of coordinates -----------------------------------------------------------------------------------------


def test_coordinates_that_nothing_needs_are_marked_unused(tmp_path: Any) -> None:
    """The cells differ by type alone, so that one coordinate is enough."""
    adata = simulate(600, 40)
    model = fit(adata, VAE(6, 32, batch_key="batch", continuous_covariate_keys=["age"]), max_epochs=40)
    table = model.axes(adata)
    assert list(table["used"]) == [True] + [False] * 5
    assert list(table["rank"]) == list(range(6))
    assert table["share"].iloc[0] > 0.9
    assert table["share"].sum() == pytest.approx(1)
    stored = adata.uns["celldial"]["coordinates"]
    assert list(stored.index) == [f"axis_{k}" for k in range(6)]
    pd.testing.assert_frame_equal(stored.loc[table.index], table)
    mean_cz, deviation_cz = model.latent_posterior(adata)[:2]
    np.testing.assert_allclose(stored["kl"], rank_axes.kl_divergence(mean_cz, deviation_cz))
    # The coordinate that is used tells the types apart, and the axis between them is this coordinate.
    axis = model.find_axis(adata, "identity", obs="type")
    assert f"axis_{np.abs(axis.direction_z).argmax()}" == table.index[0]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read_h5ad(tmp_path / "cells.h5ad").uns["celldial"]["coordinates"], stored)


def test_the_table_is_reproducible_and_writes_nothing_else(model: VAE, adata: AnnData) -> None:
    before = snapshot(adata)
    table = model.axes(adata, n_cells=50)
    pd.testing.assert_frame_equal(model.axes(adata, n_cells=50), table)
    assert list(adata.uns["celldial"]) == [*adata.uns["celldial"]]
    del adata.uns["celldial"]["coordinates"]
    assert_untouched(adata, before)
    new = simulate(300, 40)
    model.axes(new)
    assert list(new.uns["celldial"]) == ["coordinates"]
    for n_cells in (1, 2.5):
        with raises(ValueError, naming=["n_cells", n_cells]):
            model.axes(adata, n_cells=n_cells)


def test_each_modality_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate_two(120, 20, 30, lacking={"atac": [0, 1], "rna": [2]})
    model = fit(adata, VAE(2, 8), max_epochs=5)
    table = model.axes(adata)
    assert list(table.columns) == ["kl", "variance", "share", "share_rna", "share_atac", "used", "rank"]
    np.testing.assert_allclose(table[["share_rna", "share_atac"]].sum(), 1)
    np.testing.assert_allclose(table["share"], table[["share_rna", "share_atac"]].mean(axis=1))
    monkeypatch.setattr("celldial.data.cells.MAX_DECODE_VALUES", 100)  # a few cells at a time
    pd.testing.assert_frame_equal(model.axes(adata), table, rtol=1e-4)
    axis = model.find_axis(adata, "open", features={"up": ["p0", "p1", "p2"]}, modality="atac")
    assert axis.description == "p0, p1, p2 up"
    with raises(ValueError, naming=[0, 1, "['up']"]):
        model.find_axis(adata, "open", features={"up": ["p0"]})  # rna by default


def test_one_cell_is_too_few_for_a_table(model: VAE) -> None:
    adata = simulate(300, 40)[:1].copy()
    with raises(ValueError, naming=[1]):
        model.axes(adata)


# --- Real cells -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interferon_genes_rise_along_the_axis_of_the_condition(shared_data: Any) -> None:
    adata = read_h5ad(shared_data / "kang_ifnb.h5ad")
    model = VAE().fit(adata, progress=False)
    axis = model.find_axis(adata, "interferon", obs="condition")
    assert axis.strength > 0.8
    assert axis.p_value == 0.001
    z_cz = model.transform(adata)[::10]
    ends = [z_cz + np.outer(end - axis.score(z_cz), axis.direction_z).astype(np.float32) for end in (0, 1)]
    low_f, high_f = (model.decode(end).mean(0) for end in ends)
    change = pd.Series(np.log2((high_f + 1) / (low_f + 1)), model.feature_names_)
    assert {"ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20", "LY6E"} <= set(change.nlargest(20).index)

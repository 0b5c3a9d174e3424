"""`find_axis`: the fitted direction against closed forms, and the stored results."""

import re
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from celldial import VAE
from celldial.tl.find_axis import Axis, fit_axis
from helpers.axes import assert_same_snapshot, snapshot
from helpers.fit import fit
from helpers.raises import raises, warns
from helpers.simulate import (
    COVARIATES,
    simulate,
)

# --- The direction ----------------------------------------------------------------------------------------------------


def find(z_cz: np.ndarray, target_c: np.ndarray, batch_c: np.ndarray | None = None, n: int = 99, seed: int = 0) -> Axis:
    return fit_axis("name", "A → B", z_cz, target_c, batch_c, n, np.random.default_rng(seed))


def states(n_cells: int = 200, n_latent: int = 3, seed: int = 0) -> np.ndarray:
    mixing_zz = np.random.default_rng(seed).normal(size=(n_latent, n_latent))
    return (np.random.default_rng([seed, 1]).normal(size=(n_cells, n_latent)) @ mixing_zz).astype(np.float32)


@given(seed=st.integers(0, 1000), n_first=st.integers(5, 35))
def test_the_axis_of_two_groups_connects_their_means(seed: int, n_first: int) -> None:
    z_cz, group_c = states(40, seed=seed), np.repeat([0.0, 1.0], [n_first, 40 - n_first])
    axis = find(z_cz, group_c, n=1)
    first_z, second_z = z_cz[group_c == 0].mean(0), z_cz[group_c == 1].mean(0)
    np.testing.assert_allclose(axis.origin_z, first_z, atol=1e-4)
    np.testing.assert_allclose(axis.direction_z, second_z - first_z, atol=1e-4)
    np.testing.assert_allclose(axis.weight_z @ axis.direction_z, 1, atol=1e-3)
    score_c = axis.score(z_cz)
    assert score_c.dtype == np.float32
    np.testing.assert_allclose([score_c[group_c == group].mean() for group in (0, 1)], [0, 1], atol=1e-3)
    np.testing.assert_allclose(
        axis.quantiles, np.quantile(score_c, [0.01, 0.05, 0.5, 0.95, 0.99]), rtol=1e-3, atol=1e-3
    )


def test_a_linear_target_is_recovered_with_its_strength() -> None:
    z_cz = states(5000)
    slope_z = np.array([1.0, -2.0, 0.5])
    target_c = z_cz @ slope_z
    axis = find(z_cz, target_c + np.random.default_rng(2).normal(0, target_c.std(), 5000))
    assert axis.strength == pytest.approx(0.5, abs=0.03)
    assert axis.p_value == 0.01
    assert np.corrcoef(axis.score(z_cz), target_c)[0, 1] > 0.999
    exact = find(z_cz, target_c)
    assert exact.strength == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(exact.score(z_cz), target_c, atol=0.1 * target_c.std())


def test_the_direction_follows_the_cells_and_the_filter_does_not() -> None:
    """The example of Haufe et al.: a coordinate that holds only noise helps to subtract it, but no cell moves along."""
    random = np.random.default_rng(0)
    group_c, noise_c = np.repeat([0.0, 1.0], 2000), random.normal(0, 2, 4000)
    axis = find(np.stack([group_c + noise_c, noise_c + random.normal(0, 0.1, 4000)], axis=1), group_c)
    np.testing.assert_allclose(axis.direction_z, [1, 0], atol=0.2)
    np.testing.assert_allclose(axis.weight_z, [1, -1], atol=0.15)
    assert axis.strength > 0.9


def test_a_random_target_has_no_strength_and_uniform_p_values() -> None:
    random = np.random.default_rng(0)
    z_cz, batch_c = states(60), np.arange(60) % 3
    found = [find(z_cz, random.normal(size=60) + 5 * batch_c, batch_c, seed=seed) for seed in range(200)]
    strength, p_value = (np.array([getattr(axis, name) for axis in found]) for name in ("strength", "p_value"))
    assert strength.mean() < 0.03
    assert np.median(strength) < 0.01
    for level in (0.05, 0.2, 0.5):
        assert abs((p_value <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / 200)
    assert p_value.min() >= 0.01


def test_batch_differences_do_not_make_an_axis() -> None:
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
def test_batch_shifts_and_cell_order_do_not_matter(seed: int, shift: int) -> None:
    random = np.random.default_rng(seed)
    z_cz, batch_c = states(50, seed=seed), random.integers(0, 2, 50)
    target_c = z_cz[:, 0] + random.normal(size=50)
    axis = find(z_cz, target_c, batch_c, n=1)
    for same in (
        find(z_cz + shift * batch_c[:, None], target_c - shift * batch_c, batch_c, n=1),
        find(z_cz[::-1], target_c[::-1], batch_c[::-1], n=1),
    ):
        np.testing.assert_allclose(same.direction_z, axis.direction_z, atol=1e-4)
        np.testing.assert_allclose(same.weight_z, axis.weight_z, atol=1e-3)
        assert same.strength == pytest.approx(axis.strength, abs=1e-6)


def test_cells_without_a_target_are_scored_but_not_fitted() -> None:
    z_cz, target_c = states(100), np.random.default_rng(1).normal(size=100)
    without_c = np.where(np.arange(100) < 30, np.nan, target_c)
    axis, of_rest = find(z_cz, without_c), find(z_cz[30:], target_c[30:])
    for name in ("origin_z", "direction_z", "weight_z", "strength", "p_value"):
        np.testing.assert_array_equal(getattr(axis, name), getattr(of_rest, name))
    np.testing.assert_allclose(axis.quantiles[2], np.median(axis.score(z_cz)), rtol=1e-3)


def test_collapsed_coordinates_are_ignored() -> None:
    z_cz, group_c = states(100), np.repeat([0.0, 1.0], 50)
    z_cz[:, 1] = 1e-5 * (
        group_c + np.random.default_rng(0).normal(0, 0.1, 100)
    )  # informative, but its variance is negligible
    assert abs(find(z_cz, group_c).weight_z[1]) < 1
    flat = find(np.zeros((100, 2), dtype=np.float32), group_c)
    np.testing.assert_array_equal(flat.score(z_cz), 0)
    assert (flat.strength, flat.p_value) == (0, 1)


def test_columns_beyond_the_latent_coordinates_are_ignored() -> None:
    z_cz = states(50)
    axis = find(z_cz, z_cz[:, 0])
    np.testing.assert_array_equal(axis.score(np.hstack([z_cz, z_cz])), axis.score(z_cz))


def test_targets_without_an_axis() -> None:
    group_c = np.repeat([0.0, 1.0], 10)
    with raises(ValueError, naming=["batch"], omitting=["latent"]):
        find(states(20), group_c, group_c.astype(int))
    with raises(ValueError, naming=[4, 1, 3]):
        find(states(4), np.arange(4.0))
    with raises(ValueError, omitting=["batch"]):
        find(states(20), np.full(20, 0.1))


# --- `VAE.find_axis` --------------------------------------------------------------------------------------------------


def test_find_axis_writes_only_the_axis_and_its_scores(axis_model: VAE, axis_adata: AnnData, tmp_path: Any) -> None:
    before = snapshot(axis_adata)
    axis = axis_model.find_axis(axis_adata, "identity", obs="type")
    assert axis.description == "type: A → B"
    assert axis.strength > 0.5
    assert axis.p_value == 0.001
    score = axis_adata.obs["identity"]
    assert score.dtype == np.float32
    np.testing.assert_array_equal(score, axis.score(axis_model.transform(axis_adata)))
    by_type = score.groupby(axis_adata.obs["type"].to_numpy()).mean()
    np.testing.assert_allclose(by_type, [0, 1], atol=0.05)  # within batches exactly
    assert sorted({*axis_adata.obs} - {*before["obs"]}) == ["identity"]
    assert sorted({*axis_adata.uns["celldial"]} - {*before["celldial"]}) == ["axes", "content"]
    # As other parts of the package, and later programs, read it.
    axis_adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = read_h5ad(tmp_path / "cells.h5ad").uns["celldial"]["axes"]["identity"]
    assert stored["kind"] == "direction"
    assert set(stored) == {"kind", "description", "origin", "direction", "filter", "strength", "p_value"} | {
        "n_permutations",
        "quantiles",
        "model",
        "from_obs",
    }
    read = Axis.from_dict("identity", stored)
    for key, value in vars(axis).items():
        np.testing.assert_array_equal(getattr(read, key), value)
        assert type(getattr(read, key)) is type(value)


def test_several_axes_are_stored_and_replaced_by_name(axis_model: VAE, axis_adata: AnnData) -> None:
    axis_model.find_axis(axis_adata, "identity", obs="type")
    first = axis_adata.obs["identity"].copy()
    axis_model.find_axis(axis_adata, "age axis", obs="age")
    axis = axis_model.find_axis(axis_adata, "identity", obs="type", groups=("B", "A"))
    assert sorted(axis_adata.uns["celldial"]["axes"]) == ["age axis", "identity"]
    np.testing.assert_allclose(axis_adata.obs["identity"], 1 - first, atol=1e-4)
    again = axis_model.find_axis(axis_adata, "identity", groups=("B", "A"))
    for key, value in vars(axis).items():
        np.testing.assert_array_equal(getattr(again, key), value)
    axis_adata.uns["celldial"]["axes"]["identity"]["direction"][:] = 0  # the stored axis is a copy
    assert again.direction_z.any()


def test_the_batch_of_the_model_cannot_be_an_axis(axis_model: VAE, axis_adata: AnnData) -> None:
    before = snapshot(axis_adata)
    with raises(ValueError, naming=["batch: b0 → b1"]):
        axis_model.find_axis(axis_adata, "batch axis", obs="batch")
    assert_same_snapshot(axis_adata, before)


def test_genes_make_an_axis_along_which_they_change(axis_model: VAE, axis_adata: AnnData) -> None:
    share_cf = axis_adata.X.toarray() / axis_adata.X.toarray().sum(1, keepdims=True)
    is_b = (axis_adata.obs["type"] == "B").to_numpy()
    order = np.argsort(np.log((share_cf[is_b].mean(0) + 1e-3) / (share_cf[~is_b].mean(0) + 1e-3)))
    up, down = (list(axis_adata.var_names[part]) for part in (order[-4:], order[:4]))
    axis = axis_model.find_axis(axis_adata, "program", features={"up": [name.upper() for name in up], "down": down})
    assert axis.description == "4 features up and 4 features down"
    assert axis.strength > 0.5
    assert axis_adata.obs["program"].groupby(axis_adata.obs["type"].to_numpy()).mean().diff().iloc[-1] > 0.3
    path = np.stack([axis.origin_z, axis.origin_z + axis.direction_z])
    covariates = {"batch": "b0", "donor": "x", "age": 40.0}
    change = pd.Series(np.log(np.divide(*axis_model.decode(path, covariates)[::-1])), axis_adata.var_names)
    assert change[up].min() > change.median() > change[down].max()


def test_cells_without_counts_or_target_are_ignored(axis_model: VAE, axis_adata: AnnData) -> None:
    x = axis_adata.X.toarray()
    x[:20] = 0
    emptied = AnnData(sparse.csr_matrix(x), axis_adata.obs.copy(), axis_adata.var.copy())
    emptied.obs["type"] = emptied.obs["type"].astype(object).where(np.arange(300) >= 50)
    with warns(naming=[20, 300, "'c0'"]):
        axis = axis_model.find_axis(emptied, "identity", obs="type")
    of_rest = axis_model.find_axis(axis_adata[50:].copy(), "identity", obs="type")
    for key in ("origin_z", "direction_z", "weight_z"):
        np.testing.assert_allclose(getattr(axis, key), getattr(of_rest, key), atol=1e-4)
    assert not emptied.obs["identity"].isna().any()
    np.testing.assert_allclose(emptied.obs["identity"].iloc[:20], axis.score(np.zeros((1, 3)))[0])
    with warns(naming=[20, 300]):
        np.testing.assert_allclose(
            axis.quantiles[2], np.median(axis.score(axis_model.transform(emptied)[20:])), atol=1e-5
        )


def test_a_loaded_model_finds_axes_in_new_cells(axis_model: VAE, axis_adata: AnnData, tmp_path: Any) -> None:
    axis_model.save(tmp_path / "a.celldial")
    new = simulate(300, 40)[:200].copy()
    axis = VAE.load(tmp_path / "a.celldial").find_axis(new, "identity", obs="type")
    assert list(new.uns["celldial"]) == ["axes", "written", "content"]
    np.testing.assert_array_equal(
        axis.weight_z, axis_model.find_axis(axis_adata[:200].copy(), "identity", obs="type").weight_z
    )


@pytest.mark.parametrize(
    ("name", "options", "error", "facts"),
    [
        ("age", {"obs": "type"}, ValueError, ["adata.obs", "'age'"]),
        ("axis_3", {"obs": "type"}, ValueError, ["name", "'axis_3'"]),
        ("a/b", {"obs": "type"}, ValueError, ["name", "'a/b'"]),
        ("", {"obs": "type"}, ValueError, ["name", "''"]),
        (3, {"obs": "type"}, TypeError, ["name", 3]),
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
def test_invalid_arguments_of_find_axis(
    axis_model: VAE, axis_adata: AnnData, name: Any, options: Any, error: type[Exception], facts: list[Any]
) -> None:
    before = snapshot(axis_adata)
    with raises(error, naming=facts):
        axis_model.find_axis(axis_adata, name, **options)
    assert_same_snapshot(axis_adata, before)


def test_the_name_of_the_periodic_axis_is_reserved(axis_model: VAE, axis_adata: AnnData) -> None:
    rhythmic = copy(axis_model)
    rhythmic.periodic_ = {"name": "rhythm"}
    with raises(ValueError, naming=["name", "'rhythm'"]):
        rhythmic.find_axis(axis_adata, "rhythm", obs="type")


def test_the_repr_of_an_axis_is_short(axis_model: VAE, axis_adata: AnnData) -> None:
    shown = repr(axis_model.find_axis(axis_adata, "identity", obs="type"))
    start = r"Axis\(name='identity', description='type: A → B', strength=0\.\d+, p_value=0\.001, n_permutations=999"
    assert re.fullmatch(start + r"\)", shown)


def test_an_axis_belongs_to_its_model(axis_model: VAE, axis_adata: AnnData) -> None:
    axis_model.find_axis(axis_adata, "identity", obs="type")
    other = fit(axis_adata.copy(), VAE(2, 8, **COVARIATES), max_epochs=1)
    with raises(ValueError, naming=["'identity'", axis_model.fingerprint_, other.fingerprint_]):
        other.latent_traverse(axis_adata, "identity")
    other.find_axis(axis_adata, "new", obs="type")
    for owner, name in ((axis_model, "identity"), (other, "new")):
        assert axis_adata.uns["celldial"]["axes"][name]["model"] == owner.fingerprint_
        owner.latent_traverse(axis_adata, name, n_steps=2, n_cells=2)


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

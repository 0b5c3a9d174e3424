"""The table of coordinates: Kullback-Leibler divergence, total effects and ranks."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from celldial import VAE
from celldial.tl import rank_axes
from celldial.tl.rank_axes import coordinate_table, total_effects
from helpers.axes import assert_same_snapshot, snapshot
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two

# --- Numbers ----------------------------------------------------------------------------------------------------------


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
    """With two cells: half the squared difference, features weighted by their expected values."""
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
    """The result does not depend on the size of the blocks, and at most one block is decoded at once."""
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


def test_a_share_that_underflows_has_a_logarithm() -> None:
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
    ]  # c has no information, and the decoder ignores d and e
    assert not coordinate_table(["a"], np.ones(1), {"rna": np.zeros(1)})["share"].isna().any()


# --- The table of coordinates -----------------------------------------------------------------------------------------


def test_unneeded_coordinates_are_marked_unused(tmp_path: Any) -> None:
    """The cells differ only by type, so one coordinate is enough."""
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
    # The used coordinate separates the types, and the axis between them is this coordinate.
    axis = model.find_axis(adata, "identity", obs="type")
    assert f"axis_{np.abs(axis.direction_z).argmax()}" == table.index[0]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read_h5ad(tmp_path / "cells.h5ad").uns["celldial"]["coordinates"], stored)


def test_the_table_is_reproducible_and_writes_only_itself(axis_model: VAE, axis_adata: AnnData) -> None:
    before = snapshot(axis_adata)
    table = axis_model.axes(axis_adata, n_cells=50)
    pd.testing.assert_frame_equal(axis_model.axes(axis_adata, n_cells=50), table)
    assert list(axis_adata.uns["celldial"]) == [*axis_adata.uns["celldial"]]
    del axis_adata.uns["celldial"]["coordinates"]
    assert_same_snapshot(axis_adata, before)
    new = simulate(300, 40)
    axis_model.axes(new)
    assert list(new.uns["celldial"]) == ["coordinates", "written"]
    for n_cells in (1, 2.5):
        with raises(ValueError, naming=["n_cells", n_cells]):
            axis_model.axes(axis_adata, n_cells=n_cells)


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


def test_one_cell_is_too_few_for_a_table(axis_model: VAE) -> None:
    adata = simulate(300, 40)[:1].copy()
    with raises(ValueError, naming=[1]):
        axis_model.axes(adata)

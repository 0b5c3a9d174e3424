"""Analyses of a fitted model with a periodic coordinate."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial import VAE
from celldial.metrics.circular import fisher_lee
from helpers.periodic import COLUMNS, TURN, fit_once, make_cells
from helpers.raises import raises, warns


@pytest.fixture
def model() -> VAE:
    return copy.deepcopy(fit_once()[0])


@pytest.fixture
def adata() -> AnnData:
    return fit_once()[1].copy()


@pytest.fixture(scope="module")
def new() -> AnnData:
    """Return cells of the same kind that the model was not fitted to."""
    return make_cells(500)[400:].copy()


def test_phases_of_new_cells_leave_the_model_unchanged(model: VAE, new: AnnData, tmp_path: Path) -> None:
    cells = new.copy()
    before = {name: part.clone() for name, part in model.module_.state_dict().items()}
    table = model.phase(cells)
    assert set(table.columns) == set(COLUMNS)
    assert list(table.index) == list(cells.obs_names)
    pd.testing.assert_frame_equal(cells.obs[list(table.columns)], table)
    assert "X_celldial" not in cells.obsm
    assert fisher_lee(*(cells.obs[name][cells.obs["is_cycling"]] for name in ("cell_cycle_angle", "truth"))) > 0.5
    assert all(torch.equal(part, before[name]) for name, part in model.module_.state_dict().items())
    pd.testing.assert_frame_equal(model.phase(cells), table)  # again: the columns in obs are those of the model
    cells.layers["counts"], cells.X = cells.X, cells.X.log1p()
    pd.testing.assert_frame_equal(model.phase(cells, layer="counts"), table)


def test_the_angle_of_a_cell_does_not_depend_on_other_cells(model: VAE, new: AnnData) -> None:
    together, alone = model.phase(new.copy()), model.phase(new[:1].copy())
    np.testing.assert_allclose(alone["cell_cycle_angle"], together["cell_cycle_angle"][:1], atol=1e-4)
    np.testing.assert_allclose(
        alone["cell_cycle_active_probability"], together["cell_cycle_active_probability"][:1], atol=1e-4
    )


def test_phases_are_intervals_of_angles(adata: AnnData) -> None:
    start = adata.uns["celldial"]["periodic"]["phase_start"]
    assigned = adata.obs["cell_cycle_phase"].notna().to_numpy()
    expected = np.searchsorted(start, adata.obs["cell_cycle_angle"], side="right") - 1
    np.testing.assert_array_equal(adata.obs["cell_cycle_phase"].cat.codes[assigned], expected[assigned])


def test_transform_adds_the_position_on_the_circle(model: VAE, adata: AnnData) -> None:
    plain, states = model.transform(adata), model.transform(adata, include_periodic=True, key_added="X_all")
    assert (plain.shape, states.shape) == ((400, 4), (400, 6))
    assert states.dtype == np.float32
    np.testing.assert_array_equal(states[:, :4], plain)
    np.testing.assert_array_equal(adata.obsm["X_all"], states)
    activity, angle = adata.obs["cell_cycle_active_probability"], adata.obs["cell_cycle_angle"]
    np.testing.assert_allclose(states[:, 4], activity * np.cos(angle), atol=1e-5)
    np.testing.assert_allclose(states[:, 5], activity * np.sin(angle), atol=1e-5)


def test_decode_takes_what_transform_returns(model: VAE, adata: AnnData) -> None:
    states = model.transform(adata, include_periodic=True)
    np.testing.assert_allclose(model.decode(states), model.denoise(adata), rtol=1e-4, atol=1e-4)
    with raises(ValueError, naming=["(400, 4)", "(cells, 6)"]):
        model.decode(states[:, :4])


def test_decoded_markers_peak_in_their_phases(model: VAE) -> None:
    angle = np.linspace(0, TURN, 49)
    states = np.zeros((49, 6), dtype=np.float32)
    states[:, 4], states[:, 5] = np.cos(angle), np.sin(angle)
    table = pd.DataFrame(model.decode(states), columns=model.schema_.feature_names["rna"])
    np.testing.assert_allclose(table.iloc[0], table.iloc[-1], rtol=1e-3)
    assert model.periodic_ is not None
    start = model.periodic_["phase_start"]
    for genes, phase in ((["MCM5", "PCNA", "TYMS", "GINS2"], 1), (["TOP2A", "CENPF", "UBE2C", "AURKA"], 2)):
        peak = angle[np.log(table[genes]).mean(axis=1).argmax()]
        assert np.searchsorted(start, peak, side="right") - 1 == phase


@settings(max_examples=20)
@given(angle=st.floats(0, 6.28), turns=st.integers(-2, 2))
def test_decoding_is_periodic(angle: float, turns: int) -> None:
    states = np.zeros((2, 6))
    at = np.array([angle, angle + turns * TURN])
    states[:, 4], states[:, 5] = np.cos(at), np.sin(at)
    once, again = fit_once()[0].decode(states)
    np.testing.assert_allclose(once, again, rtol=1e-4, atol=1e-5)


def test_a_traversal_around_the_circle(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(adata, "cell_cycle", n_steps=9, n_cells=16)
    assert path.shape == (9, 450)
    np.testing.assert_allclose(path.obs["angle"], np.linspace(0, TURN, 9), atol=1e-5)
    np.testing.assert_allclose(path.X[0], path.X[-1], rtol=1e-3)
    np.testing.assert_allclose(path.var["change"], 0, atol=1e-3)
    assert (path.layers["lower"] <= path.X + 1e-6).all()
    assert (path.X <= path.layers["upper"] + 1e-6).all()
    top = path.var.query("modality == 'rna'").sort_values("rank").index[:20]
    assert adata.var.loc[top, "cell_cycle_amplitude"].gt(0).mean() > 0.7
    stored = adata.uns["latent_traverse"]["cell_cycle"]
    assert stored["kind"] == "periodic"
    assert stored["path"].shape == (9, 6)
    np.testing.assert_allclose(np.hypot(*stored["path"][:, 4:].T), 1, atol=1e-3)
    np.testing.assert_array_equal(stored["phases"]["start"], adata.uns["celldial"]["periodic"]["phase_start"])


def test_other_axes_can_still_be_traversed(model: VAE, adata: AnnData) -> None:
    assert model.latent_traverse(adata, 0, n_steps=3, n_cells=8).n_obs == 3
    model.find_axis(adata, "kind", obs="cell_type")
    assert model.latent_traverse(adata, "kind", n_steps=3, n_cells=8).n_obs == 3
    types = tuple(adata.obs["cell_type"].cat.categories)
    assert model.latent_traverse(adata, types, n_steps=3, n_cells=8).n_obs == 3
    table = model.axes(adata, n_cells=50)
    assert sorted(table.index) == ["axis_0", "axis_1", "axis_2", "axis_3", "cell_cycle"]
    assert table.loc["cell_cycle", "used"]
    assert table["share"].sum() == pytest.approx(1)
    assert list(adata.uns["celldial"]["coordinates"].index)[-1] == "cell_cycle"


def test_samples_have_positions_on_the_circle(model: VAE) -> None:
    drawn = model.sample(300, seed=1)
    assert drawn.obsm["z"].shape == (300, 6)
    activity = np.hypot(*drawn.obsm["z"][:, 4:].T)
    assert set(np.round(activity, 5)) <= {0, 1}
    assert activity.mean() == pytest.approx(float(model.module_.circle.active_logit.sigmoid()), abs=0.1)
    # The inferred angles are those that were drawn.
    found = model.phase(drawn)
    angle = np.arctan2(*drawn.obsm["z"][:, [5, 4]].T) % TURN
    both = (activity > 0.5) & found["cell_cycle_active"].to_numpy()
    assert fisher_lee(found["cell_cycle_angle"][both], angle[both]) > 0.4


def test_score_is_finite_and_lower_for_shuffled_counts(model: VAE, new: AnnData) -> None:
    shuffled = new.copy()
    shuffled.X = new.X[:, np.random.default_rng(0).permutation(new.n_vars)]
    assert np.isfinite(model.score(new))
    assert model.score(new) > model.score(shuffled)


def test_one_modality_is_imputed_from_the_other(model: VAE, new: AnnData) -> None:
    assert model.impute(new.copy(), "atac", from_="rna").shape == (100, 300)
    by_rna, by_both = model.phase(new.copy(), modality="rna"), model.phase(new.copy())
    assert fisher_lee(by_rna["cell_cycle_angle"], by_both["cell_cycle_angle"]) > 0.5
    assert (by_rna["cell_cycle_concentration"] > 0).all()


def test_empty_cells_have_the_prior(model: VAE, new: AnnData) -> None:
    cells = new.copy()
    del cells.obs["has_rna"], cells.obs["has_atac"]  # these columns would contradict the counts
    counts = cells.X.toarray()
    counts[:3] = 0
    cells.X = counts
    with warns(naming=["3 of 100 cells"]):
        table = model.phase(cells)
    assert np.isfinite(table.drop(columns="cell_cycle_phase")).all(axis=None)
    np.testing.assert_array_equal(table["cell_cycle_concentration"][:3], 0)
    np.testing.assert_allclose(
        table["cell_cycle_active_probability"][:3], model.module_.circle.active_logit.sigmoid(), rtol=1e-4
    )
    with warns(naming=["3 of 100 cells"]):
        np.testing.assert_array_equal(model.transform(cells)[:3], 0)

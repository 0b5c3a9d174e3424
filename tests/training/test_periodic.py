"""A model with a circle as its users meet it: where cells are on it, what is written, and what is said of bad input."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial import VAE
from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.datasets import simulate_multiome
from celldial.metrics import knn_f1
from celldial.metrics.circular import cyclic_order, fisher_lee
from celldial.model.angle_posterior import pack_angle_posterior
from celldial.model.module import Module
from celldial.model.networks import DECODERS, DecoderName
from celldial.periodic import initial_angles
from helpers.modules import build_module, sizes_of
from helpers.simulate import COVARIATES, simulate, simulate_two_cells

TURN = 2 * np.pi
PARTS = ["angle", "concentration", "active_probability", "active", "phase"]
COLUMNS = [f"cell_cycle_{part}" for part in PARTS]
OPTIONS: dict[str, Any] = {"max_epochs": 6, "progress": False}


def make_cells(n_cells: int = 400, **options: Any) -> AnnData:
    """Simulate cells of two types at six times the usual depth, with their true angles in ``obs["truth"]``."""
    adata = simulate_multiome(n_cells, 150, 300, n_types=2, n_batches=1, **{"depth": 6.0, "seed": 1, **options})
    name = "true_cell_cycle_angle" if "true_cell_cycle_angle" in adata.obs else "cell_cycle_angle"
    adata.obs["truth"] = adata.obs.pop(name)
    adata.layers.clear()
    return adata


def make_model(**parameters: Any) -> VAE:
    return VAE(**{"n_latent": 4, "n_hidden": 16, "periodic": "cell_cycle", **parameters})


@pytest.fixture(scope="session")
def fitted() -> tuple[VAE, AnnData]:
    """Fit once; whoever writes to the cells or trains further takes a copy."""
    adata = make_cells()
    return make_model().fit(adata, max_epochs=12, progress=False), adata


@pytest.fixture
def model(fitted: tuple[VAE, AnnData]) -> VAE:
    return copy.deepcopy(fitted[0])


@pytest.fixture
def adata(fitted: tuple[VAE, AnnData]) -> AnnData:
    return fitted[1].copy()


@pytest.fixture(scope="session")
def new() -> AnnData:
    """Cells of the same kind that the model never saw."""
    return make_cells(500)[400:].copy()


def genes_of(adata: AnnData) -> AnnData:
    return adata[:, (adata.var["feature_types"] == "Gene Expression").to_numpy()].copy()


# --- What is found ----------------------------------------------------------------------------------------------------


def test_the_angle_is_that_of_the_simulation(adata: AnnData) -> None:
    cycling = adata.obs["is_cycling"].to_numpy()
    angle, truth = (adata.obs[name].to_numpy()[cycling] for name in ("cell_cycle_angle", "truth"))
    assert fisher_lee(angle, truth) > 0.6
    # Not only in some order: where it begins and which way it goes are known.
    assert np.abs(np.angle(np.exp(1j * (angle - truth)))).mean() < 0.7
    assert (adata.obs["cell_cycle_phase"].astype(str) == adata.obs["phase"].astype(str))[cycling].mean() > 0.6


def test_the_circle_is_turned_as_its_anchor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = []
    for by in (0.0, 2.0):
        adata = make_cells(200)
        monkeypatch.setattr(initial_angles, "anchor", lambda *arguments, by=by: by)
        make_model().fit(adata, **OPTIONS)
        angles.append(adata.obs["cell_cycle_angle"].to_numpy())
    by = np.angle(np.exp(1j * (angles[1] - angles[0])))
    assert np.median(by) == pytest.approx(2, abs=0.1)


def test_what_is_written(model: VAE, adata: AnnData) -> None:
    obs = adata.obs
    assert set(COLUMNS) <= set(obs.columns)
    assert obs["cell_cycle_angle"].between(0, TURN, inclusive="left").all()
    assert (obs["cell_cycle_concentration"] >= 0).all()
    assert obs["cell_cycle_active_probability"].between(0, 1).all()
    for part in ("angle", "concentration", "active_probability"):
        assert obs[f"cell_cycle_{part}"].dtype == np.float32
    assert obs["cell_cycle_active"].dtype == bool
    np.testing.assert_array_equal(obs["cell_cycle_active"], obs["cell_cycle_active_probability"] >= 0.5)
    assert list(obs["cell_cycle_phase"].cat.categories) == ["G1", "S", "G2M"]
    told = obs["cell_cycle_active"] & (obs["cell_cycle_concentration"] >= 1)  # else the angle could be almost anything
    np.testing.assert_array_equal(obs["cell_cycle_phase"].notna(), told)
    assert adata.obsm["X_celldial"].shape == (400, 4)
    described = adata.uns["celldial"]["periodic"]
    assert described["name"] == "cell_cycle"
    assert list(described["phases"]) == ["G1", "S", "G2M"]
    assert described["phase_start"][0] == 0
    assert (np.diff(described["phase_start"]) > 0).all()
    assert set(described["markers"]["S"]) < set(adata.var_names)
    assert {"MCM5", "PCNA"} <= set(described["markers"]["S"])
    assert {"TOP2A", "MKI67"} <= set(described["markers"]["G2M"])
    assert model.module_.n_states == 6


def test_columns_stay_a_models_where_another_has_no_circle(model: VAE, adata: AnnData) -> None:
    """So that they can be plotted, and a circle be fitted again."""
    angle = adata.obs["cell_cycle_angle"].copy()
    VAE(n_latent=2, n_hidden=8).fit(adata, **OPTIONS)
    pd.testing.assert_series_equal(adata.obs["cell_cycle_angle"], angle)
    assert adata.uns["celldial"]["periodic"]["name"] == "cell_cycle"
    model.phase(adata)
    make_model().fit(adata, max_epochs=2, progress=False)


def test_phases_are_the_angles_between_their_starts(adata: AnnData) -> None:
    start = adata.uns["celldial"]["periodic"]["phase_start"]
    told = adata.obs["cell_cycle_phase"].notna().to_numpy()
    expected = np.searchsorted(start, adata.obs["cell_cycle_angle"], side="right") - 1
    np.testing.assert_array_equal(adata.obs["cell_cycle_phase"].cat.codes[told], expected[told])


def test_features_that_cycle_are_heard_and_others_are_not(model: VAE, adata: AnnData) -> None:
    heard = model.module_.modalities["rna"].decoder.cycles_f.numpy()
    cycles = (genes_of(adata).var["cell_cycle_amplitude"] > 0.3).to_numpy()
    assert heard[cycles].mean() > 0.6
    assert heard[~cycles].mean() < 0.3


def test_the_other_coordinates_are_free_of_the_angle(adata: AnnData) -> None:
    active, angle = adata.obs["cell_cycle_active_probability"], adata.obs["cell_cycle_angle"]
    for column in adata.obsm["X_celldial"].T:
        for wave in (np.cos(angle), np.sin(angle)):
            assert abs(np.corrcoef(column, active * wave)[0, 1]) < 0.15


# --- New cells, files, further training -------------------------------------------------------------------------------


def test_new_cells_are_placed_and_nothing_of_the_model_changes(model: VAE, new: AnnData, tmp_path: Path) -> None:
    cells = new.copy()
    before = {name: part.clone() for name, part in model.module_.state_dict().items()}
    table = model.phase(cells)
    assert list(table.columns) == COLUMNS or set(table.columns) == set(COLUMNS)
    assert list(table.index) == list(cells.obs_names)
    pd.testing.assert_frame_equal(cells.obs[list(table.columns)], table)
    assert "X_celldial" not in cells.obsm
    assert fisher_lee(*(cells.obs[name][cells.obs["is_cycling"]] for name in ("cell_cycle_angle", "truth"))) > 0.5
    assert all(torch.equal(part, before[name]) for name, part in model.module_.state_dict().items())
    pd.testing.assert_frame_equal(model.phase(cells), table)  # once more: the columns are the model's


def test_a_cell_is_placed_alike_whoever_is_with_it(model: VAE, new: AnnData) -> None:
    together, alone = model.phase(new.copy()), model.phase(new[:1].copy())
    np.testing.assert_allclose(alone["cell_cycle_angle"], together["cell_cycle_angle"][:1], atol=1e-4)
    np.testing.assert_allclose(
        alone["cell_cycle_active_probability"], together["cell_cycle_active_probability"][:1], atol=1e-4
    )


def test_a_saved_model_says_the_same_bit_by_bit(model: VAE, adata: AnnData, new: AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    pd.testing.assert_frame_equal(loaded.phase(new.copy()), model.phase(new.copy()))
    for options in ({}, {"include_periodic": True}, {"modality": "rna"}):
        np.testing.assert_array_equal(loaded.transform(new, **options), model.transform(new, **options))
    np.testing.assert_array_equal(loaded.denoise(new), model.denoise(new))
    assert loaded.score(new) == model.score(new)
    assert (loaded.sample(5).X != model.sample(5).X).nnz == 0
    assert loaded.get_params()["periodic"] == "cell_cycle"
    cells, others = new.copy(), new.copy()
    loaded.phase(cells)
    model.phase(others)
    described, expected = (part.uns["celldial"]["periodic"] for part in (cells, others))
    np.testing.assert_array_equal(described["phase_start"], expected["phase_start"])
    for phase in ("S", "G2M"):
        assert described["markers"][phase].tolist() == expected["markers"][phase].tolist()
    paths = [one.latent_traverse(adata, "cell_cycle", n_steps=4, n_cells=8) for one in (model, loaded)]
    np.testing.assert_array_equal(paths[0].X, paths[1].X)


def test_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    tables, embeddings = [], []
    for _ in range(2):
        cells = make_cells(150)
        make_model().fit(cells, max_epochs=2, progress=False)
        tables.append(cells.obs[COLUMNS])
        embeddings.append(cells.obsm["X_celldial"])
    pd.testing.assert_frame_equal(*tables)
    np.testing.assert_array_equal(*embeddings)


def test_going_on_keeps_the_angle(model: VAE, adata: AnnData) -> None:
    before = adata.obs["cell_cycle_angle"].to_numpy()
    n_before = len(model.history_["seconds"])
    model.partial_fit(adata, max_epochs=2, progress=False)
    active = adata.obs["cell_cycle_active"].to_numpy()
    after = adata.obs["cell_cycle_angle"].to_numpy()
    assert np.abs(np.angle(np.exp(1j * (after - before))))[active].mean() < 0.5
    assert len(model.history_["seconds"]) == n_before + 2
    np.testing.assert_array_equal(model.transform(adata), adata.obsm["X_celldial"])
    with_places = model.transform(adata, include_periodic=True)
    angle = np.arctan2(with_places[:, 5], with_places[:, 4]) % TURN
    np.testing.assert_allclose(np.cos(angle - after)[active], 1, atol=1e-4)


def test_going_on_with_few_new_cells_forgets_nothing(model: VAE, new: AnnData) -> None:
    few = new[:40].copy()
    before = model.phase(few)["cell_cycle_angle"]
    heard_f = model.module_.modalities["rna"].decoder.cycles_f.clone()
    model.partial_fit(few, max_epochs=1, progress=False)
    assert torch.equal(model.module_.modalities["rna"].decoder.cycles_f, heard_f)
    assert fisher_lee(few.obs["cell_cycle_angle"], before) > 0.7


def test_the_history_is_one(model: VAE) -> None:
    lengths = {name: len(values) for name, values in model.history_.items()}
    assert len(set(lengths.values())) == 1, lengths
    assert lengths["seconds"] <= 12
    assert (np.diff(model.history_["seconds"]) > 0).all()
    assert sum(model.history_["kept"]) == 1
    assert np.isfinite(model.history_["elbo_train"]).all()


def test_what_is_written_survives_a_file(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    model.axes(adata, n_cells=20)
    model.latent_traverse(adata, "cell_cycle", n_steps=4, n_cells=8)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(back.obs[COLUMNS], adata.obs[COLUMNS])
    described, expected = (part.uns["celldial"]["periodic"] for part in (back, adata))
    assert described["name"] == expected["name"]
    for key in ("phases", "phase_start"):
        np.testing.assert_array_equal(described[key], expected[key])
    for phase, names in expected["markers"].items():
        assert list(described["markers"][phase]) == list(names)
    stored = back.uns["latent_traverse"]["cell_cycle"]
    assert list(stored["phases"]["names"]) == ["G1", "S", "G2M"]
    # From the file, the model goes on as before: columns of its own are no hindrance.
    pd.testing.assert_frame_equal(model.phase(back), adata.obs[list(model.phase(adata).columns)])
    model.partial_fit(back, max_epochs=1, progress=False)


# --- States -----------------------------------------------------------------------------------------------------------


def test_the_place_on_the_circle_may_be_added(model: VAE, adata: AnnData) -> None:
    plain, states = model.transform(adata), model.transform(adata, include_periodic=True, key_added="X_all")
    assert (plain.shape, states.shape) == ((400, 4), (400, 6))
    assert states.dtype == np.float32
    np.testing.assert_array_equal(states[:, :4], plain)
    np.testing.assert_array_equal(adata.obsm["X_all"], states)
    activity, angle = adata.obs["cell_cycle_active_probability"], adata.obs["cell_cycle_angle"]
    np.testing.assert_allclose(states[:, 4], activity * np.cos(angle), atol=1e-5)
    np.testing.assert_allclose(states[:, 5], activity * np.sin(angle), atol=1e-5)


def test_fit_may_write_the_place_too() -> None:
    cells = make_cells(150)
    embedding = make_model().fit_transform(cells, max_epochs=1, progress=False, include_periodic=True)
    assert embedding.shape == cells.obsm["X_celldial"].shape == (150, 6)


def test_decoding_takes_what_transform_gives(model: VAE, adata: AnnData) -> None:
    states = model.transform(adata, include_periodic=True)
    np.testing.assert_allclose(model.decode(states), model.denoise(adata), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=re.escape("z has the shape (400, 4): it must be (cells, 6)")):
        model.decode(states[:, :4])


def test_decoding_round_the_circle_closes_and_peaks_where_phases_are(model: VAE) -> None:
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


def test_a_traversal_round_the_circle(model: VAE, adata: AnnData) -> None:
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


def test_other_axes_go_on_beside_the_circle(model: VAE, adata: AnnData) -> None:
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


def test_new_cells_are_drawn_with_places(model: VAE) -> None:
    drawn = model.sample(300, seed=1)
    assert drawn.obsm["z"].shape == (300, 6)
    activity = np.hypot(*drawn.obsm["z"][:, 4:].T)
    assert set(np.round(activity, 5)) <= {0, 1}
    assert activity.mean() == pytest.approx(float(model.module_.circle.active_logit.sigmoid()), abs=0.1)
    # They are placed where they were drawn.
    found = model.phase(drawn)
    angle = np.arctan2(*drawn.obsm["z"][:, [5, 4]].T) % TURN
    both = (activity > 0.5) & found["cell_cycle_active"].to_numpy()
    assert fisher_lee(found["cell_cycle_angle"][both], angle[both]) > 0.4


def test_score_is_finite_and_worse_for_shuffled_counts(model: VAE, new: AnnData) -> None:
    shuffled = new.copy()
    shuffled.X = new.X[:, np.random.default_rng(0).permutation(new.n_vars)]
    assert np.isfinite(model.score(new))
    assert model.score(new) > model.score(shuffled)


# --- Several modalities, some of them missing -------------------------------------------------------------------------


def test_one_modality_is_predicted_from_the_other(model: VAE, new: AnnData) -> None:
    assert model.impute(new.copy(), "atac", from_="rna").shape == (100, 300)
    by_rna, by_both = model.phase(new.copy(), modality="rna"), model.phase(new.copy())
    assert fisher_lee(by_rna["cell_cycle_angle"], by_both["cell_cycle_angle"]) > 0.5
    assert (by_rna["cell_cycle_concentration"] > 0).all()


def test_cells_without_rna_are_placed_by_their_peaks() -> None:
    cells = make_cells(300, mosaic=(0.5, 0.25, 0.25))
    model = make_model().fit(cells, **OPTIONS)
    assert np.isfinite(cells.obs[["cell_cycle_angle", "cell_cycle_concentration"]]).all(axis=None)
    known = cells.obs["has_rna"].to_numpy()
    sure = cells.obs["cell_cycle_concentration"]
    assert sure[known].median() > sure[~known].median()
    by_rna = cells.obs[known & cells.obs["is_cycling"]]
    assert fisher_lee(by_rna["cell_cycle_angle"], by_rna["truth"]) > 0.4
    assert np.isfinite(model.score(cells))


def test_a_mudata_is_told_too() -> None:
    mudata = pytest.importorskip("mudata")
    cells = make_cells(150)
    rna, atac = genes_of(cells), cells[:, (cells.var["feature_types"] == "Peaks").to_numpy()].copy()
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.MuData({"rna": rna, "atac": atac})
    model = make_model().fit(mdata, max_epochs=1, progress=False)
    assert set(COLUMNS) <= set(mdata.obs.columns)
    assert mdata.obsm["X_celldial"].shape == (150, 4)
    table = model.phase(mdata)
    pd.testing.assert_frame_equal(mdata.obs[list(table.columns)], table, check_names=False)


# --- Other markers ----------------------------------------------------------------------------------------------------


def test_markers_are_found_by_a_column_of_symbols(tmp_path: Path) -> None:
    cells = genes_of(make_cells(150))
    named = make_model().fit(cells.copy(), max_epochs=1, progress=False)
    cells.var["symbol"] = [name.capitalize() for name in cells.var_names]
    cells.var_names = [f"ENSMUSG{number:011}" for number in range(cells.n_vars)]
    with pytest.raises(ValueError, match=r"only 0 of the 43 S markers and 0 of the 54 G2M markers.*gene_symbols"):
        make_model().fit(cells, max_epochs=1, progress=False)
    assert not set(COLUMNS) & set(cells.obs.columns)
    assert "celldial" not in cells.uns
    with pytest.raises(KeyError, match="symbols"):
        make_model(gene_symbols="symbols").fit(cells, max_epochs=1, progress=False)
    model = make_model(gene_symbols="symbol").fit(cells, max_epochs=1, progress=False)
    markers = cells.uns["celldial"]["periodic"]["markers"]
    assert all(name.startswith("ENSMUSG") for names in markers.values() for name in names)
    assert {len(names) for names in markers.values()} == {len(names) for names in named.periodic_["markers"].values()}
    # New cells need the column no more.
    other = cells.copy()
    del other.var["symbol"]
    model.save(tmp_path / "model.celldial")
    assert VAE.load(tmp_path / "model.celldial").phase(other).shape == (150, 5)


RHYTHM = {
    "name": "clock",
    "phases": {"first": ["MCM5", "PCNA", "TYMS", "GINS2", "MCM2"], "second": ["TOP2A", "MKI67", "CENPF", "TPX2"]},
}


def test_a_rhythm_of_the_users(tmp_path: Path) -> None:
    cells = genes_of(make_cells(400))
    model = make_model(periodic=RHYTHM).fit(cells, **OPTIONS)
    assert list(cells.obs["clock_phase"].cat.categories) == ["first", "second"]
    assert 0 < cells.obs["clock_phase"].notna().sum() <= cells.obs["clock_active"].sum()
    assert set(cells.uns["celldial"]["periodic"]["markers"]["first"]) == set(RHYTHM["phases"]["first"])
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    assert loaded.get_params()["periodic"] == RHYTHM
    pd.testing.assert_frame_equal(loaded.phase(cells.copy()), model.phase(cells.copy()))
    model.latent_traverse(cells, "clock", n_steps=3, n_cells=8)
    cells.write_h5ad(tmp_path / "cells.h5ad")


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_too_few_markers_and_nothing_is_written() -> None:
    cells = simulate()
    before = cells.copy()
    with pytest.raises(ValueError, match="only 0 of the 43 S markers and 0 of the 54 G2M markers of cell_cycle"):
        make_model().fit(cells, **OPTIONS)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert not cells.uns
    assert not cells.obsm


@pytest.mark.parametrize("part", PARTS)
def test_a_column_of_the_users_is_not_replaced(part: str, fitted: tuple[VAE, AnnData]) -> None:
    cells = make_cells(60)
    cells.obs[f"cell_cycle_{part}"] = 0.5
    message = re.escape(f"adata.obs has a column 'cell_cycle_{part}' that no model wrote") + ".*rename it, or drop it"
    for use in (lambda: make_model().fit(cells, **OPTIONS), lambda: fitted[0].phase(cells)):
        with pytest.raises(ValueError, match=message):
            use()
    assert (cells.obs[f"cell_cycle_{part}"] == 0.5).all()
    assert "celldial" not in cells.uns


def test_columns_of_a_model_before_are_replaced(adata: AnnData) -> None:
    before = adata.obs[COLUMNS].copy()
    make_model(seed=1).fit(adata, max_epochs=1, progress=False)
    assert not adata.obs["cell_cycle_angle"].equals(before["cell_cycle_angle"])


@pytest.mark.parametrize("periodic", ["cell cycle", 3, {"name": "a"}])
def test_periodic_is_checked_first(periodic: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="periodic is"):
        VAE(periodic=periodic).fit(simulate(), **OPTIONS)


def test_the_name_of_the_circle_is_taken(model: VAE, adata: AnnData) -> None:
    with pytest.raises(ValueError, match="name is 'cell_cycle', which is what a coordinate of the model is called"):
        model.find_axis(adata, "cell_cycle", obs="cell_type")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda model, cells: model.phase(cells), "this model has no periodic coordinate: fit one with VAE(periodic="),
        (lambda model, cells: model.latent_traverse(cells, "cell_cycle"), "cell_cycle"),
    ],
)
def test_without_a_circle_there_is_none(use: Callable[[VAE, AnnData], Any], words: str) -> None:
    cells = simulate()
    model = VAE(2, 8).fit(cells, max_epochs=1, progress=False)
    assert model.transform(cells, include_periodic=True).shape == (60, 2)
    with pytest.raises((ValueError, KeyError), match=re.escape(words)):
        use(model, cells)


def test_empty_cells_are_where_the_prior_says(model: VAE, new: AnnData) -> None:
    cells = new.copy()
    del cells.obs["has_rna"], cells.obs["has_atac"]  # which would be said to be wrong
    counts = cells.X.toarray()
    counts[:3] = 0
    cells.X = counts
    with pytest.warns(UserWarning, match="3 of 100 cells have no count"):
        table = model.phase(cells)
    assert np.isfinite(table.drop(columns="cell_cycle_phase")).all(axis=None)
    np.testing.assert_array_equal(table["cell_cycle_concentration"][:3], 0)
    np.testing.assert_allclose(
        table["cell_cycle_active_probability"][:3], model.module_.circle.active_logit.sigmoid(), rtol=1e-4
    )
    with pytest.warns(UserWarning, match="3 of 100 cells have no count"):
        np.testing.assert_array_equal(model.transform(cells)[:3], 0)


def test_empty_cells_take_no_part_in_training() -> None:
    cells = genes_of(make_cells(150))
    del cells.obs["has_rna"], cells.obs["has_atac"]  # which would be said to be wrong
    counts = cells.X.toarray()
    counts[:5] = 0
    cells.X = counts
    with pytest.warns(UserWarning, match="5 of 150 cells have no count"):
        make_model().fit(cells, max_epochs=2, progress=False)
    assert np.isfinite(cells.obs["cell_cycle_angle"]).all()
    assert np.isfinite(cells.obsm["X_celldial"]).all()


# --- Inside -----------------------------------------------------------------------------------------------------------


def make_module(cells: Cells, decoder: DecoderName = "network") -> Module:
    torch.manual_seed(0)
    likelihood = {"rna": "negative_binomial", "atac": "bernoulli"}
    options = {"n_latent": 3, "dropout_rate": 0.2, "periodic": True, "decoder": decoder}
    module = build_module(likelihood=likelihood, **sizes_of(cells), **options)
    module.initialize(cells)
    return module


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_gets_a_gradient(decoder: DecoderName) -> None:
    cells = simulate_two_cells(covariates=True)
    module = make_module(cells, decoder).train()
    cells = replace(cells, angle_params_cq=pack_angle_posterior(torch.rand(60) * 6, torch.rand(60), torch.rand(60)))
    module(cells).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_the_loss_is_the_elbo_and_what_keeps_angle_and_coordinates_apart(kl_weight: float) -> None:
    cells = simulate_two_cells(covariates=True)
    cells = replace(cells, angle_params_cq=pack_angle_posterior(torch.rand(60) * 6, torch.rand(60), torch.rand(60)))
    module = make_module(cells).eval()
    losses = []
    for _ in range(100):
        with torch.no_grad():
            losses.append(float(module(cells, kl_weight)))
    parts = []
    for _ in range(100):
        with torch.no_grad():
            log_likelihood, kl_c = module.elbo(cells)
            weighted_c = sum(module.modality_weights[name] * part_c for name, part_c in log_likelihood.items())
            parts.append(float((kl_weight * kl_c - weighted_c).mean()))
    assert np.mean(losses) >= np.mean(parts) - 4 * np.std(parts) / 10
    torch.testing.assert_close(module.elbo(cells)[1], kl_c)


@settings(max_examples=20, deadline=None)
@given(angle=st.floats(0, 6.28), turns=st.integers(-2, 2))
def test_decoding_is_periodic(angle: float, turns: int, fitted: tuple[VAE, AnnData]) -> None:
    states = np.zeros((2, 6))
    at = np.array([angle, angle + turns * TURN])
    states[:, 4], states[:, 5] = np.cos(at), np.sin(at)
    once, again = fitted[0].decode(states)
    np.testing.assert_allclose(once, again, rtol=1e-4, atol=1e-5)


def test_with_an_additive_decoder() -> None:
    cells = make_cells(300)
    model = make_model(decoder="additive", n_latent=6).fit(cells, **OPTIONS)
    assert set(COLUMNS) <= set(cells.obs.columns)
    cycling = cells.obs[cells.obs["is_cycling"]]
    assert fisher_lee(cycling["cell_cycle_angle"], cycling["truth"]) > 0.4
    states = model.transform(cells, include_periodic=True)
    np.testing.assert_allclose(model.decode(states), model.denoise(cells), rtol=1e-4, atol=1e-4)
    # What the circle adds to log rates is the same whatever the other coordinates are, up to the normalisation.
    moved = np.zeros((4, 8), dtype=np.float32)
    moved[:, 6:] = [[1, 0], [-1, 0], [1, 0], [-1, 0]]
    moved[2:, 0] = 2.0
    for _, modality in model.module_.by_modality():
        modality.decoder.tilt_kz.zero_()
    log_f = np.log(model.decode(moved))
    difference = (log_f[0] - log_f[1]) - (log_f[2] - log_f[3])
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-3)


def test_with_covariates() -> None:
    cells = genes_of(make_cells(200))
    likewise = simulate(200)
    for name in ("batch", "donor", "age"):
        cells.obs[name] = likewise.obs[name].to_numpy()
    model = make_model(**COVARIATES).fit(cells, max_epochs=2, progress=False)
    assert Schema.from_dict(cells.uns["celldial"]["schema"]).batch_key == "batch"
    values = {"batch": "b0", "donor": "x", "age": 30.0}
    assert model.sample(5, values).obsm["z"].shape == (5, 6)
    path = model.latent_traverse(cells, "cell_cycle", n_steps=3, n_cells=8, transform_batch={"batch": "b1"})
    assert path.n_obs == 3


# --- Real cells -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sorted_stem_cells_are_told_apart(shared_data: Path) -> None:
    """Mouse ES cells, sorted by their DNA content: the phase is read off the angle, in the right order."""
    cells = read_h5ad(shared_data / "mesc_cell_cycle.h5ad")
    VAE(periodic="cell_cycle").fit(cells, progress=False)
    angle, phase = cells.obs["cell_cycle_angle"].to_numpy(), cells.obs["phase"].to_numpy()
    place = np.column_stack([np.cos(angle), np.sin(angle)])
    assert knn_f1(place, phase, n_neighbors=15) >= 0.7
    assert cyclic_order(angle, phase, ["G1", "S", "G2M"]) >= 0.75

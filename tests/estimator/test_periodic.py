"""A VAE with a periodic coordinate: parameters, results in the AnnData, saved models, invalid input."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from celldial import VAE
from celldial.datasets._regulation import CELL_CYCLE_GENES
from celldial.periodic.markers import CELL_CYCLE
from helpers.periodic import COLUMNS, OPTIONS, PARTS, TURN, fit_once, genes_of, make_cells, make_model
from helpers.raises import raises, warns
from helpers.simulate import simulate


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


def test_results_in_the_anndata(model: VAE, adata: AnnData) -> None:
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
    assigned = obs["cell_cycle_active"] & (obs["cell_cycle_concentration"] >= 1)  # other angles are too uncertain
    np.testing.assert_array_equal(obs["cell_cycle_phase"].notna(), assigned)
    assert adata.obsm["X_celldial"].shape == (400, 4)
    described = adata.uns["celldial"]["periodic"]
    assert described["name"] == "cell_cycle"
    assert list(described["phases"]) == ["G1", "S", "G2M"]
    assert described["direction_probability"] > 0.99
    assert described["p_value"] < 0.001
    assert described["fold_change"]["G2M"] > 2.5
    assert described["is_found"]
    assert described["phase_start"][0] == 0
    assert (np.diff(described["phase_start"]) > 0).all()
    assert set(described["markers"]["S"]) < set(adata.var_names)
    assert {"MCM5", "PCNA"} <= set(described["markers"]["S"])
    assert {"TOP2A", "MKI67"} <= set(described["markers"]["G2M"])
    assert model.module_.n_states == 6


def test_a_model_without_circle_keeps_the_columns_of_an_earlier_one(model: VAE, adata: AnnData) -> None:
    """They can still be plotted, and be replaced by another model with a circle."""
    angle = adata.obs["cell_cycle_angle"].copy()
    VAE(n_latent=2, n_hidden=8).fit(adata, **OPTIONS)
    pd.testing.assert_series_equal(adata.obs["cell_cycle_angle"], angle)
    assert adata.uns["celldial"]["periodic"]["name"] == "cell_cycle"
    model.phase(adata)
    make_model().fit(adata, max_epochs=2, progress=False)


def test_a_saved_model_gives_identical_results(model: VAE, adata: AnnData, new: AnnData, tmp_path: Path) -> None:
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


def test_results_survive_a_file(model: VAE, adata: AnnData, tmp_path: Path) -> None:
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
    # The model can be used on the cells from the file, which have its columns.
    pd.testing.assert_frame_equal(model.phase(back), adata.obs[list(model.phase(adata).columns)])
    model.partial_fit(back, max_epochs=1, progress=False)


def test_fit_can_write_the_position_on_the_circle() -> None:
    cells = make_cells(150)
    embedding = make_model().fit_transform(cells, max_epochs=1, progress=False, include_periodic=True)
    assert embedding.shape == cells.obsm["X_celldial"].shape == (150, 6)


def test_mudata() -> None:
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


def test_markers_are_found_by_a_column_of_symbols(tmp_path: Path) -> None:
    cells = genes_of(make_cells(150))
    named = make_model().fit(cells.copy(), max_epochs=1, progress=False)
    cells.var["symbol"] = [name.capitalize() for name in cells.var_names]
    cells.var_names = [f"ENSMUSG{number:011}" for number in range(cells.n_vars)]
    with raises(ValueError, naming=["0 of the 43 S markers", "0 of the 54 G2M markers", "gene_symbols"]):
        make_model().fit(cells, max_epochs=1, progress=False)
    assert not set(COLUMNS) & set(cells.obs.columns)
    assert "celldial" not in cells.uns
    with raises(KeyError, naming=["symbols"]):
        make_model(gene_symbols="symbols").fit(cells, max_epochs=1, progress=False)
    model = make_model(gene_symbols="symbol").fit(cells, max_epochs=1, progress=False)
    markers = cells.uns["celldial"]["periodic"]["markers"]
    assert all(name.startswith("ENSMUSG") for names in markers.values() for name in names)
    assert {len(names) for names in markers.values()} == {len(names) for names in named.periodic_["markers"].values()}
    # New cells do not need the column.
    other = cells.copy()
    del other.var["symbol"]
    model.save(tmp_path / "model.celldial")
    assert VAE.load(tmp_path / "model.celldial").phase(other).shape == (150, 5)


CLOCK = {
    "name": "clock",
    "phases": {"first": ["MCM5", "PCNA", "TYMS", "GINS2", "MCM2"], "second": ["TOP2A", "MKI67", "CENPF", "TPX2"]},
}


# Hours at which the simulation lets genes peak.
PEAKS = {
    "peaks": {gene: CELL_CYCLE_GENES[gene] for gene in [*CLOCK["phases"]["first"], *CLOCK["phases"]["second"]]},
    "period": 24,
}


def test_two_phases_leave_the_direction_open() -> None:
    cells = genes_of(make_cells(150))
    with warns(naming=["clock", "'peaks'"]):
        make_model(periodic=CLOCK).fit(cells, max_epochs=1, progress=False)
    assert cells.uns["celldial"]["periodic"]["direction_probability"] == 0.5
    assert list(cells.obs["clock_phase"].cat.categories) == ["first", "second"]


def test_cells_without_a_cycle_are_not_active_and_have_no_phase(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = [*CELL_CYCLE.markers["S"], *CELL_CYCLE.markers["G2M"]]
    rate = random.gamma(0.5, 1, (3, len(names)))[random.integers(0, 3, 150)] * random.lognormal(0, 0.4, (150, 1))
    cells = AnnData(random.poisson(rate).astype(np.float32), var=pd.DataFrame(index=names))
    cells.obs["cell_cycle_phase"] = "G1"  # of another model
    cells.uns["celldial"] = {"periodic": {"name": "cell_cycle"}}
    with warns(naming=["cell_cycle", "0.01"]):
        model = make_model().fit(cells, max_epochs=1, progress=False)
    assert model.periodic_["p_value"] > 0.01
    assert not model.periodic_["is_found"]
    assert not cells.obs["cell_cycle_active"].any()
    assert "cell_cycle_phase" not in cells.obs
    with warns(naming=["cell_cycle", "fdr"]):
        model.latent_traverse(cells, "cell_cycle", n_steps=3)
    model.save(tmp_path / "model.celldial")
    assert not VAE.load(tmp_path / "model.celldial").phase(cells)["cell_cycle_active"].any()


def test_resting_cells_are_not_active() -> None:
    """The resting cells of the simulation differ in how far they are in G1."""
    cells = genes_of(make_cells(1200))
    cells = cells[~cells.obs["is_cycling"]][:300].copy()
    with warns(naming=["cell_cycle", "2.2"]):
        make_model().fit(cells, max_epochs=4, progress=False)
    assert cells.uns["celldial"]["periodic"]["fold_change"]["G2M"] < 2.2
    assert not cells.obs["cell_cycle_active"].any()
    assert "cell_cycle_phase" not in cells.obs


def test_a_custom_process(tmp_path: Path) -> None:
    cells = genes_of(make_cells(400))
    model = make_model(periodic=CLOCK | PEAKS).fit(cells, **OPTIONS)
    assert model.periodic_["direction_probability"] > 0.95
    assert model.periodic_["direction_genes"] <= len(PEAKS["peaks"])
    assert list(cells.obs["clock_phase"].cat.categories) == ["first", "second"]
    assert 0 < cells.obs["clock_phase"].notna().sum() <= cells.obs["clock_active"].sum()
    assert set(cells.uns["celldial"]["periodic"]["markers"]["first"]) == set(CLOCK["phases"]["first"])
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    assert loaded.get_params()["periodic"] == CLOCK | PEAKS
    assert loaded.periodic_["direction_probability"] == model.periodic_["direction_probability"]
    pd.testing.assert_frame_equal(loaded.phase(cells.copy()), model.phase(cells.copy()))
    model.latent_traverse(cells, "clock", n_steps=3, n_cells=8)
    cells.write_h5ad(tmp_path / "cells.h5ad")


def test_too_few_markers_write_nothing() -> None:
    cells = simulate()
    before = cells.copy()
    with raises(ValueError, naming=["0 of the 43 S markers", "0 of the 54 G2M markers", "cell_cycle"]):
        make_model().fit(cells, **OPTIONS)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert not cells.uns
    assert not cells.obsm


@pytest.mark.parametrize("part", PARTS)
def test_a_column_of_the_user_is_not_replaced(part: str) -> None:
    cells = make_cells(60)
    cells.obs[f"cell_cycle_{part}"] = 0.5
    for use in (lambda: make_model().fit(cells, **OPTIONS), lambda: fit_once()[0].phase(cells)):
        with raises(ValueError, naming=["adata.obs", f"'cell_cycle_{part}'"]):
            use()
    assert (cells.obs[f"cell_cycle_{part}"] == 0.5).all()
    assert "celldial" not in cells.uns


def test_columns_of_an_earlier_model_are_replaced(adata: AnnData) -> None:
    before = adata.obs[COLUMNS].copy()
    make_model(seed=1).fit(adata, max_epochs=1, progress=False)
    assert not adata.obs["cell_cycle_angle"].equals(before["cell_cycle_angle"])


@pytest.mark.parametrize("periodic", ["cell cycle", 3, {"name": "a"}])
def test_invalid_periodic(periodic: Any) -> None:
    with raises((ValueError, TypeError), naming=["periodic"]):
        VAE(periodic=periodic).fit(simulate(), **OPTIONS)


def test_the_name_of_the_circle_cannot_name_an_axis(model: VAE, adata: AnnData) -> None:
    with raises(ValueError, naming=["'cell_cycle'"]):
        model.find_axis(adata, "cell_cycle", obs="cell_type")


@pytest.mark.parametrize(
    ("use", "fact"),
    [
        (lambda model, cells: model.phase(cells), "periodic"),
        (lambda model, cells: model.latent_traverse(cells, "cell_cycle"), "cell_cycle"),
    ],
)
def test_a_model_without_circle(use: Callable[[VAE, AnnData], Any], fact: str) -> None:
    cells = simulate()
    model = VAE(2, 8).fit(cells, max_epochs=1, progress=False)
    assert model.transform(cells, include_periodic=True).shape == (60, 2)
    with raises((ValueError, KeyError), naming=[fact]):
        use(model, cells)

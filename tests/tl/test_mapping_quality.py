"""How similar cells are to the reference: calibration, cells of a new type, closed forms, files, bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

from celldial import VAE
from celldial.inference.reference import ReferenceSummary, exceedance
from helpers.assertions import assert_untouched
from helpers.fit import fit, fit_clusters
from helpers.raises import raises
from helpers.simulate import simulate_groups, simulate_two, with_empty_cells, write

COLUMNS = [f"celldial_mapping_{name}" for name in ("likelihood", "distance", "quality")]


@pytest.fixture(scope="module")
def groups() -> AnnData:
    """Return cells of three groups in two batches; group C is only in the second."""
    adata = simulate_groups((200, 200, 60))
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 3 > 0, "b0", "b1")
    adata.obs["label"] = adata.obs["group"]
    return adata[(adata.obs["group"] != "C") | (adata.obs["batch"] == "b1")].copy()


@pytest.fixture(scope="module")
def model(groups: AnnData) -> VAE:
    reference = groups[groups.obs["batch"] == "b0"].copy()
    return fit_clusters(
        reference, labels_key="label", batch_key="batch", validation_cells=np.arange(len(reference)) < 80
    )


@pytest.fixture
def query(groups: AnnData) -> AnnData:
    return groups[groups.obs["batch"] == "b1"].copy()


def test_cells_of_a_new_type_are_found(model: VAE, query: AnnData) -> None:
    mapped = model.map_query(query, progress=False)
    is_new_c = (query.obs["group"] == "C").to_numpy()
    for name in ("distance", "quality", "likelihood"):
        score_c = query.obs[f"celldial_mapping_{name}"].to_numpy()
        assert (
            stats.mannwhitneyu(score_c[~is_new_c], score_c[is_new_c]).statistic
            > 0.9 * is_new_c.sum() * (~is_new_c).sum()
        )
    assert (query.obs["celldial_mapping_distance"][is_new_c] < 0.05).mean() > 0.8
    assert (query.obs["celldial_mapping_distance"][~is_new_c] < 0.05).mean() < 0.2
    is_unassigned_c = query.obs["celldial_cluster"] == "unassigned"
    assert is_unassigned_c[is_new_c].mean() >= 0.8
    assert is_unassigned_c[~is_new_c].mean() <= 0.1
    assert mapped.label_classifier_ is not None
    assert "b1" in mapped.label_classifier_.batch_scale


def test_reference_cells_are_uniform(groups: AnnData) -> None:
    """New cells of the same groups and batch have about the same numbers as validation cells."""
    adata = groups[(groups.obs["group"] != "C")].copy()
    held_out_c, new_c = np.arange(len(adata)) % 4 == 0, np.arange(len(adata)) % 4 == 1
    model = fit_clusters(adata[~new_c].copy(), validation_cells=held_out_c[~new_c])
    table = model.mapping_quality(adata[new_c].copy())
    for name in ("likelihood", "distance"):
        assert stats.kstest(table[name], "uniform").statistic < 0.25
    assert (table["quality"] <= 0.1).mean() < 0.2


def test_result(model: VAE, query: AnnData, tmp_path: Path) -> None:
    query.obs["batch"] = "b0"
    before = query.copy()
    table = model.mapping_quality(query)
    pd.testing.assert_frame_equal(query.obs[COLUMNS].set_axis(table.columns, axis=1), table)
    assert_untouched(query, before, but=("obs", "uns"))
    assert list(query.obs.columns.drop(COLUMNS)) == list(before.obs.columns)
    assert query.uns["celldial"]["written"]["obs"] == dict.fromkeys(COLUMNS, model.fingerprint_)
    model.save(tmp_path / "m.celldial")
    loaded = VAE.load(tmp_path / "m.celldial")
    pd.testing.assert_frame_equal(loaded.mapping_quality(query), table)
    pd.testing.assert_frame_equal(model.mapping_quality(write(before, tmp_path / "cells.h5ad")), table)


def test_cells_without_counts(model: VAE, query: AnnData) -> None:
    query.obs["batch"] = "b0"
    table = model.mapping_quality(with_empty_cells(query, 2))
    assert table.index[table["quality"].isna()].tolist() == [query.obs_names[2]]


def test_each_modality_counts() -> None:
    adata = simulate_two(200)
    model = fit(adata.copy(), max_epochs=20)
    genes_alone = model.mapping_quality(adata[:, :20].copy())
    assert genes_alone.notna().all(axis=None)
    assert (genes_alone["likelihood"] != model.mapping_quality(adata.copy())["likelihood"]).any()


def test_fit_without_validation_cells(groups: AnnData) -> None:
    model = fit(groups.copy(), validation_size=0.0)
    assert model.reference_ is not None
    assert len(model.reference_.distance_c) > 50
    assert model.mapping_quality(groups.copy()).notna().all(axis=None)


def test_partial_fit_updates_the_summary(groups: AnnData) -> None:
    model = fit(groups.copy())
    before = model.reference_
    model.partial_fit(groups.copy(), max_epochs=1, progress=False)
    assert model.reference_ is not None
    assert not np.array_equal(model.reference_.z_rz, before.z_rz)


# --- Closed forms -----------------------------------------------------------------------------------------------------


def test_exceedance() -> None:
    assert exceedance(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 9.0])).tolist() == [1.0, 0.75, 0.25]


def test_depth_is_matched() -> None:
    """The residual of validation cells falls with their depth; only those of similar depth matter."""
    n_cells = 400
    depth_c = np.linspace(0, 10, n_cells)
    noise_c = np.random.default_rng(0).normal(size=n_cells)
    summary = ReferenceSummary(np.zeros((20, 2)), np.ones(2), np.zeros(n_cells), noise_c - 10 * depth_c, depth_c)
    found = summary.compare(np.zeros((3, 2)), np.array([-50.0, -80.0, -20.0]), np.full(3, 5.0))
    assert 0.3 < found.likelihood_c[0] < 0.7
    assert found.likelihood_c[1] < 0.02
    assert found.likelihood_c[2] > 0.98
    assert summary.compare(np.zeros((1, 2)), np.array([-1000.0]), np.array([99.0])).likelihood_c < 0.02


def test_distance_is_in_standard_deviations() -> None:
    z_rz = np.zeros((20, 2))
    summary = ReferenceSummary(z_rz, np.array([1.0, 10.0]), np.array([0.5, 1.5, 2.5]), np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(summary.distance(np.array([[0.0, 20.0], [1.0, 0.0]])), [2, 1])
    assert summary.compare(np.array([[0.0, 20.0]]), np.zeros(1), np.zeros(1)).distance_c.tolist() == [0.5]
    restored = ReferenceSummary.from_dict(summary.to_dict())
    np.testing.assert_array_equal(restored.distance_c, summary.distance_c)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_model_of_an_earlier_version(root: Path, query: AnnData) -> None:
    model = VAE.load(root / "tests" / "golden" / "model_v5.celldial")
    assert model.reference_ is None
    with raises(ValueError):
        model.mapping_quality(query)


@pytest.mark.parametrize("method", [VAE.mapping_quality, VAE.map_query])
def test_columns_of_the_user_stay(model: VAE, query: AnnData, method: Any) -> None:
    query.obs["batch"], query.obs[COLUMNS[0]] = "b0", 1.0
    before = query.copy()
    with raises(ValueError, naming=[COLUMNS[0]]):
        method(model, query)
    assert_untouched(query, before)

"""RNA kinetics of a fitted model: results against the truth of simulated cells, what is written, and bad input."""

import copy
import importlib
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator

import celldial as cd
from celldial.inference.fitted_model import infer_all
from celldial.inference.posterior import CirclePosterior, LatentState
from helpers.raises import raises, warns

module = importlib.import_module("celldial.tl.kinetics_cells")
CONCENTRATION = 20.0


class KnownCircle(BaseEstimator):
    """A model that has inferred the angles of simulated cells, with an error that it knows. Training takes longer."""

    kinetics = cd.tl.kinetics
    seed = 0
    fingerprint_ = "known"
    schema_ = SimpleNamespace(batch_key=None)
    periodic_: ClassVar = {
        "name": "cell_cycle",
        "phases": ["G1", "S", "G2M"],
        "phase_start": np.array([0.0, np.pi, 5 * np.pi / 3]),
        "is_found": True,
    }

    def fit(self):
        return self

    def __sklearn_is_fitted__(self):
        return True


def infer_angles(model, adata):
    """Return draws around the true angles. The errors are those of the posterior, because both are symmetric."""
    n_cells = adata.n_obs
    error_c = np.random.default_rng(0).vonmises(0, CONCENTRATION / 2, n_cells)
    angle_c = (adata.obs["true_cell_cycle_angle"].to_numpy() + error_c) % (2 * np.pi)
    one_c = np.ones(n_cells)
    circle = CirclePosterior(angle_c, CONCENTRATION * one_c, one_c, one_c)
    nothing = np.zeros((n_cells, 1))
    return LatentState(nothing, nothing, nothing, circle), adata.obs


@pytest.fixture(autouse=True, scope="module")
def _known_angles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "infer_all", infer_angles)
        yield


@pytest.fixture(scope="module")
def fitted():
    adata = cd.datasets.simulate_kinetics(600, 80, 30, depth=3, speed_ratio=2.0, seed=1)
    adata.uns["celldial"] = {}
    return KnownCircle(), adata


@pytest.fixture(scope="module")
def inferred(fitted, _known_angles):
    model, adata = fitted
    adata = adata.copy()
    return model, adata, model.kinetics(adata, groupby="condition", cycle_hours=24)


def test_speeds_and_rates_are_close_to_the_truth(inferred):
    _, adata, table = inferred
    treated = table.loc["treated"]
    assert treated["speed_ratio_lower"] < 2.0 < treated["speed_ratio_upper"]
    assert treated["probability_faster"] > 0.95
    known = adata.var.dropna(subset=["cell_cycle_gamma"])
    known = known[known["is_cycling"]]
    assert len(known) > 20
    for rate in ("gamma", "beta"):
        assert np.corrcoef(np.log(known[f"cell_cycle_{rate}"]), np.log(known[f"true_{rate}"]))[0, 1] > 0.7


def test_durations_are_in_hours_if_the_reference_is_known(inferred):
    _, adata, table = inferred
    assert table.loc["control", "duration"] == pytest.approx(24)
    assert table.loc["treated", "duration"] == pytest.approx(24 / table.loc["treated", "speed_ratio"], rel=0.02)
    stored = adata.uns["celldial"]["kinetics"]
    # The duration of the cycle is the integral of the reciprocal speed, up to the difference of medians.
    np.testing.assert_allclose((2 * np.pi / stored["speed"]).mean(1), table["duration"], rtol=0.05)
    assert stored["unit"] == "hours"


def test_shares_of_phases_sum_to_one(inferred):
    _, _, table = inferred
    shares = table[["share_G1", "share_S", "share_G2M"]]
    np.testing.assert_allclose(shares.sum(1), 1, atol=0.02)


def test_the_comparison_is_with_the_reference(fitted, inferred):
    model, adata = fitted
    table = model.kinetics(adata.copy(), groupby="condition", reference="treated")
    # The seed determines the draws.
    assert table.loc["treated", "share_S"] == inferred[2].loc["treated", "share_S"]
    assert np.isnan(table.loc["treated", "speed_ratio"])
    ratio = inferred[2].loc["treated", "speed_ratio"]
    assert table.loc["control", "speed_ratio"] == pytest.approx(1 / ratio, rel=0.02)


def test_what_is_written(fitted, inferred):
    model, adata, table = inferred
    stored = adata.uns["celldial"]["kinetics"]
    pd.testing.assert_frame_equal(stored["table"], table)
    used = adata.var["cell_cycle_gamma"].notna()
    assert adata.var_names[used].tolist() == stored["genes"].tolist()
    for rate in ("beta", "gamma"):
        middle, lower, upper = (adata.var[f"cell_cycle_{rate}{end}"][used] for end in ("", "_lower", "_upper"))
        assert ((lower < middle) & (middle < upper)).all()
    # Rates are relative to the geometric mean of the degradation rates.
    assert np.log(adata.var["cell_cycle_gamma"][used]).mean() == pytest.approx(0, abs=0.05)
    speed_c = adata.obs["cell_cycle_speed"]
    assert speed_c.notna().sum() == stored["n_cells"]
    assert (speed_c.dropna() > 0).all()
    assert set(adata.uns["celldial"]["written"]["var"].values()) == {model.fingerprint_}


def test_results_survive_a_file_and_can_be_removed(inferred, tmp_path):
    import anndata

    adata = inferred[1].copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_allclose(
        adata.uns["celldial"]["kinetics"]["speed"], inferred[1].uns["celldial"]["kinetics"]["speed"]
    )
    cd.tl.remove_results(adata)
    assert not [name for name in adata.var if str(name).startswith("cell_cycle_")]
    assert "cell_cycle_speed" not in adata.obs


def test_one_group_has_no_comparison(fitted):
    model, adata = fitted
    genes = list(adata.var_names[adata.var["is_cycling"]][:8])
    half_life = {gene: np.log(2) / adata.var.loc[gene, "true_gamma"] for gene in genes}
    table = model.kinetics(adata.copy(), features=genes, half_life=half_life)
    assert table.index.tolist() == ["all"]
    assert table["speed_ratio"].isna().all()
    # Of cells whose cycles take 24 and 12 hours.
    assert 10 < table.loc["all", "duration"] < 30


@pytest.mark.parametrize(
    ("arguments", "error", "facts"),
    [
        ({"unspliced": "nascent"}, KeyError, ["nascent", "spliced", "unspliced"]),
        ({"groupby": "treatment"}, KeyError, ["treatment"]),
        ({"reference": "control"}, ValueError, ["control", "groupby"]),
        ({"groupby": "condition", "reference": "drug"}, KeyError, ["drug", "control", "treated"]),
        ({"features": ["MCM5", "NOTAGENE"]}, KeyError, ["NOTAGENE"]),
        ({"features": ["MCM5", "MCM5"]}, ValueError, ["MCM5"]),
        ({"features": ["GENE0040", "GENE0041"]}, ValueError, ["2", "5"]),
        ({"half_life": {"NOTAGENE": 3.0}}, KeyError, ["NOTAGENE"]),
        ({"half_life": {"MCM5": -3.0}}, ValueError, ["MCM5", "-3"]),
        ({"half_life": 3.0}, TypeError, ["half_life", "3.0"]),
        ({"cycle_hours": 0}, ValueError, ["cycle_hours", "0"]),
        ({"cycle_hours": 24, "half_life": {"MCM5": 3.0}}, ValueError, ["cycle_hours", "half_life"]),
        ({"n_samples": 5}, ValueError, ["n_samples", "100"]),
    ],
)
def test_bad_arguments_write_nothing(fitted, arguments, error, facts):
    model, adata = fitted
    adata = adata.copy()
    with raises(error, naming=facts):
        model.kinetics(adata, **arguments)
    assert "kinetics" not in adata.uns["celldial"]
    assert "cell_cycle_speed" not in adata.obs


def with_layer(adata, name, matrix):
    adata = adata.copy()
    adata.layers[name] = matrix
    return adata


def test_layers_without_raw_counts(fitted):
    model, adata = fitted
    with raises(ValueError, naming=["unspliced"]):
        model.kinetics(with_layer(adata, "unspliced", adata.layers["unspliced"] * 0.5))
    with raises(ValueError, naming=["unspliced"]):
        model.kinetics(with_layer(adata, "unspliced", adata.layers["unspliced"] * 0))


def test_models_without_a_cycle_are_refused(fitted):
    model, adata = fitted
    for periodic, facts in (
        (None, ["VAE(periodic='cell_cycle')"]),
        ({**model.periodic_, "is_found": False}, ["cell cycle"]),
        ({key: value for key, value in model.periodic_.items() if key != "phases"}, ["direction"]),
    ):
        other = copy.copy(model)
        other.periodic_ = periodic  # of this object alone
        with raises(ValueError, naming=facts):
            other.kinetics(adata.copy())


def test_cells_that_do_not_cycle_are_refused(fitted, monkeypatch):
    model, adata = fitted

    def resting(*arguments):
        latent_state, obs = infer_angles(*arguments)
        circle = latent_state.circle._replace(active=np.zeros_like(latent_state.circle.active))
        return latent_state._replace(circle=circle), obs

    monkeypatch.setattr(module, "infer_all", resting)
    with raises(ValueError, naming=["600", "cell cycle", "cell_cycle_active"]):
        model.kinetics(adata.copy())


def test_small_groups_are_left_out(fitted):
    model, adata = fitted
    adata = adata.copy()
    adata.obs["group"] = np.where(np.arange(adata.n_obs) < 20, "few", "many")
    with warns(UserWarning, naming=["few", "20", "50"]):
        table = model.kinetics(adata, groupby="group", features=list(adata.var_names[:6]))
    assert table.index.tolist() == ["many"]
    adata.obs["group"] = (np.arange(adata.n_obs) // 40).astype(str)
    with raises(ValueError, naming=["group", "50"]):
        model.kinetics(adata, groupby="group")


def test_counts_that_do_not_inform_the_speed_lead_to_a_warning(fitted, monkeypatch):
    model, adata = fitted
    # Any posterior is then as wide as this share of the prior.
    monkeypatch.setattr(importlib.import_module("celldial.inference.kinetics.summary"), "UNINFORMED", 1e-6)
    with warns(UserWarning, naming=["all", "prior"]):
        model.kinetics(adata.copy(), features=list(adata.var_names[adata.var["is_cycling"]][:8]))


def test_columns_of_the_user_are_not_replaced(fitted):
    model, adata = fitted
    for table in ("obs", "var"):
        own = adata.copy()
        name = "cell_cycle_speed" if table == "obs" else "cell_cycle_beta"
        getattr(own, table)[name] = 1.0
        with raises(ValueError, naming=[name]):
            model.kinetics(own)


@pytest.mark.slow
def test_kinetics_after_a_fit(monkeypatch):
    monkeypatch.setattr(module, "infer_all", infer_all)
    adata = cd.datasets.simulate_kinetics(1000, 150, depth=3, speed_ratio=2.0, seed=1)
    model = cd.VAE(periodic="cell_cycle", batch_key="batch").fit(adata, max_epochs=40, progress=False)
    treated = model.kinetics(adata, groupby="condition").loc["treated"]
    assert treated["speed_ratio_lower"] < 2.0 < treated["speed_ratio_upper"]

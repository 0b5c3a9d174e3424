"""Traversals with intervals over replicates, such as donors."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import stats

from celldial import VAE, pl
from celldial.tl import replicate_curves
from helpers.assertions import assert_untouched
from helpers.raises import raises

# --- Arrays -----------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_t_distribution() -> None:
    random = np.random.default_rng(0)
    curve_dsf = random.lognormal(0, 0.3, (5, 4, 3))
    mean_sf, variance_sf, change_variance_f, _ = replicate_curves.summarize(curve_dsf, closed=False)
    np.testing.assert_allclose(mean_sf, curve_dsf.mean(0), rtol=1e-6)
    error_sf = stats.sem(curve_dsf, axis=0) / curve_dsf.mean(0)
    np.testing.assert_allclose(np.sqrt(variance_sf), error_sf, rtol=1e-5)
    low, high = stats.t.interval(0.9, 4, 0, 1)
    np.testing.assert_allclose([-replicate_curves.half_width(5), replicate_curves.half_width(5)], [low, high])
    for f in range(3):
        ends = curve_dsf[:, mean_sf[:, f].argmax(), f] / curve_dsf[:, mean_sf[:, f].argmin(), f]
        np.testing.assert_allclose(np.sqrt(change_variance_f[f]), stats.sem(np.log(ends)), rtol=1e-5)


def test_two_steps_are_compared_by_a_paired_t_test() -> None:
    curve_dsf = np.random.default_rng(0).lognormal(0, 0.3, (6, 2, 50))
    found_f = replicate_curves.summarize(curve_dsf, closed=False)[3]
    expected_f = stats.ttest_rel(np.log(curve_dsf[:, 1]), np.log(curve_dsf[:, 0]), axis=0).pvalue
    np.testing.assert_allclose(found_f, expected_f, rtol=1e-5)


@pytest.mark.parametrize("n_replicates", [3, 5, 10])
def test_intervals_and_p_values_are_calibrated(n_replicates: int) -> None:
    """Donors whose flat curves differ by a level and by noise at each step."""
    random = np.random.default_rng(0)
    n_steps, n_features = 5, 6000
    level_d1f = random.normal(0, 0.3, (n_replicates, 1, n_features))
    curve_dsf = np.exp(level_d1f + random.normal(0, 0.1, (n_replicates, n_steps, n_features)))
    mean_sf, variance_sf, _, p_value_f = replicate_curves.summarize(curve_dsf, closed=False)
    truth = np.exp((0.3**2 + 0.1**2) / 2)
    distance_f = np.abs(np.log(mean_sf[0] / truth)) / np.sqrt(variance_sf[0])
    assert 0.87 < (distance_f < replicate_curves.half_width(n_replicates)).mean() < 0.92
    assert 0.03 < (p_value_f < 0.05).mean() < 0.055


def test_a_trend_that_all_replicates_share_is_found() -> None:
    random = np.random.default_rng(0)
    trend_s1 = np.linspace(0, 1, 9)[:, None]
    curve_dsf = np.exp(random.normal(0, 0.5, (4, 1, 100)) + trend_s1 + random.normal(0, 0.05, (4, 9, 100)))
    assert (replicate_curves.summarize(curve_dsf, closed=False)[3] < 0.01).mean() > 0.9


def test_small_changes_around_a_circle_count_as_flat() -> None:
    angle_s = np.linspace(0, 2 * np.pi, 13)
    same_dsf = np.exp(np.tile(0.01 * np.sin(angle_s), (4, 1)))[:, :, None]
    assert replicate_curves.summarize(same_dsf, closed=True)[3] > 0.5
    assert replicate_curves.summarize(same_dsf**100, closed=True)[3] < 0.05


# --- Cells ------------------------------------------------------------------------------------------------------------


def test_the_curves_of_donors_are_those_of_their_cells(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(adata, 0, n_steps=4, n_cells=1000, n_samples=50, replicates="donor")
    assert list(path.uns["replicates"]) == ["x", "y", "z"]
    assert path.uns["n_cells"] == 60
    state_cz = model_3d.transform(adata)
    curves = []
    for donor in "xyz":
        of_donor_c = (adata.obs["donor"] == donor).to_numpy()
        steps = []
        for position in path.obs["position"]:
            moved_cz = state_cz[of_donor_c].copy()
            moved_cz[:, 0] = position
            steps.append(model_3d.decode(moved_cz, adata.obs[of_donor_c]).mean(0))
        curves.append(steps)
    np.testing.assert_allclose(path.X, np.mean(curves, 0), rtol=0.1)
    # The band is that of the t distribution with two degrees of freedom.
    width_sf = np.log(path.layers["upper"] / path.X)
    expected_sf = stats.t.ppf(0.95, 2) * stats.sem(curves, axis=0) / np.mean(curves, 0)
    assert np.median(width_sf / expected_sf) == pytest.approx(1, abs=0.3)
    np.testing.assert_allclose(np.log(path.X / path.layers["lower"]), width_sf, rtol=1e-3, atol=1e-5)


def test_replicates_are_stored_and_drawn(model_3d: VAE, adata: AnnData, tmp_path: Path) -> None:
    path = model_3d.latent_traverse(adata, 0, n_steps=3, replicates="donor")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.uns["latent_traverse"]["axis_0"]["lower"], path.layers["lower"])
    figure = pl.latent_traverse(back, features=["g1"], return_fig=True)
    texts = [text.get_text() for part in figure.subfigs for legend in part.legends for text in legend.get_texts()]
    assert any("confidence interval over 3 replicates" in text for text in texts)
    plt.close("all")
    model_3d.latent_traverse(adata, 0, n_steps=3)
    assert "replicates" not in adata.uns["latent_traverse"]["axis_0"]


def test_cells_without_a_donor_are_left_out(model_3d: VAE, adata: AnnData) -> None:
    adata.obs["donor_or_none"] = adata.obs["donor"].astype(object)
    adata.obs.loc[adata.obs_names[:30], "donor_or_none"] = None
    path = model_3d.latent_traverse(adata, 0, n_steps=3, n_cells=1000, replicates="donor_or_none")
    assert path.uns["n_cells"] == 30


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"replicates": "batch"}, ValueError, ["'batch'", 2, 3, "'b0'", "'b1'"]),
        ({"replicates": "patient"}, KeyError, ["'patient'", "'donor'"]),
        ({"replicates": "donor", "at": {"donor": "x"}}, ValueError, ["'donor'", 1, "'x'"]),
        ({"replicates": "donor", "axis": ("A", "B")}, ValueError, ["'donor'", "find_axis"]),
    ],
)
def test_wrong_replicates_are_named(
    model_3d: VAE, adata: AnnData, options: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    before = adata.copy()
    with raises(error, naming=facts):
        model_3d.latent_traverse(adata, **options)
    assert_untouched(adata, before)
    pd.testing.assert_frame_equal(adata.obs, before.obs)

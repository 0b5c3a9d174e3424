"""Simulated unspliced and spliced counts: the equations, the truth in the AnnData, and bad arguments."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from celldial.datasets import simulate_kinetics
from celldial.datasets.kinetics import SpeedProfile, solve
from helpers.raises import raises


def test_the_solution_is_that_of_the_equations():
    profile = SpeedProfile.make(2.0)
    beta, gamma, duration = 0.7, 0.2, 20.0

    def transcription(time):
        angle = profile.angle_at(np.asarray(time) / duration % 1)
        return 0.1 + np.exp(2 * (np.cos(angle - 1) - 1))

    def derivative(time, state):
        return [transcription(time) - beta * state[0], beta * state[0] - gamma * state[1]]

    time_t = np.arange(1024) * duration / 1024
    u_tg, s_tg = solve(transcription(time_t)[:, None], np.array([beta]), np.array([gamma]), duration)
    # After many cycles, the solution is periodic whatever the start.
    late = solve_ivp(derivative, (0, 6 * duration), [0, 0], t_eval=5 * duration + time_t[::64], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(late.y, [u_tg[::64, 0], s_tg[::64, 0]], rtol=2e-3)


@pytest.mark.parametrize("s_phase_speed", [1.0, 2.0])
def test_the_truth_about_the_speed_is_consistent(s_phase_speed):
    adata = simulate_kinetics(4000, 60, 60, s_phase_speed=s_phase_speed, speed_ratio=1.5)
    truth = adata.uns["simulation"]
    assert sum(truth["phase_share"].values()) == pytest.approx(1)
    for condition, hours in truth["cycle_hours"].items():
        # The duration of a cycle is the integral of the reciprocal speed.
        assert (2 * np.pi / truth["speed"][condition]).mean() == pytest.approx(hours, rel=1e-3)
    outside, inside = truth["speed"]["control"].iloc[[10, 42]]
    assert inside / outside == pytest.approx(s_phase_speed, rel=1e-3)
    # Cells of a growing population, at the time since division.
    g1 = truth["phase_share"]["G1"]
    assert (adata.obs["phase"] == "G1").mean() == pytest.approx(2 * (1 - 2**-g1), abs=0.03)


def test_counts_follow_the_rates():
    adata = simulate_kinetics(3000, 60, 60, 1, depth=5, speed_ratio=1.0)
    unspliced_g, spliced_g = (np.asarray(adata.layers[name].mean(0)).ravel() for name in ("unspliced", "spliced"))
    # Over a whole cycle, β ∫u dt = γ ∫s dt. Cells are not spread evenly over time, which changes the ratio slightly.
    ratio_g = adata.var["true_gamma"] / adata.var["true_beta"]
    np.testing.assert_allclose(np.log(unspliced_g / spliced_g), np.log(ratio_g), atol=0.35)
    assert (adata.X != adata.layers["spliced"]).nnz == 0
    assert (adata.X.data == adata.X.data.round()).all()


def test_only_cycling_genes_change_with_the_angle():
    adata = simulate_kinetics(4000, 80, 40, 1, depth=5)
    rate_cg = adata.layers["spliced"].toarray() / adata.obs["size"].to_numpy()[:, None]
    late_c = adata.obs["true_cell_cycle_angle"] > np.pi
    change_g = np.abs(np.log(rate_cg[late_c].mean(0) / rate_cg[~late_c].mean(0)))
    assert np.median(change_g[:40]) > 5 * np.median(change_g[40:])
    assert adata.var["pulse_angle"].notna().tolist() == adata.var["is_cycling"].tolist()
    assert {"MCM5", "TOP2A"} & set(adata.var_names[:40])


def test_the_seed_determines_the_data():
    one, same, other = (simulate_kinetics(50, 60, 60, seed=seed) for seed in (1, 1, 2))
    for layer in ("spliced", "unspliced"):
        assert (one.layers[layer] != same.layers[layer]).nnz == 0
        assert (one.layers[layer] != other.layers[layer]).nnz > 0


@pytest.mark.parametrize(
    ("arguments", "error", "facts"),
    [
        ({"n_cells": 0}, ValueError, ["n_cells", "0"]),
        ({"n_cells": 1.5}, TypeError, ["n_cells", "1.5"]),
        ({"n_genes": 20}, ValueError, ["n_cycling_genes", "60", "20"]),
        ({"speed_ratio": -1.0}, ValueError, ["speed_ratio", "-1"]),
        ({"s_phase_speed": "fast"}, TypeError, ["s_phase_speed", "fast"]),
        ({"depth": np.nan}, ValueError, ["depth", "nan"]),
        ({"seed": -1}, ValueError, ["seed", "-1"]),
    ],
)
def test_bad_arguments(arguments, error, facts):
    with raises(error, naming=facts):
        simulate_kinetics(**arguments)

#!/usr/bin/env python
"""RNA kinetics: rates and ratios of speeds of simulated cells against the truth, and the coverage of intervals.

    python -m benchmarks.ablations.kinetics [--seeds 10] [--cells 3000] [--angles known noisy fitted] [--epochs auto]
    python -m benchmarks.ablations.kinetics --time
    python -m benchmarks.ablations.kinetics --real PATH_OF_NEUROGENESIS

The angles are known exactly, or known with an error of 0.3 radians and its distribution, or those of a fitted model.
"""

from __future__ import annotations

import argparse
import importlib
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
from sklearn.base import BaseEstimator

import celldial
from celldial.inference.posterior import CirclePosterior, LatentState

NOISE = 0.3
# Ratio of speeds, and speed in S phase relative to the other phases.
SETTINGS = {"1.5": (1.5, 1.0), "1.0": (1.0, 1.0), "1.5, S twice as fast": (1.5, 2.0)}


class KnownCircle(BaseEstimator):
    """A model with a circle whose angles are given."""

    seed = 0
    fingerprint_ = "known"
    schema_ = SimpleNamespace(batch_key="batch")
    periodic_ = {  # noqa: RUF012
        "name": "cell_cycle",
        "phases": ["G1", "S", "G2M"],
        "phase_start": np.array([0, np.pi, 5 * np.pi / 3]),
    }

    def fit(self) -> KnownCircle:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True


def circle_of(adata: ad.AnnData, noise: float, seed: int) -> tuple[LatentState, Any]:
    """Return posteriors of the angles, whose errors have the distribution that the posteriors state."""
    random = np.random.default_rng(seed)
    n_cells, concentration = adata.n_obs, 2 / max(noise, 0.02) ** 2
    sign_c = random.choice([-1, 1], n_cells)
    error_c = sign_c * np.arccos(1 - 2 * random.beta(0.5, concentration + 0.5, n_cells))
    angle_c = (adata.obs["true_cell_cycle_angle"].to_numpy() + error_c) % (2 * np.pi)
    one_c, nothing = np.ones(n_cells), np.zeros((n_cells, 1))
    return LatentState(
        nothing, nothing, nothing, CirclePosterior(angle_c, concentration * one_c, one_c, one_c)
    ), adata.obs


def infer(adata: ad.AnnData, angles: str, seed: int, epochs: int | None) -> tuple[Any, float]:
    """Return the table of groups, and the seconds that the inference took."""
    if angles == "fitted":
        model = celldial.VAE(periodic="cell_cycle", batch_key="batch", seed=seed)
        model.fit(adata, progress=False, **({} if epochs is None else {"max_epochs": epochs}))
        start = time.perf_counter()
        return model.kinetics(adata, groupby="condition"), time.perf_counter() - start
    state = circle_of(adata, NOISE if angles == "noisy" else 0.0, seed)
    module = importlib.import_module("celldial.tl.kinetics_cells")
    with mock.patch.object(module, "infer_all", return_value=state):
        start = time.perf_counter()
        table = celldial.tl.kinetics(KnownCircle(), adata, groupby="condition")
    return table, time.perf_counter() - start


def measure(seed: int, n_cells: int, setting: str, angles: str, epochs: int | None) -> dict[str, float]:
    """Return measurements of one simulated data set."""
    ratio, s_speed = SETTINGS[setting]
    adata = celldial.datasets.simulate_kinetics(n_cells, speed_ratio=ratio, s_phase_speed=s_speed, seed=seed)
    table, seconds = infer(adata, angles, seed, epochs)
    treated = table.loc["treated"]
    found = {"ratio": treated["speed_ratio"], "seconds": seconds}
    found["covered"] = float(treated["speed_ratio_lower"] < ratio < treated["speed_ratio_upper"])
    # A difference in either direction, at the level of 5 %.
    found["claimed"] = float(abs(treated["probability_faster"] - 0.5) > 0.475)
    used = adata.var[adata.var["is_cycling"] & adata.var["cell_cycle_gamma"].notna()]
    found["n_genes"] = float(adata.var["cell_cycle_gamma"].notna().sum())
    for rate in ("gamma", "beta"):
        true_f, log_f = np.log(used[f"true_{rate}"]), np.log(used[f"cell_cycle_{rate}"])
        found[f"r_{rate}"] = float(np.corrcoef(true_f, log_f)[0, 1])
        shift = np.mean(np.log(used["true_gamma"])) - np.mean(np.log(used["cell_cycle_gamma"]))
        lower_f, upper_f = (np.log(used[f"cell_cycle_{rate}_{end}"]) + shift for end in ("lower", "upper"))
        found[f"covered_{rate}"] = float(((lower_f < true_f) & (true_f < upper_f)).mean())
    truth = adata.uns["simulation"]["phase_share"]
    error = [abs(table[f"share_{phase}"].to_numpy() / share - 1) for phase, share in truth.items()]
    found["phase_error"] = float(np.mean(error))
    found["phase_error_max"] = float(np.max(error))
    return found


def simulated(seeds: int, n_cells: int, angles: list[str], settings: list[str], epochs: int | None) -> None:
    for kind in angles:
        for setting in settings:
            runs = []
            for seed in range(seeds):
                runs.append(measure(seed, n_cells, setting, kind, epochs))
                print(f"  {kind:7s} {setting:22s} {seed:2d}", {k: round(v, 3) for k, v in runs[-1].items()}, flush=True)
            print(f"{kind:7s} ratio {setting:22s} | {summarize(runs)}", flush=True)


def summarize(runs: list[dict[str, float]]) -> str:
    """Return a line of means over seeds, and worst values."""
    mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
    low = {key: min(run[key] for run in runs) for key in ("r_gamma", "r_beta")}
    high = max(run["phase_error_max"] for run in runs)
    return (
        f"r log γ {mean['r_gamma']:.2f} (worst {low['r_gamma']:.2f}), log β {mean['r_beta']:.2f} (worst "
        f"{low['r_beta']:.2f}) | ratio {mean['ratio']:.2f}, covered {mean['covered']:.2f}, difference claimed "
        f"{mean['claimed']:.2f} | covered γ {mean['covered_gamma']:.2f}, β {mean['covered_beta']:.2f} | "
        f"error of phases {mean['phase_error']:.2f} (worst {high:.2f}) | "
        f"{mean['seconds']:.0f} s, {mean['n_genes']:.0f} genes"
    )


def timing() -> None:
    """Time 5,000 cells and 100 genes that cycle."""
    adata = celldial.datasets.simulate_kinetics(5000, 500, 100)
    state = circle_of(adata, NOISE, 0)
    module = importlib.import_module("celldial.tl.kinetics_cells")
    with mock.patch.object(module, "infer_all", return_value=state):
        start, cpu = time.perf_counter(), time.process_time()
        genes = list(adata.var_names[adata.var["is_cycling"]])
        celldial.tl.kinetics(KnownCircle(), adata, groupby="condition", features=genes)
    print(f"5,000 cells × 100 genes: {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU")


def real(path: str, epochs: int | None) -> None:
    """Infer kinetics of progenitors, and check that neurons are refused."""
    adata = ad.read_h5ad(path)
    adata.X = adata.layers["spliced"].copy()
    model = celldial.VAE(periodic="cell_cycle").fit(
        adata, progress=False, **({} if epochs is None else {"max_epochs": epochs})
    )
    print(adata.obs.groupby("cell_type", observed=True)["cell_cycle_active"].agg(["size", "sum"]))
    table = model.kinetics(adata)
    stored = adata.uns["celldial"]["kinetics"]
    print(table.T, stored["n_genes"], "genes", stored["n_cells"], "cells")
    for cell_type in adata.obs["cell_type"].unique():
        part = adata[adata.obs["cell_type"] == cell_type].copy()
        try:
            model.kinetics(part)
            print(cell_type, "accepted")
        except ValueError as error:
            print(cell_type, "refused:", error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--angles", nargs="+", default=["known", "noisy", "fitted"])
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--real", metavar="PATH")
    options = parser.parse_args()
    if options.time:
        timing()
    elif options.real:
        real(options.real, options.epochs)
    else:
        simulated(options.seeds, options.cells, options.angles, options.settings, options.epochs)


if __name__ == "__main__":
    main()

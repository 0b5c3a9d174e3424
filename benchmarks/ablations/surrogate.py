#!/usr/bin/env python
"""A surrogate of `simulate_multiome`: its cells and its speed beside the simulator, and the coverage of intervals.

    python -m benchmarks.ablations.surrogate [--settings 64] [--cells 400] [--left-out 8] [--datasets 50]
    python -m benchmarks.ablations.surrogate --real PATH_OF_A549_MULTIOME

Three parameters vary: the depth, the spread of programs between cells of a type, and the share of cycling cells. All
runs have the same genome and cell types. With ``--real``, the cells of one hour are left out of a time course of
dexamethasone, and their change of expression is predicted.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import qmc

import celldial
from celldial.datasets import multiome

N_GENES, N_PEAKS, N_CELLS = 200, 600, 2000
RANGES = {"log2_depth": (-1.0, 1.0), "program_noise": (0.05, 0.6), "cycling": (0.1, 0.9)}
# Genes that dexamethasone changes in the training cells.
N_CHANGED = 100
# Counts per 10,000 that are added before logarithms, and passes over these few cells.
PSEUDOCOUNT, REAL_EPOCHS = 0.5, 60


def simulator(log2_depth: float, program_noise: float, cycling: float) -> ad.AnnData:
    """Simulate 2,000 cells."""
    shares = max(cycling - 0.1, 0.0), min(cycling + 0.1, 1.0)
    with mock.patch.multiple(multiome, _PROGRAM_NOISE=program_noise, _CYCLING_SHARES=shares):
        return celldial.datasets.simulate_multiome(N_CELLS, N_GENES, N_PEAKS, n_batches=1, depth=2**log2_depth, seed=0)


def draw_settings(n: int, seed: int, ranges: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Return settings that fill the ranges evenly."""
    low, high = zip(*ranges.values(), strict=True)
    unit = qmc.LatinHypercube(len(ranges), seed=seed).random(n)
    return pd.DataFrame(qmc.scale(unit, low, high), columns=list(ranges))


def simulated(options: argparse.Namespace) -> None:
    settings = draw_settings(options.settings, options.seed, RANGES)
    start = time.perf_counter()
    surrogate = celldial.surrogate.fit(simulator, settings, options.cells, seed=options.seed, progress=False)
    print(f"fitted in {time.perf_counter() - start:.0f} s", flush=True)
    if surrogate.calibration is not None:
        print("error of the surrogate, in standard deviations of the prior", surrogate.calibration.deviation_k.round(2))
    ranges = surrogate.space.ranges
    left_out = draw_settings(options.left_out, options.seed + 1, ranges)
    table = celldial.surrogate.compare(surrogate, simulator, left_out, 1000)
    print(table.round(3).to_string())
    print(table.iloc[:, len(ranges) :].agg(["mean", "min", "max"]).round(3).to_string(), flush=True)
    coverage(surrogate, draw_settings(options.datasets, options.seed + 2, ranges), options)


def coverage(surrogate: celldial.surrogate.Surrogate, settings: pd.DataFrame, options: argparse.Namespace) -> None:
    """Infer the parameters of many data sets, and print how often 90 % intervals contain the truth."""
    random = np.random.default_rng(options.seed)
    rows, start = [], time.perf_counter()
    for _, setting in settings.iterrows():
        cells = simulator(**setting)
        cells = cells[random.choice(N_CELLS, options.infer_cells, replace=False)].copy()
        table = celldial.surrogate.infer(surrogate, cells).table
        covered = table["lower"].to_numpy() <= setting.to_numpy()
        covered &= setting.to_numpy() <= table["upper"].to_numpy()
        width = np.array([high - low for low, high in surrogate.space.ranges.values()])
        error = np.abs(table["median"].to_numpy() - setting.to_numpy()) / width
        interval = (table["upper"] - table["lower"]).to_numpy() / width
        rows.append(np.column_stack([covered, error, interval, table["information"]]))
    seconds = (time.perf_counter() - start) / len(rows)
    found = pd.DataFrame(
        np.mean(rows, axis=0), index=settings.columns, columns=["coverage", "error", "interval", "information"]
    )
    print(found.round(3).to_string())
    print(f"coverage of all {len(rows)} × {len(found)}: {found['coverage'].mean():.3f}, {seconds:.1f} s each")


def real(path: str, seeds: int) -> None:
    """Predict the change of expression after one hour from cells of 0 and 3 hours."""
    cells = ad.read_h5ad(path)
    rna = cells[:, (cells.var["feature_types"] == "Gene Expression").to_numpy()].copy()
    rna.obs["hours"] = rna.obs["treatment_hours"].astype(str).str.rstrip("h").astype(float)
    runs = []
    for seed in range(seeds):
        runs.append(predict_hour(rna, seed))
        print(f"seed {seed}", {name: round(value, 3) for name, value in runs[-1].items()}, flush=True)
    print(pd.DataFrame(runs).agg(["mean", "min", "max"]).round(3).to_string())


def predict_hour(rna: ad.AnnData, seed: int) -> dict[str, float]:
    """Return correlations of predicted changes with those of the cells that were left out.

    Half of the cells of 0 hours are for the fit. The other half is the reference of the true change, so that the noise
    of the reference is not shared with any prediction. The genes are those with the largest change between 0 and 3
    hours, by the t-statistic of the training cells.
    """
    hours_c = rna.obs["hours"].to_numpy()
    zero = np.random.default_rng(seed).permutation(np.flatnonzero(hours_c == 0))
    half = len(zero) // 2
    training = rna[np.concatenate([zero[:half], np.flatnonzero(hours_c == 3)])].copy()
    late_c = training.obs["hours"].to_numpy() == 3
    early, late = training[~late_c].copy(), training[late_c].copy()
    genes = np.argsort(-np.abs(t_statistics(training, late_c)))[:N_CHANGED]

    def change(after_f: np.ndarray, before_f: np.ndarray) -> np.ndarray:
        return np.log((after_f + PSEUDOCOUNT) / (before_f + PSEUDOCOUNT))[genes]

    true_change = change(level(rna[hours_c == 1]), level(rna[zero[half:]]))
    start, end = level(early), level(late)
    model = celldial.VAE(continuous_covariate_keys=["hours"], basis={"hours": "spline"}, seed=seed)
    model.fit(training, max_epochs=REAL_EPOCHS, progress=False)
    first = expected(model, early, 0.0)
    # Two thirds of the cells are like those of 0 hours and a third like those of 3 hours, all decoded at 1 hour.
    middle = 2 / 3 * expected(model, early, 1.0) + 1 / 3 * expected(model, late, 1.0)
    denoised = first + (expected(model, late, 3.0) - first) / 3
    predictions = {
        "linear interpolation": change(start + (end - start) / 3, start),
        "linear interpolation of denoised means": change(denoised, first),
        "early cells at 1 hour": change(expected(model, early, 1.0), first),
        "all cells at 1 hour": change(middle, first),
    }
    return {name: float(np.corrcoef(each, true_change)[0, 1]) for name, each in predictions.items()}


def expected(model: celldial.VAE, cells: ad.AnnData, hours: float) -> np.ndarray:
    """Return the mean expected counts per 10,000 of cells at a time."""
    mean: np.ndarray = model.denoise(cells, transform_batch={"hours": hours}).to_numpy().mean(0)
    return mean


def level(cells: ad.AnnData) -> np.ndarray:
    """Return the counts per 10,000 of all cells together."""
    total_f = np.asarray(cells.X.sum(0)).ravel()
    return 1e4 * total_f / total_f.sum()


def t_statistics(cells: ad.AnnData, group_c: np.ndarray) -> np.ndarray:
    """Return t-statistics of log counts between two groups."""
    x_cf = cells.X.toarray()
    x_cf = np.log1p(x_cf / x_cf.sum(1, keepdims=True) * np.median(x_cf.sum(1)))
    one, other = x_cf[group_c], x_cf[~group_c]
    error_f = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other) + 1e-9)
    return (one.mean(0) - other.mean(0)) / error_f


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=64)
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--infer-cells", type=int, default=200)
    parser.add_argument("--left-out", type=int, default=8)
    parser.add_argument("--datasets", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--real", metavar="PATH")
    options = parser.parse_args()
    if options.real:
        real(options.real, options.seeds)
    else:
        simulated(options)


if __name__ == "__main__":
    main()

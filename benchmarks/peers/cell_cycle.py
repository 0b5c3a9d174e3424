#!/usr/bin/env python
"""Accuracy and stability of the cell cycle angle, compared with baselines, in one table.

    python -m benchmarks.peers.cell_cycle --data DIR --out cell_cycle.json

Set OMP_NUM_THREADS=1 if the machine is busy. See benchmarks/README.md for the rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import torch
from benchmarks.harness import Row, conditions, markdown
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict

from celldial import VAE
from celldial.datasets import simulate_multiome
from celldial.metrics import angular_error, cyclic_order, fisher_lee, fourier_r2, knn_f1
from celldial.periodic import expression, initial_angles
from celldial.periodic.markers import CELL_CYCLE, find_markers
from celldial.utils.settings import settings

CIRCLE = "cell_cycle"
DEPTHS = (1.0, 6.0)
MODALITIES: dict[str, dict[str, str] | None] = {"RNA+ATAC": None, "RNA": {"rna": "Gene Expression"}}
INTERFERON = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "ISG20", "LY6E")
N_RISERS = 20
# Files are cut to this number of the most variable genes, and the markers.
N_GENES = {"balf": 2000}
N_GRID = 120
AGREES = 0.8

Measured = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Sizes of the measurements."""

    folder: Path | None
    seeds: int
    many: int
    simulations: int
    n_cells: int
    epochs: int | str


# --- Data and fits ----------------------------------------------------------------------------------------------------


@functools.cache
def read(size: Size, name: str) -> ad.AnnData:
    """Read a file. Wide files are cut to `N_GENES` genes and the markers."""
    if size.folder is None:
        raise FileNotFoundError(f"{name}.h5ad is needed: pass its folder, --data DIR")
    adata = ad.read_h5ad(size.folder / f"{name}.h5ad")
    if name in N_GENES:
        logged_cf = log_normalize(adata)
        variance_f = np.asarray(logged_cf.power(2).mean(0) - np.square(logged_cf.mean(0))).ravel()
        own_f = np.concatenate(list(markers_of(adata).values()))
        adata = adata[:, np.union1d(np.argsort(-variance_f)[: N_GENES[name]], own_f)].copy()
    return adata


@functools.cache
def simulate(size: Size, depth: float, seed: int) -> ad.AnnData:
    return simulate_multiome(size.n_cells, 500, 3000, n_types=3, n_batches=2, depth=depth, truth=True, seed=seed)


@functools.cache
def fit_file(size: Size, name: str, seed: int) -> ad.AnnData:
    return fit(size, read(size, name), seed=seed)


def fit(size: Size, adata: ad.AnnData, **arguments: Any) -> ad.AnnData:
    """Fit a model with a periodic coordinate to a copy of the cells."""
    adata, arguments = adata.copy(), {"periodic": CIRCLE, **arguments}
    started = time.perf_counter()
    VAE(**arguments).fit(adata, max_epochs=size.epochs, progress=False)
    adata.uns["seconds"] = time.perf_counter() - started
    print(f"fitted {adata.n_obs} × {adata.n_vars} in {adata.uns['seconds']:.0f} s", file=sys.stderr, flush=True)
    return adata


def phases_of(adata: ad.AnnData) -> pd.Series:
    """Return the phases of fitted cells, all missing if no cycle was found or its direction is open."""
    if f"{CIRCLE}_phase" in adata.obs:
        return adata.obs[f"{CIRCLE}_phase"]
    return pd.Series(pd.Categorical([None] * adata.n_obs, CELL_CYCLE.phases), adata.obs_names)


def genes_of(adata: ad.AnnData) -> ad.AnnData:
    if "feature_types" not in adata.var:
        return adata
    return adata[:, (adata.var["feature_types"] == "Gene Expression").to_numpy()]


def counts_of(adata: ad.AnnData) -> csr_matrix:
    return csr_matrix(adata.X).astype(np.float64)


def log_normalize(adata: ad.AnnData) -> csr_matrix:
    counts_cf = counts_of(adata)
    return expression.log_normalize(counts_cf, np.asarray(counts_cf.sum(1)).ravel())


def markers_of(adata: ad.AnnData) -> dict[str, np.ndarray]:
    return find_markers(CELL_CYCLE, adata.var_names, np.asarray(counts_of(adata).sum(0)).ravel() > 0)


# --- Baselines --------------------------------------------------------------------------------------------------------


def standardized(values_cf: np.ndarray) -> np.ndarray:
    deviation_f = values_cf.std(0)
    return (values_cf - values_cf.mean(0)) / np.where(deviation_f > 0, deviation_f, 1)


def marker_scores(adata: ad.AnnData) -> dict[str, np.ndarray]:
    """Return the mean of the z-scored markers of each phase."""
    logged_cf = log_normalize(adata)
    return {name: standardized(logged_cf[:, own].toarray()).mean(1) for name, own in markers_of(adata).items()}


def baselines(adata: ad.AnnData) -> dict[str, np.ndarray]:
    """Return angles by simpler methods, from the genes alone."""
    logged_cf, markers, score = log_normalize(adata), markers_of(adata), marker_scores(adata)
    own_f = np.concatenate(list(markers.values()))
    first, second = PCA(2, random_state=0).fit_transform(standardized(logged_cf[:, own_f].toarray())).T
    with mock.patch.object(initial_angles, "GENE_COUNTS", (0,)):  # no genes other than the markers
        from_markers, _ = initial_angles.initial_angles(logged_cf, np.ones(adata.n_obs), markers, CELL_CYCLE)
    counts_cf = counts_of(adata)
    active_c = initial_angles.initial_activity(counts_cf, counts_cf.sum(1).A1, markers)
    start, _ = initial_angles.initial_angles(logged_cf, active_c, markers, CELL_CYCLE)
    return {
        "atan2 of scores": np.arctan2(standardized(score["G2M"]), standardized(score["S"])),
        "PCA of markers": np.arctan2(second, first),
        "EM on markers": from_markers.angle_c,
        "initial angles of celldial": start.angle_c,
    }


def components(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(PCA(10, random_state=0).fit_transform(log_normalize(adata).toarray()))


def harmonics(angle_c: np.ndarray) -> np.ndarray:
    """Return cos θ, sin θ, cos 2θ, sin 2θ."""
    return np.stack([part(n * angle_c) for n in (1, 2) for part in (np.cos, np.sin)], -1)


class Oracle:
    """Infers the angle of simulated cells from their counts, given the true values of everything else.

    It computes the log-likelihood of the counts on a grid of angles, with the true levels, effects, programs, batches,
    dispersions and library sizes.
    """

    def __init__(self, adata: ad.AnnData) -> None:
        self.angle_j = np.arange(N_GRID) * (2 * np.pi / N_GRID)
        self.true_c = adata.obs["true_cell_cycle_angle"].to_numpy()
        effect_f4 = adata.varm["cell_cycle_effect"]
        rest_cf = np.log(adata.layers["mean"].astype(float)) - harmonics(self.true_c) @ effect_f4.T
        effect_jf = harmonics(self.angle_j) @ effect_f4.T
        counts_cf = counts_of(adata)
        is_gene_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
        self.log_cj: dict[str, np.ndarray] = {}
        for name, own_f in (("rna", is_gene_f), ("atac", ~is_gene_f)):
            own_cf, size_c = counts_cf[:, own_f], adata.obs[f"{name}_library_size"].to_numpy()
            level_cf, factor_jf = np.exp(rest_cf[:, own_f]), np.exp(effect_jf[:, own_f])
            scale_cj = size_c[:, None] / (level_cf @ factor_jf.T)
            # For Poisson counts, all terms that depend on the angle: the means sum to the library size.
            self.log_cj[name] = own_cf @ effect_jf[:, own_f].T + own_cf.sum(1).A1[:, None] * np.log(scale_cj)
            if name == "rna":
                shape_f, dense_cf = adata.var["inverse_dispersion"].to_numpy()[own_f], own_cf.toarray()
                for j, factor_f in enumerate(factor_jf):
                    mean_cf = level_cf * factor_f * scale_cj[:, [j]]
                    self.log_cj[name][:, j] -= ((dense_cf + shape_f) * np.log(mean_cf + shape_f)).sum(1)

    def angle(self, modalities: str, which_c: np.ndarray) -> np.ndarray:
        """Return the posterior mean direction of some cells; the prior is the density of angles among them."""
        edges = np.append(self.angle_j, 2 * np.pi)
        prior_j = np.histogram(self.true_c[which_c], edges)[0] + 1.0
        log_cj = sum(self.log_cj[name] for name in ("rna", "atac") if name.upper() in modalities)[which_c]
        weight_cj = np.exp(log_cj - log_cj.max(1, keepdims=True)) * prior_j
        # The center of each interval of the grid, because the prior counts angles by interval.
        return np.angle(weight_cj @ np.exp(1j * (self.angle_j + np.pi / N_GRID))) % (2 * np.pi)


# --- Rows -------------------------------------------------------------------------------------------------------------


def row(
    measure: str, ours: float, others: dict[str, float], at_least: float | None = None, at_most: float | None = None
) -> Row:
    """Return the row of a score, with a note if the oracle does not reach the aim."""
    comparison = ", ".join(f"{name}: {value:.3f}" for name, value in others.items())
    if at_least is None and at_most is None:
        return Row(measure, f"{ours:.3f}", comparison, ours)
    aim, sign = (at_least, 1) if at_least is not None else (at_most, -1)
    text = f"{'≥' if sign > 0 else '≤'} {aim:g}"
    if "oracle" in others and sign * (others["oracle"] - aim) < 0:
        text += " (not reached by the oracle)"
    return Row(measure, f"{ours:.3f}", comparison, ours, text, sign * (ours - aim) >= 0)


def medians(tables: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(table[name] for table in tables) for name in tables[0]}


def either_way(order: float) -> float:
    """Return the cyclic order of an angle with an arbitrary direction."""
    return max(order, 1 - order)


# --- Simulated cells --------------------------------------------------------------------------------------------------


def angle_scores(angle_c: np.ndarray, true_c: np.ndarray, has_origin: bool) -> dict[str, float]:
    """Return the three measures of angles; the last one only for angles with a fixed origin."""
    scores = {
        "Fisher–Lee": abs(fisher_lee(angle_c, true_c)),
        "error, rad": angular_error(angle_c, true_c, reflect=not has_origin),
    }
    return scores | ({"error without rotation, rad": angular_error(angle_c, true_c, align=False)} if has_origin else {})


AIMS: dict[str, dict[str, float]] = {
    "Fisher–Lee": {"at_least": 0.95},
    "error, rad": {"at_most": 0.25},
    "error without rotation, rad": {"at_most": 0.3},
}


def measure_simulated(size: Size) -> tuple[list[Row], Measured]:
    """Compare angles, activity and types with the truth."""
    rows, measured = [], {}
    for depth in DEPTHS:
        cells = [simulate(size, depth, seed) for seed in range(size.simulations)]
        oracles = [Oracle(adata) for adata in cells]
        for modalities, given in MODALITIES.items():
            of_seed = [
                score_simulated(size, adata, oracle, modalities, given, seed)
                for seed, (adata, oracle) in enumerate(zip(cells, oracles, strict=True))
            ]
            about = f"simulated, depth {depth:g}, {modalities}"
            measured[about] = of_seed
            for name in of_seed[0]:
                scores = medians([scores[name] for scores in of_seed])
                aim = AIMS.get(name.rsplit(" of ", 1)[0], {})
                rows.append(row(f"{about}: {name}", scores.pop("celldial"), scores, **aim))
    return rows, measured


def score_simulated(
    size: Size, adata: ad.AnnData, oracle: Oracle, modalities: str, given: dict[str, str] | None, seed: int
) -> dict[str, dict[str, float]]:
    """Return all scores of one fit, with those of the other methods."""
    fitted = fit(size, adata, batch_key="batch", modalities=given, seed=seed)
    true_c = adata.obs["true_cell_cycle_angle"].to_numpy()
    cycling_c = adata.obs["is_cycling"].to_numpy()
    genes = genes_of(adata)
    others = baselines(genes)
    table: dict[str, dict[str, float]] = {}
    for which, which_c in (("cycling cells", cycling_c), ("all cells", np.ones_like(cycling_c))):
        angles = {"celldial": fitted.obs[f"{CIRCLE}_angle"].to_numpy()[which_c]}
        angles["oracle"] = oracle.angle(modalities, which_c)
        angles |= {name: angle_c[which_c] for name, angle_c in others.items()}
        for who, angle_c in angles.items():
            anchored = not who.startswith(("atan2", "PCA"))
            for name, score in angle_scores(angle_c, true_c[which_c], anchored).items():
                table.setdefault(f"{name} of {which}", {})[who] = score
    phase_c, found_c = adata.obs["phase"], phases_of(fitted)
    best_c = np.digitize(oracle.angle(modalities, cycling_c), [np.pi, 5 * np.pi / 3])
    table["share of cycling cells whose cell_cycle_phase is true"] = {
        "celldial": float(np.mean(found_c.to_numpy() == phase_c.to_numpy(), where=cycling_c)),
        "oracle": float(np.mean(best_c == phase_c.cat.codes.to_numpy()[cycling_c])),
    }
    level_c = sum(marker_scores(genes).values())
    active_c = fitted.obs[f"{CIRCLE}_active_probability"]
    table["AUROC of is_cycling by the probability of being active"] = {
        "celldial": float(roc_auc_score(cycling_c, active_c)),
        "mean of markers": float(roc_auc_score(cycling_c, level_c)),
    }
    table["15-NN macro-F1 of cell_type on X_celldial"] = {
        "celldial": knn_f1(fitted.obsm["X_celldial"], adata.obs["cell_type"]),
        "PCA of genes": knn_f1(components(genes), adata.obs["cell_type"]),
    }
    table["15-NN macro-F1 of phase on X_celldial, cycling cells"] = {
        "celldial": knn_f1(fitted.obsm["X_celldial"][cycling_c], phase_c[cycling_c]),
        "PCA of genes": knn_f1(components(genes)[cycling_c], phase_c[cycling_c]),
    }
    return table


def measure_without_markers(size: Size) -> tuple[list[Row], Measured]:
    """Measure the same simulation without markers."""
    rows, measured = [], {}
    for depth in DEPTHS:
        tables = []
        for seed in range(size.simulations):
            adata = simulate(size, depth, seed)
            fitted = fit(size, adata, periodic=True, batch_key="batch", seed=seed)
            cycling_c = adata.obs["is_cycling"].to_numpy()
            angle_c, true_c = fitted.obs["cycle_angle"].to_numpy(), adata.obs["true_cell_cycle_angle"].to_numpy()
            oracle = Oracle(adata)
            table = {}
            for which, which_c in (("cycling cells", cycling_c), ("all cells", np.ones_like(cycling_c))):
                ours = angle_scores(angle_c[which_c], true_c[which_c], False)
                best = angle_scores(oracle.angle("RNA+ATAC", which_c), true_c[which_c], False)
                table |= {f"{name} of {which}": {"celldial": ours[name], "oracle": best[name]} for name in ours}
            tables.append(table)
        measured[f"depth {depth:g}"] = tables
        for name in tables[0]:
            scores = medians([table[name] for table in tables])
            aim = {"at_least": 0.85} if name.startswith("Fisher") else {}
            rows.append(row(f"simulated, depth {depth:g}, no markers: {name}", scores.pop("celldial"), scores, **aim))
    return rows, measured


# --- Sorted cells -----------------------------------------------------------------------------------------------------


def on_circle(angle_c: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle_c), np.sin(angle_c)], 1)


def measure_mesc(size: Size) -> tuple[list[Row], Measured]:
    """Compare the angle with the phases into which cells were sorted."""
    adata = read(size, "mesc_cell_cycle")
    phase_c = adata.obs["phase"]
    runs = []
    for seed in range(size.seeds):
        fitted = fit_file(size, "mesc_cell_cycle", seed)
        angle_c, found_c = fitted.obs[f"{CIRCLE}_angle"].to_numpy(), phases_of(fitted).astype(object)
        table = pd.crosstab(phases_of(fitted), phase_c)
        runs.append(
            {
                "f1": knn_f1(on_circle(angle_c), phase_c),
                "order": cyclic_order(angle_c, phase_c),
                "rest": knn_f1(fitted.obsm["X_celldial"], phase_c),
                "agrees": float(np.mean(found_c.to_numpy() == phase_c.to_numpy())),
                "found × sorted": table.to_dict("index"),
                "active": float(fitted.obs[f"{CIRCLE}_active"].mean()),
                "seconds": fitted.uns["seconds"],
                "angle": np.round(angle_c, 4).tolist(),
            }
        )
    others = baselines(adata)
    f1 = {name: knn_f1(on_circle(angle_c), phase_c) for name, angle_c in others.items()}
    order = {name: either_way(cyclic_order(angle_c, phase_c)) for name, angle_c in others.items()}
    chance = [np.random.default_rng(seed).uniform(0, 2 * np.pi, adata.n_obs) for seed in range(size.seeds)]
    f1["random angle"] = median(knn_f1(on_circle(angle_c), phase_c) for angle_c in chance)
    order["random angle"] = median(cyclic_order(angle_c, phase_c) for angle_c in chance)
    plain = fit(size, adata, periodic=None)
    rest = {
        "PCA": knn_f1(components(adata), phase_c),
        "celldial without circle": knn_f1(plain.obsm["X_celldial"], phase_c),
    }

    def ours(key: str) -> float:
        return median(run[key] for run in runs)

    start = f"`mesc_cell_cycle`, median of {size.seeds} seeds"
    return [
        row(f"{start}: 15-NN macro-F1 of phase on (cos, sin)", ours("f1"), f1, at_least=0.78),
        row(f"{start}: cyclic order of phases", ours("order"), order, at_least=0.8),
        row(f"{start}: 15-NN macro-F1 of phase on X_celldial", ours("rest"), rest, at_most=0.5),
        row(f"{start}: share of cells whose cell_cycle_phase is the sorted one", ours("agrees"), {}),
    ], {"runs": runs, "f1": f1, "order": order, "rest": rest}


# --- Proliferating cells without truth --------------------------------------------------------------------------------


def peaks_of(values_cf: np.ndarray, angle_c: np.ndarray) -> np.ndarray:
    """Return the angle at which the Fourier series of each feature is highest."""
    design_ck = np.column_stack([np.ones(len(angle_c)), harmonics(angle_c)])
    coefficient_kf = np.linalg.lstsq(design_ck, values_cf, rcond=None)[0]
    grid = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    return grid[(harmonics(grid) @ coefficient_kf[1:]).argmax(0)]


def s_first(peak_s: np.ndarray, peak_g: np.ndarray) -> float:
    """Return the fraction of pairs in which the S marker peaks before the G2M marker, by less than half a turn."""
    lead = (peak_g[None, :] - peak_s[:, None]) % (2 * np.pi)
    return float(np.mean((lead > 0) & (lead < np.pi)))


def held_out_scores(values: dict[str, np.ndarray], angle_c: np.ndarray) -> dict[str, float]:
    """Return how well an angle explains held-out markers, and whether these are in order."""
    both_cf = np.hstack(list(values.values()))
    s_peak, g_peak = (peaks_of(values[phase], angle_c) for phase in ("S", "G2M"))
    return {
        "R²": float(np.nanmean(fourier_r2(both_cf, angle_c, 2))),
        "cross-validated R²": float(np.nanmean(fourier_r2(both_cf, angle_c, 2, n_splits=5))),
        "order": s_first(s_peak, g_peak),
    }


def ridge(logged_cf: np.ndarray, markers: dict[str, np.ndarray], half: int) -> dict[str, float]:
    """Return R² of the best linear prediction of the held-out markers from the others: an upper bound, not a method."""
    held_f = np.concatenate([column_f[half::2] for column_f in markers.values()])
    other_f = np.concatenate([column_f[1 - half :: 2] for column_f in markers.values()])
    values_cf, model = logged_cf[:, held_f], RidgeCV(np.geomspace(1, 1e4, 9))
    folds = KFold(5, shuffle=True, random_state=0)
    predicted_cf = cross_val_predict(model, standardized(logged_cf[:, other_f]), values_cf, cv=folds)
    left_f = np.square(values_cf - predicted_cf).mean(0) / np.maximum(values_cf.var(0), 1e-12)
    return {"cross-validated R²": float(1 - left_f.mean())}


def measure_neurosphere(size: Size) -> tuple[list[Row], Measured]:
    """Hold out every second marker, then the others."""
    adata = read(size, "neurosphere")
    logged_cf, markers = log_normalize(adata).toarray(), markers_of(adata)
    runs: list[dict[str, Any]] = []
    for half in (0, 1):
        held = {phase: column_f[half::2] for phase, column_f in markers.items()}
        values = {phase: logged_cf[:, column_f] for phase, column_f in held.items()}
        left = adata[:, np.setdiff1d(np.arange(adata.n_vars), np.concatenate(list(held.values())))].copy()
        for name, angle_c in baselines(left).items():
            scores = held_out_scores(values, angle_c)
            if name.startswith("PCA"):
                scores["order"] = either_way(scores["order"])
            runs.append({"who": name, "half": half, "seed": 0, **scores})
        runs.append({"who": "ridge on the other markers", "half": half, "seed": 0, **ridge(logged_cf, markers, half)})
        for seed in range(size.seeds):
            fitted = fit(size, left, seed=seed)
            scores = held_out_scores(values, fitted.obs[f"{CIRCLE}_angle"].to_numpy())
            active = float(fitted.obs[f"{CIRCLE}_active"].mean())
            runs.append({"who": "celldial", "half": half, "seed": seed, **scores, "active": active})
    aims: dict[str, dict[str, float]] = {"R²": {"at_least": 0.35}, "order": {"at_least": 0.9}}
    text = {"order": "share of pairs of held-out markers, S before G2M"}
    rows = []
    for key in ("R²", "cross-validated R²", "order"):
        score: dict[str, float] = {}
        for who in dict.fromkeys(run["who"] for run in runs if key in run):
            own = [run for run in runs if run["who"] == who]
            by_seed = [np.mean([run[key] for run in own if run["seed"] == seed]) for seed in {r["seed"] for r in own}]
            score[who] = float(median(by_seed))
        measure = f"`neurosphere`, median of {size.seeds} seeds: {text.get(key, f'{key} of held-out markers')}"
        rows.append(row(measure, score.pop("celldial"), score, **aims.get(key, {})))
    return rows, {"runs": runs}


def circular_median(angle_nc: np.ndarray) -> np.ndarray:
    """Return for each cell that of its angles that is nearest to all."""
    distance_nnc = np.abs(np.angle(np.exp(1j * (angle_nc[:, None] - angle_nc[None]))))
    nearest_c = distance_nnc.sum(1).argmin(0)
    return angle_nc[nearest_c, np.arange(angle_nc.shape[1])]


def measure_stability(size: Size) -> tuple[list[Row], Measured]:
    """Measure the agreement between seeds."""
    fits = [fit_file(size, "neurosphere", seed) for seed in range(size.many)]
    angle_nc = np.stack([fitted.obs[f"{CIRCLE}_angle"].to_numpy() for fitted in fits])
    middle_c = circular_median(angle_nc)
    agreement = [fisher_lee(angle_c, middle_c) for angle_c in angle_nc]
    # A folded loop leaves a part of the circle empty.
    active_nc = np.stack([fitted.obs[f"{CIRCLE}_active"].to_numpy() for fitted in fits])
    occupied = [len(np.unique((angle_c // (np.pi / 6)).astype(int))) for angle_c in angle_nc]
    same = float(np.mean(np.array(agreement) >= AGREES))
    comparison = (
        f"least Fisher–Lee {min(agreement):.3f}, median {median(agreement):.3f}; "
        f"least of 12 sectors with cells {min(occupied)}"
    )
    measure = f"`neurosphere`, {size.many} seeds: share that agrees with the circular median angle"
    seconds = [fitted.uns["seconds"] for fitted in fits]
    return [Row(measure, f"{same:.2f}", comparison, same, "20 of 20", same == 1)], {
        "agreement": agreement,
        "sectors": occupied,
        "active": active_nc.mean(1).tolist(),
        "seconds": seconds,
        "angle": np.round(angle_nc, 4).tolist(),
    }


# --- Interferon, and cells without truth ------------------------------------------------------------------------------


def measure_interferon(size: Size) -> tuple[list[Row], Measured]:
    """Check that known genes are the first ones along a named axis."""
    adata = read(size, "kang_ifnb").copy()
    model = VAE().fit(adata, max_epochs=size.epochs, progress=False)
    axis = model.find_axis(adata, "interferon", obs="condition")
    path = model.latent_traverse(adata, "interferon")
    risers = path.var.query("change > 0").sort_values("rank").index[:N_RISERS]
    present = [name for name in INTERFERON if name in adata.var_names]
    found = [name for name in present if name in risers]
    comparison = f"R² {axis.strength:.2f}, p {axis.p_value:.3f}; first: {', '.join(risers[:7])}"
    measure = f"`kang_ifnb`, find_axis(obs='condition'): interferon genes among the {N_RISERS} top risers"
    row_ = Row(measure, f"{len(found)} of {len(present)}", comparison, len(found), f"{len(present)}", found == present)
    return [row_], {"risers": list(risers), "present": present, "strength": axis.strength, "p_value": axis.p_value}


def measure_active(size: Size) -> tuple[list[Row], Measured]:
    """Return the fraction of active cells; there is no truth for comparison."""
    rows, measured = [], {}
    for name in ("balf", "kang_ifnb", "neurosphere", "mesc_cell_cycle"):
        fitted = fit_file(size, name, 0)
        share = float(fitted.obs[f"{CIRCLE}_active"].mean())
        phases = phases_of(fitted).value_counts(normalize=True, sort=False)
        comparison = "phases: " + ", ".join(f"{phase} {part:.2f}" for phase, part in phases.items())
        rows.append(Row(f"`{name}`: share of cells that are active", f"{share:.3f}", comparison, share))
        measured[name] = {"active": share, "phases": phases.to_dict(), "seconds": fitted.uns["seconds"]}
    return rows, measured


PARTS: dict[str, Callable[[Size], tuple[list[Row], Measured]]] = {
    "simulated": measure_simulated,
    "no_markers": measure_without_markers,
    "mesc": measure_mesc,
    "neurosphere": measure_neurosphere,
    "stability": measure_stability,
    "interferon": measure_interferon,
    "active": measure_active,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="folder of the .h5ad files; simulations need none")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="the parts to measure (all)")
    parser.add_argument("--out", type=Path, help="JSON file for rows and measurements; its other parts are kept")
    parser.add_argument("--seeds", type=int, default=5, help="number of models for medians on real data")
    parser.add_argument("--many", type=int, default=20, help="number of models of neurosphere that should agree")
    parser.add_argument("--simulations", type=int, default=3, help="number of simulations for medians")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few cells, two epochs, once, to check that it runs")
    options = parser.parse_args()
    if min(options.seeds, options.many, options.simulations) < 1:
        parser.error("--seeds, --many and --simulations must be at least 1")
    torch.set_num_threads(options.threads)
    settings.device = "cpu"
    few = (1, 2, 1, 300, 2)
    size = Size(
        options.data, *(few if options.quick else (options.seeds, options.many, options.simulations, 3000, "auto"))
    )

    known: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        known = json.loads(options.out.read_text())["parts"]
    failed = []
    for part in options.only:
        started = time.perf_counter()
        try:
            rows, measured = PARTS[part](size)
        except Exception:
            traceback.print_exc()
            failed.append(part)
            rows, measured = [Row(f"{part}: failed", "", "", None)], {}
        known[part] = {
            "rows": [asdict(row_) for row_ in rows],
            "measured": measured,
            "seconds": time.perf_counter() - started,
        }
        if options.out is not None:
            about = conditions([], "none", {**asdict(size), "folder": None}, options.threads)
            options.out.write_text(json.dumps({"conditions": about, "parts": known}, indent=1) + "\n")
    print(markdown([Row(**each) for part in PARTS if part in known for each in known[part]["rows"]], "others"))
    if options.quick:
        print("QUICK: few cells and epochs, so these numbers mean nothing.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Direction of the angle, how often it is right, wrong or open, and cells without a cycle.

    python -m benchmarks.peers.circle_direction --data DIR --out circle_direction.json

The fitted direction is right if the angle runs with the truth, or, without a truth, if S genes peak before G2M genes by
less than half a turn. Each model is fitted once. Its direction is then inferred again from subsets of its genes, after
the circle was reflected at random. See benchmarks/README.md for the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from benchmarks.harness import Row, markdown
from scipy.sparse import csr_matrix

from celldial import VAE
from celldial.datasets import simulate_multiome
from celldial.metrics import cyclic_order, fisher_lee
from celldial.periodic.direction import GenePeaks, estimate_peaks, infer_direction
from celldial.periodic.expression import log_normalize
from celldial.periodic.markers import CELL_CYCLE, find_markers, find_reference_genes

DEPTHS = (1.0, 6.0)
# Without the cells of the first nine hours, S genes and G2M genes peak half a turn apart.
SHORT_G1_HOURS = 9.0
SUBSETS, N_SUBSETS = (100, 50, 20), 20
FILES = ("mesc_cell_cycle", "neurosphere", "neurogenesis")
# Largest share of cells that do not divide and are called S or G2M.
MAX_WRONG_SHARE = 0.05
# Files are cut to the most variable genes, and those of the cell cycle.
MAX_GENES = 2000


@dataclass(frozen=True)
class Size:
    """Sizes of the measurements."""

    folder: Path | None
    simulations: int
    n_cells: int
    epochs: int | str


def simulated(size: Size, depth: float, seed: int, short_g1: bool) -> ad.AnnData:
    """Simulate genes of cells; with `short_g1`, only cycling cells after the start of G1."""
    n_cells = size.n_cells * (4 if short_g1 else 1)
    adata = simulate_multiome(n_cells, 500, 600, n_types=3, n_batches=1, depth=depth, seed=seed)
    keep_c = np.ones(n_cells, dtype=bool)
    if short_g1:
        hours_c = adata.obs["true_cell_cycle_angle"].to_numpy() / (2 * np.pi) * 24
        keep_c = adata.obs["is_cycling"].to_numpy() & (hours_c > SHORT_G1_HOURS)
    adata = adata[keep_c, (adata.var["feature_types"] == "Gene Expression").to_numpy()][: size.n_cells].copy()
    if short_g1:
        # The cycle of these cells is shorter. Its angle goes from 0 to 2π again.
        hours_c = adata.obs["true_cell_cycle_angle"].to_numpy() / (2 * np.pi) * 24
        adata.obs["true_cell_cycle_angle"] = 2 * np.pi * (hours_c - SHORT_G1_HOURS) / (24 - SHORT_G1_HOURS)
    return adata


def read(size: Size, name: str) -> ad.AnnData:
    """Read a file, cut to the genes that vary most and those of the cell cycle."""
    if size.folder is None:
        raise FileNotFoundError(f"{name}.h5ad is needed: --data DIR")
    adata = ad.read_h5ad(size.folder / f"{name}.h5ad")
    logged_cf = log_normalize(csr_matrix(adata.X).astype(float), np.asarray(adata.X.sum(1)).ravel())
    variance_f = np.asarray(logged_cf.power(2).mean(0) - np.square(logged_cf.mean(0))).ravel()
    known_f, _ = find_reference_genes(CELL_CYCLE, adata.var_names, np.ones(adata.n_vars, dtype=bool))
    return adata[:, np.union1d(np.argsort(-variance_f)[:MAX_GENES], known_f)].copy()


def peaks_of(adata: ad.AnnData) -> GenePeaks:
    """Return the observed peaks of the reference genes on the fitted circle."""
    counts_cf = csr_matrix(adata.X).astype(float)
    column_g, reference_g = find_reference_genes(CELL_CYCLE, adata.var_names, counts_cf.sum(0).A1 > 0)
    logged_cg = log_normalize(counts_cf[:, column_g], counts_cf.sum(1).A1).toarray()
    angle_c, active_c = (adata.obs[f"cell_cycle_{part}"].to_numpy() for part in ("angle", "active_probability"))
    return estimate_peaks(logged_cg, reference_g, angle_c, active_c, np.zeros(adata.n_obs, dtype=int))


def runs_forward(adata: ad.AnnData) -> bool:
    """Return whether the angle runs with the truth; without a truth, whether S markers peak before G2M markers."""
    angle_c = adata.obs["cell_cycle_angle"].to_numpy()
    if "is_cycling" in adata.obs:
        cycling = adata.obs[adata.obs["is_cycling"]]
        return fisher_lee(cycling["cell_cycle_angle"], cycling["true_cell_cycle_angle"]) > 0
    if "phase" in adata.obs:
        return cyclic_order(angle_c, adata.obs["phase"]) > 0.5
    markers = find_markers(CELL_CYCLE, adata.var_names, np.asarray(adata.X.sum(0)).ravel() > 0)
    counts_cf = csr_matrix(adata.X).astype(float)
    logged_cf = log_normalize(counts_cf, counts_cf.sum(1).A1)
    score = {phase: logged_cf[:, column_f].mean(1).A1 for phase, column_f in markers.items()}
    peak = {phase: np.angle((score_c - score_c.mean()) @ np.exp(1j * angle_c)) for phase, score_c in score.items()}
    return 0 < (peak["G2M"] - peak["S"]) % (2 * np.pi) < np.pi


def classify(probability: float, is_forward: bool) -> str:
    """Return whether a direction is right, wrong or open."""
    certain = max(probability, 1 - probability) >= 0.95
    return "open" if not certain else ("right" if (probability > 0.5) == is_forward else "wrong")


def measure(size: Size, name: str, adata: ad.AnnData) -> dict[str, Any]:
    """Fit a circle, and classify its direction with all genes and with subsets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = VAE(periodic="cell_cycle").fit(adata, max_epochs=size.epochs, progress=False)
    forward, peaks = runs_forward(adata), peaks_of(adata)
    found: dict[str, Any] = {"all": classify(model.periodic_["direction_probability"], forward)}
    random = np.random.default_rng(0)
    for n_genes in SUBSETS:
        results = []
        for _ in range(N_SUBSETS if n_genes < len(peaks.peak_g) else 0):
            sign, some_g = random.choice([1, -1]), random.choice(len(peaks.peak_g), n_genes, replace=False)
            part = GenePeaks(sign * peaks.peak_g[some_g], peaks.information_g[some_g], peaks.reference_g[some_g])
            results.append(classify(infer_direction(part, CELL_CYCLE.knots).probability, forward == (sign > 0)))
        found[f"{n_genes} genes"] = results
    print(name, found["all"], model.periodic_["direction_probability"], forward, file=sys.stderr, flush=True)
    return found


def without_structure() -> ad.AnnData:
    """Simulate three cell types that differ in all genes, and in which no gene cycles."""
    random = np.random.default_rng(0)
    names = [*CELL_CYCLE.markers["S"], *CELL_CYCLE.markers["G2M"], *(f"gene{number}" for number in range(200))]
    rate_cf = random.gamma(0.5, 1, (3, len(names)))[random.integers(0, 3, 400)] * random.lognormal(0, 0.4, (400, 1))
    adata = ad.AnnData(random.poisson(rate_cf).astype(np.float32))
    adata.var_names = names
    return adata


def resting(size: Size) -> dict[str, ad.AnnData]:
    """Return cells that do not divide, or that are in G1."""
    cells = {"markers without structure": without_structure()}
    for depth in DEPTHS:
        adata = simulate_multiome(3 * size.n_cells, 500, 600, n_types=3, n_batches=1, depth=depth, seed=0)
        is_gene_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
        adata = adata[~adata.obs["is_cycling"].to_numpy(), is_gene_f][: size.n_cells].copy()
        cells[f"simulated rest, depth {depth:g}"] = adata
    if size.folder is not None:
        cells["`kang_ifnb`"] = read(size, "kang_ifnb")
        sorted_cells = read(size, "mesc_cell_cycle")
        cells["`mesc_cell_cycle`, sorted G1"] = sorted_cells[(sorted_cells.obs["phase"] == "G1").to_numpy()].copy()
    return cells


def measure_rest(size: Size) -> list[Row]:
    """Return the share of cells called S or G2M where none divides."""
    rows = []
    for name, adata in resting(size).items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = VAE(periodic="cell_cycle").fit(adata, max_epochs=size.epochs, progress=False)
        phase_c = adata.obs.get("cell_cycle_phase")
        share = 0.0 if phase_c is None else float(phase_c.isin(["S", "G2M"]).mean())
        active = float(adata.obs["cell_cycle_active"].mean())
        known = {key: model.periodic_[key] for key in ("p_value", "fold_change") if key in model.periodic_}
        comparison = f"active {active:.2f}; {known}; {'a warning' if caught else 'no warning'}"
        print(name, share, comparison, file=sys.stderr, flush=True)
        measured = f"{name}: share called S or G2M"
        rows.append(Row(measured, f"{share:.3f}", comparison, share, f"≤ {MAX_WRONG_SHARE}", share <= MAX_WRONG_SHARE))
    return rows


def row(measure: str, results: list[str]) -> Row:
    """Return a row with the shares of right, wrong and open directions."""
    share = {each: results.count(each) / len(results) for each in ("right", "open", "wrong")}
    comparison = f"open {share['open']:.2f}, wrong {share['wrong']:.2f} of {len(results)}"
    return Row(measure, f"{share['right']:.2f}", comparison, share["right"], "none wrong", share["wrong"] == 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="folder of the .h5ad files; simulations need none")
    parser.add_argument("--out", type=Path, help="where to write rows and measurements, as JSON")
    parser.add_argument("--simulations", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="few cells, two epochs, once: does it run at all?")
    options = parser.parse_args()
    size = Size(options.data, *((1, 300, 2) if options.quick else (options.simulations, 1200, "auto")))
    groups: dict[str, list[dict[str, Any]]] = {}
    for depth in DEPTHS:
        for short_g1 in (False, True):
            name = f"simulated, depth {depth:g}{', short G1' if short_g1 else ''}"
            seeds = range(size.simulations)
            groups[name] = [measure(size, name, simulated(size, depth, seed, short_g1)) for seed in seeds]
    if size.folder is not None:
        for name in FILES:
            groups[f"`{name}`"] = [measure(size, name, read(size, name))]
    rows = measure_rest(size)
    for name, found in groups.items():
        rows.append(row(f"{name}: direction", [each["all"] for each in found]))
        for n_genes in SUBSETS:
            results = [verdict for each in found for verdict in each[f"{n_genes} genes"]]
            if results:
                rows.append(row(f"{name}: direction from {n_genes} genes", results))
    if options.out is not None:
        about = {**asdict(size), "folder": None}
        options.out.write_text(json.dumps({"size": about, "rows": [asdict(each) for each in rows]}, indent=1) + "\n")
    print(markdown(rows, "others"))


if __name__ == "__main__":
    main()

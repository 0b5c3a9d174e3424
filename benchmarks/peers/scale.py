#!/usr/bin/env python
"""Speed of training: compared with peers of equal size, with more cells, features or processes; and of the import.

    python -m benchmarks.peers.scale --peer-python PEERS/bin/python --data DIR [--only peers processes growth import]

performance/step.py compares a step with its floor, performance/disk.py measures training from files, and
performance/gpu.py training on a GPU. See benchmarks/README.md for the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
from benchmarks.harness import ROOT, Bench, Row, Run, cells_per_second, markdown, measure, row_of_speed
from benchmarks.peers import multimodal
from benchmarks.peers.rna import most_variable_genes
from scipy.sparse import csr_matrix

DENSITY = 0.1


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    repeats: int
    n_cells: int  # of the simulated data; the larger data set has ten times as many
    epochs: int


# --- Data -------------------------------------------------------------------------------------------------------------


def random_counts(n_cells: int, n_features: int) -> ad.AnnData:
    """Return random counts without structure, as numerous as in cells."""
    random = np.random.default_rng(0)
    per_cell = round(DENSITY * n_features)
    # A hundred cells share their features, because the time does not depend on which features have counts.
    columns = [np.sort(random.choice(n_features, per_cell, replace=False)) for _ in range(min(100, n_cells))]
    column_n = np.concatenate([columns[cell % len(columns)] for cell in range(n_cells)]).astype(np.int32)
    value_n = (1 + random.poisson(1.0, len(column_n))).astype(np.float32)
    indptr_c = np.arange(n_cells + 1) * per_cell
    return ad.AnnData(csr_matrix((value_n, column_n, indptr_c), shape=(n_cells, n_features)))


def prepare(source: Path, target: Path, wanted: list[str], n_cells: int) -> dict[str, Path]:
    """Write the data sets that all models use."""
    paths = {}
    if "peers" in wanted:
        paths = multimodal.prepare(source, target, quick=False)
        most_variable_genes(ad.read_h5ad(source / "balf.h5ad")).write_h5ad(target / "balf.h5ad")
        paths["balf"] = target / "balf.h5ad"
    shapes = {"small": (n_cells, 2000), "many_cells": (10 * n_cells, 2000), "many_features": (n_cells, 20_000)}
    if {"processes", "growth"} & set(wanted):
        for name, (n, n_features) in shapes.items():
            paths[name] = target / f"{name}.h5ad"
            random_counts(n, n_features).write_h5ad(paths[name])
    return paths


# --- Parts of the table -----------------------------------------------------------------------------------------------


def compare_with_peers(bench: Bench, size: Sizes) -> list[Row]:
    """Compare cells per second in training with the peers: equal widths, minibatches, cells and threads; in turns."""
    rows = []
    equal: dict[str, Any] = {"validation": "none", "sizes": "equal"}
    for peer, data, ours, epochs, aim in (
        ("scVI", "balf", "celldial", {"celldial": 8, "scVI": 5}, 4),
        ("PEAKVI", "a549_peaks", "celldial-multimodal", {"celldial": 6, "PEAKVI": 3}, 6),
        ("PEAKVI", "pbmc10k_atac", "celldial-multimodal", {"celldial": 8, "PEAKVI": 5}, 6),
        ("MULTIVI", "a549", "celldial-multimodal", {"celldial": 6, "MULTIVI": 3}, 6),
    ):
        runs = bench.turns([ours, peer], "train", data, size.repeats, epochs=epochs, **equal)
        speed = row_of_speed(f"training, `{data}`, cells/s ({peer})", runs, ours, peer, cells_per_second, aim)
        rows.append(speed)
    return rows


def by_processes(bench: Bench, size: Sizes) -> list[Row]:
    """Compare two processes with one thread each with one process with two threads, on the same minibatches."""
    rows = []
    for batch_size in (128, 512):
        runs: dict[int, list[Run]] = {1: [], 2: []}
        for _ in range(size.repeats):
            for devices, of in runs.items():
                job = {"devices": devices, "batch_size": batch_size, "epochs": size.epochs}
                of.append(replace(bench, threads=2 // devices).run("scale", "train", "small", **job))
        one, two = (median(map(cells_per_second, runs[devices])) for devices in (1, 2))
        measure_ = f"two gloo processes ÷ one with two threads, cells/s, minibatches of {batch_size}"
        rows.append(Row(measure_, f"{two / one:.2f} ({two:,.0f})", f"{one:,.0f}", two / one, "≥ 0.9", two / one >= 0.9))
    return rows


def with_size(bench: Bench, size: Sizes) -> list[Row]:
    """Measure the cost of a cell with ten times as many cells, and with ten times as many features."""
    runs: dict[str, list[Run]] = {name: [] for name in ("small", "many_cells", "many_features")}
    for _ in range(size.repeats):
        for name, of in runs.items():
            epochs = max(2, size.epochs // 2) if name == "small" else 2
            of.append(bench.run("scale", "train", name, devices=1, batch_size=128, epochs=epochs))
    cost = {name: 1e6 / median(map(cells_per_second, of)) for name, of in runs.items()}
    rows = []
    for name, what, aim in (("many_cells", "cells", 1.1), ("many_features", "features", 10.0)):
        ratio = cost[name] / cost["small"]
        text = f"{ratio:.2f}× ({cost[name]:.0f} µs)"
        rows.append(
            Row(f"cost of a cell, 10 × {what}", text, f"{cost['small']:.0f} µs", ratio, f"≤ {aim:g}×", ratio <= aim)
        )
    return rows


def of_import(bench: Bench, size: Sizes) -> list[Row]:
    """Measure the seconds beyond ``import torch, anndata``, each time in a new process."""
    script = (
        "import time, torch, anndata; start = time.perf_counter(); import celldial; "
        "middle = time.perf_counter(); celldial.VAE; print(middle - start, time.perf_counter() - start)"
    )
    seconds = []
    for _ in range(2 * size.repeats + 1):
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        seconds.append([float(part) for part in out.split()])
    plain, with_vae = np.median(seconds, axis=0).tolist()
    return [
        Row("`import celldial`, s beyond torch and anndata", f"{plain:.3f}", "", plain, "≤ 0.5", plain <= 0.5),
        Row("… and `celldial.VAE`, s", f"{with_vae:.2f}", "", with_vae),
    ]


PARTS: dict[str, Callable[[Bench, Sizes], list[Row]]] = {
    "peers": compare_with_peers,
    "processes": by_processes,
    "growth": with_size,
    "import": of_import,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with the h5ad files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="JSON file for the measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        peer = str(options.peer_python)
        workers = {
            "celldial": (sys.executable, "benchmarks.workers.celldial_rna"),
            "celldial-multimodal": (sys.executable, "benchmarks.workers.celldial_multimodal"),
            "scale": (sys.executable, "benchmarks.workers.celldial_scale"),
            "scVI": (peer, "benchmarks.workers.scvi_rna"),
            "PEAKVI": (peer, "benchmarks.workers.scvi_multimodal"),
            "MULTIVI": (peer, "benchmarks.workers.scvi_multimodal"),
        }
        bench = Bench(
            interpreter={who: interpreter for who, (interpreter, _) in workers.items()},
            worker={who: name for who, (_, name) in workers.items()},
            paths=prepare(options.data, folder, options.only, options.cells),
            scratch=folder,
            threads=options.threads,
        )
        size = Sizes(options.repeats, options.cells, options.epochs)
        rows, failed = measure(PARTS, bench, size, options.only, options.out)
    print(markdown(rows, "comparison"))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()

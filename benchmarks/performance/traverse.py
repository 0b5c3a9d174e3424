#!/usr/bin/env python
"""Traversals: time with many features, and memory with many cells.

    python -m benchmarks.performance.traverse [--threads 2] [--only speed memory]

The models are trained for one epoch on random data, because only time and memory are measured: `speed` with
the 1,185 genes and 52,761 peaks of the A549 multiome, `memory` with 100,000 cells × 100,000 peaks, 300 open in each
cell. Each measurement is a separate process. Linux only. See benchmarks/README.md for the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from benchmarks.harness import resident_mb
from benchmarks.performance.wide import random_multiome, reset_peak
from scipy.sparse import csr_matrix

import celldial

N_STEPS = 64


def speed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the time of complete calls, including reading the cells."""
    adata = random_multiome(2641, 1185, 52_761)
    model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    model.latent_traverse(adata, 0, n_steps=2)
    seconds, of_cpu = [], []
    for _ in range(options.repeats):
        start, start_of_cpu = time.perf_counter(), time.process_time()
        path = model.latent_traverse(adata, 0, n_steps=N_STEPS)
        seconds.append(time.perf_counter() - start)
        of_cpu.append(time.process_time() - start_of_cpu)
    return {
        "shape": path.shape,
        "draws": path.uns["n_cells"] * path.uns["n_samples"],
        "seconds": seconds,
        "cpu": of_cpu,
    }


def random_peaks(n_cells: int, n_peaks: int, n_open: int) -> ad.AnnData:
    """Return cells with random open peaks."""
    rng = np.random.default_rng(0)
    # A random start and random gaps give sorted, distinct columns without a permutation per cell.
    gap_cn = rng.integers(1, n_peaks // n_open, (n_cells, n_open), dtype=np.int32)
    column_n = np.cumsum(gap_cn, 1, dtype=np.int32).ravel() - 1
    del gap_cn
    indptr_c = np.arange(n_cells + 1, dtype=np.int32) * n_open
    counts_cf = csr_matrix((np.ones(len(column_n), np.float32), column_n, indptr_c), shape=(n_cells, n_peaks))
    counts_cf.has_canonical_format = True
    names = [f"chr1:{500 * i}-{500 * i + 500}" for i in range(n_peaks)]
    return ad.AnnData(counts_cf, var=pd.DataFrame({"feature_types": ["Peaks"] * n_peaks}, index=names))


def fit_wide(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fit the model of `memory` in a separate process, so that the memory of training is not counted."""
    celldial.VAE().fit(random_peaks(2000, 100_000, 300), max_epochs=1, progress=False).save(folder / "wide.celldial")
    return {}


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the highest memory of one traversal: of the process, and beyond data and model."""
    model = celldial.VAE.load(folder / "wide.celldial")
    adata = random_peaks(100_000, 100_000, 300)
    reset_peak()
    before = resident_mb()
    start = time.perf_counter()
    path = model.latent_traverse(adata, 0)
    seconds = time.perf_counter() - start
    counts_cf = adata.X
    data_mb = sum(part.nbytes for part in (counts_cf.data, counts_cf.indices, counts_cf.indptr)) / 2**20
    peak = resident_mb(peak=True)
    return {"shape": path.shape, "data_mb": data_mb, "before_mb": before, "peak_mb": peak, "seconds": seconds}


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one of the functions above in a separate process."""
    # Set before numpy, torch and numba are loaded, because they read it then. No GPU: memory is that of the process.
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.performance.traverse", f"--here={name}", f"--folder={folder}"]
        + [f"--{key}={getattr(options, key)}" for key in ("threads", "repeats")],
        env={**os.environ, **threads, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=["speed", "memory"], default=["speed", "memory"])
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        torch.set_num_threads(options.threads)
        work = {"speed": speed, "fit_wide": fit_wide, "memory": memory}[options.here]
        print(json.dumps(work(options.folder, options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" in options.only:
            of = measure("speed", folder, options)
            print("| steps × features | draws a step | threads | s, median | s, best | s of all processors |")
            print("|---|---|---|---|---|---|")
            steps, features = of["shape"]
            print(
                f"| {steps} × {features:,} | {of['draws']} | {options.threads} | {median(of['seconds']):.2f} "
                f"| {min(of['seconds']):.2f} | {median(of['cpu']):.2f} |\n",
                flush=True,
            )
        if "memory" in options.only:
            measure("fit_wide", folder, options)
            of = measure("memory", folder, options)
            print("| cells × peaks | counts, MB | process before, MB | process at most, MB | growth, MB | s |")
            print("|---|---|---|---|---|---|")
            growth = of["peak_mb"] - of["before_mb"]
            print(
                f"| 100,000 × {of['shape'][1]:,} | {of['data_mb']:,.0f} | {of['before_mb']:,.0f} "
                f"| {of['peak_mb']:,.0f} | {growth:,.0f} | {of['seconds']:.1f} |"
            )


if __name__ == "__main__":
    main()

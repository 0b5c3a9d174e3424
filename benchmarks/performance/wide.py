#!/usr/bin/env python
"""Hundreds of thousands of peaks: the memory that `fit` estimates, the memory that it uses, and its speed.

    python -m benchmarks.performance.wide [--peaks 10000 100000 500000] [--cells 5000] [--genes 2000] [--epochs 2]
    [--threads 1]

The data are random, because only time and memory are measured. Each number of peaks is a separate process. Linux only.
See benchmarks/README.md for the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import torch
from benchmarks.harness import resident_mb
from scipy.sparse import csr_matrix

import celldial
from celldial.training import memory

N_GENES_SEEN, N_PEAKS_SEEN = 500, 5000  # in each cell


def random_multiome(n_cells: int, n_genes: int, n_peaks: int) -> ad.AnnData:
    """Return cells with random genes and peaks. Arrays are filled in place, so that no other memory remains."""
    rng = np.random.default_rng(0)
    seen = {"genes": min(N_GENES_SEEN, n_genes), "peaks": min(N_PEAKS_SEEN, n_peaks // 2)}
    per_cell = sum(seen.values())
    column_n = np.empty(n_cells * per_cell, dtype=np.int32)
    value_n = np.ones(n_cells * per_cell, dtype=np.float32)
    for cell in range(n_cells):
        genes = np.sort(rng.choice(n_genes, seen["genes"], replace=False, shuffle=False))
        peaks = np.sort(rng.choice(n_peaks, seen["peaks"], replace=False, shuffle=False))
        of_cell = slice(cell * per_cell, (cell + 1) * per_cell)
        column_n[of_cell] = np.concatenate([genes, n_genes + peaks])
        value_n[of_cell][: seen["genes"]] = 1 + rng.poisson(1, seen["genes"])
    indptr_c = np.arange(n_cells + 1, dtype=np.int32) * per_cell
    counts_cf = csr_matrix((value_n, column_n, indptr_c), shape=(n_cells, n_genes + n_peaks))
    counts_cf.has_canonical_format = True
    names = [f"gene{i}" for i in range(n_genes)] + [f"chr1:{500 * i}-{500 * i + 500}" for i in range(n_peaks)]
    kinds = pd.Categorical.from_codes([0] * n_genes + [1] * n_peaks, ["Gene Expression", "Peaks"])
    return ad.AnnData(counts_cf, var=pd.DataFrame({"feature_types": kinds}, index=names))


def reset_peak() -> None:
    """Reset the highest memory of the process that the kernel records."""
    Path("/proc/self/clear_refs").write_text("5")


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one number of peaks."""
    torch.set_num_threads(options.threads)
    # The memory of imports and threads of the first `fit` is not that of the data.
    celldial.VAE().fit(celldial.datasets.simulate_multiome(200, 100, 300), max_epochs=1, progress=False)
    adata = random_multiome(options.cells, options.genes, options.peaks[0])
    estimates: list[int] = []
    estimate_memory = memory.estimate_memory

    def record_estimate(*arguments: Any) -> int:
        estimates.append(estimate_memory(*arguments))
        return estimates[-1]

    model = celldial.VAE()
    reset_peak()
    before = resident_mb()
    start = time.perf_counter()
    with mock.patch.object(memory, "estimate_memory", record_estimate):
        model.fit(adata, max_epochs=options.epochs, progress=False)
    wall, peak = time.perf_counter() - start, resident_mb(peak=True)
    per_epoch = median(np.diff([0.0, *model.history_["seconds"]]).tolist())
    return {
        "estimate_mb": estimates[-1] / 2**20,
        "growth_mb": peak - before,
        "data_mb": sum(part.nbytes for part in (adata.X.data, adata.X.indices, adata.X.indptr)) / 2**20,
        "seconds": per_epoch,
        "cells_per_second": 0.9 * adata.n_obs / per_epoch,
        "wall": wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peaks", type=int, nargs="+", default=[10_000, 100_000, 500_000])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(work(options)))
        return
    # Set before numpy, torch and numba are loaded, because they read it then. No GPU: memory is that of the process.
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    environment = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": ""}
    print("| cells × peaks | estimate, MB | peak growth, MB | estimate / growth | s / epoch | cells/s | `fit`, s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for n_peaks in options.peaks:
        sizes = {"peaks": n_peaks, "cells": options.cells, "genes": options.genes, "epochs": options.epochs}
        arguments = [f"--{name}={value}" for name, value in {**sizes, "threads": options.threads}.items()]
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.performance.wide", "--here", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        of = json.loads(process.stdout.splitlines()[-1])
        print(
            f"| {options.cells:,} × {n_peaks:,} | {of['estimate_mb']:,.0f} | {of['growth_mb']:,.0f} "
            f"| {of['estimate_mb'] / of['growth_mb']:.2f} | {of['seconds']:.1f} | {of['cells_per_second']:,.0f} "
            f"| {of['wall']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

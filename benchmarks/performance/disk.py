#!/usr/bin/env python
"""A million cells on disk: speed of training relative to training from memory, and memory.

    python -m benchmarks.performance.disk --scratch DIR [--cells 100000 1000000] [--genes 2000] [--epochs 2] [--threads
    1]

The simulated counts are written to DIR once, block by block, and later calls find them there (2 GB per million cells).
Each run is a separate process. Linux only. See benchmarks/README.md for the columns.
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

import h5py
import numpy as np
import pandas as pd
from benchmarks.harness import resident_mb
from scipy import sparse

N_TYPES, BLOCK = 20, 10_000


def write_counts(path: Path, n_cells: int, n_genes: int) -> None:
    """Simulate negative binomial counts of some cell types and four batches; about a tenth are not zero."""
    from anndata.io import sparse_dataset, write_elem

    rng = np.random.default_rng(0)
    share_kf = rng.lognormal(0, 1.5, n_genes) * rng.lognormal(0, 0.7, (N_TYPES, n_genes))
    share_kf /= share_kf.sum(1, keepdims=True)
    type_c = np.sort(rng.integers(N_TYPES, size=n_cells))  # neighbors are similar, as in concatenated samples
    unfinished = path.with_suffix(".unfinished")
    with h5py.File(unfinished, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for start in range(0, n_cells, BLOCK):
            kind_c = type_c[start : start + BLOCK]
            mu_cf = share_kf[kind_c] * rng.lognormal(np.log(350), 0.4, (len(kind_c), 1))
            counts = sparse.csr_matrix(rng.poisson(mu_cf * rng.standard_gamma(2, mu_cf.shape) / 2), dtype=np.float32)
            if start == 0:
                write_elem(file, "X", counts)
            else:
                sparse_dataset(file["X"]).append(counts)
        batch = pd.Categorical.from_codes(np.arange(n_cells) % 4, ["b0", "b1", "b2", "b3"])
        write_elem(file, "obs", pd.DataFrame({"batch": batch}, index=[f"cell{cell}" for cell in range(n_cells)]))
        write_elem(file, "var", pd.DataFrame(index=[f"gene{gene}" for gene in range(n_genes)]))
    unfinished.rename(path)


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process."""
    import anndata as ad
    import torch

    import celldial

    torch.set_num_threads(options.threads)
    data = options.here if options.source == "disk" else ad.read_h5ad(options.here)
    start = time.perf_counter()
    model = celldial.VAE(batch_key="batch").fit(data, max_epochs=options.epochs, progress=False)
    seconds = model.history_["seconds"]
    return {
        "fit": time.perf_counter() - start,
        "epoch": median(np.diff([0.0, *seconds])[min(1, len(seconds) - 1) :].tolist()),
        "peak_mb": resident_mb(peak=True),
        "elbo": model.history_["elbo_validation"][-1],
    }


def run(path: Path, source: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train in a separate process."""
    # Set before numpy, torch and numba are loaded, because they read it then. No GPU: memory is that of the process.
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    arguments = [f"--here={path}", f"--source={source}", f"--epochs={options.epochs}", f"--threads={options.threads}"]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.performance.disk", *arguments],
        env={**os.environ, **threads, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scratch", type=Path, help="a folder for the simulated counts")
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["disk", "memory"], nargs="+", default=["memory", "disk"])
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(work(options)))
        return
    if options.scratch is None:
        parser.error("--scratch DIR is required: a folder for the simulated counts")
    print("| cells × genes | from | s / epoch | ratio | `fit`, s | peak, MB | growth | −ELBO |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    first: dict[str, float] = {}
    for n_cells in options.cells:
        path = options.scratch / f"cells_{n_cells}_{options.genes}.h5ad"
        if not path.exists():
            write_counts(path, n_cells, options.genes)
        memory = float("nan")
        for source in options.only:
            of = run(path, source, options)
            memory = of["epoch"] if source == "memory" else memory
            growth = of["peak_mb"] / first.setdefault(source, of["peak_mb"]) - 1
            ratio = f"{of['epoch'] / memory:.2f}" if source == "disk" and memory == memory else ""
            print(
                f"| {n_cells:,} × {options.genes:,} | {source} | {of['epoch']:.1f} | {ratio} | {of['fit']:.0f} "
                f"| {of['peak_mb']:,.0f} | {growth:+.0%} | {-of['elbo']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Batches that mix and types that separate: scIB metrics of celldial, scVI, Harmony and PCA on the same cells.

    python -m benchmarks.peers.integration --data DIR --peer-python peers/bin/python --out integration.json

The peers and the metrics (scib-metrics) run in an environment of their own. See benchmarks/README.md for what the rows
mean.
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
import torch
from benchmarks.harness import ROOT
from benchmarks.integration_tasks import BATCH, LABEL, TASKS, Task
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import celldial as cd
from celldial.metrics import ilisi, knn_f1, leiden_nmi

# Name in the table to parameters of `celldial.VAE`.
OURS: dict[str, dict[str, Any]] = {"celldial": {}, "celldial, integration=0": {"integration": 0.0}}
PEERS = ("PCA", "Harmony", "scVI", "scVI, tuned")
TOTALS = ("Bio conservation", "Batch correction", "Total")
N_NEIGHBORS = 15


def run_peer(interpreter: str, job: dict[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    """Run one job of workers/integration.py, and return its result."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    process = subprocess.run(
        [interpreter, "-m", "benchmarks.workers.integration", json.dumps(job), str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        raise RuntimeError(f"{job} failed:\n{process.stderr[-3000:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def embed(task: Task, parameters: dict[str, Any], seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """Fit a model, and return the embedding with its validation ELBO and the seconds it took."""
    adata, start = task.adata.copy(), time.perf_counter()
    model = cd.VAE(batch_key=BATCH, seed=seed, **task.parameters, **parameters).fit(adata, progress=False)
    history = model.history_
    elbo = history["elbo_validation"][int(np.argmax(history["kept"]))]
    return adata.obsm["X_celldial"], {"ELBO": elbo, "seconds": time.perf_counter() - start}


def own_metrics(embedding_cz: np.ndarray, adata: ad.AnnData) -> dict[str, float]:
    """Return NMI, F1, the effective number of batches (iLISI), also if batches are shuffled, and F1 of each type."""
    label_c, batch_c = adata.obs[LABEL].to_numpy(), adata.obs[BATCH].to_numpy()
    predicted_c = cross_val_predict(KNeighborsClassifier(N_NEIGHBORS), embedding_cz, label_c, cv=5)
    found = {
        "NMI": leiden_nmi(embedding_cz, label_c),
        "F1": knn_f1(embedding_cz, label_c),
        "batches": ilisi(embedding_cz, batch_c),
        "shuffled": ilisi(embedding_cz, np.random.default_rng(0).permutation(batch_c)),
    }
    return found | {f"F1 of {name}": f1_score(label_c == name, predicted_c == name) for name in np.unique(label_c)}


def measure(name: str, seed: int, options: argparse.Namespace, scratch: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each method on one task."""
    task = TASKS[name](options.data, seed)
    path, folder = scratch / "cells.h5ad", scratch / "embeddings"
    folder.mkdir()
    task.adata.write_h5ad(path)
    found: dict[str, dict[str, float]] = {}
    for method, parameters in OURS.items():
        embedding_cz, found[method] = embed(task, parameters, seed)
        np.save(folder / f"{method}.npy", embedding_cz)
    for method in options.methods if options.peer_python else ():
        job = {"task": "embed", "method": method, "seed": seed, "data": str(path)}
        found[method] = run_peer(options.peer_python, job, scratch / method, options.threads)
        (folder / f"{method}.npy").write_bytes((scratch / method / "embedding.npy").read_bytes())
    for method in found:
        found[method] |= own_metrics(np.load(folder / f"{method}.npy"), task.adata)
    if options.peer_python:
        job = {"task": "score", "folder": str(folder), "data": str(path)}
        for method, metrics in run_peer(options.peer_python, job, scratch / "score", options.threads).items():
            found[method] |= metrics
    return found


def neighbors(embedding_cz: np.ndarray) -> np.ndarray:
    result: np.ndarray = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(embedding_cz).kneighbors(return_distance=False)
    return result


def overlap(one_cn: np.ndarray, other_cn: np.ndarray) -> float:
    """Return the mean fraction of neighbors that two graphs share."""
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(one_cn, other_cn, strict=True)]))


def null(folder: Path, n_batches: int, seed: int) -> float:
    """Split one sample at random; return the overlap of the graphs with and without batches, over that of two seeds."""
    adata = ad.read_h5ad(folder / "pbmc68k_counts.h5ad")
    adata.obs[BATCH] = np.random.default_rng(seed).integers(0, n_batches, adata.n_obs).astype(str)

    def graph(of_seed: int, key: str | None) -> np.ndarray:
        return neighbors(cd.VAE(batch_key=key, seed=of_seed).fit_transform(adata.copy(), progress=False))

    first, second, split = graph(seed, None), graph(seed + 100, None), graph(seed, BATCH)
    return (overlap(split, first) + overlap(split, second)) / 2 / overlap(first, second)


def print_table(results: dict[str, list[dict[str, dict[str, float]]]], columns: tuple[str, ...]) -> None:
    """Print the median over seeds of each metric, task by task."""
    print(f"| task | method | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}", flush=True)
    for name, runs in results.items():
        for method in runs[0]:
            values = [median(run[method].get(column, np.nan) for run in runs) for column in columns]
            print(f"| {name} | {method} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--peer-python", help="Python with scvi-tools, harmonypy, scib-metrics (none: celldial alone)")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS), help="peers to run (all)")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="tasks to run (all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--null", action="store_true", help="measure random batches instead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for all measurements, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.null:
        print("| batches | overlap with the graph without batches / overlap of two seeds | worst |\n|---|---|---|")
        for n_batches in (2, 3, 5):
            ratios = [null(options.data, n_batches, seed) for seed in range(options.seeds)]
            print(f"| {n_batches} | {median(ratios):.3f} | {min(ratios):.3f} |", flush=True)
        return
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name in options.only:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as scratch:
                results.setdefault(name, []).append(measure(name, seed, options, Path(scratch)))
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(results, indent=1))
    print_table(results, (*TOTALS, "NMI", "F1", "batches", "shuffled", "ELBO", "seconds"))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""RNA counts, compared with scvi-tools: quality of fit, speed and embedding, in one table.

    python -m benchmarks.peers.rna --peer-python PEERS/bin/python --data DIR

Every measurement is a process of its own, with the same threads for both, and the two take turns: neither warms the
other, and a slow minute of the machine does not hit one alone. See benchmarks/README.md for what each row means.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from benchmarks.harness import (
    Bench,
    Row,
    Run,
    best,
    cells_per_second,
    conditions,
    markdown,
    row_of_speed,
    row_of_time,
    write_report,
)

from celldial.metrics import knn_f1, leiden_nmi

WORKERS = {"celldial": "benchmarks.workers.celldial_rna", "scVI": "benchmarks.workers.scvi_rna"}
BOTH = ("celldial", "scVI")
DATA_SETS = ("pbmc68k_counts", "balf")
LABELS = "bulk_labels"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    repeats: int
    peer_epochs: dict[str, int]
    our_epochs: int | None  # None for the default
    throughput_epochs: dict[str, int]
    transform_calls: int
    seeds: int


def sizes(repeats: int, quick: bool) -> Sizes:
    if quick:
        return Sizes(1, dict.fromkeys(DATA_SETS, 3), 3, dict.fromkeys(DATA_SETS, 3), 3, 1)
    return Sizes(repeats, {"pbmc68k_counts": 400, "balf": 200}, None, {"pbmc68k_counts": 60, "balf": 8}, 15, 5)


# --- Data -------------------------------------------------------------------------------------------------------------


def most_variable_genes(adata: ad.AnnData, n_genes: int = 2000) -> ad.AnnData:
    """Keep the most variable genes: scanpy's default flavor, on log1p of counts per 10,000, of genes in >= 5 cells."""
    sc.pp.filter_genes(adata, min_cells=5)
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    sc.pp.highly_variable_genes(logged, n_top_genes=n_genes)
    return adata[:, logged.var["highly_variable"]].copy()


def prepare(source: Path, target: Path) -> dict[str, Path]:
    """Write the data sets that both models use."""
    paths = {}
    for name in DATA_SETS:
        adata = ad.read_h5ad(source / f"{name}.h5ad")
        if adata.n_vars > 2000:
            adata = most_variable_genes(adata)
        paths[name] = target / f"{name}.h5ad"
        adata.write_h5ad(paths[name])
    return paths


def pca(adata: ad.AnnData) -> np.ndarray:
    """Return ten principal components of log1p counts per 10,000, a baseline without a model."""
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    sc.pp.pca(logged, n_comps=50)
    return logged.obsm["X_pca"][:, :10]


# --- From measurements to rows ----------------------------------------------------------------------------------------


def calls_per_second(run: Run) -> float:
    return run["n_cells"] / median(run["calls"])


def rows_of_training(data: str, runs: dict[str, list[Run]], aim: float) -> list[Row]:
    """Return the rows of the best validation ELBO, and of the time to reach the peer's best."""
    ours, peer = (median(best(run) for run in runs[who]) for who in BOTH)
    return [
        Row(
            f"best validation −ELBO, `{data}`, nats/cell", f"{ours:.1f}", f"{peer:.1f}", ours, f"≤ {aim:g}", ours <= aim
        ),
        row_of_time(f"time to the peer's best ELBO, `{data}`", runs, *BOTH),
    ]


def rows_of_embedding(embeddings: dict[str, list[np.ndarray]], labels: Any) -> list[Row]:
    """Return how well the embeddings separate known cell types; medians over seeds."""
    rows = []
    for name, metric, aim in (("Leiden NMI (best of 7)", leiden_nmi, 0.72), ("15-NN macro-F1", knn_f1, 0.75)):
        value = {who: median(metric(z, labels) for z in each) for who, each in embeddings.items()}
        ours = value["celldial"]
        peer = f"{value['scVI']:.3f} (PCA-10: {value['PCA']:.3f})"
        measure = f"{name} of `{LABELS}`, median of {len(embeddings['celldial'])} seeds"
        rows.append(Row(measure, f"{ours:.3f}", peer, ours, f"≥ {aim:.2f}", ours >= aim))
    return rows


def measure_quality_of_fit(bench: Bench, size: Sizes) -> list[Row]:
    rows: list[Row] = []
    for data, aim in (("pbmc68k_counts", 650.0), ("balf", 281.0)):
        epochs = {"celldial": size.our_epochs, "scVI": size.peer_epochs[data]}
        rows += rows_of_training(
            data, bench.turns(BOTH, "train", data, size.repeats, epochs=epochs, validation="first"), aim
        )
    fits = [bench.run("celldial", "fit", "balf", epochs={"celldial": size.our_epochs}) for _ in range(size.repeats)]
    wall = median(run["wall"] for run in fits)
    rows.append(Row("default `fit`, `balf`, wall time", f"{wall:.1f} s", "", wall, "≤ 12 s", wall <= 12))
    return rows


def measure_speed(bench: Bench, size: Sizes) -> list[Row]:
    rows: list[Row] = []
    for data in DATA_SETS:
        epochs = dict.fromkeys(WORKERS, size.throughput_epochs[data])
        runs = bench.turns(BOTH, "train", data, size.repeats, epochs=epochs, validation="none")
        rows.append(row_of_speed(f"training, `{data}`, cells/s", runs, *BOTH, cells_per_second, 3))
    for data in DATA_SETS:
        runs = bench.turns(BOTH, "transform", data, size.repeats, calls=size.transform_calls)
        rows.append(row_of_speed(f"embedding, `{data}`, cells/s", runs, *BOTH, calls_per_second, 5))
    return rows


def measure_embedding(bench: Bench, size: Sizes) -> list[Row]:
    data = "pbmc68k_counts"
    adata = ad.read_h5ad(bench.paths[data])
    embeddings: dict[str, list[np.ndarray]] = {"celldial": [], "scVI": [], "PCA": [pca(adata)]}
    epochs = {"celldial": size.our_epochs, "scVI": size.peer_epochs[data]}
    for seed in range(size.seeds):
        for who, runs in bench.turns(BOTH, "train", data, 1, epochs=epochs, validation="random", seed=seed).items():
            embeddings[who].append(runs[0]["embedding"])
    return rows_of_embedding(embeddings, adata.obs[LABELS])


PARTS = {"fit": measure_quality_of_fit, "speed": measure_speed, "embedding": measure_embedding}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", required=True, help="interpreter of the environment that has scvi-tools")
    parser.add_argument("--data", required=True, type=Path, help="folder of pbmc68k_counts.h5ad and balf.h5ad")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs that the median of each time is taken over")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="the parts to measure (all)")
    parser.add_argument("--out", type=Path, help="where to write the rows and all measurements, as JSON")
    parser.add_argument("--quick", action="store_true", help="three epochs, once: does it run at all?")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")

    size = sizes(options.repeats, options.quick)
    with tempfile.TemporaryDirectory() as scratch:
        paths = prepare(options.data, Path(scratch))
        interpreter = {"celldial": sys.executable, "scVI": options.peer_python}
        bench = Bench(interpreter, WORKERS, paths, Path(scratch), options.threads)
        rows = [row for part in options.only for row in PARTS[part](bench, size)]
        runs = bench.done
    about = conditions(runs, "scVI", asdict(size), options.threads)
    print(markdown(rows, "scVI"))
    print(
        f"\n{options.threads} threads, {about['processor']}; celldial {about['celldial']} and scvi-tools "
        f"{about['scvi-tools']}, torch {about['torch']['celldial']}; medians of {size.repeats} runs."
    )
    if options.quick:
        print("QUICK: three epochs, so these numbers mean nothing.")
    if options.out is not None:
        write_report(options.out, about, rows, runs)


if __name__ == "__main__":
    main()

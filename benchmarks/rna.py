#!/usr/bin/env python
"""RNA counts, celldial beside scvi-tools: quality of fit, speed and embedding, in one table.

    python benchmarks/rna.py --peer-python PEERS/bin/python --data DIR

Every measurement is a process of its own, with the same threads for both, and the two take turns: neither warms the
other, and a slow minute of the machine does not hit one alone. See benchmarks/README.md for what each row means.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc

from celldial.metrics import knn_f1, leiden_nmi

HERE = Path(__file__).resolve().parent
WORKERS = {"celldial": HERE / "worker_celldial.py", "scVI": HERE / "worker_scvi.py"}
DATA_SETS = ("pbmc68k_counts", "balf")
LABELS = "bulk_labels"

Run = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How long to measure."""

    repeats: int
    peer_epochs: dict[str, int]
    our_epochs: int | None  # None: what the default chooses
    throughput_epochs: dict[str, int]
    transform_calls: int
    seeds: int


def sizes(repeats: int, quick: bool) -> Sizes:
    if quick:
        return Sizes(1, dict.fromkeys(DATA_SETS, 3), 3, dict.fromkeys(DATA_SETS, 3), 3, 1)
    return Sizes(repeats, {"pbmc68k_counts": 400, "balf": 200}, None, {"pbmc68k_counts": 60, "balf": 8}, 15, 5)


@dataclass(frozen=True)
class Row:
    """One line of the table. `value` is what the aim is about; None where there is no number."""

    measure: str
    ours: str
    peer: str
    value: float | None
    aim: str = ""
    reached: bool | None = None


# --- Data -------------------------------------------------------------------------------------------------------------


def most_variable_genes(adata: ad.AnnData, n_genes: int = 2000) -> ad.AnnData:
    """Keep the most variable genes: scanpy's default flavour, on log1p of counts per 10,000, of genes in >= 5 cells."""
    sc.pp.filter_genes(adata, min_cells=5)
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    sc.pp.highly_variable_genes(logged, n_top_genes=n_genes)
    return adata[:, logged.var["highly_variable"]].copy()


def prepare(source: Path, target: Path) -> dict[str, Path]:
    """Write the data sets as both models get them."""
    paths = {}
    for name in DATA_SETS:
        adata = ad.read_h5ad(source / f"{name}.h5ad")
        if adata.n_vars > 2000:
            adata = most_variable_genes(adata)
        paths[name] = target / f"{name}.h5ad"
        adata.write_h5ad(paths[name])
    return paths


def pca(adata: ad.AnnData) -> np.ndarray:
    """Ten principal components of log1p counts per 10,000: what a user has without any model."""
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    sc.pp.pca(logged, n_comps=50)
    return logged.obsm["X_pca"][:, :10]


# --- Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Runs jobs, each in a fresh process, and keeps what they measured."""

    interpreter: dict[str, str]
    paths: dict[str, Path]
    scratch: Path
    threads: int
    done: list[Run] = field(default_factory=list)

    def run(self, who: str, task: str, data: str, **options: Any) -> Run:
        """Have a worker do one job; what it measured comes back, with the embedding where it made one."""
        job = {"task": task, "data": str(self.paths[data]), "threads": self.threads, "seed": 0, **options}
        out = Path(tempfile.mkdtemp(dir=self.scratch))
        # Set before numpy, torch and numba load, because they read it then. No GPU: the comparison is of CPUs.
        threads = ("OMP", "MKL", "OPENBLAS", "NUMBA")
        environment = {f"{library}_NUM_THREADS": str(self.threads) for library in threads} | {
            "CUDA_VISIBLE_DEVICES": ""
        }
        print(f"{who:9}{task:12}{data:16}{options or ''}", file=sys.stderr, flush=True)
        process = subprocess.run(
            [self.interpreter[who], str(WORKERS[who]), json.dumps(job), str(out)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            raise RuntimeError(f"{who}, {task} on {data} failed:\n{process.stderr[-3000:]}")
        result: Run = json.loads((out / "result.json").read_text())
        if result["threads"] != self.threads:
            raise RuntimeError(f"{who} ended with {result['threads']} threads instead of {self.threads}")
        if (out / "embedding.npy").exists():
            result["embedding"] = np.load(out / "embedding.npy")
        # In place of the path, which is of no use elsewhere, the name.
        self.done.append({"who": who, **job, **result, "data": data})
        return self.done[-1]

    def both(self, task: str, data: str, times: int, **options: Any) -> dict[str, list[Run]]:
        """Let the two take turns at the same job."""
        runs: dict[str, list[Run]] = {who: [] for who in WORKERS}
        for _ in range(times):
            for who in WORKERS:
                runs[who].append(self.run(who, task, data, **options))
        return runs


# --- From measurements to rows ----------------------------------------------------------------------------------------


def seconds_to(run: Run, target: float) -> float:
    """Seconds of training until the negative ELBO of the validation cells is at the target; infinite if it never is."""
    reached = (second for second, loss in zip(run["seconds"], run["loss"], strict=True) if loss <= target)
    return next(reached, math.inf)


def cells_per_second(run: Run) -> float:
    """Steady state: the first epoch, which warms caches and allocators, does not count."""
    return run["n_train"] / median(np.diff(run["seconds"]).tolist())


def calls_per_second(run: Run) -> float:
    return run["n_cells"] / median(run["calls"])


def as_fraction(share: float) -> str:
    return f"1/{1 / share:.0f}" if share < 0.5 else f"{share:.1f}×"


def rows_of_training(data: str, runs: dict[str, list[Run]], aim: float) -> list[Row]:
    """Best validation ELBO, and the time to reach the peer's best."""
    ours, peer = (median(min(run["loss"]) for run in runs[who]) for who in WORKERS)
    targets = [min(run["loss"]) for run in runs["scVI"]]
    our_time = median(seconds_to(run, target) for run, target in zip(runs["celldial"], targets, strict=True))
    peer_time = median(seconds_to(run, target) for run, target in zip(runs["scVI"], targets, strict=True))
    share = our_time / peer_time
    return [
        Row(
            f"best validation −ELBO, `{data}`, nats/cell", f"{ours:.1f}", f"{peer:.1f}", ours, f"≤ {aim:g}", ours <= aim
        ),
        Row(
            f"time to the peer's best ELBO, `{data}`",
            f"{our_time:.2f} s ({as_fraction(share)})" if math.isfinite(our_time) else "not reached",
            f"{peer_time:.1f} s",
            share if math.isfinite(share) else None,
            "≤ 1/40",
            share <= 1 / 40,
        ),
    ]


def row_of_speed(measure: str, runs: dict[str, list[Run]], speed: Callable[[Run], float], aim: float) -> Row:
    """A throughput, and how many times the peer's it is."""
    ours, peer = (median(map(speed, runs[who])) for who in WORKERS)
    ratio = ours / peer
    return Row(measure, f"{ours:,.0f} ({ratio:.1f}×)", f"{peer:,.0f}", ratio, f"≥ {aim:g}×", ratio >= aim)


def rows_of_embedding(embeddings: dict[str, list[np.ndarray]], labels: Any) -> list[Row]:
    """How well the embeddings separate known cell types, the median over the seeds."""
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
        rows += rows_of_training(data, bench.both("train", data, size.repeats, epochs=epochs, validation="first"), aim)
    fits = [bench.run("celldial", "fit", "balf", epochs={"celldial": size.our_epochs}) for _ in range(size.repeats)]
    wall = median(run["wall"] for run in fits)
    rows.append(Row("whole default `fit`, `balf`, wall time", f"{wall:.1f} s", "", wall, "≤ 12 s", wall <= 12))
    return rows


def measure_speed(bench: Bench, size: Sizes) -> list[Row]:
    rows: list[Row] = []
    for data in DATA_SETS:
        epochs = dict.fromkeys(WORKERS, size.throughput_epochs[data])
        runs = bench.both("train", data, size.repeats, epochs=epochs, validation="none")
        rows.append(row_of_speed(f"training, `{data}`, cells/s", runs, cells_per_second, 3))
    for data in DATA_SETS:
        runs = bench.both("transform", data, size.repeats, calls=size.transform_calls)
        rows.append(row_of_speed(f"embedding, `{data}`, cells/s", runs, calls_per_second, 5))
    return rows


def measure_embedding(bench: Bench, size: Sizes) -> list[Row]:
    data = "pbmc68k_counts"
    adata = ad.read_h5ad(bench.paths[data])
    embeddings: dict[str, list[np.ndarray]] = {"celldial": [], "scVI": [], "PCA": [pca(adata)]}
    epochs = {"celldial": size.our_epochs, "scVI": size.peer_epochs[data]}
    for seed in range(size.seeds):
        for who, runs in bench.both("train", data, 1, epochs=epochs, validation="random", seed=seed).items():
            embeddings[who].append(runs[0]["embedding"])
    return rows_of_embedding(embeddings, adata.obs[LABELS])


PARTS = {"fit": measure_quality_of_fit, "speed": measure_speed, "embedding": measure_embedding}


# --- Printing ---------------------------------------------------------------------------------------------------------


def markdown(rows: list[Row]) -> str:
    lines = ["| measure | celldial | scVI | aim | reached |", "|---|---|---|---|---|"]
    verdict = {True: "yes", False: "no", None: ""}
    lines += [f"| {r.measure} | {r.ours} | {r.peer} | {r.aim} | {verdict[r.reached]} |" for r in rows]
    return "\n".join(lines)


def conditions(runs: list[Run], size: Sizes, threads: int) -> dict[str, Any]:
    """Everything that the numbers depend on, and no name of a machine."""
    peer = next(run for run in runs if run["who"] == "scVI")
    return {
        "threads": threads,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "celldial": importlib.metadata.version("celldial"),
        "torch": {"celldial": importlib.metadata.version("torch"), "scVI": peer["versions"]["torch"]},
        "scvi-tools": peer["versions"]["scvi-tools"],
        "sizes": asdict(size),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


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
        bench = Bench(interpreter, paths, Path(scratch), options.threads)
        rows = [row for part in options.only for row in PARTS[part](bench, size)]
        runs = bench.done
    about = conditions(runs, size, options.threads)
    print(markdown(rows))
    print(
        f"\n{options.threads} threads, {about['processor']}; celldial {about['celldial']} and scvi-tools "
        f"{about['scvi-tools']}, torch {about['torch']['celldial']}; medians of {size.repeats} runs."
    )
    if options.quick:
        print("QUICK: three epochs, so these numbers mean nothing.")
    if options.out is not None:
        measured = [{key: value for key, value in run.items() if key != "embedding"} for run in runs]
        report = {"conditions": about, "rows": [asdict(row) for row in rows], "runs": measured}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

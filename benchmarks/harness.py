"""What the benchmarks against peers share: jobs in separate processes, and a table of their measurements.

The workers import this file, too, and some run in the environments of the peers. It imports neither celldial nor
scanpy.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

Run = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table. `value` is the number to which the aim applies, or None."""

    measure: str
    ours: str
    peer: str
    value: float | None
    aim: str = ""
    reached: bool | None = None


# --- Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Runs each job in a new process, and collects the measurements."""

    interpreter: dict[str, str]
    worker: dict[str, str]
    paths: dict[str, Path]
    scratch: Path
    threads: int
    done: list[Run] = field(default_factory=list)
    keep: Path | None = None  # folder in which `once` finds the runs of earlier calls
    known: dict[str, Run] = field(default_factory=dict)

    def run(self, who: str, task: str, data: str, out: Path | None = None, **options: Any) -> Run:
        """Run a job in a worker process; return its measurements and the arrays that it wrote."""
        path = str(Path(self.paths[data]).resolve())
        job = {"who": who, "task": task, "data": path, "threads": self.threads, "seed": 0, **options}
        if out is None:
            out = Path(tempfile.mkdtemp(dir=self.scratch))
        # Set before numpy, torch and numba are loaded, which is when they read it. No GPU: CPUs are compared.
        threads = ("OMP", "MKL", "OPENBLAS", "NUMBA")
        environment = {f"{library}_NUM_THREADS": str(self.threads) for library in threads} | {
            "CUDA_VISIBLE_DEVICES": ""
        }
        print(f"{who:9}{task:12}{data:16}{options or ''}", file=sys.stderr, flush=True)
        process = subprocess.run(
            [self.interpreter[who], "-m", self.worker[who], json.dumps(job), str(out.resolve())],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            raise RuntimeError(f"{who}, {task} on {data} failed:\n{process.stderr[-3000:]}")
        return self.read(out, job, data)

    def read(self, out: Path, job: dict[str, Any], data: str) -> Run:
        """Return what a finished job wrote into its folder, and record it."""
        result: Run = json.loads((out / "result.json").read_text())
        if result["threads"] != self.threads:
            raise RuntimeError(f"{job['who']} ended with {result['threads']} threads instead of {self.threads}")
        # Memory-mapped, because an imputed matrix is large and most rows of the table do not need it.
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(out.glob("*.npy"))}
        # The name replaces the path, which has no meaning elsewhere.
        self.done.append({**job, **result, **arrays, "data": data})
        return self.done[-1]

    def once(self, who: str, task: str, data: str, **options: Any) -> Run:
        """Run a job unless this process has done so, or for a peer any process with the same `keep`.

        The peers do not change, unlike celldial.
        """
        key = json.dumps([who, task, data, self.threads, options], sort_keys=True)
        if key not in self.known:
            out = None
            if self.keep is not None and who != "celldial":
                out = self.keep / f"{who}-{task}-{data}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
                out.mkdir(parents=True, exist_ok=True)
            if out is not None and (out / "result.json").exists():
                print(f"{who:9}{task:12}{data:16}kept from an earlier call", file=sys.stderr, flush=True)
                self.known[key] = self.read(out, {"who": who, "task": task, **options, "kept": True}, data)
            else:
                self.known[key] = self.run(who, task, data, out, **options)
        return self.known[key]

    def turns(self, names: Sequence[str], task: str, data: str, times: int, **options: Any) -> dict[str, list[Run]]:
        """Run the same job several times with each program, in turns."""
        runs: dict[str, list[Run]] = {who: [] for who in names}
        for _ in range(times):
            for who in names:
                runs[who].append(self.run(who, task, data, **options))
        return runs


def resident_mb(peak: bool = False) -> float:
    """Return the current or the highest memory of this process in MB.

    `resource.getrusage` is not used, because a process inherits the peak of the process that started it.
    """
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


# --- From measurements to rows ----------------------------------------------------------------------------------------


def seconds_to(run: Run, target: float, key: str = "loss") -> float:
    """Return the seconds of training until the validation loss reaches a target, or infinity."""
    after_epoch = zip(run["seconds"], run[key], strict=True)
    return next((second for second, loss in after_epoch if loss is not None and loss <= target), math.inf)


def best(run: Run, key: str = "loss") -> float:
    """Return the lowest validation loss of all epochs."""
    return min(loss for loss in run[key] if loss is not None)


def cells_per_second(run: Run) -> float:
    """Return the speed without the first epoch, which warms caches and allocators."""
    return run["n_train"] / median(np.diff(run["seconds"]).tolist())


def as_fraction(share: float) -> str:
    return f"1/{1 / share:.0f}" if share < 0.5 else f"{share:.1f}×"


def row_of_time(measure: str, runs: dict[str, list[Run]], ours: str, peer: str, key: str = "loss") -> Row:
    """Return the row of the time to reach the peer's best loss, with that of the peer; medians over the repeats."""
    # If the peer has a single run, it is compared with each run of celldial.
    peers = runs[peer] * (len(runs[ours]) if len(runs[peer]) == 1 else 1)
    targets = [best(run, key) for run in peers]
    our_time = median(seconds_to(run, target, key) for run, target in zip(runs[ours], targets, strict=True))
    peer_time = median(seconds_to(run, target, key) for run, target in zip(peers, targets, strict=True))
    share = our_time / peer_time
    return Row(
        measure,
        f"{our_time:.2f} s ({as_fraction(share)})" if math.isfinite(our_time) else "not reached",
        f"{peer_time:.1f} s",
        share if math.isfinite(share) else None,
        "≤ 1/40",
        share <= 1 / 40,
    )


def row_of_speed(
    measure: str, runs: dict[str, list[Run]], ours: str, peer: str, speed: Callable[[Run], float], aim: float
) -> Row:
    """Return the row of a throughput, with its ratio to that of the peer."""
    our_speed, peer_speed = (median(map(speed, runs[who])) for who in (ours, peer))
    ratio = our_speed / peer_speed
    return Row(measure, f"{our_speed:,.0f} ({ratio:.1f}×)", f"{peer_speed:,.0f}", ratio, f"≥ {aim:g}×", ratio >= aim)


# --- Printing ---------------------------------------------------------------------------------------------------------


def markdown(rows: list[Row], peer: str) -> str:
    lines = [f"| measure | celldial | {peer} | aim | reached |", "|---|---|---|---|---|"]
    verdict = {True: "yes", False: "no", None: ""}
    lines += [f"| {r.measure} | {r.ours} | {r.peer} | {r.aim} | {verdict[r.reached]} |" for r in rows]
    return "\n".join(lines)


def conditions(runs: list[Run], peer: str, sizes: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return everything on which the numbers depend, without the name of the machine; peers have the same versions."""
    versions = next((run["versions"] for run in runs if "versions" in run), {})
    return {
        "threads": threads,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "celldial": importlib.metadata.version("celldial"),
        "torch": {"celldial": importlib.metadata.version("torch"), peer: versions.get("torch")},
        "scvi-tools": versions.get("scvi-tools"),
        "sizes": sizes,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def measure(
    parts: Mapping[str, Callable[[Bench, Any], list[Row]]],
    bench: Bench,
    size: Any,
    wanted: Sequence[str],
    out: Path | None,
) -> tuple[list[Row], list[str]]:
    """Measure part by part, and write the results after each part; if a part fails, the others still run."""
    rows: list[Row] = []
    failed = []
    for part in wanted:
        try:
            rows += parts[part](bench, size)
        except Exception:
            traceback.print_exc()
            failed.append(part)
        if out is not None:
            write_report(out, conditions(bench.done, "peers", asdict(size), bench.threads), rows, bench.done)
    return rows, failed


def write_report(path: Path, settings: dict[str, Any], rows: list[Row], runs: list[Run]) -> None:
    """Write rows and measurements, without the arrays, as JSON."""
    measured = [{key: value for key, value in run.items() if not isinstance(value, np.ndarray)} for run in runs]
    report = {"conditions": settings, "rows": [asdict(row) for row in rows], "runs": measured}
    path.write_text(json.dumps(report, indent=1) + "\n")

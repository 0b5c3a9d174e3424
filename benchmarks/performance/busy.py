#!/usr/bin/env python
"""CPU seconds of a fit on a busy machine, relative to the same fit beside nothing, with one and with several threads.

    python -m benchmarks.performance.busy [--hogs 3] [--repeats 3]

Each fit is a process of its own: 1,000 simulated cells × 2,000 genes, 10 epochs, after scanpy was imported, with as
many threads of torch as there are cores. The busy processes run an empty loop. Ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from statistics import median

FIT = """
import json, resource, sys, time
import numpy as np, scanpy, torch
from anndata import AnnData
from scipy import sparse
import celldial as cd

threads, n_epochs = sys.argv[1], int(sys.argv[2])
torch.set_num_threads({n_cores})
cd.settings.n_threads = threads if threads == "auto" else int(threads)
random = np.random.default_rng(0)
rate = np.exp(random.normal(0, 1, 2000) + random.normal(0, 0.7, (5, 2000)))
mean = 2000 * (rate / rate.sum(1, keepdims=True))[random.integers(0, 5, 1000)]
adata = AnnData(sparse.csr_matrix(random.poisson(mean), dtype=np.float32))
cd.VAE().fit(adata.copy(), max_epochs=1, progress=False)  # compiles loops
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
cpu, wall = used(), time.perf_counter()
cd.VAE().fit(adata, max_epochs=n_epochs, progress=False)
print(json.dumps({{"cpu": used() - cpu, "wall": time.perf_counter() - wall}}))
"""
HOG = "while True: pass"


def fit(threads: str, n_hogs: int) -> dict[str, float]:
    """Return the seconds of a fit beside busy processes."""
    with ExitStack() as stack:
        for _ in range(n_hogs):
            hog = stack.enter_context(subprocess.Popen([sys.executable, "-c", HOG]))
            stack.callback(hog.kill)
        time.sleep(0.5)
        code = FIT.format(n_cores=os.cpu_count())
        done = subprocess.run([sys.executable, "-c", code, threads, "10"], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--hogs", type=int, default=3, help="busy processes")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| threads | quiet, CPU s | busy, CPU s | ratio | busy, wall s |\n|---|---|---|---|---|")
    for threads in ("auto", str(os.cpu_count())):
        quiet, busy = ([fit(threads, n) for _ in range(options.repeats)] for n in (0, options.hogs))
        cpu = [median(run["cpu"] for run in runs) for runs in (quiet, busy)]
        wall = median(run["wall"] for run in busy)
        print(f"| {threads} | {cpu[0]:.2f} | {cpu[1]:.2f} | {cpu[1] / cpu[0]:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Speed of training on one GPU, relative to the limits of the card.

    python -m benchmarks.performance.gpu                                   # one million cells, on a CUDA device
    python -m benchmarks.performance.gpu --device cpu --cells 2000 --batch-sizes 128 --no-scvi

The counts are random, because only their number matters. The parts are measured first: the speed at which the card
copies memory, the fraction of this speed that the kernels of the likelihood reach (counting what must be read and
written), and the time of the matrix products of a step. Trainings follow, in cells per second of the epochs after the
first, in which code is compiled and caches are warmed. The floor is the time of the dense products, forward and
backward; a step cannot take less. If scvi-tools is installed, it trains on the same AnnData with the same sizes.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import linear

import celldial
from celldial.data.cells import to_csr_tensor
from celldial.ops import log_likelihoods

N_TYPES, N_HIDDEN, N_LATENT = 20, 128, 10
CELLS_AT_A_TIME = 65_536


def make_counts(n_cells: int, n_features: int, density: float, seed: int = 0) -> ad.AnnData:
    """Return cells of several types, with one count in each of as many ranges of features as a cell has counts."""
    generator = np.random.default_rng(seed)
    n_each = max(1, round(density * n_features))
    edges = np.linspace(0, n_features, n_each + 1).astype(np.int32)
    marker = generator.integers(0, edges[1:] - edges[:-1], (N_TYPES, n_each), dtype=np.int32)
    column = np.empty((n_cells, n_each), np.int32)
    value = np.empty((n_cells, n_each), np.float32)
    for start in range(0, n_cells, CELLS_AT_A_TIME):
        part = slice(start, min(start + CELLS_AT_A_TIME, n_cells))
        shape = column[part].shape
        of_type = marker[generator.integers(0, N_TYPES, shape[0])]
        anything = generator.integers(0, edges[1:] - edges[:-1], shape, dtype=np.int32)
        column[part] = edges[:-1] + np.where(generator.random(shape, np.float32) < 0.5, of_type, anything)
        value[part] = 1 + np.floor(generator.standard_exponential(shape, np.float32))
    indptr = np.arange(0, n_cells * n_each + 1, n_each)
    return ad.AnnData(sparse.csr_matrix((value.ravel(), column.ravel(), indptr), shape=(n_cells, n_features)))


def seconds_of(part: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Return the mean time of many consecutive calls, so that a GPU does not wait for Python."""
    for _ in range(3):
        part()
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            part()
        return (time.perf_counter() - start) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(repeats):
        part()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000 / repeats


def copy_bandwidth(device: str) -> float:
    """Return the bytes read and written per second when memory is copied."""
    source = torch.zeros(2**28 if device != "cpu" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def likelihood_bandwidth(adata: ad.AnnData, n_cells: int, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Return the seconds of a forward and a backward pass, and the bytes per second.

    The bytes are those that must be read or written: logits and their gradient, and the stored entries in both passes.
    """
    counts = to_csr_tensor(adata.X[:n_cells]).to(torch.device(device))
    shape = (counts.n_rows, counts.n_columns)
    logits_cf = torch.randn(shape, device=device).to(dtype).requires_grad_()
    log_theta_f = torch.zeros(shape[1], device=device, requires_grad=True)
    library_c, grad_c = counts.sum_rows(counts.value_n), torch.ones(shape[0], device=device)

    def forward_and_backward() -> tuple[Tensor, ...]:
        log_p_c = log_likelihoods.negative_binomial(logits_cf, log_theta_f, library_c, counts)
        return torch.autograd.grad(log_p_c, [logits_cf, log_theta_f], grad_c.to(log_p_c.dtype))

    n_bytes = 3 * logits_cf.nbytes + 2 * (counts.column_n.nbytes + counts.value_n.nbytes)
    seconds = seconds_of(forward_and_backward, device)
    return seconds, n_bytes / seconds


def seconds_of_products(n_cells: int, n_features: int, precision: str, device: str) -> float:
    """Return the time of the products with the decoder's last weights, forward and backward."""
    hidden_ch = torch.randn(n_cells, N_HIDDEN, device=device, requires_grad=True)
    weight_fh = torch.randn(n_features, N_HIDDEN, device=device, requires_grad=True)
    half = precision == "bf16-mixed"
    grad_cf = torch.randn(n_cells, n_features, device=device).to(torch.bfloat16 if half else torch.float32)

    def products() -> tuple[Tensor, ...]:
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            output_cf = linear(hidden_ch, weight_fh)
        return torch.autograd.grad(output_cf, [hidden_ch, weight_fh], grad_cf)

    return seconds_of(products, device)


def cells_per_second(n_cells: int, seconds: list[float]) -> float:
    """Return the speed of the epochs after the first, given the time at which each ended."""
    return n_cells / median(np.diff(seconds))


def train_celldial(adata: ad.AnnData, options: argparse.Namespace, batch_size: int, **how: Any) -> float:
    model = celldial.VAE(N_LATENT, N_HIDDEN)
    epochs = {"max_epochs": options.epochs, "early_stopping": False, "validation_size": 0.0}
    model.fit(adata, batch_size=batch_size, device=options.device, progress=False, **epochs, **how)
    return cells_per_second(adata.n_obs, model.history_["seconds"])


def train_scvi(adata: ad.AnnData, options: argparse.Namespace, batch_size: int) -> float:
    import scvi
    from lightning.pytorch.callbacks import Callback

    ends: list[float] = []

    class Clock(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            ends.append(time.perf_counter())

    scvi.model.SCVI.setup_anndata(adata)
    scvi.model.SCVI(adata, n_latent=N_LATENT, n_hidden=N_HIDDEN, gene_likelihood="nb").train(
        max_epochs=options.epochs,
        train_size=1.0,
        batch_size=batch_size,
        early_stopping=False,
        accelerator="cpu" if options.device == "cpu" else "gpu",
        devices=1,
        enable_progress_bar=False,
        callbacks=[Clock()],
    )
    return cells_per_second(adata.n_obs, ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=4, help="at least 2: the first is not counted")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--compile", choices=["off", "on", "both"], default="both")
    parser.add_argument("--no-scvi", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first is not counted")
    device = options.device
    start = time.perf_counter()
    adata = make_counts(options.cells, options.features, options.density)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; {adata.n_obs:,} cells × {adata.n_vars:,} features, made in {time.perf_counter() - start:.0f} s\n")

    copied = copy_bandwidth(device)
    print(f"Copying memory: {copied / 1e9:.0f} GB/s\n")
    print("| negative binomial, forward + backward | ms | GB/s | of copying |\n|---|---|---|---|")
    parts: list[dict[str, Any]] = []
    dtypes = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    # The last is larger than a cache.
    for n_cells, dtype in itertools.product([*options.batch_sizes, 8 * max(options.batch_sizes)], dtypes):
        n_cells = min(n_cells, adata.n_obs)
        seconds, reached = likelihood_bandwidth(adata, n_cells, dtype, device)
        name = str(dtype).removeprefix("torch.")
        parts.append({"cells": n_cells, "dtype": name, "seconds": seconds, "bytes_per_second": reached})
        print(f"| {n_cells} cells, {name} | {1000 * seconds:.3f} | {reached / 1e9:.0f} | {reached / copied:.0%} |")

    compiled = {"off": [False], "on": [True], "both": [False, True]}[options.compile]
    with_scvi = not options.no_scvi and importlib.util.find_spec("scvi") is not None
    print("\n| minibatch | precision | compiled | cells/s | ms a step | share of the floor | × scvi-tools |")
    print("|---|---|---|---|---|---|---|")
    trainings: list[dict[str, Any]] = []
    for batch_size in options.batch_sizes:
        peer = train_scvi(adata, options, batch_size) if with_scvi else None
        if peer is not None:
            trainings.append({"tool": "scvi-tools", "batch_size": batch_size, "cells_per_second": peer})
            print(f"| {batch_size} | scvi-tools | | {peer:,.0f} | {1000 * batch_size / peer:.2f} | | 1 |", flush=True)
        for precision, compile_ in itertools.product(options.precisions, compiled):
            speed = train_celldial(adata, options, batch_size, precision=precision, compile=compile_)
            floor = seconds_of_products(batch_size, adata.n_vars, precision, device)
            step = batch_size / speed
            trainings.append(
                {
                    "tool": "celldial",
                    "batch_size": batch_size,
                    "precision": precision,
                    "compile": compile_,
                    "cells_per_second": speed,
                    "floor_seconds": floor,
                }
            )
            ratio = "" if peer is None else f"{speed / peer:.1f}"
            row = f"| {batch_size} | {precision} | {'yes' if compile_ else 'no'} | {speed:,.0f} | {1000 * step:.2f} "
            print(f"{row}| {floor / step:.0%} | {ratio} |", flush=True)
    if options.out is not None:
        found = {"device": where, "copy_bytes_per_second": copied, "likelihood": parts, "trainings": trainings}
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Time of each part of a training step, and of the step relative to its floor, the decoder's dense products.

    python -m benchmarks.performance.step [--case rna FILE.h5ad] [--case atac FILE.h5ad] [--threads 1 2]

Each part is timed separately, then the whole step of `celldial.training.loop.Trainer` without Lightning Fabric. The
case "rna" uses the 2,000 most variable genes with a negative binomial likelihood, the case "atac" all peaks with a
Bernoulli likelihood. Without a case, the bundled blood cells are used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from benchmarks.peers.rna import most_variable_genes
from benchmarks.timing import milliseconds
from torch import Tensor
from torch.distributions import kl_divergence
from torch.optim.lr_scheduler import OneCycleLR

import celldial
from celldial.data.cells import Cells, minibatches
from celldial.data.schema import Schema
from celldial.estimator.prepare import build_module
from celldial.model.likelihoods import BINARY_LIKELIHOODS
from celldial.model.module import Module
from celldial.ops.log_likelihoods import sparse_linear
from celldial.training.optimizer import make_optimizer
from celldial.training.plan import TrainingPlan

# For each case, the type of its features in files with several types, and its likelihood.
FEATURE_TYPES = {"rna": "Gene Expression", "atac": "Peaks"}
LIKELIHOODS = {"rna": "negative_binomial", "atac": "bernoulli"}


def read(case: str, path: Path | None) -> ad.AnnData:
    if path is None:
        return celldial.datasets.pbmc68k_reduced()
    adata = ad.read_h5ad(path)
    if "feature_types" in adata.var:
        adata = adata[:, adata.var["feature_types"] == FEATURE_TYPES[case]].copy()
    if case == "rna" and adata.n_vars > 2000:
        adata = most_variable_genes(adata)
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def forward_and_backward(forward: Callable[[], list[Tensor]], inputs: Sequence[Tensor]) -> Callable[[], object]:
    # Gradients are full matrices, as in training. The gradient of a sum would be one number, expanded.
    gradients = [torch.randn_like(output) for output in forward()]
    return lambda: torch.autograd.grad(forward(), inputs, gradients)


def by_hand(module: Module, cells: Cells) -> Tensor:
    """Return the negative ELBO that `Module.forward` computes, without Pyro's tracing."""
    posterior, prior = module.posterior(cells)["z"], module.latent.prior(len(cells), like=cells.continuous_ck)
    decoded = module.decode(posterior.rsample(), cells)
    log_p_c = sum(observation.log_prob(cells.counts[name]) for name, observation in decoded.items())
    loss: Tensor = (kl_divergence(posterior, prior) - log_p_c).mean()
    return loss


def endlessly(cells: Cells, batch_size: int) -> Iterator[Cells]:
    """Yield minibatches of one size without end, as in training."""
    generator, index_c = torch.Generator().manual_seed(0), torch.arange(len(cells) // batch_size * batch_size)
    while True:
        yield from minibatches(cells, batch_size, generator=generator, index_c=index_c)


def parts_of_step(module: Module, everything: Cells, batches: list[Tensor]) -> dict[str, Callable[[], object]]:
    ((name, modality),) = module.by_modality()
    n_hidden = modality.encoder.bias_h.numel()
    plan = TrainingPlan(max_epochs=1, batch_size=len(batches[0]))
    optimizer = make_optimizer(module, plan.learning_rate, plan.weight_decay, len(everything))
    for group in optimizer.param_groups:
        group["lr"] *= 1e-6  # so that the model is practically the same for all parts
    parameters = list(module.parameters())
    order: Iterator[Tensor] = cycle(batches)
    cells = everything.select(batches[0])
    rows, library_c = cells.counts[name], cells.library_size[name]
    hidden_ch = torch.randn(len(cells), n_hidden, requires_grad=True)
    z_cz = torch.randn(len(cells), module.latent.n_latent, requires_grad=True)
    with torch.no_grad():
        heads = modality.decoder(z_cz, cells.category_ck, cells.continuous_ck)
    heads = [head.requires_grad_() for head in heads]
    head_parameters = [p for head in modality.decoder.heads for p in head.parameters()]

    def sparse_product() -> list[Tensor]:
        return [sparse_linear(rows, modality.encoder.weight_fh)]

    def dense_products() -> list[Tensor]:
        return [head(hidden_ch) for head in modality.decoder.heads]

    def likelihood() -> list[Tensor]:
        return [modality.likelihood.log_prob(heads, library_c, rows)]

    def optimize() -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

    schedule = OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=10**6)
    in_training = endlessly(everything, len(batches[0]))

    def step() -> None:
        loss = module(next(in_training), 1.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    covariates = cells.category_ck, cells.continuous_ck
    encoder, decoder = list(modality.encoder.parameters()), list(modality.decoder.parameters())
    return {
        "minibatch": lambda: everything.select(next(order)),
        "encoder": forward_and_backward(lambda: [modality.encoder(rows, library_c, *covariates)], encoder),
        "sparse": forward_and_backward(sparse_product, [modality.encoder.weight_fh]),
        "decoder": forward_and_backward(lambda: modality.decoder(z_cz, *covariates), [*decoder, z_cz]),
        "dense": forward_and_backward(dense_products, [*head_parameters, hidden_ch]),
        "likelihood": forward_and_backward(likelihood, [*heads, *modality.likelihood.parameters()]),
        "by hand": forward_and_backward(lambda: [by_hand(module, cells)], parameters),
        "pyro": forward_and_backward(lambda: [module(cells, 1.0)], parameters),
        "optimizer": optimize,
        "step": step,
    }


def measure(case: str, path: Path | None, threads: list[int], batch_size: int, repeats: int) -> list[str]:
    """Print the parts of a step with each number of threads; return a row of the last table for each."""
    adata = read(case, path)
    torch.manual_seed(0)
    schema = Schema.from_anndata(adata, likelihood=LIKELIHOODS[case], binary_likelihoods=BINARY_LIKELIHOODS)
    cells = Cells.from_anndata(adata, schema)
    module = build_module(celldial.VAE(likelihood=LIKELIHOODS[case]), schema, None)
    module.initialize(cells)
    module.train()
    batches = list(torch.randperm(len(cells)).split(batch_size))
    if len(batches) > 1:
        batches.pop()  # the last minibatch is smaller
    (stored,) = cells.counts.values()
    density = len(stored.value_n) / (stored.n_rows * stored.n_columns)
    name = f"{batch_size} cells × {stored.n_columns:,} features, {LIKELIHOODS[case].replace('_', ' ')}"
    rows = []
    for n_threads in threads:
        torch.set_num_threads(n_threads)  # after the import of scanpy, because numba sets the number of OpenMP threads
        ms = milliseconds(parts_of_step(module, cells, batches), repeats)
        print(f"\n{name}, {density:.1%} density, {n_threads} threads; forward + backward\n")
        print_profile(ms)
        rows.append(
            f"| {name} | {n_threads} | {ms['dense']:.2f} | {ms['step']:.2f} | {ms['step'] / ms['dense']:.2f} "
            f"| {1000 * batch_size / ms['step']:,.0f} |"
        )
    return rows


def print_profile(ms: dict[str, float]) -> None:
    lines = {
        "gather the minibatch": ms["minibatch"],
        "encoder, the sparse product": ms["sparse"],
        "encoder, the rest": ms["encoder"] - ms["sparse"],
        "decoder, the dense products to all features": ms["dense"],
        "decoder, the rest": ms["decoder"] - ms["dense"],
        "fused likelihood": ms["likelihood"],
        "sampling, KL divergence, sums": ms["by hand"] - ms["encoder"] - ms["decoder"] - ms["likelihood"],
        "Pyro's tracing (difference with and without)": ms["pyro"] - ms["by hand"],
        "optimizer": ms["optimizer"],
    }
    print("| part | ms | share of the step |\n|---|---|---|")
    for part, value in {**lines, "not accounted for": ms["step"] - sum(lines.values())}.items():
        print(f"| {part} | {value:.2f} | {value / ms['step']:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--case", nargs=2, action="append", metavar=("rna|atac", "FILE"), help="may be given twice")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    cases = [(case, Path(path)) for case, path in options.case or []] or [("rna", None)]
    rows = [row for case in cases for row in measure(*case, options.threads, options.batch_size, options.repeats)]
    print(
        "\n| case | threads | dense products, ms | whole step, ms | step ÷ dense | cells/s |\n|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()

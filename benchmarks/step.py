#!/usr/bin/env python
"""Where the time of a training step goes.

    python benchmarks/step.py [--data FILE.h5ad] [--threads 1]

Every part is timed alone, then the whole step as `celldial.train.fit` takes it, less Lightning Fabric and the schedule.
Without a file it takes the bundled blood cells; of a file with more than 2,000 genes, the 2,000 most variable ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import anndata as ad
import torch
from rna import most_variable_genes
from timing import milliseconds
from torch import Tensor
from torch.distributions import kl_divergence

import celldial
from celldial import train
from celldial.data import Cells
from celldial.module import Module
from celldial.ops import sparse_linear
from celldial.schema import Schema


def read(path: Path | None) -> ad.AnnData:
    if path is None:
        return celldial.datasets.pbmc68k_reduced()
    adata = ad.read_h5ad(path)
    return most_variable_genes(adata) if adata.n_vars > 2000 else adata


def forward_and_backward(forward: Callable[[], list[Tensor]], inputs: Sequence[Tensor]) -> Callable[[], object]:
    # Gradients as real matrices, as in training; those of a sum would be one number seen many times.
    gradients = [torch.randn_like(output) for output in forward()]
    return lambda: torch.autograd.grad(forward(), inputs, gradients)


def by_hand(module: Module, cells: Cells) -> Tensor:
    """The negative ELBO that `Module.forward` computes, without Pyro's tracing."""
    posterior, prior = module.posterior(cells)["z"], module.latent.prior(len(cells), like=cells.continuous_ck)
    decoded = module.decode(posterior.rsample(), cells)
    log_p_c = sum(observation.log_prob(cells.counts[name]) for name, observation in decoded.items())
    loss: Tensor = (kl_divergence(posterior, prior) - log_p_c).mean()
    return loss


def parts_of_step(module: Module, everything: Cells, batches: list[Tensor]) -> dict[str, Callable[[], object]]:
    ((name, modality),) = module.by_modality()
    n_hidden = modality.encoder.bias_h.numel()
    optimizer = train._optimizer(module, train.Plan(max_epochs=1, batch_size=len(batches[0])), len(everything))
    for group in optimizer.param_groups:
        group["lr"] *= 1e-6  # all parts shall see the same model
    parameters = list(module.parameters())
    order: Iterator[Tensor] = cycle(batches)
    cells = everything.select(batches[0])  # keeps the places of its stored entries once they were asked for
    rows, library_c = cells.counts[name], cells.library_size[name]
    hidden_ch = torch.randn(len(cells), n_hidden, requires_grad=True)
    z_cz = torch.randn(len(cells), module.latent.n_latent, requires_grad=True)
    with torch.no_grad():
        heads = modality.decoder(z_cz, cells.category_ck, cells.continuous_ck)
    heads = [head.requires_grad_() for head in heads]
    head_parameters = [p for head in modality.decoder.heads for p in head.parameters()]

    def place_entries() -> None:
        fresh = rows.with_values(rows.value_n)
        _ = fresh.row_n, fresh.flat_n

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

    def step() -> None:
        loss = module(everything.select(next(order)), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    covariates = cells.category_ck, cells.continuous_ck
    encoder, decoder = list(modality.encoder.parameters()), list(modality.decoder.parameters())
    return {
        "minibatch": lambda: everything.select(next(order)),
        "entries": place_entries,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="an .h5ad file of counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--likelihood", default="negative_binomial")
    options = parser.parse_args()
    adata = read(options.data)
    torch.set_num_threads(options.threads)  # after scanpy: numba sets the number of threads for all of OpenMP
    torch.manual_seed(0)
    schema = Schema.from_anndata(adata, likelihood=options.likelihood)
    cells = Cells.from_anndata(adata, schema)
    estimator = celldial.VAE(likelihood=options.likelihood)
    module = estimator._build(schema, None)
    module.initialise(cells)
    module.train()
    batches = list(torch.randperm(len(cells)).split(options.batch_size))
    if len(batches) > 1:
        batches.pop()  # the last is smaller
    ms = milliseconds(parts_of_step(module, cells, batches), options.repeats)

    lines = {
        "gather the minibatch": ms["minibatch"],
        "find row and place of each stored entry": ms["entries"],
        "encoder, the sparse product": ms["sparse"],
        "encoder, the rest": ms["encoder"] - ms["sparse"],
        "decoder, the dense products to all features": ms["dense"],
        "decoder, the rest": ms["decoder"] - ms["dense"],
        "fused likelihood": ms["likelihood"],
        "sampling, KL divergence, sums": ms["by hand"] - ms["encoder"] - ms["decoder"] - ms["likelihood"],
        "Pyro's tracing (with, less without)": ms["pyro"] - ms["by hand"],
        "optimizer": ms["optimizer"],
    }
    (stored,) = cells.counts.values()
    density = len(stored.value_n) / (stored.n_rows * stored.n_columns)
    print(
        f"{options.batch_size} cells × {stored.n_columns} features at {density:.1%} density, {options.likelihood}, "
        f"{options.threads} threads; forward + backward\n"
    )
    print("| part | ms | share of the step |\n|---|---|---|")
    for part, value in {**lines, "not accounted for": ms["step"] - sum(lines.values())}.items():
        print(f"| {part} | {value:.2f} | {value / ms['step']:.0%} |")
    print(f"| **whole step** | {ms['step']:.2f} | {options.batch_size / ms['step']:.1f} cells/ms |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Speed of the fused likelihoods, their reference functions, and the dense distributions of torch and Pyro.

    python -m benchmarks.performance.likelihoods [--threads 1]

Forward and backward pass of one minibatch, in milliseconds. The dense distributions receive the counts as a dense
matrix, whose creation is not timed. The reference functions create their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.timing import milliseconds
from pyro.distributions import ZeroInflatedNegativeBinomial
from scipy import sparse
from torch import Tensor
from torch.distributions import NegativeBinomial, Poisson

from celldial.data.cells import to_csr_tensor
from celldial.ops import log_likelihoods
from celldial.ops.csr import CSRTensor


def draw(n_cells: int, n_features: int, density: float) -> CSRTensor:
    """Return small counts at random positions."""
    random = np.random.default_rng(0)
    matrix = sparse.random(n_cells, n_features, density, "csr", rng=random)
    matrix.data = random.geometric(0.5, matrix.nnz)
    return to_csr_tensor(matrix)


def candidates(counts: CSRTensor) -> dict[str, dict[str, Callable[[], object]]]:
    """Return for each likelihood the variants to compare, each with a forward and a backward pass."""
    generator = torch.Generator().manual_seed(0)
    shape = counts.n_rows, counts.n_columns
    logits_cf = torch.randn(shape, generator=generator).requires_grad_()
    dropout_logits_cf = torch.randn(shape, generator=generator).requires_grad_()
    log_theta_f = torch.zeros(counts.n_columns).requires_grad_()
    library_c = counts.sum_rows(counts.value_n).clamp_min(1)
    dense_cf = counts.to_dense()

    def mean_cf() -> Tensor:
        return library_c[:, None] * torch.softmax(logits_cf, -1)

    def dense_poisson() -> Tensor:
        return Poisson(mean_cf(), validate_args=False).log_prob(dense_cf)

    def dense_negative_binomial() -> Tensor:
        logits = mean_cf().log() - log_theta_f
        return NegativeBinomial(log_theta_f.exp(), logits=logits, validate_args=False).log_prob(dense_cf)

    def dense_zero_inflated() -> Tensor:
        distribution = ZeroInflatedNegativeBinomial(
            log_theta_f.exp(),
            logits=mean_cf().log() - log_theta_f,
            gate_logits=dropout_logits_cf,
            validate_args=False,
        )
        return distribution.log_prob(dense_cf)

    def fresh() -> CSRTensor:
        """Return counts as in a new minibatch: the positions of their entries are not cached yet."""
        return counts.with_values(counts.value_n)

    two = (logits_cf, library_c)
    three = (logits_cf, log_theta_f, library_c)
    four = (logits_cf, dropout_logits_cf, log_theta_f, library_c)
    forward: dict[str, dict[str, Callable[[], Tensor]]] = {
        "poisson": {
            "fused": lambda: log_likelihoods.poisson(*two, fresh()),
            "reference": lambda: log_likelihoods.poisson_reference(*two, fresh()),
            "dense": dense_poisson,
        },
        "negative_binomial": {
            "fused": lambda: log_likelihoods.negative_binomial(*three, fresh()),
            "reference": lambda: log_likelihoods.negative_binomial_reference(*three, fresh()),
            "dense": dense_negative_binomial,
        },
        "zero_inflated_negative_binomial": {
            "fused": lambda: log_likelihoods.zero_inflated_negative_binomial(*four, fresh()),
            "reference": lambda: log_likelihoods.zero_inflated_negative_binomial_reference(*four, fresh()),
            "dense": dense_zero_inflated,
        },
    }
    parameters = (logits_cf, dropout_logits_cf, log_theta_f)

    def step(log_p: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(log_p().sum(), parameters, allow_unused=True)

    return {name: {kind: step(log_p) for kind, log_p in variants.items()} for name, variants in forward.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(f"forward + backward, ms; {options.cells} cells × {options.features} features, {options.threads} threads\n")
    print("| likelihood | density | fused | reference | dense distribution | dense ÷ fused |")
    print("|---|---|---|---|---|---|")
    for density in options.densities:
        counts = draw(options.cells, options.features, density)
        for name, variants in candidates(counts).items():
            ms = milliseconds(variants, options.repeats)
            print(
                f"| {name} | {density:.0%} | {ms['fused']:.2f} | {ms['reference']:.2f} | {ms['dense']:.2f} | "
                f"{ms['dense'] / ms['fused']:.1f}× |"
            )


if __name__ == "__main__":
    main()

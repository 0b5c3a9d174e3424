#!/usr/bin/env python
"""Four models of the sequencing depth of ATAC cells, compared on held-out cells.

    python -m benchmarks.ablations.depth --data DIR [--threads 1] [--seeds 2] [--epochs N]

The variants replace `celldial.model.likelihoods.Bernoulli` while a default `fit` runs. See benchmarks/README.md for
the columns. Medians over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import torch
from benchmarks.peers.multimodal import counts_of, n_held_out
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

import celldial as cd
from celldial.metrics import knn_f1, leiden_nmi
from celldial.model import likelihoods, networks
from celldial.ops.csr import CSRTensor

LABELS = "celltype"


# --- The variants -----------------------------------------------------------------------------------------------------


class Logit(torch.autograd.Function):
    """Bernoulli log-likelihood per cell given log odds, Σ_open y − Σ softplus(y), with its gradient."""

    @staticmethod
    def forward(ctx: Any, log_odds_cf: Tensor, counts: CSRTensor) -> Tensor:
        flat_n = counts.flat_n
        log_p_c = counts.sum_rows(log_odds_cf.flatten()[flat_n]) - softplus(log_odds_cf).sum(-1)
        grad_cf = log_odds_cf.sigmoid().neg_()
        grad_cf.view(-1).index_add_(0, flat_n, torch.ones_like(flat_n, dtype=grad_cf.dtype))
        ctx.save_for_backward(grad_cf)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, None]:
        (grad_cf,) = ctx.saved_tensors
        return grad_cf * grad_c[:, None], None


class LogOdds(likelihoods.Likelihood):
    """The decoder returns log odds. Only the latent state can encode the depth."""

    # The same prior as in the default model.
    loading_scale = likelihoods.Bernoulli.loading_scale

    def log_odds(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        return heads[0]

    def mean(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        return self.log_odds(heads, library_size_c).sigmoid()

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        result: Tensor = Logit.apply(self.log_odds(heads, library_size_c), counts)
        return result


class LogOddsWithOffset(LogOdds):
    """A learned multiple of the log number of open peaks of the cell is added to the log odds of every peak."""

    log_depth_mean: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.slope = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("log_depth_mean", torch.zeros(()))

    def initialize(self, counts: CSRTensor, library_size_c: Tensor) -> None:
        # The offset of the average cell is 0, so that the initial biases of the decoder are right.
        self.log_depth_mean.copy_(library_size_c.log().mean())

    def log_odds(self, heads: Sequence[Tensor], library_size_c: Tensor) -> Tensor:
        log_depth_c = library_size_c.clamp_min(1e-6).log() - self.log_depth_mean
        return heads[0] + self.slope * log_depth_c[:, None]


class FixedExposure(likelihoods.Bernoulli):
    """The default model without a learned exposure: the exposure is the number of open peaks."""

    def log_exposure(self, library_size_c: Tensor) -> Tensor:
        return library_size_c.clamp_min(1e-6).log()


def start_at_logit(decoder: networks.Decoder, counts: CSRTensor) -> None:
    """Initialize the biases to the log odds of each peak, as `Decoder.initialize` does for log rates."""
    with torch.no_grad():
        (head,) = decoder.heads
        head.weight.mul_(networks.HEAD_SCALE)
        n_open_f = counts.sum_columns(torch.ones_like(counts.value_n))
        head.bias.copy_(torch.logit((n_open_f + 1) / (counts.n_rows + 2)))


VARIANTS: dict[str, type[likelihoods.Likelihood]] = {
    "rate, learned power of the depth (default)": likelihoods.Bernoulli,
    "rate, exposure = number of open peaks": FixedExposure,
    "log-odds, learned multiple of log depth": LogOddsWithOffset,
    "log-odds, no depth": LogOdds,
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(adata: ad.AnnData, variant: type[likelihoods.Likelihood], seed: int, epochs: int | None) -> list[float]:
    """Fit one model and return its scores."""
    held_out_c = np.arange(adata.n_obs) < n_held_out(adata)
    model = cd.VAE(likelihood="bernoulli", seed=seed)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(likelihoods.LIKELIHOODS, bernoulli=variant))
        if issubclass(variant, LogOdds):
            patches.enter_context(mock.patch.object(networks.Decoder, "initialize", start_at_logit))
        options = {} if epochs is None else {"max_epochs": epochs}
        model.fit(adata, validation_cells=held_out_c, progress=False, **options)
    kept = int(np.argmax(model.history_["kept"]))
    embedding_cz = adata.obsm["X_celldial"]
    values = [
        -model.history_["elbo_validation"][kept],
        model.history_["log_likelihood_validation"][kept],
        depth_explained(adata, embedding_cz, held_out_c),
    ]
    if LABELS in adata.obs:
        values += [leiden_nmi(embedding_cz, adata.obs[LABELS]), knn_f1(embedding_cz, adata.obs[LABELS])]
    return values


def depth_explained(adata: ad.AnnData, embedding_cz: np.ndarray, held_out_c: np.ndarray) -> float:
    """Return R² of a linear regression of log depth on the latent state, fit to the other cells, on held-out cells."""
    depth_c = np.asarray((counts_of(adata, "Peaks") > 0).sum(axis=1)).ravel()
    train_c, test_c = ((depth_c > 0) & of_c for of_c in (~held_out_c, held_out_c))
    regression = LinearRegression().fit(embedding_cz[train_c], np.log(depth_c[train_c]))
    return float(regression.score(embedding_cz[test_c], np.log(depth_c[test_c])))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of pbmc10k_atac.h5ad and a549_multiome.h5ad")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="by default what `fit` chooses")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    blood = ad.read_h5ad(options.data / "pbmc10k_atac.h5ad")
    blood.var["feature_types"] = "Peaks"
    a549 = ad.read_h5ad(options.data / "a549_multiome.h5ad")
    a549 = a549[:, a549.var["feature_types"] == "Peaks"]
    # Cells are sorted by treatment in the file. They are shuffled, so that the first tenth can be held out.
    a549 = a549[np.random.default_rng(0).permutation(a549.n_obs)].copy()
    print("| data | depth | −ELBO | log-likelihood | R² of log depth | NMI | F1 |\n|---|---|---|---|---|---|---|")
    for data, adata in {"pbmc10k_atac": blood, "a549, peaks": a549}.items():
        for name, variant in VARIANTS.items():
            runs = [measure(adata, variant, seed, options.epochs) for seed in range(options.seeds)]
            elbo, log_p, r2, *scores = (median(column) for column in zip(*runs, strict=True))
            cells = [f"{elbo:.1f}", f"{log_p:.1f}", f"{r2:.2f}", *(f"{score:.3f}" for score in scores)]
            print(f"| `{data}` | {name} | {' | '.join(cells)}{' | |' if not scores else ''} |", flush=True)


if __name__ == "__main__":
    main()

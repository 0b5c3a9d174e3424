#!/usr/bin/env python
"""Effect of each default, changed one at a time, on held-out cells and on the embedding.

    python -m benchmarks.ablations.defaults --data DIR [--threads 1] [--seeds 3]

Prints the best validation −ELBO (nats/cell; the first 10 % of the cells are held out), and for `pbmc68k_counts` the
agreement of the embedding with the cell types. Medians over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import scanpy as sc
import torch
from benchmarks.peers.rna import LABELS, most_variable_genes
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

import celldial as cd
from celldial.metrics import knn_f1, leiden_nmi
from celldial.model import likelihoods, networks
from celldial.training import loop, optimizer


def plan(**changes: Any) -> Any:
    """Return a context in which training uses a changed plan."""
    train = loop.train

    def with_changes(module: Any, source: Any, plan: Any, *args: Any) -> Any:
        return train(module, source, replace(plan, **changes), *args)

    return mock.patch.object(loop, "train", with_changes)


def without(owner: type, method: str) -> Any:
    """Return a context in which a step of the initialization is left out."""
    return mock.patch.object(owner, method, return_value=None)


@contextmanager
def raw_input() -> Iterator[None]:
    """Use log counts as input of the encoder, not normalized by the library size."""
    with mock.patch.object(networks.Encoder, "normalize", lambda self, counts, library_size_c: counts.value_n.log1p()):
        yield


@contextmanager
def relu() -> Iterator[None]:
    """Use ReLU instead of SiLU."""
    with mock.patch.object(networks, "silu", torch.relu):
        yield


# Changes: parameters of VAE, or a patch that is active during the fit.
VARIANTS: dict[str, tuple[dict[str, Any], Callable[[], Any] | None]] = {
    "defaults": ({}, None),
    "Poisson": ({"likelihood": "poisson"}, None),
    "zero-inflated": ({"likelihood": "zero_inflated_negative_binomial"}, None),
    "5 latent coordinates": ({"n_latent": 5}, None),
    "20 latent coordinates": ({"n_latent": 20}, None),
    "two hidden layers": ({"n_layers": 2}, None),
    "512 hidden units": ({"n_hidden": 512}, None),
    "no dropout of counts": ({"dropout_rate": 0.0}, None),
    "half of the counts dropped": ({"dropout_rate": 0.5}, None),
    "half the learning rate": ({"learning_rate": 4e-3}, None),
    "weight decay 0.01": ({}, lambda: plan(weight_decay=0.01)),
    "no KL warm-up": ({}, lambda: plan(kl_warmup=False)),
    "dispersions as slow as weights": (
        {},
        lambda: mock.patch.object(optimizer, "LOG_SCALE_LR_FACTOR", 1),
    ),
    "dispersions start at 1": ({}, lambda: without(likelihoods.NegativeBinomial, "initialize")),
    "encoder starts unscaled": ({}, lambda: mock.patch.object(networks, "MIN_DEVIATION", 1.0)),
    "decoder biases start at 0": ({}, lambda: without(networks.Decoder, "initialize")),
    "input not normalized": ({}, raw_input),
    "ReLU": ({}, relu),
}


def measure(adata: ad.AnnData, parameters: dict[str, Any], patch: Callable[[], Any] | None, seed: int) -> list[float]:
    """Fit one model and return its scores."""
    held_out = np.arange(adata.n_obs) < adata.n_obs // 10
    model = cd.VAE(seed=seed, **parameters)
    if patch is None:
        model.fit(adata, validation_cells=held_out, progress=False)
    else:
        with patch():
            model.fit(adata, validation_cells=held_out, progress=False)
    values = [-max(model.history_["elbo_validation"])]
    if LABELS in adata.obs:
        embedding_cz = adata.obsm["X_celldial"]
        values += [leiden_nmi(embedding_cz, adata.obs[LABELS]), knn_f1(embedding_cz, adata.obs[LABELS])]
    return values


def supervised(adata: ad.AnnData) -> tuple[float, float]:
    """Classify cells by all genes with cross-validation, as an upper bound for embeddings of these genes."""
    normalized = sc.pp.normalize_total(adata, target_sum=1e4, copy=True)
    sc.pp.log1p(normalized)
    sc.pp.scale(normalized, max_value=10)
    labels = adata.obs[LABELS].astype(str).to_numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(LogisticRegression(C=0.01, max_iter=3000), normalized.X, labels, cv=folds)
    names, sizes = np.unique(labels, return_counts=True)
    common = np.isin(labels, names[sizes >= 10])
    return (
        float(normalized_mutual_info_score(labels, predicted)),
        float(f1_score(labels[common], predicted[common], average="macro", labels=names[sizes >= 10])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with pbmc68k_counts.h5ad and balf.h5ad")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small = ad.read_h5ad(options.data / "pbmc68k_counts.h5ad")
    large = most_variable_genes(ad.read_h5ad(options.data / "balf.h5ad"))
    print("| change | `pbmc68k_counts` −ELBO | NMI | F1 | `balf` −ELBO |\n|---|---|---|---|---|")
    for name, (parameters, patch) in VARIANTS.items():
        of_small = [measure(small, parameters, patch, seed) for seed in range(options.seeds)]
        elbo, nmi, f1 = (median(column) for column in zip(*of_small, strict=True))
        (of_large,) = measure(large, parameters, patch, 0)
        print(f"| {name} | {elbo:.1f} | {nmi:.3f} | {f1:.3f} | {of_large:.1f} |", flush=True)
    nmi, f1 = supervised(small)
    print(f"\nA logistic regression on the labels, cross-validated: NMI {nmi:.3f}, F1 {f1:.3f}.")


if __name__ == "__main__":
    main()

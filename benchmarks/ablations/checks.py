#!/usr/bin/env python
"""Posterior predictive checks: how many fail on cells that the model simulates, and are known defects found?

    python -m benchmarks.ablations.checks [--seeds 10] [--cells 1500] [--genes 150] [--epochs auto] [--only CASE ...]

Cells are simulated with two batches. A third of them is held out from the fit, and checked. Cases:

- ``model``: cells that a fitted model simulates. A second model is fitted to them.
- ``simulator``: cells of `simulate_multiome`, which has negative binomial counts, but another decoder and prior.
- ``zero_inflation``: 30 % of the counts of the simulator are lost.
- ``batch_dispersion``: inverse dispersions are 10 in one batch and 1 in the other.
- ``doublets``: 15 % of the cells are sums of two cells of the same batch.
- ``overdispersion``: a Poisson likelihood for the negative binomial counts of the simulator.
- ``few_latents``: one latent coordinate for the cells of the simulator.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import celldial

LOST, DOUBLETS, DISPERSIONS = 0.3, 0.15, (10.0, 1.0)
# What the sentence of a found defect names.
NAMED = {
    "zero_inflation": "zero inflation",
    "batch_dispersion": "dispersion depends on the batch",
    "doublets": "doublets",
    "overdispersion": "overdispersion",
    "few_latents": "latent coordinates",
}


def simulated(seed: int, options: argparse.Namespace) -> ad.AnnData:
    """Return genes of simulated cells, with their true means."""
    adata = celldial.datasets.simulate_multiome(
        options.cells, options.genes, options.genes, 4, 2, cell_cycle=False, depth=6, truth=True, seed=seed
    )
    return adata[:, adata.var["feature_types"] == "Gene Expression"].copy()


def fit(adata: ad.AnnData, seed: int, options: argparse.Namespace, **parameters: Any) -> celldial.VAE:
    """Return a fitted model."""
    model = celldial.VAE(**{"batch_key": "batch", "seed": seed, **parameters})
    return model.fit(adata, max_epochs=options.epochs, progress=False)


def of_model(adata: ad.AnnData, random: np.random.Generator, seed: int, options: argparse.Namespace) -> ad.AnnData:
    """Return cells that a model simulates."""
    batch_c = random.choice(list(adata.obs["batch"].cat.categories), adata.n_obs)
    return fit(adata, seed, options).sample(adata.n_obs, pd.DataFrame({"batch": batch_c}), seed=seed)


def lose_counts(adata: ad.AnnData, random: np.random.Generator, *_: Any) -> ad.AnnData:
    """Return cells that lost some of their counts."""
    counts = sparse.csr_matrix(adata.X, copy=True)
    counts.data *= random.random(len(counts.data)) >= LOST
    counts.eliminate_zeros()
    return ad.AnnData(counts, adata.obs, adata.var)


def disperse(adata: ad.AnnData, random: np.random.Generator, *_: Any) -> ad.AnnData:
    """Return cells whose counts have another dispersion in each batch."""
    theta_c1 = np.array(DISPERSIONS)[adata.obs["batch"].cat.codes][:, None]
    mean_cf = adata.layers["mean"].astype(float)
    counts_cf = random.poisson(mean_cf * random.gamma(np.broadcast_to(theta_c1, mean_cf.shape)) / theta_c1)
    return ad.AnnData(sparse.csr_matrix(counts_cf, dtype=np.float32), adata.obs, adata.var)


def add_doublets(adata: ad.AnnData, random: np.random.Generator, *_: Any) -> ad.AnnData:
    """Return cells of which some are sums of two cells of the same batch."""
    parts = []
    for batch in adata.obs["batch"].cat.categories:
        own_c = random.permutation(np.flatnonzero(adata.obs["batch"] == batch))
        n = round(DOUBLETS / (1 + DOUBLETS) * len(own_c))
        doublets = ad.AnnData(adata.X[own_c[:n]] + adata.X[own_c[n : 2 * n]], adata.obs.iloc[own_c[:n]], adata.var)
        parts += [doublets, ad.AnnData(adata.X[own_c[2 * n :]], adata.obs.iloc[own_c[2 * n :]], adata.var)]
    return ad.concat(parts)


CASES: dict[str, tuple[Callable[..., ad.AnnData], dict[str, Any]]] = {
    "model": (of_model, {}),
    "simulator": (lambda adata, *_: adata, {}),
    "zero_inflation": (lose_counts, {}),
    "batch_dispersion": (disperse, {}),
    "doublets": (add_doublets, {}),
    "overdispersion": (lambda adata, *_: adata, {"likelihood": "poisson"}),
    "few_latents": (lambda adata, *_: adata, {"n_latent": 1}),
}


def run(case: str, seed: int, options: argparse.Namespace) -> pd.DataFrame:
    """Return the checks of held-out cells."""
    change, parameters = CASES[case]
    random = np.random.default_rng(seed)
    adata = change(simulated(seed, options), random, seed, options)
    adata.layers.clear()
    order_c = random.permutation(adata.n_obs)
    held_out, train = (adata[part].copy() for part in np.split(order_c, [adata.n_obs // 3]))
    return fit(train, seed + 1, options, **parameters).check(held_out)


def main() -> None:
    """Print the failed checks of each seed and case, then shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cells", type=int, default=1500)
    parser.add_argument("--genes", type=int, default=150)
    parser.add_argument("--epochs", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for case in options.only:
        shares, found, failed_checks = [], 0, []
        for seed in range(options.seeds):
            table = run(case, seed, options)
            failed = table[table["failed"]]
            shares.append(table["failed"].mean())
            found += bool(failed["advice"].str.contains(NAMED.get(case, "-")).any())
            failed_checks += list(failed["check"].unique())
            rows = ", ".join(
                f"{row.check} {row.batch} {row.observed:.2f} ({row.lower:.2f} to {row.upper:.2f})"
                for row in failed.itertuples()
            )
            print(f"{case}, seed {seed}: {len(failed)} of {len(table)} fail: {rows}", flush=True)
        names = pd.Series(failed_checks, dtype=object).value_counts()
        most = ", ".join(f"{name} ({n})" for name, n in names.items())
        named = f"{found} of {options.seeds}" if case in NAMED else "–"
        lines.append(f"| {case} | {np.mean(shares):.3f} | {max(shares):.3f} | {named} | {most or '–'} |")
    print("\n| cells | failed, mean | failed, worst seed | named | failed checks (seeds) |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

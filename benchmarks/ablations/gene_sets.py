#!/usr/bin/env python
"""Names of axes by gene sets: how often is a random set significant, and is the cell cycle found in plain models?

    python -m benchmarks.ablations.gene_sets [--data DIR] [--seeds 10] [--cells 1000] [--epochs auto]

Simulated cells have a cell cycle or have none. Without a cycle, and with random sets of genes, each p-value below 0.05
is false. A set is called as the analysis would: by its smallest p-value over the axes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import celldial
from celldial.periodic.markers import G2M_GENES, S_GENES

PHASES = {"S": S_GENES.split(), "G2M": G2M_GENES.split()}
DATA_SETS = ("mesc_cell_cycle", "neurosphere", "neurogenesis")
N_RANDOM, N_GENES, MOST_GENES = 40, 20, 3000


def smallest(model: celldial.VAE, adata: ad.AnnData, gene_sets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the row of each gene set with the smallest p-value, and among these the largest correlation."""
    table = model.name_axes(adata, gene_sets, n_permutations=199)
    table = table.sort_values("p_value", kind="stable").drop_duplicates("gene_set").set_index("gene_set")
    return table[["axis", "correlation", "p_value"]].to_dict("index")


def random_sets(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Return random sets of genes."""
    random = np.random.default_rng(seed)
    return {f"random {k}": list(random.choice(names, N_GENES, replace=False)) for k in range(N_RANDOM)}


def simulated(seed: int, cell_cycle: bool, n_cells: int, epochs: Any) -> tuple[celldial.VAE, ad.AnnData]:
    """Return a plain model of the genes of simulated cells."""
    adata = celldial.datasets.simulate_multiome(n_cells, 500, 500, 3, 1, cell_cycle=cell_cycle, depth=6, seed=seed)
    adata = adata[:, adata.var["feature_types"] == "Gene Expression"].copy()
    return celldial.VAE(seed=seed).fit(adata, max_epochs=epochs, progress=False), adata


def real(path: Path, epochs: Any) -> tuple[celldial.VAE, ad.AnnData]:
    """Return a plain model of the genes with most counts in a file."""
    adata = ad.read_h5ad(path)
    most = np.sort(np.argsort(-np.asarray(adata.X.sum(0)).ravel())[:MOST_GENES])
    adata = adata[:, most].copy()
    return celldial.VAE().fit(adata, max_epochs=epochs, progress=False), adata


def main() -> None:
    """Print one line for each data set, and the shares of significant sets over all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--epochs", type=lambda text: text if text == "auto" else int(text), default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    null_p: list[float] = []
    found = {phase: [] for phase in PHASES}
    for seed in range(options.seeds):
        model, adata = simulated(seed, True, options.cells, options.epochs)
        rows = smallest(model, adata, PHASES | random_sets(adata.var_names, seed))
        for phase, calls in found.items():
            calls.append(rows.pop(phase)["p_value"] < 0.05)
        null_p += [row["p_value"] for row in rows.values()]
        model, adata = simulated(seed, False, options.cells, options.epochs)
        null_p += [row["p_value"] for row in smallest(model, adata, random_sets(adata.var_names, seed)).values()]
        print(f"seed {seed}: random sets with p < 0.05: {np.mean(np.array(null_p) < 0.05):.3f}", flush=True)
    for phase, calls in found.items():
        print(f"simulated cycle, {phase} found: {sum(calls)} of {len(calls)}")
    for level in (0.01, 0.05, 0.2, 0.5):
        print(f"random sets with p <= {level}: {np.mean(np.array(null_p) <= level):.3f} of {len(null_p)}")
    for name in DATA_SETS if options.data else ():
        model, adata = real(options.data / f"{name}.h5ad", options.epochs)
        rows = smallest(model, adata, PHASES | random_sets(adata.var_names, 0))
        cycle = [
            f"{phase}: {row['axis']} r={row['correlation']:.2f} p={row['p_value']:.3f}"
            for phase in PHASES
            for row in [rows.pop(phase)]
        ]
        share = np.mean([row["p_value"] <= 0.05 for row in rows.values()])
        print(f"{name}: {'; '.join(cycle)}; random sets with p <= 0.05: {share:.3f}")


if __name__ == "__main__":
    main()

"""Cells with a simulated cell cycle, and models of them."""

from functools import cache
from typing import Any

import numpy as np
from anndata import AnnData

from celldial import VAE
from celldial.datasets import simulate_multiome

TURN = 2 * np.pi
PARTS = ["angle", "concentration", "active_probability", "active", "phase"]
COLUMNS = [f"cell_cycle_{part}" for part in PARTS]
OPTIONS: dict[str, Any] = {"max_epochs": 6, "progress": False}


def make_cells(n_cells: int = 400, **options: Any) -> AnnData:
    """Simulate cells of two types at six times the usual depth, with their true angles in ``obs["truth"]``."""
    adata = simulate_multiome(n_cells, 150, 300, n_types=2, n_batches=1, **{"depth": 6.0, "seed": 1, **options})
    name = "true_cell_cycle_angle" if "true_cell_cycle_angle" in adata.obs else "cell_cycle_angle"
    adata.obs["truth"] = adata.obs.pop(name)
    adata.layers.clear()
    # At this depth many peaks have several fragments, of which `fit` warns.
    is_peak_f = (adata.var["feature_types"] == "Peaks").to_numpy()
    stored_n = is_peak_f[adata.X.indices]
    adata.X.data[stored_n] = np.minimum(adata.X.data[stored_n], 1)
    return adata


def make_model(**parameters: Any) -> VAE:
    """Return a small VAE with a cell cycle; `parameters` replace its parameters."""
    return VAE(**{"n_latent": 4, "n_hidden": 16, "periodic": "cell_cycle", **parameters})


def genes_of(adata: AnnData) -> AnnData:
    """Return the genes of simulated cells."""
    return adata[:, (adata.var["feature_types"] == "Gene Expression").to_numpy()].copy()


@cache
def fit_once() -> tuple[VAE, AnnData]:
    """Return a fitted model and its cells; the same objects at each call, so tests that change them take a copy."""
    adata = make_cells()
    return make_model().fit(adata, max_epochs=12, progress=False), adata

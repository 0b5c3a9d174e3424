"""Quick fits of small models, and changes of fitted ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from anndata import AnnData

from celldial import VAE


def fit(data: Any, model: VAE | None = None, **options: Any) -> VAE:
    """Fit a model with two coordinates, or `model`, for two epochs unless `options` has another number."""
    model = VAE(2, 8) if model is None else model
    return model.fit(data, **{"max_epochs": 2, "progress": False, **options})


def fit_clusters(
    adata: AnnData, max_epochs: int = 30, validation_cells: np.ndarray | None = None, seed: int = 0, **parameters: Any
) -> VAE:
    """Fit a model that is large enough to find the clusters of `simulate_groups`, in few steps."""
    model = VAE(**{"n_latent": 4, "n_hidden": 64, "seed": seed, **parameters})
    return model.fit(adata, max_epochs=max_epochs, batch_size=60, validation_cells=validation_cells, progress=False)


@contextmanager
def without_loadings(model: VAE) -> Iterator[None]:
    """Remove the posterior of the loadings from a model within the block."""
    modalities = [modality for _, modality in model.module_.by_modality()]
    known = [modality.loadings for modality in modalities]
    for modality in modalities:
        modality.loadings = None
    yield
    for modality, loadings in zip(modalities, known, strict=True):
        modality.loadings = loadings

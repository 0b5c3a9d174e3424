"""Which latent coordinates matter: a table of them, from cells and a trained module."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from celldial import axes, inference
from celldial.data import Cells, block_size
from celldial.inference import Covariates
from celldial.latents import LogisticNormal
from celldial.module import Module

__all__ = ["names_of", "rank"]


def rank(
    module: Module, cells: Cells, library_size: Mapping[str, float], periodic: str | None, n_cells: int, seed: int
) -> pd.DataFrame:
    """Judge each latent coordinate by what the counts tell of it, and by how much the decoded output hangs on it.

    Parameters
    ----------
    module
        Trained.
    cells
        To judge by.
    library_size
        Modality to the library size to decode with.
    periodic
        What the circle is called, if there is one.
    n_cells
        Number of cells whose output is decoded.
    seed
        Of their choice, and of the values that replace theirs.

    Returns
    -------
    pandas.DataFrame
        One row a coordinate, in their order; see `celldial.VAE.axes`.

    Raises
    ------
    ValueError
        Fewer than two cells have counts.
    """
    filled = np.flatnonzero(~cells.empty_c.numpy())
    if len(filled) < 2:
        raise ValueError(f"only {len(filled)} of {len(cells)} cells has counts: axes are judged by two at least")
    inferred = inference.infer(module, cells)
    n_latent = module.latent.n_latent
    names, columns = names_of(module), [[k] for k in range(n_latent)]
    kl_k = axes.kl_divergence(inferred.mean[filled], inferred.standard_deviation[filled])
    if inferred.circle is not None and periodic is not None:
        names.append(periodic)
        columns.append([n_latent, n_latent + 1])
        kl_k = np.append(kl_k, inferred.circle.kl[filled].mean())
    chosen = np.sort(np.random.default_rng(seed).choice(filled, min(n_cells, len(filled)), replace=False))
    category_ck, continuous_ck = cells.category_ck[chosen].numpy(), cells.continuous_ck[chosen].numpy()
    variance = {}
    for modality in module.modalities:

        def expected(z_cz: np.ndarray, part: slice, modality: str = modality) -> np.ndarray:
            covariates = Covariates(category_ck[part], continuous_ck[part])
            return np.concatenate(list(inference.expected(module, modality, z_cz, covariates, library_size[modality])))

        n_block = block_size(module.n_features[modality])
        random = np.random.default_rng(seed)  # the same replacements in all modalities
        variance[modality] = axes.total_effects(inferred.state_cz[chosen], columns, expected, n_block, random)
    return axes.coordinate_table(names, kl_k, variance)


def names_of(module: Module) -> list[str]:
    """Name the latent coordinates: ``"axis_0"`` and so on, or ``"topic_0"`` where they are topics."""
    what = "topic" if isinstance(module.latent, LogisticNormal) else "axis"
    return [f"{what}_{k}" for k in range(module.latent.n_latent)]

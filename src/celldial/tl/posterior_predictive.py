"""Draw counts of given cells from the posterior predictive distribution."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from scipy import sparse

from celldial.data.cell_checks import warn_empty_cells
from celldial.data.cells import Cells
from celldial.data.counts import is_on_disk
from celldial.inference.fitted_model import FittedModel, get_modality, read_from, read_parts
from celldial.inference.predictive import draw_counts
from celldial.utils.argument_types import validate_types
from celldial.utils.random import isolate_rng
from celldial.utils.validation import check_integer, resolve_seed
from celldial.utils.warnings import warn_once

__all__ = ["posterior_predictive"]


@validate_types
def posterior_predictive(
    model: FittedModel,
    adata: Any,
    n_samples: int = 1,
    *,
    modality: str | None = None,
    layer: str | None = None,
    seed: int | None = None,
) -> list[sparse.csr_matrix]:
    """Draw counts of the same cells again: latent states from their posteriors, and counts given them.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.posterior_predictive(adata)``.
    adata
        Cells with counts; or files of cells as in `fit`.
    n_samples
        Number of draws of each cell.
    modality
        Modality to draw; by default the first of the model, which is ``"rna"`` if it has RNA. Latent states are
        inferred from all modalities that a cell has.
    layer
        As in `transform`.
    seed
        Seed of the random numbers; the model's seed by default.

    Returns
    -------
    list[scipy.sparse.csr_matrix]
        One matrix for each draw: counts, or zeros and ones under a Bernoulli likelihood, float32, cells × features of
        the modality in the order of the model. Each cell has its own covariates and library size. The rows of cells
        without counts of the modality are empty.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        `n_samples` is less than 1.
    KeyError
        The model has no such modality.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Notes
    -----
    Cells are decoded in blocks, so memory beyond that of the result does not grow with their number. `check` compares
    such draws with the observed counts. `sample` draws new cells, from the prior.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> draws = model.posterior_predictive(adata, 3)
    >>> len(draws), draws[0].shape
    (3, (700, 765))
    """
    model = read_from(model, layer)
    check_integer("n_samples", n_samples)
    name = get_modality(model, modality)
    parts: list[list[sparse.csr_matrix]] = [[] for _ in range(n_samples)]
    with isolate_rng(resolve_seed(seed, model.seed)), warn_once() if is_on_disk(adata) else nullcontext():
        for table, cells in read_parts(model, adata, None):
            warn_empty_cells(table.obs_names.__getitem__, cells, "no counts are drawn for them")
            for part in parts:
                part.extend(_draw(model, cells, name))
    return [sparse.csr_matrix(sparse.vstack(part, format="csr")) for part in parts]


def _draw(model: FittedModel, cells: Cells, name: str) -> list[sparse.csr_matrix]:
    """Return one draw of each cell, block by block."""
    return [counts[name] for _, counts in draw_counts(model.module_, cells, [name])]

"""How similar cells are to the cells that a model was fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from celldial.inference import posterior
from celldial.inference.fitted_model import FittedModel, is_file_path, read_from, read_parts, to_anndata
from celldial.inference.reference import likelihood_residuals, log_depth
from celldial.io import results
from celldial.utils.argument_types import validate_types

__all__ = ["find_quality", "mapping_quality"]


@validate_types
def mapping_quality(model: FittedModel, adata: Any, *, layer: str | None = None) -> pd.DataFrame:
    """Compare cells with the cells that the model was fitted to, and write the result to the AnnData.

    Each number is the fraction of the validation cells of `fit` that are less similar to the training cells than the
    cell is. Cells of the same kind have numbers between 0 and 1 with equal probability. Cells of a type that the
    reference lacks, doublets and damaged cells have low numbers.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.mapping_quality(adata)``.
    adata
        As in `transform`.
    layer
        Layer with raw counts, if they are not in the layer that the model was fitted to; ``"X"`` for ``adata.X``.

    Returns
    -------
    pandas.DataFrame
        One row per cell, with these columns:

        - ``likelihood``: from the log-likelihood of the counts, relative to counts that the model simulates for this
          cell; among validation cells of similar depth. It is low if the model does not describe the cell well, for
          example because of technical effects that were not learned.
        - ``distance``: from the mean distance to the 15 nearest training cells.
        - ``quality``: twice the smaller of the two, at most 1. Below 0.05, a cell differs from the reference.

        Written: the same to ``adata.obs["celldial_mapping_likelihood"]``, ``["celldial_mapping_distance"]`` and
        ``["celldial_mapping_quality"]``. Cells without counts have NaN.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The model was saved by an earlier version, which did not store what new cells are compared with.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata[:600].copy(), max_epochs=2, progress=False)
    >>> table = model.mapping_quality(adata[600:].copy())
    >>> list(table.columns)
    ['likelihood', 'distance', 'quality']
    """
    model = read_from(model, layer)
    if model.reference_ is None:
        raise ValueError(
            "this model was saved by an earlier version, without a summary of its reference cells: fit it again"
        )
    if not is_file_path(adata):
        results.check_mapping(to_anndata(model, adata))
    quality = find_quality(model, adata)
    if not is_file_path(adata):
        results.write_mapping(adata, model.fingerprint_, quality)
    return quality


def find_quality(model: FittedModel, adata: Any) -> pd.DataFrame:
    """Return the table of `mapping_quality` of a model with a summary of its reference cells."""
    assert model.reference_ is not None
    tables = []
    for table, cells in read_parts(model, adata, None):
        state = posterior.infer(model.module_, cells)
        residual_c = likelihood_residuals(model.module_, cells, state.state_cz)
        found = model.reference_.compare(state.mean, residual_c, log_depth(cells))
        values = {"likelihood": found.likelihood_c, "distance": found.distance_c, "quality": found.quality_c}
        values = {name: np.where(cells.empty_c.numpy(), np.nan, value_c) for name, value_c in values.items()}
        tables.append(pd.DataFrame(values, index=table.obs_names))
    return pd.concat(tables)

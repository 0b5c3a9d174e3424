"""Markers of groups of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.inference.fitted_model import FittedModel
from celldial.tl.differential import COLUMNS, KEY, differential
from celldial.utils.argument_types import validate_types
from celldial.utils.validation import check_integer

__all__ = ["markers"]


@validate_types
def markers(
    model: FittedModel,
    adata: AnnData,
    groupby: str,
    n_features: int | None = 10,
    *,
    groups: Sequence[Any] | str | None = None,
    at: Mapping[str, Any] | tuple[str, Any] | None = None,
    modality: str | None = None,
    max_fdr: float = 0.05,
    layer: str | None = None,
    key_added: str | None = KEY,
) -> pd.DataFrame:
    """Return the markers of each group: the features that are higher in it than in all other cells.

    The groups are compared by the method ``"model"`` of `differential`.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.markers(adata, groupby)``.
    adata
        Cells; or files of cells as in `fit`, to which nothing is written.
    groupby
        Column of ``adata.obs`` with the groups, such as clusters.
    n_features
        Number of markers of each group; None for all.
    groups, at, modality
        As in `differential`.
    max_fdr
        Largest false discovery rate of a marker.
    layer, key_added
        As in `differential`.

    Returns
    -------
    pandas.DataFrame
        Rows of the table of `differential`, for each group the strongest marker first: by the lower end of the interval
        of the log2 fold change, moderated so that rare features rank low. The result for all features is written as by
        `differential`.

    Raises
    ------
    ValueError
        `n_features` is not an integer of at least 1.
    NotFittedError, ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `differential`.

    Notes
    -----
    If the groups are clusters of the same cells, they were chosen to differ, and small `fdr` do not show that there are
    two types of cells.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> model.markers(adata, "bulk_labels", 3).query("group == 'CD19+ B'").shape
    (3, 12)
    """
    if n_features is not None:
        check_integer("n_features", n_features)
    table = differential(
        model,
        adata,
        groupby,
        groups,
        method="model",
        at=at,
        modality=modality,
        continuous=False,
        layer=layer,
        key_added=key_added,
    )
    # The constant keeps rare features with a large fold change from ranking high, as in `latent_traverse`.
    constant = table["mean_reference"].mean()
    low = table["mean_reference"] * 2 ** table["lower"]
    table = table.assign(strength=np.log2((low + constant) / (table["mean_reference"] + constant)))
    table = table[(table["log2_fold_change"] > 0) & (table["fdr"] <= max_fdr)]
    order = table["group"].map({group: i for i, group in enumerate(dict.fromkeys(table["group"]))})
    table = table.iloc[np.lexsort([-table["strength"], order])]
    if n_features is not None:
        table = table.groupby("group", sort=False, observed=True).head(n_features)
    return table[COLUMNS].reset_index(drop=True)

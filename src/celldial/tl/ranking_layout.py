"""A table of differences in the layout of `scanpy.tl.rank_genes_groups`, so that its functions and plots read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from celldial.io.tables import columns_for_files

__all__ = ["to_scanpy_layout"]

# Field of scanpy's layout to the column of the table.
FIELDS = {"names": "feature", "scores": "score", "pvals": "p", "pvals_adj": "fdr", "logfoldchanges": "log2_fold_change"}
TYPES = {"names": "O", "scores": "float32", "pvals": "float64", "pvals_adj": "float64", "logfoldchanges": "float32"}


def to_scanpy_layout(table: pd.DataFrame, names: list[str], params: dict[str, Any]) -> dict[str, Any]:
    """Return the table as record arrays with one field per group, the features of a group by falling score.

    Parameters
    ----------
    table
        One row per group and feature, with the columns of `differential`, and ``score`` and ``p``.
    names
        All features, in the order of the model.
    params
        Entry ``"params"``, with at least ``groupby`` and ``reference``.
    """
    groups = list(table["group"].unique())
    by_group = {
        group: part.sort_values("score", ascending=False, kind="stable")
        for group, part in table.groupby("group", sort=False, observed=True)
    }
    layout: dict[str, Any] = {"params": params}
    for field, column in FIELDS.items():
        values = [by_group[group][column].to_numpy() for group in groups]
        layout[field] = np.rec.fromarrays(values, dtype=[(group, TYPES[field]) for group in groups])
    shares = {"pts": "share_group", "pts_rest": "share_reference"}
    if columns_for_files(groups) != list(groups):
        return layout  # scanpy looks for columns with the names of the groups, and files cannot hold them
    for field, column in shares.items():
        layout[field] = pd.DataFrame(
            {group: by_group[group].set_index("feature")[column].reindex(names) for group in groups}, index=names
        )
    return layout

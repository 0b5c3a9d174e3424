"""Partly known labels of cells: names of labels and clusters, and labels as codes.

Axis suffix: ``c`` cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celldial.io.results import probability_columns
from celldial.utils.messages import format_names, get_column

__all__ = ["encode_labels", "find_labels", "name_clusters"]


def find_labels(obs: pd.DataFrame, key: str, unknown: str) -> list[str]:
    """Return the labels of the cells in alphabetical order.

    Parameters
    ----------
    obs
        One row per cell.
    key
        Column of labels.
    unknown
        Value of the column for cells without a known label. Missing values mean the same.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        There are fewer than two labels.
    """
    label_c = _read_labels(obs, key, unknown)
    names = sorted(label_c.dropna().unique())
    if len(names) < 2:
        found = f"only the label {names[0]!r}" if names else "no label"
        raise ValueError(
            f"adata.obs[{key!r}] has {found} ({unknown!r} and missing values are not labels): at least two are needed"
        )
    return names


def name_clusters(labels: Sequence[str], n_clusters: int | None) -> list[str]:
    """Return the names of the clusters: the labels first, then numbers for clusters without a label.

    Raises
    ------
    ValueError
        There are more labels than clusters; a label is also the number of a cluster without a label; or two labels
        would be written to the same column.
    """
    n_clusters = len(labels) if n_clusters is None else n_clusters
    if n_clusters < len(labels):
        raise ValueError(
            f"n_clusters={n_clusters} is less than the {len(labels)} labels: leave n_clusters out, or use more for "
            "clusters without a label"
        )
    numbers = [str(k) for k in range(n_clusters - len(labels))]
    conflicts = sorted(set(labels) & set(numbers))
    if conflicts:
        raise ValueError(f"the label {conflicts[0]!r} is also the number of a cluster without a label: rename it")
    names = [*labels, *numbers]
    columns = probability_columns(names)
    for name, column in zip(names, columns, strict=True):
        if columns.count(column) > 1:
            raise ValueError(
                f"the label {name!r} and another label would be written to the same column {column!r}: rename one of "
                "them"
            )
    return names


def encode_labels(obs: pd.DataFrame, clusters: Mapping[str, Any] | None) -> Tensor | None:
    """Return the known cluster of each cell, int64, shape ``(c,)``; -1 if it is unknown.

    Parameters
    ----------
    obs
        One row per cell.
    clusters
        Description of the model's clusters: ``names``, and for labeled clusters ``labels_key`` and ``unknown_label``.

    Returns
    -------
    torch.Tensor or None
        None if the model has no labels or `obs` has no column of labels.

    Raises
    ------
    ValueError
        A label is not the name of a cluster.
    """
    key = None if clusters is None else clusters.get("labels_key")
    if clusters is None or key is None or key not in obs:
        return None
    names = clusters["names"]
    label_c = _read_labels(obs, key, clusters["unknown_label"])
    unknown = sorted(set(label_c.dropna()) - set(names))
    if unknown:
        raise ValueError(
            f"adata.obs[{key!r}] has labels that are not in the model: {format_names(unknown)}. The model has "
            f"{', '.join(map(repr, names))}; rename the labels, or replace them by {clusters['unknown_label']!r}"
        )
    code_c = pd.Categorical(label_c, categories=list(names)).codes
    return torch.from_numpy(code_c.astype(np.int64))


def _read_labels(obs: pd.DataFrame, key: str, unknown: str) -> pd.Series[Any]:
    """Return the labels as text; missing for cells without a known label."""
    column_c = get_column(obs, key, "labels_key")
    label_c = column_c.astype(object)
    text_c = label_c.where(label_c.isna(), label_c.astype(str))
    return text_c.where((text_c != str(unknown)) & (label_c != unknown))

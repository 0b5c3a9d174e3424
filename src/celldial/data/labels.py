"""Labels of cells that are known in part: read from a column, and told as numbers.

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
from celldial.utils.messages import get_column

__all__ = ["encode_labels", "find_labels", "name_clusters"]


def find_labels(obs: pd.DataFrame, key: str, unknown: str) -> list[str]:
    """Find the labels that occur among cells, in alphabetical order.

    Parameters
    ----------
    obs
        Table of the cells.
    key
        Column of labels.
    unknown
        The value that stands for none; missing values do, too.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        No cell, or every cell, has one and the same.
    """
    label_c = _read_labels(obs, key, unknown)
    names = sorted(label_c.dropna().unique())
    if len(names) < 2:
        found = f"only the label {names[0]!r}" if names else "no label"
        raise ValueError(
            f"adata.obs[{key!r}] has {found} (besides {unknown!r}, and missing values, which stand for cells whose "
            "label is not known): at least two are needed to tell cells apart"
        )
    return names


def name_clusters(labels: Sequence[str], n_clusters: int | None) -> list[str]:
    """Name clusters by labels; those beyond them, or all where there are none, by numbers.

    Raises
    ------
    ValueError
        There are more labels than clusters, a cluster without a label would be called like one with a label, or two
        labels would be the same column.
    """
    n_clusters = len(labels) if n_clusters is None else n_clusters
    if n_clusters < len(labels):
        raise ValueError(
            f"n_clusters={n_clusters} is less than the {len(labels)} labels: leave n_clusters out, or choose more for "
            "clusters that have no label yet"
        )
    others = [str(k) for k in range(n_clusters - len(labels))]
    taken = sorted(set(labels) & set(others))
    if taken:
        raise ValueError(f"the label {taken[0]!r} is also the number of a cluster without a label: rename it")
    names = [*labels, *others]
    columns = probability_columns(names)
    for name, column in zip(names, columns, strict=True):
        if columns.count(column) > 1:
            raise ValueError(
                f"the labels {name!r} and another would both be written to the column {column!r}: rename one"
            )
    return names


def encode_labels(obs: pd.DataFrame, described: Mapping[str, Any] | None) -> Tensor | None:
    """Tell which cluster each cell is known to be in, int64, shape ``(c,)``; -1 where that is not known.

    Parameters
    ----------
    obs
        Table of the cells; without the column nothing is known.
    described
        What a model keeps of its clusters: ``names``, and with labels ``labels_key`` and ``unknown_label``.

    Raises
    ------
    ValueError
        A label is none of the names.
    """
    key = None if described is None else described.get("labels_key")
    if described is None or key is None or key not in obs:
        return None
    label_c = _read_labels(obs, key, described["unknown_label"])
    new = sorted(set(label_c.dropna()) - set(described["names"]))
    if new:
        raise ValueError(
            f"adata.obs[{key!r}] has the label {new[0]!r}, which the model does not know ({len(new)} such labels): it "
            f"knows {', '.join(map(repr, described['names']))}; rename it, or put {described['unknown_label']!r} there"
        )
    code_c = pd.Categorical(label_c, categories=list(described["names"])).codes
    return torch.from_numpy(code_c.astype(np.int64))


def _read_labels(obs: pd.DataFrame, key: str, unknown: str) -> pd.Series[Any]:
    """Give labels as text, missing where they are unknown."""
    column_c = get_column(obs, key, "labels_key")
    label_c = column_c.astype(object)
    text_c = label_c.where(label_c.isna(), label_c.astype(str))
    return text_c.where((text_c != str(unknown)) & (label_c != unknown))

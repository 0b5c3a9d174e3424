"""Partly known labels of cells: names of labels and clusters, labels as codes, labels to hold out.

Axis suffix: ``c`` cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celldial.io.tables import columns_for_files
from celldial.utils.messages import format_names, get_column
from celldial.utils.warnings import warn

__all__ = [
    "MIN_CELLS_TO_HOLD_OUT",
    "UNASSIGNED",
    "encode_labels",
    "find_labels",
    "hold_out_labels",
    "name_clusters",
    "warn_unknown_spellings",
]

# Name of cells that get none of the labels.
UNASSIGNED = "unassigned"
# Other spellings of an unknown label, in lower case and without spaces at the ends.
UNKNOWN_SPELLINGS = frozenset(
    [
        *("", "?", "-", "na", "n/a", "nan", "<na>", "none", "null", "not available"),
        *("unknown", UNASSIGNED, "unlabeled", "unlabelled", "unannotated", "undefined", "undetermined"),
    ]
)
# Fraction of the known labels that are held out from training to calibrate probabilities; the least number of cells of
# such a label, and the largest number that is held out of it.
HELD_OUT_FRACTION, MIN_CELLS_TO_HOLD_OUT, MAX_HELD_OUT = 0.2, 5, 200


def find_labels(obs: pd.DataFrame, key: str, unknown: str) -> list[str]:
    """Return the labels of the cells in alphabetical order.

    Parameters
    ----------
    obs
        One row per cell.
    key
        Column of labels.
    unknown
        Value of the column for cells without a known label. Missing values and other spellings, such as ``"NA"``, mean
        the same. A warning lists the spellings.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        There are fewer than two labels.
    """
    warn_unknown_spellings(obs, key, unknown)
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
    columns = columns_for_files(names)
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


def hold_out_labels(label_c: Tensor, train_c: Tensor, seed: int) -> Tensor:
    """Return the labels with -1 for a fraction of the labeled training cells, at random within each label.

    Labels with few cells are not held out, because the model needs them.

    Parameters
    ----------
    label_c
        Known label of each cell; -1 if it is unknown.
    train_c
        Indices of the training cells.
    seed
        Seed of the choice.
    """
    generator = np.random.default_rng(seed)
    result_c, train = label_c.clone(), train_c.numpy()
    known_c = label_c.numpy()[train]
    for label in np.unique(known_c[known_c >= 0]):
        index_c = train[known_c == label]
        if len(index_c) >= MIN_CELLS_TO_HOLD_OUT:
            n_held_out = min(round(HELD_OUT_FRACTION * len(index_c)), MAX_HELD_OUT)
            result_c[torch.from_numpy(generator.choice(index_c, n_held_out, replace=False))] = -1
    return result_c


def warn_unknown_spellings(obs: pd.DataFrame, key: str, unknown: str) -> None:
    """Warn about values that are read as an unknown label, because they are another spelling of it."""
    text_c = _as_text(obs, key)
    is_spelling_c = _is_spelling_of_unknown(text_c) & (text_c != str(unknown))
    if is_spelling_c.any():
        counts = text_c[is_spelling_c].value_counts()
        found = ", ".join(f"{value!r} ({number} cells)" for value, number in counts.items())
        warn(
            f"adata.obs[{key!r}] has {found}: these cells are taken as unlabeled, like cells with {unknown!r}; rename "
            "the values if they are labels",
        )


def _is_spelling_of_unknown(text_c: pd.Series[Any]) -> pd.Series[Any]:
    """Return whether each value spells an unknown label."""
    return text_c.isin([text for text in text_c.dropna().unique() if text.strip().lower() in UNKNOWN_SPELLINGS])


def _as_text(obs: pd.DataFrame, key: str) -> pd.Series[Any]:
    """Return the values of the column as text; missing values stay missing."""
    label_c = get_column(obs, key, "labels_key").astype(object)
    return label_c.where(label_c.isna(), label_c.astype(str))


def _read_labels(obs: pd.DataFrame, key: str, unknown: str) -> pd.Series[Any]:
    """Return the labels as text; missing for cells without a known label."""
    text_c, value_c = _as_text(obs, key), obs[key].astype(object)
    is_spelling_c = _is_spelling_of_unknown(text_c)
    return text_c.where((text_c != str(unknown)) & (value_c != unknown) & ~is_spelling_c)

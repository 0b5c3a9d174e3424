"""Checks of cells before training and inference: enough cells and features, counts, connected modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.utils.warnings import warn

__all__ = [
    "check_has_counts",
    "check_min_size",
    "check_modalities_connected",
    "check_modality_weights",
    "check_n_clusters",
    "warn_empty_cells",
    "warn_small_batches",
]

# Fewer cells hardly tell the effect of a batch from the differences between cells.
MIN_BATCH_SIZE = 10


def check_modalities_connected(cells: Cells, index_c: Tensor | None = None) -> None:
    """Raise unless cells with several modalities connect all modalities, directly or through others.

    Without such cells, the model cannot learn which states of two modalities correspond. It could place each modality
    in the latent space independently of the other.

    Parameters
    ----------
    cells
        All cells.
    index_c
        Indices of the training cells, int64; by default all cells.

    Raises
    ------
    ValueError
        No cell has counts of some modality, or the modalities fall into groups that no cell connects.
    """
    if len(cells.library_size) < 2:
        return
    part = slice(None) if index_c is None else index_c
    has = {modality: total_c[part] > 0 for modality, total_c in cells.library_size.items()}
    cell = "cell" if index_c is None else "training cell"
    for modality, has_c in has.items():
        if not has_c.any():
            raise ValueError(
                f"no {cell} has a count of {modality}: check the layer and the features, or leave the modality out"
            )
    connected, rest = [], list(has)
    pending = rest[:1]
    while pending:
        modality = pending.pop()
        rest.remove(modality)
        connected.append(modality)
        pending += [name for name in rest if name not in pending and (has[name] & has[modality]).any()]
    if rest:
        first, second = (names[0] if len(names) == 1 else f"any of {', '.join(names)}" for names in (connected, rest))
        raise ValueError(
            f"no {cell} has both {first} and {second}: a joint model needs cells with both. Add cells in which both "
            "were measured, or fit a separate model for each"
        )


def check_n_clusters(clusters: Mapping[str, Any] | None, cells: Cells) -> None:
    """Raise if the model has more clusters than there are cells with counts."""
    n_nonempty = int((~cells.empty_c).sum())
    if clusters is not None and len(clusters["names"]) > n_nonempty:
        raise ValueError(
            f"n_clusters={len(clusters['names'])} is more than the {n_nonempty} cells with counts: choose fewer"
        )


def check_min_size(schema: Schema, cells: Cells, n_latent: int) -> None:
    """Raise if there are too few cells or features to fit a model with `n_latent` coordinates."""
    check_has_counts(cells)
    n_features = sum(map(len, schema.feature_names.values()))
    n_nonempty = int((~cells.empty_c).sum())
    if n_nonempty < 2 or n_features < 2:
        raise ValueError(
            f"the number of cells with counts is {n_nonempty}, and that of features {n_features}: a model needs at "
            "least two of each"
        )
    if n_latent > n_features:
        raise ValueError(
            f"n_latent={n_latent} is more than the {n_features} features: use VAE(n_latent={n_features}) or less"
        )


def check_modality_weights(weights: Any, schema: Schema) -> None:
    """Raise unless `weights` is None or a dict from modality to a positive number."""
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise TypeError(f"modality_weights is {weights!r}: it must be a dict from modality to a number above 0")
    for modality, weight in weights.items():
        if modality not in schema.modalities:
            raise KeyError(f"modality_weights has {modality!r}; the modalities are {', '.join(schema.modalities)}")
        if not (isinstance(weight, float | int | np.number) and 0 < weight < np.inf):
            raise ValueError(f"modality_weights[{modality!r}] is {weight!r}: it must be a number above 0")


def check_has_counts(cells: Cells, modalities: Sequence[str] | None = None) -> None:
    """Raise if no cell has a count. The message names the `modalities`, if given."""
    if cells.empty_c.all():
        of = "" if modalities is None else f" of {' or '.join(modalities)}"
        raise ValueError(f"none of the {len(cells)} cells has a count{of}: check the layer and the features")


def warn_empty_cells(
    cell_name: Callable[[int], Any], cells: Cells, consequence: str, modality: str | None = None
) -> None:
    """Warn about cells without counts.

    Parameters
    ----------
    cell_name
        Returns the name of a cell, given its index.
    cells
        All cells.
    consequence
        What happens to cells without counts, as the end of the message.
    modality
        The modalities that were read, for the message, if they are not all.
    """
    empty_c = cells.empty_c.numpy()
    if empty_c.any():
        of = "" if modality is None else f" of {modality}"
        warn(
            f"{empty_c.sum()} of {len(empty_c)} cells have no count{of} (the first is "
            f"{cell_name(int(empty_c.argmax()))!r}): {consequence}"
        )


def warn_small_batches(schema: Schema, obs: pd.DataFrame, empty_c: Tensor) -> None:
    """Warn about batches with too few cells with counts for an estimate of their effect."""
    if schema.batch_key is None:
        return
    names = schema.categories[schema.batch_key]
    size_b = obs[schema.batch_key].astype(str)[~empty_c.numpy()].value_counts().reindex(names, fill_value=0).to_numpy()
    small_b = np.flatnonzero(size_b < MIN_BATCH_SIZE)
    if len(small_b) == 0:
        return
    listed = ", ".join(f"{names[b]!r} ({size_b[b]})" for b in small_b[:3]) + (", ..." if len(small_b) > 3 else "")
    remedy = "merge them with similar batches or leave these cells out"
    if len(small_b) > len(names) / 2:
        remedy = "check that this column is the batch (sample, donor or technology), and not a name of single cells"
    warn(
        f"{len(small_b)} of {len(names)} batches in {schema.batch_key!r} have fewer than {MIN_BATCH_SIZE} cells with "
        f"counts: {listed}. The effects of such batches cannot be learned: {remedy}"
    )

"""Checks of cells before training and inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
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
]


def check_modalities_connected(cells: Cells, index_c: Tensor | None = None) -> None:
    """Raise unless cells that have several modalities link all of them, directly or through others.

    Without such cells nothing says which states of one modality belong to which of the other, and each could be laid
    out in the latent space as if the other were not there.

    Parameters
    ----------
    cells
        The data set.
    index_c
        The cells to train on, int64; by default all.

    Raises
    ------
    ValueError
        No cell has counts of some modality; or no cell has both of some that nothing else links.
    """
    part = slice(None) if index_c is None else index_c
    has = {modality: total_c[part] > 0 for modality, total_c in cells.library_size.items()}
    cell = "cell" if index_c is None else "cell to train on"
    if len(has) < 2:
        return
    for modality, has_c in has.items():
        if not has_c.any():
            raise ValueError(
                f"no {cell} has a count of {modality}: there is nothing to learn it from. Check the layer and the "
                "features, or leave the modality out"
            )
    linked, rest = [], list(has)
    reached = rest[:1]
    while reached:
        modality = reached.pop()
        rest.remove(modality)
        linked.append(modality)
        reached += [name for name in rest if name not in reached and (has[name] & has[modality]).any()]
    if rest:
        one, other = (names[0] if len(names) == 1 else f"any of {', '.join(names)}" for names in (linked, rest))
        raise ValueError(
            f"no {cell} has both {one} and {other}: nothing links them, and what is learned of one would say nothing "
            "of the other. Add cells in which both were measured, or fit a model of each"
        )


def check_n_clusters(described: Mapping[str, Any] | None, cells: Cells) -> None:
    """Raise where there are to be more clusters than cells."""
    n_filled = int((~cells.empty_c).sum())
    if described is not None and len(described["names"]) > n_filled:
        raise ValueError(
            f"n_clusters={len(described['names'])} is more than the {n_filled} cells with counts: choose fewer"
        )


def check_min_size(schema: Schema, cells: Cells, n_latent: int) -> None:
    """Raise where there is too little to learn from."""
    check_has_counts(cells)
    n_features = sum(map(len, schema.feature_names.values()))
    n_filled = int((~cells.empty_c).sum())
    if n_filled < 2 or n_features < 2:
        raise ValueError(
            f"adata has {n_filled} cells with counts, and {n_features} features: a model is learned from at least two "
            "of each"
        )
    if n_latent > n_features:
        raise ValueError(
            f"n_latent={n_latent} is more than the {n_features} features: choose VAE(n_latent={n_features}) or less"
        )


def check_modality_weights(weights: Any, schema: Schema) -> None:
    """Raise unless weights are positive numbers by modality."""
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise TypeError(f"modality_weights is {weights!r}: it must be a dict from modality to a number above 0")
    for modality, weight in weights.items():
        if modality not in schema.modalities:
            raise KeyError(f"modality_weights names {modality!r}; the modalities are {', '.join(schema.modalities)}")
        if not (isinstance(weight, float | int | np.number) and 0 < weight < np.inf):
            raise ValueError(f"the weight of {modality} is {weight!r}: it must be a number above 0")


def check_has_counts(cells: Cells, modalities: Sequence[str] | None = None) -> None:
    """Raise where no cell has a count, of some modalities where named."""
    if cells.empty_c.all():
        of = "" if modalities is None else f" of {' or '.join(modalities)}"
        raise ValueError(f"none of the {len(cells)} cells has a single count{of}: check the layer and the features")


def warn_empty_cells(
    name_of: Callable[[int], Any], cells: Cells, consequence: str, modality: str | None = None
) -> None:
    """Warn where cells have no count, in the name of who called the method of `VAE` that calls this."""
    empty_c = cells.empty_c.numpy()
    if empty_c.any():
        of = "" if modality is None else f" of {modality}"
        warn(
            f"{empty_c.sum()} of {len(empty_c)} cells have no count{of} (the first is "
            f"{name_of(int(empty_c.argmax()))!r}): {consequence}",
        )

"""Cells and genes for the inference of kinetics: both layers, angles, groups and batches.

Axis suffixes: ``c`` cells, ``f`` genes, ``j`` angles, ``l`` layers (unspliced, spliced).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celldial.data.counts import (
    check_counts,
    check_matrix_type,
    describe_layer,
    get_count_matrix,
    layer_names,
    to_canonical_csr,
)
from celldial.inference.fitted_model import FittedModel, infer_all
from celldial.inference.kinetics.counts import CellCounts, angle_weights
from celldial.inference.kinetics.selection import MIN_COUNTS, select_genes
from celldial.tl.phase import phase_table
from celldial.utils.messages import did_you_mean, format_names, get_column
from celldial.utils.warnings import warn

__all__ = ["ChosenCells", "choose_cells", "choose_genes"]

MIN_CELLS, MIN_GENES = 50, 5
# Sizes of cells come from the genes that are not used, if the median cell has this many counts of them in both layers.
MIN_SIZE = 50.0


@dataclass(frozen=True)
class ChosenCells:
    """Cells on the cycle, with counts in both layers.

    Parameters
    ----------
    index_c
        Positions of the cells in the AnnData.
    counts
        Counts of all genes, unspliced and spliced, cells × genes.
    weight_cj
        Probability of each angle.
    group_c, batch_c
        Codes of group and batch.
    groups
        Names of the groups.
    n_batches
        Number of batches.
    """

    index_c: np.ndarray
    counts: tuple[sparse.csr_matrix, sparse.csr_matrix]
    weight_cj: torch.Tensor
    group_c: np.ndarray
    batch_c: np.ndarray
    groups: list[str]
    n_batches: int

    def cell_counts(self, column_f: np.ndarray) -> CellCounts:
        """Return the counts of some genes; sizes of cells are those of all genes."""
        return CellCounts(
            torch.from_numpy(np.stack([rows[:, column_f].toarray() for rows in self.counts]).astype(np.float64)),
            _relative_sizes(self.counts),
            torch.from_numpy(self.group_c.astype(np.int64)),
            torch.from_numpy(self.batch_c.astype(np.int64)),
            len(self.groups),
            self.n_batches,
        )

    def chosen_counts(self, column_f: np.ndarray) -> CellCounts:
        """Return the counts of the genes that are used; sizes of cells are those of the other genes.

        The total of genes that follow the cycle changes with the angle. Sizes that include it would distort the curves.
        """
        own_f = np.ones(self.counts[0].shape[1], dtype=bool)
        own_f[column_f] = False
        others = [rows[:, np.flatnonzero(own_f)] for rows in self.counts]
        cells = self.cell_counts(column_f)
        if min(np.median(_totals(rows)) for rows in others) < MIN_SIZE:
            return cells
        return replace(cells, size_lc=_relative_sizes(others))


def choose_cells(
    model: FittedModel, adata: AnnData, layers: tuple[str, str], groupby: str | None, periodic: dict[str, Any]
) -> ChosenCells:
    """Return the cells on the cycle, or raise if there are too few.

    Parameters
    ----------
    model
        A fitted model.
    adata
        Cells.
    layers
        Names of the layers of unspliced and of spliced counts.
    groupby
        Column of the groups.
    periodic
        Description of the periodic coordinate.
    """
    counts = [_read_layer(adata, name, role) for name, role in zip(layers, ("unspliced", "spliced"), strict=True)]
    group_c = None if groupby is None else get_column(adata.obs, groupby, "groupby").astype("category")
    latent_state, obs = infer_all(model, adata)
    circle = latent_state.circle
    assert circle is not None
    used_c = phase_table(latent_state, periodic, obs.index)[f"{periodic['name']}_active"].to_numpy(dtype=bool)
    if not used_c.any():
        raise ValueError(
            f"none of the {adata.n_obs:,} cells is on the {_label(periodic)}, so it has no speed: kinetics needs cells "
            f"of which adata.obs[{periodic['name'] + '_active'!r}] is True"
        )
    for rows in counts:
        used_c &= _totals(rows) > 0
    used_c, groups, codes_c = _choose_groups(used_c, group_c, groupby, periodic)
    index_c = np.flatnonzero(used_c)
    batch_key = model.schema_.batch_key
    batch_c = np.zeros(len(index_c), dtype=np.int64)
    if batch_key is not None:
        batch_c = np.unique(obs[batch_key].astype(str).to_numpy()[index_c], return_inverse=True)[1]
    length_c = circle.concentration / (circle.concentration + 1)
    weight_cj = angle_weights(torch.from_numpy(circle.angle[index_c]), torch.from_numpy(length_c[index_c]))
    unspliced, spliced = (rows[index_c] for rows in counts)
    return ChosenCells(
        index_c, (unspliced, spliced), weight_cj, codes_c[index_c], batch_c, groups, int(batch_c.max()) + 1
    )


def choose_genes(adata: AnnData, cells: ChosenCells, features: Sequence[str] | None) -> np.ndarray:
    """Return the columns of the genes to use: those given, or those with a periodic signal.

    Raises
    ------
    KeyError
        A gene is unknown.
    ValueError
        A gene is repeated or has no counts in a layer, or there are too few genes.
    """
    if features is None:
        enough_f = np.flatnonzero(np.min([np.asarray(rows.sum(0)).ravel() for rows in cells.counts], 0) >= MIN_COUNTS)
        column_f = enough_f[select_genes(cells.cell_counts(enough_f), cells.weight_cj)] if len(enough_f) else enough_f
        if len(column_f) < MIN_GENES:
            raise ValueError(
                f"{len(column_f)} genes change with the angle and have {MIN_COUNTS} or more counts in both layers, of "
                f"{len(enough_f)} genes with enough counts: kinetics needs at least {MIN_GENES}"
            )
        return column_f
    names = [features] if isinstance(features, str) else list(features)
    for name in names:
        if name not in adata.var_names:
            raise KeyError(f"adata has no gene {name!r}{did_you_mean(name, adata.var_names)}")
        if names.count(name) > 1:
            raise ValueError(f"features has the gene {name!r} more than once")
    if len(names) < MIN_GENES:
        raise ValueError(f"features has {len(names)} genes: kinetics needs at least {MIN_GENES}")
    column_f = np.sort(adata.var_names.get_indexer(pd.Index(names)))
    for layer, rows in zip(("unspliced", "spliced"), cells.counts, strict=True):
        empty = np.flatnonzero(np.asarray(rows[:, column_f].sum(0)).ravel() == 0)
        if len(empty):
            raise ValueError(f"gene {adata.var_names[column_f[empty[0]]]!r} has no {layer} counts: leave it out")
    return column_f


def _read_layer(adata: AnnData, name: str, role: str) -> sparse.csr_matrix:
    """Return the counts of a layer, or raise with the names of the layers that there are."""
    if name not in layer_names(adata):
        raise KeyError(
            f"adata has no layer {name!r} of {role} counts; its layers: {format_names(layer_names(adata))}. Kinetics "
            f"needs unspliced and spliced counts: pass {role}='NAME' if the layer has another name"
        )
    matrix = get_count_matrix(adata, name)
    check_matrix_type(matrix, describe_layer(name))
    rows = to_canonical_csr(matrix)
    check_counts(rows, adata, list(map(str, adata.var_names)), describe_layer(name), "rna")
    if rows.nnz == 0:
        raise ValueError(f"{describe_layer(name)} has no counts: kinetics needs unspliced and spliced counts")
    return rows


def _choose_groups(
    used_c: np.ndarray, group_c: pd.Series | None, groupby: str | None, periodic: dict[str, Any]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return the cells of the groups that are large enough, the names of these groups, and codes of all cells."""
    names = ["all"]
    codes_c: np.ndarray = np.zeros(len(used_c), dtype=np.int64)
    if group_c is not None:
        names, codes_c = [str(name) for name in group_c.cat.categories], group_c.cat.codes.to_numpy(dtype=np.int64)
    n_cells = {name: int((used_c & (codes_c == k)).sum()) for k, name in enumerate(names)}
    kept = [k for k, name in enumerate(names) if n_cells[name] >= MIN_CELLS]
    small = [f"{names[k]!r} ({n_cells[names[k]]})" for k in range(len(names)) if k not in kept]
    if not kept:
        where = "" if groupby is None else f" in any group of {groupby!r}"
        raise ValueError(
            f"there are fewer than {MIN_CELLS} cells on the {_label(periodic)} with counts in both layers{where}: "
            f"{', '.join(small)}"
        )
    if small:
        warn(
            f"groups with fewer than {MIN_CELLS} cells on the {_label(periodic)} are left out, with numbers of cells: "
            f"{', '.join(small)}"
        )
    position_k = np.full(len(names) + 1, -1)
    position_k[kept] = np.arange(len(kept))
    kept_c: np.ndarray = position_k[codes_c]
    return used_c & (kept_c >= 0), [names[k] for k in kept], kept_c


def _label(periodic: dict[str, Any]) -> str:
    """Return the name of the process for a message."""
    return str(periodic["name"]).replace("_", " ")


def _totals(rows: sparse.csr_matrix) -> np.ndarray:
    """Return the sum of each row."""
    return np.asarray(rows.sum(1), dtype=np.float64).ravel()


def _relative_sizes(counts: Sequence[sparse.csr_matrix]) -> torch.Tensor:
    """Return the total of each cell in each layer relative to the median, shape ``(l, c)``; at least a hundredth."""
    total_lc = np.stack([_totals(rows) for rows in counts])
    return torch.from_numpy(np.maximum(total_lc / np.median(total_lc, axis=1, keepdims=True), 0.01))

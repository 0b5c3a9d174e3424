"""Splits of the cells into training and validation cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from celldial.data.cells import Cells

__all__ = ["holdout_candidates", "random_split", "split_by_mask", "train_validation_split"]


def random_split(n_cells: int, validation_size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split cells at random into training and validation cells.

    Parameters
    ----------
    n_cells
        Number of cells.
    validation_size
        Fraction of validation cells, from 0 to less than 1. If it is above 0, there is at least one validation cell,
        but always at least one training cell, too.
    generator
        Random number generator, on the CPU.

    Returns
    -------
    train_c, validation_c
        Indices, int64, in ascending order, so that neighbors stay close in memory. Each cell is in one of the two.

    Raises
    ------
    ValueError
        There are no cells, or `validation_size` is outside [0, 1).
    """
    if n_cells < 1:
        raise ValueError(f"there are {n_cells} cells to split: at least one is needed")
    if not 0 <= validation_size < 1:
        raise ValueError(f"validation_size is {validation_size}: it must be at least 0 and below 1")
    n_validation = min(max(round(n_cells * validation_size), int(validation_size > 0)), n_cells - 1)
    order_c = torch.randperm(n_cells, generator=generator)
    return order_c[n_validation:].sort().values, order_c[:n_validation].sort().values


def train_validation_split(
    adata: AnnData,
    cells: Cells,
    validation_size: float,
    validation_cells: Sequence[Any] | np.ndarray | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the indices of the training cells and of the validation cells. Cells without counts are in neither.

    Parameters
    ----------
    adata, cells
        All cells.
    validation_size
        Fraction of validation cells.
    validation_cells
        The validation cells, as names or as a boolean mask. They replace the random choice.
    seed
        Seed of the random choice.

    Raises
    ------
    KeyError
        `validation_cells` has a name that no cell has.
    ValueError
        `validation_cells` is a mask of another length or leaves no training cell; or as in :func:`random_split`.
    """
    if validation_cells is None:
        candidate_c, reserved_c = holdout_candidates(cells)
        train, validation = random_split(len(candidate_c), validation_size, torch.Generator().manual_seed(seed))
        return torch.cat([candidate_c[train], reserved_c]).sort().values, candidate_c[validation]
    held_out_c = np.asarray(validation_cells)
    if held_out_c.ndim != 1:
        raise ValueError(
            f"validation_cells has {held_out_c.ndim} dimensions: pass names of cells, or a mask with one value per cell"
        )
    if held_out_c.dtype != bool:
        unknown = pd.Index(held_out_c).difference(adata.obs_names)
        if len(unknown):
            raise KeyError(
                f"validation_cells has {str(unknown[0])!r}, which is not in adata.obs_names: use names of cells or a "
                "boolean mask"
            )
        held_out_c = adata.obs_names.isin(held_out_c)
    return split_by_mask(cells, held_out_c)


def holdout_candidates(cells: Cells) -> tuple[Tensor, Tensor]:
    """Return the indices of the cells that may be held out, and of those that must be training cells.

    If few cells have a label, all of them are training cells, because the model learns the labels from them. If more
    than half of the cells have a label, any cell may be held out. Cells without counts are in neither group.
    """
    nonempty_c = ~cells.empty_c
    labeled_c = torch.zeros_like(nonempty_c) if cells.label_c is None else nonempty_c & (cells.label_c >= 0)
    if 2 * int(labeled_c.sum()) > int(nonempty_c.sum()):
        labeled_c = torch.zeros_like(nonempty_c)
    return (nonempty_c & ~labeled_c).nonzero().squeeze(1), labeled_c.nonzero().squeeze(1)


def split_by_mask(cells: Cells, held_out_c: np.ndarray) -> tuple[Tensor, Tensor]:
    """Split the cells that have counts by a mask of the validation cells; return indices."""
    if len(held_out_c) != len(cells):
        raise ValueError(f"validation_cells is a mask of {len(held_out_c)} values for {len(cells)} cells")
    nonempty_c, mask_c = ~cells.empty_c, torch.from_numpy(held_out_c)
    train_c, validation_c = (nonempty_c & ~mask_c).nonzero().squeeze(1), (nonempty_c & mask_c).nonzero().squeeze(1)
    if len(train_c) == 0:
        raise ValueError("validation_cells holds out all cells: at least one training cell is needed")
    return train_c, validation_c

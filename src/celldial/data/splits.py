"""Training and validation cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from celldial.data.cells import Cells

__all__ = ["random_split", "train_validation_split"]


def random_split(n_cells: int, validation_size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split cells at random into those to train on and those to validate on.

    Parameters
    ----------
    n_cells
        Number of cells.
    validation_size
        Share of the cells to validate on, from 0 up to, not including, 1. Above 0 it stands for at least one cell,
        but one is always left to train on.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    train_index, validation_index
        Disjoint, together all cells, each in ascending order (close to each other in memory), int64.

    Raises
    ------
    ValueError
        There is no cell, or `validation_size` is outside [0, 1).
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
    """Say which cells to train and which to validate on, as indices; empty cells are neither.

    Parameters
    ----------
    adata, cells
        The data set.
    validation_size
        Share of the cells to validate on.
    validation_cells
        The cells to validate on instead: names, or a boolean mask.
    seed
        Of the random choice.
    """
    if validation_cells is None:
        open_c, labelled_c = holdout_candidates(cells)
        train, validation = random_split(len(open_c), validation_size, torch.Generator().manual_seed(seed))
        return torch.cat([open_c[train], labelled_c]).sort().values, open_c[validation]
    held_out_c = np.asarray(validation_cells)
    if held_out_c.dtype != bool:
        unknown = pd.Index(held_out_c).difference(adata.obs_names)
        if len(unknown):
            raise KeyError(
                f"validation_cells names {unknown[0]!r}, which is not in adata.obs_names; give names or a mask"
            )
        held_out_c = adata.obs_names.isin(held_out_c)
    return split_by_mask(cells, held_out_c)


def holdout_candidates(cells: Cells) -> tuple[Tensor, Tensor]:
    """Tell which cells may be held out, and which have a label and so are to be learned from; empty ones are neither.

    What is known of few cells is to be learned from; where most have a label, any may be held out.
    """
    filled_c = ~cells.empty_c
    labelled_c = torch.zeros_like(filled_c) if cells.label_c is None else filled_c & (cells.label_c >= 0)
    if 2 * int(labelled_c.sum()) > int(filled_c.sum()):
        labelled_c = torch.zeros_like(filled_c)
    return (filled_c & ~labelled_c).nonzero().squeeze(1), labelled_c.nonzero().squeeze(1)


def split_by_mask(cells: Cells, held_out_c: np.ndarray) -> tuple[Tensor, Tensor]:
    """Split the cells that have counts by a mask, into indices of those to train and to validate on."""
    if len(held_out_c) != len(cells):
        raise ValueError(f"validation_cells is a mask of {len(held_out_c)} values for {len(cells)} cells")
    filled_c, held_out = ~cells.empty_c, torch.from_numpy(held_out_c)
    train_c, validation_c = (filled_c & ~held_out).nonzero().squeeze(1), (filled_c & held_out).nonzero().squeeze(1)
    if len(train_c) == 0:
        raise ValueError("validation_cells holds all cells out: none is left to train on")
    return train_c, validation_c

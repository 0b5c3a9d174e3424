"""The interface between training and the cells: what a source of minibatches can do, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from celldial.data.cells import Cells

__all__ = ["Source"]


class Source(Protocol):
    """Cells to train on and cells to validate on.

    With several processes, each has a source of all cells and requests its own share: `rank` of `n_ranks`.
    """

    @property
    def train_c(self) -> Tensor:
        """Indices of the training cells, int64, in ascending order."""

    @property
    def validation_c(self) -> Tensor:
        """Indices of the validation cells, int64, in ascending order."""

    @property
    def fingerprint(self) -> str:
        """Checksum of the cells and of the split. A checkpoint is resumed only on cells with the same one."""

    def to(self, device: torch.device) -> Source:
        """Return a source of the same cells with minibatches on `device`."""

    def training_minibatches(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1
    ) -> Iterator[Cells]:
        """Yield the training cells once, in an order that depends only on `generator`.

        The ranks together process `batch_size` cells per step. All ranks get the same number of minibatches of the same
        sizes. Therefore, a few cells are left out if the number of cells is not divisible.
        """

    def validation_minibatches(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Yield the validation cells once, always in the same blocks."""

    def training_sample(self, n_cells: int) -> Cells:
        """Return at most `n_cells` training cells on the CPU, always the same ones."""

"""Where training gets its cells from. Training knows what a `Source` can do, and not whether it is memory or a disk."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from celldial.data.cells import Cells, decode_blocks, minibatches
from celldial.utils.device import available_memory
from celldial.utils.prefetch import prefetch

__all__ = ["InMemorySource", "Source"]

# The share of the free memory of a GPU that counts may take; activations and weights need the rest.
MAX_MEMORY_SHARE = 0.6
CPU = torch.device("cpu")


class Source(Protocol):
    """Cells to train and to validate on.

    With several processes, each has a source of all cells, and asks for its share of them: `rank` of `n_ranks`.
    """

    @property
    def n_train(self) -> int:
        """Number of cells to train on."""

    @property
    def n_validation(self) -> int:
        """Number of cells to validate on."""

    @property
    def fingerprint(self) -> str:
        """What tells these cells from others, so that a training that broke off is not gone on with on others."""

    def to(self, device: torch.device) -> Source:
        """Give the same cells, as minibatches on a device."""

    def training_minibatches(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1
    ) -> Iterator[Cells]:
        """Go once through the cells to train on, in an order that `generator` alone decides.

        Together the ranks have `batch_size` cells at a time; each has as many minibatches as the others, of the same
        sizes, so that some few cells are left out where the numbers do not divide.
        """

    def validation_minibatches(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Go once through the cells to validate on, always in the same blocks."""

    def training_sample(self, n_cells: int) -> Cells:
        """Give some cells to train on, on the CPU: `n_cells` at most, all if they are fewer, and always the same."""


@dataclass(frozen=True)
class InMemorySource:
    """Cells in memory: on the device where they fit, else beside it, from where they go there block by block.

    Parameters
    ----------
    cells
        The data set.
    train_c, validation_c
        Indices of the cells to train and to validate on, int64, in ascending order.
    device
        Where minibatches are wanted.
    """

    cells: Cells
    train_c: Tensor
    validation_c: Tensor
    device: torch.device = CPU

    @property
    def n_train(self) -> int:
        """Number of cells to train on."""
        return len(self.train_c)

    @property
    def n_validation(self) -> int:
        """Number of cells to validate on."""
        return len(self.validation_c)

    @property
    def fingerprint(self) -> str:
        """Checksum of where each cell's counts begin, of their totals, and of which cells are trained on."""
        checksum = 0
        parts = [rows.indptr_c for rows in self.cells.counts.values()]
        for part in (*parts, *self.cells.library_size.values(), self.train_c, self.validation_c):
            checksum = zlib.crc32(part.cpu().numpy().tobytes(), checksum)
        return f"{checksum:08x}"

    def to(self, device: torch.device) -> InMemorySource:
        """Give the same cells, as minibatches on a device."""
        # Empty cells are not among those chosen, and without them there may be nothing to gather in each step.
        cells = self.cells.drop_full_masks(torch.cat([self.train_c, self.validation_c]))
        if device.type == "cpu" or cells.n_bytes < MAX_MEMORY_SHARE * available_memory(device):
            cells = cells.to(device)
            device = cells.category_ck.device  # with the index that "cuda" lacks
        return replace(self, cells=cells, device=device)

    def training_minibatches(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1
    ) -> Iterator[Cells]:
        """Go once through the cells to train on."""
        if n_ranks == 1:
            return self._on_device(minibatches(self.cells, batch_size, generator=generator, index_c=self.train_c))
        order_c = self.train_c[torch.randperm(self.n_train, generator=generator)]
        own_c = order_c[: self.n_train // n_ranks * n_ranks][rank::n_ranks]
        return self._on_device(minibatches(self.cells, max(1, batch_size // n_ranks), index_c=own_c))

    def validation_minibatches(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Go once through the cells to validate on."""
        return self._on_device(decode_blocks(self.cells, self.validation_c[rank::n_ranks]))

    def training_sample(self, n_cells: int) -> Cells:
        """Give some cells to train on, on the CPU."""
        chosen_c = self.train_c
        if len(chosen_c) > n_cells:
            order_c = torch.randperm(len(chosen_c), generator=torch.Generator().manual_seed(0))
            chosen_c = chosen_c[order_c[:n_cells].sort().values]
        return self.cells.select(chosen_c).to("cpu")

    def _on_device(self, parts: Iterator[Cells]) -> Iterator[Cells]:
        if self.cells.category_ck.device == self.device:
            return parts
        return prefetch(part.to(self.device) for part in parts)

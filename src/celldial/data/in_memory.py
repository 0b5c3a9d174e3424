"""Training cells in memory: on the device if the counts fit there, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from celldial.data.cells import Cells, checksum, decode_blocks, minibatches
from celldial.utils.device import available_memory
from celldial.utils.prefetch import prefetch

__all__ = ["InMemorySource"]

MAX_MEMORY_SHARE = 0.6
"""Largest share of a GPU's free memory for the counts. Activations and weights need the rest."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class InMemorySource:
    """A `celldial.data.source.Source` of cells in memory.

    The counts are on the device of the minibatches if they fit there. Otherwise, they stay where they are, and each
    minibatch is moved to the device.

    Parameters
    ----------
    cells
        All cells.
    train_c, validation_c
        Indices of the training and validation cells, int64, in ascending order.
    device
        Device of the minibatches.
    """

    cells: Cells
    train_c: Tensor
    validation_c: Tensor
    device: torch.device = CPU

    @property
    def fingerprint(self) -> str:
        """Checksum of the number of nonzero counts of each cell, of the library sizes, and of the split."""
        indptrs = [rows.indptr_c for rows in self.cells.counts.values()]
        return checksum([*indptrs, *self.cells.library_size.values(), self.train_c, self.validation_c])

    @property
    def label_c(self) -> Tensor | None:
        """Known cluster of each cell, for a model with labels; see `celldial.data.cells.Cells`."""
        return self.cells.label_c

    def with_labels(self, label_c: Tensor) -> Self:
        """Return a source of the same cells with other labels."""
        return replace(self, cells=replace(self.cells, label_c=label_c))

    def to(self, device: torch.device) -> InMemorySource:
        """Return a source of the same cells with minibatches on `device`."""
        # Cells without counts are never selected. If all others have a modality, its mask would only cost time.
        cells = self.cells.drop_full_masks(torch.cat([self.train_c, self.validation_c]))
        if device.type == "cpu" or cells.n_bytes < MAX_MEMORY_SHARE * available_memory(device):
            cells = cells.to(device)
            device = cells.category_ck.device  # with its index, which "cuda" lacks
        return replace(self, cells=cells, device=device)

    def training_minibatches(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1
    ) -> Iterator[Cells]:
        """Yield the training cells once, in an order that depends only on `generator`."""
        if n_ranks == 1:
            return self._on_device(minibatches(self.cells, batch_size, generator=generator, index_c=self.train_c))
        n_train = len(self.train_c)
        order_c = self.train_c[torch.randperm(n_train, generator=generator)]
        own_c = order_c[: n_train // n_ranks * n_ranks][rank::n_ranks]
        return self._on_device(minibatches(self.cells, max(1, batch_size // n_ranks), index_c=own_c))

    def validation_minibatches(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Yield the validation cells once, always in the same blocks."""
        return self._on_device(decode_blocks(self.cells, self.validation_c[rank::n_ranks]))

    def training_sample(self, n_cells: int) -> Cells:
        """Return at most `n_cells` training cells on the CPU, always the same ones."""
        sample_c = self.train_c
        if len(sample_c) > n_cells:
            order_c = torch.randperm(len(sample_c), generator=torch.Generator().manual_seed(0))
            sample_c = sample_c[order_c[:n_cells].sort().values]
        return self.cells.select(sample_c).to("cpu")

    def _on_device(self, blocks: Iterator[Cells]) -> Iterator[Cells]:
        """Move blocks of cells to the device of the minibatches, each one while its predecessor is in use."""
        if self.cells.category_ck.device == self.device:
            return blocks
        return prefetch(block.to(self.device) for block in blocks)

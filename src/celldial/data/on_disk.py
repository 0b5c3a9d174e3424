"""Training from files: which cells are read when. What is read is a matter of `celldial.data.files`.

An epoch goes through runs of neighboring cells in a random order, many runs at a time, and shuffles the cells of these
among each other: files are read in large pieces, and yet a minibatch has cells from all over them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celldial.data.cells import Cells, decode_block_size
from celldial.data.files import OnDiskDataset
from celldial.data.schema import Schema
from celldial.data.splits import holdout_candidates, random_split, split_by_mask
from celldial.ops.csr import CSRTensor
from celldial.utils.prefetch import prefetch
from celldial.utils.warnings import warn_once

__all__ = ["OnDiskSource"]

CPU = torch.device("cpu")

MAX_BUFFER_CELLS, MAX_BUFFER_NNZ = 2**14, 2**22
"""What is read at a time, and shuffled; two such blocks are held."""

MAX_SAMPLE_NNZ = 2**24
"""What training starts from is held in memory at once: of cells with very many counts it is fewer cells."""

MIN_RUNS_PER_BUFFER = 64
"""Runs of neighboring cells that such a block has at least."""

RUN_CELLS, SAMPLE_RUN_CELLS = 64, 32
"""Neighboring cells read in one go, where the files do not ask for more; and those of a sample."""


@dataclass(frozen=True)
class OnDiskSource:
    """Cells in files to train and to validate on: a `celldial.data.in_memory.Source`. Make it by :meth:`scan`.

    Parameters
    ----------
    dataset
        The files.
    schema
        What the model is fit to.
    summary
        All cells without their counts: library sizes, which modality each has, and labels.
    entries_per_cell
        Stored counts of a cell, on average over the neighboring cells that have most.
    train_c, validation_c
        Numbers of the cells to train and to validate on, int64, in ascending order.
    device
        Where minibatches are wanted.
    """

    dataset: OnDiskDataset
    schema: Schema
    summary: Cells
    nnz_per_cell: float
    train_c: Tensor
    validation_c: Tensor
    device: torch.device = CPU

    @classmethod
    def scan(
        cls,
        dataset: OnDiskDataset,
        schema: Schema,
        *,
        validation_size: float = 0.1,
        validation_cells: Sequence[Any] | np.ndarray | None = None,
        seed: int = 0,
        encode_labels: Callable[[pd.DataFrame], Tensor | None] | None = None,
    ) -> OnDiskSource:
        """Read all cells once: check their counts, note their library sizes, and choose cells to validate on.

        Parameters
        ----------
        dataset, schema
            The files, and what the model is fit to.
        validation_size
            Share of the cells to validate on. They are chosen in short runs of neighboring cells.
        validation_cells
            The cells to validate on instead: names, or a boolean mask.
        seed
            Of the random choice.
        encode_labels
            Tells from ``dataset.obs`` which cluster each cell is known to be in; see
            `celldial.data.labels.encode_labels`.

        Raises
        ------
        ValueError, TypeError, KeyError
            As `celldial.data.cells.Cells.from_anndata` and `celldial.data.splits.train_validation_split`.
        OSError
            A file cannot be read.
        """
        held_out_c = None if validation_cells is None else np.asarray(validation_cells)
        names = None if held_out_c is None or held_out_c.dtype == bool else set(held_out_c.tolist())
        named_c = np.zeros(dataset.n_cells, dtype=bool)
        found: set[Any] = set()
        # Written where it stays: what is kept of each block would leave holes in memory that no next block fits in.
        library_size = {modality: torch.empty(dataset.n_cells) for modality in schema.modalities}
        start, max_nnz = 0, 0.0
        with warn_once():
            for block in prefetch(dataset.blocks()):
                cells = Cells.from_anndata(block, schema)
                part = slice(start, start + len(cells))
                for modality, total_c in cells.library_size.items():
                    library_size[modality][part] = total_c
                max_nnz = max(max_nnz, max_mean_nnz(cells))
                if names is not None:
                    named_c[part] = block.obs_names.isin(names)
                    found.update(block.obs_names[named_c[part]])
                start = part.stop
        if names is not None:
            if names - found:
                unknown = min(names - found, key=str)
                raise KeyError(f"validation_cells names {unknown!r}, which no cell is called; give names or a mask")
            held_out_c = named_c
        summary = library_sizes_only(library_size)
        summary = replace(summary, label_c=None if encode_labels is None else encode_labels(dataset.obs))
        train_c, validation_c = split_cells(summary, validation_size, held_out_c, seed)
        # What there was to say of the columns that tell which cells have what is said.
        return cls(dataset, replace(schema, presence_keys={}), summary, max_nnz, train_c, validation_c)

    @property
    def library_size(self) -> dict[str, Tensor]:
        """Modality to the total count of each cell, float32."""
        return self.summary.library_size

    @property
    def n_train(self) -> int:
        """Number of cells to train on."""
        return len(self.train_c)

    @property
    def n_validation(self) -> int:
        """Number of cells to validate on."""
        return len(self.validation_c)

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the library sizes, and of which cells are trained on."""
        checksum = 0
        for part in (*self.library_size.values(), self.train_c, self.validation_c):
            checksum = zlib.crc32(part.numpy().tobytes(), checksum)
        return f"{checksum:08x}"

    @property
    def buffer_cells(self) -> int:
        """How many cells are read at a time."""
        return int(max(1, min(MAX_BUFFER_CELLS, MAX_BUFFER_NNZ // max(1.0, self.nnz_per_cell))))

    @property
    def run_cells(self) -> int:
        """How many neighboring cells are read in one go."""
        return max(1, min(max(RUN_CELLS, int(self.dataset.chunk_cells)), self.buffer_cells // MIN_RUNS_PER_BUFFER))

    def to(self, device: torch.device) -> OnDiskSource:
        """Give the same cells, as minibatches on a device."""
        return replace(self, device=device)

    def training_minibatches(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1
    ) -> Iterator[Cells]:
        """Go once through the cells to train on, in an order that `generator` alone decides.

        Together the ranks have `batch_size` cells at a time; each has as many minibatches as the others, of the same
        sizes, so that fewer cells than ranks are left out.
        """
        batch_size = max(1, batch_size // n_ranks)
        order_c = shuffle_runs(self.train_c, self.run_cells, generator)
        # For the order within blocks, which is drawn ahead: however far an epoch gets, it takes as much of `generator`.
        within = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        n_own = len(order_c) // n_ranks
        own_c = order_c[rank * n_own : (rank + 1) * n_own]
        at_a_time = max(1, self.buffer_cells // batch_size) * batch_size
        rows = (part_c[torch.randperm(len(part_c), generator=within)] for part_c in own_c.split(at_a_time))
        return self._read_minibatches(rows, batch_size)

    def validation_minibatches(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Go once through the cells to validate on, always in the same blocks."""
        own_c = self.validation_c.tensor_split(n_ranks)[rank]
        size = decode_block_size(max(len(names) for names in self.schema.feature_names.values()))
        return self._read_minibatches(iter(own_c.split(max(1, self.buffer_cells // size) * size)), size)

    def training_sample(self, n_cells: int) -> Cells:
        """Give some cells to train on, on the CPU, and always the same: `n_cells`, or as many as memory is given to."""
        n_cells = int(max(1, min(n_cells, MAX_SAMPLE_NNZ // max(1.0, self.nnz_per_cell))))
        chosen_c = self.train_c
        if len(chosen_c) > n_cells:
            generator = torch.Generator().manual_seed(0)
            chosen_c = shuffle_runs(chosen_c, max(1, min(SAMPLE_RUN_CELLS, n_cells // MIN_RUNS_PER_BUFFER)), generator)[
                :n_cells
            ]
        return self._read_cells(chosen_c.sort().values)

    def _read_minibatches(self, rows: Iterator[Tensor], size: int) -> Iterator[Cells]:
        """Read cells ahead of their use, and cut them into minibatches on the device."""
        for block in prefetch(self._read_cells(row_c).to(self.device) for row_c in rows if len(row_c) > 0):
            yield from block.split(size)

    def _read_cells(self, row_c: Tensor) -> Cells:
        """Read some cells, in the order given."""
        cells = Cells.from_anndata(self.dataset.read(row_c.numpy(), names=False), self.schema)
        label_c = self.summary.label_c
        return cells if label_c is None else replace(cells, label_c=label_c[row_c])


def shuffle_runs(row_c: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Put cells, int64, in a random order of runs of so many neighbors."""
    runs = row_c.split(length)
    return torch.cat([runs[run] for run in torch.randperm(len(runs), generator=generator).tolist()])


def split_cells(
    summary: Cells, validation_size: float, held_out_c: np.ndarray | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Split as `celldial.data.splits.train_validation_split` does, but hold out runs of neighboring cells."""
    if held_out_c is not None:
        return split_by_mask(summary, held_out_c)
    open_c, labelled_c = holdout_candidates(summary)
    generator = torch.Generator().manual_seed(seed)
    n_validation = len(random_split(len(open_c), validation_size, generator)[1])
    order_c = shuffle_runs(open_c, max(1, min(RUN_CELLS, n_validation // MIN_RUNS_PER_BUFFER)), generator)
    return torch.cat([order_c[n_validation:], labelled_c]).sort().values, order_c[:n_validation].sort().values


def library_sizes_only(library_size: dict[str, Tensor]) -> Cells:
    """Make cells of library sizes alone."""
    n_cells = len(next(iter(library_size.values())))
    none = CSRTensor(torch.zeros(n_cells + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0)
    present = {modality: total_c > 0 for modality, total_c in library_size.items()}
    return Cells(
        counts=dict.fromkeys(library_size, none),
        library_size=library_size,
        category_ck=torch.zeros(n_cells, 0, dtype=torch.int64),
        continuous_ck=torch.zeros(n_cells, 0),
        present={modality: present_c for modality, present_c in present.items() if not present_c.all()},
    )


def max_mean_nnz(cells: Cells, n_cells: int = 256) -> float:
    """Count the entries of a cell in all modalities, on average over the `n_cells` neighbors that have most."""
    n_cells = min(n_cells, len(cells))
    indptr_c = torch.stack([rows.indptr_c for rows in cells.counts.values()]).sum(0)
    return float(indptr_c[::n_cells].diff().max()) / n_cells

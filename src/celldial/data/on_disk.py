"""Training from files: which cells are read when. What is read is a matter of `celldial.data.files`.

An epoch goes through runs of neighboring cells in a random order, many runs at a time, and shuffles the cells of these
among each other: files are read in large pieces, and yet a minibatch has cells from all over them.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celldial.data.cells import Cells, block_size
from celldial.data.files import Atlas
from celldial.data.schema import Schema
from celldial.data.splits import hold_out, open_cells, split
from celldial.ops.csr import SparseRows
from celldial.utils.prefetch import ahead

__all__ = ["Stream", "told_once"]

CPU = torch.device("cpu")

MAX_CELLS, MAX_ENTRIES = 2**14, 2**22
"""What is read at a time, and shuffled; two such blocks are held."""

MAX_SAMPLE_ENTRIES = 2**24
"""What training starts from is held in memory at once: of cells with very many counts it is fewer cells."""

MIN_RUNS = 64
"""Runs of neighboring cells that such a block has at least."""

RUN, SHORT_RUN = 64, 32
"""Neighboring cells read in one go, where the files do not ask for more; and those of a sample."""


@dataclass(frozen=True)
class Stream:
    """Cells in files to train and to validate on: a `celldial.data.in_memory.Source`. Make it by :meth:`survey`.

    Parameters
    ----------
    atlas
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

    atlas: Atlas
    schema: Schema
    summary: Cells
    entries_per_cell: float
    train_c: Tensor
    validation_c: Tensor
    device: torch.device = CPU

    @classmethod
    def survey(
        cls,
        atlas: Atlas,
        schema: Schema,
        *,
        validation_size: float = 0.1,
        validation_cells: Sequence[Any] | np.ndarray | None = None,
        seed: int = 0,
        label_codes: Callable[[pd.DataFrame], Tensor | None] | None = None,
    ) -> Stream:
        """Read all cells once: check their counts, note their library sizes, and choose cells to validate on.

        Parameters
        ----------
        atlas, schema
            The files, and what the model is fit to.
        validation_size
            Share of the cells to validate on. They are chosen in short runs of neighboring cells.
        validation_cells
            The cells to validate on instead: names, or a boolean mask.
        seed
            Of the random choice.
        label_codes
            Tells from ``atlas.obs`` which cluster each cell is known to be in; see `celldial.data.labels.codes`.

        Raises
        ------
        ValueError, TypeError, KeyError
            As `celldial.data.cells.Cells.from_anndata` and `celldial.data.splits.choose_cells`.
        OSError
            A file cannot be read.
        """
        held_out_c = None if validation_cells is None else np.asarray(validation_cells)
        names = None if held_out_c is None or held_out_c.dtype == bool else set(held_out_c.tolist())
        named_c = np.zeros(atlas.n_cells, dtype=bool)
        found: set[Any] = set()
        # Written where it stays: what is kept of each block would leave holes in memory that no next block fits in.
        library_size = {modality: torch.empty(atlas.n_cells) for modality in schema.modalities}
        start, densest = 0, 0.0
        with told_once():
            for block in ahead(atlas.blocks()):
                cells = Cells.from_anndata(block, schema)
                part = slice(start, start + len(cells))
                for modality, total_c in cells.library_size.items():
                    library_size[modality][part] = total_c
                densest = max(densest, densest_run(cells))
                if names is not None:
                    named_c[part] = block.obs_names.isin(names)
                    found.update(block.obs_names[named_c[part]])
                start = part.stop
        if names is not None:
            if names - found:
                unknown = min(names - found, key=str)
                raise KeyError(f"validation_cells names {unknown!r}, which no cell is called; give names or a mask")
            held_out_c = named_c
        summary = summarised(library_size)
        summary = replace(summary, label_c=None if label_codes is None else label_codes(atlas.obs))
        train_c, validation_c = choose(summary, validation_size, held_out_c, seed)
        # What there was to say of the columns that tell which cells have what is said.
        return cls(atlas, replace(schema, presence_keys={}), summary, densest, train_c, validation_c)

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
    def cells_at_a_time(self) -> int:
        """How many cells are read at a time."""
        return int(max(1, min(MAX_CELLS, MAX_ENTRIES // max(1.0, self.entries_per_cell))))

    @property
    def run(self) -> int:
        """How many neighboring cells are read in one go."""
        return max(1, min(max(RUN, int(self.atlas.cells_at_once)), self.cells_at_a_time // MIN_RUNS))

    def to(self, device: torch.device) -> Stream:
        """Give the same cells, as minibatches on a device."""
        return replace(self, device=device)

    def training(self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Go once through the cells to train on, in an order that `generator` alone decides.

        Together the ranks have `batch_size` cells at a time; each has as many minibatches as the others, of the same
        sizes, so that fewer cells than ranks are left out.
        """
        batch_size = max(1, batch_size // n_ranks)
        order_c = shuffled_runs(self.train_c, self.run, generator)
        # For the order within blocks, which is drawn ahead: however far an epoch gets, it takes as much of `generator`.
        within = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        n_own = len(order_c) // n_ranks
        own_c = order_c[rank * n_own : (rank + 1) * n_own]
        at_a_time = max(1, self.cells_at_a_time // batch_size) * batch_size
        rows = (part_c[torch.randperm(len(part_c), generator=within)] for part_c in own_c.split(at_a_time))
        return self._read(rows, batch_size)

    def validation(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Go once through the cells to validate on, always in the same blocks."""
        own_c = self.validation_c.tensor_split(n_ranks)[rank]
        size = block_size(max(len(names) for names in self.schema.feature_names.values()))
        return self._read(iter(own_c.split(max(1, self.cells_at_a_time // size) * size)), size)

    def sample(self, n_cells: int) -> Cells:
        """Give some cells to train on, on the CPU, and always the same: `n_cells`, or as many as memory is given to."""
        n_cells = int(max(1, min(n_cells, MAX_SAMPLE_ENTRIES // max(1.0, self.entries_per_cell))))
        chosen_c = self.train_c
        if len(chosen_c) > n_cells:
            generator = torch.Generator().manual_seed(0)
            chosen_c = shuffled_runs(chosen_c, max(1, min(SHORT_RUN, n_cells // MIN_RUNS)), generator)[:n_cells]
        return self._cells(chosen_c.sort().values)

    def _read(self, rows: Iterator[Tensor], size: int) -> Iterator[Cells]:
        """Read cells ahead of their use, and cut them into minibatches on the device."""
        for block in ahead(self._cells(row_c).to(self.device) for row_c in rows if len(row_c) > 0):
            yield from block.cut(size)

    def _cells(self, row_c: Tensor) -> Cells:
        """Read some cells, in the order given."""
        cells = Cells.from_anndata(self.atlas.read(row_c.numpy(), names=False), self.schema)
        label_c = self.summary.label_c
        return cells if label_c is None else replace(cells, label_c=label_c[row_c])


def shuffled_runs(row_c: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Put cells, int64, in a random order of runs of so many neighbors."""
    runs = row_c.split(length)
    return torch.cat([runs[run] for run in torch.randperm(len(runs), generator=generator).tolist()])


def choose(summary: Cells, validation_size: float, held_out_c: np.ndarray | None, seed: int) -> tuple[Tensor, Tensor]:
    """Choose training and validation cells as `celldial.data.splits.choose_cells`, but in runs of neighbors."""
    if held_out_c is not None:
        return hold_out(summary, held_out_c)
    open_c, labelled_c = open_cells(summary)
    generator = torch.Generator().manual_seed(seed)
    n_validation = len(split(len(open_c), validation_size, generator)[1])
    order_c = shuffled_runs(open_c, max(1, min(RUN, n_validation // MIN_RUNS)), generator)
    return torch.cat([order_c[n_validation:], labelled_c]).sort().values, order_c[:n_validation].sort().values


def summarised(library_size: dict[str, Tensor]) -> Cells:
    """Make cells of library sizes alone."""
    n_cells = len(next(iter(library_size.values())))
    none = SparseRows(torch.zeros(n_cells + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0)
    present = {modality: total_c > 0 for modality, total_c in library_size.items()}
    return Cells(
        counts=dict.fromkeys(library_size, none),
        library_size=library_size,
        category_ck=torch.zeros(n_cells, 0, dtype=torch.int64),
        continuous_ck=torch.zeros(n_cells, 0),
        present={modality: present_c for modality, present_c in present.items() if not present_c.all()},
    )


def densest_run(cells: Cells, n_cells: int = 256) -> float:
    """Count the entries of a cell in all modalities, on average over the `n_cells` neighbors that have most."""
    n_cells = min(n_cells, len(cells))
    indptr_c = torch.stack([rows.indptr_c for rows in cells.counts.values()]).sum(0)
    return float(indptr_c[::n_cells].diff().max()) / n_cells


@contextmanager
def told_once() -> Iterator[None]:
    """Give warnings that differ by numbers and names only once."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    first = {re.sub(r"\d+|'[^']*'", "", str(warning.message)): warning for warning in reversed(told)}
    for warning in reversed(first.values()):
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

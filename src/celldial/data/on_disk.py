"""Training cells in files: which cells are read together, and in which order.

An epoch visits runs of neighboring cells in random order. Many runs are read into a buffer, and the cells of a buffer
are shuffled. Thus, files are read in large pieces, but each minibatch has cells from all parts of the files.
`celldial.data.files` reads the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celldial.data.cells import Cells, checksum, decode_block_size
from celldial.data.file_matrices import max_mean_nnz
from celldial.data.files import OnDiskDataset
from celldial.data.schema import Schema
from celldial.data.splits import holdout_candidates, random_split, split_by_mask
from celldial.ops.csr import CSRTensor
from celldial.utils.prefetch import prefetch
from celldial.utils.warnings import warn_once

__all__ = ["OnDiskSource"]

CPU = torch.device("cpu")

MAX_BUFFER_CELLS, MAX_BUFFER_NNZ = 2**14, 2**22
"""Cells and stored counts of a buffer. Two buffers are in memory at a time."""

MAX_SAMPLE_NNZ = 2**24
"""Stored counts of the sample that initializes the model. If cells have very many counts, the sample is smaller."""

MIN_RUNS_PER_BUFFER = 64
"""Smallest number of runs of neighboring cells in a buffer."""

RUN_CELLS, SAMPLE_RUN_CELLS = 64, 32
"""Cells of a run, unless the files are compressed in larger chunks; and cells of a run of a sample."""


@dataclass(frozen=True)
class OnDiskSource:
    """A `celldial.data.source.Source` of cells in files. Create it with :meth:`scan`.

    Parameters
    ----------
    dataset
        The files.
    schema
        Features and covariates of the model.
    summary
        All cells without their counts: library sizes, modalities and labels.
    nnz_per_cell
        Stored counts per cell, averaged over the neighboring cells that have the most.
    train_c, validation_c
        Indices of the training and validation cells, int64, in ascending order.
    device
        Device of the minibatches.
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
        """Read all cells once: check their counts, collect their library sizes, and choose the validation cells.

        Parameters
        ----------
        dataset, schema
            The files, and the features and covariates of the model.
        validation_size
            Fraction of validation cells. They are chosen in short runs of neighboring cells.
        validation_cells
            The validation cells, as names or as a boolean mask. They replace the random choice.
        seed
            Seed of the random choice.
        encode_labels
            Returns the known cluster of each cell from ``dataset.obs``; see `celldial.data.labels.encode_labels`.

        Raises
        ------
        ValueError, TypeError, KeyError
            As in `celldial.data.cells.Cells.from_anndata` and `celldial.data.splits.train_validation_split`.
        OSError
            A file cannot be read.
        """
        mask_c = None if validation_cells is None else np.asarray(validation_cells)
        names = None if mask_c is None or mask_c.dtype == bool else set(mask_c.tolist())
        named_c = np.zeros(dataset.n_cells, dtype=bool)
        found: set[Any] = set()
        # Preallocated, because small arrays that outlive each block would fragment the memory.
        library_size = {modality: torch.empty(dataset.n_cells) for modality in schema.modalities}
        start, nnz_per_cell = 0, 0.0
        with warn_once():
            for block in prefetch(dataset.blocks()):
                cells = Cells.from_anndata(block, schema)
                part = slice(start, start + len(cells))
                for modality, total_c in cells.library_size.items():
                    library_size[modality][part] = total_c
                indptr_c = torch.stack([rows.indptr_c for rows in cells.counts.values()]).sum(0)
                nnz_per_cell = max(nnz_per_cell, max_mean_nnz(indptr_c.numpy()))
                if names is not None:
                    named_c[part] = block.obs_names.isin(names)
                    found.update(block.obs_names[named_c[part]])
                start = part.stop
        if names is not None:
            if names - found:
                unknown = min(names - found, key=str)
                raise KeyError(f"validation_cells has {unknown!r}, which no cell has as name: use names or a mask")
            mask_c = named_c
        summary = library_sizes_only(library_size)
        summary = replace(summary, label_c=None if encode_labels is None else encode_labels(dataset.obs))
        train_c, validation_c = split_in_runs(summary, validation_size, mask_c, seed)
        # Without presence keys, so that later reads do not repeat the warnings about presence columns.
        return cls(dataset, replace(schema, presence_keys={}), summary, nnz_per_cell, train_c, validation_c)

    @property
    def library_size(self) -> dict[str, Tensor]:
        """Modality to the total count of each cell, float32."""
        return self.summary.library_size

    @property
    def label_c(self) -> Tensor | None:
        """Known cluster of each cell, for a model with labels; see `celldial.data.cells.Cells`."""
        return self.summary.label_c

    def with_labels(self, label_c: Tensor) -> Self:
        """Return a source of the same cells with other labels."""
        return replace(self, summary=replace(self.summary, label_c=label_c))

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the library sizes and of the split."""
        return checksum([*self.library_size.values(), self.train_c, self.validation_c])

    @property
    def buffer_cells(self) -> int:
        """Number of cells in a buffer."""
        return int(max(1, min(MAX_BUFFER_CELLS, MAX_BUFFER_NNZ // max(1.0, self.nnz_per_cell))))

    @property
    def run_cells(self) -> int:
        """Number of cells in a run."""
        return max(1, min(max(RUN_CELLS, int(self.dataset.chunk_cells)), self.buffer_cells // MIN_RUNS_PER_BUFFER))

    def to(self, device: torch.device) -> OnDiskSource:
        """Return a source of the same cells with minibatches on `device`."""
        return replace(self, device=device)

    def training_minibatches(
        self, batch_size: int, generator: torch.Generator, rank: int = 0, n_ranks: int = 1
    ) -> Iterator[Cells]:
        """Yield the training cells once, in an order that depends only on `generator`.

        The ranks together process `batch_size` cells per step. All ranks get the same number of minibatches of the same
        sizes. Therefore, fewer cells than ranks are left out.
        """
        batch_size = max(1, batch_size // n_ranks)
        order_c = shuffle_runs(self.train_c, self.run_cells, generator)
        # Buffers are shuffled ahead of their use, with a separate generator. The state of `generator` therefore does
        # not depend on how much of an epoch is read.
        buffer_generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        n_own = len(order_c) // n_ranks
        own_c = order_c[rank * n_own : (rank + 1) * n_own]
        buffer_size = max(1, self.buffer_cells // batch_size) * batch_size
        buffers = (
            buffer_c[torch.randperm(len(buffer_c), generator=buffer_generator)] for buffer_c in own_c.split(buffer_size)
        )
        return self._read_minibatches(buffers, batch_size)

    def validation_minibatches(self, rank: int = 0, n_ranks: int = 1) -> Iterator[Cells]:
        """Yield the validation cells once, always in the same blocks."""
        own_c = self.validation_c.tensor_split(n_ranks)[rank]
        block_size = decode_block_size(max(len(names) for names in self.schema.feature_names.values()))
        buffer_size = max(1, self.buffer_cells // block_size) * block_size
        return self._read_minibatches(iter(own_c.split(buffer_size)), block_size)

    def training_sample(self, n_cells: int) -> Cells:
        """Return at most `n_cells` training cells on the CPU, always the same ones; fewer if they have many counts."""
        n_cells = int(max(1, min(n_cells, MAX_SAMPLE_NNZ // max(1.0, self.nnz_per_cell))))
        sample_c = self.train_c
        if len(sample_c) > n_cells:
            run_cells = max(1, min(SAMPLE_RUN_CELLS, n_cells // MIN_RUNS_PER_BUFFER))
            sample_c = shuffle_runs(sample_c, run_cells, torch.Generator().manual_seed(0))[:n_cells]
        return self._read_cells(sample_c.sort().values)

    def _read_minibatches(self, buffers: Iterator[Tensor], batch_size: int) -> Iterator[Cells]:
        """Read buffers of cells ahead of their use, and split them into minibatches on the device."""
        for block in prefetch(self._read_cells(index_c).to(self.device) for index_c in buffers if len(index_c) > 0):
            yield from block.split(batch_size)

    def _read_cells(self, index_c: Tensor) -> Cells:
        """Read cells in the given order."""
        cells = Cells.from_anndata(self.dataset.read(index_c.numpy(), names=False), self.schema)
        label_c = self.summary.label_c
        return cells if label_c is None else replace(cells, label_c=label_c[index_c])


def shuffle_runs(index_c: Tensor, run_cells: int, generator: torch.Generator) -> Tensor:
    """Return the indices in runs of `run_cells` neighbors, and the runs in random order."""
    runs = index_c.split(run_cells)
    return torch.cat([runs[run] for run in torch.randperm(len(runs), generator=generator).tolist()])


def split_in_runs(
    summary: Cells, validation_size: float, held_out_c: np.ndarray | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Split as `celldial.data.splits.train_validation_split` does, but hold out runs of neighboring cells."""
    if held_out_c is not None:
        return split_by_mask(summary, held_out_c)
    candidate_c, reserved_c = holdout_candidates(summary)
    generator = torch.Generator().manual_seed(seed)
    n_validation = len(random_split(len(candidate_c), validation_size, generator)[1])
    order_c = shuffle_runs(candidate_c, max(1, min(RUN_CELLS, n_validation // MIN_RUNS_PER_BUFFER)), generator)
    return torch.cat([order_c[n_validation:], reserved_c]).sort().values, order_c[:n_validation].sort().values


def library_sizes_only(library_size: dict[str, Tensor]) -> Cells:
    """Return cells that have library sizes but no stored counts."""
    n_cells = len(next(iter(library_size.values())))
    empty = CSRTensor(torch.zeros(n_cells + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0)
    present = {modality: total_c > 0 for modality, total_c in library_size.items()}
    return Cells(
        counts=dict.fromkeys(library_size, empty),
        library_size=library_size,
        category_ck=torch.zeros(n_cells, 0, dtype=torch.int64),
        continuous_ck=torch.zeros(n_cells, 0),
        present={modality: present_c for modality, present_c in present.items() if not present_c.all()},
    )

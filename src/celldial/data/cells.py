"""Cells as tensors: sparse counts and covariates, whole data sets and minibatches alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from celldial.data.schema import Schema
from celldial.ops.csr import CSRTensor
from celldial.ops.log_likelihoods import gather_rows

MINIBATCHES_PER_GATHER = 32

MAX_DECODE_CELLS, MAX_DECODE_VALUES = 1024, 2**22

__all__ = ["Cells", "decode_block_size", "decode_blocks", "minibatches"]


@dataclass(frozen=True)
class Cells:
    """Counts and covariates of some cells, on one device: a whole data set, or one minibatch.

    Parameters
    ----------
    counts
        Modality to its counts, float32, with int64 columns.
    library_size
        Modality to the total count of its features in each cell, float32, shape ``(c,)``.
    category_ck
        Codes of the categorical covariates, int64, shape ``(c, n_categorical)``.
    continuous_ck
        Standardized continuous covariates, float32, shape ``(c, n_continuous)``.
    present
        Modality to which cells have it, that is, have a count there, bool, shape ``(c,)``. Modalities that all cells
        have are left out, so that nothing needs to be gathered for them.
    angle_params_cq
        For a model with a circle, where on it each cell is taken to be (see
        `celldial.model.periodic.Circle.posterior`), float32, shape ``(c, 4)``.
    label_c
        For a model whose clusters have names, which of them each cell is known to be in, int64, shape ``(c,)``; -1
        where that is unknown.
    """

    counts: dict[str, CSRTensor]
    library_size: dict[str, Tensor]
    category_ck: Tensor
    continuous_ck: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)
    angle_params_cq: Tensor | None = None
    label_c: Tensor | None = None

    @classmethod
    def from_anndata(cls, adata: AnnData, schema: Schema, overrides: Mapping[str, Any] | None = None) -> Cells:
        """Read all cells of an AnnData onto the CPU; the tensors share no memory with it.

        Parameters
        ----------
        adata
            Cells that fit `schema`.
        schema
            What the model was fit to; see :meth:`Schema.read_counts` and :meth:`Schema.encode_covariates` for the
            errors raised.
        overrides
            Covariate to one value for all cells, in place of the one in ``adata.obs``.
        """
        counts = schema.read_counts(adata)
        category_ck, continuous_ck = schema.encode_covariates(adata, overrides)
        library_size = {modality: row_totals(matrix) for modality, matrix in counts.items()}
        present = {modality: total_c > 0 for modality, total_c in library_size.items()}
        return cls(
            counts={modality: to_csr_tensor(matrix) for modality, matrix in counts.items()},
            library_size=library_size,
            category_ck=torch.from_numpy(category_ck),
            continuous_ck=torch.from_numpy(continuous_ck),
            present={modality: present_c for modality, present_c in present.items() if not present_c.all()},
        )

    def __len__(self) -> int:
        return len(self.category_ck)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self)

    @property
    def n_bytes(self) -> int:
        """Memory that the counts take."""
        return sum(
            part.nbytes for rows in self.counts.values() for part in (rows.indptr_c, rows.column_n, rows.value_n)
        )

    @property
    def empty_c(self) -> Tensor:
        """Which cells have no count in any modality, bool, shape ``(c,)``."""
        return torch.stack(list(self.library_size.values())).sum(0) == 0

    def indices_with(self, modality: str) -> Tensor | None:
        """Give the cells that have a modality, as indices in ascending order, int64; None where all have it."""
        return self._indices_with.get(modality)

    @cached_property
    def _indices_with(self) -> dict[str, Tensor]:
        """Which cells have each modality that not all have: found once, as a GPU must be waited for."""
        return {modality: present_c.nonzero().squeeze(1) for modality, present_c in self.present.items()}

    def mask_with(self, modality: str) -> Tensor:
        """Tell which cells have a modality, bool, shape ``(c,)``."""
        present_c = self.present.get(modality)
        return torch.ones_like(self.library_size[modality], dtype=torch.bool) if present_c is None else present_c

    def observed_counts(self, modality: str) -> CSRTensor:
        """Give the counts of a modality in the cells that have it."""
        index_c = self.indices_with(modality)
        return self.counts[modality] if index_c is None else gather_rows(self.counts[modality], index_c)

    def keep_modalities(self, *modalities: str) -> Cells:
        """Take the same cells as if nothing but `modalities` had been measured."""
        lacked_c = torch.zeros(len(self), dtype=torch.bool, device=self.category_ck.device)
        others = [name for name in self.counts if name not in modalities]
        return replace(
            self,
            counts={**self.counts, **{name: empty_rows_like(self.counts[name]) for name in others}},
            library_size={**self.library_size, **{name: torch.zeros_like(self.library_size[name]) for name in others}},
            present={**self.present, **dict.fromkeys(others, lacked_c)},
        )

    def drop_full_masks(self, index_c: Tensor) -> Cells:
        """Leave out the masks of modalities that all of the cells `index_c` have, where only these will be used."""
        masks = {name: present_c for name, present_c in self.present.items() if not bool(present_c[index_c].all())}
        return replace(self, present=masks)

    def select(self, index_c: Tensor) -> Cells:
        """Gather the cells ``index_c`` (int64, on any device), in that order."""
        index_c = index_c.to(self.category_ck.device)
        return self._map_tensors(lambda rows: gather_rows(rows, index_c), lambda tensor: tensor[index_c])

    def slice(self, start: int, stop: int) -> Cells:
        """Take the cells from `start` up to, not including, `stop`; entries are views, not copies."""
        return self._map_tensors(lambda rows: slice_rows(rows, start, stop), lambda tensor: tensor[start:stop])

    def split(self, n_cells: int) -> Iterator[Cells]:
        """Cut into parts of `n_cells` cells, of which the last may have fewer; entries are views, not copies."""
        edges = [*range(0, len(self), n_cells), len(self)]
        parts = {modality: split_rows(rows, edges) for modality, rows in self.counts.items()}
        for part, (start, stop) in enumerate(pairwise(edges)):
            of_part = replace(self, counts={modality: rows[part] for modality, rows in parts.items()})
            yield of_part._map_tensors(lambda rows: rows, itemgetter(slice(start, stop)))

    def to(self, device: torch.device | str) -> Cells:
        """Move to a device."""
        device = torch.device(device)
        return self._map_tensors(lambda rows: rows.to(device), lambda tensor: tensor.to(device))

    def _map_tensors(self, of_rows: Callable[[CSRTensor], CSRTensor], of_tensor: Callable[[Tensor], Tensor]) -> Cells:
        """Do the same to every part."""
        return Cells(
            counts={modality: of_rows(rows) for modality, rows in self.counts.items()},
            library_size={modality: of_tensor(total_c) for modality, total_c in self.library_size.items()},
            category_ck=of_tensor(self.category_ck),
            continuous_ck=of_tensor(self.continuous_ck),
            present={modality: of_tensor(present_c) for modality, present_c in self.present.items()},
            angle_params_cq=None if self.angle_params_cq is None else of_tensor(self.angle_params_cq),
            label_c=None if self.label_c is None else of_tensor(self.label_c),
        )


def decode_block_size(n_features: int) -> int:
    """Choose how many cells to decode at once: a block of expected values stays below 16 MB, or is one cell."""
    return max(1, min(MAX_DECODE_CELLS, MAX_DECODE_VALUES // n_features))


def to_csr_tensor(matrix: sparse.csr_matrix) -> CSRTensor:
    """Copy a canonical CSR matrix into tensors."""
    return CSRTensor(
        indptr_c=torch.tensor(matrix.indptr, dtype=torch.int64),
        column_n=torch.tensor(matrix.indices, dtype=torch.int64),
        value_n=torch.tensor(matrix.data, dtype=torch.float32),
        n_columns=matrix.shape[1],
    )


def to_csr_matrix(rows: CSRTensor) -> sparse.csr_matrix:
    """Give rows that are on the CPU as a CSR matrix, which shares their memory."""
    parts = (rows.value_n.numpy(), rows.column_n.numpy(), rows.indptr_c.numpy())
    return sparse.csr_matrix(parts, shape=(rows.n_rows, rows.n_columns))


def row_totals(matrix: sparse.csr_matrix) -> Tensor:
    """Sum each row, in float64 because float32 drops single counts from totals above 16 million."""
    return torch.tensor(np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel(), dtype=torch.float32)


def slice_rows(rows: CSRTensor, start: int, stop: int) -> CSRTensor:
    """Take the rows from `start` up to `stop`, with views of the entries."""
    return split_rows(rows, [start, stop])[0]


def split_rows(rows: CSRTensor, edges: Sequence[int]) -> list[CSRTensor]:
    """Cut rows at `edges`, with views of the entries.

    Where entries begin is looked up at once for all parts: at each look the CPU waits for a GPU.
    """
    entries = rows.indptr_c[torch.as_tensor(edges)].tolist()
    return [
        CSRTensor(
            rows.indptr_c[start : stop + 1] - first,
            rows.column_n[first:last],
            rows.value_n[first:last],
            rows.n_columns,
        )
        for (start, stop), (first, last) in zip(pairwise(edges), pairwise(entries), strict=True)
    ]


def empty_rows_like(rows: CSRTensor) -> CSRTensor:
    """Make as many rows, all empty."""
    return CSRTensor(torch.zeros_like(rows.indptr_c), rows.column_n[:0], rows.value_n[:0], rows.n_columns)


def minibatches(
    cells: Cells, batch_size: int, *, generator: torch.Generator | None = None, index_c: Tensor | None = None
) -> Iterator[Cells]:
    """Go once through the cells, `batch_size` at a time; the last minibatch may be smaller.

    Parameters
    ----------
    cells
        The data set, on the device where the minibatches are wanted.
    batch_size
        Cells in a minibatch.
    generator
        Shuffles the cells, on the CPU so that the order is the same on every device. Without it they come in order,
        and where `index_c` runs without gaps, as views of `cells`.
    index_c
        The cells to go through, int64; by default all.

    Raises
    ------
    ValueError
        `batch_size` is below 1, or `index_c` names cells that there are not.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    order_c = torch.arange(cells.n_cells) if index_c is None else index_c.cpu()
    if bool(((order_c < 0) | (order_c >= cells.n_cells)).any()):
        raise ValueError(
            f"index_c must be from 0 to {cells.n_cells - 1}, the last cell; it goes from "
            f"{int(order_c.min())} to {int(order_c.max())}"
        )
    if generator is not None:
        order_c = order_c[torch.randperm(len(order_c), generator=generator)]
    if bool((order_c.diff() == 1).all()):
        first, last = (int(order_c[0]), int(order_c[-1]) + 1) if len(order_c) > 0 else (0, 0)
        for start in range(first, last, batch_size):
            yield cells.slice(start, min(start + batch_size, last))
    else:
        # Gathered many minibatches at a time, which costs hardly more than one, and little memory.
        order_c = order_c.to(cells.category_ck.device)
        for block_c in order_c.split(MINIBATCHES_PER_GATHER * batch_size):
            yield from cells.select(block_c).split(batch_size)


def decode_blocks(cells: Cells, index_c: Tensor | None = None) -> Iterator[Cells]:
    """Go once through the cells, in order and in blocks of a size that can be decoded at once.

    Parameters
    ----------
    cells
        The data set.
    index_c
        The cells to go through, int64; by default all.
    """
    return minibatches(cells, decode_block_size(max(rows.n_columns for rows in cells.counts.values())), index_c=index_c)

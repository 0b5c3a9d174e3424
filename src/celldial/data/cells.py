"""Cells as tensors, for a whole data set or for a minibatch: sparse counts, covariates, labels."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
"""Largest number of cells, and of expected values (cells × features), that are decoded at once."""

__all__ = ["Cells", "checksum", "decode_block_size", "decode_blocks", "minibatches", "to_csr_matrix", "to_csr_tensor"]


@dataclass(frozen=True)
class Cells:
    """Counts and covariates of cells on one device: a whole data set or a minibatch.

    Parameters
    ----------
    counts
        Modality to its counts, float32, with int32 columns.
    library_size
        Modality to the total count of each cell, float32, shape ``(c,)``.
    category_ck
        Codes of the categorical covariates, int64, shape ``(c, n_categorical)``.
    continuous_ck
        Columns of the continuous covariates, float32, shape ``(c, n_continuous)``.
    present
        Modality to a mask of the cells that have a count of it, bool, shape ``(c,)``. Modalities that all cells have
        are left out, so that no cells need to be gathered for them.
    angle_params_cq
        For a model with a periodic coordinate, the parameters of the posterior of the angle (see
        `celldial.model.periodic.Circle.posterior`), float32, shape ``(c, 4)``.
    label_c
        For a model with labeled clusters, the known cluster of each cell, int64, shape ``(c,)``; -1 if it is unknown.
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
        """Read all cells of an AnnData to the CPU. The tensors share no memory with it.

        Parameters
        ----------
        adata
            Cells with the features and covariates of `schema`.
        schema
            Features and covariates of the model. Its methods :meth:`Schema.read_counts` and
            :meth:`Schema.encode_covariates` list the errors.
        overrides
            Covariate to one value for all cells, instead of the values in ``adata.obs``.
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
        """Memory of the counts, in bytes."""
        return sum(
            tensor.nbytes for rows in self.counts.values() for tensor in (rows.indptr_c, rows.column_n, rows.value_n)
        )

    @property
    def empty_c(self) -> Tensor:
        """Mask of the cells without any count, bool, shape ``(c,)``."""
        return torch.stack(list(self.library_size.values())).sum(0) == 0

    def indices_with(self, modality: str) -> Tensor | None:
        """Return the indices of the cells that have a modality, int64, ascending; None if all cells have it."""
        return self._indices_with.get(modality)

    @cached_property
    def _indices_with(self) -> dict[str, Tensor]:
        """Indices for the modalities that some cells lack. They are cached, because each search waits for the GPU."""
        return {modality: present_c.nonzero().squeeze(1) for modality, present_c in self.present.items()}

    def mask_with(self, modality: str) -> Tensor:
        """Return a mask of the cells that have a modality, bool, shape ``(c,)``."""
        present_c = self.present.get(modality)
        return torch.ones_like(self.library_size[modality], dtype=torch.bool) if present_c is None else present_c

    def observed_counts(self, modality: str) -> CSRTensor:
        """Return the counts of a modality in the cells that have it."""
        index_c = self.indices_with(modality)
        return self.counts[modality] if index_c is None else gather_rows(self.counts[modality], index_c)

    def keep_modalities(self, *modalities: str) -> Cells:
        """Return the same cells with counts of `modalities` only, as if no other modality had been measured."""
        absent_c = torch.zeros(len(self), dtype=torch.bool, device=self.category_ck.device)
        others = [name for name in self.counts if name not in modalities]
        return replace(
            self,
            counts={**self.counts, **{name: empty_rows_like(self.counts[name]) for name in others}},
            library_size={**self.library_size, **{name: torch.zeros_like(self.library_size[name]) for name in others}},
            present={**self.present, **dict.fromkeys(others, absent_c)},
        )

    def drop_full_masks(self, index_c: Tensor) -> Cells:
        """Return the cells without the masks of modalities that all of the cells `index_c` have.

        Use the result only for the cells `index_c`.
        """
        masks = {name: present_c for name, present_c in self.present.items() if not bool(present_c[index_c].all())}
        return replace(self, present=masks)

    def select(self, index_c: Tensor) -> Cells:
        """Return the cells ``index_c`` (int64, on any device), in that order."""
        index_c = index_c.to(self.category_ck.device)
        return self._map_tensors(lambda rows: gather_rows(rows, index_c), lambda tensor: tensor[index_c])

    def slice(self, start: int, stop: int) -> Cells:
        """Return the cells from `start` up to, but not including, `stop`, without copying their counts."""
        return self._map_tensors(lambda rows: slice_rows(rows, start, stop), lambda tensor: tensor[start:stop])

    def split(self, n_cells: int) -> Iterator[Cells]:
        """Yield parts of `n_cells` cells, without copying their counts. The last part may be smaller."""
        edges = [*range(0, len(self), n_cells), len(self)]
        counts = {modality: split_rows(rows, edges) for modality, rows in self.counts.items()}
        for i, (start, stop) in enumerate(pairwise(edges)):
            with_counts_of_part = replace(self, counts={modality: parts[i] for modality, parts in counts.items()})
            yield with_counts_of_part._map_tensors(lambda rows: rows, itemgetter(slice(start, stop)))

    def to(self, device: torch.device | str) -> Cells:
        """Return the cells on a device."""
        device = torch.device(device)
        return self._map_tensors(lambda rows: rows.to(device), lambda tensor: tensor.to(device))

    def _map_tensors(self, map_rows: Callable[[CSRTensor], CSRTensor], map_tensor: Callable[[Tensor], Tensor]) -> Cells:
        """Return cells with one function applied to all counts and another one to all other tensors."""
        return Cells(
            counts={modality: map_rows(rows) for modality, rows in self.counts.items()},
            library_size={modality: map_tensor(total_c) for modality, total_c in self.library_size.items()},
            category_ck=map_tensor(self.category_ck),
            continuous_ck=map_tensor(self.continuous_ck),
            present={modality: map_tensor(present_c) for modality, present_c in self.present.items()},
            angle_params_cq=None if self.angle_params_cq is None else map_tensor(self.angle_params_cq),
            label_c=None if self.label_c is None else map_tensor(self.label_c),
        )


def decode_block_size(n_features: int) -> int:
    """Return how many cells to decode at once: their expected values take at most 16 MB, unless it is one cell."""
    return max(1, min(MAX_DECODE_CELLS, MAX_DECODE_VALUES // n_features))


def to_csr_tensor(matrix: sparse.csr_matrix) -> CSRTensor:
    """Return a canonical CSR matrix as tensors, which share its memory where the types agree. Do not write to them."""
    return CSRTensor(
        indptr_c=torch.tensor(matrix.indptr, dtype=torch.int64),
        column_n=_as_tensor(matrix.indices, np.int32),
        value_n=_as_tensor(matrix.data, np.float32),
        n_columns=matrix.shape[1],
    )


def _as_tensor(array: np.ndarray, dtype: type[np.generic]) -> Tensor:
    """Return an array as a tensor of this type, without a copy if possible."""
    converted = np.require(array, dtype, ["C", "W"])  # writable, because torch warns of other arrays
    return torch.from_numpy(converted)


def to_csr_matrix(rows: CSRTensor) -> sparse.csr_matrix:
    """Return rows on the CPU as a CSR matrix that shares their memory."""
    arrays = (rows.value_n.numpy(), rows.column_n.numpy(), rows.indptr_c.numpy())
    return sparse.csr_matrix(arrays, shape=(rows.n_rows, rows.n_columns))


def row_totals(matrix: sparse.csr_matrix) -> Tensor:
    """Return the sum of each row. It is computed in float64, because float32 cannot count beyond 16 million."""
    return torch.tensor(np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel(), dtype=torch.float32)


def slice_rows(rows: CSRTensor, start: int, stop: int) -> CSRTensor:
    """Return the rows from `start` up to, but not including, `stop`. Their entries are views."""
    return split_rows(rows, [start, stop])[0]


def split_rows(rows: CSRTensor, edges: Sequence[int]) -> list[CSRTensor]:
    """Split rows at `edges`. The entries of the parts are views.

    The positions of all parts are read at once, because each read waits for the GPU.
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
    """Return as many rows without entries."""
    return CSRTensor(torch.zeros_like(rows.indptr_c), rows.column_n[:0], rows.value_n[:0], rows.n_columns)


def minibatches(
    cells: Cells, batch_size: int, *, generator: torch.Generator | None = None, index_c: Tensor | None = None
) -> Iterator[Cells]:
    """Yield minibatches that together have each cell once. The last minibatch may be smaller.

    Parameters
    ----------
    cells
        All cells, on the device of the minibatches.
    batch_size
        Number of cells in a minibatch.
    generator
        Random number generator that shuffles the cells. It is on the CPU, so that the order is the same on every
        device. Without it, the cells stay in order, and minibatches of consecutive cells are views of `cells`.
    index_c
        Indices of the cells to use, int64; by default all cells.

    Raises
    ------
    ValueError
        `batch_size` is below 1, or `index_c` is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    order_c = torch.arange(cells.n_cells) if index_c is None else index_c.cpu()
    if bool(((order_c < 0) | (order_c >= cells.n_cells)).any()):
        raise ValueError(
            f"index_c has values from {int(order_c.min())} to {int(order_c.max())}: they must be from 0 to "
            f"{cells.n_cells - 1}, the last cell"
        )
    if generator is not None:
        order_c = order_c[torch.randperm(len(order_c), generator=generator)]
    if bool((order_c.diff() == 1).all()):
        first, last = (int(order_c[0]), int(order_c[-1]) + 1) if len(order_c) > 0 else (0, 0)
        for start in range(first, last, batch_size):
            yield cells.slice(start, min(start + batch_size, last))
    else:
        # Many minibatches are gathered at once: this takes little memory and little more time than one minibatch.
        order_c = order_c.to(cells.category_ck.device)
        for block_c in order_c.split(MINIBATCHES_PER_GATHER * batch_size):
            yield from cells.select(block_c).split(batch_size)


def decode_blocks(cells: Cells, index_c: Tensor | None = None) -> Iterator[Cells]:
    """Yield the cells in order, in blocks that can be decoded at once.

    Parameters
    ----------
    cells
        All cells.
    index_c
        Indices of the cells to use, int64; by default all cells.
    """
    return minibatches(cells, decode_block_size(max(rows.n_columns for rows in cells.counts.values())), index_c=index_c)


def checksum(tensors: Iterable[Tensor]) -> str:
    """Return the CRC-32 checksum of the values of tensors, as eight hexadecimal digits."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), value)
    return f"{value:08x}"

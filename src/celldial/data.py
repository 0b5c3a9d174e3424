"""Cells as tensors: sparse counts and covariates, whole data sets and minibatches alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from celldial.ops import select
from celldial.rows import SparseRows
from celldial.schema import Schema

MINIBATCHES_AT_A_TIME = 32

MAX_BLOCK_CELLS, MAX_BLOCK_ENTRIES = 1024, 2**22

__all__ = ["Cells", "block_size", "check_linked", "choose_cells", "in_blocks", "minibatches", "split"]


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
    belief_cq
        For a model with a circle, where on it each cell is taken to be (see `celldial.latents.Circle.posterior`),
        float32, shape ``(c, 4)``.
    label_c
        For a model whose clusters have names, which of them each cell is known to be in, int64, shape ``(c,)``; -1
        where that is unknown.
    """

    counts: dict[str, SparseRows]
    library_size: dict[str, Tensor]
    category_ck: Tensor
    continuous_ck: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)
    belief_cq: Tensor | None = None
    label_c: Tensor | None = None

    @classmethod
    def from_anndata(cls, adata: AnnData, schema: Schema, overrides: Mapping[str, Any] | None = None) -> Cells:
        """Read all cells of an AnnData onto the CPU; the tensors share no memory with it.

        Parameters
        ----------
        adata
            Cells that fit `schema`.
        schema
            What the model was fit to; see :meth:`Schema.counts` and :meth:`Schema.covariates` for the errors raised.
        overrides
            Covariate to one value for all cells, in place of the one in ``adata.obs``.
        """
        counts = schema.counts(adata)
        category_ck, continuous_ck = schema.covariates(adata, overrides)
        library_size = {modality: row_totals(matrix) for modality, matrix in counts.items()}
        present = {modality: total_c > 0 for modality, total_c in library_size.items()}
        return cls(
            counts={modality: to_sparse_rows(matrix) for modality, matrix in counts.items()},
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

    def having(self, modality: str) -> Tensor | None:
        """Give the cells that have a modality, as indices in ascending order, int64; None where all have it."""
        return self._having.get(modality)

    @cached_property
    def _having(self) -> dict[str, Tensor]:
        """Which cells have each modality that not all have: found once, as a GPU must be waited for."""
        return {modality: present_c.nonzero().squeeze(1) for modality, present_c in self.present.items()}

    def has(self, modality: str) -> Tensor:
        """Tell which cells have a modality, bool, shape ``(c,)``."""
        present_c = self.present.get(modality)
        return torch.ones_like(self.library_size[modality], dtype=torch.bool) if present_c is None else present_c

    def observed(self, modality: str) -> SparseRows:
        """Give the counts of a modality in the cells that have it."""
        index_c = self.having(modality)
        return self.counts[modality] if index_c is None else select(self.counts[modality], index_c)

    def only(self, *modalities: str) -> Cells:
        """Take the same cells as if nothing but `modalities` had been measured."""
        lacked_c = torch.zeros(len(self), dtype=torch.bool, device=self.category_ck.device)
        others = [name for name in self.counts if name not in modalities]
        return replace(
            self,
            counts={**self.counts, **{name: without_entries(self.counts[name]) for name in others}},
            library_size={**self.library_size, **{name: torch.zeros_like(self.library_size[name]) for name in others}},
            present={**self.present, **dict.fromkeys(others, lacked_c)},
        )

    def masked_for(self, index_c: Tensor) -> Cells:
        """Leave out the masks of modalities that all of the cells `index_c` have, where only these will be used."""
        masks = {name: present_c for name, present_c in self.present.items() if not bool(present_c[index_c].all())}
        return replace(self, present=masks)

    def select(self, index_c: Tensor) -> Cells:
        """Gather the cells ``index_c`` (int64, on any device), in that order."""
        index_c = index_c.to(self.category_ck.device)
        return self._each(lambda rows: select(rows, index_c), lambda tensor: tensor[index_c])

    def between(self, start: int, stop: int) -> Cells:
        """Take the cells from `start` up to, not including, `stop`; entries are views, not copies."""
        return self._each(lambda rows: slice_rows(rows, start, stop), lambda tensor: tensor[start:stop])

    def cut(self, n_cells: int) -> Iterator[Cells]:
        """Cut into parts of `n_cells` cells, of which the last may have fewer; entries are views, not copies."""
        edges = [*range(0, len(self), n_cells), len(self)]
        parts = {modality: cut_rows(rows, edges) for modality, rows in self.counts.items()}
        for part, (start, stop) in enumerate(pairwise(edges)):
            of_part = replace(self, counts={modality: rows[part] for modality, rows in parts.items()})
            yield of_part._each(lambda rows: rows, itemgetter(slice(start, stop)))

    def to(self, device: torch.device | str) -> Cells:
        """Move to a device."""
        device = torch.device(device)
        return self._each(lambda rows: rows.to(device), lambda tensor: tensor.to(device))

    def _each(self, of_rows: Callable[[SparseRows], SparseRows], of_tensor: Callable[[Tensor], Tensor]) -> Cells:
        """Do the same to every part."""
        return Cells(
            counts={modality: of_rows(rows) for modality, rows in self.counts.items()},
            library_size={modality: of_tensor(total_c) for modality, total_c in self.library_size.items()},
            category_ck=of_tensor(self.category_ck),
            continuous_ck=of_tensor(self.continuous_ck),
            present={modality: of_tensor(present_c) for modality, present_c in self.present.items()},
            belief_cq=None if self.belief_cq is None else of_tensor(self.belief_cq),
            label_c=None if self.label_c is None else of_tensor(self.label_c),
        )


def block_size(n_features: int) -> int:
    """Choose how many cells to decode at once: a block of expected values stays below 16 MB, or is one cell."""
    return max(1, min(MAX_BLOCK_CELLS, MAX_BLOCK_ENTRIES // n_features))


def to_sparse_rows(matrix: sparse.csr_matrix) -> SparseRows:
    """Copy a canonical CSR matrix into tensors."""
    return SparseRows(
        indptr_c=torch.tensor(matrix.indptr, dtype=torch.int64),
        column_n=torch.tensor(matrix.indices, dtype=torch.int64),
        value_n=torch.tensor(matrix.data, dtype=torch.float32),
        n_columns=matrix.shape[1],
    )


def to_csr(rows: SparseRows) -> sparse.csr_matrix:
    """Give rows that are on the CPU as a CSR matrix, which shares their memory."""
    parts = (rows.value_n.numpy(), rows.column_n.numpy(), rows.indptr_c.numpy())
    return sparse.csr_matrix(parts, shape=(rows.n_rows, rows.n_columns))


def row_totals(matrix: sparse.csr_matrix) -> Tensor:
    """Sum each row, in float64 because float32 drops single counts from totals above 16 million."""
    return torch.tensor(np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel(), dtype=torch.float32)


def slice_rows(rows: SparseRows, start: int, stop: int) -> SparseRows:
    """Take the rows from `start` up to `stop`, with views of the entries."""
    return cut_rows(rows, [start, stop])[0]


def cut_rows(rows: SparseRows, edges: Sequence[int]) -> list[SparseRows]:
    """Cut rows at `edges`, with views of the entries.

    Where entries begin is looked up at once for all parts: at each look the CPU waits for a GPU.
    """
    entries = rows.indptr_c[torch.as_tensor(edges)].tolist()
    return [
        SparseRows(
            rows.indptr_c[start : stop + 1] - first,
            rows.column_n[first:last],
            rows.value_n[first:last],
            rows.n_columns,
        )
        for (start, stop), (first, last) in zip(pairwise(edges), pairwise(entries), strict=True)
    ]


def without_entries(rows: SparseRows) -> SparseRows:
    """Make as many rows, all empty."""
    return SparseRows(torch.zeros_like(rows.indptr_c), rows.column_n[:0], rows.value_n[:0], rows.n_columns)


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
            yield cells.between(start, min(start + batch_size, last))
    else:
        # Gathered many minibatches at a time, which costs hardly more than one, and little memory.
        order_c = order_c.to(cells.category_ck.device)
        for block_c in order_c.split(MINIBATCHES_AT_A_TIME * batch_size):
            yield from cells.select(block_c).cut(batch_size)


def in_blocks(cells: Cells, index_c: Tensor | None = None) -> Iterator[Cells]:
    """Go once through the cells, in order and in blocks of a size that can be decoded at once.

    Parameters
    ----------
    cells
        The data set.
    index_c
        The cells to go through, int64; by default all.
    """
    return minibatches(cells, block_size(max(rows.n_columns for rows in cells.counts.values())), index_c=index_c)


def split(n_cells: int, validation_size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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


def choose_cells(
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
        open_c, labelled_c = open_cells(cells)
        train, validation = split(len(open_c), validation_size, torch.Generator().manual_seed(seed))
        return torch.cat([open_c[train], labelled_c]).sort().values, open_c[validation]
    held_out_c = np.asarray(validation_cells)
    if held_out_c.dtype != bool:
        unknown = pd.Index(held_out_c).difference(adata.obs_names)
        if len(unknown):
            raise KeyError(
                f"validation_cells names {unknown[0]!r}, which is not in adata.obs_names; give names or a mask"
            )
        held_out_c = adata.obs_names.isin(held_out_c)
    return hold_out(cells, held_out_c)


def open_cells(cells: Cells) -> tuple[Tensor, Tensor]:
    """Tell which cells may be held out, and which have a label and so are to be learned from; empty ones are neither.

    What is known of few cells is to be learned from; where most have a label, any may be held out.
    """
    filled_c = ~cells.empty_c
    labelled_c = torch.zeros_like(filled_c) if cells.label_c is None else filled_c & (cells.label_c >= 0)
    if 2 * int(labelled_c.sum()) > int(filled_c.sum()):
        labelled_c = torch.zeros_like(filled_c)
    return (filled_c & ~labelled_c).nonzero().squeeze(1), labelled_c.nonzero().squeeze(1)


def hold_out(cells: Cells, held_out_c: np.ndarray) -> tuple[Tensor, Tensor]:
    """Split the cells that have counts by a mask, into indices of those to train and to validate on."""
    if len(held_out_c) != len(cells):
        raise ValueError(f"validation_cells is a mask of {len(held_out_c)} values for {len(cells)} cells")
    filled_c, held_out = ~cells.empty_c, torch.from_numpy(held_out_c)
    train_c, validation_c = (filled_c & ~held_out).nonzero().squeeze(1), (filled_c & held_out).nonzero().squeeze(1)
    if len(train_c) == 0:
        raise ValueError("validation_cells holds all cells out: none is left to train on")
    return train_c, validation_c


def check_linked(cells: Cells, index_c: Tensor | None = None) -> None:
    """Raise unless cells that have several modalities link all of them, directly or through others.

    Without such cells nothing says which states of one modality belong to which of the other, and each could be laid
    out in the latent space as if the other were not there.

    Parameters
    ----------
    cells
        The data set.
    index_c
        The cells to train on, int64; by default all.

    Raises
    ------
    ValueError
        No cell has counts of some modality; or no cell has both of some that nothing else links.
    """
    part = slice(None) if index_c is None else index_c
    has = {modality: total_c[part] > 0 for modality, total_c in cells.library_size.items()}
    cell = "cell" if index_c is None else "cell to train on"
    if len(has) < 2:
        return
    for modality, has_c in has.items():
        if not has_c.any():
            raise ValueError(
                f"no {cell} has a count of {modality}: there is nothing to learn it from. Check the layer and the "
                "features, or leave the modality out"
            )
    linked, rest = [], list(has)
    reached = rest[:1]
    while reached:
        modality = reached.pop()
        rest.remove(modality)
        linked.append(modality)
        reached += [name for name in rest if name not in reached and (has[name] & has[modality]).any()]
    if rest:
        one, other = (names[0] if len(names) == 1 else f"any of {', '.join(names)}" for names in (linked, rest))
        raise ValueError(
            f"no {cell} has both {one} and {other}: nothing links them, and what is learned of one would say nothing "
            "of the other. Add cells in which both were measured, or fit a model of each"
        )

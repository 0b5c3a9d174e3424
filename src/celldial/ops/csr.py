"""Sparse counts of some cells, as tensors.

Axis suffixes: ``c`` cells, ``f`` features, ``n`` stored entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["CSRTensor"]


@dataclass(frozen=True)
class CSRTensor:
    """Rows of counts in compressed sparse row form, on one device.

    Parameters
    ----------
    indptr_c
        Where each row starts in the entries, shape ``(n_rows + 1,)``, int64.
    column_n
        The column of every stored entry, int64 or int32.
    value_n
        The stored entries, floating point.
    n_columns
        Number of columns.
    """

    indptr_c: Tensor
    column_n: Tensor
    value_n: Tensor
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.indptr_c) - 1

    # As much of a tensor as Pyro asks of what was observed, where it enumerates something else.

    @property
    def data(self) -> CSRTensor:
        """The rows themselves."""
        return self

    @property
    def shape(self) -> torch.Size:
        """Number of rows and columns."""
        return torch.Size([self.n_rows, self.n_columns])

    def dim(self) -> int:
        """Two: rows and columns."""
        return 2

    @cached_property
    def row_n(self) -> Tensor:
        """The row of every stored entry."""
        return self.expand_rows(torch.arange(self.n_rows, device=self.indptr_c.device))

    @cached_property
    def flat_n(self) -> Tensor:
        """The position of every stored entry in the flattened dense matrix."""
        return self.row_n * self.n_columns + self.column_n

    def select(self, index_c: Tensor) -> CSRTensor:
        """Gather the rows ``index_c``, in that order; `celldial.ops.log_likelihoods.gather_rows` is faster."""
        start_c = self.indptr_c[index_c]
        length_c = self.indptr_c[index_c + 1] - start_c
        indptr_c = torch.cat([length_c.new_zeros(1), length_c.cumsum(0)])
        n_entries = int(indptr_c[-1])
        shift_n = torch.repeat_interleave(start_c - indptr_c[:-1], length_c, output_size=n_entries)
        position_n = torch.arange(n_entries, device=index_c.device) + shift_n
        return CSRTensor(indptr_c, self.column_n[position_n], self.value_n[position_n], self.n_columns)

    def with_values(self, value_n: Tensor) -> CSRTensor:
        """Return the same pattern with other stored entries."""
        rows = CSRTensor(self.indptr_c, self.column_n, value_n, self.n_columns)
        rows.__dict__.update({name: self.__dict__[name] for name in ("row_n", "flat_n") if name in self.__dict__})
        return rows

    def to(self, device: torch.device) -> CSRTensor:
        """Move to a device."""
        return CSRTensor(self.indptr_c.to(device), self.column_n.to(device), self.value_n.to(device), self.n_columns)

    def expand_rows(self, value_c: Tensor) -> Tensor:
        """Give each stored entry the number of its row."""
        return torch.repeat_interleave(value_c, self.indptr_c.diff(), output_size=len(self.value_n))

    def sum_rows(self, value_n: Tensor) -> Tensor:
        """Sum one number per stored entry over each row."""
        return value_n.new_zeros(self.n_rows).index_add_(0, self.row_n, value_n)

    def sum_columns(self, value_n: Tensor) -> Tensor:
        """Sum one number per stored entry over each column."""
        return value_n.new_zeros(self.n_columns).index_add_(0, self.column_n, value_n)

    def to_dense(self) -> Tensor:
        """Make a dense copy, for the references and the tests."""
        dense_cf = self.value_n.new_zeros(self.n_rows, self.n_columns)
        return dense_cf.index_put_((self.row_n, self.column_n.long()), self.value_n, accumulate=True)

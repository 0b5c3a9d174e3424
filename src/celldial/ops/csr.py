"""A sparse count matrix in compressed sparse row (CSR) form, as tensors.

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
    """A count matrix in compressed sparse row form, on one device.

    Parameters
    ----------
    indptr_c
        Index of the first stored entry of each row, and the number of entries, shape ``(n_rows + 1,)``, int64.
    column_n
        Column of each stored entry, int64 or int32.
    value_n
        Value of each stored entry, floating point.
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

    # The part of the tensor interface that Pyro uses for observed values when it enumerates clusters.

    @property
    def data(self) -> CSRTensor:
        """The matrix itself."""
        return self

    @property
    def shape(self) -> torch.Size:
        """Number of rows and columns."""
        return torch.Size([self.n_rows, self.n_columns])

    def dim(self) -> int:
        """Return the number of dimensions, 2."""
        return 2

    @cached_property
    def row_n(self) -> Tensor:
        """Row of each stored entry."""
        return self.expand_rows(torch.arange(self.n_rows, device=self.indptr_c.device))

    @cached_property
    def flat_n(self) -> Tensor:
        """Position of each stored entry in the flattened dense matrix."""
        return self.row_n * self.n_columns + self.column_n

    def select(self, index_c: Tensor) -> CSRTensor:
        """Return the rows ``index_c``, in that order; `celldial.ops.log_likelihoods.gather_rows` is faster."""
        start_c = self.indptr_c[index_c]
        length_c = self.indptr_c[index_c + 1] - start_c
        indptr_c = torch.cat([length_c.new_zeros(1), length_c.cumsum(0)])
        n_entries = int(indptr_c[-1])
        shift_n = torch.repeat_interleave(start_c - indptr_c[:-1], length_c, output_size=n_entries)
        position_n = torch.arange(n_entries, device=index_c.device) + shift_n
        return CSRTensor(indptr_c, self.column_n[position_n], self.value_n[position_n], self.n_columns)

    def with_values(self, value_n: Tensor) -> CSRTensor:
        """Return a matrix with the same pattern and other values."""
        rows = CSRTensor(self.indptr_c, self.column_n, value_n, self.n_columns)
        rows.__dict__.update({name: self.__dict__[name] for name in ("row_n", "flat_n") if name in self.__dict__})
        return rows

    def to(self, device: torch.device) -> CSRTensor:
        """Return the matrix on a device."""
        return CSRTensor(self.indptr_c.to(device), self.column_n.to(device), self.value_n.to(device), self.n_columns)

    def expand_rows(self, value_c: Tensor) -> Tensor:
        """Return, for each stored entry, the value of its row."""
        return torch.repeat_interleave(value_c, self.indptr_c.diff(), output_size=len(self.value_n))

    def sum_rows(self, value_n: Tensor) -> Tensor:
        """Sum values of the stored entries over each row."""
        return value_n.new_zeros(self.n_rows).index_add_(0, self.row_n, value_n)

    def sum_columns(self, value_n: Tensor) -> Tensor:
        """Sum values of the stored entries over each column."""
        return value_n.new_zeros(self.n_columns).index_add_(0, self.column_n, value_n)

    def to_dense(self) -> Tensor:
        """Return a dense copy, for reference functions and tests."""
        dense_cf = self.value_n.new_zeros(self.n_rows, self.n_columns)
        return dense_cf.index_put_((self.row_n, self.column_n.long()), self.value_n, accumulate=True)

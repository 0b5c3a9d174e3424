"""Matrices and tables in h5ad files and zarr stores, read by rows.

The arrays of a sparse matrix are read directly. The `sparse_dataset` of anndata checks the pointers to all rows at each
read, which takes longer than the read itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

__all__ = [
    "ROW_READERS",
    "CSRRows",
    "DataFrameRows",
    "DenseRows",
    "InMemoryRows",
    "RowReader",
    "encoding_type",
    "index_array",
    "max_mean_nnz",
    "read_row_names",
    "to_runs",
]

MAX_GAP_ROWS = 16
"""Runs of rows with fewer rows between them are read as one, because a read costs more than these rows."""


# --- Readers ----------------------------------------------------------------------------------------------------------


class RowReader(Protocol):
    """A matrix or table that is read by rows.

    Parameters
    ----------
    shape
        Number of rows and of columns.
    dtypes
        Dtype of the values; for a table, dtypes of its columns.
    nnz_per_row
        Entries per row that a read holds in memory, averaged over the neighboring rows that have the most.
    rows_per_chunk
        Number of rows in a compressed chunk. Reading one row takes as long as reading all rows of its chunk.
    """

    shape: tuple[int, ...]
    dtypes: list[np.dtype]
    nnz_per_row: float
    rows_per_chunk: float

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix | pd.DataFrame:
        """Return the rows of all runs, concatenated."""

    def attach(self, element: Any) -> None:
        """Read from an element of the same file that was opened again."""


class CSRRows:
    """Reader of a CSR matrix. The pointers to its rows are in memory, 4 or 8 bytes per row."""

    def __init__(self, group: Any) -> None:
        self.attach(group)
        self.shape = tuple(map(int, group.attrs["shape"]))
        self.dtypes = [self.data.dtype]
        n_rows, n_entries = self.shape[0], self.data.shape[0]
        if group["indptr"].shape != (n_rows + 1,):  # before they are read: a damaged file may claim any number
            raise ValueError(f"the arrays of {group.name} have inconsistent lengths")
        check_all_chunks(group["indptr"])
        self.indptr_c = group["indptr"][:]
        if (len(self.indptr_c), self.indptr_c[-1], self.indices.shape[0]) != (n_rows + 1, n_entries, n_entries):
            raise ValueError(f"the arrays of {group.name} have inconsistent lengths")
        if self.indptr_c[0] != 0 or (np.diff(self.indptr_c) < 0).any():
            raise ValueError(f"the row pointers of {group.name} are not in order")
        self.check_chunks()
        self.nnz_per_row = max_mean_nnz(self.indptr_c)
        self.rows_per_chunk = self.data.chunks[0] * n_rows / max(n_entries, 1) if self.data.chunks else 1.0

    def attach(self, group: Any) -> None:
        """Read from the same matrix after the file was opened again."""
        self.data, self.indices = group["data"], group["indices"]
        self.concurrent = annbatch_reader(group)

    def check_chunks(self) -> None:
        """Raise if a part of the counts or of their columns is not in the file."""
        for array in (self.data, self.indices):
            check_all_chunks(array)

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix:
        """Return the rows of all runs, concatenated."""
        if self.concurrent is not None:
            matrix = self.concurrent(runs)
        else:
            nnz_c = np.concatenate([np.diff(self.indptr_c[run.start : run.stop + 1]) for run in runs])
            indptr_c = np.concatenate([[0], np.cumsum(nnz_c, dtype=np.int64)])
            value_n, column_n = (np.empty(indptr_c[-1], array.dtype) for array in (self.data, self.indices))
            offset = 0
            for run in runs:
                first, last = int(self.indptr_c[run.start]), int(self.indptr_c[run.stop])
                value_n[offset : offset + last - first] = self.data[first:last]
                column_n[offset : offset + last - first] = self.indices[first:last]
                offset += last - first
            matrix = sparse.csr_matrix((value_n, column_n, indptr_c), shape=(len(nnz_c), self.shape[1]))
        # Later code does not check the columns, and would read beyond the ends of arrays.
        if matrix.nnz > 0 and (matrix.indices.min() < 0 or matrix.indices.max() >= self.shape[1]):
            raise ValueError(f"an entry is in column {matrix.indices.max()}, but there are {self.shape[1]} columns")
        if has_adjacent_zeros(matrix.data) or has_adjacent_zeros(matrix.indices):
            self.check_chunks()  # a part may have been deleted since the file was opened: it is read as zeros
        return matrix


class DenseRows:
    """Reader of a dense matrix. It becomes sparse run by run."""

    def __init__(self, dataset: Any) -> None:
        self.attach(dataset)
        self.shape = tuple(map(int, dataset.shape))
        self.dtypes = [dataset.dtype]
        self.nnz_per_row = float(self.shape[-1])
        self.rows_per_chunk = float(dataset.chunks[0]) if dataset.chunks else 1.0

    def attach(self, dataset: Any) -> None:
        """Read from the same matrix after the file was opened again."""
        self.dataset = dataset
        if isinstance(dataset, h5py.Dataset):  # zarr stores do not keep chunks of zeros
            check_all_chunks(dataset)

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix:
        """Return the rows of all runs, concatenated."""
        return sparse.vstack([sparse.csr_matrix(self.dataset[run]) for run in runs], format="csr")


class DataFrameRows:
    """Reader of a DataFrame of numbers. It is read column by column."""

    def __init__(self, group: Any) -> None:
        self.attach(group)
        self.dtypes = [getattr(column, "dtype", np.dtype(object)) for column in self.columns.values()]
        self.shape: tuple[int, ...] = (index_array(group).shape[0], len(self.columns))
        self.nnz_per_row = float(len(self.columns))
        self.rows_per_chunk = 1.0

    def attach(self, group: Any) -> None:
        """Read from the same table after the file was opened again."""
        self.columns = {str(name): group[str(name)] for name in group.attrs["column-order"]}

    def read(self, runs: Sequence[slice]) -> pd.DataFrame:
        """Return the rows of all runs, concatenated."""
        return pd.DataFrame(
            {name: np.concatenate([column[run] for run in runs]) for name, column in self.columns.items()}
        )


class InMemoryRows:
    """Reader of a matrix or table in memory. A backed AnnData has all matrices but ``X`` in memory."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix.tocsr() if sparse.issparse(matrix) else matrix
        self.shape = matrix.shape
        self.dtypes = list(matrix.dtypes) if isinstance(matrix, pd.DataFrame) else [matrix.dtype]
        self.nnz_per_row = max_mean_nnz(self.matrix.indptr) if sparse.issparse(matrix) else float(matrix.shape[-1])
        self.rows_per_chunk = 1.0

    def attach(self, element: Any) -> None:
        """Do nothing: the matrix is in memory."""

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix | pd.DataFrame:
        """Return the rows of all runs, concatenated."""
        if isinstance(self.matrix, pd.DataFrame):
            return pd.concat([self.matrix.iloc[run] for run in runs], ignore_index=True)
        return sparse.vstack([sparse.csr_matrix(self.matrix[run]) for run in runs], format="csr")


ROW_READERS: dict[str, Callable[[Any], RowReader]] = {
    "csr_matrix": CSRRows,
    "array": DenseRows,
    "dataframe": DataFrameRows,
}
"""Encoding type of anndata to the reader of its rows."""


def encoding_type(element: Any) -> str:
    """Return the encoding type that anndata has stored for an element of a file."""
    return str(element.attrs.get("encoding-type", "unknown"))


def max_mean_nnz(indptr_c: np.ndarray, n_rows: int = 256) -> float:
    """Return the number of entries per row, averaged over the `n_rows` neighboring rows that have the most."""
    n_rows = max(1, min(n_rows, len(indptr_c) - 1))
    return float(np.diff(indptr_c[::n_rows]).max(initial=0)) / n_rows


def check_all_chunks(array: Any) -> None:
    """Raise if a file lacks a part of an array, which would be read as zeros.

    A zarr store lacks chunks whose files are gone. An HDF5 file lacks those that its writer did not reach, and a
    virtual data set the files that it refers to.
    """
    if isinstance(array, h5py.Dataset):
        if array.is_virtual:
            check_virtual_sources(array)
        if array.chunks is None:
            return
        n_chunks = math.prod(math.ceil(n / size) for n, size in zip(array.shape, array.chunks, strict=True))
        n_present = array.id.get_num_chunks()
    else:
        n_present, n_chunks = getattr(array, "nchunks_initialized", 0), getattr(array, "nchunks", 0)
    if n_present < n_chunks:
        raise ValueError(f"{n_chunks - n_present} of {n_chunks} chunks of {array.name} are missing")


def check_virtual_sources(dataset: h5py.Dataset) -> None:
    """Raise if a file that a virtual data set refers to does not exist."""
    folder = Path(dataset.file.filename).parent
    for source in dataset.virtual_sources():
        if source.file_name != "." and not (folder / source.file_name).exists():
            raise ValueError(f"{dataset.name} refers to {source.file_name}, which does not exist")


def has_adjacent_zeros(value_n: np.ndarray) -> bool:
    """Return whether two neighboring values are 0, as they are if a part of an array is missing."""
    is_zero_n = value_n == 0
    return bool((is_zero_n[1:] & is_zero_n[:-1]).any())


def annbatch_reader(group: Any) -> Callable[[Sequence[slice]], sparse.csr_matrix] | None:
    """Return a function that reads runs of rows with annbatch; None if it is not installed or this is not a zarr store.

    Annbatch decompresses many chunks of a store at a time.
    """
    if not hasattr(group, "store") or find_spec("annbatch") is None:
        return None
    from annbatch import Loader
    from annbatch.abc import Sampler
    from anndata.io import sparse_dataset

    class RequestedRuns(Sampler):
        """Requests the runs in `runs` as one minibatch."""

        batch_size, shuffle = None, False
        runs: Sequence[slice] = ()

        def n_batches(self, n_obs: int) -> int:
            return 1

        def validate(self, n_obs: int) -> None:
            pass

        def _sample(self, n_obs: int) -> Iterator[Any]:
            row_c = np.concatenate([np.arange(run.start, run.stop) for run in self.runs])
            yield {"requests": row_c, "splits": [np.arange(len(row_c))]}

    sampler = RequestedRuns()
    loader = Loader(batch_sampler=sampler, preload_to_gpu=False).add_dataset(sparse_dataset(group))

    def read(runs: Sequence[slice]) -> sparse.csr_matrix:
        sampler.runs = runs
        return next(iter(loader))["X"]

    return read


def index_array(group: Any) -> Any:
    """Return the stored array of row names of a DataFrame in a file."""
    index = group[group.attrs["_index"]]
    return index["values"] if encoding_type(index).startswith("nullable") else index


def read_row_names(group: Any, runs: Sequence[slice]) -> np.ndarray:
    """Return the row names of a DataFrame in a file, as text, for the rows of all runs."""
    index = index_array(group)
    if index.dtype.kind == "O" and hasattr(index, "asstr"):
        index = index.asstr()
    return np.concatenate([np.asarray(index[run], dtype=object) for run in runs])


def to_runs(row_c: np.ndarray) -> tuple[list[slice], np.ndarray]:
    """Return few runs of rows that cover the given rows, and the positions of these rows within the runs.

    Parameters
    ----------
    row_c
        Indices of rows, int64, in ascending order.

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.data.file_matrices import to_runs
    >>> to_runs(np.array([3, 4, 6, 100]))
    ([slice(3, 7, None), slice(100, 101, None)], array([0, 1, 3, 4]))
    """
    edges = np.flatnonzero(np.diff(row_c) > MAX_GAP_ROWS) + 1
    first, last = np.concatenate([[0], edges]), np.concatenate([edges, [len(row_c)]]) - 1
    start, stop = row_c[first], row_c[last] + 1
    offset = np.concatenate([[0], np.cumsum(stop - start)[:-1]])
    runs = [slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)]
    return runs, row_c - np.repeat(start - offset, last - first + 1)

"""Matrices and tables in h5ad files and zarr stores, of which some rows are read.

The arrays of a sparse matrix are read directly: anndata's own `sparse_dataset` checks the pointers to all rows at each
read, which takes longer than reading.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

__all__ = [
    "BackedFile",
    "CSRRows",
    "DataFrameRows",
    "DenseRows",
    "InMemoryRows",
    "RowReader",
    "read_row_names",
    "to_runs",
]

SLOW_READ_SECONDS = 30.0

MAX_GAP_ROWS = 16
"""Rows between wanted ones that are read, too, because a read costs more than they do."""

logger = logging.getLogger("celldial")


class FileReadError(OSError):
    """A file that cannot be read, with a message that says so."""


class BackedFile:
    """An h5ad file or a zarr store, opened when it is first read, and in each process anew.

    Parameters
    ----------
    path
        Where it is.

    Raises
    ------
    OSError
        There is no such file, or it is of another kind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._root: Any = None
        self._rows: dict[str, RowReader] = {}
        self._process = os.getpid()
        self._warned_slow = False

    def __reduce__(self) -> tuple[type[BackedFile], tuple[Path]]:
        return BackedFile, (self.path,)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Give the root group, and make any failure in this block an `OSError` that names the file."""
        timer = threading.Timer(SLOW_READ_SECONDS, self._warn_slow)
        timer.daemon = True
        timer.start()
        try:
            if not self.path.exists():
                raise FileReadError(f"{self.path} is not there (any more): check the path, and put the file back")
            yield self._opened()
        except (FileReadError, MemoryError):
            raise
        except Exception as error:  # of any kind: decompressors have their own
            reason = str(error).strip().split("\n", 1)[0]
            raise FileReadError(
                f"{self.path} could not be read ({reason}): it is damaged, or its writing was not finished; copy or "
                "write it once more"
            ) from error
        finally:
            timer.cancel()

    def rows(self, name: str) -> RowReader:
        """Find a matrix or table by its path in the file, within a block of :meth:`reading`."""
        if name not in self._rows:
            element = self._opened()[name]
            self._rows[name] = ROW_READERS[encoding_type(element)](element)
        return self._rows[name]

    def _opened(self) -> Any:
        """Open the file, unless this process has."""
        if self._root is None or self._process != os.getpid():
            self._rows, self._process = {}, os.getpid()
            if self.path.is_dir():
                import zarr  # here because only stores need it

                self._root = zarr.open_group(self.path, mode="r")
            elif h5py.is_hdf5(self.path):
                self._root = h5py.File(self.path, "r")
            else:
                raise FileReadError(
                    f"{self.path} is no HDF5 file, as an h5ad file is: it is damaged, or something else"
                )
        return self._root

    def _warn_slow(self) -> None:
        """Say once that reading takes long."""
        if not self._warned_slow:
            self._warned_slow = True
            logger.warning(
                "reading %s has taken more than %g seconds and goes on: a copy on a local disk may be faster",
                self.path,
                SLOW_READ_SECONDS,
            )


# --- What can be read -------------------------------------------------------------------------------------------------


class RowReader(Protocol):
    """A matrix or table, of which rows are read.

    Parameters
    ----------
    shape
        Number of rows and of columns.
    dtypes
        Of the values; of a table, those of its columns.
    entries_per_row
        How many entries of a row are held on the way, on average where there are most.
    rows_at_once
        How many rows are compressed together, so that reading one takes as long as reading all of them.
    """

    shape: tuple[int, ...]
    dtypes: list[np.dtype]
    nnz_per_row: float
    rows_per_chunk: float

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix | pd.DataFrame:
        """Read runs of rows, one below the other."""


class CSRRows:
    """A CSR matrix. The pointers to its rows are held in memory, 4 or 8 bytes a row."""

    def __init__(self, group: Any) -> None:
        self.shape = tuple(map(int, group.attrs["shape"]))
        self.data, self.indices = group["data"], group["indices"]
        self.dtypes = [self.data.dtype]
        self.indptr_c = group["indptr"][:]
        n_rows, n_entries = self.shape[0], self.data.shape[0]
        if (len(self.indptr_c), self.indptr_c[-1], self.indices.shape[0]) != (n_rows + 1, n_entries, n_entries):
            raise ValueError(f"the parts of {group.name} do not fit each other")
        for part in (self.data, self.indices):
            check_all_chunks(part)
        self.nnz_per_row = max_mean_nnz(self.indptr_c)
        self.rows_per_chunk = self.data.chunks[0] * n_rows / max(n_entries, 1) if self.data.chunks else 1.0
        self.concurrent = annbatch_reader(group)

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix:
        """Read runs of rows, one below the other."""
        if self.concurrent is not None:
            matrix = self.concurrent(runs)
        else:
            length_c = np.concatenate([np.diff(self.indptr_c[run.start : run.stop + 1]) for run in runs])
            indptr_c = np.concatenate([[0], np.cumsum(length_c, dtype=np.int64)])
            value_n, column_n = (np.empty(indptr_c[-1], part.dtype) for part in (self.data, self.indices))
            at = 0
            for run in runs:
                first, last = int(self.indptr_c[run.start]), int(self.indptr_c[run.stop])
                value_n[at : at + last - first] = self.data[first:last]
                column_n[at : at + last - first] = self.indices[first:last]
                at += last - first
            matrix = sparse.csr_matrix((value_n, column_n, indptr_c), shape=(len(length_c), self.shape[1]))
        # What follows trusts the columns, and would read beyond the ends of arrays.
        if matrix.nnz > 0 and (matrix.indices.min() < 0 or matrix.indices.max() >= self.shape[1]):
            raise ValueError(f"there is an entry in column {matrix.indices.max()} of {self.shape[1]}")
        return matrix


class DenseRows:
    """A dense matrix, which is made sparse run by run."""

    def __init__(self, dataset: Any) -> None:
        self.shape = tuple(map(int, dataset.shape))
        self.dtypes = [dataset.dtype]
        self.dataset = dataset
        self.nnz_per_row = float(self.shape[-1])
        self.rows_per_chunk = float(dataset.chunks[0]) if dataset.chunks else 1.0

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix:
        """Read runs of rows, one below the other."""
        return sparse.vstack([sparse.csr_matrix(self.dataset[run]) for run in runs], format="csr")


class DataFrameRows:
    """A DataFrame of numbers, read column by column."""

    def __init__(self, group: Any) -> None:
        self.columns = {str(name): group[str(name)] for name in group.attrs["column-order"]}
        self.dtypes = [getattr(column, "dtype", np.dtype(object)) for column in self.columns.values()]
        self.shape: tuple[int, ...] = (index_array(group).shape[0], len(self.columns))
        self.nnz_per_row = float(len(self.columns))
        self.rows_per_chunk = 1.0

    def read(self, runs: Sequence[slice]) -> pd.DataFrame:
        """Read runs of rows, one below the other."""
        return pd.DataFrame(
            {name: np.concatenate([column[run] for run in runs]) for name, column in self.columns.items()}
        )


class InMemoryRows:
    """A matrix or table in memory, where a backed AnnData has all but its ``X``."""

    def __init__(self, in_memory: Any) -> None:
        self.in_memory = in_memory.tocsr() if sparse.issparse(in_memory) else in_memory
        self.shape = in_memory.shape
        self.dtypes = list(in_memory.dtypes) if isinstance(in_memory, pd.DataFrame) else [in_memory.dtype]
        self.nnz_per_row = (
            max_mean_nnz(self.in_memory.indptr) if sparse.issparse(in_memory) else float(in_memory.shape[-1])
        )
        self.rows_per_chunk = 1.0

    def read(self, runs: Sequence[slice]) -> sparse.csr_matrix | pd.DataFrame:
        """Take runs of rows, one below the other."""
        if isinstance(self.in_memory, pd.DataFrame):
            return pd.concat([self.in_memory.iloc[run] for run in runs], ignore_index=True)
        return sparse.vstack([sparse.csr_matrix(self.in_memory[run]) for run in runs], format="csr")


ROW_READERS: dict[str, Callable[[Any], RowReader]] = {
    "csr_matrix": CSRRows,
    "array": DenseRows,
    "dataframe": DataFrameRows,
}
"""What is read, by the name that anndata gives it."""


def encoding_type(element: Any) -> str:
    """Give the name that anndata has for what is stored."""
    return str(element.attrs.get("encoding-type", "unknown"))


def max_mean_nnz(indptr_c: np.ndarray, n_rows: int = 256) -> float:
    """Count the entries of a row, on average over the `n_rows` neighbors that have most."""
    n_rows = max(1, min(n_rows, len(indptr_c) - 1))
    return float(np.diff(indptr_c[::n_rows]).max(initial=0)) / n_rows


def check_all_chunks(array: Any) -> None:
    """Raise where a zarr store lacks files of an array: zarr would take them for zeros."""
    there, wanted = getattr(array, "nchunks_initialized", 0), getattr(array, "nchunks", 0)
    if there < wanted:
        raise ValueError(f"{wanted - there} of {wanted} chunks of {array.name} are missing")


def annbatch_reader(group: Any) -> Callable[[Sequence[slice]], sparse.csr_matrix] | None:
    """Have annbatch read a CSR matrix in a zarr store, which decompresses many chunks at a time; None without it."""
    if not hasattr(group, "store") or find_spec("annbatch") is None:
        return None
    from annbatch import Loader
    from annbatch.abc import Sampler
    from anndata.io import sparse_dataset

    class Given(Sampler):
        """Asks for the runs that it was given, as one minibatch: what is drawn is decided elsewhere."""

        batch_size, shuffle = None, False
        runs: Sequence[slice] = ()

        def n_batches(self, n_obs: int) -> int:
            return 1

        def validate(self, n_obs: int) -> None:
            pass

        def _sample(self, n_obs: int) -> Iterator[Any]:
            row_c = np.concatenate([np.arange(run.start, run.stop) for run in self.runs])
            yield {"requests": row_c, "splits": [np.arange(len(row_c))]}

    sampler = Given()
    loader = Loader(batch_sampler=sampler, preload_to_gpu=False).add_dataset(sparse_dataset(group))

    def read(runs: Sequence[slice]) -> sparse.csr_matrix:
        sampler.runs = runs
        return next(iter(loader))["X"]

    return read


def index_array(group: Any) -> Any:
    """Find the names of the rows of a stored DataFrame."""
    index = group[group.attrs["_index"]]
    return index["values"] if encoding_type(index).startswith("nullable") else index


def read_row_names(group: Any, runs: Sequence[slice]) -> np.ndarray:
    """Read names of rows of a stored DataFrame, as text."""
    index = index_array(group)
    if index.dtype.kind == "O" and hasattr(index, "asstr"):
        index = index.asstr()
    return np.concatenate([np.asarray(index[run], dtype=object) for run in runs])


def to_runs(row_c: np.ndarray) -> tuple[list[slice], np.ndarray]:
    """Cover rows, int64 in ascending order, by few runs; and say where they are in these.

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.data.file_matrices import to_runs
    >>> to_runs(np.array([3, 4, 6, 100]))
    ([slice(3, 7, None), slice(100, 101, None)], array([0, 1, 3, 4]))
    """
    cut = np.flatnonzero(np.diff(row_c) > MAX_GAP_ROWS) + 1
    first, last = np.concatenate([[0], cut]), np.concatenate([cut, [len(row_c)]]) - 1
    start, stop = row_c[first], row_c[last] + 1
    before = np.concatenate([[0], np.cumsum(stop - start)[:-1]])
    return [slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)], row_c - np.repeat(
        start - before, last - first + 1
    )

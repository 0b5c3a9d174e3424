"""Cells in one or several files: their tables, and parts of them as an AnnData in memory.

In memory are the requested columns of all cells and, once cells are read, the positions of their counts: a few bytes
per cell. The names of cells would take a hundred bytes per cell, and are read with the counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from pandas.api.types import union_categoricals
from scipy import sparse

from celldial.data.backed_file import BackedFile
from celldial.data.counts import MIN_OVERLAP, check_matrix_type, match_features, select_columns
from celldial.data.file_matrices import (
    ROW_READERS,
    InMemoryRows,
    RowReader,
    encoding_type,
    index_array,
    read_row_names,
    to_runs,
)
from celldial.data.schema import Schema
from celldial.utils.messages import format_names

__all__ = ["OnDiskDataset"]

MAX_READ_CELLS, MAX_READ_NNZ = 2**14, 2**22
"""Largest number of cells, and of stored counts, that are read at once when all cells are read in order."""

logger = logging.getLogger("celldial")


@dataclass
class DatasetFile:
    """One file of a data set.

    Parameters
    ----------
    file
        The file.
    var
        Table of its features.
    obs
        The requested columns of its cells; the rows have numbers as names.
    in_memory
        Readers of matrices and tables that are in memory and not in the file, by their path in the file.
    names
        Names of the cells, if they are in memory.
    column_f
        Positions of the data set's features among those of the file, int64; None if they are the same.
    """

    file: BackedFile
    var: pd.DataFrame
    obs: pd.DataFrame
    in_memory: dict[str, RowReader] = field(default_factory=dict)
    names: pd.Index | None = None
    column_f: np.ndarray | None = None

    def rows(self, path: str) -> RowReader:
        """Return the reader of a matrix or table, by its path in the file."""
        if path in self.in_memory:
            return self.in_memory[path]
        with self.file.reading():
            return self.file.rows(path)

    def read(self, path: str, runs: Sequence[slice]) -> sparse.csr_matrix | pd.DataFrame:
        """Return runs of rows of a matrix or table, by its path in the file."""
        if path in self.in_memory:
            return self.in_memory[path].read(runs)
        with self.file.reading():
            return self.file.rows(path).read(runs)

    def read_names(self, runs: Sequence[slice]) -> np.ndarray:
        """Return the names of runs of cells."""
        if self.names is not None:
            return np.concatenate([self.names[run] for run in runs])
        with self.file.reading() as root:
            return read_row_names(root["obs"], runs)


class OnDiskDataset:
    """Cells in files. Create it with :meth:`open`. It can be pickled for other processes.

    Attributes
    ----------
    n_cells : int
        Number of cells.
    var : pandas.DataFrame
        The features that all files have, in the order of the first file and with its columns.
    obs : pandas.DataFrame
        The requested columns of all cells. The rows have numbers as names. Columns of categories have the categories of
        all files.
    """

    def __init__(self, files: Sequence[DatasetFile], layer: str | None, matrix_paths: Sequence[str]) -> None:
        self.files, self.layer, self.matrix_paths = list(files), layer, list(matrix_paths)
        self.offset_p = np.cumsum([0, *(len(file.obs) for file in self.files)])
        self.n_cells = int(self.offset_p[-1])
        self.var = common_features(self.files)
        self.obs = concat_obs([file.obs for file in self.files])
        names = tuple(self.var.index)
        for file in self.files:
            file.column_f = None if tuple(file.var.index) == names else match_features(file.var.index, names)
            file.var, file.obs = file.var.iloc[:, :0], file.obs.iloc[:, :0]  # their columns are in `var` and `obs`

    @classmethod
    def open(
        cls,
        data: Any,
        *,
        layer: str | None = None,
        obs_keys: Sequence[str] = (),
        obsm_keys: Sequence[str] = (),
        strict: bool = True,
    ) -> OnDiskDataset:
        """Inspect files, and read the tables of features and of cells.

        Parameters
        ----------
        data
            Path of an h5ad file or a zarr store; a list of such paths; or a backed AnnData. Only ``X`` of a backed
            AnnData is read from the file.
        layer
            The layer with raw counts; ``None`` for ``X``.
        obs_keys
            Columns of ``obs``. Columns named ``has_...`` that all files have are read, too.
        obsm_keys
            Matrices and tables of counts in ``obsm``.
        strict
            Whether all keys must exist. If not, columns that some file lacks are ignored, and so are keys of ``obsm``
            that all files lack.

        Raises
        ------
        OSError
            A file does not exist or cannot be read.
        KeyError
            A file lacks the layer, a column or a matrix.
        TypeError
            Counts have an unsupported type.
        ValueError
            No path is given; a file does not contain an AnnData, or stores counts by columns (CSC); names of features
            are not distinct; files have few features in common; or a backed AnnData is a view.
        """
        paths = data if isinstance(data, list | tuple) else [data]
        if not paths:
            raise ValueError("the list of paths is empty: pass at least one path")
        contents = [inspect_file(path) for path in paths]
        common = [name for name in contents[0].columns if all(name in content.columns for content in contents)]
        if not strict:
            obs_keys = [key for key in obs_keys if key in common]
            obsm_keys = [key for key in obsm_keys if any(f"obsm/{key}" in content.encodings for content in contents)]
        obs_keys = list(dict.fromkeys([*obs_keys, *(name for name in common if name.startswith("has_"))]))
        matrix_paths = [counts_path(layer), *(f"obsm/{key}" for key in obsm_keys)]
        return cls([load_dataset_file(content, obs_keys, matrix_paths) for content in contents], layer, matrix_paths)

    @property
    def nnz_per_cell(self) -> float:
        """Entries per cell that a read holds in memory, averaged over the neighboring cells that have the most."""
        return max(sum(file.rows(path).nnz_per_row for path in self.matrix_paths) for file in self.files)

    @property
    def chunk_cells(self) -> float:
        """Number of cells in a compressed chunk."""
        return max(file.rows(path).rows_per_chunk for file in self.files for path in self.matrix_paths)

    def first_cell(self) -> AnnData:
        """Return the first cell."""
        return self.read(slice(0, 1))

    def schema(self, **options: Any) -> Schema:
        """Return the schema of all cells, with the options of :meth:`Schema.from_anndata`."""
        return Schema.from_anndata(self.first_cell(), obs=self.obs, **{"layer": self.layer, **options})

    def blocks(self, n_cells: int | None = None) -> Iterator[AnnData]:
        """Yield all cells in order, block by block.

        Parameters
        ----------
        n_cells
            Number of cells in a block; the last block of a file may be smaller. By default, a block has about four
            million entries at most.
        """
        if n_cells is None:
            n_cells = int(max(1, min(MAX_READ_CELLS, MAX_READ_NNZ // max(1.0, self.nnz_per_cell))))
        for first, last in zip(self.offset_p[:-1], self.offset_p[1:], strict=True):
            for start in range(first, last, n_cells):
                yield self.read(slice(start, min(start + n_cells, last)))

    def read(self, row_c: np.ndarray | slice, names: bool = True) -> AnnData:
        """Return some cells in memory.

        Parameters
        ----------
        row_c
            The cells: a slice, or indices, int64, in any order.
        names
            Whether to read the names of the cells. If not, the cells have their indices as names.

        Returns
        -------
        anndata.AnnData
            Counts as CSR in ``X`` or in the layer, `obsm`, the requested columns of `obs`, and `var`.
        """
        row_c = np.arange(*row_c.indices(self.n_cells)) if isinstance(row_c, slice) else np.asarray(row_c)
        if len(row_c) == 0 or row_c.min() < 0 or row_c.max() >= self.n_cells:
            raise IndexError(f"cells have indices from 0 to {self.n_cells - 1}, and at least one must be read")
        # Cells are read in the order of the files, and then brought into the requested order.
        order_c = np.argsort(row_c, kind="stable")
        edge_p = np.searchsorted(row_c[order_c], self.offset_p)
        parts = [
            self._read_file(file, row_c[order_c[first:last]] - offset, names)
            for file, offset, first, last in zip(self.files, self.offset_p[:-1], edge_p[:-1], edge_p[1:], strict=True)
            if first < last
        ]
        inverse_c = np.argsort(order_c)
        tables = {
            path: take_rows(concat_rows([rows[path] for rows, _ in parts]), inverse_c) for path in self.matrix_paths
        }
        name_c = np.concatenate([file_names for _, file_names in parts])[inverse_c] if names else row_c.astype(str)
        index = pd.Index(name_c, dtype=object)
        counts, *in_obsm = (
            table.set_axis(index) if isinstance(table, pd.DataFrame) else table for table in tables.values()
        )
        obsm_keys = [path.removeprefix("obsm/") for path in self.matrix_paths[1:]]
        return AnnData(
            counts if self.layer is None else None,
            self.obs.iloc[row_c].set_axis(index),
            self.var,
            obsm=dict(zip(obsm_keys, in_obsm, strict=True)),
            layers=None if self.layer is None else {self.layer: counts},
        )

    def _read_file(self, file: DatasetFile, row_c: np.ndarray, names: bool) -> tuple[dict[str, Any], np.ndarray]:
        """Return cells of one file, in ascending order: matrices and tables by their path, and names."""
        runs, position_c = to_runs(row_c)
        tables = {path: take_rows(file.read(path, runs), position_c) for path in self.matrix_paths}
        if file.column_f is not None:
            tables[self.matrix_paths[0]] = select_columns(tables[self.matrix_paths[0]], file.column_f)
        return tables, file.read_names(runs)[position_c] if names else np.empty(0, dtype=object)


# --- Inspect a file ---------------------------------------------------------------------------------------------------


def counts_path(layer: str | None) -> str:
    """Return the path of the counts in a file."""
    return "X" if layer is None else f"layers/{layer}"


@dataclass(frozen=True)
class FileContents:
    """Contents of a file, before anything but its structure is read.

    Parameters
    ----------
    file
        The file.
    columns
        Names of the columns of ``obs``.
    encodings
        Path of each matrix or table that may have counts to its encoding type in anndata, or to ``"memory"``.
    adata
        The backed AnnData, if there is one. Its tables are used instead of those in the file.
    """

    file: BackedFile
    columns: list[str]
    encodings: dict[str, str]
    adata: AnnData | None = None


def inspect_file(data: Any) -> FileContents:
    """Return the contents of an h5ad file, a zarr store or a backed AnnData."""
    if isinstance(data, AnnData):
        return inspect_backed(data)
    file = BackedFile(data)
    where = str(file.path)
    if file.path.suffix == ".h5mu":
        raise ValueError(f"{where} contains a MuData: read it, mudata.read_h5mu({where!r}), and pass the result")
    with file.reading() as root:
        tables = [root[name] for name in ("obs", "var") if name in root]
        versions = [str(table.attrs.get("encoding-version")) for table in tables]
        columns = [str(name) for name in tables[0].attrs.get("column-order", ())] if tables else []
        paths = ["X", *(f"{group}/{name}" for group in ("layers", "obsm") if group in root for name in root[group])]
        encodings = {path: encoding_type(root[path]) for path in paths if path in root}
    if len(tables) < 2:
        raise ValueError(f"{where} does not contain an AnnData: it has no table of cells (obs) or of features (var)")
    if versions != ["0.2.0", "0.2.0"]:
        raise ValueError(
            f"{where} was written by another version of anndata: write it again, "
            f"anndata.read_h5ad({where!r}).write_h5ad(...)"
        )
    return FileContents(file, columns, {path: encoding for path, encoding in encodings.items() if encoding != "null"})


def inspect_backed(adata: AnnData) -> FileContents:
    """Return the contents of a backed AnnData."""
    if adata.is_view:
        raise ValueError(
            "adata is a view of an AnnData that is backed by a file: pass the whole AnnData, or read the view into "
            "memory, adata = adata.to_memory()"
        )
    file = BackedFile(adata.filename)
    in_memory = [
        f"{group}/{name}" for group in ("layers", "obsm") for name in getattr(adata, group) if name is not None
    ]
    with file.reading() as root:
        encodings = {"X": encoding_type(root["X"])} if "X" in root else {}
    return FileContents(file, list(adata.obs), {**encodings, **dict.fromkeys(in_memory, "memory")}, adata)


def load_dataset_file(contents: FileContents, obs_keys: Sequence[str], matrix_paths: Sequence[str]) -> DatasetFile:
    """Read the tables of a file; raise if a requested column or matrix does not exist or cannot be used."""
    check_contents(contents, obs_keys, matrix_paths)
    file, adata = contents.file, contents.adata
    if adata is None:
        with file.reading() as root:
            var = read_elem(root["var"])
            var.index = var.index.astype(str)
            n_cells = index_array(root["obs"]).shape[0]
            columns = {key: read_elem(root["obs"][key]) for key in obs_keys}
        dataset_file = DatasetFile(file, var, pd.DataFrame(columns, index=pd.RangeIndex(n_cells)))
    else:
        in_memory: dict[str, RowReader] = {}
        for path in matrix_paths:
            if contents.encodings[path] == "memory":
                group, key = path.split("/", 1)
                in_memory[path] = InMemoryRows(getattr(adata, group)[key])
        obs = adata.obs[list(obs_keys)].reset_index(drop=True)
        dataset_file = DatasetFile(file, adata.var, obs, in_memory, adata.obs_names)
    check_dataset_file(dataset_file, matrix_paths)
    return dataset_file


def check_contents(contents: FileContents, obs_keys: Sequence[str], matrix_paths: Sequence[str]) -> None:
    """Raise unless a file has all columns and matrices, and stores the matrices by rows."""
    where = str(contents.file.path)
    for key in obs_keys:
        if key not in contents.columns:
            raise KeyError(f"{where} has no column {key!r} in obs; its columns: {format_names(contents.columns)}")
    for path in matrix_paths:
        if path not in contents.encodings:
            raise KeyError(f"{where} has no {path}; it has: {format_names(contents.encodings)}")
        encoding = contents.encodings[path]
        if encoding == "csc_matrix":
            raise ValueError(
                f"{path} of {where} is stored by columns (CSC), from which single cells cannot be read: store it by "
                "rows, with adata.X = adata.X.tocsr()"
            )
        if encoding not in {*ROW_READERS, "memory"}:
            raise TypeError(f"{path} of {where} is stored as {encoding!r}: convert it to a matrix of counts")


def check_dataset_file(dataset_file: DatasetFile, matrix_paths: Sequence[str]) -> None:
    """Raise unless the tables and matrices of a file have consistent shapes and the matrices have numbers."""
    where = str(dataset_file.file.path)
    if len(dataset_file.obs) == 0:
        raise ValueError(f"{where} has no cells: leave it out")
    repeated = dataset_file.var.index[dataset_file.var.index.duplicated()]
    if len(repeated) > 0:
        raise ValueError(
            f"adata.var_names of {where} has {str(repeated[0])!r} more than once: make names distinct with "
            "adata.var_names_make_unique()"
        )
    for path in matrix_paths:
        rows = dataset_file.rows(path)
        if len(rows.shape) != 2:
            raise TypeError(f"{path} of {where} has shape {rows.shape}: counts must be a matrix of cells by features")
        for dtype in rows.dtypes:
            check_matrix_type(np.empty(0, dtype), f"{path} of {where}")
        n_columns = rows.shape[1] if path.startswith("obsm/") else len(dataset_file.var)
        expected = (len(dataset_file.obs), n_columns)
        if tuple(rows.shape) != expected:
            raise ValueError(
                f"{path} of {where} has shape {tuple(rows.shape)}, but there are {expected[0]} cells and {expected[1]} "
                "features: write the file again"
            )


# --- Concatenate files ------------------------------------------------------------------------------------------------


def common_features(files: Sequence[DatasetFile]) -> pd.DataFrame:
    """Return the table of the features that all files have, in the order of the first file."""
    common = files[0].var.index
    for file in files[1:]:
        common = common[common.isin(file.var.index)]
    largest = max(files, key=lambda file: len(file.var))
    if len(common) < MIN_OVERLAP * len(largest.var):
        different = min(files, key=lambda file: int(file.var.index.isin(largest.var.index).sum()))
        raise ValueError(
            f"only {len(common)} features are in all files, of {len(largest.var)} in {largest.file.path}; at least "
            f"{MIN_OVERLAP:.0%} are needed. {different.file.path} has {format_names(different.var.index, 3)}: use "
            "files with the same kind of names (genes: symbols or Ensembl ids)"
        )
    n_dropped = len(largest.var) - len(common)
    if n_dropped > 0:
        logger.warning("ignoring %d features that some files lack; %d features are left", n_dropped, len(common))
    return files[0].var.loc[common]


def concat_obs(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the tables of cells of all files."""
    return pd.DataFrame(
        {key: concat_column([table[key] for table in tables]) for key in tables[0]},
        index=pd.RangeIndex(sum(map(len, tables))),
    )


def concat_column(columns: Sequence[pd.Series]) -> Any:
    """Concatenate columns. Text becomes categorical, which takes one or two bytes per cell."""
    is_categorical = [isinstance(column.dtype, pd.CategoricalDtype) for column in columns]
    is_text = [pd.api.types.is_string_dtype(column) for column in columns]
    if not all(known or text for known, text in zip(is_categorical, is_text, strict=True)):
        return pd.concat(columns, ignore_index=True)
    categorical = [column.astype("category") for column in columns]
    if len(categorical) == 1:
        return categorical[0]
    if len({column.cat.categories.inferred_type for column in categorical}) > 1:
        categorical = [column.cat.rename_categories(str) for column in categorical]
    return union_categoricals(categorical, sort_categories=not all(is_categorical), ignore_order=True)


def concat_rows(parts: list[Any]) -> Any:
    """Concatenate the rows of matrices, or of tables with the columns that all of them have."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], pd.DataFrame):
        return pd.concat(parts, join="inner", ignore_index=True)
    return sparse.vstack(parts, format="csr")


def take_rows(rows: Any, position_c: np.ndarray) -> Any:
    """Return rows of a matrix or table. If these are all rows in order, nothing is copied."""
    if len(position_c) == rows.shape[0] and bool((position_c == np.arange(len(position_c))).all()):
        return rows
    return rows.iloc[position_c] if isinstance(rows, pd.DataFrame) else rows[position_c]

"""Cells in files: what is there, and parts of it as an AnnData in memory. An atlas may be in several files.

Held in memory are the wanted columns of all cells and, once cells are read, where each cell's counts begin: a few bytes
a cell. Names of cells would take a hundred: they are read with the cells.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from pandas.api.types import union_categoricals
from scipy import sparse

from celldial.data.counts import MIN_OVERLAP, check_matrix_type, match_features, select_columns
from celldial.data.file_matrices import (
    ROW_READERS,
    BackedFile,
    InMemoryRows,
    RowReader,
    encoding_type,
    index_array,
    read_row_names,
    to_runs,
)
from celldial.data.schema import Schema
from celldial.utils.messages import format_names

__all__ = ["OnDiskDataset", "is_on_disk"]

MAX_READ_CELLS, MAX_READ_NNZ = 2**14, 2**22

logger = logging.getLogger("celldial")


def is_on_disk(data: Any) -> bool:
    """Tell whether cells are in files: whether `data` is a path, a list of paths, or a backed AnnData."""
    if isinstance(data, AnnData):
        return bool(data.isbacked)
    paths = data if isinstance(data, list | tuple) else [data]
    return all(isinstance(path, str | os.PathLike) for path in paths)


@dataclass
class DatasetFile:
    """One file of an atlas.

    Parameters
    ----------
    file
        Where it is.
    var
        Its features.
    obs
        The wanted columns of its cells, numbered.
    in_memory
        What is in memory in place of the file, by its path in the file.
    names
        Names of the cells, where they are in memory.
    column_f
        Where the atlas's features are among its own, int64; None where they are the same.
    """

    file: BackedFile
    var: pd.DataFrame
    obs: pd.DataFrame
    in_memory: dict[str, RowReader] = field(default_factory=dict)
    names: pd.Index | None = None
    column_f: np.ndarray | None = None

    def rows(self, source: str) -> RowReader:
        """Find a matrix or table by its path in the file."""
        if source in self.in_memory:
            return self.in_memory[source]
        with self.file.reading():
            return self.file.rows(source)

    def read(self, source: str, runs: Sequence[slice]) -> sparse.csr_matrix | pd.DataFrame:
        """Read runs of rows of a matrix or table."""
        if source in self.in_memory:
            return self.in_memory[source].read(runs)
        with self.file.reading():
            return self.file.rows(source).read(runs)

    def read_names(self, runs: Sequence[slice]) -> np.ndarray:
        """Read the names of runs of cells."""
        if self.names is not None:
            return np.concatenate([self.names[run] for run in runs])
        with self.file.reading() as root:
            return read_row_names(root["obs"], runs)


class OnDiskDataset:
    """Cells in files, of which parts are read. Make it by :meth:`open`; it can be sent to other processes.

    Attributes
    ----------
    n_cells : int
        Number of cells.
    var : pandas.DataFrame
        The features that all files have, in the order of the first file and with its columns.
    obs : pandas.DataFrame
        The wanted columns of all cells, which have numbers in place of names; categories of the files are united.
    """

    def __init__(self, parts: Sequence[DatasetFile], layer: str | None, sources: Sequence[str]) -> None:
        self.parts, self.layer, self.sources = list(parts), layer, list(sources)
        self.offset_p = np.cumsum([0, *(len(part.obs) for part in self.parts)])
        self.n_cells = int(self.offset_p[-1])
        self.var = common_features(self.parts)
        self.obs = concat_obs([part.obs for part in self.parts])
        names = tuple(self.var.index)
        for part in self.parts:
            part.column_f = None if tuple(part.var.index) == names else match_features(part.var.index, names)
            part.var, part.obs = part.var.iloc[:, :0], part.obs.iloc[:, :0]  # they are in the atlas's own

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
        """Look into files, and read the tables of features and of cells.

        Parameters
        ----------
        data
            Path of an h5ad file or a zarr store; a list of such paths; or a backed AnnData, of which all but ``X`` is
            taken from memory.
        layer
            The layer that holds raw counts; ``None`` for ``X``.
        obs_keys
            Wanted columns of ``obs``. Columns that are called ``has_...`` come, too, where all files have them.
        obsm_keys
            Wanted matrices and tables in ``obsm``.
        strict
            Whether all that is wanted must be there. If not, columns that some file lacks are left out, and matrices
            and tables in ``obsm`` that all files lack.

        Raises
        ------
        OSError
            A file is not there or cannot be read.
        KeyError
            A file lacks the layer, a column or a matrix.
        TypeError
            Counts are of an unknown kind.
        ValueError
            No path is given; a file holds something other than an AnnData, or counts by columns (CSC); names of
            features are not distinct; files have few features in common; or a backed AnnData is a view.
        """
        paths = data if isinstance(data, list | tuple) else [data]
        if not paths:
            raise ValueError("the list of paths is empty: name at least one file")
        files = [inspect_file(path) for path in paths]
        in_all = [name for name in files[0].columns if all(name in file.columns for file in files)]
        if not strict:
            obs_keys = [key for key in obs_keys if key in in_all]
            obsm_keys = [key for key in obsm_keys if any(f"obsm/{key}" in file.kinds for file in files)]
        obs_keys = list(dict.fromkeys([*obs_keys, *(name for name in in_all if name.startswith("has_"))]))
        sources = [counts_path(layer), *(f"obsm/{key}" for key in obsm_keys)]
        return cls([load_dataset_file(file, obs_keys, sources) for file in files], layer, sources)

    @property
    def nnz_per_cell(self) -> float:
        """How many entries of a cell are held while it is read."""
        return max(sum(part.rows(source).nnz_per_row for source in self.sources) for part in self.parts)

    @property
    def chunk_cells(self) -> float:
        """How many neighboring cells are compressed together."""
        return max(part.rows(source).rows_per_chunk for part in self.parts for source in self.sources)

    def first_cell(self) -> AnnData:
        """Read one cell."""
        return self.read(slice(0, 1))

    def schema(self, **options: Any) -> Schema:
        """Note the features and covariates of all cells, with the options of :meth:`Schema.from_anndata`."""
        return Schema.from_anndata(self.first_cell(), obs=self.obs, **{"layer": self.layer, **options})

    def blocks(self, n_cells: int | None = None) -> Iterator[AnnData]:
        """Read all cells in order, block by block.

        Parameters
        ----------
        n_cells
            Cells in a block, fewer at the end of a file; by default as many as have four million entries.
        """
        if n_cells is None:
            n_cells = int(max(1, min(MAX_READ_CELLS, MAX_READ_NNZ // max(1.0, self.nnz_per_cell))))
        for first, last in zip(self.offset_p[:-1], self.offset_p[1:], strict=True):
            for start in range(first, last, n_cells):
                yield self.read(slice(start, min(start + n_cells, last)))

    def read(self, row_c: np.ndarray | slice, names: bool = True) -> AnnData:
        """Read some cells into memory.

        Parameters
        ----------
        row_c
            Which: a slice, or numbers of cells, int64, in any order.
        names
            Whether to read the names of cells; without, they are called by their numbers.

        Returns
        -------
        anndata.AnnData
            Counts as CSR in ``X`` or in the layer, `obsm`, the wanted columns of `obs`, and `var`.
        """
        row_c = np.arange(*row_c.indices(self.n_cells)) if isinstance(row_c, slice) else np.asarray(row_c)
        if len(row_c) == 0 or row_c.min() < 0 or row_c.max() >= self.n_cells:
            raise IndexError(f"cells are numbered from 0 to {self.n_cells - 1}, and at least one is to be read")
        # In the order of the files, and back.
        order_c = np.argsort(row_c, kind="stable")
        cut_p = np.searchsorted(row_c[order_c], self.offset_p)
        found = [
            self._read_file(part, row_c[order_c[first:last]] - start, names)
            for part, start, first, last in zip(self.parts, self.offset_p[:-1], cut_p[:-1], cut_p[1:], strict=True)
            if first < last
        ]
        back_c = np.argsort(order_c)
        tables = {
            source: take_rows(concat_rows([rows[source] for rows, _ in found]), back_c) for source in self.sources
        }
        name_c = np.concatenate([part_names for _, part_names in found])[back_c] if names else row_c.astype(str)
        index = pd.Index(name_c, dtype=object)
        counts, *others = (
            table.set_axis(index) if isinstance(table, pd.DataFrame) else table for table in tables.values()
        )
        return AnnData(
            counts if self.layer is None else None,
            self.obs.iloc[row_c].set_axis(index),
            self.var,
            obsm={source.removeprefix("obsm/"): table for source, table in zip(self.sources[1:], others, strict=True)},
            layers=None if self.layer is None else {self.layer: counts},
        )

    def _read_file(self, part: DatasetFile, row_c: np.ndarray, names: bool) -> tuple[dict[str, Any], np.ndarray]:
        """Read cells, in ascending order, of one file: all that is wanted by its path in the file, and names."""
        runs, position_c = to_runs(row_c)
        found = {source: take_rows(part.read(source, runs), position_c) for source in self.sources}
        if part.column_f is not None:
            found[self.sources[0]] = select_columns(found[self.sources[0]], part.column_f)
        return found, part.read_names(runs)[position_c] if names else np.empty(0, dtype=object)


# --- Looking into files -----------------------------------------------------------------------------------------------


def counts_path(layer: str | None) -> str:
    """Give the path of the counts in a file."""
    return "X" if layer is None else f"layers/{layer}"


@dataclass(frozen=True)
class FileContents:
    """What is in a file.

    Parameters
    ----------
    file
        Where it is.
    columns
        Names of the columns of ``obs``.
    kinds
        Path of each matrix or table of counts to the name of its kind in anndata, or ``"memory"`` in memory.
    adata
        The backed AnnData, which is taken before the file.
    """

    file: BackedFile
    columns: list[str]
    kinds: dict[str, str]
    adata: AnnData | None = None


def inspect_file(data: Any) -> FileContents:
    """Look into an h5ad file, a zarr store or a backed AnnData."""
    if isinstance(data, AnnData):
        return inspect_backed(data)
    file = BackedFile(data)
    where = str(file.path)
    if file.path.suffix == ".h5mu":
        raise ValueError(f"{where} holds a MuData: read it, mudata.read_h5mu({where!r}), and give that")
    with file.reading() as root:
        tables = [root[name] for name in ("obs", "var") if name in root]
        versions = [str(table.attrs.get("encoding-version")) for table in tables]
        columns = [str(name) for name in tables[0].attrs.get("column-order", ())] if tables else []
        paths = ["X", *(f"{group}/{name}" for group in ("layers", "obsm") if group in root for name in root[group])]
        kinds = {path: encoding_type(root[path]) for path in paths if path in root}
    if len(tables) < 2:
        raise ValueError(f"{where} holds no AnnData: it has no table of cells (obs) or of features (var)")
    if versions != ["0.2.0", "0.2.0"]:
        raise ValueError(
            f"{where} was written by another version of anndata: write it once more, "
            f"anndata.read_h5ad({where!r}).write_h5ad(...)"
        )
    return FileContents(file, columns, {path: kind for path, kind in kinds.items() if kind != "null"})


def inspect_backed(adata: AnnData) -> FileContents:
    """Look into a backed AnnData."""
    if adata.is_view:
        raise ValueError(
            "adata is a part of an AnnData that is backed by a file: give the whole, or read the part into memory, "
            "adata = adata.to_memory()"
        )
    file = BackedFile(adata.filename)
    in_memory = [
        f"{group}/{name}" for group in ("layers", "obsm") for name in getattr(adata, group) if name is not None
    ]
    with file.reading() as root:
        kinds = {"X": encoding_type(root["X"])} if "X" in root else {}
    return FileContents(file, list(adata.obs), {**kinds, **dict.fromkeys(in_memory, "memory")}, adata)


def load_dataset_file(contents: FileContents, obs_keys: Sequence[str], sources: Sequence[str]) -> DatasetFile:
    """Take what is wanted of a file, or say that it is not there or not of use."""
    file, adata = contents.file, contents.adata
    where = str(file.path)
    for key in obs_keys:
        if key not in contents.columns:
            raise KeyError(f"{where} has no column {key!r} in obs; there are: {format_names(contents.columns)}")
    for source in sources:
        if source not in contents.kinds:
            raise KeyError(f"{where} has no {source}; there are: {format_names(contents.kinds)}")
        kind = contents.kinds[source]
        if kind == "csc_matrix":
            raise ValueError(
                f"{source} of {where} is stored by columns (CSC), of which no cells can be read: write it by rows, "
                "with adata.X = adata.X.tocsr()"
            )
        if kind not in {*ROW_READERS, "memory"}:
            raise TypeError(f"{source} of {where} is of the kind {kind!r}: make it a matrix of counts")
    if adata is None:
        with file.reading() as root:
            var = read_elem(root["var"])
            var.index = var.index.astype(str)
            n_cells = index_array(root["obs"]).shape[0]
            columns = {key: read_elem(root["obs"][key]) for key in obs_keys}
        part = DatasetFile(file, var, pd.DataFrame(columns, index=pd.RangeIndex(n_cells)))
    else:
        in_memory: dict[str, RowReader] = {}
        for source in sources:
            if contents.kinds[source] == "memory":
                group, key = source.split("/", 1)
                in_memory[source] = InMemoryRows(getattr(adata, group)[key])
        obs = adata.obs[list(obs_keys)].reset_index(drop=True)
        part = DatasetFile(file, adata.var, obs, in_memory, adata.obs_names)
    check_dataset_file(part, sources)
    return part


def check_dataset_file(part: DatasetFile, sources: Sequence[str]) -> None:
    """Raise unless tables and matrices of a file go together, and are of numbers."""
    where = str(part.file.path)
    if len(part.obs) == 0:
        raise ValueError(f"{where} has no cell: leave it out")
    repeated = part.var.index[part.var.index.duplicated()]
    if len(repeated) > 0:
        raise ValueError(
            f"adata.var_names of {where} has {str(repeated[0])!r} more than once: make names distinct with "
            "adata.var_names_make_unique()"
        )
    for source in sources:
        rows = part.rows(source)
        if len(rows.shape) != 2:
            raise TypeError(f"{source} of {where} has the shape {rows.shape}: counts are a matrix of cells by features")
        for dtype in rows.dtypes:
            check_matrix_type(np.empty(0, dtype), f"{source} of {where}")
        expected = (len(part.obs), rows.shape[1] if source.startswith("obsm/") else len(part.var))
        if tuple(rows.shape) != expected:
            raise ValueError(
                f"{source} of {where} has the shape {tuple(rows.shape)}, but there are {expected[0]} cells and "
                f"{expected[1]} features: write the file once more"
            )


# --- Several files as one ---------------------------------------------------------------------------------------------


def common_features(parts: Sequence[DatasetFile]) -> pd.DataFrame:
    """Find the features that all files have, in the order of the first."""
    in_all = parts[0].var.index
    for part in parts[1:]:
        in_all = in_all[in_all.isin(part.var.index)]
    largest = max(parts, key=lambda part: len(part.var))
    if len(in_all) < MIN_OVERLAP * len(largest.var):
        least = min(parts, key=lambda part: int(part.var.index.isin(largest.var.index).sum()))
        raise ValueError(
            f"only {len(in_all)} features are in all files, of {len(largest.var)} in {largest.file.path}; at least "
            f"{MIN_OVERLAP:.0%} are needed. The features of {least.file.path} start "
            f"{format_names(least.var.index, 3)}: "
            "give files with the same kind of names (genes: symbols or Ensembl ids)"
        )
    n_lost = len(largest.var) - len(in_all)
    if n_lost > 0:
        logger.warning("leaving out %d features that not all files have; %d are in all", n_lost, len(in_all))
    return parts[0].var.loc[in_all]


def concat_obs(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the tables of the files one below the other."""
    return pd.DataFrame(
        {key: concat_column([table[key] for table in tables]) for key in tables[0]},
        index=pd.RangeIndex(sum(map(len, tables))),
    )


def concat_column(columns: Sequence[pd.Series]) -> Any:
    """Put columns one below the other; text becomes categories, which take a byte or two a cell."""
    given = [isinstance(column.dtype, pd.CategoricalDtype) for column in columns]
    if not all(known or pd.api.types.is_string_dtype(column) for known, column in zip(given, columns, strict=True)):
        return pd.concat(columns, ignore_index=True)
    categorical = [column.astype("category") for column in columns]
    if len(categorical) == 1:
        return categorical[0]
    if len({column.cat.categories.inferred_type for column in categorical}) > 1:
        categorical = [column.cat.rename_categories(str) for column in categorical]
    return union_categoricals(categorical, sort_categories=not all(given), ignore_order=True)


def concat_rows(parts: list[Any]) -> Any:
    """Put matrices or tables of the same columns one below the other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], pd.DataFrame):
        return pd.concat(parts, join="inner", ignore_index=True)
    return sparse.vstack(parts, format="csr")


def take_rows(rows: Any, take_c: np.ndarray) -> Any:
    """Take rows of a matrix or table, without a copy where it is all of them in order."""
    if len(take_c) == rows.shape[0] and bool((take_c == np.arange(len(take_c))).all()):
        return rows
    return rows.iloc[take_c] if isinstance(rows, pd.DataFrame) else rows[take_c]

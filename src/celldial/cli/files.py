"""Files of the command line: reading cells, and writing outputs that appear only when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celldial.io.atomic import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["atomic_outputs", "check_outputs", "has_current_layout", "read_cells", "write_cells"]

ADDED_UNS_KEYS = ("celldial", "latent_traverse", "rank_genes_groups")


@contextmanager
def atomic_outputs(
    outputs: Mapping[str, tuple[Path | None, Sequence[str]]], inputs: Sequence[Path]
) -> Iterator[dict[str, Path]]:
    """Write several files in this block: all appear at its end, or none if it fails.

    Parameters
    ----------
    outputs
        Option to its path, or None if the option was not used, and the suffixes that the path may have.
    inputs
        Input files, which must not be overwritten.

    Yields
    ------
    dict[str, Path]
        Option to the temporary path to write to. The final paths are printed to stdout at the end.

    Raises
    ------
    ValueError, OSError
        Before the block runs, if a file cannot be written.
    """
    targets = check_outputs(outputs, inputs)
    # Temporary files are created only when they are written: a job that is killed during training leaves none.
    with ExitStack() as stack:
        yield {option: stack.enter_context(atomic_write(path)) for option, path in targets.items()}
    for option in targets:
        print(outputs[option][0])


def check_outputs(outputs: Mapping[str, tuple[Path | None, Sequence[str]]], inputs: Sequence[Path]) -> dict[str, Path]:
    """Return option to the file that it writes; raise as `atomic_outputs` if one of them cannot be written."""
    paths = {option: path for option, (path, _) in outputs.items() if path is not None}
    for option, path in paths.items():
        check_output(option, path, outputs[option][1], inputs)
    targets = {option: path.expanduser().resolve() for option, path in paths.items()}  # a link is kept
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"{' and '.join(targets)} are the same file: use a different path for each")
    return targets


def check_output(option: str, path: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> None:
    """Raise if a file cannot be written."""
    path = path.expanduser()
    if path.suffix not in suffixes:
        raise ValueError(f"{option} is {path}, but its name must end in {' or '.join(suffixes)}")
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise ValueError(f"{option} is {path}, which is an input file and is not overwritten: use another path")
    if path.is_dir():
        raise IsADirectoryError(f"{option} is {path}, which is a folder: use the path of a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{option} is {path}, which is a device or a pipe: use the path of a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} is {path}, but the folder {folder} does not exist: create it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} is {path}, which exists and is read-only: use another path")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{option} is {path}, but the folder {folder} is not writable: {error.strerror}") from error


def read_cells(path: Path, backed: bool = False, unique_names: bool = False) -> AnnData:
    """Read cells into memory.

    Parameters
    ----------
    path
        An h5ad file, a zarr store, or an .h5 file of Cell Ranger, with genes and other features.
    backed
        Whether to leave ``X`` of an h5ad file on disk.
    unique_names
        Whether to append numbers to repeated names of cells and features.
    """
    import anndata

    from celldial.data.backed_file import BackedFile, is_10x_file

    path = path.expanduser()
    if is_10x_file(path):
        adata = read_10x(path)
    else:
        with BackedFile(path).reading():  # its errors name the file
            if path.is_dir():
                adata = anndata.read_zarr(path)
            else:
                with warnings.catch_warnings():  # repeated names are an error of `fit`, which says what to do
                    warnings.filterwarnings("ignore", ".*names are not unique.*")
                    adata = anndata.read_h5ad(path, backed="r" if backed else None)
    if unique_names:
        adata.obs_names_make_unique()
        adata.var_names_make_unique()
    return adata


def read_10x(path: Path) -> AnnData:
    """Read an .h5 file of Cell Ranger with scanpy."""
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*names are not unique.*")
        try:
            return sc.read_10x_h5(path, gex_only=False)
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise OSError(f"{path} could not be read as an .h5 file of Cell Ranger ({reason})") from error


def write_cells(adata: AnnData, source: Path | None, target: Path, obsm_keys: Sequence[str]) -> None:
    """Write cells as a copy of their file, with the results added; everything else in the file stays the same.

    Parameters
    ----------
    adata
        The cells.
    source
        The file that they were read from; None if they differ from it in more than the results.
    target
        The file to write.
    obsm_keys
        Keys of ``obsm`` to add, if they exist.
    """
    import h5py
    from anndata.io import write_elem

    source = None if source is None else source.expanduser()
    if source is None or source.is_dir() or not has_current_layout(source):
        (adata.to_memory() if adata.isbacked else adata).write_h5ad(target)
        return
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        add_columns(file["obs"], adata.obs)
        for slot, keys in {"obsm": obsm_keys, "uns": ADDED_UNS_KEYS}.items():
            if slot not in file:
                write_elem(file, slot, {})
            for key in keys:
                if key in getattr(adata, slot):
                    write_elem(file[slot], key, getattr(adata, slot)[key])


def add_columns(group: Any, obs: pd.DataFrame) -> None:
    """Write the columns of a table that a group of a file lacks or has with other values; the others stay as they are.

    anndata cannot write each type of column that it reads.
    """
    import pandas as pd
    from anndata.io import read_elem, write_elem

    order = [str(name) for name in group.attrs["column-order"]]
    for name in obs.columns:
        if name in order:
            known = pd.Series(read_elem(group[name]), index=obs.index)
            if known.equals(obs[name]):
                continue
            del group[name]
        else:
            order.append(name)
        write_elem(group, name, obs[name].array if hasattr(obs[name], "cat") else obs[name].to_numpy())
    group.attrs["column-order"] = order


def has_current_layout(path: Path) -> bool:
    """Return whether an h5ad file has the layout of anndata 0.8 and later, to which parts can be added."""
    import h5py

    with h5py.File(path, "r") as file:
        return file.attrs.get("encoding-type") == "anndata"

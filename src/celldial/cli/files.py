"""Files of the command line: reading cells, and writing outputs that appear only when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from celldial.io.atomic import atomic_write

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["atomic_outputs", "has_current_layout", "read_cells", "write_cells"]

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
    paths = {option: path for option, (path, _) in outputs.items() if path is not None}
    for option, path in paths.items():
        check_output(option, path, outputs[option][1], inputs)
    targets = {option: path.resolve() for option, path in paths.items()}  # a link is kept, and its target is written
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"{' and '.join(targets)} are the same file: use a different path for each")
    # Temporary files are created only when they are written: a job that is killed during training leaves none.
    with ExitStack() as stack:
        yield {option: stack.enter_context(atomic_write(path)) for option, path in targets.items()}
    for path in paths.values():
        print(path)


def check_output(option: str, path: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> None:
    """Raise if a file cannot be written."""
    if path.suffix not in suffixes:
        raise ValueError(f"{option} is {path}, but its name must end in {' or '.join(suffixes)}")
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise ValueError(f"{option} is {path}, which is an input file and is not overwritten: use another path")
    if path.is_dir():
        raise IsADirectoryError(f"{option} is {path}, which is a folder: use the path of a file")
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


def read_cells(path: Path, backed: bool = False) -> AnnData:
    """Read cells into memory; with `backed`, leave ``X`` of an h5ad file on disk."""
    import anndata

    from celldial.data.file_matrices import BackedFile

    with BackedFile(path).reading():  # its errors name the file
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path, backed="r" if backed else None)


def write_cells(adata: AnnData, source: Path, target: Path, obsm_keys: Sequence[str]) -> None:
    """Write cells as a copy of their file, with the results added; everything else in the file stays the same.

    Parameters
    ----------
    adata
        The cells.
    source
        The file that they were read from.
    target
        The file to write.
    obsm_keys
        Keys of ``obsm`` to add, if they exist.
    """
    import h5py
    from anndata.io import write_elem

    if source.is_dir() or not has_current_layout(source):
        (adata.to_memory() if adata.isbacked else adata).write_h5ad(target)
        return
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        write_elem(file, "obs", adata.obs)
        for slot, keys in {"obsm": obsm_keys, "uns": ADDED_UNS_KEYS}.items():
            if slot not in file:
                write_elem(file, slot, {})
            for key in keys:
                if key in getattr(adata, slot):
                    write_elem(file[slot], key, getattr(adata, slot)[key])


def has_current_layout(path: Path) -> bool:
    """Return whether an h5ad file has the layout of anndata 0.8 and later, to which parts can be added."""
    import h5py

    with h5py.File(path, "r") as file:
        return file.attrs.get("encoding-type") == "anndata"

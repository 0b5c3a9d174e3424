"""Files of the command line: what is read, and what is written whole or not at all."""

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

__all__ = ["is_current", "outputs", "read_cells", "write_cells"]

WRITTEN_TO_UNS = ("celldial", "latent_traverse")


@contextmanager
def outputs(
    wanted: Mapping[str, tuple[Path | None, Sequence[str]]], inputs: Sequence[Path]
) -> Iterator[dict[str, Path]]:
    """Have files written whole, all of them at the end of this block, or none.

    Parameters
    ----------
    wanted
        Option to the path that was given, if one was, and the suffixes that it may have.
    inputs
        What is read, and must not be written over.

    Yields
    ------
    dict[str, Path]
        Option to the path to write to meanwhile, beside the one that was given. The latter are printed at the end.

    Raises
    ------
    ValueError, OSError
        Before the block runs, where a file cannot be written.
    """
    given = {option: path for option, (path, _) in wanted.items() if path is not None}
    for option, path in given.items():
        check_output(option, path, wanted[option][1], inputs)
    final = {option: path.resolve() for option, path in given.items()}  # through links, which stay
    if len(set(final.values())) < len(final):
        raise ValueError(f"{' and '.join(final)} are the same file: give each its own")
    # Files are made when they are written: a job that is killed in training leaves none.
    with ExitStack() as stack:
        yield {option: stack.enter_context(atomic_write(path)) for option, path in final.items()}
    for path in given.values():
        print(path)


def check_output(option: str, path: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> None:
    """Raise where a file cannot be written."""
    if path.suffix not in suffixes:
        raise ValueError(f"{option} is {path}: its name must end in {' or '.join(suffixes)}")
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise ValueError(f"{option} is {path}, which is also read, and is not written over: give another path")
    if path.is_dir():
        raise IsADirectoryError(f"{option} is {path}, which is a folder: give the path of a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{option} is {path}, and there is no folder {folder}: make it first, or choose another"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} is {path}, which is there and must not be changed: give another path")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{option} is {path}, and nothing can be written to {folder}: {error.strerror}") from error


def read_cells(path: Path, backed: bool = False) -> AnnData:
    """Read cells to memory; all but ``X`` where `backed`."""
    import anndata

    from celldial.data.file_matrices import BackedFile

    with BackedFile(path).reading():  # says of any failure what it is about
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path, backed="r" if backed else None)


def write_cells(adata: AnnData, source: Path, target: Path, obsm_keys: Sequence[str]) -> None:
    """Write cells with what was added to them: into a copy of their file, in which all else stays as it is.

    Parameters
    ----------
    adata
        The cells.
    source
        Where they were read from.
    target
        Where to write.
    obsm_keys
        What was added to ``obsm``, if it is there.
    """
    import h5py
    from anndata.io import write_elem

    if source.is_dir() or not is_current(source):
        (adata.to_memory() if adata.isbacked else adata).write_h5ad(target)
        return
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        write_elem(file, "obs", adata.obs)
        for slot, keys in {"obsm": obsm_keys, "uns": WRITTEN_TO_UNS}.items():
            if slot not in file:
                write_elem(file, slot, {})
            for key in keys:
                if key in getattr(adata, slot):
                    write_elem(file[slot], key, getattr(adata, slot)[key])


def is_current(path: Path) -> bool:
    """Tell whether an h5ad file is of the layout that anndata has written since 0.8, to which parts can be added."""
    import h5py

    with h5py.File(path, "r") as file:
        return file.attrs.get("encoding-type") == "anndata"

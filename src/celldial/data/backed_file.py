"""An h5ad file or a zarr store that is open while it is read, and errors that name the file."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import h5py

from celldial.data.file_matrices import ROW_READERS, RowReader, encoding_type

__all__ = ["BackedFile", "FileReadError", "is_10x_file"]

SLOW_READ_SECONDS = 30.0
"""A read that takes longer is logged."""

MAX_OPEN_FILES = 128
"""Files that stay open, unless the system's limit is lower. Opening a file again takes about a millisecond."""

logger = logging.getLogger("celldial")


class FileReadError(OSError):
    """A file cannot be read. The message names the file and the reason."""


class BackedFile:
    """An h5ad file or a zarr store. It is opened at the first read, and closed if many others were read since.

    Parameters
    ----------
    path
        Path of the file.

    Raises
    ------
    OSError
        The file does not exist, or has another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._root: Any = None
        self._rows: dict[str, RowReader] = {}
        self._attached: set[str] = set()
        self._process = os.getpid()
        self._warned_slow = False

    def __reduce__(self) -> tuple[type[BackedFile], tuple[Path]]:
        return BackedFile, (self.path,)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Provide the root group, and raise any error of this block as an `OSError` that names the file."""
        timer = threading.Timer(SLOW_READ_SECONDS, self._warn_slow)
        timer.daemon = True
        timer.start()
        try:
            if not self.path.exists():
                raise FileReadError(f"{self.path} does not exist (any more): check the path, or restore the file")
            with OPEN_FILES.using(self):
                yield self._open()
        except (FileReadError, MemoryError):
            raise
        except OSError as error:
            if isinstance(error, PermissionError) or error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = (
                    "ask for the right to read it"
                    if isinstance(error, PermissionError)
                    else "too many files are open; raise the limit, as by ulimit -n, or close some"
                )
                raise FileReadError(f"{self.path} could not be opened ({error.strerror}): {remedy}") from error
            raise FileReadError(self._damaged(error)) from error
        except Exception as error:  # any type: decompressors have their own
            raise FileReadError(self._damaged(error)) from error
        finally:
            timer.cancel()

    def _damaged(self, error: Exception) -> str:
        """Return the message about a file that cannot be read."""
        reason = str(error).strip().split("\n", 1)[0]
        return f"{self.path} could not be read ({reason}): it is damaged or incomplete; copy or write it again"

    def rows(self, name: str) -> RowReader:
        """Return the reader of a matrix or table, by its path in the file, within a block of :meth:`reading`."""
        root = self._open()
        if name not in self._rows:
            self._rows[name] = ROW_READERS[encoding_type(root[name])](root[name])
        elif name not in self._attached:
            self._rows[name].attach(root[name])
        self._attached.add(name)
        return self._rows[name]

    def close(self) -> None:
        """Close the file until the next read. Readers keep what they have in memory."""
        if isinstance(self._root, h5py.File):
            self._root.close()
        self._root, self._attached = None, set()

    def _open(self) -> Any:
        """Return the root group. The file is opened if this process has not opened it yet."""
        if self._process != os.getpid():  # a forked process must not use, nor close, what its parent opened
            self._root, self._attached, self._process = None, set(), os.getpid()
        if self._root is None:
            if is_10x_file(self.path):
                raise FileReadError(
                    f"{self.path} is an .h5 file of Cell Ranger: read it with scanpy.read_10x_h5(path, "
                    "gex_only=False), and write it with adata.write_h5ad(...)"
                )
            if self.path.is_dir():
                import zarr  # here because only stores need it

                self._root = zarr.open_group(self.path, mode="r")
            elif h5py.is_hdf5(self.path):
                self._root = h5py.File(self.path, "r")
            else:
                raise FileReadError(f"{self.path} is not an HDF5 file (expected .h5ad): it may be damaged")
        return self._root

    def _warn_slow(self) -> None:
        """Log once per file that a read takes long."""
        if not self._warned_slow:
            self._warned_slow = True
            logger.warning(
                "reading %s has taken more than %g seconds and continues: a copy on a local disk may be faster",
                self.path,
                SLOW_READ_SECONDS,
            )


class OpenFiles:
    """The files that are open, the one that was read last at the end. Threads may read different files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Weak, so that a file that nothing else uses is closed.
        self._n_readers: WeakKeyDictionary[BackedFile, int] = WeakKeyDictionary()

    @contextmanager
    def using(self, file: BackedFile) -> Iterator[None]:
        """Keep a file open in this block, and close files that were not read for long."""
        with self._lock:
            self._n_readers[file] = self._n_readers.pop(file, 0) + 1  # at the end
            idle = [other for other, n in self._n_readers.items() if n == 0]
            for other in idle[: max(0, len(self._n_readers) - max_open_files())]:
                del self._n_readers[other]
                other.close()
        try:
            yield
        finally:
            with self._lock:
                self._n_readers[file] -= 1


OPEN_FILES = OpenFiles()


def max_open_files() -> int:
    """Return the number of files that stay open: at most a quarter of the system's limit."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_OPEN_FILES
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN_FILES if limit < 0 else max(1, min(MAX_OPEN_FILES, limit // 4))


def is_10x_file(path: Path) -> bool:
    """Return whether a path is an .h5 file of Cell Ranger, which has another layout than .h5ad."""
    if not path.is_file() or not os.access(path, os.R_OK) or not h5py.is_hdf5(path):
        return False
    with suppress(OSError), h5py.File(path, "r") as file:
        return (
            "X" not in file
            and "obs" not in file
            and any(
                isinstance(group, h5py.Group) and "barcodes" in group and "indptr" in group for group in file.values()
            )
        )
    return False

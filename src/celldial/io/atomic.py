"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "resolve_output"]


def resolve_output(path: Path) -> Path:
    """Return the file that is written for a path: ``~`` is the home folder, and links are followed.

    Raises
    ------
    OSError
        The path is a folder, or a device or pipe, which a rename would replace; or its folder does not exist.
    """
    resolved = Path(path).expanduser().resolve()
    if resolved.is_dir():
        raise IsADirectoryError(f"{path} is a folder: pass the path of a file")
    if resolved.exists() and not resolved.is_file():
        raise OSError(f"{path} is a device or a pipe, and not a file: pass the path of a file")
    if not resolved.parent.is_dir():
        raise FileNotFoundError(f"the folder {resolved.parent} of {path.name} does not exist: create it first")
    return resolved


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a temporary file, and rename it to `path` if the block succeeds.

    Parameters
    ----------
    path
        The file to write, with ``~`` for the home folder. An existing file is replaced, with its permissions, or stays
        as it was if the block fails. If it is a symbolic link, the file that it points to is replaced.

    Yields
    ------
    Path
        The temporary file, which the block creates. It is a hidden file in the same folder, because a rename is atomic
        only within a file system. Its name has the same suffix, because some writers depend on it.
    """
    path = resolve_output(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # The name of the temporary file, or none, would not help.
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)

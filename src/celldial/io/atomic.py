"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a temporary file, and rename it to `path` if the block succeeds.

    Parameters
    ----------
    path
        The file to write. An existing file is replaced, or stays as it was if the block fails.

    Yields
    ------
    Path
        The temporary file, which the block creates. It is a hidden file in the same folder, because a rename is atomic
        only within a file system. Its name has the same suffix, because some writers depend on it.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

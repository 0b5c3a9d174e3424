"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Have a file written under another name, and give it its own once this block has ended well.

    Parameters
    ----------
    path
        What to write. What is there is replaced, or stays as it is if the block fails.

    Yields
    ------
    Path
        Where to write meanwhile: a hidden file beside the other, because a file is only replaced in one step within a
        file system, with the same ending, which some writers go by. The block makes it; nothing is there before.
    """
    meanwhile = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield meanwhile
        with meanwhile.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(meanwhile, path)
    finally:
        meanwhile.unlink(missing_ok=True)

"""Checks of single arguments: raise an error that names the argument and says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_integer", "check_library_size", "check_writable"]


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least {least}")


def check_library_size(library_size: Any) -> float:
    """Give a library size to decode with as a float, or raise."""
    if not (isinstance(library_size, float | int | np.number) and 0 < library_size < np.inf):
        raise ValueError(f"library_size is {library_size!r}: it must be a number above 0")
    return float(library_size)


def check_writable(adata: Any, key_added: str | None) -> None:
    """Raise where something is to be written to cells that are only in files."""
    if key_added is not None and not hasattr(adata, "obsm"):
        raise ValueError(
            f"key_added={key_added!r} names a place in adata.obsm, and there is no AnnData: leave it out and keep what "
            "is returned"
        )

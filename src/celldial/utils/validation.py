"""Checks of single arguments. Their errors name the argument and the solution."""

from __future__ import annotations

from typing import Any

import numpy as np

from celldial.utils.messages import describe_value

__all__ = ["check_integer", "check_library_size", "check_writable", "resolve_seed"]


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} is {describe_value(value)}: it must be an integer of at least {minimum}")


def resolve_seed(seed: Any, default: int = 0) -> int:
    """Return a seed as an integer of Python, or the default if it is None; raise unless it is a valid seed."""
    if seed is None:
        return int(default)
    check_integer("seed", seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed is {seed}: it must be an integer below 2**64")
    return int(seed)


def check_library_size(library_size: Any) -> float:
    """Return the library size to decode with as a float; raise unless it is a positive number."""
    if not (isinstance(library_size, float | int | np.number) and 0 < library_size < np.inf):
        raise ValueError(f"library_size is {describe_value(library_size)}: it must be a number above 0")
    return float(library_size)


def check_writable(adata: Any, key_added: str | None) -> None:
    """Raise if a result should be written to cells that are in files and not in an AnnData."""
    if key_added is not None and not hasattr(adata, "obsm"):
        raise ValueError(
            f"key_added={key_added!r} names a key of adata.obsm, but the cells are in files: leave key_added out and "
            "use the returned values"
        )

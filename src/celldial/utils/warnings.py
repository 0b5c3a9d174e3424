"""Warnings that point to the user's code, and a context that shows each warning once."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["warn", "warn_once"]

PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the line outside the package that called it.

    This is the line that calls the outermost function of the package on the stack. Decorators of other packages may lie
    between that function and the one that warns.
    """
    frame, depth, stacklevel = sys._getframe(0), 1, 1
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            stacklevel = depth + 1
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=stacklevel)


@contextmanager
def warn_once() -> Iterator[None]:
    """Issue the warnings of this block at its end; of those that differ only in numbers and quoted names, the first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    first = {re.sub(r"\d+|'[^']*'", "", str(warning.message)): warning for warning in reversed(caught)}
    for warning in reversed(first.values()):
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

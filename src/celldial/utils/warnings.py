"""Warnings that point to the user's code."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = ["warn"]

PACKAGE = str(Path(__file__).parents[1])


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point to the line outside this package that called it.

    That is the caller of the outermost function of the package: decorators of other packages may lie between.
    """
    frame, depth, stacklevel = sys._getframe(0), 1, 1
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            stacklevel = depth + 1
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=stacklevel)

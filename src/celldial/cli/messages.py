"""What the command line says of warnings, errors and Ctrl-C."""

from __future__ import annotations

import dis
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Abandoned", "Interrupts", "is_expected", "sentence", "show_warning", "tell"]

PACKAGE = Path(__file__).parents[1]


def tell(text: str) -> None:
    """Say something to stderr."""
    print(text, file=sys.stderr, flush=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning without the line of code that gave it."""
    tell(f"celldial: warning: {message}")


def is_expected(error: Exception) -> bool:
    """Tell an error that is meant for the user from a bug: the package itself raised it, or the system did."""
    import torch

    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, ValueError | TypeError | KeyError | FloatingPointError):
        return False
    place = error.__traceback__
    assert place is not None  # it was caught
    while place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code
    raised = dis.opname[code.co_code[place.tb_lasti]] == "RAISE_VARARGS"
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)


def sentence(error: Exception) -> str:
    """Write the message of an error on one line."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str puts it in quotes
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = text or "there is not enough memory"
    return " ".join(text.split())


class Abandoned(BaseException):
    """Ctrl-C for the second time, which nothing takes as a wish to end early."""


class Interrupts:
    """Count Ctrl-C in this block: `fit` takes the first as a wish to end early, and the exit code must tell."""

    def __init__(self) -> None:
        self.n = 0
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        self.before = signal.getsignal(signal.SIGINT)
        if self.before is signal.default_int_handler:  # a shell has background jobs ignore it
            signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.before)

    def _count(self, _: int, __: FrameType | None) -> None:
        self.n += 1
        raise KeyboardInterrupt if self.n == 1 else Abandoned

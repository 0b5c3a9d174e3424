"""Messages on stderr: warnings, errors, and what Ctrl-C does."""

from __future__ import annotations

import dis
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["InterruptHandler", "SecondInterrupt", "as_flags", "echo", "format_error", "is_expected", "show_warning"]

PACKAGE = Path(__file__).parents[1]
QUOTES = "\"'"
# Arguments of Python functions that are options of the command line with the same name.
ARGUMENTS = (
    "layer|batch_key|labels_key|n_latent|n_clusters|max_epochs|likelihood|integration|gene_symbols|seed|device|precision"
    "|checkpoint|periodic|decoder|key_added|groupby|replicate_key|transform_batch|covariates"
)
FLAG = re.compile(rf"(?<![\w.])({ARGUMENTS})=(\"[^\"]*\"|'[^']*'|[\w.+-]+)")


def echo(text: str) -> None:
    """Print a message to stderr."""
    print(text, file=sys.stderr, flush=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without the line of code that raised it."""
    echo(f"celldial: warning: {as_flags(str(message))}")


def is_expected(error: Exception) -> bool:
    """Return whether an error is for the user, and not a bug: the package or the system raised it."""
    import torch

    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, ValueError | TypeError | KeyError | FloatingPointError):
        return False
    traceback = error.__traceback__
    assert traceback is not None  # the error was caught
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    raised = dis.opname[code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)


def as_flags(text: str) -> str:
    """Return a message with the arguments of Python functions as options of the command line.

    Examples
    --------
    >>> as_flags('use VAE(layer="counts"), or n_clusters=3')
    'use --layer counts, or --n-clusters 3'
    """
    text = FLAG.sub(lambda found: f"--{found[1].replace('_', '-')} {found[2].strip(QUOTES)}", text)
    text = re.sub(r"(?:VAE|fit|latent_traverse|find_axis|markers|differential)\((--[^()]*)\)", r"\1", text)
    return re.sub(r"(--[\w-]+ [^\s,:;)]+) in a fit, or \1 with a fitted model", r"\1", text)


def format_error(error: Exception) -> str:
    """Return the message of an error on one line."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str(error) has quotes around it
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = text or "not enough memory"
    return as_flags(" ".join(text.split()))


class SecondInterrupt(BaseException):
    """A second Ctrl-C, which ends the command at once. `fit` only handles the first one."""


class InterruptHandler:
    """Count Ctrl-C in this block: `fit` ends early after the first one, and the exit code depends on it."""

    def __init__(self) -> None:
        self.n = 0
        self.previous: Any = None

    def __enter__(self) -> InterruptHandler:
        self.previous = signal.getsignal(signal.SIGINT)
        if self.previous is signal.default_int_handler:  # background jobs of a shell ignore SIGINT
            signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self.previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.previous)

    def _count(self, _: int, __: FrameType | None) -> None:
        self.n += 1
        raise KeyboardInterrupt if self.n == 1 else SecondInterrupt

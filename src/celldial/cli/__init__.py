"""The command line: ``celldial fit``, ``traverse``, ``info`` and ``demo``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from celldial.cli.commands import run_demo
from celldial.cli.messages import InterruptHandler, SecondInterrupt, echo, format_error, is_expected, show_warning
from celldial.cli.parser import check_usage, make_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Command line arguments. By default those of this process.

    Returns
    -------
    int
        Exit code: 0 for success, 1 for an error in the data, a file or a value, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With exit code 2, for wrong usage.
    Exception
        For a bug, or for any error with ``--traceback``.

    Examples
    --------
    >>> from contextlib import chdir
    >>> from tempfile import TemporaryDirectory
    >>> import celldial
    >>> from celldial.cli import main
    >>> with TemporaryDirectory() as folder, chdir(folder):
    ...     celldial.datasets.pbmc68k_reduced().write_h5ad("cells.h5ad")
    ...     main(["fit", "cells.h5ad", "--model", "cells.celldial", "--max-epochs", "1", "--quiet"])
    cells.celldial
    0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files and genes that the locale cannot show are shown as escape sequences.
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["demo"]:
        return run_demo(arguments[1:])
    options = make_parser().parse_args(arguments)
    check_usage(options)
    try:
        with warnings.catch_warnings(), InterruptHandler() as interrupts:
            warnings.showwarning = show_warning
            options.run(options)
            sys.stdout.flush()
            if interrupts.n:
                echo("celldial: interrupted; the written files are those of the best epoch so far")
                return 130
            return 0
    except (KeyboardInterrupt, SecondInterrupt):
        echo("celldial: interrupted; nothing was written")
        return 130
    except BrokenPipeError:  # the reader of stdout has closed it, as in `celldial info ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.traceback or not is_expected(error):
            raise
        echo(f"celldial: error: {format_error(error)}")
        return 1

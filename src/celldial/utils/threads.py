"""The number of threads of a computation, chosen by its size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from celldial.utils.settings import settings

__all__ = ["limit_threads"]

# Multiplications of the widest product of a step above which several threads are used. Below, threads wait for each
# other more than they compute; on a busy machine, waiting takes most of the time.
MIN_PRODUCT = 5e8

# A process that was forked has the threads of its parent in the books of OpenMP, but not the threads themselves, and
# would wait for them forever.
_forked = False


def _use_one_thread() -> None:
    """Use one thread in a forked process, whatever the settings are."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


@contextmanager
def limit_threads(product: float) -> Iterator[None]:
    """Use the number of threads of the settings in this block, and restore that of the process afterwards.

    Parameters
    ----------
    product
        Multiplications of the widest matrix product of a step: cells × features × hidden units.

    Examples
    --------
    >>> import torch
    >>> before = torch.get_num_threads()
    >>> with limit_threads(128 * 2000 * 128):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    wanted = 1 if _forked else settings.n_threads
    if wanted == "auto":
        wanted = before if product > MIN_PRODUCT else 1
    if wanted != before:
        torch.set_num_threads(int(wanted))
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)

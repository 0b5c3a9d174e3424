"""The number of threads of a computation, chosen by its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from celldial.utils.settings import settings

__all__ = ["limit_threads"]

# Multiplications of the widest product of a step above which several threads are used. Below, threads wait for each
# other more than they compute; on a busy machine, waiting takes most of the time.
MIN_PRODUCT = 5e8


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
    wanted = settings.n_threads
    if wanted == "auto":
        wanted = before if product > MIN_PRODUCT else 1
    if wanted != before:
        torch.set_num_threads(int(wanted))
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)

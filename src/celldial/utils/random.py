"""Reproducible random numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["isolate_rng"]

# Torch's generator and Pyro's handlers belong to the process.
LOCK = threading.RLock()


@contextmanager
def isolate_rng(seed: int) -> Iterator[None]:
    """Seed torch's random numbers in this block, and restore the random state of all devices afterwards.

    Other threads wait for the end of the block: a fit in one thread would change the random numbers of another.
    """
    with LOCK, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(seed))
        yield

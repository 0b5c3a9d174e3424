"""Reproducible random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["isolate_rng"]


@contextmanager
def isolate_rng(seed: int) -> Iterator[None]:
    """Seed torch's random numbers in this block, and restore the random state of all devices afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

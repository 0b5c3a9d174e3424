"""Reproducible randomness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["isolate_rng"]


@contextmanager
def isolate_rng(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from `seed` in this block, and leave the outer stream as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

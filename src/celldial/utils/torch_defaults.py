"""The modes of torch that training needs, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["torch_defaults"]


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Record gradients and create float32 tensors in this block; restore the modes of the caller afterwards.

    Examples
    --------
    >>> with torch.no_grad(), torch_defaults():
    ...     torch.is_grad_enabled(), torch.zeros(1).dtype
    (True, torch.float32)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)

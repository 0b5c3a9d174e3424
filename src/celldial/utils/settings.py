"""Settings of the whole process: device, precision, threads and verbosity."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["auto", "32-true", "bf16-mixed"]

__all__ = ["Precision", "Settings", "override_settings", "settings"]


@dataclass
class Settings:
    """Settings of the whole process. To change them, set the attributes of `celldial.settings`.

    Parameters
    ----------
    device
        Device of all computations: ``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"`` or ``"cuda"``.
    precision
        Number format of training, as Lightning Fabric names it: ``"32-true"``, ``"bf16-mixed"``, or ``"auto"``, which
        means ``"32-true"``.
    n_threads
        Threads of training and inference on a CPU: a number, or ``"auto"``, which means one thread for steps of usual
        size, and those of torch for wide models, such as tens of thousands of peaks. One thread is about as fast as
        several for small steps, and many times faster on a busy machine. Sums depend on it by rounding: set a number to
        repeat a fit bit by bit on another machine.

    Examples
    --------
    >>> import celldial
    >>> celldial.settings.device = "cpu"
    >>> celldial.settings.torch_device
    device(type='cpu')
    >>> celldial.settings.device = "auto"
    """

    device: str = "auto"
    precision: Precision = "auto"
    n_threads: int | Literal["auto"] = "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device in use, with ``"auto"`` resolved."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def verbosity(self) -> str:
        """Level of the logger ``"celldial"``: ``"DEBUG"``, ``"INFO"``, ``"WARNING"`` or ``"ERROR"``."""
        return logging.getLevelName(logging.getLogger("celldial").getEffectiveLevel())

    @verbosity.setter
    def verbosity(self, level: str) -> None:
        logging.getLogger("celldial").setLevel(level.upper())


settings = Settings()


@contextmanager
def override_settings(device: str | None, precision: Precision | None) -> Iterator[None]:
    """Override settings in this block; None keeps a setting."""
    before = settings.device, settings.precision
    if device is not None:
        settings.device = device
    if precision is not None:
        settings.precision = precision
    try:
        yield
    finally:
        settings.device, settings.precision = before

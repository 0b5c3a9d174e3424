"""Free memory of a device."""

from __future__ import annotations

import psutil
import torch

__all__ = ["available_memory"]


def available_memory(device: torch.device) -> int:
    """Return the free memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)

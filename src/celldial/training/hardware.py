"""On what training runs, by Lightning Fabric: devices, processes, precision, loggers."""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from celldial.utils.settings import Precision, settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Hardware"]


@dataclass(frozen=True)
class Hardware:
    """Where training runs; what is learned does not hang on it, but for rounding and the order of random numbers.

    Parameters
    ----------
    device
        Kind of device: ``"cpu"`` or ``"cuda"``, or one of several, ``"cuda:1"``; by default that of the settings.
    precision
        As Lightning Fabric names them: ``"32-true"`` or ``"bf16-mixed"``; by default that of the settings.
    compile
        Whether to compile the networks with ``torch.compile``.
    devices
        How many devices of a machine, each with a process of its own; None for as many as ``torchrun`` started
        processes there, and without it one.
    num_nodes
        On how many machines; None as with `devices`.
    strategy
        How the processes come about and agree, as Lightning Fabric names them; ``"auto"`` for those that ``torchrun``
        started, or else for new ones (``"ddp_spawn"``, in notebooks ``"ddp_notebook"``).
    loggers
        Loggers of Lightning Fabric, which get the history after each epoch.

    Raises
    ------
    ValueError
        New processes would be forked from one that has threads, and would wait for ever.
    """

    device: str | None = None
    precision: Precision | None = None
    compile: bool = False
    devices: int | None = None
    num_nodes: int | None = None
    strategy: str = "auto"
    loggers: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if self.launch_method == "ddp_notebook" and torch.get_num_threads() > 1:
            # A process that is forked has none of the threads, and waits for them for ever.
            raise ValueError(
                "several processes cannot be started from a notebook or prompt where torch has "
                f"{torch.get_num_threads()} threads: put the call into a script, or set OMP_NUM_THREADS=1 before "
                "Python starts"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant, or the kind of those."""
        return settings.torch_device if self.device is None else torch.device(self.device)

    @property
    def n_devices_and_nodes(self) -> tuple[int, int]:
        """How many devices of a machine, and how many machines."""
        here, all_ = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        devices = here if self.devices is None else self.devices
        return devices, all_ // here if self.num_nodes is None else self.num_nodes

    @property
    def launch_method(self) -> str:
        """How the processes come about and agree, as `strategy` or what there is chooses."""
        if self.strategy != "auto" or math.prod(self.n_devices_and_nodes) == 1:
            return self.strategy
        if "LOCAL_RANK" in os.environ:  # by torchrun, in every process
            return "ddp"
        return "ddp_notebook" if is_interactive() else "ddp_spawn"

    @property
    def numeric_settings(self) -> dict[str, Any]:
        """What random numbers and rounding hang on."""
        return {
            "device": self.torch_device.type,
            "precision": settings.precision if self.precision is None else self.precision,
            "compile": self.compile,
            "processes": math.prod(self.n_devices_and_nodes),
        }

    def fabric(self) -> Fabric:
        """Set Lightning Fabric up."""
        from lightning_fabric import Fabric  # here because it takes a second, which `import celldial` need not
        from lightning_fabric.strategies.ddp import DDPStrategy

        device = self.torch_device
        chosen = settings.precision if self.precision is None else self.precision
        devices, num_nodes = self.n_devices_and_nodes
        strategy: Any = self.launch_method
        if strategy in START_METHODS:
            # Buffers are constants of training. Gradients stay where they are summed up over the processes, instead of
            # being copied there and back.
            known = inspect.signature(DistributedDataParallel).parameters
            syncs = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the older name
            options: dict[str, Any] = {syncs: False, "gradient_as_bucket_view": True}
            strategy = DDPStrategy(start_method=START_METHODS[strategy], **options)
        return Fabric(
            accelerator=device.type,
            devices=[device.index] if ":" in str(device) else devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision="32-true" if chosen == "auto" else chosen,
            loggers=list(self.loggers),
        )


def is_interactive() -> bool:
    """Tell whether this is a notebook or a prompt, from where no process can be started that begins anew."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


START_METHODS: dict[str, Any] = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_notebook": "fork"}

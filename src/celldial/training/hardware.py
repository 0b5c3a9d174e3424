"""Hardware of training, with Lightning Fabric: devices, precision, loggers, worker processes and their results."""

from __future__ import annotations

import copy
import inspect
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from celldial.training.plan import StageResult
from celldial.utils.settings import Precision, settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from celldial.io.checkpoint import Checkpoint
    from celldial.model.module import Module

__all__ = ["Hardware", "RunContext", "all_gather", "all_reduce_sum", "launch"]

# Lightning Fabric's name of each launch method to the way in which it starts processes.
START_METHODS: dict[str, Any] = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_notebook": "fork"}


@dataclass(frozen=True)
class Hardware:
    """The hardware to train on. Results do not depend on it, except for rounding and the order of random numbers.

    Parameters
    ----------
    device
        Kind of device, ``"cpu"`` or ``"cuda"``, or one device, such as ``"cuda:1"``. By default that of the settings.
    precision
        Precision in the names of Lightning Fabric, ``"32-true"`` or ``"bf16-mixed"``. By default that of the settings.
    compile
        Whether to compile the networks with ``torch.compile``.
    devices
        Number of devices per machine, each with a process of its own. By default as many as ``torchrun`` started
        processes on this machine, and without ``torchrun`` 1.
    num_nodes
        Number of machines. By default that of ``torchrun``, and without it 1.
    strategy
        Lightning Fabric's name of the way in which processes start and communicate. ``"auto"`` uses the processes that
        ``torchrun`` started, or starts new ones (``"ddp_spawn"``, in notebooks ``"ddp_notebook"``).
    loggers
        Loggers of Lightning Fabric, which receive the history after each epoch.

    Raises
    ------
    ValueError
        New processes would be forked from a process with several threads, and would wait forever.
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
            # A forked process does not have the parent's threads, and waits for them forever.
            raise ValueError(
                "several processes cannot be started from a notebook or prompt in which torch uses "
                f"{torch.get_num_threads()} threads: call fit from a script, or set OMP_NUM_THREADS=1 before Python "
                "starts"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device to train on; only its kind if several devices are used."""
        return settings.torch_device if self.device is None else torch.device(self.device)

    @property
    def n_devices_and_nodes(self) -> tuple[int, int]:
        """Number of devices per machine, and number of machines."""
        local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        devices = local if self.devices is None else self.devices
        return devices, world // local if self.num_nodes is None else self.num_nodes

    @property
    def launch_method(self) -> str:
        """Lightning Fabric's name of the way in which processes start, resolved from `strategy`."""
        if self.strategy != "auto" or math.prod(self.n_devices_and_nodes) == 1:
            return self.strategy
        if "LOCAL_RANK" in os.environ:  # set by torchrun in every process
            return "ddp"
        return "ddp_notebook" if is_interactive() else "ddp_spawn"

    @property
    def numeric_settings(self) -> dict[str, Any]:
        """The settings that random numbers and rounding depend on."""
        return {
            "device": self.torch_device.type,
            "precision": settings.precision if self.precision is None else self.precision,
            "compile": self.compile,
            "processes": math.prod(self.n_devices_and_nodes),
        }

    def fabric(self) -> Fabric:
        """Return a Lightning Fabric for this hardware."""
        from lightning_fabric import Fabric  # here: the import takes a second, which `import celldial` should not take
        from lightning_fabric.strategies.ddp import DDPStrategy

        device = self.torch_device
        precision = settings.precision if self.precision is None else self.precision
        devices, num_nodes = self.n_devices_and_nodes
        strategy: Any = self.launch_method
        if strategy in START_METHODS:
            # Buffers do not change in training. Gradients stay in the buckets in which processes sum them: no copies.
            known = inspect.signature(DistributedDataParallel).parameters
            sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # older
            options: dict[str, Any] = {sync_buffers: False, "gradient_as_bucket_view": True}
            strategy = DDPStrategy(start_method=START_METHODS[strategy], **options)
        return Fabric(
            accelerator=device.type,
            devices=[device.index] if ":" in str(device) else devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision="32-true" if precision == "auto" else precision,
            loggers=list(self.loggers),
        )


@dataclass(frozen=True)
class RunContext:
    """The hardware to train on, and the checkpoint to write to and to resume from."""

    hardware: Hardware = field(default_factory=Hardware)
    checkpoint: Checkpoint | None = None

    def for_stage(self, stage: str) -> RunContext:
        """Return the context of one stage, which has a checkpoint file of its own."""
        return RunContext(self.hardware, None if self.checkpoint is None else self.checkpoint.for_stage(stage))


def is_interactive() -> bool:
    """Return whether this is a notebook or a prompt, in which new processes cannot import the running script."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


@dataclass(frozen=True)
class WorkerResult:
    """File in which worker processes return their result: the pipe between processes is for small objects."""

    parent_process: int
    path: Path

    def write(self, module: Module, result: StageResult) -> None:
        """Write the trained weights and the result."""
        weights = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        torch.save({"weights": weights, **result._asdict()}, self.path)

    def read_into(self, module: Module) -> StageResult:
        """Load the trained weights into the module, and return the result."""
        content = torch.load(self.path, weights_only=True)
        module.load_state_dict(content.pop("weights"))
        return StageResult(**content)


def launch(fabric: Fabric, train: Callable[[Fabric, Module], StageResult], module: Module) -> StageResult:
    """Train in all processes of a fabric, starting those that are missing.

    Parameters
    ----------
    fabric
        The fabric.
    train
        Trains the module in one process. It must be picklable.
    module
        The module; afterwards it has the trained weights, in this process too.
    """
    with tempfile.TemporaryDirectory(prefix="celldial") as folder:
        worker_result = WorkerResult(os.getpid(), Path(folder) / "trained")
        # Bound to the function: Fabric searches the arguments that it passes on for modules, and fails on dataclasses.
        result = fabric.launch(partial(_train_in_worker, train=train, module=module, worker_result=worker_result))
        return worker_result.read_into(module) if worker_result.path.exists() else result


def _train_in_worker(
    fabric: Fabric, train: Callable[[Fabric, Module], StageResult], module: Module, worker_result: WorkerResult
) -> StageResult | None:
    """Train in one process; a new process returns its result by file."""
    if os.getpid() == worker_result.parent_process:
        return train(fabric, module)
    module = copy.deepcopy(module)  # new processes share the memory of the original
    result = train(fabric, module)
    if fabric.is_global_zero:
        worker_result.write(module, result)
    return None


def all_reduce_sum(fabric: Fabric, value: Tensor) -> Tensor:
    """Sum a tensor over all processes."""
    total: Any = fabric.all_reduce(value, reduce_op="sum")
    return total


def all_gather(fabric: Fabric, value: Tensor) -> Tensor:
    """Gather a tensor from all processes, stacked by rank, on the CPU."""
    gathered = torch.zeros((fabric.world_size, *value.shape), dtype=value.dtype, device=fabric.device)
    gathered[fabric.global_rank] = value
    return all_reduce_sum(fabric, gathered).cpu()

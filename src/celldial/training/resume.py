"""Save the state of a trainer in a checkpoint, and resume training from it."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celldial.training.hardware import all_gather

if TYPE_CHECKING:
    from celldial.io.checkpoint import Checkpoint
    from celldial.training.loop import Trainer

__all__ = ["TrainerCheckpoint", "TrainerState"]

logger = logging.getLogger("celldial")

# Number of steps between two checks of the clock if several processes have to agree on the time.
CLOCK_CHECK_STEPS = 50


@dataclass
class TrainerState:
    """The progress of a training in JSON types: all state except weights, optimizer and random numbers."""

    epoch: int = 0  # number of complete epochs
    n_minibatches: int = 0  # done in the current epoch
    n_cells: int = 0  # in these minibatches
    step: int = 0
    records: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_elbo: float | None = None
    seconds: float = 0.0
    finished: bool = False


class TrainerCheckpoint:
    """The checkpoint of a trainer: when it is written, its content, and how training resumes from it.

    Parameters
    ----------
    checkpoint
        The file.
    trainer
        The trainer to save and restore.
    """

    def __init__(self, checkpoint: Checkpoint, trainer: Trainer) -> None:
        self.checkpoint, self.trainer = checkpoint, trainer
        self.write_time = time.perf_counter()

    def after_step(self) -> None:
        """Write the checkpoint if it is written by the clock, and it is time."""
        if self._is_due():
            self._write(self.trainer.epoch_order)

    def after_epoch(self) -> None:
        """Write the checkpoint if it is written after each epoch, or training has finished."""
        if self.trainer.state.finished or self.checkpoint.minutes is None:
            self._write(self.trainer.generator.get_state())

    def _is_due(self) -> bool:
        if self.checkpoint.minutes is None:
            return False
        fabric, due = self.trainer.fabric, time.perf_counter() - self.write_time >= 60 * self.checkpoint.minutes
        if fabric.world_size == 1:
            return due
        # All processes have to agree, and communication takes time.
        return self.trainer.state.step % CLOCK_CHECK_STEPS == 0 and fabric.broadcast(due)

    def _write(self, order: Tensor) -> None:
        """Write the checkpoint; `order` is the generator's state at the start of the current or next epoch."""
        trainer, fabric = self.trainer, self.trainer.fabric
        tensors = {"order": order, "loss_sum": all_gather(fabric, trainer.loss_sum)}
        tensors["random"] = all_gather(fabric, torch.get_rng_state())
        if fabric.device.type == "cuda":
            tensors["random_cuda"] = all_gather(fabric, torch.cuda.get_rng_state(fabric.device))
        tensors |= {f"module.{name}": tensor for name, tensor in trainer.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in trainer.best_weights.items()}
        adam = trainer.adam.state_dict()
        for index, moments in adam["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
        if fabric.is_global_zero:
            metadata = {
                "state": {**asdict(trainer.state), "seconds": trainer.seconds},
                "groups": adam["param_groups"],
                "schedule": trainer.schedule.state_dict(),
            }
            self.checkpoint.write(metadata, tensors)
        self.write_time = time.perf_counter()

    def resume(self) -> None:
        """Restore the trainer's state if the file exists."""
        found = self.checkpoint.read()
        if found is None:
            return
        metadata, tensors = found
        trainer, fabric = self.trainer, self.trainer.fabric
        trainer.state = TrainerState(**metadata["state"])
        trainer.module.load_state_dict(_with_prefix(tensors, "module."))
        best_weights = _with_prefix(tensors, "best.")
        trainer.best_weights = {name: tensor.to(fabric.device) for name, tensor in best_weights.items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(tensors, "adam.").items():
            index, quantity = name.split(".")
            moments.setdefault(int(index), {})[quantity] = tensor
        trainer.adam.load_state_dict({"state": moments, "param_groups": metadata["groups"]})
        trainer.schedule.load_state_dict(metadata["schedule"])
        trainer.generator.set_state(tensors["order"])
        trainer.loss_sum.copy_(tensors["loss_sum"][fabric.global_rank])
        # Cloned because torch reads a generator's state from the start of its storage.
        torch.set_rng_state(tensors["random"][fabric.global_rank].clone())
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"][fabric.global_rank].clone(), fabric.device)
        if not trainer.state.finished:
            logger.info("resuming after epoch %d of %d", trainer.state.epoch, trainer.plan.max_epochs)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

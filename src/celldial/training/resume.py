"""Save the state of a trainer in a checkpoint, and resume training from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from celldial.io.model_file import wrap_file_errors
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
        with wrap_file_errors(self.checkpoint.path):
            self._restore(*found)
        if not self.trainer.state.finished:
            logger.info("resuming after epoch %d of %d", self.trainer.state.epoch, self.trainer.plan.max_epochs)

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore the trainer's state from the metadata and the tensors of a checkpoint."""
        trainer, fabric = self.trainer, self.trainer.fabric
        check_records(metadata["state"]["records"])
        trainer.state = TrainerState(**metadata["state"])
        weights = _with_prefix(tensors, "module.")
        check_weights(weights, trainer.module.state_dict())
        trainer.module.load_state_dict(weights)
        best_weights = _with_prefix(tensors, "best.")
        check_weights(best_weights, trainer.module.state_dict())
        trainer.best_weights = {name: tensor.to(fabric.device) for name, tensor in best_weights.items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(tensors, "adam.").items():
            index, quantity = name.split(".")
            moments.setdefault(int(index), {})[quantity] = tensor
        check_moments(moments, trainer.adam)
        trainer.adam.load_state_dict({"state": moments, "param_groups": metadata["groups"]})
        trainer.schedule.load_state_dict(metadata["schedule"])
        trainer.generator.set_state(tensors["order"])
        trainer.loss_sum.copy_(tensors["loss_sum"][fabric.global_rank])
        # Cloned because torch reads a generator's state from the start of its storage.
        torch.set_rng_state(tensors["random"][fabric.global_rank].clone())
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"][fabric.global_rank].clone(), fabric.device)


def check_records(records: Any) -> None:
    """Raise unless the history of the training is a list of numbers by name."""
    for record in records if isinstance(records, list) else [None]:
        if not isinstance(record, dict) or not all(isinstance(value, int | float) for value in record.values()):
            raise TypeError("its history is not a list of numbers by name")
        if record.keys() != records[0].keys() or "learning_rate" not in record:
            raise ValueError("the epochs of its history differ in what they recorded")


def check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless weights have the names, shapes and types of the module's, and are finite; there may be none."""
    if found and found.keys() != expected.keys():
        raise ValueError(f"it lacks weights, or has others: {sorted(found.keys() ^ expected.keys())[0]}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")


def check_moments(moments: Mapping[int, Mapping[str, Tensor]], adam: torch.optim.Optimizer) -> None:
    """Raise unless the moments of the optimizer have the shapes of the weights: its fused step does not check them."""
    weights = [weight for group in adam.param_groups for weight in group["params"]]
    for index, found in moments.items():
        if not 0 <= index < len(weights):
            raise ValueError(f"it has moments of weight {index}, and the model has {len(weights)}")
        for name, moment in found.items():
            expected = weights[index].shape if name != "step" else torch.Size([])
            if moment.shape != expected or moment.dtype != torch.float32 or not bool(moment.isfinite().all()):
                raise ValueError(f"{name} of weight {index} is not what training has written")


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

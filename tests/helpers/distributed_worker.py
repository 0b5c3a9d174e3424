"""The script of each process in ``test_distributed.py``: ``torchrun distributed_worker.py TASK FOLDER``."""

import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning_fabric import Fabric

from celldial import VAE
from celldial.data.in_memory import InMemorySource
from celldial.model.module import Module
from celldial.training import loop
from celldial.training.hardware import Hardware, launch
from celldial.training.plan import StageResult, TrainingPlan
from helpers.modules import build_module
from helpers.simulate import simulate, simulate_cells


def train_without_noise(
    n_validation_cells: int = 17, devices: int | None = None
) -> tuple[Module, dict[str, list[float]]]:
    """Train with random numbers only in the order of the cells, which any number of processes share.

    By default, two processes cannot share the validation cells evenly; with one cell, one process has none.
    """
    torch.manual_seed(0)
    module = build_module({"rna": 20}, "negative_binomial", dropout_rate=0.0)
    cells = simulate_cells(48 + n_validation_cells)
    module.initialize(cells)
    source = InMemorySource(cells, torch.arange(48), torch.arange(48, len(cells)))
    fabric = Hardware("cpu", devices=devices).fabric()
    result = launch(fabric, partial(train_in_process, source=source), module)
    return module.eval(), result.history


def train_in_process(fabric: Fabric, module: Module, source: InMemorySource) -> StageResult:
    """Train in each of the processes."""
    normal: Any = torch.distributions.normal
    plan = TrainingPlan(max_epochs=3, batch_size=16)
    with mock.patch.object(normal, "_standard_normal", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype)):
        return loop.Trainer(fabric, module, source, plan, 0, None).run()


def fit(checkpoint: Path | None, devices: int | None = None) -> VAE:
    """Train until early stopping."""
    model = VAE(2, 8, batch_key="batch", learning_rate=0.05)
    options = {"max_epochs": 40, "progress": False, "device": "cpu", "devices": devices}
    return model.fit(simulate(), checkpoint=checkpoint, **options)


def die_at(step: int) -> None:
    """Kill the second process before a step."""
    take_step = loop.Trainer._step

    def dying(self: loop.Trainer, minibatch: Any) -> None:
        if self.state.step == step and self.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(self, minibatch)

    loop.Trainer._step = dying  # type: ignore[method-assign]


def main() -> None:
    warnings.simplefilter("error")
    task, folder, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK"]
    if task == "without_noise":
        module, history = train_without_noise()
    else:
        if task == "dies":
            die_at(step=9)
        model = fit(None if task == "undisturbed" else folder / "checkpoint")
        module, history = model.module_, model.history_
    (folder / f"{task}-{rank}.json").write_text(json.dumps(history))
    torch.save(module.state_dict(), folder / f"{task}-{rank}.pt")


if __name__ == "__main__":
    main()

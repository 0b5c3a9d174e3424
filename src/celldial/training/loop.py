"""The training loop: minibatches, schedule, early stopping, history. Knows cells as tensors, and no AnnData.

The KL term is warmed up, so that the decoder learns to use the latent state before the prior pulls on it; the learning
rate goes up and down once (Smith and Topin 2018, arXiv:1708.07120), which reaches in twenty epochs what a constant rate
reaches in two hundred; the weights of the epoch with the best validation ELBO are kept.

Several processes each train on their share of every minibatch, and average the gradients (data parallel): they hold the
same weights at all times, see the same history, and so agree on when to stop.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from celldial.training.hardware import Hardware
from celldial.training.optimizer import make_optimizer
from celldial.training.torch_compile import compiled_networks

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from celldial.data.cells import Cells
    from celldial.data.in_memory import Source
    from celldial.io.checkpoint import Checkpoint
    from celldial.model.module import Module

__all__ = ["RunContext", "TrainingPlan", "choose_batch_size", "choose_max_epochs", "concat_history", "evaluate", "fit"]

logger = logging.getLogger("celldial")

# The share of all steps over which the weight of the KL term rises to 1, and the share until the learning rate's peak.
KL_WARMUP_FRACTION = 1 / 6
LR_WARMUP_FRACTION = 0.3
# Steps between two looks at the clock where several processes have to agree on the time.
CLOCK_CHECK_STEPS = 50


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Parameters
    ----------
    max_epochs
        Passes over the training cells.
    batch_size
        Cells in a minibatch, of all devices together.
    learning_rate
        Peak of the learning rate.
    weight_decay
        Of the weight matrices but for the decoder's last, which have a prior; biases and dispersions have none.
    early_stopping
        Stop when the validation ELBO has not become better for a quarter of the epochs, 10 at least.
    warm_up
        Whether the weight of the KL term starts near 0.
    progress
        Whether to show a progress bar on stderr.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float = 8e-3
    weight_decay: float = 0.3
    early_stopping: bool = True
    kl_warmup: bool = True
    progress: bool = False


@dataclass
class RunContext:
    """On what to train, where to keep what is needed to go on, and whether Ctrl-C ended it (`fit` says so)."""

    hardware: Hardware = field(default_factory=Hardware)
    checkpoint: Checkpoint | None = None
    interrupted: bool = False

    def for_stage(self, stage: str) -> RunContext:
        """Give that of one stage of a training in several."""
        return RunContext(self.hardware, None if self.checkpoint is None else self.checkpoint.for_stage(stage))


def choose_max_epochs(n_cells: int) -> int:
    """Choose the number of epochs: fewer passes over more cells, 20 over 6,000."""
    return round(min(max(20 * (6000 / n_cells) ** 0.3, 6), 100))


def choose_batch_size(n_cells: int, device: str = "cpu") -> int:
    """Choose the size of a minibatch: 128, or less where an epoch would have fewer than eight steps.

    On a GPU, which small minibatches leave idle, up to 1,024 where an epoch has a thousand steps all the same.
    """
    most = 128 if device == "cpu" else min(max(2 ** math.floor(math.log2(n_cells / 1000)), 128), 1024)
    return min(max(2 ** round(math.log2(n_cells / 8)), 16), most)


def fit(
    module: Module, source: Source, plan: TrainingPlan, seed: int, run: RunContext | None = None
) -> dict[str, list[float]]:
    """Train a module in place; afterwards it holds the weights of the best epoch.

    Parameters
    ----------
    module
        What to train.
    source
        The cells. Without validation cells the last epoch is kept.
    plan
        How to train.
    seed
        Of the order of the cells. The noise of the latent samples comes from torch's generator.
    run
        On what to train, and where to keep what is needed to go on.

    Returns
    -------
    dict[str, list[float]]
        Quantity to its value after each epoch, in nats per cell: ``elbo_train`` (of the epoch's minibatches as they
        were trained: with dropout, and the KL term at its weight), and where there are validation cells
        ``elbo_validation``, ``log_likelihood_validation`` and ``kl_validation`` (one sample per cell, full weight; with
        several modalities also ``log_likelihood_<modality>_validation``, per cell of all); besides ``kl_weight``,
        ``learning_rate``, ``seconds`` since the start, and ``kept``, which is 1 for the epoch whose weights the module
        now has.

    Raises
    ------
    FloatingPointError
        The ELBO is not finite.
    ValueError, OSError
        The checkpoint is of another training, or could not be written.

    Notes
    -----
    Ctrl-C ends training as if it were over: the best epoch's weights stand, and `run` has it noted, so that no further
    stage begins. During the first epoch, and with several processes, it is raised.
    """
    run = run or RunContext()
    fabric = run.hardware.fabric()
    with tempfile.TemporaryDirectory(prefix="celldial") as folder:
        result = WorkerResult(os.getpid(), Path(folder) / "trained")
        # Bound to the function, because Fabric looks for modules in what it hands on, and stumbles over dataclasses.
        train = partial(
            _train,
            module=module,
            source=source,
            plan=plan,
            seed=seed,
            run=run,
            result=result,
        )
        history: dict[str, list[float]] = fabric.launch(train)
        if result.path.exists():
            trained = torch.load(result.path, weights_only=True)
            module.load_state_dict(trained["weights"])
            history = trained["history"]
    module.eval()
    return history


@dataclass(frozen=True)
class WorkerResult:
    """How new processes hand over what they learned: in a file, as what goes through their pipe must be small."""

    process: int
    path: Path


def _train(
    fabric: Fabric,
    module: Module,
    source: Source,
    plan: TrainingPlan,
    seed: int,
    run: RunContext,
    result: WorkerResult,
) -> dict[str, list[float]] | None:
    """Train in this process, which may be one of several."""
    new = os.getpid() != result.process
    if new:
        module = copy.deepcopy(module)  # which came in memory that new processes share
    training = Trainer(fabric, module, source, plan, seed, run.checkpoint)
    with compiled_networks(module) if run.hardware.compile else nullcontext():
        history = training.run()
    run.interrupted = training.interrupted
    if not new:
        return history
    if fabric.is_global_zero:
        weights = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        torch.save({"weights": weights, "history": history}, result.path)
    return None


class _Loss(nn.Module):
    """The loss as data parallel training takes it: Fabric looks for tensors to convert in any input but a function."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, minibatch: Callable[[], Cells], kl_weight: float, progress: float) -> Tensor:
        loss: Tensor = self.module(minibatch(), kl_weight, progress)
        return loss


@dataclass
class State:
    """How far a training is: all that changes but for weights, optimizer and random numbers, in JSON types."""

    epoch: int = 0  # how many are complete
    n_done: int = 0  # minibatches of the next one
    n_cells: int = 0  # in these
    step: int = 0
    records: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_elbo: float | None = None
    seconds: float = 0.0
    finished: bool = False


class Trainer:
    """One training, as one process sees it.

    Parameters
    ----------
    fabric
        Launched.
    module, source, plan, seed, checkpoint
        As in `fit` and `RunContext`.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: Module,
        source: Source,
        plan: TrainingPlan,
        seed: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        n_each = source.n_train // fabric.world_size
        if n_each == 0:
            raise ValueError(f"{fabric.world_size} processes are too many for {source.n_train} cells to train on")
        self.fabric, self.module, self.plan, self.checkpoint = fabric, module, plan, checkpoint
        self.n_steps = plan.max_epochs * math.ceil(n_each / max(1, plan.batch_size // fabric.world_size))
        self.adam = make_optimizer(module, plan.learning_rate, plan.weight_decay, source.n_train)
        peaks = [group["lr"] for group in self.adam.param_groups]
        self.schedule = OneCycleLR(
            self.adam, peaks, total_steps=self.n_steps + 1, pct_start=LR_WARMUP_FRACTION, div_factor=10
        )
        self.loss, self.optimizer = fabric.setup(_Loss(module), self.adam)
        self.source = source.to(fabric.device)
        self.shard = (fabric.global_rank, fabric.world_size)
        self.generator = torch.Generator().manual_seed(seed)
        # Where the order of the cells in this epoch begins: who goes on in its middle needs the same order.
        self.order = self.generator.get_state()
        self.loss_sum = torch.zeros((), device=fabric.device)
        self.best: dict[str, Tensor] = {}
        self.state = State()
        self.interrupted = False
        if fabric.global_rank > 0:  # the noise of each process is its own
            torch.manual_seed(seed + fabric.global_rank)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.started = self.written = time.perf_counter()

    def run(self) -> dict[str, list[float]]:
        """Train to the end, and leave the module with the weights of the best epoch; gives the history."""
        state, plan, several = self.state, self.plan, self.fabric.world_size > 1
        hidden = not (plan.progress and self.fabric.is_global_zero)
        bar = tqdm(total=plan.max_epochs, initial=state.epoch, desc="celldial", unit="epoch", disable=hidden)
        try:
            while not state.finished:
                self._epoch()
                bar.update()
                bar.set_postfix_str(f"ELBO {selection_elbo(state.records[-1]):.1f} nats/cell")
        except KeyboardInterrupt:
            if several or not self.best:  # one of several that ended by itself would leave the others waiting
                raise
            self.interrupted = True
            logger.warning("interrupted: the model has the weights of epoch %d", state.best_epoch + 1)
        finally:
            bar.close()
            for fabric_logger in self.fabric.loggers:
                fabric_logger.finalize("success" if state.finished else "failed")
        self.module.load_state_dict(self.best)
        if several:
            # What is drawn from here on is the same in every process.
            torch.manual_seed(state.step)
        history = {name: [record[name] for record in state.records] for name in state.records[0]}
        return {**history, "kept": [float(epoch == state.best_epoch) for epoch in range(len(state.records))]}

    def _epoch(self) -> None:
        """Go once through the cells, and judge by the validation cells what came of it."""
        state, plan = self.state, self.plan
        self.order = self.generator.get_state()
        self.module.train()
        minibatches = self.source.training(plan.batch_size, self.generator, *self.shard)
        for minibatch in islice(minibatches, state.n_done, None):
            self._step(minibatch)
            if self._checkpoint_is_due():
                self._write_checkpoint(self.order)
        loss_sum = self.loss_sum.double()
        total_loss, n_cells = self._all_reduce_sum(torch.stack([loss_sum, loss_sum.new_tensor(state.n_cells)])).tolist()
        record = {"elbo_train": -total_loss / n_cells}
        if self.source.n_validation > 0:
            record |= evaluate(self.module, self.source.validation(*self.shard), self._all_reduce_sum)
        elbo = selection_elbo(record)
        wrong = [value for value in (record["elbo_train"], elbo) if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f"the ELBO became {wrong[0]} in epoch {state.epoch + 1} of {plan.max_epochs}: try a lower "
                f"learning_rate (it was {plan.learning_rate:g}), and look for features with extreme counts"
            )
        record |= {"kl_weight": self._kl_weight(), "learning_rate": float(self.schedule.get_last_lr()[0])}
        state.records.append({**record, "seconds": self._seconds()})
        self.fabric.log_dict(state.records[-1], step=state.epoch)
        if self.source.n_validation == 0 or state.best_elbo is None or elbo > state.best_elbo:
            state.best_elbo, state.best_epoch = elbo, state.epoch
            self._save_best_weights()
        state.epoch, state.n_done, state.n_cells = state.epoch + 1, 0, 0
        self.loss_sum.zero_()
        waited = state.epoch - 1 - state.best_epoch
        state.finished = state.epoch == plan.max_epochs
        if plan.early_stopping and waited >= max(10, plan.max_epochs // 4):
            state.finished = True
            logger.info("stopped after epoch %d: the best was epoch %d", state.epoch, state.best_epoch + 1)
        if self.checkpoint is not None and (state.finished or self.checkpoint.minutes is None):
            self._write_checkpoint(self.generator.get_state())

    def _step(self, minibatch: Cells) -> None:
        state, fabric = self.state, self.fabric
        state.step += 1
        loss = self.loss(lambda: minibatch, self._kl_weight(), min(1.0, state.step / self.n_steps))
        fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()  # now: the next forward pass needs memory, and wide gradients have much
        if state.step <= self.n_steps:
            self.schedule.step()
        self.loss_sum += loss.detach() * len(minibatch)
        state.n_done, state.n_cells = state.n_done + 1, state.n_cells + len(minibatch)

    def _kl_weight(self) -> float:
        return min(1.0, self.state.step / (KL_WARMUP_FRACTION * self.n_steps)) if self.plan.kl_warmup else 1.0

    def _save_best_weights(self) -> None:
        for name, tensor in self.module.state_dict().items():
            if name in self.best:
                self.best[name].copy_(tensor)  # into the same memory: wide models are large
            else:
                self.best[name] = tensor.clone()

    def _all_reduce_sum(self, value: Tensor) -> Any:
        """Sum over all processes."""
        total: Any = self.fabric.all_reduce(value, reduce_op="sum")
        return total

    def _seconds(self) -> float:
        return self.state.seconds + time.perf_counter() - self.started

    # --- What is needed to go on ----------------------------------------------------------------------------------

    def _checkpoint_is_due(self) -> bool:
        if self.checkpoint is None or self.checkpoint.minutes is None:
            return False
        due = time.perf_counter() - self.written >= 60 * self.checkpoint.minutes
        if self.fabric.world_size == 1:
            return due
        # All have to agree, and asking each other takes time.
        return self.state.step % CLOCK_CHECK_STEPS == 0 and self.fabric.broadcast(due)

    def _write_checkpoint(self, order: Tensor) -> None:
        """Write a checkpoint, where the order of the cells in the running or next epoch begins at `order`."""
        assert self.checkpoint is not None
        tensors = {"order": order, "loss_sum": self._all_gather(self.loss_sum)}
        tensors["random"] = self._all_gather(torch.get_rng_state())
        if self.fabric.device.type == "cuda":
            tensors["random_cuda"] = self._all_gather(torch.cuda.get_rng_state(self.fabric.device))
        tensors |= {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        adam = self.adam.state_dict()
        for index, moments in adam["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
        if self.fabric.is_global_zero:
            about = {
                "state": {**asdict(self.state), "seconds": self._seconds()},
                "groups": adam["param_groups"],
                "schedule": self.schedule.state_dict(),
            }
            self.checkpoint.write(about, tensors)
        self.written = time.perf_counter()

    def _all_gather(self, value: Tensor) -> Tensor:
        """Give what each process has, one below the other."""
        rank, n_ranks = self.shard
        gathered = torch.zeros((n_ranks, *value.shape), dtype=value.dtype, device=self.fabric.device)
        gathered[rank] = value
        total: Tensor = self._all_reduce_sum(gathered)
        return total.cpu()

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Take up the training where the checkpoint, if there is one, leaves it."""
        found = checkpoint.read()
        if found is None:
            return
        about, tensors = found

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}

        self.state = State(**about["state"])
        self.module.load_state_dict(part("module."))
        self.best = {name: tensor.to(self.fabric.device) for name, tensor in part("best.").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("adam.").items():
            index, quantity = name.split(".")
            moments.setdefault(int(index), {})[quantity] = tensor
        self.adam.load_state_dict({"state": moments, "param_groups": about["groups"]})
        self.schedule.load_state_dict(about["schedule"])
        self.generator.set_state(tensors["order"])
        self.loss_sum.copy_(tensors["loss_sum"][self.fabric.global_rank])
        # Copied, because torch reads a state from where its storage begins.
        torch.set_rng_state(tensors["random"][self.fabric.global_rank].clone())
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"][self.fabric.global_rank].clone(), self.fabric.device)
        if not self.state.finished:
            logger.info("going on after epoch %d of %d", self.state.epoch, self.plan.max_epochs)


def selection_elbo(record: Mapping[str, float]) -> float:
    """Give the ELBO by which epochs are compared: of the validation cells, where there are any."""
    return record.get("elbo_validation", record["elbo_train"])


def concat_history(history: dict[str, list[float]], record: dict[str, list[float]]) -> dict[str, list[float]]:
    """Join the history of a training with that of one that went on from it, whose weights are kept."""
    record = {**record, "seconds": [seconds + history["seconds"][-1] for seconds in record["seconds"]]}
    history = {**history, "kept": [0.0] * len(history["kept"])}
    return {name: history[name] + values for name, values in record.items()}


@torch.no_grad()
def evaluate(
    module: Module, blocks: Iterable[Cells], total: Callable[[Tensor], Tensor] = lambda value: value
) -> dict[str, float]:
    """Mean ELBO of cells in nats per cell, and its terms, with one latent sample per cell.

    Parameters
    ----------
    module
        What is asked; it is deterministic afterwards, but for the samples.
    blocks
        The cells, block by block.
    total
        Sums numbers over all processes, of which each has some of the cells.
    """
    module.eval()
    # Zeros, because one of several processes may have no cell.
    sums = torch.zeros(len(module.modalities) + 2, dtype=torch.float64, device=next(module.parameters()).device)
    for block in blocks:
        log_likelihood, kl_c = module.elbo(block)
        terms = [term_c.double().sum() for term_c in (*log_likelihood.values(), kl_c)]
        sums += torch.stack([*terms, terms[0].new_full((), len(block))])
    *log_likelihoods, kl, n_cells = total(sums).tolist()
    means = {modality: value / n_cells for modality, value in zip(module.modalities, log_likelihoods, strict=True)}
    log_likelihood_validation = sum(log_likelihoods) / n_cells
    record = {
        "elbo_validation": log_likelihood_validation - kl / n_cells,
        "log_likelihood_validation": log_likelihood_validation,
        "kl_validation": kl / n_cells,
    }
    if len(means) > 1:
        record |= {f"log_likelihood_{modality}_validation": value for modality, value in means.items()}
    return record

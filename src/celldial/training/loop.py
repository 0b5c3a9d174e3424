"""The training loop: minibatches, schedules of learning rate and KL weight, early stopping, history.

The weight of the KL term rises from 0, so that the decoder learns to use the latent state before the KL term has its
full weight. The learning rate rises and falls once (Smith and Topin 2018, arXiv:1708.07120). With this schedule, twenty
epochs reach the same result as two hundred epochs with a constant rate. The weights of the epoch with the best
validation ELBO are kept.

Several processes each train on their share of every minibatch and average their gradients (data parallelism). They
have the same weights and the same history at all times, so they stop after the same epoch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from celldial.training.hardware import RunContext, all_reduce_sum, launch
from celldial.training.optimizer import make_optimizer
from celldial.training.plan import History, StagePlan, StageResult, TrainingPlan
from celldial.training.resume import TrainerCheckpoint, TrainerState
from celldial.training.torch_compile import compiled_networks

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from celldial.data.cells import Cells
    from celldial.data.source import Source
    from celldial.io.checkpoint import Checkpoint
    from celldial.model.module import Module

__all__ = ["Trainer", "concat_history", "evaluate", "fit", "train"]

logger = logging.getLogger("celldial")

# Fraction of all steps in which the weight of the KL term rises to 1.
KL_WARMUP_FRACTION = 1 / 6
# Fraction of all steps in which the learning rate rises to its peak.
LR_WARMUP_FRACTION = 0.3

SourceT = TypeVar("SourceT", bound="Source")


def fit(
    module: Module, source: SourceT, stages: StagePlan, seed: int, run: RunContext | None = None
) -> tuple[History, SourceT]:
    """Train a module in place, stage by stage.

    Parameters
    ----------
    module
        The module to train. Afterwards it has the weights of the best epoch of the last stage, and is in evaluation
        mode.
    source
        The cells. Without validation cells, the best epoch is the last one.
    stages
        The stages; see `celldial.training.stages`.
    seed
        Seed of the order of the cells; each stage adds 1. The noise of the latent samples comes from torch's generator.
    run
        The hardware, and the checkpoint if training should resume after a failure.

    Returns
    -------
    history : dict[str, list[float]]
        Quantity to its value after each epoch. Likelihoods and divergences are means over cells, in nats.
        ``elbo_train`` is minus the loss on the minibatches during training, with dropout, with the KL term at its
        current weight, and with the term that integrates batches. If there are validation cells, ``elbo_validation``,
        ``log_likelihood_validation`` and ``kl_validation`` are measured after the epoch, with one latent sample per
        cell and full KL weight; with several modalities also ``log_likelihood_<modality>_validation``, to which a cell
        that lacks the modality contributes 0. Further ``kl_weight``, ``learning_rate``, ``seconds`` since the start,
        and ``kept``, which is 1 for the epoch whose weights the module has.
    source : Source
        The source after training; a periodic coordinate updates the angles of its cells.

    Raises
    ------
    FloatingPointError
        The ELBO is not finite.
    ValueError, OSError
        The checkpoint belongs to another training, or cannot be written.

    Notes
    -----
    Ctrl-C ends training early: the module gets the weights of the best epoch so far, and later stages are skipped. In
    the first epoch of a stage, and with several processes, `KeyboardInterrupt` is raised instead.
    """
    run = RunContext() if run is None else run
    history: History = {}
    for index, stage in enumerate(stages.stages):
        if stage.before is not None:
            source = stage.before(module, source)
        result = train(module, source, stage.plan, seed + index, run.for_stage(stage.name))
        if stage.after is not None:
            source = stage.after(module, source)
        history = concat_history(history, result.history) if history else result.history
        if result.interrupted:
            break
    return history, source if stages.finish is None else stages.finish(module, source)


def concat_history(before: History, after: History) -> History:
    """Append the history of a stage to that of the stages before; the weights kept are those of the last stage."""
    before = {**before, "kept": [0.0] * len(before["kept"])}
    after = {**after, "seconds": [seconds + before["seconds"][-1] for seconds in after["seconds"]]}
    return {name: before[name] + values for name, values in after.items()}


def train(module: Module, source: Source, plan: TrainingPlan, seed: int, run: RunContext | None = None) -> StageResult:
    """Train a module in place in a single stage; parameters and errors as in `fit`."""
    run = RunContext() if run is None else run
    fabric = run.hardware.fabric()
    result = launch(fabric, partial(_train_in_process, source=source, plan=plan, seed=seed, run=run), module)
    module.eval()
    return result


def _train_in_process(
    fabric: Fabric, module: Module, source: Source, plan: TrainingPlan, seed: int, run: RunContext
) -> StageResult:
    """Train in this process, which may be one of several."""
    with nullcontext() if plan.trainable is None else plan.trainable.only(module):
        trainer = Trainer(fabric, module, source, plan, seed, run.checkpoint)
        with compiled_networks(module) if run.hardware.compile else nullcontext():
            return trainer.run()


class _Loss(nn.Module):
    """The loss for data parallel training.

    It takes a function that returns the minibatch: Fabric searches any other input for tensors to convert.
    """

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, minibatch: Callable[[], Cells], kl_weight: float, progress: float) -> Tensor:
        loss: Tensor = self.module(minibatch(), kl_weight, progress)
        return loss


class Trainer:
    """The training of one stage, in one process.

    Parameters
    ----------
    fabric
        The Fabric, launched.
    module, source, plan, seed
        As in `train`.
    checkpoint
        The checkpoint to resume from and to write to, if any.
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
        n_train = len(source.train_c) // fabric.world_size
        if n_train == 0:
            raise ValueError(
                f"there are fewer training cells ({len(source.train_c)}) than processes ({fabric.world_size}): "
                "use fewer devices"
            )
        self.fabric, self.module, self.plan = fabric, module, plan
        self.n_steps = plan.max_epochs * math.ceil(n_train / max(1, plan.batch_size // fabric.world_size))
        self.adam = make_optimizer(module, plan.learning_rate, plan.weight_decay, len(source.train_c))
        if plan.trainable is not None:
            plan.trainable.protect(module, self.adam)
        peak_rates = [group["lr"] for group in self.adam.param_groups]
        self.schedule = OneCycleLR(
            self.adam, peak_rates, total_steps=self.n_steps + 1, pct_start=LR_WARMUP_FRACTION, div_factor=10
        )
        self.loss, self.optimizer = fabric.setup(_Loss(module), self.adam)
        self.source = source.to(fabric.device)
        self.shard = (fabric.global_rank, fabric.world_size)
        self.generator = torch.Generator().manual_seed(seed)
        # State of the generator at the start of the epoch: resuming within an epoch needs the same order of the cells.
        self.epoch_order = self.generator.get_state()
        self.loss_sum = torch.zeros((), device=fabric.device)
        self.best_weights: dict[str, Tensor] = {}
        self.state = TrainerState()
        if fabric.global_rank > 0:  # each process draws its own noise
            torch.manual_seed(seed + fabric.global_rank)
        self.checkpoint = None if checkpoint is None else TrainerCheckpoint(checkpoint, self)
        if self.checkpoint is not None:
            self.checkpoint.resume()
        self.start_time = time.perf_counter()

    def run(self) -> StageResult:
        """Train to the end, and load the weights of the best epoch into the module."""
        state, several, interrupted = self.state, self.fabric.world_size > 1, False
        try:
            self._epochs()
        except KeyboardInterrupt:
            if several or not self.best_weights:  # the other processes would wait forever for one that ended by itself
                raise
            interrupted = True
            logger.warning("interrupted: the model has the weights of epoch %d", state.best_epoch + 1)
        finally:
            for fabric_logger in self.fabric.loggers:
                fabric_logger.finalize("success" if state.finished else "failed")
        self.module.load_state_dict(self.best_weights)
        if several:
            # From here on, every process draws the same random numbers.
            torch.manual_seed(state.step)
        history = {name: [record[name] for record in state.records] for name in state.records[0]}
        history["kept"] = [float(epoch == state.best_epoch) for epoch in range(len(state.records))]
        return StageResult(history, interrupted)

    def _epochs(self) -> None:
        """Train epoch by epoch, with a progress bar."""
        state, plan = self.state, self.plan
        hidden = not (plan.progress and self.fabric.is_global_zero)
        with tqdm(total=plan.max_epochs, initial=state.epoch, desc="celldial", unit="epoch", disable=hidden) as bar:
            while not state.finished:
                self._epoch()
                bar.update()
                bar.set_postfix_str(f"ELBO {selection_elbo(state.records[-1]):.1f} nats/cell")

    def _epoch(self) -> None:
        """Train on each minibatch once, evaluate, keep the weights if they are the best, and decide whether to stop."""
        state = self.state
        self.epoch_order = self.generator.get_state()
        self.module.train()
        minibatches = self.source.training_minibatches(self.plan.batch_size, self.generator, *self.shard)
        for minibatch in islice(minibatches, state.n_minibatches, None):
            self._step(minibatch)
            if self.checkpoint is not None:
                self.checkpoint.after_step()
        self._record(self._evaluate())
        state.epoch, state.n_minibatches, state.n_cells = state.epoch + 1, 0, 0
        self.loss_sum.zero_()
        state.finished = state.epoch == self.plan.max_epochs or self._stops_early()
        if self.checkpoint is not None:
            self.checkpoint.after_epoch()

    def _step(self, minibatch: Cells) -> None:
        """Do one step of the optimizer."""
        state, fabric = self.state, self.fabric
        state.step += 1
        loss = self.loss(lambda: minibatch, self._kl_weight(), min(1.0, state.step / self.n_steps))
        fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()  # now: the next forward pass needs the memory, and wide models have large gradients
        if state.step <= self.n_steps:
            self.schedule.step()
        self.loss_sum += loss.detach() * len(minibatch)
        state.n_minibatches, state.n_cells = state.n_minibatches + 1, state.n_cells + len(minibatch)

    def _kl_weight(self) -> float:
        """Return the weight of the KL term in the current step."""
        return min(1.0, self.state.step / (KL_WARMUP_FRACTION * self.n_steps)) if self.plan.kl_warmup else 1.0

    def _evaluate(self) -> dict[str, float]:
        """Return the ELBO of the epoch's minibatches and, if there are validation cells, the ELBO of these."""
        loss_sum = self.loss_sum.double()
        sums = torch.stack([loss_sum, loss_sum.new_tensor(self.state.n_cells)])
        total_loss, n_cells = all_reduce_sum(self.fabric, sums).tolist()
        record = {"elbo_train": -total_loss / n_cells}
        if len(self.source.validation_c) > 0:
            record |= evaluate(
                self.module, self.source.validation_minibatches(*self.shard), partial(all_reduce_sum, self.fabric)
            )
        return record

    def _record(self, record: dict[str, float]) -> None:
        """Append the values of this epoch to the history, and keep the weights if they are the best so far."""
        state, plan, elbo = self.state, self.plan, selection_elbo(record)
        not_finite = [value for value in (record["elbo_train"], elbo) if not math.isfinite(value)]
        if not_finite:
            raise FloatingPointError(
                f"the ELBO became {not_finite[0]} in epoch {state.epoch + 1} of {plan.max_epochs}: try a lower "
                f"learning_rate (it was {plan.learning_rate:g}), and check for features with extreme counts"
            )
        record |= {"kl_weight": self._kl_weight(), "learning_rate": float(self.schedule.get_last_lr()[0])}
        state.records.append({**record, "seconds": self.seconds})
        self.fabric.log_dict(state.records[-1], step=state.epoch)
        if len(self.source.validation_c) == 0 or state.best_elbo is None or elbo > state.best_elbo:
            state.best_elbo, state.best_epoch = elbo, state.epoch
            self._save_best_weights()

    def _save_best_weights(self) -> None:
        for name, tensor in self.module.state_dict().items():
            if name in self.best_weights:
                self.best_weights[name].copy_(tensor)  # into the same memory: wide models are large
            else:
                self.best_weights[name] = tensor.clone()

    def _stops_early(self) -> bool:
        """Return whether the validation ELBO has not improved for too long."""
        state, plan = self.state, self.plan
        n_epochs_since_best = state.epoch - 1 - state.best_epoch
        if not plan.early_stopping or n_epochs_since_best < max(10, plan.max_epochs // 4):
            return False
        logger.info("stopped after epoch %d: the best was epoch %d", state.epoch, state.best_epoch + 1)
        return True

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those before it was resumed."""
        return self.state.seconds + time.perf_counter() - self.start_time


def selection_elbo(record: Mapping[str, float]) -> float:
    """Return the ELBO that selects the best epoch: of the validation cells, or without any of the training cells."""
    return record.get("elbo_validation", record["elbo_train"])


@torch.no_grad()
def evaluate(
    module: Module, blocks: Iterable[Cells], reduce_sum: Callable[[Tensor], Any] = lambda value: value
) -> dict[str, float]:
    """Return the mean ELBO of cells and its terms, in nats per cell, with one latent sample per cell.

    Parameters
    ----------
    module
        The module; it is in evaluation mode afterwards.
    blocks
        The cells, block by block.
    reduce_sum
        Sums a tensor over all processes, each of which has a part of the cells.
    """
    module.eval()
    # Starts from zeros because one of several processes may have no cells.
    sums = torch.zeros(len(module.modalities) + 2, dtype=torch.float64, device=next(module.parameters()).device)
    for block in blocks:
        log_likelihood, kl_c = module.elbo(block)
        terms = [term_c.double().sum() for term_c in (*log_likelihood.values(), kl_c)]
        sums += torch.stack([*terms, terms[0].new_full((), len(block))])
    *log_likelihoods, kl, n_cells = reduce_sum(sums).tolist()
    log_likelihood_validation = sum(log_likelihoods) / n_cells
    record = {
        "elbo_validation": log_likelihood_validation - kl / n_cells,
        "log_likelihood_validation": log_likelihood_validation,
        "kl_validation": kl / n_cells,
    }
    if len(module.modalities) > 1:
        for modality, value in zip(module.modalities, log_likelihoods, strict=True):
            record[f"log_likelihood_{modality}_validation"] = value / n_cells
    return record

"""The training loop: minibatches, schedule, early stopping, history. Knows cells as tensors, and no AnnData.

The KL term is warmed up, so that the decoder learns to use the latent state before the prior pulls on it; the learning
rate goes up and down once (Smith and Topin 2018, arXiv:1708.07120), which reaches in twenty epochs what a constant rate
reaches in two hundred; the weights of the epoch with the best validation ELBO are kept.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from celldial.data import block_size, minibatches
from celldial.settings import settings

if TYPE_CHECKING:
    from celldial.data import Cells
    from celldial.module import Module

__all__ = ["Plan", "choose_batch_size", "choose_max_epochs", "continued", "evaluate", "fit"]

logger = logging.getLogger("celldial")

# The share of all steps over which the weight of the KL term rises to 1, and the share until the learning rate's peak.
WARM_UP = 1 / 6
RISE = 0.3
FAST = 10


@dataclass(frozen=True)
class Plan:
    """How to train.

    Parameters
    ----------
    max_epochs
        Passes over the training cells.
    batch_size
        Cells in a minibatch.
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
    warm_up: bool = True
    progress: bool = False


def choose_max_epochs(n_cells: int) -> int:
    """Choose the number of epochs: fewer passes over more cells, 20 over 6,000."""
    return round(min(max(20 * (6000 / n_cells) ** 0.3, 6), 100))


def choose_batch_size(n_cells: int) -> int:
    """Choose the size of a minibatch: 128, or less where an epoch would have fewer than eight steps."""
    return min(max(2 ** round(math.log2(n_cells / 8)), 16), 128)


@dataclass
class _Best:
    """The weights to keep, so far."""

    elbo: float
    epoch: int
    weights: dict[str, Tensor]


def fit(
    module: Module, cells: Cells, train_c: Tensor, validation_c: Tensor, plan: Plan, seed: int
) -> dict[str, list[float]]:
    """Train a module in place; afterwards it holds the weights of the best epoch.

    Parameters
    ----------
    module
        What to train.
    cells
        The data set, on the CPU; it is moved to the device as a whole.
    train_c, validation_c
        Indices of the cells to train and to validate on. Without validation cells the last epoch is kept.
    plan
        How to train.
    seed
        Of the order of the cells. The noise of the latent samples comes from torch's generator.

    Returns
    -------
    Quantity to its value after each epoch, in nats per cell: ``elbo_train`` (of the epoch's minibatches as they were
    trained: with dropout, and the KL term at its weight), and where there are validation cells ``elbo_validation``,
    ``log_likelihood_validation`` and ``kl_validation`` (one sample per cell, full weight; with several modalities also
    ``log_likelihood_<modality>_validation``, per cell of all); besides ``kl_weight``,
    ``learning_rate``, ``seconds`` since the start, and ``kept``, which is 1 for the epoch whose weights the module now
    has.

    Raises
    ------
    FloatingPointError
        The ELBO is not finite.

    Notes
    -----
    Ctrl-C ends training as if it were over: the best epoch's weights stand. During the first epoch it is raised.
    """
    from lightning_fabric import Fabric  # here because it takes a second, which `import celldial` need not

    device = settings.torch_device
    fabric = Fabric(
        accelerator=device.type, devices=1, precision="32-true" if settings.precision == "auto" else settings.precision
    )
    n_steps = math.ceil(len(train_c) / plan.batch_size) * plan.max_epochs
    optimizer = _optimizer(module, plan, len(train_c))
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = OneCycleLR(optimizer, peaks, total_steps=n_steps + 1, pct_start=RISE, div_factor=10)
    _, optimizer = fabric.setup(module, optimizer)
    # Empty cells are not among those chosen, and without them there may be nothing to gather in each step.
    cells = cells.masked_for(torch.cat([train_c, validation_c])).to(device)
    validation = cells.select(validation_c) if len(validation_c) else None
    generator = torch.Generator().manual_seed(seed)

    records: list[dict[str, float]] = []
    best: _Best | None = None
    step, start = 0, time.perf_counter()
    bar = tqdm(total=plan.max_epochs, desc="celldial", unit="epoch", disable=not plan.progress)
    try:
        for epoch in range(plan.max_epochs):
            module.train()
            loss_sum = torch.zeros((), device=device)
            for minibatch in minibatches(cells, plan.batch_size, generator=generator, index_c=train_c):
                step += 1
                kl_weight = min(1.0, step / (WARM_UP * n_steps)) if plan.warm_up else 1.0
                with fabric.autocast():
                    loss = module(minibatch, kl_weight, step / n_steps)
                fabric.backward(loss)
                optimizer.step()
                optimizer.zero_grad()  # now: the next forward pass needs memory, and wide gradients have much
                schedule.step()
                loss_sum += loss.detach() * len(minibatch)
            record = {"elbo_train": -float(loss_sum) / len(train_c)}
            if validation is not None:
                record |= evaluate(module, validation)
            elbo = record.get("elbo_validation", record["elbo_train"])
            wrong = [value for value in (record["elbo_train"], elbo) if not math.isfinite(value)]
            if wrong:
                raise FloatingPointError(
                    f"the ELBO became {wrong[0]} in epoch {epoch + 1} of {plan.max_epochs}: try a lower learning_rate "
                    f"(it was {plan.learning_rate:g}), and look for features with extreme counts"
                )
            record |= {"kl_weight": kl_weight, "learning_rate": float(schedule.get_last_lr()[0])}
            records.append({**record, "seconds": time.perf_counter() - start})
            if best is None:
                best = _Best(elbo, epoch, {name: tensor.clone() for name, tensor in module.state_dict().items()})
            elif validation is None or elbo > best.elbo:
                best.elbo, best.epoch = elbo, epoch
                for name, tensor in module.state_dict().items():
                    best.weights[name].copy_(tensor)  # into the same memory: wide models are large
            bar.update()
            bar.set_postfix_str(f"ELBO {elbo:.1f} nats/cell")
            if plan.early_stopping and epoch - best.epoch >= max(10, plan.max_epochs // 4):
                logger.info("stopped after epoch %d: the best was epoch %d", epoch + 1, best.epoch + 1)
                break
    except KeyboardInterrupt:
        if best is None:
            raise
        logger.warning("interrupted: the model has the weights of epoch %d", best.epoch + 1)
    finally:
        bar.close()
    assert best is not None  # there is at least one epoch
    module.load_state_dict(best.weights)
    module.eval()
    history = {name: [record[name] for record in records] for name in records[0]}
    return {**history, "kept": [float(epoch == best.epoch) for epoch in range(len(records))]}


def continued(history: dict[str, list[float]], record: dict[str, list[float]]) -> dict[str, list[float]]:
    """Join the history of a training with that of one that went on from it, whose weights are kept."""
    record = {**record, "seconds": [seconds + history["seconds"][-1] for seconds in record["seconds"]]}
    history = {**history, "kept": [0.0] * len(history["kept"])}
    return {name: history[name] + values for name, values in record.items()}


def _optimizer(module: Module, plan: Plan, n_cells: int) -> Adam:
    """Hold each part of the module as it needs it, and let log scales, such as dispersions, move faster.

    The loadings, that is the decoder's last weights, have a normal prior: a feature that is seen in few cells says
    little of its own, and without a prior Adam, which makes steps of one size of any gradient, would fit its noise.
    Other matrices decay, vectors do not.
    """
    modalities = [modality for _, modality in module.by_modality()]
    dispersions = [p for modality in modalities for p in modality.likelihood.parameters()]
    loadings = {modality: [h for h in modality.decoder.heads.parameters() if h.ndim > 1] for modality in modalities}
    turning = [modality.decoder for modality in modalities if modality.decoder.harmonics is not None]
    harmonics = [decoder.harmonics.weight for decoder in turning if decoder.harmonics is not None]
    # What is known of cells before they are seen is learned from all of them, how sure loadings are has a prior, and
    # baselines bias nothing: none of these decays. How common components are is the log scale among them.
    known = [part for part in (module.learned_prior, module.clusters, module.baselines) if part is not None]
    free = [p for part in known for name, p in part.named_parameters() if not name.endswith("logit_k")]
    fast = dispersions + [p for part in known for name, p in part.named_parameters() if name.endswith("logit_k")]
    deviations = [modality.decoder.log_deviation_fh for modality in modalities]
    free += [p for p in deviations if p is not None]
    if any(p is not None for p in deviations):
        free += chain(*loadings.values())
        loadings = {}
    others = {id(p) for p in chain(fast, harmonics, free, *loadings.values())}
    networks = [p for p in module.parameters() if id(p) not in others]
    groups: list[dict[str, Any]] = [
        *(
            {
                "params": heads,
                # The gradient of minus the log of a normal prior, per cell as the loss is.
                "weight_decay": heads[0].shape[1] / (modality.likelihood.loading_scale**2 * n_cells),
                "decoupled_weight_decay": False,
            }
            for modality, heads in loadings.items()
        ),
        *(
            {
                "params": [weight_fk],
                "weight_decay": 1 / (decoder.harmonic_scale**2 * n_cells),
                "decoupled_weight_decay": False,
            }
            for decoder, weight_fk in zip(turning, harmonics, strict=True)
        ),
        {"params": [p for p in networks if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in networks if p.ndim <= 1]},
        {"params": free},
        {"params": fast, "lr": FAST * plan.learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return Adam(groups, lr=plan.learning_rate, weight_decay=0.0, decoupled_weight_decay=True, fused=True)


@torch.no_grad()
def evaluate(module: Module, cells: Cells) -> dict[str, float]:
    """Mean ELBO of cells in nats per cell, and its two terms, with one latent sample per cell."""
    module.eval()
    total = dict.fromkeys(module.modalities, 0.0)
    total_kl = 0.0
    for minibatch in minibatches(cells, block_size(max(rows.n_columns for rows in cells.counts.values()))):
        log_likelihood, kl_c = module.elbo(minibatch)
        for modality, log_likelihood_c in log_likelihood.items():
            total[modality] += float(log_likelihood_c.double().sum())
        total_kl += float(kl_c.double().sum())
    log_likelihood_validation, kl = sum(total.values()) / len(cells), total_kl / len(cells)
    record = {
        "elbo_validation": log_likelihood_validation - kl,
        "log_likelihood_validation": log_likelihood_validation,
        "kl_validation": kl,
    }
    if len(total) > 1:
        record |= {f"log_likelihood_{modality}_validation": total[modality] / len(cells) for modality in total}
    return record

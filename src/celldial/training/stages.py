"""Choose how to train: number of epochs, size of the minibatches, and stages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from celldial.training import clusters, periodic
from celldial.training.plan import Stage, StagePlan, TrainingPlan

if TYPE_CHECKING:
    from celldial.model.module import Module
    from celldial.training.periodic import PeriodicTarget

__all__ = ["choose_batch_size", "choose_max_epochs", "first_stages", "further_stages", "mapping_stages"]


def choose_max_epochs(n_cells: int) -> int:
    """Return the default number of epochs: 20 for 6,000 cells, fewer for more cells, from 6 to 100."""
    return round(min(max(20 * (6000 / n_cells) ** 0.3, 6), 100))


def choose_batch_size(n_cells: int, device: str = "cpu") -> int:
    """Return the default size of a minibatch: 128, or smaller if an epoch would have fewer than eight steps.

    On a GPU, which small minibatches leave idle, it is up to 1,024 if an epoch still has a thousand steps.
    """
    largest = 128 if device == "cpu" else min(max(2 ** math.floor(math.log2(n_cells / 1000)), 128), 1024)
    return min(max(2 ** round(math.log2(n_cells / 8)), 16), largest)


def first_stages(module: Module, plan: TrainingPlan, seed: int, target: PeriodicTarget | None = None) -> StagePlan:
    """Return the stages that train a new module.

    Parameters
    ----------
    module
        The module to train; its clusters, if any, need a stage of their own.
    plan
        How to train, over all stages.
    seed
        Seed of the random choices between stages.
    target
        The periodic process to infer, if any.
    """
    if module.clusters is not None:
        return clusters.first_stages(plan, seed, has_labels=module.clusters.n_labels > 0)
    if target is not None:
        return periodic.first_stages(plan, seed, target)
    return StagePlan((Stage("training", plan),))


def further_stages(module: Module, plan: TrainingPlan) -> StagePlan:
    """Return the stages that continue the training of a fitted module."""
    return StagePlan((Stage("training", plan),)) if module.circle is None else periodic.further_stages(plan)


def mapping_stages(module: Module, plan: TrainingPlan) -> StagePlan:
    """Return the stages that learn the effects of new categories, while everything else stays as it is."""
    return StagePlan((Stage("mapping", plan),)) if module.circle is None else periodic.mapping_stages(plan)

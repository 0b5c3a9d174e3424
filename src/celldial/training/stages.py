"""Choose the stages that train a module: plain, with clusters, or with a periodic coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celldial.training import clusters, periodic
from celldial.training.plan import Stage, StagePlan, TrainingPlan

if TYPE_CHECKING:
    from celldial.model.module import Module
    from celldial.training.periodic import PeriodicTarget

__all__ = ["first_stages", "further_stages"]


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
        return clusters.first_stages(plan, seed)
    if target is not None:
        return periodic.first_stages(plan, seed, target)
    return StagePlan((Stage("training", plan),))


def further_stages(module: Module, plan: TrainingPlan) -> StagePlan:
    """Return the stages that continue the training of a fitted module."""
    return StagePlan((Stage("training", plan),)) if module.circle is None else periodic.further_stages(plan)

"""Stages of a training: their order, hooks, seeds and history."""

from typing import Any

import pytest
import torch

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.model.module import Module
from celldial.training import loop
from celldial.training.hardware import RunContext
from celldial.training.plan import Stage, StagePlan, StageResult, TrainingPlan
from celldial.training.stages import first_stages, further_stages
from helpers.modules import build_module
from helpers.simulate import simulate_cells
from helpers.training import TRAIN_C, VALIDATION_C, make_module, train

PLAN = TrainingPlan(max_epochs=8, batch_size=20)


@pytest.fixture(scope="module")
def cells() -> Cells:
    return simulate_cells()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of events of `fit`; training itself is replaced, and Ctrl-C ends a stage of 5 epochs."""
    calls: list[Any] = []

    def fake_train(module: Module, source: Any, plan: TrainingPlan, seed: int, run: RunContext) -> StageResult:
        calls.append(("train", source, seed))
        epochs = [float(epoch) for epoch in range(plan.max_epochs)]
        kept = [0.0] * (plan.max_epochs - 1) + [1.0]
        return StageResult({"elbo_train": epochs, "seconds": epochs, "kept": kept}, plan.max_epochs == 5)

    monkeypatch.setattr(loop, "train", fake_train)
    return calls


def stage(name: str, max_epochs: int, calls: list[Any]) -> Stage:
    """Return a stage whose hooks append to the source, which is a string here."""

    def hook(when: str) -> Any:
        def called(module: Module, source: str) -> str:
            calls.append(f"{when} {name}")
            return f"{source}, {when} {name}"

        return called

    return Stage(name, TrainingPlan(max_epochs, 20), before=hook("before"), after=hook("after"))


def test_hooks_run_around_their_stage_and_pass_the_source_on(calls: list[Any]) -> None:
    plan = StagePlan((stage("one", 2, calls), stage("two", 3, calls)), finish=lambda module, source: f"{source}, end")
    history, source = loop.fit(None, "cells", plan, 7)  # type: ignore[type-var, arg-type]
    one = "cells, before one"
    two = f"{one}, after one, before two"
    assert calls == ["before one", ("train", one, 7), "after one", "before two", ("train", two, 8), "after two"]
    assert source == f"{two}, after two, end"
    assert history == {"elbo_train": [0, 1, 0, 1, 2], "seconds": [0, 1, 1, 2, 3], "kept": [0, 0, 0, 0, 1]}


def test_ctrl_c_skips_later_stages_but_not_the_end(calls: list[Any]) -> None:
    plan = StagePlan((stage("one", 5, calls), stage("two", 3, calls)), finish=lambda module, source: f"{source}, end")
    history, source = loop.fit(None, "cells", plan, 0)  # type: ignore[type-var, arg-type]
    assert source == "cells, before one, after one, end"
    assert len(history["kept"]) == 5


def test_plain_training_is_one_stage(cells: Cells) -> None:
    modules = [make_module(cells), make_module(cells)]
    expected = train(modules[0], cells)
    plan = first_stages(modules[1], TrainingPlan(max_epochs=4, batch_size=20), 0)
    torch.manual_seed(0)
    history, _ = loop.fit(modules[1], InMemorySource(cells, TRAIN_C, VALIDATION_C), plan, 0)
    assert {**history, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.parametrize(
    ("options", "first", "further"),
    [
        ({}, {"training": 8}, {"training": 8}),
        ({"n_clusters": 3}, {"coordinates": 2, "clusters": 6}, {"training": 8}),
        ({"n_clusters": 3, "n_labels": 2}, {"coordinates": 5, "clusters": 3}, {"training": 8}),
    ],
    ids=["plain", "clusters", "labels"],
)
def test_stages_share_the_epochs(options: dict[str, int], first: dict[str, int], further: dict[str, int]) -> None:
    module = build_module({"rna": 20}, "poisson", **options)
    for plan, expected in ((first_stages(module, PLAN, 0), first), (further_stages(module, PLAN), further)):
        assert {stage.name: stage.plan.max_epochs for stage in plan.stages} == expected


def test_a_single_epoch_needs_a_single_stage() -> None:
    module = build_module({"rna": 20}, "poisson", n_clusters=3)
    (stage,) = first_stages(module, TrainingPlan(max_epochs=1, batch_size=20), 0).stages
    assert stage.plan.max_epochs == 1

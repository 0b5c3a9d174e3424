"""Devices and processes of training: those that are used, and those that are rejected."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from celldial import VAE
from celldial.data.in_memory import InMemorySource
from celldial.training.hardware import Hardware
from celldial.training.loop import Trainer
from celldial.training.plan import TrainingPlan
from helpers.raises import raises
from helpers.simulate import simulate, simulate_cells
from helpers.training import NOBODY, make_module


@pytest.mark.parametrize(
    "options",
    [
        {"device": "abacus"},
        {"device": "meta"},
        {"precision": "16-bit"},
        {"devices": 0},
        {"num_nodes": 0},
        {"device": "cpu:0", "devices": 2},
    ],
)
def test_invalid_hardware_is_named(options: dict[str, Any]) -> None:
    adata = simulate()
    with raises(ValueError, naming=[*options, *options.values()]):
        VAE(2, 8).fit(adata, max_epochs=1, progress=False, **options)
    assert not adata.obsm


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named() -> None:
    with raises(ValueError, naming=["cuda"]):
        VAE(2, 8).fit(simulate(), max_epochs=1, progress=False, device="cuda")


def test_more_processes_than_cells_are_refused() -> None:
    cells = simulate_cells()
    fabric: Any = SimpleNamespace(world_size=2)
    source = InMemorySource(cells, torch.tensor([3]), NOBODY)
    with raises(ValueError, naming=["training cells (1)", "processes (2)"]):
        Trainer(fabric, make_module(cells), source, TrainingPlan(1, 8), 0, None)


def test_gradients_are_not_copied_and_unused_parameters_are_not_searched() -> None:
    options = Hardware("cpu", devices=2).fabric().strategy._ddp_kwargs
    assert options["gradient_as_bucket_view"]
    assert not options.get("find_unused_parameters")


def test_processes_of_a_notebook_with_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    adata = simulate()
    with raises(ValueError, naming=["2 threads", "OMP_NUM_THREADS=1"]):
        VAE(2, 8).fit(adata, max_epochs=1, devices=2, device="cpu")
    assert not adata.obsm
    assert not adata.uns


def test_how_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert Hardware("cpu", devices=1).launch_method == "auto"
    assert Hardware("cpu", devices=2).launch_method == "ddp_spawn"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert Hardware("cpu", devices=2).launch_method == "ddp_notebook"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert Hardware("cpu", devices=2).launch_method == "ddp"

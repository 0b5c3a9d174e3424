"""Training in several processes: as in one process, the same in all of them, and without waiting forever."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import celldial
from celldial import VAE
from celldial.model.module import Module
from celldial.training.plan import History
from helpers.distributed_worker import fit, train_without_noise
from helpers.simulate import simulate, simulate_two

TESTS = Path(__file__).resolve().parents[1]


def torchrun(task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a task of `helpers.distributed_worker` in two processes."""
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(TESTS / "helpers" / "distributed_worker.py"),
        task,
        str(folder),
    ]
    # The package under test may differ from the installed one.
    path = os.pathsep.join([str(TESTS), str(Path(celldial.__file__).parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=1800
    )


def results(task: str, folder: Path) -> list[tuple[dict[str, list[float]], dict[str, Tensor]]]:
    """Return history and weights of each process."""
    paths = [folder / f"{task}-{rank}" for rank in (0, 1)]
    return [(json.loads(path.with_suffix(".json").read_text()), torch.load(path.with_suffix(".pt"))) for path in paths]


def assert_trained_alike(found: History, weights: dict[str, Tensor], history: History, module: Module) -> None:
    for name in set(history) - {"seconds"}:
        assert found[name] == pytest.approx(history[name], rel=1e-5), name
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_the_loss_curve_is_that_of_one_process() -> None:
    """Of two new processes, one has no validation cell."""
    module, history = train_without_noise(n_validation_cells=1)
    other, found = train_without_noise(n_validation_cells=1, devices=2)
    assert_trained_alike(found, other.state_dict(), history, module)


@pytest.mark.slow
def test_processes_of_torchrun_have_the_loss_curve_and_the_weights_of_one(tmp_path: Path) -> None:
    process = torchrun("without_noise", tmp_path)
    assert process.returncode == 0, process.stderr
    module, history = train_without_noise()
    for found, weights in results("without_noise", tmp_path):
        assert_trained_alike(found, weights, history, module)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_next_call_resumes(tmp_path: Path) -> None:
    """The process is killed in the second epoch. The next call ends with the same weights in all processes."""
    assert torchrun("dies", tmp_path).returncode != 0
    assert not list(tmp_path.glob("*.json"))
    for task in ("goes_on", "undisturbed"):
        process = torchrun(task, tmp_path)
        assert process.returncode == 0, process.stderr
    (history, weights), *others = (result for task in ("undisturbed", "goes_on") for result in results(task, tmp_path))
    assert len(history["elbo_train"]) < 40, "early stopping did not end the run"
    for other_history, other_weights in others:
        assert {**other_history, "seconds": 0} == {**history, "seconds": 0}
        assert all(torch.equal(other_weights[name], weights[name]) for name in weights)


@pytest.mark.slow
def test_processes_started_by_fit_are_as_good_as_one_and_reproducible() -> None:
    alone, both, again = fit(None), fit(None, devices=2), fit(None, devices=2)
    assert max(both.history_["elbo_validation"]) == pytest.approx(max(alone.history_["elbo_validation"]), rel=0.02)
    for name, tensor in both.module_.state_dict().items():
        assert torch.equal(again.module_.state_dict()[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [{"n_clusters": 2}, {"fusion": "mixture"}], ids=lambda value: next(iter(value)))
def test_stages_and_missing_modalities_in_several_processes(parameters: dict[str, Any]) -> None:
    adata = simulate_two(lacking={"atac": range(20), "rna": range(40, 60)})
    model = VAE(2, 8, **parameters).fit(adata, max_epochs=2, progress=False, device="cpu", devices=2)
    assert len(model.history_["elbo_train"]) == 2
    assert adata.obsm["X_celldial"].shape == (60, 2)


@pytest.mark.slow
def test_a_process_may_have_no_validation_cells() -> None:
    model = VAE(2, 8).fit(simulate(), max_epochs=1, validation_size=0.01, progress=False, device="cpu", devices=2)
    assert np.isfinite(model.history_["elbo_validation"]).all()

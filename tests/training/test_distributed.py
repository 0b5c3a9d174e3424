"""Several processes, each with its share of the cells: they learn what one would, agree, and none waits for ever."""

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
from celldial.training.hardware import Hardware
from helpers.distributed_worker import fit, train_without_noise
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two

TESTS = Path(__file__).resolve().parents[1]


def torchrun(task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(TESTS / "helpers" / "distributed_worker.py"),
        task,
        str(folder),
    ]
    # The package that is tested, which need not be the one that is installed.
    path = os.pathsep.join([str(TESTS), str(Path(celldial.__file__).parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=240
    )


def results(task: str, folder: Path) -> list[tuple[dict[str, list[float]], dict[str, Tensor]]]:
    """Give history and weights of each process."""
    paths = [folder / f"{task}-{rank}" for rank in (0, 1)]
    return [(json.loads(path.with_suffix(".json").read_text()), torch.load(path.with_suffix(".pt"))) for path in paths]


def test_the_loss_curve_is_that_of_one_process(tmp_path: Path) -> None:
    process = torchrun("without_noise", tmp_path)
    assert process.returncode == 0, process.stderr
    module, history = train_without_noise()
    for found, weights in results("without_noise", tmp_path):
        for name in set(history) - {"seconds"}:
            assert found[name] == pytest.approx(history[name], rel=1e-5), name
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_processes_agree_and_one_that_dies_ends_the_run(tmp_path: Path) -> None:
    """Killed in the second epoch; the run ends with an error, and the next call goes on, to the very same weights."""
    assert torchrun("dies", tmp_path).returncode != 0
    assert not list(tmp_path.glob("*.json"))
    for task in ("goes_on", "undisturbed"):
        process = torchrun(task, tmp_path)
        assert process.returncode == 0, process.stderr
    (history, weights), *others = (result for task in ("undisturbed", "goes_on") for result in results(task, tmp_path))
    assert len(history["elbo_train"]) < 40, "it did not stop by itself"
    for other_history, other_weights in others:
        assert {**other_history, "seconds": 0} == {**history, "seconds": 0}
        assert all(torch.equal(other_weights[name], weights[name]) for name in weights)


def test_processes_that_fit_starts() -> None:
    """As one process does, within the noise of the seed; and the same again."""
    here, there, again = fit(None), fit(None, devices=2), fit(None, devices=2)
    assert max(there.history_["elbo_validation"]) == pytest.approx(max(here.history_["elbo_validation"]), rel=0.02)
    for name, tensor in there.module_.state_dict().items():
        assert torch.equal(again.module_.state_dict()[name], tensor)


@pytest.mark.parametrize("parameters", [{"n_clusters": 2}, {"fusion": "mixture"}], ids=lambda value: next(iter(value)))
def test_what_else_is_trained_in_several_processes(parameters: dict[str, Any]) -> None:
    """In stages; and with modalities that some cells, and so some minibatches, lack."""
    adata = simulate_two(lacking={"atac": range(20), "rna": range(40, 60)})
    model = VAE(2, 8, **parameters).fit(adata, max_epochs=2, progress=False, device="cpu", devices=2)
    assert len(model.history_["elbo_train"]) == 2
    assert adata.obsm["X_celldial"].shape == (60, 2)


def test_a_process_without_validation_cells() -> None:
    model = VAE(2, 8).fit(simulate(), max_epochs=1, validation_size=0.01, progress=False, device="cpu", devices=2)
    assert np.isfinite(model.history_["elbo_validation"]).all()


def test_more_processes_than_cells() -> None:
    with raises(Exception, naming=["training cells (1)", "processes (2)"]):
        VAE(1, 2).fit(simulate(2), max_epochs=1, validation_size=0.5, progress=False, device="cpu", devices=2)


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
def test_wrong_hardware(options: dict[str, Any]) -> None:
    adata = simulate()
    with raises(ValueError, naming=[*options, *options.values()]):
        VAE(2, 8).fit(adata, max_epochs=1, progress=False, **options)
    assert not adata.obsm


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_such_device() -> None:
    with raises(ValueError, naming=["cuda"]):
        VAE(2, 8).fit(simulate(), max_epochs=1, progress=False, device="cuda")


def test_gradients_are_not_copied_and_unused_parameters_not_looked_for() -> None:
    options = Hardware("cpu", devices=2).fabric().strategy._ddp_kwargs
    assert options["gradient_as_bucket_view"]
    assert not options.get("find_unused_parameters")


def test_a_notebook_with_threads_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    adata = simulate()
    with raises(ValueError, naming=["2 threads", "OMP_NUM_THREADS=1"]):
        VAE(2, 8).fit(adata, max_epochs=1, devices=2, device="cpu")
    assert not adata.obsm
    assert not adata.uns
    assert Hardware("cpu", devices=1).launch_method == "auto"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert Hardware("cpu", devices=2).launch_method == "ddp_notebook"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert Hardware("cpu", devices=2).launch_method == "ddp"

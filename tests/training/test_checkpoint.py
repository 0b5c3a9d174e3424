"""Interrupted training: the same call resumes it, and ends with the same weights."""

import errno
import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning_fabric.loggers.csv_logs import CSVLogger
from safetensors.torch import load_file

from celldial import VAE
from celldial.io import model_file
from celldial.io.checkpoint import Checkpoint
from celldial.training import loop
from helpers.assertions import assert_same_model
from helpers.interrupt import Interrupted, interrupt_at
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two

N_INTERRUPTIONS = 20
# The phases of a process, so that no search for a circle precedes the training.
CLOCK = {"name": "clock", "phases": {"first": [f"g{k}" for k in range(5)], "second": [f"g{k}" for k in range(5, 10)]}}


def fit(adata: AnnData, folder: Path | None, max_epochs: int = 4, model: VAE | None = None, **options: Any) -> VAE:
    model = VAE(2, 8, batch_key="batch") if model is None else model
    return model.fit(adata.copy(), max_epochs=max_epochs, progress=False, checkpoint=folder, **options)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate()


@pytest.fixture(scope="module")
def uninterrupted(adata: AnnData) -> VAE:
    """Return a model from uninterrupted training."""
    return fit(adata, None)


def test_a_checkpoint_changes_nothing(adata: AnnData, uninterrupted: VAE, tmp_path: Path) -> None:
    assert_same_model(fit(adata, tmp_path), uninterrupted)


def test_finished_training_is_not_repeated(
    adata: AnnData, uninterrupted: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(adata, tmp_path / "new" / "folder")
    monkeypatch.delattr(loop.Trainer, "_step")
    again = fit(adata, tmp_path / "new" / "folder")
    assert_same_model(again, uninterrupted)
    assert again.history_["seconds"] == first.history_["seconds"]


@pytest.mark.parametrize("minutes", [None, 1e-9], ids=["after each epoch", "after each step"])
@pytest.mark.parametrize("step", [1, 2, 9, 12, 16])
def test_the_same_call_resumes(
    adata: AnnData, uninterrupted: VAE, tmp_path: Path, step: int, minutes: float | None
) -> None:
    with interrupt_at(loop.Trainer, "_step", step, Interrupted()), pytest.raises(Interrupted):
        fit(adata, tmp_path, checkpoint_minutes=minutes)
    assert_same_model(fit(adata, tmp_path, checkpoint_minutes=minutes), uninterrupted)


def test_many_interruptions(adata: AnnData, uninterrupted: VAE, tmp_path: Path) -> None:
    """Interruptions come at random moments, some while a checkpoint is written."""
    generator = random.Random(0)
    places = [(loop.Trainer, "_step"), (loop, "evaluate"), (model_file, "save"), (os, "replace")]
    for _ in range(N_INTERRUPTIONS):
        with interrupt_at(*generator.choice(places), generator.randint(1, 6), Interrupted()), suppress(Interrupted):
            fit(adata, tmp_path, checkpoint_minutes=generator.choice([None, 1e-9]))
    assert_same_model(fit(adata, tmp_path), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["training.checkpoint"]


def fit_and_save(folder: Path, max_epochs: int) -> None:
    torch.set_num_threads(1)
    options = {"max_epochs": max_epochs, "early_stopping": False, "checkpoint_minutes": 1e-4}
    fit(simulate(), folder / "checkpoint", **options).save(folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize(("n_kills", "max_epochs"), [(1, 20), (20, 100)])
def test_a_killed_process_can_be_resumed(tmp_path: Path, n_kills: int, max_epochs: int) -> None:
    """Processes are killed by SIGKILL at random moments after they have written a checkpoint; the last one finishes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["celldial.estimator.vae", "lightning_fabric"])
    generator, checkpoint = random.Random(1), tmp_path / "checkpoint" / "training.checkpoint"

    def write_time() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    def start(folder: Path) -> Any:
        process = context.Process(target=fit_and_save, args=(folder, max_epochs))
        process.start()
        return process

    for _ in range(n_kills):
        before, process = write_time(), start(tmp_path)
        while write_time() == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.join()
        # On a busy machine, training may have ended before.
        assert process.exitcode in (-signal.SIGKILL, 0)
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    for folder in (tmp_path, uninterrupted):
        process = start(folder)
        process.join()
        assert process.exitcode == 0
    found, expected = (load_file(folder / "model") for folder in (tmp_path, uninterrupted))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ctrl_c_ends_early_and_the_same_call_resumes(adata: AnnData, uninterrupted: VAE, tmp_path: Path) -> None:
    with interrupt_at(loop, "evaluate", 3, KeyboardInterrupt()):
        ended = fit(adata, tmp_path)
    assert len(ended.history_["seconds"]) == 2
    assert_same_model(fit(adata, tmp_path), uninterrupted)


def test_a_full_disk(adata: AnnData, uninterrupted: VAE, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with interrupt_at(os, "fsync", 3, full), raises(OSError, naming=[tmp_path / "training.checkpoint"]) as caught:
        fit(adata, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["training.checkpoint"]
    assert_same_model(fit(adata, tmp_path), uninterrupted)


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        (VAE(2, 8, n_clusters=3), ["clusters", "coordinates"]),
        (VAE(2, 8, periodic=CLOCK), ["turn-1", "turn-2"]),
        (VAE(2, 8, prior="flow", latent="laplace"), ["training"]),
        (VAE(2, 8, decoder="linear", bayesian_loadings=True), ["training"]),
    ],
    ids=lambda value: "" if isinstance(value, VAE) else value[0],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # so few cells show no circle
def test_training_in_stages_resumes(adata: AnnData, tmp_path: Path, model: VAE, stages: list[str]) -> None:
    expected = fit(adata, None, 6, VAE(**model.get_params()))
    for step in (10, 9):
        with interrupt_at(loop.Trainer, "_step", step, Interrupted()), pytest.raises(Interrupted):
            fit(adata, tmp_path, 6, VAE(**model.get_params()))
    found = fit(adata, tmp_path, 6, VAE(**model.get_params()))
    assert_same_model(found, expected)
    assert sorted(path.stem for path in tmp_path.iterdir()) == stages


def test_cells_that_lack_modalities(tmp_path: Path) -> None:
    adata = simulate_two()
    expected = fit(adata, None, model=VAE(2, 8))
    with interrupt_at(loop.Trainer, "_step", 12, Interrupted()), pytest.raises(Interrupted):
        fit(adata, tmp_path, model=VAE(2, 8), checkpoint_minutes=1e-9)
    assert_same_model(fit(adata, tmp_path, model=VAE(2, 8), checkpoint_minutes=1e-9), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # so few cells show no circle
@pytest.mark.parametrize("option", [{"n_clusters": 3}, {"periodic": CLOCK}], ids=["clusters", "circle"])
def test_ctrl_c_in_one_stage_skips_the_next(adata: AnnData, tmp_path: Path, option: dict[str, Any]) -> None:
    def training(folder: Path | None) -> VAE:
        model = VAE(2, 8, batch_key="batch", **option)
        return fit(adata, folder, 12, model, early_stopping=False)

    with interrupt_at(loop, "evaluate", 3, KeyboardInterrupt()):
        interrupted = training(tmp_path)
    assert len(interrupted.history_["kept"]) == 2
    assert len(list(tmp_path.iterdir())) == 1
    expected = training(None)
    assert len(expected.history_["kept"]) == 12
    assert_same_model(training(tmp_path), expected)


def test_a_checkpoint_of_another_training_is_refused(adata: AnnData, tmp_path: Path) -> None:
    fit(adata, tmp_path)
    with raises(ValueError, naming=["max_epochs", 4, 5]):
        fit(adata, tmp_path, 5)
    with raises(ValueError, naming=["n_hidden", 8, 6]):
        fit(adata, tmp_path, model=VAE(2, 6, batch_key="batch"))
    with raises(ValueError, naming=["checksum of cells"]):
        fit(simulate(seed=1), tmp_path)
    with raises(ValueError, naming=["checksum of features and covariates"]):
        fit(adata[:, ::-1], tmp_path)


def test_a_model_is_refused_as_a_checkpoint(adata: AnnData, uninterrupted: VAE, tmp_path: Path) -> None:
    uninterrupted.save(tmp_path / "training.checkpoint")
    with raises(ValueError, naming=[tmp_path / "training.checkpoint"]):
        fit(adata, tmp_path)


def test_a_damaged_checkpoint_is_named(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "training.checkpoint").write_bytes(b"not a checkpoint")
    with raises(ValueError, naming=[tmp_path / "training.checkpoint"]):
        fit(adata, tmp_path)


def test_a_file_where_the_folder_should_be(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(OSError, naming=[tmp_path / "file"]):
        fit(adata, tmp_path / "file")


@pytest.mark.parametrize("minutes", [0, -1])
def test_invalid_minutes(adata: AnnData, tmp_path: Path, minutes: float) -> None:
    with raises(ValueError, naming=["checkpoint_minutes", minutes]):
        fit(adata, tmp_path, checkpoint_minutes=minutes)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"a": 1, "b": {"c": [0.1]}}).for_stage("one")
    assert checkpoint.read() is None
    checkpoint.write({"epoch": 3}, {"x": torch.arange(3)})
    metadata, tensors = checkpoint.read() or pytest.fail("there is no checkpoint")
    assert metadata["epoch"] == 3
    assert torch.equal(tensors["x"], torch.arange(3))
    assert checkpoint.for_stage("other").read() is None


def test_the_history_goes_to_loggers(adata: AnnData, tmp_path: Path) -> None:
    """They get each epoch once, also if training is interrupted and resumed."""
    folder = tmp_path / "checkpoint"
    with interrupt_at(loop, "evaluate", 3, Interrupted()), pytest.raises(Interrupted):
        fit(adata, folder, loggers=[CSVLogger(tmp_path, "log", version=1)])
    model = fit(adata, folder, loggers=[CSVLogger(tmp_path, "log", version=2)])
    tables = [pd.read_csv(tmp_path / "log" / f"version_{version}" / "metrics.csv") for version in (1, 2)]
    table = pd.concat(tables, ignore_index=True)
    assert list(table["step"]) == [0, 1, 2, 3]
    for name in set(model.history_) - {"kept", "seconds"}:
        assert list(table[name]) == pytest.approx(model.history_[name], rel=1e-6), name

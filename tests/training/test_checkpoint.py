"""Training that is cut short, by whatever: the same call goes on, and ends with the same weights."""

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

N_KILLS = 20


def fit(adata: AnnData, folder: Path | None, max_epochs: int = 4, model: VAE | None = None, **options: Any) -> VAE:
    model = VAE(2, 8, batch_key="batch") if model is None else model
    return model.fit(adata.copy(), max_epochs=max_epochs, progress=False, checkpoint=folder, **options)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate()


@pytest.fixture(scope="module")
def whole(adata: AnnData) -> VAE:
    """What comes of a training that nothing disturbs."""
    return fit(adata, None)


def test_a_checkpoint_changes_nothing(adata: AnnData, whole: VAE, tmp_path: Path) -> None:
    assert_same_model(fit(adata, tmp_path), whole)


def test_a_training_that_has_ended_is_not_repeated(
    adata: AnnData, whole: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(adata, tmp_path / "new" / "folder")
    monkeypatch.delattr(loop.Trainer, "_step")
    again = fit(adata, tmp_path / "new" / "folder")
    assert_same_model(again, whole)
    assert again.history_["seconds"] == first.history_["seconds"]


@pytest.mark.parametrize("minutes", [None, 1e-9], ids=["after each epoch", "after each step"])
@pytest.mark.parametrize("step", [1, 2, 9, 12, 16])
def test_the_same_call_goes_on(adata: AnnData, whole: VAE, tmp_path: Path, step: int, minutes: float | None) -> None:
    with interrupt_at(loop.Trainer, "_step", step, Interrupted()), pytest.raises(Interrupted):
        fit(adata, tmp_path, checkpoint_minutes=minutes)
    assert_same_model(fit(adata, tmp_path, checkpoint_minutes=minutes), whole)


def test_many_interruptions(adata: AnnData, whole: VAE, tmp_path: Path) -> None:
    """At random moments, some of them in the middle of writing a checkpoint."""
    chance = random.Random(0)
    places = [(loop.Trainer, "_step"), (loop, "evaluate"), (model_file, "save"), (os, "replace")]
    for _ in range(N_KILLS):
        with interrupt_at(*chance.choice(places), chance.randint(1, 6), Interrupted()), suppress(Interrupted):
            fit(adata, tmp_path, checkpoint_minutes=chance.choice([None, 1e-9]))
    assert_same_model(fit(adata, tmp_path), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["training.checkpoint"]


def fit_and_save(folder: Path) -> None:
    torch.set_num_threads(1)
    options = {"max_epochs": 100, "early_stopping": False, "checkpoint_minutes": 1e-4}
    fit(simulate(), folder / "checkpoint", **options).save(folder / "model")


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """The real thing: kill -9 at random moments, until one gets through."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["celldial.estimator.vae", "lightning_fabric"])
    chance, checkpoint = random.Random(1), tmp_path / "checkpoint" / "training.checkpoint"

    def written() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    def start(folder: Path) -> Any:
        process = context.Process(target=fit_and_save, args=(folder,))
        process.start()
        return process

    for _ in range(N_KILLS):
        before, process = written(), start(tmp_path)
        while written() == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    for folder in (tmp_path, undisturbed):
        process = start(folder)
        process.join()
        assert process.exitcode == 0
    found, expected = (load_file(folder / "model") for folder in (tmp_path, undisturbed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ctrl_c_ends_early_and_the_same_call_goes_on(adata: AnnData, whole: VAE, tmp_path: Path) -> None:
    with interrupt_at(loop, "evaluate", 3, KeyboardInterrupt()):
        ended = fit(adata, tmp_path)
    assert len(ended.history_["seconds"]) == 2
    assert_same_model(fit(adata, tmp_path), whole)


def test_a_full_disk(adata: AnnData, whole: VAE, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with interrupt_at(os, "fsync", 3, full), raises(OSError, naming=[tmp_path / "training.checkpoint"]) as caught:
        fit(adata, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["training.checkpoint"]
    assert_same_model(fit(adata, tmp_path), whole)


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        (VAE(2, 8, n_clusters=3), ["clusters", "coordinates"]),
        (VAE(2, 8, periodic=True), ["turn-1", "turn-2"]),
        (VAE(2, 8, prior="flow", latent="laplace"), ["training"]),
        (VAE(2, 8, decoder="linear", bayesian_loadings=True), ["training"]),
    ],
    ids=lambda value: "" if isinstance(value, VAE) else value[0],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # so few cells show no circle
def test_trainings_in_stages(adata: AnnData, tmp_path: Path, model: VAE, stages: list[str]) -> None:
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
@pytest.mark.parametrize("option", [{"n_clusters": 3}, {"periodic": True}], ids=["clusters", "circle"])
def test_ctrl_c_in_one_stage_leaves_out_the_next(adata: AnnData, tmp_path: Path, option: dict[str, Any]) -> None:
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


def test_another_training_finds_no_use_for_it(adata: AnnData, tmp_path: Path) -> None:
    fit(adata, tmp_path)
    with raises(ValueError, naming=["max_epochs", 4, 5]):
        fit(adata, tmp_path, 5)
    with raises(ValueError, naming=["n_hidden", 8, 6]):
        fit(adata, tmp_path, model=VAE(2, 6, batch_key="batch"))
    with raises(ValueError, naming=["checksum of cells"]):
        fit(simulate(seed=1), tmp_path)
    with raises(ValueError, naming=["checksum of features and covariates"]):
        fit(adata[:, ::-1], tmp_path)


def test_a_model_is_no_checkpoint(adata: AnnData, whole: VAE, tmp_path: Path) -> None:
    whole.save(tmp_path / "training.checkpoint")
    with raises(ValueError, naming=[tmp_path / "training.checkpoint"]):
        fit(adata, tmp_path)


def test_a_damaged_checkpoint_is_named(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "training.checkpoint").write_bytes(b"no checkpoint")
    with raises(ValueError, naming=[tmp_path / "training.checkpoint"]):
        fit(adata, tmp_path)


def test_a_file_where_the_folder_should_be(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(OSError, naming=[tmp_path / "file"]):
        fit(adata, tmp_path / "file")


@pytest.mark.parametrize("minutes", [0, -1])
def test_wrong_minutes(adata: AnnData, tmp_path: Path, minutes: float) -> None:
    with raises(ValueError, naming=["checkpoint_minutes", minutes]):
        fit(adata, tmp_path, checkpoint_minutes=minutes)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"a": 1, "b": {"c": [0.1]}}).for_stage("one")
    assert checkpoint.read() is None
    checkpoint.write({"epoch": 3}, {"x": torch.arange(3)})
    about, tensors = checkpoint.read() or pytest.fail("nothing there")
    assert about["epoch"] == 3
    assert torch.equal(tensors["x"], torch.arange(3))
    assert checkpoint.for_stage("other").read() is None


def test_the_history_goes_to_loggers(adata: AnnData, tmp_path: Path) -> None:
    """Epoch by epoch, and so also that of a training that is cut short and goes on."""
    folder = tmp_path / "checkpoint"
    with interrupt_at(loop, "evaluate", 3, Interrupted()), pytest.raises(Interrupted):
        fit(adata, folder, loggers=[CSVLogger(tmp_path, "log", version=1)])
    model = fit(adata, folder, loggers=[CSVLogger(tmp_path, "log", version=2)])
    tables = [pd.read_csv(tmp_path / "log" / f"version_{version}" / "metrics.csv") for version in (1, 2)]
    table = pd.concat(tables, ignore_index=True)
    assert list(table["step"]) == [0, 1, 2, 3]
    for name in set(model.history_) - {"kept", "seconds"}:
        assert list(table[name]) == pytest.approx(model.history_[name], rel=1e-6), name

"""How training ends: kept weights, early stopping, errors, Ctrl-C; and the progress bar."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from celldial.data.cells import Cells
from celldial.model.module import Module
from celldial.training import loop, optimizer
from helpers.raises import raises
from helpers.simulate import simulate_cells
from helpers.training import NOBODY, VALIDATION_C, assert_weights, make_module, train


@pytest.fixture(scope="module")
def cells() -> Cells:
    return simulate_cells()


def set_validation_elbos(monkeypatch: pytest.MonkeyPatch, module: Module, elbos: list[Any]) -> list[dict[str, Tensor]]:
    """Make `evaluate` return or raise these values; return a list that collects the weights it is called with."""
    weights: list[dict[str, Tensor]] = []
    remaining: Iterator[Any] = iter(elbos)

    def evaluate(module: Module, *_: Any) -> dict[str, float]:
        weights.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        elbo = next(remaining)
        if isinstance(elbo, BaseException):
            raise elbo
        return {"elbo_validation": elbo, "log_likelihood_validation": elbo, "kl_validation": 0.0}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return weights


@pytest.mark.parametrize("early_stopping", [True, False])
def test_weights_of_the_best_epoch_are_kept(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, early_stopping: bool
) -> None:
    module = make_module(cells)
    weights = set_validation_elbos(monkeypatch, module, [-9.0, -5.0, -7.0, -6.0])
    history = train(module, cells, early_stopping=early_stopping)
    assert history["elbo_validation"] == [-9.0, -5.0, -7.0, -6.0]
    assert history["kept"] == [0, 1, 0, 0]
    assert_weights(module, weights[1])
    assert any(not torch.equal(tensor, weights[3][name]) for name, tensor in weights[1].items())


def test_without_validation_cells_the_last_weights_are_kept(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step: list[dict[int, Tensor]] = []

    class Spy(optimizer.Adam):
        def step(self, *args: Any, **options: Any) -> Any:
            result = super().step(*args, **options)
            after_step.append({id(p): p.detach().clone() for group in self.param_groups for p in group["params"]})
            return result

    monkeypatch.setattr(optimizer, "Adam", Spy)
    forward = Module.forward
    # The training ELBO gets worse with each step, but it does not select the weights.
    monkeypatch.setattr(Module, "forward", lambda self, *args: forward(self, *args) + 100 * len(after_step))
    module = make_module(cells)
    history = train(module, cells, validation_c=NOBODY)
    assert history["elbo_train"] == sorted(history["elbo_train"], reverse=True)
    assert len(after_step) == 12
    assert all(torch.equal(parameter, after_step[-1][id(parameter)]) for parameter in module.parameters())
    assert not all(torch.equal(parameter, after_step[-2][id(parameter)]) for parameter in module.parameters())


def test_early_stopping_waits_and_then_stops(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module(cells)
    weights = set_validation_elbos(monkeypatch, module, [-9.0, -5.0] + [-6.0] * 58)
    with caplog.at_level(logging.INFO, logger="celldial"):
        history = train(module, cells, max_epochs=60, batch_size=50, early_stopping=True)
    assert 12 <= len(history["seconds"]) < 60
    assert "epoch 2" in caplog.text
    assert_weights(module, weights[1])


def test_early_stopping_can_be_switched_off(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(cells)
    set_validation_elbos(monkeypatch, module, [-5.0] + [-6.0] * 59)
    assert len(train(module, cells, max_epochs=60, batch_size=50, early_stopping=False)["seconds"]) == 60


def break_forward(monkeypatch: pytest.MonkeyPatch, step: int, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the loss of one step, counted from 1, by the result of a function of it."""
    forward, n_calls = Module.forward, 0

    def broken(self: Module, *args: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        loss = forward(self, *args)
        return change(loss) if n_calls == step else loss

    monkeypatch.setattr(Module, "forward", broken)


@pytest.mark.parametrize("validation_c", [VALIDATION_C, NOBODY], ids=["validated", "not validated"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_infinite_elbo_names_the_epoch(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, value: float, validation_c: Tensor
) -> None:
    module = make_module(cells)
    break_forward(monkeypatch, 5, lambda loss: loss * value)  # the second of three steps of epoch 2
    with raises(FloatingPointError, naming=["epoch 2 of 4", "learning_rate", "0.5"]):
        train(module, cells, validation_c=validation_c, learning_rate=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_infinite_validation_elbo_names_the_epoch(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    module = make_module(cells)
    set_validation_elbos(monkeypatch, module, [-5.0, -4.0, value])
    with raises(FloatingPointError, naming=[value, "epoch 3 of 4"]):
        train(module, cells)


def test_a_far_too_high_learning_rate_raises(cells: Cells) -> None:
    with raises(FloatingPointError, naming=["1e+30"]):
        train(make_module(cells), cells, learning_rate=1e30)


def interrupt(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["training", "validation"])
def test_ctrl_c_keeps_the_best_epoch(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    module = make_module(cells)
    weights = set_validation_elbos(
        monkeypatch, module, [-5.0, -6.0, KeyboardInterrupt() if where == "validation" else -4.0]
    )
    if where == "training":
        break_forward(monkeypatch, 8, interrupt)  # the second step of epoch 3
    history = train(module, cells)
    assert history["elbo_validation"] == [-5.0, -6.0]
    assert {len(values) for values in history.values()} == {2}
    assert_weights(module, weights[0])
    assert not module.training
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "epoch 1" in record.getMessage()


def test_ctrl_c_in_the_first_epoch_is_raised(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    break_forward(monkeypatch, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(make_module(cells), cells)


def test_the_progress_bar_shows_epochs_elbo_and_time_left(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    history = train(make_module(cells), cells, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    last = err.split("\r")[-1]
    assert "4/4" in last
    assert "epoch" in last
    assert f"ELBO {history['elbo_validation'][-1]:.1f} nats/cell" in last
    assert "<" in last  # tqdm: time so far < time left


def test_without_a_progress_bar_nothing_is_shown(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_module(cells), cells, progress=False)
    assert capsys.readouterr() == ("", "")

"""The training loop: history, schedules, minibatches, evaluation."""

import math

import pytest
import torch
from torch import Tensor

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module
from celldial.training import loop
from celldial.training.plan import TrainingPlan
from celldial.utils.settings import settings
from helpers.simulate import simulate_cells
from helpers.training import NOBODY, assert_weights, make_module, train


@pytest.fixture(scope="module")
def cells() -> Cells:
    return simulate_cells()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_improves_the_elbo(likelihood: str) -> None:
    cells = simulate_cells(n_cells=250)
    module = make_module(cells, likelihood)
    plan = TrainingPlan(max_epochs=30, batch_size=20)
    history = loop.train(module, InMemorySource(cells, torch.arange(50, 250), torch.arange(50)), plan, 0).history
    assert max(history["elbo_validation"]) > history["elbo_validation"][0] + 0.3
    assert not module.training


def test_history_has_each_quantity_of_each_epoch(cells: Cells) -> None:
    history = train(make_module(cells), cells)
    of_validation = {"elbo_validation", "log_likelihood_validation", "kl_validation"}
    assert set(history) == {"elbo_train", "kl_weight", "learning_rate", "seconds", "kept"} | of_validation
    for name, values in history.items():
        assert len(values) == 4, name
        assert all(type(value) is float and math.isfinite(value) for value in values), name
    assert history["seconds"] == sorted(history["seconds"])


def test_validation_elbo_is_log_likelihood_minus_kl(cells: Cells) -> None:
    history = train(make_module(cells), cells)
    for epoch in range(4):
        difference = history["log_likelihood_validation"][epoch] - history["kl_validation"][epoch]
        assert history["elbo_validation"][epoch] == pytest.approx(difference)


def test_without_validation_cells_history_has_no_validation(cells: Cells) -> None:
    history = train(make_module(cells), cells, validation_c=NOBODY)
    assert set(history) == {"elbo_train", "kl_weight", "learning_rate", "seconds", "kept"}
    assert history["kept"] == [0, 0, 0, 1]


def test_kl_weight_warms_up_from_above_zero_to_one(cells: Cells) -> None:
    weights = train(make_module(cells), cells, max_epochs=24, early_stopping=False)["kl_weight"]
    assert 0 < weights[0] < 1
    assert weights == sorted(weights)
    assert weights[-1] == 1
    assert set(train(make_module(cells), cells, max_epochs=24, kl_warmup=False)["kl_weight"]) == {1.0}


def test_the_loss_gets_the_kl_weight_of_each_step(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    kl_weights, fractions = [], []
    forward = Module.forward

    def spy(self: Module, cells: Cells, kl_weight: float, progress: float) -> Tensor:
        kl_weights.append(kl_weight)
        fractions.append(progress)
        return forward(self, cells, kl_weight, progress)

    monkeypatch.setattr(Module, "forward", spy)
    history = train(make_module(cells), cells, max_epochs=12, early_stopping=False)
    assert len(kl_weights) == 36
    assert kl_weights[2::3] == history["kl_weight"]
    assert kl_weights == sorted(kl_weights)
    assert fractions == pytest.approx([step / 36 for step in range(1, 37)])


def test_learning_rate_rises_to_its_peak_and_falls(cells: Cells) -> None:
    rates = train(make_module(cells), cells, max_epochs=20, learning_rate=3e-3, early_stopping=False)["learning_rate"]
    peak = rates.index(max(rates))
    assert 0 < peak < 19
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 2e-3 < rates[peak] <= 3e-3
    assert 0 <= rates[-1] < rates[0] < rates[peak] / 2


def test_training_is_reproducible(cells: Cells) -> None:
    modules = [make_module(cells) for _ in range(3)]
    histories = [train(module, cells, seed=seed) for module, seed in zip(modules, (5, 5, 6), strict=True)]
    for history in histories:
        del history["seconds"]
    assert histories[0] == histories[1] != histories[2]
    assert_weights(modules[0], modules[1].state_dict())


@pytest.mark.parametrize("batch_size", [1, 7, 49, 50, 1000])
def test_any_batch_size_works(cells: Cells, batch_size: int) -> None:
    history = train(make_module(cells), cells, max_epochs=2, batch_size=batch_size)
    assert len(history["elbo_train"]) == 2


def test_one_cell_to_train_on_is_enough(cells: Cells) -> None:
    module = make_module(cells)
    plan = TrainingPlan(max_epochs=2, batch_size=8)
    history = loop.train(module, InMemorySource(cells, torch.tensor([3]), NOBODY), plan, 0).history
    assert len(history["elbo_train"]) == 2


def test_half_precision_changes_the_elbo_little(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only matrix products are rounded: weights and likelihoods have full precision."""
    full = train(make_module(cells), cells, max_epochs=5)["elbo_validation"][-1]
    monkeypatch.setattr(settings, "precision", "bf16-mixed")
    module = make_module(cells)
    rounded = train(module, cells, max_epochs=5)["elbo_validation"][-1]
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert rounded != full
    assert rounded == pytest.approx(full, rel=0.01)


def test_evaluate_returns_means_over_cells_for_any_blocks(cells: Cells) -> None:
    module = make_module(cells)
    torch.manual_seed(3)
    with torch.no_grad():
        log_likelihood, kl_c = module.eval().elbo(cells)
    torch.manual_seed(3)
    terms = loop.evaluate(module.train(), [cells])
    assert terms["log_likelihood_validation"] == pytest.approx(float(log_likelihood["rna"].mean()), rel=1e-5)
    assert terms["kl_validation"] == pytest.approx(float(kl_c.mean()), rel=1e-5)
    parts = [cells.slice(start, min(start + 7, len(cells))) for start in range(0, len(cells), 7)]
    assert loop.evaluate(module, parts)["kl_validation"] == pytest.approx(terms["kl_validation"], rel=1e-5)

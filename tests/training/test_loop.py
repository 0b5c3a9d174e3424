"""The training loop: its schedule and history, the weights it keeps, and how it ends when something goes wrong."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.model.fusion import FUSIONS
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module
from celldial.ops.csr import CSRTensor
from celldial.training import loop, optimizer
from celldial.training.plan import TrainingPlan, choose_batch_size, choose_max_epochs
from celldial.utils.settings import settings
from helpers.modules import build_module
from helpers.raises import raises
from helpers.simulate import simulate_cells, simulate_two_cells

TRAIN_C, VALIDATION_C = torch.arange(50), torch.arange(50, 60)
NOBODY = torch.empty(0, dtype=torch.int64)


def make_module(cells: Cells, likelihood: str = "negative_binomial") -> Module:
    torch.manual_seed(0)
    module = build_module({"rna": cells.counts["rna"].n_columns}, likelihood)
    module.initialize(cells)
    return module


def fit(module: Module, cells: Cells, *, validation_c: Tensor = VALIDATION_C, seed: int = 0, **plan: Any) -> Any:
    torch.manual_seed(seed)
    options = {"max_epochs": 4, "batch_size": 20, **plan}
    return loop.train(module, InMemorySource(cells, TRAIN_C, validation_c), TrainingPlan(**options), seed).history


@pytest.fixture(scope="module")
def cells() -> Cells:
    return simulate_cells()


def script(monkeypatch: pytest.MonkeyPatch, module: Module, elbos: list[Any]) -> list[dict[str, Tensor]]:
    """Let `evaluate` return the given validation ELBOs (or raise them); the weights it saw are collected."""
    weights: list[dict[str, Tensor]] = []
    waiting: Iterator[Any] = iter(elbos)

    def evaluate(module: Module, *_: Any) -> dict[str, float]:
        weights.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        elbo = next(waiting)
        if isinstance(elbo, BaseException):
            raise elbo
        return {"elbo_validation": elbo, "log_likelihood_validation": elbo, "kl_validation": 0.0}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return weights


def assert_weights(module: Module, expected: dict[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


# --- History ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_makes_the_elbo_better(likelihood: str) -> None:
    cells = simulate_cells(n_cells=250)
    module = make_module(cells, likelihood)
    plan = TrainingPlan(max_epochs=30, batch_size=20)
    history = loop.train(module, InMemorySource(cells, torch.arange(50, 250), torch.arange(50)), plan, 0).history
    assert max(history["elbo_validation"]) > history["elbo_validation"][0] + 0.3
    assert not module.training


def test_history_has_every_quantity_of_every_epoch(cells: Cells) -> None:
    history = fit(make_module(cells), cells)
    of_validation = {"elbo_validation", "log_likelihood_validation", "kl_validation"}
    assert set(history) == {"elbo_train", "kl_weight", "learning_rate", "seconds", "kept"} | of_validation
    for name, values in history.items():
        assert len(values) == 4, name
        assert all(type(value) is float and math.isfinite(value) for value in values), name
    assert history["seconds"] == sorted(history["seconds"])


def test_validation_elbo_is_log_likelihood_less_kl(cells: Cells) -> None:
    history = fit(make_module(cells), cells)
    for epoch in range(4):
        difference = history["log_likelihood_validation"][epoch] - history["kl_validation"][epoch]
        assert history["elbo_validation"][epoch] == pytest.approx(difference)


def test_without_validation_cells_history_has_no_validation(cells: Cells) -> None:
    history = fit(make_module(cells), cells, validation_c=NOBODY)
    assert set(history) == {"elbo_train", "kl_weight", "learning_rate", "seconds", "kept"}
    assert history["kept"] == [0, 0, 0, 1]


def test_kl_weight_warms_up_from_above_zero_to_one(cells: Cells) -> None:
    weights = fit(make_module(cells), cells, max_epochs=24, early_stopping=False)["kl_weight"]
    assert 0 < weights[0] < 1
    assert weights == sorted(weights)
    assert weights[-1] == 1
    assert set(fit(make_module(cells), cells, max_epochs=24, kl_warmup=False)["kl_weight"]) == {1.0}


def test_kl_weight_of_every_step_reaches_the_loss(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, shares = [], []
    forward = Module.forward

    def spy(self: Module, cells: Cells, kl_weight: float, progress: float) -> Tensor:
        seen.append(kl_weight)
        shares.append(progress)
        return forward(self, cells, kl_weight, progress)

    monkeypatch.setattr(Module, "forward", spy)
    history = fit(make_module(cells), cells, max_epochs=12, early_stopping=False)
    assert len(seen) == 36
    assert seen[2::3] == history["kl_weight"]
    assert seen == sorted(seen)
    assert shares == pytest.approx([step / 36 for step in range(1, 37)])


def test_learning_rate_rises_to_its_peak_and_falls(cells: Cells) -> None:
    rates = fit(make_module(cells), cells, max_epochs=20, learning_rate=3e-3, early_stopping=False)["learning_rate"]
    peak = rates.index(max(rates))
    assert 0 < peak < 19
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 2e-3 < rates[peak] <= 3e-3
    assert 0 <= rates[-1] < rates[0] < rates[peak] / 2


def spy_on_groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the groups of parameters that the optimizer gets."""
    groups: list[dict[str, Any]] = []

    class Spy(optimizer.Adam):
        def __init__(self, parameters: Any, **options: Any) -> None:
            super().__init__(parameters, **options)
            groups.extend(self.param_groups)

    monkeypatch.setattr(optimizer, "Adam", Spy)
    return groups


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_decay_is_for_matrices_alone_and_loadings_have_a_prior(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, likelihood: str
) -> None:
    groups = spy_on_groups(monkeypatch)
    module = make_module(cells, likelihood)
    fit(module, cells, max_epochs=1, weight_decay=0.5)
    loadings = [head.weight for head in module.modalities["rna"].decoder.heads]
    with_prior = [group for group in groups if not group["decoupled_weight_decay"]]
    assert [id(p) for group in with_prior for p in group["params"]] == [id(p) for p in loadings]
    # Minus the log of the prior, per cell, is decay / 2 times the sum of squares; 8 hidden units, 50 cells.
    assert with_prior[0]["weight_decay"] == pytest.approx(8 / LIKELIHOODS[likelihood].loading_scale ** 2 / 50)
    others = [group for group in groups if group["decoupled_weight_decay"]]
    decayed = [p for group in others for p in group["params"] if group["weight_decay"] == 0.5]
    spared = [p for group in others for p in group["params"] if group["weight_decay"] == 0]
    assert all(parameter.ndim > 1 for parameter in decayed)
    assert all(parameter.ndim <= 1 for parameter in spared)
    assert sorted(map(id, [*loadings, *decayed, *spared])) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize("what", [{"n_clusters": 3}, {"prior": "mixture"}, {"prior": "flow"}])
def test_what_is_known_of_cells_before_does_not_decay(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, what: dict[str, Any]
) -> None:
    """Places of clusters would be drawn to 0. How common they are is learned faster."""
    groups = spy_on_groups(monkeypatch)
    torch.manual_seed(0)
    module = build_module({"rna": 20}, "poisson", n_latent=3, dropout_rate=0.2, **what)
    fit(module, cells, max_epochs=1, weight_decay=0.5)
    prior = module.learned_prior if module.clusters is None else module.clusters
    found = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in prior.named_parameters():
        assert found[id(parameter)]["weight_decay"] == 0, name
        faster = 10 if name.endswith("logit_k") else 1
        assert found[id(parameter)]["max_lr"] == pytest.approx(faster * 8e-3), name


def test_parameters_of_likelihoods_are_ten_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = spy_on_groups(monkeypatch)
    cells = simulate_two_cells()
    module = make_two(cells)
    fit(module, cells, max_epochs=1)
    # The schedule keeps the peak of each group.
    fast = {id(p) for group in groups for p in group["params"] if group["max_lr"] == pytest.approx(10 * 8e-3)}
    slow = {id(p) for group in groups for p in group["params"] if group["max_lr"] == pytest.approx(8e-3)}
    assert fast == {id(p) for _, modality in module.by_modality() for p in modality.likelihood.parameters()}
    assert fast | slow == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])
def test_training_ends_at_the_mode_of_the_posterior_of_the_loadings(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, likelihood: str
) -> None:
    """As if each of 50 cells had seen each loading as 1, with a standard error of 1: the prior's part is known."""

    def forward(self: Module, *args: Any) -> Tensor:
        return 0.5 * (self.modalities["rna"].decoder.heads[0].weight - 1).square().sum()

    monkeypatch.setattr(Module, "forward", forward)
    module = make_module(cells, likelihood)
    fit(module, cells, max_epochs=300, batch_size=50, validation_c=NOBODY, learning_rate=0.05, early_stopping=False)
    mode = 50 / (50 + 8 / LIKELIHOODS[likelihood].loading_scale ** 2)
    weight_fh = module.modalities["rna"].decoder.heads[0].weight.detach()
    torch.testing.assert_close(weight_fh, torch.full_like(weight_fh, mode), rtol=0, atol=1e-3)


def test_a_narrow_prior_holds_the_loadings_whatever_the_data_say(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    spreads = []
    for scale in (1.7, 0.01):
        monkeypatch.setattr(LIKELIHOODS["poisson"], "loading_scale", scale)
        module = make_module(cells, "poisson")
        fit(module, cells, max_epochs=30, validation_c=NOBODY, early_stopping=False)
        with torch.no_grad():
            (logits_cf,) = module.decode(torch.linspace(-2, 2, 120).reshape(60, 2), cells)["rna"].heads
        spreads.append(float(logits_cf.std(0).mean()))
    assert spreads[0] > 0.2
    assert spreads[1] < 0.02


def test_training_is_reproducible(cells: Cells) -> None:
    modules = [make_module(cells) for _ in range(3)]
    histories = [fit(module, cells, seed=seed) for module, seed in zip(modules, (5, 5, 6), strict=True)]
    for history in histories:
        del history["seconds"]
    assert histories[0] == histories[1] != histories[2]
    assert_weights(modules[0], modules[1].state_dict())


# --- Several modalities -----------------------------------------------------------------------------------------------


def make_two(cells: Cells, fusion: Any = "product") -> Module:
    torch.manual_seed(0)
    likelihood = {"rna": "negative_binomial", "atac": "bernoulli"}
    n_features = {name: rows.n_columns for name, rows in cells.counts.items()}
    module = build_module(n_features, likelihood, fusion=fusion)
    module.initialize(cells)
    return module


@pytest.mark.parametrize("fusion", FUSIONS)
def test_log_likelihoods_of_the_modalities_sum_to_the_whole(fusion: str) -> None:
    cells = simulate_two_cells(lacking={"atac": range(10, 30), "rna": [0, 1, 58]})
    history = fit(make_two(cells, fusion), cells)
    parts = ["log_likelihood_rna_validation", "log_likelihood_atac_validation"]
    assert {name for name in history if name.startswith("log_likelihood")} == {"log_likelihood_validation", *parts}
    for epoch in range(4):
        whole = history["log_likelihood_validation"][epoch]
        assert sum(history[part][epoch] for part in parts) == pytest.approx(whole)
        assert history["elbo_validation"][epoch] == pytest.approx(whole - history["kl_validation"][epoch])


def test_log_likelihood_of_a_modality_is_per_cell_of_all() -> None:
    """Of ten cells to validate on, one has peaks: the others count as 0."""
    cells = simulate_two_cells(lacking={"atac": range(51, 60)})
    module = make_two(cells)
    torch.manual_seed(3)
    terms = loop.evaluate(module, [cells.select(VALIDATION_C)])
    torch.manual_seed(3)
    with torch.no_grad():
        log_likelihood, _ = module.elbo(cells.select(VALIDATION_C))
    assert terms["log_likelihood_atac_validation"] == pytest.approx(float(log_likelihood["atac"][0]) / 10, rel=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_minibatches_in_which_no_cell_has_a_modality_are_trained_on(fusion: str, batch_size: int) -> None:
    """Of 50 cells to train on, three have peaks and two of these no genes; of ten to validate on, none has."""
    cells = simulate_two_cells(lacking={"atac": range(3, 60), "rna": [0, 1]})
    module = make_two(cells, fusion)
    history = fit(module, cells, max_epochs=2, batch_size=batch_size)
    assert all(math.isfinite(value) for values in history.values() for value in values)
    assert history["log_likelihood_atac_validation"] == [0, 0]
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


def test_masks_are_left_out_where_all_chosen_cells_have_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that has nothing, and is not chosen, must not cost a gathering in each step."""
    cells = simulate_two_cells(lacking={"atac": [7], "rna": [7]})
    seen = []
    forward = Module.forward

    def spy(self: Module, cells: Cells, *args: Any) -> Tensor:
        seen.append(cells.present)
        return forward(self, cells, *args)

    monkeypatch.setattr(Module, "forward", spy)
    chosen_c = torch.tensor([c for c in range(50) if c != 7])
    plan = TrainingPlan(max_epochs=1, batch_size=20)
    loop.train(make_two(cells), InMemorySource(cells, chosen_c, VALIDATION_C), plan, 0)
    assert seen == [{}] * 3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_on_several_modalities_makes_no_dense_copy(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = simulate_two_cells(lacking={"atac": [1, 2, 55], "rna": [3]})

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a dense copy of the counts")

    for owner in (CSRTensor, Tensor):
        monkeypatch.setattr(owner, "to_dense", refuse)
    fit(make_two(cells, fusion), cells, max_epochs=1)


def test_training_on_several_modalities_is_reproducible() -> None:
    cells = simulate_two_cells(lacking={"atac": [1, 2, 55], "rna": [3]})
    modules = [make_two(cells, "mixture_of_products") for _ in range(3)]
    for module, seed in zip(modules, (5, 5, 6), strict=True):
        fit(module, cells, seed=seed)
    assert_weights(modules[0], modules[1].state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(modules[0].parameters(), modules[2].parameters(), strict=True))


# --- The weights that are kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [True, False])
def test_weights_of_the_best_epoch_are_kept(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, early_stopping: bool
) -> None:
    module = make_module(cells)
    weights = script(monkeypatch, module, [-9.0, -5.0, -7.0, -6.0])
    history = fit(module, cells, early_stopping=early_stopping)
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
    # The training ELBO gets worse from step to step, which is no reason to go back.
    monkeypatch.setattr(Module, "forward", lambda self, *args: forward(self, *args) + 100 * len(after_step))
    module = make_module(cells)
    history = fit(module, cells, validation_c=NOBODY)
    assert history["elbo_train"] == sorted(history["elbo_train"], reverse=True)
    assert len(after_step) == 12
    assert all(torch.equal(parameter, after_step[-1][id(parameter)]) for parameter in module.parameters())
    assert not all(torch.equal(parameter, after_step[-2][id(parameter)]) for parameter in module.parameters())


def test_early_stopping_waits_and_then_stops(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module(cells)
    weights = script(monkeypatch, module, [-9.0, -5.0] + [-6.0] * 58)
    with caplog.at_level(logging.INFO, logger="celldial"):
        history = fit(module, cells, max_epochs=60, batch_size=50, early_stopping=True)
    assert 12 <= len(history["seconds"]) < 60
    assert "epoch 2" in caplog.text
    assert_weights(module, weights[1])


def test_early_stopping_can_be_switched_off(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(cells)
    script(monkeypatch, module, [-5.0] + [-6.0] * 59)
    assert len(fit(module, cells, max_epochs=60, batch_size=50, early_stopping=False)["seconds"]) == 60


# --- Going wrong ------------------------------------------------------------------------------------------------------


def break_forward(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[Tensor], Tensor]) -> None:
    """Let the loss of one step, counted from 1, become what `do` makes of it."""
    forward, n_calls = Module.forward, 0

    def broken(self: Module, *args: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        loss = forward(self, *args)
        return do(loss) if n_calls == step else loss

    monkeypatch.setattr(Module, "forward", broken)


@pytest.mark.parametrize("validation_c", [VALIDATION_C, NOBODY], ids=["validated", "not validated"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_elbo_that_is_not_finite_names_the_epoch(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, value: float, validation_c: Tensor
) -> None:
    module = make_module(cells)
    break_forward(monkeypatch, 5, lambda loss: loss * value)  # the second of three steps of epoch 2
    with raises(FloatingPointError, naming=["epoch 2 of 4", "learning_rate", "0.5"]):
        fit(module, cells, validation_c=validation_c, learning_rate=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_validation_elbo_that_is_not_finite_names_the_epoch(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    module = make_module(cells)
    script(monkeypatch, module, [-5.0, -4.0, value])
    with raises(FloatingPointError, naming=[value, "epoch 3 of 4"]):
        fit(module, cells)


def test_a_learning_rate_far_too_high_is_no_silent_failure(cells: Cells) -> None:
    with raises(FloatingPointError, naming=["1e+30"]):
        fit(make_module(cells), cells, learning_rate=1e30)


def interrupt(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["training", "validation"])
def test_ctrl_c_keeps_the_best_epoch(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    module = make_module(cells)
    weights = script(monkeypatch, module, [-5.0, -6.0, KeyboardInterrupt() if where == "validation" else -4.0])
    if where == "training":
        break_forward(monkeypatch, 8, interrupt)  # the second step of epoch 3
    history = fit(module, cells)
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
        fit(make_module(cells), cells)


@pytest.mark.parametrize("batch_size", [1, 7, 49, 50, 1000])
def test_any_batch_size_works_also_a_last_minibatch_of_one_cell(cells: Cells, batch_size: int) -> None:
    history = fit(make_module(cells), cells, max_epochs=2, batch_size=batch_size)
    assert len(history["elbo_train"]) == 2


def test_one_cell_to_train_on_is_enough(cells: Cells) -> None:
    module = make_module(cells)
    plan = TrainingPlan(max_epochs=2, batch_size=8)
    history = loop.train(module, InMemorySource(cells, torch.tensor([3]), NOBODY), plan, 0).history
    assert len(history["elbo_train"]) == 2


# --- The progress bar -------------------------------------------------------------------------------------------------


def test_progress_shows_epochs_elbo_and_time_left(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    history = fit(make_module(cells), cells, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    last = err.split("\r")[-1]
    assert "4/4" in last
    assert "epoch" in last
    assert f"ELBO {history['elbo_validation'][-1]:.1f} nats/cell" in last
    assert "<" in last  # tqdm: time so far < time left


def test_no_progress_shows_nothing(cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_module(cells), cells, progress=False)
    assert capsys.readouterr() == ("", "")


# --- Evaluation and sizes ---------------------------------------------------------------------------------------------


def test_evaluate_is_the_mean_over_cells_however_they_are_batched(cells: Cells) -> None:
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


@given(n_cells=st.integers(1, 10**7), further=st.integers(0, 10**7))
def test_sizes_adapt_to_the_number_of_cells(n_cells: int, further: int) -> None:
    epochs, batch = choose_max_epochs(n_cells), choose_batch_size(n_cells)
    on_gpu = choose_batch_size(n_cells, "cuda")
    assert on_gpu == batch or (128 < on_gpu <= 1024 and n_cells >= 1000 * on_gpu)
    assert type(epochs) is type(batch) is int
    assert epochs >= choose_max_epochs(n_cells + further) >= 1
    assert 1 <= batch <= choose_batch_size(n_cells + further)


def test_half_precision_products_train_as_well(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the matrix products are rounded: weights and likelihoods stay in full precision."""
    full = fit(make_module(cells), cells, max_epochs=5)["elbo_validation"][-1]
    monkeypatch.setattr(settings, "precision", "bf16-mixed")
    module = make_module(cells)
    rounded = fit(module, cells, max_epochs=5)["elbo_validation"][-1]
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert rounded != full
    assert rounded == pytest.approx(full, rel=0.01)

"""Training on several modalities, with modalities missing in some cells."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.model.fusion import FUSIONS
from celldial.model.module import Module
from celldial.ops.csr import CSRTensor
from celldial.training import loop
from celldial.training.plan import TrainingPlan
from helpers.simulate import simulate_two_cells
from helpers.training import VALIDATION_C, assert_weights, make_two, train


@pytest.mark.parametrize("fusion", FUSIONS)
def test_log_likelihoods_of_modalities_sum_to_the_total(fusion: str) -> None:
    cells = simulate_two_cells(lacking={"atac": range(10, 30), "rna": [0, 1, 58]})
    history = train(make_two(cells, fusion), cells)
    parts = ["log_likelihood_rna_validation", "log_likelihood_atac_validation"]
    assert {name for name in history if name.startswith("log_likelihood")} == {"log_likelihood_validation", *parts}
    for epoch in range(4):
        total = history["log_likelihood_validation"][epoch]
        assert sum(history[part][epoch] for part in parts) == pytest.approx(total)
        assert history["elbo_validation"][epoch] == pytest.approx(total - history["kl_validation"][epoch])


def test_log_likelihood_of_a_modality_is_per_cell_of_all() -> None:
    """One of ten validation cells has peaks; the other nine contribute 0."""
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
def test_minibatches_may_lack_a_modality(fusion: str, batch_size: int) -> None:
    """Three of 50 training cells have peaks, two of these lack genes; no validation cell has peaks."""
    cells = simulate_two_cells(lacking={"atac": range(3, 60), "rna": [0, 1]})
    module = make_two(cells, fusion)
    history = train(module, cells, max_epochs=2, batch_size=batch_size)
    assert all(math.isfinite(value) for values in history.values() for value in values)
    assert history["log_likelihood_atac_validation"] == [0, 0]
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


def test_masks_are_dropped_if_all_training_cells_have_all_modalities(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cell that is not trained on must not cost an indexing operation in each step."""
    cells = simulate_two_cells(lacking={"atac": [7], "rna": [7]})
    masks = []
    forward = Module.forward

    def spy(self: Module, cells: Cells, *args: Any) -> Tensor:
        masks.append(cells.present)
        return forward(self, cells, *args)

    monkeypatch.setattr(Module, "forward", spy)
    train_c = torch.tensor([c for c in range(50) if c != 7])
    plan = TrainingPlan(max_epochs=1, batch_size=20)
    loop.train(make_two(cells), InMemorySource(cells, train_c, VALIDATION_C), plan, 0)
    assert masks == [{}] * 3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_on_several_modalities_makes_no_dense_copy(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = simulate_two_cells(lacking={"atac": [1, 2, 55], "rna": [3]})

    def forbid(*args: Any, **options: Any) -> Any:
        raise AssertionError("a dense copy of the counts")

    for owner in (CSRTensor, Tensor):
        monkeypatch.setattr(owner, "to_dense", forbid)
    train(make_two(cells, fusion), cells, max_epochs=1)


def test_training_on_several_modalities_is_reproducible() -> None:
    cells = simulate_two_cells(lacking={"atac": [1, 2, 55], "rna": [3]})
    modules = [make_two(cells, "mixture_of_products") for _ in range(3)]
    for module, seed in zip(modules, (5, 5, 6), strict=True):
        train(module, cells, seed=seed)
    assert_weights(modules[0], modules[1].state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(modules[0].parameters(), modules[2].parameters(), strict=True))

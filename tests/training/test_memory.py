"""The estimated memory against the memory that training uses, and the error if there is too little."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.model.likelihoods import LIKELIHOODS
from celldial.ops.csr import CSRTensor
from celldial.training import loop, memory
from celldial.training.plan import TrainingPlan
from celldial.utils import device
from helpers.modules import build_module
from helpers.raises import raises
from helpers.simulate import simulate_two_cells

CPU = torch.device("cpu")
TWO = {"rna": "negative_binomial", "atac": "bernoulli"}


class Peak(TorchDispatchMode):
    """Track the memory of all tensors that are created in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = self.peak = 0
        self._tracked: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._tracked:
                    self._tracked.add(storage._cdata)
                    self.n_bytes += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.n_bytes)
        return result

    def _forget(self, key: int, n_bytes: int) -> None:
        self._tracked.discard(key)
        self.n_bytes -= n_bytes


def make_cells(n_cells: int, n_features: int, per_cell: int) -> Cells:
    """Return cells with `per_cell` counts of 1 each, in random columns."""
    torch.manual_seed(0)
    column_n = torch.rand(n_cells, n_features).topk(per_cell).indices.sort(1).values.flatten()
    rows = CSRTensor(torch.arange(n_cells + 1) * per_cell, column_n, torch.ones(len(column_n)), n_features)
    nothing = torch.empty(n_cells, 0)
    return Cells({"rna": rows}, {"rna": torch.full((n_cells,), float(per_cell))}, nothing.long(), nothing)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("n_cells", "n_features", "per_cell", "n_hidden", "batch_size"),
    [(40, 3000, 5, 128, 8), (150, 4000, 5, 4, 128), (400, 300, 100, 4, 16)],
    ids=["weights", "matrices", "counts"],
)
def test_estimate_is_close_to_the_memory_used(
    likelihood: str, n_cells: int, n_features: int, per_cell: int, n_hidden: int, batch_size: int
) -> None:
    """It holds if most of the memory is for weights, for matrices or for counts."""
    with Peak() as peak:
        cells = make_cells(n_cells, n_features, per_cell)
        peak.peak = peak.n_bytes
        train_c, validation_c = torch.arange(n_cells // 10, n_cells), torch.arange(n_cells // 10)
        module = build_module({"rna": n_features}, likelihood, n_hidden=n_hidden)
        module.initialize(cells.select(train_c))
        plan = TrainingPlan(max_epochs=2, batch_size=batch_size)
        loop.train(module, InMemorySource(cells, train_c, validation_c), plan, 0)
    assert 0.97 < memory.estimate_memory(cells, {"rna": likelihood}, n_hidden, batch_size) / peak.peak < 1.2


def test_weights_count_five_times() -> None:
    cells = simulate_two_cells(n_genes=300, n_peaks=500)

    def n_bytes(n_hidden: int) -> int:
        n_features = {name: rows.n_columns for name, rows in cells.counts.items()}
        module = build_module(n_features, TWO, n_hidden=n_hidden)
        return sum(parameter.nbytes for parameter in module.parameters())

    more = memory.estimate_memory(cells, TWO, 32, 16) - memory.estimate_memory(cells, TWO, 8, 16)
    assert more == pytest.approx(5 * (n_bytes(32) - n_bytes(8)), rel=0.02)


def test_the_estimate_is_a_sum_over_modalities() -> None:
    cells = simulate_two_cells()
    parts = [
        memory.estimate_memory(Cells({name: rows}, {}, cells.category_ck, cells.continuous_ck), TWO, 8, 16)
        for name, rows in cells.counts.items()
    ]
    assert memory.estimate_memory(cells, TWO, 8, 16) == sum(parts)


def test_the_error_has_needed_and_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = simulate_two_cells(n_cells=40, n_genes=20, n_peaks=30)
    needed = memory.estimate_memory(cells, TWO, 10_000_000, 16)
    monkeypatch.setattr(memory, "available_memory", lambda device: 3_210_000_000)
    sizes = ["40 cells", "20 features (rna)", "30 features (atac)", f"{needed / 1e9:.1f} GB", "3.2 GB"]
    with raises(MemoryError, naming=[*sizes, "cpu", "n_hidden", "batch_size (it is 16)"]):
        memory.check_memory(cells, TWO, 10_000_000, 16, CPU)


@pytest.mark.parametrize("spare", [-1, 0])
def test_the_check_uses_the_free_memory_of_the_device(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    cells = simulate_two_cells()
    asked = []

    def available(device: torch.device) -> int:
        asked.append(device)
        return memory.estimate_memory(cells, TWO, 8, 16) + spare

    monkeypatch.setattr(memory, "available_memory", available)
    if spare < 0:
        with pytest.raises(MemoryError):
            memory.check_memory(cells, TWO, 8, 16, CPU)
    else:
        memory.check_memory(cells, TWO, 8, 16, CPU)
    assert asked == [CPU]


def test_some_memory_is_available() -> None:
    assert 2**20 < device.available_memory(CPU) < 2**50


@pytest.mark.gpu
def test_some_memory_is_available_on_the_gpu() -> None:
    assert 2**20 < device.available_memory(torch.device("cuda")) < 2**40

"""Training cells in memory: each cell once per epoch, divided evenly, in an order that a generator determines."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from helpers.simulate import simulate_cells, simulate_two_cells

META = torch.device("meta")


def numbered(n_cells: int) -> Cells:
    """Return cells whose only count is their number."""
    cells = simulate_cells(2).select(torch.zeros(n_cells, dtype=torch.int64))
    return replace(cells, library_size={"rna": torch.arange(n_cells, dtype=torch.float32)})


def numbers(minibatches: Iterable[Cells]) -> list[list[int]]:
    return [minibatch.library_size["rna"].int().tolist() for minibatch in minibatches]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(n_cells=st.integers(2, 40), batch_size=st.integers(1, 12), n_ranks=st.integers(1, 4), seed=st.integers(0, 9))
def test_ranks_get_each_cell_once_and_equal_numbers(n_cells: int, batch_size: int, n_ranks: int, seed: int) -> None:
    train_c = torch.arange(0, n_cells, 2)
    source = InMemorySource(numbered(n_cells), train_c, torch.arange(1, n_cells, 2))
    shares = [
        numbers(source.training_minibatches(batch_size, generator(seed), rank, n_ranks)) for rank in range(n_ranks)
    ]
    lengths = [[len(minibatch) for minibatch in share] for share in shares]
    assert lengths == [lengths[0]] * n_ranks
    assert all(length <= max(1, batch_size // n_ranks) for length in lengths[0])
    seen = [number for share in shares for minibatch in share for number in minibatch]
    assert len(seen) == len(set(seen)) == len(train_c) // n_ranks * n_ranks
    assert set(seen) <= set(train_c.tolist())
    validated = [
        n for rank in range(n_ranks) for part in numbers(source.validation_minibatches(rank, n_ranks)) for n in part
    ]
    assert sorted(validated) == source.validation_c.tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 99))
def test_ranks_share_the_minibatches_of_one_process(seed: int) -> None:
    source = InMemorySource(numbered(24), torch.arange(24), torch.arange(0))
    full = numbers(source.training_minibatches(8, generator(seed)))
    halves = zip(*(numbers(source.training_minibatches(8, generator(seed), rank, 2)) for rank in range(2)), strict=True)
    assert [set(one + other) for one, other in halves] == [set(minibatch) for minibatch in full]


def test_the_next_epoch_has_another_order() -> None:
    source, of_both = InMemorySource(numbered(24), torch.arange(24), torch.arange(0)), generator()
    assert numbers(source.training_minibatches(8, of_both)) != numbers(source.training_minibatches(8, of_both))


def test_a_sample_is_reproducible_and_has_only_training_cells() -> None:
    source = InMemorySource(numbered(30), torch.arange(10, 30), torch.arange(10))
    (few,), (again,), (all_,) = (numbers([source.training_sample(n)]) for n in (5, 5, 50))
    assert few == again
    assert len(few) == 5
    assert few == sorted(few)
    assert set(few) <= set(range(10, 30))
    assert all_ == list(range(10, 30))


def test_fingerprints_differ_between_data_sets_and_splits() -> None:
    cells = simulate_two_cells()
    source = InMemorySource(cells, torch.arange(50), torch.arange(50, 60))
    others = [
        InMemorySource(cells, torch.arange(49), torch.arange(50, 60)),
        InMemorySource(cells.select(torch.arange(60).flip(0)), torch.arange(50), torch.arange(50, 60)),
        InMemorySource(simulate_two_cells(seed=1), torch.arange(50), torch.arange(50, 60)),
    ]
    assert (
        source.fingerprint == InMemorySource(simulate_two_cells(), torch.arange(50), torch.arange(50, 60)).fingerprint
    )
    assert source.fingerprint not in {other.fingerprint for other in others}


@pytest.mark.parametrize("fits", [True, False])
def test_cells_that_do_not_fit_on_the_device_are_moved_in_blocks(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    cells = simulate_cells()
    monkeypatch.setattr(
        "celldial.data.in_memory.available_memory", lambda device: 10 * cells.n_bytes if fits else cells.n_bytes
    )
    source = InMemorySource(cells, torch.arange(60), torch.arange(0)).to(META)
    assert source.cells.category_ck.device.type == ("meta" if fits else "cpu")
    if not fits:
        minibatches = list(source.training_minibatches(16, generator()))
        assert [len(minibatch) for minibatch in minibatches] == [16, 16, 16, 12]
        assert {minibatch.counts["rna"].value_n.device for minibatch in minibatches} == {META}


def test_masks_of_modalities_of_all_selected_cells_are_dropped() -> None:
    cells = simulate_two_cells(lacking={"atac": [0]})
    assert set(InMemorySource(cells, torch.arange(60), torch.arange(0)).to(torch.device("cpu")).cells.present) == {
        "atac"
    }
    assert not InMemorySource(cells, torch.arange(1, 60), torch.arange(0)).to(torch.device("cpu")).cells.present

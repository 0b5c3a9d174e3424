"""Training cells in files: each cell once per epoch, divided evenly, in an order that a generator determines."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celldial.data import on_disk
from celldial.data.cells import Cells
from celldial.data.files import OnDiskDataset
from celldial.data.on_disk import OnDiskSource, shuffle_runs
from celldial.data.schema import Schema
from celldial.data.splits import train_validation_split
from helpers.assertions import assert_same_cells
from helpers.raises import raises, warns
from helpers.simulate import COVARIATES, build_numbered, cell_numbers, simulate, simulate_two, write


def opened(adata: AnnData, path: Path, **options) -> OnDiskSource:
    dataset = OnDiskDataset.open(write(adata, path))
    return OnDiskSource.scan(dataset, dataset.schema(), **options)


def epoch(source: OnDiskSource, batch_size: int = 8, seed: int = 0, rank: int = 0, n_ranks: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [cell_numbers(minibatch) for minibatch in source.training_minibatches(batch_size, generator, rank, n_ranks)]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory) -> OnDiskSource:
    """A hundred build_numbered cells, of which cell 17 is empty, with a tenth for validation."""
    return opened(build_numbered(100, empty=[17]), tmp_path_factory.mktemp("hundred") / "a.h5ad")


@pytest.fixture
def small_buffers(monkeypatch):
    """Use buffers so small that an epoch has many of them."""
    monkeypatch.setattr(on_disk, "MAX_BUFFER_CELLS", 24)
    monkeypatch.setattr(on_disk, "MIN_RUNS_PER_BUFFER", 6)


# --- Scan -------------------------------------------------------------------------------------------------------------


def test_every_cell_with_counts_is_a_training_or_validation_cell(hundred):
    assert sorted([*hundred.train_c.tolist(), *hundred.validation_c.tolist()]) == [c for c in range(100) if c != 17]
    assert (len(hundred.train_c), len(hundred.validation_c)) == (89, 10)
    assert hundred.summary.empty_c.nonzero().tolist() == [[17]]
    assert hundred.library_size["rna"].tolist() == [0 if cell == 17 else cell + 1 for cell in range(100)]


def test_validation_cells_are_runs_of_neighbors(tmp_path):
    source = opened(build_numbered(20_000), tmp_path / "a.h5ad", validation_size=0.3)
    assert len(source.validation_c) == 6000
    n_runs = 1 + int((source.validation_c.diff() > 1).sum())
    assert n_runs <= 6000 / 64 + 1
    other = opened(build_numbered(20_000), tmp_path / "b.h5ad", validation_size=0.3, seed=1)
    assert not torch.equal(source.validation_c, other.validation_c)


def test_validation_cells_may_be_named(tmp_path):
    adata = build_numbered(30)
    mask = np.arange(30) % 7 == 0
    for name, wanted in {"mask": mask, "names": list(adata.obs_names[mask])}.items():
        source = opened(adata, tmp_path / f"{name}.h5ad", validation_cells=wanted)
        assert source.validation_c.tolist() == list(np.flatnonzero(mask))
        assert len(source.train_c) == 25
    with raises(KeyError, naming=["validation_cells", "'c99'"]):
        opened(adata, tmp_path / "a.h5ad", validation_cells=["c1", "c99"])
    with raises(ValueError, naming=["validation_cells", 3, 30]):
        opened(adata, tmp_path / "b.h5ad", validation_cells=np.ones(3, dtype=bool))
    with raises(ValueError, naming=["validation_cells"], omitting=[3]):
        opened(adata, tmp_path / "c.h5ad", validation_cells=np.ones(30, dtype=bool))


@pytest.mark.parametrize("labeled", [range(0, 40, 4), range(40), []])
def test_as_many_cells_are_held_out_as_in_memory_but_no_labeled_ones(tmp_path, labeled):
    adata = build_numbered(40)
    label_c = torch.full((40,), -1)
    label_c[list(labeled)] = 0
    source = opened(adata, tmp_path / "a.h5ad", validation_size=0.2, encode_labels=lambda obs: label_c)
    cells = Cells.from_anndata(adata, source.schema)
    cells = Cells(**{**vars(cells), "label_c": label_c})
    train_c, validation_c = train_validation_split(adata, cells, 0.2, None, 0)
    assert (len(source.train_c), len(source.validation_c)) == (len(train_c), len(validation_c))
    assert 2 * len(labeled) > 40 or not set(labeled) & set(source.validation_c.tolist())
    minibatch = next(source.training_minibatches(16, torch.Generator().manual_seed(0)))
    assert minibatch.label_c.tolist() == label_c[cell_numbers(minibatch)].tolist()


def test_counts_are_checked_and_the_cell_is_named(tmp_path):
    adata = build_numbered(30)
    adata.X.data[20] = 0.5
    with raises(ValueError, naming=["adata.X", 0.5, "'c20'", "'g2'"]):
        opened(adata, tmp_path / "a.h5ad")


def test_a_warning_is_shown_once_and_only_during_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr("celldial.data.files.MAX_READ_CELLS", 10)
    adata = simulate_two(lacking={"atac": [1, 2, 15, 33, 34]})
    adata.obs["has_atac"] = True
    dataset = OnDiskDataset.open(write(adata, tmp_path / "a.h5ad"))
    with warns(naming=[2, 10, "atac", "'c1'"]) as record:
        source = OnDiskSource.scan(dataset, dataset.schema())
    assert len(record) == 1
    assert sum(map(len, source.training_minibatches(16, torch.Generator()))) == 54


def test_counts_in_cells_that_should_lack_the_modality_are_errors(tmp_path):
    adata = simulate_two()
    adata.obs["has_atac"] = adata.obs_names != "c40"
    dataset = OnDiskDataset.open(write(adata, tmp_path / "a.h5ad"))
    with raises(ValueError, naming=["'c40'", "atac"]):
        OnDiskSource.scan(dataset, dataset.schema())


# --- An epoch ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 50),
    buffer_cells=st.integers(1, 120),
    run=st.integers(1, 40),
    n_ranks=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_each_cell_is_visited_once_in_equal_steps(hundred, monkeypatch, batch_size, buffer_cells, run, n_ranks, seed):
    monkeypatch.setattr(on_disk, "MAX_BUFFER_CELLS", buffer_cells)
    monkeypatch.setattr(on_disk, "RUN_CELLS", run)
    monkeypatch.setattr(on_disk, "MIN_RUNS_PER_BUFFER", 1)
    each = [epoch(hundred, batch_size, seed, rank, n_ranks) for rank in range(n_ranks)]
    seen = [cell for batches in each for minibatch in batches for cell in minibatch]
    assert len(seen) == len(set(seen)) == 89 - 89 % n_ranks
    assert set(seen) <= set(hundred.train_c.tolist())
    sizes = [[len(minibatch) for minibatch in batches] for batches in each]
    assert all(of_rank == sizes[0] for of_rank in sizes)
    own = max(1, batch_size // n_ranks)
    assert all(size == own for size in sizes[0][:-1])
    assert len(sizes[0]) == -(-(89 // n_ranks) // own)
    assert epoch(hundred, batch_size, seed, 0, n_ranks) == each[0]


def test_the_order_depends_only_on_the_generator(hundred, small_buffers):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = [cell_numbers(minibatch) for minibatch in hundred.training_minibatches(8, generator)]
    second = [cell_numbers(minibatch) for minibatch in hundred.training_minibatches(8, generator)]
    assert first != second
    generator.set_state(state)
    broken_off = hundred.training_minibatches(8, generator)
    assert cell_numbers(next(broken_off)) == first[0]
    broken_off.close()
    assert [cell_numbers(minibatch) for minibatch in hundred.training_minibatches(8, generator)] == second


def test_neighbors_are_in_different_minibatches(hundred, small_buffers):
    order = [cell for minibatch in epoch(hundred) for cell in minibatch]
    near = np.abs(np.diff(order)) <= 1
    assert near.mean() < 0.2
    assert hundred.run_cells == 4


def test_validation_is_reproducible_and_divided_among_ranks(hundred):
    for n_ranks in (1, 3):
        for _ in range(2):
            shares = [
                [n for block in hundred.validation_minibatches(rank, n_ranks) for n in cell_numbers(block)]
                for rank in range(n_ranks)
            ]
            assert [n for share in shares for n in share] == hundred.validation_c.tolist()


def test_a_sample_is_reproducible_and_has_only_training_cells(hundred):
    some = cell_numbers(hundred.training_sample(20))
    assert len(set(some)) == 20
    assert set(some) <= set(hundred.train_c.tolist())
    assert cell_numbers(hundred.training_sample(20)) == some
    assert cell_numbers(hundred.training_sample(1000)) == hundred.train_c.tolist()


def test_a_sample_is_smaller_if_cells_have_many_counts(hundred, monkeypatch):
    monkeypatch.setattr(on_disk, "MAX_SAMPLE_NNZ", 5)
    assert hundred.nnz_per_cell <= 1
    assert len(hundred.training_sample(20)) == 5


def test_minibatches_equal_those_in_memory(tmp_path):
    adata = simulate_two(lacking={"rna": [3, 4], "atac": [10]})
    first, second = adata[:25].copy(), adata[25:, ::-1].copy()
    paths = [write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.zarr")]
    schema = Schema.from_anndata(adata, **COVARIATES)
    expected = Cells.from_anndata(adata, schema)
    dataset = OnDiskDataset.open(paths, obs_keys=["batch", "donor", "age"])
    source = OnDiskSource.scan(dataset, dataset.schema(**COVARIATES), validation_size=0.2)
    for modality, total_c in expected.library_size.items():
        assert torch.equal(source.library_size[modality], total_c)
        assert torch.equal(source.summary.mask_with(modality), expected.mask_with(modality))
    assert source.summary.indices_with("rna") is not None
    order = shuffle_runs(source.train_c, source.run_cells, generator := torch.Generator().manual_seed(0))
    within = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    order = order[torch.randperm(len(order), generator=within)]
    start = 0
    for minibatch in source.training_minibatches(16, torch.Generator().manual_seed(0)):
        chosen = expected.select(order[start : start + 16])
        assert_same_cells(minibatch, chosen)
        start += 16


def test_fingerprints_differ_between_data_sets(tmp_path, hundred):
    same, other = build_numbered(100, empty=[17]), build_numbered(100, empty=[18])
    assert opened(same, tmp_path / "a.h5ad").fingerprint == hundred.fingerprint
    assert opened(other, tmp_path / "b.h5ad").fingerprint != hundred.fingerprint
    assert opened(same, tmp_path / "c.h5ad", seed=1).fingerprint != hundred.fingerprint


def test_buffers_have_a_limited_size(tmp_path, monkeypatch):
    source = opened(simulate(200, 50), tmp_path / "a.h5ad")
    mean = simulate(200, 50).X.nnz / 200
    monkeypatch.setattr(on_disk, "MAX_BUFFER_NNZ", int(40 * mean))
    assert 20 <= source.buffer_cells <= 40
    sizes = []
    read = source.dataset.read
    monkeypatch.setattr(source.dataset, "read", lambda row_c, names: sizes.append(len(row_c)) or read(row_c, names))
    assert sum(map(len, source.training_minibatches(4, torch.Generator()))) == len(source.train_c)
    assert max(sizes) <= 40


# --- Prefetching ------------------------------------------------------------------------------------------------------


def test_a_file_that_disappears_during_an_epoch_is_an_error(tmp_path, small_buffers):
    source = opened(build_numbered(100), tmp_path / "a.h5ad")
    minibatches = source.training_minibatches(8, torch.Generator())
    next(minibatches)
    (tmp_path / "a.h5ad").unlink()
    with raises(OSError, naming=["a.h5ad"]):
        list(minibatches)
    assert not reading_threads()


@pytest.mark.parametrize("leave", ["close", "throw", "forget"])
def test_no_thread_is_left_by_an_incomplete_epoch(hundred, small_buffers, leave):
    minibatches = hundred.training_minibatches(8, torch.Generator())
    next(minibatches)
    assert reading_threads()
    if leave == "close":
        minibatches.close()
    elif leave == "throw":
        with pytest.raises(KeyboardInterrupt):
            minibatches.throw(KeyboardInterrupt)
    else:
        del minibatches
    assert not reading_threads()


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("celldial-prefetch")]

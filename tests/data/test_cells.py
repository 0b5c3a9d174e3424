"""Cells as tensors: reading, selecting, minibatches, splits."""

from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from celldial.data.cell_checks import check_modalities_connected
from celldial.data.cells import MAX_DECODE_CELLS, MAX_DECODE_VALUES, Cells, decode_block_size, minibatches
from celldial.data.schema import Schema
from celldial.data.splits import random_split
from helpers.raises import raises
from helpers.simulate import build_cells, build_mosaic, build_numbered, build_rna, cell_numbers

COUNTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 9))


def make_schema(adata: AnnData) -> Schema:
    return Schema.from_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])


def numbered_cells(n_cells: int) -> Cells:
    adata = build_numbered(n_cells)
    return Cells.from_anndata(adata, make_schema(adata))


def assert_same(cells: Cells, expected: Cells, index: Any) -> None:
    """Assert that `cells` are those at `index` in `expected`."""
    assert list(cells.counts) == list(expected.counts)
    for modality, rows in expected.counts.items():
        assert torch.equal(cells.counts[modality].to_dense(), rows.to_dense()[index])
        assert torch.equal(cells.library_size[modality], expected.library_size[modality][index])
    assert list(cells.present) == list(expected.present)
    for modality, present_c in expected.present.items():
        assert torch.equal(cells.present[modality], present_c[index])
    assert torch.equal(cells.category_ck, expected.category_ck[index])
    assert torch.equal(cells.continuous_ck, expected.continuous_ck[index])


@given(x=COUNTS)
def test_from_anndata(x: np.ndarray) -> None:
    adata = build_rna(sparse.csr_matrix(x))
    schema = make_schema(adata)
    cells = Cells.from_anndata(adata, schema)
    category_ck, continuous_ck = schema.encode_covariates(adata)
    np.testing.assert_array_equal(cells.counts["rna"].to_dense(), x)
    np.testing.assert_array_equal(cells.library_size["rna"], x.sum(1))
    np.testing.assert_array_equal(cells.empty_c, x.sum(1) == 0)
    np.testing.assert_array_equal(cells.category_ck, category_ck)
    np.testing.assert_array_equal(cells.continuous_ck, continuous_ck)
    assert len(cells) == cells.n_cells == len(x)


def test_dtypes() -> None:
    cells = numbered_cells(3)
    rows = cells.counts["rna"]
    assert (rows.indptr_c.dtype, rows.column_n.dtype, rows.value_n.dtype) == (torch.int64, torch.int32, torch.float32)
    assert (cells.library_size["rna"].dtype, cells.empty_c.dtype) == (torch.float32, torch.bool)
    assert (cells.category_ck.dtype, cells.continuous_ck.dtype) == (torch.int64, torch.float32)


def test_canonical_counts_are_not_copied() -> None:
    """A million cells take gigabytes."""
    adata = build_rna(sparse.csr_matrix(np.ones((2, 2))))
    rows = Cells.from_anndata(adata, make_schema(adata)).counts["rna"]
    assert np.shares_memory(rows.value_n.numpy(), adata.X.data)
    assert np.shares_memory(rows.column_n.numpy(), adata.X.indices)


def test_other_counts_are_copied_and_stay_as_they_are() -> None:
    x = sparse.csr_matrix((np.ones(4, np.int64), np.array([1, 0, 0, 1]), np.array([0, 2, 4])), shape=(2, 2))
    adata = build_rna(x, dtype=np.int64)
    cells = Cells.from_anndata(adata, make_schema(adata))
    assert torch.equal(cells.counts["rna"].to_dense(), torch.ones(2, 2))
    assert adata.X.indices.tolist() == [1, 0, 0, 1]


def test_read_only_counts() -> None:
    adata = build_rna(sparse.csr_matrix(np.ones((2, 2))))
    adata.X.data.flags.writeable = False
    assert Cells.from_anndata(adata, make_schema(adata)).n_cells == 2


def test_overrides() -> None:
    adata = build_rna(sparse.csr_matrix(np.ones((3, 2))))
    cells = Cells.from_anndata(adata, make_schema(adata), {"batch": "b1"})
    assert cells.category_ck.tolist() == [[1], [1], [1]]


def test_empty_in_all_modalities() -> None:
    one, other = (build_cells(np.array(x, dtype=np.float32)) for x in ([[0], [1], [0]], [[0], [0], [2]]))
    both = Cells(
        {"rna": one.counts["rna"], "protein": other.counts["rna"]},
        {"rna": one.library_size["rna"], "protein": other.library_size["rna"]},
        one.category_ck,
        one.continuous_ck,
    )
    assert both.empty_c.tolist() == [True, False, False]
    chosen = both.select(torch.tensor([2, 0]))
    assert chosen.library_size["protein"].tolist() == [2, 0]
    assert chosen.counts["protein"].to_dense().tolist() == [[2], [0]]


@given(x=COUNTS, data=st.data())
def test_select_is_dense_indexing(x: np.ndarray, data: st.DataObject) -> None:
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1))), dtype=torch.int64)
    cells = build_cells(x)
    assert_same(cells.select(index), cells, index)


@given(x=COUNTS, data=st.data())
def test_slice_is_dense_slicing(x: np.ndarray, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(x)))
    stop = data.draw(st.integers(start, len(x)))
    cells = build_cells(x)
    assert_same(cells.slice(start, stop), cells, slice(start, stop))


def test_slice_copies_no_entries() -> None:
    cells = numbered_cells(5)
    part = cells.slice(2, 4)
    assert part.counts["rna"].value_n.data_ptr() == cells.counts["rna"].value_n[2:].data_ptr()


def test_to() -> None:
    cells = numbered_cells(3)
    assert_same(cells.to("cpu"), cells, slice(None))
    assert cells.to(torch.device("meta")).counts["rna"].value_n.device.type == "meta"


@pytest.mark.gpu
def test_minibatches_on_the_gpu_are_those_on_the_cpu() -> None:
    cells = numbered_cells(7)
    for index_c in (None, torch.tensor([5, 1, 2])):
        for generator in (lambda: None, lambda: torch.Generator().manual_seed(0)):
            here = minibatches(cells, 2, generator=generator(), index_c=index_c)
            there = minibatches(cells.to("cuda"), 2, generator=generator(), index_c=index_c)
            for one, other in zip(here, there, strict=True):
                assert other.category_ck.is_cuda
                assert cell_numbers(one) == cell_numbers(other)


@given(
    n_cells=st.integers(1, 12),
    batch_size=st.integers(1, 15),
    seed=st.none() | st.integers(0, 9),
)
def test_minibatches_cover_each_cell_once(n_cells: int, batch_size: int, seed: int | None) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    cells = numbered_cells(n_cells)
    seen = []
    for minibatch in minibatches(cells, batch_size, generator=generator):
        assert_same(minibatch, cells, torch.tensor(cell_numbers(minibatch)))
        seen.append(cell_numbers(minibatch))
    assert all(len(part) == batch_size for part in seen[:-1])
    assert 1 <= len(seen[-1]) <= batch_size
    order = [number for part in seen for number in part]
    assert sorted(order) == list(range(n_cells))
    if generator is None:
        assert order == list(range(n_cells))


@pytest.mark.parametrize("index", [[1, 2, 3, 4], [4, 1, 3], [2], [], [3, 3]])
@pytest.mark.parametrize("shuffled", [False, True])
def test_minibatches_of_some_cells(index: list[int], shuffled: bool) -> None:
    generator = torch.Generator().manual_seed(0) if shuffled else None
    index_c = torch.tensor(index, dtype=torch.int64)
    parts = [cell_numbers(part) for part in minibatches(numbered_cells(6), 3, generator=generator, index_c=index_c)]
    order = [number for part in parts for number in part]
    assert sorted(order) == sorted(index)
    assert shuffled or order == index


def test_minibatches_in_order_are_views() -> None:
    cells = numbered_cells(6)
    part = next(minibatches(cells, 2, index_c=torch.tensor([2, 3, 4])))
    assert part.counts["rna"].value_n.data_ptr() == cells.counts["rna"].value_n[2:].data_ptr()


def test_shuffling_is_reproducible_and_differs_between_epochs() -> None:
    def order(generator: torch.Generator) -> list[int]:
        return [
            number for part in minibatches(numbered_cells(20), 4, generator=generator) for number in cell_numbers(part)
        ]

    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    first = order(one)
    assert first == order(other)
    assert first != order(one)


def test_invalid_arguments_of_minibatches() -> None:
    with raises(ValueError, naming=["batch_size", 0]):
        next(minibatches(numbered_cells(3), 0))
    for index in ([2, 3], [-1, 0]):
        with raises(ValueError, naming=[*index, 2]):
            next(minibatches(numbered_cells(3), 2, index_c=torch.tensor(index)))


@given(n_cells=st.integers(1, 50), validation_size=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
def test_split(n_cells: int, validation_size: float, seed: int) -> None:
    train, validation = random_split(n_cells, validation_size, torch.Generator().manual_seed(seed))
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(n_cells))
    assert train.tolist() == sorted(train.tolist())
    assert len(train) >= 1
    if validation_size == 0:
        assert len(validation) == 0
    elif n_cells > 1:
        assert len(validation) >= 1
        assert abs(len(validation) - n_cells * validation_size) <= 1
    again = random_split(n_cells, validation_size, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], train)


def test_split_is_random() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(random_split(50, 0.5, generator)[1], random_split(50, 0.5, generator)[1])


@pytest.mark.parametrize("validation_size", [-0.1, 1, 1.5, float("nan")])
def test_split_requires_a_valid_fraction(validation_size: float) -> None:
    with raises(ValueError, naming=["validation_size", validation_size]):
        random_split(10, validation_size, torch.Generator())


def test_split_requires_cells() -> None:
    with raises(ValueError, naming=[0]):
        random_split(0, 0.1, torch.Generator())


# --- Several modalities -----------------------------------------------------------------------------------------------


def test_modalities_of_all_cells_have_no_mask() -> None:
    assert build_mosaic(rna=[], protein=[]).present == {}
    cells = build_mosaic(rna=[], protein=[1, 2])
    assert list(cells.present) == ["protein"]
    assert cells.present["protein"].tolist() == [True, False, False, True]
    assert cells.indices_with("rna") is None
    assert cells.indices_with("protein").tolist() == [0, 3]
    assert cells.indices_with("protein").dtype == torch.int64
    assert build_mosaic(rna=[2]).present["rna"].tolist() == [True, True, False, True]


@given(lacking=st.lists(st.integers(0, 3), unique=True), data=st.data())
def test_masks_follow_the_cells(lacking: list[int], data: st.DataObject) -> None:
    cells = build_mosaic(rna=[], protein=lacking)
    index = torch.tensor(data.draw(st.lists(st.integers(0, 3))), dtype=torch.int64)
    assert_same(cells.select(index), cells, index)
    assert_same(cells.slice(1, 3), cells, slice(1, 3))
    assert_same(cells.to("cpu"), cells, slice(None))
    for minibatch in minibatches(cells, 2, generator=torch.Generator().manual_seed(0)):
        for modality, total_c in minibatch.library_size.items():
            indices = minibatch.indices_with(modality)
            having = torch.arange(len(minibatch)) if indices is None else indices
            assert torch.equal(having, (total_c > 0).nonzero().squeeze(1))


def test_masks_stay_if_a_part_has_the_modality_in_all_cells() -> None:
    part = build_mosaic(rna=[], protein=[1]).slice(2, 4)
    assert part.present["protein"].tolist() == [True, True]
    assert part.indices_with("protein").tolist() == [0, 1]


def test_keep_one_modality() -> None:
    cells = build_mosaic(rna=[0], protein=[1], atac=[])
    only = cells.keep_modalities("protein")
    assert list(only.counts) == ["rna", "atac", "protein"]
    assert only.counts["protein"] is cells.counts["protein"]
    assert only.category_ck is cells.category_ck
    for other in ("rna", "atac"):
        assert only.counts[other].to_dense().tolist() == [[0, 0]] * 4
        assert only.library_size[other].tolist() == [0] * 4
        assert only.indices_with(other).tolist() == []
    assert only.indices_with("protein").tolist() == [0, 2, 3]
    assert only.empty_c.tolist() == [False, True, False, False]
    index = torch.tensor([3, 1])
    assert_same(only.select(index), only, index)
    assert_same(only.slice(1, 3), only, slice(1, 3))
    # The same as if it had not been measured.
    assert cells.indices_with("atac") is None
    assert cells.indices_with("rna").tolist() == [1, 2, 3]


def test_keep_some_modalities() -> None:
    cells = build_mosaic(rna=[0], protein=[1], atac=[])
    only = cells.keep_modalities("atac", "rna")
    for kept in ("rna", "atac"):
        assert only.counts[kept] is cells.counts[kept]
        assert torch.equal(only.library_size[kept], cells.library_size[kept])
        assert torch.equal(only.mask_with(kept), cells.mask_with(kept))
    assert only.indices_with("atac") is None
    assert only.observed_counts("protein").n_rows == 0
    assert only.empty_c.tolist() == [False] * 4
    assert_same(cells.keep_modalities("rna", "protein", "atac"), cells, slice(None))
    assert_same(only.keep_modalities("rna"), cells.keep_modalities("rna"), slice(None))
    assert cells.keep_modalities("rna").empty_c.tolist() == [True, False, False, False]


@given(lacking=st.lists(st.integers(0, 3), unique=True))
def test_mask_indices_and_observed_counts_agree(lacking: list[int]) -> None:
    cells = build_mosaic(rna=[], protein=lacking)
    present_c = cells.mask_with("protein")
    assert present_c.dtype == torch.bool
    assert present_c.tolist() == [cell not in lacking for cell in range(4)]
    assert cells.mask_with("rna").tolist() == [True] * 4
    observed = cells.observed_counts("protein")
    assert torch.equal(observed.to_dense(), cells.counts["protein"].to_dense()[present_c])
    assert (observed is cells.counts["protein"]) == (not lacking)


def test_full_masks_are_dropped() -> None:
    cells = build_mosaic(rna=[0], protein=[1])
    assert cells.drop_full_masks(torch.tensor([2, 3])).present == {}
    masked = cells.drop_full_masks(torch.tensor([1, 2]))
    assert list(masked.present) == ["protein"]
    assert masked.counts is cells.counts
    assert list(cells.present) == ["rna", "protein"]


@given(n_features=st.integers(1, 10**9))
def test_blocks_of_expected_values_are_small(n_features: int) -> None:
    n_cells = decode_block_size(n_features)
    assert type(n_cells) is int
    assert 1 <= n_cells <= MAX_DECODE_CELLS
    assert n_cells == 1 or n_cells * n_features <= MAX_DECODE_VALUES
    # The largest possible number.
    assert n_cells == MAX_DECODE_CELLS or (n_cells + 1) * n_features > MAX_DECODE_VALUES


def test_connected_modalities() -> None:
    check_modalities_connected(build_mosaic(rna=[]))
    check_modalities_connected(build_mosaic(rna=[], atac=[]))
    check_modalities_connected(build_mosaic(rna=[0], atac=[1, 2]))
    check_modalities_connected(
        build_mosaic(rna=[2, 3], atac=[0, 1, 2], protein=[0])
    )  # atac and protein in cell 3, protein and rna in 1


def test_unconnected_modalities() -> None:
    with raises(ValueError, naming=["rna", "atac"]):
        check_modalities_connected(build_mosaic(rna=[0, 1], atac=[2, 3]))
    with raises(ValueError, naming=["rna", "protein", "atac"]):
        check_modalities_connected(build_mosaic(rna=[0, 1], atac=[2, 3], protein=[0, 1]))
    with raises(ValueError, naming=["protein"], omitting=["rna"]):
        check_modalities_connected(build_mosaic(rna=[], protein=[0, 1, 2, 3]))


def test_training_cells_must_connect_modalities() -> None:
    """Otherwise, a modality without counts in the training cells would be initialized with NaN."""
    cells = build_mosaic(rna=[0], protein=[1, 2])
    check_modalities_connected(cells)
    check_modalities_connected(cells, torch.tensor([1, 3]))
    with raises(ValueError, naming=["protein"], omitting=["rna"]):
        check_modalities_connected(cells, torch.tensor([1, 2]))
    with raises(ValueError, naming=["rna", "protein"]):
        check_modalities_connected(cells, torch.tensor([0, 1, 2]))

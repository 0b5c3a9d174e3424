"""Writing tables block by block: the content of the file, and that it is written completely or not at all."""

from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial.io.h5ad import write_in_blocks

NAMES = pd.Index(["g1", "g2", "g3"])
OBS = pd.DataFrame(
    {"type": pd.Categorical(["A", "B", "A", "A", "B"]), "age": [1.5, 2.0, np.nan, 4.0, 5.0], "donor": list("xyzxy")},
    index=[f"c{cell}" for cell in range(5)],
)
X = np.arange(15, dtype=np.float32).reshape(5, 3) / 7


def blocks(*sizes: int) -> Iterator[np.ndarray]:
    start = 0
    for size in sizes:
        yield X[start : start + size]
        start += size


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "table.h5ad"
    write_in_blocks(path, blocks(2, 2, 1), OBS, NAMES)
    found = anndata.read_h5ad(path)
    assert found.X.dtype == np.float32
    np.testing.assert_array_equal(found.X, X)
    assert list(found.var_names) == list(NAMES)
    pd.testing.assert_frame_equal(found.obs.astype({"donor": str}), OBS)
    assert [file.name for file in tmp_path.iterdir()] == ["table.h5ad"]


@settings(deadline=None, max_examples=10)
@given(st.permutations([0, 1, 1, 3]))
def test_blocks_may_be_of_any_size(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("blocks") / "table.h5ad"
    write_in_blocks(path, blocks(*sizes), OBS, NAMES)
    np.testing.assert_array_equal(anndata.read_h5ad(path).X, X)


def test_the_file_is_read_backed(tmp_path: Path) -> None:
    path = tmp_path / "table.h5ad"
    write_in_blocks(path, blocks(5), OBS, NAMES)
    backed = anndata.read_h5ad(path, backed="r")
    try:
        assert backed.shape == (5, 3)
        np.testing.assert_array_equal(backed[3:, ["g3"]].to_memory().X, X[3:, 2:])
        np.testing.assert_array_equal(backed.X[1:3], X[1:3])
    finally:
        backed.file.close()


def test_blocks_are_written_one_by_one(tmp_path: Path) -> None:
    """Each block is written before the next one is requested, so that the memory can be reused."""

    def reused() -> Iterator[np.ndarray]:
        block_cf = np.empty((1, 3), np.float32)
        for row_f in X:
            block_cf[:] = row_f
            yield block_cf

    write_in_blocks(tmp_path / "table.h5ad", reused(), OBS, NAMES)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "table.h5ad").X, X)


def test_a_table_without_cells(tmp_path: Path) -> None:
    write_in_blocks(tmp_path / "table.h5ad", iter(()), OBS[:0], NAMES)
    assert anndata.read_h5ad(tmp_path / "table.h5ad").shape == (0, 3)


def failing() -> Iterator[np.ndarray]:
    yield X[:2]
    raise FloatingPointError("in the second block")


def interrupted() -> Iterator[np.ndarray]:
    yield X[:2]
    raise KeyboardInterrupt("Ctrl-C")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (failing, FloatingPointError, "second block"),
        (interrupted, KeyboardInterrupt, "Ctrl-C"),
        (lambda: blocks(2, 2), ValueError, "the blocks have 4 rows for 5 cells"),
        (lambda: blocks(), ValueError, "the blocks have 0 rows for 5 cells"),
        (lambda: iter([X, X[:1]]), ValueError, r"a block of \(1, 3\) from row 5 does not fit into \(5, 3\)"),
        (lambda: iter([X[:2], X]), ValueError, r"a block of \(5, 3\) from row 2 does not fit into \(5, 3\)"),
        (lambda: iter([X[:, :1]]), ValueError, r"a block of \(5, 1\) from row 0 does not fit into \(5, 3\)"),
    ],
)
def test_a_failure_keeps_the_earlier_file(tmp_path: Path, exists: bool, wrong, error, words: str) -> None:
    path = tmp_path / "table.h5ad"
    if exists:
        path.write_bytes(b"earlier content")
    with pytest.raises(error, match=words):
        write_in_blocks(path, wrong(), OBS, NAMES)
    assert [file.name for file in tmp_path.iterdir()] == ["table.h5ad"] * exists
    if exists:
        assert path.read_bytes() == b"earlier content"


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "table.h5ad"
    AnnData(np.zeros((1, 1), np.float32)).write_h5ad(path)
    write_in_blocks(path, blocks(5), OBS, NAMES)
    np.testing.assert_array_equal(anndata.read_h5ad(path).X, X)


def test_the_file_has_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_in_blocks(tmp_path / "table.h5ad", blocks(5), OBS, NAMES)
    assert (tmp_path / "table.h5ad").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_obs_does_not_change(tmp_path: Path) -> None:
    obs = OBS.copy()
    write_in_blocks(tmp_path / "table.h5ad", blocks(5), obs, NAMES)
    pd.testing.assert_frame_equal(obs, OBS)

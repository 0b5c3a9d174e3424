"""Cells in files: reading equals reading in memory, and errors name the file."""

import logging
import pickle
import shutil
import threading
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from celldial.data import backed_file
from celldial.data.backed_file import BackedFile
from celldial.data.cells import Cells
from celldial.data.counts import is_on_disk
from celldial.data.file_matrices import to_runs
from celldial.data.files import OnDiskDataset
from celldial.data.schema import Schema
from helpers.assertions import assert_same_cells
from helpers.raises import logged, raises
from helpers.simulate import COVARIATES, simulate, simulate_two, write

KEYS = ["batch", "donor", "age"]


def concatenated(blocks: list[AnnData]) -> AnnData:
    return ad.concat(blocks)


@pytest.fixture
def adata() -> AnnData:
    return simulate(n_cells=50)


# --- Paths and runs ---------------------------------------------------------------------------------------------------


def test_paths_lists_of_paths_and_backed_data_are_on_disk(tmp_path, adata):
    path = write(adata, tmp_path / "a.h5ad")
    backed = ad.read_h5ad(path, backed="r")
    assert is_on_disk(str(path))
    assert is_on_disk(path)
    assert is_on_disk([path, str(path)])
    assert is_on_disk(backed)
    assert not is_on_disk(adata)
    assert not is_on_disk(np.zeros(3))


@pytest.mark.parametrize("rows", [[0], [3, 4, 6, 100], list(range(40)), [0, 20, 40, 60], [5, 22, 39]])
def test_runs_cover_the_rows_and_return_their_positions(rows):
    runs, position_c = to_runs(np.array(rows))
    covered = np.concatenate([np.arange(run.start, run.stop) for run in runs])
    np.testing.assert_array_equal(covered[position_c], rows)
    assert len(covered) == len(set(covered))


# --- Equal to reading in memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("layout", ["csr", "dense", "int64", "unsorted"])
def test_cells_and_schema_are_those_in_memory(tmp_path, adata, suffix, layout):
    if layout == "dense":
        adata.X = adata.X.toarray()
    elif layout == "int64":
        adata.X = adata.X.astype(np.int64)
    elif layout == "unsorted":
        adata.X = adata.X[:, ::-1]
        assert not adata.X.has_sorted_indices
    dataset = OnDiskDataset.open(write(adata, tmp_path / f"a{suffix}"), layer=None, obs_keys=KEYS)
    schema = Schema.from_anndata(adata, **COVARIATES)
    assert dataset.schema(**COVARIATES) == schema
    assert dataset.n_cells == 50
    assert list(dataset.var.index) == list(adata.var_names)
    assert isinstance(dataset.obs.index, pd.RangeIndex)
    for row_c in (np.array([3, 4, 30, 49]), np.array([49, 0, 7]), np.arange(50)):
        block = dataset.read(row_c)
        assert list(block.obs_names) == list(adata.obs_names[row_c])
        assert_same_cells(Cells.from_anndata(block, schema), Cells.from_anndata(adata[row_c].copy(), schema))
    concatenated_adata = concatenated(list(dataset.blocks(7)))
    assert_same_cells(Cells.from_anndata(concatenated_adata, schema), Cells.from_anndata(adata, schema))


def test_a_layer_and_obsm_are_read(tmp_path, adata):
    random = np.random.default_rng(0)
    adata.layers["counts"] = adata.X
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    adata.obsm["protein"] = random.poisson(3, (50, 4)).astype(np.float32)
    tags = pd.DataFrame(random.poisson(2, (50, 3)), index=adata.obs_names, columns=["t0", "t1", "t2"])
    adata.obsm["tags"] = tags
    options = {
        "layer": "counts",
        "modalities": {"rna": "rna", "protein": "obsm/protein", "tags": "obsm/tags"},
    }
    schema = Schema.from_anndata(adata, **options)
    row_c = np.array([40, 2, 3])
    expected = Cells.from_anndata(adata[row_c].copy(), schema)
    for path in (write(adata, tmp_path / "a.h5ad"), write(adata, tmp_path / "a.zarr")):
        dataset = OnDiskDataset.open(path, layer="counts", obsm_keys=["protein", "tags"])
        assert dataset.schema(**options) == schema
        assert_same_cells(Cells.from_anndata(dataset.read(row_c), schema), expected)


def test_modalities_and_presence_columns_are_read(tmp_path):
    adata = simulate_two(lacking={"atac": [1, 2]})
    adata.obs["has_atac"] = [cell not in (1, 2) for cell in range(adata.n_obs)]
    schema = Schema.from_anndata(adata)
    dataset = OnDiskDataset.open(write(adata, tmp_path / "a.h5ad"))
    assert dataset.schema() == schema
    assert schema.presence_keys == {"atac": "has_atac"}
    assert_same_cells(
        Cells.from_anndata(concatenated(list(dataset.blocks(20))), dataset.schema()), Cells.from_anndata(adata, schema)
    )


def test_several_files_are_one_data_set(tmp_path, adata):
    """Features in another order, categories of other cells, a column of text in one and of categories in the other."""
    first, second = adata[:20].copy(), adata[20:, ::-1].copy()
    second.obs["donor"] = ["w" if donor == "x" else str(donor) for donor in second.obs["donor"]]
    second.X = second.X.toarray()
    paths = [write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.zarr")]
    in_memory = ad.concat([first, second])
    in_memory.X = sparse.csr_matrix(in_memory.X)
    in_memory.obs["donor"] = pd.Categorical(in_memory.obs["donor"], categories=["x", "y", "z", "w"])
    schema = Schema.from_anndata(in_memory, **COVARIATES)
    dataset = OnDiskDataset.open(paths, obs_keys=KEYS)
    assert list(dataset.var.index) == list(first.var_names)
    assert dataset.schema(**COVARIATES) == schema
    row_c = np.array([45, 3, 19, 20, 21])
    block = dataset.read(row_c)
    assert list(block.obs_names) == list(in_memory.obs_names[row_c])
    assert_same_cells(Cells.from_anndata(block, schema), Cells.from_anndata(in_memory[row_c].copy(), schema))
    assert [len(block) for block in dataset.blocks(15)] == [15, 5, 15, 15]


def test_features_that_some_files_lack_are_ignored(tmp_path, adata, caplog):
    paths = [write(adata, tmp_path / "a.h5ad"), write(adata[:, 3:].copy(), tmp_path / "b.h5ad")]
    with caplog.at_level(logging.WARNING, "celldial"):
        dataset = OnDiskDataset.open(paths)
    assert list(dataset.var.index) == list(adata.var_names[3:])
    assert logged(caplog, naming=[3, 17])
    np.testing.assert_array_equal(
        dataset.read(np.array([1, 51]), names=False).X.toarray(), adata.X[[1, 1], 3:].toarray()
    )


def test_files_with_other_features_are_refused(tmp_path, adata):
    other = adata.copy()
    other.var_names = [f"ENSG{gene}" for gene in range(adata.n_vars)]
    with raises(ValueError, naming=["b.h5ad", "'ENSG0'", 0]):
        OnDiskDataset.open([write(adata, tmp_path / "a.h5ad"), write(other, tmp_path / "b.h5ad")])


def test_cells_of_several_files_may_have_the_same_names(tmp_path, adata):
    path = write(adata, tmp_path / "a.h5ad")
    dataset = OnDiskDataset.open([path, path])
    assert dataset.n_cells == 100
    schema = dataset.schema()
    assert sum(len(Cells.from_anndata(block, schema)) for block in dataset.blocks()) == 100
    assert len(Cells.from_anndata(dataset.read(np.array([0, 50]), names=False), schema)) == 2


def test_numbers_text_and_booleans_of_several_files_are_concatenated(tmp_path, adata):
    first, second = adata[:20].copy(), adata[20:].copy()
    first.obs["age"] = np.arange(20)
    first.obs["has_rna"], second.obs["has_rna"] = True, False
    second.obs["has_more"] = True
    dataset = OnDiskDataset.open([write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")], obs_keys=KEYS)
    assert dataset.obs["age"].dtype == np.float64
    assert dataset.obs["has_rna"].dtype == bool
    assert "has_more" not in dataset.obs
    assert isinstance(dataset.obs["batch"].dtype, pd.CategoricalDtype)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_tables_of_a_backed_anndata_are_read_from_memory(tmp_path, adata, mode):
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["protein"] = np.ones((50, 3), dtype=np.float32)
    backed = ad.read_h5ad(write(adata, tmp_path / "a.h5ad"), backed=mode)
    backed.obs["new"] = np.arange(50.0)
    row_c = np.array([7, 30])
    for layer in (None, "counts"):
        dataset = OnDiskDataset.open(backed, layer=layer, obs_keys=["new"], obsm_keys=["protein"])
        block = dataset.read(row_c)
        assert list(block.obs["new"]) == [7, 30]
        assert list(block.obs_names) == ["c7", "c30"]
        counts = block.X if layer is None else block.layers[layer]
        np.testing.assert_array_equal(counts.toarray(), adata.X[row_c].toarray())
        np.testing.assert_array_equal(block.obsm["protein"].toarray(), 1)
    with raises(ValueError, naming=["to_memory"]):
        OnDiskDataset.open(backed[:10])


def test_a_data_set_can_be_pickled(tmp_path, adata):
    dataset = OnDiskDataset.open(write(adata, tmp_path / "a.h5ad"), obs_keys=KEYS)
    dataset.first_cell()
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(copy)) == len(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read(slice(2, 5)).X.toarray(), adata.X[2:5].toarray())


def test_blocks_have_a_limited_number_of_entries(tmp_path, monkeypatch, adata):
    monkeypatch.setattr("celldial.data.files.MAX_READ_NNZ", 100)
    for name, matrix in {"sparse": adata.X, "dense": adata.X.toarray()}.items():
        adata.X = matrix
        dataset = OnDiskDataset.open(write(adata, tmp_path / f"{name}.h5ad"))
        assert all(block.X.nnz <= 130 for block in dataset.blocks())  # on average over the 50 cells at most 100


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_missing_columns_and_matrices_are_named(tmp_path, adata):
    adata.layers["counts"] = adata.X
    path = write(adata, tmp_path / "a.h5ad")
    with raises(KeyError, naming=["a.h5ad", "layers/raw", "'X'", "'layers/counts'"]):
        OnDiskDataset.open(path, layer="raw")
    with raises(KeyError, naming=["a.h5ad", "'site'", "obs", "'type'"]):
        OnDiskDataset.open([path, path], obs_keys=["site"])
    with raises(KeyError, naming=["a.h5ad", "obsm/protein"]):
        OnDiskDataset.open(path, obsm_keys=["protein"])
    backed = ad.read_h5ad(path, backed="r")
    with raises(KeyError, naming=["a.h5ad", "layers/raw"]):
        OnDiskDataset.open(backed, layer="raw")
    with h5py.File(tmp_path / "b.h5ad", "w") as file:
        file["matrix"] = np.zeros(3)
    with raises(ValueError, naming=["b.h5ad", "AnnData"]):
        OnDiskDataset.open(tmp_path / "b.h5ad")


def test_columns_that_some_files_lack_can_be_ignored(tmp_path, adata):
    other = adata.copy()
    other.obs = other.obs.drop(columns="age")
    paths = [write(adata, tmp_path / "a.h5ad"), write(other, tmp_path / "b.h5ad")]
    dataset = OnDiskDataset.open(paths, obs_keys=["donor", "age"], obsm_keys=["protein"], strict=False)
    assert list(dataset.obs) == ["donor"]
    assert list(dataset.first_cell().obsm) == []


def test_unsupported_files_are_refused(tmp_path, adata):
    with raises(ValueError, naming=["paths"]):
        OnDiskDataset.open([])
    with raises(ValueError, naming=["a.h5mu", "mudata.read_h5mu"]):
        OnDiskDataset.open(write(adata, tmp_path / "a.h5mu"))
    by_columns = adata.copy()
    by_columns.X = adata.X.tocsc()
    with raises(ValueError, naming=["X", "c.h5ad", "CSC", "tocsr"]):
        OnDiskDataset.open(write(by_columns, tmp_path / "c.h5ad"))
    half = adata.copy()
    half.X = adata.X.toarray().astype(np.float16)
    with raises(TypeError, naming=["X", "d.h5ad", "float16"]):
        OnDiskDataset.open(write(half, tmp_path / "d.h5ad"))
    twice = adata.copy()
    twice.var_names = ["g0", "g0", *adata.var_names[2:]]
    with raises(ValueError, naming=["e.h5ad", "'g0'", "var_names_make_unique"]):
        OnDiskDataset.open(write(twice, tmp_path / "e.h5ad"))
    old = write(adata, tmp_path / "f.h5ad")
    with h5py.File(old, "r+") as file:
        file["obs"].attrs["encoding-version"] = "0.1.0"
    with raises(ValueError, naming=["f.h5ad", "anndata"]):
        OnDiskDataset.open(old)
    with raises(IndexError, naming=[49]):
        OnDiskDataset.open(write(adata, tmp_path / "g.h5ad")).read(np.array([50]))


def test_missing_and_damaged_files_are_errors(tmp_path, adata):
    with raises(OSError, naming=["a.h5ad"]):
        OnDiskDataset.open(tmp_path / "a.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with raises(OSError, naming=["text.h5ad", "HDF5"]):
        OnDiskDataset.open(tmp_path / "text.h5ad")
    cut = write(adata, tmp_path / "cut.h5ad")
    cut.write_bytes(cut.read_bytes()[:-1000])
    with raises(OSError, naming=["cut.h5ad", "truncated"]):
        OnDiskDataset.open(cut)
    (tmp_path / "empty.zarr").mkdir()
    with raises(OSError, naming=["empty.zarr"]):
        OnDiskDataset.open(tmp_path / "empty.zarr")


def test_missing_chunks_are_not_read_as_zeros(tmp_path, adata):
    store = write(adata, tmp_path / "a.zarr")
    for chunk in [*(store / "X/data").glob("[0-9]*"), *(store / "X/data").glob("c/*")]:
        chunk.unlink()
    with raises(OSError, naming=["a.zarr", "X/data", 1]):
        OnDiskDataset.open(store)


def test_damaged_values_are_errors(tmp_path, adata):
    """Decompression fails, and column indices out of range are refused."""
    damaged = tmp_path / "a.h5ad"
    adata.write_h5ad(damaged, compression="gzip")
    with h5py.File(damaged) as file:
        where = file["X/data"].id.get_chunk_info(0).byte_offset
    content = bytearray(damaged.read_bytes())
    content[where : where + 50] = bytes(50)
    damaged.write_bytes(content)
    with raises(OSError, naming=["a.h5ad"]):
        OnDiskDataset.open(damaged).read(slice(0, 3))
    beyond = write(adata, tmp_path / "b.h5ad")
    with h5py.File(beyond, "r+") as file:
        file["X/indices"][0] = 1000
    with raises(OSError, naming=["b.h5ad", 1000, 20]):
        OnDiskDataset.open(beyond).read(slice(0, 3))


@pytest.mark.parametrize("excess", [-3, 1, 10**6])
def test_row_pointers_out_of_order_are_errors(tmp_path, adata, excess):
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        pointer_c = file["X/indptr"][:]
        # Above the next pointer, or below the one before.
        pointer_c[2] = pointer_c[3] + excess if excess > 0 else pointer_c[1] + excess
        file["X/indptr"][:] = pointer_c
    with raises(OSError, naming=["a.h5ad", "X"]):
        OnDiskDataset.open(path).read(slice(0, 3))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_file_that_disappears_is_an_error(tmp_path, adata, suffix):
    path = write(adata, tmp_path / f"a{suffix}")
    dataset = OnDiskDataset.open(path)
    dataset.first_cell()
    path.unlink() if suffix == ".h5ad" else shutil.rmtree(path)
    with raises(OSError, naming=[path]):
        dataset.read(slice(0, 3))
    backed = ad.read_h5ad(write(adata, tmp_path / "b.h5ad"), backed="r")
    (tmp_path / "b.h5ad").unlink()
    with raises(OSError, naming=["b.h5ad"]):
        OnDiskDataset.open(backed)


def test_slow_reads_are_logged_once(tmp_path, adata, monkeypatch, caplog):
    file = BackedFile(write(adata, tmp_path / "slow.h5ad"))
    was_logged = threading.Event()
    monkeypatch.setattr(backed_file, "SLOW_READ_SECONDS", 0.0)
    monkeypatch.setattr(
        caplog.handler, "emit", lambda record, emit=caplog.handler.emit: (emit(record), was_logged.set())
    )
    with caplog.at_level(logging.WARNING, "celldial"):
        for _ in range(2):
            with file.reading():
                assert was_logged.wait(600)
    assert len(logged(caplog, naming=["slow.h5ad", 0])) == 1


# --- Parts that are missing, and many files ---------------------------------------------------------------------------


def cut_short(path: Path, key: str) -> None:
    """Write the first half of an array again, and leave the other chunks out."""
    with h5py.File(path, "r+") as file:
        values, attributes = file[key][:], dict(file[key].attrs)
        del file[key]
        array = file.create_dataset(key, values.shape, values.dtype, chunks=(8, *values.shape[1:]))
        array[: len(values) // 2] = values[: len(values) // 2]
        array.attrs.update(attributes)


@pytest.mark.parametrize("key", ["X/data", "X/indices", "X/indptr", "X"])
def test_chunks_that_were_never_written_are_found(key: str, tmp_path: Path) -> None:
    adata = simulate(60)
    if key == "X":
        adata.X = adata.X.toarray()
    path = write(adata, tmp_path / "cells.h5ad")
    cut_short(path, key)
    with raises(OSError, naming=["cells.h5ad"]):
        OnDiskDataset.open(path).read(slice(0, 60))


def test_a_virtual_data_set_without_its_source_is_found(tmp_path: Path) -> None:
    path = write(simulate(60), tmp_path / "cells.h5ad")
    with h5py.File(path, "r+") as file, h5py.File(tmp_path / "source.h5", "w") as source:
        values, attributes = file["X/data"][:], dict(file["X/data"].attrs)
        source["data"] = values
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource("source.h5", "data", values.shape)
        del file["X/data"]
        file.create_virtual_dataset("X/data", layout).attrs.update(attributes)
    assert OnDiskDataset.open(path).read(slice(0, 60)).n_obs == 60
    (tmp_path / "source.h5").unlink()
    with raises(OSError, naming=["cells.h5ad", "source.h5"]):
        OnDiskDataset.open(path)


@pytest.mark.parametrize("array", ["data", "indices"])
def test_chunks_that_vanish_while_a_store_is_open_are_found(array: str, tmp_path: Path) -> None:
    adata = simulate(60)
    dataset = OnDiskDataset.open(write(adata, tmp_path / "cells.zarr"))
    expected = dataset.read(slice(0, 60)).X.toarray()
    np.testing.assert_array_equal(expected, adata.X.toarray())
    folder = tmp_path / "cells.zarr" / "X" / array
    for chunk in folder.rglob("*"):
        if chunk.is_file() and not chunk.name.startswith((".z", "zarr.")):
            chunk.unlink()
    with raises(OSError, naming=["cells.zarr"]):
        dataset.read(slice(0, 60))


def test_many_files_are_read_with_few_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backed_file, "MAX_OPEN_FILES", 2)
    parts = [simulate(20, seed=seed) for seed in range(6)]
    paths = [write(part, tmp_path / f"{k}.h5ad") for k, part in enumerate(parts)]
    dataset = OnDiskDataset.open(paths)
    is_open = [file.file._root is not None for file in dataset.files]
    assert sum(is_open) <= 2
    for _ in range(2):
        for k, part in enumerate(parts):
            found = dataset.read(np.arange(20 * k, 20 * (k + 1)))
            np.testing.assert_array_equal(found.X.toarray(), part.X.toarray())

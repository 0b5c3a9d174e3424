"""Damaged files of any kind: an error of a documented type that names the file, and nothing else happens."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celldial import VAE
from helpers.assertions import without_seconds
from helpers.damage import changed_json, changed_tensors, damaged_bytes
from helpers.make_golden import golden_paths, read_cells
from helpers.simulate import simulate, write

# A fuzz run: CELLDIAL_EXAMPLES=10000 pytest -m slow tests/io/test_damage.py
MANY = int(os.environ.get("CELLDIAL_EXAMPLES", "1000"))
DAILY = settings(max_examples=40)
RUN = settings(max_examples=MANY, derandomize=False, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate(40, 12)


@pytest.fixture(scope="module")
def model(adata: AnnData) -> VAE:
    parameters = {"batch_key": "batch", "continuous_covariate_keys": ["age"], "labels_key": "type"}
    return VAE(2, 8, **parameters).fit(adata.copy(), max_epochs=1, progress=False)


@pytest.fixture(scope="module")
def content(model: VAE, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.celldial"
    model.save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


# --- Models -----------------------------------------------------------------------------------------------------------


def embedding_or_error(content: bytes, adata: AnnData, folder: Path) -> np.ndarray | None:
    """Load a model from bytes and use it; None if it was refused, by an error that names the file."""
    path = folder / "model.celldial"
    path.write_bytes(content)
    try:
        model = VAE.load(path)
    except ValueError as error:
        assert repr(str(path)) in str(error), error  # noqa: PT017
        return None
    model.score(adata)
    model.latent_traverse(adata.copy(), 0, n_steps=2, n_cells=2)
    return model.transform(adata)


def check_bytes(data: st.DataObject, content: bytes, model: VAE, adata: AnnData, folder: Path) -> None:
    found = embedding_or_error(data.draw(damaged_bytes(content)), adata, folder)
    if found is not None:
        np.testing.assert_array_equal(found, model.transform(adata))


def check_changes(data: st.DataObject, content: bytes, adata: AnnData, folder: Path) -> None:
    """Behind a valid checksum, a change may be another valid model."""
    changed = data.draw(st.one_of(changed_json(content), changed_tensors(content)))
    try:
        found = embedding_or_error(changed, adata, folder)
    except (KeyError, ValueError, FloatingPointError):  # another layer, features or categories; gigantic weights
        return
    assert found is None or np.isfinite(found).all()


@DAILY
@given(data=st.data())
def test_damaged_models(data: st.DataObject, content: bytes, model: VAE, adata: AnnData, folder: Path) -> None:
    check_bytes(data, content, model, adata, folder)


@DAILY
@given(data=st.data())
def test_changed_models(data: st.DataObject, content: bytes, adata: AnnData, folder: Path) -> None:
    check_changes(data, content, adata, folder)


@pytest.mark.slow
@RUN
@given(data=st.data())
def test_many_damaged_models(data: st.DataObject, content: bytes, model: VAE, adata: AnnData, folder: Path) -> None:
    check_bytes(data, content, model, adata, folder)


@pytest.mark.slow
@RUN
@given(data=st.data())
def test_many_changed_models(data: st.DataObject, content: bytes, adata: AnnData, folder: Path) -> None:
    check_changes(data, content, adata, folder)


@pytest.mark.slow
@RUN
@given(data=st.data(), version=st.integers(1, 6))
def test_many_damaged_models_of_earlier_versions(data: st.DataObject, version: int, folder: Path) -> None:
    """They have no checksum: a change of a weight cannot be seen."""
    model_path, cells_path = golden_paths(version)
    content = model_path.read_bytes()
    strategies = [damaged_bytes(content), changed_json(content), changed_tensors(content)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = folder / "model.celldial"
        path.write_bytes(data.draw(st.one_of(strategies)))
        try:
            loaded = VAE.load(path)
        except ValueError as error:
            assert repr(str(path)) in str(error), error  # noqa: PT017
            return
        try:
            loaded.transform(read_cells(cells_path))
        except (ValueError, KeyError, TypeError, FloatingPointError):  # other features or batches, or gigantic weights
            return


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def resume(adata: AnnData, folder: Path) -> VAE:
    return VAE(2, 8).fit(adata, max_epochs=2, progress=False, checkpoint=folder)


@pytest.fixture(scope="module")
def checkpoint(adata: AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, VAE]:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = resume(adata.copy(), folder)
    return (folder / "training.checkpoint").read_bytes(), model


def check_checkpoint(damaged: bytes, expected: VAE | None, adata: AnnData, folder: Path) -> None:
    path = folder / "training.checkpoint"
    path.write_bytes(damaged)
    cells = adata.copy()
    try:
        found = resume(cells, folder)
    except ValueError as error:
        assert repr(str(path)) in str(error), error  # noqa: PT017
        assert "X_celldial" not in cells.obsm
        return
    if expected is not None:
        np.testing.assert_array_equal(found.transform(cells), expected.transform(cells))
        assert without_seconds(found.history_) == without_seconds(expected.history_)


@DAILY
@given(data=st.data())
def test_damaged_checkpoints(data: st.DataObject, checkpoint: tuple[bytes, VAE], adata: AnnData, folder: Path) -> None:
    content, expected = checkpoint
    check_checkpoint(data.draw(damaged_bytes(content)), expected, adata, folder)


@DAILY
@given(data=st.data())
def test_changed_checkpoints(data: st.DataObject, checkpoint: tuple[bytes, VAE], adata: AnnData, folder: Path) -> None:
    check_checkpoint(data.draw(changed_tensors(checkpoint[0])), None, adata, folder)


@pytest.mark.slow
@RUN
@given(data=st.data())
def test_many_damaged_checkpoints(
    data: st.DataObject, checkpoint: tuple[bytes, VAE], adata: AnnData, folder: Path
) -> None:
    content, expected = checkpoint
    check_checkpoint(data.draw(damaged_bytes(content)), expected, adata, folder)
    check_checkpoint(data.draw(st.one_of(changed_tensors(content), changed_json(content))), None, adata, folder)


# --- Cells ------------------------------------------------------------------------------------------------------------

FILE_ERRORS = (OSError, ValueError, KeyError, TypeError)


def check_cells(damaged: bytes, model: VAE, path: Path) -> None:
    """Read damaged cells by path: an error, or finite coordinates."""
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = model.transform(path)
        except FILE_ERRORS:
            return
    assert np.isfinite(found).all()


@pytest.fixture(scope="module")
def cells_file(adata: AnnData, folder: Path) -> bytes:
    return write(adata, folder / "cells.h5ad").read_bytes()


@DAILY
@given(data=st.data())
def test_damaged_cells(data: st.DataObject, cells_file: bytes, model: VAE, folder: Path) -> None:
    check_cells(data.draw(damaged_bytes(cells_file)), model, folder / "damaged.h5ad")


@pytest.mark.slow
@RUN
@given(data=st.data())
def test_many_damaged_cells(data: st.DataObject, cells_file: bytes, model: VAE, folder: Path) -> None:
    check_cells(data.draw(damaged_bytes(cells_file)), model, folder / "damaged.h5ad")


@pytest.mark.slow
@RUN
@given(data=st.data())
def test_many_damaged_stores(data: st.DataObject, adata: AnnData, model: VAE, folder: Path) -> None:
    store: Any = folder / "cells.zarr"
    if not store.exists():
        write(adata, store)
    parts = sorted(path for path in store.rglob("*") if path.is_file())
    part = parts[data.draw(st.integers(0, len(parts) - 1))]
    content = part.read_bytes()
    damaged = data.draw(damaged_bytes(content)) if content else b"a"
    try:
        check_cells_of_store(store, part, damaged, model)
    finally:
        part.write_bytes(content)


def check_cells_of_store(store: Path, part: Path, damaged: bytes, model: VAE) -> None:
    part.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = model.transform(store)
        except FILE_ERRORS:
            return
    assert np.isfinite(found).all()

"""Fixtures for the tests of the command line: cells, their file, and a folder with a model of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from helpers.cli import SMALL, run
from helpers.simulate import simulate


@pytest.fixture(scope="session")
def cells() -> AnnData:
    """Return cells with more than a model needs, to check that nothing is lost."""
    adata = simulate()
    adata.obs["is_b"] = adata.obs["type"] == "B"
    adata.obs["note"] = [f"note {cell}" for cell in range(adata.n_obs)]
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_before"] = np.arange(120.0).reshape(60, 2)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    adata.uns["about"] = {"tissue": "none", "colors": np.array(["#000000"], dtype=object)}
    adata.raw = adata.copy()
    return adata


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, cells: AnnData) -> Path:
    """Return a folder with cells, a model that was fitted to them, and the cells with its results."""
    folder = tmp_path_factory.mktemp("cells")
    cells.write_h5ad(folder / "cells.h5ad", compression="gzip")
    covariates = ["--batch-key", "batch", "--continuous-covariates", "age", "--categorical-covariates", "donor"]
    outputs = ["--out", folder / "out.h5ad", "--model", folder / "m.celldial"]
    assert run("fit", folder / "cells.h5ad", *SMALL, *covariates, *outputs) == 0
    return folder


@pytest.fixture(scope="session")
def cells_file(tmp_path_factory: pytest.TempPathFactory, cells: AnnData) -> Path:
    """Return an h5ad file of the cells, which `file` copies for each test."""
    path = tmp_path_factory.mktemp("written") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture
def file(tmp_path: Path, cells_file: Path) -> Path:
    """Return an h5ad file of the cells; each test has its own."""
    return Path(shutil.copy(cells_file, tmp_path))

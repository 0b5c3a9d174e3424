"""`celldial map`: the same results as in Python, files, wrong usage."""

from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData

from celldial import VAE
from helpers.cli import assert_error, assert_usage_error, run
from helpers.simulate import write


@pytest.fixture
def query(cells: AnnData, tmp_path: Path) -> Path:
    adata = cells.copy()
    adata.obs["batch"] = "new"
    return write(adata, tmp_path / "query.h5ad")


def test_map_does_what_python_does(folder: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, saved = tmp_path / "mapped.h5ad", tmp_path / "mapped.celldial"
    assert run("map", query, "--model", folder / "m.celldial", "--out", out, "--save", saved, "--max-epochs", 3) == 0
    assert capsys.readouterr().out.split() == [str(out), str(saved)]
    adata, found = anndata.read_h5ad(query), anndata.read_h5ad(out)
    mapped = VAE.load(folder / "m.celldial").map_query(adata, max_epochs=3, progress=False)
    np.testing.assert_array_equal(found.obsm["X_celldial"], adata.obsm["X_celldial"])
    np.testing.assert_array_equal(found.obs["celldial_mapping_quality"], adata.obs["celldial_mapping_quality"])
    assert VAE.load(saved).fingerprint_ == mapped.fingerprint_
    assert VAE.load(saved).schema_.categories["batch"] == ("b0", "b1", "new")
    np.testing.assert_array_equal(found.layers["counts"].toarray(), adata.layers["counts"].toarray())


def test_no_output(folder: Path, query: Path) -> None:
    assert_usage_error("map", query, "--model", folder / "m.celldial")


def test_inputs_are_not_replaced(folder: Path, query: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, path in (("--out", query), ("--save", folder / "m.celldial")):
        assert_error(capsys, [option], "map", query, "--model", folder / "m.celldial", option, path)


def test_missing_covariate(folder: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = anndata.read_h5ad(query)
    del adata.obs["donor"]
    adata.write_h5ad(query)
    out = tmp_path / "mapped.h5ad"
    assert_error(capsys, ["donor"], "map", query, "--model", folder / "m.celldial", "--out", out)
    assert not out.exists()

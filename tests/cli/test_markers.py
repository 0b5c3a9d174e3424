"""`celldial markers`: the same results as in Python, the table and the cells."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from celldial import VAE
from helpers.cli import assert_error, assert_usage_error, run


def test_markers_are_those_of_python(folder: Path, tmp_path: Path) -> None:
    outputs = ["--table", tmp_path / "m.csv", "--out", tmp_path / "ranked.h5ad"]
    groups = ["--groupby", "type", "--n-features", 4]
    assert run("markers", folder / "out.h5ad", "--model", folder / "m.celldial", *groups, *outputs) == 0
    adata = anndata.read_h5ad(folder / "out.h5ad")
    table = VAE.load(folder / "m.celldial").markers(adata, "type", 4)
    found = pd.read_csv(tmp_path / "m.csv")
    assert list(found.columns) == list(table.columns)
    assert list(found["feature"]) == list(table["feature"])
    np.testing.assert_allclose(found["log2_fold_change"], table["log2_fold_change"], rtol=1e-4)
    ranked = sc.get.rank_genes_groups_df(anndata.read_h5ad(tmp_path / "ranked.h5ad"), group="A")
    assert list(ranked["names"]) == list(sc.get.rank_genes_groups_df(adata, group="A")["names"])


def test_donors_are_compared(folder: Path, tmp_path: Path) -> None:
    options = ["--groupby", "type", "--groups", "A", "--reference", "B", "--replicate-key", "donor"]
    options += ["--at", "batch=b0", "--table", tmp_path / "d.tsv", "--quiet"]
    assert run("markers", folder / "out.h5ad", "--model", folder / "m.celldial", *options) == 0
    adata = anndata.read_h5ad(folder / "out.h5ad")
    settings = {"replicate_key": "donor", "at": {"batch": "b0"}}
    table = VAE.load(folder / "m.celldial").differential(adata, "type", "A", "B", **settings)
    found = pd.read_csv(tmp_path / "d.tsv", sep="\t")
    np.testing.assert_allclose(found["p_value"], table["p_value"], rtol=1e-4)


def test_groups_without_cells_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--groupby", "type", "--groups", "C", "--table", tmp_path / "m.csv", "--quiet"]
    assert_error(capsys, ["'C'", "type"], "markers", folder / "out.h5ad", "--model", folder / "m.celldial", *options)
    assert not (tmp_path / "m.csv").exists()


def test_usage(folder: Path, tmp_path: Path) -> None:
    command = ["markers", folder / "out.h5ad", "--model", folder / "m.celldial", "--groupby", "type"]
    assert_usage_error(*command)
    assert_usage_error(*command, "--table", tmp_path / "m.csv", "--at", "batch")
    assert_usage_error(*command[:4], "--table", tmp_path / "m.csv")

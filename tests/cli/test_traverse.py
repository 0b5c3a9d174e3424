"""`celldial traverse`: the same results as in Python, new axes, tables, figures and pages."""

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from celldial import VAE
from helpers.cli import assert_error, run


def test_traverse_does_what_python_does(folder: Path, tmp_path: Path) -> None:
    paths = ["--table", tmp_path / "t.csv", "--figure", tmp_path / "f.png", "--out", tmp_path / "moved.h5ad"]
    assert run("traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", 1, *paths) == 0
    adata = anndata.read_h5ad(folder / "out.h5ad")
    path = VAE.load(folder / "m.celldial").latent_traverse(adata, 1)
    table = pd.read_csv(tmp_path / "t.csv", index_col="feature")
    assert list(table["rank"]) == list(range(20))
    for name in ("change", "effect_size", "lfsr", "fdr"):
        np.testing.assert_allclose(table[name], path.var.loc[table.index, name], rtol=1e-4, atol=1e-12)
    last = path[-1, table.index].layers
    for name in ("mean", "lower", "upper"):
        np.testing.assert_allclose(table[f"{name}_end"], last[name][0], rtol=1e-4)
    peak = path.obs["position"].iloc[path.var.loc[table.index, "peak_step"]]
    np.testing.assert_allclose(table["peak_position"], peak, rtol=1e-4)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    moved = anndata.read_h5ad(tmp_path / "moved.h5ad")
    np.testing.assert_array_equal(moved.uns["latent_traverse"]["axis_1"]["mean"], path.X)
    np.testing.assert_array_equal(moved.obsm["X_celldial"], adata.obsm["X_celldial"])


def test_a_path_between_groups(folder: Path, tmp_path: Path) -> None:
    ends = ["--from", "A", "--to", "B", "--groupby", "type", "--n-steps", "4", "--seed", "7"]
    table = tmp_path / "t.tsv"
    assert run("traverse", folder / "out.h5ad", "--model", folder / "m.celldial", *ends, "--table", table) == 0
    adata = anndata.read_h5ad(folder / "out.h5ad")
    path = VAE.load(folder / "m.celldial").latent_traverse(adata, ("A", "B"), groupby="type", n_steps=4, seed=7)
    found = pd.read_csv(table, sep="\t", index_col="feature")
    np.testing.assert_allclose(found["change"], path.var.loc[found.index, "change"], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:axis 'mine' predicts its target no better than chance")
@pytest.mark.parametrize(
    ("definition", "arguments"),
    [
        (["--obs", "age"], {"obs": "age"}),
        (["--groups", "B", "A"], {"groups": ("B", "A")}),
        (["--obs", "is_b", "--groups", "True", "False"], {"obs": "is_b", "groups": (True, False)}),
        (["--up", "g1", "g2", "--down", "g3"], {"features": {"up": ["g1", "g2"], "down": ["g3"]}}),
    ],
)
def test_a_new_axis_gets_its_name(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    definition: list[str],
    arguments: dict[str, object],
) -> None:
    out = tmp_path / "moved.h5ad"
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "mine", *definition]
    options = ["--at", "is_b=True", "--covariate", "donor=x", "--covariate", "age=30", "--n-steps", "3"]
    assert run(*command, *options, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert re.search(r"celldial: axis 'mine' \(.+\): R² -?\d\.\d\d, p = ", captured.err)
    model, adata = VAE.load(folder / "m.celldial"), anndata.read_h5ad(folder / "out.h5ad")
    model.find_axis(adata, "mine", **arguments)
    path = model.latent_traverse(
        adata, "mine", at={"is_b": True}, transform_batch={"donor": "x", "age": 30.0}, n_steps=3
    )
    moved = anndata.read_h5ad(out)
    np.testing.assert_array_equal(moved.obs["mine"], adata.obs["mine"])
    np.testing.assert_array_equal(moved.uns["latent_traverse"]["mine"]["mean"], path.X)

    # The axis is stored in the file, so a second command needs no definition.
    assert (
        run(
            "traverse", out, "--model", folder / "m.celldial", "--axis", "mine", *options, "--table", tmp_path / "t.csv"
        )
        == 0
    )
    found = pd.read_csv(tmp_path / "t.csv", index_col="feature")
    np.testing.assert_allclose(found["change"], path.var.loc[found.index, "change"], rtol=1e-3, atol=1e-6)


def test_counts_of_a_layer_and_averages_over_batches(folder: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(folder / "out.h5ad")
    expected = VAE.load(folder / "m.celldial").latent_traverse(
        adata.copy(), 0, n_steps=3, transform_batch={"batch": "all", "donor": ["x", "z"]}
    )
    adata.X = adata.X.log1p()
    adata.write_h5ad(tmp_path / "normalized.h5ad")
    command = ["traverse", tmp_path / "normalized.h5ad", "--model", folder / "m.celldial", "--axis", "0"]
    command += ["--n-steps", "3", "--out", tmp_path / "moved.h5ad"]
    covariates = ["--covariate", "batch=all", "--covariate", "donor=x", "--covariate", "donor=z"]
    assert run(*command, *covariates) == 1
    assert run(*command, *covariates, "--layer", "counts") == 0
    stored = anndata.read_h5ad(tmp_path / "moved.h5ad").uns["latent_traverse"]["axis_0"]
    np.testing.assert_array_equal(stored["mean"], expected.X)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_of_chosen_features(folder: Path, tmp_path: Path, suffix: str) -> None:
    figure = tmp_path / f"figure.{suffix}"
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "axis_0", "--at", "c3"]
    assert run(*command, "--figure", figure, "--features", "g1", "g2") == 0
    assert figure.stat().st_size > 5_000


def test_the_interactive_page(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "dial.html"
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", 0, "--dial", page]
    assert run(*command, "--color", "type", "--features", "g1", "g2") == 0
    default = page.read_text(encoding="utf-8")
    assert "<html" in default
    assert run(*command, "--basis", "X_before") == 0
    assert "<html" in page.read_text(encoding="utf-8") != default


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--axis", "7"], ["7"]),
        (["--axis", "cytotoxicity"], ["'cytotoxicity'"]),
        (["--from", "A", "--to", "C"], ["'A'", "'C'"]),
        (["--from", "A", "--to", "B", "--at", "c1"], ["at"]),
        (["--axis", "0", "--groupby", "type"], ["groupby"]),
        (["--axis", "0", "--at", "type=C"], ["type", "'C'", "'A', 'B'"]),
        (["--axis", "0", "--at", "c999"], ["'c999'"]),
        (["--axis", "0", "--covariate", "batch=b9"], ["b9"]),
        (["--axis", "0", "--covariate", "age=old"], ["--covariate age=old", "'age'"]),
        (["--axis", "mine", "--up", "CD3D"], ["CD3D"]),
        (["--axis", "type", "--obs", "age"], ["'type'"]),
        (["--axis", "mine", "--obs", "donor"], ["donor"]),
    ],
)
def test_bad_axes_and_values(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], facts: list[str]
) -> None:
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", *options]
    assert_error(capsys, facts, *command, "--table", tmp_path / "t.csv", "--figure", tmp_path / "f.png")
    assert not list(tmp_path.iterdir())


def test_missing_features_leave_no_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several files, all are written or none."""
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "0"]
    outputs = ["--table", tmp_path / "t.csv", "--figure", tmp_path / "f.png", "--features", "CD3D"]
    assert_error(capsys, ["'CD3D'"], *command, *outputs)
    assert not list(tmp_path.iterdir())

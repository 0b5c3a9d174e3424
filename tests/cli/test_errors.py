"""Errors of the command line: wrong usage, bad values and files, bugs, and how messages are written."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData

from celldial.cli import messages
from celldial.training import loop
from helpers.cli import SMALL, assert_error, assert_usage_error, run
from helpers.raises import raises

FIT = ["fit", "a.h5ad", "--out", "c.h5ad"]
TRAVERSE = ["traverse", "a.h5ad", "--model", "m", "--table", "t.csv"]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ([], ["COMMAND"]),
        (["nothing"], ["'nothing'"]),
        (["fit"], ["FILE"]),
        (["fit", "a.h5ad"], ["--out", "--model"]),
        (["fit", "a.h5ad", "b.h5ad", "--out", "c.h5ad"], ["--out", "--model"]),
        (
            ["fit", "a.h5ad", "--model", "m.celldial", "--from-disk", "--periodic", "cell_cycle"],
            ["--periodic", "memory"],
        ),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--n-latent", "0"], ["--n-latent", "'0'", "1"]),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--likelihood", "normal"], ["--likelihood", "'normal'", "poisson"]),
        (
            ["fit", "a.h5ad", "--out", "c.h5ad", "--likelihood", "poisson", "atac=poisson"],
            ["--likelihood", "MODALITY="],
        ),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--decoder", "deep"], ["--decoder", "'deep'", "additive"]),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--batch", "donor"], ["--batch"]),
        (["traverse", "a.h5ad", "--axis", "1", "--table", "t.csv"], ["--model"]),
        (["traverse", "a.h5ad", "--model", "m", "--axis", "1"], ["--table", "--figure", "--dial", "--out"]),
        (TRAVERSE, ["--axis", "--from", "--to"]),
        ([*TRAVERSE, "--from", "A"], ["--from", "--to"]),
        ([*TRAVERSE, "--axis", "1", "--from", "A", "--to", "B"], ["--axis", "--from", "--to"]),
        ([*TRAVERSE, "--from", "A", "--to", "B", "--up", "g1"], ["--up", "--axis"]),
        ([*TRAVERSE, "--axis", "x", "--up", "g1", "--obs", "age"], ["--obs", "--up"]),
        ([*TRAVERSE, "--axis", "x", "--features", "g1"], ["--features", "--figure", "--dial"]),
        ([*TRAVERSE, "--axis", "x", "--covariate", "b2"], ["--covariate", "'b2'", "NAME=VALUE"]),
        (["info"], ["FILE.celldial"]),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], facts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert_usage_error(*arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: celldial")
    message = captured.err.splitlines()[-1]
    assert all(fact in message for fact in facts), message


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--batch-key", "doner"], ["'doner'", "'donor'"]),
        (["--layer", "raw"], ["raw"]),
        (["--n-latent", "50"], ["--n-latent", "50", "20"]),
        (["--periodic", "month"], ["month"]),
        (["--device", "tpu"], ["device", "'tpu'", "'cpu'", "'cuda'"]),
        (["--precision", "8"], ["precision", "'8'"]),
        (["--categorical-covariates", "donor", "--batch-key", "donor"], ["'donor'"]),
        (["--gene-symbols", "symbol", "--periodic", "cell_cycle"], ["gene_symbols", "'symbol'"]),
        (["--likelihood", "atac=poisson"], ["atac"]),
        (["--n-clusters", "4", "--periodic", "cell_cycle"], ["n_clusters", "4", "periodic"]),
    ],
)
def test_bad_values(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], facts: list[str]
) -> None:
    assert_error(capsys, facts, "fit", file, *options, "--out", tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_values_that_are_not_counts(tmp_path: Path, cells: AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    adata = AnnData(cells.X.copy(), cells.obs.copy(), cells.var.copy())
    adata.X.data[0] = 0.5
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert_error(capsys, ["'c0'", "0.5"], "fit", tmp_path / "cells.h5ad", "--out", tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_files_without_cells(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--out", tmp_path / "out.h5ad"]
    assert_error(capsys, ["missing.h5ad"], "fit", tmp_path / "missing.h5ad", *outputs)
    (tmp_path / "text.h5ad").write_text("cells")
    assert_error(capsys, ["text.h5ad", "HDF5"], "fit", tmp_path / "text.h5ad", *outputs)
    (tmp_path / "half.h5ad").write_bytes(file.read_bytes()[:10_000])
    assert_error(capsys, ["half.h5ad", "damaged"], "fit", tmp_path / "half.h5ad", *outputs)
    with h5py.File(tmp_path / "other.h5ad", "w") as other:
        other["matrix/data"] = np.arange(3)
    assert_error(capsys, ["other.h5ad"], "fit", tmp_path / "other.h5ad", *outputs)
    (tmp_path / "empty.zarr").mkdir()
    assert_error(capsys, ["empty.zarr"], "fit", tmp_path / "empty.zarr", *outputs)
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    "bug",
    [
        lambda *_, **__: {}["missing"],
        lambda *_, **__: np.zeros(3) + np.zeros(2),
        lambda *_, **__: np.concatenate([]),
        lambda *_, **__: 1 / 0,
        lambda *_, **__: None.shape,
    ],
)
def test_a_bug_shows_its_traceback(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: object) -> None:
    """Some bugs have the type of errors for users."""
    monkeypatch.setattr(loop, "fit", bug)
    with pytest.raises((KeyError, ValueError, ZeroDivisionError, AttributeError)):
        run("fit", file, *SMALL, "--out", tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_the_option_for_tracebacks(file: Path, tmp_path: Path) -> None:
    with raises(KeyError, naming=["doner"]):
        run("fit", file, "--batch-key", "doner", "--out", tmp_path / "out.h5ad", "--traceback")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("no 'gene' here"), "no 'gene' here"),
        (ValueError("two\n  lines"), "two lines"),
        (OSError(28, "No space left on device", "out.h5ad"), "out.h5ad: No space left on device"),
        (MemoryError(), "not enough memory"),
        (MemoryError("12 GB"), "12 GB"),
    ],
)
def test_messages_are_one_line(error: Exception, message: str) -> None:
    assert messages.format_error(error) == message


def test_nan_in_training(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "selection_elbo", lambda record: float("nan"))
    assert_error(capsys, ["nan", "epoch 1 of 3"], "fit", file, *SMALL, "--out", tmp_path / "out.h5ad")

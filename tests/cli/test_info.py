"""`celldial info`: text, JSON, models of earlier versions, and files that are not models."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import celldial
from celldial import VAE
from helpers.cli import assert_error, run
from helpers.simulate import simulate_two


def test_text_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", folder / "m.celldial", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    model = VAE.load(folder / "m.celldial")
    assert summary["celldial_version"] == celldial.__version__
    assert summary["parameters"] == {
        "n_latent": 3,
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    }
    assert summary["modalities"]["rna"] == {
        "likelihood": "negative_binomial",
        "n_features": 20,
        "feature_names": [f"g{gene}" for gene in range(20)],
    }
    assert summary["categorical_covariates"] == {"batch": ["b0", "b1"], "donor": ["x", "y", "z"]}
    assert summary["epochs"] == 3
    assert summary["best_validation_elbo"] == max(model.history_["elbo_validation"])
    assert summary["best_epoch"] == 1 + int(np.argmax(model.history_["elbo_validation"]))
    assert (summary["periodic"], summary["clusters"], summary["layer"]) == (None, None, None)

    assert run("info", folder / "m.celldial") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "rna (negative_binomial), 20 genes: g0, g1, g2, g3, g4, ..." in captured.out
    assert "batch (batch, 2 values: b0, b1)" in captured.out
    assert "donor (category, 3 values: x, y, z)" in captured.out
    assert re.search(r"age \(number, mean [34]\d\.\d+, standard deviation", captured.out)
    assert re.search(r"3 epochs; weights of epoch \d, validation ELBO -\d+\.\d nats/cell", captured.out)


def test_models_with_defaults_and_with_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = simulate_two()
    VAE().fit(adata, max_epochs=1, progress=False).save(tmp_path / "plain.celldial")
    VAE(n_clusters=3).fit(adata, max_epochs=1, progress=False, validation_size=0).save(tmp_path / "clusters.celldial")
    assert run("info", tmp_path / "plain.celldial") == 0
    out = capsys.readouterr().out
    assert "parameters    all have their defaults" in out
    assert "atac (bernoulli), 30 peaks: p0, p1" in out
    assert run("info", tmp_path / "clusters.celldial") == 0
    out = capsys.readouterr().out
    assert "parameters    n_clusters=3; others" in out
    assert "clusters      3: 0, 1, 2" in out
    assert "no validation cells" in out


def test_models_of_earlier_versions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = sorted((root / "tests" / "golden").rglob("*.celldial"))
    assert models
    for path in models:
        assert run("info", path, "--json") == 0
        assert json.loads(capsys.readouterr().out)["modalities"]


def test_files_that_are_not_models(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_error(capsys, [tmp_path / "missing.celldial"], "info", tmp_path / "missing.celldial")
    assert_error(capsys, [folder / "cells.h5ad", "celldial file"], "info", folder / "cells.h5ad")
    assert_error(capsys, [tmp_path], "info", tmp_path)
    (tmp_path / "half.celldial").write_bytes((folder / "m.celldial").read_bytes()[:-100])
    assert_error(capsys, ["half.celldial", "damaged"], "info", tmp_path / "half.celldial", "--json")
    command = ["traverse", folder / "out.h5ad", "--model", folder / "out.h5ad", "--axis", "0"]
    assert_error(capsys, [folder / "out.h5ad", "celldial file"], *command, "--table", tmp_path / "t.csv")

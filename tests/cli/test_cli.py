"""The command line does what Python does, says what is wrong in a sentence, and leaves no half-written file."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import celldial
from celldial import VAE, cli
from celldial.cli import demo, files, info, messages
from celldial.cli.parser import DECODERS, LIKELIHOODS, check_usage, make_parser
from celldial.model import likelihoods, networks
from celldial.periodic.markers import G2M_GENES, S_GENES
from celldial.training import loop
from helpers.simulate import simulate, simulate_two

FEW = ["--max-epochs", "3", "--n-latent", "3"]


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def wrong_usage(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celldial", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Return cells that have more than a model wants, so that something could be lost."""
    adata = simulate()
    adata.obs["is_b"] = adata.obs["type"] == "B"
    adata.obs["note"] = [f"note {cell}" for cell in range(adata.n_obs)]
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_before"] = np.arange(120.0).reshape(60, 2)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    adata.uns["about"] = {"tissue": "none", "colors": np.array(["#000000"], dtype=object)}
    adata.raw = adata.copy()
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cells: AnnData) -> Path:
    """Return a folder with cells, and with what a model made of them."""
    folder = tmp_path_factory.mktemp("cells")
    cells.write_h5ad(folder / "cells.h5ad", compression="gzip")
    told = ["--batch-key", "batch", "--continuous-covariates", "age", "--categorical-covariates", "donor"]
    assert (
        run("fit", folder / "cells.h5ad", *FEW, *told, "--out", folder / "out.h5ad", "--model", folder / "m.celldial")
        == 0
    )
    return folder


@pytest.fixture
def file(tmp_path: Path, cells: AnnData) -> Path:
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def in_python(cells: AnnData, **parameters: object) -> tuple[VAE, AnnData]:
    adata = cells.copy()
    return VAE(3, **parameters).fit(adata, max_epochs=3, progress=False), adata


# --- fit --------------------------------------------------------------------------------------------------------------


def test_fit_does_what_python_does(folder: Path, cells: AnnData) -> None:
    model, adata = in_python(
        cells, batch_key="batch", continuous_covariate_keys=["age"], categorical_covariate_keys=["donor"]
    )
    out = anndata.read_h5ad(folder / "out.h5ad")
    np.testing.assert_array_equal(out.obsm["X_celldial"], adata.obsm["X_celldial"])
    np.testing.assert_array_equal(VAE.load(folder / "m.celldial").transform(cells), adata.obsm["X_celldial"])
    assert out.uns["celldial"]["parameters"]["batch_key"] == model.batch_key
    np.testing.assert_array_equal(out.uns["celldial"]["history"]["elbo_train"], model.history_["elbo_train"])


def test_all_else_in_the_file_stays_as_it_was(folder: Path) -> None:
    before, after = (anndata.read_h5ad(folder / name) for name in ("cells.h5ad", "out.h5ad"))
    pd.testing.assert_frame_equal(after.obs, before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    assert set(after.obsm) == {"X_before", "X_umap", "X_celldial"}
    assert set(after.uns) == {"about", "celldial"}
    for found, expected in [(after.X, before.X), (after.layers["counts"], before.layers["counts"])]:
        assert (found != expected).nnz == 0
    assert (after.raw.X != before.raw.X).nnz == 0
    with h5py.File(folder / "out.h5ad") as file:
        assert file["X/data"].compression == "gzip"


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (
            ["--layer", "counts", "--likelihood", "poisson", "--seed", "4"],
            {"layer": "counts", "likelihood": "poisson", "seed": 4},
        ),
        (
            ["--decoder", "linear", "--likelihood", "rna=poisson"],
            {"decoder": "linear", "likelihood": {"rna": "poisson"}},
        ),
        (["--n-clusters", "4"], {"n_clusters": 4}),
        (["--labels-key", "type"], {"labels_key": "type"}),
    ],
)
def test_options_are_the_parameters_of_python(
    file: Path, tmp_path: Path, cells: AnnData, options: list[str], parameters: dict[str, object]
) -> None:
    out = tmp_path / "out.h5ad"
    assert run("fit", file, *FEW, *options, "--out", out, "--quiet") == 0
    _, adata = in_python(cells, **parameters)
    found = anndata.read_h5ad(out)
    assert set(found.obs) == set(adata.obs)
    assert set(found.obsm) == set(adata.obsm)
    np.testing.assert_array_equal(found.obsm["X_celldial"], adata.obsm["X_celldial"])


def test_a_circle_and_another_key(tmp_path: Path) -> None:
    adata = simulate(80, 40)
    adata.var["symbol"] = [*S_GENES.split()[:20], *G2M_GENES.split()[:20]]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    paths = ["--out", tmp_path / "out.h5ad", "--model", tmp_path / "m.celldial"]
    circle = ["--periodic", "cell_cycle", "--gene-symbols", "symbol", "--key-added", "X_here"]
    assert run("fit", tmp_path / "cells.h5ad", *FEW, *circle, *paths) == 0
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert "X_here" in out.obsm
    assert out.obs["cell_cycle_angle"].between(0, 2 * np.pi).all()
    about = info.describe(tmp_path / "m.celldial")
    assert list(about["periodic"]["phase_start"]) == ["G1", "S", "G2M"]
    assert "PCNA" not in about["periodic"]["markers"]["S"]  # identifiers, as the features are called
    assert "cell_cycle: G1 from" in info.in_words(about)

    turned = ["--axis", "cell_cycle", "--n-steps", "5", "--table", tmp_path / "t.csv"]
    assert run("traverse", tmp_path / "out.h5ad", "--model", tmp_path / "m.celldial", *turned) == 0
    table = pd.read_csv(tmp_path / "t.csv", index_col="feature")
    assert (table["mean_lowest"] <= table["mean_highest"]).all()
    assert (table["lower_highest"] <= table["upper_highest"]).all()
    expected = np.log2(table["mean_highest"] / table["mean_lowest"])
    np.testing.assert_allclose(table["effect_size"], expected, atol=1e-3)


def test_files_are_read_piece_by_piece_where_they_are_several(tmp_path: Path, file: Path, cells: AnnData) -> None:
    cells[:30].write_h5ad(tmp_path / "first.h5ad")
    cells[30:].write_h5ad(tmp_path / "second.h5ad")
    paths = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    assert run("fit", *paths, *FEW, "--model", tmp_path / "m.celldial", "--quiet") == 0
    expected = VAE(3).fit([*paths], max_epochs=3, progress=False).transform(file)
    np.testing.assert_array_equal(VAE.load(tmp_path / "m.celldial").transform(file), expected)


def test_from_disk_with_and_without_cells_as_result(tmp_path: Path, file: Path) -> None:
    expected = VAE(3).fit(file, max_epochs=3, progress=False).transform(file)
    read = [file, *FEW, "--from-disk"]
    assert run("fit", *read, "--model", tmp_path / "a.celldial") == 0
    assert run("fit", *read, "--model", tmp_path / "b.celldial", "--out", tmp_path / "out.h5ad") == 0
    for name in "ab":
        np.testing.assert_array_equal(VAE.load(tmp_path / f"{name}.celldial").transform(file), expected)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_celldial"], expected)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
def test_zarr_stores_are_read_too(tmp_path: Path, cells: AnnData) -> None:
    plain = AnnData(cells.X, cells.obs.copy(), cells.var.copy())
    plain.write_zarr(tmp_path / "cells.zarr")
    assert run("fit", tmp_path / "cells.zarr", *FEW, "--out", tmp_path / "out.h5ad") == 0
    _, adata = in_python(plain)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_celldial"], adata.obsm["X_celldial"])
    wrong_usage("fit", tmp_path / "cells.zarr", "--from-disk", "--out", tmp_path / "out.h5ad")


def test_files_of_an_earlier_layout_are_written_anew(tmp_path: Path, file: Path) -> None:
    with h5py.File(file, "r+") as stored:
        del stored.attrs["encoding-type"], stored.attrs["encoding-version"]
    assert not files.is_current(file)
    assert run("fit", file, *FEW, "--out", tmp_path / "out.h5ad") == 0
    assert files.is_current(tmp_path / "out.h5ad")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert {"X_before", "X_celldial"} <= set(out.obsm)


def test_a_minimal_file_gets_what_it_lacks(tmp_path: Path, cells: AnnData) -> None:
    AnnData(cells.X).write_h5ad(tmp_path / "bare.h5ad")
    with h5py.File(tmp_path / "bare.h5ad", "r+") as stored:
        del stored["obsm"], stored["uns"]
    assert run("fit", tmp_path / "bare.h5ad", *FEW, "--out", tmp_path / "out.h5ad") == 0
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_celldial"].shape == (60, 3)


def test_the_same_command_goes_on_from_a_checkpoint(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", file, *FEW, "--checkpoint", tmp_path / "runs", "--out", tmp_path / "out.h5ad"]
    epochs = count_epochs(monkeypatch, fail_in=3)
    with pytest.raises(RuntimeError, match="cut short"):
        run(*command)
    assert not (tmp_path / "out.h5ad").exists()
    assert run(*command) == 0
    assert len(epochs) == 4  # the third was tried twice
    monkeypatch.undo()
    assert run("fit", file, *FEW, "--out", tmp_path / "whole.h5ad") == 0
    first, second = (anndata.read_h5ad(tmp_path / name).obsm["X_celldial"] for name in ("out.h5ad", "whole.h5ad"))
    np.testing.assert_array_equal(first, second)
    assert run("info", tmp_path / "runs" / "training.checkpoint") == 1


def count_epochs(monkeypatch: pytest.MonkeyPatch, fail_in: int = 0) -> list[int]:
    """Note epochs of training, of which one fails."""
    epochs: list[int] = []
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer) -> None:
        epochs.append(self.state.epoch)
        if len(epochs) == fail_in:
            raise RuntimeError("cut short")
        original(self)

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    return epochs


# --- traverse ---------------------------------------------------------------------------------------------------------


def test_traverse_does_what_python_does(folder: Path, tmp_path: Path) -> None:
    paths = ["--table", tmp_path / "t.csv", "--figure", tmp_path / "f.png", "--out", tmp_path / "turned.h5ad"]
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
    turned = anndata.read_h5ad(tmp_path / "turned.h5ad")
    np.testing.assert_array_equal(turned.uns["latent_traverse"]["axis_1"]["mean"], path.X)
    np.testing.assert_array_equal(turned.obsm["X_celldial"], adata.obsm["X_celldial"])


def test_a_path_between_groups(folder: Path, tmp_path: Path) -> None:
    ends = ["--from", "A", "--to", "B", "--groupby", "type", "--n-steps", "4", "--seed", "7"]
    table = tmp_path / "t.tsv"
    assert run("traverse", folder / "out.h5ad", "--model", folder / "m.celldial", *ends, "--table", table) == 0
    adata = anndata.read_h5ad(folder / "out.h5ad")
    path = VAE.load(folder / "m.celldial").latent_traverse(adata, ("A", "B"), groupby="type", n_steps=4, seed=7)
    found = pd.read_csv(table, sep="\t", index_col="feature")
    np.testing.assert_allclose(found["change"], path.var.loc[found.index, "change"], rtol=1e-4)


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        (["--obs", "age"], {"obs": "age"}),
        (["--groups", "B", "A"], {"groups": ("B", "A")}),
        (["--obs", "is_b", "--groups", "True", "False"], {"obs": "is_b", "groups": (True, False)}),
        (["--up", "g1", "g2", "--down", "g3"], {"genes": {"up": ["g1", "g2"], "down": ["g3"]}}),
    ],
)
def test_a_new_axis_gets_its_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: list[str], asked: dict[str, object]
) -> None:
    out = tmp_path / "turned.h5ad"
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "mine", *told]
    moved = ["--at", "is_b=True", "--covariate", "donor=x", "--covariate", "age=30", "--n-steps", "3"]
    assert run(*command, *moved, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert re.search(r"celldial: axis 'mine' \(.+\): R² -?\d\.\d\d, p = ", captured.err)
    model, adata = VAE.load(folder / "m.celldial"), anndata.read_h5ad(folder / "out.h5ad")
    model.find_axis(adata, "mine", **asked)
    path = model.latent_traverse(
        adata, "mine", at={"is_b": True}, transform_batch={"donor": "x", "age": 30.0}, n_steps=3
    )
    turned = anndata.read_h5ad(out)
    np.testing.assert_array_equal(turned.obs["mine"], adata.obs["mine"])
    np.testing.assert_array_equal(turned.uns["latent_traverse"]["mine"]["mean"], path.X)

    # It is in the file now, and needs no definition.
    assert (
        run("traverse", out, "--model", folder / "m.celldial", "--axis", "mine", *moved, "--table", tmp_path / "t.csv")
        == 0
    )
    found = pd.read_csv(tmp_path / "t.csv", index_col="feature")
    np.testing.assert_allclose(found["change"], path.var.loc[found.index, "change"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_of_chosen_features(folder: Path, tmp_path: Path, suffix: str) -> None:
    figure = tmp_path / f"figure.{suffix}"
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "axis_0", "--at", "c3"]
    assert run(*command, "--figure", figure, "--features", "g1", "g2") == 0
    assert figure.stat().st_size > 5_000


def test_the_dial_is_a_page(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "dial.html"
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", 0, "--dial", page]
    assert run(*command, "--color", "type", "--features", "g1", "g2") == 0
    default = page.read_text(encoding="utf-8")
    assert "<html" in default
    assert run(*command, "--basis", "X_before") == 0
    assert "<html" in page.read_text(encoding="utf-8") != default


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_for_people_and_for_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", folder / "m.celldial", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    model = VAE.load(folder / "m.celldial")
    assert about["celldial_version"] == celldial.__version__
    assert about["parameters"] == {
        "n_latent": 3,
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    }
    assert about["modalities"]["rna"] == {
        "likelihood": "negative_binomial",
        "n_features": 20,
        "feature_names": [f"g{gene}" for gene in range(20)],
    }
    assert about["categorical_covariates"] == {"batch": ["b0", "b1"], "donor": ["x", "y", "z"]}
    assert about["epochs"] == 3
    assert about["best_validation_elbo"] == max(model.history_["elbo_validation"])
    assert about["best_epoch"] == 1 + int(np.argmax(model.history_["elbo_validation"]))
    assert (about["periodic"], about["clusters"], about["layer"]) == (None, None, None)

    assert run("info", folder / "m.celldial") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "rna (negative_binomial), 20 genes: g0, g1, g2, g3, g4, ..." in captured.out
    assert "batch (batch, 2 values: b0, b1)" in captured.out
    assert "donor (category, 3 values: x, y, z)" in captured.out
    assert re.search(r"age \(number, mean [34]\d\.\d+, standard deviation", captured.out)
    assert re.search(r"3 epochs; weights of epoch \d, validation ELBO -\d+\.\d nats/cell", captured.out)


def test_info_of_a_model_with_defaults_and_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = simulate_two()
    VAE().fit(adata, max_epochs=1, progress=False).save(tmp_path / "plain.celldial")
    VAE(n_clusters=3).fit(adata, max_epochs=1, progress=False, validation_size=0).save(tmp_path / "clusters.celldial")
    assert run("info", tmp_path / "plain.celldial") == 0
    out = capsys.readouterr().out
    assert "parameters    all as by default" in out
    assert "atac (bernoulli), 30 peaks: p0, p1" in out
    assert run("info", tmp_path / "clusters.celldial") == 0
    out = capsys.readouterr().out
    assert "n_clusters=3, others as by default" in out
    assert "clusters      3: 0, 1, 2" in out
    assert "no cells for validation" in out


def test_info_of_models_of_earlier_versions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = sorted((root / "tests" / "golden").rglob("*.celldial"))
    assert models
    for path in models:
        assert run("info", path, "--json") == 0
        assert json.loads(capsys.readouterr().out)["modalities"]


# --- What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["fit"], "required: FILE"),
        (["fit", "a.h5ad"], "nothing to write: give --out, --model or both"),
        (["fit", "a.h5ad", "b.h5ad", "--out", "c.h5ad"], "--out is of one file"),
        (["fit", "a.h5ad", "--model", "m.celldial", "--from-disk", "--periodic", "cell_cycle"], "which takes memory"),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--n-latent", "0"], "'0' is no whole number of at least 1"),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--likelihood", "normal"], "'normal' is no likelihood"),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--likelihood", "poisson", "atac=poisson"], "one MODALITY=NAME for each"),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--decoder", "deep"], "invalid choice: 'deep'"),
        (["fit", "a.h5ad", "--out", "c.h5ad", "--batch", "donor"], "unrecognized arguments: --batch"),
        (["traverse", "a.h5ad", "--axis", "1", "--table", "t.csv"], "required: --model"),
        (["traverse", "a.h5ad", "--model", "m", "--axis", "1"], "nothing to write: give --table"),
        (["traverse", "a.h5ad", "--model", "m", "--table", "t.csv"], "what to turn: give --axis"),
        (["traverse", "a.h5ad", "--model", "m", "--table", "t.csv", "--from", "A"], "--from and --to go together"),
        (
            ["traverse", "a.h5ad", "--model", "m", "--table", "t.csv", "--axis", "1", "--from", "A", "--to", "B"],
            "what to",
        ),
        (["traverse", "a", "--model", "m", "--table", "t", "--from", "A", "--to", "B", "--up", "g1"], "give it a name"),
        (["traverse", "a", "--model", "m", "--table", "t", "--axis", "x", "--up", "g1", "--obs", "age"], "not by both"),
        (["traverse", "a", "--model", "m", "--table", "t", "--axis", "x", "--features", "g1"], "neither is given"),
        (["traverse", "a", "--model", "m", "--table", "t", "--axis", "x", "--covariate", "b2"], "is not NAME=VALUE"),
        (["info"], "required: FILE.celldial"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong_usage(*arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: celldial")
    assert said in captured.err


def assert_refused(said: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
    """Check for exit code 1, and one sentence as the last line of stderr."""
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("celldial: error: ")
    assert re.search(said, last), last
    assert "Traceback" not in captured.err
    assert "\\n" not in last


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-key", "doner"], r"covariate 'doner' .*did you mean 'donor'\?"),
        (["--layer", "raw"], "raw"),
        (["--n-latent", "50"], "n_latent=50 is more than the 20 features"),
        (["--periodic", "month"], "month"),
        (["--device", "tpu"], "device is 'tpu': choose 'cpu' or 'cuda'"),
        (["--precision", "8"], "precision is '8'"),
        (["--categorical-covariates", "donor", "--batch-key", "donor"], "'donor' is given more than once"),
        (["--gene-symbols", "symbol", "--periodic", "cell_cycle"], "gene_symbols 'symbol' is not among the columns"),
        (["--likelihood", "atac=poisson"], "atac"),
        (["--n-clusters", "4", "--periodic", "cell_cycle"], "n_clusters is 4, which does not go with"),
    ],
)
def test_values_that_make_no_sense(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert_refused(said, capsys, "fit", file, *options, "--out", tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_counts_that_are_none(tmp_path: Path, cells: AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    adata = AnnData(cells.X.copy(), cells.obs.copy(), cells.var.copy())
    adata.X.data[0] = 0.5
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert_refused("g", capsys, "fit", tmp_path / "cells.h5ad", "--out", tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_files_that_are_no_cells(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ["--out", tmp_path / "out.h5ad"]
    assert_refused("missing.h5ad is not there", capsys, "fit", tmp_path / "missing.h5ad", *result)
    (tmp_path / "text.h5ad").write_text("cells")
    assert_refused("text.h5ad is no HDF5 file", capsys, "fit", tmp_path / "text.h5ad", *result)
    (tmp_path / "half.h5ad").write_bytes(file.read_bytes()[:10_000])
    assert_refused("half.h5ad could not be read", capsys, "fit", tmp_path / "half.h5ad", *result)
    with h5py.File(tmp_path / "other.h5ad", "w") as other:
        other["matrix/data"] = np.arange(3)
    assert_refused("other.h5ad", capsys, "fit", tmp_path / "other.h5ad", *result)
    (tmp_path / "empty.zarr").mkdir()
    assert_refused("empty.zarr could not be read", capsys, "fit", tmp_path / "empty.zarr", *result)
    assert not (tmp_path / "out.h5ad").exists()


def test_files_that_are_no_models(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused("there is no file '.*missing.celldial'", capsys, "info", tmp_path / "missing.celldial")
    assert_refused("is not a celldial file, or is damaged", capsys, "info", folder / "cells.h5ad")
    assert_refused("there is no file", capsys, "info", tmp_path)
    (tmp_path / "half.celldial").write_bytes((folder / "m.celldial").read_bytes()[:-100])
    assert_refused("is damaged", capsys, "info", tmp_path / "half.celldial", "--json")
    turned = ["--axis", "0", "--table", tmp_path / "t.csv"]
    assert_refused(
        "is not a celldial file", capsys, "traverse", folder / "out.h5ad", "--model", folder / "out.h5ad", *turned
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--axis", "7"], "7"),
        (["--axis", "cytotoxicity"], "cytotoxicity"),
        (["--from", "A", "--to", "C"], "'A' and 'C' are neither"),
        (["--from", "A", "--to", "B", "--at", "c1"], "leave at out"),
        (["--axis", "0", "--groupby", "type"], "leave groupby out"),
        (["--axis", "0", "--at", "type=C"], "no cell has type 'C'; there are: 'A', 'B'"),
        (["--axis", "0", "--at", "c999"], "there is no cell 'c999'"),
        (["--axis", "0", "--covariate", "batch=b9"], "b9"),
        (["--axis", "0", "--covariate", "age=old"], "--covariate age=old: 'age' is a number"),
        (["--axis", "mine", "--up", "CD3D"], "CD3D"),
        (["--axis", "type", "--obs", "age"], "has a column 'type' that find_axis did not write"),
        (["--axis", "mine", "--obs", "donor"], "donor"),
    ],
)
def test_dials_that_are_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", *options]
    assert_refused(said, capsys, *command, "--table", tmp_path / "t.csv", "--figure", tmp_path / "f.png")
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_there_leave_no_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several files all are written, or none."""
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "0"]
    results = ["--table", tmp_path / "t.csv", "--figure", tmp_path / "f.png", "--features", "CD3D"]
    assert_refused("no feature 'CD3D'", capsys, *command, *results)
    assert not list(tmp_path.iterdir())


# --- Where results go -------------------------------------------------------------------------------------------------


def test_results_that_cannot_be_written_are_refused_before_training(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = count_epochs(monkeypatch)
    before = file.read_bytes()

    def refused(said: str, *results: object) -> None:
        assert_refused(said, capsys, "fit", file, *FEW, *results)

    refused("cells.h5ad, which is also read, and is not written over", "--out", file)
    (tmp_path / "link.h5ad").symlink_to(file)
    refused("which is also read", "--out", tmp_path / "link.h5ad")
    os.link(file, tmp_path / "hard.h5ad")
    refused("which is also read", "--out", tmp_path / "hard.h5ad")
    refused("there is no folder .*new: make it first", "--out", tmp_path / "new" / "out.h5ad")
    refused("there is no folder .*: make it first", "--model", file / "m.celldial")
    (tmp_path / "folder.h5ad").mkdir()
    refused("which is a folder", "--out", tmp_path / "folder.h5ad")
    refused("its name must end in .h5ad", "--out", tmp_path / "out.zarr")
    refused("its name must end in .celldial", "--model", tmp_path / "model.h5ad")
    refused("nothing can be written to /proc", "--model", "/proc/m.celldial")
    assert epochs == []
    assert file.read_bytes() == before


def test_a_file_without_permission_is_not_replaced(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"kept")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    assert_refused("must not be changed", capsys, "fit", file, *FEW, "--out", out)
    assert out.read_bytes() == b"kept"


def test_two_results_are_two_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "0"]
    (tmp_path / "link.csv").symlink_to(tmp_path / "t.png")
    assert_refused(
        "are the same file", capsys, *command, "--table", tmp_path / "link.csv", "--figure", tmp_path / "t.png"
    )


def test_links_stay_and_files_are_replaced(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "m.celldial"
    target.write_bytes(b"old")
    link = tmp_path / "m.celldial"
    link.symlink_to(target)
    assert run("fit", file, *FEW, "--model", link) == 0
    assert capsys.readouterr().out == f"{link}\n"
    assert link.is_symlink()
    assert VAE.load(target).n_latent == 3
    assert [path.name for path in target.parent.iterdir()] == ["m.celldial"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("at", ["train", "save", "replace"])
def test_a_failure_leaves_what_was_there(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    place = {"train": (loop, "fit"), "save": (VAE, "save"), "replace": (os, "replace")}[at]
    monkeypatch.setattr(*place, full)
    results = [tmp_path / "out.h5ad", tmp_path / "m.celldial"]
    for path in results:
        path.write_bytes(b"old")
    assert_refused("No space left on device", capsys, "fit", file, *FEW, "--out", results[0], "--model", results[1])
    assert [path.read_bytes() for path in results] == [b"old", b"old"]
    assert len(list(tmp_path.iterdir())) == 3


# --- Errors, bugs, interrupts -----------------------------------------------------------------------------------------


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
    """Also where its type is that of errors that are meant for users."""
    monkeypatch.setattr(loop, "fit", bug)
    with pytest.raises((KeyError, ValueError, ZeroDivisionError, AttributeError)):
        run("fit", file, *FEW, "--out", tmp_path / "out.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_traceback_where_it_is_asked_for(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="doner"):
        run("fit", file, "--batch-key", "doner", "--out", tmp_path / "out.h5ad", "--traceback")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("no 'gene' here"), "no 'gene' here"),
        (ValueError("two\n  lines"), "two lines"),
        (OSError(28, "No space left on device", "out.h5ad"), "out.h5ad: No space left on device"),
        (MemoryError(), "there is not enough memory"),
        (MemoryError("12 GB"), "12 GB"),
    ],
)
def test_messages_are_one_plain_line(error: Exception, said: str) -> None:
    assert messages.sentence(error) == said


def test_nan_in_training_is_a_sentence(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "selection_elbo", lambda record: float("nan"))
    assert_refused("the ELBO became nan in epoch 1 of 3", capsys, "fit", file, *FEW, "--out", tmp_path / "out.h5ad")


@pytest.mark.parametrize(("in_epoch", "written"), [(0, False), (2, True)])
def test_ctrl_c_ends_with_130(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_epoch: int,
    written: bool,
) -> None:
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer) -> None:
        if self.state.epoch == in_epoch:
            os.kill(os.getpid(), signal.SIGINT)
        original(self)

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    assert run("fit", file, "--max-epochs", 5, "--out", tmp_path / "out.h5ad") == 130
    captured = capsys.readouterr()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {path.name for path in tmp_path.iterdir()} == {"cells.h5ad", *(["out.h5ad"] if written else [])}
    if written:
        assert captured.out == f"{tmp_path / 'out.h5ad'}\n"
        assert "what is written is of the best epoch so far" in captured.err
        out = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert len(out.uns["celldial"]["history"]["seconds"]) == in_epoch
    else:
        assert captured.err.endswith("celldial: interrupted; nothing was written\n")


def test_ctrl_c_twice_writes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VAE, "save", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer) -> None:
        original(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    assert run("fit", file, *FEW, "--model", tmp_path / "m.celldial", "--out", tmp_path / "out.h5ad") == 130
    assert capsys.readouterr().err.endswith("celldial: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


# --- As a process -----------------------------------------------------------------------------------------------------


def test_stdout_has_results_and_stderr_the_rest(file: Path, tmp_path: Path, cells: AnnData) -> None:
    x = cells.X.toarray()
    x[3] = 0
    AnnData(x, cells.obs.copy(), cells.var.copy()).write_h5ad(tmp_path / "cells.h5ad")
    done = process("fit", "cells.h5ad", *FEW, "--out", "out.h5ad", "--model", "m.celldial", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "out.h5ad\nm.celldial\n"
    assert "celldial: reading cells.h5ad" in done.stderr
    assert "ELBO" in done.stderr
    assert "celldial: warning: 1 of 60 cells have no count (the first is 'c3')" in done.stderr
    assert ".py:" not in done.stderr


def test_quiet_leaves_results_and_errors(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("fit", file, *FEW, "--out", tmp_path / "out.h5ad", "--quiet") == 0
    assert capfd.readouterr() == (f"{tmp_path / 'out.h5ad'}\n", "")
    assert run("fit", file, "--layer", "raw", "--out", tmp_path / "out.h5ad", "--quiet") == 1
    assert capfd.readouterr().err.startswith("celldial: error: ")


def test_errors_of_a_process(file: Path, tmp_path: Path) -> None:
    done = process("fit", file, "--batch-key", "doner", "--out", tmp_path / "out.h5ad", "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("celldial: error: covariate 'doner' is not among")
    assert done.stderr.count("\n") == 1


def test_who_reads_stdout_may_leave(folder: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m celldial info {shlex.quote(str(folder / 'm.celldial'))} --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_ctrl_c_in_a_process(file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "celldial",
        "fit",
        str(file),
        "--max-epochs",
        "100000",
        "--out",
        str(tmp_path / "o.h5ad"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stderr is not None
    seen = b""
    while b"nats/cell" not in seen:
        part = child.stderr.read1(1000)
        assert part, seen
        seen += part
    child.send_signal(signal.SIGINT)
    out, rest = child.communicate(timeout=60)
    assert child.returncode == 130, rest
    assert out.decode() == f"{tmp_path / 'o.h5ad'}\n"
    assert b"Traceback" not in rest
    assert "X_celldial" in anndata.read_h5ad(tmp_path / "o.h5ad").obsm


def test_the_version_and_help_are_light() -> None:
    script = """
import sys
from celldial.cli import main
for arguments in (["--version"], ["--help"], ["fit", "--help"], ["traverse", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
print(*{"sklearn", "pyro", "matplotlib", "scanpy", "numba", "anndata", "pandas"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"celldial {celldial.__version__}\nusage: celldial")
    assert "usage: celldial fit" in done.stdout
    assert done.stdout.endswith("\n\n")  # none of these


def test_the_demo_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(demo, "main", lambda arguments: given.append(arguments) or 7)
    assert run("demo", "--out", "somewhere", "--max-epochs", "1") == 7
    assert given == [["--out", "somewhere", "--max-epochs", "1"]]


def test_the_command_is_installed_under_its_name(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"celldial": f"{cli.main.__module__}:{cli.main.__name__}"}


# --- What is said of it -----------------------------------------------------------------------------------------------


def test_names_in_the_help_are_those_of_the_package() -> None:
    assert set(LIKELIHOODS) == set(likelihoods.LIKELIHOODS)
    assert set(DECODERS) == set(networks.DECODERS)


def commands_in(text: str) -> list[list[str]]:
    """Find the lines of a text that start with ``celldial COMMAND``."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [
        line.split(" | ")[0].strip()
        for line in lines
        if re.match(r"\s*celldial (fit|traverse|info|demo) .*\.?\w", line)
    ]
    return [shlex.split(line)[1:] for line in found]


def subparsers() -> dict[str, object]:
    (action,) = (action for action in make_parser()._actions if action.dest == "command")
    return dict(action.choices)


def check(arguments: list[str]) -> None:
    if arguments[0] == "demo":
        demo.parse(arguments[1:])
    else:
        check_usage(make_parser().parse_args(arguments))


def test_commands_on_the_page_are_right(root: Path) -> None:
    text = (root / "docs" / "howto" / "command_line.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    commands = commands_in(blocks)
    assert {arguments[0] for arguments in commands} == {"fit", "traverse", "info", "demo"}
    assert len(commands) == sum(line.startswith("celldial ") for line in blocks.splitlines())
    for arguments in commands:
        check(arguments)


@pytest.mark.parametrize("command", ["fit", "traverse", "info"])
def test_help_suffices(root: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option is explained and on the page, and the examples are right."""
    parser = subparsers()[command]
    text = (root / "docs" / "howto" / "command_line.md").read_text(encoding="utf-8")
    for action in parser._actions:
        assert action.help, action
        for option in set(action.option_strings) - {"-h", "--help"}:
            assert re.search(rf"{option}\b", text), f"{option} is not on the page"
    monkeypatch.setenv("COLUMNS", "80")
    helped = parser.format_help()
    assert "reads:" in helped
    assert max(map(len, helped.splitlines())) <= 80
    examples = commands_in(helped[helped.index("examples:") :])
    assert len(examples) >= 2
    for arguments in examples:
        check(arguments)

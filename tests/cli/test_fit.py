"""`celldial fit`: the same results as in Python, unchanged inputs, large data and checkpoints."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from celldial import VAE
from celldial.cli import files, info
from helpers.cli import SMALL, assert_usage_error, count_epochs, fit_in_python, run
from helpers.periodic import genes_of, make_cells
from helpers.raises import raises


def test_fit_does_what_python_does(folder: Path, cells: AnnData) -> None:
    model, adata = fit_in_python(
        cells, batch_key="batch", continuous_covariate_keys=["age"], categorical_covariate_keys=["donor"]
    )
    out = anndata.read_h5ad(folder / "out.h5ad")
    np.testing.assert_array_equal(out.obsm["X_celldial"], adata.obsm["X_celldial"])
    np.testing.assert_array_equal(VAE.load(folder / "m.celldial").transform(cells), adata.obsm["X_celldial"])
    assert out.uns["celldial"]["parameters"]["batch_key"] == model.batch_key
    np.testing.assert_array_equal(out.uns["celldial"]["history"]["elbo_train"], model.history_["elbo_train"])


def test_everything_else_in_the_file_is_unchanged(folder: Path) -> None:
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
    assert run("fit", file, *SMALL, *options, "--out", out, "--quiet") == 0
    _, adata = fit_in_python(cells, **parameters)
    found = anndata.read_h5ad(out)
    assert set(found.obs) == set(adata.obs)
    assert set(found.obsm) == set(adata.obsm)
    np.testing.assert_array_equal(found.obsm["X_celldial"], adata.obsm["X_celldial"])


def test_a_periodic_coordinate_and_another_key(tmp_path: Path) -> None:
    adata = genes_of(make_cells(300))
    adata.var["symbol"] = list(adata.var_names)
    adata.var_names = [f"ENSG{gene:05}" for gene in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    paths = ["--out", tmp_path / "out.h5ad", "--model", tmp_path / "m.celldial"]
    periodic = ["--periodic", "cell_cycle", "--gene-symbols", "symbol", "--key-added", "X_here"]
    assert run("fit", tmp_path / "cells.h5ad", *SMALL, *periodic, *paths) == 0
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert "X_here" in out.obsm
    assert out.obs["cell_cycle_angle"].between(0, 2 * np.pi).all()
    about = info.summarize_model(tmp_path / "m.celldial")
    assert list(about["periodic"]["phase_start"]) == ["G1", "S", "G2M"]
    assert "PCNA" not in about["periodic"]["markers"]["S"]  # var_names, not symbols
    assert "cell_cycle: G1 from" in info.format_summary(about)

    options = ["--axis", "cell_cycle", "--n-steps", "5", "--table", tmp_path / "t.csv"]
    assert run("traverse", tmp_path / "out.h5ad", "--model", tmp_path / "m.celldial", *options) == 0
    table = pd.read_csv(tmp_path / "t.csv", index_col="feature")
    assert (table["mean_lowest"] <= table["mean_highest"]).all()
    assert (table["lower_highest"] <= table["upper_highest"]).all()
    expected = np.log2(table["mean_highest"] / table["mean_lowest"])
    np.testing.assert_allclose(table["effect_size"], expected, atol=1e-3)


def test_several_files(tmp_path: Path, file: Path, cells: AnnData) -> None:
    cells[:30].write_h5ad(tmp_path / "first.h5ad")
    cells[30:].write_h5ad(tmp_path / "second.h5ad")
    paths = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    assert run("fit", *paths, *SMALL, "--model", tmp_path / "m.celldial", "--quiet") == 0
    expected = VAE(3).fit([*paths], max_epochs=3, progress=False).transform(file)
    np.testing.assert_array_equal(VAE.load(tmp_path / "m.celldial").transform(file), expected)


def test_from_disk_with_and_without_output_cells(tmp_path: Path, file: Path) -> None:
    expected = VAE(3).fit(file, max_epochs=3, progress=False).transform(file)
    read = [file, *SMALL, "--from-disk"]
    assert run("fit", *read, "--model", tmp_path / "a.celldial") == 0
    assert run("fit", *read, "--model", tmp_path / "b.celldial", "--out", tmp_path / "out.h5ad") == 0
    for name in "ab":
        np.testing.assert_array_equal(VAE.load(tmp_path / f"{name}.celldial").transform(file), expected)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_celldial"], expected)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
def test_zarr_stores(tmp_path: Path, cells: AnnData) -> None:
    plain = AnnData(cells.X, cells.obs.copy(), cells.var.copy())
    plain.write_zarr(tmp_path / "cells.zarr")
    assert run("fit", tmp_path / "cells.zarr", *SMALL, "--out", tmp_path / "out.h5ad") == 0
    _, adata = fit_in_python(plain)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_celldial"], adata.obsm["X_celldial"])
    assert_usage_error("fit", tmp_path / "cells.zarr", "--from-disk", "--out", tmp_path / "out.h5ad")


def test_files_of_an_earlier_layout_are_rewritten(tmp_path: Path, file: Path) -> None:
    with h5py.File(file, "r+") as stored:
        del stored.attrs["encoding-type"], stored.attrs["encoding-version"]
    assert not files.has_current_layout(file)
    assert run("fit", file, *SMALL, "--out", tmp_path / "out.h5ad") == 0
    assert files.has_current_layout(tmp_path / "out.h5ad")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert {"X_before", "X_celldial"} <= set(out.obsm)


def test_results_are_added_to_a_minimal_file(tmp_path: Path, cells: AnnData) -> None:
    AnnData(cells.X).write_h5ad(tmp_path / "bare.h5ad")
    with h5py.File(tmp_path / "bare.h5ad", "r+") as stored:
        del stored["obsm"], stored["uns"]
    assert run("fit", tmp_path / "bare.h5ad", *SMALL, "--out", tmp_path / "out.h5ad") == 0
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_celldial"].shape == (60, 3)


def test_the_same_command_resumes_from_a_checkpoint(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["fit", file, *SMALL, "--checkpoint", tmp_path / "runs", "--out", tmp_path / "out.h5ad"]
    epochs = count_epochs(monkeypatch, fail_in=3)
    with raises(RuntimeError, naming=["cut short"]):
        run(*command)
    assert not (tmp_path / "out.h5ad").exists()
    assert run(*command) == 0
    assert len(epochs) == 4  # the third was tried twice
    monkeypatch.undo()
    assert run("fit", file, *SMALL, "--out", tmp_path / "uninterrupted.h5ad") == 0
    first, second = (
        anndata.read_h5ad(tmp_path / name).obsm["X_celldial"] for name in ("out.h5ad", "uninterrupted.h5ad")
    )
    np.testing.assert_array_equal(first, second)
    assert run("info", tmp_path / "runs" / "training.checkpoint") == 1

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
from helpers.simulate import simulate


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


def test_types_of_columns_that_anndata_does_not_write_are_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata = simulate()
    adata.obs_names = pd.Index(pd.array(list(adata.obs_names), dtype="string"))
    path = tmp_path / "cells.h5ad"
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path)
    out, model = tmp_path / "out.h5ad", tmp_path / "m.celldial"
    assert run("fit", str(path), "--out", str(out), "--model", str(model), *SMALL) == 0
    found = anndata.read_h5ad(out)
    np.testing.assert_array_equal(found.obsm["X_celldial"], VAE.load(model).transform(found))
    assert list(found.obs_names) == list(adata.obs_names)


@pytest.mark.parametrize("with_model", [True, False])
def test_the_model_is_kept_if_the_cells_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], with_model: bool
) -> None:
    simulate().write_h5ad(tmp_path / "cells.h5ad")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("celldial.cli.commands.write_cells", fail)
    out = tmp_path / "out.h5ad"
    options = ["--model", str(tmp_path / "m.celldial")] if with_model else []
    assert run("fit", str(tmp_path / "cells.h5ad"), "--out", str(out), *options, *SMALL) == 1
    kept = tmp_path / ("m.celldial" if with_model else "out.celldial")
    message = capsys.readouterr().err
    assert str(out) in message
    assert str(kept) in message
    assert VAE.load(kept).history_
    assert not out.exists()


def test_files_of_cell_ranger_and_repeated_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = simulate()
    names = [*adata.var_names[:-1], adata.var_names[0]]
    path, out = tmp_path / "filtered.h5", tmp_path / "out.h5ad"
    matrix = adata.X.tocsr()
    with h5py.File(path, "w") as file:
        for name, value in {
            "barcodes": list(adata.obs_names),
            "data": matrix.data.astype(int),
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "shape": matrix.shape[::-1],
            "features/id": list(adata.var_names),
            "features/name": names,
            "features/feature_type": ["Gene Expression"] * adata.n_vars,
            "features/genome": ["GRCh38"] * adata.n_vars,
        }.items():
            file[f"matrix/{name}"] = np.array(value, dtype="S") if isinstance(value, list) else np.array(value)
    assert run("fit", str(path), "--out", str(out), *SMALL) == 1
    assert names[0] in capsys.readouterr().err
    assert run("fit", str(path), "--make-names-unique", "--out", str(out), *SMALL) == 0
    found = anndata.read_h5ad(out)
    assert found.var_names[-1] == f"{names[0]}-1"
    assert (found.X != matrix).nnz == 0
    with raises(OSError, naming=[str(path), "scanpy.read_10x_h5"]):
        VAE(2, 8).fit(str(path))

"""Models of cells in files equal models of the same cells in memory, and do not change the files."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from celldial import VAE, datasets
from celldial.training import loop
from helpers.assertions import assert_same_model
from helpers.fit import fit
from helpers.interrupt import Interrupted, interrupt_at
from helpers.raises import raises, warns
from helpers.simulate import COVARIATES, simulate, simulate_two


def write_h5ad(adata: AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "cells.h5ad", compression="gzip")
    return folder / "cells.h5ad"


def write_zarr(adata: AnnData, folder: Path) -> Path:
    adata.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


# anndata warns at each zarr store that it writes.
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


def write_shards(adata: AnnData, folder: Path) -> list[Path]:
    """Three files: of different sizes and features in different orders, one of them a zarr store."""
    parts = [adata[: adata.n_obs // 2], adata[adata.n_obs // 2 : -7, ::-1], adata[-7:]]
    parts[0].copy().write_h5ad(folder / "a.h5ad")
    parts[1].copy().write_zarr(folder / "b.zarr")
    parts[2].copy().write_h5ad(folder / "c.h5ad")
    return [folder / "a.h5ad", folder / "b.zarr", folder / "c.h5ad"]


WAYS: dict[str, Callable[[AnnData, Path], Any]] = {"h5ad": write_h5ad, "zarr": write_zarr, "shards": write_shards}


@pytest.fixture(params=WAYS)
def write(request: pytest.FixtureRequest) -> Callable[[AnnData, Path], Any]:
    return WAYS[request.param]


@pytest.mark.slow
def test_held_out_cells_are_explained_as_well_from_files(tmp_path: Path) -> None:
    """To half a percent, which is less than the difference between seeds."""
    adata = datasets.pbmc68k_reduced()
    order_c = np.random.default_rng(0).permutation(adata.n_obs)
    known, held_out = adata[order_c[:600]].copy(), adata[order_c[600:]].copy()
    of_memory = fit(known.copy(), VAE(), max_epochs=20).score(held_out)
    of_files = fit(write_shards(known, tmp_path), VAE(), max_epochs=20).score(held_out)
    assert of_files == pytest.approx(of_memory, rel=0.005)


@pytest.mark.parametrize("simulated", [simulate, simulate_two])
def test_results_agree_in_memory_and_in_files(
    tmp_path: Path, write: Callable[[AnnData, Path], Any], simulated: Callable[[], AnnData]
) -> None:
    adata = simulated()
    paths = write(adata, tmp_path)
    model = fit(paths, VAE(2, 8, **COVARIATES))
    np.testing.assert_allclose(model.transform(paths), model.transform(adata), atol=1e-6)
    assert model.score(paths) == pytest.approx(model.score(adata), rel=1e-3)
    assert model.score(paths, n_samples=5) == pytest.approx(model.score(adata, n_samples=5), rel=1e-2)
    mean, deviation = model.latent_posterior(paths)
    expected_mean, expected_deviation = model.latent_posterior(adata)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-6)
    np.testing.assert_allclose(deviation, expected_deviation, atol=1e-6)
    features = list(adata.var_names[:3])
    pd.testing.assert_frame_equal(
        model.impute(paths, "rna", features=features), model.impute(adata, "rna", features=features), rtol=1e-4
    )
    assert model.library_size_quantiles_["rna"][-1] <= np.asarray(adata[:, :20].X.sum(1)).max()


def test_files_are_not_changed(tmp_path: Path) -> None:
    path = write_h5ad(simulate(), tmp_path)
    before = zlib.crc32(path.read_bytes())
    model = fit(path)
    model.transform([path, path])
    model.impute(path, "rna")
    assert zlib.crc32(path.read_bytes()) == before
    assert list(tmp_path.iterdir()) == [path]
    with raises(ValueError, naming=["key_added", "'X_z'"]):
        model.transform(path, key_added="X_z")


def test_a_backed_anndata_gets_the_same_results(tmp_path: Path) -> None:
    adata = simulate()
    path = write_h5ad(adata, tmp_path)
    before = zlib.crc32(path.read_bytes())
    backed = ad.read_h5ad(path, backed="r")
    model = fit(backed, VAE(2, 8, batch_key="batch", n_clusters=2))
    np.testing.assert_allclose(backed.obsm["X_celldial"], model.transform(adata), atol=1e-6)
    assert set(backed.obs["celldial_cluster"]) <= {"0", "1"}
    assert backed.uns["celldial"]["parameters"]["n_latent"] == 2
    model.transform(backed, key_added="X_again")
    np.testing.assert_array_equal(backed.obsm["X_again"], backed.obsm["X_celldial"])
    pd.testing.assert_frame_equal(model.clusters(backed), model.clusters(adata), atol=1e-5)
    pd.testing.assert_frame_equal(model.clusters(path), model.clusters(adata), atol=1e-5)
    backed.file.close()
    assert zlib.crc32(path.read_bytes()) == before


def test_fit_transform_gives_the_embedding_of_all_cells(tmp_path: Path) -> None:
    paths = write_shards(simulate(), tmp_path)
    model = VAE(2, 8)
    embedding_cz = model.fit_transform(paths, max_epochs=1, progress=False)
    np.testing.assert_array_equal(embedding_cz, model.transform(paths))


def test_labels_and_masks(tmp_path: Path) -> None:
    adata = simulate()
    adata.obs["known"] = adata.obs["type"].astype(str).where(np.arange(adata.n_obs) % 5 == 0, "unknown")
    held_out_c = np.arange(adata.n_obs) % 4 == 0
    paths = write_shards(adata, tmp_path)
    model = fit(paths, VAE(2, 8, labels_key="known"), validation_cells=held_out_c)
    assert list(model.clusters(adata).columns) == ["A", "B"]
    assert "elbo_validation" in model.history_
    by_name = fit(paths, VAE(2, 8, labels_key="known"), validation_cells=adata.obs_names[held_out_c])
    assert_same_model(by_name, model)


def test_an_interrupted_fit_resumes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    paths = write_shards(simulate(), tmp_path / "data")
    uninterrupted = fit(paths, max_epochs=4)
    options: dict[str, Any] = {"max_epochs": 4, "checkpoint": tmp_path / "checkpoint", "checkpoint_minutes": 1e-9}
    with interrupt_at(loop.Trainer, "_step", 7, Interrupted()), pytest.raises(Interrupted):
        fit(paths, **options)
    assert_same_model(fit(paths, **options), uninterrupted)


@pytest.mark.slow
def test_several_processes_read_their_own_cells(tmp_path: Path) -> None:
    paths = write_shards(simulate(), tmp_path)
    model = fit(paths, device="cpu", devices=2)
    assert all(np.isfinite(model.history_["elbo_validation"]))
    again = fit(paths, device="cpu", devices=2)
    assert all(torch.equal(again.module_.state_dict()[name], t) for name, t in model.module_.state_dict().items())


def test_empty_cells_are_named(tmp_path: Path) -> None:
    adata = simulate()
    x = adata.X.toarray()
    x[40] = 0
    adata.X = x
    path = write_h5ad(adata, tmp_path)
    with warns(naming=[1, 60, "'c40'"]):
        model = fit(path)
    with warns(naming=[1, 60, "'c40'"]):
        embedding_cz = model.transform(path)
    np.testing.assert_array_equal(embedding_cz[40], 0)


def test_wrong_counts_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    adata = simulate()
    x = adata.X.toarray()
    x[41, 3] = 0.5
    adata.X = x
    with raises(ValueError, naming=[0.5, "'c41'", "gene 'g3'"]):
        fit(write_h5ad(adata, tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        lambda path: path.write_bytes(b"no cells"),
    ],
    ids=["gone", "cut off", "something else"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    path = write_h5ad(simulate(), tmp_path)
    model = fit(path)
    change(path)
    for use in (fit, model.transform, model.score, lambda path: model.impute(path, "rna")):
        with raises(OSError, naming=["cells.h5ad"]):
            use(path)


def test_functions_that_need_cells_in_memory_reject_files(tmp_path: Path) -> None:
    path = write_h5ad(simulate(), tmp_path)
    with raises(ValueError, naming=["periodic", "anndata.read_h5ad"]):
        fit(path, VAE(2, 8, periodic=True))
    with raises(TypeError, naming=["anndata.read_h5ad"]):
        fit(path).axes(path)

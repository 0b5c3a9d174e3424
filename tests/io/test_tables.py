"""Tables in an AnnData that any file format can hold, whatever the names of genes, labels and the index are."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import celldial as cd
from helpers.fit import fit
from helpers.simulate import simulate

NAMES = ["IGHV1/OR15-1", "IGHV1-OR15-1", ".", "_index", "cell"]


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_results_with_any_names_are_written_and_read(tmp_path: Path, suffix: str) -> None:
    adata = simulate()
    adata.var_names = [*NAMES, *adata.var_names[len(NAMES) :]]
    adata.obs_names.name = "cell"
    adata.obs["type"] = np.resize(["cell", "a/b", "."], adata.n_obs)
    model = fit(adata, cd.VAE(2, 8, labels_key="type"), max_epochs=1)
    denoised = model.denoise(adata, NAMES, key_added="denoised")
    path = tmp_path / f"cells{suffix}"
    adata.write_zarr(path) if suffix == ".zarr" else adata.write_h5ad(path)
    read = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    np.testing.assert_allclose(read.obsm["denoised"].to_numpy(), denoised.to_numpy(), rtol=1e-6)
    assert list(read.obsm["denoised"].columns) == [
        "IGHV1-OR15-1", "IGHV1-OR15-1-1", "(.)", "(_index)", "(cell)"
    ]  # fmt: skip
    assert set(read.obs["celldial_cluster"]) <= {"cell", "a/b", ".", "unassigned"}
    np.testing.assert_array_equal(model.transform(read), adata.obsm["X_celldial"])

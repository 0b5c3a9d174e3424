"""What the software promises on real cells: a perturbation is decoded, held-out cells are explained as stated."""

import numpy as np
import pytest
from anndata import read_h5ad

from celldial import VAE
from celldial.datasets import pbmc68k_reduced


def test_control_cells_decoded_as_stimulated_change_as_stimulated_cells_do(shared_data):
    adata = read_h5ad(shared_data / "kang_ifnb.h5ad")
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() >= 200].copy()
    stimulated = (adata.obs["condition"] == "stim").to_numpy()
    model = VAE(batch_key="condition").fit(adata, max_epochs=8, progress=False)
    control = adata[~stimulated].copy()
    decoded = np.log2(model.denoise(control, transform_batch="stim").mean() / model.denoise(control).mean())
    assert (decoded[["ISG15", "IFI6", "IFIT3", "MX1", "LY6E"]] > 1).all()
    share_cf = adata.X.toarray() / adata.X.sum(1)
    measured = np.log2(share_cf[stimulated].mean(0) / share_cf[~stimulated].mean(0))
    strong = np.abs(np.asarray(measured).ravel()) > 1
    assert np.corrcoef(decoded[strong], np.asarray(measured).ravel()[strong])[0, 1] > 0.8


@pytest.mark.slow
def test_held_out_blood_cells_are_explained_as_well_as_stated():
    adata = pbmc68k_reduced()
    model = VAE().fit(adata, validation_cells=np.arange(700) < 70, progress=False)
    assert max(model.history_["elbo_validation"]) >= -650
    assert model.score(adata[:70].copy()) >= -651

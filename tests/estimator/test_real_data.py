"""Promises on real cells: perturbations, held-out cells, and imputed proteins."""

import numpy as np
import pytest
from anndata import read_h5ad

from celldial import VAE
from celldial.datasets import pbmc68k_reduced
from helpers.raises import warns


@pytest.mark.slow
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
def test_held_out_blood_cells_are_explained_as_documented():
    adata = pbmc68k_reduced()
    model = VAE().fit(adata, validation_cells=np.arange(700) < 70, progress=False)
    assert max(model.history_["elbo_validation"]) >= -650
    assert model.score(adata[:70].copy()) >= -651


def test_proteins_of_donors_without_them_are_predicted_from_their_rna(shared_data, tmp_path):
    """One of four donors has no proteins, and one no RNA. Predictions by cell type agree with other donors."""
    adata = read_h5ad(shared_data / "cite_mosaic.h5ad")
    model = VAE(batch_key="batch").fit(adata, max_epochs=8, progress=False)
    assert model.schema_.presence_keys == {"rna": "has_rna", "protein": "has_protein"}
    assert adata.obsm["X_celldial"].shape == (1600, 10)
    no_rna, no_protein = (~adata.obs[key].to_numpy() for key in ("has_rna", "has_protein"))
    assert no_rna.sum() == no_protein.sum() == 400
    with warns(naming=[400, 1600, "rna"]):
        by_rna = model.transform(adata, modality="rna")
    np.testing.assert_allclose(by_rna[no_protein], adata.obsm["X_celldial"][no_protein], atol=1e-5)
    assert (by_rna[no_rna] == 0).all()

    proteins = (adata.var["feature_types"] == "Antibody Capture").to_numpy()
    query = adata[no_protein, ~proteins].copy()
    predicted = model.impute(query, "protein", from_="rna", transform_batch="p3_0")
    share = adata.to_df().loc[~no_protein, proteins]
    measured = share.div(share.sum(axis=1), axis=0) * 1e4
    types = ["B", "CD4 T", "Mono", "NK"]
    by_type = [table.groupby(adata.obs["celltype"], observed=True).mean().loc[types] for table in (predicted, measured)]
    found, known = (np.log1p(table) - np.log1p(table).mean() for table in by_type)
    varying = known.std() > 0.4
    assert varying.sum() > 30
    assert np.corrcoef(found.loc[:, varying].to_numpy().ravel(), known.loc[:, varying].to_numpy().ravel())[0, 1] > 0.85

    model.impute_to_file(query, "protein", tmp_path / "proteins.h5ad", from_="rna", transform_batch="p3_0")
    np.testing.assert_array_equal(read_h5ad(tmp_path / "proteins.h5ad").X, predicted)
    model.save(tmp_path / "model.celldial")
    np.testing.assert_array_equal(VAE.load(tmp_path / "model.celldial").transform(adata), adata.obsm["X_celldial"])

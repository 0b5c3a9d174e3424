"""Models and results of several modalities survive a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad

from celldial import VAE
from celldial.model.fusion import FUSIONS
from helpers.fit import fit
from helpers.simulate import COVARIATES, IN_OBSM, MODALITIES, move_to_obsm, simulate_mosaic


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("likelihood", [None, {"atac": "poisson", "protein": "zero_inflated_negative_binomial"}])
def test_round_trip(tmp_path: Path, fusion: Any, likelihood: Any) -> None:
    adata = simulate_mosaic()
    parameters = {"modality_weights": {"atac": np.float32(0.25), "protein": np.int64(2)}, **COVARIATES}
    model = fit(adata, VAE(2, 8, fusion=fusion, likelihood=likelihood, **parameters))
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    assert loaded.schema_ == model.schema_
    assert loaded.history_ == model.history_
    assert loaded.get_params()["modality_weights"] == {"atac": 0.25, "protein": 2}
    assert loaded.module_.modality_weights == model.module_.modality_weights
    assert loaded.score(adata) == model.score(adata)
    for modality in (None, *MODALITIES):
        np.testing.assert_array_equal(
            loaded.latent_posterior(adata[:3], modality=modality), model.latent_posterior(adata[:3], modality=modality)
        )
    pd.testing.assert_frame_equal(
        loaded.impute(adata, "protein", from_=["rna", "atac"]), model.impute(adata, "protein", from_=["rna", "atac"])
    )
    values = {"batch": "b0", "donor": "x", "age": 30.0}
    np.testing.assert_array_equal(loaded.sample(9, values).X.toarray(), model.sample(9, values).X.toarray())
    for one in (model, loaded):
        one.partial_fit(adata.copy(), max_epochs=1, progress=False)
    np.testing.assert_array_equal(loaded.transform(adata), model.transform(adata))


def test_results_of_fit_survive_a_file(tmp_path: Path) -> None:
    adata = move_to_obsm("DataFrame", simulate_mosaic())
    parameters = {"likelihood": {"atac": "poisson"}, "modality_weights": {"rna": 2}, "presence_keys": {}}
    model = fit(adata, VAE(2, 8, modalities=IN_OBSM, **parameters))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    record = back.uns["celldial"]
    assert type(model.schema_).from_dict(record["schema"]) == model.schema_
    assert record["parameters"]["modalities"] == IN_OBSM
    assert record["parameters"]["likelihood"] == {"atac": "poisson"}
    np.testing.assert_array_equal(model.transform(back), adata.obsm["X_celldial"])

"""Any AnnData: a fit raises a sentence and changes nothing, or its results are finite and survive a round trip."""

import os
import traceback
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings

import celldial
from celldial import VAE
from helpers.assertions import untouched
from helpers.random_anndata import random_anndata

PACKAGE = str(Path(celldial.__file__).parent)
DOCUMENTED = (ValueError, TypeError, KeyError, FloatingPointError)


def assert_is_sentence(error: Exception) -> None:
    """Assert that the package raised an error itself, and that it is of a documented type."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert isinstance(error, DOCUMENTED), repr(error)
    assert raised_in.startswith(PACKAGE), repr(error)


def check_results(model: VAE, adata: AnnData, folder: Path) -> None:
    """Assert that results are finite, and the same after the model and the cells were written and read."""
    embedding_cz = adata.obsm["X_celldial"]
    assert embedding_cz.shape == (adata.n_obs, model.n_latent)
    assert np.isfinite(embedding_cz).all()
    np.testing.assert_array_equal(model.transform(adata), embedding_cz)
    model.save(folder / "model.celldial")
    loaded = VAE.load(folder / "model.celldial")
    np.testing.assert_array_equal(loaded.transform(adata), embedding_cz)
    assert np.isfinite(model.score(adata))
    assert all(np.isfinite(np.asarray(model.denoise(adata, modality=name))).all() for name in model.schema_.modalities)
    result = model.latent_traverse(adata, 0, n_steps=2, n_cells=2)
    assert np.isfinite(result.X).all()
    try:
        adata.write_h5ad(folder / "cells.h5ad")
    except (ValueError, TypeError, KeyError):  # names and types that anndata itself cannot write
        return
    again = anndata.read_h5ad(folder / "cells.h5ad")
    np.testing.assert_array_equal(again.obsm["X_celldial"], embedding_cz)
    np.testing.assert_allclose(loaded.transform(again), embedding_cz, rtol=1e-5, atol=1e-6)


def check_fit(adata: AnnData, parameters: dict[str, Any], folder: Path) -> None:
    """Fit, and check the results or the error."""
    model = VAE(**parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_untouched = untouched(adata)
        try:
            model.fit(adata, max_epochs=1, progress=False)
        except Exception as error:
            assert_is_sentence(error)
            check_untouched()
            assert not hasattr(model, "module_")
            return
        check_results(model, adata, folder)


@settings(max_examples=200)
@given(case=random_anndata())
def test_any_anndata(case: tuple[AnnData, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    check_fit(*case, tmp_path_factory.mktemp("fit"))


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("CELLDIAL_EXAMPLES", "5000")), derandomize=False)
@given(case=random_anndata())
def test_any_of_many_anndata(case: tuple[AnnData, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    check_fit(*case, tmp_path_factory.mktemp("fit"))

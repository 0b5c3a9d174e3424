"""`VAE(batch_key=...)`: batches that mix, batches that are left alone, and dispersions by batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from celldial import VAE
from celldial.metrics import ilisi, knn_f1
from helpers.raises import raises, warns
from helpers.simulate import simulate, write


def two_technologies(seed: int = 0) -> AnnData:
    """Three types; the technologies differ in every gene, and in each type in its own way."""
    rng = np.random.default_rng(seed)
    n_cells, n_genes = 300, 60
    type_c, batch_c = rng.integers(0, 3, n_cells), rng.integers(0, 2, n_cells)
    level_tf, effect_bf = rng.normal(0, 1, (3, n_genes)), rng.normal(0, 0.7, (2, n_genes))
    own_btf = rng.normal(0, 0.5, (2, 3, n_genes))
    rate_cf = np.exp(level_tf[type_c] + effect_bf[batch_c] + own_btf[batch_c, type_c])
    obs = pd.DataFrame({"type": type_c.astype(str), "batch": np.array(["x", "y"])[batch_c]})
    obs.index = [f"cell{c}" for c in range(n_cells)]
    return AnnData(sparse.csr_matrix(rng.poisson(10 * rate_cf / rate_cf.mean(1, keepdims=True)), dtype=float), obs=obs)


def fit(adata: AnnData, **parameters: Any) -> AnnData:
    adata = adata.copy()
    VAE(n_latent=5, n_hidden=32, **parameters).fit(adata, max_epochs=30, progress=False)
    return adata


def test_integration_mixes_batches_and_keeps_types() -> None:
    adata = two_technologies()
    without, weak, strong = (
        fit(adata, batch_key=key, integration=strength)
        for key, strength in [(None, 1.0), ("batch", 0.0), ("batch", 20.0)]
    )
    mixing = [ilisi(result.obsm["X_celldial"], result.obs["batch"]) for result in (without, weak, strong)]
    assert mixing[0] < mixing[1] < mixing[2]
    assert mixing[2] > 1.7
    assert knn_f1(strong.obsm["X_celldial"], strong.obs["type"]) > 0.95


def test_without_a_batch_it_has_no_effect() -> None:
    adata = two_technologies()
    results = [fit(adata, integration=strength).obsm["X_celldial"] for strength in (0.0, 10.0)]
    np.testing.assert_array_equal(*results)


def test_other_covariates_are_not_integrated() -> None:
    adata = two_technologies()
    keys = {"categorical_covariate_keys": ["batch"]}
    results = [fit(adata, integration=strength, **keys).obsm["X_celldial"] for strength in (0.0, 10.0)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_the_strength_is_a_number_from_zero(value: Any) -> None:
    adata = two_technologies()
    with raises(ValueError, naming=["integration", repr(value)]):
        VAE(batch_key="batch", integration=value).fit(adata, max_epochs=1, progress=False)
    assert "X_celldial" not in adata.obsm


# --- Dispersions ------------------------------------------------------------------------------------------------------


def two_dispersions(seed: int = 0) -> AnnData:
    """Two batches with the same means: the counts of one are nearly Poisson, those of the other are overdispersed."""
    rng = np.random.default_rng(seed)
    batch_c, level_f = np.arange(400) % 2, rng.gamma(2, 4, 40)
    rate_cf = level_f * np.where(batch_c[:, None] == 0, 1.0, rng.gamma(1, 1, (400, 40)))
    obs = pd.DataFrame({"batch": np.array(["x", "y"])[batch_c]}, index=[f"cell{c}" for c in range(400)])
    return AnnData(sparse.csr_matrix(rng.poisson(rate_cf), dtype=float), obs=obs)


def test_dispersions_by_batch_are_found() -> None:
    adata = two_dispersions()
    shared, own = (
        VAE(n_latent=2, n_hidden=16, batch_key="batch", dispersion=name).fit(adata, max_epochs=40, progress=False)
        for name in ("feature", "feature-batch")
    )
    assert max(own.history_["elbo_validation"]) > max(shared.history_["elbo_validation"]) + 1
    effects = own.module_.modalities["rna"].decoder.dispersion_effects
    first_f, second_f = effects.tables[0].detach()
    assert float((first_f - second_f).median()) > 0.5


def test_dispersions_by_batch_are_saved(tmp_path: Path) -> None:
    adata = two_dispersions()
    model = VAE(n_latent=2, n_hidden=8, batch_key="batch", dispersion="feature-batch").fit(
        adata, max_epochs=2, progress=False
    )
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    drawn = [one.sample(20, {"batch": "x"}, seed=0).X.toarray() for one in (model, loaded)]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"dispersion": "gene"}, ["dispersion", "'gene'", "feature-batch"]),
        ({"dispersion": "feature-batch"}, ["dispersion", "batch_key"]),
        ({"dispersion": "feature-batch", "batch_key": "batch", "likelihood": "poisson"}, ["dispersion", "'poisson'"]),
    ],
)
def test_dispersions_that_cannot_be_fitted(parameters: dict[str, Any], named: list[str]) -> None:
    with raises(ValueError, naming=named):
        VAE(**parameters).fit(two_dispersions(), max_epochs=1, progress=False)


# --- Small batches ----------------------------------------------------------------------------------------------------


def test_batches_of_few_cells_are_named() -> None:
    adata = simulate(60)
    adata.obs["donor"] = ["one"] + ["other"] * 59
    with warns(naming=["'donor'", "'one'", 1, 2]):
        VAE(2, 8, batch_key="donor").fit(adata, max_epochs=1, progress=False)


def test_names_of_cells_as_batches_are_named() -> None:
    adata = simulate(30)
    adata.obs["barcode"] = adata.obs_names
    with warns(naming=["'barcode'", 30]):
        VAE(2, 8, batch_key="barcode").fit(adata, max_epochs=1, progress=False)


def test_small_batches_in_files_are_named(tmp_path: Path) -> None:
    adata = simulate(60)
    adata.obs["donor"] = ["one"] + ["other"] * 59
    with warns(naming=["'donor'", "'one'", 1, 2]):
        VAE(2, 8, batch_key="donor").fit(write(adata, tmp_path / "cells.h5ad"), max_epochs=1, progress=False)

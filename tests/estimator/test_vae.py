"""`VAE` as an estimator: parameters, seed, results of `fit`, and the embedding."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor

import celldial.data.cells
import celldial.inference.posterior
from celldial import VAE
from celldial.data.schema import Schema
from celldial.datasets import pbmc68k_reduced
from celldial.model.likelihoods import LIKELIHOODS
from celldial.ops.csr import CSRTensor
from helpers.assertions import assert_same_nested, assert_untouched, without_seconds
from helpers.fit import fit
from helpers.raises import raises, warns
from helpers.simulate import COVARIATES, STORAGES, simulate, with_counts, with_empty_cells

# --- Estimator interface ----------------------------------------------------------------------------------------------


def test_the_constructor_only_stores_its_arguments() -> None:
    keys = ["age"]
    model = VAE(n_latent=-1, likelihood="nonsense", continuous_covariate_keys=keys)
    assert set(vars(model)) == set(model.get_params())
    assert model.get_params()["continuous_covariate_keys"] is keys
    assert model.get_params()["n_latent"] == -1


def test_parameters_can_be_read_set_and_cloned(model: VAE) -> None:
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "module_")
    assert twin.set_params(n_latent=5, seed=3) is twin
    assert (twin.n_latent, twin.seed) == (5, 3)
    assert model.n_latent == 2
    assert repr(twin) == "VAE(n_hidden=8, n_latent=5, seed=3)"
    with raises(ValueError, naming=["'n_latents'"]):
        twin.set_params(n_latents=5)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, adata: model.transform(adata),
        lambda model, adata: model.latent_posterior(adata),
        lambda model, adata: model.score(adata),
        lambda model, adata: model.decode(np.zeros((1, 2))),
        lambda model, adata: model.denoise(adata),
        lambda model, adata: model.impute(adata, "rna"),
        lambda model, adata: model.impute_to_file(adata, "rna", "never written"),
        lambda model, adata: model.sample(3),
        lambda model, adata: model.latent_traverse(adata),
        lambda model, adata: model.axes(adata),
        lambda model, adata: model.find_axis(adata, "identity", obs="type"),
        lambda model, adata: model.phase(adata),
    ],
)
def test_methods_need_a_fitted_model(use: Callable[[VAE, AnnData], Any], adata: AnnData) -> None:
    with raises(NotFittedError, naming=["fit(adata)", "VAE.load(path)"]):
        use(VAE(), adata)


def test_fit_returns_self(adata: AnnData) -> None:
    model = VAE(2, 8)
    assert fit(adata, model) is model


def test_fit_starts_from_scratch(adata: AnnData) -> None:
    model = fit(simulate(n_cells=30, seed=1), VAE(2, 8, batch_key="batch"))
    fit(adata, model.set_params(batch_key=None))
    expected = fit(simulate())
    np.testing.assert_array_equal(adata.obsm["X_celldial"], expected.transform(adata))
    np.testing.assert_array_equal(model.transform(adata), expected.transform(adata))
    assert without_seconds(model.history_) == without_seconds(expected.history_)
    assert model.schema_ == expected.schema_
    assert list(model.library_size_quantiles_) == list(expected.library_size_quantiles_) == ["rna"]
    np.testing.assert_array_equal(model.library_size_quantiles_["rna"], expected.library_size_quantiles_["rna"])


def test_fit_transform_is_fit_and_transform(adata: AnnData) -> None:
    model = VAE(2, 8)
    embedding = model.fit_transform(adata, max_epochs=2, progress=False, key_added="X_here")
    np.testing.assert_array_equal(embedding, adata.obsm["X_here"])
    np.testing.assert_array_equal(embedding, model.transform(adata))


# --- Seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_same_seed_is_bit_identical(likelihood: str) -> None:
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # earlier draws have no effect
        adata = simulate()
        model = fit(adata, VAE(2, 8, likelihood=likelihood, seed=5, **COVARIATES))
        runs.append((adata.obsm["X_celldial"], without_seconds(model.history_)))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert adata.uns["celldial"]["parameters"]["seed"] == 5


def test_another_seed_gives_another_result() -> None:
    one, other = (fit(simulate(), VAE(2, 8, seed=seed)).transform(simulate()) for seed in (0, 1))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    "use",
    [
        lambda model, adata: fit(adata),
        lambda model, adata: clone(model).set_params(seed=9).partial_fit(adata, max_epochs=1, progress=False),
        lambda model, adata: fit(adata).partial_fit(adata, max_epochs=1, progress=False),
        lambda model, adata: model.transform(adata),
        lambda model, adata: model.score(adata),
        lambda model, adata: model.sample(5),
        lambda model, adata: model.denoise(adata),
        lambda model, adata: model.impute(adata, "rna"),
        lambda model, adata: model.latent_traverse(adata),
    ],
    ids=[
        "fit",
        "partial_fit of a new one",
        "partial_fit",
        "transform",
        "score",
        "sample",
        "denoise",
        "impute",
        "traverse",
    ],
)
def test_global_random_states_are_not_changed(use: Callable[[VAE, AnnData], Any], model: VAE, adata: AnnData) -> None:
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 (tests the global state)
    use(model, adata)
    assert torch.equal(torch.get_rng_state(), of_torch)
    np.testing.assert_array_equal(np.random.get_state()[1], of_numpy[1])  # noqa: NPY002


# --- Results in the AnnData -------------------------------------------------------------------------------------------


def test_fit_writes_only_the_embedding_and_its_record(adata: AnnData) -> None:
    before = adata.copy()
    model = fit(adata, VAE(3, 8, batch_key="batch"), key_added="X_mine")
    assert list(adata.obsm) == ["X_mine"]
    assert adata.obsm["X_mine"].shape == (60, 3)
    assert adata.obsm["X_mine"].dtype == np.float32
    assert np.isfinite(adata.obsm["X_mine"]).all()
    record = adata.uns["celldial"]
    assert record["key_added"] == "X_mine"
    assert record["parameters"]["n_latent"] == 3
    assert Schema.from_dict(record["schema"]) == model.schema_
    assert record["history"]["elbo_validation"].tolist() == model.history_["elbo_validation"]
    assert_untouched(adata, before, but=("obsm", "uns"))


@pytest.mark.parametrize("parameters", [{}, COVARIATES], ids=["no covariates", "covariates"])
def test_all_that_fit_writes_survives_a_file(adata: AnnData, tmp_path: Any, parameters: dict[str, Any]) -> None:
    model = fit(adata, VAE(2, 8, **parameters))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.obsm["X_celldial"], adata.obsm["X_celldial"])
    assert_same_nested(back.uns["celldial"], adata.uns["celldial"])
    assert Schema.from_dict(back.uns["celldial"]["schema"]) == model.schema_
    np.testing.assert_array_equal(model.transform(back), adata.obsm["X_celldial"])


def test_other_methods_write_nothing(conditional: VAE, adata: AnnData) -> None:
    before = adata.copy()
    conditional.transform(adata)
    conditional.latent_posterior(adata)
    conditional.score(adata)
    conditional.denoise(adata, transform_batch="b1")
    conditional.decode(np.zeros((60, 2)), adata.obs)
    conditional.sample(60, adata.obs)
    assert_untouched(adata, before)


def test_the_returned_embedding_is_a_copy(model: VAE, adata: AnnData) -> None:
    adata.obsm["mine"] = model.transform(adata)
    model.transform(adata)[:] = 7
    np.testing.assert_array_equal(adata.obsm["mine"], model.transform(adata))


# --- Storage of counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_embedding_does_not_depend_on_the_storage(storage: str, dtype: Any, model: VAE, adata: AnnData) -> None:
    other = with_counts(adata, STORAGES[storage](adata.X.toarray().astype(dtype)))
    before = other.copy()
    refitted = fit(other)
    np.testing.assert_array_equal(other.obsm["X_celldial"], model.transform(adata))
    assert refitted.score(other) == model.score(adata)
    assert_untouched(other, before, but=("obsm", "uns"))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_view_is_fitted_like_its_copy(storage: str, adata: AnnData) -> None:
    full = with_counts(adata, STORAGES[storage](adata.X.toarray()))
    before = full.copy()
    view = full[10:50, ::2]
    copied = view.copy()
    with warns(UserWarning, naming=["view", ".copy()"]):
        fit(view)
    fit(copied)
    np.testing.assert_array_equal(view.obsm["X_celldial"], copied.obsm["X_celldial"])
    assert_untouched(full, before)


def test_counts_in_a_layer(model: VAE, adata: AnnData) -> None:
    expected = model.transform(adata)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X / 3
    fitted = fit(adata, VAE(2, 8, layer="counts"))
    np.testing.assert_array_equal(adata.obsm["X_celldial"], expected)
    np.testing.assert_array_equal(fitted.transform(adata), expected)
    assert adata.uns["celldial"]["parameters"]["layer"] == "counts"


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_makes_no_dense_copy_of_the_counts(
    likelihood: str, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*args: Any, **options: Any) -> Any:
        raise AssertionError("a dense copy of the counts")

    for owner, name in (
        (CSRTensor, "to_dense"),
        (Tensor, "to_dense"),
        (sparse.csr_matrix, "toarray"),
        (sparse.csr_matrix, "todense"),
    ):
        monkeypatch.setattr(owner, name, forbid)
    model = fit(adata, VAE(2, 8, likelihood=likelihood, **COVARIATES))
    model.transform(adata)
    model.score(adata)


# --- Embedding --------------------------------------------------------------------------------------------------------


def test_each_cell_is_embedded_independently(conditional: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = conditional.transform(adata)
    np.testing.assert_allclose(conditional.transform(adata[[5, 3]]), expected[[5, 3]], atol=1e-5)
    np.testing.assert_allclose(conditional.transform(adata[7]), expected[[7]], atol=1e-5)
    monkeypatch.setattr(celldial.inference.posterior, "MAX_DECODE_CELLS", 7)
    np.testing.assert_allclose(conditional.transform(adata), expected, atol=1e-5)


def test_features_may_be_reordered_and_mixed_with_others(model: VAE, adata: AnnData) -> None:
    more = AnnData(
        sparse.hstack([adata.X[:, ::-1], adata.X[:, :3]]).tocsr(),
        adata.obs.copy(),
        pd.DataFrame(index=[*adata.var_names[::-1], "new1", "new2", "new3"]),
    )
    np.testing.assert_array_equal(model.transform(more), model.transform(adata))


def test_few_missing_features_are_zeros_and_many_are_an_error(model: VAE, adata: AnnData) -> None:
    x = adata.X.toarray()
    x[:, 15:] = 0
    expected = model.transform(with_counts(adata, x))
    with warns(naming=[15, 20, "75.0%"]):
        np.testing.assert_array_equal(model.transform(adata[:, :15]), expected)
    with raises(ValueError, naming=[9, 20]):
        model.transform(adata[:, :9])


def test_posterior_is_mean_and_standard_deviation(model: VAE, adata: AnnData) -> None:
    mean, standard_deviation = model.latent_posterior(adata)
    np.testing.assert_array_equal(mean, model.transform(adata))
    assert mean.shape == standard_deviation.shape == (60, 2)
    assert mean.dtype == standard_deviation.dtype == np.float32
    assert (standard_deviation > 0).all()


def test_cells_without_counts_have_the_prior_with_a_warning(model: VAE, adata: AnnData) -> None:
    emptied = with_empty_cells(adata, 4, 9)
    facts = [2, 60, "'c4'"]
    with warns(naming=facts):
        mean, standard_deviation = model.latent_posterior(emptied)
    np.testing.assert_array_equal(mean[[4, 9]], 0)
    np.testing.assert_array_equal(standard_deviation[[4, 9]], 1)
    others = np.delete(np.arange(60), [4, 9])
    np.testing.assert_allclose(mean[others], model.transform(adata)[others], atol=1e-5)
    with warns(naming=facts):
        np.testing.assert_array_equal(model.transform(emptied), mean)


def test_warnings_point_to_the_line_of_the_user(model: VAE, adata: AnnData) -> None:
    emptied = with_empty_cells(adata, 4)
    for use in (
        lambda: VAE(2, 8).fit(emptied, max_epochs=1, progress=False, device="cpu"),
        lambda: model.transform(emptied),
        lambda: model.latent_posterior(emptied),
        lambda: model.denoise(emptied),
        lambda: model.impute(emptied, "rna"),
    ):
        with warns(naming=[1, 60, "'c4'"]) as record:
            use()
        assert [warning.filename for warning in record] == [__file__]


def test_score_ignores_cells_without_counts(model: VAE, adata: AnnData) -> None:
    emptied = with_empty_cells(adata, 4, 9)
    assert model.score(emptied) == model.score(adata[np.delete(np.arange(60), [4, 9])])
    with raises(ValueError, naming=[2]):
        model.score(emptied[[4, 9]])


def test_score_is_the_mean_elbo_of_the_cells(model: VAE, adata: AnnData) -> None:
    """One sample per cell makes it noisy; its mean over many seeds is the mean over many samples."""
    scores = [copy(model).set_params(seed=seed).score(adata) for seed in range(100)]
    many = AnnData(sparse.vstack([adata.X] * 50).tocsr(), var=adata.var)
    assert abs(np.mean(scores) - model.score(many)) < 5 * np.std(scores) * (1 / 100 + 1 / 50) ** 0.5
    assert 0 < np.std(scores) < 1
    assert model.score(adata) == model.score(adata)


def test_real_cells_score_higher_than_scrambled_ones() -> None:
    adata = pbmc68k_reduced()
    seen, held_out = adata[:600].copy(), adata[600:].copy()
    model = VAE(n_hidden=32).fit(seen, max_epochs=5, progress=False)
    random = np.random.default_rng(0)
    scrambled = held_out.copy()
    scrambled.X = sparse.csr_matrix(np.array([random.permutation(row) for row in held_out.X.toarray()]))
    other_types = held_out.copy()
    other_types.X = held_out.X[:, random.permutation(held_out.n_vars)]
    assert model.score(held_out) > model.score(scrambled) + 50
    assert model.score(held_out) > model.score(other_types) + 50


def test_pipelines_of_scikit_learn(adata: AnnData) -> None:
    label_c = np.arange(adata.n_obs) % 2
    pipeline = make_pipeline(VAE(2, 8), LogisticRegression())
    fitted = pipeline.fit(adata, label_c, vae__max_epochs=1, vae__progress=False)
    assert fitted.predict(adata).shape == (adata.n_obs,)
    assert VAE(2, 8).fit(adata, label_c, max_epochs=1, progress=False).transform(adata).shape == (adata.n_obs, 2)


def test_numbers_of_numpy_are_integers(adata: AnnData) -> None:
    numpy = VAE(2, 8, seed=np.int64(3)).fit_transform(adata, max_epochs=np.int32(2), batch_size=np.int64(16))
    plain = VAE(2, 8, seed=3).fit_transform(adata, max_epochs=2, batch_size=16)
    np.testing.assert_array_equal(numpy, plain)
    with raises(ValueError, naming=["seed", 2**64]):
        VAE(2, 8, seed=2**64).fit(adata)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, None])
def test_modes_of_torch_do_not_change_a_fit(adata: AnnData, mode: Any) -> None:
    expected = VAE(2, 8).fit_transform(adata.copy(), max_epochs=1, progress=False)
    before = torch.get_default_dtype()
    if mode is None:
        torch.set_default_dtype(torch.float64)
    try:
        with nullcontext() if mode is None else mode():
            found = VAE(2, 8).fit_transform(adata, max_epochs=1, progress=False)
        assert torch.get_default_dtype() == (torch.float64 if mode is None else before)
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_array_equal(found, expected)

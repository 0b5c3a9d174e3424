"""`VAE` as its users meet it: what it gives, what it writes, and what it says of bad input."""

import dataclasses
import logging
from collections.abc import Callable
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
from torch import Tensor

import celldial.data.cells
import celldial.inference.posterior
from celldial import VAE
from celldial.data.schema import Schema
from celldial.datasets import pbmc68k_reduced
from celldial.model.likelihoods import LIKELIHOODS
from celldial.ops.csr import CSRTensor
from celldial.training import loop
from celldial.training.plan import choose_max_epochs
from celldial.utils.settings import settings
from helpers.assertions import assert_same_nested, assert_untouched
from helpers.fit import fit
from helpers.raises import logged, raises, warns
from helpers.simulate import COVARIATES, simulate, with_counts, with_empty_cells


@pytest.fixture(scope="module")
def model() -> VAE:
    """Return a model without covariates."""
    return fit(simulate())


@pytest.fixture(scope="module")
def conditional() -> VAE:
    """Return a model with a covariate of every kind, trained for long enough to use them."""
    return fit(simulate(), VAE(2, 8, **COVARIATES), max_epochs=20)


@pytest.fixture
def adata() -> AnnData:
    return simulate()


# --- Habits of an estimator -------------------------------------------------------------------------------------------


def test_the_constructor_stores_its_arguments_and_does_nothing_else() -> None:
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
def test_before_fit_every_method_says_so(use: Callable[[VAE, AnnData], Any], adata: AnnData) -> None:
    with raises(NotFittedError, naming=["fit(adata)", "VAE.load(path)"]):
        use(VAE(), adata)


def test_fit_returns_self(adata: AnnData) -> None:
    model = VAE(2, 8)
    assert fit(adata, model) is model


def test_fit_starts_afresh_each_time(adata: AnnData) -> None:
    model = fit(simulate(n_cells=30, seed=1), VAE(2, 8, batch_key="batch"))
    fit(adata, model.set_params(batch_key=None))
    expected = fit(simulate())
    np.testing.assert_array_equal(adata.obsm["X_celldial"], expected.transform(adata))
    np.testing.assert_array_equal(model.transform(adata), expected.transform(adata))
    assert without_time(model.history_) == without_time(expected.history_)
    assert model.schema_ == expected.schema_
    assert list(model.library_size_quantiles_) == list(expected.library_size_quantiles_) == ["rna"]
    np.testing.assert_array_equal(model.library_size_quantiles_["rna"], expected.library_size_quantiles_["rna"])


def test_fit_transform_is_fit_and_transform(adata: AnnData) -> None:
    model = VAE(2, 8)
    embedding = model.fit_transform(adata, max_epochs=2, progress=False, key_added="X_here")
    np.testing.assert_array_equal(embedding, adata.obsm["X_here"])
    np.testing.assert_array_equal(embedding, model.transform(adata))


def test_defaults_choose_epochs_and_batches(adata: AnnData) -> None:
    model = VAE(2, 8).fit(adata, progress=False)
    assert 2 <= len(model.history_["elbo_train"]) <= choose_max_epochs(54)


def test_progress_is_shown_by_default_and_can_be_silenced(adata: AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    fit(adata)
    assert capsys.readouterr() == ("", "")
    VAE(2, 8).fit(adata, max_epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "ELBO" in err


# --- The same seed gives the same result ------------------------------------------------------------------------------


def without_time(history: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in history.items() if name != "seconds"}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_same_seed_is_bit_identical(likelihood: str) -> None:
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what was drawn before does not matter
        adata = simulate()
        model = fit(adata, VAE(2, 8, likelihood=likelihood, seed=5, **COVARIATES))
        runs.append((adata.obsm["X_celldial"], without_time(model.history_)))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert adata.uns["celldial"]["parameters"]["seed"] == 5


def test_another_seed_is_another_result() -> None:
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
def test_global_random_numbers_are_left_alone(use: Callable[[VAE, AnnData], Any], model: VAE, adata: AnnData) -> None:
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 (the global state is meant)
    use(model, adata)
    assert torch.equal(torch.get_rng_state(), of_torch)
    np.testing.assert_array_equal(np.random.get_state()[1], of_numpy[1])  # noqa: NPY002


# --- What is written --------------------------------------------------------------------------------------------------


def test_fit_writes_embedding_and_record_and_nothing_else(adata: AnnData) -> None:
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


def test_the_embedding_is_not_the_memory_of_the_caller(model: VAE, adata: AnnData) -> None:
    adata.obsm["mine"] = model.transform(adata)
    model.transform(adata)[:] = 7
    np.testing.assert_array_equal(adata.obsm["mine"], model.transform(adata))


# --- Counts in every form ---------------------------------------------------------------------------------------------

STORAGES: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.asarray,
    "fortran": np.asfortranarray,
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}


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
    whole = with_counts(adata, STORAGES[storage](adata.X.toarray()))
    before = whole.copy()
    view = whole[10:50, ::2]
    copied = view.copy()
    fit(view)
    fit(copied)
    np.testing.assert_array_equal(view.obsm["X_celldial"], copied.obsm["X_celldial"])
    assert_untouched(whole, before)


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
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a dense copy of the counts")

    for owner, name in (
        (CSRTensor, "to_dense"),
        (Tensor, "to_dense"),
        (sparse.csr_matrix, "toarray"),
        (sparse.csr_matrix, "todense"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    model = fit(adata, VAE(2, 8, likelihood=likelihood, **COVARIATES))
    model.transform(adata)
    model.score(adata)


# --- Embedding --------------------------------------------------------------------------------------------------------


def test_each_cell_is_embedded_by_itself(conditional: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = conditional.transform(adata)
    np.testing.assert_allclose(conditional.transform(adata[[5, 3]]), expected[[5, 3]], atol=1e-5)
    np.testing.assert_allclose(conditional.transform(adata[7]), expected[[7]], atol=1e-5)
    monkeypatch.setattr(celldial.inference.posterior, "MAX_DECODE_CELLS", 7)
    np.testing.assert_allclose(conditional.transform(adata), expected, atol=1e-5)


def test_features_may_come_in_another_order_with_others_between(model: VAE, adata: AnnData) -> None:
    more = AnnData(
        sparse.hstack([adata.X[:, ::-1], adata.X[:, :3]]).tocsr(),
        adata.obs.copy(),
        pd.DataFrame(index=[*adata.var_names[::-1], "new1", "new2", "new3"]),
    )
    np.testing.assert_array_equal(model.transform(more), model.transform(adata))


def test_missing_features_are_zeros_with_a_warning_and_too_many_are_refused(model: VAE, adata: AnnData) -> None:
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


def test_cells_without_counts_have_the_prior_and_a_warning(model: VAE, adata: AnnData) -> None:
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


def test_cells_without_counts_take_no_part_in_training(adata: AnnData) -> None:
    emptied, without = with_empty_cells(adata, 4, 9), adata[np.delete(np.arange(60), [4, 9])].copy()
    with warns(naming=[2, 60, "'c4'"]):
        model = fit(emptied)
    twin = fit(without)
    assert without_time(model.history_) == without_time(twin.history_)
    np.testing.assert_array_equal(emptied.obsm["X_celldial"][[4, 9]], 0)
    np.testing.assert_allclose(emptied[without.obs_names].obsm["X_celldial"], without.obsm["X_celldial"], atol=1e-5)


def test_score_leaves_cells_without_counts_out(model: VAE, adata: AnnData) -> None:
    emptied = with_empty_cells(adata, 4, 9)
    assert model.score(emptied) == model.score(adata[np.delete(np.arange(60), [4, 9])])
    with raises(ValueError, naming=[2]):
        model.score(emptied[[4, 9]])


def test_score_is_the_mean_elbo_of_the_cells(model: VAE, adata: AnnData) -> None:
    """One draw a cell makes it noisy; its mean over many seeds is the mean over many draws."""
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


def test_validation_cells_by_name_and_by_mask_are_those_held_out(adata: AnnData) -> None:
    chosen = np.array([3, 14, 15, 59])
    mask = np.isin(np.arange(60), chosen)
    names = adata.obs_names[chosen]
    runs = [fit(simulate(), validation_cells=cells) for cells in (mask, list(mask), names, list(names[::-1]))]
    for run in runs[1:]:
        assert without_time(run.history_) == without_time(runs[0].history_)
    # Whatever their counts are, training takes the same course.
    x = adata.X.toarray()
    x[mask] = x[mask][:, ::-1]
    other = fit(with_counts(adata, x), validation_cells=mask)
    assert other.history_["elbo_train"] == runs[0].history_["elbo_train"]
    assert other.history_["elbo_validation"] != runs[0].history_["elbo_validation"]


# --- Decoding ---------------------------------------------------------------------------------------------------------


def test_denoised_expression_is_a_table_of_cells_and_genes(conditional: VAE, adata: AnnData) -> None:
    table = conditional.denoise(adata)
    assert list(table.index) == list(adata.obs_names)
    assert list(table.columns) == list(adata.var_names)
    assert (table.to_numpy() > 0).all()
    np.testing.assert_allclose(table.sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(conditional.denoise(adata, library_size=10).to_numpy() * 1e3, table, rtol=1e-5)


def test_denoised_genes_are_columns_of_the_whole(conditional: VAE, adata: AnnData) -> None:
    whole = conditional.denoise(adata)
    genes = ["g7", "g0", "g19"]
    pd.testing.assert_frame_equal(conditional.denoise(adata, features=genes), whole[genes])
    pd.testing.assert_frame_equal(conditional.denoise(adata, features=pd.Index(genes)), whole[genes])
    pd.testing.assert_frame_equal(conditional.denoise(adata, features="g7"), whole[["g7"]])


def test_denoised_expression_is_near_the_mean_of_the_data(adata: AnnData) -> None:
    model = fit(adata, max_epochs=20)
    share_f = np.asarray(adata.X.sum(0)).ravel() / adata.X.sum()
    found_f = model.denoise(adata, library_size=1).mean().to_numpy()
    assert np.abs(np.log2(found_f / share_f)).max() < 0.5
    assert np.corrcoef(np.log(found_f), np.log(share_f))[0, 1] > 0.95


def test_denoised_expression_is_written_where_it_fits(conditional: VAE, adata: AnnData, tmp_path: Any) -> None:
    before = adata.copy()
    table = conditional.denoise(adata, key_added="denoised")
    np.testing.assert_array_equal(adata.layers["denoised"], table)
    some = conditional.denoise(adata, features=["g3", "g1"], key_added="some")
    pd.testing.assert_frame_equal(adata.obsm["some"], some)
    assert_untouched(adata, before, but=("layers", "obsm", "uns"))
    assert (list(adata.layers)[-1:], list(adata.obsm)) == (["denoised"], ["some"])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read_h5ad(tmp_path / "cells.h5ad").obsm["some"], some)


def test_denoised_expression_of_features_in_another_order_is_a_table(conditional: VAE, adata: AnnData) -> None:
    turned = adata[:, ::-1].copy()
    table = conditional.denoise(turned, key_added="denoised")
    assert list(table.columns) == list(adata.var_names)
    pd.testing.assert_frame_equal(turned.obsm["denoised"], table)
    np.testing.assert_allclose(table, conditional.denoise(adata), rtol=1e-5)


@pytest.mark.parametrize("genes", [None, ["g3", "g1"]])
def test_what_is_returned_is_apart_from_what_is_written(conditional: VAE, adata: AnnData, genes: Any) -> None:
    table = conditional.denoise(adata, features=genes, key_added="denoised")
    expected = table.copy()
    table.iloc[:, :] = -1
    written = adata.layers["denoised"] if genes is None else adata.obsm["denoised"].to_numpy()
    np.testing.assert_array_equal(written, expected)


def test_decoding_the_posterior_mean_is_denoising(conditional: VAE, adata: AnnData) -> None:
    expected = conditional.denoise(adata)
    decoded = conditional.decode(conditional.transform(adata), adata.obs)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)
    values = {key: adata.obs[key].to_list() for key in ("batch", "donor", "age")}
    np.testing.assert_array_equal(conditional.decode(conditional.transform(adata), values), expected)


def test_transform_batch_decodes_as_if_all_cells_were_of_it(conditional: VAE, adata: AnnData) -> None:
    as_b1 = conditional.denoise(adata, transform_batch="b1")
    pd.testing.assert_frame_equal(conditional.denoise(adata, transform_batch={"batch": "b1"}), as_b1)
    # The latent states are those of the cells as they are.
    expected = conditional.decode(conditional.transform(adata), adata.obs.assign(batch="b1"))
    np.testing.assert_array_equal(as_b1, expected)
    as_it_is, is_b1 = conditional.denoise(adata), adata.obs["batch"] == "b1"
    pd.testing.assert_frame_equal(as_b1[is_b1], as_it_is[is_b1])
    assert (np.abs(as_b1 - as_it_is)[~is_b1].max(axis=1) > 1).all()


@pytest.mark.parametrize(("key", "value"), [("donor", "y"), ("age", 25.0)])
def test_any_covariate_can_be_set_to_another_value(conditional: VAE, adata: AnnData, key: str, value: Any) -> None:
    changed = conditional.denoise(adata, transform_batch={key: value})
    expected = conditional.decode(conditional.transform(adata), adata.obs.assign(**{key: value}))
    np.testing.assert_array_equal(changed, expected)
    assert np.abs(changed - conditional.denoise(adata)).to_numpy().max() > 1


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"features": ["g1", "CD4", "CD8"]}, KeyError, ["gene 'CD4'", 2]),
        ({"features": ["g1", "g2", "g1"]}, ValueError, ["gene 'g1'"]),
        ({"transform_batch": "b7"}, ValueError, ["'batch'", "'b7'", "'b0'", "'b1'"]),
        ({"transform_batch": {"time": 3}}, KeyError, ["'time'", "'batch'", "'donor'", "'age'"]),
        ({"transform_batch": {"age": "old"}}, TypeError, ["'age'"]),
    ],
)
def test_wrong_wishes_are_named(
    conditional: VAE, adata: AnnData, options: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    before = adata.copy()
    with raises(error, naming=facts):
        conditional.denoise(adata, key_added="denoised", **options)
    assert_untouched(adata, before)


def test_transform_batch_needs_a_batch(model: VAE, adata: AnnData) -> None:
    with raises(ValueError, naming=["batch_key"]):
        model.denoise(adata, transform_batch="b0")


def test_decode_takes_one_state_or_many(model: VAE) -> None:
    one = model.decode([0.5, -0.5])
    assert one.shape == (1, 20)
    many = model.decode(np.tile([0.5, -0.5], (3, 1)))
    np.testing.assert_allclose(many, np.tile(one, (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(model.decode([0.5, -0.5], library_size=1).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("z", "facts"),
    [
        (np.zeros((4, 3)), ["(4, 3)", 2]),
        (np.zeros(3), ["(3,)", 2]),
        (np.zeros((2, 2, 2)), ["(2, 2, 2)"]),
        ([[0, np.nan]], ["NaN"]),
        ([[0, -np.inf]], ["infinite"]),
    ],
)
def test_states_that_cannot_be_decoded(model: VAE, z: Any, facts: list[Any]) -> None:
    with raises(ValueError, naming=facts):
        model.decode(z)


def test_covariates_that_cannot_be_decoded(conditional: VAE, model: VAE, adata: AnnData) -> None:
    z, values = np.zeros((3, 2)), {"batch": "b0", "donor": "x", "age": 30.0}
    assert conditional.decode(z, values).shape == (3, 20)
    with raises(KeyError, naming=["'batch'"]):
        conditional.decode(z)
    with raises(KeyError, naming=["'age'"]):
        conditional.decode(z, {"batch": "b0", "donor": "x"})
    with raises(ValueError, naming=["'donor'", "'w'"]):
        conditional.decode(z, values | {"donor": "w"})
    with raises(ValueError, naming=[60, 3]):
        conditional.decode(z, adata.obs)
    with raises(KeyError, naming=["'batch'"]):
        model.decode(z, {"batch": "b0"})


# --- New cells --------------------------------------------------------------------------------------------------------


def test_sampled_cells_are_counts_with_the_genes_of_the_model(model: VAE, tmp_path: Any) -> None:
    cells = model.sample(30)
    assert cells.shape == (30, 20)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert (cells.X.data == cells.X.data.round()).all()
    assert cells.X.data.min() >= 1
    assert list(cells.var_names) == [f"g{gene}" for gene in range(20)]
    assert cells.obs_names.is_unique
    assert cells.obsm["z"].shape == (30, 2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    fit(cells)


def test_sampled_latent_states_are_of_the_prior(model: VAE) -> None:
    z = model.sample(3000).obsm["z"]
    np.testing.assert_allclose(z.mean(0), 0, atol=5 / 3000**0.5)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=5 * (2 / 3000) ** 0.5)


def test_sampled_library_sizes_are_those_of_fit(adata: AnnData) -> None:
    model = fit(adata, VAE(2, 8, likelihood="poisson"), validation_size=0)
    library_c = np.asarray(adata.X.sum(1)).ravel()
    total_c = np.asarray(model.sample(4000).X.sum(1)).ravel()  # a Poisson count around the library size
    low, high = library_c.min(), library_c.max()
    assert total_c.min() > low - 6 * low**0.5
    assert total_c.max() < high + 6 * high**0.5
    error = ((library_c.var() + library_c.mean()) / 4000) ** 0.5
    assert abs(total_c.mean() - library_c.mean()) < 5 * error + 0.02 * library_c.mean()
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(total_c, quantile) == pytest.approx(np.quantile(library_c, quantile), rel=0.15)


def test_sampling_is_seeded(model: VAE) -> None:
    def draw(**options: Any) -> np.ndarray:
        return model.sample(20, **options).X.toarray()

    np.testing.assert_array_equal(draw(), draw())
    np.testing.assert_array_equal(draw(seed=3), draw(seed=3))
    np.testing.assert_array_equal(draw(), draw(seed=model.seed))
    assert (draw(seed=3) != draw(seed=4)).any()


def test_sampling_in_parts(model: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    cells = model.sample(30)
    assert cells.shape == (30, 20)
    assert len(np.unique(cells.obsm["z"][:, 0])) == 30


@pytest.mark.parametrize(
    "kind", [lambda obs: obs, lambda obs: obs.to_dict("list"), lambda obs: {key: obs[key] for key in obs}]
)
def test_sampled_cells_carry_their_covariates(conditional: VAE, adata: AnnData, kind: Any, tmp_path: Any) -> None:
    obs = adata.obs[["batch", "donor", "age"]].iloc[10:20]
    cells = conditional.sample(10, kind(obs))
    for key in obs:
        assert cells.obs[key].to_list() == obs[key].to_list()
    conditional.transform(cells)
    cells.write_h5ad(tmp_path / "cells.h5ad")


def test_one_covariate_value_is_for_all_sampled_cells(conditional: VAE) -> None:
    cells = conditional.sample(4, {"batch": "b1", "donor": "z", "age": 33})
    assert cells.obs["batch"].to_list() == ["b1"] * 4
    assert cells.obs["age"].to_list() == [33] * 4


def test_wrong_wishes_for_samples_are_named(conditional: VAE, model: VAE) -> None:
    for n in (0, -1, 2.5):
        with raises(ValueError, naming=["n", n]):
            model.sample(n)
    with raises(KeyError, naming=["'batch'"]):
        conditional.sample(3)
    with raises(ValueError, naming=["'donor'", 2, 3]):
        conditional.sample(3, {"batch": "b1", "donor": ["x", "y"], "age": 33})


# --- Going on ---------------------------------------------------------------------------------------------------------


def test_partial_fit_goes_on(adata: AnnData) -> None:
    model = fit(adata)
    first, history = adata.obsm["X_celldial"].copy(), {name: list(v) for name, v in model.history_.items()}
    assert model.partial_fit(adata, max_epochs=3, progress=False) is model
    assert {len(values) for values in model.history_.values()} == {5}
    assert all(model.history_[name][:2] == values for name, values in history.items() if name != "kept")
    assert model.history_["kept"][:2] == [0, 0]
    assert sum(model.history_["kept"]) == 1
    assert np.abs(adata.obsm["X_celldial"] - first).max() > 1e-5
    np.testing.assert_array_equal(adata.obsm["X_celldial"], model.transform(adata))
    assert len(adata.uns["celldial"]["history"]["elbo_train"]) == 5
    assert set(model.history_["kl_weight"][2:]) == {1.0}


def test_partial_fit_starts_from_the_present_weights(adata: AnnData) -> None:
    model = fit(adata, max_epochs=30)
    before = model.history_["elbo_validation"][-1]
    model.partial_fit(adata, max_epochs=1, progress=False)
    scratch = fit(simulate(), max_epochs=1).history_["elbo_validation"][0]
    after = model.history_["elbo_validation"][-1]
    assert abs(after - before) < abs(after - scratch)


def test_partial_fit_of_a_new_model_is_fit() -> None:
    one, other = simulate(), simulate()
    VAE(2, 8).partial_fit(one, max_epochs=2, batch_size=16, key_added="X_mine", progress=False)
    fit(other, batch_size=16, key_added="X_mine")
    np.testing.assert_array_equal(one.obsm["X_mine"], other.obsm["X_mine"])


def test_partial_fit_on_new_cells_keeps_the_schema(adata: AnnData) -> None:
    model = fit(adata, VAE(2, 8, **COVARIATES))
    schema, new = model.schema_, simulate(n_cells=40, seed=1)[:, ::-1].copy()
    model.partial_fit(new, max_epochs=2, progress=False)
    assert model.schema_ == schema
    assert new.obsm["X_celldial"].shape == (40, 2)
    new.obs["batch"] = "b9"
    with raises(ValueError, naming=["'b9'"]):
        model.partial_fit(new, max_epochs=2, progress=False)


@pytest.mark.parametrize("sizes", [(0.1, 0.0), (0.0, 0.1)])
def test_history_stays_aligned_where_validation_cells_come_or_go(adata: AnnData, sizes: tuple[float, float]) -> None:
    model = fit(adata, validation_size=sizes[0])
    model.partial_fit(adata, max_epochs=3, validation_size=sizes[1], progress=False)
    assert {len(values) for values in model.history_.values()} == {5}
    missing = np.isnan(model.history_["elbo_validation"])
    assert missing.tolist() == [sizes[0] == 0] * 2 + [sizes[1] == 0] * 3


# --- A condition with a known effect ----------------------------------------------------------------------------------

RESPONSE = 2.0  # log2 fold change of g0 in stimulated cells; g1 goes the other way, the others stay


@pytest.fixture(scope="module")
def experiment() -> AnnData:
    """Return two cell types, each with control and stimulated cells, as in the interferon data of Kang et al."""
    random = np.random.default_rng(0)
    n_cells, n_genes = 400, 30
    obs = pd.DataFrame(
        {
            "type": random.choice(["A", "B"], n_cells),
            "condition": random.choice(["control", "stimulated"], n_cells),
        },
        index=[f"c{cell}" for cell in range(n_cells)],
    )
    log2_rate_cf = random.normal(0, 1, n_genes) + (obs["type"] == "B").to_numpy()[:, None] * random.normal(
        0, 1, n_genes
    )
    log2_rate_cf[:, :2] = 0
    stimulated_c = (obs["condition"] == "stimulated").to_numpy()
    log2_rate_cf[stimulated_c, 0] += RESPONSE
    log2_rate_cf[stimulated_c, 1] -= RESPONSE
    rate_cf = 2**log2_rate_cf
    mu_cf = 500 * rate_cf / rate_cf.sum(1, keepdims=True)
    x_cf = random.poisson(mu_cf * random.gamma(10, 1 / 10, mu_cf.shape)).astype(np.float32)
    return AnnData(sparse.csr_matrix(x_cf), obs, pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)]))


@pytest.mark.parametrize("role", ["batch", "covariate"])
def test_decoding_another_condition_gives_the_known_response(experiment: AnnData, role: str) -> None:
    keys = {"batch_key": "condition"} if role == "batch" else {"categorical_covariate_keys": ["condition"]}
    model = VAE(3, 32, **keys).fit(experiment.copy(), max_epochs=40, progress=False)
    control = experiment[experiment.obs["condition"] == "control"].copy()
    as_is = model.denoise(control, transform_batch={"condition": "control"})
    pd.testing.assert_frame_equal(model.denoise(control), as_is)
    stimulated = model.denoise(control, transform_batch={"condition": "stimulated"})
    change_f = np.log2(stimulated.mean() / as_is.mean())
    # Relative to all other genes, whose shares make room for the response.
    change_f -= change_f[2:].median()
    assert change_f["g0"] == pytest.approx(RESPONSE, abs=0.5)
    assert change_f["g1"] == pytest.approx(-RESPONSE, abs=0.7)
    assert change_f[2:].abs().max() < 0.7
    assert change_f[2:].abs().median() < 0.25


def test_a_traversal_goes_from_one_cell_type_to_the_other(experiment: AnnData) -> None:
    """With one coordinate, and the condition known, there is nothing else for the coordinate to be."""
    adata = experiment.copy()
    model = VAE(1, 32, batch_key="condition").fit(adata, max_epochs=40, progress=False)
    path = model.latent_traverse(adata, 0)
    shares = pd.DataFrame(adata.X.toarray() / adata.X.sum(1)).groupby(adata.obs["type"].to_numpy()).mean()
    known_f = np.log2(shares.loc["B"] / shares.loc["A"])
    found_f = path.layers["log2_fold_change"][-1]
    assert abs(np.corrcoef(found_f, known_f)[0, 1]) > 0.95
    assert np.abs(found_f).mean() == pytest.approx(known_f.abs().mean(), rel=0.5)


# --- Bad input --------------------------------------------------------------------------------------------------------


def set_count(adata: AnnData, value: float) -> None:
    x = adata.X.toarray().astype(np.float64)
    x[3, 2], x[40, 11] = value, value
    adata.X = sparse.csr_matrix(x)


def set_obs(adata: AnnData, key: str, cell: int, value: Any) -> None:
    adata.obs[key] = adata.obs[key].astype(object if isinstance(value, str | None) else float)
    adata.obs.loc[adata.obs_names[cell], key] = value


def rename(adata: AnnData, axis: str) -> None:
    names = list(getattr(adata, f"{axis}_names"))
    setattr(adata, f"{axis}_names", [*names[:-1], names[1]])


def empty(adata: AnnData) -> None:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)


def only_one_cell_with_counts(adata: AnnData) -> None:
    adata.X = sparse.vstack([adata.X[:1], sparse.csr_matrix((59, 20))]).tocsr()


# Name: what is done to the cells (in place, or giving others), parameters, options of fit, the error, its facts.
BAD_INPUT: dict[
    str, tuple[Callable[[AnnData], Any] | None, dict[str, Any], dict[str, Any], type[Exception], list[Any]]
] = {
    "negative count": (lambda a: set_count(a, -2), {}, {}, ValueError, [-2, "'c3'", "gene 'g2'"]),
    "NaN count": (lambda a: set_count(a, np.nan), {}, {}, ValueError, ["nan", "'c3'", "gene 'g2'"]),
    "infinite count": (lambda a: set_count(a, np.inf), {}, {}, ValueError, ["inf", "'c3'", "gene 'g2'"]),
    "fraction": (lambda a: set_count(a, 0.5), {}, {}, ValueError, [0.5, "'c3'", "gene 'g2'"]),
    "no counts at all": (empty, {}, {}, ValueError, [60]),
    "same gene twice": (lambda a: rename(a, "var"), {}, {}, ValueError, ["'g1'"]),
    "same cell twice": (lambda a: rename(a, "obs"), {}, {}, ValueError, ["'c1'"]),
    "one cell": (lambda a: a[:1].copy(), {"n_latent": 1}, {}, ValueError, [1, 20]),
    "one gene": (lambda a: a[:, :1].copy(), {"n_latent": 1}, {}, ValueError, [32, 1]),
    "one cell with counts": (only_one_cell_with_counts, {}, {}, ValueError, [1, 20]),
    "no such layer": (None, {"layer": "counts"}, {}, KeyError, ["'counts'"]),
    "no such batch": (None, {"batch_key": "btch"}, {}, KeyError, ["'btch'", "'batch'"]),
    "no such covariate": (None, {"continuous_covariate_keys": ["time"]}, {}, KeyError, ["'time'"]),
    "keys as one string": (None, {"categorical_covariate_keys": "donor"}, {}, TypeError, ["['donor']"]),
    "key twice": (None, {"batch_key": "age", "continuous_covariate_keys": ["age"]}, {}, ValueError, ["'age'"]),
    "missing batch": (
        lambda a: set_obs(a, "batch", 7, None),
        {"batch_key": "batch"},
        {},
        ValueError,
        ["'batch'", "'c7'"],
    ),
    "missing age": (
        lambda a: set_obs(a, "age", 7, np.nan),
        {"continuous_covariate_keys": ["age"]},
        {},
        ValueError,
        ["'age'", "'c7'"],
    ),
    "age of text": (None, {"continuous_covariate_keys": ["batch"]}, {}, TypeError, ["'batch'"]),
    "more coordinates than genes": (None, {"n_latent": 21}, {}, ValueError, ["n_latent", 21, 20]),
    "no coordinate": (None, {"n_latent": 0}, {}, ValueError, ["n_latent", 0]),
    "half a coordinate": (None, {"n_latent": 2.5}, {}, ValueError, ["n_latent", 2.5]),
    "a yes for a number": (None, {"n_layers": True}, {}, ValueError, ["n_layers", "True"]),
    "no hidden unit": (None, {"n_hidden": 0}, {}, ValueError, ["n_hidden", 0]),
    "unknown likelihood": (None, {"likelihood": "gaussian"}, {}, ValueError, ["'gaussian'", "'negative_binomial'"]),
    "all hidden": (None, {"dropout_rate": 1}, {}, ValueError, ["dropout_rate", 1]),
    "dropout of text": (None, {"dropout_rate": "high"}, {}, ValueError, ["dropout_rate", "'high'"]),
    "no learning": (None, {"learning_rate": 0}, {}, ValueError, ["learning_rate", 0]),
    "NaN learning": (None, {"learning_rate": np.nan}, {}, ValueError, ["learning_rate", "nan"]),
    "learning of text": (None, {"learning_rate": "auto"}, {}, ValueError, ["learning_rate", "'auto'"]),
    "no seed": (None, {"seed": None}, {}, ValueError, ["seed", "None"]),
    "negative seed": (None, {"seed": -1}, {}, ValueError, ["seed", -1]),
    "no epoch": (None, {}, {"max_epochs": 0}, ValueError, ["max_epochs", 0]),
    "half an epoch": (None, {}, {"max_epochs": 2.5}, ValueError, ["max_epochs", 2.5]),
    "no batch size": (None, {}, {"batch_size": 0}, ValueError, ["batch_size", 0]),
    "half a batch size": (None, {}, {"batch_size": 0.5}, ValueError, ["batch_size", 0.5]),
    "no key": (None, {}, {"key_added": None}, TypeError, ["key_added", "None"]),
    "all validated": (None, {}, {"validation_size": 1.0}, ValueError, ["validation_size", 1.0]),
    "all held out": (None, {}, {"validation_cells": [True] * 60}, ValueError, ["validation_cells"]),
    "mask too short": (None, {}, {"validation_cells": [True] * 59}, ValueError, ["validation_cells", 59, 60]),
    "unknown cell": (None, {}, {"validation_cells": ["c3", "x3"]}, KeyError, ["'x3'"]),
    "positions of cells": (None, {}, {"validation_cells": [0, 1]}, KeyError, ["validation_cells"]),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_and_leaves_all_as_it_was(case: str, adata: AnnData) -> None:
    spoil, parameters, options, error, facts = BAD_INPUT[case]
    if spoil is not None:
        adata = spoil(adata) or adata
    adata.obsm["X_celldial"] = np.ones((adata.n_obs, 2))
    adata.uns["celldial"] = {"mine": 1}
    before = adata.copy()
    model = VAE(**{"n_latent": 2, "n_hidden": 8, **parameters})
    with raises(error, naming=facts):
        fit(adata, model, **options)
    assert_untouched(adata, before)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], 1)
    assert adata.uns["celldial"] == {"mine": 1}
    assert not hasattr(model, "module_")


def test_what_is_no_anndata_is_named(model: VAE, adata: AnnData) -> None:
    for use in (fit, model.transform):
        with raises(TypeError, naming=["AnnData", "numpy.ndarray"]):
            use(adata.X.toarray())


def test_an_unseen_category_is_named(conditional: VAE, adata: AnnData) -> None:
    adata.obs["batch"] = "b7"
    before = adata.copy()
    with raises(ValueError, naming=["'batch'", "'b7'", "'c0'"]):
        conditional.transform(adata)
    assert_untouched(adata, before)


def test_the_smallest_data_there_is(adata: AnnData) -> None:
    tiny = with_counts(adata[:2, :2], np.array([[3, 1], [0, 5]]))
    model = fit(tiny, VAE(2, 4))
    assert np.isfinite(tiny.obsm["X_celldial"]).all()
    assert model.sample(3).shape == (3, 2)


def test_as_many_coordinates_as_genes(adata: AnnData) -> None:
    fit(adata, VAE(20, 8))
    assert adata.obsm["X_celldial"].shape == (60, 20)


@pytest.mark.parametrize("batch_size", [1, 18, 53])
def test_a_last_minibatch_of_one_cell(adata: AnnData, batch_size: int) -> None:
    """54 cells are trained on: 18 leaves none over, 53 leaves one."""
    fit(adata, batch_size=batch_size)
    assert np.isfinite(adata.obsm["X_celldial"]).all()


def test_genes_without_any_count_and_one_with_an_enormous_one(adata: AnnData) -> None:
    x = adata.X.toarray()
    x[:, 4] = 0
    x[5, 6] = 1e7
    other = with_counts(adata, x)
    fit(other)
    assert np.isfinite(other.obsm["X_celldial"]).all()


# --- Training that goes wrong or is cut short -------------------------------------------------------------------------


def fail_with(error: BaseException, epoch: int) -> Callable[..., dict[str, float]]:
    evaluate, n_calls = loop.evaluate, 0

    def failing(*args: Any) -> dict[str, float]:
        nonlocal n_calls
        n_calls += 1
        if n_calls == epoch:
            raise error
        return evaluate(*args)

    return failing


@pytest.mark.parametrize("again", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("error", "epoch"), [(KeyboardInterrupt(), 1), (MemoryError(), 2), (FloatingPointError("NaN"), 2)]
)
def test_a_failure_in_training_leaves_the_fitted_model_as_it_was(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, error: BaseException, epoch: int, again: str
) -> None:
    model = fit(adata, VAE(2, 8, batch_key="batch"))
    before, history = adata.copy(), {name: list(values) for name, values in model.history_.items()}
    schema, cells = model.schema_, model.sample(5, {"batch": "b0"}).X.toarray()
    other = simulate(seed=1)
    untouched = other.copy()
    monkeypatch.setattr(loop, "evaluate", fail_with(error, epoch))
    with pytest.raises(type(error)):
        getattr(model, again)(other, max_epochs=3, progress=False)
    assert_untouched(other, untouched)
    np.testing.assert_array_equal(model.transform(adata), before.obsm["X_celldial"])
    assert model.history_ == history
    assert model.schema_ is schema
    np.testing.assert_array_equal(model.sample(5, {"batch": "b0"}).X.toarray(), cells)


@pytest.mark.parametrize("validation_size", [0.1, 0.0])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_no_embedding_is_nan(adata: AnnData, validation_size: float, max_epochs: int) -> None:
    model = fit(adata)
    adata.obsm.clear()
    before, expected = adata.copy(), model.transform(adata)
    model.set_params(learning_rate=1e30)
    with raises(FloatingPointError, naming=["learning_rate"]):
        model.fit(adata, max_epochs=max_epochs, batch_size=100, validation_size=validation_size, progress=False)
    assert_untouched(adata, before)
    np.testing.assert_array_equal(model.transform(adata), expected)


def test_ctrl_c_leaves_a_usable_model(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr(loop, "evaluate", fail_with(KeyboardInterrupt(), 3))
    with caplog.at_level(logging.WARNING, logger="celldial"):
        model = fit(adata, max_epochs=10)
    assert logged(caplog, naming=["epoch"])
    assert {len(values) for values in model.history_.values()} == {2}
    np.testing.assert_array_equal(adata.obsm["X_celldial"], model.transform(adata))
    assert len(adata.uns["celldial"]["history"]["elbo_train"]) == 2
    model.save(tmp_path / "model.celldial")
    np.testing.assert_array_equal(VAE.load(tmp_path / "model.celldial").transform(adata), adata.obsm["X_celldial"])


@pytest.mark.gpu
def test_a_gpu_gives_what_a_cpu_gives(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise differs between devices, so that models agree in what they say of held-out cells, not bit by bit."""
    scores = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(celldial.settings, "device", device)
        cells = adata.copy()
        fitted = fit(cells, VAE(2, 8, **COVARIATES), max_epochs=20)
        assert np.isfinite(cells.obsm["X_celldial"]).all()
        assert next(fitted.module_.parameters()).device.type == device
        scores.append(fitted.score(cells))
    assert scores[1] == pytest.approx(scores[0], rel=0.05)


def test_device_and_precision_are_of_one_call(adata: AnnData) -> None:
    """Half precision is for matrix products alone, and settings are as they were."""
    before = dataclasses.replace(settings)
    full, half = (fit(adata.copy(), VAE(2, 8), device="cpu", precision=kind) for kind in ("32-true", "bf16-mixed"))
    assert settings == before
    found, expected = half.history_["elbo_validation"], full.history_["elbo_validation"]
    assert found == pytest.approx(expected, rel=0.01)
    assert found != expected
    assert {tensor.dtype for tensor in half.module_.state_dict().values()} == {torch.float32}

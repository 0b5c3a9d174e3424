"""Conditions to decode under, and averages over batches."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import celldial.data.cells
from celldial import VAE
from celldial.inference import population_means, posterior
from celldial.inference.conditions import Conditions, describe_conditions, resolve_transform_batch
from helpers.assertions import assert_population_means, assert_untouched
from helpers.fit import fit, without_loadings
from helpers.raises import raises

# --- Which conditions -------------------------------------------------------------------------------------------------

B0, B1 = {"batch": "b0"}, {"batch": "b1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [{}]),
        ("b1", [B1]),
        ("all", [B0, B1]),
        (["b1", "b0"], [B0, B1]),
        (("b1",), [B1]),
        (np.array(["b0", "b1"]), [B0, B1]),
        (pd.Index(["b1", "b0"]), [B0, B1]),
        ({"b0", "b1"}, [B0, B1]),
        ({}, [{}]),
        ({"batch": "all"}, [B0, B1]),
        ({"donor": "x"}, [{"donor": "x"}]),
        ({"age": 30, "batch": ["b1"]}, [{"age": 30, **B1}]),
        (
            {"batch": "all", "donor": ["z", "x"]},
            [{**batch, "donor": donor} for batch in (B0, B1) for donor in ("x", "z")],
        ),
    ],
)
def test_conditions_are_named_by_a_batch_several_or_all(
    conditional: VAE, given: Any, expected: list[dict[str, Any]]
) -> None:
    assert resolve_transform_batch(conditional, given) == expected


@pytest.mark.parametrize(
    ("given", "error", "facts"),
    [
        ([], ValueError, ["'batch'", "'b0'", "'b1'"]),
        (["b0", "b7"], ValueError, ["'batch'", "'b7'", "'b0'", "'b1'"]),
        (["b0", "b0"], ValueError, ["'batch'", "'b0'"]),
        ("B1", ValueError, ["'B1'", "did you mean 'b1'"]),
        (np.nan, ValueError, ["'nan'"]),
        ({"donor": ["x", "w"]}, ValueError, ["'donor'", "'w'", "'z'"]),
        ({"age": [20, 30]}, TypeError, ["'age'", 2]),
        ({"time": "all"}, KeyError, ["'time'", "'batch'", "'donor'", "'age'"]),
    ],
)
def test_wrong_conditions_are_named(
    conditional: VAE, adata: AnnData, given: Any, error: type[Exception], facts: list[Any]
) -> None:
    before = adata.copy()
    for call in (conditional.denoise, conditional.latent_traverse):
        with raises(error, naming=facts):
            call(adata, transform_batch=given)
    assert_untouched(adata, before)


def test_all_needs_a_batch_key(model: VAE) -> None:
    with raises(ValueError, naming=["batch_key", "'all'"]):
        resolve_transform_batch(model, "all")


def test_a_batch_of_the_name_all_is_ambiguous(adata: AnnData) -> None:
    adata.obs["batch"] = np.where(adata.obs["batch"] == "b0", "all", "b1")
    fitted = fit(adata, VAE(2, 8, batch_key="batch"))
    for given in ("all", {"batch": "all"}):
        with raises(ValueError, naming=["'batch'", "['all']", "'b1'"]):
            fitted.denoise(adata, transform_batch=given)
    assert resolve_transform_batch(fitted, ["all"]) == [{"batch": "all"}]
    as_all, as_b1 = (fitted.denoise(adata, transform_batch=batch) for batch in (["all"], "b1"))
    both = fitted.denoise(adata, transform_batch=["all", "b1"])
    np.testing.assert_array_equal(both, average(as_all, as_b1))


def test_numbers_name_batches(adata: AnnData) -> None:
    adata.obs["batch"] = adata.obs["batch"].str[1].astype(int)
    fitted = fit(adata, VAE(2, 8, batch_key="batch"))
    assert resolve_transform_batch(fitted, [1, 0]) == [{"batch": "0"}, {"batch": "1"}]
    np.testing.assert_array_equal(fitted.denoise(adata, transform_batch=1), fitted.denoise(adata, transform_batch="1"))


def test_conditions_in_words() -> None:
    assert describe_conditions([{}]) == {}
    assert describe_conditions([{"batch": "b0", "age": 3.0}]) == {"batch": "b0", "age": "3.0"}
    found = describe_conditions([{"batch": "b0", "donor": "x"}, {"batch": "b1", "donor": "x"}])
    assert found == {"batch": "average of 2 ('b0', 'b1')", "donor": "x"}


def test_encoded_conditions_are_those_of_the_schema(conditional: VAE, adata: AnnData) -> None:
    asked = resolve_transform_batch(conditional, {"donor": ["x", "z"], "batch": "all", "age": 30})
    found = Conditions.encode(conditional.schema_, adata.obs, asked)
    assert len(found) == 4
    for encoded, condition in zip(found, asked, strict=True):
        for part, expected in zip(encoded, conditional.schema_.encode_covariates(adata.obs, condition), strict=True):
            np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(found.cells(slice(3, 5))[1].category_ck, found[1].category_ck[3:5])
    assert [len(part) for part in found[1:3]] == [2, 2]


# --- Averages ---------------------------------------------------------------------------------------------------------


def average(*tables: pd.DataFrame) -> np.ndarray:
    """Return the average of tables in double precision, rounded to single precision once."""
    return np.mean([table.to_numpy(np.float64) for table in tables], axis=0).astype(np.float32)


@pytest.mark.parametrize("block", [7, 1024])
def test_the_average_over_batches_is_that_of_single_batches(
    conditional: VAE, adata: AnnData, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", block)
    as_b0, as_b1 = (conditional.denoise(adata, transform_batch=batch) for batch in ("b0", "b1"))
    assert np.abs(as_b0 - as_b1).to_numpy().max() > 1
    over_all = conditional.denoise(adata, transform_batch="all")
    np.testing.assert_array_equal(over_all, average(as_b0, as_b1))
    assert (over_all.dtypes == np.float32).all()
    for same in (["b0", "b1"], ["b1", "b0"], {"batch": "all"}):
        pd.testing.assert_frame_equal(conditional.denoise(adata, transform_batch=same), over_all)
    pd.testing.assert_frame_equal(conditional.denoise(adata, ["g3"], transform_batch="all"), over_all[["g3"]])
    pd.testing.assert_frame_equal(conditional.denoise(adata, transform_batch=["b1"]), as_b1)
    # The batches that cells come from do not matter, but their latent states do.
    unlabeled = conditional.decode(conditional.transform(adata), adata.obs.assign(batch="b1"))
    np.testing.assert_array_equal(as_b1, unlabeled)


def test_the_average_over_combinations_of_covariates(conditional: VAE, adata: AnnData) -> None:
    combined = conditional.denoise(adata, transform_batch={"batch": "all", "donor": ["x", "y"], "age": 25.0})
    single = [
        conditional.denoise(adata, transform_batch={"batch": batch, "donor": donor, "age": 25.0})
        for batch in ("b0", "b1")
        for donor in ("x", "y")
    ]
    np.testing.assert_array_equal(combined, average(*single))


def test_imputed_averages(bimodal: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    single = [bimodal.impute(adata, "atac", from_="rna", transform_batch=batch) for batch in ("b0", "b1")]
    found = bimodal.impute(adata, "atac", from_="rna", transform_batch="all")
    np.testing.assert_array_equal(found, average(*single))


def test_the_average_of_one_condition_is_that_condition(conditional: VAE, adata: AnnData) -> None:
    one = conditional.latent_traverse(adata, 0, n_steps=3, transform_batch="b1")
    same = conditional.latent_traverse(adata, 0, n_steps=3, transform_batch=["b1"])
    for name in one.layers:
        np.testing.assert_array_equal(one.layers[name], same.layers[name])


def test_a_traversal_averages_over_batches(conditional: VAE, adata: AnnData) -> None:
    single = [conditional.latent_traverse(adata, 0, n_steps=4, transform_batch=batch) for batch in ("b0", "b1")]
    found = conditional.latent_traverse(adata, 0, n_steps=4, transform_batch="all")
    assert np.abs(single[0].X / single[1].X - 1).max() > 1e-3
    np.testing.assert_allclose(found.X, (single[0].X + single[1].X) / 2, rtol=1e-5)
    np.testing.assert_array_equal(found.uns["path"], single[0].uns["path"])
    assert ((found.layers["lower"] < found.X) & (found.X < found.layers["upper"])).all()
    assert "b0" in found.uns["covariates"]["batch"]
    reordered = conditional.latent_traverse(adata, 0, n_steps=4, transform_batch=["b1", "b0"])
    for name in found.layers:
        np.testing.assert_array_equal(found.layers[name], reordered.layers[name])


@pytest.mark.parametrize("entries", [10, 10**6])
@pytest.mark.parametrize("name", ["rna", "atac"])
def test_the_variance_of_an_average_over_batches(
    bimodal: VAE, multiome: AnnData, name: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the variance, over samples of the states, of the value averaged over batches."""
    for constant in ("CACHED_ENTRIES", "MAX_DECODE_VALUES"):
        monkeypatch.setattr(population_means, constant, entries)
    monkeypatch.setattr(population_means, "BLOCK_FEATURES", 7)
    n_cells, n_samples, n_steps = 5, 3, 4
    module = bimodal.module_
    shape = (n_steps, n_cells * n_samples, module.n_states)
    state_sjz = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    conditions = Conditions.encode(
        bimodal.schema_, multiome[:5], resolve_transform_batch(bimodal, {"batch": "all", "donor": ["x", "y"]})
    ).cells(np.repeat(np.arange(n_cells), n_samples))
    with without_loadings(bimodal):
        found = population_means.mean_along_path(module, name, state_sjz, conditions, 100.0, n_samples, n_cells)
    value_sjf = np.mean(
        [
            [np.concatenate(list(posterior.decode_mean(module, name, z_jz, each, 100.0))) for z_jz in state_sjz]
            for each in conditions
        ],
        axis=0,
        dtype=float,
    )
    assert_population_means(found, value_sjf, n_samples)


def test_uncertain_loadings_are_averaged_over_conditions(bimodal: VAE, multiome: AnnData) -> None:
    """Their contrast of one condition repeated is that of the condition."""
    encoded = Conditions.encode(bimodal.schema_, multiome[:4], [{"batch": "b0"}])[0]
    state_sjz = np.random.default_rng(0).normal(size=(3, 4, bimodal.module_.n_states)).astype(np.float32)
    contrast_ks = np.array([[-1.0, 0.0, 1.0]])
    one, twice = (
        population_means.contrast_covariance(
            bimodal.module_, "rna", state_sjz, [encoded] * n, 1e4, contrast_ks, np.ones((3, 20), np.float32)
        )
        for n in (1, 2)
    )
    assert (one > 0).all()
    np.testing.assert_allclose(twice, one, rtol=1e-5)

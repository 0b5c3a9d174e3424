"""`decode` and `sample`: expression at chosen latent states, and simulated cells."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import celldial.data.cells
import celldial.inference.posterior
import celldial.tl.expression
import celldial.training.memory
from celldial import VAE
from helpers.fit import fit
from helpers.raises import raises, warns
from helpers.simulate import MODALITIES, feature_mask, simulate_modalities, simulate_mosaic

# --- Decoding ---------------------------------------------------------------------------------------------------------


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
def test_invalid_states(model: VAE, z: Any, facts: list[Any]) -> None:
    with raises(ValueError, naming=facts):
        model.decode(z)


def test_invalid_covariates(conditional: VAE, model: VAE, adata: AnnData) -> None:
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


# --- Sampling ---------------------------------------------------------------------------------------------------------


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


def test_sampled_latent_states_follow_the_prior(model: VAE) -> None:
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


def test_sampling_in_blocks(model: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    cells = model.sample(30)
    assert cells.shape == (30, 20)
    assert len(np.unique(cells.obsm["z"][:, 0])) == 30


@pytest.mark.parametrize(
    "kind", [lambda obs: obs, lambda obs: obs.to_dict("list"), lambda obs: {key: obs[key] for key in obs}]
)
def test_sampled_cells_have_their_covariates(conditional: VAE, adata: AnnData, kind: Any, tmp_path: Any) -> None:
    obs = adata.obs[["batch", "donor", "age"]].iloc[10:20]
    cells = conditional.sample(10, kind(obs))
    for key in obs:
        assert cells.obs[key].to_list() == obs[key].to_list()
    conditional.transform(cells)
    cells.write_h5ad(tmp_path / "cells.h5ad")


def test_one_covariate_value_applies_to_all_sampled_cells(conditional: VAE) -> None:
    cells = conditional.sample(4, {"batch": "b1", "donor": "z", "age": 33})
    assert cells.obs["batch"].to_list() == ["b1"] * 4
    assert cells.obs["age"].to_list() == [33] * 4


def test_wrong_arguments_of_sample_are_named(conditional: VAE, model: VAE) -> None:
    for n in (0, -1, 2.5):
        with raises(ValueError, naming=["n", n]):
            model.sample(n)
    with raises(KeyError, naming=["'batch'"]):
        conditional.sample(3)
    with raises(ValueError, naming=["'donor'", 2, 3]):
        conditional.sample(3, {"batch": "b1", "donor": ["x", "y"], "age": 33})


def test_cells_are_sampled_around_given_states(conditional: VAE) -> None:
    values, z_cz = {"batch": "b1", "donor": "z", "age": 33}, np.array([[0.5, -1], [2, 1], [0, 0]])
    cells = conditional.sample(covariates=values, z=z_cz, seed=1)
    np.testing.assert_allclose(cells.obsm["z"], z_cz, rtol=1e-6)
    # The mean of many samples is the decoded state, at the library size of each sample.
    many = conditional.sample(4000, values, z=np.tile(z_cz[1], (4000, 1)), seed=1)
    share_f = np.asarray(many.X.sum(0)).ravel() / many.X.sum()
    np.testing.assert_allclose(share_f, conditional.decode(z_cz[1], values, library_size=1)[0], atol=0.01)


def test_cells_are_sampled_around_given_cells(conditional: VAE, adata: AnnData) -> None:
    cells = conditional.sample(adata=adata[:20].copy(), seed=1)
    assert cells.obs["sampled_from"].to_list() == list(adata.obs_names[:20])
    for key in ("batch", "donor", "age"):
        assert cells.obs[key].to_list() == adata.obs[key].iloc[:20].to_list()
    # Latent states are draws from the posterior of the cell.
    draws_ncz = np.stack([conditional.sample(adata=adata[:20].copy(), seed=k).obsm["z"] for k in range(200)])
    mean_cz, deviation_cz = conditional.latent_posterior(adata[:20].copy())
    np.testing.assert_allclose((draws_ncz.mean(0) - mean_cz) / deviation_cz, 0, atol=5 / 200**0.5)
    np.testing.assert_allclose(draws_ncz.std(0) / deviation_cz, 1, atol=0.25)
    # Another batch, and more cells than there are.
    more = conditional.sample(50, {"batch": "b1"}, adata=adata[:20].copy())
    assert set(more.obs["batch"]) == {"b1"}
    source = adata.obs.loc[more.obs["sampled_from"]]
    assert more.obs["age"].to_list() == source["age"].to_list()
    total_c = pd.Series(np.asarray(adata.X.sum(1)).ravel(), adata.obs_names)[more.obs["sampled_from"]].to_numpy()
    assert np.corrcoef(np.asarray(more.X.sum(1)).ravel(), total_c)[0, 1] > 0.5


def test_sampled_cells_lack_the_modalities_of_their_cells() -> None:
    adata = simulate_mosaic("rna", "atac")
    model = fit(adata, VAE(2, 8))
    cells = model.sample(adata=adata)
    for name in ("rna", "atac"):
        own = feature_mask(adata, name)
        lacking_c = np.asarray(adata.X[:, own].sum(1)).ravel() == 0
        assert lacking_c.any()
        assert cells.X[lacking_c][:, (cells.var["modality"] == name).to_numpy()].nnz == 0


def test_sampling_between_and_beyond_the_training_cells(adata: AnnData) -> None:
    model = fit(adata, VAE(2, 8, continuous_covariate_keys=["age"]))
    lowest, highest = adata.obs["age"].min(), adata.obs["age"].max()
    model.sample(5, {"age": (lowest + highest) / 2})  # no warning
    for age in (highest + 1, [lowest, lowest - 1]):
        with warns(naming=["'age'", f"{lowest:g}", f"{highest:g}"]):
            model.sample(None if np.ndim(age) else 1, {"age": age}, z=np.zeros((np.size(age), 2)))


def test_unknown_categories_name_the_nearest(adata: AnnData) -> None:
    adata = adata.copy()
    adata.obs["dose"] = ["0", "10", "30"] * 20
    model = fit(adata, VAE(2, 8, categorical_covariate_keys=["donor", "dose"]))
    with raises(ValueError, naming=["'dose'", "'8'", "'10'"]):
        model.sample(3, {"donor": "x", "dose": "8"})
    with raises(ValueError, naming=["'donor'", "'X'", "'x'"]):
        model.sample(3, {"donor": "X", "dose": "10"})


def test_wrong_starts_of_sampling(conditional: VAE, adata: AnnData) -> None:
    values = {"batch": "b1", "donor": "z", "age": 33}
    with raises(ValueError, naming=["n"]):
        conditional.sample()
    with raises(ValueError, naming=["z", "adata"]):
        conditional.sample(3, values, z=np.zeros((3, 2)), adata=adata)
    with raises(ValueError, naming=["n", 4, 3]):
        conditional.sample(4, values, z=np.zeros((3, 2)))
    with raises(KeyError, naming=["'height'"]):
        conditional.sample(4, {"height": 1}, adata=adata)


# --- Decoding a modality ----------------------------------------------------------------------------------------------


def test_decoding_a_modality(bimodal: VAE, multiome: AnnData) -> None:
    z, values = np.zeros((3, 2)), {"batch": "b0", "donor": "x", "age": 30.0}
    np.testing.assert_array_equal(bimodal.decode(z, values), bimodal.decode(z, values, modality="rna"))
    assert bimodal.decode(z, values).shape == (3, 20)
    probability = bimodal.decode(z, values, modality="atac")
    assert probability.shape == (3, 30)
    assert probability.dtype == np.float32
    # At the depth of the median cell, by default; a deeper cell has more peaks open.
    depth = float(np.median(bimodal.library_size_quantiles_["atac"]))
    np.testing.assert_array_equal(bimodal.decode(z, values, modality="atac", library_size=depth), probability)
    assert (bimodal.decode(z, values, modality="atac", library_size=2 * depth) > probability).all()
    huge = bimodal.decode(z, values, modality="atac", library_size=1e12)
    assert (huge <= 1).all()
    assert np.isfinite(huge).all()
    for size in (0, -1, np.nan, np.inf):
        with raises(ValueError, naming=["library_size", size]):
            bimodal.decode(z, values, library_size=size)
    with raises(KeyError, naming=["'prot'", "'rna'", "'atac'"]):
        bimodal.decode(z, values, modality="prot")


def test_decoded_peaks_match_the_mean_accessibility() -> None:
    adata = simulate_modalities("rna", "atac")
    model = fit(adata, max_epochs=20)
    found_f = model.denoise(adata, modality="atac").mean().to_numpy()
    known_f = np.asarray((adata.X[:, feature_mask(adata, "atac")] > 0).mean(0)).ravel()
    assert np.abs(found_f - known_f).max() < 0.2
    assert np.corrcoef(found_f, known_f)[0, 1] > 0.9


# --- Sampling several modalities --------------------------------------------------------------------------------------


def test_sampled_cells_have_all_modalities(trimodal: VAE, tmp_path: Path) -> None:
    cells = trimodal.sample(50, seed=1)
    assert cells.shape == (50, 56)
    assert tuple(cells.var_names) == trimodal.feature_names_
    assert list(cells.var["modality"]) == ["rna"] * 20 + ["atac"] * 30 + ["protein"] * 6
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    x = cells.X.toarray()
    assert (x == x.round()).all()
    assert set(np.unique(x[:, 20:50])) == {0, 1}
    assert x[:, :20].max() > 1
    assert x[:, 50:].max() > 1
    np.testing.assert_array_equal(trimodal.sample(50, seed=1).X.toarray(), x)
    assert (trimodal.sample(50, seed=2).X.toarray() != x).any()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    # They can be embedded, and fitted again.
    assert trimodal.transform(cells).shape == (50, 2)
    assert fit(cells, VAE(2, 8)).schema_.modalities == MODALITIES


def test_sampled_library_sizes_are_those_of_the_cells_that_have_the_modality() -> None:
    """The total of 0 of cells that lack a modality is not sampled."""
    adata = simulate_mosaic("rna", "atac")
    model = fit(adata, VAE(2, 8, likelihood="poisson"), validation_size=0)
    for name in ("rna", "atac"):
        total_c = np.asarray(adata.X[:, feature_mask(adata, name)].sum(1)).ravel()
        found_q = model.library_size_quantiles_[name]
        assert found_q.shape == (101,)
        np.testing.assert_allclose(found_q, np.quantile(total_c[total_c > 0], np.linspace(0, 1, 101)))

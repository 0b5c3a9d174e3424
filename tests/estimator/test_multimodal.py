"""`VAE` of several modalities: genes, peaks and proteins in `var`, in `obsm` and in a MuData."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from celldial import VAE
from helpers.assertions import untouched
from helpers.fit import fit
from helpers.raises import logged, raises, warns
from helpers.simulate import (
    IN_OBSM,
    MODALITIES,
    N_CELLS,
    OBSM_KINDS,
    feature_mask,
    move_to_obsm,
    simulate_modalities,
    simulate_mosaic,
    swap_counts,
)

# --- Modalities in var ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [("rna", "atac"), ("rna", "protein"), ("atac", "protein"), MODALITIES])
def test_one_call_fits_one_joint_model(modalities: tuple[str, ...]) -> None:
    adata = simulate_modalities(*modalities)
    model = VAE(2, 8)
    model.fit(adata, max_epochs=2, progress=False)
    assert model.schema_.modalities == modalities
    default = {"rna": "negative_binomial", "atac": "bernoulli", "protein": "negative_binomial"}
    assert model.schema_.likelihood == {name: default[name] for name in modalities}
    assert adata.obsm["X_celldial"].shape == (N_CELLS, 2)
    assert np.isfinite(adata.obsm["X_celldial"]).all()
    # The ELBO has a term for each modality, and the embedding depends on each.
    last = {name: values[-1] for name, values in model.history_.items()}
    parts = [last[f"log_likelihood_{name}_validation"] for name in modalities]
    assert sum(parts) == pytest.approx(last["log_likelihood_validation"], rel=1e-5)
    assert set(model.library_size_quantiles_) == set(modalities)
    assert model.feature_names_ == tuple(adata.var_names)
    for name in modalities:
        assert np.abs(model.transform(swap_counts(adata, name)) - adata.obsm["X_celldial"]).max() > 1e-3


def test_defaults_follow_the_type_of_the_features_not_the_name_of_the_modality() -> None:
    modalities = {"expression": "Gene Expression", "chromatin": "Peaks", "adt": "Antibody Capture"}
    model = VAE(2, 8, modalities=modalities, dropout_rate=0.3)
    model.fit(simulate_modalities(), max_epochs=1, progress=False)
    assert model.schema_.likelihood["chromatin"] == "bernoulli"
    rates = {name: part.encoder.dropout_rate for name, part in model.module_.by_modality()}
    assert rates == {"expression": 0.3, "chromatin": 0.3, "adt": 0.0}


def test_the_order_of_modalities_does_not_depend_on_the_features() -> None:
    adata = simulate_modalities()
    reversed_ = adata[:, ::-1].copy()
    model = fit(reversed_)
    assert model.schema_.modalities == MODALITIES
    assert model.feature_names_[0] == "g19"
    np.testing.assert_array_equal(model.transform(adata), reversed_.obsm["X_celldial"])


def test_peaks_alone() -> None:
    adata = simulate_modalities("atac")
    model = fit(adata)
    assert model.schema_.likelihood == {"atac": "bernoulli"}
    probability = model.decode(np.zeros((1, 2)))
    assert ((probability > 0) & (probability < 1)).all()
    # The same without the column, because the likelihood implies the modality.
    bare = AnnData(adata.X, adata.obs)
    bare.var_names = adata.var_names
    again = fit(bare, VAE(2, 8, likelihood="bernoulli"))
    assert again.schema_.modalities == ("atac",)
    np.testing.assert_array_equal(bare.obsm["X_celldial"], adata.obsm["X_celldial"])
    assert fit(AnnData(bare.X)).schema_.modalities == ("rna",)


def test_the_likelihood_of_one_modality() -> None:
    adata = simulate_modalities("rna", "atac")
    model = fit(adata, VAE(2, 8, likelihood={"atac": "poisson"}))
    assert model.schema_.likelihood == {"rna": "negative_binomial", "atac": "poisson"}
    np.testing.assert_allclose(model.decode(np.zeros((1, 2)), modality="atac").sum(), 1e4, rtol=1e-4)
    assert fit(simulate_modalities(), VAE(2, 8, likelihood="poisson")).schema_.likelihood == dict.fromkeys(
        MODALITIES, "poisson"
    )


def test_counts_above_one_are_ones_under_bernoulli(caplog: pytest.LogCaptureFixture) -> None:
    adata = simulate_modalities("rna", "atac")
    ones = adata.copy()
    peaks = feature_mask(adata, "atac")
    n_above = int((adata.X[:, peaks] > 1).sum())
    ones.X = sparse.hstack([adata.X[:, ~peaks], adata.X[:, peaks] > 0], dtype=np.float32).tocsr()
    check = untouched(adata)
    with caplog.at_level(logging.DEBUG, logger="celldial"):
        model = fit(adata)
    assert logged(caplog, naming=["atac", n_above, "binary"])
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="celldial"):
        fit(ones)
    assert not logged(caplog, naming=["binary"])
    np.testing.assert_array_equal(adata.obsm["X_celldial"], ones.obsm["X_celldial"])
    assert model.score(adata) == model.score(ones)
    del adata.obsm["X_celldial"], adata.uns["celldial"]
    check()


def test_only_named_modalities_are_modeled(caplog: pytest.LogCaptureFixture) -> None:
    adata, genes = simulate_modalities(), simulate_modalities("rna")
    with caplog.at_level(logging.INFO, logger="celldial"):
        model = fit(adata, VAE(2, 8, modalities={"rna": "Gene Expression"}))
    assert logged(caplog, naming=[36])
    assert model.schema_.modalities == ("rna",)
    fit(genes)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], genes.obsm["X_celldial"])
    mine = fit(simulate_modalities(), VAE(2, 8, modalities={"mine": "Antibody Capture", "rna": "Gene Expression"}))
    assert mine.schema_.modalities == ("rna", "mine")


def test_another_column() -> None:
    adata, renamed = simulate_modalities(), simulate_modalities()
    renamed.var["kind"] = renamed.var.pop("feature_types").to_numpy()
    fit(adata)
    model = fit(renamed, VAE(2, 8, modality_key="kind"))
    np.testing.assert_array_equal(renamed.obsm["X_celldial"], adata.obsm["X_celldial"])
    np.testing.assert_array_equal(model.transform(renamed), adata.obsm["X_celldial"])


# --- Modalities in obsm and in a MuData -------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("kind", OBSM_KINDS)
def test_a_modality_in_obsm(kind: str, columns: bool, tmp_path: Path) -> None:
    adata = simulate_mosaic(columns=columns)
    moved = move_to_obsm(kind, adata)
    check = untouched(moved)
    expected = fit(adata)
    model = fit(moved, VAE(2, 8, modalities=IN_OBSM))
    np.testing.assert_array_equal(moved.obsm["X_celldial"], adata.obsm["X_celldial"])
    named = "DataFrame" in kind
    names = [f"a{i}" if named else f"protein_{i}" for i in range(6)]
    assert list(model.schema_.feature_names["protein"]) == names
    # As everything else with it.
    table = model.impute(moved, "protein", from_=["rna", "atac"], features=names[:2])
    np.testing.assert_array_equal(table, expected.impute(adata, "protein", from_=["rna", "atac"])[["a0", "a1"]])
    assert list(table) == names[:2]
    model.save(tmp_path / "model.celldial")
    np.testing.assert_array_equal(VAE.load(tmp_path / "model.celldial").transform(moved), moved.obsm["X_celldial"])
    del moved.obsm["X_celldial"], moved.obsm["imputed_protein"], moved.uns["celldial"]
    check()
    # A query may lack it.
    del moved.obsm["adt"]
    np.testing.assert_array_equal(model.transform(moved), expected.transform(adata[:, ~feature_mask(adata, "protein")]))


def test_names_in_both_obsm_and_var_get_a_prefix(tmp_path: Path) -> None:
    adata = simulate_modalities("rna")
    adata.obsm["adt"] = pd.DataFrame(
        simulate_modalities("protein").X.toarray(), adata.obs_names, [f"g{i}" for i in range(6)]
    )
    model = fit(adata, VAE(2, 8, modalities={"rna": "Gene Expression", "protein": "obsm/adt"}))
    assert model.feature_names_[19:21] == ("rna:g19", "protein:g0")
    # Names have no prefix if the modality is named.
    assert list(model.impute(adata, "protein", features=["g1"])) == ["g1"]
    assert list(model.denoise(adata, ["g1", "g7"])) == ["g1", "g7"]
    cells = model.sample(3)
    assert tuple(cells.var_names) == model.feature_names_
    path = model.latent_traverse(adata, n_steps=3)
    assert tuple(path.var_names) == model.feature_names_
    assert tuple(adata.uns["latent_traverse"]["axis_0"]["feature_names"]) == model.feature_names_
    for part, name in ((cells, "cells"), (path, "path"), (adata, "adata")):
        part.write_h5ad(tmp_path / f"{name}.h5ad")


@pytest.mark.filterwarnings("ignore:From 0.4 :FutureWarning")
@pytest.mark.filterwarnings("ignore:Cannot join columns with the same name")
def test_a_mudata_equals_the_anndata_made_of_it(tmp_path: Path) -> None:
    mudata = pytest.importorskip("mudata")
    adata = simulate_mosaic("rna", "protein")
    parts = {
        name: adata[adata.obs[f"has_{modality}"], feature_mask(adata, modality)].copy()
        for name, modality in (("rna", "rna"), ("prot", "protein"))
    }
    for part in parts.values():
        del part.var["feature_types"], part.obs["has_rna"], part.obs["has_protein"]
    data = mudata.MuData(parts)
    adata = adata[data.obs_names].copy()
    keys = {"batch_key": "batch", "continuous_covariate_keys": ["age"]}
    expected, model = fit(adata, VAE(2, 8, **keys)), VAE(2, 8, **keys)
    assert model.fit_transform(data, max_epochs=2, progress=False).shape == (N_CELLS, 2)
    np.testing.assert_array_equal(data.obsm["X_celldial"], adata.obsm["X_celldial"])
    assert data.uns["celldial"]["key_added"] == "X_celldial"
    # Each model on the data of the other.
    np.testing.assert_array_equal(model.transform(adata), expected.transform(data))
    assert model.score(data) == expected.score(adata)
    np.testing.assert_allclose(model.transform(data[10:20]), data.obsm["X_celldial"][10:20], atol=1e-5)
    table = model.impute(data, "protein", transform_batch="b0")
    np.testing.assert_array_equal(table, expected.impute(adata, "protein", transform_batch="b0"))
    np.testing.assert_array_equal(data.obsm["imputed_protein"], table)
    pd.testing.assert_frame_equal(model.denoise(data, key_added="denoised"), expected.denoise(adata))
    path = model.latent_traverse(data, n_steps=3)
    np.testing.assert_array_equal(path.X, expected.latent_traverse(adata, n_steps=3).X)
    model.impute_to_file(data, "protein", tmp_path / "imputed.h5ad")
    assert list(read_h5ad(tmp_path / "imputed.h5ad").obs_names) == list(data.obs_names)
    model.partial_fit(data, max_epochs=1, progress=False)
    # Results survive a file, and nothing was written to the modalities.
    assert set(data.obsm) >= {"X_celldial", "imputed_protein", "denoised"}
    assert set(data.uns) == {"celldial", "latent_traverse"}
    assert all(not part.obsm and not part.uns and not part.layers for part in data.mod.values())
    data.write(tmp_path / "cells.h5mu")
    back = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(back.obsm["X_celldial"], data.obsm["X_celldial"])
    np.testing.assert_array_equal(model.transform(back), data.obsm["X_celldial"])


# --- Latent states by one modality ------------------------------------------------------------------------------------


def test_one_modality_alone(bimodal: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    check = untouched(adata)
    by_name = {name: bimodal.transform(adata, modality=name) for name in ("rna", "atac")}
    posterior = bimodal.latent_posterior(adata, modality="atac")
    check()
    assert np.abs(by_name["rna"] - by_name["atac"]).max() > 1e-3
    np.testing.assert_array_equal(posterior.mean, by_name["atac"])
    # Whatever the peaks are.
    np.testing.assert_array_equal(bimodal.transform(swap_counts(adata, "atac"), modality="rna"), by_name["rna"])
    written = bimodal.transform(adata, modality="rna", key_added="X_rna")
    np.testing.assert_array_equal(adata.obsm["X_rna"], by_name["rna"])
    written[:] = 0
    np.testing.assert_array_equal(adata.obsm["X_rna"], by_name["rna"])
    bimodal.transform(adata, key_added="X_all")
    np.testing.assert_array_equal(adata.obsm["X_all"], bimodal.transform(adata))
    with raises(KeyError, naming=["'protein'", "'rna'", "'atac'"]):
        bimodal.transform(adata, modality="protein")


def test_writing_to_a_view(bimodal: VAE, multiome: AnnData) -> None:
    view = multiome[5:15]
    with warns(UserWarning, naming=["view", ".copy()"]):
        bimodal.transform(view, key_added="X_here")
    assert view.obsm["X_here"].shape == (10, 2)
    assert "X_here" not in multiome.obsm

"""Cells that lack a modality: mosaics, queries of one modality, and cells without any count."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celldial import VAE
from celldial.model.fusion import FUSIONS
from helpers.assertions import untouched
from helpers.fit import fit
from helpers.raises import logged, raises, warns
from helpers.simulate import (
    MODALITIES,
    N_CELLS,
    every_sixth_cell,
    feature_mask,
    remove_modalities,
    simulate_modalities,
    simulate_mosaic,
)


def test_three_ways_to_mark_missing_modalities(caplog: pytest.LogCaptureFixture) -> None:
    with_columns, other_columns, with_zeros = simulate_mosaic(), simulate_mosaic(), simulate_mosaic(columns=False)
    names = {f"has_{name}": f"{name} measured" for name in MODALITIES}
    other_columns.obs = other_columns.obs.rename(columns=names)
    fit(with_columns)
    model = fit(other_columns, VAE(2, 8, presence_keys={name: f"{name} measured" for name in MODALITIES}))
    assert model.schema_.presence_keys == {name: f"{name} measured" for name in MODALITIES}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="celldial"):
        fit(with_zeros)
    for name in MODALITIES:
        assert logged(caplog, naming=[10, 60, name])
    for other in (other_columns, with_zeros):
        np.testing.assert_array_equal(other.obsm["X_celldial"], with_columns.obsm["X_celldial"])


def test_a_modality_marked_as_present_without_counts() -> None:
    adata, zeros = simulate_mosaic("rna", "atac"), simulate_mosaic("rna", "atac", columns=False)
    adata.obs["has_atac"] = True
    with warns(naming=[10, 60, "atac", "'has_atac'", "'c4'"]):
        fit(adata)
    fit(zeros)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], zeros.obsm["X_celldial"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_cells_are_embedded_by_the_modalities_they_have(fusion: Any) -> None:
    """Also if other cells lack nothing, and the other way round."""
    adata, lacking = simulate_modalities(), every_sixth_cell(*MODALITIES)
    partly = remove_modalities(adata, lacking)
    model = fit(partly, VAE(2, 8, fusion=fusion))
    embedding = model.transform(adata)
    part = model.transform(partly)
    np.testing.assert_array_equal(part, partly.obsm["X_celldial"])
    paired_c = ~np.any(list(lacking.values()), axis=0)
    np.testing.assert_allclose(part[paired_c], embedding[paired_c], atol=1e-5)
    for name, lacks_c in lacking.items():
        expected = model.transform(adata[:, ~feature_mask(adata, name)])
        np.testing.assert_allclose(part[lacks_c], expected[lacks_c], atol=1e-5)
        assert (np.abs(expected - embedding) > 1e-5).any()
    for name in MODALITIES:
        alone = remove_modalities(adata, {other: np.ones(N_CELLS, dtype=bool) for other in MODALITIES if other != name})
        np.testing.assert_allclose(model.transform(alone), model.transform(adata, modality=name), atol=1e-5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(has=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore::UserWarning")  # some cells have no count
def test_in_any_mosaic_each_cell_is_embedded_independently(has: list[tuple[bool, ...]], trimodal: VAE) -> None:
    adata = simulate_modalities(n_cells=8)[: len(has)].copy()
    partly = remove_modalities(adata, {name: [not cell[i] for cell in has] for i, name in enumerate(MODALITIES)})
    mean, deviation = trimodal.latent_posterior(partly)
    for c, cell in enumerate(has):
        present = [name for name, here in zip(MODALITIES, cell, strict=True) if here]
        if not present:
            assert (mean[c] == 0).all()
            assert (deviation[c] == 1).all()
            continue
        alone = trimodal.latent_posterior(adata[[c], feature_mask(adata, *present)].copy())
        np.testing.assert_allclose(mean[[c]], alone.mean, atol=1e-5)
        np.testing.assert_allclose(deviation[[c]], alone.standard_deviation, atol=1e-5)


def test_the_posterior_is_a_product_of_experts(trimodal: VAE) -> None:
    """Precisions add; that of the prior, 1, is in each of them once."""
    adata = simulate_modalities()
    together = trimodal.latent_posterior(adata)
    alone = [trimodal.latent_posterior(adata, modality=name) for name in MODALITIES]
    precision = 1 + sum(part.standard_deviation.astype(float) ** -2 - 1 for part in alone)
    np.testing.assert_allclose(together.standard_deviation, precision**-0.5, rtol=1e-4)
    mean = sum(part.mean * part.standard_deviation.astype(float) ** -2 for part in alone) / precision
    np.testing.assert_allclose(together.mean, mean, atol=1e-4)
    assert (together.standard_deviation < np.min([part.standard_deviation for part in alone], axis=0) + 1e-6).all()


def test_a_query_of_one_modality(trimodal: VAE, caplog: pytest.LogCaptureFixture) -> None:
    adata = simulate_modalities()
    genes = simulate_modalities("rna")
    with caplog.at_level(logging.INFO, logger="celldial"):
        np.testing.assert_allclose(trimodal.transform(genes), trimodal.transform(adata, modality="rna"), atol=1e-5)
    assert logged(caplog, naming=["atac", 30])
    bare = AnnData(genes.X, pd.DataFrame(index=genes.obs_names), pd.DataFrame(index=genes.var_names))
    np.testing.assert_array_equal(trimodal.transform(bare), trimodal.transform(genes))
    empty = remove_modalities(adata, {name: np.ones(N_CELLS, dtype=bool) for name in ("atac", "protein")})
    assert trimodal.score(genes) == trimodal.score(empty)
    assert trimodal.score(genes) > trimodal.score(adata)  # there is less to explain
    np.testing.assert_allclose(
        trimodal.impute(genes, "protein"), trimodal.impute(adata, "protein", from_="rna"), rtol=1e-4
    )
    genes.var_names = [f"ENSG{i}" for i in range(genes.n_vars)]
    with raises(ValueError, naming=["rna", "atac", "protein", "'ENSG0'"]):
        trimodal.transform(genes)


def test_partial_fit_on_cells_of_one_modality() -> None:
    """The networks of a modality that no cell has do not change."""
    model, genes = fit(simulate_mosaic("rna", "atac")), simulate_modalities("rna", seed=1)
    before = {name: tensor.clone() for name, tensor in model.module_.state_dict().items()}
    model.partial_fit(genes, max_epochs=2, progress=False)
    np.testing.assert_array_equal(genes.obsm["X_celldial"], model.transform(genes))
    after = model.module_.state_dict()
    changed = {name.split(".")[1] for name in after if (after[name] != before[name]).any()}
    assert changed == {"rna"}
    assert all(parameter.requires_grad for parameter in model.module_.parameters())
    model.partial_fit(simulate_modalities("atac", seed=1), max_epochs=1, progress=False)
    assert (model.module_.state_dict()[decoder := "modalities.atac.decoder.heads.0.weight"] != before[decoder]).any()


@pytest.mark.parametrize("batch_size", [1, 53])
def test_a_minibatch_without_a_modality(batch_size: int) -> None:
    adata = simulate_mosaic("rna", "atac")
    fit(adata, batch_size=batch_size)
    assert np.isfinite(adata.obsm["X_celldial"]).all()


def test_no_training_cell_has_a_modality() -> None:
    adata = simulate_mosaic("rna", "atac")
    check = untouched(adata)
    with raises(ValueError, naming=["atac"], omitting=["rna"]):
        fit(adata, validation_cells=adata.obs["has_atac"].to_numpy())
    both_c = (adata.obs["has_rna"] & adata.obs["has_atac"]).to_numpy()
    with raises(ValueError, naming=["rna", "atac"]):
        fit(adata, validation_cells=both_c)
    check()
    fit(adata, validation_cells=~both_c)


def test_a_cell_without_counts_has_the_prior(trimodal: VAE) -> None:
    nothing = np.arange(N_CELLS) == 7
    adata = remove_modalities(simulate_modalities(), dict.fromkeys(MODALITIES, nothing))
    with warns(naming=[1, 60, "'c7'"]):
        mean, deviation = trimodal.latent_posterior(adata)
    assert (mean[7] == 0).all()
    assert (deviation[7] == 1).all()
    partly = remove_modalities(simulate_modalities(), {"protein": nothing})
    with warns(naming=[1, 60, "protein", "'c7'"]):
        assert (trimodal.transform(partly, modality="protein")[7] == 0).all()
    assert (trimodal.transform(partly)[7] != 0).all()

"""`denoise`, `impute` and their variants that write files: expected expression of genes, peaks and proteins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

import celldial.data.cells
import celldial.inference.posterior
import celldial.tl.expression
import celldial.training.memory
from celldial import VAE
from celldial.model.likelihoods import Bernoulli
from helpers.assertions import assert_untouched, untouched
from helpers.fit import fit
from helpers.raises import raises, warns
from helpers.simulate import MODALITIES, every_sixth_cell, feature_mask, simulate_modalities, simulate_mosaic

# --- Denoising --------------------------------------------------------------------------------------------------------


def test_denoised_expression_is_a_table_of_cells_and_genes(conditional: VAE, adata: AnnData) -> None:
    table = conditional.denoise(adata)
    assert list(table.index) == list(adata.obs_names)
    assert list(table.columns) == list(adata.var_names)
    assert (table.to_numpy() > 0).all()
    np.testing.assert_allclose(table.sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(conditional.denoise(adata, library_size=10).to_numpy() * 1e3, table, rtol=1e-5)


def test_denoised_genes_are_columns_of_the_full_table(conditional: VAE, adata: AnnData) -> None:
    all_features = conditional.denoise(adata)
    genes = ["g7", "g0", "g19"]
    pd.testing.assert_frame_equal(conditional.denoise(adata, features=genes), all_features[genes])
    pd.testing.assert_frame_equal(conditional.denoise(adata, features=pd.Index(genes)), all_features[genes])
    pd.testing.assert_frame_equal(conditional.denoise(adata, features="g7"), all_features[["g7"]])


def test_denoised_expression_is_near_the_mean_of_the_data(adata: AnnData) -> None:
    model = fit(adata, max_epochs=20)
    share_f = np.asarray(adata.X.sum(0)).ravel() / adata.X.sum()
    found_f = model.denoise(adata, library_size=1).mean().to_numpy()
    assert np.abs(np.log2(found_f / share_f)).max() < 0.5
    assert np.corrcoef(np.log(found_f), np.log(share_f))[0, 1] > 0.95


def test_denoised_expression_is_written_to_layers_or_obsm(conditional: VAE, adata: AnnData, tmp_path: Any) -> None:
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
def test_returned_and_written_tables_are_separate(conditional: VAE, adata: AnnData, genes: Any) -> None:
    table = conditional.denoise(adata, features=genes, key_added="denoised")
    expected = table.copy()
    table.iloc[:, :] = -1
    written = adata.layers["denoised"] if genes is None else adata.obsm["denoised"].to_numpy()
    np.testing.assert_array_equal(written, expected)


def test_decoding_the_posterior_mean_equals_denoising(conditional: VAE, adata: AnnData) -> None:
    expected = conditional.denoise(adata)
    decoded = conditional.decode(conditional.transform(adata), adata.obs)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)
    values = {key: adata.obs[key].to_list() for key in ("batch", "donor", "age")}
    np.testing.assert_array_equal(conditional.decode(conditional.transform(adata), values), expected)


def test_transform_batch_decodes_all_cells_in_one_batch(conditional: VAE, adata: AnnData) -> None:
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
def test_wrong_arguments_of_denoise_are_named(
    conditional: VAE, adata: AnnData, options: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    before = adata.copy()
    with raises(error, naming=facts):
        conditional.denoise(adata, key_added="denoised", **options)
    assert_untouched(adata, before)


def test_transform_batch_needs_a_batch(model: VAE, adata: AnnData) -> None:
    with raises(ValueError, naming=["batch_key"]):
        model.denoise(adata, transform_batch="b0")


# --- Imputing ---------------------------------------------------------------------------------------------------------


def test_imputing(bimodal: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    check = untouched(adata)
    table = bimodal.impute(adata, "atac", from_="rna")
    assert list(table.index) == list(adata.obs_names)
    assert list(table.columns) == [f"p{i}" for i in range(30)]
    assert (table.dtypes == np.float32).all()
    assert table.to_numpy().min() > 0
    assert table.to_numpy().max() < 1
    np.testing.assert_array_equal(adata.obsm.pop("imputed_atac"), table)
    assert adata.uns.pop("celldial") == {"written": {"obsm": {"imputed_atac": bimodal.fingerprint_}}}
    check()
    expected = bimodal.decode(bimodal.transform(adata, modality="rna"), adata.obs, modality="atac")
    np.testing.assert_array_equal(table, expected)
    # The other way round, in counts per 10,000.
    genes = bimodal.impute(adata, "rna", from_="atac", key_added="genes")
    np.testing.assert_allclose(genes.sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(bimodal.impute(adata, "rna", from_="atac", library_size=10) * 1e3, genes, rtol=1e-4)
    np.testing.assert_array_equal(adata.obsm["genes"], genes)
    genes.iloc[:, :] = 0
    assert adata.obsm["genes"].min() > 0


def test_imputing_from_one_several_or_all(trimodal: VAE) -> None:
    adata = simulate_modalities()
    every = trimodal.impute(adata, "atac")
    pd.testing.assert_frame_equal(trimodal.impute(adata, "atac", from_=MODALITIES), every)
    np.testing.assert_array_equal(every, trimodal.denoise(adata, modality="atac"))
    one = trimodal.impute(adata, "atac", from_="rna")
    pd.testing.assert_frame_equal(trimodal.impute(adata, "atac", from_=["rna"]), one)
    two = trimodal.impute(adata, "atac", from_=["rna", "protein"])
    pd.testing.assert_frame_equal(trimodal.impute(adata, "atac", from_=["protein", "rna"]), two)
    lacking = adata[:, ~feature_mask(adata, "atac")].copy()
    np.testing.assert_allclose(trimodal.impute(lacking, "atac"), two, rtol=1e-4)
    for table, other in ((one, two), (two, every), (one, every)):
        assert np.abs(table - other).to_numpy().max() > 1e-5


def test_imputing_named_features(bimodal: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    all_features = bimodal.impute(adata, "atac", from_="rna")
    names = ["p7", "p0", "p29"]
    pd.testing.assert_frame_equal(bimodal.impute(adata, "atac", from_="rna", features=names), all_features[names])
    pd.testing.assert_frame_equal(
        bimodal.impute(adata, "atac", from_="rna", features=pd.Index(names)), all_features[names]
    )
    pd.testing.assert_frame_equal(bimodal.impute(adata, "atac", from_="rna", features="p7"), all_features[["p7"]])
    assert list(adata.obsm["imputed_atac"]) == ["p7"]


def test_imputing_named_features_decodes_only_them(
    bimodal: VAE, multiome: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, decoded, given = multiome.copy(), [], []
    expected = bimodal.impute(adata, "atac", from_="rna", features=["p3", "p1"])
    mean_of, expected_of = Bernoulli.mean, celldial.inference.posterior.decode_mean

    def mean(*args: Any) -> Any:
        decoded.append(tuple((result := mean_of(*args)).shape))
        return result

    def blocks(*args: Any) -> Iterator[np.ndarray]:
        for block in expected_of(*args):
            given.append(block.shape)
            yield block

    monkeypatch.setattr(Bernoulli, "mean", mean)
    monkeypatch.setattr(celldial.inference.posterior, "decode_mean", blocks)
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    found = bimodal.impute(adata, "atac", from_="rna", features=["p3", "p1"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert set(decoded) == {(7, 30), (4, 30)}
    assert set(given) == {(7, 2), (4, 2)}


@pytest.mark.parametrize(("key", "value"), [("batch", "b1"), ("donor", "y"), ("age", 25.0)])
def test_imputing_with_other_covariates(bimodal: VAE, multiome: AnnData, key: str, value: Any) -> None:
    adata = multiome.copy()
    as_is = bimodal.impute(adata, "atac", from_="rna")
    changed = bimodal.impute(adata, "atac", from_="rna", transform_batch={key: value})
    z = bimodal.transform(adata, modality="rna")
    np.testing.assert_array_equal(changed, bimodal.decode(z, adata.obs.assign(**{key: value}), modality="atac"))
    same_c = (adata.obs[key] == value).to_numpy()
    pd.testing.assert_frame_equal(changed[same_c], as_is[same_c])
    assert (np.abs(changed - as_is)[~same_c].max(axis=1) > 1e-6).all()
    if key == "batch":
        pd.testing.assert_frame_equal(bimodal.impute(adata, "atac", from_="rna", transform_batch=value), changed)
        # Cells of a new batch are decoded as cells of a known batch.
    assert list(adata.obs[key]) == list(multiome.obs[key])


def test_cells_without_the_source_modality_are_named(trimodal: VAE) -> None:
    adata = simulate_mosaic()
    facts = [10, 60, "rna", "'c3'"]
    with warns(naming=facts):
        table = trimodal.impute(adata, "protein", from_="rna")
    lacks_c = every_sixth_cell("rna")["rna"]
    np.testing.assert_allclose(table[lacks_c], np.repeat(trimodal.decode([0, 0], modality="protein"), 10, 0), rtol=1e-5)
    with raises(ValueError, naming=[10, "rna"]):
        trimodal.impute(adata[lacks_c].copy(), "protein", from_="rna")
    # No cell lacks both.
    trimodal.impute(adata, "protein", from_=["rna", "atac"])


WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], list[Any]]] = {
    "modality": ({"modality": "protein"}, KeyError, ["'protein'", "'rna'", "'atac'"]),
    "source": ({"from_": "protein"}, KeyError, ["'protein'", "'rna'", "'atac'"]),
    "one of the sources": ({"from_": ["rna", "adt"]}, KeyError, ["'adt'"]),
    "no source": ({"from_": []}, ValueError, ["from_"]),
    "feature": ({"features": ["p1", "g1", "g2"]}, KeyError, ["peak 'g1'", 2]),
    "feature twice": ({"features": ["p1", "p1"]}, ValueError, ["peak 'p1'"]),
    "gene": ({"modality": "rna", "features": "p1"}, KeyError, ["gene 'p1'"]),
    "batch": ({"transform_batch": "b7"}, ValueError, ["'batch'", "'b7'", "'b0'", "'b1'"]),
    "covariate": ({"transform_batch": {"time": 3}}, KeyError, ["'time'"]),
    "library size": ({"library_size": 0}, ValueError, ["library_size", 0]),
    "library size of text": ({"library_size": "all"}, TypeError, ["library_size", "'all'"]),
}


@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_arguments_of_impute_are_named(case: str, bimodal: VAE, multiome: AnnData, tmp_path: Path) -> None:
    options, error, facts = WRONG_ARGUMENTS[case]
    adata = multiome.copy()
    check = untouched(adata)
    with raises(error, naming=facts):
        bimodal.impute(adata, **{"modality": "atac", **options})
    with raises(error, naming=facts):
        bimodal.impute_to_file(adata, **{"modality": "atac", "path": tmp_path / "imputed.h5ad", **options})
    check()
    assert not list(tmp_path.iterdir())


def test_impute_needs_a_batch_key_for_transform_batch(trimodal: VAE) -> None:
    with raises(ValueError, naming=["batch_key"]):
        trimodal.impute(simulate_modalities(), "atac", transform_batch="b0")


def test_a_large_dense_table_needs_dense(bimodal: VAE, multiome: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = multiome.copy()
    monkeypatch.setattr(celldial.tl.expression, "MAX_ENTRIES", 60 * 30 - 1)
    with raises(ValueError, naming=[60, 30, "features", "impute_to_file", "dense=True"]):
        bimodal.impute(adata, "atac", from_="rna")
    assert not adata.obsm
    assert bimodal.impute(adata, "atac", from_="rna", dense=True).shape == (60, 30)
    assert bimodal.impute(adata, "atac", from_="rna", features=["p1"]).shape == (60, 1)


@pytest.mark.parametrize("features", [None, ["p7", "p0"]])
def test_imputing_to_a_file_equals_imputing(
    bimodal: VAE, multiome: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: Any
) -> None:
    adata, path = multiome.copy(), tmp_path / "imputed.h5ad"
    expected = bimodal.impute(adata.copy(), "atac", from_="rna", transform_batch="b1", features=features, dense=True)
    check = untouched(adata)
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    for target in (path, str(path)):
        bimodal.impute_to_file(adata, "atac", target, from_="rna", transform_batch="b1", features=features)
    check()
    assert list(tmp_path.iterdir()) == [path]
    found = read_h5ad(path)
    assert found.X.dtype == np.float32
    np.testing.assert_allclose(found.to_df(), expected, rtol=1e-5)
    assert list(found.var_names) == list(expected.columns)
    assert list(found.obs["batch"]) == list(adata.obs["batch"])
    backed = read_h5ad(path, backed="r")
    np.testing.assert_allclose(backed[3:5].to_memory().X, expected[3:5], rtol=1e-5)
    backed.file.close()
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("there_before", [False, True])
def test_a_file_is_written_completely_or_not_at_all(
    bimodal: VAE, multiome: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    path = tmp_path / "imputed.h5ad"
    if there_before:
        path.write_bytes(b"old")
    expected_of = celldial.inference.posterior.decode_mean

    def blocks(*args: Any) -> Iterator[np.ndarray]:
        yield next(iter(expected_of(*args)))
        raise MemoryError("in the middle")

    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    monkeypatch.setattr(celldial.inference.posterior, "decode_mean", blocks)
    with pytest.raises(MemoryError, match="in the middle"):
        bimodal.impute_to_file(multiome, "atac", path, from_="rna")
    assert list(tmp_path.iterdir()) == ([path] if there_before else [])
    assert not there_before or path.read_bytes() == b"old"


def test_cells_that_cannot_be_written_to_a_file(bimodal: VAE, multiome: AnnData, tmp_path: Path) -> None:
    adata = multiome.copy()
    adata.obs["mixed"] = [1, "a"] * 30
    with pytest.raises(TypeError):
        bimodal.impute_to_file(adata, "atac", tmp_path / "imputed.h5ad")
    assert not list(tmp_path.iterdir())


# --- Denoising a modality ---------------------------------------------------------------------------------------------


def test_denoising_a_modality(bimodal: VAE, multiome: AnnData, tmp_path: Path) -> None:
    adata = multiome.copy()
    table = bimodal.denoise(adata, modality="atac", key_added="open")
    np.testing.assert_array_equal(table, bimodal.decode(bimodal.transform(adata), adata.obs, modality="atac"))
    pd.testing.assert_frame_equal(adata.obsm["open"], table)
    pd.testing.assert_frame_equal(bimodal.denoise(adata, ["p3"], modality="atac"), table[["p3"]])
    bimodal.denoise(adata, key_added="genes")
    assert adata.obsm["genes"].shape == (60, 20)
    assert not adata.layers
    with raises(KeyError, naming=["gene 'p3'"]):
        bimodal.denoise(adata, "p3")
    with raises(KeyError, naming=["'protein'", "'rna'", "'atac'"]):
        bimodal.denoise(adata, modality="protein")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read_h5ad(tmp_path / "cells.h5ad").obsm["open"], table)


def test_a_large_denoised_table_needs_dense(
    conditional: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(celldial.tl.expression, "MAX_ENTRIES", 60 * 20 - 1)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    before = adata.copy()
    for cells in (adata, tmp_path / "cells.h5ad"):
        with raises(ValueError, naming=[60, 20, "features", "denoise_to_file", "dense=True"]):
            conditional.denoise(cells)
    with raises(ValueError, naming=["denoise_to_file"]):
        conditional.denoise(adata, key_added="denoised")
    assert_untouched(adata, before)
    assert conditional.denoise(adata, dense=True).shape == (60, 20)
    assert conditional.denoise(adata, ["g1"]).shape == (60, 1)


def test_the_size_of_a_table_is_checked_before_cells_are_read(
    conditional: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celldial.tl.expression, "MAX_ENTRIES", 1)
    monkeypatch.setattr(celldial.tl.expression, "infer_all", None)
    with raises(ValueError, naming=["denoise_to_file"]):
        conditional.denoise(adata)


def test_denoising_to_a_file_equals_denoising(
    conditional: VAE, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"features": ["g7", "g0"], "transform_batch": "all", "library_size": 100}
    adata.write_h5ad(tmp_path / "cells.h5ad")
    before = adata.copy()
    tables = [conditional.denoise(adata, dense=True), conditional.denoise(adata, **options)]
    # No table of all cells is made, and its size is not checked.
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    monkeypatch.setattr(celldial.tl.expression, "MAX_ENTRIES", 1)
    monkeypatch.setattr(celldial.tl.expression.CellsToDecode, "table", None)
    for cells in (adata, tmp_path / "cells.h5ad"):
        for expected, given in zip(tables, ({}, options), strict=True):
            conditional.denoise_to_file(cells, tmp_path / "denoised.h5ad", **given)
            found = read_h5ad(tmp_path / "denoised.h5ad")
            assert found.X.dtype == np.float32
            pd.testing.assert_frame_equal(found.to_df(), expected, rtol=1e-5)
            assert list(found.obs["batch"]) == list(adata.obs["batch"])
    assert_untouched(adata, before)


def test_a_denoised_file_is_complete_or_missing(
    conditional: VAE, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises(KeyError, naming=["gene 'CD4'"]):
        conditional.denoise_to_file(adata, tmp_path / "denoised.h5ad", ["CD4"])
    with raises(ValueError, naming=["'b7'"]):
        conditional.denoise_to_file(adata, tmp_path / "denoised.h5ad", transform_batch=["b0", "b7"])
    expected_of = celldial.inference.posterior.decode_mean

    def blocks(*args: Any) -> Iterator[np.ndarray]:
        yield next(iter(expected_of(*args)))
        raise MemoryError("in the middle")

    monkeypatch.setattr(celldial.inference.posterior, "decode_mean", blocks)
    with pytest.raises(MemoryError, match="in the middle"):
        conditional.denoise_to_file(adata, tmp_path / "denoised.h5ad")
    assert not list(tmp_path.iterdir())


def test_denoising_a_missing_modality(bimodal: VAE) -> None:
    adata = simulate_mosaic("rna", "atac")
    lacks_c = every_sixth_cell("rna", "atac")["atac"]
    table = bimodal.denoise(adata, modality="atac")
    assert np.isfinite(table.to_numpy()).all()
    np.testing.assert_allclose(
        table[lacks_c],
        bimodal.impute(simulate_modalities("rna", "atac")[lacks_c].copy(), "atac", from_="rna"),
        rtol=1e-4,
    )


# --- Background and foreground of proteins ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_background() -> tuple[VAE, AnnData]:
    adata = simulate_modalities("rna", "protein")
    model = VAE(n_latent=2, likelihood={"protein": "negative_binomial_mixture"})
    return fit(adata, model, max_epochs=2), adata


def test_the_foreground_is_what_exceeds_the_background(with_background: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = with_background
    options = {"modality": "protein", "library_size": 500}
    total = model.denoise(adata, **options)
    foreground = model.denoise(adata, include_background=False, **options)
    background_f = 500 * model.module_.modalities["protein"].likelihood.log_background_f.detach().exp().numpy()
    assert (foreground.to_numpy() > 0).all()
    np.testing.assert_allclose(total - foreground, np.tile(background_f, (len(total), 1)), rtol=1e-3)
    imputed = model.impute(adata, "protein", include_background=False, library_size=500)
    pd.testing.assert_frame_equal(imputed, foreground)
    model.impute_to_file(adata, "protein", tmp_path / "a.h5ad", include_background=False, library_size=500)
    np.testing.assert_allclose(read_h5ad(tmp_path / "a.h5ad").X, foreground, rtol=1e-6)


def test_a_likelihood_without_background_is_named(with_background: tuple[VAE, AnnData]) -> None:
    model, adata = with_background
    before = adata.copy()
    with raises(ValueError, naming=["include_background", "rna", "'negative_binomial'", "'negative_binomial_mixture'"]):
        model.denoise(adata, include_background=False, key_added="foreground")
    assert_untouched(adata, before)


def test_traversals_of_counts_with_a_background(with_background: tuple[VAE, AnnData]) -> None:
    model, adata = with_background
    result = model.latent_traverse(adata, axis=0, n_steps=3)
    protein_f = (result.var["modality"] == "protein").to_numpy()
    background_f = model.module_.modalities["protein"].likelihood.log_background_f.detach().exp().numpy()
    assert (result.X[:, protein_f] > result.uns["library_size"]["protein"] * background_f).all()
    assert (result.layers["lower"] <= result.X).all()

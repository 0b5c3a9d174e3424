"""`VAE` of several modalities, as its users meet it: genes, peaks and proteins; paired, unpaired and in mosaics."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone

import celldial.data.cells
import celldial.inference.posterior
import celldial.tl.expression
import celldial.training.memory
from celldial import VAE, pl
from celldial.model.fusion import FUSIONS, default_modality_weights
from celldial.model.likelihoods import Bernoulli
from helpers.assertions import dense
from helpers.fit import fit
from helpers.raises import logged, raises, warns
from helpers.simulate import COVARIATES, simulate

SIZES = {"rna": 20, "atac": 30, "protein": 6}
TYPES = {"rna": "Gene Expression", "atac": "Peaks", "protein": "Antibody Capture"}
LETTERS = {"rna": "g", "atac": "p", "protein": "a"}
ALL = tuple(SIZES)
N_CELLS = 60


# --- Data -------------------------------------------------------------------------------------------------------------


def make(*modalities: str, n_cells: int = N_CELLS, seed: int = 0) -> AnnData:
    """Simulate paired cells; genes g0, ..., peaks p0, ... (some of them seen twice) and proteins a0, ..."""
    adata = simulate(n_cells, sum(SIZES.values()), seed)
    modality_f = np.repeat(ALL, list(SIZES.values()))
    adata.var_names = [f"{LETTERS[name]}{feature}" for name in ALL for feature in range(SIZES[name])]
    adata.var["feature_types"] = [TYPES[name] for name in modality_f]
    x = adata.X.toarray()
    x[:, modality_f == "atac"] //= 4
    adata.X = sparse.csr_matrix(x)
    return adata[:, np.isin(modality_f, modalities or ALL)].copy()


def of(adata: AnnData, *modalities: str) -> np.ndarray:
    """Say which features are of some modalities."""
    return adata.var["feature_types"].isin([TYPES[name] for name in modalities]).to_numpy()


def without(adata: AnnData, lacking: dict[str, Any], *, columns: bool = True) -> AnnData:
    """Copy the cells with zeros where they lack a modality, and with columns that say so."""
    adata, x = adata.copy(), adata.X.toarray()
    for modality, lacks_c in lacking.items():
        x[np.ix_(np.asarray(lacks_c), of(adata, modality))] = 0
        if columns:
            adata.obs[f"has_{modality}"] = ~np.asarray(lacks_c)
    adata.X = sparse.csr_matrix(x)
    return adata


def turned(adata: AnnData, modality: str) -> AnnData:
    """Give each cell the counts that another one has of a modality."""
    adata, x = adata.copy(), adata.X.toarray()
    x[:, of(adata, modality)] = x[::-1, of(adata, modality)]
    adata.X = sparse.csr_matrix(x)
    return adata


def every_sixth(*modalities: str) -> dict[str, np.ndarray]:
    """Say which cells are to lack what: of six cells, one lacks the first modality, one the second, ..."""
    return {name: np.arange(N_CELLS) % 6 == 3 + place for place, name in enumerate(modalities)}


def mosaic(*modalities: str, columns: bool = True) -> AnnData:
    """Simulate cells of which each sixth lacks one of the modalities."""
    return without(make(*modalities), every_sixth(*(modalities or ALL)), columns=columns)


@pytest.fixture(scope="module")
def multiome() -> AnnData:
    """Return genes and peaks; not to be written to."""
    return make("rna", "atac")


@pytest.fixture(scope="module")
def model(multiome: AnnData) -> VAE:
    """Return a model of genes and peaks with a covariate of every kind."""
    return fit(multiome.copy(), VAE(2, 8, **COVARIATES), max_epochs=10)


@pytest.fixture(scope="module")
def trimodal() -> VAE:
    """Return a model of genes, peaks and proteins."""
    return fit(mosaic())


def untouched(adata: AnnData) -> Callable[[], None]:
    """Remember cells, and give what checks that they are as they were."""
    before = adata.copy()

    def check() -> None:
        for slot in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(adata, slot), getattr(before, slot))
        for slot in ("obsm", "uns", "layers"):
            assert list(getattr(adata, slot)) == list(getattr(before, slot)), slot
        for key, value in before.obsm.items():
            assert type(adata.obsm[key]) is type(value)
            np.testing.assert_array_equal(dense(adata.obsm[key]), dense(value))
        np.testing.assert_array_equal(dense(adata.X), dense(before.X))

    return check


# --- One call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [("rna", "atac"), ("rna", "protein"), ("atac", "protein"), ALL])
def test_one_call_fits_one_joint_model(modalities: tuple[str, ...]) -> None:
    adata = make(*modalities)
    model = VAE(2, 8)
    model.fit(adata, max_epochs=2, progress=False)
    assert model.schema_.modalities == modalities
    default = {"rna": "negative_binomial", "atac": "bernoulli", "protein": "negative_binomial"}
    assert model.schema_.likelihood == {name: default[name] for name in modalities}
    assert adata.obsm["X_celldial"].shape == (N_CELLS, 2)
    assert np.isfinite(adata.obsm["X_celldial"]).all()
    # The ELBO has a part for each modality, and the embedding hears each.
    last = {name: values[-1] for name, values in model.history_.items()}
    parts = [last[f"log_likelihood_{name}_validation"] for name in modalities]
    assert sum(parts) == pytest.approx(last["log_likelihood_validation"], rel=1e-5)
    assert set(model.library_size_quantiles_) == set(modalities)
    assert model.feature_names_ == tuple(adata.var_names)
    for name in modalities:
        assert np.abs(model.transform(turned(adata, name)) - adata.obsm["X_celldial"]).max() > 1e-3


def test_modalities_are_in_one_order_whatever_that_of_the_features() -> None:
    adata = make()
    reversed_ = adata[:, ::-1].copy()
    model = fit(reversed_)
    assert model.schema_.modalities == ALL
    assert model.feature_names_[0] == "g19"
    np.testing.assert_array_equal(model.transform(adata), reversed_.obsm["X_celldial"])


def test_peaks_alone() -> None:
    adata = make("atac")
    model = fit(adata)
    assert model.schema_.likelihood == {"atac": "bernoulli"}
    probability = model.decode(np.zeros((1, 2)))
    assert ((probability > 0) & (probability < 1)).all()
    # The same without the column, where the likelihood tells.
    bare = AnnData(adata.X, adata.obs)
    bare.var_names = adata.var_names
    again = fit(bare, VAE(2, 8, likelihood="bernoulli"))
    assert again.schema_.modalities == ("atac",)
    np.testing.assert_array_equal(bare.obsm["X_celldial"], adata.obsm["X_celldial"])
    assert fit(AnnData(bare.X)).schema_.modalities == ("rna",)


def test_the_likelihood_of_one_modality() -> None:
    adata = make("rna", "atac")
    model = fit(adata, VAE(2, 8, likelihood={"atac": "poisson"}))
    assert model.schema_.likelihood == {"rna": "negative_binomial", "atac": "poisson"}
    np.testing.assert_allclose(model.decode(np.zeros((1, 2)), modality="atac").sum(), 1e4, rtol=1e-4)
    assert fit(make(), VAE(2, 8, likelihood="poisson")).schema_.likelihood == dict.fromkeys(ALL, "poisson")


def test_counts_above_one_are_ones_under_bernoulli(caplog: pytest.LogCaptureFixture) -> None:
    adata = make("rna", "atac")
    ones = adata.copy()
    peaks = of(adata, "atac")
    n_above = int((adata.X[:, peaks] > 1).sum())
    ones.X = sparse.hstack([adata.X[:, ~peaks], adata.X[:, peaks] > 0], dtype=np.float32).tocsr()
    check = untouched(adata)
    with caplog.at_level(logging.DEBUG, logger="celldial"):
        model = fit(adata)
    assert logged(caplog, naming=["atac", n_above, "bernoulli"])
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="celldial"):
        fit(ones)
    assert not logged(caplog, naming=["bernoulli"])
    np.testing.assert_array_equal(adata.obsm["X_celldial"], ones.obsm["X_celldial"])
    assert model.score(adata) == model.score(ones)
    del adata.obsm["X_celldial"], adata.uns["celldial"]
    check()


def test_only_the_modalities_that_are_named(caplog: pytest.LogCaptureFixture) -> None:
    adata, genes = make(), make("rna")
    with caplog.at_level(logging.INFO, logger="celldial"):
        model = fit(adata, VAE(2, 8, modalities={"rna": "Gene Expression"}))
    assert logged(caplog, naming=[36])
    assert model.schema_.modalities == ("rna",)
    fit(genes)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], genes.obsm["X_celldial"])
    mine = fit(make(), VAE(2, 8, modalities={"mine": "Antibody Capture", "rna": "Gene Expression"}))
    assert mine.schema_.modalities == ("rna", "mine")


def test_another_column() -> None:
    adata, renamed = make(), make()
    renamed.var["kind"] = renamed.var.pop("feature_types").to_numpy()
    fit(adata)
    model = fit(renamed, VAE(2, 8, modality_key="kind"))
    np.testing.assert_array_equal(renamed.obsm["X_celldial"], adata.obsm["X_celldial"])
    np.testing.assert_array_equal(model.transform(renamed), adata.obsm["X_celldial"])


# --- Modalities elsewhere ---------------------------------------------------------------------------------------------

IN_OBSM = {"rna": "Gene Expression", "atac": "Peaks", "protein": "obsm/adt"}
KINDS: dict[str, Callable[[np.ndarray, AnnData], Any]] = {
    "csr": lambda x, adata: sparse.csr_matrix(x),
    "array": lambda x, adata: x,
    "DataFrame": lambda x, adata: pd.DataFrame(x, adata.obs_names, adata.var_names[of(adata, "protein")]),
    "sparse DataFrame": lambda x, adata: pd.DataFrame.sparse.from_spmatrix(
        sparse.csr_matrix(x), adata.obs_names, adata.var_names[of(adata, "protein")]
    ),
}


def in_obsm(kind: str, adata: AnnData) -> AnnData:
    """Move the proteins to obsm."""
    proteins = of(adata, "protein")
    moved = adata[:, ~proteins].copy()
    moved.obsm["adt"] = KINDS[kind](adata.X[:, proteins].toarray(), adata)
    return moved


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_modality_in_obsm(kind: str, columns: bool, tmp_path: Path) -> None:
    adata = mosaic(columns=columns)
    moved = in_obsm(kind, adata)
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
    np.testing.assert_array_equal(model.transform(moved), expected.transform(adata[:, ~of(adata, "protein")]))


def test_names_in_both_obsm_and_var_get_a_prefix(tmp_path: Path) -> None:
    adata = make("rna")
    adata.obsm["adt"] = pd.DataFrame(make("protein").X.toarray(), adata.obs_names, [f"g{i}" for i in range(6)])
    model = fit(adata, VAE(2, 8, modalities={"rna": "Gene Expression", "protein": "obsm/adt"}))
    assert model.feature_names_[19:21] == ("rna:g19", "protein:g0")
    # Where the modality is said, names are plain.
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
def test_a_mudata_is_as_the_anndata_made_of_it(tmp_path: Path) -> None:
    mudata = pytest.importorskip("mudata")
    adata = mosaic("rna", "protein")
    parts = {
        name: adata[adata.obs[f"has_{modality}"], of(adata, modality)].copy()
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
    # What each model says of the other's data.
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
    # What is written goes to a file, and nothing went to the modalities.
    assert set(data.obsm) >= {"X_celldial", "imputed_protein", "denoised"}
    assert set(data.uns) == {"celldial", "latent_traverse"}
    assert all(not part.obsm and not part.uns and not part.layers for part in data.mod.values())
    data.write(tmp_path / "cells.h5mu")
    back = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(back.obsm["X_celldial"], data.obsm["X_celldial"])
    np.testing.assert_array_equal(model.transform(back), data.obsm["X_celldial"])


# --- Mosaics ----------------------------------------------------------------------------------------------------------


def test_three_ways_to_say_what_a_cell_has(caplog: pytest.LogCaptureFixture) -> None:
    with_columns, other_columns, with_zeros = mosaic(), mosaic(), mosaic(columns=False)
    names = {f"has_{name}": f"{name} measured" for name in ALL}
    other_columns.obs = other_columns.obs.rename(columns=names)
    fit(with_columns)
    model = fit(other_columns, VAE(2, 8, presence_keys={name: f"{name} measured" for name in ALL}))
    assert model.schema_.presence_keys == {name: f"{name} measured" for name in ALL}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="celldial"):
        fit(with_zeros)
    for name in ALL:
        assert logged(caplog, naming=[10, 60, name])
    for other in (other_columns, with_zeros):
        np.testing.assert_array_equal(other.obsm["X_celldial"], with_columns.obsm["X_celldial"])


def test_a_cell_that_should_have_a_modality_and_has_no_count_of_it() -> None:
    adata, zeros = mosaic("rna", "atac"), mosaic("rna", "atac", columns=False)
    adata.obs["has_atac"] = True
    with warns(naming=[10, 60, "atac", "'has_atac'", "'c4'"]):
        fit(adata)
    fit(zeros)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], zeros.obsm["X_celldial"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_cells_that_lack_something_are_embedded_by_what_they_have(fusion: Any) -> None:
    """Also where other cells lack nothing, and the other way round."""
    adata, lacking = make(), every_sixth(*ALL)
    partly = without(adata, lacking)
    model = fit(partly, VAE(2, 8, fusion=fusion))
    whole = model.transform(adata)
    part = model.transform(partly)
    np.testing.assert_array_equal(part, partly.obsm["X_celldial"])
    paired_c = ~np.any(list(lacking.values()), axis=0)
    np.testing.assert_allclose(part[paired_c], whole[paired_c], atol=1e-5)
    for name, lacks_c in lacking.items():
        expected = model.transform(adata[:, ~of(adata, name)])
        np.testing.assert_allclose(part[lacks_c], expected[lacks_c], atol=1e-5)
        assert (np.abs(expected - whole) > 1e-5).any()
    for name in ALL:
        alone = without(adata, {other: np.ones(N_CELLS, dtype=bool) for other in ALL if other != name})
        np.testing.assert_allclose(model.transform(alone), model.transform(adata, modality=name), atol=1e-5)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(has=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore:.* cells have no count")
def test_whatever_the_mosaic_each_cell_is_embedded_by_itself(has: list[tuple[bool, ...]], trimodal: VAE) -> None:
    adata = make(n_cells=8)[: len(has)].copy()
    partly = without(adata, {name: [not cell[i] for cell in has] for i, name in enumerate(ALL)})
    mean, deviation = trimodal.latent_posterior(partly)
    for c, cell in enumerate(has):
        present = [name for name, here in zip(ALL, cell, strict=True) if here]
        if not present:
            assert (mean[c] == 0).all()
            assert (deviation[c] == 1).all()
            continue
        alone = trimodal.latent_posterior(adata[[c], of(adata, *present)].copy())
        np.testing.assert_allclose(mean[[c]], alone.mean, atol=1e-5)
        np.testing.assert_allclose(deviation[[c]], alone.standard_deviation, atol=1e-5)


def test_a_product_of_what_each_modality_says(trimodal: VAE) -> None:
    """Precisions add; that of the prior, 1, is in each of them once."""
    adata = make()
    together = trimodal.latent_posterior(adata)
    alone = [trimodal.latent_posterior(adata, modality=name) for name in ALL]
    precision = 1 + sum(part.standard_deviation.astype(float) ** -2 - 1 for part in alone)
    np.testing.assert_allclose(together.standard_deviation, precision**-0.5, rtol=1e-4)
    mean = sum(part.mean * part.standard_deviation.astype(float) ** -2 for part in alone) / precision
    np.testing.assert_allclose(together.mean, mean, atol=1e-4)
    assert (together.standard_deviation < np.min([part.standard_deviation for part in alone], axis=0) + 1e-6).all()


def test_a_query_of_one_modality(trimodal: VAE, caplog: pytest.LogCaptureFixture) -> None:
    adata = make()
    genes = make("rna")
    with caplog.at_level(logging.INFO, logger="celldial"):
        np.testing.assert_allclose(trimodal.transform(genes), trimodal.transform(adata, modality="rna"), atol=1e-5)
    assert logged(caplog, naming=["atac", 30])
    bare = AnnData(genes.X, pd.DataFrame(index=genes.obs_names), pd.DataFrame(index=genes.var_names))
    np.testing.assert_array_equal(trimodal.transform(bare), trimodal.transform(genes))
    empty = without(adata, {name: np.ones(N_CELLS, dtype=bool) for name in ("atac", "protein")})
    assert trimodal.score(genes) == trimodal.score(empty)
    assert trimodal.score(genes) > trimodal.score(adata)  # there is less to explain
    np.testing.assert_allclose(
        trimodal.impute(genes, "protein"), trimodal.impute(adata, "protein", from_="rna"), rtol=1e-4
    )
    genes.var_names = [f"ENSG{i}" for i in range(genes.n_vars)]
    with raises(ValueError, naming=["rna", "atac", "protein", "'ENSG0'"]):
        trimodal.transform(genes)


def test_going_on_with_cells_of_one_modality() -> None:
    """What no cell has is not forgotten: its networks stay as they are."""
    model, genes = fit(mosaic("rna", "atac")), make("rna", seed=1)
    before = {name: tensor.clone() for name, tensor in model.module_.state_dict().items()}
    model.partial_fit(genes, max_epochs=2, progress=False)
    np.testing.assert_array_equal(genes.obsm["X_celldial"], model.transform(genes))
    after = model.module_.state_dict()
    changed = {name.split(".")[1] for name in after if (after[name] != before[name]).any()}
    assert changed == {"rna"}
    assert all(parameter.requires_grad for parameter in model.module_.parameters())
    model.partial_fit(make("atac", seed=1), max_epochs=1, progress=False)
    assert (model.module_.state_dict()[decoder := "modalities.atac.decoder.heads.0.weight"] != before[decoder]).any()


@pytest.mark.parametrize("batch_size", [1, 53])
def test_a_minibatch_in_which_no_cell_has_a_modality(batch_size: int) -> None:
    adata = mosaic("rna", "atac")
    fit(adata, batch_size=batch_size)
    assert np.isfinite(adata.obsm["X_celldial"]).all()


def test_no_cell_to_train_on_has_a_modality() -> None:
    adata = mosaic("rna", "atac")
    check = untouched(adata)
    with raises(ValueError, naming=["atac"], omitting=["rna"]):
        fit(adata, validation_cells=adata.obs["has_atac"].to_numpy())
    both_c = (adata.obs["has_rna"] & adata.obs["has_atac"]).to_numpy()
    with raises(ValueError, naming=["rna", "atac"]):
        fit(adata, validation_cells=both_c)
    check()
    fit(adata, validation_cells=~both_c)


def test_a_cell_without_anything_has_the_prior(trimodal: VAE) -> None:
    nothing = np.arange(N_CELLS) == 7
    adata = without(make(), dict.fromkeys(ALL, nothing))
    with warns(naming=[1, 60, "'c7'"]):
        mean, deviation = trimodal.latent_posterior(adata)
    assert (mean[7] == 0).all()
    assert (deviation[7] == 1).all()
    partly = without(make(), {"protein": nothing})
    with warns(naming=[1, 60, "protein", "'c7'"]):
        assert (trimodal.transform(partly, modality="protein")[7] == 0).all()
    assert (trimodal.transform(partly)[7] != 0).all()


# --- Latent states by one modality ------------------------------------------------------------------------------------


def test_one_modality_alone(model: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    check = untouched(adata)
    by_name = {name: model.transform(adata, modality=name) for name in ("rna", "atac")}
    posterior = model.latent_posterior(adata, modality="atac")
    check()
    assert np.abs(by_name["rna"] - by_name["atac"]).max() > 1e-3
    np.testing.assert_array_equal(posterior.mean, by_name["atac"])
    # Whatever the peaks are.
    np.testing.assert_array_equal(model.transform(turned(adata, "atac"), modality="rna"), by_name["rna"])
    written = model.transform(adata, modality="rna", key_added="X_rna")
    np.testing.assert_array_equal(adata.obsm["X_rna"], by_name["rna"])
    written[:] = 0
    np.testing.assert_array_equal(adata.obsm["X_rna"], by_name["rna"])
    model.transform(adata, key_added="X_all")
    np.testing.assert_array_equal(adata.obsm["X_all"], model.transform(adata))
    with raises(KeyError, naming=["'protein'", "'rna'", "'atac'"]):
        model.transform(adata, modality="protein")


def test_writing_to_a_view(model: VAE, multiome: AnnData) -> None:
    view = multiome[5:15]
    model.transform(view, key_added="X_here")
    assert view.obsm["X_here"].shape == (10, 2)
    assert "X_here" not in multiome.obsm


# --- Predicting a modality --------------------------------------------------------------------------------------------


def test_imputing(model: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    check = untouched(adata)
    table = model.impute(adata, "atac", from_="rna")
    assert list(table.index) == list(adata.obs_names)
    assert list(table.columns) == [f"p{i}" for i in range(30)]
    assert (table.dtypes == np.float32).all()
    assert table.to_numpy().min() > 0
    assert table.to_numpy().max() < 1
    np.testing.assert_array_equal(adata.obsm.pop("imputed_atac"), table)
    check()
    expected = model.decode(model.transform(adata, modality="rna"), adata.obs, modality="atac")
    np.testing.assert_array_equal(table, expected)
    # The other way round, in counts per 10,000.
    genes = model.impute(adata, "rna", from_="atac", key_added="genes")
    np.testing.assert_allclose(genes.sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(model.impute(adata, "rna", from_="atac", library_size=10) * 1e3, genes, rtol=1e-4)
    np.testing.assert_array_equal(adata.obsm["genes"], genes)
    genes.iloc[:, :] = 0
    assert adata.obsm["genes"].min() > 0


def test_imputing_from_one_several_or_all(trimodal: VAE) -> None:
    adata = make()
    every = trimodal.impute(adata, "atac")
    pd.testing.assert_frame_equal(trimodal.impute(adata, "atac", from_=ALL), every)
    np.testing.assert_array_equal(every, trimodal.denoise(adata, modality="atac"))
    one = trimodal.impute(adata, "atac", from_="rna")
    pd.testing.assert_frame_equal(trimodal.impute(adata, "atac", from_=["rna"]), one)
    two = trimodal.impute(adata, "atac", from_=["rna", "protein"])
    pd.testing.assert_frame_equal(trimodal.impute(adata, "atac", from_=["protein", "rna"]), two)
    lacking = adata[:, ~of(adata, "atac")].copy()
    np.testing.assert_allclose(trimodal.impute(lacking, "atac"), two, rtol=1e-4)
    for table, other in ((one, two), (two, every), (one, every)):
        assert np.abs(table - other).to_numpy().max() > 1e-5


def test_imputing_named_features(model: VAE, multiome: AnnData) -> None:
    adata = multiome.copy()
    whole = model.impute(adata, "atac", from_="rna")
    names = ["p7", "p0", "p29"]
    pd.testing.assert_frame_equal(model.impute(adata, "atac", from_="rna", features=names), whole[names])
    pd.testing.assert_frame_equal(model.impute(adata, "atac", from_="rna", features=pd.Index(names)), whole[names])
    pd.testing.assert_frame_equal(model.impute(adata, "atac", from_="rna", features="p7"), whole[["p7"]])
    assert list(adata.obsm["imputed_atac"]) == ["p7"]


def test_imputing_named_features_makes_no_table_of_all(
    model: VAE, multiome: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata, decoded, given = multiome.copy(), [], []
    expected = model.impute(adata, "atac", from_="rna", features=["p3", "p1"])
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
    found = model.impute(adata, "atac", from_="rna", features=["p3", "p1"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert set(decoded) == {(7, 30), (4, 30)}
    assert set(given) == {(7, 2), (4, 2)}


@pytest.mark.parametrize(("key", "value"), [("batch", "b1"), ("donor", "y"), ("age", 25.0)])
def test_imputing_as_if_cells_were_others(model: VAE, multiome: AnnData, key: str, value: Any) -> None:
    adata = multiome.copy()
    as_is = model.impute(adata, "atac", from_="rna")
    changed = model.impute(adata, "atac", from_="rna", transform_batch={key: value})
    z = model.transform(adata, modality="rna")
    np.testing.assert_array_equal(changed, model.decode(z, adata.obs.assign(**{key: value}), modality="atac"))
    same_c = (adata.obs[key] == value).to_numpy()
    pd.testing.assert_frame_equal(changed[same_c], as_is[same_c])
    assert (np.abs(changed - as_is)[~same_c].max(axis=1) > 1e-6).all()
    if key == "batch":
        pd.testing.assert_frame_equal(model.impute(adata, "atac", from_="rna", transform_batch=value), changed)
        # Cells of a batch that the model has not seen are asked for as those of one that it has.
    assert list(adata.obs[key]) == list(multiome.obs[key])


def test_cells_that_lack_what_is_predicted_from_are_named(trimodal: VAE) -> None:
    adata = mosaic()
    facts = [10, 60, "rna", "'c3'"]
    with warns(naming=facts):
        table = trimodal.impute(adata, "protein", from_="rna")
    lacks_c = every_sixth("rna")["rna"]
    np.testing.assert_allclose(table[lacks_c], np.repeat(trimodal.decode([0, 0], modality="protein"), 10, 0), rtol=1e-5)
    with raises(ValueError, naming=[10, "rna"]):
        trimodal.impute(adata[lacks_c].copy(), "protein", from_="rna")
    # No cell lacks both.
    trimodal.impute(adata, "protein", from_=["rna", "atac"])


WRONG_WISHES: dict[str, tuple[dict[str, Any], type[Exception], list[Any]]] = {
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
    "library size of text": ({"library_size": "all"}, ValueError, ["library_size", "'all'"]),
}


@pytest.mark.parametrize("case", WRONG_WISHES)
def test_wrong_wishes_are_named(case: str, model: VAE, multiome: AnnData, tmp_path: Path) -> None:
    options, error, facts = WRONG_WISHES[case]
    adata = multiome.copy()
    check = untouched(adata)
    with raises(error, naming=facts):
        model.impute(adata, **{"modality": "atac", **options})
    with raises(error, naming=facts):
        model.impute_to_file(adata, **{"modality": "atac", "path": tmp_path / "imputed.h5ad", **options})
    check()
    assert not list(tmp_path.iterdir())


def test_batch_needs_a_batch(trimodal: VAE) -> None:
    with raises(ValueError, naming=["batch_key"]):
        trimodal.impute(make(), "atac", transform_batch="b0")


def test_a_large_table_is_made_only_where_asked_for(
    model: VAE, multiome: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = multiome.copy()
    monkeypatch.setattr(celldial.tl.expression, "MAX_ENTRIES", 60 * 30 - 1)
    with raises(ValueError, naming=[60, 30, "features", "impute_to_file", "dense=True"]):
        model.impute(adata, "atac", from_="rna")
    assert not adata.obsm
    assert model.impute(adata, "atac", from_="rna", dense=True).shape == (60, 30)
    assert model.impute(adata, "atac", from_="rna", features=["p1"]).shape == (60, 1)


@pytest.mark.parametrize("features", [None, ["p7", "p0"]])
def test_imputing_to_a_file_is_imputing(
    model: VAE, multiome: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: Any
) -> None:
    adata, path = multiome.copy(), tmp_path / "imputed.h5ad"
    expected = model.impute(adata.copy(), "atac", from_="rna", transform_batch="b1", features=features, dense=True)
    check = untouched(adata)
    monkeypatch.setattr(celldial.data.cells, "MAX_DECODE_CELLS", 7)
    for target in (path, str(path)):
        model.impute_to_file(adata, "atac", target, from_="rna", transform_batch="b1", features=features)
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
def test_a_file_is_written_whole_or_not_at_all(
    model: VAE, multiome: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
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
        model.impute_to_file(multiome, "atac", path, from_="rna")
    assert list(tmp_path.iterdir()) == ([path] if there_before else [])
    assert not there_before or path.read_bytes() == b"old"


def test_a_file_of_cells_that_cannot_be_written(model: VAE, multiome: AnnData, tmp_path: Path) -> None:
    adata = multiome.copy()
    adata.obs["mixed"] = [1, "a"] * 30
    with pytest.raises(TypeError):
        model.impute_to_file(adata, "atac", tmp_path / "imputed.h5ad")
    assert not list(tmp_path.iterdir())


# --- Decoding ---------------------------------------------------------------------------------------------------------


def test_decoding_a_modality(model: VAE, multiome: AnnData) -> None:
    z, values = np.zeros((3, 2)), {"batch": "b0", "donor": "x", "age": 30.0}
    np.testing.assert_array_equal(model.decode(z, values), model.decode(z, values, modality="rna"))
    assert model.decode(z, values).shape == (3, 20)
    probability = model.decode(z, values, modality="atac")
    assert probability.shape == (3, 30)
    assert probability.dtype == np.float32
    # At the depth of the median cell, by default; a deeper cell has more peaks open.
    depth = float(np.median(model.library_size_quantiles_["atac"]))
    np.testing.assert_array_equal(model.decode(z, values, modality="atac", library_size=depth), probability)
    assert (model.decode(z, values, modality="atac", library_size=2 * depth) > probability).all()
    huge = model.decode(z, values, modality="atac", library_size=1e12)
    assert (huge <= 1).all()
    assert np.isfinite(huge).all()
    for size in (0, -1, np.nan, np.inf):
        with raises(ValueError, naming=["library_size", size]):
            model.decode(z, values, library_size=size)
    with raises(KeyError, naming=["'prot'", "'rna'", "'atac'"]):
        model.decode(z, values, modality="prot")


def test_decoded_peaks_are_as_open_as_in_the_data() -> None:
    adata = make("rna", "atac")
    model = fit(adata, max_epochs=20)
    found_f = model.denoise(adata, modality="atac").mean().to_numpy()
    known_f = np.asarray((adata.X[:, of(adata, "atac")] > 0).mean(0)).ravel()
    assert np.abs(found_f - known_f).max() < 0.2
    assert np.corrcoef(found_f, known_f)[0, 1] > 0.9


def test_denoising_a_modality(model: VAE, multiome: AnnData, tmp_path: Path) -> None:
    adata = multiome.copy()
    table = model.denoise(adata, modality="atac", key_added="open")
    np.testing.assert_array_equal(table, model.decode(model.transform(adata), adata.obs, modality="atac"))
    pd.testing.assert_frame_equal(adata.obsm["open"], table)
    pd.testing.assert_frame_equal(model.denoise(adata, ["p3"], modality="atac"), table[["p3"]])
    model.denoise(adata, key_added="genes")
    assert adata.obsm["genes"].shape == (60, 20)
    assert not adata.layers
    with raises(KeyError, naming=["gene 'p3'"]):
        model.denoise(adata, "p3")
    with raises(KeyError, naming=["'protein'", "'rna'", "'atac'"]):
        model.denoise(adata, modality="protein")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read_h5ad(tmp_path / "cells.h5ad").obsm["open"], table)


def test_denoising_what_cells_lack(model: VAE) -> None:
    adata = mosaic("rna", "atac")
    lacks_c = every_sixth("rna", "atac")["atac"]
    table = model.denoise(adata, modality="atac")
    assert np.isfinite(table.to_numpy()).all()
    np.testing.assert_allclose(
        table[lacks_c], model.impute(make("rna", "atac")[lacks_c].copy(), "atac", from_="rna"), rtol=1e-4
    )


# --- New cells --------------------------------------------------------------------------------------------------------


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
    assert fit(cells, VAE(2, 8)).schema_.modalities == ALL


def test_sampled_library_sizes_are_those_of_the_cells_that_have_the_modality() -> None:
    """Cells that lack a modality have a total of zero, which is none to draw."""
    adata = mosaic("rna", "atac")
    model = fit(adata, VAE(2, 8, likelihood="poisson"), validation_size=0)
    for name in ("rna", "atac"):
        total_c = np.asarray(adata.X[:, of(adata, name)].sum(1)).ravel()
        found_q = model.library_size_quantiles_[name]
        assert found_q.shape == (101,)
        np.testing.assert_allclose(found_q, np.quantile(total_c[total_c > 0], np.linspace(0, 1, 101)))


# --- Traversals -------------------------------------------------------------------------------------------------------


def test_a_traversal_shows_all_modalities(trimodal: VAE, tmp_path: Path) -> None:
    adata = mosaic()
    path = trimodal.latent_traverse(adata, 1, n_steps=7)
    assert path.shape == (7, 56)
    assert list(path.var["modality"]) == ["rna"] * 20 + ["atac"] * 30 + ["protein"] * 6
    assert path.X[:, 20:50].max() < 1
    np.testing.assert_allclose(path.X[:, :20].sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(path.X[:, 50:].sum(1), 1e4, rtol=1e-4)
    # A library size is one of counts, and says nothing of probabilities.
    other = trimodal.latent_traverse(adata.copy(), 1, n_steps=7, library_size=10)
    np.testing.assert_array_equal(other.X[:, 20:50], path.X[:, 20:50])
    np.testing.assert_allclose(other.X[:, :20] * 1e3, path.X[:, :20], rtol=1e-4)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    path.write_h5ad(tmp_path / "path.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    stored = back.uns["latent_traverse"]["axis_1"]
    assert list(stored["modality"]) == list(path.var["modality"])
    assert list(stored["feature_names"]) == list(path.var_names)
    np.testing.assert_array_equal(stored["mean"], path.X)
    drawn = pl.latent_traverse(back, "axis_1", features=["g1", "p2", "a3"], show=False)
    assert list(drawn)[:3] == ["g1", "p2", "a3"]
    plt.close("all")


def test_a_traversal_is_that_of_each_modality(model: VAE, multiome: AnnData) -> None:
    """What it decodes is what `decode` gives for the cells, whose draws are the same whatever is decoded."""
    adata = multiome.copy()
    path = model.latent_traverse(adata, 0, n_steps=3, at=multiome.obs_names[0], n_samples=2000)
    for name in ("rna", "atac"):
        found_f = path.X[:, path.var["modality"] == name].mean(0)
        decoded_f = model.decode(path.uns["path"], multiome.obs.iloc[[0] * 3], modality=name).mean(0)
        assert np.corrcoef(np.log(found_f), np.log(decoded_f))[0, 1] > 0.99
    ratio = np.log2(path.X / path.X[0])
    np.testing.assert_allclose(path.layers["log2_fold_change"], ratio, atol=1e-5)


# --- Parameters -------------------------------------------------------------------------------------------------------


def embedding(adata: AnnData, **parameters: Any) -> np.ndarray:
    return fit(adata, VAE(2, 8, **parameters)).transform(adata)


def test_weights_of_modalities_change_the_fit() -> None:
    default = embedding(make())
    names = default_modality_weights(SIZES)
    assert names == {"rna": 1, "atac": pytest.approx((20 / 30) ** 0.5), "protein": 1}
    np.testing.assert_array_equal(embedding(make(), modality_weights=names), default)
    np.testing.assert_array_equal(embedding(make(), modality_weights={"rna": 1}), default)
    assert np.abs(embedding(make(), modality_weights={"atac": 0.1}) - default).max() > 1e-3


def test_a_weight_moves_the_fit_towards_its_modality() -> None:
    def explained(modality: str, weights: dict[str, float]) -> float:
        model = fit(make("rna", "atac"), VAE(2, 8, modality_weights=weights), max_epochs=20, early_stopping=False)
        return max(model.history_[f"log_likelihood_{modality}_validation"])

    for modality in ("rna", "atac"):
        assert explained(modality, {modality: 5}) > explained(modality, {modality: 0.01})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_runs_and_is_reproducible(fusion: Any) -> None:
    adata = mosaic()
    runs = [embedding(mosaic(), fusion=fusion, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    model = fit(adata, VAE(2, 8, fusion=fusion, seed=3))
    np.testing.assert_array_equal(adata.obsm["X_celldial"], runs[0])
    assert model.score(adata) == model.score(adata)
    assert np.abs(embedding(mosaic(), fusion=fusion, seed=4) - runs[0]).max() > 1e-3
    for other in FUSIONS:
        if other != fusion:
            assert np.abs(embedding(mosaic(), fusion=other, seed=3) - runs[0]).max() > 1e-4


def test_parameters_may_be_dicts() -> None:
    given = {
        "likelihood": {"atac": "poisson"},
        "modalities": {"rna": "Gene Expression", "atac": "Peaks"},
        "presence_keys": {"atac": "has_atac"},
        "modality_weights": {"atac": 0.5},
    }
    model = VAE(2, 8, **given)
    assert all(model.get_params()[name] is value for name, value in given.items())
    twin = clone(model)
    assert {name: twin.get_params()[name] for name in given} == given
    adata = mosaic("rna", "atac")
    fit(adata, model)
    fit(other := mosaic("rna", "atac"), twin)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], other.obsm["X_celldial"])
    # What the user does to the dict later is for the next fit.
    given["modality_weights"]["atac"] = 7.0
    assert model.parameters_["modality_weights"] == {"atac": 0.5}
    assert adata.uns["celldial"]["parameters"]["modality_weights"] == {"atac": 0.5}


# --- Keeping a model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("likelihood", [None, {"atac": "poisson", "protein": "zero_inflated_negative_binomial"}])
def test_round_trip(tmp_path: Path, fusion: Any, likelihood: Any) -> None:
    adata = mosaic()
    parameters = {"modality_weights": {"atac": np.float32(0.25), "protein": np.int64(2)}, **COVARIATES}
    model = fit(adata, VAE(2, 8, fusion=fusion, likelihood=likelihood, **parameters))
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    assert loaded.schema_ == model.schema_
    assert loaded.history_ == model.history_
    assert loaded.get_params()["modality_weights"] == {"atac": 0.25, "protein": 2}
    assert loaded.module_.modality_weights == model.module_.modality_weights
    assert loaded.score(adata) == model.score(adata)
    for modality in (None, *ALL):
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


def test_what_fit_writes_survives_a_file(tmp_path: Path) -> None:
    adata = in_obsm("DataFrame", mosaic())
    parameters = {"likelihood": {"atac": "poisson"}, "modality_weights": {"rna": 2}, "presence_keys": {}}
    model = fit(adata, VAE(2, 8, modalities=IN_OBSM, **parameters))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    record = back.uns["celldial"]
    assert type(model.schema_).from_dict(record["schema"]) == model.schema_
    assert record["parameters"]["modalities"] == IN_OBSM
    assert record["parameters"]["likelihood"] == {"atac": "poisson"}
    np.testing.assert_array_equal(model.transform(back), adata.obsm["X_celldial"])


# --- Bad input --------------------------------------------------------------------------------------------------------


def set_types(adata: AnnData, n_proteins: int, value: Any) -> None:
    """Change what the last features are."""
    types = adata.var["feature_types"].astype(object).to_numpy()
    types[-n_proteins:] = value
    adata.var["feature_types"] = types


def set_count(adata: AnnData, feature: str, value: float) -> None:
    x = adata.X.toarray().astype(np.float64)
    x[7, adata.var_names.get_loc(feature)] = value
    adata.X = sparse.csr_matrix(x)


def set_obs(adata: AnnData, key: str, value: Any) -> None:
    adata.obs[key] = value


BAD_INPUT: dict[str, tuple[Callable[[AnnData], Any] | None, dict[str, Any], type[Exception], list[Any]]] = {
    "unknown type": (
        lambda a: set_types(a, 6, "CRISPR"),
        {},
        ValueError,
        ["'feature_types'", "'CRISPR'", 6, "'a0'", "modalities"],
    ),
    "type is missing": (lambda a: set_types(a, 1, np.nan), {}, ValueError, ["'feature_types'", "'a5'"]),
    "one feature": (lambda a: a[:, :51].copy(), {}, ValueError, ["'protein'", 1, "'a0'"]),
    "no such type": (None, {"modalities": {"rna": "RNA"}}, KeyError, ["'rna'", "'RNA'"]),
    "nothing in obsm": (None, {"modalities": {"protein": "obsm/adt"}}, KeyError, ["obsm", "'adt'"]),
    "modalities is a list": (None, {"modalities": ["rna"]}, TypeError, ["modalities", "dict"]),
    "no such column": (None, {"modality_key": "kind"}, KeyError, ["modality_key", "'kind'", "'feature_types'"]),
    "fraction of a peak": (lambda a: set_count(a, "p4", 0.5), {}, ValueError, [0.5, "'c7'", "peak 'p4'"]),
    "negative protein": (lambda a: set_count(a, "a4", -3), {}, ValueError, [-3, "'c7'", "protein 'a4'"]),
    "NaN in a gene": (lambda a: set_count(a, "g4", np.nan), {}, ValueError, ["nan", "'c7'", "gene 'g4'"]),
    "no overlap": (
        lambda a: without(a, {"rna": np.arange(60) < 30, "atac": np.arange(60) >= 30, "protein": [True] * 60}),
        {"modalities": {"rna": "Gene Expression", "atac": "Peaks"}},
        ValueError,
        ["rna", "atac"],
    ),
    "no count of a modality": (
        lambda a: without(a, {"protein": [True] * 60}, columns=False),
        {},
        ValueError,
        ["protein"],
    ),
    "counts where there are none": (
        lambda a: set_obs(a, "has_protein", np.arange(60) != 9),
        {},
        ValueError,
        ["'c9'", "protein", "obs['has_protein']", 1],
    ),
    "no such presence": (None, {"presence_keys": {"rna": "rna?"}}, KeyError, ["'rna?'"]),
    "presence of text": (
        lambda a: set_obs(a, "in_rna", "yes"),
        {"presence_keys": {"rna": "in_rna"}},
        ValueError,
        ["'in_rna'", "'yes'", "'c0'"],
    ),
    "presence of what there is not": (
        None,
        {"presence_keys": {"adt": "has_rna"}},
        KeyError,
        ["presence_keys", "'adt'"],
    ),
    "likelihood of what there is not": (None, {"likelihood": {"adt": "poisson"}}, KeyError, ["likelihood", "'adt'"]),
    "unknown likelihood": (
        None,
        {"likelihood": {"rna": "normal"}},
        ValueError,
        ["likelihood", "'normal'", "'negative_binomial'"],
    ),
    "weight of what there is not": (None, {"modality_weights": {"adt": 1}}, KeyError, ["modality_weights", "'adt'"]),
    "no weight": (None, {"modality_weights": {"rna": 0}}, ValueError, ["rna", 0]),
    "negative weight": (None, {"modality_weights": {"rna": -1.0}}, ValueError, ["rna", -1.0]),
    "infinite weight": (None, {"modality_weights": {"rna": np.inf}}, ValueError, ["rna", "inf"]),
    "NaN weight": (None, {"modality_weights": {"rna": np.nan}}, ValueError, ["rna", "nan"]),
    "weight of text": (None, {"modality_weights": {"rna": "high"}}, ValueError, ["rna", "'high'"]),
    "weights are a number": (None, {"modality_weights": 2}, TypeError, ["modality_weights", 2]),
    "unknown fusion": (None, {"fusion": "poe"}, ValueError, ["fusion", "'poe'", "'product'", "'mixture'"]),
    "unknown decoder": (None, {"decoder": "sum"}, ValueError, ["decoder", "'sum'", "'network'", "'additive'"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_and_leaves_all_as_it_was(case: str) -> None:
    spoil, parameters, error, facts = BAD_INPUT[case]
    adata = make()
    if spoil is not None:
        changed = spoil(adata)
        adata = adata if changed is None else changed
    adata.obsm["X_celldial"] = np.ones((adata.n_obs, 2))
    adata.uns["celldial"] = {"mine": 1}
    check = untouched(adata)
    model = VAE(2, 8, **parameters)
    with raises(error, naming=facts):
        fit(adata, model)
    check()
    assert adata.uns["celldial"] == {"mine": 1}
    assert not hasattr(model, "module_")


def test_bad_input_to_a_fitted_model(trimodal: VAE) -> None:
    adata = make()
    set_count(adata, "p4", 1.5)
    check = untouched(adata)
    for use in (trimodal.transform, trimodal.score, lambda a: trimodal.impute(a, "rna", from_="atac")):
        with raises(ValueError, naming=[1.5, "'c7'", "peak 'p4'"]):
            use(adata)
    check()
    adata = make()
    adata.obs["has_rna"] = np.arange(60) != 9
    with raises(ValueError, naming=["'c9'", "rna", "obs['has_rna']"]):
        trimodal.transform(adata)
    few = make()[:, [*range(22), *range(50, 56)]].copy()
    with raises(ValueError, naming=[2, 30, "atac"]):
        trimodal.transform(few)


def test_too_little_memory_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = make()
    check = untouched(adata)
    monkeypatch.setattr(celldial.training.memory, "available_memory", lambda device: 10_000)
    facts = ["60 cells", "20 features (rna)", "30 features (atac)", "6 features (protein)", "cpu"]
    with raises(MemoryError, naming=facts):
        fit(adata)
    check()
    assert not adata.obsm

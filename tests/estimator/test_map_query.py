"""Cells of new batches: what `map_query` learns, what it must not change, results, files, bad input."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.exceptions import NotFittedError
from torch import Tensor

from celldial import VAE
from helpers.assertions import assert_same_model, assert_untouched
from helpers.fit import fit, fit_clusters
from helpers.periodic import COLUMNS, fit_once, genes_of, make_cells, make_model
from helpers.raises import raises, warns
from helpers.simulate import (
    COVARIATES,
    simulate,
    simulate_groups,
    simulate_modalities,
    simulate_two,
    with_empty_cells,
    write,
)


def in_batches(adata: AnnData, *names: str) -> AnnData:
    """Return the cells in batches of these names, which alternate."""
    adata.obs["batch"] = [names[cell % len(names)] for cell in range(adata.n_obs)]
    return adata


def split(adata: AnnData) -> tuple[AnnData, AnnData]:
    """Return the cells of `simulate` with batch b0 divided in two, and those of b1 as new cells.

    In the new cells, most counts of the first ten genes are lost.
    """
    is_new_c = (adata.obs["batch"] == "b1").to_numpy()
    x = adata.X.toarray()
    x[:, :10] = np.where(is_new_c[:, None], np.random.default_rng(0).binomial(x[:, :10].astype(int), 0.3), x[:, :10])
    adata.X = sparse.csr_matrix(x, dtype=np.float32)
    return in_batches(adata[~is_new_c].copy(), "b0", "b2"), adata[is_new_c].copy()


def weights(model: VAE) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.module_.state_dict().items()}


def assert_kept(mapped: VAE, model: VAE) -> None:
    """Assert that the mapped model has all values of the other model, bit by bit, and more categories."""
    found, expected = weights(mapped), weights(model)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        n_rows = len(tensor) if ".categorical." in name else None
        assert torch.equal(found[name][:n_rows] if n_rows else found[name], tensor), name
        if n_rows:
            assert len(found[name]) > n_rows


@pytest.fixture(scope="module")
def cells() -> tuple[AnnData, AnnData]:
    """Return the cells to fit, and new cells."""
    return split(simulate(240))


@pytest.fixture(scope="module")
def model(cells: tuple[AnnData, AnnData]) -> VAE:
    return fit(cells[0].copy(), VAE(3, 16, batch_key="batch"), max_epochs=20)


@pytest.fixture
def reference(cells: tuple[AnnData, AnnData]) -> AnnData:
    return cells[0].copy()


@pytest.fixture
def query(cells: tuple[AnnData, AnnData]) -> AnnData:
    return cells[1].copy()


def map_query(model: VAE, adata: Any, **options: Any) -> VAE:
    return model.map_query(adata, progress=False, **options)


# --- What is learned, and what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"decoder": "additive", "n_layers": 2, "likelihood": "zero_inflated_negative_binomial"},
        {"decoder": "linear", "bayesian_loadings": True, "likelihood": "poisson"},
        {"prior": "mixture", "gradient": "score_function"},
    ],
    ids=["network", "additive", "linear", "score function"],
)
def test_reference_is_the_same_bit_by_bit(
    reference: AnnData, query: AnnData, parameters: dict[str, Any], tmp_path: Path
) -> None:
    keys: dict[str, Any] = dict(COVARIATES)
    reference.obs["donor"], query.obs["donor"] = "x", ["x", "new"] * (query.n_obs // 2)
    model = fit(reference.copy(), VAE(2, 8, **keys, **parameters))
    before, expected = weights(model), model.transform(reference)
    mapped = map_query(model, query)
    assert_kept(mapped, model)
    np.testing.assert_array_equal(mapped.transform(reference), expected)
    # The model that was mapped to is as it was.
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert (model.schema_.categories["batch"], model.schema_.categories["donor"]) == (("b0", "b2"), ("x",))
    assert mapped.schema_.categories == {"batch": ("b0", "b2", "b1"), "donor": ("x", "new")}
    mapped.save(tmp_path / "mapped.celldial")
    loaded = VAE.load(tmp_path / "mapped.celldial")
    np.testing.assert_array_equal(loaded.transform(query), query.obsm["X_celldial"])
    assert loaded.fingerprint_ == mapped.fingerprint_ != model.fingerprint_


def test_all_effects_of_a_new_category_are_learned(model: VAE, query: AnnData) -> None:
    mapped = map_query(model, query)
    for name, tensor in weights(mapped).items():
        if ".categorical." in name:
            assert (tensor[-1] != tensor[:-1].mean(0)).all(), name
    assert all(parameter.requires_grad for parameter in mapped.module_.parameters())


def test_new_batch_is_better_than_a_known_one(model: VAE, reference: AnnData, query: AnnData) -> None:
    mapped = map_query(model, query)
    as_known = query.copy()
    as_known.obs["batch"] = "b0"
    assert mapped.score(query, n_samples=10) > model.score(as_known, n_samples=10) + 0.5


def test_known_categories_change_nothing(model: VAE, reference: AnnData) -> None:
    expected = model.transform(reference)
    mapped = map_query(model, reference)
    assert_same_model(mapped, model)
    assert mapped.fingerprint_ == model.fingerprint_
    np.testing.assert_array_equal(reference.obsm["X_celldial"], expected)


def test_model_without_covariates(reference: AnnData) -> None:
    model = fit(reference.copy())
    assert map_query(model, reference[:10].copy()).fingerprint_ == model.fingerprint_


def test_cells_of_known_batches_do_not_matter(model: VAE, reference: AnnData, query: AnnData) -> None:
    both = AnnData(
        np.concatenate([query.X.toarray(), reference.X.toarray()]),
        {"batch": [*query.obs["batch"], *reference.obs["batch"]]},
        query.var.copy(),
    )
    alone, together = weights(map_query(model, query)), weights(map_query(model, both))
    assert all(torch.equal(tensor, alone[name]) for name, tensor in together.items())


def test_map_twice(model: VAE, reference: AnnData, query: AnnData) -> None:
    first, second = query[:60].copy(), query[60:].copy()
    second.obs["batch"] = "b3"
    mapped = map_query(model, first)
    again = map_query(mapped, second)
    assert again.schema_.categories["batch"] == ("b0", "b2", "b1", "b3")
    np.testing.assert_array_equal(again.transform(first), first.obsm["X_celldial"])
    np.testing.assert_array_equal(again.transform(reference), model.transform(reference))


def test_seed(model: VAE, query: AnnData) -> None:
    state = torch.get_rng_state()
    first, second = map_query(model, query), map_query(model, query)
    assert first.fingerprint_ == second.fingerprint_
    assert torch.equal(torch.get_rng_state(), state)


def test_history_continues(model: VAE, query: AnnData) -> None:
    mapped = map_query(model, query, max_epochs=3, batch_size=50)
    assert mapped.history_["elbo_train"][:20] == model.history_["elbo_train"]
    assert len(mapped.history_["elbo_train"]) == 23
    assert mapped.history_["kept"] == [0.0] * 22 + [1.0]


# --- Modalities, labels, circle, files --------------------------------------------------------------------------------


def test_missing_modality() -> None:
    reference, query = split(simulate_two(120))
    model = fit(reference, VAE(2, 8, batch_key="batch"))
    mapped = map_query(model, query[:, :20].copy())
    assert_kept(mapped, model)
    for name, tensor in weights(mapped).items():
        if ".categorical." in name:  # the effects on peaks, which were not measured, are those of the average batch
            assert torch.equal(tensor[-1], tensor[:-1].mean(0)) == ("atac" in name), name


def test_labels(tmp_path: Path) -> None:
    adata = in_batches(simulate_groups((80, 80, 80)), "b0", "b1", "b2")
    adata.obs["label"] = adata.obs["group"]
    is_new_c = (adata.obs["batch"] == "b2").to_numpy()
    query = adata[is_new_c].copy()
    model = fit_clusters(adata[~is_new_c].copy(), labels_key="label", batch_key="batch")
    query.obs["label"] = "unknown"
    mapped = map_query(model, query)
    assert (query.obsm["celldial_cluster_probability"].idxmax(axis=1) == query.obs["group"]).mean() > 0.95
    assert (query.obs["celldial_cluster"] == "unassigned").mean() < 0.2
    expected = query.obs["celldial_cluster"].copy()
    mapped.save(tmp_path / "mapped.celldial")
    VAE.load(tmp_path / "mapped.celldial").clusters(query)
    assert list(query.obs["celldial_cluster"]) == list(expected)


def test_periodic() -> None:
    adata = in_batches(genes_of(make_cells(300)), "b0", "b1", "b2")
    is_new_c = (adata.obs["batch"] == "b2").to_numpy()
    reference, query = adata[~is_new_c].copy(), adata[is_new_c].copy()
    model = make_model(batch_key="batch").fit(reference, max_epochs=6, progress=False)
    mapped = map_query(model, query)
    assert_kept(mapped, model)
    assert set(COLUMNS) <= set(query.obs)
    assert mapped.periodic_ is not None
    np.testing.assert_array_equal(
        mapped.transform(reference, include_periodic=True), model.transform(reference, include_periodic=True)
    )


def test_files(model: VAE, query: AnnData, tmp_path: Path) -> None:
    path = write(query, tmp_path / "query.h5ad")
    before = path.read_bytes()
    mapped = map_query(model, path)
    assert_kept(mapped, model)
    assert mapped.schema_.categories["batch"] == ("b0", "b2", "b1")
    assert path.read_bytes() == before
    as_known = query.copy()
    as_known.obs["batch"] = "b0"
    assert mapped.score(query, n_samples=10) > model.score(as_known, n_samples=10) + 0.5


def test_periodic_from_files(tmp_path: Path) -> None:
    model, adata = fit_once()
    with raises(ValueError, naming=["read_h5ad"]):
        map_query(model, write(adata.copy(), tmp_path / "query.h5ad"))


def test_results(model: VAE, query: AnnData) -> None:
    before = query.copy()
    mapped = map_query(model, query, key_added="X_mapped")
    assert_untouched(query, before, but=("obs", "obsm", "uns"))
    columns = [f"celldial_mapping_{name}" for name in ("likelihood", "distance", "quality")]
    assert list(query.obs) == [*before.obs, *columns]
    record = query.uns["celldial"]
    assert record["written"]["obs"] == dict.fromkeys(columns, mapped.fingerprint_)
    assert record["written"]["obsm"] == {"X_mapped": mapped.fingerprint_}
    assert record["model"] == mapped.fingerprint_
    assert list(record["schema"]["categories"]["batch"]) == ["b0", "b2", "b1"]
    np.testing.assert_array_equal(query.obsm["X_mapped"], mapped.transform(query))


def test_layer(model: VAE, query: AnnData) -> None:
    normalized = query.copy()
    normalized.layers["counts"], normalized.X = normalized.X.copy(), normalized.X / 2
    mapped = map_query(model, normalized, layer="counts")
    assert mapped.fingerprint_ == map_query(model, query).fingerprint_
    assert mapped.schema_.layer is None
    pd.testing.assert_frame_equal(normalized.obs, query.obs)
    with raises(ValueError, naming=["c1"]):
        map_query(model, normalized)


def test_multimodal_reference_is_the_same() -> None:
    adata = in_batches(simulate_modalities(), "b0", "b1")
    query = in_batches(simulate_modalities(seed=1), "b2")
    model = fit(adata, VAE(2, 8, batch_key="batch"))
    assert_kept(map_query(model, query), model)


def test_reports_new_categories(model: VAE, query: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="celldial"):
        map_query(model, query)
    assert any("'b1'" in record.getMessage() for record in caplog.records)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_errors_name_map_query(model: VAE, query: AnnData) -> None:
    for method in (model.transform, model.partial_fit, model.score, model.denoise):
        with raises(ValueError, naming=["batch", "b1", "map_query"]):
            method(query)


def test_not_fitted(query: AnnData) -> None:
    with pytest.raises(NotFittedError):
        map_query(VAE(), query)


def break_column(adata: AnnData) -> None:
    adata.obs["batch"] = None


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        (lambda adata: adata.obs.pop("batch"), KeyError, ["batch"]),
        (break_column, ValueError, ["batch", "c1"]),
        (lambda adata: adata.X.data.__setitem__(0, 0.5), ValueError, ["c1", 0.5]),
        (lambda adata: adata.obsm.__setitem__("X_celldial2", adata.X.toarray()), ValueError, ["X_celldial2"]),
    ],
    ids=["no column", "missing value", "no count", "key"],
)
def test_bad_cells_stay_untouched(
    model: VAE, query: AnnData, change: Any, error: type[Exception], facts: list[Any]
) -> None:
    change(query)
    before = query.copy()
    with raises(error, naming=facts):
        map_query(model, query, key_added="X_celldial2")
    assert_untouched(query, before)


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"batch_size": 0}, {"key_added": "a/b"}])
def test_bad_options(model: VAE, query: AnnData, options: dict[str, Any]) -> None:
    with raises(ValueError, naming=[next(iter(options))]):
        map_query(model, query, **options)
    assert "celldial" not in query.uns


def test_other_features(model: VAE, query: AnnData) -> None:
    query.var_names = [f"other{gene}" for gene in range(query.n_vars)]
    with raises(ValueError, naming=["g0", "other0"]):
        map_query(model, query)


def test_empty_cells(model: VAE, query: AnnData) -> None:
    query = with_empty_cells(query, 3)
    with warns(UserWarning, naming=[query.obs_names[3]]):
        map_query(model, query)
    np.testing.assert_array_equal(query.obsm["X_celldial"][3], 0)


def test_only_empty_cells(model: VAE, query: AnnData) -> None:
    with raises(ValueError):
        map_query(model, with_empty_cells(query, *range(query.n_obs)))

"""Partly known labels: reading, training, and errors of invalid labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from anndata import AnnData, read_h5ad

from celldial import VAE
from celldial.data.cells import Cells
from celldial.data.labels import encode_labels, find_labels, hold_out_labels, name_clusters
from celldial.data.schema import Schema
from celldial.data.splits import train_validation_split
from celldial.inference.fitted_model import to_anndata
from celldial.io.results import CLUSTER, CLUSTER_DISPUTED, CLUSTER_PROBABILITY
from celldial.io.tables import columns_for_files
from celldial.model.module import LABEL_WEIGHT
from helpers.assertions import assert_untouched
from helpers.fit import fit_clusters as fit
from helpers.raises import raises, warns
from helpers.simulate import simulate_groups, with_labels

# --- Reading ----------------------------------------------------------------------------------------------------------


def table(*labels: Any, dtype: Any = object) -> pd.DataFrame:
    return pd.DataFrame({"label": pd.Series(labels, dtype=dtype)})


COLUMNS: dict[str, tuple[pd.DataFrame, list[str], list[int]]] = {
    "text": (table("b", "unknown", "a", "b"), ["a", "b"], [1, -1, 0, 1]),
    "missing": (table("b", None, np.nan, "a", pd.NA), ["a", "b"], [1, -1, -1, 0, -1]),
    "categories": (table("b", "unknown", None, "a", dtype="category"), ["a", "b"], [1, -1, -1, 0]),
    "strings": (table("b", "unknown", None, "a", dtype="string"), ["a", "b"], [1, -1, -1, 0]),
    "whole numbers": (table(10, 2, 2, dtype=int), ["10", "2"], [0, 1, 1]),
    "numbers with gaps": (table(3, np.nan, 1, dtype=float), ["1.0", "3.0"], [1, -1, 0]),
    "numbers as categories": (table(3, None, 1, dtype="category"), ["1", "3"], [1, -1, 0]),
    "yes and no": (table(True, False, dtype=bool), ["False", "True"], [1, 0]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_labels_of_every_kind(kind: str) -> None:
    obs, names, expected = COLUMNS[kind]
    before = obs.copy()
    assert find_labels(obs, "label", "unknown") == names
    described = {"names": [*names, "extra"], "labels_key": "label", "unknown_label": "unknown"}
    found = encode_labels(obs, described)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    pd.testing.assert_frame_equal(obs, before)


@pytest.mark.parametrize("spelling", ["", " ", "nan", "NaN", "NA", "n/a", "None", "Unknown", "UNKNOWN", "Unassigned"])
def test_other_spellings_of_unknown_are_unknown_and_named(spelling: str) -> None:
    obs = table("a", spelling, "b", "unknown", spelling, None)
    with warns(naming=["'label'", f"{spelling!r} (2 cells)"]):
        assert find_labels(obs, "label", "unknown") == ["a", "b"]
    described = {"names": ["a", "b"], "labels_key": "label", "unknown_label": "unknown"}
    assert encode_labels(obs, described).tolist() == [0, -1, 1, -1, -1, -1]


def test_held_out_labels_are_a_fifth_of_each_frequent_label() -> None:
    label_c = torch.tensor([0] * 50 + [1] * 5 + [2] * 4 + [-1] * 10)
    train_c = torch.arange(69)[torch.arange(69) != 3]
    masked_c = hold_out_labels(label_c, train_c, seed=0)
    held_out_c = (label_c >= 0) & (masked_c < 0)
    assert [int(held_out_c[label_c == label].sum()) for label in range(3)] == [10, 1, 0]
    assert not held_out_c[3]
    assert (masked_c[~held_out_c] == label_c[~held_out_c]).all()
    assert (hold_out_labels(label_c, train_c, seed=0) == masked_c).all()
    assert (hold_out_labels(label_c, train_c, seed=1) != masked_c).any()


@pytest.mark.parametrize(
    ("obs", "unknown"),
    [(table("a", "?", "b"), "?"), (table(1, -1, 2, dtype=int), -1), (table(1, -1, 2, dtype=float), -1)],
)
def test_values_that_mean_no_label(obs: pd.DataFrame, unknown: Any) -> None:
    names = find_labels(obs, "label", unknown)
    assert len(names) == 2
    assert encode_labels(obs, {"names": names, "labels_key": "label", "unknown_label": unknown}).tolist() == [0, -1, 1]


def test_without_labels_nothing_is_encoded() -> None:
    obs = table("a", "b")
    assert encode_labels(obs, None) is None
    assert encode_labels(obs, {"names": ["0", "1"]}) is None
    assert encode_labels(obs, {"names": ["a", "b"], "labels_key": "other", "unknown_label": "unknown"}) is None


def test_labels_that_are_not_in_the_model() -> None:
    described = {"names": ["a", "b"], "labels_key": "label", "unknown_label": "unknown"}
    with raises(ValueError, naming=["'label'", "'c'", "'d'", "'a'", "'b'"]):
        encode_labels(table("d", "a", "c", "c"), described)


@pytest.mark.parametrize(
    ("obs", "found"),
    [
        (table("a", "a", "unknown"), ["'a'"]),
        (table("unknown", "unknown"), []),
        (table(np.nan, np.nan, dtype=float), []),
    ],
)
def test_one_label_is_too_few(obs: pd.DataFrame, found: list[str]) -> None:
    with raises(ValueError, naming=["'label'", "'unknown'", *found]):
        find_labels(obs, "label", "unknown")


def test_names_of_clusters() -> None:
    assert name_clusters([], 3) == ["0", "1", "2"]
    assert name_clusters(["a", "b"], None) == ["a", "b"]
    assert name_clusters(["a", "b"], 2) == ["a", "b"]
    assert name_clusters(["a", "5"], 4) == ["a", "5", "0", "1"]
    with raises(ValueError, naming=["n_clusters", 1, 2]):
        name_clusters(["a", "b"], 1)
    with raises(ValueError, naming=["'1'"]):
        name_clusters(["1", "b"], 4)


def test_names_of_columns_have_no_slash() -> None:
    assert columns_for_files(["CD4+/CD25 T", "B"]) == ["CD4+-CD25 T", "B"]
    with raises(ValueError, naming=["'a-b'"]):
        name_clusters(["a-b", "a/b"], None)


# --- Training ---------------------------------------------------------------------------------------------------------


def accuracy(adata: AnnData, among: Any = slice(None)) -> float:
    predicted = adata.obs[CLUSTER].astype(str)
    return float((predicted == "type " + adata.obs["group"]).to_numpy()[among].mean())


@pytest.fixture(scope="module")
def fitted() -> tuple[VAE, AnnData]:
    adata = with_labels(simulate_groups())
    return fit(adata, labels_key="label"), adata


def test_cells_without_a_label_get_one(fitted: tuple[VAE, AnnData]) -> None:
    _, adata = fitted
    assert list(adata.obs[CLUSTER].cat.categories) == ["type A", "type B", "type C", "unassigned"]
    assert list(adata.obsm[CLUSTER_PROBABILITY].columns) == ["type A", "type B", "type C"]
    assert accuracy(adata, adata.obs["label"] == "unknown") > 0.9


def test_new_cells_get_one(fitted: tuple[VAE, AnnData]) -> None:
    model, _ = fitted
    cells = simulate_groups((70, 20, 40))[::2].copy()  # of the same groups, in other numbers
    model.clusters(cells)
    assert accuracy(cells) > 0.9


def test_known_labels_do_not_change_the_inferred_clusters(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    expected = model.clusters(adata.copy())
    without, wrong = adata.copy(), adata.copy()
    del without.obs["label"]
    wrong.obs["label"] = "unknown label"
    pd.testing.assert_frame_equal(model.clusters(without), expected)
    pd.testing.assert_frame_equal(model.clusters(wrong), expected)
    assert model.score(without) == model.score(adata)


def test_one_cell_of_each_label_is_enough() -> None:
    adata = simulate_groups()
    first = {group: np.flatnonzero(adata.obs["group"] == group)[0] for group in "ABC"}
    adata.obs["label"] = None
    for group, cell in first.items():
        adata.obs.iloc[cell, adata.obs.columns.get_loc("label")] = f"type {group}"
    with warns(naming=["'label'", 5]):  # too few labels to hold some out
        model = fit(adata, max_epochs=40, labels_key="label")
    assert accuracy(adata) > 0.9
    assert model.clusters(adata).attrs["calibration_error"] is None


def test_all_labels_may_be_known() -> None:
    adata = simulate_groups()
    adata.obs["label"] = pd.Categorical("type " + adata.obs["group"])
    held_out_c = np.arange(adata.n_obs) % 5 == 0
    model = fit(adata, labels_key="label", validation_cells=held_out_c)
    assert accuracy(adata, held_out_c) > 0.9
    assert model.clusters_["n_labels"] == 3


def test_a_group_without_a_label_gets_a_cluster_of_its_own() -> None:
    adata = with_labels(simulate_groups(), without="C")
    fit(adata, labels_key="label", n_clusters=3)
    assert list(adata.obs[CLUSTER].cat.categories) == ["type A", "type B", "0", "unassigned"]
    predicted = adata.obs[CLUSTER].astype(str)[adata.obs["group"] == "C"]
    assert (predicted == "0").mean() > 0.9
    assert accuracy(adata, adata.obs["group"] != "C") > 0.9


@pytest.mark.parametrize("is_new", [False, True], ids=["in the cells of fit", "in new cells"])
def test_a_group_without_a_label_is_unassigned(is_new: bool) -> None:
    adata = with_labels(simulate_groups(), share=0.5, without="C")
    is_left_out_c = (adata.obs["group"] == "C").to_numpy()
    trained = adata[~is_left_out_c].copy() if is_new else adata
    model = fit(trained, labels_key="label")
    table = model.clusters(adata)
    is_unassigned_c = (adata.obs[CLUSTER] == "unassigned").to_numpy()
    assert is_unassigned_c[is_left_out_c].mean() > 0.8
    assert is_unassigned_c[~is_left_out_c].mean() < 0.15
    assert accuracy(adata, ~is_left_out_c & ~is_unassigned_c) > 0.95
    model.clusters(adata, min_probability=0)
    assert adata.obs[CLUSTER].astype(str).tolist() == table.idxmax(axis=1).tolist()


def test_the_record_of_labels(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    record = adata.uns["celldial"]["labels"]
    assert (record["n_held_out"], record["min_probability"]) == (3, 0.5)
    assert np.isnan(record["calibration_error"])  # of three cells
    assert adata.obs[CLUSTER_DISPUTED].dtype == bool
    cells = adata.copy()
    model.clusters(cells, min_probability=1)
    assert (cells.obs[CLUSTER] == "unassigned").all()
    with raises(ValueError, naming=["min_probability", 1.5]):
        model.clusters(cells, min_probability=1.5)
    fit(cells, max_epochs=1, n_clusters=2)
    assert CLUSTER_DISPUTED not in cells.obs
    assert "labels" not in cells.uns["celldial"]


def test_the_same_seed_gives_the_same_labels() -> None:
    tables = []
    for seed in (0, 0, 1):
        adata = with_labels(simulate_groups((40, 40)), share=0.5)
        tables.append(fit(adata, max_epochs=3, seed=seed, labels_key="label").clusters(adata))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not np.allclose(tables[0], tables[2])


@pytest.mark.parametrize("gradient", ["gumbel_softmax", "score_function"])
def test_every_gradient_estimator_learns_labels(gradient: str) -> None:
    adata = with_labels(simulate_groups())
    fit(adata, labels_key="label", gradient=gradient)
    assert accuracy(adata, adata.obs["label"] == "unknown") > 0.9


def test_cross_entropy_of_labels_is_part_of_the_loss(fitted: tuple[VAE, AnnData]) -> None:
    """In addition to the ELBO, in which known labels replace the inferred clusters."""
    model, adata = fitted
    table = to_anndata(model, adata)
    label_c = encode_labels(table.obs, model.clusters_)
    wrong_c = torch.where(label_c >= 0, (label_c + 1) % len(model.clusters_["names"]), label_c)  # all wrong
    cells = replace(Cells.from_anndata(table, model.schema_), label_c=wrong_c)
    module = model.module_.eval()
    torch.manual_seed(0)
    loss = module(cells)
    encoded = module.encode(cells)
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        elbo = -module.elbo_estimator.differentiable_loss(module.model, module.guide, cells, encoded)
    known_c = cells.label_c >= 0
    log_q_c = encoded.logits_ck.log_softmax(-1)[known_c].gather(1, cells.label_c[known_c, None])
    assert log_q_c.mean() < -1
    torch.testing.assert_close(loss, -(elbo + LABEL_WEIGHT * log_q_c.sum()) / len(cells))
    assert known_c.any()
    assert not known_c.all()


def test_labels_of_validation_cells_are_not_used() -> None:
    tables = []
    for seed in (0, 1):
        adata = with_labels(simulate_groups(), share=0.8)
        held_out_c = np.arange(adata.n_obs) % 3 == 0
        shuffled = np.random.default_rng(seed).permutation(adata.obs["label"].to_numpy()[held_out_c])
        adata.obs.loc[held_out_c, "label"] = shuffled
        fit(adata, max_epochs=4, labels_key="label", validation_cells=held_out_c)
        tables.append(adata.obsm[CLUSTER_PROBABILITY])
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize(("share", "stay"), [(0.1, True), (0.4, True), (0.8, False)])
def test_labeled_cells_are_training_cells_unless_most_have_a_label(share: float, stay: bool) -> None:
    adata = with_labels(simulate_groups(), share)
    cells = Cells.from_anndata(adata, Schema.from_anndata(adata))
    described = {"names": ["type A", "type B", "type C"], "labels_key": "label", "unknown_label": "unknown"}
    cells = cells.__class__(**{**vars(cells), "label_c": encode_labels(adata.obs, described)})
    train_c, validation_c = train_validation_split(adata, cells, 0.25, None, seed=0)
    assert sorted([*train_c.tolist(), *validation_c.tolist()]) == list(range(180))
    assert (train_c.diff() > 0).all()
    n_open = int((cells.label_c < 0).sum()) if stay else 180
    assert len(validation_c) == round(n_open / 4)
    assert ((cells.label_c[validation_c] < 0).all().item()) is stay


def test_a_label_of_only_an_empty_cell() -> None:
    adata = with_labels(simulate_groups((20, 20)), share=0.3)
    adata.obs.iloc[0, adata.obs.columns.get_loc("label")] = "type Z"
    x = adata.X.toarray()
    x[0] = 0
    adata.X = type(adata.X)(x)
    with warns(naming=[1, 40]):
        fit(adata, max_epochs=2, labels_key="label")
    assert list(adata.obs[CLUSTER].cat.categories) == ["type A", "type B", "type Z", "unassigned"]
    assert adata.obs[CLUSTER].iloc[0] == "unassigned"
    assert np.isfinite(adata.obsm[CLUSTER_PROBABILITY].to_numpy()).all()


# --- Continued training and files -------------------------------------------------------------------------------------


def reloaded(model: VAE, path: Path) -> VAE:
    model.save(path / "model.celldial")
    return VAE.load(path / "model.celldial")


def test_a_file_keeps_names(fitted: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = fitted
    loaded = reloaded(model, tmp_path)
    assert loaded.clusters_ == model.clusters_
    pd.testing.assert_frame_equal(loaded.clusters(adata.copy()), model.clusters(adata.copy()))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(
        read_h5ad(tmp_path / "cells.h5ad").obsm[CLUSTER_PROBABILITY], adata.obsm[CLUSTER_PROBABILITY]
    )


def test_partial_fit_uses_new_labels(fitted: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, _ = fitted
    labeled, unlabeled = (with_labels(simulate_groups(), share=0.5, seed=1) for _ in range(2))
    del unlabeled.obs["label"]
    found = []
    for cells in (labeled, unlabeled):
        reloaded(model, tmp_path).partial_fit(cells, max_epochs=2, validation_size=0, progress=False)
        assert list(cells.obs[CLUSTER].cat.categories) == ["type A", "type B", "type C", "unassigned"]
        assert accuracy(cells) > 0.9
        found.append(cells.obsm[CLUSTER_PROBABILITY])
    assert (found[0] != found[1]).any(axis=None)


def test_partial_fit_refuses_unknown_labels(fitted: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = fitted
    loaded = reloaded(model, tmp_path)
    cells = with_labels(simulate_groups())
    cells.obs.loc[cells.obs_names[:3], "label"] = "type Z"
    before = cells.copy()
    with raises(ValueError, naming=["'type Z'", "'unknown'"]):
        loaded.partial_fit(cells, max_epochs=1, progress=False)
    assert_untouched(cells, before)
    pd.testing.assert_frame_equal(loaded.clusters(adata.copy()), model.clusters(adata.copy()))


def test_labels_with_a_slash_can_be_written(tmp_path: Path) -> None:
    adata = with_labels(simulate_groups((20, 20)), share=0.3)
    adata.obs["label"] = adata.obs["label"].replace({"type A": "CD4+/CD25 T Reg"})
    model = fit(adata, max_epochs=2, labels_key="label")
    assert list(adata.obs[CLUSTER].cat.categories) == ["CD4+/CD25 T Reg", "type B", "unassigned"]
    assert list(adata.obsm[CLUSTER_PROBABILITY].columns) == ["CD4+-CD25 T Reg", "type B"]
    assert list(model.clusters(adata).columns) == ["CD4+/CD25 T Reg", "type B"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(back.obsm[CLUSTER_PROBABILITY], adata.obsm[CLUSTER_PROBABILITY])
    assert back.obs[CLUSTER].tolist() == adata.obs[CLUSTER].tolist()


# --- Bad input --------------------------------------------------------------------------------------------------------


def rename(adata: AnnData, **names: str) -> None:
    adata.obs["label"] = adata.obs["label"].replace(names)


def set_labels(adata: AnnData, label: Any) -> None:
    adata.obs["label"] = label


# Name: a change of the cells, parameters, the error, and the facts it names.
BAD_INPUT: dict[str, tuple[Callable[[AnnData], Any] | None, dict[str, Any], type[Exception], list[Any]]] = {
    "no such column": (None, {"labels_key": "lable"}, KeyError, ["labels_key", "'lable'", "'label'"]),
    "only one label": (lambda a: set_labels(a, "A"), {}, ValueError, ["'label'", "'A'"]),
    "one label and none": (
        lambda a: a.obs["label"].where(a.obs["label"] == "type A", "unknown").pipe(lambda c: set_labels(a, c)),
        {},
        ValueError,
        ["'type A'", "'unknown'"],
    ),
    "none": (lambda a: set_labels(a, "unknown"), {}, ValueError, ["'label'", "'unknown'"]),
    "all missing": (lambda a: set_labels(a, None), {}, ValueError, ["'label'", "'unknown'"]),
    "another word for none": (lambda a: set_labels(a, "?"), {"unknown_label": "?"}, ValueError, ["'label'", "'?'"]),
    "fewer clusters": (None, {"n_clusters": 2}, ValueError, ["n_clusters", 2, 3]),
    "one cluster": (None, {"n_clusters": 1}, ValueError, ["n_clusters", 1, 2]),
    "a label like a number": (
        lambda a: rename(a, **{"type B": "0"}),
        {"n_clusters": 4},
        ValueError,
        ["'0'"],
    ),
    "more clusters than cells": (None, {"n_clusters": 61}, ValueError, ["n_clusters", 61, 60]),
    "labels that are written alike": (
        lambda a: rename(a, **{"type A": "T/B", "type B": "T-B"}),
        {},
        ValueError,
        ["'T-B'"],
    ),
    "what is written itself": (
        lambda a: a.obs.insert(0, CLUSTER, a.obs["label"]),
        {"labels_key": CLUSTER},
        ValueError,
        ["labels_key", "'celldial_cluster'"],
    ),
    "a prior, too": (None, {"prior": "flow"}, ValueError, ["prior", "'flow'"]),
    "a circle, too": (None, {"periodic": True}, ValueError, ["labels_key", "'label'", "periodic"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_and_changes_nothing(case: str) -> None:
    spoil, parameters, error, facts = BAD_INPUT[case]
    adata = with_labels(simulate_groups((20, 20, 20)))
    if spoil is not None:
        spoil(adata)
    adata.obsm[CLUSTER_PROBABILITY] = np.ones((60, 2))
    before = adata.copy()
    model = VAE(**{"n_latent": 2, "n_hidden": 8, "labels_key": "label", **parameters})
    with raises(error, naming=facts):
        model.fit(adata, max_epochs=2, progress=False)
    assert_untouched(adata, before)
    np.testing.assert_array_equal(adata.obsm[CLUSTER_PROBABILITY], 1)
    assert not hasattr(model, "module_")

"""Results in an AnnData: which model wrote what, what may be replaced, and what is removed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from celldial import VAE, pl, tl
from celldial.io import results
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate

ABOUT = {"parameters": {"layer": None, "seed": 0}, "schema": {}, "history": {}}
AXIS = {"direction": np.ones(2), "filter": np.ones(2), "origin": np.zeros(2)}


def cells(n: int = 6) -> AnnData:
    obs = pd.DataFrame({"type": list("aabbcc")[:n]}, index=[f"c{i}" for i in range(n)])
    return AnnData(np.ones((n, 3), dtype=np.float32), obs=obs)


def write_fit(adata: AnnData, model: str, key_added: str = "X_celldial") -> None:
    results.check_fit(adata, key_added, None, False)
    results.write_fit(adata, model, np.full((adata.n_obs, 2), ord(model), dtype=np.float32), key_added, ABOUT)


def write_axis(adata: AnnData, model: str, name: str) -> None:
    results.check_axis_column(adata, name)
    results.write_axis(adata, model, name, np.linspace(0, 1, adata.n_obs, dtype=np.float32), AXIS)


def write_all(adata: AnnData, model: str, key_added: str = "X_celldial") -> None:
    write_fit(adata, model, key_added)
    write_axis(adata, model, f"axis of {model}")
    results.write_traversal(adata, model, f"path of {model}", {"kind": "path"})
    results.write_coordinates(adata, model, pd.DataFrame({"kl": [1.0]}, index=["axis_0"]))


# --- Several models ---------------------------------------------------------------------------------------------------


def test_models_with_keys_of_their_own_stand_side_by_side() -> None:
    adata = cells()
    write_all(adata, "A")
    write_all(adata, "B", "X_b")
    assert sorted(results.read_axes(adata)) == ["axis of A", "axis of B"]
    assert {"axis of A", "axis of B"} <= set(adata.obs)
    assert not any(stored.get("replaced") for stored in results.read_traversals(adata).values())
    assert [results.embedding_key(adata, model) for model in ("A", "B", "C")] == ["X_celldial", "X_b", None]
    record = results.read_record(adata)
    assert (record["model"], record["key_added"]) == ("B", "X_b")
    assert record["models"]["X_celldial"]["model"] == "A"
    write_fit(adata, "A")
    assert list(results.read_record(adata)["models"]) == ["X_b"]
    assert sorted(results.read_axes(adata)) == ["axis of A", "axis of B"]


def test_a_fit_removes_the_axes_of_the_model_that_it_replaces() -> None:
    adata = cells()
    write_all(adata, "A", "X_a")
    write_all(adata, "B")
    write_fit(adata, "C")
    assert list(results.read_axes(adata)) == ["axis of A"]
    assert "axis of B" not in adata.obs
    assert "coordinates" not in results.read_record(adata)
    replaced = {name: stored.get("replaced", False) for name, stored in results.read_traversals(adata).items()}
    assert replaced == {"path of A": False, "path of B": True}
    write_fit(adata, "B")  # the same weights again
    assert not any(stored.get("replaced", False) for stored in results.read_traversals(adata).values())


def test_another_fit_of_the_same_weights_replaces_nothing() -> None:
    adata = cells()
    write_all(adata, "A")
    write_fit(adata, "A")
    assert list(results.read_axes(adata)) == ["axis of A"]
    assert "coordinates" in results.read_record(adata)


# --- Columns of the user ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [np.arange(6), np.linspace(0, 1, 6) ** 2, list("uvwxyz"), pd.Categorical(["a"] * 6)])
def test_a_column_that_the_user_changed_is_kept(values: Any) -> None:
    adata = cells()
    write_all(adata, "A")
    adata.obs["axis of A"] = values
    before = adata.obs["axis of A"].copy()
    with raises(ValueError, naming=["adata.obs", "'axis of A'"]):
        write_axis(adata, "A", "axis of A")
    write_fit(adata, "B")
    pd.testing.assert_series_equal(adata.obs["axis of A"], before)
    with raises(ValueError, naming=["'axis of A'"]):  # it is the user's now
        write_axis(adata, "B", "axis of A")


@pytest.mark.parametrize("change", [lambda a: a[[4, 1, 2]].copy(), lambda a: a[::-1].copy(), lambda a: a.copy()])
def test_columns_are_recognized_in_a_part_of_the_cells(change: Callable[[AnnData], AnnData]) -> None:
    adata = cells()
    write_all(adata, "A")
    table = pd.DataFrame([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 3, adata.obs_names, columns=["T", "B"])
    results.write_clusters(adata, "A", table, pd.Categorical(table.idxmax(axis=1), table.columns))
    part = change(adata)
    write_axis(part, "A", "axis of A")
    results.check_clusters(part)
    part.obs["celldial_cluster"] = part.obs["celldial_cluster"].cat.rename_categories({"T": "T cells"})
    with raises(ValueError, naming=["celldial_cluster"]):
        results.check_clusters(part)
    write_fit(part, "B")
    assert "axis of A" not in part.obs


def test_keys_that_no_model_wrote_are_not_replaced() -> None:
    adata = cells()
    adata.obsm["X_umap"], adata.layers["counts"] = np.zeros((6, 2)), np.zeros((6, 3))
    adata.obs["celldial_cluster"] = "mine"
    adata.obs["cell_cycle_phase"] = "G1"
    for check, key in (
        (lambda: results.check_key(adata, "obsm", "X_umap"), "X_umap"),
        (lambda: results.check_expression(adata, "counts"), "counts"),
        (lambda: results.check_fit(adata, "X_umap", None, False), "X_umap"),
        (lambda: results.check_fit(adata, "X_new", "cell_cycle", False), "cell_cycle_phase"),
        (lambda: results.check_fit(adata, "X_new", None, True), "celldial_cluster"),
        (lambda: results.check_axis_column(adata, "type"), "type"),
        (lambda: results.check_key(adata, "obsm", "a/b"), "a/b"),
        (lambda: results.check_key(adata, "obsm", ""), ""),
    ):
        with raises(ValueError, naming=[repr(key)]):
            check()
    results.write_embedding(adata, "A", "X_a", np.zeros((6, 2)))
    results.check_key(adata, "obsm", "X_a")
    results.check_fit(adata, "X_celldial", "day", False)


def test_concatenated_cells_are_fitted_again() -> None:
    adata = cells()
    write_fit(adata, "A")
    both = anndata.concat([adata, cells()[:3].copy(), adata], index_unique="-")
    assert "celldial" not in both.uns
    write_all(both, "B")
    joined = anndata.concat([both[:8], both[8:]], uns_merge="same")
    write_axis(joined, "B", "axis of B")
    write_fit(joined, "C")
    assert "axis of B" not in joined.obs


# --- Removing ---------------------------------------------------------------------------------------------------------


def test_results_are_removed_and_the_rest_stays() -> None:
    adata = cells()
    adata.obsm["X_umap"] = np.zeros((6, 2))
    write_all(adata, "A")
    write_all(adata, "B", "X_b")
    results.write_axis(adata, "A", "edited", np.zeros(6, dtype=np.float32), AXIS)
    adata.obs["edited"] = 1
    assert set(tl.remove_results(adata, "X_b")) == {
        "obsm: X_b",
        "obs: axis of B",
        "latent_traverse: path of B",
        "coordinates: coordinates",
    }
    assert list(adata.obs) == ["type", "axis of A", "edited"]
    assert results.read_record(adata)["key_added"] == "X_celldial"
    assert results.read_record(adata)["model"] == "A"
    assert "models" not in results.read_record(adata)
    with raises(KeyError, naming=["'X_b'", "'X_celldial'"]):
        tl.remove_results(adata, "X_b")
    tl.remove_results(adata)
    assert (list(adata.obs), list(adata.obsm), list(adata.uns)) == (["type", "edited"], ["X_umap"], [])
    assert tl.remove_results(adata) == []


# --- With models ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_records_survive_files(model: VAE, tmp_path: Path, kind: str) -> None:
    mpl.use("Agg")
    adata = simulate()
    results.write_fit(adata, model.fingerprint_, model.transform(adata), "X_celldial", ABOUT)
    model.find_axis(adata, "response", obs="type")
    model.latent_traverse(adata, "response", n_steps=3, n_cells=4)
    model.latent_traverse(adata, 0, n_steps=3, n_cells=4)
    path = tmp_path / f"cells.{kind}"
    getattr(adata, f"write_{kind}")(path)
    read = anndata.read_h5ad(path) if kind == "h5ad" else anndata.read_zarr(path)
    pl.latent_traverse(read, "axis_0", show=False)
    pl.traverse_path(read, "response", "X_celldial", show=False)
    model.find_axis(read, "response", obs="type")
    other = fit(read, max_epochs=1)
    assert "response" not in read.obs
    for name in ("axis_0", "response"):
        with raises(ValueError, naming=[repr(name), model.fingerprint_]):
            pl.latent_traverse(read, name, show=False)
    other.latent_traverse(read, 0, n_steps=3, n_cells=4)
    pl.traverse_path(read, "axis_0", "X_celldial", show=False)


def test_a_traversal_is_not_drawn_on_the_embedding_of_another_model(model: VAE) -> None:
    mpl.use("Agg")
    adata = simulate()
    other = VAE(seed=5, n_latent=model.n_latent, n_hidden=8).fit(
        adata, max_epochs=1, progress=False, key_added="X_other"
    )
    model.latent_traverse(adata, 0, n_steps=3, n_cells=4)
    pl.latent_traverse(adata, "axis_0", show=False)  # needs no embedding
    with raises(ValueError, naming=["'axis_0'", model.fingerprint_, other.fingerprint_, "'X_other'"]):
        pl.traverse_path(adata, "axis_0", "X_other", show=False)
    adata.obsm["X_umap"] = adata.obsm["X_other"][:, :2]
    with raises(ValueError, naming=["'axis_0'", model.fingerprint_]):
        pl.traverse_path(adata, "axis_0", show=False)
    model.transform(adata, key_added="X_first")
    pl.traverse_path(adata, "axis_0", show=False)


def test_a_fit_that_would_replace_a_column_fails_before_training() -> None:
    adata = simulate()
    adata.obsm["X_umap"] = np.zeros((adata.n_obs, 2))
    model = VAE(2, 8)
    with raises(ValueError, naming=["'X_umap'"]):
        model.fit(adata, key_added="X_umap", progress=False)
    assert not hasattr(model, "module_")
    assert not adata.obsm["X_umap"].any()

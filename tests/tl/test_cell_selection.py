"""The cells that a traversal starts from and ends in."""

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from celldial import VAE
from celldial.tl import cell_selection
from helpers.raises import raises

# --- Which cells ------------------------------------------------------------------------------------------------------


def test_cells_are_found_by_name_and_by_group(adata: AnnData) -> None:
    assert len(cell_selection.select_cells(adata.obs, None)[0]) == 60
    found, called = cell_selection.select_cells(adata.obs, {"batch": "b1", "donor": "x"})
    assert list(found) == list(np.flatnonzero((adata.obs["batch"] == "b1") & (adata.obs["donor"] == "x")))
    assert called == "batch: b1, donor: x"
    np.testing.assert_array_equal(cell_selection.select_cells(adata.obs, ("donor", "y"))[0], np.arange(1, 60, 3))
    assert cell_selection.select_cells(adata.obs, "c7") == (np.array([7]), "cell c7")
    first, last = cell_selection.select_endpoints(adata.obs, ("x", "z"), None)
    assert (adata.obs["donor"].iloc[first] == "x").all()
    assert (adata.obs["donor"].iloc[last] == "z").all()
    assert cell_selection.select_endpoints(adata.obs, ("c1", "c2"), None) == (np.array([1]), np.array([2]))


@pytest.mark.parametrize(
    ("at", "error", "facts"),
    [
        ({"donors": "x"}, KeyError, ["'donors'", "'donor'"]),
        (("donor", "w"), KeyError, ["donor", "'w'", "'x'", "'y'", "'z'"]),
        ("c60", KeyError, ["'c60'"]),
        (("donor", "x", 3), ValueError, ["(column, value)"]),
        ({"batch": "b0", "age": -1.0}, KeyError, ["age", -1.0]),
    ],
)
def test_unknown_cells(model_3d: VAE, adata: AnnData, at: Any, error: type[Exception], facts: list[Any]) -> None:
    with raises(error, naming=facts):
        model_3d.latent_traverse(adata, at=at)
    assert not adata.uns


def test_groups_without_common_cells(adata: AnnData) -> None:
    with raises(ValueError, naming=["batch: b0", "name: c1"]):
        cell_selection.select_cells(adata.obs.assign(name=adata.obs_names), {"batch": "b0", "name": "c1"})


# --- VAE.latent_traverse ----------------------------------------------------------------------------------------------


def test_labels_in_several_columns_need_groupby(model_3d: VAE, adata: AnnData) -> None:
    adata.obs["copy"] = adata.obs["type"].astype(str)
    with raises(ValueError, naming=["'A'", "'B'", "'type'", "'copy'", "groupby"]):
        model_3d.latent_traverse(adata, ("A", "B"))

"""The axis of a traversal: invalid arguments, and the periodic axis."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from celldial import VAE
from celldial.tl import traversal_axis
from helpers.axes import AXIS, with_axis
from helpers.raises import raises


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"axis": 3}, ValueError, ["axis", 3, 0, 2]),
        ({"axis": "axis_9"}, ValueError, ["axis", 9]),
        ({"axis": 1.0}, TypeError, ["axis", 1.0]),
        ({"axis": True}, TypeError, ["axis", "True"]),
        ({"axis": "interferon"}, KeyError, ["'interferon'", "'response'", "'other'", "find_axis"]),
        ({"axis": "other"}, ValueError, ["'other'", 3]),
        ({"axis": ("A", "B", "C")}, ValueError, ["axis", "('A', 'B', 'C')"]),
        ({"axis": ("A", "A")}, ValueError, ["axis", "'A'"]),
        ({"axis": ("A", "Z")}, KeyError, ["'A'", "'Z'"]),
        ({"axis": ("A", "Z"), "groupby": "type"}, KeyError, ["type", "'Z'", "'A'", "'B'"]),
        ({"axis": ("A", "B"), "groupby": "kind"}, KeyError, ["groupby", "'kind'"]),
        ({"axis": ("A", "B"), "at": "c1"}, ValueError, ["axis", "at"]),
        ({"axis": 0, "groupby": "type"}, ValueError, ["groupby", "'type'", "axis"]),
        ({"n_steps": 1}, ValueError, ["n_steps", 1]),
        ({"span": (0.9, 0.1)}, ValueError, ["span", "(0.9, 0.1)"]),
        ({"span": "observed"}, TypeError, ["span", "'observed'"]),
        ({"span": 0.9}, TypeError, ["span", 0.9]),
        ({"n_cells": 0}, ValueError, ["n_cells", 0]),
        ({"n_samples": 1}, ValueError, ["n_samples", 1, 2]),
        ({"seed": -1}, ValueError, ["seed", -1]),
        ({"transform_batch": "b7"}, ValueError, ["'batch'", "'b7'", "'b0'", "'b1'"]),
        ({"transform_batch": {"type": "A"}}, KeyError, ["'type'"]),
        ({"transform_batch": {"batch": "b9"}}, ValueError, ["'batch'", "'b9'", "'b0'", "'b1'"]),
        ({"library_size": 0}, ValueError, ["library_size", 0]),
        ({"key_added": "a/b"}, ValueError, ["key_added", "'a/b'"]),
    ],
)
def test_invalid_arguments_of_latent_traverse(
    model_3d: VAE, adata: AnnData, options: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    with_axis(adata)
    adata.uns["celldial"]["axes"]["other"] = {**AXIS, "filter": np.ones(5, dtype=np.float32)}
    with raises(error, naming=facts):
        model_3d.latent_traverse(adata, **options)
    assert set(adata.uns) == {"celldial"}


def test_a_periodic_axis_belongs_to_its_model(model_3d: VAE) -> None:
    periodic = {"name": "cell_cycle", "phases": np.array(["G1", "S"]), "phase_start": np.array([0.0, 3.0])}

    def resolve(axis: str, described: dict[str, Any] | None) -> traversal_axis.TraversalAxis:
        module = SimpleNamespace(latent=SimpleNamespace(n_latent=3, coordinate_noun="axis"))
        fitted = SimpleNamespace(module_=module, periodic_=described)
        return traversal_axis.resolve_axis(axis, fitted, {})

    axis = resolve("cell_cycle", periodic)
    assert (axis.kind, axis.title, axis.label) == ("periodic", "cell cycle", "cell cycle angle (rad)")
    assert list(axis.phases["names"]) == ["G1", "S"]
    assert resolve("day", {"name": "day"}).phases == {}
    with raises(KeyError, naming=["cell_cycle"]):
        resolve("cell_cycle", None)

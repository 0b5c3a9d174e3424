"""Tests of which cells get a label, which are unassigned, and which are disputed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from celldial.inference.label_classifier import fit_label_classifier
from celldial.inference.posterior import LatentState
from celldial.tl.clusters import find_clusters

NAMES = ["B", "T"]
CENTERS = {"B": [0.0, 6, 0, 0], "T": [6.0, 0, 0, 0], "new type": [0.0, 0, 9, 0]}


@pytest.fixture(scope="module")
def cells() -> tuple[Any, LatentState, pd.DataFrame]:
    """Return a model whose labels are B and T, and cells of these and of a type without a label."""
    random = np.random.default_rng(0)
    type_c = np.repeat(list(CENTERS), 200)
    z_cz = np.array([CENTERS[name] for name in type_c]) + random.normal(size=(600, 4))
    label_c = np.where(np.arange(600) % 2 == 0, np.select([type_c == "B", type_c == "T"], [0, 1], -1), -1)
    held_out_c = (label_c >= 0) & (np.arange(600) % 5 == 0)
    classifier = fit_label_classifier(z_cz, label_c, held_out_c, 2, None, seed=0)
    model = SimpleNamespace(
        clusters_={"names": NAMES, "n_labels": 2},
        label_classifier_=classifier,
        schema_=SimpleNamespace(batch_key=None),
    )
    state = LatentState(z_cz, np.full_like(z_cz, 0.3), z_cz, cluster=np.full((600, 2), 0.5, dtype=np.float32))
    return model, state, pd.DataFrame({"type": type_c})


def test_known_types_get_their_label_and_a_new_type_gets_none(cells: tuple[Any, LatentState, pd.DataFrame]) -> None:
    model, state, obs = cells
    found = pd.Series(np.asarray(find_clusters(model, state, obs).cluster_c)).groupby(obs["type"])
    shares = found.value_counts(normalize=True)
    assert shares["B", "B"] > 0.9
    assert shares["T", "T"] > 0.9
    assert shares["new type", "unassigned"] > 0.8


def test_uncertain_cells_are_unassigned(cells: tuple[Any, LatentState, pd.DataFrame]) -> None:
    model, state, obs = cells
    between_cz = state.mean.copy()
    between_cz[0] = [3, 3, 0, 0]
    found = find_clusters(model, state._replace(mean=between_cz), obs, min_probability=0.99)
    assert found.cluster_c[0] == "unassigned"
    assert found.table.iloc[0].max() < 0.99
    # Without a threshold, every cell gets a label.
    assert "unassigned" not in set(find_clusters(model, state, obs, min_probability=0).cluster_c)

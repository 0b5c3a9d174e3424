"""`name_axes`: calibration of its p-values, planted programs, and what is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from celldial import VAE
from celldial.tl.name_axes import SetTester, log_normalized
from helpers.axes import assert_same_snapshot, snapshot
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import COVARIATES


def levels(n_cells: int = 150, n_genes: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return log-normalized counts of cells that differ in depth, and the logarithm of the depth."""
    random = np.random.default_rng(seed)
    depth_c = random.lognormal(0, 0.5, n_cells)
    counts_cf = random.poisson(depth_c[:, None] * random.lognormal(0, 1, n_genes))
    return np.log1p(counts_cf), np.log(depth_c)


def make_tester(level_cf: np.ndarray, values: dict[str, np.ndarray], batch_c: np.ndarray | None = None) -> SetTester:
    return SetTester(sparse.csr_matrix(level_cf), values, batch_c)


# --- The test ---------------------------------------------------------------------------------------------------------


def test_p_values_of_random_sets_are_uniform_over_axes_together() -> None:
    """One axis is the depth of the cells, which all genes follow."""
    level_cf, depth_c = levels()
    random = np.random.default_rng(1)
    values = {"depth": depth_c[:, None], "noise": random.normal(size=(150, 1)), "circle": random.normal(size=(150, 2))}
    tester = make_tester(level_cf, values)
    columns = [random.choice(200, 15, replace=False) for _ in range(100)]
    p_value = np.array([tester.test("set", column_f, 19, random)["p_value"].min() for column_f in columns])
    for level in (0.05, 0.2, 0.5):
        assert abs((p_value <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / 100)
    assert p_value.min() >= 1 / 20


def test_a_planted_program_is_found_on_its_axis() -> None:
    level_cf, depth_c = levels()
    random = np.random.default_rng(2)
    angle_c = random.uniform(0, 2 * np.pi, 150)
    plane_cu = np.stack([np.cos(angle_c), np.sin(angle_c)], axis=1)
    own_c = random.normal(size=150)
    level_cf[:, 20:35] -= 0.7 * own_c[:, None]
    level_cf[:, 50:65] += np.cos(angle_c - 1)[:, None]
    tester = make_tester(level_cf, {"depth": depth_c[:, None], "own": own_c[:, None], "circle": plane_cu})
    for axis, column_f, sign in (("own", np.arange(20, 35), -1), ("circle", np.arange(50, 65), 1)):
        table = tester.test("set", column_f, 199, random)
        assert table["axis"].iloc[0] == axis
        assert sign * table["correlation"].iloc[0] > 0.5
        assert table["p_value"].iloc[0] == 1 / 200


def test_the_correlation_is_that_with_the_score_within_batches() -> None:
    level_cf, depth_c = levels()
    batch_c = np.arange(150) % 2
    shifted_cf = level_cf + 3 * (batch_c[:, None] * (np.arange(200) < 10))
    z_c = depth_c + 5 * batch_c
    table = make_tester(shifted_cf, {"z": z_c[:, None]}, batch_c).test(
        "set", np.arange(10), 9, np.random.default_rng(0)
    )
    scaled_cf = shifted_cf / shifted_cf.std(0)
    bin_f = np.empty(200, dtype=int)
    bin_f[np.argsort(shifted_cf.mean(0), kind="stable")] = np.arange(200) // 20
    control_c = np.mean([scaled_cf[:, bin_f == bin_f[f]].mean(1) for f in range(10)], axis=0)
    score_c = scaled_cf[:, :10].mean(1) - control_c
    centered = [
        value_c - pd.Series(value_c).groupby(batch_c).transform("mean").to_numpy() for value_c in (score_c, z_c)
    ]
    assert table["correlation"].iloc[0] == pytest.approx(np.corrcoef(*centered)[0, 1], abs=1e-6)


def test_constant_genes_and_axes() -> None:
    level_cf, depth_c = levels()
    level_cf[:, :5] = 1
    tester = make_tester(level_cf, {"depth": depth_c[:, None], "flat": np.ones((150, 1))})
    table = tester.test("set", np.arange(8), 19, np.random.default_rng(0)).set_index("axis")
    assert (table["n_genes"] == 3).all()
    assert table["correlation"]["flat"] == pytest.approx(0, abs=1e-6)
    assert table["p_value"]["flat"] > 0.05
    with raises(ValueError, naming=["'set'"]):
        tester.test("set", np.arange(5), 19, np.random.default_rng(0))


def test_expression_is_log_normalized() -> None:
    counts = sparse.csr_matrix(np.array([[1, 3], [0, 5]], dtype=np.float32))
    np.testing.assert_allclose(
        log_normalized(counts, np.array([4.0, 10.0])).toarray(), np.log1p([[2500, 7500], [0, 5000]])
    )


# --- `VAE.name_axes` and `VAE.axes` -----------------------------------------------------------------------------------


def marker_sets(adata: AnnData) -> dict[str, list[str]]:
    """Return the genes that differ most between the two types of cells."""
    share_cf = adata.X.toarray() / adata.X.toarray().sum(1, keepdims=True)
    is_b = (adata.obs["type"] == "B").to_numpy()
    order = np.argsort(np.log((share_cf[is_b].mean(0) + 1e-3) / (share_cf[~is_b].mean(0) + 1e-3)))
    return {"A": [str(name).upper() for name in adata.var_names[order[:5]]], "B": list(adata.var_names[order[-5:]])}


def test_axes_are_named_and_stored(axis_model: VAE, axis_adata: AnnData, tmp_path: Path) -> None:
    axis_model.find_axis(axis_adata, "identity", obs="type")
    other = fit(axis_adata.copy(), VAE(2, 8, **COVARIATES), max_epochs=1)
    other.find_axis(axis_adata, "of another model", obs="type")
    before = snapshot(axis_adata)
    table = axis_model.name_axes(axis_adata, marker_sets(axis_adata), n_permutations=99)
    assert set(table["axis"]) == {"axis_0", "axis_1", "axis_2", "identity"}
    found = table[(table["gene_set"] == "B") & (table["axis"] == "identity")].iloc[0]
    assert found["correlation"] > 0.3
    assert found["p_value"] <= 0.05
    stored = axis_adata.uns["celldial"]["gene_sets"]
    pd.testing.assert_frame_equal(stored, table)
    axis_adata.copy().write_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read_h5ad(tmp_path / "cells.h5ad").uns["celldial"]["gene_sets"], table)
    pd.testing.assert_frame_equal(axis_model.name_axes(axis_adata, marker_sets(axis_adata), n_permutations=99), table)
    del axis_adata.uns["celldial"]["gene_sets"]
    assert_same_snapshot(axis_adata, before)


def test_the_ranking_of_coordinates_names_their_nearest_set(axis_model: VAE, axis_adata: AnnData) -> None:
    plain = axis_model.axes(axis_adata, n_cells=50)
    named = axis_model.axes(axis_adata, n_cells=50, gene_sets=marker_sets(axis_adata))
    pd.testing.assert_frame_equal(named[plain.columns], plain)
    long = axis_adata.uns["celldial"]["gene_sets"]
    for axis, row in named.iterrows():
        of_axis = long[long["axis"] == axis]
        assert row["p_value"] == of_axis["p_value"].min()
        assert row["gene_set"] in set(of_axis["gene_set"])


@pytest.mark.parametrize(
    ("gene_sets", "error", "facts"),
    [
        (["g1", "g2"], TypeError, ["gene_sets"]),
        ({}, TypeError, ["gene_sets"]),
        ({"S": "g1"}, TypeError, ["gene_sets['S']", "'g1'"]),
        ({"S": []}, ValueError, ["gene_sets['S']"]),
        ({"S": ["g1", "no", "nor"]}, ValueError, ["gene_sets['S']", "'no', 'nor'"]),
    ],
)
def test_invalid_gene_sets(
    axis_model: VAE, axis_adata: AnnData, gene_sets: Any, error: type[Exception], facts: list[Any]
) -> None:
    before = snapshot(axis_adata)
    with raises(error, naming=facts):
        axis_model.name_axes(axis_adata, gene_sets)
    assert_same_snapshot(axis_adata, before)

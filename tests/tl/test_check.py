"""Posterior predictive checks: none fails on cells of the model, each defect is found, and bad input is named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import celldial as cd
from celldial import VAE, tl
from celldial.tl.check_advice import advise
from celldial.tl.check_statistics import CHECKS, MIN_BATCH, Finding, coverages, find, holm
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two

COLUMNS = ["check", "modality", "batch", "observed", "lower", "upper", "p_value", "failed", "advice"]


def draw(kind: str, n_cells: int = 500, n_genes: int = 40, seed: int = 0) -> AnnData:
    """Draw counts of two cell types in two batches: Poisson, negative binomial or zero-inflated, or with a defect."""
    random = np.random.default_rng(seed)
    type_c, batch_c = random.integers(2, size=n_cells), np.arange(n_cells) % 2
    rate_cf = np.exp(random.normal(0, 1, n_genes) + np.outer(type_c, random.normal(0, 1.2, n_genes)))
    mu_cf = random.lognormal(np.log(8 * n_genes), 0.3, (n_cells, 1)) * rate_cf / rate_cf.sum(1, keepdims=True)
    theta_c1 = np.full((n_cells, 1), 5.0)
    if kind == "batch_dispersion":
        theta_c1 = np.where(batch_c, 1.0, 20.0)[:, None]
    if kind != "poisson":
        mu_cf = mu_cf * random.gamma(np.broadcast_to(theta_c1, mu_cf.shape)) / theta_c1
    x_cf = random.poisson(mu_cf)
    if kind == "zero_inflated":
        x_cf *= random.random(x_cf.shape) >= 0.3
    if kind == "doublets":
        pair_c = np.flatnonzero(np.arange(n_cells) % 5 == 0)
        x_cf[pair_c] += x_cf[(pair_c + 2) % n_cells]
    obs = pd.DataFrame({"batch": np.where(batch_c, "b1", "b0")}, index=[f"c{cell}" for cell in range(n_cells)])
    var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
    return AnnData(sparse.csr_matrix(x_cf, dtype=np.float32), obs, var)


def checked(kind: str, **parameters: str) -> pd.DataFrame:
    """Fit a model to some of the cells, and check the others."""
    adata = draw(kind, 600)
    model = VAE(3, 32, batch_key="batch", **parameters)
    fit(adata[:400].copy(), model, max_epochs=25, batch_size=50)
    return model.check(adata[400:].copy(), n_samples=15)


def failing(table: pd.DataFrame, check: str, batch: str = "all") -> pd.DataFrame:
    return table[(table["check"] == check) & (table["batch"] == batch) & table["failed"]]


# --- Calibration and defects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_cells_of_the_model_pass(model: VAE, seed: int) -> None:
    drawn = model.sample(300, seed=seed)
    table = model.check(drawn, n_samples=15, seed=seed)
    assert table["failed"].mean() <= 0.05
    inside = table["observed"].between(table["lower"], table["upper"])
    assert inside.mean() > 0.75


def test_negative_binomial_counts_pass() -> None:
    table = checked("negative_binomial")
    assert table["failed"].mean() <= 0.05


def test_poisson_is_found_wrong_for_negative_binomial_counts() -> None:
    table = checked("negative_binomial", likelihood="poisson")
    found = failing(table, "dispersion")
    assert len(found) == 1
    assert found["observed"].iloc[0] > 1.3
    assert "'negative_binomial'" in found["advice"].iloc[0]
    assert len(failing(table, "mean_variance")) == 1
    assert (failing(table, "coverage")["observed"] < 0.88).all()


def test_a_negative_binomial_fits_poisson_counts() -> None:
    table = checked("poisson")
    # In few epochs, the dispersions stay above 0.
    assert set(table["check"][table["failed"]]) <= {"dispersion", "importance_weights"}
    assert (table["observed"][table["check"] == "dispersion"] < 1.1).all()


def test_zero_inflation_is_found() -> None:
    found = failing(checked("zero_inflated"), "zeros")
    assert len(found) == 1
    assert found["observed"].iloc[0] > found["upper"].iloc[0]
    assert "zero inflation" in found["advice"].iloc[0]


def test_dispersion_that_depends_on_the_batch_is_found() -> None:
    table = checked("batch_dispersion")
    low, high = (table.set_index(["check", "batch"]).loc[("dispersion", batch)] for batch in ("b0", "b1"))
    assert low["failed"]
    assert high["failed"]
    assert low["observed"] < 1 < high["observed"]
    for row in (low, high):
        assert "depends on the batch" in row["advice"]
        assert 'dispersion="feature-batch"' in row["advice"]


def test_doublets_are_found() -> None:
    found = failing(checked("doublets"), "doublets")
    assert len(found) == 1
    assert "doublets" in found["advice"].iloc[0]


# --- The table --------------------------------------------------------------------------------------------------------


def test_the_table_is_written_and_tied_to_the_model(conditional: VAE) -> None:
    adata = simulate(120, seed=1)
    table = tl.check(conditional, adata, n_samples=10)
    assert list(table) == COLUMNS
    pd.testing.assert_frame_equal(adata.uns["celldial"]["check"], table)
    assert adata.uns["celldial"]["written"]["check"] == {"check": conditional.fingerprint_}
    assert set(table["batch"]) == {"all", "b0", "b1"}
    assert (table["advice"] != "").tolist() == table["failed"].tolist()
    again = conditional.check(simulate(120, seed=1), n_samples=10)
    pd.testing.assert_frame_equal(again, table)
    tl.remove_results(adata)
    assert "celldial" not in adata.uns


def test_small_batches_have_no_rows(conditional: VAE) -> None:
    adata = simulate(100, seed=1)
    adata.obs["batch"] = ["b0"] * (100 - MIN_BATCH + 1) + ["b1"] * (MIN_BATCH - 1)
    assert set(conditional.check(adata, n_samples=10)["batch"]) == {"all", "b0"}


def test_each_modality_has_rows() -> None:
    adata = simulate_two(150, lacking={"atac": range(20), "rna": range(20, 40)})
    table = fit(adata).check(adata, n_samples=10)
    assert set(table["modality"]) == {"rna", "atac", "all"}
    peaks = table[table["modality"] == "atac"]
    assert set(peaks["check"]) == {"zeros", "library_size", "correlations", "depth"}
    assert table["observed"].notna().all()


def test_depth_unlike_in_training_is_found(model: VAE) -> None:
    adata = simulate(100, seed=1)
    adata.X.data *= 3
    table = model.check(adata, n_samples=10)
    found = failing(table, "depth")
    assert found["observed"].iloc[0] > 0.5
    assert "training" in found["advice"].iloc[0]


@pytest.mark.parametrize(("options", "facts"), [({"n_samples": 9}, ["n_samples", 9]), ({"n_cells": 49}, ["n_cells"])])
def test_too_few_samples_are_named(model: VAE, options: dict[str, int], facts: list[object]) -> None:
    with raises(ValueError, naming=facts):
        model.check(simulate(), **options)


def test_too_few_cells_are_named(model: VAE) -> None:
    adata = simulate()[:49].copy()
    with raises(ValueError, naming=[49, 50]):
        model.check(adata)
    assert "celldial" not in adata.uns


@pytest.mark.parametrize("n_cells", [60, 1000])
def test_cells_in_a_file_are_checked_without_writing_to_it(model: VAE, tmp_path: Path, n_cells: int) -> None:
    adata = simulate()
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    content = path.read_bytes()
    table = model.check(path, n_samples=10, n_cells=n_cells)
    assert path.read_bytes() == content
    expected = model.check(adata, n_samples=10, n_cells=n_cells)
    assert table.columns.tolist() == expected.columns.tolist()
    if n_cells >= adata.n_obs:  # the same cells, so the same numbers
        pd.testing.assert_frame_equal(table, expected)
    assert len(cd.pl.check(table, show=False)) == table["check"].nunique()


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_p_values_are_those_of_the_t_distribution() -> None:
    """Replicates 1, 2, 3 have mean 2 and deviation 1. With √(1 + 1/3), the t-value is 1 at 2 + √(4/3)."""
    found = find(CHECKS["zeros"], ("rna", "all"), 2 + np.sqrt(4 / 3), [1.0, 2.0, 3.0], 0.0)
    assert found.p_value == pytest.approx(0.4226, abs=1e-4)
    assert (found.lower + found.upper) / 2 == pytest.approx(2)
    assert found.matters
    wider = find(CHECKS["zeros"], ("rna", "all"), 4.0, [1.0, 2.0, 3.0], 1.0)
    assert wider.upper > found.upper


def test_a_spread_below_that_of_the_replicates_is_no_failure() -> None:
    found = find(CHECKS["correlations"], ("rna", "all"), 0.0, [0.1, 0.11, 0.12], 0.0)
    assert found.p_value > 0.99
    assert not found.matters


def test_holm_adjusts_as_published() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, np.nan]), [0.03, 0.06, 0.06, np.nan])


def test_draws_cover_each_other() -> None:
    random = np.random.default_rng(0)
    drawn_jct = random.poisson(1.5, (20, 300, 10))
    inside = coverages(random.poisson(1.5, (300, 10)), drawn_jct, random)
    assert len(inside) == 40
    np.testing.assert_allclose([each_c.mean() for each_c in inside], 0.9, atol=0.025)
    wrong = coverages(random.poisson(1.5, (300, 10)) * 3, drawn_jct, random)
    assert np.mean(wrong[:20]) < 0.8


@pytest.mark.parametrize("check", [*CHECKS, "depth", "doublets", "importance_weights"])
@pytest.mark.parametrize("deviation", [-1.0, 1.0])
@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "zero_inflated_negative_binomial", "bernoulli"])
def test_advice_names_where_and_another_likelihood(check: str, deviation: float, likelihood: str) -> None:
    finding = Finding(check, "rna", "b1", 1.0 + deviation / 2, 0.9, 1.1, 0.0, deviation, True)
    advice = advise(finding, likelihood, 0.0, False)
    assert advice.endswith(".")
    assert f"'{likelihood}'" not in advice
    if check != "importance_weights":
        assert "rna in batch 'b1'" in advice

"""Trends of `differential` along a number of each cell: known slopes, nulls, and bad input."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats

from celldial import VAE
from celldial.tl.trends import bin_cells, slope_contrast
from helpers.axes import assert_same_snapshot, snapshot
from helpers.raises import raises

N_EFFECTS, SLOPE = 20, 0.5


def simulate_doses(n_donors: int = 6, n_cells: int = 60, slope: float = SLOPE, seed: int = 0) -> AnnData:
    """Draw cells of donors at doses from 0 to 4; the first genes rise or fall by `slope` log2 per unit."""
    random = np.random.default_rng(seed)
    n, n_genes = n_donors * n_cells, 120
    donor_c = np.repeat(np.arange(n_donors), n_cells)
    obs = pd.DataFrame(
        {
            "donor": [f"d{donor}" for donor in donor_c],
            "dose": random.uniform(0, 4, n),
            "age": np.linspace(20.5, 60.5, n_donors)[donor_c],
            "step": random.integers(0, 4, n),
        },
        index=[f"c{cell}" for cell in range(n)],
    )
    slope_df = np.zeros((n_donors, n_genes))
    slope_df[:, :N_EFFECTS] = slope * np.where(np.arange(N_EFFECTS) % 2, 1, -1)
    slope_df[:, :N_EFFECTS] += 0.05 * random.normal(size=(n_donors, N_EFFECTS))
    level_df = random.normal(0, 0.8, n_genes) + random.normal(0, 0.3, (n_donors, n_genes))
    log_cf = level_df[donor_c] + np.log(2) * obs["dose"].to_numpy()[:, None] * slope_df[donor_c]
    rate_cf = np.exp(log_cf)
    mean_cf = 1000 * rate_cf / rate_cf.sum(1, keepdims=True) * random.gamma(4, 1 / 4, rate_cf.shape)
    x = sparse.csr_matrix(random.poisson(mean_cf), dtype=np.float32)
    return AnnData(x, obs, pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)]))


@pytest.fixture(scope="module")
def doses() -> AnnData:
    return simulate_doses()


@pytest.fixture(scope="module")
def model(doses: AnnData) -> VAE:
    return VAE(4, 16, seed=0).fit(doses, max_epochs=30, progress=False)


OPTIONS: list[dict[str, Any]] = [{"method": "model"}, {"replicate_key": "donor"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_known_slopes_are_found(model: VAE, doses: AnnData, options: dict[str, Any]) -> None:
    table = model.differential(doses, "dose", **options).set_index("feature").loc[doses.var_names]
    true_f = np.zeros(doses.n_vars)
    true_f[:N_EFFECTS] = SLOPE * np.where(np.arange(N_EFFECTS) % 2, 1, -1)
    assert np.abs(table["log2_fold_change"] - true_f)[:N_EFFECTS].max() < 0.25
    assert (table["fdr"][:N_EFFECTS] < 0.05).all()
    assert (table["fdr"][N_EFFECTS:] < 0.05).sum() <= 5
    covered = (table["lower"] <= true_f) & (true_f <= table["upper"])
    assert covered.mean() > 0.8
    # The means at both ends go with the slope: the quarters of the cells are about 3 units apart.
    change = np.log2(table["mean_group"] / table["mean_reference"])[:N_EFFECTS]
    assert np.corrcoef(change, true_f[:N_EFFECTS])[0, 1] > 0.95
    assert set(table["group"]) == {"dose"}


def test_scanpy_reads_a_trend(model: VAE, doses: AnnData) -> None:
    adata = doses.copy()
    table = model.differential(adata, "dose", replicate_key="donor")
    read = sc.get.rank_genes_groups_df(adata, group="dose").set_index("names").loc[table["feature"]]
    np.testing.assert_allclose(read["logfoldchanges"], table["log2_fold_change"], rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_unit_scales_the_slope_and_nothing_else(model: VAE, doses: AnnData, options: dict[str, Any]) -> None:
    adata = doses.copy()
    adata.obs["milli"] = 1000 * adata.obs["dose"]
    unit, milli = (
        model.differential(adata, column, key_added=None, **options).set_index("feature").loc[adata.var_names]
        for column in ("dose", "milli")
    )
    np.testing.assert_allclose(unit["log2_fold_change"], 1000 * milli["log2_fold_change"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(unit["fdr"], milli["fdr"], rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_permuted_numbers_have_no_trend(model: VAE, doses: AnnData, options: dict[str, Any]) -> None:
    p_values, found = [], 0
    for seed in range(4):
        adata = doses.copy()
        adata.obs["dose"] = adata.obs.groupby("donor")["dose"].transform(np.random.default_rng(seed).permutation)
        table = model.differential(adata, "dose", key_added=None, **options)
        found += int((table["fdr"] < 0.05).sum())
        p_values.append(table["p_value"].dropna())
    assert found <= 2
    if "replicate_key" in options:
        assert 0.02 < (pd.concat(p_values) < 0.05).mean() < 0.09


def test_a_number_of_the_donor_is_compared_between_donors(model: VAE, doses: AnnData) -> None:
    table = model.differential(doses, "age", replicate_key="donor", continuous=True, key_added=None)
    # No gene depends on the age, but genes differ between donors: cells as units would find most of them.
    assert (table["p_value"] < 0.05).mean() < 0.12
    assert (table["fdr"] < 0.05).sum() == 0
    cells = model.differential(doses, "age", method="model", continuous=True, key_added=None)
    assert (cells["fdr"] < 0.05).mean() > 0.3


def test_covariates_of_donors_are_adjusted_for(model: VAE, doses: AnnData) -> None:
    adata = doses.copy()
    adata.obs["site"] = np.where(adata.obs["donor"].isin(["d0", "d3"]), "x", "y")
    options: dict[str, Any] = {"replicate_key": "donor", "continuous": True, "key_added": None}
    plain, adjusted = (
        model.differential(adata, "age", covariates=keys, **options).set_index("feature") for keys in ((), "site")
    )
    assert np.abs(plain["log2_fold_change"] - adjusted["log2_fold_change"].loc[plain.index]).max() > 1e-3
    with raises(ValueError, naming=["'dose_text'", "donor", "'d0'"]):
        adata.obs["dose_text"] = adata.obs["dose"].astype(str)
        model.differential(adata, "age", covariates="dose_text", **options)


def test_whole_numbers_are_groups_unless_asked_otherwise(model: VAE, doses: AnnData) -> None:
    groups = model.differential(doses, "step", method="model", key_added=None)
    assert sorted(groups["group"].unique()) == ["0", "1", "2", "3"]
    trend = model.differential(doses, "step", method="model", continuous=True, key_added=None)
    assert trend["group"].unique() == ["step"]


def test_bad_input_changes_nothing(model: VAE, doses: AnnData) -> None:
    adata = doses.copy()
    adata.obs["infinite"] = adata.obs["dose"].where(adata.obs_names != "c7", np.inf)
    adata.obs["constant"] = 1.5
    before = snapshot(adata)
    with raises(ValueError, naming=["'infinite'", "'c7'"]):
        model.differential(adata, "infinite", method="model")
    with raises(ValueError, naming=["'constant'", 1]):
        model.differential(adata, "constant", method="model", continuous=True)
    with raises(TypeError, naming=["continuous", "'donor'"]):
        model.differential(adata, "donor", method="model", continuous=True)
    with raises(ValueError, naming=["'dose'", "groups", "continuous=False"]):
        model.differential(adata, "dose", "1.0", method="model")
    two = adata[adata.obs["donor"].isin(["d0", "d1"])].copy()
    with raises(ValueError, naming=["donor", 2, 3, "method='model'"]):
        model.differential(two, "age", replicate_key="donor", continuous=True)
    assert_same_snapshot(adata, before)


@given(st.lists(st.floats(-100, 100), min_size=8, max_size=60), st.integers(0, 2**32 - 1))
def test_bins_partition_the_cells_in_the_order_of_their_values(values: list[float], seed: int) -> None:
    value_c = np.array(values)
    value_c[np.random.default_rng(seed).random(len(values)) < 0.1] = np.nan
    obs = pd.DataFrame({"x": value_c}, index=[f"c{cell}" for cell in range(len(values))])
    known = ~np.isnan(value_c)
    counts = pd.Series(value_c[known]).value_counts()
    if len(counts) < 2:
        return
    try:
        bins, comparison = bin_cells(obs, "x", None)
    except ValueError:
        assert counts.max() > 2 or known.sum() < 8
        return
    assert (bins.group_c[~known] == -1).all()
    assert (bins.group_c[known] >= 0).all()
    assert 2 <= len(bins.names) <= 10
    order = np.argsort(value_c[known], kind="stable")
    assert (np.diff(bins.group_c[known][order]) >= 0).all()
    assert (comparison.member_sg.sum(1) >= 1).all()
    assert (comparison.member_sg.sum(0) <= 1).all()


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_the_contrast_is_the_weighted_least_squares_slope(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    value, weight, y = np.sort(random.normal(size=n)), random.uniform(0.5, 2, n), random.normal(size=n)
    root = np.sqrt(weight)[:, None]
    expected = np.linalg.lstsq(root * np.column_stack([value, np.ones(n)]), root[:, 0] * y, rcond=None)[0][0]
    assert slope_contrast(value, weight) @ y == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert slope_contrast(value, np.ones(n)) @ y == pytest.approx(stats.linregress(value, y).slope, rel=1e-6, abs=1e-8)

"""Topics and loadings: the tables against the decoder, and credible intervals against a known truth."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from celldial import VAE
from celldial.tl.feature_tables import MAX_COMBINATIONS, balanced_combinations
from helpers.raises import raises
from helpers.simulate import COVARIATES, simulate, simulate_linear, simulate_two

DECODER_KINDS = ["network", "additive", "linear"]


def fit(adata: AnnData, n_latent: int = 3, **parameters: Any) -> VAE:
    return VAE(n_latent, 8, **parameters).fit(adata, max_epochs=3, progress=False)


def wide(table: pd.DataFrame, rows: str, values: str, model: VAE) -> np.ndarray:
    """Return one column as a matrix of coordinates × features, with the features in the order of the model."""
    return table.pivot(index=rows, columns="feature", values=values)[list(model.feature_names_)].to_numpy()


# --- Topics -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DECODER_KINDS)
def of_topics(request: pytest.FixtureRequest) -> VAE:
    return fit(simulate_two(), latent="logistic_normal", decoder=request.param, **COVARIATES)


def test_topics_are_decoded_pure_states(of_topics: VAE) -> None:
    """Shares of counts, averaged over all combinations of batches and donors with equal weights, at the mean age."""
    table = of_topics.topics()
    assert list(table.columns) == ["topic", "modality", "feature", "share", "log2_lift", "rank"]
    assert len(table) == 3 * 50
    mean_age = of_topics.schema_.continuous["age"][0]
    every = [{"batch": b, "donor": d, "age": mean_age} for b in ("b0", "b1") for d in "xyz"]
    # Of genes the expected counts are the shares times library size.
    expected_zf = np.mean([of_topics.decode(np.eye(3), covariates, library_size=1) for covariates in every], axis=0)
    share_zf = wide(table, "topic", "share", of_topics)
    np.testing.assert_allclose(share_zf[:, :20], expected_zf, rtol=1e-4)
    for _, share_f in table.groupby(["topic", "modality"])["share"]:
        assert share_f.sum() == pytest.approx(1)
    lift_zf = wide(table, "topic", "log2_lift", of_topics)
    np.testing.assert_allclose(lift_zf, np.log2(share_zf / share_zf.mean(0)), rtol=1e-6, atol=1e-9)


def test_shares_of_peaks_are_probabilities(of_topics: VAE) -> None:
    given = {"batch": "b1", "donor": "z", "age": 33.0}
    table = of_topics.topics(covariates=given).query("modality == 'atac'")
    share_zf = table.pivot(index="topic", columns="feature", values="share")[
        list(of_topics.feature_names_[20:])
    ].to_numpy()
    with torch.no_grad():
        observation = of_topics.module_.modalities["atac"].likelihood
        expected_zf = observation.expected(torch.from_numpy(share_zf), torch.full((3,), 7.0))
    np.testing.assert_allclose(
        of_topics.decode(np.eye(3), given, modality="atac", library_size=7), expected_zf, rtol=1e-4
    )


def test_features_are_ranked_by_their_information_about_a_topic(of_topics: VAE) -> None:
    table = of_topics.topics()
    for _, part in table.groupby(["topic", "modality"], sort=False):
        assert list(part["rank"]) == list(range(len(part)))
        score_f = part["share"] * part["log2_lift"]
        assert (score_f.diff().dropna() <= 1e-12).all()
        assert score_f.sum() >= -1e-9  # a divergence
    pd.testing.assert_frame_equal(of_topics.topics(2), table.query("rank < 2").reset_index(drop=True))
    assert set(table["topic"]) == {"topic_0", "topic_1", "topic_2"}
    other = of_topics.topics(covariates={"batch": "b0"})
    assert not np.allclose(
        table.sort_values(["topic", "feature"])["share"], other.sort_values(["topic", "feature"])["share"], rtol=1e-9
    )


@pytest.mark.parametrize(
    ("arguments", "error", "facts"),
    [
        ({"covariates": "b1"}, TypeError, ["covariates", "'b1'"]),
        ({"covariates": {"bach": "b1"}}, KeyError, ["'bach'", "'batch'", "'donor'", "'age'"]),
        ({"covariates": {"batch": "b7"}}, ValueError, ["'batch'", "'b7'"]),
        ({"n_features": 0}, ValueError, ["n_features", 0]),
    ],
)
def test_invalid_arguments_of_topics(
    of_topics: VAE, arguments: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    with raises(error, naming=facts):
        of_topics.topics(**arguments)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_each_category_is_combined_equally_often(sizes: list[int]) -> None:
    turns = balanced_combinations({str(k): [str(n) for n in range(size)] for k, size in enumerate(sizes)})
    assert len({len(names) for names in turns.values()}) == 1
    for size, names in zip(sizes, turns.values(), strict=True):
        _, counts = np.unique(names, return_counts=True)
        assert len(counts) == size
        assert len(set(counts)) == 1


def test_the_number_of_combinations_is_bounded() -> None:
    turns = balanced_combinations({"batch": list(map(str, range(97))), "donor": list(map(str, range(101)))})
    assert len(turns["batch"]) == MAX_COMBINATIONS
    assert balanced_combinations({}) == {}


# --- Loadings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["laplace", "bayesian"])
def linear(request: pytest.FixtureRequest) -> VAE:
    return fit(simulate_two(), decoder="linear", bayesian_loadings=request.param, **COVARIATES)


def test_loadings_are_changes_of_the_log_share(linear: VAE) -> None:
    """Between two states one unit of a coordinate apart, up to a constant of all features."""
    table = linear.loadings()
    columns = ["coordinate", "modality", "feature", "loading", "standard_deviation", "lower", "upper", "lfsr", "rank"]
    assert list(table.columns) == columns
    assert len(table) == 3 * 50
    at = {"batch": "b1", "donor": "z", "age": 33.0}
    state_sz = np.vstack([np.zeros(3), np.eye(3)])
    log_sf = np.log(linear.decode(state_sz, at))
    change_zf = log_sf[1:] - log_sf[0]
    loading_zf = wide(table, "coordinate", "loading", linear)[:, :20]
    np.testing.assert_allclose(loading_zf, change_zf - change_zf.mean(1, keepdims=True), atol=1e-4)
    for _, loading_f in table.groupby(["coordinate", "modality"])["loading"]:
        assert loading_f.sum() == pytest.approx(0, abs=1e-5)


def test_intervals_and_false_sign_rates_follow_normal_posteriors(linear: VAE) -> None:
    table = linear.loadings()
    low, high = stats.norm.interval(0.9, table["loading"], table["standard_deviation"])
    np.testing.assert_allclose(table["lower"], low, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(table["upper"], high, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(table["lfsr"], stats.norm.sf(np.abs(table["loading"]) / table["standard_deviation"]))
    assert not table.isna().any().any()
    for _, part in table.groupby(["coordinate", "modality"], sort=False):
        assert list(part["rank"]) == list(range(len(part)))
        sure_f = part["loading"].abs() - (part["upper"] - part["lower"]) / 2
        assert (sure_f.diff().dropna() <= 1e-12).all()
    pd.testing.assert_frame_equal(linear.loadings(1), table.query("rank < 1").reset_index(drop=True))


def test_without_a_posterior_of_loadings_there_are_no_intervals() -> None:
    """As for a modality that was never measured."""
    model = fit(simulate(), decoder="linear")
    known, model.module_.modalities["rna"].loadings = model.module_.modalities["rna"].loadings, None
    table = model.loadings()
    assert list(table.columns) == ["coordinate", "modality", "feature", "loading", "rank"]
    assert table.groupby("coordinate")["loading"].apply(lambda of: of.abs().is_monotonic_decreasing).all()
    model.module_.modalities["rna"].loadings = known


def test_loadings_of_topics_are_named_by_topic() -> None:
    model = fit(simulate(), decoder="linear", latent="logistic_normal")
    assert set(model.loadings()["coordinate"]) == {"topic_0", "topic_1", "topic_2"}
    # From one pure topic to another.
    loading_zf = wide(model.loadings(), "coordinate", "loading", model)
    share_zf = wide(model.topics(), "topic", "share", model)
    change_f = np.log(share_zf[1] / share_zf[0])
    np.testing.assert_allclose(loading_zf[1] - loading_zf[0], change_f - change_f.mean(), atol=1e-4)


@pytest.mark.parametrize("method", ["topics", "loadings"])
def test_other_models_have_neither_topics_nor_loadings(method: str) -> None:
    model = fit(simulate())
    facts = {"topics": ["latent", "'gaussian'"], "loadings": ["decoder", "'network'"]}
    with raises(ValueError, naming=facts[method]):
        getattr(model, method)()


# --- Calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bayesian", "dispersed"),
    [
        (False, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_the_truth(bayesian: bool, dispersed: bool) -> None:
    """Up to sign and scale of the coordinate; and intervals are narrower with more cells.

    The scale is found by regression on the truth, which takes one degree of freedom of 300.
    """
    deviation = []
    likelihood = "negative_binomial" if dispersed else "poisson"
    for n_cells in (500, 1500):
        adata, z_c, loading_f = simulate_linear(n_cells, dispersed)
        model = VAE(1, 32, decoder="linear", bayesian_loadings=bayesian, likelihood=likelihood)
        embedding_c = model.fit_transform(adata, progress=False)[:, 0]
        assert abs(np.corrcoef(embedding_c, z_c)[0, 1]) > 0.97
        table = model.loadings().set_index("feature").loc[adata.var_names]
        scaled_f = loading_f * (table["loading"] @ loading_f) / (loading_f @ loading_f)
        assert np.corrcoef(table["loading"], loading_f)[0, 1] ** 2 > 0.9
        covered = ((table["lower"] < scaled_f) & (scaled_f < table["upper"])).mean()
        assert 0.8 < covered < 0.97
        wrong_f = np.sign(table["loading"]) != np.sign(scaled_f)
        assert wrong_f.mean() == pytest.approx(table["lfsr"].mean(), abs=0.02)
        deviation.append(table["standard_deviation"].median())
    # At best by the square root of 3; the prior is the same in both.
    assert 1.3 < deviation[0] / deviation[1] < 2.2

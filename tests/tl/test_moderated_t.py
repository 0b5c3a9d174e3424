"""`moderated_t` and `shrinkage`: closed forms, calibration, and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from celldial.tl import moderated_t, shrinkage


def design_of(*sizes: int) -> np.ndarray:
    """Return an intercept and an indicator of the second group."""
    group_s = np.repeat(np.arange(len(sizes)), sizes)
    return np.stack([np.ones(len(group_s)), group_s], 1).astype(float)


def test_with_equal_weights_the_estimate_is_the_difference_of_means() -> None:
    level_sf = np.random.default_rng(0).normal(size=(7, 40))
    design_sp, contrast_p = design_of(3, 4), np.array([0.0, 1.0])
    effect = moderated_t.moderated_effect(level_sf, np.ones_like(level_sf), design_sp, contrast_p)
    np.testing.assert_allclose(effect.estimate_f, level_sf[3:].mean(0) - level_sf[:3].mean(0))


def test_a_single_feature_gives_the_t_test() -> None:
    level_sf = np.random.default_rng(0).normal(size=(9, 1))
    design_sp, contrast_p = design_of(4, 5), np.array([0.0, 1.0])
    effect = moderated_t.moderated_effect(level_sf, np.ones_like(level_sf), design_sp, contrast_p)
    expected = stats.ttest_ind(level_sf[4:], level_sf[:4])
    np.testing.assert_allclose(effect.estimate_f / effect.deviation_f, expected.statistic)
    assert effect.degrees == 7
    p_value_f = shrinkage.tail_probability(effect.estimate_f, effect.deviation_f, degrees=effect.degrees)
    np.testing.assert_allclose(p_value_f, expected.pvalue)


def test_weights_give_weighted_least_squares() -> None:
    random = np.random.default_rng(0)
    level_sf, weight_sf = random.normal(size=(8, 30)), random.uniform(0.5, 2, (8, 30))
    design_sp, contrast_p = design_of(4, 4), np.array([0.0, 1.0])
    effect = moderated_t.moderated_effect(level_sf, weight_sf, design_sp, contrast_p)
    for f in (0, 29):
        root_s1 = np.sqrt(weight_sf[:, f, None])
        coefficient_p = np.linalg.lstsq(root_s1 * design_sp, root_s1[:, 0] * level_sf[:, f], rcond=None)[0]
        np.testing.assert_allclose(effect.estimate_f[f], coefficient_p[1])


@pytest.mark.parametrize("prior_degrees", [4.0, 12.0])
def test_the_prior_of_variances_is_recovered(prior_degrees: float) -> None:
    """Variances from the model of Smyth (2004), section 3."""
    random = np.random.default_rng(0)
    true_f = prior_degrees * 0.3 / random.chisquare(prior_degrees, 20_000)
    variance_f = true_f * random.chisquare(5, 20_000) / 5
    posterior_f, found = moderated_t.shrink_variances(variance_f, 5)
    assert abs(np.log(found / prior_degrees)) < 0.1
    expected_f = (5 * variance_f + prior_degrees * 0.3) / (5 + prior_degrees)
    np.testing.assert_allclose(posterior_f, expected_f, rtol=0.1)
    assert ((posterior_f - true_f) ** 2).mean() < 0.95 * ((variance_f - true_f) ** 2).mean()


def test_equal_variances_are_shrunk_to_one_value() -> None:
    variance_f = np.exp(np.linspace(-0.01, 0.01, 50))
    posterior_f, prior_degrees = moderated_t.shrink_variances(variance_f, 5)
    assert np.isinf(prior_degrees)
    assert np.ptp(posterior_f) == 0


@given(st.floats(1e-4, 1e4))
def test_trigamma_is_inverted(value: float) -> None:
    assert special.polygamma(1, moderated_t._trigamma_inverse(value)) == pytest.approx(value, rel=1e-5)


def test_p_values_of_pseudobulk_counts_without_effect_are_uniform() -> None:
    """Libraries differ fourfold in size, and so do the variances of the features."""
    random = np.random.default_rng(1)
    n_features, library_s = 2000, np.array([2, 3, 5, 8, 2, 4, 6, 7]) * 1e4
    share_f = random.lognormal(0, 1.5, n_features)
    share_f /= share_f.sum()
    shape_f = random.chisquare(10, n_features)
    mean_sf = library_s[:, None] * share_f * random.gamma(shape_f, 1 / shape_f, (8, n_features))
    counts_sf = random.poisson(mean_sf)
    counts_sf = counts_sf[:, counts_sf.sum(0) >= 10]
    level_sf, design_sp = moderated_t.log_counts(counts_sf, library_s), design_of(4, 4)
    weight_sf = moderated_t.precision_weights(level_sf, library_s, design_sp)
    effect = moderated_t.moderated_effect(level_sf, weight_sf, design_sp, np.array([0.0, 1.0]))
    p_value_f = shrinkage.tail_probability(effect.estimate_f, effect.deviation_f, degrees=effect.degrees)
    assert 0.04 < (p_value_f < 0.05).mean() < 0.06
    assert 0.45 < (p_value_f < 0.5).mean() < 0.55


def test_rare_features_have_smaller_weights() -> None:
    random = np.random.default_rng(0)
    rate_f = np.concatenate([np.full(200, 5.0), np.full(200, 500.0)])
    counts_sf, library_s = random.poisson(np.tile(rate_f, (6, 1))), np.full(6, 1e5)
    level_sf = moderated_t.log_counts(counts_sf, library_s)
    weight_sf = moderated_t.precision_weights(level_sf, library_s, design_of(3, 3))
    # The variance of a log count is about 1 / mean.
    ratio = weight_sf[:, 200:].mean() / weight_sf[:, :200].mean()
    assert 50 < ratio < 200


# --- Shrinkage --------------------------------------------------------------------------------------------------------


def test_without_effects_nothing_has_a_small_false_sign_rate() -> None:
    deviation_f = np.random.default_rng(0).lognormal(0, 0.5, 3000)
    estimate_f = deviation_f * np.random.default_rng(1).normal(size=3000)
    assert (shrinkage.local_false_sign_rate(estimate_f, deviation_f) > 0.05).all()


def test_false_sign_rates_are_calibrated() -> None:
    """A tenth of the effects is not zero, as is the rule in ash."""
    random = np.random.default_rng(0)
    true_f = np.where(random.random(5000) < 0.1, random.normal(0, 2, 5000), 0)
    deviation_f = random.uniform(0.2, 1, 5000)
    estimate_f = true_f + deviation_f * random.normal(size=5000)
    rate_f = shrinkage.local_false_sign_rate(estimate_f, deviation_f)
    wrong_f = np.sign(true_f) != np.sign(estimate_f)
    for low, high in ((0, 0.05), (0.05, 0.6), (0.6, 1.01)):
        here_f = (low <= rate_f) & (rate_f < high)
        assert here_f.sum() > 50
        assert abs(wrong_f[here_f].mean() - rate_f[here_f].mean()) < 0.06


def test_a_threshold_raises_rates_and_p_values() -> None:
    estimate_f, deviation_f = np.linspace(-3, 3, 101), np.full(101, 0.3)
    for delta in (0.5, 1.0):
        rate_f = shrinkage.local_false_sign_rate(estimate_f, deviation_f, delta)
        assert (rate_f >= shrinkage.local_false_sign_rate(estimate_f, deviation_f) - 1e-12).all()
        assert (rate_f[np.abs(estimate_f) < delta / 2] > 0.5).all()
        p_value_f = shrinkage.tail_probability(estimate_f, deviation_f, delta)
        assert (p_value_f >= shrinkage.tail_probability(estimate_f, deviation_f)).all()
    at_edge = shrinkage.tail_probability(np.array([1.0]), np.array([0.01]), 1.0)
    np.testing.assert_allclose(at_edge, 0.5)


def test_t_statistics_become_normal_scores_with_the_same_p_value() -> None:
    estimate_f, deviation_f = np.array([0.1, 1.0, -4.0, 60.0]), np.ones(4)
    normal_f = shrinkage.normal_deviation(estimate_f, deviation_f, 6.0)
    np.testing.assert_allclose(
        shrinkage.tail_probability(estimate_f, normal_f),
        shrinkage.tail_probability(estimate_f, deviation_f, degrees=6.0),
        rtol=1e-6,
    )
    assert shrinkage.normal_deviation(estimate_f, deviation_f, np.inf) is deviation_f


def test_adjusted_p_values_leave_missing_ones_out() -> None:
    adjusted_f = shrinkage.adjusted(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(adjusted_f, [0.02, np.nan, 0.04])
    assert np.isnan(shrinkage.adjusted(np.full(3, np.nan))).all()


def test_the_common_variance_is_that_of_typical_features() -> None:
    random = np.random.default_rng(0)
    variance_f = np.concatenate([random.chisquare(5, 500) / 5, 1e-3 * random.chisquare(5, 100) / 5])
    typical_f = np.arange(600) < 500
    posterior_f, prior_degrees = moderated_t.shrink_variances(variance_f, 5, typical_f)
    alone_f, expected = moderated_t.shrink_variances(variance_f[:500], 5)
    assert prior_degrees == expected
    np.testing.assert_allclose(posterior_f[:500], alone_f)
    assert (posterior_f[500:] > 10 * variance_f[500:].mean()).all()

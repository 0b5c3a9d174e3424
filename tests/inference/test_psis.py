"""Pareto shapes of importance weights: distributions with a known tail."""

import numpy as np
import pytest
from scipy import stats

from celldial.inference.psis import pareto_shape


@pytest.mark.parametrize("shape", [0.1, 0.4, 0.8, 1.5])
def test_the_shape_of_pareto_weights_is_found(shape: float) -> None:
    weight_nc = stats.pareto(1 / shape).rvs((20_000, 20), random_state=0)
    found_c = pareto_shape(np.log(weight_nc))
    np.testing.assert_allclose(found_c.mean(), shape, atol=0.08)


@pytest.mark.parametrize("deviation", [0.3, 0.5, 0.7])
def test_a_proposal_that_is_too_narrow_has_a_known_shape(deviation: float) -> None:
    """Weights of N(0, 1) under draws from N(0, σ) exceed t with a probability near t^(-1 / (1 - σ²)): k = 1 - σ²."""
    draw_nc = np.random.default_rng(0).normal(0, deviation, (50_000, 4))
    log_weight_nc = stats.norm.logpdf(draw_nc) - stats.norm.logpdf(draw_nc, scale=deviation)
    np.testing.assert_allclose(pareto_shape(log_weight_nc).mean(), 1 - deviation**2, atol=0.12)


def test_a_proposal_that_is_too_wide_is_reliable() -> None:
    draw_nc = np.random.default_rng(0).normal(0, 1.5, (1000, 20))
    log_weight_nc = stats.norm.logpdf(draw_nc) - stats.norm.logpdf(draw_nc, scale=1.5)
    assert (pareto_shape(log_weight_nc) < 0.5).all()


def test_the_unit_of_the_weights_does_not_matter() -> None:
    log_weight_nc = np.random.default_rng(0).normal(0, 2, (200, 5))
    np.testing.assert_allclose(pareto_shape(log_weight_nc), pareto_shape(log_weight_nc - 5000.0))


def test_equal_weights_have_no_tail() -> None:
    assert (pareto_shape(np.full((100, 3), -700.0)) == -np.inf).all()


def test_few_draws_pull_the_shape_toward_one_half() -> None:
    weight_nc = stats.pareto(1 / 0.1).rvs((30, 200), random_state=0)
    assert abs(pareto_shape(np.log(weight_nc)).mean() - 0.1) > 0.1

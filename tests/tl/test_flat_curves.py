"""Tests of the test of flat curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from celldial.tl.flat_curves import contrasts, flat_p_value


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("n_steps", [2, 3, 4, 5, 6, 25])
def test_contrasts_ignore_the_level_and_are_independent(n_steps: int, closed: bool) -> None:
    weight_ks = contrasts(n_steps, closed)
    n_distinct = n_steps - closed
    assert weight_ks.shape == (min(4 if closed else 2, n_distinct - 1), n_steps)
    np.testing.assert_allclose(weight_ks.sum(1), 0, atol=1e-12)
    assert np.linalg.matrix_rank(weight_ks) == len(weight_ks)
    if closed:
        assert not weight_ks[:, -1].any()


def test_contrasts_are_the_coefficients_of_a_curve() -> None:
    angle_s = np.linspace(0, 2 * np.pi, 25)
    curve_s = 3 + 0.5 * np.cos(angle_s) - 0.2 * np.sin(2 * angle_s)
    np.testing.assert_allclose(contrasts(25, True) @ curve_s, [0.5, 0, 0, -0.2], atol=1e-12)
    position_s = np.linspace(-1, 1, 9)
    np.testing.assert_allclose(contrasts(9, False) @ (2 - position_s), [-1, 0], atol=1e-12)


def test_two_steps_give_the_normal_test_of_their_change() -> None:
    mean_sf = np.array([[1.0, 2.0], [1.5, 1.0]])
    variance_f = np.array([0.04, 0.3])  # of the change; the contrast is half of it
    found_f = flat_p_value(mean_sf, contrasts(2, False), variance_f[:, None, None] / 4, closed=False)
    z_f = np.log(mean_sf[1] / mean_sf[0]) / np.sqrt(variance_f)
    np.testing.assert_allclose(found_f, 2 * stats.norm.sf(np.abs(z_f)), rtol=1e-6)


@pytest.mark.parametrize("closed", [False, True])
def test_p_values_of_flat_curves_are_uniform_although_each_has_a_highest_step(closed: bool) -> None:
    """Curves are drawn from a posterior around a flat one; a test of highest against lowest step would reject most."""
    random, n_steps, n_features = np.random.default_rng(0), 25, 4000
    position_s = np.linspace(0, 1, n_steps)
    base_sk = np.stack([np.cos(2 * np.pi * position_s), np.sin(4 * np.pi * position_s), position_s], 1)
    if closed:
        base_sk = base_sk[:, :2]
    deviation_k = np.array([1.0, 0.5, 2.0])[: base_sk.shape[1]]
    log_sf = base_sk @ (deviation_k[:, None] * random.normal(size=(base_sk.shape[1], n_features)))
    contrast_ks = contrasts(n_steps, closed)
    covariance_kk = contrast_ks @ (base_sk * deviation_k**2) @ base_sk.T @ contrast_ks.T
    covariance_fkk = np.broadcast_to(
        covariance_kk + 1e-9 * np.eye(len(contrast_ks)), (n_features, *covariance_kk.shape)
    )
    p_value_f = flat_p_value(np.exp(log_sf), contrast_ks, covariance_fkk, closed)
    if closed:  # small deviations count as flat, and two of the four contrasts have no noise
        assert (p_value_f < 0.05).mean() < 0.05
    else:
        assert stats.kstest(p_value_f, "uniform").pvalue > 0.001


def test_clear_curves_are_not_flat() -> None:
    angle_s = np.linspace(0, 2 * np.pi, 25)
    mean_sf = np.exp(np.stack([0 * angle_s, 0.05 * np.cos(angle_s), np.cos(angle_s - 1)], 1))
    covariance_fkk = np.broadcast_to(1e-4 * np.eye(4), (3, 4, 4))
    p_value_f = flat_p_value(mean_sf, contrasts(25, True), covariance_fkk, closed=True)
    assert p_value_f[0] == 1
    assert p_value_f[1] > 0.05  # within the tolerance
    assert p_value_f[2] < 1e-10

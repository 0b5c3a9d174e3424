"""Paths through the latent space, and summaries of the curves along them."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from celldial.tl import traversal
from celldial.tl.traversal import Traversal

STATES = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=st.integers(-50, 50))


POSITIONS = np.array([-1.0, 0.0, 2.5])


# --- Paths ------------------------------------------------------------------------------------------------------------


@given(z_cz=STATES, coordinate=st.integers(0, 2), n_steps=st.integers(2, 7))
def test_steps_are_evenly_spaced_between_quantiles(z_cz: np.ndarray, coordinate: int, n_steps: int) -> None:
    path_s = traversal.evenly_spaced(z_cz[:, coordinate], (0.25, 1.0), n_steps)
    assert path_s.shape == (n_steps,)
    assert path_s[-1] == z_cz[:, coordinate].max()
    np.testing.assert_allclose(path_s[0], np.quantile(z_cz[:, coordinate], 0.25), atol=1e-5)
    np.testing.assert_allclose(np.diff(path_s), (path_s[-1] - path_s[0]) / (n_steps - 1), atol=1e-4)


@given(z_cz=STATES, coordinate=st.integers(0, 2))
def test_a_coordinate_is_set_and_the_others_stay(z_cz: np.ndarray, coordinate: int) -> None:
    before = z_cz.copy()
    state_scz = traversal.along_coordinate(z_cz, coordinate, POSITIONS)
    others = [column for column in range(3) if column != coordinate]
    assert (state_scz[:, :, coordinate] == POSITIONS[:, None]).all()
    assert (state_scz[:, :, others] == z_cz[:, others]).all()
    np.testing.assert_array_equal(z_cz, before)


@given(z_cz=STATES, weight_z=hnp.arrays(np.float32, 2, elements=st.integers(-3, 3)))
def test_along_a_direction_the_score_is_the_position(z_cz: np.ndarray, weight_z: np.ndarray) -> None:
    origin_z, direction_z = np.array([1, -2], dtype=np.float32), np.array([0.5, 0.25], dtype=np.float32)
    if not weight_z @ direction_z:
        weight_z = np.array([2, 0], dtype=np.float32)
    state_scz = traversal.along_direction(z_cz, origin_z, weight_z, direction_z, POSITIONS)
    score_sc = (state_scz[:, :, :2] - origin_z) @ weight_z
    np.testing.assert_allclose(score_sc, np.broadcast_to(POSITIONS[:, None], score_sc.shape), atol=1e-2)
    moved_scz = state_scz[:, :, :2] - z_cz[:, :2]
    np.testing.assert_allclose(moved_scz[..., 0] * 0.25, moved_scz[..., 1] * 0.5, atol=1e-3)
    assert (state_scz[:, :, 2] == z_cz[:, 2]).all()
    assert state_scz.dtype == np.float32


def test_around_the_circle_cells_are_active_and_return() -> None:
    z_cz = np.array([[7.0, 0.1, 0.2], [8.0, 0.0, 0.0]], dtype=np.float32)
    angle_s = np.linspace(0, 2 * np.pi, 5)
    state_scz = traversal.around_circle(z_cz, angle_s)
    np.testing.assert_allclose(state_scz[1], [[7, 0, 1], [8, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(state_scz[-1], state_scz[0], atol=1e-6)
    np.testing.assert_array_equal(state_scz[:, :, 0], np.broadcast_to(z_cz[:, 0], (5, 2)))


@given(from_cz=STATES)
def test_the_path_between_two_states_is_straight(from_cz: np.ndarray) -> None:
    to_cz = from_cz[::-1] + np.float32(3)
    state_scz = traversal.between(from_cz, to_cz, np.array([0, 0.25, 1]))
    np.testing.assert_array_equal(state_scz[[0, 2]], [from_cz, to_cz])
    np.testing.assert_allclose(state_scz[1], 0.75 * from_cz + 0.25 * to_cz, atol=1e-4)


@given(cells=hnp.arrays(np.float32, (2, 4, 2), elements=st.integers(-9, 9)))
def test_pairs_minimize_the_total_distance(cells: np.ndarray) -> None:
    from_cz, to_cz = cells
    partner_c = traversal.optimal_pairs(from_cz, to_cz)
    assert sorted(partner_c) == [0, 1, 2, 3]
    available_estimators = [((from_cz - to_cz[list(order)]) ** 2).sum() for order in itertools.permutations(range(4))]
    assert ((from_cz - to_cz[partner_c]) ** 2).sum() == min(available_estimators)


# --- Curves -----------------------------------------------------------------------------------------------------------


def curves(
    mean_sf: Any, sd: Any = 0.1, change_sd: Any = 0.1, largest: float = np.inf, closed: bool = False
) -> Traversal:
    mean_sf = np.array(mean_sf, dtype=float)
    variance_sf = np.broadcast_to(np.square(sd), mean_sf.shape)
    change_f = np.broadcast_to(np.square(change_sd), mean_sf.shape[1:])
    z_f = np.log(mean_sf.max(0) / mean_sf.min(0)) / np.sqrt(change_f)
    return Traversal(mean_sf, variance_sf, change_f, np.full(mean_sf.shape[1], largest), 2 * stats.norm.sf(z_f), closed)


def test_summaries_of_curves() -> None:
    found = curves([[1.0, 8.0], [4.0, 2.0], [2.0, 4.0]], sd=0.3)
    np.testing.assert_allclose(found.log2_fold_change_sf, [[0, 0], [2, -2], [1, -1]])
    np.testing.assert_allclose(found.effect_size_f, [2, 2])
    np.testing.assert_allclose(found.change_f, [1, -1])
    np.testing.assert_array_equal(found.peak_step_f, [1, 0])
    low, high = stats.norm.interval(0.9, np.log(found.mean_sf), 0.3)
    np.testing.assert_allclose(found.lower_sf, np.exp(low), rtol=1e-6)
    np.testing.assert_allclose(found.upper_sf, np.exp(high), rtol=1e-6)
    assert curves([[0.9], [0.5]], sd=1, largest=1).upper_sf.max() == 1
    np.testing.assert_array_equal(curves([[1.0], [3.0], [1.1]], closed=True).change_f, [0])


def test_the_false_sign_rate_follows_a_normal_posterior() -> None:
    """A change of 1.96 standard deviations has the other sign with a probability of 2.5 %."""
    found = curves([[1.0, 1.0, 1.0], [np.exp(0.196), np.exp(0.0), np.exp(3)]])
    np.testing.assert_allclose(found.lfsr_f, [0.025, 0.5, 0], atol=1e-4)


def test_band_and_false_sign_rate_are_calibrated() -> None:
    """Against draws from the posterior that they describe."""
    random = np.random.default_rng(0)
    found = curves([[2.0], [2.4]], sd=0.2, change_sd=math.hypot(0.2, 0.2))
    draws_ns = np.exp(np.log([2.0, 2.4]) + 0.2 * random.normal(size=(20_000, 2)))
    inside = (found.lower_sf[:, 0] <= draws_ns) & (draws_ns <= found.upper_sf[:, 0])
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    assert (draws_ns[:, 1] < draws_ns[:, 0]).mean() == pytest.approx(found.lfsr_f[0], abs=0.01)


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(0, 0.5)))
def test_s_values_are_running_means_of_false_sign_rates(lfsr_f: np.ndarray) -> None:
    s_value_f = traversal.s_value(lfsr_f)
    for lfsr, s_value in zip(lfsr_f, s_value_f, strict=True):
        surer = lfsr_f[lfsr_f < lfsr].sum(), (lfsr_f < lfsr).sum()
        tied = (lfsr_f == lfsr).sum()
        means = [(surer[0] + k * lfsr) / (surer[1] + k) for k in range(1, tied + 1)]
        assert np.isclose(means, s_value, atol=1e-9).any()
    assert (s_value_f <= lfsr_f + 1e-12).all()


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(0, 1)))
def test_around_a_circle_fdr_is_the_adjusted_p_value(p_value_f: np.ndarray) -> None:
    one_f = np.ones(len(p_value_f))
    found = Traversal(one_f[None], one_f[None], one_f, one_f, p_value_f, closed=True)
    np.testing.assert_allclose(found.lfsr_f, p_value_f / 2)
    for p_value, fdr in zip(p_value_f, found.fdr_f, strict=True):
        cutoffs = p_value_f[p_value_f >= p_value]
        expected = min(len(p_value_f) * cutoff / (p_value_f <= cutoff).sum() for cutoff in cutoffs)
        assert fdr == pytest.approx(min(expected, 1), abs=1e-9)


def test_ranks_follow_certain_changes_of_expressed_features() -> None:
    # A certain change; the same of a barely expressed feature; the same but uncertain; a smaller one; none.
    mean_sf = [[2.0, 0.002, 2.0, 2.0, 3.0], [8.0, 0.008, 8.0, 3.0, 3.0]]
    score_f = curves(mean_sf, change_sd=[0.1, 0.1, 1.0, 0.1, 0.1]).score_f(np.array(["rna"] * 5))
    assert list(np.argsort(traversal.ranks(score_f)))[:2] == [0, 3]
    assert list(traversal.ranks(np.array([1.0, 3.0, 1.0]))) == [1, 0, 2]
    assert score_f[4] < 0 < score_f[3] < score_f[0]
    # Modalities have a level each: of two of the same features, one in other units, the ranks are side by side.
    both = curves(np.hstack([mean_sf, np.array(mean_sf) / 100]), change_sd=[0.1, 0.1, 1.0, 0.1, 0.1] * 2)
    score_f = both.score_f(np.repeat(["rna", "atac"], 5))
    np.testing.assert_allclose(score_f[:5], score_f[5:])

"""Metrics of angles: their definitions written out as loops, closed forms, invariances, and bad input."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from celldial.metrics import angular_error, circular_mean, cyclic_order, fisher_lee, fourier_r2
from helpers.raises import raises

ANGLE = st.floats(-20, 20)
PAIRS = hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(2, 12)), elements=ANGLE)
# Angles on a grid have ties.
GRID = hnp.arrays(np.int64, st.integers(3, 15), elements=st.integers(0, 7))


def wrapped(angle):
    return np.abs(np.angle(np.exp(1j * np.asarray(angle))))


def slow_fisher_lee(a_c, b_c):
    a_cc, b_cc = (np.sin(angle_c[:, None] - angle_c) for angle_c in (a_c, b_c))
    return (a_cc * b_cc).sum() / np.sqrt((a_cc**2).sum() * (b_cc**2).sum())


def slow_order(angle_c, label_c, order):
    groups = [np.mod(np.asarray(angle_c)[np.asarray(label_c) == name], 2 * np.pi) for name in order]
    counted = []
    for a, b, c in product(*groups):
        if len({a, b, c}) < 3:
            counted.append(0.5)
        else:
            counted.append(float(np.mod(b - a, 2 * np.pi) < np.mod(c - a, 2 * np.pi)))
    return np.mean(counted)


# --- Fisher and Lee ---------------------------------------------------------------------------------------------------


@given(pair=PAIRS)
def test_the_fast_correlation_is_the_sum_over_pairs(pair):
    a_c, b_c = pair
    for angle_c in pair:
        assume(np.abs(np.sin(angle_c[:, None] - angle_c)).max() > 1e-3)
    np.testing.assert_allclose(fisher_lee(a_c, b_c), slow_fisher_lee(a_c, b_c), atol=1e-6)


@given(pair=PAIRS, turn=ANGLE)
def test_correlation_is_invariant_to_rotation_and_changes_sign_with_reflection(pair, turn):
    a_c, b_c = pair
    for angle_c in pair:
        assume(np.abs(np.sin(angle_c[:, None] - angle_c)).max() > 1e-3)
    expected = fisher_lee(a_c, b_c)
    assert -1 <= expected <= 1
    np.testing.assert_allclose(fisher_lee(b_c, a_c), expected, atol=1e-9)
    np.testing.assert_allclose(fisher_lee(a_c + turn, b_c), expected, atol=1e-6)
    np.testing.assert_allclose(fisher_lee(a_c, -b_c), -expected, atol=1e-6)
    np.testing.assert_allclose(fisher_lee(a_c, a_c + turn), 1, atol=1e-6)


def test_correlation_of_concentrated_angles_is_accurate():
    """For angles that differ little, the result is Pearson's correlation."""
    x_c, y_c = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 500).T
    near = fisher_lee(2 + 1e-7 * x_c, 5 + 1e-7 * y_c)
    np.testing.assert_allclose(near, np.corrcoef(x_c, y_c)[0, 1], rtol=1e-5)


def test_correlation_of_unrelated_and_of_constant_angles():
    a_c, b_c = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 5000))
    assert abs(fisher_lee(a_c, b_c)) < 0.01
    assert np.isnan(fisher_lee(a_c, np.full(5000, 1.3)))
    assert np.isnan(fisher_lee(a_c, np.where(a_c > 3, 1.3, 1.3 + np.pi)))


# --- Error ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(pair=PAIRS)
def test_the_error_after_alignment_is_the_smallest_that_a_search_finds(pair):
    predicted_c, truth_c = pair
    turns = np.concatenate([np.linspace(0, 2 * np.pi, 721), truth_c - predicted_c])
    rotated = min(wrapped(predicted_c + turn - truth_c).mean() for turn in turns)
    turns = np.concatenate([np.linspace(0, 2 * np.pi, 721), truth_c + predicted_c])
    reflected = min(wrapped(-predicted_c + turn - truth_c).mean() for turn in turns)
    np.testing.assert_allclose(angular_error(predicted_c, truth_c), rotated, atol=1e-9)
    np.testing.assert_allclose(angular_error(predicted_c, truth_c, reflect=True), min(rotated, reflected), atol=1e-9)
    np.testing.assert_allclose(
        angular_error(predicted_c, truth_c, align=False), wrapped(predicted_c - truth_c).mean(), atol=1e-9
    )


@given(pair=PAIRS, turn=ANGLE)
def test_the_error_is_invariant_to_the_alignment(pair, turn):
    predicted_c, truth_c = pair
    error = angular_error(predicted_c, truth_c)
    assert 0 <= error <= np.pi / 2 + 1e-9
    np.testing.assert_allclose(angular_error(turn + predicted_c, truth_c), error, atol=1e-9)
    mirrored = angular_error(turn - predicted_c, truth_c, reflect=True)
    np.testing.assert_allclose(mirrored, angular_error(predicted_c, truth_c, reflect=True), atol=1e-9)
    np.testing.assert_allclose(angular_error(predicted_c + 4 * np.pi, predicted_c, align=False), 0, atol=1e-9)


def test_errors_in_closed_form():
    truth_c = np.arange(12) * np.pi / 6
    np.testing.assert_allclose(angular_error(truth_c + np.tile([0.1, -0.1], 6), truth_c, align=False), 0.1)
    np.testing.assert_allclose(angular_error(truth_c + np.pi, truth_c, align=False), np.pi)
    shifted_c = truth_c + np.where(np.arange(12) < 3, 0.4, 0)  # a quarter of the cells are 0.4 off
    np.testing.assert_allclose(angular_error(shifted_c + 2, truth_c), 0.1)


# --- Order ------------------------------------------------------------------------------------------------------------


@given(place_c=GRID, data=st.data())
def test_all_triples_are_counted(place_c, data):
    angle_c = place_c * np.pi / 4
    others = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(place_c) - 3, max_size=len(place_c) - 3))
    label_c = np.array([*"abc", *others])
    np.testing.assert_allclose(cyclic_order(angle_c, label_c, "abc"), slow_order(angle_c, label_c, "abc"))


@given(angle_c=hnp.arrays(np.float64, 9, elements=ANGLE), turns=hnp.arrays(np.int64, 9, elements=st.integers(-3, 3)))
def test_order_is_invariant_to_rotation_and_reversed_by_reflection(angle_c, turns):
    angle_c = np.round(angle_c, 3)
    label_c = pd.Categorical(["G1", "S", "G2M"] * 3)
    share = cyclic_order(angle_c, label_c)
    np.testing.assert_allclose(cyclic_order(angle_c, label_c, ("S", "G2M", "G1")), share)
    np.testing.assert_allclose(cyclic_order(angle_c, label_c, ("S", "G1", "G2M")), 1 - share)
    apart = np.diff(np.sort(np.concatenate([np.mod(angle_c, 2 * np.pi), [0, 2 * np.pi]]))).min() > 1e-6
    if apart:  # rounding can separate equal angles, or move them across the start
        np.testing.assert_allclose(cyclic_order(angle_c + 0.5, label_c), share)
        np.testing.assert_allclose(cyclic_order(-angle_c, label_c), 1 - share)
        np.testing.assert_allclose(cyclic_order(angle_c + 2 * np.pi * turns, label_c), share)


def test_order_of_many_cells():
    random = np.random.default_rng(0)
    label_c = random.choice(["G1", "S", "G2M", "other", None], 30_000)
    start = pd.Series(label_c).map({"G1": 5.5, "S": 1.0, "G2M": 3.5, "other": 0.0}).fillna(2.0).to_numpy()
    assert cyclic_order(start + random.uniform(-0.5, 0.5, len(start)), label_c) == 1
    assert abs(cyclic_order(random.uniform(0, 7, len(start)), label_c) - 0.5) < 0.01
    assert cyclic_order(np.zeros(len(start)), label_c) == 0.5


# --- Mean and Fourier series ------------------------------------------------------------------------------------------


@given(angle_c=hnp.arrays(np.float64, st.integers(1, 9), elements=ANGLE), turn=ANGLE)
def test_the_mean_direction_rotates_with_the_angles(angle_c, turn):
    assume(abs(np.exp(1j * angle_c).sum()) > 1e-3)
    mean = circular_mean(angle_c)
    assert 0 <= mean < 2 * np.pi
    assert wrapped(circular_mean(angle_c + turn) - turn - mean) < 1e-6
    assert wrapped(circular_mean(-angle_c) + mean) < 1e-6
    assert wrapped(circular_mean(np.repeat(angle_c, 2)) - circular_mean(angle_c, np.full(len(angle_c), 2))) < 1e-6


def test_mean_directions_in_closed_form():
    np.testing.assert_allclose(circular_mean([2 * np.pi - 0.1, 0.3]), 0.1)
    np.testing.assert_allclose(circular_mean([0, np.pi / 2], [1, np.sqrt(3)]), np.pi / 3)
    assert circular_mean([-1e-20]) == 0
    assert np.isnan(circular_mean(np.arange(6) * np.pi / 3))


def test_a_fourier_series_is_explained_and_noise_is_not():
    random = np.random.default_rng(0)
    angle_c = random.uniform(0, 2 * np.pi, 2000)
    rhythm_c = 3 + np.cos(angle_c - 1) + 0.5 * np.sin(2 * angle_c)
    noisy_c = rhythm_c + random.normal(0, rhythm_c.std(), 2000)
    values_cf = np.stack([rhythm_c, noisy_c, random.normal(size=2000), np.full(2000, 0.1)], axis=1)
    r2_f = fourier_r2(values_cf, angle_c)
    np.testing.assert_allclose(r2_f[:3], [1, 0.5, 0], atol=0.05)
    assert r2_f[2] > 0
    assert np.isnan(r2_f[3])
    np.testing.assert_allclose(fourier_r2(values_cf, angle_c, 1)[0], 0.8, atol=0.03)  # 1 : 1/4
    np.testing.assert_allclose(fourier_r2(sparse.csr_matrix(values_cf), angle_c), r2_f)
    np.testing.assert_allclose(fourier_r2(noisy_c, angle_c), r2_f[1:2])
    held_f = fourier_r2(values_cf, angle_c, n_splits=5)
    np.testing.assert_allclose(held_f[:2], [1, 0.5], atol=0.05)
    assert -0.01 < held_f[2] < r2_f[2]
    np.testing.assert_array_equal(fourier_r2(values_cf, angle_c, n_splits=5), held_f)


@given(
    values=hnp.arrays(np.float64, (8, 2), elements=st.integers(-4, 4)), turn=ANGLE, scale=st.sampled_from([0.1, -7.0])
)
def test_r2_is_invariant_to_rotation_reflection_and_scale(values, turn, scale):
    angle_c = np.random.default_rng(1).uniform(0, 2 * np.pi, 8)
    r2_f = fourier_r2(values, angle_c)
    varies_f = ~np.isnan(r2_f)
    np.testing.assert_array_equal(varies_f, np.ptp(values, axis=0) > 0)
    assert ((r2_f >= -1e-9) & (r2_f <= 1 + 1e-9))[varies_f].all()
    for same_f in (fourier_r2(values, turn - angle_c), fourier_r2(scale * values + 3, angle_c)):
        np.testing.assert_allclose(same_f[varies_f], r2_f[varies_f], atol=1e-6)


def test_a_constant_angle_explains_nothing():
    np.testing.assert_allclose(fourier_r2(np.arange(9.0), np.full(9, 2.0)), [0], atol=1e-12)


# --- Bad input --------------------------------------------------------------------------------------------------------

TWO = np.array([0.0, 1.0])
NINE = np.arange(9.0)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: fisher_lee(TWO, [0.0]), ["a_c", "2", "b_c", "1"]),
        (lambda: fisher_lee([0.0], [1.0]), ["a_c", "1"]),
        (lambda: fisher_lee(TWO, [0.0, np.nan]), ["b_c", "1 of 2", "row 1"]),
        (lambda: fisher_lee(TWO, ["0", "1"]), ["b_c", "<U1"]),
        (lambda: angular_error(TWO, TWO[:, None]), ["truth_c", "(2, 1)"]),
        (lambda: angular_error(TWO, TWO, align=False, reflect=True), ["align", "reflect"]),
        (lambda: angular_error([], []), ["truth_c"]),
        (lambda: circular_mean([]), ["angle_c"]),
        (lambda: circular_mean(TWO, [1, -1]), ["weight_c", "2"]),
        (lambda: cyclic_order(TWO, ["a"], "abc"), ["label_c", "1", "angle_c", "2"]),
        (lambda: cyclic_order(TWO, ["a", "b"], "ab"), ["order", "'ab'"]),
        (lambda: cyclic_order(TWO, ["a", "b"], "abc"), ["'c'", "'a', 'b'"]),
        (lambda: fourier_r2(NINE[:4], NINE), ["values_cf", "(4, 1)", "angle_c", "9"]),
        (lambda: fourier_r2([*NINE[:8], np.inf], NINE), ["values_cf"]),
        (lambda: fourier_r2(NINE, NINE, 0), ["n_harmonics", "0"]),
        (lambda: fourier_r2(NINE, NINE, 4), ["9 cells", "4 harmonics", "10"]),
        (lambda: fourier_r2(NINE, NINE, n_splits=2), ["4 cells"]),
        (lambda: fourier_r2(NINE, NINE, n_splits=1), ["n_splits", "1", "9"]),
    ],
)
def test_bad_input_is_named(call, facts):
    with raises(ValueError, naming=facts):
        call()


@pytest.mark.parametrize("options", [{"align": "rotation"}, {"reflect": None}])
def test_alignment_is_true_or_false(options):
    with raises(TypeError, naming=[*options, repr(*options.values())]):
        angular_error(TWO, TWO, **options)


def test_input_is_not_modified():
    angle_c = np.array([7.0, -1.0, 3.0])
    angle_c.setflags(write=False)
    cyclic_order(angle_c, ["G1", "S", "G2M"])
    fisher_lee(angle_c, angle_c)
    angular_error(angle_c, angle_c)
    circular_mean(angle_c)

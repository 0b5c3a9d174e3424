"""The starts of phases, and the phases of angles."""

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from celldial.periodic.direction import GenePeaks
from celldial.periodic.markers import CELL_CYCLE, PeriodicProcess, parse_periodic
from celldial.periodic.phases import assign_phases, find_phase_starts

TURN = 2 * math.pi


def peaks_with(delay: dict[str, float], process: PeriodicProcess = CELL_CYCLE, outliers: int = 0) -> GenePeaks:
    """Return the peaks of 20 genes in each phase with markers, with a delay."""
    reference_g = np.repeat([process.peak_angle[phase] for phase in delay], 20)
    peak_g = (reference_g + np.repeat(list(delay.values()), 20)) % TURN
    peak_g[:outliers] += 2.5
    return GenePeaks(peak_g, np.full(len(peak_g), 10.0), reference_g)


def test_phases_start_as_in_the_process_if_genes_peak_where_they_should() -> None:
    starts = find_phase_starts(peaks_with({"S": 0.0, "G2M": 0.0}), CELL_CYCLE)
    np.testing.assert_allclose(starts, CELL_CYCLE.phase_start, atol=1e-9)


def test_the_start_of_a_phase_follows_its_genes() -> None:
    starts = find_phase_starts(peaks_with({"S": 0.4, "G2M": -0.3}), CELL_CYCLE)
    np.testing.assert_allclose(starts - CELL_CYCLE.phase_start, [0, 0.3, -0.225], atol=1e-6)


def test_few_outliers_have_little_weight() -> None:
    starts = find_phase_starts(peaks_with({"S": 0.4, "G2M": -0.3}, outliers=3), CELL_CYCLE)
    np.testing.assert_allclose(starts - CELL_CYCLE.phase_start, [0, 0.3, -0.225], atol=0.05)


def test_genes_without_information_have_no_weight() -> None:
    peaks = peaks_with({"S": 0.4, "G2M": -0.3})
    flat = GenePeaks(peaks.peak_g, np.zeros(40), peaks.reference_g)
    np.testing.assert_array_equal(find_phase_starts(flat, CELL_CYCLE), CELL_CYCLE.phase_start)


def test_phases_in_another_order_start_as_in_the_process() -> None:
    starts = find_phase_starts(peaks_with({"S": 1.5, "G2M": -1.5}), CELL_CYCLE)
    np.testing.assert_array_equal(starts, CELL_CYCLE.phase_start)


@given(
    start=st.lists(st.floats(0, 6.28), min_size=2, max_size=5, unique=True),
    angle=st.lists(st.floats(0, 6.28), min_size=1, max_size=20),
)
def test_an_angle_is_in_the_last_phase_that_started(start: list[float], angle: list[float]) -> None:
    start_k, angle_c = np.array(start), np.array(angle)
    assume(np.diff(np.sort(start_k)).min() > 1e-6)
    codes = assign_phases(angle_c, start_k)
    np.testing.assert_array_equal(codes, ((angle_c[:, None] - start_k) % TURN).argmin(1))


def test_a_phase_may_contain_the_angle_zero() -> None:
    codes = assign_phases(np.array([0.0, 0.9, 1.0, 2.9, 3.0, 5.4, 5.5, 6.2]), np.array([5.5, 1.0, 3.0]))
    assert codes.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]


def test_many_phases_keep_their_order() -> None:
    phases = {f"part {part}": [f"a{part}", f"b{part}"] for part in range(4)}
    process = parse_periodic({"name": "ring", "phases": phases})
    assert isinstance(process, PeriodicProcess)
    starts = find_phase_starts(peaks_with(dict.fromkeys(process.phases, 0.1), process), process)
    np.testing.assert_allclose(starts, np.array(process.phase_start) + 0.075, atol=1e-6)

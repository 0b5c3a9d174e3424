"""The starts of phases, and the phases of angles."""

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from celldial.periodic.markers import CELL_CYCLE, PeriodicProcess, parse_periodic
from celldial.periodic.phases import assign_phases, find_phase_starts

TURN = 2 * math.pi
PEAK = CELL_CYCLE.peak_angle
N_GRID = 64
GRID_J = np.arange(N_GRID) * TURN / N_GRID


def waves(peak: dict[str, float], rotation: float = 0) -> dict[str, np.ndarray]:
    """Return curves of three markers per phase, around its peak, on a rotated circle."""
    amplitudes = ((-0.4, 0.3), (0.0, 1.0), (0.4, 0.3))
    return {
        phase: np.stack([a * np.cos(GRID_J - rotation - at - shift) for shift, a in amplitudes])
        for phase, at in peak.items()
    }


UNIFORM_J = np.full(N_GRID, 1 / N_GRID)


def test_curves_without_cells_have_no_weight() -> None:
    curve = waves(PEAK)
    empty_j = np.abs(np.angle(np.exp(1j * (GRID_J - 1.5)))) < 0.5
    curve["S"][:, empty_j] += 5
    density_j = np.where(empty_j, 0, 1) / (~empty_j).sum()
    starts = find_phase_starts(curve, density_j, CELL_CYCLE)
    np.testing.assert_allclose(starts, CELL_CYCLE.phase_start, atol=0.25)


def test_phases_start_as_far_before_their_peaks_as_in_the_process() -> None:
    np.testing.assert_allclose(find_phase_starts(waves(PEAK), UNIFORM_J, CELL_CYCLE), CELL_CYCLE.phase_start, atol=0.1)
    late = find_phase_starts(waves({"S": PEAK["S"] + 0.4, "G2M": PEAK["G2M"] - 0.3}), UNIFORM_J, CELL_CYCLE)
    np.testing.assert_allclose(late - CELL_CYCLE.phase_start, [0, 0.4, -0.3], atol=0.1)


def test_phases_in_another_order_start_as_in_the_process() -> None:
    starts = find_phase_starts(waves({"S": PEAK["G2M"], "G2M": PEAK["S"]}), UNIFORM_J, CELL_CYCLE)
    np.testing.assert_array_equal(starts, CELL_CYCLE.phase_start)


@given(level=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_level_and_scale_of_markers_do_not_matter(level: float, scale: float) -> None:
    curve = waves(PEAK, rotation=0.3)
    other = {"S": level + scale * curve["S"], "G2M": curve["G2M"] / scale - level}
    parts = (find_phase_starts(part, UNIFORM_J, CELL_CYCLE) for part in (curve, other))
    np.testing.assert_allclose(*parts, atol=1e-6)


def test_flat_markers_give_finite_angles() -> None:
    flat = {"S": np.zeros((2, N_GRID)), "G2M": np.zeros((2, N_GRID))}
    assert np.isfinite(find_phase_starts(flat, UNIFORM_J, CELL_CYCLE)).all()


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
    starts = find_phase_starts(waves(process.peak_angle), UNIFORM_J, process)
    np.testing.assert_allclose(starts % 6.2, process.phase_start, atol=0.1)

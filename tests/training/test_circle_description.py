"""Tests of the conclusions about a circle: whether there is a process, and whether it has phases."""

from __future__ import annotations

import numpy as np
import pytest

from celldial.periodic.cycle_test import CycleTest
from celldial.periodic.direction import DirectionEstimate, GenePeaks
from celldial.periodic.markers import CELL_CYCLE, parse_periodic
from celldial.training.circle_description import Findings

NO_PEAKS = GenePeaks(np.zeros(0), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(
    ("p_value", "fold_change", "direction", "is_found", "has_phases", "facts"),
    [
        (0.0005, 5.0, 0.999, True, True, []),
        (0.02, 5.0, 0.999, False, False, ["0.02", "0.01"]),
        (0.0005, 1.4, 0.999, False, False, ["G2M", "1.40", "2.2"]),
        (0.0005, 5.0, 0.8, True, False, ["0.80", "0.95", "40"]),
        (np.nan, 5.0, 0.999, True, True, []),  # too few genes to test
        (np.nan, 1.4, 0.999, False, False, ["G2M", "1.40"]),
    ],
)
def test_phases_need_a_cycle_that_is_large_enough_and_a_known_direction(
    p_value: float, fold_change: float, direction: float, is_found: bool, has_phases: bool, facts: list[str]
) -> None:
    findings = Findings(
        CELL_CYCLE, CycleTest(0.5, p_value), {"G2M": fold_change}, DirectionEstimate(direction, 0.0, 40), NO_PEAKS
    )
    assert (findings.is_found, findings.has_phases) == (is_found, has_phases)
    message = findings.warning()
    assert (message is None) == (not facts)
    assert all(fact in (message or "") for fact in facts)


def test_two_phases_without_peaks_have_phases_but_an_open_direction() -> None:
    process = parse_periodic({"name": "clock", "phases": {"day": ["a", "b"], "night": ["c", "d"]}})
    assert process is not None
    findings = Findings(process, CycleTest(np.nan, np.nan), {}, DirectionEstimate(0.5, 0.0, 4), NO_PEAKS)
    assert findings.has_phases
    assert "clock" in (findings.warning() or "")

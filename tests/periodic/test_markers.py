"""Markers of phases: lists, search among features, errors, and the parameter `periodic`."""

import math
from typing import Any

import numpy as np
import pytest

from celldial.periodic.markers import CELL_CYCLE, RENAMED_GENES, PeriodicProcess, find_markers, parse_periodic
from celldial.periodic.reference_peaks import REFERENCE_PERCENT
from helpers.raises import raises

ALL = [*CELL_CYCLE.markers["S"], *CELL_CYCLE.markers["G2M"]]


def find(
    symbols: list[str], uncounted: tuple[int, ...] = (), process: PeriodicProcess = CELL_CYCLE
) -> dict[str, np.ndarray]:
    counted_f = np.ones(len(symbols), dtype=bool)
    counted_f[list(uncounted)] = False
    return find_markers(process, symbols, counted_f)


def test_markers_are_those_of_tirosh() -> None:
    assert {phase: len(set(markers)) for phase, markers in CELL_CYCLE.markers.items()} == {"S": 43, "G2M": 54}
    assert len(set(ALL)) == 97
    assert {"PCNA", "MCM5", "TYMS"} <= set(CELL_CYCLE.markers["S"])
    assert {"TOP2A", "MKI67", "CDK1"} <= set(CELL_CYCLE.markers["G2M"])
    assert set(RENAMED_GENES) <= set(REFERENCE_PERCENT)
    assert not set(RENAMED_GENES.values()) & set(REFERENCE_PERCENT)


def test_phases_divide_a_day_as_in_the_simulation() -> None:
    assert CELL_CYCLE.phases == ("G1", "S", "G2M")
    assert CELL_CYCLE.phase_start == pytest.approx((0, math.pi, 2 * math.pi * 20 / 24))
    start = dict(zip(CELL_CYCLE.phases, CELL_CYCLE.phase_start, strict=True))
    assert start["S"] < CELL_CYCLE.peak_angle["S"] < start["G2M"] < CELL_CYCLE.peak_angle["G2M"] < 2 * math.pi


@pytest.mark.parametrize("change", [str.upper, str.lower, str.capitalize])
def test_markers_are_found_in_any_case(change: Any) -> None:
    symbols = ["GAPDH", *map(change, ALL)]
    found = find(symbols)
    assert list(found) == ["S", "G2M"]
    assert found["S"].tolist() == list(range(1, 44))
    assert found["G2M"].tolist() == list(range(44, 98))


def test_markers_are_found_by_their_new_names() -> None:
    found = find([RENAMED_GENES.get(name, name) for name in ALL])
    assert [len(columns) for columns in found.values()] == [43, 54]


def test_an_old_name_has_priority_and_counts_once() -> None:
    index = CELL_CYCLE.markers["S"].index("MLF1IP")
    found = find([*ALL, "CENPU"])
    assert len(found["S"]) == 43
    assert found["S"][index] == index


def test_the_first_feature_with_counts_is_used_if_names_repeat() -> None:
    symbols = ["PCNA", *ALL, "PCNA"]
    pcna = CELL_CYCLE.markers["S"].index("PCNA")
    assert find(symbols)["S"][pcna] == 0
    assert find(symbols, uncounted=(0,))["S"][pcna] == 1 + pcna
    assert find(symbols, uncounted=(0, 1 + pcna))["S"][pcna] == 98


def test_a_feature_without_counts_is_not_a_marker() -> None:
    assert [len(columns) for columns in find(ALL, uncounted=(0, 50)).values()] == [42, 53]


def test_too_few_markers_are_an_error_with_advice() -> None:
    with raises(ValueError, naming=[1, 43, 2, 54, 5, "'PCNA'", "'TOP2A'", "'MKI67'", "gene_symbols", "periodic"]):
        find(["PCNA", "TOP2A", "MKI67", "ENSG00000075624"])


def test_markers_of_one_phase_are_not_enough() -> None:
    with raises(ValueError, naming=[43, 0, 54, "cell_cycle"]):
        find(list(CELL_CYCLE.markers["S"]))


def test_half_of_a_short_list_is_enough() -> None:
    process = parse_periodic({"name": "clock", "phases": {"day": ["a", "b", "c"], "night": ["d", "e"]}})
    assert process is not None
    found = find(["d", "b", "a"], process=process)
    assert {phase: columns.tolist() for phase, columns in found.items()} == {"day": [2, 1], "night": [0]}
    with raises(ValueError, naming=[1, 3, "day", "clock", 2, "night"]):
        find(["d", "b", "x"], process=process)


# --- The parameter of the user ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, False])
def test_no_periodic_process(nothing: Any) -> None:
    assert parse_periodic(nothing) is None


def test_the_cell_cycle_and_a_circle_without_markers() -> None:
    assert parse_periodic("cell_cycle") is CELL_CYCLE
    found = parse_periodic(True)
    assert found is not None
    assert (found.name, found.markers, found.phases) == ("cycle", {}, ())


def test_phases_of_the_user_divide_the_circle_evenly() -> None:
    phases = {"dawn": ["a", "b"], "noon": ("c", "d"), "dusk": ["e", "f"], "night": ["g", "h"]}
    found = parse_periodic({"name": "circadian", "phases": phases})
    assert found is not None
    assert found.name == "circadian"
    assert found.markers["noon"] == ("c", "d")
    assert found.phases == ("dawn", "noon", "dusk", "night")
    assert found.phase_start == pytest.approx([0, math.pi / 2, math.pi, 3 * math.pi / 2])
    assert list(found.peak_angle.values()) == pytest.approx(
        [math.pi / 4, 3 * math.pi / 4, 5 * math.pi / 4, 7 * math.pi / 4]
    )


def test_peaks_of_the_user_are_positions_in_the_period() -> None:
    hours = {gene: 24 * peak for gene, peak in PEAKS.items()}
    found = parse_periodic({"name": "clock", "phases": GOOD, "peaks": PEAKS})
    in_hours = parse_periodic({"name": "clock", "phases": GOOD, "peaks": hours, "period": 24})
    assert found is not None
    assert in_hours is not None
    assert found.reference == pytest.approx(in_hours.reference)
    assert found.reference == pytest.approx({gene: 2 * math.pi * peak for gene, peak in PEAKS.items()})
    assert found.has_direction


def test_markers_are_the_reference_if_there_are_no_peaks_and_two_phases_have_no_direction() -> None:
    two = parse_periodic({"name": "clock", "phases": GOOD})
    three = parse_periodic({"name": "clock", "phases": {**GOOD, "dawn": ["e", "f"]}})
    assert two is not None
    assert three is not None
    assert (two.has_direction, three.has_direction) == (False, True)
    assert two.reference == pytest.approx({"a": math.pi / 2, "b": math.pi / 2, "c": 1.5 * math.pi, "d": 1.5 * math.pi})


def test_markers_of_two_species_are_an_error() -> None:
    both = [*ALL, *map(str.capitalize, ALL)]
    with raises(ValueError, naming=["'MCM5'", "'Mcm5'", "cell_cycle"]):
        find(both)
    assert len(find(both, uncounted=tuple(range(97, 194)))["S"]) == 43
    assert len(find([*ALL, "Pcna", "Tyms"])["S"]) == 43


GOOD = {"day": ["a", "b"], "night": ["c", "d"]}
PEAKS = {"a": 0.2, "b": 0.3, "c": 0.7, "d": 0.8, "e": 0.95}


@pytest.mark.parametrize(
    ("periodic", "error", "facts"),
    [
        ("cell cycle", ValueError, ["periodic", "'cell cycle'", "'cell_cycle'", "True", "dict"]),
        (3, TypeError, ["periodic", 3]),
        (["cell_cycle"], TypeError, ["periodic", "['cell_cycle']"]),
        ({}, ValueError, ["periodic", "phases"]),
        ({"name": "a"}, ValueError, ["periodic", "phases"]),
        ({"phases": GOOD}, ValueError, ["periodic", "phases"]),
        ({"name": "a", "phases": {"day": ["a", "b"]}}, ValueError, ["periodic", "phases"]),
        ({"name": "a", "phases": ["day", "night"]}, ValueError, ["periodic", "phases"]),
        ({"name": "a", "phases": GOOD, "periods": 24}, ValueError, ["periodic", "phases"]),
        ({"name": "a", "phases": GOOD, "period": 24}, ValueError, ["period", 24, "peaks"]),
        ({"name": "a", "phases": GOOD, "peaks": PEAKS, "period": 0}, ValueError, ["period", 0]),
        ({"name": "a", "phases": GOOD, "peaks": PEAKS, "period": "24"}, ValueError, ["period", "'24'"]),
        ({"name": "a", "phases": GOOD, "peaks": {"x": 1}}, ValueError, ["peaks", 5]),
        ({"name": "a", "phases": GOOD, "peaks": {**PEAKS, "x": 3}}, ValueError, ["'x'", 3, "'period'"]),
        ({"name": "a", "phases": GOOD, "peaks": {**PEAKS, "x": "3 h"}}, ValueError, ["'x'", "'3 h'"]),
        ({"name": "", "phases": GOOD}, ValueError, ["name", "''"]),
        ({"name": 3, "phases": GOOD}, ValueError, ["name", 3]),
        ({"name": "a/b", "phases": GOOD}, ValueError, ["'a/b'"]),
        ({"name": "a", "phases": {**GOOD, 3: ["e", "f"]}}, ValueError, ["phase", 3]),
        ({"name": "a", "phases": {**GOOD, "G2/M": ["e", "f"]}}, ValueError, ["phase", "'G2/M'"]),
        ({"name": "a", "phases": {**GOOD, "day": "PER1"}}, ValueError, ["'day'", "'PER1'"]),
        ({"name": "a", "phases": {**GOOD, "day": ["PER1"]}}, ValueError, ["'day'", "['PER1']"]),
        ({"name": "a", "phases": {**GOOD, "day": ["x", "x"]}}, ValueError, ["'day'", "['x', 'x']"]),
        ({"name": "a", "phases": {**GOOD, "day": 3}}, ValueError, ["'day'", 3]),
    ],
)
def test_invalid_periodic_parameter(periodic: Any, error: type[Exception], facts: list[Any]) -> None:
    with raises(error, naming=facts):
        parse_periodic(periodic)

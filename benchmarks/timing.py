"""Timing of several functions in turns, so that a slow moment of the machine affects all of them equally; medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def milliseconds(parts: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 5) -> dict[str, float]:
    """Return the median time of each function in milliseconds."""
    measured: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(warm_up + repeats):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds = time.perf_counter() - start
            if repeat >= warm_up:
                measured[name].append(1000 * seconds)
    return {name: median(each) for name, each in measured.items()}

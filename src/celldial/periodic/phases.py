"""The phases of a periodic process along a circle.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``g`` genes, ``p`` phases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from celldial.periodic.direction import GenePeaks
from celldial.periodic.markers import PeriodicProcess

__all__ = ["assign_phases", "find_phase_starts"]

Array = NDArray[np.floating]


DELAY_SHARE = 0.75
"""Share of the delay of genes that the start of a phase follows. The rest is due to errors of the circle, which is
stretched where there are few cells."""

CONCENTRATION = 4.0
"""Concentration of the peaks of genes around that of their phase."""

N_ITERATIONS = 5
"""Steps of the robust mean of delays."""


def find_phase_starts(peaks: GenePeaks, process: PeriodicProcess) -> Array:
    """Return the angles where phases start, moved with the genes of each phase.

    In some cells, phases are longer or shorter than in the process, and genes peak earlier or later. A phase without
    markers, such as G1, starts as in the process. So do all phases if they would have another order.

    Parameters
    ----------
    peaks
        Peaks of genes on the circle after rotation.
    process
        The periodic process.
    """
    used = peaks.informative()
    names = list(process.peak_angle)
    center_p = np.array([process.peak_angle[phase] for phase in names])
    nearest_g = np.cos(used.reference_g[:, None] - center_p).argmax(1)
    starts = []
    for phase, start in zip(process.phases, process.phase_start, strict=True):
        delay = 0.0
        if phase in names:
            own_g = nearest_g == names.index(phase)
            delay = DELAY_SHARE * mean_delay(used.peak_g[own_g] - used.reference_g[own_g], used.information_g[own_g])
        starts.append((start + delay) % (2 * np.pi))
    lengths = np.diff([*starts, starts[0]]) % (2 * np.pi)
    in_order = np.isclose(lengths.sum(), 2 * np.pi) and (lengths > 0).all()
    return np.array(starts if in_order else process.phase_start)


def mean_delay(delay_g: Array, information_g: Array) -> float:
    """Return the mean of angular delays, in which uncertain ones and outliers count less; 0 without delays."""
    if len(delay_g) == 0:
        return 0.0
    weight_g = 1 / (1 / CONCENTRATION + 1 / (2 * information_g))
    mean = np.angle(weight_g @ np.exp(1j * delay_g))
    for _ in range(N_ITERATIONS):
        near_g = np.exp(2 * (np.cos(delay_g - mean) - 1))
        mean = np.angle((weight_g * near_g) @ np.exp(1j * delay_g))
    return float(mean)


def assign_phases(angle_c: Array, start_p: Array) -> NDArray[np.int64]:
    """Return the index of the phase of each angle, given the angles where phases start."""
    order = np.argsort(start_p)
    phase_c: NDArray[np.int64] = order[np.searchsorted(start_p[order], angle_c, side="right") - 1]
    return phase_c

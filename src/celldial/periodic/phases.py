"""Orientation of a circle by its markers, and the phases of a periodic process along it.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features, ``j`` evenly spaced angles from 0, ``p`` phases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from celldial.periodic.markers import PeriodicProcess

__all__ = ["assign_phases", "find_phase_starts"]

Array = NDArray[np.floating]


def marker_mean_direction(curve_fj: Array, density_j: Array) -> complex:
    """Return the mean direction of the cells that express the markers of a phase, as a complex number.

    Its absolute value has no meaning.

    Parameters
    ----------
    curve_fj
        Log rates of the markers along the circle.
    density_j
        Density of cells along the circle. Without cells, a curve is not reliable, however high it is.
    """
    level_j = curve_fj.mean(0) - density_j @ curve_fj.mean(0)
    angle_j = np.arange(len(density_j)) * (2 * np.pi / len(density_j))
    return complex((density_j * np.maximum(level_j, 0) ** 2) @ np.exp(1j * angle_j))


def find_phase_starts(curves: dict[str, Array], density_j: Array, process: PeriodicProcess) -> Array:
    """Return the angles where phases start, each at the same distance before its peak as in the process.

    In some cells, a phase is shorter than in the process, and peaks are closer to each other. Phases without markers,
    such as G1, start as in the process. So do all phases if they would have another order.

    Parameters
    ----------
    curves
        Phase to the log rates of its markers along the circle after rotation, shape ``(f, j)``.
    density_j
        Density of cells along the circle.
    process
        The periodic process.
    """
    starts = []
    for phase, start in zip(process.phases, process.phase_start, strict=True):
        delay = 0.0
        if phase in curves:
            delay = np.angle(marker_mean_direction(curves[phase], density_j)) - process.peak_angle[phase]
        starts.append((start + delay) % (2 * np.pi))
    lengths = np.diff([*starts, starts[0]]) % (2 * np.pi)
    in_order = np.isclose(lengths.sum(), 2 * np.pi) and (lengths > 0).all()
    return np.array(starts if in_order else process.phase_start)


def assign_phases(angle_c: Array, start_p: Array) -> NDArray[np.int64]:
    """Return the index of the phase of each angle, given the angles where phases start."""
    order = np.argsort(start_p)
    phase_c: NDArray[np.int64] = order[np.searchsorted(start_p[order], angle_c, side="right") - 1]
    return phase_c

"""Phases of a periodic coordinate, as sectors of the circle, and axes that show angles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from celldial.pl._colors import PHASE_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ANGLE_LABELS", "ANGLE_TICKS", "TWO_PI", "Phases", "format_angle_axis"]

TWO_PI = 2 * np.pi
ANGLE_TICKS = np.linspace(0, TWO_PI, 5)
ANGLE_LABELS = ("0", "π/2", "π", "3π/2", "2π")


class Phases(NamedTuple):
    """Sectors of the circle. Each starts at an angle and ends at the start of the next one."""

    names: tuple[str, ...]
    start_k: np.ndarray

    @classmethod
    def from_arrays(cls, names: Any, start: Any) -> Phases:
        """Return the phases sorted by their start angle."""
        start_k = np.asarray(start, dtype=float) % TWO_PI
        order_k = np.argsort(start_k, kind="stable")
        return cls(tuple(str(np.asarray(names)[k]) for k in order_k), start_k[order_k])

    @property
    def width_k(self) -> np.ndarray:
        """Width of each sector in radians; the widths sum to 2π."""
        return np.diff(self.start_k, append=self.start_k[0] + TWO_PI)

    @property
    def middle_k(self) -> np.ndarray:
        """Angle of the middle of each sector."""
        middle_k: np.ndarray = (self.start_k + self.width_k / 2) % TWO_PI
        return middle_k

    @property
    def colors(self) -> tuple[str, ...]:
        """Color of each sector."""
        return tuple(PHASE_COLORS[k % len(PHASE_COLORS)] for k in range(len(self.names)))

    def index_of(self, angle_c: np.ndarray) -> np.ndarray:
        """Return the index of the sector that contains each angle."""
        return (np.searchsorted(self.start_k, np.asarray(angle_c) % TWO_PI, side="right") - 1) % len(self.names)

    def intervals(self) -> list[tuple[int, float, float]]:
        """Return (sector, from, to) within [0, 2π]; a sector that contains angle 0 is split into two intervals."""
        intervals = []
        for k, (start, width) in enumerate(zip(self.start_k, self.width_k, strict=True)):
            intervals.append((k, start, min(start + width, TWO_PI)))
            if start + width > TWO_PI + 1e-9:
                intervals.append((k, 0.0, start + width - TWO_PI))
        return intervals


def format_angle_axis(panel: Axes, phases: Phases | None) -> None:
    """Show angles from 0 to 2π on the horizontal axis; shade the phases, if any, and write their names at the top."""
    panel.set_xlim(0, TWO_PI)
    panel.set_xticks(ANGLE_TICKS, ANGLE_LABELS)
    if phases is None:
        return
    for k, low, high in phases.intervals():
        panel.axvspan(low, high, color=phases.colors[k], alpha=0.22, lw=0, zorder=0)
        if high - low > 0.08 * TWO_PI:
            panel.annotate(
                phases.names[k],
                ((low + high) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, -2),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize="x-small",
                color="0.25",
            )

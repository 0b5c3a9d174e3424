"""What all plots share: colors, room for panels, horizontal axes with phases, and what is returned at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

# matplotlib is imported where something is drawn, so that `import celldial` does not wait for it.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

__all__ = [
    "BLACK",
    "BLUE",
    "CYCLIC",
    "MODALITY_COLORS",
    "ORANGE",
    "PALE",
    "Phases",
    "angle_axis",
    "canvas",
    "color_of",
    "finish",
    "fit",
    "minus",
    "percent",
    "row_font_size",
    "shorten",
    "tidy",
]

# The colors of Okabe and Ito (2008), "Color Universal Design". Modalities and phases have none in common.
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#000000"
MODALITY_COLORS = {"rna": BLUE, "atac": ORANGE, "protein": "#009E73"}
PHASE_COLORS = ("#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#F0E442", "#0072B2", "#D55E00")
PALE = "0.8"
CYCLIC = "twilight_shifted"
TURN = 2 * np.pi


class Phases(NamedTuple):
    """Sectors of a circle: each starts at an angle and ends where the next one starts."""

    names: tuple[str, ...]
    start_k: np.ndarray

    @classmethod
    def read(cls, names: Any, start: Any) -> Phases:
        """Take names and starts in any order of angles."""
        start_k = np.asarray(start, dtype=float) % TURN
        order_k = np.argsort(start_k, kind="stable")
        return cls(tuple(str(np.asarray(names)[k]) for k in order_k), start_k[order_k])

    @property
    def width_k(self) -> np.ndarray:
        """Width of each sector, in radians; they sum to a full turn."""
        return np.diff(self.start_k, append=self.start_k[0] + TURN)

    @property
    def middle_k(self) -> np.ndarray:
        """Angle of the middle of each sector."""
        middle_k: np.ndarray = (self.start_k + self.width_k / 2) % TURN
        return middle_k

    @property
    def colors(self) -> tuple[str, ...]:
        """One color a sector."""
        return tuple(PHASE_COLORS[k % len(PHASE_COLORS)] for k in range(len(self.names)))

    def of(self, angle_c: np.ndarray) -> np.ndarray:
        """Find which sector each angle is in, as a number."""
        return (np.searchsorted(self.start_k, np.asarray(angle_c) % TURN, side="right") - 1) % len(self.names)

    def pieces(self) -> list[tuple[int, float, float]]:
        """Cut the sectors at angle 0, as (number, from, to): the one that contains it is in two pieces."""
        pieces = []
        for k, (start, width) in enumerate(zip(self.start_k, self.width_k, strict=True)):
            pieces.append((k, start, min(start + width, TURN)))
            if start + width > TURN + 1e-9:
                pieces.append((k, 0.0, start + width - TURN))
        return pieces


def color_of(modality: str, others: Sequence[str] = ()) -> str:
    """Give the color of a modality; those that are not known by name have the colors that are left."""
    left = ["#CC79A7", "#E69F00", "#56B4E9", BLACK]
    unknown = [name for name in others if name not in MODALITY_COLORS]
    place = unknown.index(modality) if modality in unknown else 0
    return MODALITY_COLORS.get(modality, left[place % len(left)])


def angle_axis(panel: Axes, phases: Phases | None, named: bool = True) -> None:
    """Make a horizontal axis one of angles, from 0 to 2π, and shade the phases, with their names on top."""
    ticks = np.linspace(0, TURN, 5)
    panel.set_xlim(0, TURN)
    panel.set_xticks(ticks, ["0", "π/2", "π", "3π/2", "2π"])
    if phases is None:
        return
    for k, low, high in phases.pieces():
        panel.axvspan(low, high, color=phases.colors[k], alpha=0.22, lw=0, zorder=0)
        if named and high - low > 0.08 * TURN:
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


def row_font_size(figure: Figure | SubFigure, n_rows: int, share: float = 0.8) -> float:
    """Choose a size of letters, in points, with which so many rows fit into a share of the height."""
    height = 72 * figure.bbox.height / figure.figure.dpi * share
    return float(np.clip(0.8 * height / max(n_rows, 1), 4, 8.5))


def tidy(panel: Axes) -> None:
    """Take away what every panel can do without."""
    panel.grid(False)
    panel.spines[["top", "right"]].set_visible(False)


def fit(text: Text, room: float | None = None) -> None:
    """Make a text smaller where it is wider than its figure, or than `room` in pixels."""
    figure = text.figure
    if figure is None:
        return
    room = 0.96 * figure.bbox.width if room is None else room
    for _ in range(2):  # widths of letters are rounded
        wide = text.get_window_extent().width
        if wide > room:
            text.set_fontsize(float(text.get_fontsize()) * room / wide)


def minus(number: str) -> str:
    """Write a number with a real minus sign, as the ticks have it."""
    return number.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Write a share in percent: whole ones, and "<1%" for what is there, but little."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def shorten(name: str, limit: int) -> str:
    """Cut a long name in the middle, where names differ least."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def canvas(ax: Axes | None, figsize: tuple[float, float]) -> Figure | SubFigure:
    """Make room for several panels: a new figure, or in place of Axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.figure(figsize=figsize, layout="constrained")
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "ax is not part of a grid, so that it cannot be split into panels: make it by plt.subplots(), for example"
        )
    figure = ax.figure
    if figure.figure.get_layout_engine() is None:
        figure.figure.set_layout_engine("constrained")
    ax.remove()
    return figure.add_subfigure(place)


def finish(
    figure: Figure | SubFigure, drawn: dict[str, Axes], ax: Axes | None, show: bool | None, return_fig: bool
) -> dict[str, Axes] | Figure | None:
    """Show the figure, or return it or its Axes."""
    import matplotlib.pyplot as plt

    if show is None:
        import scanpy as sc

        show = ax is None and not return_fig and bool(sc.settings.autoshow)
    if show:
        plt.show()
    if return_fig:
        return figure.figure  # of a part, the whole
    return None if show else drawn

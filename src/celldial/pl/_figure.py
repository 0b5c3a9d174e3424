"""Figures and panels: the axes of a plot, the size of its text, and its return value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

# matplotlib is imported inside the functions that draw: `import celldial` stays fast.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

__all__ = ["despine", "make_figure", "row_font_size", "show_or_return", "shrink_text"]


def make_figure(ax: Axes | None, figsize: tuple[float, float]) -> Figure | SubFigure:
    """Return a new figure, or a subfigure in place of `ax`, with room for several panels."""
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.figure(figsize=figsize, layout="constrained")
    subplot_spec = ax.get_subplotspec()
    if subplot_spec is None:
        raise ValueError(
            "ax is not part of a grid, so it cannot be split into panels: create it with plt.subplots(), for example"
        )
    figure = ax.figure
    if figure.figure.get_layout_engine() is None:
        figure.figure.set_layout_engine("constrained")
    ax.remove()
    return figure.add_subfigure(subplot_spec)


def show_or_return(
    figure: Figure | SubFigure, panels: dict[str, Axes], ax: Axes | None, show: bool | None, return_fig: bool
) -> dict[str, Axes] | Figure | None:
    """Show the figure, or return the figure or its panels, as scanpy's plots do."""
    import matplotlib.pyplot as plt

    if show is None:
        import scanpy as sc

        show = ax is None and not return_fig and bool(sc.settings.autoshow)
    if show:
        plt.show()
    if return_fig:
        return figure.figure  # the whole figure, also if a subfigure was drawn
    return None if show else panels


def despine(panel: Axes) -> None:
    """Remove the grid and the top and right spines of a panel."""
    panel.grid(False)
    panel.spines[["top", "right"]].set_visible(False)


def row_font_size(figure: Figure | SubFigure, n_rows: int, share: float = 0.8) -> float:
    """Return the font size, in points, at which `n_rows` lines of text fit into a share of the figure's height."""
    height = 72 * figure.bbox.height / figure.figure.dpi * share
    return float(np.clip(0.8 * height / max(n_rows, 1), 4, 8.5))


def shrink_text(text: Text, max_width: float | None = None) -> None:
    """Reduce the font size of a text that is wider than its figure, or than `max_width` in pixels."""
    figure = text.figure
    if figure is None:
        return
    max_width = 0.96 * figure.bbox.width if max_width is None else max_width
    for _ in range(2):  # twice, because the widths of letters are rounded
        width = text.get_window_extent().width
        if width > max_width:
            text.set_fontsize(float(text.get_fontsize()) * max_width / width)

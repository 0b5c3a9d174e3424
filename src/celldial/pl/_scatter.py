"""Cells as dots, colored by a column of ``obs``, with a legend or color bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.pl._colors import MISSING_COLOR, category_colors, is_numeric
from celldial.pl._text import truncate_middle
from celldial.utils.messages import get_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["MAX_LEGEND_ENTRIES", "legend_width", "scatter_cells"]

MAX_LEGEND_ENTRIES, LEGEND_ROWS, MAX_NAME_LENGTH = 40, 20, 28


def scatter_cells(
    figure: Figure | SubFigure,
    panel: Axes,
    x_c: np.ndarray,
    y_c: np.ndarray,
    adata: AnnData,
    color: str,
    legend_side: str,
    **options: Any,
) -> None:
    """Draw cells as dots, colored by a column of ``obs``, with a legend or color bar outside the panel.

    Cells without a value are gray and lie below the others. Categories have the colors that scanpy stored, if any.
    """
    column_c = get_column(adata.obs, color, "color")
    options = {"linewidths": 0, "rasterized": True, **options}
    missing_c = column_c.isna().to_numpy()
    if missing_c.any():
        panel.scatter(x_c[missing_c], y_c[missing_c], color=MISSING_COLOR, **options)
    present_c = ~missing_c
    if is_numeric(column_c):
        values_c = column_c.to_numpy(dtype=float)[present_c]
        points = panel.scatter(x_c[present_c], y_c[present_c], c=values_c, cmap="viridis", **options)
        bar = figure.colorbar(points, ax=panel, label=color, shrink=0.6, location=legend_side)
        bar.solids.set_alpha(1) if bar.solids is not None else None
        return
    category_c = column_c.astype("category").cat.remove_unused_categories()
    names = list(category_c.cat.categories)
    colors = category_colors(adata, color, names)
    code_c = category_c.cat.codes.to_numpy()
    # All at once and shuffled, so that no category hides another.
    order = np.random.default_rng(0).permutation(np.flatnonzero(present_c))
    panel.scatter(x_c[order], y_c[order], c=[colors[code] for code in code_c[order]], **options)
    _draw_legend(figure, color, names, colors, legend_side)


def _draw_legend(figure: Figure | SubFigure, title: str, names: list[Any], colors: list[Any], legend_side: str) -> None:
    """Draw a legend of the first categories, on the right or below."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", color=color, label=truncate_middle(str(name), MAX_NAME_LENGTH))
        for name, color in zip(names[:MAX_LEGEND_ENTRIES], colors, strict=False)
    ]
    if len(names) > MAX_LEGEND_ENTRIES:
        handles.append(Line2D([], [], ls="", label=f"and {len(names) - MAX_LEGEND_ENTRIES} more"))
    n_columns = 1 + (len(handles) - 1) // LEGEND_ROWS if legend_side == "right" else min(len(handles), 3)
    location: Any = "outside right center" if legend_side == "right" else "outside lower center"
    figure.legend(handles=handles, loc=location, ncols=n_columns, frameon=False, fontsize="small", title=title)


def legend_width(adata: AnnData, color: str | None) -> float:
    """Return the approximate width, in inches, of a legend on the right."""
    if color is None or is_numeric(adata.obs[color]):
        return 0.0
    names = [str(name) for name in adata.obs[color].astype("category").cat.categories]
    n_columns = 1 + (min(len(names), MAX_LEGEND_ENTRIES + 1) - 1) // LEGEND_ROWS
    return n_columns * (0.4 + 0.075 * min(MAX_NAME_LENGTH, max(map(len, names), default=0)))

"""Cells as dots: what colors them, and what explains the colors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celldial.pl._figure import shorten
from celldial.utils.messages import get_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["colors_of", "draw_cells", "is_number", "legend_width"]

# Okabe and Ito (2008), as many as there are categories at most; with more, no palette tells all of them apart.
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
MISSING = "0.85"
MOST_IN_LEGEND, ROWS_OF_LEGEND, LONGEST_NAME = 40, 20, 28


def draw_cells(
    figure: Figure | SubFigure,
    panel: Axes,
    x_c: np.ndarray,
    y_c: np.ndarray,
    adata: AnnData,
    color: str,
    place: str,
    **options: Any,
) -> None:
    """Draw cells as dots, colored by a column of ``obs``, with a legend or a color bar outside.

    Cells without a value are drawn first, in gray. Categories have the colors that scanpy stored, if it did.
    """
    column_c = get_column(adata.obs, color, "color")
    options = {"linewidths": 0, "rasterized": True, **options}
    missing_c = column_c.isna().to_numpy()
    if missing_c.any():
        panel.scatter(x_c[missing_c], y_c[missing_c], color=MISSING, **options)
    present_c = ~missing_c
    if is_number(column_c):
        values_c = column_c.to_numpy(dtype=float)[present_c]
        points = panel.scatter(x_c[present_c], y_c[present_c], c=values_c, cmap="viridis", **options)
        bar = figure.colorbar(points, ax=panel, label=color, shrink=0.6, location=place)
        bar.solids.set_alpha(1) if bar.solids is not None else None
        return
    category_c = column_c.astype("category").cat.remove_unused_categories()
    names = list(category_c.cat.categories)
    colors = colors_of(adata, color, names)
    code_c = category_c.cat.codes.to_numpy()
    # In one call and shuffled, so that no category hides another.
    order = np.random.default_rng(0).permutation(np.flatnonzero(present_c))
    panel.scatter(x_c[order], y_c[order], c=[colors[code] for code in code_c[order]], **options)
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", color=shade, label=shorten(str(name), LONGEST_NAME))
        for name, shade in zip(names[:MOST_IN_LEGEND], colors, strict=False)
    ]
    if len(names) > MOST_IN_LEGEND:
        handles.append(Line2D([], [], ls="", label=f"and {len(names) - MOST_IN_LEGEND} more"))
    ncols = 1 + (len(handles) - 1) // ROWS_OF_LEGEND if place == "right" else min(len(handles), 3)
    where: Any = "outside right center" if place == "right" else "outside lower center"
    figure.legend(handles=handles, loc=where, ncols=ncols, frameon=False, fontsize="small", title=color)


def legend_width(adata: AnnData, color: str | None) -> float:
    """Estimate how wide the legend is, in inches, when it is on the right."""
    if color is None or is_number(adata.obs[color]):
        return 0.0
    names = [str(name) for name in adata.obs[color].astype("category").cat.categories]
    n_columns = 1 + (min(len(names), MOST_IN_LEGEND + 1) - 1) // ROWS_OF_LEGEND
    return n_columns * (0.4 + 0.075 * min(LONGEST_NAME, max(map(len, names), default=0)))


def is_number(column_c: pd.Series) -> bool:
    """Tell whether a column has numbers, not categories."""
    return pd.api.types.is_numeric_dtype(column_c) and not pd.api.types.is_bool_dtype(column_c)


def colors_of(adata: AnnData, key: str, names: list[Any]) -> list[Any]:
    """Choose a color for each category."""
    stored = adata.uns.get(f"{key}_colors")
    categories = adata.obs[key].cat.categories if isinstance(adata.obs[key].dtype, pd.CategoricalDtype) else names
    if stored is not None and len(stored) >= len(categories):
        color_of = dict(zip(categories, stored, strict=False))
        return [color_of[name] for name in names]
    if len(names) <= len(OKABE_ITO):
        return OKABE_ITO[: len(names)]
    import matplotlib as mpl

    # Different in lightness, too, but only nearby categories: of so many, names in the legend must help.
    return [mpl.colormaps["tab20"](k % 20) for k in range(len(names))]

"""The map of the dial page: cells and their colors, the path, and the cells nearest to each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.pl._colors import BLACK, MISSING_COLOR, ORANGE, category_colors, is_numeric
from celldial.pl._dial_data import MAX_END_LENGTH, encode_base64
from celldial.pl._projection import CellMap, NearestCells, project_path
from celldial.pl._scatter import MAX_LEGEND_ENTRIES
from celldial.pl._text import format_count, format_minus, format_percent, truncate_middle
from celldial.pl._traversal import StoredTraversal
from celldial.utils.messages import get_column

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["map_data"]

N_COLORS = 256
MAX_CIRCLED_CELLS = 100
MAX_NAME_LENGTH = 40
# If the path explains less of the positions of its nearest cells, its shape on the map is mostly noise.
MIN_EXPLAINED = 0.25


def map_data(
    adata: AnnData,
    traversal: StoredTraversal,
    cell_map: CellMap,
    nearest_s: list[NearestCells],
    color: str | None,
    max_cells: int,
) -> dict[str, Any]:
    """Return cells, colors, path and captions of the map. Positions are shares of its width and height."""
    on_map = np.flatnonzero(np.isfinite(cell_map.xy_c2).all(1))
    # In random order, so that no category hides another.
    shown = np.random.default_rng(0).permutation(on_map)[:max_cells]
    palette, code_c, legend = _color_data(adata, color)
    shown = shown[np.argsort(code_c[shown] > 0, kind="stable")]  # cells without a value lie below the others
    path_s2 = project_path(traversal, nearest_s, cell_map)
    # The circle map always shows the full circle.
    corners_k2 = np.array([[-1, -1], [1, 1]]) if cell_map.is_circle else cell_map.xy_c2[on_map]
    low_2 = corners_k2.min(0)
    size_2 = np.maximum(corners_k2.max(0) - low_2, 1e-9)
    x_c, y_c = np.round((cell_map.xy_c2[shown] - low_2) / size_2 * 65535).T

    shown_index_c = np.full(adata.n_obs, -1)
    shown_index_c[shown] = np.arange(len(shown))
    circled_s = [shown_index_c[nearest.cell_k] for nearest in nearest_s]
    explained = 1.0 if cell_map.is_circle else _explained_variance(nearest_s, path_s2, cell_map.xy_c2)
    unreliable = explained < MIN_EXPLAINED
    line_colors, marker_colors = _path_colors(traversal, len(path_s2), color is not None)
    return {
        "label": cell_map.label,
        "isCircle": cell_map.is_circle,
        "title": "Cells on the circle" if cell_map.is_circle else f"Path on the map of the cells ({cell_map.label})",
        "description": _description(traversal, cell_map, len(shown), len(path_s2), color),
        "x": encode_base64(x_c, "<u2"),
        "y": encode_base64(y_c, "<u2"),
        "color": None if color is None else encode_base64(code_c[shown], "<u2"),
        "palette": palette,
        "legend": legend,
        "caption": _caption(traversal, cell_map, len(shown), len(on_map), explained),
        "nearest": [index_k[index_k >= 0][:MAX_CIRCLED_CELLS].tolist() for index_k in circled_s],
        "unreliable": unreliable,
        "path": np.round((path_s2 - low_2) / size_2, 5).tolist(),
        # On an unreliable path, names of phases would be misleading.
        "labels": [] if traversal.periodic and unreliable else _path_labels(traversal),
        "lineColors": line_colors,
        "markerColors": marker_colors,
    }


def _explained_variance(nearest_s: list[NearestCells], path_s2: np.ndarray, xy_c2: np.ndarray) -> float:
    """Return the share of the variance of map positions that lies between steps, over the cells nearest to them."""
    within = np.mean(
        [
            nearest.weight_k @ ((xy_c2[nearest.cell_k] - step_2) ** 2).sum(1)
            for nearest, step_2 in zip(nearest_s, path_s2, strict=True)
        ]
    )
    between = path_s2.var(0).sum()
    return float(between / max(between + within, 1e-12))


# --- Text -------------------------------------------------------------------------------------------------------------


def _description(traversal: StoredTraversal, cell_map: CellMap, n_cells: int, n_steps: int, color: str | None) -> str:
    """Return the description of the map for screen readers."""
    start, end = _ends(traversal)
    course = f"along the {traversal.axis}" if traversal.periodic else f"from {start} to {end}"
    colored = "" if color is None else f", colored by {color}"
    return (
        f"Map of {format_count('cell', n_cells)} ({cell_map.label}){colored}, with the path {course} in "
        f"{format_count('step', n_steps)} and a marker at the current step."
    )


def _caption(traversal: StoredTraversal, cell_map: CellMap, n_shown: int, n_on_map: int, explained: float) -> str:
    """Return the caption below the map."""
    sentences = []
    if n_shown < n_on_map:
        sentences.append(f"{n_shown:,} of {format_count('cell', n_on_map)} are drawn, selected at random.")
    n_missing = len(cell_map.xy_c2) - n_on_map
    if n_missing:
        sentences.append(f"Not drawn: {format_count('cell', n_missing)} without a position on this map.")
    state = "angles" if traversal.periodic else "latent states"
    if cell_map.is_circle:
        sentences.append("Cells are placed at their angle, farther from the center if the angle is more certain.")
        sentences.append(f"Circled: cells with the {state} nearest to the step.")
    else:
        sentences.append(f"Circled: cells with the {state} nearest to the step. The marker is at their weighted mean.")
    if explained < MIN_EXPLAINED:
        sentences.append(
            f"The path explains only {format_percent(explained)} of the positions on this map; use the bars instead."
        )
    return " ".join(sentences)


def _ends(traversal: StoredTraversal) -> tuple[str, str]:
    """Return the names of start and end of the path."""
    if traversal.kind == "path":
        return traversal.ends
    first, last = (format_minus(f"{position:.2g}") for position in traversal.position_s[[0, -1]])
    return f"start ({first})", f"end ({last})"


def _path_labels(traversal: StoredTraversal) -> list[dict[str, Any]]:
    """Return the labels along the path: their step, their text, and whether the step is marked by a circle."""
    if not traversal.periodic:
        start, end = (truncate_middle(end, MAX_END_LENGTH) for end in _ends(traversal))
        return [
            {"step": 0, "text": start, "mark": True},
            {"step": len(traversal.position_s) - 1, "text": end, "mark": True},
        ]
    labels: list[dict[str, Any]] = [{"step": 0, "text": "angle 0", "mark": True}]
    if traversal.phases is not None:
        for name, angle in zip(traversal.phases.names, traversal.phases.middle_k, strict=True):
            step = int(np.abs(traversal.position_s - angle).argmin())
            labels.append({"step": step, "text": truncate_middle(name, MAX_END_LENGTH), "mark": False})
    return labels


# --- Colors -----------------------------------------------------------------------------------------------------------


def _path_colors(traversal: StoredTraversal, n_steps: int, is_colored: bool) -> tuple[list[str], list[str]]:
    """Return the color of each line segment of the path, and of the marker at each step."""
    if traversal.phases is None:
        return [BLACK] * (n_steps - 1), [ORANGE] * n_steps
    phase_colors = [traversal.phases.colors[k] for k in traversal.phases.index_of(traversal.position_s)]
    # Next to colored cells, phase colors could be mistaken for categories.
    return [BLACK] * (n_steps - 1) if is_colored else phase_colors[:-1], phase_colors


def _color_data(adata: AnnData, color: str | None) -> tuple[list[str], np.ndarray, dict[str, Any] | None]:
    """Return the palette, the index of each cell in it (0 without a value), and the legend."""
    from matplotlib.colors import to_hex

    missing = to_hex(MISSING_COLOR)
    if color is None:
        return [missing], np.zeros(adata.n_obs, dtype=int), None
    column_c = get_column(adata.obs, color, "color")
    if is_numeric(column_c):
        return _color_scale(column_c.to_numpy(dtype=float, na_value=np.nan), color, missing)
    category_c = column_c.astype("category").cat.remove_unused_categories()
    names = list(category_c.cat.categories)
    colors = [to_hex(shade) for shade in category_colors(adata, color, names)]
    palette = [missing, *dict.fromkeys(colors)]
    index_of = {shade: index for index, shade in enumerate(palette) if index}
    code_k = np.array([0, *(index_of[shade] for shade in colors)])
    category_index_c = category_c.cat.codes.to_numpy().astype(int) + 1
    entries = [
        [truncate_middle(str(name), MAX_NAME_LENGTH), shade]
        for name, shade in zip(names[:MAX_LEGEND_ENTRIES], colors, strict=False)
    ]
    if (category_index_c == 0).any():
        entries.append(["no value", missing])
    n_more = len(names) - MAX_LEGEND_ENTRIES
    more = f"and {n_more:,} more" if n_more > 0 else ""
    return palette, code_k[category_index_c], {"title": color, "entries": entries, "more": more}


def _color_scale(value_c: np.ndarray, title: str, missing: str) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """Return the palette, the index of each cell in it and the legend of a numeric column."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    known_c = np.isfinite(value_c)
    low, high = (value_c[known_c].min(), value_c[known_c].max()) if known_c.any() else (0.0, 0.0)
    share_c = np.where(known_c, value_c - low, 0) / ((high - low) or 1)
    code_c = np.where(known_c, 1 + np.round(share_c * (N_COLORS - 1)), 0).astype(int)
    palette = [missing, *(to_hex(colormaps["viridis"](k / (N_COLORS - 1))) for k in range(N_COLORS))]
    return palette, code_c, {"title": title, "low": _format_number(low), "high": _format_number(high)}


def _format_number(value: float) -> str:
    """Return a number with three significant digits, and with all digits before the decimal point."""
    return format_minus(f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}")

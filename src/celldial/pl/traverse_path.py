"""The plot of a path through latent space on a map of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.pl._colors import CYCLIC_COLORMAP
from celldial.pl._figure import make_figure, show_or_return, shrink_text
from celldial.pl._phases import ANGLE_LABELS, ANGLE_TICKS
from celldial.pl._projection import find_cell_map, find_nearest_cells, project_path, resolve_n_neighbors
from celldial.pl._scatter import legend_width, scatter_cells
from celldial.pl._text import format_minus
from celldial.pl._traversal import StoredTraversal, read_traversal
from celldial.utils.messages import get_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["traverse_path"]


def traverse_path(
    adata: AnnData,
    name: str | None = None,
    basis: str = "X_umap",
    color: str | None = None,
    *,
    n_neighbors: int | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the path of a traversal on a map of the cells, such as a UMAP.

    A map has positions only for cells, not for other latent states. Each step of the path is therefore drawn at the
    weighted mean position of the cells with the nearest latent states. This is a projection: its length and bends are
    not those of the path in latent space. Wide gaps between dots show that the map has no cells between two steps.

    Parameters
    ----------
    adata
        Cells with a traversal in ``adata.uns["latent_traverse"]``, with their latent states and with a map.
    name
        Name of the traversal. By default the last one that was stored.
    basis
        The map: a matrix in ``obsm``, whose first two columns are drawn. For a periodic coordinate also ``"circle"``,
        which places cells at their angle, farther from the center if the angle is more certain. A map of ``X_celldial``
        cannot show the angle, because that embedding does not include the periodic coordinate.
    color
        Column of ``obs`` that colors the cells; the path is then black. By default cells are gray and the path is
        colored by phase or position.
    n_neighbors
        Number of nearest cells. Each step is drawn at their weighted mean position. By default 30, or 1% of the cells
        if that is more.
    ax
        Axes to draw in. The panel replaces them, so they must be part of a grid, as created by ``plt.subplots``. If the
        figure has no layout engine, the constrained layout is set. By default, a new figure is created.
    show
        Whether to show the figure and return None. The default is ``scanpy.settings.autoshow``, or False if `ax` or
        `return_fig` is given.
    return_fig
        Whether to return the figure.

    Returns
    -------
    dict[str, Axes] | Figure | None
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panel by name: ``"map"``.

    Raises
    ------
    KeyError
        If there is no such traversal, map or column, or if there are no latent states.
    ValueError
        If `n_neighbors` is less than 1, if latent states and path come from different models, or if `ax` is not part of
        a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)

    The first two latent coordinates are a map, too, and need no ``sc.tl.umap(adata)``:

    >>> axes = cd.pl.traverse_path(adata, "axis_0", basis="X_celldial", color="bulk_labels", show=False)
    >>> list(axes)
    ['map']
    """
    n_neighbors = resolve_n_neighbors(adata, n_neighbors)
    traversal = read_traversal(adata, name)
    cell_map = find_cell_map(adata, basis, traversal)
    if color is not None:
        get_column(adata.obs, color, "color")  # before anything is drawn
    path_s2 = project_path(traversal, find_nearest_cells(adata, traversal, cell_map.xy_c2, n_neighbors), cell_map)

    figure = make_figure(ax, (6.8 + legend_width(adata, color), 5.8))
    shrink_text(figure.suptitle(_title(traversal), fontweight="bold"))
    panel = figure.subplots()
    size = float(np.clip(40000 / max(adata.n_obs, 1), 1.5, 40))
    x_c, y_c = cell_map.xy_c2.T
    if color is None:
        panel.scatter(x_c, y_c, s=size, color="0.82", linewidths=0, rasterized=True, label="cells")
    else:
        scatter_cells(figure, panel, x_c, y_c, adata, color, "right", s=size, alpha=0.6)
    _draw_path(figure, panel, traversal, path_s2, color is not None)
    if cell_map.is_circle:
        panel.set_aspect("equal")
        caption = "Cells are placed at their angle, farther from the center if the angle is more certain."
    else:
        panel.set_xlabel(f"{cell_map.label} 1")
        panel.set_ylabel(f"{cell_map.label} 2")
        caption = (
            f"Projection: each step (black dot) is drawn at the weighted mean position of the {n_neighbors:,} cells\n"
            "with the nearest latent states. Distances and bends are not those in latent space."
        )
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    shrink_text(figure.supxlabel(caption, fontsize="small", color="0.25"))
    return show_or_return(figure, {"map": panel}, ax, show, return_fig)


def _title(traversal: StoredTraversal) -> str:
    """Return the title of the figure."""
    prefix = {"periodic": "", "direction": "axis ", "coordinate": "", "path": "path "}[traversal.kind]
    title = f"{prefix}{traversal.axis} on the map of the cells"
    return title[0].upper() + title[1:]


def _draw_path(
    figure: Figure | SubFigure, panel: Axes, traversal: StoredTraversal, path_s2: np.ndarray, is_black: bool
) -> None:
    """Draw the path as a line with arrows, colored by phase or position, and label its ends or phases."""
    from matplotlib.collections import LineCollection

    panel.plot(*path_s2.T, color="white", lw=6, solid_capstyle="round", zorder=3)
    segments = np.stack([path_s2[:-1], path_s2[1:]], axis=1)
    middle_s = (traversal.position_s[1:] + traversal.position_s[:-1]) / 2
    line = LineCollection(list(segments), lw=3, capstyle="round", zorder=4)
    panel.add_collection(line)
    phases = traversal.phases
    if is_black:
        line.set_color("black")
    elif phases is not None:
        line.set_color([phases.colors[k] for k in phases.index_of(middle_s)])
    else:
        line.set(array=middle_s, cmap=CYCLIC_COLORMAP if traversal.periodic else "viridis")
        line.set_clim(traversal.position_s.min(), traversal.position_s.max())
        bar = figure.colorbar(line, ax=panel, label=traversal.position_label, shrink=0.6)
        if traversal.periodic:
            bar.set_ticks(list(ANGLE_TICKS), labels=list(ANGLE_LABELS))
    # Dots at the steps show where the path jumps, because the map has no cells there.
    panel.plot(*path_s2.T, ls="", marker="o", ms=6 if is_black else 3, color="black", mew=0, zorder=4.5)
    _draw_arrows(panel, path_s2, traversal.periodic, 26 if is_black else 20)
    if not traversal.periodic:
        first, last = (format_minus(f"{position:.2g}") for position in traversal.position_s[[0, -1]])
        start, end = traversal.ends if traversal.kind == "path" else (f"start ({first})", f"end ({last})")
        _label_step(panel, path_s2[0], start, "o")
        _label_step(panel, path_s2[-1], end, "s")
        return
    _label_step(panel, path_s2[0], "angle 0", "o")
    if phases is not None:
        for name, angle in zip(phases.names, phases.middle_k, strict=True):
            _label_step(panel, path_s2[np.abs(traversal.position_s - angle).argmin()], name)


def _label_step(panel: Axes, xy_2: np.ndarray, label: str, marker: str | None = None) -> None:
    """Write a label next to a step of the path, optionally with a marker."""
    from matplotlib.patheffects import withStroke

    if marker is not None:
        panel.plot(*xy_2, marker=marker, ms=8, mfc="white", mec="black", mew=1.5, zorder=6)
    panel.annotate(
        label,
        (float(xy_2[0]), float(xy_2[1])),
        xytext=(8, 8),
        textcoords="offset points",
        fontweight="bold",
        zorder=7,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _draw_arrows(panel: Axes, path_s2: np.ndarray, closed: bool, size: float) -> None:
    """Draw arrow heads at equal distances along the line on the map."""
    length_s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path_s2, axis=0), axis=1))])
    if length_s[-1] == 0:
        return
    for share in (1 / 6, 1 / 2, 5 / 6) if closed else (0.3, 0.6, 0.9):
        tail, head = (
            (
                float(np.interp((share + shift) * length_s[-1], length_s, path_s2[:, 0])),
                float(np.interp((share + shift) * length_s[-1], length_s, path_s2[:, 1])),
            )
            for shift in (-0.02, 0.02)
        )
        panel.annotate(
            "",
            head,
            tail,
            arrowprops={"arrowstyle": "-|>", "mutation_scale": size, "color": "black", "lw": 0},
            zorder=5,
        )

"""A path through latent space, drawn on a map of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.pl._figure import CYCLIC, TURN, canvas, finish, fit, minus
from celldial.pl._projection import count_neighbors, find_map, find_near, project
from celldial.pl._scatter import draw_cells, legend_width
from celldial.pl._traversal import Traversal, read_traversal
from celldial.utils.messages import did_you_mean, format_names

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
    """Draw the path of a traversal on a map of the cells, such as a UMAP.

    A map has no place for a latent state that is not a cell's. So each step of the path is drawn where the cells are
    whose latent states are nearest to it, on average: this is a projection, and neither its length nor its bends are
    those of the path. Where dots are far apart, the map has no cells between two steps.

    Parameters
    ----------
    adata
        Cells with a traversal, in ``adata.uns["latent_traverse"]``, with their latent states, and with a map.
    name
        Which traversal; by default the last one that was stored.
    basis
        The map: a matrix in ``obsm``, of which the first two columns are drawn. For a periodic axis also ``"circle"``,
        a clock on which cells stand at their angle, the farther out the surer that is. It shows what a map of
        ``X_celldial`` cannot: that embedding is free of the circle.
    color
        Column of ``obs`` to color the cells by, with the path in black; by default they are gray, and the path has
        colors.
    n_neighbors
        How many cells each step is drawn at the mean of, the nearer ones with more weight; by default 30, or one of a
        hundred cells where that is more.
    ax
        Where to draw: the panel takes the place of these Axes, which must be part of a grid, such as ``plt.subplots``
        makes. If the figure has no layout engine it gets the constrained one. By default a new figure is made.
    show
        Whether to show the figure, and return nothing. By default as scanpy does
        (``scanpy.settings.autoshow``), but never where `ax` or `return_fig` is given.
    return_fig
        Whether to return the figure.

    Returns
    -------
    dict[str, Axes] | Figure | None
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes, under ``"map"``.

    Raises
    ------
    KeyError
        There is no such traversal, map or column, or there are no latent states.
    ValueError
        `n_neighbors` is less than 1, the latent states are of another model than the path, or `ax` is not part of a
        grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)

    Here on the first two latent coordinates, which need no ``sc.tl.umap(adata)``:

    >>> axes = cd.pl.traverse_path(adata, "axis_0", basis="X_celldial", color="bulk_labels", show=False)
    >>> list(axes)
    ['map']
    """
    n_neighbors = count_neighbors(adata, n_neighbors)
    traversal = read_traversal(adata, name)
    cell_map = find_map(adata, basis, traversal)
    if color is not None and color not in adata.obs:
        raise KeyError(
            f"color {color!r} is not among the columns of adata.obs{did_you_mean(color, list(adata.obs))}; "
            f"there are: {format_names(adata.obs.columns)}"
        )
    path_s2 = project(traversal, find_near(adata, traversal, cell_map.place_c2, n_neighbors), cell_map)

    figure = canvas(ax, (6.8 + legend_width(adata, color), 5.8))
    fit(figure.suptitle(_title(traversal), fontweight="bold"))
    panel = figure.subplots()
    size = float(np.clip(40000 / max(adata.n_obs, 1), 1.5, 40))
    x_c, y_c = cell_map.place_c2.T
    if color is None:
        panel.scatter(x_c, y_c, s=size, color="0.82", linewidths=0, rasterized=True, label="cells")
    else:
        draw_cells(figure, panel, x_c, y_c, adata, color, "right", s=size, alpha=0.6)
    _draw_path(figure, panel, traversal, path_s2, color is not None)
    if cell_map.is_circle:
        panel.set_aspect("equal")
        about = "A clock: cells stand at their angle, the farther out the surer it is that they have it."
    else:
        panel.set_xlabel(f"{cell_map.label} 1")
        panel.set_ylabel(f"{cell_map.label} 2")
        about = (
            f"A projection: each step (black dot) is drawn at the mean of the {n_neighbors:,} cells whose\n"
            "latent states are nearest to it. Lengths and bends on the map are not those in latent space."
        )
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    fit(figure.supxlabel(about, fontsize="small", color="0.25"))
    return finish(figure, {"map": panel}, ax, show, return_fig)


def _title(traversal: Traversal) -> str:
    """Say what is seen."""
    kind = {"periodic": "The ", "direction": "The axis ", "coordinate": "", "path": "The path "}[traversal.kind]
    title = f"{kind}{traversal.axis} on the map of the cells"
    return title[0].upper() + title[1:]


def _draw_path(
    figure: Figure | SubFigure, panel: Axes, traversal: Traversal, path_s2: np.ndarray, is_black: bool
) -> None:
    """Draw the path as a line with its direction, colored by phase or position, and name where it starts and ends."""
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
        line.set_color([phases.colors[k] for k in phases.of(middle_s)])
    else:
        line.set(array=middle_s, cmap=CYCLIC if traversal.periodic else "viridis")
        line.set_clim(traversal.position_s.min(), traversal.position_s.max())
        bar = figure.colorbar(line, ax=panel, label=traversal.position_label, shrink=0.6)
        if traversal.periodic:
            bar.set_ticks([TURN * k / 4 for k in range(5)], labels=["0", "π/2", "π", "3π/2", "2π"])
    # Where the map has no cells the path jumps: the dots show between which steps.
    panel.plot(*path_s2.T, ls="", marker="o", ms=6 if is_black else 3, color="black", mew=0, zorder=4.5)
    _draw_arrows(panel, path_s2, traversal.periodic, 26 if is_black else 20)
    if not traversal.periodic:
        first, last = (minus(f"{position:.2g}") for position in traversal.position_s[[0, -1]])
        start, end = traversal.ends if traversal.kind == "path" else (f"start ({first})", f"end ({last})")
        _mark(panel, path_s2[0], start, "o")
        _mark(panel, path_s2[-1], end, "s")
        return
    _mark(panel, path_s2[0], "angle 0", "o")
    if phases is not None:
        for name, angle in zip(phases.names, phases.middle_k, strict=True):
            _mark(panel, path_s2[np.abs(traversal.position_s - angle).argmin()], name)


def _mark(panel: Axes, place_2: np.ndarray, label: str, marker: str | None = None) -> None:
    """Write beside a place on the map, and mark it."""
    from matplotlib.patheffects import withStroke

    if marker is not None:
        panel.plot(*place_2, marker=marker, ms=8, mfc="white", mec="black", mew=1.5, zorder=6)
    panel.annotate(
        label,
        (float(place_2[0]), float(place_2[1])),
        xytext=(8, 8),
        textcoords="offset points",
        fontweight="bold",
        zorder=7,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _draw_arrows(panel: Axes, path_s2: np.ndarray, closed: bool, size: float) -> None:
    """Draw arrow heads at places of equal distance along the line, as it is on the map."""
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

"""A path through latent space, drawn on a map of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.lookup import listing
from celldial.pl._canvas import CYCLIC, TURN, canvas, finish, fit, minus
from celldial.pl._cells import draw_cells, legend_width
from celldial.pl._stored import Traversal, did_you_mean, read_traversal

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
        The map: a matrix in ``obsm``, of which the first two columns are drawn.
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
    if n_neighbors is None:
        n_neighbors = max(30, adata.n_obs // 100)
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors}: at least 1 cell is needed")
    n_neighbors = min(n_neighbors, adata.n_obs)
    traversal = read_traversal(adata, name)
    basis, map_c2 = _map(adata, basis)
    if color is not None and color not in adata.obs:
        raise KeyError(
            f"color {color!r} is not among the columns of adata.obs{did_you_mean(color, list(adata.obs))}; "
            f"there are: {listing(adata.obs.columns)}"
        )
    distance_sc = _around(adata, traversal) if traversal.periodic else _between(adata, traversal)
    distance_sc[:, ~np.isfinite(map_c2).all(1)] = np.inf
    path_s2 = _project(distance_sc, map_c2, n_neighbors)

    figure = canvas(ax, (6.8 + legend_width(adata, color), 5.8))
    fit(figure.suptitle(_title(traversal), fontweight="bold"))
    panel = figure.subplots()
    size = float(np.clip(40000 / max(adata.n_obs, 1), 1.5, 40))
    x_c, y_c = map_c2.T
    if color is None:
        panel.scatter(x_c, y_c, s=size, color="0.82", linewidths=0, rasterized=True, label="cells")
    else:
        draw_cells(figure, panel, x_c, y_c, adata, color, "right", s=size, alpha=0.6)
    _draw_path(figure, panel, traversal, path_s2, color is not None)
    label = {"X_umap": "UMAP", "X_tsne": "t-SNE", "X_pca": "PC"}.get(basis, basis)
    panel.set_xlabel(f"{label} 1")
    panel.set_ylabel(f"{label} 2")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    caption = figure.supxlabel(
        f"A projection: each step (black dot) is drawn at the mean of the {n_neighbors:,} cells whose\n"
        "latent states are nearest to it. Lengths and bends on the map are not those in latent space.",
        fontsize="small",
        color="0.25",
    )
    fit(caption)
    return finish(figure, {"map": panel}, ax, show, return_fig)


def _title(traversal: Traversal) -> str:
    """Say what is seen."""
    kind = {"periodic": "The ", "direction": "The axis ", "coordinate": "", "path": "The path "}[traversal.kind]
    title = f"{kind}{traversal.axis} on the map of the cells"
    return title[0].upper() + title[1:]


def _map(adata: AnnData, basis: str) -> tuple[str, np.ndarray]:
    """Find the map; ``"umap"`` is taken for ``"X_umap"``, as scanpy does."""
    key = basis if basis in adata.obsm or f"X_{basis}" not in adata.obsm else f"X_{basis}"
    if key not in adata.obsm:
        raise KeyError(
            f"no map {basis!r} in adata.obsm{did_you_mean(basis, list(adata.obsm))}; there are {listing(adata.obsm)}: "
            "call sc.pp.neighbors(adata, use_rep='X_celldial') and sc.tl.umap(adata) first"
        )
    matrix = np.asarray(adata.obsm[key], dtype=float)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise ValueError(f"adata.obsm[{key!r}] has the shape {matrix.shape}: a map needs two columns")
    return key, matrix[:, :2]


def _between(adata: AnnData, traversal: Traversal) -> np.ndarray:
    """Measure how far each cell's latent state is from each step."""
    key = adata.uns.get("celldial", {}).get("key_added", "X_celldial")
    if key not in adata.obsm:
        raise KeyError(
            f"no latent states {key!r} in adata.obsm; there are {listing(adata.obsm)}: call model.fit(adata) first"
        )
    state_cz = np.asarray(adata.obsm[key], dtype=float)
    path_sz = traversal["path"]
    n_latent = state_cz.shape[1]
    # States on a path may have two more columns than the embedding: those that turn.
    if path_sz.shape[1] not in (n_latent, n_latent + 2):
        raise ValueError(
            f"the path has {path_sz.shape[1]} latent coordinates and adata.obsm[{key!r}] has {n_latent}: "
            "they are of different models, call model.latent_traverse again"
        )
    # One step at a time: all at once would take steps x cells x coordinates.
    return np.stack([np.linalg.norm(state_cz - step_z[:n_latent], axis=1) for step_z in path_sz])


def _around(adata: AnnData, traversal: Traversal) -> np.ndarray:
    """Measure how far each cell's angle is from that of each step; cells that carry no phase are out of reach."""
    key = f"{traversal.name}_angle"
    if key not in adata.obs:
        raise KeyError(f"no column {key!r} in adata.obs: call model.fit(adata) first")
    angle_c = adata.obs[key].to_numpy(dtype=float)
    distance_sc = np.abs((angle_c - traversal.position_s[:, None] + np.pi) % TURN - np.pi)
    active = f"{traversal.name}_active"
    idle_c = ~np.isfinite(angle_c)
    if active in adata.obs:
        idle_c |= ~adata.obs[active].to_numpy(dtype=bool)
    distance_sc[:, idle_c] = np.inf
    return distance_sc


def _project(distance_sc: np.ndarray, map_c2: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Average over the nearest cells of each step, with a Gaussian kernel as wide as half the farthest of them."""
    n_reachable = int(np.isfinite(distance_sc[0]).sum())
    if n_reachable == 0:
        raise ValueError("no cell has both a latent state on this axis and a place on the map")
    nearest_sk = np.argsort(distance_sc, axis=1, kind="stable")[:, : min(n_neighbors, n_reachable)]
    distance_sk = np.take_along_axis(distance_sc, nearest_sk, axis=1)
    width_s1 = np.maximum(distance_sk[:, -1:] / 2, 1e-12)
    # Less the smallest distance: where the path is far from all cells, the nearest still counts most.
    weight_sk = np.exp(-0.5 * ((distance_sk - distance_sk[:, :1]) / width_s1) ** 2)
    weight_sk /= weight_sk.sum(1, keepdims=True)
    path_s2: np.ndarray = np.einsum("sk,skd->sd", weight_sk, map_c2[nearest_sk])
    return path_s2


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

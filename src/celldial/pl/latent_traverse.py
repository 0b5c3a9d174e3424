"""The plot of the changes along a path through latent space: curves of some features, and a heatmap of more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.pl._figure import despine, make_figure, row_font_size, show_or_return, shrink_text
from celldial.pl._phases import Phases, format_angle_axis
from celldial.pl._text import format_count, truncate_middle
from celldial.pl._traversal import StoredTraversal, feature_columns, interleave, order_by_peak, read_traversal

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["latent_traverse"]

# The color scale covers at least a twofold change, so an axis without effect looks pale.
MIN_LOG2_LIMIT = 1.0
MAX_END_LENGTH, MAX_NAME_LENGTH = 22, 28


def latent_traverse(
    adata: AnnData,
    name: str | None = None,
    features: Sequence[str] | str | None = None,
    *,
    n_features: int = 6,
    n_heatmap: int = 30,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot what changes along an axis, as computed by `celldial.VAE.latent_traverse`.

    On the left are curves of some features: the expected population mean, with its credible interval. On the right is a
    heatmap of the top-ranked features of each modality, in the order in which they peak. For a periodic coordinate, the
    phases are shaded and named, and the curves end where they start.

    Parameters
    ----------
    adata
        Cells with a traversal in ``adata.uns["latent_traverse"]``.
    name
        Name of the traversal: ``"axis_0"`` for latent coordinate 0, ``"cell_cycle"``, or the name of an axis. By
        default the last one that was stored. In cells read from a file, this is the last one in alphabetical order.
    features
        Genes, peaks or proteins whose curves are drawn. By default the `n_features` top-ranked features, in equal
        numbers from each modality.
    n_features
        Number of curves if `features` is not given; each modality has at least one.
    n_heatmap
        Number of rows of the heatmap, in equal numbers from each modality. The heatmap always shows the top-ranked
        features.
    ax
        Axes to draw in. The panels replace them, so they must be part of a grid, as created by ``plt.subplots``. If the
        figure has no layout engine, the constrained layout is set. By default, a new figure is created.
    show
        Whether to show the figure and return None. The default is ``scanpy.settings.autoshow``, or False if `ax` or
        `return_fig` is given.
    return_fig
        Whether to return the figure.

    Returns
    -------
    dict[str, Axes] | Figure | None
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name. Each feature
        has a panel of its name, in counts per library size or as a probability at the median depth. ``"heatmap"`` (with
        several modalities ``"heatmap_rna"``, ``"heatmap_atac"`` and so on) is the log2 of the population mean minus its
        average along the axis. ``"phases"`` is the strip above the heatmap, if there are phases.

    Raises
    ------
    KeyError
        If there is no such traversal, or no such feature in it.
    ValueError
        If a feature is repeated, if a number of features is less than 1, or if `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)
    >>> axes = cd.pl.latent_traverse(adata, features=["CD3D", "CD79A"], show=False)
    >>> list(axes)
    ['CD3D', 'CD79A', 'heatmap']
    """
    if n_features < 1 or n_heatmap < 1:
        raise ValueError(f"n_features={n_features}, n_heatmap={n_heatmap}: both must be at least 1")
    traversal = read_traversal(adata, name)
    modalities = traversal.modalities
    if features is None:
        selected = interleave(modalities, n_features)
    else:
        selected = feature_columns(traversal.feature_names, features, "features", f"the traversal {traversal.name!r}")
    # By default each modality has its own columns of panels.
    n_groups = len(modalities) if features is None else 1
    n_columns = min(len(selected), n_groups * max(1, _n_columns(len(selected)) // n_groups))
    n_rows = -(-len(selected) // n_columns)
    n_top = max(1, n_heatmap // len(modalities))
    n_lines = sum(min(n_top, len(modality.column_f)) + 2.5 for modality in modalities)
    top = [modality.column_f[:n_top] for modality in modalities]
    longest = min(MAX_NAME_LENGTH, max(len(name) for name in traversal.feature_names[np.concatenate(top)]))
    widths = [max(2.6 * n_columns, 3.6), 5.0 + 0.06 * longest]
    figure = make_figure(ax, (sum(widths), max(3.6, 1.6 + 1.5 * n_rows, 1.4 + 0.17 * n_lines)))
    shrink_text(figure.suptitle(traversal.title, fontweight="bold"))
    left, right = figure.subfigures(1, 2, width_ratios=widths, squeeze=False)[0]
    panels = _draw_curves(left, traversal, selected, n_columns)
    panels |= _draw_heatmaps(right, traversal, top)
    return show_or_return(figure, panels, ax, show, return_fig)


def _n_columns(n_curves: int) -> int:
    """Return the number of columns of panels."""
    return 2 if n_curves <= 8 else 3 if n_curves <= 15 else 4


# --- Curves -----------------------------------------------------------------------------------------------------------


def _draw_curves(
    figure: SubFigure, traversal: StoredTraversal, selected: Sequence[int], n_columns: int
) -> dict[str, Axes]:
    """Draw one panel for each feature, with a common horizontal axis and its own vertical axis."""
    grid = figure.subplots(-(-len(selected) // n_columns), n_columns, sharex=True, squeeze=False).flat
    mean_sf, lower_sf, upper_sf = (traversal.stored[name] for name in ("mean", "lower", "upper"))
    panels: dict[str, Axes] = {}
    handles: dict[str, Any] = {}
    for panel, column in zip(grid, selected, strict=False):
        modality = traversal.modality_of(column)
        band = panel.fill_between(
            traversal.position_s, lower_sf[:, column], upper_sf[:, column], color=modality.color, alpha=0.25, lw=0
        )
        (line,) = panel.plot(traversal.position_s, mean_sf[:, column], color=modality.color, lw=2)
        handles.setdefault(modality.name, (band, line))
        title = truncate_middle(traversal.feature_names[column], MAX_NAME_LENGTH)
        panel.set_title(title, fontsize="medium", fontstyle=modality.font_style)
        if len(traversal.modalities) > 1:
            panel.set_ylabel(modality.unit, fontsize="small")
        # Leave room above for the names of the phases.
        highest = float(np.max(upper_sf[:, column])) or 1.0
        panel.set_ylim(0, highest * (1.22 if traversal.phases else 1.08))
        despine(panel)
        _format_position_axis(panel, traversal)
        panels[str(traversal.feature_names[column])] = panel
    for panel in grid[len(selected) :]:
        panel.set_axis_off()
    # The lowest panel of each column shows tick labels, also above an empty cell of the grid.
    for panel in list(panels.values())[-n_columns:]:
        panel.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(traversal.position_label, fontsize="medium")
    if len(traversal.modalities) == 1:
        unit = traversal.modalities[0].unit
        figure.supylabel(unit if unit.startswith("probability") else f"expression ({unit})", fontsize="medium")
    _draw_legend(figure, traversal, handles)
    return panels


def _draw_legend(figure: SubFigure, traversal: StoredTraversal, handles: dict[str, Any]) -> None:
    """Draw the legend of curves and intervals above the panels."""
    meaning = f"population mean with {traversal.interval_name}"
    options: dict[str, Any] = {
        "loc": "outside upper center",
        "frameon": False,
        "fontsize": "small",
        "title_fontsize": "small",
    }
    if len(handles) == 1:
        figure.legend(list(handles.values()), [meaning], **options)
    else:
        shown = [modality for modality in traversal.modalities if modality.name in handles]
        nouns = [f"{modality.noun}s" for modality in shown]
        figure.legend([handles[modality.name] for modality in shown], nouns, title=meaning, ncols=len(shown), **options)


def _format_position_axis(panel: Axes, traversal: StoredTraversal, with_phases: bool = True) -> None:
    """Show the position on the path on the horizontal axis."""
    if traversal.periodic:
        format_angle_axis(panel, traversal.phases if with_phases else None)
        return
    first, last = traversal.position_s[[0, -1]]
    panel.set_xlim(min(first, last), max(first, last)) if first != last else None
    if traversal.kind == "path":
        start, end = (truncate_middle(end, MAX_END_LENGTH) for end in traversal.ends)
        panel.set_xticks([first, last], [start, f"\n{end}"])  # on two lines, so that they cannot overlap
        first_tick, last_tick = panel.xaxis.get_major_ticks()
        first_tick.label1.set_horizontalalignment("left")
        last_tick.label1.set_horizontalalignment("right")
    else:
        panel.locator_params(axis="x", nbins=5)


# --- Heatmaps ---------------------------------------------------------------------------------------------------------


def _draw_heatmaps(figure: SubFigure, traversal: StoredTraversal, top: list[np.ndarray]) -> dict[str, Axes]:
    """Draw a heatmap of the top-ranked features of each modality, all with the same color scale."""
    modalities = traversal.modalities
    n_rows = [len(column_f) for column_f in top]
    # The height of the strip of phases does not depend on the number of rows.
    strip: list[float] = [max(0.05 * sum(n_rows), 0.8)] if traversal.phases else []
    n_panels, heights = len(strip) + len(modalities), [*strip, *n_rows]
    grid = list(figure.subplots(n_panels, squeeze=False, sharex=True, height_ratios=heights)[:, 0])
    panels: dict[str, Axes] = {}
    if traversal.phases:
        panels["phases"] = grid.pop(0)
        _draw_phases(panels["phases"], traversal.phases)
    log2_sf = traversal.log2_fold_change(np.arange(len(traversal.feature_names)))
    log2_sf = log2_sf - log2_sf.mean(0)
    limit = max(MIN_LOG2_LIMIT, float(np.quantile(np.abs(log2_sf[:, np.concatenate(top)]), 0.95)))
    size = row_font_size(figure, sum(n_rows), 0.85 - 0.06 * len(modalities))
    for panel, modality, column_f in zip(grid, modalities, top, strict=True):
        mesh = _draw_heatmap(panel, traversal, column_f, log2_sf, limit)
        title = panel.set_title(f"top {format_count(modality.noun, len(column_f))}", fontsize="medium")
        shrink_text(title, 0.5 * figure.bbox.width)
        for label in panel.get_yticklabels():
            label.set(fontstyle=modality.font_style, fontsize=size)
        panels["heatmap" if len(modalities) == 1 else f"heatmap_{modality.name}"] = panel
    grid[-1].set_xlabel(traversal.position_label)
    shrink = min(0.6, 3.5 * figure.figure.dpi / figure.bbox.height)
    bar = figure.colorbar(mesh, ax=[*panels.values()], extend="both", shrink=shrink, aspect=30)
    bar.set_label(
        "log2 of the population mean, relative to\nits average along the axis (+1: twofold)", fontsize="small"
    )
    return panels


def _draw_phases(panel: Axes, phases: Phases) -> None:
    """Draw the phases as a strip."""
    for k, low, high in phases.intervals():
        panel.axvspan(low, high, color=phases.colors[k], lw=0)
        if high - low > 0.4:
            panel.text((low + high) / 2, 0.5, phases.names[k], ha="center", va="center", fontsize="small")
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.tick_params(axis="x", length=0, labelbottom=False)
    panel.spines[:].set_visible(False)
    panel.grid(False)


def _draw_heatmap(
    panel: Axes, traversal: StoredTraversal, column_f: np.ndarray, log2_sf: np.ndarray, limit: float
) -> Any:
    """Draw a heatmap of features, sorted by peak, with the first to peak at the top; return the mesh."""
    ordered_f = order_by_peak(traversal, column_f)
    position_s = traversal.position_s
    # The first and the last step are half as wide, so the heatmap ends where the curves end.
    edges = [position_s[0], *(position_s[1:] + position_s[:-1]) / 2, position_s[-1]]
    mesh = panel.pcolormesh(
        edges,
        np.arange(len(ordered_f) + 1) - 0.5,
        log2_sf[:, ordered_f].T,
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        rasterized=True,  # vector graphics would show thin lines between the cells of the heatmap
    )
    _format_position_axis(panel, traversal, with_phases=False)
    panel.set_yticks(
        range(len(ordered_f)), [truncate_middle(name, MAX_NAME_LENGTH) for name in traversal.feature_names[ordered_f]]
    )
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.grid(False)
    return mesh

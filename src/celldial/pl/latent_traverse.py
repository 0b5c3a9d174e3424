"""What changes along a path through latent space: curves of some features, and a heatmap of more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.pl._figure import Phases, angle_axis, canvas, finish, fit, row_font_size, shorten, tidy
from celldial.pl._traversal import Traversal, find_features, in_turns, plural, read_traversal

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["latent_traverse"]

# A change by less than a factor of two does not get the strongest color: an axis that does nothing looks pale.
MIN_LOG2, LARGEST_LOG2 = 1.0, 30.0
LONGEST_END, LONGEST_NAME = 22, 28


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
    """Draw what changes along an axis, as `celldial.VAE.latent_traverse` computed it.

    On the left, a curve for each of some features: the mean over cells, and the band in which the model believes that
    mean to be. On the right, the features of the best rank, in the order in which they peak; those of each modality by
    themselves. Around a periodic axis, the phases are shaded and named, and the curves end where they start.

    Parameters
    ----------
    adata
        Cells with a traversal, in ``adata.uns["latent_traverse"]``.
    name
        Which traversal: ``"axis_0"`` for latent coordinate 0, ``"cell_cycle"``, or the name of an axis. By default the
        last one that was stored; in a file they are in the order of the alphabet.
    features
        Genes, peaks or proteins to draw curves of; by default the `n_features` of the best rank, as many of each
        modality.
    n_features
        Number of curves where `features` is not given, at least one for each modality.
    n_heatmap
        Number of rows of the heatmap, which always has the features of the best rank; as many of each modality.
    ax
        Where to draw: the panels take the place of these Axes, which must be part of a grid, such as ``plt.subplots``
        makes. If the figure has no layout engine it gets the constrained one. By default a new figure is made.
    show
        Whether to show the figure, and return nothing. By default as scanpy does
        (``scanpy.settings.autoshow``), but never where `ax` or `return_fig` is given.
    return_fig
        Whether to return the figure.

    Returns
    -------
    dict[str, Axes] | Figure | None
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: one under the name of each
        feature, in counts per library size or as a probability at the median depth; and ``"heatmap"``, where there are
        several modalities ``"heatmap_rna"``, ``"heatmap_atac"`` and so on: the log2 of the mean over cells, less its
        average along the axis. Where there are phases, ``"phases"`` is the strip above.

    Raises
    ------
    KeyError
        There is no such traversal, or no such feature in it.
    ValueError
        A feature is named twice, a number of features is less than 1, or `ax` is not part of a grid.

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
        raise ValueError(f"n_features={n_features}, n_heatmap={n_heatmap}: at least 1 feature is needed for each")
    traversal = read_traversal(adata, name)
    parts = traversal.parts
    if features is None:
        chosen = in_turns(parts, n_features)
    else:
        chosen = find_features(traversal.feature_names, features, "features", f"the traversal {traversal.name!r} has")
    # By default each modality has columns of its own.
    n_turns = len(parts) if features is None else 1
    n_columns = min(len(chosen), n_turns * max(1, _n_columns(len(chosen)) // n_turns))
    n_rows = -(-len(chosen) // n_columns)
    n_top = max(1, n_heatmap // len(parts))
    n_lines = sum(min(n_top, len(part.column_f)) + 2.5 for part in parts)
    top = [part.column_f[:n_top] for part in parts]
    longest = min(LONGEST_NAME, max(len(name) for name in traversal.feature_names[np.concatenate(top)]))
    widths = [max(2.6 * n_columns, 3.6), 5.0 + 0.06 * longest]
    figure = canvas(ax, (sum(widths), max(3.6, 1.6 + 1.5 * n_rows, 1.4 + 0.17 * n_lines)))
    fit(figure.suptitle(_title(traversal), fontweight="bold"))
    left, right = figure.subfigures(1, 2, width_ratios=widths, squeeze=False)[0]
    drawn = _draw_curves(left, traversal, chosen, n_columns)
    drawn |= _draw_heatmaps(right, traversal, top)
    return finish(figure, drawn, ax, show, return_fig)


def _n_columns(n_curves: int) -> int:
    """Choose the number of panels beside each other."""
    return 2 if n_curves <= 8 else 3 if n_curves <= 15 else 4


def _title(traversal: Traversal) -> str:
    """Say what is seen."""
    along = {"periodic": "along the ", "direction": "along the axis ", "coordinate": "along ", "path": ""}
    return f"What changes {along.get(traversal.kind, 'along ')}{traversal.axis}"


def _draw_curves(figure: SubFigure, traversal: Traversal, chosen: Sequence[int], n_columns: int) -> dict[str, Axes]:
    """Draw a small panel for each feature, all with the same horizontal and each with its own vertical axis."""
    panels = figure.subplots(-(-len(chosen) // n_columns), n_columns, sharex=True, squeeze=False).flat
    mean_sf, lower_sf, upper_sf = (traversal.stored[name] for name in ("mean", "lower", "upper"))
    drawn: dict[str, Axes] = {}
    handles: dict[str, Any] = {}
    for panel, column in zip(panels, chosen, strict=False):
        part = traversal.load_dataset_file(column)
        band = panel.fill_between(
            traversal.position_s, lower_sf[:, column], upper_sf[:, column], color=part.color, alpha=0.25, lw=0
        )
        (line,) = panel.plot(traversal.position_s, mean_sf[:, column], color=part.color, lw=2)
        handles.setdefault(part.modality, (band, line))
        panel.set_title(shorten(traversal.feature_names[column], LONGEST_NAME), fontsize="medium", fontstyle=part.style)
        if len(traversal.parts) > 1:
            panel.set_ylabel(part.unit, fontsize="small")
        # Room above for the names of phases.
        highest = float(np.max(upper_sf[:, column])) or 1.0
        panel.set_ylim(0, highest * (1.22 if traversal.phases else 1.08))
        tidy(panel)
        _horizontal(panel, traversal)
        drawn[str(traversal.feature_names[column])] = panel
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    # Under an empty place, the panel above carries the numbers.
    for panel in list(drawn.values())[-n_columns:]:
        panel.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(traversal.position_label, fontsize="medium")
    if len(traversal.parts) == 1:
        unit = traversal.parts[0].unit
        figure.supylabel(unit if unit.startswith("probability") else f"expression ({unit})", fontsize="medium")
    _draw_legend(figure, traversal, handles)
    return drawn


def _draw_legend(figure: SubFigure, traversal: Traversal, handles: dict[str, Any]) -> None:
    """Explain curves and bands, above the panels."""
    what = f"mean over cells, with {float(traversal.stored['interval']):.0%} interval"
    options: dict[str, Any] = {
        "loc": "outside upper center",
        "frameon": False,
        "fontsize": "small",
        "title_fontsize": "small",
    }
    if len(handles) == 1:
        figure.legend(list(handles.values()), [what], **options)
    else:
        nouns = [f"{part.noun}s" for part in traversal.parts if part.modality in handles]
        ordered = [handles[part.modality] for part in traversal.parts if part.modality in handles]
        figure.legend(ordered, nouns, title=what, ncols=len(handles), **options)


def _horizontal(panel: Axes, traversal: Traversal, named: bool = True) -> None:
    """Make the horizontal axis that of the path."""
    if traversal.periodic:
        angle_axis(panel, traversal.phases, named)
        return
    first, last = traversal.position_s[[0, -1]]
    panel.set_xlim(min(first, last), max(first, last)) if first != last else None
    if traversal.kind == "path":
        start, end = (shorten(end, LONGEST_END) for end in traversal.ends)
        panel.set_xticks([first, last], [start, f"\n{end}"])  # on two lines, where they cannot meet
        first_tick, last_tick = panel.xaxis.get_major_ticks()
        first_tick.label1.set_horizontalalignment("left")
        last_tick.label1.set_horizontalalignment("right")
    else:
        panel.locator_params(axis="x", nbins=5)


def _draw_heatmaps(figure: SubFigure, traversal: Traversal, top: list[np.ndarray]) -> dict[str, Axes]:
    """Draw a heatmap of the features of the best rank, for each modality by itself, with one scale of colors."""
    parts = traversal.parts
    n_rows = [len(column_f) for column_f in top]
    # Thin, whatever the number of rows below.
    strip: list[float] = [max(0.05 * sum(n_rows), 0.8)] if traversal.phases else []
    panels = list(
        figure.subplots(len(strip) + len(parts), squeeze=False, sharex=True, height_ratios=[*strip, *n_rows])[:, 0]
    )
    drawn: dict[str, Axes] = {}
    if traversal.phases:
        drawn["phases"] = panels.pop(0)
        _draw_phases(drawn["phases"], traversal.phases)
    log2_sf = traversal["log2_fold_change"]
    # A mean that is 0 in single precision has no logarithm.
    log2_sf = np.nan_to_num(log2_sf, nan=0, posinf=LARGEST_LOG2, neginf=-LARGEST_LOG2)
    log2_sf = log2_sf - log2_sf.mean(0)
    limit = max(MIN_LOG2, float(np.quantile(np.abs(log2_sf[:, np.concatenate(top)]), 0.95)))
    size = row_font_size(figure, sum(n_rows), 0.85 - 0.06 * len(parts))
    for panel, part, column_f in zip(panels, parts, top, strict=True):
        mesh = _draw_heatmap(panel, traversal, column_f, log2_sf, limit)
        title = panel.set_title(f"the {plural(part.noun, len(column_f))} that change most", fontsize="medium")
        fit(title, 0.5 * figure.bbox.width)
        for label in panel.get_yticklabels():
            label.set(fontstyle=part.style, fontsize=size)
        drawn["heatmap" if len(parts) == 1 else f"heatmap_{part.modality}"] = panel
    panels[-1].set_xlabel(traversal.position_label)
    shrink = min(0.6, 3.5 * figure.figure.dpi / figure.bbox.height)
    bar = figure.colorbar(mesh, ax=[*drawn.values()], extend="both", shrink=shrink, aspect=30)
    bar.set_label(
        "log2 of the mean over cells, against its\naverage along the axis (+1: twice as much)", fontsize="small"
    )
    return drawn


def _draw_phases(panel: Axes, phases: Phases) -> None:
    """Draw the phases as a strip."""
    for k, low, high in phases.pieces():
        panel.axvspan(low, high, color=phases.colors[k], lw=0)
        if high - low > 0.4:
            panel.text((low + high) / 2, 0.5, phases.names[k], ha="center", va="center", fontsize="small")
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.tick_params(axis="x", length=0, labelbottom=False)
    panel.spines[:].set_visible(False)
    panel.grid(False)


def _draw_heatmap(panel: Axes, traversal: Traversal, column_f: np.ndarray, log2_sf: np.ndarray, limit: float) -> Any:
    """Draw features in the order in which they peak, the first to peak on top."""
    # Many peak at either end: of those, the ones come first whose values have their center further to the left.
    above_sf = log2_sf[:, column_f] - log2_sf[:, column_f].min(0)
    center_f = np.arange(len(log2_sf)) @ above_sf / np.maximum(above_sf.sum(0), 1e-9)
    ordered_f = column_f[np.lexsort([center_f, traversal["peak_step"][column_f]])]
    position_s = traversal.position_s
    # The first and the last step have half a column: the heatmap ends where the curves do.
    edges = [position_s[0], *(position_s[1:] + position_s[:-1]) / 2, position_s[-1]]
    mesh = panel.pcolormesh(
        edges,
        np.arange(len(ordered_f) + 1) - 0.5,
        log2_sf[:, ordered_f].T,
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        rasterized=True,  # no hairlines between the cells in a PDF
    )
    if traversal.periodic:
        angle_axis(panel, None)
    else:
        _horizontal(panel, traversal)
    panel.set_yticks(
        range(len(ordered_f)), [shorten(name, LONGEST_NAME) for name in traversal.feature_names[ordered_f]]
    )
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.grid(False)
    return mesh

"""The plot of RNA kinetics: the speed around the circle, and phase portraits of genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.io.results import read_record, writer_of
from celldial.pl._colors import OKABE_ITO
from celldial.pl._figure import despine, make_figure, show_or_return, shrink_text
from celldial.pl._phases import ANGLE_LABELS, ANGLE_TICKS, TWO_PI, Phases
from celldial.utils.messages import did_you_mean, format_names

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["kinetics"]

N_GENES = 4
GENES_PER_ROW = 2


def kinetics(
    adata: AnnData,
    features: Sequence[str] | str | None = None,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the speed around the circle and phase portraits of genes, as `celldial.VAE.kinetics` inferred them.

    On the left is the speed of each group against the angle, with its 90 % band, above the phases. On the right is a
    phase portrait of each gene, unspliced against spliced counts: the line is the model, the dots are the mean counts
    of the cells in 16 bins of the angle. Cells go around the loop clockwise. The loop is narrow if splicing and
    degradation are fast compared with the cycle.

    Parameters
    ----------
    adata
        Cells with ``adata.uns["celldial"]["kinetics"]``.
    features
        Genes to plot. By default the four with the widest loops.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name: ``"speed"``,
        and one panel for each gene. Counts are those of a cell of median size.

    Raises
    ------
    KeyError
        If `celldial.VAE.kinetics` was not called with these cells, or did not use a gene.
    ValueError
        If `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.simulate_kinetics(500, 120, 55, depth=4)
    >>> model = cd.VAE(periodic="cell_cycle").fit(adata, max_epochs=20, progress=False)
    >>> genes = list(adata.var_names[:8])
    >>> table = model.kinetics(adata, features=genes)
    >>> panels = cd.pl.kinetics(adata, genes[:2], show=False)
    >>> list(panels) == ["speed", *genes[:2]]
    True
    """
    record = read_record(adata)
    if "kinetics" not in record:
        raise KeyError('no kinetics in adata.uns["celldial"]: call model.kinetics(adata) first')
    stored: Mapping[str, Any] = record["kinetics"]
    names = [str(name) for name in stored["genes"]]
    selected = _select_genes(stored, names, features)
    n_rows = -(-len(selected) // GENES_PER_ROW)
    n_columns = min(len(selected), GENES_PER_ROW)
    figure = make_figure(ax, (4.6 + 2.7 * n_columns, max(3.6, 0.7 + 2.3 * n_rows)))
    label = str(stored["name"]).replace("_", " ")
    title = f"Speed of the {label}, from {stored['n_genes']} genes of {stored['n_cells']:,} cells"
    shrink_text(figure.suptitle(title, fontweight="bold"))
    left, right = figure.subfigures(1, 2, width_ratios=[4.6, 2.7 * n_columns], squeeze=False)[0]
    panels = {"speed": _draw_speed(left, stored, _phases(adata, record, stored))}
    grid = right.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, column in zip(grid, selected, strict=False):
        _draw_portrait(panel, stored, column)
        panel.set_title(names[column], fontsize="medium")
        panels[names[column]] = panel
    for spare in grid[len(selected) :]:
        spare.remove()
    right.supxlabel("spliced counts", fontsize="medium")
    right.supylabel("unspliced counts", fontsize="medium")
    return show_or_return(figure, panels, ax, show, return_fig)


def _select_genes(stored: Mapping[str, Any], names: list[str], features: Sequence[str] | str | None) -> list[int]:
    """Return the columns of the genes to plot."""
    if features is None:
        # The area of the loop relative to the mean counts, times the root of the counts, which determines the noise.
        unspliced_jf, spliced_jf = (np.asarray(stored[layer], dtype=float)[0] for layer in ("unspliced", "spliced"))
        cross_jf = spliced_jf * np.roll(unspliced_jf, -1, 0) - unspliced_jf * np.roll(spliced_jf, -1, 0)
        mean_f = unspliced_jf.mean(0)
        area_f = np.abs(cross_jf.sum(0)) / (mean_f * spliced_jf.mean(0)) * np.sqrt(mean_f)
        return [int(column) for column in np.argsort(-area_f, kind="stable")[:N_GENES]]
    wanted = [features] if isinstance(features, str) else list(features)
    for name in wanted:
        if name not in names:
            raise KeyError(
                f"gene {name!r} is not one of the {len(names)} genes that kinetics used{did_you_mean(name, names)}: "
                f"{format_names(names)}"
            )
    return [names.index(name) for name in dict.fromkeys(wanted)]


def _phases(adata: AnnData, record: Mapping[str, Any], stored: Mapping[str, Any]) -> Phases | None:
    """Return the phases of the circle, if the record describes that of the same model."""
    periodic = record.get("periodic") or {}
    name = stored["name"]
    is_same = writer_of(adata, "obs", f"{name}_angle") == writer_of(adata, "kinetics", "kinetics")
    if periodic.get("name") != name or "phases" not in periodic or not is_same:
        return None
    return Phases.from_arrays(periodic["phases"], periodic["phase_start"])


def _group_colors(n_groups: int) -> list[str]:
    """Return a color for each group."""
    return [OKABE_ITO[g % len(OKABE_ITO)] for g in range(n_groups)]


def _draw_speed(figure: SubFigure, stored: Mapping[str, Any], phases: Phases | None) -> Axes:
    """Draw the speed of each group against the angle."""
    panel: Axes = figure.subplots()
    angle_j = np.append(np.asarray(stored["angle"], dtype=float), TWO_PI)
    groups = [str(name) for name in stored["groups"]]
    for g, color in enumerate(_group_colors(len(groups))):
        middle, lower, upper = (
            np.append(values := np.asarray(stored[key], dtype=float)[g], values[0])
            for key in ("speed", "speed_lower", "speed_upper")
        )
        panel.fill_between(angle_j, lower, upper, color=color, alpha=0.2, lw=0)
        panel.plot(angle_j, middle, color=color, lw=2, label=groups[g])
    highest = panel.get_ylim()[1]
    panel.set_ylim(0, 1.08 * highest)
    if phases is not None:
        for k, low, high in phases.intervals():
            panel.axvspan(low, high, ymax=0.05, color=phases.colors[k], lw=0)
            if high - low > 0.4:
                middle_x = (low + high) / 2
                panel.text(middle_x, 0.08 * highest, phases.names[k], ha="center", va="bottom", fontsize="small")
    panel.set_xlim(0, TWO_PI)
    panel.set_xticks(ANGLE_TICKS, ANGLE_LABELS)
    panel.set_xlabel("angle")
    unit = "hour" if stored["unit"] == "hours" else "mean RNA decay time"
    panel.set_ylabel(f"speed (radians per {unit})")
    if len(groups) > 1:
        panel.legend(frameon=False, fontsize="small", loc="upper right")
    despine(panel)
    return panel


def _draw_portrait(panel: Axes, stored: Mapping[str, Any], column: int) -> None:
    """Draw unspliced against spliced counts of a gene: the model as a loop, the cells as dots."""
    n_groups = len(stored["groups"])
    for g, color in enumerate(_group_colors(n_groups)):
        spliced_j, unspliced_j = (np.asarray(stored[layer])[g, :, column] for layer in ("spliced", "unspliced"))
        observed = [np.asarray(stored[f"observed_{layer}"])[g, :, column] for layer in ("spliced", "unspliced")]
        panel.plot(np.append(spliced_j, spliced_j[0]), np.append(unspliced_j, unspliced_j[0]), color=color, lw=1.5)
        panel.plot(*observed, color=color, marker="o", ms=3.5, ls="none", alpha=0.6, mew=0)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    despine(panel)
    panel.tick_params(labelsize="x-small")

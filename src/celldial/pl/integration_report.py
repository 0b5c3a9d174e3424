"""The plot of the report on an integration."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.io.results import read_record
from celldial.pl._colors import BLACK, BLUE, ORANGE
from celldial.pl._figure import despine, make_figure, row_font_size, show_or_return, shrink_text

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["integration_report"]

# Label, color and marker of each column of the tables.
STYLES = {
    "unintegrated": ("without integration", "0.45", "s"),
    "shuffled": ("shuffled batches", BLACK, "|"),
    "embedding": ("embedding of the model", BLUE, "o"),
}
# Characters in a line of the sentence, for each inch of the figure.
CHARACTERS_PER_INCH = 15


def integration_report(
    adata: AnnData,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the report on an integration, as computed by `celldial.VAE.integration_report`.

    The left panel has one row for each metric, with its value in the embedding of the model, without integration and,
    for the mixing of batches, with shuffled batches. Higher values are better. If the report has types, the right panel
    shows for each type which share of the neighbors of its cells has the same type; the names of types of a single
    batch end in that batch. The sentence on over-correction is below.

    Parameters
    ----------
    adata
        Cells with ``adata.uns["celldial"]["integration"]``.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name:
        ``"metrics"``, and ``"types"`` if the report has types.

    Raises
    ------
    KeyError
        If `celldial.VAE.integration_report` was not called with these cells.
    ValueError
        If `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.simulate_multiome(n_cells=300, n_batches=2)
    >>> model = cd.VAE(batch_key="batch").fit(adata, max_epochs=1, progress=False)
    >>> table = model.integration_report(adata, label_key="cell_type")
    >>> panels = cd.pl.integration_report(adata, show=False)
    >>> list(panels)
    ['metrics', 'types']
    """
    record = read_record(adata)
    if "integration" not in record:
        raise KeyError('no report in adata.uns["celldial"]: call model.integration_report(adata) first')
    report = record["integration"]
    tables = {"metrics": report["table"], **({"types": report["types"]} if "types" in report else {})}
    n_rows = max(map(len, tables.values()))
    figure = make_figure(ax, (1.0 + 4.2 * len(tables), max(3.2, 1.9 + 0.26 * n_rows)))
    title = f"Integration of {int(report['n_batches'])} batches ({report['batch_key']})"
    shrink_text(figure.suptitle(title, fontweight="bold"))
    row = figure.subplots(1, len(tables), squeeze=False)[0]
    panels: dict[str, Axes] = dict(zip(tables, row, strict=True))
    _draw_points(panels["metrics"], tables["metrics"], row_font_size(figure, len(tables["metrics"]), 0.55))
    panels["metrics"].set_title("metrics of scIB", fontsize="medium")
    panels["metrics"].set_xlabel("value (higher is better)", fontsize="small")
    if "types" in tables:
        _draw_points(panels["types"], tables["types"], row_font_size(figure, len(tables["types"]), 0.55))
        panels["types"].set_title(f"types ({report['label_key']})", fontsize="medium")
        panels["types"].set_xlabel("neighbors of the same type", fontsize="small")
        panels["types"].xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    width = int(CHARACTERS_PER_INCH * figure.bbox.width / figure.figure.dpi)
    sentence = "\n".join(textwrap.wrap(str(report["over_correction"]), max(30, width)))
    handles = panels["metrics"].get_legend_handles_labels()[0]
    # A label of the figure would lie on the legend.
    legend = figure.legend(
        handles=handles, title=sentence, loc="outside lower center", fontsize="x-small", ncols=3, frameon=False
    )
    legend.get_title().set(
        fontsize="small", multialignment="center", color=ORANGE if sentence.startswith("Signs") else "black"
    )
    return show_or_return(figure, panels, ax, show, return_fig)


def _draw_points(panel: Axes, table: pd.DataFrame, font_size: float) -> None:
    """Draw one row for each row of a table, with a point for each of its columns, joined by a line."""
    row_r = np.arange(len(table))
    ends = table[["unintegrated", "embedding"]].to_numpy(dtype=float)
    panel.hlines(row_r, ends.min(axis=1), ends.max(axis=1), color="0.8", lw=1.5, zorder=1)
    for name, (label, color, marker) in STYLES.items():
        if name in table:
            size: dict[str, Any] = {"ms": 12, "mew": 2} if marker == "|" else {"ms": 6}
            panel.plot(table[name].to_numpy(dtype=float), row_r, marker, color=color, label=label, ls="", **size)
    names = [str(name) for name in table.index]
    if "batch" in table:
        names = [name + (f" ({batch})" if batch else "") for name, batch in zip(names, table["batch"], strict=True)]
    panel.set_yticks(row_r, names, fontsize=font_size)
    panel.set_ylim(len(table) - 0.5, -0.5)
    panel.set_xlim(min(0, np.nanmin(ends)) - 0.03, 1.03)
    despine(panel)
    panel.tick_params(axis="y", length=0)

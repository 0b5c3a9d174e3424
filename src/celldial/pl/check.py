"""The plot of posterior predictive checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from celldial.io.results import read_record
from celldial.pl._colors import BLUE, LIGHT_GRAY, ORANGE
from celldial.pl._figure import despine, make_figure, row_font_size, show_or_return, shrink_text

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check"]

N_COLUMNS = 4
# More rows are not readable.
MAX_ROWS = 16
TITLES = {
    "zeros": "excess zeros",
    "dispersion": "dispersion\n(observed ÷ expected)",
    "feature_dispersion": "dispersion of features\n(SD of the log ratio)",
    "mean_variance": "mean and variance\n(slope of the log ratio)",
    "library_size": "detected features\n(error per doubling)",
    "depth": "library sizes\n(distance from training)",
    "correlations": "correlation of\nresiduals (RMS)",
    "coverage": "inside 90 %\nintervals",
    "doublets": "library size of\ndoublet-like cells (log2)",
    "importance_weights": "cells with\nPareto k > 0.7",
}


def check(
    adata: AnnData | pd.DataFrame,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the posterior predictive checks that `celldial.VAE.check` computed.

    Each panel is a check, and each row is a modality and a batch. The bar is the interval that contains the number with
    a probability of 95 % if the model is right, the dot is the number of the cells. Failed checks are orange diamonds.

    Parameters
    ----------
    adata
        Cells with ``adata.uns["celldial"]["check"]``, or the table that `celldial.VAE.check` returns.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name of the check.
        If there are more than 16 rows, those with the most failures are drawn.

    Raises
    ------
    KeyError
        If `celldial.VAE.check` was not called with these cells.
    ValueError
        If `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> table = model.check(adata, n_samples=10)
    >>> panels = cd.pl.check(adata, show=False)
    >>> list(panels)[:2]
    ['zeros', 'dispersion']
    """
    table = adata if isinstance(adata, pd.DataFrame) else _stored(adata)
    table = table.assign(row=[_label(*place) for place in zip(table["modality"], table["batch"], strict=True)])
    rows = _rows(table)
    names = [name for name in TITLES if (table["check"] == name).any()]
    names += [name for name in table["check"].unique() if name not in TITLES]
    n_lines = -(-len(names) // N_COLUMNS)
    height = n_lines * (1.1 + 0.24 * len(rows))
    figure = make_figure(ax, (2.4 * N_COLUMNS, 0.6 + max(height, 1.6 * n_lines)))
    failed = int(table["failed"].astype(bool).sum())
    title = f"Posterior predictive checks: {failed} of {len(table)} fail"
    shrink_text(figure.suptitle(title, fontweight="bold"))
    grid = figure.subplots(n_lines, N_COLUMNS, squeeze=False, sharey=True).ravel()
    for spare in grid[len(names) :]:
        spare.remove()
    panels: dict[str, Axes] = dict(zip(names, grid, strict=False))
    font_size = row_font_size(figure, len(rows) * n_lines, 0.6)
    for name, panel in panels.items():
        _draw(panel, table[table["check"] == name], rows)
        panel.set_title(TITLES.get(name, name.replace("_", " ")), fontsize="small")
        panel.set_yticks(range(len(rows)), rows, fontsize=font_size)
        panel.set_ylim(len(rows) - 0.5, -0.5)
    return show_or_return(figure, panels, ax, show, return_fig)


def _stored(adata: AnnData) -> pd.DataFrame:
    """Return the table of checks in the record."""
    record = read_record(adata)
    if "check" not in record:
        raise KeyError('no checks in adata.uns["celldial"]: call model.check(adata) first')
    table: pd.DataFrame = record["check"]
    return table


def _label(modality: str, batch: str) -> str:
    """Return the label of a row."""
    return "all cells" if (modality, batch) == ("all", "all") else f"{modality}, {batch}"


def _rows(table: pd.DataFrame) -> list[str]:
    """Return the labels of the rows to draw, in order: if there are too many, those with the most failures."""
    rows = list(dict.fromkeys(table["row"]))
    if len(rows) <= MAX_ROWS:
        return rows
    n_failed = table.groupby("row")["failed"].sum().reindex(rows).to_numpy(dtype=float)
    is_total = table.groupby("row")["batch"].first().reindex(rows).eq("all").to_numpy()
    order = np.lexsort((-n_failed, ~is_total))
    return [rows[k] for k in sorted(order[:MAX_ROWS])]


def _draw(panel: Axes, table: pd.DataFrame, rows: list[str]) -> None:
    """Draw the intervals and the observed numbers of one check."""
    drawn = table[table["row"].isin(rows)]
    numbers = drawn[["observed", "lower", "upper"]].to_numpy(dtype=float)
    failed = drawn["failed"].to_numpy(dtype=bool)
    for row, (observed, lower, upper), fails in zip(drawn["row"], numbers, failed, strict=True):
        height = rows.index(row)
        panel.plot([lower, upper], [height, height], color=LIGHT_GRAY, lw=6, solid_capstyle="butt", zorder=1)
        color, marker = (ORANGE, "D") if fails else (BLUE, "o")
        panel.plot(observed, height, color=color, marker=marker, ms=5, ls="none", zorder=2)
    panel.margins(x=0.12)
    despine(panel)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize="x-small")
    panel.locator_params(axis="x", nbins=3)

"""The plot of the importance of latent coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.io.results import read_record
from celldial.pl._colors import BLACK, LIGHT_GRAY, modality_color
from celldial.pl._figure import despine, make_figure, row_font_size, show_or_return, shrink_text
from celldial.pl._text import format_percent

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axes"]

UNUSED_COLOR = "0.45"


def axes(
    adata: AnnData,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the importance of latent coordinates, as computed by `celldial.VAE.axes`.

    Each row is a latent coordinate; the most important one is at the top. The bars show the share of the variance
    between decoded cells that is due to the coordinate, overall and for each modality, and the KL divergence of the
    coordinate, which is the information that it contains about a cell. Coordinates that the model does not use are
    light gray and marked as unused.

    Parameters
    ----------
    adata
        Cells with ``adata.uns["celldial"]["coordinates"]``.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name. ``"share"``
        is the share of the variance of decoded log expression. With several modalities, it is the mean over
        modalities, and ``"share_rna"``, ``"share_atac"`` and so on are further panels. ``"kl"`` is the mean KL
        divergence from the prior in nats per cell.

    Raises
    ------
    KeyError
        If `celldial.VAE.axes` was not called with these cells.
    ValueError
        If `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> table = model.axes(adata)
    >>> panels = cd.pl.axes(adata, show=False)
    >>> list(panels)
    ['share', 'kl']
    """
    record = read_record(adata)
    if "coordinates" not in record:
        raise KeyError('no coordinates in adata.uns["celldial"]: call model.axes(adata) first')
    table: pd.DataFrame = record["coordinates"].sort_values("rank", kind="stable")
    used_z = table["used"].to_numpy(dtype=bool)
    modalities = [column.removeprefix("share_") for column in table.columns if column.startswith("share_")]
    styles = _panel_styles(modalities)

    widths = [2.4 if name in {"share", "kl"} else 1.7 for name in styles]
    figure = make_figure(ax, (1.6 + sum(widths), max(2.8, 1.5 + 0.24 * len(table))))
    title = f"Importance of latent coordinates: {int(used_z.sum())} of {len(table)} are used"
    shrink_text(figure.suptitle(title, fontweight="bold"))
    row = figure.subplots(1, len(styles), sharey=True, squeeze=False, width_ratios=widths)[0]
    panels: dict[str, Axes] = dict(zip(styles, row, strict=True))
    for name, panel in panels.items():
        title, color = styles[name]
        _draw_bars(panel, table[name].to_numpy(dtype=float), used_z, title, color)
        if name == "kl":
            panel.set_xlabel("KL divergence\n(nats per cell)", fontsize="small")
        else:
            panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    if len(modalities) > 1:  # one scale for all modalities
        highest = max(panels[f"share_{modality}"].get_xlim()[1] for modality in modalities)
        for modality in modalities:
            panels[f"share_{modality}"].set_xlim(0, highest)
    _label_rows(panels["share"], table, used_z, row_font_size(figure, len(table), 0.75))
    return show_or_return(figure, panels, ax, show, return_fig)


def _panel_styles(modalities: list[str]) -> dict[str, tuple[str, str]]:
    """Return the title and color of each panel, by the column of the table that it shows."""
    if len(modalities) == 1:
        styles = {"share": ("share of decoded\nvariance", modality_color(modalities[0]))}
    else:
        # Each share is relative to the variance of its modality, so modalities count equally in the mean.
        styles = {"share": ("share of decoded\nvariance, mean", "0.35")}
        for name in modalities:
            title = f"of {name.upper() if name in {'rna', 'atac'} else name}"
            styles[f"share_{name}"] = (title, modality_color(name, modalities))
    return {**styles, "kl": ("information\nabout a cell", BLACK)}


def _draw_bars(panel: Axes, value_z: np.ndarray, used_z: np.ndarray, title: str, color: str) -> None:
    """Draw one bar for each coordinate."""
    panel.barh(np.arange(len(value_z)), value_z, height=0.75, color=[color if used else LIGHT_GRAY for used in used_z])
    panel.set_title(title, fontsize="medium")
    panel.margins(x=0.22)
    panel.set_xlim(left=0)
    despine(panel)
    panel.tick_params(axis="y", length=0)
    panel.locator_params(axis="x", nbins=4)


def _label_rows(panel: Axes, table: pd.DataFrame, used_z: np.ndarray, font_size: float) -> None:
    """Write the name of each coordinate next to its row, and its share next to its bar."""
    for row, share in enumerate(table["share"]):
        panel.annotate(
            format_percent(share) if used_z[row] else "unused",
            (max(share, 0), row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=min(font_size, 8),
            color="black" if used_z[row] else UNUSED_COLOR,
        )
    panel.set_yticks(range(len(table)), [_readable(str(name)) for name in table.index], fontsize=font_size)
    for label, used in zip(panel.get_yticklabels(), used_z, strict=True):
        label.set_color("black" if used else UNUSED_COLOR)
    panel.set_ylim(len(table) - 0.5, -0.5)


def _readable(name: str) -> str:
    """Return the name of a coordinate as in other plots: "coordinate 3" for "axis_3"."""
    return name.replace("axis_", "coordinate ") if name.startswith("axis_") else name.replace("_", " ")

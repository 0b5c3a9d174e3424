"""Which latent coordinates matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.pl._figure import BLACK, PALE, canvas, color_of, finish, fit, percent, row_font_size, tidy

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axes"]


def axes(
    adata: AnnData,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Draw which latent coordinates matter, as `celldial.VAE.axes` computed it.

    Each coordinate is a row, the one that matters most on top. The bars say which share of all differences between
    decoded cells is due to it, the parts of several modalities by themselves; beside them is how much it tells about a
    cell. Coordinates that the model does not use are pale, and said to be unused.

    Parameters
    ----------
    adata
        Cells with ``adata.uns["celldial"]["coordinates"]``.
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
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: ``"share"``, the share of the
        variance of decoded log expression; with several modalities, of which it is the mean, one more for each,
        ``"share_rna"`` and so on; ``"kl"``, the mean KL divergence from the prior in nats per cell.

    Raises
    ------
    KeyError
        `celldial.VAE.axes` was not called with these cells.
    ValueError
        `ax` is not part of a grid.

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
    if "coordinates" not in adata.uns.get("celldial", {}):
        raise KeyError('there are no coordinates in adata.uns["celldial"]: call model.axes(adata) first')
    table: pd.DataFrame = adata.uns["celldial"]["coordinates"].sort_values("rank", kind="stable")
    modalities = [column.removeprefix("share_") for column in table.columns if column.startswith("share_")]
    used_z = table["used"].to_numpy(dtype=bool)
    # Each modality has shares of its own variance; the mean over modalities counts them alike, whatever their size.
    titles = {"share": "share of decoded\nvariance" + (", all" if len(modalities) > 1 else "")}
    colors = {"share": color_of(modalities[0]) if len(modalities) == 1 else "0.35"}
    if len(modalities) > 1:
        for modality in modalities:
            titles[f"share_{modality}"] = f"of {modality.upper() if modality in {'rna', 'atac'} else modality}"
            colors[f"share_{modality}"] = color_of(modality, modalities)
    titles["kl"], colors["kl"] = "information\nabout a cell", BLACK

    widths = [2.4 if name in {"share", "kl"} else 1.7 for name in titles]
    figure = canvas(ax, (1.6 + sum(widths), max(2.8, 1.5 + 0.24 * len(table))))
    n_used = int(used_z.sum())
    fit(figure.suptitle(f"Which latent coordinates matter: {n_used} of {len(table)} are used", fontweight="bold"))
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False, width_ratios=widths)[0]
    drawn = dict(zip(titles, panels, strict=True))
    row_z = np.arange(len(table))
    for name, panel in drawn.items():
        values_z = table[name].to_numpy(dtype=float)
        panel.barh(row_z, values_z, height=0.75, color=[colors[name] if used else PALE for used in used_z])
        panel.set_title(titles[name], fontsize="medium")
        panel.margins(x=0.22)
        panel.set_xlim(left=0)
        tidy(panel)
        panel.tick_params(axis="y", length=0)
        panel.locator_params(axis="x", nbins=4)
        if name == "kl":
            panel.set_xlabel("KL divergence\n(nats per cell)", fontsize="small")
        else:
            panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    # One scale for all modalities.
    highest = max(
        (drawn[f"share_{modality}"].get_xlim()[1] for modality in modalities if len(modalities) > 1), default=1
    )
    for modality in modalities if len(modalities) > 1 else []:
        drawn[f"share_{modality}"].set_xlim(0, highest)
    size = row_font_size(figure, len(table), 0.75)
    for row, share in enumerate(table["share"]):
        drawn["share"].annotate(
            percent(share) if used_z[row] else "unused",
            (max(share, 0), row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=min(size, 8),
            color="black" if used_z[row] else "0.45",
        )
    drawn["share"].set_yticks(row_z, [_readable(str(name)) for name in table.index], fontsize=size)
    for label, used in zip(drawn["share"].get_yticklabels(), used_z, strict=True):
        label.set_color("black" if used else "0.45")
    drawn["share"].set_ylim(len(table) - 0.5, -0.5)
    return finish(figure, drawn, ax, show, return_fig)


def _readable(name: str) -> str:
    """Write the name of a coordinate as it is written elsewhere."""
    return name.replace("axis_", "coordinate ") if name.startswith("axis_") else name.replace("_", " ")

"""The plots: they read what a model wrote into an AnnData, and need no model, nor torch.

All take ``ax``, ``show`` and ``return_fig`` as scanpy's plots do, leave matplotlib's settings as they are, and tell
their colors apart for color-blind readers, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

# matplotlib is imported where something is drawn, so that `import celldial` does not wait for it.
if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["history", "latent_traverse"]

# Three of the colors of Okabe and Ito (2008), "Color Universal Design".
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#000000"
CURVES_PER_ROW = 2
# Of log expression. Smaller changes are not blown up: a coordinate along which nothing changes must look pale.
MIN_DEVIATION = 0.1


def history(
    adata: AnnData,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    r"""Draw how training went: the ELBO of training and validation cells after each epoch, and the KL divergence.

    The vertical axis leaves out the steep start, where it would squash the rest; a line in the plot then says so.

    Parameters
    ----------
    adata
        Cells that a model was fitted to: ``adata.uns["celldial"]["history"]`` is drawn.
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
    Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: ``"elbo"`` and, where there were
    validation cells, ``"kl"``. Both are in nats per cell. A higher ELBO is better; a KL divergence near 0 means that
    the latent state tells nothing about a cell.

    Raises
    ------
    KeyError
        No model was fitted to these cells.
    ValueError
        `ax` is not part of a grid.

    Notes
    -----
    The two curves are not quite comparable: the ELBO of the training cells is that of the minibatches as they were
    trained, with dropout, and it is too high while the weight of the KL term still rises (the gray area).

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> axes = cd.pl.history(adata, show=False)
    >>> axes["elbo"].get_ylabel()
    'ELBO (nats per cell)\nhigher is better'
    """
    from matplotlib.ticker import MaxNLocator

    if "history" not in adata.uns.get("celldial", {}):
        raise KeyError('there is no history in adata.uns["celldial"]: call model.fit(adata) first')
    record = {name: np.asarray(values, dtype=float) for name, values in adata.uns["celldial"]["history"].items()}
    epoch_e = np.arange(1, len(record["seconds"]) + 1)
    kept = int(record["kept"].argmax())
    validated = "elbo_validation" in record
    marker = "." if len(epoch_e) < 60 else ""

    figure = _canvas(ax, (6.4, 5.8) if validated else (6.4, 4.2))
    panels = figure.subplots(2, sharex=True, height_ratios=[2.5, 1], squeeze=False)[:, 0] if validated else None
    elbo_ax: Axes = figure.subplots() if panels is None else panels[0]
    elbo_ax.plot(epoch_e, record["elbo_train"], color=ORANGE, ls="--", marker=marker, label="training cells")
    if validated:
        elbo_ax.plot(epoch_e, record["elbo_validation"], color=BLUE, marker=marker, label="validation cells")
    # Without validation cells, at all or in the last call, the model has the weights of the last epoch.
    judged = validated and not np.isnan(record["elbo_validation"][kept])
    kept_elbo = record["elbo_validation" if judged else "elbo_train"][kept]
    which = "best epoch" if judged else "last epoch"
    elbo_ax.plot(
        epoch_e[kept],
        kept_elbo,
        color=BLACK,
        ls="",
        marker="D",
        zorder=3,
        label=f"{which}, {epoch_e[kept]}: {_minus(f'{kept_elbo:.1f}')}\n(the model has its weights)",
    )
    rising = record["kl_weight"] < 1
    if rising.any():
        # Only at the start of a first fit; `partial_fit` keeps the full weight.
        elbo_ax.axvspan(0.5, rising.sum() + 0.5, color="0.92", lw=0, zorder=0, label="weight of KL term still rises")
    elbo_ax.set_ylabel("ELBO (nats per cell)\nhigher is better")
    elbo_ax.set_title("How well the model explains the cells")
    curves = np.concatenate([record[name] for name in ("elbo_train", "elbo_validation") if name in record])
    low, high = _robust_range(curves)
    margin = 0.06 * (high - low) or 1.0
    elbo_ax.set_ylim(low - margin, high + margin)
    n_below = int((np.fmin(record["elbo_train"], record.get("elbo_validation", np.inf)) < low - margin).sum())
    if n_below:
        # In the upper left corner there is room: curves that leave the range come from below.
        note = "1 epoch is below" if n_below == 1 else f"{n_below} epochs are below"
        elbo_ax.annotate(f"↓ {note}", (0.02, 0.98), xycoords="axes fraction", va="top", fontsize="small")
    # Outside, where it hides no curve.
    figure.legend(*elbo_ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")

    drawn = {"elbo": elbo_ax}
    if panels is not None:
        drawn["kl"] = kl_ax = panels[1]
        kl_ax.plot(epoch_e, record["kl_validation"], color=BLUE, marker=marker)
        kl_ax.set_ylim(bottom=0)
        kl_ax.set_ylabel("KL divergence\n(nats per cell)")
        kl_ax.set_title("How much the latent state tells about a cell", fontsize="medium")
    for panel in drawn.values():
        panel.axvline(epoch_e[kept], color="0.4", lw=1, ls=":", zorder=1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(False)
    panel.set_xlabel("epoch")
    panel.set_xlim(0.5, len(epoch_e) + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return _finish(figure, drawn, ax, show, return_fig)


def latent_traverse(
    adata: AnnData,
    name: str = "axis_0",
    genes: Sequence[str] | str | None = None,
    *,
    n_genes: int = 6,
    n_heatmap: int = 30,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Draw what changes along a latent coordinate, as `celldial.VAE.latent_traverse` computed it.

    On the left, a curve for each of some genes: the mean over cells, and the band that 90 % of the cells are in. On the
    right, the genes that change most, in the order in which they peak. How much a gene changes is the range of
    ``log(1 + mean expression per 10,000)`` along the coordinate, in which genes that are hardly expressed count little.

    Parameters
    ----------
    adata
        Cells with a traversal, in ``adata.uns["latent_traverse"]``.
    name
        Which traversal: ``"axis_0"`` for latent coordinate 0.
    genes
        Genes to draw curves of; by default the `n_genes` that change most.
    n_genes
        Number of curves where `genes` is not given.
    n_heatmap
        Number of rows of the heatmap, which always has the genes that change most.
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
    Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: one under the name of each gene,
    in counts per library size, and ``"heatmap"``: the logarithm of the mean expression, of each gene less its mean and
    over its standard deviation along the coordinate (0.1 at least, so that a coordinate along which nothing changes
    looks pale).

    Raises
    ------
    KeyError
        There is no such traversal, or no such gene in it.
    ValueError
        A gene is named twice, a number of genes is less than 1, or `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)
    >>> axes = cd.pl.latent_traverse(adata, "axis_0", genes=["CD3D", "CD79A"], show=False)
    >>> list(axes)
    ['CD3D', 'CD79A', 'heatmap']
    """
    if n_genes < 1 or n_heatmap < 1:
        raise ValueError(f"n_genes={n_genes}, n_heatmap={n_heatmap}: at least 1 gene is needed for each")
    stored = _traversal(adata, name)
    feature_names = np.asarray(stored["feature_names"]).astype(str)
    per_10_000 = 1e4 / stored["library_size"]
    log_sf = np.log1p(np.asarray(stored["mean"], dtype=float) * per_10_000)
    ranked_f = np.argsort(-np.ptp(log_sf, axis=0), kind="stable")
    chosen = ranked_f[:n_genes] if genes is None else _find(feature_names, [genes] if isinstance(genes, str) else genes)
    top = ranked_f[:n_heatmap]

    n_rows = -(-len(chosen) // CURVES_PER_ROW)
    figure = _canvas(ax, (10.4, max(3.6, 1.6 + 1.45 * n_rows, 1.6 + 0.17 * len(top))))
    figure.suptitle(f"What changes along {stored['axis']}", fontweight="bold")
    grid = figure.add_gridspec(1, 2, width_ratios=[1.1, 1])
    drawn = _draw_curves(figure.add_subfigure(grid[0]), stored, feature_names, chosen)
    drawn["heatmap"] = _draw_heatmap(figure.add_subfigure(grid[1]), stored, feature_names[top], log_sf[:, top])
    return _finish(figure, drawn, ax, show, return_fig)


def _draw_curves(
    figure: SubFigure, stored: dict[str, Any], feature_names: np.ndarray, chosen: np.ndarray
) -> dict[str, Axes]:
    """Draw a small panel for each gene, all with the same horizontal and each with its own vertical axis."""
    n_columns = min(len(chosen), CURVES_PER_ROW)
    panels = figure.subplots(-(-len(chosen) // n_columns), n_columns, sharex=True, squeeze=False).flat
    drawn = {}
    for panel, feature in zip(panels, chosen, strict=False):
        band = panel.fill_between(
            stored["position"],
            stored["lower"][:, feature],
            stored["upper"][:, feature],
            color=BLUE,
            alpha=0.25,
            lw=0,
            label="what 90% of cells show",
        )
        (line,) = panel.plot(stored["position"], stored["mean"][:, feature], color=BLUE, lw=2, label="mean over cells")
        panel.set_title(feature_names[feature], fontsize="medium", fontstyle="italic")
        panel.set_ylim(bottom=0)
        panel.margins(x=0)
        panel.grid(False)
        panel.spines[["top", "right"]].set_visible(False)
        drawn[str(feature_names[feature])] = panel
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    # Under an empty place, the panel above carries the numbers.
    for panel in list(drawn.values())[-n_columns:]:
        panel.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(stored["axis"], fontsize="medium")
    figure.supylabel(f"expression (counts per {stored['library_size']:,.0f})", fontsize="medium")
    figure.legend(handles=[line, band], loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return drawn


def _draw_heatmap(figure: SubFigure, stored: dict[str, Any], feature_names: np.ndarray, log_sf: np.ndarray) -> Axes:
    """Draw standardized expression of genes in the order in which they peak, the first to peak on top."""
    standard_sf = (log_sf - log_sf.mean(0)) / np.maximum(log_sf.std(0), MIN_DEVIATION)
    # Many peak at either end: of those, the ones come first whose expression has its center further to the left.
    above_sf = standard_sf - standard_sf.min(0)
    center_f = np.arange(len(log_sf)) @ above_sf / np.maximum(above_sf.sum(0), 1e-9)
    order_f = np.lexsort([center_f, standard_sf.argmax(0)])

    panel: Axes = figure.subplots()
    position_s = np.asarray(stored["position"], dtype=float)
    middle = (position_s[1:] + position_s[:-1]) / 2
    edges = [2 * position_s[0] - middle[0], *middle, 2 * position_s[-1] - middle[-1]]
    mesh = panel.pcolormesh(
        edges,
        np.arange(len(order_f) + 1) - 0.5,
        standard_sf[:, order_f].T,
        cmap="RdBu_r",
        vmin=-2,
        vmax=2,
        rasterized=True,  # no hairlines between the cells in a PDF
    )
    panel.set_yticks(range(len(order_f)), feature_names[order_f], fontsize="small", fontstyle="italic")
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.grid(False)
    panel.set_xlabel(stored["axis"])
    panel.set_title(f"the {len(order_f)} genes that change most", fontsize="medium")
    bar = figure.colorbar(mesh, ax=panel, extend="both", shrink=0.6, aspect=30)
    bar.set_label("mean log expression,\nstandardized for each gene", fontsize="small")
    return panel


def _traversal(adata: AnnData, name: str) -> dict[str, Any]:
    """Return a stored traversal, or say which ones there are."""
    there = adata.uns.get("latent_traverse", {})
    if name not in there:
        names = f"there are {', '.join(map(repr, there))}" if there else "there is none"
        raise KeyError(
            f'no traversal {name!r} in adata.uns["latent_traverse"], {names}: '
            "call model.latent_traverse(adata, axis=...) first"
        )
    stored: dict[str, Any] = there[name]
    return stored


def _find(feature_names: np.ndarray, genes: Sequence[str]) -> np.ndarray:
    """Return the columns of genes."""
    column = {name: index for index, name in enumerate(feature_names)}
    for gene in genes:
        if gene not in column:
            similar = difflib.get_close_matches(str(gene).upper(), column, n=1)
            hint = f": did you mean {str(similar[0])!r}?" if similar else ""
            raise KeyError(f"the traversal has no gene {gene!r}{hint}")
    if len(genes) == 0 or len(set(genes)) < len(genes):
        raise ValueError(f"genes is {list(genes)}: name at least one gene, and none twice")
    return np.array([column[gene] for gene in genes])


def _robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range to show: without the lowest tenth of the values, where those alone take most of the room."""
    low, tenth, high = np.nanquantile(values, [0, 0.1, 1])
    return (low if high - low < 3 * (high - tenth) else tenth), high


def _minus(number: str) -> str:
    """Write a number with a real minus sign, as the ticks have it."""
    return number.replace("-", "\N{MINUS SIGN}")


def _canvas(ax: Axes | None, figsize: tuple[float, float]) -> Figure | SubFigure:
    """Make room for several panels: a new figure, or in place of Axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        return plt.figure(figsize=figsize, layout="constrained")
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "ax is not part of a grid, so that it cannot be split into panels: make it by plt.subplots(), for example"
        )
    figure = ax.figure
    if figure.figure.get_layout_engine() is None:
        figure.figure.set_layout_engine("constrained")
    ax.remove()
    return figure.add_subfigure(place)


def _finish(
    figure: Figure | SubFigure, drawn: dict[str, Axes], ax: Axes | None, show: bool | None, return_fig: bool
) -> dict[str, Axes] | Figure | None:
    """Show the figure, or return it or its Axes."""
    import matplotlib.pyplot as plt

    if show is None:
        import scanpy as sc

        show = ax is None and not return_fig and bool(sc.settings.autoshow)
    if show:
        plt.show()
    if return_fig:
        return figure.figure  # of a part, the whole
    return None if show else drawn

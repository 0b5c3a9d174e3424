"""The plots: they read what a model wrote into an AnnData, and need no model, nor torch.

All take ``ax``, ``show`` and ``return_fig`` as scanpy's plots do, leave matplotlib's settings as they are, and tell
their colors apart for color-blind readers, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

# matplotlib is imported where something is drawn, so that `import celldial` does not wait for it.
from celldial.lookup import noun_of

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
    Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: ``"elbo"``, where there were
    validation cells ``"kl"``, and with several modalities ``"elbo_train"``. All are in nats per cell. A higher ELBO is
    better; a KL divergence near 0 means that the latent state tells nothing about a cell.

    Raises
    ------
    KeyError
        No model was fitted to these cells.
    ValueError
        `ax` is not part of a grid.

    Notes
    -----
    The two curves are not quite comparable: the ELBO of the training cells is that of the minibatches as they were
    trained, with dropout, and it is too high while the weight of the KL term still rises (the gray area). With several
    modalities it also has their weights, and an axis of its own, on the right.

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
    # In training, modalities have weights: another quantity, on another scale.
    weighted = sum(name.startswith("log_likelihood_") for name in record) > 1
    train_ax: Axes = elbo_ax.twinx() if weighted else elbo_ax
    label = "training cells, modalities weighted\n(axis on the right)" if weighted else "training cells"
    train_ax.plot(epoch_e, record["elbo_train"], color=ORANGE, ls="--", marker=marker, label=label)
    if validated:
        elbo_ax.plot(epoch_e, record["elbo_validation"], color=BLUE, marker=marker, label="validation cells")
    # Without validation cells, at all or in the last call, the model has the weights of the last epoch.
    judged = validated and not np.isnan(record["elbo_validation"][kept])
    kept_elbo = record["elbo_validation" if judged else "elbo_train"][kept]
    which = "best epoch" if judged else "last epoch"
    (elbo_ax if judged else train_ax).plot(
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
    shown = {elbo_ax: ["elbo_train", "elbo_validation"]}
    if weighted:
        shown = {elbo_ax: ["elbo_validation"], train_ax: ["elbo_train"]}
    below_e = np.zeros(len(epoch_e), dtype=bool)
    for panel, names in shown.items():
        curves_ne = np.stack([record[name] for name in names if name in record])
        low, high = _robust_range(curves_ne)
        margin = 0.06 * (high - low) or 1.0
        panel.set_ylim(low - margin, high + margin)
        below_e |= np.fmin.reduce(curves_ne) < low - margin
    if below_e.any():
        # In the upper left corner there is room: curves that leave the range come from below.
        note = "1 epoch is below" if below_e.sum() == 1 else f"{below_e.sum()} epochs are below"
        elbo_ax.annotate(f"↓ {note}", (0.02, 0.98), xycoords="axes fraction", va="top", fontsize="small")
    # Outside, where it hides no curve.
    handles = [handle for panel in reversed(shown) for handle in panel.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="small")

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
    if weighted:
        train_ax.set_ylabel("ELBO with weights", color=ORANGE)
        train_ax.tick_params(axis="y", labelcolor=ORANGE)
        train_ax.spines["top"].set_visible(False)
        train_ax.grid(False)
        drawn["elbo_train"] = train_ax
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

    On the left, a curve for each of some features: the mean over cells, and the band that 90 % of the cells are in. On
    the right, the features that change most, in the order in which they peak; those of each modality by themselves. How
    much a feature changes is the range along the coordinate of ``log(1 + mean expression per 10,000)``, or for peaks of
    ``log(1 + probability to be seen open over that of the average peak)``: what is hardly there counts little.

    Parameters
    ----------
    adata
        Cells with a traversal, in ``adata.uns["latent_traverse"]``.
    name
        Which traversal: ``"axis_0"`` for latent coordinate 0.
    genes
        Genes, peaks or proteins to draw curves of; by default the `n_genes` that change most, as many of each modality.
    n_genes
        Number of curves where `genes` is not given, at least one for each modality.
    n_heatmap
        Number of rows of the heatmap, which always has the features that change most; as many of each modality.
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
    Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: one under the name of each
    feature, in counts per library size or as a probability at the median depth; and ``"heatmap"``, where there are
    several modalities ``"heatmap_rna"``, ``"heatmap_atac"`` and so on: the logarithm above, of each feature less its
    mean and over its standard deviation along the coordinate (0.1 at least, so that a coordinate along which nothing
    changes looks pale).

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
    >>> axes = cd.pl.latent_traverse(adata, "axis_0", genes=["CD3D", "CD79A"], show=False)
    >>> list(axes)
    ['CD3D', 'CD79A', 'heatmap']
    """
    if n_genes < 1 or n_heatmap < 1:
        raise ValueError(f"n_genes={n_genes}, n_heatmap={n_heatmap}: at least 1 gene is needed for each")
    stored = _traversal(adata, name)
    parts = _parts(adata, stored)
    feature_names = np.asarray(stored["feature_names"]).astype(str)
    if genes is None:
        chosen = _in_turns(parts, n_genes)
    else:
        chosen = list(_find(feature_names, [genes] if isinstance(genes, str) else genes))
    n_rows = -(-len(chosen) // CURVES_PER_ROW)
    n_top = max(1, n_heatmap // len(parts))
    n_lines = sum(min(n_top, len(part.column_f)) + 3 * (len(parts) > 1) for part in parts)
    figure = _canvas(ax, (10.4, max(3.6, 1.6 + 1.45 * n_rows, 1.6 + 0.17 * n_lines)))
    figure.suptitle(f"What changes along {stored['axis']}", fontweight="bold")
    grid = figure.add_gridspec(1, 2, width_ratios=[1.1, 1])
    drawn = _draw_curves(figure.add_subfigure(grid[0]), stored, feature_names, chosen, parts)
    drawn |= _draw_heatmaps(figure.add_subfigure(grid[1]), stored, feature_names, n_top, parts)
    return _finish(figure, drawn, ax, show, return_fig)


class _Part(NamedTuple):
    """The features of one modality in a traversal: their columns, and how they change on a scale to compare them on."""

    modality: str
    column_f: np.ndarray
    log_sf: np.ndarray
    unit: str

    @property
    def noun(self) -> str:
        return noun_of(self.modality)

    @property
    def style(self) -> str:
        return "italic" if self.modality == "rna" else "normal"

    def ranked(self, n: int) -> np.ndarray:
        """Find the features that change most, as columns of this part."""
        return np.argsort(-np.ptp(self.log_sf, axis=0), kind="stable")[:n]

    def changing(self, n: int) -> np.ndarray:
        """Find the features that change most, as columns of the traversal."""
        return self.column_f[self.ranked(n)]


def _parts(adata: AnnData, stored: dict[str, Any]) -> list[_Part]:
    """Take a traversal apart into modalities."""
    schema = adata.uns.get("celldial", {}).get("schema", {})
    modalities = [str(name) for name in schema.get("modalities", ["rna"])]
    mean_sf = np.asarray(stored["mean"], dtype=float)
    sole = modalities[0] if len(modalities) == 1 else "rna"
    modality_f = np.asarray(stored.get("modality", [sole] * mean_sf.shape[1])).astype(str)
    parts = []
    for modality in dict.fromkeys(modality_f):
        column_f = np.flatnonzero(modality_f == modality)
        values_sf = mean_sf[:, column_f]
        likelihood = schema.get("likelihood", {}).get(modality)
        # A model that was fitted to other cells left no schema here.
        likely = likelihood is None and modality == "atac" and values_sf.max() <= 1
        if likelihood == "bernoulli" or likely:
            log_sf = np.log1p(values_sf / max(values_sf.mean(), 1e-9))
            unit = "probability open" if modality == "atac" else "probability"
        else:
            # The library size that is stored is the first modality's; the expected counts sum to each one's own.
            size = stored["library_size"] if "modality" not in stored else values_sf.sum(1).mean()
            log_sf = np.log1p(values_sf * 1e4 / size)
            unit = f"counts per {size:,.0f}"
        parts.append(_Part(modality, column_f, log_sf, unit))
    return parts


def _in_turns(parts: Sequence[_Part], n: int) -> list[int]:
    """Take in turns from each modality what changes most, so that of two modalities each has a column of its own."""
    n_each = [max(1, n // len(parts) + (turn < n % len(parts))) for turn in range(len(parts))]
    groups = [part.changing(n_of_part) for part, n_of_part in zip(parts, n_each, strict=True)]
    return [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]


def _draw_curves(
    figure: SubFigure, stored: dict[str, Any], feature_names: np.ndarray, chosen: Sequence[int], parts: Sequence[_Part]
) -> dict[str, Axes]:
    """Draw a small panel for each feature, all with the same horizontal and each with its own vertical axis."""
    n_columns = min(len(chosen), CURVES_PER_ROW)
    panels = figure.subplots(-(-len(chosen) // n_columns), n_columns, sharex=True, squeeze=False).flat
    part_of = {column: part for part in parts for column in part.column_f}
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
        part = part_of[feature]
        panel.set_title(feature_names[feature], fontsize="medium", fontstyle=part.style)
        if len(parts) > 1:
            panel.set_ylabel(part.unit, fontsize="small")
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
    if len(parts) == 1:
        unit = parts[0].unit
        figure.supylabel(unit if unit.startswith("probability") else f"expression ({unit})", fontsize="medium")
    figure.legend(handles=[line, band], loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return drawn


def _draw_heatmaps(
    figure: SubFigure, stored: dict[str, Any], feature_names: np.ndarray, n_top: int, parts: Sequence[_Part]
) -> dict[str, Axes]:
    """Draw a heatmap of the features that change most, for each modality by itself, with one scale of colors."""
    n_rows = [min(n_top, len(part.column_f)) for part in parts]
    panels = figure.subplots(len(parts), squeeze=False, sharex=True, height_ratios=n_rows)[:, 0]
    drawn = {}
    for panel, part in zip(panels, parts, strict=True):
        top = part.ranked(n_top)
        mesh = _draw_heatmap(panel, stored["position"], feature_names[part.column_f[top]], part.log_sf[:, top])
        panel.set_title(f"the {len(top)} {part.noun}s that change most", fontsize="medium")
        for label in panel.get_yticklabels():
            label.set_fontstyle(part.style)
        drawn["heatmap" if len(parts) == 1 else f"heatmap_{part.modality}"] = panel
    panels[-1].set_xlabel(stored["axis"])
    bar = figure.colorbar(mesh, ax=list(panels), extend="both", shrink=0.6, aspect=30)
    what = "mean log expression,\nstandardized for each gene"
    if [part.modality for part in parts] != ["rna"]:
        what = "log of the mean over cells,\nstandardized for each feature"
    bar.set_label(what, fontsize="small")
    return drawn


def _draw_heatmap(panel: Axes, position_s: Any, feature_names: np.ndarray, log_sf: np.ndarray) -> Any:
    """Draw standardized values of features in the order in which they peak, the first to peak on top."""
    standard_sf = (log_sf - log_sf.mean(0)) / np.maximum(log_sf.std(0), MIN_DEVIATION)
    # Many peak at either end: of those, the ones come first whose values have their center further to the left.
    above_sf = standard_sf - standard_sf.min(0)
    center_f = np.arange(len(log_sf)) @ above_sf / np.maximum(above_sf.sum(0), 1e-9)
    order_f = np.lexsort([center_f, standard_sf.argmax(0)])
    position_s = np.asarray(position_s, dtype=float)
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
    panel.set_yticks(range(len(order_f)), feature_names[order_f], fontsize="small")
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.grid(False)
    return mesh


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
    """Return the columns of features."""
    column = {name: index for index, name in enumerate(feature_names)}
    for gene in genes:
        if gene not in column:
            folded = {name.upper(): name for name in column}
            similar = difflib.get_close_matches(str(gene).upper(), folded, n=1)
            hint = f": did you mean {str(folded[similar[0]])!r}?" if similar else ""
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

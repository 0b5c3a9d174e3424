"""How training went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.pl._figure import BLACK, BLUE, ORANGE, canvas, finish, minus

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["history"]


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
    dict[str, Axes] | Figure | None
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: ``"elbo"``, where there were
        validation cells ``"kl"``, and with several modalities ``"elbo_train"``. All are in nats per cell. A higher ELBO
        is better; a KL divergence near 0 means that the latent state tells nothing about a cell.

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

    figure = canvas(ax, (6.4, 5.8) if validated else (6.4, 4.2))
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
        label=f"{which}, {epoch_e[kept]}: {minus(f'{kept_elbo:.1f}')}\n(the model has its weights)",
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
    return finish(figure, drawn, ax, show, return_fig)


def _robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range to show: without the lowest tenth of the values, where those alone take most of the room."""
    low, tenth, high = np.nanquantile(values, [0, 0.1, 1])
    return (low if high - low < 3 * (high - tenth) else tenth), high

"""The plot of the training history."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from celldial.io.results import read_record
from celldial.pl._colors import BLACK, BLUE, ORANGE
from celldial.pl._figure import despine, make_figure, show_or_return
from celldial.pl._text import format_count, format_minus

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
    r"""Plot the training history: the ELBO of training and validation cells by epoch, and the KL divergence.

    The vertical axis leaves out the steep start of training if it would compress the rest. A note in the panel then
    gives the number of epochs below the axis.

    Parameters
    ----------
    adata
        Cells that a model was fitted to, with ``adata.uns["celldial"]["history"]``.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name: ``"elbo"``;
        ``"kl"`` if there were validation cells; and ``"elbo_train"`` if there are several modalities. All are in nats
        per cell. A higher ELBO is better. A KL divergence near 0 means that the latent state holds no information about
        a cell.

    Raises
    ------
    KeyError
        If no model was fitted to these cells.
    ValueError
        If `ax` is not part of a grid.

    Notes
    -----
    The two curves are not directly comparable. The ELBO of the training cells is averaged over the minibatches during
    training, with dropout. It is too high during KL warm-up, while the weight of the KL divergence is below 1 (the gray
    area). With several modalities, the ELBO of the training cells also includes the weights of the modalities, and has
    its own axis on the right.

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

    stored = read_record(adata).get("history")
    if stored is None:
        raise KeyError('no history in adata.uns["celldial"]: call model.fit(adata) first')
    record = _History({name: np.asarray(values, dtype=float) for name, values in stored.items()})

    figure = make_figure(ax, (6.4, 5.8) if record.validated else (6.4, 4.2))
    panels: dict[str, Axes] = {}
    if record.validated:
        elbo_panel, kl_panel = figure.subplots(2, sharex=True, height_ratios=[2.5, 1])
        panels = {"elbo": elbo_panel, "kl": kl_panel}
        _draw_kl(kl_panel, record)
    else:
        elbo_panel = figure.subplots()
        panels = {"elbo": elbo_panel}
    train_panel = elbo_panel.twinx() if record.weighted else elbo_panel
    _draw_elbo(elbo_panel, train_panel, record)
    # The legend is outside, where it cannot cover a curve.
    drawn = [train_panel, elbo_panel] if record.weighted else [elbo_panel]
    handles = [handle for panel in drawn for handle in panel.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="small")

    for panel in panels.values():
        panel.axvline(record.epoch_e[record.kept], color="0.4", lw=1, ls=":", zorder=1)
        despine(panel)
    if record.weighted:
        train_panel.set_ylabel("weighted ELBO", color=ORANGE)
        train_panel.tick_params(axis="y", labelcolor=ORANGE)
        train_panel.spines["top"].set_visible(False)
        train_panel.grid(False)
        panels["elbo_train"] = train_panel
    lowest = panels.get("kl", elbo_panel)
    lowest.set_xlabel("epoch")
    lowest.set_xlim(0.5, len(record.epoch_e) + 0.5)
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return show_or_return(figure, panels, ax, show, return_fig)


class _History(NamedTuple):
    """A stored training history: values by name, each with one entry per epoch."""

    values: dict[str, np.ndarray]

    @property
    def epoch_e(self) -> np.ndarray:
        """Epochs, from 1."""
        return np.arange(1, len(self.values["seconds"]) + 1)

    @property
    def kept(self) -> int:
        """Index of the epoch whose weights the model has."""
        return int(self.values["kept"].argmax())

    @property
    def validated(self) -> bool:
        """Whether there were validation cells."""
        return "elbo_validation" in self.values

    @property
    def weighted(self) -> bool:
        """Whether the training ELBO has weights of several modalities, and is therefore on another scale."""
        return sum(name.startswith("log_likelihood_") for name in self.values) > 1

    @property
    def marker(self) -> str:
        """Marker of the curves: dots for short histories."""
        return "." if len(self.epoch_e) < 60 else ""


def _draw_elbo(elbo_panel: Axes, train_panel: Axes, record: _History) -> None:
    """Draw the ELBO of training and validation cells, the kept epoch and the KL warm-up."""
    values, epoch_e = record.values, record.epoch_e
    label = "training cells, modalities weighted\n(right axis)" if record.weighted else "training cells"
    train_panel.plot(epoch_e, values["elbo_train"], color=ORANGE, ls="--", marker=record.marker, label=label)
    if record.validated:
        elbo_panel.plot(epoch_e, values["elbo_validation"], color=BLUE, marker=record.marker, label="validation cells")
    _mark_kept_epoch(elbo_panel, train_panel, record)
    warm_up = values["kl_weight"] < 1
    if warm_up.any():
        # Only at the start of the first fit: `partial_fit` uses the full weight.
        elbo_panel.axvspan(0.5, warm_up.sum() + 0.5, color="0.92", lw=0, zorder=0, label="KL warm-up")
    elbo_panel.set_ylabel("ELBO (nats per cell)\nhigher is better")
    elbo_panel.set_title("Evidence lower bound (ELBO)")
    curves = {elbo_panel: ["elbo_train", "elbo_validation"]}
    if record.weighted:
        curves = {elbo_panel: ["elbo_validation"], train_panel: ["elbo_train"]}
    below_e = np.zeros(len(epoch_e), dtype=bool)
    for panel, names in curves.items():
        curves_ne = np.stack([values[name] for name in names if name in values])
        low, high = _robust_range(curves_ne)
        margin = 0.06 * (high - low) or 1.0
        panel.set_ylim(low - margin, high + margin)
        below_e |= np.fmin.reduce(curves_ne) < low - margin
    if below_e.any():
        # The upper left corner is free: curves that leave the range start below it.
        note = f"↓ {format_count('epoch', int(below_e.sum()))} below"
        elbo_panel.annotate(note, (0.02, 0.98), xycoords="axes fraction", va="top", fontsize="small")


def _mark_kept_epoch(elbo_panel: Axes, train_panel: Axes, record: _History) -> None:
    """Mark the epoch whose weights the model has."""
    kept = record.kept
    # Without validation cells, in all calls or in the last one, the model has the weights of the last epoch.
    is_best = record.validated and not np.isnan(record.values["elbo_validation"][kept])
    elbo = record.values["elbo_validation" if is_best else "elbo_train"][kept]
    epoch = record.epoch_e[kept]
    (elbo_panel if is_best else train_panel).plot(
        epoch,
        elbo,
        color=BLACK,
        ls="",
        marker="D",
        zorder=3,
        label=f"{'best' if is_best else 'last'} epoch, {epoch}: {format_minus(f'{elbo:.1f}')}\n(weights of the model)",
    )


def _draw_kl(panel: Axes, record: _History) -> None:
    """Draw the KL divergence of the validation cells."""
    panel.plot(record.epoch_e, record.values["kl_validation"], color=BLUE, marker=record.marker)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("KL divergence\n(nats per cell)")
    panel.set_title("KL divergence from the prior", fontsize="medium")


def _robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range to show: without the lowest tenth of the values if it takes most of the full range."""
    low, tenth, high = np.nanquantile(values, [0, 0.1, 1])
    return (low if high - low < 3 * (high - tenth) else tenth), high

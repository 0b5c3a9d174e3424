"""The plot of the variance of gradient estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celldial.pl._colors import BLACK, BLUE, ORANGE
from celldial.pl._figure import despine, make_figure, show_or_return, shrink_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["gradient_variance"]

# Label, color (Okabe and Ito) and marker of each estimator.
ESTIMATOR_STYLES = {
    "score_function": ("score function", BLACK, "s"),
    "score_function + moving_average": ("score function with moving-average baseline", ORANGE, "D"),
    "score_function + learned": ("score function with learned baseline", "#CC79A7", "v"),
    "straight_through": ("straight-through (rounded relaxed draws)", "#56B4E9", "o"),
    "gumbel_softmax": ("Gumbel-softmax (relaxed draws)", "#009E73", "P"),
    "reparameterized": ("reparameterization", BLUE, "o"),
    "enumerate": ("enumeration (sum over all clusters)", BLUE, "o"),
}
PARAMETER_LABELS = {
    "mu": "means of latent coordinates",
    "sigma": "log widths of latent coordinates",
    "cluster": "log-odds of clusters",
}


def gradient_variance(
    table: pd.DataFrame,
    *,
    parameter: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the variance of gradient estimators, as measured by `celldial.tl.sweep_gradients`.

    The left panel shows the variance for posteriors that are narrower and wider than fitted. Narrower posteriors make
    the score function estimator noisier and the reparameterization estimator less noisy. The right panel shows averages
    of several draws at the fitted width. Its dotted lines are the variance of one draw divided by the number of draws;
    averages of independent draws lie on them. All axes are logarithmic.

    Parameters
    ----------
    table
        The table that `celldial.tl.sweep_gradients` returns.
    parameter
        The parameter of the gradients: ``"mu"``, ``"sigma"`` or ``"cluster"``. By default ``"cluster"`` if the table
        has it, and otherwise ``"mu"``.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name: ``"width"``
        and ``"n_averaged"``.

    Raises
    ------
    KeyError
        If the table lacks a column.
    ValueError
        If the table does not have the parameter, or if `ax` is not part of a grid.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> table = cd.tl.sweep_gradients(model, adata, ["reparameterized"], n_samples=128, n_cells=16)
    >>> axes = cd.pl.gradient_variance(table, show=False)
    >>> list(axes)
    ['width', 'n_averaged']
    """
    for column in ("parameter", "estimator", "width", "n_averaged", "variance"):
        if column not in table:
            raise KeyError(f"the table has no column {column!r}: create it with celldial.tl.sweep_gradients")
    available = list(dict.fromkeys(table["parameter"]))
    parameter = ("cluster" if "cluster" in available else "mu") if parameter is None else parameter
    if parameter not in available:
        raise ValueError(f"parameter is {parameter!r}, but the table only has {', '.join(map(repr, available))}")
    table = table[table["parameter"] == parameter]

    figure = make_figure(ax, (8.6, 5.0))
    title = f"Variance of gradient estimates: {PARAMETER_LABELS.get(parameter, parameter)}"
    shrink_text(figure.suptitle(title, fontweight="bold"))
    width_panel, averaged_panel = figure.subplots(1, 2, sharey=True)
    _draw_curves(width_panel, table[table["n_averaged"] == 1], "width")
    _draw_curves(averaged_panel, table[table["width"] == 1], "n_averaged")
    _mark_fitted_width(width_panel)
    width_panel.set_title("Narrower and wider posteriors", fontsize="medium")
    width_panel.set_xlabel("width of the posterior of each cell\n(1: as fitted)")
    width_panel.set_ylabel("variance of an estimate\n(lower is better)")
    averaged_panel.set_title("Averages of several draws", fontsize="medium")
    averaged_panel.set_xlabel("number of averaged draws\n(dotted: as 1 ÷ number)")
    handles = width_panel.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="small")
    return show_or_return(figure, {"width": width_panel, "n_averaged": averaged_panel}, ax, show, return_fig)


def _draw_curves(panel: Axes, table: pd.DataFrame, x: str) -> None:
    """Draw the variance of each estimator against the column `x` of the table."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    present = set(table["estimator"])
    others = sorted(present - set(ESTIMATOR_STYLES))
    for estimator in [*(name for name in ESTIMATOR_STYLES if name in present), *others]:
        label, color, marker = ESTIMATOR_STYLES.get(estimator, (estimator, "0.5", "x"))
        rows = table[table["estimator"] == estimator].sort_values(x)
        # Averages are points, to be compared with the dotted line.
        line = "-" if x == "width" else ""
        # A larger hollow marker keeps both visible if straight-through and Gumbel-softmax coincide, as they do if the
        # model is linear in the cluster.
        shape = {"ms": 9, "mfc": "none"} if estimator == "straight_through" else {"ms": 5}
        panel.plot(rows[x], rows["variance"], color=color, ls=line, marker=marker, label=label, **shape)
        if x == "n_averaged":
            panel.plot(rows[x], rows["variance"].iloc[0] / rows[x], color=color, ls=":", lw=1.2, zorder=1)
    ticks = sorted(set(table[x]))
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    despine(panel)


def _mark_fitted_width(panel: Axes) -> None:
    """Draw a vertical line at the width of the fitted posteriors."""
    panel.axvline(1, color="0.6", lw=1, ls="--", zorder=0)
    panel.annotate(
        "as fitted",
        (1, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-3, 4),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize="x-small",
        color="0.35",
    )

"""How noisy the estimators of the gradient are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celldial.pl._figure import BLACK, BLUE, ORANGE, canvas, finish, fit, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["gradient_variance"]

# Estimator to what it is called, and to its color (of Okabe and Ito, too) and marker.
LOOKS = {
    "score_function": ("score function", BLACK, "s"),
    "score_function + moving_average": ("score function, less a moving average", ORANGE, "D"),
    "score_function + learned": ("score function, less a learned baseline", "#CC79A7", "v"),
    "straight_through": ("relaxed draws, rounded (straight-through)", "#56B4E9", "o"),
    "gumbel_softmax": ("relaxed draws (Gumbel-softmax)", "#009E73", "P"),
    "reparameterized": ("through the draw (reparameterized)", BLUE, "o"),
    "enumerate": ("sum over all clusters (enumeration)", BLUE, "o"),
}
OF = {
    "mu": "means of coordinates",
    "sigma": "log widths of coordinates",
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
    """Draw how noisy the estimators of the gradient are, as `celldial.tl.sweep_gradients` measured it.

    On the left the cells' posteriors are made narrower and wider than they are: the score function becomes noisier the
    surer the model is of a cell, and the reparameterization trick becomes less noisy. On the right several draws are
    averaged at the width that the posteriors have; the dotted lines are the variance of one draw divided by their
    number, on which averages of independent draws are. Both axes of both panels are logarithmic.

    Parameters
    ----------
    table
        What `celldial.tl.sweep_gradients` returns.
    parameter
        What the gradients are taken by: ``"mu"``, ``"sigma"`` or ``"cluster"``. By default clusters if there are any,
        else means.
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
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes ``"width"`` and
        ``"n_averaged"``.

    Raises
    ------
    KeyError
        The table is another one.
    ValueError
        The table has no such parameter, or `ax` is not part of a grid.

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
            raise KeyError(f"the table has no column {column!r}: make it by celldial.tl.sweep_gradients(model, adata)")
    known = list(dict.fromkeys(table["parameter"]))
    parameter = ("cluster" if "cluster" in known else "mu") if parameter is None else parameter
    if parameter not in known:
        raise ValueError(f"parameter is {parameter!r}: the table has {', '.join(map(repr, known))}")
    table = table[table["parameter"] == parameter]

    figure = canvas(ax, (8.6, 5.0))
    fit(figure.suptitle(f"How noisy estimates of the gradient are: {OF.get(parameter, parameter)}", fontweight="bold"))
    width_ax, averaged_ax = figure.subplots(1, 2, sharey=True)
    drawn = {"width": width_ax, "n_averaged": averaged_ax}
    chosen = {"width": table[table["n_averaged"] == 1], "n_averaged": table[table["width"] == 1]}
    present = set(table["estimator"])
    for name, panel in drawn.items():
        panel.set_xscale("log")
        panel.set_yscale("log")
        for estimator in [*(e for e in LOOKS if e in present), *sorted(present - set(LOOKS))]:
            label, color, marker = LOOKS.get(estimator, (estimator, "0.5", "x"))
            row = chosen[name][chosen[name]["estimator"] == estimator].sort_values(name)
            # Averages are points on the line where they should be.
            line = "-" if name == "width" else ""
            # Rounding changes no gradient of what is linear in the choice: the one curve may be on the other.
            shape = {"ms": 9, "mfc": "none"} if estimator == "straight_through" else {"ms": 5}
            panel.plot(row[name], row["variance"], color=color, ls=line, marker=marker, label=label, **shape)
            if name == "n_averaged":
                panel.plot(row[name], row["variance"].iloc[0] / row[name], color=color, ls=":", lw=1.2, zorder=1)
        ticks = sorted(set(chosen[name][name]))
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        tidy(panel)
    width_ax.axvline(1, color="0.6", lw=1, ls="--", zorder=0)
    width_ax.annotate(
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
    width_ax.set_title("Narrower and wider posteriors", fontsize="medium")
    width_ax.set_xlabel("width of the cells' posteriors\n(1: as fitted)")
    width_ax.set_ylabel("variance of an estimate\n(lower is better)")
    averaged_ax.set_title("Averages of several draws", fontsize="medium")
    averaged_ax.set_xlabel("number of draws averaged\n(dotted: as 1 ÷ number)")
    handles = width_ax.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="small")
    return finish(figure, drawn, ax, show, return_fig)

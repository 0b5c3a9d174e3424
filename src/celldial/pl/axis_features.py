"""What an axis does: which features rise and fall along it, or when they peak around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.pl._figure import angle_axis, canvas, finish, fit, row_font_size, shorten, tidy
from celldial.pl._traversal import Part, Traversal, plural, read_traversal

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["axis_features"]

# Filled dots are changes whose direction the model is sure of.
SURE = 0.05
LONGEST_NAME = 28


def axis_features(
    adata: AnnData,
    name: str | None = None,
    n_features: int = 15,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Draw what an axis does, from a traversal along it that `celldial.VAE.latent_traverse` stored.

    For each modality, the features that rise and fall most from the start of the path to its end: a dot for the log2
    fold change, a line for its interval. Around a periodic axis nothing rises for good: there it is at which angle a
    feature is highest, the first one on top, and how much it changes.

    Parameters
    ----------
    adata
        Cells with a traversal, in ``adata.uns["latent_traverse"]``.
    name
        Which traversal; by default the last one that was stored.
    n_features
        How many features rise, and how many fall, at most, of each modality; around a periodic axis, how many peak.
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
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes, one under the name of each
        modality; around a periodic axis also ``"rna_amplitude"`` and so on.

    Raises
    ------
    KeyError
        There is no such traversal.
    ValueError
        `n_features` is less than 1, or `ax` is not part of a grid.

    Notes
    -----
    Features are taken by their stored rank, and drawn by their change. A riser ends higher than it starts, by at least
    half of its largest change along the path: what goes up and comes down again is no riser. The interval is that of
    the ratio of two log-normal means, the ends taken as independent; those of one model mostly vary together, so that
    it is rather too wide.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)
    >>> axes = cd.pl.axis_features(adata, "axis_0", show=False)
    >>> axes["rna"].get_xlabel()
    'log2 fold change, end against start'
    """
    if n_features < 1:
        raise ValueError(f"n_features={n_features}: at least 1 feature is needed")
    traversal = read_traversal(adata, name)
    parts = traversal.parts
    if traversal.periodic:
        chosen = [_by_peak(traversal, part, n_features) for part in parts]
    else:
        chosen = [_by_change(traversal, part, n_features) for part in parts]
    n_rows = max(map(len, chosen))
    width = 5.6 if traversal.periodic else 4.4
    figure = canvas(ax, (1.0 + width * len(parts), max(3.2, 1.8 + 0.19 * n_rows)))
    title = f"When features are highest along the {traversal.axis}" if traversal.periodic else _title(traversal)
    fit(figure.suptitle(title, fontweight="bold"))
    places = figure.subfigures(1, len(parts), squeeze=False)[0]
    drawn: dict[str, Axes] = {}
    for place, part, column_f in zip(places, parts, chosen, strict=True):
        draw = _draw_peaks if traversal.periodic else _draw_changes
        drawn |= draw(place, traversal, part, column_f)
    return finish(figure, drawn, ax, show, return_fig)


def _title(traversal: Traversal) -> str:
    """Say what is seen."""
    along = {"direction": "along the axis ", "path": ""}.get(traversal.kind, "along ")
    return f"What rises and falls {along}{traversal.axis}"


def _by_change(traversal: Traversal, part: Part, n_features: int) -> np.ndarray:
    """Find the risers and fallers of the best rank, and order them from the largest rise to the largest fall."""
    change_f = traversal["change"][part.column_f]
    lasting_f = np.abs(change_f) >= traversal["effect_size"][part.column_f] / 2
    risers = part.column_f[lasting_f & (change_f > 0)][:n_features]
    fallers = part.column_f[lasting_f & (change_f < 0)][:n_features]
    both = np.concatenate([risers, fallers])
    return both[np.argsort(-traversal["change"][both], kind="stable")]


def _by_peak(traversal: Traversal, part: Part, n_features: int) -> np.ndarray:
    """Find the features of the best rank, and order them by the angle at which they peak."""
    top = part.column_f[:n_features]
    return top[np.lexsort([-traversal["effect_size"][top], _peak_angle(traversal, top)])]


def _peak_angle(traversal: Traversal, column_f: np.ndarray) -> np.ndarray:
    """Give the angle of the highest mean; the last step is the first one again."""
    angle_f: np.ndarray = traversal.position_s[traversal["peak_step"][column_f].astype(int)] % (2 * np.pi)
    return angle_f


def _interval(traversal: Traversal, column_f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Work out the interval of the log2 fold change of the last step against the first."""
    tiny = np.finfo(np.float32).tiny
    mean_ef, lower_ef, upper_ef = (
        np.log2(np.maximum(np.asarray(traversal.stored[name])[[0, -1]][:, column_f].astype(float), tiny))
        for name in ("mean", "lower", "upper")
    )
    change_f = traversal["change"][column_f]
    # The two ends add up as independent errors do; below and above apart, because bands need not be symmetric.
    below_ef, above_ef = np.maximum(mean_ef - lower_ef, 0), np.maximum(upper_ef - mean_ef, 0)
    return change_f - np.hypot(below_ef[1], above_ef[0]), change_f + np.hypot(above_ef[1], below_ef[0])


def _draw_changes(figure: SubFigure, traversal: Traversal, part: Part, column_f: np.ndarray) -> dict[str, Axes]:
    """Draw a row for each feature: a dot for its change, and a line for the interval."""
    panel = figure.subplots()
    row_f = np.arange(len(column_f))
    change_f = traversal["change"][column_f]
    low_f, high_f = _interval(traversal, column_f)
    sure_f = traversal["lfsr"][column_f] < SURE
    panel.axvline(0, color="0.6", lw=0.8, zorder=0)
    lines = panel.hlines(row_f, low_f, high_f, color=part.color, lw=1.5, alpha=0.5, label="90% interval")
    lines.set_label(f"{float(traversal.stored['interval']):.0%} interval")
    for sure, face, label in ((True, part.color, "sure"), (False, "white", "unsure")):
        chosen_f = sure_f == sure
        if chosen_f.any():
            what = f"{label} (local false sign rate {'<' if sure else '≥'} {SURE:.0%})"
            panel.plot(
                change_f[chosen_f], row_f[chosen_f], ls="", marker="o", ms=5, color=part.color, mfc=face, label=what
            )
    n_risers = int((change_f > 0).sum())
    if 0 < n_risers < len(column_f):
        panel.axhline(n_risers - 0.5, color="0.6", lw=0.8, ls=":", zorder=0)
    panel.set_title(f"{plural(part.noun, n_risers)} that rise, {len(column_f) - n_risers} that fall", fontsize="medium")
    if len(column_f) == 0:
        panel.annotate(f"no {part.noun} rises or falls for good", (0.5, 0.5), xycoords="axes fraction", ha="center")
    panel.set_xlabel("log2 fold change, end against start")
    _rows(figure, panel, traversal, part, column_f)
    figure.legend(loc="outside lower center", frameon=False, fontsize="small")
    return {part.modality: panel}


def _draw_peaks(figure: SubFigure, traversal: Traversal, part: Part, column_f: np.ndarray) -> dict[str, Axes]:
    """Draw a row for each feature: when it peaks and is above half its range, and how much it changes."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    row_f = np.arange(len(column_f))
    angle_axis(left, traversal.phases)
    log2_sf = traversal["log2_fold_change"][:, column_f]
    high_sf = log2_sf >= (log2_sf.max(0) + log2_sf.min(0)) / 2
    for row in row_f:
        for low, high in _runs(traversal.position_s, high_sf[:, row]):
            (span,) = left.plot([low, high], [row, row], color=part.color, lw=3, alpha=0.35, solid_capstyle="butt")
    angle_f = _peak_angle(traversal, column_f)
    (dots,) = left.plot(angle_f, row_f, ls="", marker="o", ms=5, color=part.color, clip_on=False)
    left.set_xlabel(traversal.position_label)
    left.set_title(f"{plural(part.noun, len(column_f))}: when they are highest", fontsize="medium")
    right.barh(row_f, traversal["effect_size"][column_f], height=0.6, color=part.color)
    room = 0.3 * figure.bbox.width
    fit(right.set_xlabel("log2 fold change,\nhighest against lowest"), room)
    fit(right.set_title("how much they change", fontsize="medium"), room)
    tidy(right)
    right.tick_params(axis="y", length=0)
    _rows(figure, left, traversal, part, column_f)
    figure.legend(
        [dots, span],
        ["highest", "above the middle of its range"],
        loc="outside lower center",
        frameon=False,
        ncols=2,
        fontsize="small",
    )
    # Room for the names of the phases.
    left.set_ylim(len(column_f) - 0.5, -1.6 if traversal.phases else -0.6)
    return {part.modality: left, f"{part.modality}_amplitude": right}


def _runs(position_s: np.ndarray, is_high_s: np.ndarray) -> list[tuple[float, float]]:
    """Find where steps in a row are high, from half a step before to half a step after."""
    edges = [position_s[0], *(position_s[1:] + position_s[:-1]) / 2, position_s[-1]]
    starts = np.flatnonzero(np.diff(is_high_s.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(is_high_s.astype(int), append=0) == -1)
    return [(float(edges[start]), float(edges[end + 1])) for start, end in zip(starts, ends, strict=True)]


def _rows(figure: SubFigure, panel: Axes, traversal: Traversal, part: Part, column_f: np.ndarray) -> None:
    """Write the names of the features beside their rows, the first on top."""
    size = row_font_size(figure, len(column_f), 0.72)
    panel.set_yticks(
        range(len(column_f)),
        [shorten(name, LONGEST_NAME) for name in traversal.feature_names[column_f]],
        fontsize=size,
        fontstyle=part.style,
    )
    panel.set_ylim(max(len(column_f), 1) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    tidy(panel)

"""The plot of the features that change along an axis, or that peak around a periodic coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.pl._figure import despine, make_figure, row_font_size, show_or_return, shrink_text
from celldial.pl._phases import TWO_PI, format_angle_axis
from celldial.pl._text import format_count, truncate_middle
from celldial.pl._traversal import LFSR_CUTOFF, ModalityFeatures, StoredTraversal, read_traversal

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["axis_features"]

MAX_NAME_LENGTH = 28


def axis_features(
    adata: AnnData,
    name: str | None = None,
    n_features: int = 15,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot the features that change most along an axis, from a traversal by `celldial.VAE.latent_traverse`.

    For each modality, the plot shows the features that increase and decrease most from the start to the end of the
    path: a dot for the log2 fold change and a line for its interval. For a periodic coordinate, which has no start and
    end, it shows at which angle each feature peaks and how much it changes; the first feature to peak is at the top.

    Parameters
    ----------
    adata
        Cells with a traversal in ``adata.uns["latent_traverse"]``.
    name
        Name of the traversal. By default the last one that was stored.
    n_features
        Maximum number of increasing and of decreasing features for each modality. For a periodic coordinate, maximum
        number of features for each modality.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name. Each modality
        has a panel of its name. For a periodic coordinate, ``"rna_amplitude"`` and so on are further panels.

    Raises
    ------
    KeyError
        If there is no such traversal.
    ValueError
        If `n_features` is less than 1, or if `ax` is not part of a grid.

    Notes
    -----
    Features are selected by their stored rank and sorted by their change. A feature is shown only if its change from
    start to end is at least half of its largest change along the path, so a feature that increases and decreases again
    is left out. The interval is that of the ratio of two independent log-normal means. The two means come from the same
    model and mostly vary together, so the interval is conservative.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)
    >>> axes = cd.pl.axis_features(adata, "axis_0", show=False)
    >>> axes["rna"].get_xlabel()
    'log2 fold change, end vs. start'
    """
    if n_features < 1:
        raise ValueError(f"n_features={n_features}: at least 1 feature is needed")
    traversal = read_traversal(adata, name)
    modalities = traversal.modalities
    if traversal.periodic:
        selected = [_select_by_peak(traversal, modality, n_features) for modality in modalities]
    else:
        selected = [_select_by_change(traversal, modality, n_features) for modality in modalities]
    n_rows = max(map(len, selected))
    width = 5.6 if traversal.periodic else 4.4
    figure = make_figure(ax, (1.0 + width * len(modalities), max(3.2, 1.8 + 0.19 * n_rows)))
    shrink_text(figure.suptitle(_title(traversal), fontweight="bold"))
    subfigures = figure.subfigures(1, len(modalities), squeeze=False)[0]
    panels: dict[str, Axes] = {}
    for subfigure, modality, column_f in zip(subfigures, modalities, selected, strict=True):
        draw = _draw_peaks if traversal.periodic else _draw_changes
        panels |= draw(subfigure, traversal, modality, column_f)
    return show_or_return(figure, panels, ax, show, return_fig)


def _title(traversal: StoredTraversal) -> str:
    """Return the title of the figure."""
    if traversal.periodic:
        return f"Where features peak along the {traversal.axis}"
    prefix = {"direction": "along the axis ", "path": ""}.get(traversal.kind, "along ")
    return f"Increasing and decreasing features {prefix}{traversal.axis}"


# --- Along a path -----------------------------------------------------------------------------------------------------


def _select_by_change(traversal: StoredTraversal, modality: ModalityFeatures, n_features: int) -> np.ndarray:
    """Return the top-ranked increasing and decreasing features, from the largest increase to the largest decrease."""
    change_f = traversal["change"][modality.column_f]
    lasting_f = np.abs(change_f) >= traversal["effect_size"][modality.column_f] / 2
    increasing = modality.column_f[lasting_f & (change_f > 0)][:n_features]
    decreasing = modality.column_f[lasting_f & (change_f < 0)][:n_features]
    selected = np.concatenate([increasing, decreasing])
    return selected[np.argsort(-traversal["change"][selected], kind="stable")]


def _fold_change_interval(traversal: StoredTraversal, column_f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of the log2 fold change of the last step relative to the first."""
    tiny = np.finfo(np.float32).tiny
    mean_ef, lower_ef, upper_ef = (
        np.log2(np.maximum(np.asarray(traversal.stored[name])[[0, -1]][:, column_f].astype(float), tiny))
        for name in ("mean", "lower", "upper")
    )
    change_f = traversal["change"][column_f]
    # Errors of the two ends are added as independent errors, separately below and above: intervals can be asymmetric.
    below_ef, above_ef = np.maximum(mean_ef - lower_ef, 0), np.maximum(upper_ef - mean_ef, 0)
    return change_f - np.hypot(below_ef[1], above_ef[0]), change_f + np.hypot(above_ef[1], below_ef[0])


def _draw_changes(
    figure: SubFigure, traversal: StoredTraversal, modality: ModalityFeatures, column_f: np.ndarray
) -> dict[str, Axes]:
    """Draw one row for each feature: a dot for its change and a line for the interval."""
    panel = figure.subplots()
    row_f = np.arange(len(column_f))
    change_f = traversal["change"][column_f]
    low_f, high_f = _fold_change_interval(traversal, column_f)
    certain_f = traversal["lfsr"][column_f] < LFSR_CUTOFF
    panel.axvline(0, color="0.6", lw=0.8, zorder=0)
    label = traversal.interval_name
    panel.hlines(row_f, low_f, high_f, color=modality.color, lw=1.5, alpha=0.5, label=label)
    for certain, face, sign in ((True, modality.color, "<"), (False, "white", "≥")):
        shown_f = certain_f == certain
        if shown_f.any():
            style: dict[str, Any] = {"ls": "", "marker": "o", "ms": 5, "color": modality.color, "mfc": face}
            label = f"local false sign rate {sign} {LFSR_CUTOFF:.0%}"
            panel.plot(change_f[shown_f], row_f[shown_f], label=label, **style)
    n_increasing = int((change_f > 0).sum())
    if 0 < n_increasing < len(column_f):
        panel.axhline(n_increasing - 0.5, color="0.6", lw=0.8, ls=":", zorder=0)
    n_decreasing = len(column_f) - n_increasing
    panel.set_title(f"{modality.noun}s: {n_increasing} increase, {n_decreasing} decrease", fontsize="medium")
    if len(column_f) == 0:
        text = f"no {modality.noun} increases or decreases"
        panel.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center")
    panel.set_xlabel("log2 fold change, end vs. start")
    _label_rows(figure, panel, traversal, modality, column_f)
    figure.legend(loc="outside lower center", frameon=False, fontsize="small")
    return {modality.name: panel}


# --- Around a circle --------------------------------------------------------------------------------------------------


def _select_by_peak(traversal: StoredTraversal, modality: ModalityFeatures, n_features: int) -> np.ndarray:
    """Return the top-ranked features, sorted by the angle at which they peak."""
    top = modality.column_f[:n_features]
    return top[np.lexsort([-traversal["effect_size"][top], _peak_angle(traversal, top)])]


def _peak_angle(traversal: StoredTraversal, column_f: np.ndarray) -> np.ndarray:
    """Return the angle of the highest mean in [0, 2π); the last step is the same angle as the first."""
    angle_f: np.ndarray = traversal.position_s[traversal["peak_step"][column_f].astype(int)] % TWO_PI
    return angle_f


def _draw_peaks(
    figure: SubFigure, traversal: StoredTraversal, modality: ModalityFeatures, column_f: np.ndarray
) -> dict[str, Axes]:
    """Draw one row for each feature: where it peaks, where it is in the upper half of its range, and its change."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    row_f = np.arange(len(column_f))
    format_angle_axis(left, traversal.phases)
    log2_sf = traversal["log2_fold_change"][:, column_f]
    is_high_sf = log2_sf >= (log2_sf.max(0) + log2_sf.min(0)) / 2
    for row in row_f:
        for low, high in _high_intervals(traversal.position_s, is_high_sf[:, row]):
            (span,) = left.plot([low, high], [row, row], color=modality.color, lw=3, alpha=0.35, solid_capstyle="butt")
    angle_f = _peak_angle(traversal, column_f)
    (dots,) = left.plot(angle_f, row_f, ls="", marker="o", ms=5, color=modality.color, clip_on=False)
    left.set_xlabel(traversal.position_label)
    left.set_title(f"{format_count(modality.noun, len(column_f))}: angle of the maximum", fontsize="medium")
    right.barh(row_f, traversal["effect_size"][column_f], height=0.6, color=modality.color)
    max_width = 0.3 * figure.bbox.width
    shrink_text(right.set_xlabel("log2 fold change,\nhighest vs. lowest"), max_width)
    shrink_text(right.set_title("size of the change", fontsize="medium"), max_width)
    despine(right)
    right.tick_params(axis="y", length=0)
    _label_rows(figure, left, traversal, modality, column_f)
    figure.legend(
        [dots, span],
        ["maximum", "upper half of the log2 range"],
        loc="outside lower center",
        frameon=False,
        ncols=2,
        fontsize="small",
    )
    # Leave room for the names of the phases.
    left.set_ylim(len(column_f) - 0.5, -1.6 if traversal.phases else -0.6)
    return {modality.name: left, f"{modality.name}_amplitude": right}


def _high_intervals(position_s: np.ndarray, is_high_s: np.ndarray) -> list[tuple[float, float]]:
    """Return the intervals of consecutive high steps, each from half a step before to half a step after."""
    edges = [position_s[0], *(position_s[1:] + position_s[:-1]) / 2, position_s[-1]]
    starts = np.flatnonzero(np.diff(is_high_s.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(is_high_s.astype(int), append=0) == -1)
    return [(float(edges[start]), float(edges[end + 1])) for start, end in zip(starts, ends, strict=True)]


def _label_rows(
    figure: SubFigure, panel: Axes, traversal: StoredTraversal, modality: ModalityFeatures, column_f: np.ndarray
) -> None:
    """Write the names of the features next to their rows, the first one at the top."""
    panel.set_yticks(
        range(len(column_f)),
        [truncate_middle(name, MAX_NAME_LENGTH) for name in traversal.feature_names[column_f]],
        fontsize=row_font_size(figure, len(column_f), 0.72),
        fontstyle=modality.font_style,
    )
    panel.set_ylim(max(len(column_f), 1) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    despine(panel)

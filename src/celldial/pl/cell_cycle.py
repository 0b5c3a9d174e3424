"""Cells on a circle, and marker genes around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from celldial.pl._expression import Counts
from celldial.pl._figure import BLACK, BLUE, CYCLIC, TURN, Phases, angle_axis, canvas, finish, fit, percent, tidy
from celldial.pl._scatter import draw_cells
from celldial.pl._traversal import Traversal, find_features
from celldial.utils.messages import did_you_mean, format_names

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["cell_cycle"]

N_GENES = 6
GENES_PER_ROW = 2
# To choose genes by, so many cells are enough.
CELLS_TO_CHOOSE_BY = 3000
# Radii: cells without a phase, angles, cells with one, the ring of phases, their density, names of phases.
CENTER, TICKS, CELLS, RING, DENSITY, NAMES = 0.33, 0.43, (0.53, 0.9), (0.93, 1.0), (1.0, 1.42), 1.68
GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


def cell_cycle(
    adata: AnnData,
    name: str | None = None,
    genes: Sequence[str] | str | None = None,
    color: str | None = None,
    *,
    gene_symbols: str | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Draw where the cells are in the cell cycle, or in another rhythm, and how marker genes change with it.

    On the left, the circle, clockwise from the top, where angle 0 is: with phases, the start of the first one, G1. Each
    dot in the ring is a cell at its angle (how far from the middle means nothing), the outline is the density of cells.
    The cells in the middle carry no phase: they are not active, or could be anywhere. Percentages are of all cells. On
    the right, marker genes against the angle, of cells with a phase: what was counted, and, if
    `celldial.VAE.latent_traverse` was called for this axis, what the model expects.

    Parameters
    ----------
    adata
        Cells with angles, in ``adata.obs["cell_cycle_angle"]``.
    name
        Name of the periodic axis; by default that of the last model that was fitted to these cells.
    genes
        Genes to draw; by default of the markers of each phase those that change most with the angle. Without markers,
        the features of the best rank in the traversal around this axis, if there is one.
    color
        Column of ``obs`` to color the cells by; by default their phase, and without phases their angle.
    gene_symbols
        Column of ``var`` that has the names of `genes`; by default ``var_names``, or the column that the markers were
        looked up in.
    layer
        Layer of counts; by default the one that the model was fitted to.
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
        Nothing if the figure is shown, the figure with `return_fig`, otherwise the Axes: ``"circle"``, and one under
        the name of each gene, in counts per 10,000 of the cell: the mean of the cells in a bin of angles, with its
        standard error. Peaks that are modelled as open or not are drawn as the share of cells in which they are open.

    Raises
    ------
    KeyError
        There are no such angles, genes, layer or column.
    ValueError
        What should be counts is not, a gene is named twice, or `ax` is not part of a grid.

    Notes
    -----
    Counts are not put on a log scale: the mean of logarithms is not the logarithm of the mean, and what was counted
    would lie below what the model expects even where that is right.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.simulate_multiome(600, 100, 200, depth=6)
    >>> model = cd.VAE(periodic="cell_cycle").fit(adata, max_epochs=8, progress=False)
    >>> axes = cd.pl.cell_cycle(adata, genes=["MCM6", "UBE2C"], show=False)
    >>> list(axes)
    ['circle', 'MCM6', 'UBE2C']
    """
    circle = _read(adata, name)
    counts = Counts(adata, gene_symbols or circle.gene_symbols, layer)
    if color is not None and color not in adata.obs:
        raise KeyError(
            f"color {color!r} is not among the columns of adata.obs{did_you_mean(color, list(adata.obs))}; "
            f"there are: {format_names(adata.obs.columns)}"
        )
    if genes is not None:
        chosen = find_features(counts.names_f, genes, "genes", f"adata.{counts.where} has")
    else:
        chosen = _choose(circle, counts)
    values = {counts.names_f[column]: counts.normalized(column) for column in chosen}

    n_columns = min(max(len(chosen), 1), GENES_PER_ROW)
    n_rows = -(-len(chosen) // GENES_PER_ROW)
    width = 3.6 if n_columns == 1 else 2.7 * n_columns
    figure = canvas(ax, (5.0 + (width if chosen else 0), max(5.0 + (color is not None), 1.2 + 1.6 * n_rows)))
    n_active = int(circle.active_c.sum())
    title = f"{circle.label[:1].upper()}{circle.label[1:]}: {n_active:,} of {adata.n_obs:,} cells carry a phase"
    fit(figure.suptitle(title, fontweight="bold"))
    widths = [5.0, width] if chosen else [1]
    left, *right = figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0]
    drawn = {"circle": _draw_circle(left, circle, adata, color)}
    if chosen:
        drawn |= _draw_genes(right[0], circle, chosen, counts, values, n_columns)
    return finish(figure, drawn, ax, show, return_fig)


class _Circle(NamedTuple):
    """The cells of a periodic axis: what the model wrote about them."""

    label: str
    angle_c: np.ndarray
    active_c: np.ndarray
    phase_c: np.ndarray | None
    phases: Phases | None
    markers: dict[str, list[str]]
    gene_symbols: str | None
    traversal: Traversal | None

    @property
    def around_c(self) -> np.ndarray:
        """Angles of the cells that carry a phase."""
        angle_c: np.ndarray = self.angle_c[self.active_c]
        return angle_c


def _read(adata: AnnData, name: str | None) -> _Circle:
    """Read angles, activity and phases of the cells."""
    about: Mapping[str, Any] = adata.uns.get("celldial", {}).get("periodic") or {}
    if name is None:
        name = str(about.get("name", "cell_cycle"))
    if f"{name}_angle" not in adata.obs:
        there = [str(column).removesuffix("_angle") for column in adata.obs if str(column).endswith("_angle")]
        raise KeyError(
            f"no column '{name}_angle' in adata.obs: fit a model with VAE(periodic={name!r}) first "
            f"(columns of angles there are of: {format_names(there)})"
        )
    if about.get("name") != name:
        about = {}
    angle_c = adata.obs[f"{name}_angle"].to_numpy(dtype=float)
    active_c = np.isfinite(angle_c)
    if f"{name}_active" in adata.obs:
        active_c = active_c & adata.obs[f"{name}_active"].to_numpy(dtype=bool)
    phases = phase_c = None
    if "phases" in about:
        phases = Phases.read(about["phases"], about["phase_start"])
        if f"{name}_phase" in adata.obs:
            phase_c = adata.obs[f"{name}_phase"].astype(object).to_numpy()
            active_c = active_c & adata.obs[f"{name}_phase"].notna().to_numpy()  # else the angle could be anything
        else:
            phase_c = np.array(phases.names, dtype=object)[phases.of(np.nan_to_num(angle_c))]
    markers = about.get("markers", {})
    # In the order of the phases: h5ad files do not keep that of a dict.
    order = [phase for phase in (phases.names if phases is not None else ()) if phase in markers]
    stored = adata.uns.get("latent_traverse", {}).get(name)
    traversal = Traversal(name, stored) if stored is not None and stored["kind"] == "periodic" else None
    return _Circle(
        name.replace("_", " "),
        angle_c,
        active_c,
        phase_c,
        phases,
        {phase: [str(gene) for gene in markers[phase]] for phase in order},
        about.get("gene_symbols"),
        traversal,
    )


def _choose(circle: _Circle, counts: Counts) -> list[int]:
    """Choose the genes to draw: for each phase those of its markers that change most with the angle."""
    column_of = {str(name): column for column, name in enumerate(counts.names_f)}
    lists = [[column_of[gene] for gene in genes if gene in column_of] for genes in circle.markers.values()]
    lists = [columns for columns in lists if columns]
    if not lists:
        if circle.traversal is None:
            return []
        ranked = circle.traversal.parts[0].column_f[:N_GENES]
        column_of = {name: column for column, name in enumerate(counts.var_names)}
        lists = [[column_of[gene] for gene in circle.traversal.feature_names[ranked] if gene in column_of]]
    n_each = -(-N_GENES // len(lists))
    if len(lists) > N_GENES // 2:
        n_each = 2
    chosen: list[int] = []
    for columns in lists:
        variation = [_variation(circle, counts.normalized(column)) for column in columns]
        order = np.argsort(-np.array(variation), kind="stable")
        chosen += [columns[index] for index in order if columns[index] not in chosen][:n_each]
    return chosen


def _variation(circle: _Circle, value_c: np.ndarray) -> float:
    """Work out which share of the variance of log expression a sine of the angle explains, over the active cells."""
    known_c = np.flatnonzero(circle.active_c & np.isfinite(value_c))
    known_c = known_c[:: max(1, len(known_c) // CELLS_TO_CHOOSE_BY)]
    if len(known_c) < 4:
        return 0.0
    log_c = np.log1p(value_c[known_c])
    angle_c = circle.angle_c[known_c]
    design = np.column_stack([np.ones(len(angle_c)), np.cos(angle_c), np.sin(angle_c)])
    fitted = design @ np.linalg.lstsq(design, log_c, rcond=None)[0]
    return float(fitted.var() / max(log_c.var(), 1e-12))


# --- The circle -------------------------------------------------------------------------------------------------------


def _draw_circle(figure: SubFigure, circle: _Circle, adata: AnnData, color: str | None) -> Axes:
    """Draw the cells, their density and the phases."""
    panel: Any = figure.add_subplot(projection="polar")
    panel.set_theta_zero_location("N")
    panel.set_theta_direction(-1)
    panel.set_rlim(0, NAMES + 0.12)
    panel.set_axis_off()
    rng = np.random.default_rng(0)
    n_cells = len(circle.angle_c)
    # Spread evenly over the area of the ring.
    radius_c = np.sqrt(rng.uniform(CELLS[0] ** 2, CELLS[1] ** 2, n_cells))
    angle_c = np.where(circle.active_c, circle.angle_c, 0)
    # Cells without a phase have no angle: they fill the middle like the seeds of a sunflower.
    idle = np.flatnonzero(~circle.active_c)
    # As dense as the cells of the ring, if there is room.
    ring_area = CELLS[1] ** 2 - CELLS[0] ** 2
    reach = min(CENTER, np.sqrt(ring_area * len(idle) / max(n_cells - len(idle), 1)) + 0.05)
    seed_c = rng.permutation(len(idle))
    radius_c[idle] = reach * np.sqrt((seed_c + 0.5) / max(len(idle), 1))
    angle_c[idle] = seed_c * GOLDEN_ANGLE
    size = float(np.clip(8000 / max(n_cells, 1), 0.8, 14))
    dots = {"s": size, "alpha": 0.8}
    if color is not None:
        draw_cells(figure, panel, angle_c, radius_c, adata, color, "bottom", **dots)
    else:
        dots |= {"linewidths": 0, "rasterized": True}
        panel.scatter(angle_c[idle], radius_c[idle], color="0.6", **dots)
        around = circle.active_c
        if circle.phases is None:
            panel.scatter(angle_c[around], radius_c[around], color="0.35", **dots)
        else:
            shade_c = np.array(circle.phases.colors, dtype=object)[circle.phases.of(angle_c[around])]
            panel.scatter(angle_c[around], radius_c[around], c=list(shade_c), **dots)
    outer = _draw_density(panel, circle)
    _draw_names(panel, circle, outer)
    start = "angle 0" if circle.phases is None else f"angle 0, the start of {circle.phases.names[0]}"
    caption = panel.set_title(
        f"Clockwise from the top: {start}. Each dot is a cell;\n"
        "the outline is their density. Percentages are of all cells.",
        fontsize="small",
    )
    fit(caption, 0.94 * figure.bbox.width)
    return panel


def _draw_density(panel: Any, circle: _Circle) -> np.ndarray:
    """Draw the ring of phases, around it the density of the cells that carry one, and return how far out that is."""
    grid = np.linspace(0, TURN, 361)
    outer = np.full(len(grid), DENSITY[0])
    if circle.active_c.any():
        density = _density(circle.around_c)
        density = np.append(density, density[0])
        outer = DENSITY[0] + (DENSITY[1] - DENSITY[0]) * density / density.max()
    if circle.phases is None:
        panel.fill_between(grid, DENSITY[0], outer, color="0.8", lw=0)
        panel.pcolormesh(
            grid, RING, (grid[None, :-1] + grid[None, 1:]) / 2, cmap=CYCLIC, vmin=0, vmax=TURN, rasterized=True
        )
    else:
        for k, low, high in circle.phases.pieces():
            shade = circle.phases.colors[k]
            theta = np.concatenate([[low], grid[(grid > low) & (grid < high)], [high]])
            panel.fill_between(theta, DENSITY[0], np.interp(theta, grid, outer), color=shade, alpha=0.45, lw=0)
            panel.fill_between(theta, *RING, color=shade, lw=0)
    panel.plot(grid, outer, color="0.2", lw=1, label="density")
    return outer


def _density(angle_c: np.ndarray) -> np.ndarray:
    """Estimate the density at each whole degree, with a kernel that is narrower the more cells there are."""
    count_b, _ = np.histogram(angle_c % TURN, bins=360, range=(0, TURN))
    # Counts of a bin belong to its middle, half a degree further on: less than a line is wide.
    width = np.degrees(np.clip(0.3 * (len(angle_c) / 200) ** -0.2, 0.12, 0.6))
    frequency = np.arange(181)
    kernel = np.exp(-0.5 * (np.radians(width) * frequency) ** 2)
    density_b: np.ndarray = np.fft.irfft(np.fft.rfft(count_b) * kernel, 360)
    return np.maximum(density_b, 0)


def _draw_names(panel: Any, circle: _Circle, outer: np.ndarray) -> None:
    """Write the names of the phases with the share of cells in each, and that of cells that carry none."""
    from matplotlib.patheffects import withStroke

    n_cells = max(len(circle.angle_c), 1)
    for angle, label in zip(np.arange(4) * np.pi / 2, ("0", "π/2", "π", "3π/2"), strict=True):
        panel.text(angle, TICKS, label, ha="center", va="center", fontsize="x-small", color="0.35")
    if circle.phases is not None and circle.phase_c is not None:
        for phase, angle in zip(circle.phases.names, circle.phases.middle_k, strict=True):
            share = float((circle.active_c & (circle.phase_c == phase)).sum() / n_cells)
            radius = min(NAMES, np.interp(angle, np.linspace(0, TURN, len(outer)), outer) + 0.23)
            panel.text(angle, radius, f"{phase}\n{percent(share)}", ha="center", va="center", fontweight="bold")
    halo = [withStroke(linewidth=3, foreground="white")]
    idle = float((~circle.active_c).sum() / n_cells)
    panel.text(0, 0, f"no phase\n{percent(idle)}", ha="center", va="center", fontsize="small", path_effects=halo)


# --- The genes --------------------------------------------------------------------------------------------------------


def _draw_genes(
    figure: SubFigure,
    circle: _Circle,
    chosen: Sequence[int],
    counts: Counts,
    values: Mapping[str, np.ndarray],
    n_columns: int,
) -> dict[str, Axes]:
    """Draw a small panel for each gene: what was counted in bins of angles, and what the model expects."""
    n_rows = -(-len(chosen) // n_columns)
    panels = figure.subplots(n_rows, n_columns, sharex=True, squeeze=False).flat
    phase_of = {gene: phase for phase, genes in circle.markers.items() for gene in genes}
    n_bins = int(np.clip(circle.active_c.sum() // 12, 6, 24))
    edges = np.linspace(0, TURN, n_bins + 1)
    units = {counts.unit(column) for column in chosen}
    drawn, handles = {}, {}
    for panel, column in zip(panels, chosen, strict=False):
        gene = str(counts.names_f[column])
        middle, mean, error = _binned(circle, values[gene], edges)
        handles["mean of the cells in a bin, ± standard error"] = panel.errorbar(
            middle, mean, error, color=BLACK, ls="", marker="o", ms=3, lw=1, zorder=3
        )
        top = np.nanmax(mean + error, initial=0)
        curve = _expected(circle, counts.var_names[column], counts.modality_f[column])
        if curve is not None and circle.traversal is not None:
            position_s, mean_s, lower_s, upper_s = curve
            band = panel.fill_between(position_s, lower_s, upper_s, color=BLUE, alpha=0.25, lw=0)
            (line,) = panel.plot(position_s, mean_s, color=BLUE, lw=2)
            interval = float(circle.traversal.stored["interval"])
            handles[f"what the model expects, with {interval:.0%} interval"] = (band, line)
            top = max(top, float(np.max(upper_s)))
        role = f" ({phase_of[gene]})" if gene in phase_of else ""
        panel.set_title(f"{gene}{role}", fontsize="medium", fontstyle="italic")
        panel.set_ylim(0, (top or 1.0) * 1.22)
        if len(units) > 1:
            panel.set_ylabel(counts.unit(column), fontsize="small")
        tidy(panel)
        angle_axis(panel, circle.phases)
        drawn[gene] = panel
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    for panel in list(drawn.values())[-n_columns:]:
        panel.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(f"{circle.label} angle (rad)", fontsize="medium")
    if len(units) == 1:
        figure.supylabel(units.pop(), fontsize="medium")
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", frameon=False, fontsize="small", ncols=1
    )
    return drawn


def _binned(circle: _Circle, value_c: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average over the active cells in each bin, with the standard error, leaving out bins of fewer than three."""
    known_c = circle.active_c & np.isfinite(value_c)
    bin_c = np.clip(np.digitize(circle.angle_c[known_c] % TURN, edges) - 1, 0, len(edges) - 2)
    value_c = value_c[known_c]
    groups = [(b, value_c[bin_c == b]) for b in range(len(edges) - 1)]
    kept = [(b, values) for b, values in groups if len(values) >= 3]
    middle = np.array([(edges[b] + edges[b + 1]) / 2 for b, _ in kept])
    mean = np.array([values.mean() for _, values in kept])
    error = np.array([values.std(ddof=1) / len(values) ** 0.5 for _, values in kept])
    return middle, mean, error


def _expected(circle: _Circle, name: str, modality: str) -> tuple[np.ndarray, ...] | None:
    """Give the stored curve of a gene, in the units of the counts."""
    if circle.traversal is None:
        return None
    found = np.flatnonzero((circle.traversal.feature_names == name) & (circle.traversal.modality_f == modality))
    if len(found) == 0:
        return None
    binary = circle.traversal.stored["likelihood"][modality] == "bernoulli"
    scale = 1.0 if binary else 1e4 / float(circle.traversal.stored["library_size"][modality])
    curves = (circle.traversal.stored[name][:, found[0]] * scale for name in ("mean", "lower", "upper"))
    return circle.traversal.position_s, *curves

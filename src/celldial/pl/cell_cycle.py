"""The plot of cells around a periodic coordinate, such as the cell cycle, and of marker genes against the angle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from celldial.io.results import read_record, read_traversals, writer_of
from celldial.pl._colors import BLACK, BLUE, CYCLIC_COLORMAP
from celldial.pl._expression import ObservedCounts
from celldial.pl._figure import despine, make_figure, show_or_return, shrink_text
from celldial.pl._phases import ANGLE_LABELS, ANGLE_TICKS, TWO_PI, Phases, format_angle_axis
from celldial.pl._scatter import scatter_cells
from celldial.pl._text import format_percent
from celldial.pl._traversal import StoredTraversal, feature_columns
from celldial.pl._units import COUNTS, PROBABILITY
from celldial.utils.messages import format_names, get_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["cell_cycle"]

N_GENES = 6
GENES_PER_ROW = 2
MAX_CELLS_FOR_RANKING = 3000
# Radii of the circle, from the center outward.
INACTIVE_RADIUS, TICK_RADIUS, CELL_RADII = 0.33, 0.43, (0.53, 0.9)
PHASE_RADII, DENSITY_RADII, MAX_LABEL_RADIUS = (0.93, 1.0), (1.0, 1.42), 1.68
GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


def cell_cycle(
    adata: AnnData,
    name: str | None = None,
    features: Sequence[str] | str | None = None,
    color: str | None = None,
    *,
    gene_symbols: str | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> dict[str, Axes] | Figure | None:
    """Plot where cells are in the cell cycle, or another periodic process, and how marker genes change with the angle.

    On the left is the circle. Angle 0, which is the start of the first phase (G1), is at the top, and angles increase
    clockwise. Each dot in the ring is a cell at its angle; its distance from the center has no meaning. The outline is
    the density of the cells. The cells in the middle are not assigned to a phase: they are inactive, or their angle is
    too uncertain. Percentages are of all cells. On the right are marker genes against the angle, in cells assigned to a
    phase: the observed counts and, after `celldial.VAE.latent_traverse` along this coordinate, the expectation of the
    model.

    Parameters
    ----------
    adata
        Cells with angles in ``adata.obs["cell_cycle_angle"]``.
    name
        Name of the periodic coordinate. By default that of the last model that was fitted to these cells.
    features
        Genes to plot. By default the markers of each phase that change most with the angle. Without markers, the
        top-ranked features of the traversal along this coordinate, if there is one.
    color
        Column of ``obs`` that colors the cells. By default their phase; without phases all are gray.
    gene_symbols
        Column of ``var`` with the names of `features`. By default the column in which the model looked up its markers,
        or ``var_names``.
    layer
        Layer with raw counts. By default the layer that the model was fitted to.
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
        None if the figure is shown, the figure if `return_fig` is True, and otherwise the panels by name:
        ``"circle"``, and one panel for each gene. Genes are shown in counts per 10,000, as the mean of the cells in
        each bin of angles with its standard error. Peaks with a binary likelihood are shown as the fraction of cells in
        which they are open.

    Raises
    ------
    KeyError
        If there are no such angles, genes, layer or column.
    ValueError
        If the matrix does not hold raw counts, if a gene is repeated, or if `ax` is not part of a grid.

    Notes
    -----
    Counts are not on a log scale. The mean of logarithms is smaller than the logarithm of the mean, so observed means
    would lie below a correct expectation.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.simulate_multiome(600, 100, 200, depth=6)
    >>> model = cd.VAE(periodic="cell_cycle", likelihood={"atac": "poisson"})
    >>> model = model.fit(adata, max_epochs=8, progress=False)
    >>> axes = cd.pl.cell_cycle(adata, features=["MCM6", "UBE2C"], show=False)
    >>> list(axes)
    ['circle', 'MCM6', 'UBE2C']
    """
    cells = _read_cells(adata, name)
    counts = ObservedCounts(adata, gene_symbols or cells.gene_symbols, layer)
    if color is not None:
        get_column(adata.obs, color, "color")  # before anything is drawn
    if features is not None:
        selected = feature_columns(counts.names_f, features, "features", counts.names_source)
    else:
        selected = _select_genes(cells, counts)
    values = {column: counts.normalized(column) for column in selected}

    n_columns = min(max(len(selected), 1), GENES_PER_ROW)
    n_rows = -(-len(selected) // GENES_PER_ROW)
    width = 3.6 if n_columns == 1 else 2.7 * n_columns
    figsize = (5.0 + (width if selected else 0), max(5.0 + (color is not None), 1.2 + 1.6 * n_rows))
    figure = make_figure(ax, figsize)
    shrink_text(figure.suptitle(_title(cells), fontweight="bold"))
    widths = [5.0, width] if selected else [1]
    left, *right = figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0]
    panels = {"circle": _draw_circle(left, cells, adata, color)}
    if selected:
        panels |= _draw_genes(right[0], cells, counts, values, n_columns)
    return show_or_return(figure, panels, ax, show, return_fig)


class _PeriodicCells(NamedTuple):
    """Angles, activity and phases of the cells, and the markers and traversal of their periodic coordinate."""

    label: str
    angle_c: np.ndarray
    active_c: np.ndarray
    phase_c: np.ndarray | None
    phases: Phases | None
    markers: dict[str, list[str]]
    gene_symbols: str | None
    traversal: StoredTraversal | None


def _read_cells(adata: AnnData, name: str | None) -> _PeriodicCells:
    """Return what the model stored about the periodic coordinate `name`."""
    record: Mapping[str, Any] = read_record(adata).get("periodic") or {}
    if name is None:
        name = str(record.get("name", "cell_cycle"))
    if f"{name}_angle" not in adata.obs:
        names = [str(column).removesuffix("_angle") for column in adata.obs if str(column).endswith("_angle")]
        raise KeyError(
            f"no column '{name}_angle' in adata.obs: fit a model with VAE(periodic={name!r}) first. Periodic "
            f"coordinates in adata.obs: {format_names(names)}"
        )
    if record.get("name") != name:
        record = {}
    angle_c = adata.obs[f"{name}_angle"].to_numpy(dtype=float)
    active_c = np.isfinite(angle_c)
    if f"{name}_active" in adata.obs:
        active_c = active_c & adata.obs[f"{name}_active"].to_numpy(dtype=bool)
    phases = phase_c = None
    if "phases" in record:
        phases = Phases.from_arrays(record["phases"], record["phase_start"])
        if f"{name}_phase" in adata.obs:
            phase_c = adata.obs[f"{name}_phase"].astype(object).to_numpy()
            active_c = active_c & adata.obs[f"{name}_phase"].notna().to_numpy()  # without a phase, the angle is unknown
        else:
            phase_c = np.array(phases.names, dtype=object)[phases.index_of(np.nan_to_num(angle_c))]
    markers = record.get("markers", {})
    # In the order of the phases, because h5ad files do not keep the order of a dict.
    marked = [phase for phase in (phases.names if phases is not None else ()) if phase in markers]
    stored = read_traversals(adata).get(name)
    if stored is not None and stored.get("model") not in (None, writer_of(adata, "obs", f"{name}_angle")):
        stored = None  # of another model than the angles
    return _PeriodicCells(
        name.replace("_", " "),
        angle_c,
        active_c,
        phase_c,
        phases,
        {phase: [str(gene) for gene in markers[phase]] for phase in marked},
        record.get("gene_symbols"),
        StoredTraversal(name, stored) if stored is not None and stored["kind"] == "periodic" else None,
    )


def _title(cells: _PeriodicCells) -> str:
    """Return the title of the figure."""
    counts = f"{int(cells.active_c.sum()):,} of {len(cells.active_c):,} cells"
    state = "are active" if cells.phases is None else "are assigned to a phase"
    return f"{cells.label[:1].upper()}{cells.label[1:]}: {counts} {state}"


# --- Selection of genes -----------------------------------------------------------------------------------------------


def _select_genes(cells: _PeriodicCells, counts: ObservedCounts) -> list[int]:
    """Return the columns of the genes to plot: for each phase the markers that change most with the angle."""
    column_of = {str(name): column for column, name in enumerate(counts.names_f)}
    candidates = [[column_of[gene] for gene in genes if gene in column_of] for genes in cells.markers.values()]
    candidates = [columns for columns in candidates if columns]
    if not candidates:
        if cells.traversal is None:
            return []
        ranked = cells.traversal.modalities[0].column_f[:N_GENES]
        column_of = {name: column for column, name in enumerate(counts.var_names)}
        candidates = [[column_of[gene] for gene in cells.traversal.feature_names[ranked] if gene in column_of]]
    n_each = -(-N_GENES // len(candidates))
    if len(candidates) > N_GENES // 2:
        n_each = 2
    selected: list[int] = []
    for columns in candidates:
        explained = [_variance_explained(cells, counts.normalized(column)) for column in columns]
        order = np.argsort(-np.array(explained), kind="stable")
        selected += [columns[index] for index in order if columns[index] not in selected][:n_each]
    return selected


def _variance_explained(cells: _PeriodicCells, value_c: np.ndarray) -> float:
    """Return the share of the variance of log expression that a sine of the angle explains in active cells."""
    known_c = np.flatnonzero(cells.active_c & np.isfinite(value_c))
    known_c = known_c[:: max(1, len(known_c) // MAX_CELLS_FOR_RANKING)]
    if len(known_c) < 4:
        return 0.0
    log_c = np.log1p(value_c[known_c])
    angle_c = cells.angle_c[known_c]
    design = np.column_stack([np.ones(len(angle_c)), np.cos(angle_c), np.sin(angle_c)])
    fitted = design @ np.linalg.lstsq(design, log_c, rcond=None)[0]
    return float(fitted.var() / max(log_c.var(), 1e-12))


# --- The circle -------------------------------------------------------------------------------------------------------


def _draw_circle(figure: SubFigure, cells: _PeriodicCells, adata: AnnData, color: str | None) -> Axes:
    """Draw the cells, their density and the phases."""
    panel: Any = figure.add_subplot(projection="polar")
    panel.set_theta_zero_location("N")
    panel.set_theta_direction(-1)
    panel.set_rlim(0, MAX_LABEL_RADIUS + 0.12)
    panel.set_axis_off()
    angle_c, radius_c = _cell_positions(cells)
    size = float(np.clip(8000 / max(len(angle_c), 1), 0.8, 14))
    style = {"s": size, "alpha": 0.8}
    if color is not None:
        scatter_cells(figure, panel, angle_c, radius_c, adata, color, "bottom", **style)
    else:
        style |= {"linewidths": 0, "rasterized": True}
        active_c = cells.active_c
        panel.scatter(angle_c[~active_c], radius_c[~active_c], color="0.6", **style)
        if cells.phases is None:
            panel.scatter(angle_c[active_c], radius_c[active_c], color="0.35", **style)
        else:
            color_c = np.array(cells.phases.colors, dtype=object)[cells.phases.index_of(angle_c[active_c])]
            panel.scatter(angle_c[active_c], radius_c[active_c], c=list(color_c), **style)
    outline = _draw_density(panel, cells)
    _label_phases(panel, cells, outline)
    start = "" if cells.phases is None else f" (start of {cells.phases.names[0]})"
    caption = panel.set_title(
        f"Angle 0{start} is at the top; angles increase clockwise. Each dot is a cell;\n"
        "the outline is their density. Percentages are of all cells.",
        fontsize="small",
    )
    shrink_text(caption, 0.94 * figure.bbox.width)
    return panel


def _cell_positions(cells: _PeriodicCells) -> tuple[np.ndarray, np.ndarray]:
    """Return angle and radius at which cells are drawn: active cells in the ring, the others in the middle."""
    rng = np.random.default_rng(0)
    n_cells = len(cells.angle_c)
    # Uniform over the area of the ring.
    radius_c = np.sqrt(rng.uniform(CELL_RADII[0] ** 2, CELL_RADII[1] ** 2, n_cells))
    angle_c = np.where(cells.active_c, cells.angle_c, 0)
    # Inactive cells fill the middle like the seeds of a sunflower, as densely as the cells of the ring if they fit.
    inactive = np.flatnonzero(~cells.active_c)
    ring_area = CELL_RADII[1] ** 2 - CELL_RADII[0] ** 2
    max_radius = min(INACTIVE_RADIUS, np.sqrt(ring_area * len(inactive) / max(n_cells - len(inactive), 1)) + 0.05)
    position_c = rng.permutation(len(inactive))
    radius_c[inactive] = max_radius * np.sqrt((position_c + 0.5) / max(len(inactive), 1))
    angle_c[inactive] = position_c * GOLDEN_ANGLE
    return angle_c, radius_c


def _draw_density(panel: Any, cells: _PeriodicCells) -> np.ndarray:
    """Draw the ring of phases and, around it, the density of the active cells; return the radius of the outline."""
    grid = np.linspace(0, TWO_PI, 361)
    outline = np.full(len(grid), DENSITY_RADII[0])
    if cells.active_c.any():
        density = _density(cells.angle_c[cells.active_c])
        density = np.append(density, density[0])
        outline = DENSITY_RADII[0] + (DENSITY_RADII[1] - DENSITY_RADII[0]) * density / density.max()
    if cells.phases is None:
        panel.fill_between(grid, DENSITY_RADII[0], outline, color="0.8", lw=0)
        angles = (grid[None, :-1] + grid[None, 1:]) / 2
        panel.pcolormesh(grid, PHASE_RADII, angles, cmap=CYCLIC_COLORMAP, vmin=0, vmax=TWO_PI, rasterized=True)
    else:
        for k, low, high in cells.phases.intervals():
            color = cells.phases.colors[k]
            theta = np.concatenate([[low], grid[(grid > low) & (grid < high)], [high]])
            panel.fill_between(theta, DENSITY_RADII[0], np.interp(theta, grid, outline), color=color, alpha=0.45, lw=0)
            panel.fill_between(theta, *PHASE_RADII, color=color, lw=0)
    panel.plot(grid, outline, color="0.2", lw=1, label="density")
    return outline


def _density(angle_c: np.ndarray) -> np.ndarray:
    """Return a kernel density estimate at each degree; the kernel is narrower if there are more cells."""
    count_b, _ = np.histogram(angle_c % TWO_PI, bins=360, range=(0, TWO_PI))
    # A bin is drawn at its lower edge, half a degree off, which is less than the width of the line.
    width = np.degrees(np.clip(0.3 * (len(angle_c) / 200) ** -0.2, 0.12, 0.6))
    frequency = np.arange(181)
    kernel = np.exp(-0.5 * (np.radians(width) * frequency) ** 2)
    density_b: np.ndarray = np.fft.irfft(np.fft.rfft(count_b) * kernel, 360)
    return np.maximum(density_b, 0)


def _label_phases(panel: Any, cells: _PeriodicCells, outline: np.ndarray) -> None:
    """Write the angles, and the name and share of each phase and of the cells without one."""
    from matplotlib.patheffects import withStroke

    n_cells = max(len(cells.angle_c), 1)
    for angle, label in zip(ANGLE_TICKS[:4], ANGLE_LABELS[:4], strict=True):
        panel.text(angle, TICK_RADIUS, label, ha="center", va="center", fontsize="x-small", color="0.35")
    if cells.phases is not None and cells.phase_c is not None:
        for phase, angle in zip(cells.phases.names, cells.phases.middle_k, strict=True):
            share = float((cells.active_c & (cells.phase_c == phase)).sum() / n_cells)
            radius = min(MAX_LABEL_RADIUS, np.interp(angle, np.linspace(0, TWO_PI, len(outline)), outline) + 0.23)
            panel.text(angle, radius, f"{phase}\n{format_percent(share)}", ha="center", va="center", fontweight="bold")
    halo = [withStroke(linewidth=3, foreground="white")]
    share = float((~cells.active_c).sum() / n_cells)
    label = f"{'inactive' if cells.phases is None else 'no phase'}\n{format_percent(share)}"
    panel.text(0, 0, label, ha="center", va="center", fontsize="small", path_effects=halo)


# --- The genes --------------------------------------------------------------------------------------------------------


def _draw_genes(
    figure: SubFigure,
    cells: _PeriodicCells,
    counts: ObservedCounts,
    values: Mapping[int, np.ndarray],
    n_columns: int,
) -> dict[str, Axes]:
    """Draw one panel for each gene: observed means in bins of angles, and the expectation of the model."""
    grid = figure.subplots(-(-len(values) // n_columns), n_columns, sharex=True, squeeze=False).flat
    n_bins = int(np.clip(cells.active_c.sum() // 12, 6, 24))
    edges = np.linspace(0, TWO_PI, n_bins + 1)
    units = {counts.axis_label(column) for column in values}
    phase_of = {gene: phase for phase, genes in cells.markers.items() for gene in genes}
    panels: dict[str, Axes] = {}
    handles: dict[str, Any] = {}
    for panel, (column, value_c) in zip(grid, values.items(), strict=False):
        gene = str(counts.names_f[column])
        handles |= _draw_gene(panel, cells, _bin_means(cells, value_c, edges), _expected_curve(cells, counts, column))
        phase = f" ({phase_of[gene]})" if gene in phase_of else ""
        panel.set_title(f"{gene}{phase}", fontsize="medium", fontstyle="italic")
        if len(units) > 1:
            panel.set_ylabel(counts.axis_label(column), fontsize="small")
        despine(panel)
        format_angle_axis(panel, cells.phases)
        panels[gene] = panel
    for panel in grid[len(values) :]:
        panel.set_axis_off()
    for panel in list(panels.values())[-n_columns:]:
        panel.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(f"{cells.label} angle (rad)", fontsize="medium")
    if len(units) == 1:
        figure.supylabel(units.pop(), fontsize="medium")
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", frameon=False, fontsize="small", ncols=1
    )
    return panels


def _draw_gene(
    panel: Axes,
    cells: _PeriodicCells,
    observed: tuple[np.ndarray, np.ndarray, np.ndarray],
    expected: tuple[np.ndarray, ...] | None,
) -> dict[str, Any]:
    """Draw observed means with standard errors, and the expected curve with its interval; return legend handles."""
    middle, mean, error = observed
    points = panel.errorbar(middle, mean, error, color=BLACK, ls="", marker="o", ms=3, lw=1, zorder=3)
    handles: dict[str, Any] = {"observed mean per bin ± standard error": points}
    highest = np.nanmax(mean + error, initial=0)
    if expected is not None and cells.traversal is not None:
        position_s, mean_s, lower_s, upper_s = expected
        band = panel.fill_between(position_s, lower_s, upper_s, color=BLUE, alpha=0.25, lw=0)
        (line,) = panel.plot(position_s, mean_s, color=BLUE, lw=2)
        handles[f"expected by the model, with {cells.traversal.interval} credible interval"] = (band, line)
        highest = max(highest, float(np.max(upper_s)))
    panel.set_ylim(0, (highest or 1.0) * 1.22)
    return handles


def _bin_means(
    cells: _PeriodicCells, value_c: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return middle, mean and standard error of each bin of active cells; bins of fewer than three are left out."""
    known_c = cells.active_c & np.isfinite(value_c)
    bin_c = np.clip(np.digitize(cells.angle_c[known_c] % TWO_PI, edges) - 1, 0, len(edges) - 2)
    value_c = value_c[known_c]
    groups = [(b, value_c[bin_c == b]) for b in range(len(edges) - 1)]
    filled = [(b, values) for b, values in groups if len(values) >= 3]
    middle = np.array([(edges[b] + edges[b + 1]) / 2 for b, _ in filled])
    mean = np.array([values.mean() for _, values in filled])
    error = np.array([values.std(ddof=1) / len(values) ** 0.5 for _, values in filled])
    return middle, mean, error


def _expected_curve(cells: _PeriodicCells, counts: ObservedCounts, column: int) -> tuple[np.ndarray, ...] | None:
    """Return position, mean, lower and upper end of a gene's stored curve, in the unit of the observed values."""
    traversal, modality = cells.traversal, counts.modality_f[column]
    if traversal is None:
        return None
    found = np.flatnonzero((traversal.feature_names == counts.var_names[column]) & (traversal.modality_f == modality))
    if len(found) == 0:
        return None
    is_probability = traversal.units.get(modality, COUNTS) == PROBABILITY
    scale = 1.0 if is_probability else 1e4 / float(traversal.stored["library_size"][modality])
    curves = (traversal.stored[name][:, found[0]] * scale for name in ("mean", "lower", "upper"))
    return traversal.position_s, *curves

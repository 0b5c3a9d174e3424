"""A path through latent space as a page for the browser, with a slider to turn it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.io.atomic import atomic_write
from celldial.pl._figure import BLACK, ORANGE, TURN, minus, percent, shorten
from celldial.pl._projection import CellMap, Near, count_neighbors, find_map, find_near, project
from celldial.pl._scatter import MISSING, MOST_IN_LEGEND, colors_of, is_number
from celldial.pl._traversal import Part, Traversal, find_features, plural, read_traversal
from celldial.utils.messages import get_column

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["dial"]

LARGEST_PAGE = 5_000_000  # bytes
SURE = 0.05  # as in `axis_features`
LARGEST_LOG2 = 30.0  # as in `latent_traverse`
LONGEST_NAME, LONGEST_END = 40, 30
N_COLORS = 256
MOST_RINGED = 100
# Where the step explains less of where its cells are, a path on the map is mostly noise.
MIN_TOLD = 0.25


def dial(
    adata: AnnData,
    name: str | None = None,
    basis: str = "X_umap",
    color: str | None = None,
    *,
    path: str | os.PathLike[str],
    features: Sequence[str] | str | None = None,
    n_features: int = 10,
    n_neighbors: int | None = None,
    max_cells: int = 20_000,
) -> Path:
    """Write a page with a slider that turns a traversal, as `celldial.VAE.latent_traverse` computed it.

    The page is one file that any browser opens, without a network and without Python: to try it, to send it to
    somebody, to keep it beside a paper. On the left, a map of the cells with the path, and a marker where the slider
    is; on the right, for genes, peaks and proteins, what the model expects there, with the interval of that. The
    slider goes with the mouse, a finger or the keys; at the end of a circle it goes on at the start.

    Parameters
    ----------
    adata
        Cells with a traversal, in ``adata.uns["latent_traverse"]``, with their latent states, and with a map.
    name
        Which traversal; by default the last one that was stored.
    basis
        The map: a matrix in ``obsm``, of which the first two columns are drawn. For a periodic axis also ``"circle"``,
        a clock on which cells stand at their angle, the farther out the surer that is. It shows what a map of
        ``X_celldial`` cannot: that embedding is free of the circle.
    color
        Column of ``obs`` to color the cells by; by default they are gray.
    path
        The file to write, such as ``"dial.html"``. What is there is replaced, once the page is complete.
    features
        Genes, peaks or proteins to show, in this order; by default the `n_features` of the best rank of each modality,
        in the order in which they peak along the path.
    n_features
        Number of features of each modality where `features` is not given.
    n_neighbors
        How many cells each step is drawn at the mean of, as in `celldial.pl.traverse_path`.
    max_cells
        How many cells are drawn at most. Of more, so many are chosen at random, always the same ones, and the page
        says so. The path is that of all cells.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    KeyError
        There is no such traversal, map, column or feature, or there are no latent states.
    ValueError
        A number is less than 1, a feature is named twice, the latent states are of another model than the path, or
        the page would be larger than 5 MB.
    FileNotFoundError, IsADirectoryError
        `path` is in a folder that is not there, or is a folder.

    Notes
    -----
    The page shows the steps that are stored, and nothing between them: `n_steps` of `celldial.VAE.latent_traverse` says
    how many there are. Each bar has a scale of its own, from 0 to the highest upper end of the interval.

    ``obsm["X_celldial"]`` is free of a periodic axis, and so is a map made of it: cells of all angles lie mixed there.
    The page says so. A map of ``model.transform(adata, include_periodic=True)`` may show the circle.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)

    Here on the first two latent coordinates, which need no ``sc.tl.umap(adata)``:

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     page = cd.pl.dial(adata, "axis_0", "X_celldial", color="bulk_labels", path=f"{folder}/dial.html")
    ...     page.name, page.stat().st_size < 200_000
    ('dial.html', True)
    """
    if n_features < 1 or max_cells < 1:
        raise ValueError(f"n_features={n_features}, max_cells={max_cells}: at least 1 is needed of each")
    n_neighbors = count_neighbors(adata, n_neighbors)
    target = _target(path)
    traversal = read_traversal(adata, name)
    groups = _choose(traversal, features, n_features)
    cell_map = find_map(adata, basis, traversal)
    near_s = find_near(adata, traversal, cell_map.place_c2, n_neighbors)
    payload = {
        **_positions(traversal),
        **_features(traversal, groups),
        "map": _map(adata, traversal, cell_map, near_s, color, max_cells),
        "notes": _notes(traversal, groups, features is None, None if cell_map.is_circle else n_neighbors),
    }
    page = _page(_title(traversal), payload)
    if len(page) > LARGEST_PAGE:
        n_shown = sum(len(column_f) for _, column_f in groups)
        raise ValueError(
            f"the page would have {len(page) / 1e6:.1f} MB, more than 5 MB, with {plural('feature', n_shown)}, "
            f"{plural('step', len(near_s))} and {plural('cell', min(adata.n_obs, max_cells))}: ask for fewer"
        )
    with atomic_write(target) as meanwhile:
        meanwhile.write_bytes(page)
    return target


def _target(path: str | os.PathLike[str]) -> Path:
    """Check where the page is to go, before there is any work."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path is {str(target)!r}, which is a folder: name a file in it, such as 'dial.html'")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"path is {str(target)!r}, but there is no folder {str(target.parent)!r}: make it first"
        )
    return target


def _title(traversal: Traversal) -> str:
    """Say what is turned, as the title of `latent_traverse` does."""
    along = {"periodic": "along the ", "direction": "along the axis ", "path": ""}.get(traversal.kind, "along ")
    return f"What changes {along}{traversal.axis}"


# --- The slider -------------------------------------------------------------------------------------------------------


def _positions(traversal: Traversal) -> dict[str, Any]:
    """Say where each step is, in words, and how the slider is labelled."""
    position_s, phases = traversal.position_s, traversal.phases
    if traversal.periodic:
        label = traversal.position_label.removesuffix(" (rad)")
        positions = [f"{position:.2f} rad" for position in position_s]
        ticks = [[k / 4, text] for k, text in enumerate(("0", "π/2", "π", "3π/2", "2π"))]
    else:
        label = traversal.position_label
        is_path = traversal.kind == "path"
        positions = [f"{position:.0%} of the way" if is_path else minus(f"{position:.2f}") for position in position_s]
        first, last = positions[0], positions[-1]
        start, end = traversal.ends if is_path else (f"start: {first}", f"end: {last}")
        ticks = [[0, shorten(start, LONGEST_END)], [1, shorten(end, LONGEST_END)]]
    about: dict[str, Any] = {"label": label, "positions": positions, "ticks": ticks, "periodic": traversal.periodic}
    about["phases"] = None
    if phases is not None:
        about["phases"] = {
            "names": phases.names,
            "colors": phases.colors,
            "ofStep": phases.of(position_s).tolist(),
            "pieces": [[k, low / TURN, high / TURN] for k, low, high in phases.pieces()],
        }
    return about


# --- The features -----------------------------------------------------------------------------------------------------


def _choose(
    traversal: Traversal, features: Sequence[str] | str | None, n_features: int
) -> list[tuple[Part, np.ndarray]]:
    """Choose the features of each modality, as columns, in the order in which they are shown."""
    if features is None:
        return [(part, _by_peak(traversal, part.column_f[:n_features])) for part in traversal.parts]
    chosen = np.array(
        find_features(traversal.feature_names, features, "features", f"the traversal {traversal.name!r} has")
    )
    groups = [(part, chosen[traversal.modality_f[chosen] == part.modality]) for part in traversal.parts]
    return [(part, column_f) for part, column_f in groups if len(column_f)]


def _by_peak(traversal: Traversal, column_f: np.ndarray) -> np.ndarray:
    """Put features in the order in which they peak, so that what is high moves down the rows as the slider moves."""
    log2_sf = _log2_fold_change(traversal, column_f)
    # Many peak at either end: of those, the ones come first whose values have their center further to the left.
    above_sf = log2_sf - log2_sf.min(0)
    center_f = np.arange(len(log2_sf)) @ above_sf / np.maximum(above_sf.sum(0), 1e-9)
    return column_f[np.lexsort([center_f, traversal["peak_step"][column_f]])]


def _log2_fold_change(traversal: Traversal, column_f: np.ndarray) -> np.ndarray:
    """Give the log2 of the means against the first step; a mean that is 0 in single precision has no logarithm."""
    log2_sf = traversal["log2_fold_change"][:, column_f]
    log2_sf = np.nan_to_num(log2_sf, nan=0, posinf=LARGEST_LOG2, neginf=-LARGEST_LOG2)
    return np.clip(log2_sf, -LARGEST_LOG2, LARGEST_LOG2)


def _features(traversal: Traversal, groups: Sequence[tuple[Part, np.ndarray]]) -> dict[str, Any]:
    """Give the values at each step, steps × features, and what there is to say of each feature."""
    column_f = np.concatenate([column_f for _, column_f in groups])
    mean_sf, change_sf = traversal["mean"][:, column_f], _log2_fold_change(traversal, column_f)
    reference_f = mean_sf[0]
    if traversal.periodic:
        # No step of a circle is its start. The last one is the first one again, and counts once.
        average_f = change_sf[:-1].mean(0)
        change_sf, reference_f = change_sf - average_f, reference_f * 2**average_f
    reference = dict(zip(column_f.tolist(), reference_f.tolist(), strict=True))
    modalities = []
    for part, of_part_f in groups:
        noun = f"{part.noun[:1].upper()}{part.noun[1:]}"
        modalities.append(
            {
                "title": f"{noun}s",
                "noun": noun,
                "unit": f"expected {part.unit}" if part.unit.startswith("counts") else part.unit,
                "color": part.color,
                "italic": part.style == "italic",
                "features": [
                    {
                        "name": str(traversal.feature_names[column]),
                        "lfsr": _rate(float(traversal["lfsr"][column])),
                        "sure": bool(traversal["lfsr"][column] < SURE),
                        "reference": reference[int(column)],
                    }
                    for column in of_part_f
                ],
            }
        )
    against = "average" if traversal.periodic else "start"
    return {
        "modalities": modalities,
        "reference": {
            "heading": f"log2 vs {against}",
            "along": "once around" if traversal.periodic else "start to end",
        },
        "interval": f"{float(traversal.stored['interval']):.0%}",
        "mean": _packed(mean_sf, "<f4"),
        "lower": _packed(traversal["lower"][:, column_f], "<f4"),
        "upper": _packed(traversal["upper"][:, column_f], "<f4"),
        "change": _packed(change_sf, "<f4"),
    }


def _rate(lfsr: float) -> str:
    """Write a local false sign rate."""
    return "<0.001" if lfsr < 0.001 else f"{lfsr:.3f}" if lfsr < 0.01 else f"{lfsr:.2f}"


# --- The map ----------------------------------------------------------------------------------------------------------


def _map(
    adata: AnnData,
    traversal: Traversal,
    cell_map: CellMap,
    near_s: list[Near],
    color: str | None,
    max_cells: int,
) -> dict[str, Any]:
    """Describe the map: cells, what their colors mean, and the path. Places are shares of its width and height."""
    rng = np.random.default_rng(0)
    map_c2 = cell_map.place_c2
    placed = np.flatnonzero(np.isfinite(map_c2).all(1))
    # In a random order, so that no category hides another.
    shown = rng.permutation(placed)[:max_cells]
    palette, code_c, legend = _colored(adata, color)
    shown = shown[np.argsort(code_c[shown] > 0, kind="stable")]  # cells without a value are below the others
    path_s2 = project(traversal, near_s, cell_map)
    # On the circle itself the path is around all cells.
    corners_k2 = np.array([[-1, -1], [1, 1]]) if cell_map.is_circle else map_c2[placed]
    low_2 = corners_k2.min(0)
    size_2 = np.maximum(corners_k2.max(0) - low_2, 1e-9)
    x_c, y_c = np.round((map_c2[shown] - low_2) / size_2 * 65535).T

    index_c = np.full(adata.n_obs, -1)
    index_c[shown] = np.arange(len(shown))
    near_shown_s = [index_c[near.cell_k] for near in near_s]
    told = 1.0 if cell_map.is_circle else _told(near_s, path_s2, map_c2)
    captions = []
    if len(shown) < len(placed):
        captions.append(f"{len(shown):,} of {plural('cell', len(placed))} are drawn, chosen at random.")
    if len(placed) < adata.n_obs:
        captions.append(f"Left out, without a place on this map: {plural('cell', adata.n_obs - len(placed))}.")
    ringed = f"Ringed: cells whose {_what(traversal)} are nearest to the step"
    if cell_map.is_circle:
        captions.append(f"A clock: cells stand at their angle, the farther out the surer that is. {ringed}.")
    else:
        captions.append(f"{ringed}; the marker is at their mean.")
    if told < MIN_TOLD:
        captions.append(
            "This map hardly tells the path: cells near different steps lie mixed, and the step explains "
            f"{percent(told)} of where its cells are. Go by the bars."
        )
    phases = traversal.phases
    phase_s = None if phases is None else phases.of(traversal.position_s)
    marker_colors = [ORANGE] * len(path_s2)
    line_colors = [BLACK] * (len(path_s2) - 1)
    if phases is not None and phase_s is not None:
        marker_colors = [phases.colors[k] for k in phase_s]
        if color is None:  # else the phases would be taken for categories
            line_colors = marker_colors[:-1]
    start, end = _ends(traversal)
    way = f"once around the {traversal.axis}" if traversal.periodic else f"from {start} to {end}"
    return {
        "label": cell_map.label,
        "isCircle": cell_map.is_circle,
        "title": "Cells on the circle" if cell_map.is_circle else f"Where the path runs on the map ({cell_map.label})",
        "description": (
            f"Map of {plural('cell', len(shown))} ({cell_map.label})"
            f"{'' if color is None else f', colored by {color}'}, with the path {way} in "
            f"{plural('step', len(path_s2))}, and a marker at the step that the slider is at."
        ),
        "x": _packed(x_c, "<u2"),
        "y": _packed(y_c, "<u2"),
        "color": None if color is None else _packed(code_c[shown], "<u2"),
        "palette": palette,
        "legend": legend,
        "caption": " ".join(captions),
        "near": [near_k[near_k >= 0][:MOST_RINGED].tolist() for near_k in near_shown_s],
        "mixed": told < MIN_TOLD,
        "path": np.round((path_s2 - low_2) / size_2, 5).tolist(),
        # Where the path is mostly noise, names of phases along it would mislead.
        "labels": [] if traversal.periodic and told < MIN_TOLD else _labels(traversal),
        "lineColors": line_colors,
        "markerColors": marker_colors,
    }


def _what(traversal: Traversal) -> str:
    """Say by what cells are near a step."""
    return "angles" if traversal.periodic else "latent states"


def _told(near_s: list[Near], path_s2: np.ndarray, map_c2: np.ndarray) -> float:
    """Work out which share of the variance of places on the map the step explains, over the cells near the steps."""
    within = np.mean(
        [
            near.weight_k @ ((map_c2[near.cell_k] - place_2) ** 2).sum(1)
            for near, place_2 in zip(near_s, path_s2, strict=True)
        ]
    )
    between = path_s2.var(0).sum()
    return float(between / max(between + within, 1e-12))


def _ends(traversal: Traversal) -> tuple[str, str]:
    """Name where the path starts and ends."""
    if traversal.kind == "path":
        return traversal.ends
    first, last = (minus(f"{position:.2g}") for position in traversal.position_s[[0, -1]])
    return f"start ({first})", f"end ({last})"


def _labels(traversal: Traversal) -> list[dict[str, Any]]:
    """Say what is written beside which step."""
    if not traversal.periodic:
        start, end = (shorten(end, LONGEST_END) for end in _ends(traversal))
        return [
            {"step": 0, "text": start, "mark": True},
            {"step": len(traversal.position_s) - 1, "text": end, "mark": True},
        ]
    labels: list[dict[str, Any]] = [{"step": 0, "text": "angle 0", "mark": True}]
    if traversal.phases is not None:
        for name, angle in zip(traversal.phases.names, traversal.phases.middle_k, strict=True):
            step = int(np.abs(traversal.position_s - angle).argmin())
            labels.append({"step": step, "text": shorten(name, LONGEST_END), "mark": False})
    return labels


def _colored(adata: AnnData, color: str | None) -> tuple[list[str], np.ndarray, dict[str, Any] | None]:
    """Choose colors: a palette, the place of each cell in it (0 for cells without a value), and the legend."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    missing = to_hex(MISSING)
    if color is None:
        return [missing], np.zeros(adata.n_obs, dtype=int), None
    column_c = get_column(adata.obs, color, "color")
    if is_number(column_c):
        value_c = column_c.to_numpy(dtype=float, na_value=np.nan)
        known_c = np.isfinite(value_c)
        low, high = (value_c[known_c].min(), value_c[known_c].max()) if known_c.any() else (0.0, 0.0)
        share_c = np.where(known_c, value_c - low, 0) / ((high - low) or 1)
        code_c = np.where(known_c, 1 + np.round(share_c * (N_COLORS - 1)), 0).astype(int)
        palette = [missing, *(to_hex(colormaps["viridis"](k / (N_COLORS - 1))) for k in range(N_COLORS))]
        ends = {"low": _rounded(low), "high": _rounded(high)}
        return palette, code_c, {"title": color, **ends}
    category_c = column_c.astype("category").cat.remove_unused_categories()
    names = list(category_c.cat.categories)
    shades = [to_hex(shade) for shade in colors_of(adata, color, names)]
    palette = [missing, *dict.fromkeys(shades)]
    place = {shade: index for index, shade in enumerate(palette) if index}
    code_k = np.array([0, *(place[shade] for shade in shades)])
    code_c = category_c.cat.codes.to_numpy().astype(int) + 1
    entries = [
        [shorten(str(name), LONGEST_NAME), shade] for name, shade in zip(names[:MOST_IN_LEGEND], shades, strict=False)
    ]
    if (code_c == 0).any():
        entries.append(["no value", missing])
    n_more = len(names) - MOST_IN_LEGEND
    more = f"and {n_more:,} more" if n_more > 0 else ""
    return palette, code_k[code_c], {"title": color, "entries": entries, "more": more}


def _rounded(value: float) -> str:
    """Write a number with three digits, or all of its whole ones."""
    return minus(f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}")


# --- The text ---------------------------------------------------------------------------------------------------------


def _notes(
    traversal: Traversal, groups: Sequence[tuple[Part, np.ndarray]], by_rank: bool, n_neighbors: int | None
) -> list[list[str]]:
    """Say what is seen, and what is not; without `n_neighbors` the map is the circle."""
    interval = f"{float(traversal.stored['interval']):.0%}"
    covariates = ", ".join(f"{key}: {value}" for key, value in traversal.stored.get("covariates", {}).items())
    as_if = f" They are decoded as if all had {covariates}." if covariates else ""
    if traversal.periodic:
        against = "the average around the circle (of the logarithms)"
    else:
        against = "the start of the path"
    order = "in the order in which they peak along the path"
    rows = f"The features of each modality that most surely change much, {order}." if by_rank else "Features by name."
    too_sure = " It is too sure around a circle: mind features that change twofold." if traversal.periodic else ""
    if n_neighbors is None:
        map_is = "A clock. Cells in the middle are taken to be at rest, or their angle is not known."
    else:
        map_is = (
            f"A projection: each step (black dot) is drawn at the mean of the {plural('cell', n_neighbors)} whose "
            f"{_what(traversal)} are nearest to it. Lengths and bends are not those of the path in latent space."
        )
    return [
        [
            "Bar",
            f"What the model expects at this step: the mean over the cells that are moved ({traversal.stored['at']})."
            f"{as_if} Each bar has a scale of its own, from 0 to the highest upper end of its interval along the path; "
            f"the dotted line is {against}.",
        ],
        [
            f"Whisker: {interval} interval",
            f"Within it, with {interval} probability, is the mean over all cells that are meant. It is not how much "
            "cells differ from each other, which is more, and it knows nothing of other donors.",
        ],
        ["log2", f"Change against {against}: +1 is twice as much, \N{MINUS SIGN}1 half as much."],
        [
            "lfsr",
            "Local false sign rate: the probability that the change along the path goes the other way. Where it is "
            f"{SURE:.0%} or more, the bar is hollow.{too_sure}",
        ],
        ["Rows", rows],
        ["Map", map_is],
        [
            "What it is not",
            "Cells are moved in a model of what is seen together, not in a dish: what changes along the path need not "
            "be changed by it.",
        ],
    ]


# --- The page ---------------------------------------------------------------------------------------------------------


def _packed(values: np.ndarray, kind: str) -> str:
    """Write numbers as text: base64 of their bytes, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")


def _page(title: str, payload: dict[str, Any]) -> bytes:
    """Fill the template in."""
    folder = files("celldial.pl")
    template, style, script = (
        folder.joinpath(f"dial.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    # No name in the data can end the element that it is in, whatever its letters.
    data = json.dumps(payload, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "payload": data,
    }
    # In one go: braces in the data are left alone.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    return page.encode("utf-8", errors="replace")


def _hash(text: str) -> str:
    """Name a script or style as the page's policy does, which runs no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

"""The HTML page with a slider that moves along a path through latent space."""

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
from celldial.pl._dial_data import feature_data, select_features, slider_data
from celldial.pl._dial_map import map_data
from celldial.pl._projection import find_cell_map, find_nearest_cells, resolve_n_neighbors
from celldial.pl._text import format_count
from celldial.pl._traversal import LFSR_CUTOFF, ModalityFeatures, StoredTraversal, read_traversal

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["dial"]

MAX_PAGE_BYTES = 5_000_000


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
    """Write an HTML page with a slider that moves along a traversal by `celldial.VAE.latent_traverse`.

    The page is a single file that any browser opens, without network access and without Python, so it can be shared or
    published with a paper. On the left is a map of the cells with the path, and a marker at the current step. On the
    right are bars of the genes, peaks and proteins: their expected values at this step, with credible intervals. The
    slider moves by mouse, touch or keyboard. For a periodic coordinate, it continues at the start after the end.

    Parameters
    ----------
    adata
        Cells with a traversal in ``adata.uns["latent_traverse"]``, with their latent states and with a map.
    name
        Name of the traversal. By default the last one that was stored.
    basis
        The map: a matrix in ``obsm``, whose first two columns are drawn. For a periodic coordinate also ``"circle"``,
        which places cells at their angle, farther from the center if the angle is more certain. A map of ``X_celldial``
        cannot show the angle, because that embedding does not include the periodic coordinate.
    color
        Column of ``obs`` that colors the cells. By default they are gray.
    path
        The file to write, such as ``"dial.html"``. An existing file is replaced once the new page is complete.
    features
        Genes, peaks or proteins to show, in this order. By default the `n_features` top-ranked features of each
        modality, in the order in which they peak along the path.
    n_features
        Number of features of each modality if `features` is not given.
    n_neighbors
        Number of nearest cells. Each step is drawn at their weighted mean position, as in `celldial.pl.traverse_path`.
    max_cells
        Maximum number of cells to draw. From larger data, a random subset is drawn, always the same one, and the page
        states this. The path is computed from all cells.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    KeyError
        If there is no such traversal, map, column or feature, or if there are no latent states.
    ValueError
        If a number is less than 1, if a feature is repeated, if latent states and path come from different models, or
        if the page would be larger than 5 MB.
    FileNotFoundError
        If the folder of `path` does not exist.
    IsADirectoryError
        If `path` is a folder.

    Notes
    -----
    The page shows the stored steps only, without interpolation; `n_steps` of `celldial.VAE.latent_traverse` sets their
    number. Each bar has its own scale, from 0 to the highest upper end of its interval.

    ``obsm["X_celldial"]`` does not include the periodic coordinate, so cells of all angles are mixed on a map computed
    from it. The page states this, too. A map of ``model.transform(adata, include_periodic=True)`` can show the circle.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> traversal = model.latent_traverse(adata, axis=0)

    The first two latent coordinates are a map, too, and need no ``sc.tl.umap(adata)``:

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     page = cd.pl.dial(adata, "axis_0", "X_celldial", color="bulk_labels", path=f"{folder}/dial.html")
    ...     page.name, page.stat().st_size < 200_000
    ('dial.html', True)
    """
    if n_features < 1 or max_cells < 1:
        raise ValueError(f"n_features={n_features}, max_cells={max_cells}: both must be at least 1")
    n_neighbors = resolve_n_neighbors(adata, n_neighbors)
    target = _check_target(path)
    traversal = read_traversal(adata, name)
    groups = select_features(traversal, features, n_features)
    cell_map = find_cell_map(adata, basis, traversal)
    nearest_s = find_nearest_cells(adata, traversal, cell_map.xy_c2, n_neighbors)
    payload = {
        **slider_data(traversal),
        **feature_data(traversal, groups),
        "map": map_data(adata, traversal, cell_map, nearest_s, color, max_cells),
        "notes": _notes(traversal, features is None, None if cell_map.is_circle else n_neighbors),
    }
    page = _render_page(traversal.title, payload)
    if len(page) > MAX_PAGE_BYTES:
        raise ValueError(_size_message(len(page), groups, len(nearest_s), min(adata.n_obs, max_cells)))
    with atomic_write(target) as temporary:
        temporary.write_bytes(page)
    return target


def _check_target(path: str | os.PathLike[str]) -> Path:
    """Return the path of the page, or raise if it cannot be written, before any work is done."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path is {str(target)!r}, which is a folder: pass a file in it, such as 'dial.html'")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path is {str(target)!r}, but the folder {str(target.parent)!r} does not exist")
    return target


def _size_message(
    n_bytes: int, groups: Sequence[tuple[ModalityFeatures, np.ndarray]], n_steps: int, n_cells: int
) -> str:
    """Return the error message about a page that is too large."""
    n_features = sum(len(column_f) for _, column_f in groups)
    return (
        f"the page would be {n_bytes / 1e6:.1f} MB, more than 5 MB, with {format_count('feature', n_features)}, "
        f"{format_count('step', n_steps)} and {format_count('cell', n_cells)}: reduce these numbers"
    )


def _notes(traversal: StoredTraversal, by_rank: bool, n_neighbors: int | None) -> list[list[str]]:
    """Return the terms and explanations at the bottom of the page; `n_neighbors` is None if the map is the circle."""
    covariates = ", ".join(f"{key}: {value}" for key, value in traversal.stored.get("covariates", {}).items())
    decoded_as = f" All cells are decoded with {covariates}." if covariates else ""
    periodic = traversal.periodic
    reference = "the average around the circle (of the logarithms)" if periodic else "the start of the path"
    rows = (
        "The top-ranked features of each modality, in the order in which they peak along the path. The rank favors "
        "large and certain changes."
        if by_rank
        else "The features that were requested by name."
    )
    if n_neighbors is None:
        cell_map = (
            "Cells are placed at their angle, farther from the center if the angle is more certain. Cells in the "
            "center are inactive, or their angle is unknown."
        )
    else:
        state = "angles" if periodic else "latent states"
        cell_map = (
            "A projection: each step (black dot) is drawn at the weighted mean position of the "
            f"{format_count('cell', n_neighbors)} with the nearest {state}. Distances and bends are not those in "
            "latent space."
        )
    return [
        [
            "Bar",
            "Population mean that the model expects at this step, over the cells that are moved along the path "
            f"({traversal.stored['at']}).{decoded_as} Each bar has its own scale, from 0 to the highest upper end of "
            f"its interval along the path. The dotted line is {reference}.",
        ],
        [
            "Whisker",
            f"{traversal.interval_name} of the population mean. It does not include the variation between cells, "
            "which is larger" + ("." if "replicates" in traversal.stored else ", and the variation between donors."),
        ],
        ["log2", f"Change relative to {reference}: +1 is twice as much, \N{MINUS SIGN}1 is half as much."],
        [
            "lfsr",
            "Local false sign rate: half the p-value of a flat curve. The bar is "
            f"hollow if it is {LFSR_CUTOFF:.0%} or more.",
        ],
        ["Rows", rows],
        ["Map", cell_map],
        [
            "Limitation",
            "The model describes which changes occur together in these cells. It does not show that one change causes "
            "another.",
        ],
    ]


def _render_page(title: str, payload: dict[str, Any]) -> bytes:
    """Return the page: the HTML template with style, script and data filled in."""
    folder = files("celldial.pl")
    template, style, script = (
        folder.joinpath(f"dial.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    # Escaped, so that no name in the data can close the script element.
    data = json.dumps(payload, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": style,
        "style_hash": _csp_hash(style),
        "script": script,
        "script_hash": _csp_hash(script),
        "payload": data,
    }
    # All placeholders are replaced in one pass, so that braces in the data are not taken for placeholders.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    return page.encode("utf-8", errors="replace")


def _csp_hash(text: str) -> str:
    """Return the hash of a script or style for the content security policy, which blocks all others."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

"""Maps of the cells, such as a UMAP, and the projection of a path through latent space onto them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from celldial.io.results import embedding_key, read_record, writer_of
from celldial.pl._phases import TWO_PI
from celldial.pl._traversal import StoredTraversal
from celldial.utils.messages import did_you_mean, format_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["CellMap", "NearestCells", "find_cell_map", "find_nearest_cells", "project_path", "resolve_n_neighbors"]

CIRCLE = "circle"
AXIS_LABELS = {"X_umap": "UMAP", "X_tsne": "t-SNE", "X_pca": "PC"}


class CellMap(NamedTuple):
    """A map of the cells: the name of its axes, the position of each cell, and whether it is the periodic circle."""

    label: str
    xy_c2: np.ndarray
    is_circle: bool = False


class NearestCells(NamedTuple):
    """The cells nearest to a step of the path, the nearest first, and their weights, which sum to 1."""

    cell_k: np.ndarray
    weight_k: np.ndarray


def find_cell_map(adata: AnnData, basis: str, traversal: StoredTraversal) -> CellMap:
    """Return the map `basis`; ``"umap"`` is short for ``"X_umap"``, as in scanpy.

    ``"circle"`` is the circle of a periodic coordinate, which needs no matrix in ``obsm``.
    """
    if basis == CIRCLE and not {CIRCLE, f"X_{CIRCLE}"} & set(adata.obsm):
        return CellMap(CIRCLE, _circle_map(adata, traversal), is_circle=True)
    key = basis if basis in adata.obsm or f"X_{basis}" not in adata.obsm else f"X_{basis}"
    if key not in adata.obsm:
        alternative = f", or pass basis={CIRCLE!r}" if traversal.periodic else ""
        raise KeyError(
            f"no map {basis!r} in adata.obsm{did_you_mean(basis, list(adata.obsm))}; available: "
            f"{format_names(adata.obsm)}. Call sc.pp.neighbors(adata, use_rep='X_celldial') and sc.tl.umap(adata) "
            f"first{alternative}"
        )
    writer = writer_of(adata, "obsm", key)
    if None not in (writer, traversal.model) and writer != traversal.model:
        raise ValueError(
            f"traversal {traversal.name!r} belongs to model {traversal.model}, but adata.obsm[{key!r}] is the "
            f"embedding of model {writer}: choose another basis, or call model.latent_traverse(adata, ...) with that "
            "model"
        )
    matrix = np.asarray(adata.obsm[key], dtype=float)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise ValueError(f"adata.obsm[{key!r}] has shape {matrix.shape}, but a map needs two columns")
    return CellMap(AXIS_LABELS.get(key, key), matrix[:, :2])


def resolve_n_neighbors(adata: AnnData, n_neighbors: int | None) -> int:
    """Return the number of nearest cells for each step: the given number, or a default; at most all cells."""
    if n_neighbors is None:
        n_neighbors = max(30, adata.n_obs // 100)
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors}: at least 1 cell is needed")
    return min(n_neighbors, adata.n_obs)


def find_nearest_cells(
    adata: AnnData, traversal: StoredTraversal, xy_c2: np.ndarray, n_neighbors: int
) -> list[NearestCells]:
    """Return the nearest cells of each step, among the cells that have a position on the map.

    Raises
    ------
    KeyError
        If there are no latent states or no angles.
    ValueError
        If latent states and path come from different models, or if no cell has both a state and a position.
    """
    distances = _angular_distances(adata, traversal) if traversal.periodic else _latent_distances(adata, traversal)
    on_map_c = np.isfinite(xy_c2).all(1)
    # One step at a time: a matrix of steps × cells could be too large.
    return [_weigh_nearest(np.where(on_map_c, distance_c, np.inf), n_neighbors) for distance_c in distances]


def project_path(traversal: StoredTraversal, nearest_s: list[NearestCells], cell_map: CellMap) -> np.ndarray:
    """Return the position of each step on the map, ``(steps, 2)``: the weighted mean of its nearest cells.

    On the circle, a step is at its own angle.
    """
    if cell_map.is_circle:
        return _circle_position(traversal.position_s)
    return np.stack([nearest.weight_k @ cell_map.xy_c2[nearest.cell_k] for nearest in nearest_s])


def _latent_distances(adata: AnnData, traversal: StoredTraversal) -> Iterator[np.ndarray]:
    """Yield, for each step, the Euclidean distance of each cell's latent state."""
    key = embedding_key(adata, traversal.model)
    if key is None:
        raise ValueError(
            f"traversal {traversal.name!r} belongs to model {traversal.model}, which has no embedding in adata.obsm: "
            "call model.latent_traverse(adata, ...) with a model that has one, or write one with "
            "model.transform(adata, key_added='X_other')"
        )
    if key not in adata.obsm:
        raise KeyError(
            f"no latent states {key!r} in adata.obsm; available: {format_names(adata.obsm)}. Call model.fit(adata) "
            "first"
        )
    state_cz = np.asarray(adata.obsm[key], dtype=float)
    path_sz = traversal["path"]
    n_latent = state_cz.shape[1]
    # The states of a path may have two more columns than the embedding: cosine and sine of the angle.
    if path_sz.shape[1] not in (n_latent, n_latent + 2):
        raise ValueError(
            f"the path has {path_sz.shape[1]} latent coordinates, but adata.obsm[{key!r}] has {n_latent}: they come "
            "from different models. Call model.latent_traverse again"
        )
    for step_z in path_sz:
        yield np.linalg.norm(state_cz - step_z[:n_latent], axis=1)


def _angular_distances(adata: AnnData, traversal: StoredTraversal) -> Iterator[np.ndarray]:
    """Yield, for each step, the angular distance of each cell; infinite for inactive cells."""
    axis, angle_c = _read_angles(adata, traversal)
    active = f"{axis}_active"
    inactive_c = ~np.isfinite(angle_c)
    if active in adata.obs:
        inactive_c |= ~adata.obs[active].to_numpy(dtype=bool)
    for position in traversal.position_s:
        yield np.where(inactive_c, np.inf, np.abs((angle_c - position + np.pi) % TWO_PI - np.pi))


def _weigh_nearest(distance_c: np.ndarray, n_neighbors: int) -> NearestCells:
    """Return the nearest cells with Gaussian weights; the kernel width is half the distance of the farthest one."""
    n_finite = int(np.isfinite(distance_c).sum())
    if n_finite == 0:
        raise ValueError("no cell has both a latent state on this axis and a position on the map")
    nearest_k = np.argsort(distance_c, kind="stable")[: min(n_neighbors, n_finite)]
    distance_k = distance_c[nearest_k]
    width = max(distance_k[-1] / 2, 1e-12)
    # Subtract the smallest distance, so that the nearest cell has most weight even if the path is far from all cells.
    weight_k = np.exp(-0.5 * ((distance_k - distance_k[0]) / width) ** 2)
    return NearestCells(nearest_k, weight_k / weight_k.sum())


# --- The circle -------------------------------------------------------------------------------------------------------


def _circle_map(adata: AnnData, traversal: StoredTraversal) -> np.ndarray:
    """Return cells at their angle, farther from the center if the angle is more certain, shape ``(cells, 2)``."""
    if not traversal.periodic:
        raise ValueError(
            f"basis='circle' needs a periodic coordinate, but {traversal.axis!r} is not periodic: pass a matrix in "
            "adata.obsm"
        )
    axis, angle_c = _read_angles(adata, traversal)
    radius_c = np.ones(adata.n_obs)
    if f"{axis}_concentration" in adata.obs:
        concentration_c = adata.obs[f"{axis}_concentration"].to_numpy(dtype=float)
        radius_c *= concentration_c / (concentration_c + 1)  # the mean resultant length
    if f"{axis}_active_probability" in adata.obs:
        radius_c *= adata.obs[f"{axis}_active_probability"].to_numpy(dtype=float)
    return radius_c[:, None] * _circle_position(angle_c)


def _circle_position(angle: np.ndarray) -> np.ndarray:
    """Return positions on the unit circle: angle 0 at the top, increasing clockwise."""
    return np.column_stack([np.sin(angle), np.cos(angle)])


def _read_angles(adata: AnnData, traversal: StoredTraversal) -> tuple[str, np.ndarray]:
    """Return the name of the periodic coordinate, and the angle of each cell."""
    # A traversal may be stored under another name than its axis, which is then the axis of the last fitted model.
    axis = traversal.name
    if f"{axis}_angle" not in adata.obs:
        axis = (read_record(adata).get("periodic") or {}).get("name", axis)
    key = f"{axis}_angle"
    if key not in adata.obs:
        raise KeyError(f"no column {key!r} in adata.obs: call model.fit(adata) first")
    writer = writer_of(adata, "obs", key)
    if None not in (writer, traversal.model) and writer != traversal.model:
        raise ValueError(
            f"traversal {traversal.name!r} belongs to model {traversal.model}, but adata.obs[{key!r}] has the angles "
            f"of model {writer}: call phase(adata) with the first model, or latent_traverse with the second"
        )
    return axis, adata.obs[key].to_numpy(dtype=float)

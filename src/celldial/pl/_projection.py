"""Where a path through latent space runs on a map of the cells, such as a UMAP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from celldial.pl._figure import TURN
from celldial.pl._traversal import Traversal
from celldial.utils.messages import did_you_mean, format_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["CellMap", "Near", "count_neighbors", "find_map", "find_near", "project"]


CIRCLE = "circle"


class CellMap(NamedTuple):
    """A map of the cells: what its axes are called, where cells are, and whether it is the circle itself."""

    label: str
    place_c2: np.ndarray
    is_circle: bool = False


def find_map(adata: AnnData, basis: str, traversal: Traversal) -> CellMap:
    """Find the map; ``"umap"`` is taken for ``"X_umap"``, as scanpy does.

    ``"circle"`` is the circle of a periodic axis, for which there need be no matrix.
    """
    if basis == CIRCLE and not {CIRCLE, f"X_{CIRCLE}"} & set(adata.obsm):
        return CellMap(CIRCLE, _on_circle(adata, traversal), is_circle=True)
    key = basis if basis in adata.obsm or f"X_{basis}" not in adata.obsm else f"X_{basis}"
    if key not in adata.obsm:
        or_else = f", or take basis={CIRCLE!r}" if traversal.periodic else ""
        raise KeyError(
            f"no map {basis!r} in adata.obsm{did_you_mean(basis, list(adata.obsm))}; there are "
            f"{format_names(adata.obsm)}: "
            f"call sc.pp.neighbors(adata, use_rep='X_celldial') and sc.tl.umap(adata) first{or_else}"
        )
    matrix = np.asarray(adata.obsm[key], dtype=float)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise ValueError(f"adata.obsm[{key!r}] has the shape {matrix.shape}: a map needs two columns")
    return CellMap({"X_umap": "UMAP", "X_tsne": "t-SNE", "X_pca": "PC"}.get(key, key), matrix[:, :2])


def count_neighbors(adata: AnnData, n_neighbors: int | None) -> int:
    """Choose how many cells each step is drawn at the mean of, where that is open."""
    if n_neighbors is None:
        n_neighbors = max(30, adata.n_obs // 100)
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors}: at least 1 cell is needed")
    return min(n_neighbors, adata.n_obs)


class Near(NamedTuple):
    """The cells whose latent states are nearest to a step, the nearest first, and what they count; sums to 1."""

    cell_k: np.ndarray
    weight_k: np.ndarray


def find_near(adata: AnnData, traversal: Traversal, place_c2: np.ndarray, n_neighbors: int) -> list[Near]:
    """Find the nearest cells of each step, among those that have a place on the map.

    Raises
    ------
    KeyError
        There are no latent states, or no angles.
    ValueError
        The latent states are of another model than the path, or no cell has both a state and a place.
    """
    distances = _around(adata, traversal) if traversal.periodic else _between(adata, traversal)
    placed_c = np.isfinite(place_c2).all(1)
    # One step at a time: all at once would take steps x cells.
    return [_nearest(np.where(placed_c, distance_c, np.inf), n_neighbors) for distance_c in distances]


def project(traversal: Traversal, near_s: list[Near], cell_map: CellMap) -> np.ndarray:
    """Give each step a place on the map, shape ``(steps, 2)``: where its nearest cells are, on average.

    On the circle itself a step has a place of its own.
    """
    if cell_map.is_circle:
        return _on_clock(traversal.position_s)
    return np.stack([near.weight_k @ cell_map.place_c2[near.cell_k] for near in near_s])


def _between(adata: AnnData, traversal: Traversal) -> Iterator[np.ndarray]:
    """Measure how far each cell's latent state is from each step."""
    key = adata.uns.get("celldial", {}).get("key_added", "X_celldial")
    if key not in adata.obsm:
        raise KeyError(
            f"no latent states {key!r} in adata.obsm; there are {format_names(adata.obsm)}: call model.fit(adata) first"
        )
    state_cz = np.asarray(adata.obsm[key], dtype=float)
    path_sz = traversal["path"]
    n_latent = state_cz.shape[1]
    # States on a path may have two more columns than the embedding: those that turn.
    if path_sz.shape[1] not in (n_latent, n_latent + 2):
        raise ValueError(
            f"the path has {path_sz.shape[1]} latent coordinates and adata.obsm[{key!r}] has {n_latent}: "
            "they are of different models, call model.latent_traverse again"
        )
    for step_z in path_sz:
        yield np.linalg.norm(state_cz - step_z[:n_latent], axis=1)


def _on_circle(adata: AnnData, traversal: Traversal) -> np.ndarray:
    """Place cells as on a clock: by their angle, and the farther out the surer it is that they have it."""
    if not traversal.periodic:
        raise ValueError(
            f"basis='circle' is the map of a periodic axis, and {traversal.axis!r} is none: name a matrix in adata.obsm"
        )
    axis, angle_c = _angles(adata, traversal)
    radius_c = np.ones(adata.n_obs)
    if f"{axis}_concentration" in adata.obs:
        concentration_c = adata.obs[f"{axis}_concentration"].to_numpy(dtype=float)
        radius_c *= concentration_c / (concentration_c + 1)  # the mean resultant length
    if f"{axis}_active_probability" in adata.obs:
        radius_c *= adata.obs[f"{axis}_active_probability"].to_numpy(dtype=float)
    return radius_c[:, None] * _on_clock(angle_c)


def _on_clock(angle: np.ndarray) -> np.ndarray:
    """Place angles as on a clock: 0 at the top, and on to the right."""
    return np.column_stack([np.sin(angle), np.cos(angle)])


def _angles(adata: AnnData, traversal: Traversal) -> tuple[str, np.ndarray]:
    """Read the name of the circle, and the angle of each cell on it."""
    # A traversal may be stored under a name of its own: the axis is then the last model's.
    axis = traversal.name
    if f"{axis}_angle" not in adata.obs:
        axis = (adata.uns.get("celldial", {}).get("periodic") or {}).get("name", axis)
    key = f"{axis}_angle"
    if key not in adata.obs:
        raise KeyError(f"no column {key!r} in adata.obs: call model.fit(adata) first")
    return axis, adata.obs[key].to_numpy(dtype=float)


def _around(adata: AnnData, traversal: Traversal) -> Iterator[np.ndarray]:
    """Measure how far each cell's angle is from that of each step; cells that carry no phase are out of reach."""
    axis, angle_c = _angles(adata, traversal)
    active = f"{axis}_active"
    idle_c = ~np.isfinite(angle_c)
    if active in adata.obs:
        idle_c |= ~adata.obs[active].to_numpy(dtype=bool)
    for position in traversal.position_s:
        yield np.where(idle_c, np.inf, np.abs((angle_c - position + np.pi) % TURN - np.pi))


def _nearest(distance_c: np.ndarray, n_neighbors: int) -> Near:
    """Weigh the nearest cells by a Gaussian kernel, as wide as half the distance of the farthest of them."""
    n_reachable = int(np.isfinite(distance_c).sum())
    if n_reachable == 0:
        raise ValueError("no cell has both a latent state on this axis and a place on the map")
    nearest_k = np.argsort(distance_c, kind="stable")[: min(n_neighbors, n_reachable)]
    distance_k = distance_c[nearest_k]
    width = max(distance_k[-1] / 2, 1e-12)
    # Less the smallest distance: where the path is far from all cells, the nearest still counts most.
    weight_k = np.exp(-0.5 * ((distance_k - distance_k[0]) / width) ** 2)
    return Near(nearest_k, weight_k / weight_k.sum())

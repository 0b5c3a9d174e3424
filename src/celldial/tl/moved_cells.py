"""The cells of a traversal and their latent states at each step along the axis.

Reads an AnnData and writes nothing. Axis suffixes: ``c`` cells, ``j`` posterior samples of cells, those of one cell
side by side, ``n`` samples of one cell, ``s`` steps, ``z`` columns of the latent state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.inference import posterior
from celldial.inference.fitted_model import FittedModel
from celldial.model.module import Module
from celldial.tl import replicate_curves, traversal
from celldial.tl.cell_selection import select_cells, select_endpoints
from celldial.tl.traversal_axis import TraversalAxis

__all__ = ["MovedCells", "Sampling", "move_along", "move_between"]

# Cells that the span of an axis is computed from, cells of a group to choose from, and cells to read at a time.
MAX_SPAN_CELLS, MAX_GROUP_CELLS, BLOCK_CELLS = 20_000, 2_000, 4_096
# Quantiles of the cells between which an axis is traversed by default.
DEFAULT_SPAN = (0.01, 0.99)
# Posterior samples to decode at each step, over all cells.
N_DRAWS = 64


@dataclass(frozen=True)
class Sampling:
    """Numbers of steps, cells and posterior samples of a traversal; see `celldial.tl.latent_traverse`."""

    n_steps: int
    n_cells: int
    n_samples: int | None
    span: tuple[float, float] | None
    random: np.random.Generator
    replicates: str | None = None

    def samples_per_cell(self, n_cells: int) -> int:
        """Return the number of posterior samples of each cell: 64 in all by default, and at least 2."""
        return max(2, N_DRAWS // n_cells) if self.n_samples is None else self.n_samples


@dataclass(frozen=True)
class MovedCells:
    """Cells that are moved along an axis.

    Parameters
    ----------
    cells
        The cells, a part of the AnnData.
    state_sjz
        Their latent states at each step, `n_samples` posterior samples of each cell.
    position_s
        Positions on the axis.
    path_sz
        Mean latent state at each step, in the coordinates of the embedding.
    n_samples
        Posterior samples of each cell.
    n_group
        Size of the population that the cells represent.
    at
        Description of the population.
    replicate_c
        The replicate of each cell, such as its donor; None if the cells are the units.
    """

    cells: AnnData
    state_sjz: np.ndarray
    position_s: np.ndarray
    path_sz: np.ndarray
    n_samples: int
    n_group: int
    at: str
    replicate_c: np.ndarray | None = None


def move_along(model: FittedModel, adata: AnnData, axis: TraversalAxis, at: Any, sampling: Sampling) -> MovedCells:
    """Move cells along a coordinate, a named axis or the periodic coordinate.

    Posterior samples come from torch's generator. The arguments are those of `celldial.tl.latent_traverse`.

    Raises
    ------
    ValueError
        No cell has a count, or on a periodic axis no cell is active.
    """
    random = sampling.random
    group_c, population = select_cells(adata.obs, at)
    everywhere = np.arange(adata.n_obs)
    all_c, all_cz = infer_subset(model, adata, everywhere, MAX_SPAN_CELLS, random)
    nonempty_c, state_cz, limit = all_c, all_cz, MAX_SPAN_CELLS
    if at is not None:
        limit = max(MAX_GROUP_CELLS, sampling.n_cells)
        nonempty_c, state_cz = infer_subset(model, adata, group_c, limit, random)
    if axis.kind == "periodic" and not _is_single_cell(at):
        active_c = np.hypot(*state_cz[:, -2:].T) > 0.5
        if not active_c.any():
            raise ValueError(f"none of the cells ({population}) is active on {axis.title}: choose other cells with at")
        nonempty_c, state_cz = nonempty_c[active_c], state_cz[active_c]
        population = "active cells" if at is None else f"{population}, active"
    if sampling.replicates is None:
        replicate_c = None
        chosen_c = np.sort(random.choice(nonempty_c, min(sampling.n_cells, len(nonempty_c)), replace=False))
    else:
        chosen_c, replicate_c = replicate_curves.choose_cells(
            adata.obs, sampling.replicates, nonempty_c, sampling.n_cells, random
        )
    n_samples = sampling.samples_per_cell(len(chosen_c))
    part = subset(adata, chosen_c)
    position_s, move = _movement(axis, all_cz, sampling)
    state_sjz = move(_samples(model, part, n_samples))
    path_sz = _mean_embedding(model.module_, move(state_cz[np.searchsorted(nonempty_c, chosen_c)]))
    if axis.kind == "coordinate":
        position_s = path_sz[:, axis.coordinate]  # the share of a topic depends on the cell
    # The cells found to have counts; extrapolated to the whole group if only a part of it was read.
    n_group = len(nonempty_c) if len(group_c) <= limit else round(len(group_c) * len(nonempty_c) / limit)
    if not _is_single_cell(at):
        population = f"{len(chosen_c)} of {population}"
    return MovedCells(part, state_sjz, position_s, path_sz, n_samples, n_group, population, replicate_c)


def _movement(
    axis: TraversalAxis, state_cz: np.ndarray, sampling: Sampling
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the positions on an axis, and the function that moves latent states to each of them."""
    span = DEFAULT_SPAN if sampling.span is None else sampling.span
    if axis.kind == "coordinate":
        position_s = traversal.evenly_spaced(state_cz[:, axis.coordinate], span, sampling.n_steps)
        return position_s, partial(traversal.along_coordinate, coordinate=axis.coordinate, position_s=position_s)
    if axis.kind == "direction":
        origin_z, weight_z, direction_z = axis.direction
        score_c = (state_cz[:, : len(origin_z)] - origin_z) @ weight_z
        if sampling.span is None and axis.default_span is not None:
            position_s = np.linspace(*axis.default_span, sampling.n_steps)
        else:
            position_s = traversal.evenly_spaced(score_c, span, sampling.n_steps)
        return position_s, partial(
            traversal.along_direction,
            origin_z=origin_z,
            weight_z=weight_z,
            direction_z=direction_z,
            position_s=position_s,
        )
    position_s = np.linspace(0, 2 * np.pi, sampling.n_steps)
    return position_s, partial(traversal.around_circle, angle_s=position_s)


def move_between(
    model: FittedModel, adata: AnnData, axis: TraversalAxis, groupby: str | None, sampling: Sampling
) -> MovedCells:
    """Move cells of one group to cells of another, or one cell to another."""
    random = sampling.random
    groups = select_endpoints(adata.obs, axis.ends, groupby)
    limit = max(MAX_GROUP_CELLS, sampling.n_cells)
    ends = [infer_subset(model, adata, group_c, limit, random) for group_c in groups]
    # Without replacement: repeated cells would make the posterior uncertainty average out.
    n_cells = min(sampling.n_cells, *(len(nonempty_c) for nonempty_c, _ in ends))
    chosen = [np.sort(random.choice(len(nonempty_c), n_cells, replace=False)) for nonempty_c, _ in ends]
    (first_c, first_cz), (last_c, last_cz) = (
        (end_c[i], end_cz[i]) for (end_c, end_cz), i in zip(ends, chosen, strict=True)
    )
    partner_c = traversal.optimal_pairs(first_cz, last_cz)
    last_c, last_cz = last_c[partner_c], last_cz[partner_c]
    n_samples = sampling.samples_per_cell(n_cells)
    part = subset(adata, first_c)
    from_jz, to_jz = (_samples(model, cells, n_samples) for cells in (part, subset(adata, last_c)))
    position_s = np.linspace(0, 1, sampling.n_steps)
    description = axis.title if n_cells == 1 else f"{n_cells} pairs of cells"
    n_group = max(map(len, groups))
    state_sjz = traversal.between(from_jz, to_jz, position_s)
    path_sz = _mean_embedding(model.module_, traversal.between(first_cz, last_cz, position_s))
    return MovedCells(part, state_sjz, position_s, path_sz, n_samples, n_group, description)


def infer_subset(
    model: FittedModel, adata: AnnData, position_c: np.ndarray, limit: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Infer the latent states of some cells, at most `limit` chosen at random; cells without counts are left out.

    Cells are read block by block, so that there is never a second copy of all counts.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Positions of the cells in `adata`, ascending, and their states, shape ``(c, z)``.

    Raises
    ------
    ValueError
        None of the cells has a count.
    """
    if len(position_c) > limit:
        position_c = np.sort(random.choice(position_c, limit, replace=False))
    nonempty, states = [], []
    for start in range(0, len(position_c), BLOCK_CELLS):
        block = position_c[start : start + BLOCK_CELLS]
        # Warnings about features come with the first block only.
        cells = _read(model.schema_, subset(adata, block), quiet=start > 0)
        nonempty_c = (~cells.empty_c).numpy()
        nonempty.append(block[nonempty_c])
        states.append(posterior.infer(model.module_, cells).state_cz[nonempty_c])
    nonempty_c = np.concatenate(nonempty)
    if len(nonempty_c) == 0:
        raise ValueError(
            f"none of the {len(position_c)} cells to start from has a count: check the layer and the features"
        )
    return nonempty_c, np.concatenate(states)


def subset(adata: AnnData, position_c: np.ndarray) -> AnnData:
    """Return some cells of an AnnData; all of them without a copy."""
    if len(position_c) == adata.n_obs and bool((np.diff(position_c) == 1).all()):
        return adata
    return adata[position_c]


def _mean_embedding(module: Module, state_scz: np.ndarray) -> np.ndarray:
    """Return the mean embedding of the cells at each step, shape ``(s, z)``, float64."""
    embedding_cz = module.constrained(torch.from_numpy(state_scz.reshape(-1, state_scz.shape[-1])))
    mean_sz: np.ndarray = embedding_cz.numpy().reshape(state_scz.shape).mean(1, dtype=np.float64)
    return mean_sz


def _samples(model: FittedModel, adata: AnnData, n_samples: int) -> np.ndarray:
    """Draw latent states from the posterior of each cell, those of a cell side by side, shape ``(j, z)``."""
    state_cnz = posterior.sample_latent(model.module_, _read(model.schema_, adata, quiet=True), n_samples)
    return state_cnz.reshape(-1, state_cnz.shape[-1])


def _read(schema: Schema, adata: AnnData, quiet: bool) -> Cells:
    """Read cells, without warnings if they were read before."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        return Cells.from_anndata(adata, schema)


def _is_single_cell(at: Any) -> bool:
    """Return whether `at` names one cell."""
    return at is not None and not isinstance(at, Mapping | tuple)

"""What a traversal turns, and which cells it moves: from what the user named to latent states, step by step.

Reads an AnnData and writes nothing. Axis suffixes: ``c`` cells, ``j`` draws of their states, those of one cell side by
side, ``n`` draws of one cell, ``s`` steps, ``z`` columns of the latent state.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from celldial.data.cells import Cells
from celldial.data.schema import BERNOULLI, Schema
from celldial.inference import population_means, posterior
from celldial.model.module import Module
from celldial.tl import traversal
from celldial.tl.cell_selection import cells_at, two_ends
from celldial.tl.traversal_axis import Dial

__all__ = ["Moved", "move_along", "move_between", "turned"]

# From how many cells a traversal takes its span, how many of a group it looks at, and how many are read at a time.
SPAN_CELLS, GROUP_CELLS, BLOCK_CELLS = 20_000, 2_000, 4_096
# Draws of latent states to decode at each step.
N_DRAWS = 64


@dataclass(frozen=True)
class Moved:
    """Cells on their way along a dial.

    Parameters
    ----------
    cells
        The cells, a part of the AnnData.
    state_sjz
        Their latent states at each step, `n_samples` draws of each cell.
    position_s
        Where they are at each step.
    path_sz
        What users see of their latent states at each step, mean over the cells.
    n_samples
        Draws of each cell.
    n_group
        Number of cells that they stand for.
    at
        What these are, in words.
    """

    cells: AnnData
    state_sjz: np.ndarray
    position_s: np.ndarray
    path_sz: np.ndarray
    n_samples: int
    n_group: int
    at: str


def move_along(
    module: Module,
    schema: Schema,
    adata: AnnData,
    dial: Dial,
    at: Any,
    n_steps: int,
    span: tuple[float, float],
    n_cells: int,
    n_samples: int | None,
    random: np.random.Generator,
) -> Moved:
    """Move cells along a coordinate, a named axis, or round the circle.

    Draws from posteriors are made by torch's generator; see `celldial.VAE.latent_traverse` for the arguments.

    Raises
    ------
    ValueError
        None of the cells has a count, or on a circle is active.
    """
    group_c, called = cells_at(adata.obs, at)
    everywhere = np.arange(adata.n_obs)
    all_c, all_cz = read_some(module, schema, adata, everywhere, SPAN_CELLS, random)
    filled_c, state_cz, limit = all_c, all_cz, SPAN_CELLS
    if at is not None:
        limit = max(GROUP_CELLS, n_cells)
        filled_c, state_cz = read_some(module, schema, adata, group_c, limit, random)
    if dial.kind == "periodic" and not _is_cell(at):
        active_c = np.hypot(*state_cz[:, -2:].T) > 0.5
        if not active_c.any():
            raise ValueError(f"none of the cells ({called}) is active on {dial.title}: choose others by at")
        filled_c, state_cz = filled_c[active_c], state_cz[active_c]
        called = "active cells" if at is None else f"{called}, active"
    chosen_c = np.sort(random.choice(filled_c, min(n_cells, len(filled_c)), replace=False))
    n_samples = max(2, N_DRAWS // len(chosen_c)) if n_samples is None else n_samples
    part = rows(adata, chosen_c)
    if dial.kind == "coordinate":
        position_s = traversal.spread(all_cz[:, dial.coordinate], span, n_steps)
        move = partial(traversal.along_coordinate, coordinate=dial.coordinate, position_s=position_s)
    elif dial.kind == "direction":
        origin_z, filter_z, direction_z = dial.direction
        score_c = (all_cz[:, : len(origin_z)] - origin_z) @ filter_z
        position_s = traversal.spread(score_c, span, n_steps)
        move = partial(
            traversal.along_direction,
            origin_z=origin_z,
            filter_z=filter_z,
            direction_z=direction_z,
            position_s=position_s,
        )
    else:
        position_s = np.linspace(0, 2 * np.pi, n_steps)
        move = partial(traversal.around_circle, angle_s=position_s)
    state_sjz = move(_draws(module, schema, part, n_samples))
    path_sz = _seen(module, move(state_cz[np.searchsorted(filled_c, chosen_c)]))
    if dial.kind == "coordinate":
        position_s = path_sz[:, dial.coordinate]  # of a topic its share, which depends on the cell
    # As many as were found to have counts, or all where only some were looked at.
    n_group = len(filled_c) if len(group_c) <= limit else round(len(group_c) * len(filled_c) / limit)
    if not _is_cell(at):
        called = f"{len(chosen_c)} of {called}"
    return Moved(part, state_sjz, position_s, path_sz, n_samples, n_group, called)


def move_between(
    module: Module,
    schema: Schema,
    adata: AnnData,
    dial: Dial,
    groupby: str | None,
    n_steps: int,
    n_cells: int,
    n_samples: int | None,
    random: np.random.Generator,
) -> Moved:
    """Move cells from one group to another, or from one cell to another."""
    groups = two_ends(adata.obs, dial.ends, groupby)
    limit = max(GROUP_CELLS, n_cells)
    ends = [read_some(module, schema, adata, group_c, limit, random) for group_c in groups]
    # No cell twice: what is not known of it would seem to average out.
    n_cells = min(n_cells, *(len(filled_c) for filled_c, _ in ends))
    chosen = [np.sort(random.choice(len(filled_c), n_cells, replace=False)) for filled_c, _ in ends]
    (first_c, first_cz), (last_c, last_cz) = (
        (of_c[i], of_cz[i]) for (of_c, of_cz), i in zip(ends, chosen, strict=True)
    )
    partner_c = traversal.paired(first_cz, last_cz)
    last_c, last_cz = last_c[partner_c], last_cz[partner_c]
    n_samples = max(2, N_DRAWS // n_cells) if n_samples is None else n_samples
    part = rows(adata, first_c)
    from_jz, to_jz = (_draws(module, schema, of, n_samples) for of in (part, rows(adata, last_c)))
    position_s = np.linspace(0, 1, n_steps)
    called = dial.title if n_cells == 1 else f"{n_cells} pairs of cells"
    n_group = max(map(len, groups))
    state_sjz = traversal.between(from_jz, to_jz, position_s)
    path_sz = _seen(module, traversal.between(first_cz, last_cz, position_s))
    return Moved(part, state_sjz, position_s, path_sz, n_samples, n_group, called)


def read_some(
    module: Module, schema: Schema, adata: AnnData, position_c: np.ndarray, limit: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Infer the states of some cells, at most `limit` chosen at random; cells without any count are left out.

    They are read block by block, so that there is never a second copy of all counts.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Positions of the cells in `adata`, ascending, and their states, shape ``(c, z)``.

    Raises
    ------
    ValueError
        None of them has a count.
    """
    if len(position_c) > limit:
        position_c = np.sort(random.choice(position_c, limit, replace=False))
    filled, states = [], []
    for start in range(0, len(position_c), BLOCK_CELLS):
        block = position_c[start : start + BLOCK_CELLS]
        # What is to be said of the features is said of the first block.
        cells = _read(schema, rows(adata, block), quiet=start > 0)
        filled_c = (~cells.empty_c).numpy()
        filled.append(block[filled_c])
        states.append(posterior.infer(module, cells).state_cz[filled_c])
    filled_c = np.concatenate(filled)
    if len(filled_c) == 0:
        raise ValueError(
            f"none of the {len(position_c)} cells to start from has a single count: check the layer and the features"
        )
    return filled_c, np.concatenate(states)


def turned(
    module: Module,
    schema: Schema,
    dial: Dial,
    moved: Moved,
    covariates: Mapping[str, Any] | None,
    library_size: Mapping[str, float],
    names: pd.Index,
) -> tuple[AnnData, dict[str, Any]]:
    """Decode cells on their way, and say what changes.

    Parameters
    ----------
    module, schema
        Of the model.
    dial, moved
        What is turned, and which cells by it.
    covariates
        Covariate to one value for all cells.
    library_size
        Modality to the library size to decode with.
    names
        Of all features.

    Returns
    -------
    tuple[AnnData, dict[str, Any]]
        Steps × features, as `celldial.VAE.latent_traverse` returns them, and the same as arrays, to be stored.
    """
    encoded = posterior.Covariates(
        *(np.repeat(part, moved.n_samples, axis=0) for part in schema.covariates(moved.cells, covariates))
    )
    parts = [
        population_means.average(module, name, moved.state_sjz, encoded, depth, moved.n_samples, moved.n_group)
        for name, depth in library_size.items()
    ]
    modality_f = np.repeat(np.array(schema.modalities, dtype=object), [part.mean_sf.shape[1] for part in parts])
    bernoulli_f = [schema.likelihood[modality] == BERNOULLI for modality in modality_f]
    curves = traversal.Traversal(
        *traversal.joined(parts), np.where(bernoulli_f, 1, np.inf).astype(np.float32), dial.kind == "periodic"
    )
    lfsr_f = curves.lfsr_f
    by_step = {
        "mean": curves.mean_sf,
        "lower": curves.lower_sf,
        "upper": curves.upper_sf,
        "log2_fold_change": curves.log2_fold_change_sf,
    }
    by_feature = {
        "effect_size": curves.effect_size_f,
        "change": curves.change_f,
        "peak_step": curves.peak_step_f,
        "lfsr": lfsr_f,
        "fdr": traversal.s_value(lfsr_f),
        "rank": traversal.ranks(curves.score_f(modality_f)),
    }
    about = {
        "axis": dial.title,
        "kind": dial.kind,
        "position_label": dial.label,
        "path": moved.path_sz.astype(np.float32),
        "likelihood": dict(schema.likelihood),
        "library_size": dict(library_size),
        "interval": traversal.INTERVAL,
        "n_cells": moved.cells.n_obs,
        "n_samples": moved.n_samples,
        "at": moved.at,
        "covariates": {key: str(value) for key, value in (covariates or {}).items()},
        **({"phases": dial.phases} if dial.phases else {}),
    }
    stored = {
        **about,
        "position": moved.position_s,
        "feature_names": np.array(names, dtype=object),
        "modality": modality_f,
        **by_step,
        **by_feature,
    }
    obs = pd.DataFrame({"position": moved.position_s}, pd.RangeIndex(len(moved.position_s)).map("step_{}".format))
    if dial.kind == "periodic":
        obs["angle"] = moved.position_s
    # Copies: what is done to the one must not change the other.
    result = AnnData(
        curves.mean_sf.copy(),
        obs=obs,
        var=pd.DataFrame({**by_feature, "modality": modality_f}, index=names, copy=True),
        layers={name: values_sf.copy() for name, values_sf in by_step.items()},
        uns=copy.deepcopy(about),
    )
    return result, stored


def rows(adata: AnnData, position_c: np.ndarray) -> AnnData:
    """Take some cells; all of them without a copy."""
    if len(position_c) == adata.n_obs and bool((np.diff(position_c) == 1).all()):
        return adata
    return adata[position_c]


def _seen(module: Module, state_scz: np.ndarray) -> np.ndarray:
    """Average over cells what users see of their latent states, step by step, shape ``(s, z)``, float64."""
    seen_cz = module.shown(torch.from_numpy(state_scz.reshape(-1, state_scz.shape[-1])))
    mean_sz: np.ndarray = seen_cz.numpy().reshape(state_scz.shape).mean(1, dtype=np.float64)
    return mean_sz


def _draws(module: Module, schema: Schema, adata: AnnData, n_samples: int) -> np.ndarray:
    """Draw the states of cells, those of one side by side, shape ``(j, z)``."""
    state_cnz = population_means.draw_states(module, _read(schema, adata, quiet=True), n_samples)
    return state_cnz.reshape(-1, state_cnz.shape[-1])


def _read(schema: Schema, adata: AnnData, quiet: bool) -> Cells:
    """Read cells, without warnings where they were read before."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        return Cells.from_anndata(adata, schema)


def _is_cell(at: Any) -> bool:
    """Tell whether `at` names one cell."""
    return at is not None and not isinstance(at, Mapping | tuple)

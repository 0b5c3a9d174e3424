"""The reference cells of a model, in a summary: how likely and how far from each other they usually are.

`fit` writes the summary from training cells and from validation cells, which were not used to train the model. New
cells are compared with the validation cells.

Axis suffixes: ``c`` cells, ``r`` reference cells, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from celldial.data.cells import MAX_DECODE_VALUES, Cells, decode_block_size, minibatches, to_csr_tensor
from celldial.data.source import Source
from celldial.inference import posterior
from celldial.model.module import Module
from celldial.utils.random import isolate_rng

__all__ = ["MappingQuality", "ReferenceSummary", "likelihood_residuals", "summarize_reference"]

# Training cells and validation cells of a summary, at most; fewer validation cells if they have very many features.
MAX_TRAINING_CELLS, MAX_HELD_OUT, MIN_HELD_OUT, MAX_VALUES = 2000, 1000, 100, 8 * MAX_DECODE_VALUES
# Nearest training cells whose mean distance is the distance of a cell from the reference.
N_NEIGHBORS = 15
# Simulated cells that each cell is compared with.
N_SIMULATED = 2
# A cell is compared with this fraction of the validation cells, those whose depth is most similar, and with at least
# this number of them.
DEPTH_FRACTION, MIN_CELLS = 0.3, 50
DECIMALS = 4

Array = NDArray[Any]


class MappingQuality(NamedTuple):
    """How similar cells are to reference cells, each as the fraction of validation cells that are less similar.

    Parameters
    ----------
    likelihood_c
        From the likelihood of the counts, among validation cells of similar depth.
    distance_c
        From the distance to the nearest training cells.
    """

    likelihood_c: Array
    distance_c: Array

    @property
    def quality_c(self) -> Array:
        """Twice the smaller fraction, at most 1: a p-value of the hypothesis that the cell is a reference cell."""
        return np.minimum(2 * np.minimum(self.likelihood_c, self.distance_c), 1)


@dataclass(frozen=True)
class ReferenceSummary:
    """Cells that a model was fitted to, in a summary. Create it with `summarize_reference`.

    Parameters
    ----------
    z_rz
        Coordinates of training cells.
    spread_z
        Standard deviation of the coordinates over these cells.
    distance_c, residual_c, log_depth_c
        Of the validation cells: distance to the nearest training cells, in standard deviations; difference of the
        log-likelihood from that of simulated counts, as `likelihood_residuals` returns it; and log total count.
    """

    z_rz: Array
    spread_z: Array
    distance_c: Array
    residual_c: Array
    log_depth_c: Array

    def compare(self, z_cz: Array, residual_c: Array, log_depth_c: Array) -> MappingQuality:
        """Compare cells with the validation cells."""
        further_c = exceedance(np.sort(self.distance_c), self.distance(z_cz))
        order = np.argsort(self.log_depth_c, kind="stable")
        sorted_depth, residual = self.log_depth_c[order], self.residual_c[order]
        n_held_out = len(order)
        width = min(n_held_out, max(MIN_CELLS, round(DEPTH_FRACTION * n_held_out)))
        start_c = np.clip(np.searchsorted(sorted_depth, log_depth_c) - width // 2, 0, n_held_out - width)
        lower_c = np.empty(len(residual_c))
        for start in np.unique(start_c):
            here_c = start_c == start
            lower_c[here_c] = exceedance(np.sort(-residual[start : start + width]), -residual_c[here_c])
        return MappingQuality(lower_c, further_c)

    def distance(self, z_cz: Array) -> Array:
        """Return the mean distance of cells to the nearest training cells, in standard deviations of coordinates."""
        n_neighbors = min(N_NEIGHBORS, len(self.z_rz))
        distance_c: Array = self._tree.kneighbors(z_cz / self.spread_z, n_neighbors)[0].mean(1)
        return distance_c

    @cached_property
    def _tree(self) -> NearestNeighbors:
        return NearestNeighbors().fit(self.z_rz / self.spread_z)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ReferenceSummary:
        """Return the summary that `to_dict` described."""
        return cls(**{name: np.array(stored[name], dtype=float) for name in cls.__dataclass_fields__})


def exceedance(sorted_x: Array, value_c: Array) -> Array:
    """Return the fraction of values that are at least as large as each of `value_c`, itself counted as one of them."""
    n_at_least_c = len(sorted_x) - np.searchsorted(sorted_x, value_c, side="left")
    fraction_c: Array = (n_at_least_c + 1) / (len(sorted_x) + 1)
    return fraction_c


def summarize_reference(module: Module, source: Source) -> ReferenceSummary:
    """Summarize the cells of a trained module.

    Without validation cells, training cells take their place, which makes new cells look less similar than they are.

    Parameters
    ----------
    module
        The trained module.
    source
        Its cells.
    """
    training = source.training_sample(MAX_TRAINING_CELLS)
    n_values = sum(module.n_features.values())
    n_held_out = int(np.clip(MAX_VALUES // n_values, MIN_HELD_OUT, MAX_HELD_OUT))
    held_out: list[Cells] = []
    for block in source.validation_minibatches():
        room = n_held_out - sum(map(len, held_out))
        if room <= 0:
            break
        held_out.append(block.slice(0, min(room, len(block))).to("cpu"))
    if not held_out:
        held_out = [training.slice(0, min(n_held_out, len(training) // 2))]
        training = training.slice(len(held_out[0]), len(training))
    state = posterior.infer(module, training)
    z_rz = state.mean.astype(float).round(DECIMALS)
    spread_z = np.maximum(z_rz.std(0), 10.0**-DECIMALS)
    empty_c = np.zeros(0)
    summary = ReferenceSummary(z_rz, spread_z, empty_c, empty_c, empty_c)
    states = [posterior.infer(module, block) for block in held_out]
    parts = (
        np.concatenate([summary.distance(found.mean) for found in states]),
        np.concatenate(
            [likelihood_residuals(module, block, found.state_cz) for block, found in zip(held_out, states, strict=True)]
        ),
        np.concatenate([log_depth(block) for block in held_out]),
    )
    return ReferenceSummary(z_rz, spread_z, *(part_c.astype(float).round(DECIMALS) for part_c in parts))


@torch.no_grad()
def likelihood_residuals(module: Module, cells: Cells, state_cz: Array) -> Array:
    """Return how much more likely the counts of cells are than counts simulated from the model for the same cells.

    The simulated counts have the latent state, the covariates and the library size of the cell, so that the residual
    depends little on cell type and depth. It is the difference of the log-likelihoods in nats, divided by the square
    root of the total count.

    Parameters
    ----------
    module
        A trained module.
    cells
        Cells.
    state_cz
        Their latent states.

    Returns
    -------
    numpy.ndarray
        Shape ``(c,)``; 0 for cells without counts.
    """
    device = posterior.to_eval(module)
    parts, start = [], 0
    with isolate_rng(0):
        for block in minibatches(cells, decode_block_size(max(module.n_features.values()))):
            state = torch.from_numpy(state_cz[start : start + len(block)]).to(device)
            parts.append(_residuals(module, block.to(device), state))
            start += len(block)
    return np.concatenate(parts)


def _residuals(module: Module, block: Cells, state_cz: torch.Tensor) -> Array:
    """Return the residuals of cells that can be decoded at once."""
    residual_c = torch.zeros(len(block), device=state_cz.device)
    for name, observation in module.decode(state_cz, block).items():
        present_c = block.mask_with(name)
        if not bool(present_c.any()):
            continue
        found_c = observation.log_prob(block.observed_counts(name))
        for _ in range(N_SIMULATED):
            simulated = to_csr_tensor(sparse.csr_matrix(observation.sample().cpu().numpy())).to(state_cz.device)
            residual_c[present_c] += (found_c - observation.log_prob(simulated)) / N_SIMULATED
    total_c = torch.stack(list(block.library_size.values())).sum(0)
    residuals: Array = (residual_c / total_c.clamp_min(1).sqrt()).cpu().numpy()
    return residuals


def log_depth(cells: Cells) -> Array:
    """Return the log of one plus the total count of each cell."""
    depth_c: Array = torch.stack(list(cells.library_size.values())).sum(0).log1p().cpu().numpy()
    return depth_c

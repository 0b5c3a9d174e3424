"""Sums over groups of cells: counts, expected counts under the model, and what their uncertainty follows from.

Cells are decoded block by block and only the sums of each group are kept, so that memory grows with groups × features
and not with the number of cells.

Axis suffixes: ``c`` cells, ``f`` features, ``g`` groups, ``h`` inputs of the decoder's last layer, ``j`` samples of
cells, ``n`` samples of one cell, ``z`` columns of the latent state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from scipy import sparse
from torch import Tensor

from celldial.data.cells import Cells, decode_block_size, minibatches, to_csr_matrix
from celldial.inference.posterior import sample_states, to_eval
from celldial.model.module import Module
from celldial.model.networks import Modality

__all__ = ["CodedCondition", "CountSums", "DecodedSums", "count_sums", "decoded_sums"]

# Posterior samples of each cell.
N_SAMPLES = 2


class CodedCondition(NamedTuple):
    """Values of covariates that replace those of the cells.

    Parameters
    ----------
    category
        Column of the categorical covariates to code.
    continuous
        Column of the continuous covariates to encoded value.
    """

    category: Mapping[int, int]
    continuous: Mapping[int, float]

    def apply(self, block: Cells) -> tuple[Tensor, Tensor]:
        """Return the categorical and continuous covariates of cells under the condition."""
        category_ck, continuous_ck = block.category_ck.clone(), block.continuous_ck.clone()
        for column, code in self.category.items():
            category_ck[:, column] = code
        for column, value in self.continuous.items():
            continuous_ck[:, column] = value
        return category_ck, continuous_ck


@dataclass(frozen=True)
class CountSums:
    """Sums over the cells of each group that have the modality, float64.

    Parameters
    ----------
    n_cells_g
        Number of cells.
    library_size_g
        Sum of library sizes.
    count_gf
        Sum of counts.
    expressing_gf
        Number of cells with a count.
    """

    n_cells_g: np.ndarray
    library_size_g: np.ndarray
    count_gf: np.ndarray
    expressing_gf: np.ndarray

    def merge(self, member_sg: np.ndarray) -> Any:
        """Return the sums over sets of groups.

        Parameters
        ----------
        member_sg
            1 for the groups in each set, 0 for others.
        """
        weight_sg = member_sg.astype(float)
        return type(self)(**{field.name: weight_sg @ getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class DecodedSums(CountSums):
    """Sums over the cells of each group, with those of the model.

    Parameters
    ----------
    count_square_gf
        Sum of squared counts.
    expected_gf
        Sum of the expected counts of the cells, given their library sizes.
    expected_square_gf, count_expected_gf
        Sum of their squares, and of count × expected count.
    variance_gf
        Sum of the variances of the counts under the likelihood.
    level_gf, level_square_gf
        Sum of expected values at a common library size, and sum of their squares over posterior samples.
    input_gh
        Sum of the inputs of the decoder's last layer.
    """

    count_square_gf: np.ndarray
    expected_gf: np.ndarray
    expected_square_gf: np.ndarray
    count_expected_gf: np.ndarray
    variance_gf: np.ndarray
    level_gf: np.ndarray
    level_square_gf: np.ndarray
    input_gh: np.ndarray


class _Sums:
    """Running sums over groups."""

    def __init__(self, n_groups: int) -> None:
        self.n_groups = n_groups
        self.total: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, one_hot_gc: Tensor) -> None:
        """Add the values of a block of cells, ``(c,)`` or ``(c, f)``, to their groups."""
        part = (one_hot_gc @ value).double().cpu()
        self.total[name] = self.total[name] + part if name in self.total else part

    def one_hot(self, group_c: Tensor, like: Tensor) -> Tensor:
        """Return a matrix with a 1 for the group of each cell, shape ``(g, c)``."""
        one_hot_gc = like.new_zeros((self.n_groups, len(group_c)))
        one_hot_gc[group_c, torch.arange(len(group_c), device=group_c.device)] = 1
        return one_hot_gc

    def add_counts(self, block: Cells, name: str, group_c: Tensor) -> tuple[Tensor, Tensor]:
        """Add the counts of a block; return the matrix of groups and the dense counts."""
        count_cf = block.counts[name].to_dense()
        one_hot_gc = self.one_hot(group_c, count_cf)
        self.add("n_cells_g", torch.ones_like(count_cf[:, 0]), one_hot_gc)
        self.add("library_size_g", block.library_size[name], one_hot_gc)
        self.add("count_gf", count_cf, one_hot_gc)
        self.add("expressing_gf", (count_cf > 0).to(count_cf), one_hot_gc)
        return one_hot_gc, count_cf

    def result(self) -> dict[str, np.ndarray]:
        """Return the sums as arrays."""
        return {name: value.numpy() for name, value in self.total.items()}


def _blocks(parts: Iterable[tuple[Cells, np.ndarray]], name: str) -> Iterable[tuple[Cells, Tensor]]:
    """Yield blocks of the cells that have the modality and a group, with their groups."""
    for cells, group_c in parts:
        group = torch.from_numpy(group_c.astype(np.int64))
        index_c = (cells.mask_with(name) & (group >= 0)).nonzero()[:, 0]
        n_block = max(1, decode_block_size(cells.counts[name].n_columns) // N_SAMPLES)
        start = 0
        for block in minibatches(cells, n_block, index_c=index_c) if len(index_c) else ():
            yield block, group[index_c[start : start + len(block)]]
            start += len(block)


def count_sums(parts: Iterable[tuple[Cells, np.ndarray]], name: str, n_groups: int, n_features: int) -> CountSums:
    """Sum the counts of each group of cells.

    Parameters
    ----------
    parts
        Cells with the group of each; those with group -1 are left out.
    name
        Modality.
    n_groups, n_features
        Number of groups, and of features of the modality.
    """
    n_cells_g, library_size_g = np.zeros(n_groups), np.zeros(n_groups)
    count_gf, expressing_gf = np.zeros((n_groups, n_features)), np.zeros((n_groups, n_features))
    for cells, group_c in parts:
        index_c = np.flatnonzero(cells.mask_with(name).numpy() & (group_c >= 0))
        member = (np.ones(len(index_c)), (group_c[index_c], index_c))
        member_gc = sparse.csr_matrix(member, shape=(n_groups, len(cells)))
        rows = to_csr_matrix(cells.counts[name])
        n_cells_g += np.bincount(group_c[index_c], minlength=n_groups)
        library_size_g += member_gc @ cells.library_size[name].numpy()
        count_gf += (member_gc @ rows).toarray()
        expressing_gf += (member_gc @ (rows > 0)).toarray()
    return CountSums(n_cells_g, library_size_g, count_gf, expressing_gf)


@torch.no_grad()
def decoded_sums(
    module: Module,
    parts: Iterable[tuple[Cells, np.ndarray]],
    name: str,
    n_groups: int,
    library_size: float,
    conditions: Sequence[CodedCondition] = (CodedCondition({}, {}),),
) -> DecodedSums:
    """Sum counts and expected counts of each group of cells, with posterior samples from torch's generator.

    Parameters
    ----------
    module
        A trained module.
    parts
        Cells with the group of each; those with group -1 are left out. At least one has a group.
    name
        Modality.
    n_groups
        Number of groups.
    library_size
        Common library size of the levels.
    conditions
        Covariates to decode the levels with; the levels are averaged over these conditions. By default each cell keeps
        its own.
    """
    device = to_eval(module)
    modality = module.modalities[name]
    assert isinstance(modality, Modality)
    sums = _Sums(n_groups)
    with pyro.validation_enabled(False):
        for cpu_block, cpu_group_c in _blocks(parts, name):
            block, group_c = cpu_block.to(device), cpu_group_c.to(device)
            one_hot_gc, count_cf = sums.add_counts(block, name, group_c)
            state_cnz = sample_states(module, block, N_SAMPLES)
            _add_expected(sums, modality, block, name, (one_hot_gc, count_cf, state_cnz))
            _add_levels(sums, modality, block, (one_hot_gc, state_cnz), library_size, conditions)
    return DecodedSums(**sums.result())


def _add_expected(
    sums: _Sums, modality: Modality, block: Cells, name: str, drawn: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Add the expected counts of a block, averaged over the samples of each cell."""
    one_hot_gc, count_cf, state_cnz = drawn
    depth_c = block.library_size[name]
    expected_cf, variance_cf = torch.zeros_like(count_cf), torch.zeros_like(count_cf)
    for n in range(N_SAMPLES):
        heads = modality.decoder(state_cnz[:, n], block.category_ck, block.continuous_ck)
        expected_cf += modality.likelihood.observed_mean(heads, depth_c) / N_SAMPLES
        variance_cf += modality.likelihood.variance(heads, depth_c) / N_SAMPLES
    sums.add("count_square_gf", count_cf.square(), one_hot_gc)
    sums.add("expected_gf", expected_cf, one_hot_gc)
    sums.add("expected_square_gf", expected_cf.square(), one_hot_gc)
    sums.add("count_expected_gf", expected_cf.mul(count_cf), one_hot_gc)
    sums.add("variance_gf", variance_cf, one_hot_gc)


def _add_levels(
    sums: _Sums,
    modality: Modality,
    block: Cells,
    drawn: tuple[Tensor, Tensor],
    library_size: float,
    conditions: Sequence[CodedCondition],
) -> None:
    """Add the expected values of a block at a common library size, averaged over conditions."""
    one_hot_gc, state_cnz = drawn
    depth = state_cnz.new_tensor([library_size])
    for n in range(N_SAMPLES):
        level_cf: Tensor | None = None
        input_ch: Tensor | None = None
        for condition in conditions:
            covariates = condition.apply(block)
            part_ch = modality.decoder.inputs(state_cnz[:, n], *covariates)
            part_cf = modality.likelihood.mean(modality.decoder(state_cnz[:, n], *covariates), depth)
            level_cf = part_cf if level_cf is None else level_cf + part_cf
            input_ch = part_ch if input_ch is None else input_ch + part_ch
        assert level_cf is not None
        assert input_ch is not None
        level_cf /= len(conditions)
        sums.add("level_gf", level_cf / N_SAMPLES, one_hot_gc)
        sums.add("level_square_gf", level_cf.square() / N_SAMPLES, one_hot_gc)
        sums.add("input_gh", input_ch / (len(conditions) * N_SAMPLES), one_hot_gc)

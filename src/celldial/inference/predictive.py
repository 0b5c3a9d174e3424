"""Replicate data sets of cells, and what checks compare between replicates and observed counts.

A replicate has the covariates of the observed cells, latent states from their posteriors, and counts from the model.
Its latent states are then inferred from its own counts, as those of the observed cells are. Whatever the inference does
to a discrepancy, it does to both.

Axis suffixes: ``b`` batches, ``c`` cells, ``f`` features, ``t`` features with the most counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyro
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import one_hot

from celldial.data.cells import Cells, decode_blocks, row_totals, to_csr_tensor
from celldial.inference.posterior import sample_states, to_eval
from celldial.model.module import Module
from celldial.model.observations import SparseObservation
from celldial.ops.csr import CSRTensor

__all__ = ["Discrepancies", "Groups", "compare", "draw_counts", "replicate", "top_features", "training_ratio"]

# A zero where hardly any was expected is strong evidence, but a single one must not decide.
MIN_ZERO_PROBABILITY = 0.05
# Features with less information in the cells tell too little about the number of training cells.
MIN_INFORMATION = 3.0


@dataclass(frozen=True)
class Groups:
    """What discrepancies are summed over.

    Parameters
    ----------
    batch_c
        Batch of each cell, int64.
    n_batches
        Number of batches.
    top
        Modality to the columns of the features with the most counts, whose residuals are kept.
    """

    batch_c: np.ndarray
    n_batches: int
    top: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Discrepancies:
    """Sums over the cells of a modality that compare counts with their distribution, float64.

    Parameters
    ----------
    zero_excess_bf, zero_room_bf
        Zeros beyond those expected, and expected counts above zero, which could still be zeros. Both are weighted by
        one over the probability of a zero, as in the score of zero inflation.
    square_bf, variance_bf
        Squared deviations from the mean, and their expected values.
    mean_bf
        Expected counts.
    detected_c, expected_detected_c
        Number of features with a count in each cell that has the modality, and its expected value.
    library_size_c, batch_c
        Library size and batch of these cells.
    residual_ct
        Pearson residuals of the features with the most counts.
    """

    zero_excess_bf: np.ndarray
    zero_room_bf: np.ndarray
    square_bf: np.ndarray
    variance_bf: np.ndarray
    mean_bf: np.ndarray
    detected_c: np.ndarray
    expected_detected_c: np.ndarray
    library_size_c: np.ndarray
    batch_c: np.ndarray
    residual_ct: np.ndarray


def top_features(rows: CSRTensor, n_features: int) -> np.ndarray:
    """Return the columns of the features with the most counts, of those with any, ascending."""
    total_f = rows.sum_columns(rows.value_n).cpu().numpy()
    top_t = np.argsort(-total_f, kind="stable")[:n_features]
    return np.sort(top_t[total_f[top_t] > 0])


@torch.no_grad()
def compare(module: Module, cells: Cells, groups: Groups) -> dict[str, Discrepancies]:
    """Compare counts with their distribution at a draw of each latent state from its posterior, by modality."""
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in groups.top}
    start = 0
    for block, observations in _decoded(module, cells, list(groups.top)):
        batch_c = torch.from_numpy(groups.batch_c[start : start + len(block)]).to(block.category_ck.device)
        start += len(block)
        for name, observation in observations.items():
            index_c = block.indices_with(name)
            own_c = batch_c if index_c is None else batch_c[index_c]
            if len(own_c) > 0:
                counts_cf = block.observed_counts(name).to_dense()
                parts[name].append(_sums(observation, counts_cf, own_c, groups.n_batches, groups.top[name]))
    return {name: _total(part) for name, part in parts.items() if part}


def _sums(
    observation: SparseObservation, counts_cf: Tensor, batch_c: Tensor, n_batches: int, top_t: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the sums of one block; see `Discrepancies`."""
    likelihood, heads, library_size_c = observation.likelihood, observation.heads, observation.library_size_c
    mean_cf = likelihood.observed_mean(heads, library_size_c)
    variance_cf = likelihood.variance(heads, library_size_c)
    zero_cf = likelihood.zero_probability(heads, library_size_c)
    is_zero_cf = (counts_cf == 0).to(mean_cf)
    weight_cf = zero_cf.clamp_min(MIN_ZERO_PROBABILITY).reciprocal()
    residual_cf = counts_cf - mean_cf
    member_bc = one_hot(batch_c, n_batches).T.to(mean_cf)
    top = torch.from_numpy(top_t).to(batch_c.device)
    sums = {
        "zero_excess_bf": member_bc @ (weight_cf * (is_zero_cf - zero_cf)),
        "zero_room_bf": member_bc @ (weight_cf * (1 - zero_cf)),
        "square_bf": member_bc @ residual_cf.square(),
        "variance_bf": member_bc @ variance_cf,
        "mean_bf": member_bc @ mean_cf,
        "detected_c": (1 - is_zero_cf).sum(1),
        "expected_detected_c": (1 - zero_cf).sum(1),
        "library_size_c": library_size_c,
        "residual_ct": residual_cf[:, top] / variance_cf[:, top].clamp_min(1e-12).sqrt(),
    }
    as_arrays = {key: value.cpu().numpy().astype(np.float64) for key, value in sums.items()}
    return as_arrays | {"batch_c": batch_c.cpu().numpy()}


def _total(parts: Sequence[Mapping[str, np.ndarray]]) -> Discrepancies:
    """Add the sums of blocks, and concatenate what is known for each cell."""
    return Discrepancies(
        **{
            key: np.concatenate(values) if key.endswith(("_c", "_ct")) else np.sum(values, axis=0)
            for key in parts[0]
            for values in [[part[key] for part in parts]]
        }
    )


@torch.no_grad()
def replicate(module: Module, cells: Cells) -> Cells:
    """Return cells with the same covariates, and counts from the posterior predictive distribution."""
    parts: dict[str, list[sparse.csr_matrix]] = {name: [] for name in cells.counts}
    for _, rows_of in draw_counts(module, cells, list(cells.counts)):
        for name, rows in rows_of.items():
            parts[name].append(rows)
    counts = {name: sparse.vstack(rows, format="csr") for name, rows in parts.items()}
    library_size = {name: row_totals(rows) for name, rows in counts.items()}
    present = {name: total_c > 0 for name, total_c in library_size.items()}
    return replace(
        cells.to("cpu"),
        counts={name: to_csr_tensor(rows) for name, rows in counts.items()},
        library_size=library_size,
        present={name: present_c for name, present_c in present.items() if not bool(present_c.all())},
        angle_params_cq=None,
    )


@torch.no_grad()
def draw_counts(
    module: Module, cells: Cells, modalities: Sequence[str]
) -> Iterator[tuple[Cells, dict[str, sparse.csr_matrix]]]:
    """Draw latent states from their posteriors and counts given them, block by block, with torch's generator.

    Cells without a modality get no counts of it.

    Parameters
    ----------
    module
        A trained module.
    cells
        Counts and covariates.
    modalities
        Modalities to draw.

    Yields
    ------
    tuple[Cells, dict[str, scipy.sparse.csr_matrix]]
        The cells of a block, and modality to their drawn counts, float32, shape ``(c, f)``.
    """
    for block, observations in _decoded(module, cells, modalities):
        counts = {}
        for name, observation in observations.items():
            rows = sparse.csr_matrix(observation.sample().cpu().numpy().astype(np.float32))
            index_c = block.indices_with(name)
            if index_c is not None:
                has = (np.ones(len(index_c), dtype=np.float32), (index_c.cpu().numpy(), np.arange(len(index_c))))
                rows = sparse.csr_matrix(sparse.csr_matrix(has, shape=(len(block), len(index_c))) @ rows)
            counts[name] = rows
        yield block, counts


@torch.no_grad()
def _decoded(
    module: Module, cells: Cells, modalities: Sequence[str]
) -> Iterator[tuple[Cells, dict[str, SparseObservation]]]:
    """Yield cells block by block, with the distribution of their counts at a draw of each latent state."""
    device = to_eval(module)
    with pyro.validation_enabled(False):
        for part in decode_blocks(cells):
            block = part.to(device)
            state_cz = sample_states(module, block, 1)[:, 0]
            yield block, {name: module.decode_modality(name, state_cz, block) for name in modalities}


@torch.no_grad()
def training_ratio(module: Module, cells: Cells) -> dict[str, float]:
    """Return by modality how many cells there are for each training cell, from the uncertainty of the loadings.

    The precision of a feature's log rate is the information in the counts of the training cells. The information in the
    counts of other cells is in proportion to their number. Models of earlier versions do not have the uncertainty; the
    ratio is then that of a split into 9 training cells for each of these cells.
    """
    information: dict[str, Tensor] = {}
    for _, observations in _decoded(module, cells, list(cells.counts)):
        for name, each in observations.items():
            of_block_f = each.likelihood.fisher_information(each.heads, each.library_size_c).sum(0)
            information[name] = information.get(name, torch.zeros_like(of_block_f)) + of_block_f
    ratio = {}
    for name, modality in module.by_modality():
        information_f = information[name]
        known_f = information_f > min(MIN_INFORMATION, float(information_f.max()) / 2)
        ratio[name] = 1 / 9
        if modality.loadings is not None:
            ratio[name] = float((information_f * modality.loadings.covariance_fq[:, 0])[known_f].median())
    return ratio

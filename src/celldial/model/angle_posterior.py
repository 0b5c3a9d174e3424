"""The posterior of each cell's angle, computed from the decoder on a grid of angles, and the updates of training.

If an encoder of the angle were trained with the decoder by the ELBO, the angle would drift to the variation that
explains most counts. Training is therefore expectation maximization. `infer_angles` is the E step: given the decoder,
the posterior of each cell's angle and activity is exact up to the grid and up to fixing the other coordinates at their
means. The M step trains the decoder with these posteriors. The other functions update the decoder between stages.

A *point* is a place in the plane of the circle: one for each angle of the grid, and the center for inactive cells.

Axis suffixes: ``c`` cells, ``f`` features, ``j`` points, ``k`` Fourier features, ``q`` parameters of the angle
posterior, ``u`` the two coordinates of the plane, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import logsigmoid

from celldial.data.cells import Cells, decode_blocks
from celldial.model.networks import Decoder, Modality
from celldial.model.periodic import N_GRID, N_HARMONICS, Circle, angle_grid, fourier_features
from celldial.ops.csr import CSRTensor
from celldial.utils.warnings import warn

__all__ = [
    "decorrelate_from_angle",
    "infer_angles",
    "initialize_harmonics",
    "marker_curves",
    "pack_angle_posterior",
    "reflect",
    "rotate",
    "select_angle_features",
]

# Angles are inferred from features with at least this information about the angle, in nats summed over all cells, and
# from at most this number of them. A feature that does not depend on the angle has about 2 nats, from noise.
MIN_INFORMATION, MAX_FEATURES = 8.0, 500
# Number of features to use, with a warning, if no feature has that information.
N_FALLBACK_FEATURES = 20
# Pseudocounts of a feature at each angle, at its mean rate.
PSEUDOCOUNTS = 10.0
# Largest mean resultant length of an angle. It corresponds to a standard deviation of 0.02 radians.
MAX_LENGTH = 0.9998
# Concentration of the von Mises kernel that smooths the density of cells along the circle, and number of EM steps.
SMOOTHING, N_STEPS = 10.0, 30
# Concentration of the von Mises kernel that assigns cells to angles when harmonics are initialized.
NEIGHBOR_CONCENTRATION = 6.0
# Number of groups of similar cells, and least number of cells in a group on average, when the other coordinates are
# decorrelated from the angle; and how often groups and regression are updated in turn.
N_GROUPS, MIN_GROUP_CELLS, N_GROUPINGS = 8, 50, 5
# The start without the part that depends on the angle must have smaller residuals by this factor. Groups that divide a
# continuum by the angle have about the same residuals as others.
MIN_GAIN = 0.9
# Bound of the log odds of being active.
MAX_LOGIT = 12.0


def pack_angle_posterior(angle_c: Tensor, length_c: Tensor, active_c: Tensor) -> Tensor:
    """Return angle posteriors ``(c, q)`` from mean angle, mean resultant length and probability of being active."""
    length_c = length_c.clamp(0, MAX_LENGTH)
    logit_c = torch.logit(active_c.double(), 1e-7).clamp(-MAX_LOGIT, MAX_LOGIT).to(angle_c.dtype)
    return torch.stack([angle_c.cos(), angle_c.sin(), length_c / (1 - length_c), logit_c], 1)


# --- The E step -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def infer_angles(
    modalities: Mapping[str, Modality], circle: Circle, cells: Cells, mean_cz: Tensor, learn_prior: bool = False
) -> Tensor:
    """Return the parameters of each cell's angle posterior, shape ``(c, q)``.

    Parameters
    ----------
    modalities
        Modalities of a trained module, on the device of the cells.
    circle
        Periodic coordinate of the module.
    cells
        Any cells.
    mean_cz
        Means of their other coordinates, as the encoders return them.
    learn_prior
        Whether to learn the prior of angle and activity from these cells first.
    """
    point_ju = grid_points(cells.continuous_ck)
    log_lik_cj = torch.cat(
        [_log_likelihoods(modalities, block, z_cz, point_ju) for block, z_cz in _blocks(cells, mean_cz)]
    )
    if learn_prior:
        _learn_prior(circle, log_lik_cj[~cells.empty_c])
    log_joint_cj = log_lik_cj + _log_prior(circle)
    active_c = 1 - log_joint_cj.softmax(1)[:, -1]
    # The distribution of the angle given that a cell is active, from logarithms: the probability of this may be tiny.
    mean_cu = log_joint_cj[:, :-1].softmax(1) @ point_ju[:-1]
    angle_c = torch.atan2(mean_cu[:, 1], mean_cu[:, 0])
    return pack_angle_posterior(angle_c, mean_cu.norm(dim=1), active_c)


def grid_points(like: Tensor) -> Tensor:
    """Return the points of the grid: around the circle, then the center; shape ``(j, 2)``."""
    angle_j = angle_grid(like)
    return torch.cat([torch.stack([angle_j.cos(), angle_j.sin()], 1), angle_j.new_zeros(1, 2)])


def _blocks(cells: Cells, mean_cz: Tensor) -> Iterator[tuple[Cells, Tensor]]:
    """Yield blocks of cells that fit into memory when decoded, with the means of their coordinates."""
    start = 0
    for block in decode_blocks(cells):
        yield block, mean_cz[start : start + len(block)]
        start += len(block)


def _log_prior(circle: Circle) -> Tensor:
    """Return the log prior probability of each point, shape ``(j,)``."""
    active, inactive = logsigmoid(circle.active_logit), logsigmoid(-circle.active_logit)
    return torch.cat([circle.log_density_j + active, inactive[None]])


def _learn_prior(circle: Circle, log_lik_cj: Tensor) -> None:
    """Learn a smooth density of the angle and the probability of being active by expectation maximization."""
    kernel_j = torch.exp(SMOOTHING * (angle_grid(log_lik_cj).cos() - 1))
    kernel_j = torch.fft.rfft(kernel_j / kernel_j.sum())
    # If no cell was inactive at the start of training, no cell becomes inactive.
    has_inactive = bool(circle.active_logit < MAX_LOGIT)
    for _ in range(N_STEPS):
        weight_j = (log_lik_cj + _log_prior(circle)).softmax(1).double().mean(0)
        density_j = torch.fft.irfft(torch.fft.rfft(weight_j[:-1].float()) * kernel_j, N_GRID) + 1e-4 / N_GRID
        circle.log_density_j.copy_((density_j / density_j.sum()).clamp_min(1e-9).log())
        if has_inactive:
            circle.active_logit.copy_(torch.logit(1 - weight_j[-1], 1e-4).float())


def _log_likelihoods(modalities: Mapping[str, Modality], cells: Cells, mean_cz: Tensor, point_ju: Tensor) -> Tensor:
    """Return the log-likelihood of each cell at each point, up to a constant of the cell, shape ``(c, j)``."""
    total_cj = cells.continuous_ck.new_zeros(len(cells), len(point_ju))
    for name, modality in modalities.items():
        z_cz, *covariates, library_size_c = _inputs_of_observed(name, cells, mean_cz)
        decoder, likelihood = modality.decoder, modality.likelihood
        column_f = decoder.angle_feature_mask_f.nonzero()[:, 0]
        if len(column_f) == 0 or len(z_cz) == 0:
            continue
        effect_fj = decoder.harmonic_weight_fk @ fourier_features(point_ju).T
        center_cz = torch.cat([z_cz, z_cz.new_zeros(len(z_cz), 2)], 1)
        share_cf = (decoder(center_cz, *covariates)[0] - effect_fj[:, -1]).softmax(1)
        # Shares sum to 1 at every point, so features that rise lower the shares of all others.
        log_total_cj = (share_cf @ effect_fj.exp()).log()
        log_rate_cf = share_cf[:, column_f].log() + likelihood.log_exposure(library_size_c)[:, None]
        value_cf = _dense_columns(cells.observed_counts(name), column_f)
        log_lik_cj = torch.stack(
            [
                likelihood.entry_log_prob(
                    value_cf, log_rate_cf + effect_fj[column_f, j] - log_total_cj[:, j, None], column_f
                ).sum(1)
                for j in range(len(point_ju))
            ],
            1,
        )
        total_cj[cells.mask_with(name)] += log_lik_cj
    return total_cj


def _inputs_of_observed(name: str, cells: Cells, mean_cz: Tensor) -> list[Tensor]:
    """Return coordinates, covariates and library sizes of the cells that have a modality."""
    index_c = cells.indices_with(name)
    inputs = [mean_cz, cells.category_ck, cells.continuous_ck, cells.library_size[name]]
    return inputs if index_c is None else [tensor[index_c] for tensor in inputs]


def _dense_columns(counts: CSRTensor, column_f: Tensor) -> Tensor:
    """Return some columns of sparse counts as a dense matrix, shape ``(c, f)``."""
    position_f = torch.full((counts.n_columns,), -1, device=column_f.device)
    position_f[column_f] = torch.arange(len(column_f), device=column_f.device)
    position_n = position_f[counts.column_n]
    selected_n = position_n >= 0
    dense_cf = counts.value_n.new_zeros(counts.n_rows, len(column_f))
    dense_cf[counts.row_n[selected_n], position_n[selected_n]] = counts.value_n[selected_n]
    return dense_cf


# --- Updates of the decoders ------------------------------------------------------------------------------------------


@torch.no_grad()
def select_angle_features(modalities: Mapping[str, Modality], cells: Cells, mean_cz: Tensor) -> None:
    """Select the features from which angles are inferred: those with enough information about the angle.

    Parameters
    ----------
    modalities
        Modalities of a trained module.
    cells
        The training cells, with `angle_params_cq`.
    mean_cz
        Means of their other coordinates, as the encoders return them.
    """
    mean_feature_k = fourier_features(grid_points(cells.continuous_ck)[:-1]).mean(0)
    information = {
        name: modality.decoder.harmonic_weight_fk.new_zeros(len(modality.decoder.angle_feature_mask_f))
        for name, modality in modalities.items()
    }
    for block, block_cz in _blocks(cells, mean_cz):
        assert block.angle_params_cq is not None
        for name, modality in modalities.items():
            decoder = modality.decoder
            z_cz, *covariates, library_size_c = _inputs_of_observed(name, block, block_cz)
            # The rate of a single count and its background cannot be told apart without the other counts of the cell.
            if len(z_cz) == 0 or modality.likelihood.has_background:
                continue
            params_cq = block.angle_params_cq[block.mask_with(name)]
            point_cu, active_c1 = params_cq[:, :2], params_cq[:, 3:].sigmoid()
            heads = decoder(torch.cat([z_cz, point_cu], 1), *covariates)
            about_rate_cf = modality.likelihood.fisher_information(heads, library_size_c)
            effect_cf = (fourier_features(point_cu) - mean_feature_k) @ decoder.harmonic_weight_fk.T
            information[name] += 0.5 * (active_c1 * about_rate_cf * effect_cf.square()).sum(0)
    threshold = MIN_INFORMATION
    if not any(bool((information_f > threshold).any()) for information_f in information.values()):
        warn(
            "no feature carries much information about the angle: there are too few cells, counts or epochs, or the "
            "cells do not have the periodic process. Angles are inferred from the "
            f"{N_FALLBACK_FEATURES} most informative features; do not rely on them"
        )
        all_f = torch.cat(list(information.values()))
        threshold = float(all_f.topk(min(N_FALLBACK_FEATURES + 1, len(all_f))).values[-1])
    for name, modality in modalities.items():
        information_f = information[name]
        top_f = information_f.topk(min(MAX_FEATURES, len(information_f))).indices
        modality.decoder.angle_feature_mask_f.zero_()
        modality.decoder.angle_feature_mask_f[top_f[information_f[top_f] > threshold]] = True


@torch.no_grad()
def initialize_harmonics(
    modalities: Mapping[str, Modality], circle: Circle, cells: Cells, columns: Mapping[str, Tensor]
) -> None:
    """Initialize the harmonics of the decoders from the angles of the cells.

    For each angle of a grid, the counts of the cells near the angle are compared with those expected at mean rates.

    Parameters
    ----------
    modalities, circle
        Modalities and periodic coordinate of an untrained module.
    cells
        The training cells, with initial `angle_params_cq`.
    columns
        Modality to the columns of the features from which the initial angles come. Other features start without an
        effect of the angle, because they may differ along the circle for other reasons, such as cell types.
    """
    assert cells.angle_params_cq is not None
    x_c, y_c, _, logit_c = cells.angle_params_cq.unbind(1)
    active_fraction = float(logit_c.double().sigmoid().mean())
    has_inactive = bool((logit_c < MAX_LOGIT).any())
    active_logit = math.log(active_fraction / (1 - active_fraction)) if has_inactive else MAX_LOGIT
    circle.active_logit.fill_(min(active_logit, MAX_LOGIT))
    angle_j = angle_grid(x_c)[::2]
    kernel_cj = torch.exp(NEIGHBOR_CONCENTRATION * (x_c[:, None] * angle_j.cos() + y_c[:, None] * angle_j.sin() - 1))
    active_c1 = logit_c.sigmoid()[:, None]
    weight_cj = torch.cat([kernel_cj / kernel_cj.sum(1, keepdim=True) * active_c1, 1 - active_c1], 1)
    harmonic_jk = fourier_features(torch.stack([angle_j.cos(), angle_j.sin()], 1))[:, :-1]
    for name, column_f in columns.items():
        log_fold_fj = _log_fold_change(cells, name, weight_cj)
        on_circle_fj, inactive_f = log_fold_fj[:, :-1], log_fold_fj[:, -1]
        decoder = modalities[name].decoder
        weight_fk = torch.zeros_like(decoder.harmonic_weight_fk)
        centered_fj = on_circle_fj - on_circle_fj.mean(1, keepdim=True)
        weight_fk[:, :-1] = centered_fj @ harmonic_jk / harmonic_jk.square().sum(0)
        weight_fk[:, -1] = inactive_f - on_circle_fj.mean(1)
        decoder.harmonic_weight_fk.zero_()
        decoder.harmonic_weight_fk[column_f] = weight_fk[column_f]


def _log_fold_change(cells: Cells, name: str, weight_cj: Tensor) -> Tensor:
    """Return the log ratio of weighted sums of counts to those expected at mean rates, shape ``(f, j)``."""
    counts, library_size_c = cells.counts[name], cells.library_size[name]
    weight_cj = weight_cj * cells.mask_with(name)[:, None]
    total_fj = weight_cj.new_zeros(counts.n_columns, weight_cj.shape[1])
    for j in range(weight_cj.shape[1]):
        total_fj[:, j] = counts.sum_columns(counts.value_n * counts.expand_rows(weight_cj[:, j]))
    rate_f = total_fj.sum(1) / library_size_c.sum()
    expected_fj = rate_f[:, None] * (library_size_c @ weight_cj)
    return ((total_fj + PSEUDOCOUNTS) / (expected_fj + PSEUDOCOUNTS)).log()


@torch.no_grad()
def rotate(modalities: Mapping[str, Modality], angle: float) -> None:
    """Rotate the circle: the values decoded at θ become those decoded at θ + `angle`.

    The prior of the angle must be learned again afterwards. Rotate before `decorrelate_from_angle`.
    """
    for modality in modalities.values():
        weight_fk = modality.decoder.harmonic_weight_fk
        for harmonic in range(N_HARMONICS):
            cos, sin = math.cos((harmonic + 1) * angle), math.sin((harmonic + 1) * angle)
            a_f, b_f = weight_fk[:, 2 * harmonic].clone(), weight_fk[:, 2 * harmonic + 1].clone()
            weight_fk[:, 2 * harmonic] = a_f * cos - b_f * sin
            weight_fk[:, 2 * harmonic + 1] = a_f * sin + b_f * cos


@torch.no_grad()
def reflect(modalities: Mapping[str, Modality]) -> None:
    """Reflect the circle: the values decoded at θ become those decoded at -θ; as `rotate`."""
    for modality in modalities.values():
        modality.decoder.harmonic_weight_fk[:, 1 : 2 * N_HARMONICS : 2] *= -1


@torch.no_grad()
def decorrelate_from_angle(modalities: Mapping[str, Modality], cells: Cells, mean_cz: Tensor) -> None:
    """Remove from the coordinates the part that depends on the angle, which the decoders add back.

    This is a shear of the latent space, so decoded values do not change. The coordinates are regressed on the harmonics
    of the angle within groups of similar cells. Across all cells, differences between cell types with other angles
    would become a part of the circle. Groups and regression are updated in turn: groups are found in the coordinates
    without the part that depends on the angle, so that they are not phases. The start is the regression across
    all cells, or no regression if that leads to clearly smaller residuals.

    Parameters
    ----------
    modalities
        Modalities of a trained module.
    cells
        The training cells, with `angle_params_cq`.
    mean_cz
        Means of their other coordinates, as the encoders return them.
    """
    assert cells.angle_params_cq is not None
    point_cu = cells.angle_params_cq[:, :2] * cells.angle_params_cq[:, 3:].sigmoid()
    harmonic_ck = fourier_features(point_cu)[:, :-1]
    harmonic_ck, mean_cz = harmonic_ck.double(), mean_cz.double()
    one_group_c = torch.zeros(len(mean_cz), dtype=torch.int64, device=mean_cz.device)
    across_kz, _ = regress_within_groups(harmonic_ck, mean_cz, one_group_c)
    offset_kz, residual = group_and_regress(harmonic_ck, mean_cz, across_kz)
    from_zero_kz, residual_from_zero = group_and_regress(harmonic_ck, mean_cz, 0 * across_kz)
    if residual_from_zero < MIN_GAIN * residual:
        offset_kz = from_zero_kz
    for modality in modalities.values():
        modality.decoder.angle_offset_kz.copy_(offset_kz)


def group_and_regress(harmonic_ck: Tensor, mean_cz: Tensor, offset_kz: Tensor) -> tuple[Tensor, float]:
    """Update groups and regression in turn from a start; return the coefficients and the sum of squared residuals."""
    residual = math.inf
    for _ in range(N_GROUPINGS):
        group_c = similar_cells(mean_cz - harmonic_ck @ offset_kz)
        offset_kz, residual = regress_within_groups(harmonic_ck, mean_cz, group_c)
    return offset_kz, residual


def regress_within_groups(harmonic_ck: Tensor, mean_cz: Tensor, group_c: Tensor) -> tuple[Tensor, float]:
    """Regress coordinates on harmonics, each minus its mean in the group; as `group_and_regress`."""
    member_cg = torch.nn.functional.one_hot(group_c).to(mean_cz.dtype)
    share_gc = (member_cg / member_cg.sum(0).clamp_min(1)).T
    harmonic_ck, mean_cz = (value - member_cg @ (share_gc @ value) for value in (harmonic_ck, mean_cz))
    gram_kk = harmonic_ck.T @ harmonic_ck
    ridge_k = 1e-3 * gram_kk.diagonal() + 1e-9  # for cells that cover only a part of the circle
    offset_kz = torch.linalg.solve(gram_kk + ridge_k.diag(), harmonic_ck.T @ mean_cz)
    return offset_kz, float((mean_cz - harmonic_ck @ offset_kz).square().sum())


def similar_cells(value_cz: Tensor) -> Tensor:
    """Return the number of the group of each cell, by k-means from fixed starts: equal cells give equal groups."""
    n_groups = min(N_GROUPS, max(1, len(value_cz) // MIN_GROUP_CELLS))
    groups = KMeans(n_groups, n_init=5, random_state=0).fit(value_cz.cpu().numpy())
    return torch.from_numpy(groups.labels_).to(value_cz.device, torch.int64)


@torch.no_grad()
def log_rate_curves(decoder: Decoder, column_f: Tensor) -> Tensor:
    """Return the log rates of features around the circle, up to a constant of the feature, shape ``(f, j)``."""
    weight_fk = decoder.harmonic_weight_fk
    return weight_fk[column_f] @ fourier_features(grid_points(weight_fk)[:-1]).T


def marker_curves(decoder: Decoder, markers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the log rates of the markers of each phase around the circle, shape ``(f, j)``."""
    return {
        phase: log_rate_curves(decoder, torch.from_numpy(column_f)).cpu().numpy() for phase, column_f in markers.items()
    }

"""Where on the circle each cell is: its posterior, worked out from the decoder on a grid of angles.

A network that judges the angle, trained by the ELBO together with the decoder, drifts: the angle then follows whatever
explains most counts. So the two steps of expectation maximization are kept apart. Here is the first: given what the
decoder has learned, each cell's posterior over the angle, and over being active at all, is exact up to the grid and to
taking the other coordinates at their mean. Training, the second, takes these posteriors as they are.

Axis suffixes: ``c`` cells, ``f`` features, ``j`` angles on the grid, then rest, ``k`` what decoders read of a place on
the circle, ``q`` numbers of a belief, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from celldial.data.cells import Cells, decode_block_size
from celldial.model.module import Module
from celldial.model.periodic import N_GRID, N_HARMONICS, angle_grid, fourier_features
from celldial.ops.csr import CSRTensor
from celldial.utils.warnings import warn

__all__ = [
    "decorrelate_from_angle",
    "infer_angles",
    "initialize_harmonics",
    "log_rate_curves",
    "marker_curves",
    "pack_angle_posterior",
    "placed",
    "rotate",
    "select_angle_features",
]

# What a feature must tell of the angle over all cells, in nats, to be heard; and how many are, those that tell most.
# The coefficients of one that does not cycle are fitted to noise, and seem to tell about 2.
MIN_INFORMATION, MAX_FEATURES = 8.0, 500
# How many are heard where none tells so much, with a warning.
FEW_FEATURES = 20
# Counts that a feature is given in advance at each angle, at its mean rate.
PRIOR_COUNTS = 10.0
# How concentrated the angle may be: a standard deviation of 0.02.
MAX_LENGTH = 0.9998
# Of the density of cells along the circle: how far the eye is squinted (von Mises), and steps to find it.
SMOOTHING, N_STEPS = 10.0, 30
MAX_LOGIT = 12.0


def pack_angle_posterior(angle_c: Tensor, length_c: Tensor, active_c: Tensor) -> Tensor:
    """Pack angle, mean resultant length and P(active) as `celldial.model.periodic.Circle.posterior` reads them."""
    length_c = length_c.clamp(0, MAX_LENGTH)
    logit_c = torch.logit(active_c.double(), 1e-7).clamp(-MAX_LOGIT, MAX_LOGIT).to(angle_c.dtype)
    return torch.stack([angle_c.cos(), angle_c.sin(), length_c / (1 - length_c), logit_c], 1)


@torch.no_grad()
def infer_angles(module: Module, cells: Cells, learn_prior: bool = False) -> Cells:
    """Say of cells where on the circle they are.

    Parameters
    ----------
    module
        Trained, with a circle, on the device of the cells.
    cells
        Any cells.
    learn_prior
        Whether to find, from these cells, how common each angle and being active are. Otherwise the module knows.
    """
    assert module.circle is not None
    module.eval()
    state_ju = _places(cells.continuous_ck)
    log_lik_cj = torch.cat([_log_likelihoods(module, block, state_ju) for block in _blocks(module, cells)])
    filled_c = ~cells.empty_c
    if learn_prior:
        _learn_prior(module, log_lik_cj[filled_c])
    log_prior_j = _log_prior(module)
    posterior_cj = (log_lik_cj + log_prior_j).softmax(1)
    active_c = 1 - posterior_cj[:, -1]
    # Given that a cell is active; taken from the logarithms, because that may be hardly possible.
    angle_cj = (log_lik_cj + log_prior_j)[:, :-1].softmax(1)
    mean_cu = angle_cj @ state_ju[:-1]
    angle_c = torch.atan2(mean_cu[:, 1], mean_cu[:, 0])
    return replace(cells, angle_params_cq=pack_angle_posterior(angle_c, mean_cu.norm(dim=1), active_c))


def placed(module: Module, cells: Cells) -> Cells:
    """Say where cells are if the module has a circle, and it was not said yet; otherwise give them back as they are."""
    return cells if module.circle is None or cells.angle_params_cq is not None else infer_angles(module, cells)


def _places(like: Tensor) -> Tensor:
    """Points on the disc to compare: around the circle, then the middle, shape ``(j, 2)``."""
    angle_j = angle_grid(like)
    return torch.cat([torch.stack([angle_j.cos(), angle_j.sin()], 1), angle_j.new_zeros(1, 2)])


def _blocks(module: Module, cells: Cells) -> Iterator[Cells]:
    n_cells = decode_block_size(max(*module.n_features.values(), MAX_FEATURES))
    for start_ in range(0, len(cells), n_cells):
        yield cells.slice(start_, min(start_ + n_cells, len(cells)))


def _log_prior(module: Module) -> Tensor:
    """Log probability of each place, shape ``(j,)``."""
    circle = module.circle
    assert circle is not None
    active = torch.nn.functional.logsigmoid(circle.active_logit)
    rest = torch.nn.functional.logsigmoid(-circle.active_logit)
    return torch.cat([circle.log_density_j + active, rest[None]])


def _learn_prior(module: Module, log_lik_cj: Tensor) -> None:
    """Find how common each angle is, smoothly, and being active, by expectation maximization."""
    circle = module.circle
    assert circle is not None
    smoothing_j = torch.exp(SMOOTHING * (angle_grid(log_lik_cj).cos() - 1))
    smoothing_j = torch.fft.rfft(smoothing_j / smoothing_j.sum())
    rests = bool(circle.active_logit < MAX_LOGIT)  # where no cell was at rest at first, none is later
    for _ in range(N_STEPS):
        share_j = (log_lik_cj + _log_prior(module)).softmax(1).double().mean(0)
        density_j = torch.fft.irfft(torch.fft.rfft(share_j[:-1].float()) * smoothing_j, N_GRID) + 1e-4 / N_GRID
        circle.log_density_j.copy_((density_j / density_j.sum()).clamp_min(1e-9).log())
        if rests:
            circle.active_logit.copy_(torch.logit(1 - share_j[-1], 1e-4).float())


def _latent_mean(module: Module, cells: Cells) -> Tensor:
    """Mean of the Gaussian coordinates, which the circle has no say in."""
    unknown_cq = cells.continuous_ck.new_zeros(len(cells), 4)
    return module.posterior(replace(cells, angle_params_cq=unknown_cq))["z"].mean


def _of_those_having(name: str, cells: Cells, mean_cz: Tensor) -> list[Tensor]:
    """Give latent means, covariates and library sizes of the cells that have a modality."""
    index_c = cells.indices_with(name)
    inputs = [mean_cz, cells.category_ck, cells.continuous_ck, cells.library_size[name]]
    return inputs if index_c is None else [tensor[index_c] for tensor in inputs]


def _log_likelihoods(module: Module, cells: Cells, state_ju: Tensor) -> Tensor:
    """Log-likelihood of each cell at each place, up to a constant of the cell, shape ``(c, j)``."""
    total_cj = cells.continuous_ck.new_zeros(len(cells), len(state_ju))
    mean_cz = _latent_mean(module, cells)
    for name, modality in module.by_modality():
        z_cz, *covariates, library_size_c = _of_those_having(name, cells, mean_cz)
        decoder, likelihood = modality.decoder, modality.likelihood
        assert decoder.harmonics is not None
        column_f = decoder.cycles_f.nonzero()[:, 0]
        if len(column_f) == 0 or len(z_cz) == 0:
            continue
        effect_fj = decoder.harmonics.weight @ fourier_features(state_ju).T
        middle_cz = torch.cat([z_cz, z_cz.new_zeros(len(z_cz), 2)], 1)
        share_cf = (decoder(middle_cz, *covariates)[0] - effect_fj[:, -1]).softmax(1)
        # Shares sum to 1 at every place: this is what the others of the features that rise there must give.
        log_total_cj = (share_cf @ effect_fj.exp()).log()
        log_rate_cf = share_cf[:, column_f].log() + likelihood.log_exposure(library_size_c)[:, None]
        value_cf = _columns(cells.observed_counts(name), column_f)
        log_lik_cj = torch.stack(
            [
                likelihood.entry_log_prob(
                    value_cf, log_rate_cf + effect_fj[column_f, j] - log_total_cj[:, j, None], column_f
                ).sum(1)
                for j in range(len(state_ju))
            ],
            1,
        )
        total_cj[cells.mask_with(name)] += log_lik_cj
    return total_cj


def _columns(counts: CSRTensor, column_f: Tensor) -> Tensor:
    """Take some columns of sparse rows, dense, shape ``(c, f)``."""
    place_f = torch.full((counts.n_columns,), -1, device=column_f.device)
    place_f[column_f] = torch.arange(len(column_f), device=column_f.device)
    place_n = place_f[counts.column_n]
    wanted_n = place_n >= 0
    dense_cf = counts.value_n.new_zeros(counts.n_rows, len(column_f))
    dense_cf[counts.row_n[wanted_n], place_n[wanted_n]] = counts.value_n[wanted_n]
    return dense_cf


@torch.no_grad()
def select_angle_features(module: Module, cells: Cells) -> None:
    """Choose the features that the angle is told by: those whose expected counts change enough along the circle.

    Parameters
    ----------
    module
        Trained, with a circle.
    cells
        The cells trained on, located.
    """
    module.eval()
    assert cells.angle_params_cq is not None
    everywhere_ku = fourier_features(_places(cells.continuous_ck)[:-1]).mean(0)
    told = {name: cells.continuous_ck.new_zeros(n) for name, n in module.n_features.items()}
    for block in _blocks(module, cells):
        mean_cz = _latent_mean(module, block)
        for name, modality in module.by_modality():
            decoder = modality.decoder
            assert decoder.harmonics is not None
            assert block.angle_params_cq is not None
            z_cz, *covariates, library_size_c = _of_those_having(name, block, mean_cz)
            angle_params_cq = block.angle_params_cq[block.mask_with(name)]
            if len(z_cz) == 0:
                continue
            state_cz = torch.cat([z_cz, angle_params_cq[:, :2]], 1)
            information_cf = modality.likelihood.fisher_information(decoder(state_cz, *covariates), library_size_c)
            away_cf = decoder.harmonics(fourier_features(angle_params_cq[:, :2]) - everywhere_ku)
            told[name] += 0.5 * (angle_params_cq[:, 3].sigmoid()[:, None] * information_cf * away_cf.square()).sum(0)
    least = MIN_INFORMATION
    if not any(bool((told_f > least).any()) for told_f in told.values()):
        warn(
            "no feature tells the angle well: there are too few cells, counts or epochs, or the cells have no such "
            f"rhythm. Angles are told by the {FEW_FEATURES} features that tell most; do not rely on them",
        )
        all_f = torch.cat(list(told.values()))
        least = float(all_f.topk(min(FEW_FEATURES + 1, len(all_f))).values[-1])
    for name, modality in module.by_modality():
        most_f = told[name].topk(min(MAX_FEATURES, len(told[name]))).indices
        modality.decoder.cycles_f.zero_()
        modality.decoder.cycles_f[most_f[told[name][most_f] > least]] = True


@torch.no_grad()
def initialize_harmonics(module: Module, cells: Cells, column: Mapping[str, Tensor]) -> None:
    """Start the decoders' harmonics from where the cells are taken to be.

    The counts of cells near each of some angles are compared with what is expected of so many cells at mean rates.

    Parameters
    ----------
    module
        To be trained, with a circle.
    cells
        The cells to train on, with a first belief where they are.
    column
        Modality to the columns of features that these angles were found by. Others start without any effect, lest
        what differs between cell types for other reasons is taken for a part of the cycle.
    """
    assert cells.angle_params_cq is not None
    assert module.circle is not None
    rests = bool((cells.angle_params_cq[:, 3] < MAX_LOGIT).any())
    share = float(cells.angle_params_cq[:, 3].double().sigmoid().mean())
    module.circle.active_logit.fill_(min(math.log(share / (1 - share)), MAX_LOGIT) if rests else MAX_LOGIT)
    x_c, y_c, _, logit_c = cells.angle_params_cq.unbind(1)
    angle_j = angle_grid(x_c)[::2]
    nearness_cj = torch.exp(6 * (x_c[:, None] * angle_j.cos() + y_c[:, None] * angle_j.sin() - 1))
    active_c1 = logit_c.sigmoid()[:, None]
    weight_cj = torch.cat([nearness_cj / nearness_cj.sum(1, keepdim=True) * active_c1, 1 - active_c1], 1)
    basis_jk = fourier_features(torch.stack([angle_j.cos(), angle_j.sin()], 1))[:, :-1]
    for name, modality in module.by_modality():
        if name not in column:
            continue
        counts, library_size_c, has_c = cells.counts[name], cells.library_size[name], cells.mask_with(name)
        weight_here_cj = weight_cj * has_c[:, None]
        total_fj = x_c.new_zeros(counts.n_columns, weight_cj.shape[1])
        for j in range(weight_cj.shape[1]):
            total_fj[:, j] = counts.sum_columns(counts.value_n * counts.expand_rows(weight_here_cj[:, j]))
        rate_f = total_fj.sum(1) / library_size_c.sum()
        expected_fj = rate_f[:, None] * (library_size_c @ weight_here_cj)
        log_fold_fj = ((total_fj + PRIOR_COUNTS) / (expected_fj + PRIOR_COUNTS)).log()
        around_fj, rest_f = log_fold_fj[:, :-1], log_fold_fj[:, -1]
        decoder = modality.decoder
        assert decoder.harmonics is not None
        weight_fk = torch.zeros_like(decoder.harmonics.weight)
        weight_fk[:, :-1] = (around_fj - around_fj.mean(1, keepdim=True)) @ basis_jk / basis_jk.square().sum(0)
        weight_fk[:, -1] = rest_f - around_fj.mean(1)
        decoder.harmonics.weight.zero_()
        decoder.harmonics.weight[column[name]] = weight_fk[column[name]]


@torch.no_grad()
def rotate(module: Module, by: float) -> None:
    """Turn the circle: what was at the angle θ is then at θ + `by`, and nothing else changes.

    How common each angle is has to be learned again. To be done before `decorrelate_from_angle`.
    """
    for _, modality in module.by_modality():
        assert modality.decoder.harmonics is not None
        weight_fk = modality.decoder.harmonics.weight
        for harmonic in range(N_HARMONICS):
            cos, sin = math.cos((harmonic + 1) * by), math.sin((harmonic + 1) * by)
            a_f, b_f = weight_fk[:, 2 * harmonic].clone(), weight_fk[:, 2 * harmonic + 1].clone()
            weight_fk[:, 2 * harmonic] = a_f * cos - b_f * sin
            weight_fk[:, 2 * harmonic + 1] = a_f * sin + b_f * cos


@torch.no_grad()
def decorrelate_from_angle(module: Module, cells: Cells) -> None:
    """Relieve the Gaussian coordinates of what they tell of the angle, and tell the decoder from the angle instead.

    A shear of the latent space: what is decoded stays the same. Coordinates are regressed on the harmonics.

    Parameters
    ----------
    module
        Trained, with a circle.
    cells
        The cells trained on, located.
    """
    module.eval()
    assert cells.angle_params_cq is not None
    decoders = [modality.decoder for _, modality in module.by_modality()]
    mean_cz = torch.cat([_latent_mean(module, block) for block in _blocks(module, cells)])
    place_cu = cells.angle_params_cq[:, :2] * cells.angle_params_cq[:, 3:].sigmoid()
    harmonic_ck = fourier_features(place_cu)[:, :-1]
    harmonic_ck = (harmonic_ck - harmonic_ck.mean(0)).double()
    gram_kk = harmonic_ck.T @ harmonic_ck
    ridge_k = 1e-3 * gram_kk.diagonal() + 1e-9  # for cells that fill an arc only
    tilt_kz = torch.linalg.solve(gram_kk + ridge_k.diag(), harmonic_ck.T @ mean_cz.double())
    for decoder in decoders:
        decoder.tilt_kz.copy_(tilt_kz)


@torch.no_grad()
def log_rate_curves(module: Module, modality: str, column_f: Tensor) -> Tensor:
    """Log rates of features around the circle, up to what does not change along it, shape ``(f, j)``."""
    decoder = dict(module.by_modality())[modality].decoder
    assert decoder.harmonics is not None
    turning_jk = fourier_features(_places(decoder.harmonics.weight)[:-1])
    return decoder.harmonics.weight[column_f] @ turning_jk.T


def marker_curves(module: Module, markers: Mapping[str, np.ndarray], modality: str) -> dict[str, np.ndarray]:
    """Log rates of the markers of each phase around the circle, shape ``(f, j)``."""
    return {
        name: log_rate_curves(module, modality, torch.from_numpy(column_f)).cpu().numpy()
        for name, column_f in markers.items()
    }


def density(module: Module) -> np.ndarray:
    """How common each angle is, sums to 1, shape ``(j,)``."""
    assert module.circle is not None
    density_j: np.ndarray = module.circle.log_density_j.double().softmax(0).cpu().numpy()
    return density_j

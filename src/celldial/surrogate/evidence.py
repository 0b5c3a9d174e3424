r"""The evidence of cells as a function of the parameters of a simulator, and its normal approximation.

The counts depend on the parameters only through the latent state and the library sizes. With draws :math:`z_i` from the
encoder's posterior of a cell, its evidence is the mean of :math:`p(x \mid z_i) \, p(z_i, \ell \mid \phi) / q(z_i)`, and
only the density in the middle has to be computed again for other parameters φ.

Axis suffixes: ``c`` cells, ``d`` columns of the density, ``k`` parameters, ``m`` modalities, ``n`` draws, ``s`` points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from celldial.data.cells import Cells, decode_blocks
from celldial.inference.posterior import to_eval
from celldial.model.module import Module
from celldial.model.observations import MaskedObservation
from celldial.surrogate.calibration import NormalPosterior
from celldial.surrogate.density import LatentDensity
from celldial.surrogate.parameters import ParameterSpace
from celldial.utils.random import isolate_rng

__all__ = ["Evidence", "draw_states", "fit_normal", "log_sizes"]

# Draws of each cell.
N_DRAWS = 16
# Steps of the optimizer, and initial standard deviation of the posterior.
MAX_STEPS, INITIAL_SCALE = 30, 0.2
TOLERANCE = 1e-3


def log_sizes(cells: Cells, jitter: bool = False) -> Tensor:
    """Return the log of one plus the library size in each modality, shape ``(c, m)``.

    With `jitter`, whole numbers become continuous, so that a density can describe them.
    """
    size_cm = torch.stack(list(cells.library_size.values()), 1)
    if jitter:
        size_cm = size_cm + torch.rand_like(size_cm) - 0.5
    return size_cm.log1p()


@dataclass(frozen=True)
class Evidence:
    """The log evidence of cells.

    Parameters
    ----------
    space, density
        Parameters, and the density given them.
    value_nd
        Draws of latent states with log library sizes, for all draws of all cells in turn.
    log_weight_nc
        Log-likelihood of the counts minus the log density of the draw.
    """

    space: ParameterSpace
    density: LatentDensity
    value_nd: Tensor
    log_weight_nc: Tensor

    @classmethod
    def of_cells(
        cls, module: Module, density: LatentDensity, space: ParameterSpace, cells: Cells, seed: int
    ) -> Evidence:
        """Draw latent states of the cells."""
        value_ncd, log_weight_nc = draw_states(module, cells, seed)
        return cls(space, density, value_ncd.flatten(0, 1), log_weight_nc)

    def __call__(self, coordinate_k: Tensor) -> Tensor:
        """Return the log evidence of all cells at coordinates of the parameters."""
        scaled_k = self.space.scaled(self.space.to_value(coordinate_k)).float()
        log_p_n = self.density.log_prob(self.value_nd, scaled_k.expand(len(self.value_nd), -1))
        log_p_nc = log_p_n.view_as(self.log_weight_nc)
        return (self.log_weight_nc + log_p_nc).logsumexp(0).double().sum()


def draw_states(module: Module, cells: Cells, seed: int, jitter: bool = False) -> tuple[Tensor, Tensor]:
    """Draw latent states of cells from their posteriors.

    Parameters
    ----------
    module
        A trained module.
    cells
        Cells.
    seed
        Seed of the random numbers.
    jitter
        As in `log_sizes`.

    Returns
    -------
    tuple[Tensor, Tensor]
        Columns of the density, shape ``(n, c, d)``, and log weights without the density, shape ``(n, c)``.
    """
    device = to_eval(module)
    values, weights = [], []
    with torch.no_grad(), isolate_rng(seed):
        for block in decode_blocks(cells):
            drawn = [_draw(module, block.to(device), jitter) for _ in range(N_DRAWS)]
            values.append(torch.stack([value_cd for value_cd, _ in drawn]))
            weights.append(torch.stack([log_weight_c for _, log_weight_c in drawn]))
    return torch.cat(values, 1), torch.cat(weights, 1)


def _draw(module: Module, cells: Cells, jitter: bool) -> tuple[Tensor, Tensor]:
    """Return a draw of the columns of the density, and its log weight without the density."""
    posterior = module.posterior_distributions(module.encode(cells), cells)["z"]
    z_cz = posterior.sample()
    log_weight_c = -posterior.log_prob(z_cz)
    for name, observation in module.decode(z_cz, cells).items():
        observed = MaskedObservation(observation, cells.indices_with(name), len(cells))
        log_weight_c = log_weight_c + observed.log_prob(cells.observed_counts(name))
    return torch.cat([z_cz, log_sizes(cells, jitter)], 1).cpu(), log_weight_c.cpu()


def fit_normal(evidence: Evidence, seed: int) -> NormalPosterior:
    r"""Fit a normal posterior of the coordinates by variational inference.

    The posterior is reparameterized, :math:`u = m + C \epsilon`, with fixed points ε: the directions of a random
    rotation, with both signs. Their mean is 0 and their covariance the identity, so that the ELBO is exact if the log
    evidence is quadratic.

    Parameters
    ----------
    evidence
        The evidence of the cells.
    seed
        Seed of the rotation.
    """
    n = len(evidence.space.ranges)
    generator = torch.Generator().manual_seed(seed)
    rotation_kk = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
    noise_sk = math.sqrt(n) * torch.cat([rotation_kk, -rotation_kk])
    row_l, column_l = torch.tril_indices(n, n, -1)
    mean_k = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    log_scale_k = torch.full((n,), math.log(INITIAL_SCALE), dtype=torch.float64, requires_grad=True)
    lower_l = torch.zeros(len(row_l), dtype=torch.float64, requires_grad=True)

    def factor() -> Tensor:
        unit_kk = torch.eye(n, dtype=torch.float64).index_put((row_l, column_l), lower_l)
        return log_scale_k.exp()[:, None] * unit_kk

    optimizer = torch.optim.LBFGS(
        [mean_k, log_scale_k, lower_l],
        max_iter=MAX_STEPS,
        max_eval=2 * MAX_STEPS,
        tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def negative_elbo() -> Tensor:
        optimizer.zero_grad()
        factor_kk = factor()
        loss = 0.5 * (factor_kk.square().sum() + mean_k.square().sum() - n) - log_scale_k.sum()
        loss.backward(retain_graph=True)
        total = loss.detach()
        for noise_k in noise_sk:  # one by one, so that the memory is that of one point
            loss = -evidence(mean_k + factor_kk @ noise_k) / len(noise_sk)
            loss.backward(retain_graph=True)
            total = total + loss.detach()
        return total

    optimizer.step(negative_elbo)
    with torch.no_grad():
        factor_kk = factor()
        return NormalPosterior(mean_k.numpy().copy(), (factor_kk @ factor_kk.T).numpy())

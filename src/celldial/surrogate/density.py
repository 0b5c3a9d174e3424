"""The distribution of latent states and library sizes of cells given the parameters of a simulator.

It is an autoregressive mixture: each column is a mixture of normal distributions, given the columns before it and the
parameters. In the conditional VAE, it takes the place of the prior.

Axis suffixes: ``b`` mixture components, ``c`` cells, ``d`` columns, ``i`` terms of the regression, ``k`` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

__all__ = ["LatentDensity", "fit_density", "refine_density"]

N_COMPONENTS, N_UNITS, N_LAYERS = 8, 64, 2
# Smallest standard deviation of a component, in units of that of its column.
MIN_SCALE = 0.02
# Training: passes over the cells, and bounds of the number of steps.
BATCH_SIZE, LEARNING_RATE, N_EPOCHS, MIN_STEPS, MAX_STEPS = 512, 5e-3, 60, 300, 1500
# The same for the fit to the evidence.
REFINED_CELLS, REFINED_LEARNING_RATE, N_REFINED_EPOCHS, MIN_REFINED, MAX_REFINED = 128, 2e-3, 6, 100, 800
# Without the decay, and without noise in the parameters that the network reads, the density would follow the random
# differences between the settings of the simulations.
WEIGHT_DECAY, PARAMETER_NOISE = 0.3, 0.15
# Bound of the norm of a gradient.
MAX_GRADIENT = 10.0


class LatentDensity(nn.Module):
    """An autoregressive mixture of normal distributions around a regression on the parameters.

    Parameters
    ----------
    n_columns
        Number of columns: latent states, then log library sizes.
    n_parameters
        Number of parameters, which are scaled to the range from -1 to 1.
    """

    mean_d: Tensor
    slope_id: Tensor
    scale_d: Tensor

    def __init__(self, n_columns: int, n_parameters: int) -> None:
        super().__init__()
        self.n_columns = n_columns
        self.network = ConditionalAutoRegressiveNN(
            n_columns,
            2 * n_parameters,
            [N_UNITS] * N_LAYERS,
            param_dims=[N_COMPONENTS] * 3,
            permutation=torch.arange(n_columns),
            nonlinearity=nn.SiLU(),
        )
        self.register_buffer("mean_d", torch.zeros(n_columns))
        self.register_buffer("slope_id", torch.zeros(2 * n_parameters, n_columns))
        self.register_buffer("scale_d", torch.ones(n_columns))

    def initialize(self, value_cd: Tensor, parameter_ck: Tensor) -> None:
        """Initialize the regression, and spread the components."""
        design = torch.cat([torch.ones(len(value_cd), 1), terms(parameter_ck)], 1).double()
        solution = torch.linalg.lstsq(design, value_cd.double(), driver="gelsd").solution
        self.mean_d.copy_(solution[0])
        self.slope_id.copy_(solution[1:])
        self.scale_d.copy_((value_cd - self._center(parameter_ck)).std(0).clamp_min(1e-6))
        with torch.no_grad():
            _, center_bd, log_scale_bd = self.network.layers[-1].bias.view(3, N_COMPONENTS, -1)
            center_bd += torch.randn_like(center_bd)
            log_scale_bd -= 0.7

    def log_prob(self, value_cd: Tensor, parameter_ck: Tensor) -> Tensor:
        """Return the log density, shape ``(c,)``."""
        x_cd = (value_cd - self._center(parameter_ck)) / self.scale_d
        log_weight_cbd, center_cbd, log_scale_cbd = self._components(x_cd, parameter_ck)
        error_cbd = (x_cd[:, None] - center_cbd) * (-log_scale_cbd).exp()
        log_p_cbd = log_weight_cbd - log_scale_cbd - 0.5 * error_cbd.square()
        constant_d = 0.5 * math.log(2 * math.pi) + self.scale_d.log()
        log_p_c: Tensor = (log_p_cbd.logsumexp(1) - constant_d).sum(1)
        return log_p_c

    @torch.no_grad()
    def sample(self, parameter_ck: Tensor) -> Tensor:
        """Return a draw for each row of parameters, with torch's generator, shape ``(c, d)``."""
        x_cd = parameter_ck.new_zeros(len(parameter_ck), self.n_columns)
        for d in range(self.n_columns):
            log_weight_cb, center_cb, log_scale_cb = (part[:, :, d] for part in self._components(x_cd, parameter_ck))
            chosen_c1 = torch.multinomial(log_weight_cb.exp(), 1)
            center_c, log_scale_c = (part_cb.gather(1, chosen_c1)[:, 0] for part_cb in (center_cb, log_scale_cb))
            x_cd[:, d] = center_c + log_scale_c.exp() * torch.randn(len(x_cd))
        return self._center(parameter_ck) + self.scale_d * x_cd

    def _center(self, parameter_ck: Tensor) -> Tensor:
        """Return the regression of the columns on the parameters and their squares."""
        return self.mean_d + terms(parameter_ck) @ self.slope_id

    def _components(self, x_cd: Tensor, parameter_ck: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, centers and log scales of the components, each of shape ``(c, b, d)``."""
        if self.training:
            parameter_ck = parameter_ck + PARAMETER_NOISE * torch.randn_like(parameter_ck)
        logit_cbd, center_cbd, raw_cbd = self.network(x_cd, terms(parameter_ck))
        return logit_cbd.log_softmax(1), center_cbd, (MIN_SCALE + raw_cbd.exp()).log()


def terms(parameter_ck: Tensor) -> Tensor:
    """Return the parameters and their squares, which are orthogonal to them, shape ``(c, i)``."""
    return torch.cat([parameter_ck, (3 * parameter_ck.square() - 1) / 2], -1)


def fit_density(draw: Callable[[], tuple[Tensor, Tensor]]) -> LatentDensity:
    """Fit the density by maximum likelihood, with torch's generator.

    Parameters
    ----------
    draw
        Returns the columns ``(c, d)`` and the scaled parameters ``(c, k)`` of all cells. Each call draws from the
        posteriors of the cells again.
    """
    value_cd, parameter_ck = draw()
    density = LatentDensity(value_cd.shape[1], parameter_ck.shape[1])
    density.initialize(value_cd, parameter_ck)
    n_steps = min(max(round(N_EPOCHS * len(value_cd) / BATCH_SIZE), MIN_STEPS), MAX_STEPS)
    order_c = torch.empty(0, dtype=torch.int64)

    def loss() -> Tensor:
        nonlocal value_cd, parameter_ck, order_c
        if len(order_c) == 0:
            value_cd, parameter_ck = draw()
            order_c = torch.randperm(len(value_cd))
        index_c, order_c = order_c[:BATCH_SIZE], order_c[BATCH_SIZE:]
        return -density.log_prob(value_cd[index_c], parameter_ck[index_c]).mean()

    _minimize(density, loss, LEARNING_RATE, n_steps)
    return density


def refine_density(density: LatentDensity, value_ncd: Tensor, log_weight_nc: Tensor, parameter_ck: Tensor) -> None:
    """Fit the density further, by maximizing the evidence of the cells.

    The posteriors of the cells come from a model whose prior does not depend on the parameters, so draws from them
    differ less between parameters than they should. In the evidence, the density itself is the prior.

    Parameters
    ----------
    density
        The density, which is changed.
    value_ncd
        Columns of several draws of each cell.
    log_weight_nc
        Log-likelihood of the counts minus the log density of the draw.
    parameter_ck
        Scaled parameters of the cells.
    """

    def loss() -> Tensor:
        index_c = torch.randint(value_ncd.shape[1], (REFINED_CELLS,))
        value_nd = value_ncd[:, index_c].flatten(0, 1)
        log_p_n = density.log_prob(value_nd, parameter_ck[index_c].repeat(len(value_ncd), 1))
        return -(log_p_n.view(len(value_ncd), -1) + log_weight_nc[:, index_c]).logsumexp(0).mean()

    n_steps = min(max(round(N_REFINED_EPOCHS * value_ncd.shape[1] / REFINED_CELLS), MIN_REFINED), MAX_REFINED)
    _minimize(density, loss, REFINED_LEARNING_RATE, n_steps)


def _minimize(density: LatentDensity, loss: Callable[[], Tensor], learning_rate: float, n_steps: int) -> None:
    """Minimize a loss, and leave the density in evaluation mode."""
    density.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(density.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(density.parameters(), MAX_GRADIENT)
        optimizer.step()
        schedule.step()
    density.eval().requires_grad_(False)

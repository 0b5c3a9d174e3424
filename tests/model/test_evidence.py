"""ELBO and importance weights of a module with one latent coordinate, compared with exact integrals on a grid."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from celldial.data.cells import Cells
from celldial.model.module import Module
from celldial.model.networks import DecoderName
from helpers.modules import build_module, sizes_of
from helpers.simulate import simulate_cells


def make_module(
    cells: Cells,
    likelihood: str = "negative_binomial",
    n_latent: int = 3,
    n_layers: int = 1,
    decoder: DecoderName = "network",
) -> Module:
    torch.manual_seed(0)
    options = {"n_latent": n_latent, "n_layers": n_layers, "dropout_rate": 0.2, "decoder": decoder}
    module = build_module(likelihood=likelihood, **sizes_of(cells), **options)
    module.initialize(cells)
    return module


# --- One latent coordinate and a Poisson: the evidence is an integral over a line, computed on a grid -----------------

STEP = 0.002
GRID_S = torch.arange(-8, 8, STEP, dtype=torch.float64)
PRIOR = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
N_DRAWS = 20_000


@cache
def on_a_line() -> tuple[Module, Cells]:
    single = simulate_cells(n_cells=5, n_genes=8)
    rows = single.counts["rna"]
    cells = Cells(
        {"rna": rows.with_values(rows.value_n.double())},
        {"rna": single.library_size["rna"].double()},
        single.category_ck,
        single.continuous_ck.double(),
    )
    return make_module(single, "poisson", n_latent=1).double().eval().requires_grad_(False), cells


def copies(cell: Cells, n: int) -> Cells:
    return cell.select(torch.zeros(n, dtype=torch.int64))


def log_likelihood(module: Module, cell: Cells, z_s: Tensor) -> Tensor:
    """Log-likelihood of one cell at each of many latent states."""
    many = copies(cell, len(z_s))
    return module.decode(z_s[:, None], many)["rna"].log_prob(many.counts["rna"])


def log_evidence(module: Module, cell: Cells) -> Tensor:
    joint_s = log_likelihood(module, cell, GRID_S) + PRIOR.log_prob(GRID_S)
    return joint_s.logsumexp(0) + math.log(STEP)


def posterior_on_a_line(module: Module, cell: Cells) -> Normal:
    posterior = module.posterior(cell)["z"]
    return Normal(posterior.mean.squeeze(), posterior.stddev.squeeze())


@pytest.mark.parametrize("c", range(5))
def test_elbo_equals_its_integral_and_is_below_the_evidence(c: int) -> None:
    module, cells = on_a_line()
    cell = cells.slice(c, c + 1)
    posterior = posterior_on_a_line(module, cell)
    torch.manual_seed(c)
    parts, kl_s = module.elbo(copies(cell, N_DRAWS))
    log_likelihood_s = parts["rna"]
    error = log_likelihood_s.std() / N_DRAWS**0.5
    weight_s = posterior.log_prob(GRID_S).exp() * STEP
    log_ratio_s = PRIOR.log_prob(GRID_S) - posterior.log_prob(GRID_S)
    exact = weight_s @ (log_likelihood(module, cell, GRID_S) + log_ratio_s)
    assert error < 0.3
    assert abs((log_likelihood_s - kl_s).mean() - exact) < 5 * error
    assert exact < log_evidence(module, cell)


@pytest.mark.parametrize("c", range(5))
def test_importance_weights_estimate_the_evidence(c: int) -> None:
    module, cells = on_a_line()
    cell = cells.slice(c, c + 1)
    posterior = posterior_on_a_line(module, cell)
    torch.manual_seed(c)
    z_s = posterior.sample((N_DRAWS,))
    log_weight_s = log_likelihood(module, cell, z_s) + PRIOR.log_prob(z_s) - posterior.log_prob(z_s)
    estimate = log_weight_s.logsumexp(0) - math.log(N_DRAWS)
    error = (log_weight_s - estimate).exp().std() / N_DRAWS**0.5
    assert error < 0.2
    assert abs(estimate - log_evidence(module, cell)) < 5 * error

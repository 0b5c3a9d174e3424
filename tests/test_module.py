"""The generative story and its ELBO: gradients, Pyro against plain arithmetic, and the exact evidence on a grid."""

import math
from functools import cache

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from celldial.data import Cells
from celldial.likelihoods import LIKELIHOODS
from celldial.module import Module
from simulated import simulate_cells


def make_module(cells: Cells, likelihood: str = "negative_binomial", n_latent: int = 3, n_layers: int = 1) -> Module:
    torch.manual_seed(0)
    module = Module(
        n_features={"rna": cells.counts["rna"].n_columns},
        likelihood={"rna": likelihood},
        n_categories=[int(code_c.max()) + 1 for code_c in cells.category_ck.unbind(-1)],
        n_continuous=cells.continuous_ck.shape[1],
        n_latent=n_latent,
        n_hidden=8,
        n_layers=n_layers,
        dropout_rate=0.2,
    )
    module.initialise(cells)
    return module


ALL_LIKELIHOODS = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@ALL_LIKELIHOODS
@pytest.mark.parametrize("covariates", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_every_parameter_gets_a_gradient(likelihood: str, covariates: bool, n_layers: int) -> None:
    cells = simulate_cells(covariates=covariates)
    module = make_module(cells, likelihood, n_layers=n_layers).train()
    module(cells).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@ALL_LIKELIHOODS
@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_loss_is_the_weighted_elbo_per_cell(likelihood: str, kl_weight: float) -> None:
    """Pyro's loss, under the same noise, is the plain sum; the weight is on the KL divergence alone."""
    cells = simulate_cells(covariates=True)
    module = make_module(cells, likelihood).eval()
    torch.manual_seed(1)
    loss = module(cells, kl_weight)
    torch.manual_seed(1)
    log_likelihood_c, kl_c = module.elbo(cells)
    assert log_likelihood_c.shape == kl_c.shape == (60,)
    torch.testing.assert_close(loss, -(log_likelihood_c - kl_weight * kl_c).mean())
    assert kl_c.mean() > 0.01  # otherwise its weight would not show


def test_kl_divergence_is_that_of_the_posterior() -> None:
    cells = simulate_cells()
    module = make_module(cells).eval()
    posterior = module.posterior(cells)
    mu_cz, sigma_cz = posterior.mean, posterior.stddev
    expected_c = 0.5 * (mu_cz**2 + sigma_cz**2 - 1 - 2 * sigma_cz.log()).sum(-1)
    torch.testing.assert_close(module.elbo(cells)[1], expected_c)


def test_log_likelihood_is_that_of_a_draw_from_the_posterior() -> None:
    cells = simulate_cells()
    module = make_module(cells).eval()
    torch.manual_seed(1)
    z_cz = module.posterior(cells).rsample()
    torch.manual_seed(1)
    log_likelihood_c, _ = module.elbo(cells)
    torch.testing.assert_close(log_likelihood_c, module.decode(z_cz, cells)["rna"].log_prob(cells.counts["rna"]))


def test_gradient_of_the_loss_is_that_of_the_elbo() -> None:
    cells = simulate_cells(covariates=True)
    module = make_module(cells).eval()
    torch.manual_seed(1)
    found = torch.autograd.grad(module(cells), list(module.parameters()))
    torch.manual_seed(1)
    log_likelihood_c, kl_c = module.elbo(cells)
    expected = torch.autograd.grad((kl_c - log_likelihood_c).mean(), list(module.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("covariate", ["batch", "donor", "age"])
def test_covariates_change_what_is_decoded(covariate: str) -> None:
    cells = simulate_cells(covariates=True)
    module = make_module(cells).eval()
    category_ck, continuous_ck = cells.category_ck.clone(), cells.continuous_ck.clone()
    if covariate == "age":
        continuous_ck += 1
    else:
        k = ["batch", "donor"].index(covariate)
        category_ck[:, k] = (category_ck[:, k] + 1) % 2
    other = Cells(cells.counts, cells.library_size, category_ck, continuous_ck)
    z_cz = torch.zeros(60, 3)
    with torch.no_grad():
        change_cf = module.decode(z_cz, other)["rna"].rate - module.decode(z_cz, cells)["rna"].rate
    assert (change_cf.abs().amax(-1) > 1e-4).all()


@ALL_LIKELIHOODS
def test_the_start_is_near_the_data(likelihood: str) -> None:
    """The decoder starts near each gene's share, the dispersions near those of the data: better than from nothing."""
    cells = simulate_cells()
    started = make_module(cells, likelihood).eval()
    torch.manual_seed(0)
    raw = Module({"rna": 20}, {"rna": likelihood}, (), 0, 3, 8, 1, 0.2).eval()
    with torch.no_grad():
        assert started.elbo(cells)[0].mean() > raw.elbo(cells)[0].mean() + 1


@ALL_LIKELIHOODS
def test_one_cell_gives_a_loss(likelihood: str) -> None:
    cells = simulate_cells(covariates=True)
    loss = make_module(cells, likelihood).train()(cells.between(3, 4))
    assert loss.isfinite()
    loss.backward()


def test_nothing_is_kept_in_the_global_store_of_pyro() -> None:
    cells = simulate_cells()
    pyro.clear_param_store()
    make_module(cells)(cells).backward()
    assert not list(pyro.get_param_store().keys())


def test_validation_of_pyro_is_left_as_it_was() -> None:
    cells = simulate_cells()
    module = make_module(cells)
    for enabled in (True, False):
        with pyro.validation_enabled(enabled):
            module(cells)
            module.elbo(cells)
            assert pyro.distributions.Normal(0.0, 1.0)._validate_args is enabled
            assert pyro.infer.util.is_validation_enabled() is enabled


# --- One latent coordinate and a Poisson: the evidence is an integral over a line, here a sum over a grid -------------

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
    posterior = module.posterior(cell)
    return Normal(posterior.mean.squeeze(), posterior.stddev.squeeze())


@pytest.mark.parametrize("c", range(5))
def test_elbo_is_its_integral_and_below_the_evidence(c: int) -> None:
    module, cells = on_a_line()
    cell = cells.between(c, c + 1)
    posterior = posterior_on_a_line(module, cell)
    torch.manual_seed(c)
    log_likelihood_s, kl_s = module.elbo(copies(cell, N_DRAWS))
    error = log_likelihood_s.std() / N_DRAWS**0.5
    weight_s = posterior.log_prob(GRID_S).exp() * STEP
    log_ratio_s = PRIOR.log_prob(GRID_S) - posterior.log_prob(GRID_S)
    exact = weight_s @ (log_likelihood(module, cell, GRID_S) + log_ratio_s)
    assert error < 0.3
    assert abs((log_likelihood_s - kl_s).mean() - exact) < 5 * error
    assert exact < log_evidence(module, cell)


@pytest.mark.parametrize("c", range(5))
def test_importance_weights_give_the_evidence(c: int) -> None:
    module, cells = on_a_line()
    cell = cells.between(c, c + 1)
    posterior = posterior_on_a_line(module, cell)
    torch.manual_seed(c)
    z_s = posterior.sample((N_DRAWS,))
    log_weight_s = log_likelihood(module, cell, z_s) + PRIOR.log_prob(z_s) - posterior.log_prob(z_s)
    estimate = log_weight_s.logsumexp(0) - math.log(N_DRAWS)
    error = (log_weight_s - estimate).exp().std() / N_DRAWS**0.5
    assert error < 0.2
    assert abs(estimate - log_evidence(module, cell)) < 5 * error

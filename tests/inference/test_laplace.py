"""The Laplace approximation of the posterior of loadings, against a brute-force Hessian."""

import copy

import numpy as np
import pytest
import torch

from celldial import VAE
from celldial.inference.fitted_model import read_cells
from celldial.inference.laplace import fit_laplace
from celldial.model import laplace
from helpers.simulate import simulate


def test_packed_products_are_quadratic_forms() -> None:
    random = np.random.default_rng(0)
    vector_sr = torch.from_numpy(random.normal(size=(5, 3)))
    matrix_rr = torch.from_numpy(np.cov(random.normal(size=(3, 9))))
    packed_q = matrix_rr[tuple(torch.triu_indices(3, 3))]
    expected_s = torch.einsum("sr,rt,st->s", vector_sr, matrix_rr, vector_sr)
    torch.testing.assert_close(laplace.packed_outer(vector_sr) @ packed_q, expected_s)


def test_the_covariance_of_loadings_equals_the_inverse_hessian() -> None:
    """Poisson regression of each feature on the inputs, with a normal prior of the slopes."""
    random = np.random.default_rng(0)
    n_cells, n_hidden, scale = 40, 4, 0.5
    input_ch = torch.from_numpy(random.normal(size=(n_cells, n_hidden)).astype(np.float32))
    slope_fh, bias_f = random.normal(0, 0.5, (3, n_hidden)), np.array([1.0, -1.0, 0.0])
    mu_cf = torch.from_numpy(np.exp(input_ch.numpy() @ slope_fh.T + bias_f).astype(np.float32))
    center_h, scale_h = input_ch.mean(0), torch.full((n_hidden,), scale)
    scaled_ch = (input_ch - center_h) * scale_h
    basis_hr = laplace.principal_directions(scaled_ch, n_hidden)
    place_cr = torch.cat([torch.ones(n_cells, 1), scaled_ch @ basis_hr], 1)
    row_q, column_q = torch.triu_indices(n_hidden + 1, n_hidden + 1)
    information_fq = mu_cf.T @ (place_cr[:, row_q] * place_cr[:, column_q])
    loadings = laplace.Loadings(center_h, scale_h, basis_hr, laplace.posterior_covariance(information_fq))
    at_sh = torch.from_numpy(random.normal(size=(6, n_hidden)).astype(np.float32))
    found_sf = loadings.variance(at_sh)
    first_f, last_f = torch.tensor([0, 5, 2]), torch.tensor([1, 5, 4])
    change_f = loadings.variance_of_change(at_sh, first_f, last_f)
    for f in range(3):

        def minus_log_posterior(b_w: torch.Tensor, mu_c: torch.Tensor = mu_cf[:, f]) -> torch.Tensor:
            log_rate_c = b_w[0] + input_ch.double() @ b_w[1:]
            prior = (b_w[1:] ** 2).sum() / (2 * scale**2)
            return (log_rate_c.exp() - mu_c * log_rate_c).sum() + prior

        mode = torch.tensor([bias_f[f], *slope_fh[f]])
        covariance = torch.linalg.inv(torch.autograd.functional.hessian(minus_log_posterior, mode))
        g = torch.cat([torch.ones(6, 1), at_sh], 1).double()
        torch.testing.assert_close(found_sf[:, f].double(), ((g @ covariance) * g).sum(1), rtol=1e-2, atol=1e-5)
        d = g[last_f[f]] - g[first_f[f]]
        torch.testing.assert_close(change_f[f].double(), d @ covariance @ d, rtol=1e-2, atol=1e-5)


def test_without_cells_the_posterior_is_the_prior() -> None:
    n_hidden = laplace.RANK + 3
    scaled_ch = torch.zeros(8, n_hidden)
    scaled_ch[:, :2] = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32))
    basis_hr = laplace.principal_directions(scaled_ch, 2)
    covariance_fq = laplace.posterior_covariance(torch.zeros(1, 6))
    loadings = laplace.Loadings(torch.zeros(n_hidden), torch.full((n_hidden,), 0.5), basis_hr, covariance_fq)
    far_sh = torch.zeros(2, n_hidden)
    far_sh[1, 5] = 3.0
    bias_variance = 1 / laplace.BIAS_PRECISION
    torch.testing.assert_close(loadings.variance(far_sh)[:, 0], torch.tensor([bias_variance, bias_variance + 2.25]))
    change_f = loadings.variance_of_change(far_sh, torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(change_f, torch.tensor([2.25]))


def test_more_cells_reduce_the_variance(model_3d: VAE) -> None:
    """Four times the cells give a quarter of the variance if the prior is weak."""
    module = copy.deepcopy(model_3d.module_)
    _, cells = read_cells(model_3d, simulate())
    average_variance = []
    for times in (1, 4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            index_c = torch.arange(60)
            fit_laplace(module, cells, index_c.repeat(times))
        loadings = module.modalities["rna"].loadings
        average_variance.append(loadings.variance(loadings.center_h[None]).mean().item())
    assert average_variance[0] / average_variance[1] == pytest.approx(4, rel=0.2)


def test_the_rounding_of_very_large_counts_does_not_fail() -> None:
    # Information about two slopes of which the data know only the sum; rounding makes an eigenvalue negative.
    information_fq = torch.tensor([[1e8, 1e8, 1e8, 1e8 - 64, 1e8, 1e8 - 64]])
    covariance_fq = laplace.posterior_covariance(information_fq.clone())
    assert torch.isfinite(covariance_fq).all()
    assert (covariance_fq[:, [0, 3, 5]] > 0).all()

"""A module with linear networks and Gaussian noise, compared with the closed forms of probabilistic PCA.

The decoder, the prior, the ELBO and its estimate by Pyro are those of all models. Only the likelihood and the encoder
are replaced. Diagonal posteriors are sufficient: the ELBO has its maximum at orthogonal columns of the loadings, for
which the exact posteriors are diagonal.

References
----------
Tipping and Bishop (1999), Probabilistic Principal Component Analysis, doi:10.1111/1467-9868.00196; Lucas et al. (2019),
Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, arXiv:1911.02469.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor, nn

from celldial.data.cells import Cells
from celldial.inference import posterior
from celldial.model.likelihoods import Likelihood
from celldial.model.module import Module
from celldial.ops.csr import CSRTensor
from helpers.modules import build_module

N_CELLS, N_FEATURES, N_LATENT = 400, 12, 3
N_STEPS, RATE = 1500, 0.05


def dense(counts: CSRTensor) -> Tensor:
    return counts.value_n.reshape(counts.n_rows, counts.n_columns)


class Normal(Likelihood):
    """A normal distribution around the first head, with one variance for all features."""

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.log_deviation = nn.Parameter(torch.zeros(()))

    def log_prob(self, heads: Sequence[Tensor], library_size_c: Tensor, counts: CSRTensor) -> Tensor:
        """Return the log density, shape ``(c,)``."""
        scatter = torch.distributions.Normal(heads[0], self.log_deviation.exp(), validate_args=False)
        return scatter.log_prob(dense(counts)).sum(1)


class LinearEncoder(nn.Module):
    """An encoder whose means are linear in the values, with the same standard deviations for all cells."""

    def __init__(self, n_features: int, n_latent: int) -> None:
        super().__init__()
        self.mean = nn.Linear(n_features, n_latent)
        self.raw_z = nn.Parameter(torch.zeros(n_latent))

    def forward(self, counts: CSRTensor, library_size_c: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
        """Return the posterior parameters, shape ``(c, p)``."""
        return torch.cat([self.mean(dense(counts)), self.raw_z.expand(counts.n_rows, -1)], 1)


class FittedPCA(NamedTuple):
    """A fitted module, its cells, and the optimum in closed form."""

    module: Module
    cells: Cells
    covariance_ff: np.ndarray  # of the values
    best_fz: np.ndarray  # loadings
    best: float  # log-likelihood, nats per cell


def log_likelihood(covariance_ff: np.ndarray, offset_f: np.ndarray, model_ff: np.ndarray) -> float:
    """Return the mean log density of cells under a normal distribution; `offset_f` is their mean minus its mean."""
    second_ff = covariance_ff + np.outer(offset_f, offset_f)
    _, log_determinant = np.linalg.slogdet(model_ff)
    trace = np.trace(np.linalg.solve(model_ff, second_ff))
    return float(-0.5 * (len(model_ff) * math.log(2 * math.pi) + log_determinant + trace))


@pytest.fixture(scope="module")
def fitted() -> FittedPCA:
    random = np.random.default_rng(0)
    true_fz = random.normal(size=(N_FEATURES, N_LATENT)) * [1.5, 1.0, 0.7]
    x_cf = random.normal(size=(N_CELLS, N_LATENT)) @ true_fz.T + random.normal(0, 0.6, (N_CELLS, N_FEATURES)) + 1.0
    x_cf = x_cf.astype(np.float32)
    covariance_ff = np.cov(x_cf.T, bias=True)
    value_f, vector_ff = np.linalg.eigh(covariance_ff)
    noise = value_f[:-N_LATENT].mean()
    best_fz = vector_ff[:, -N_LATENT:] * np.sqrt(value_f[-N_LATENT:] - noise)
    best = log_likelihood(covariance_ff, np.zeros(N_FEATURES), best_fz @ best_fz.T + noise * np.eye(N_FEATURES))

    column_n = torch.arange(N_FEATURES).repeat(N_CELLS)
    rows = CSRTensor(torch.arange(N_CELLS + 1) * N_FEATURES, column_n, torch.from_numpy(x_cf).flatten(), N_FEATURES)
    empty_ck = torch.zeros(N_CELLS, 0)
    cells = Cells({"rna": rows}, {"rna": torch.ones(N_CELLS)}, empty_ck.long(), empty_ck)
    torch.manual_seed(0)
    options = {"n_latent": N_LATENT, "n_hidden": 4, "dropout_rate": 0.0, "decoder": "linear"}
    module = build_module({"rna": N_FEATURES}, "poisson", **options)
    of = module.modalities["rna"]
    of.encoder, of.likelihood = LinearEncoder(N_FEATURES, N_LATENT), Normal(N_FEATURES)
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    # The learning rate falls to 0, so that the noise of the draws averages out.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=N_STEPS + 1, final_div_factor=1e6)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        module(cells).backward()
        optimizer.step()
        schedule.step()
    return FittedPCA(module.eval(), cells, covariance_ff, best_fz, best)


def marginal(fitted: FittedPCA) -> float:
    """Return the log-likelihood of the fitted model in closed form, nats per cell."""
    of = fitted.module.modalities["rna"]
    weight_fz, bias_f = (
        part.detach().double().numpy() for part in (of.decoder.rate_head.weight, of.decoder.rate_head.bias)
    )
    model_ff = weight_fz @ weight_fz.T + np.exp(2 * of.likelihood.log_deviation.item()) * np.eye(N_FEATURES)
    mean_f = dense(fitted.cells.counts["rna"]).double().mean(0).numpy()
    return log_likelihood(fitted.covariance_ff, mean_f - bias_f, model_ff)


def elbo(fitted: FittedPCA) -> float:
    """Return the mean ELBO of many draws, nats per cell."""
    torch.manual_seed(1)
    with torch.no_grad():
        parts = [fitted.module.elbo(fitted.cells) for _ in range(200)]
    return float(np.mean([(log_p["rna"] - kl_c).double().mean() for log_p, kl_c in parts]))


def test_loadings_span_the_principal_subspace(fitted: FittedPCA) -> None:
    weight_fz = fitted.module.modalities["rna"].decoder.rate_head.weight.detach().numpy()
    assert subspace_angles(weight_fz, fitted.best_fz).max() < 0.01
    # Diagonal posteriors make the columns orthogonal. They are the principal axes, in any order.
    order_z = np.linalg.norm(weight_fz, axis=0).argsort()
    cosine_z = np.abs((weight_fz[:, order_z] * fitted.best_fz).sum(0))
    cosine_z /= np.linalg.norm(weight_fz, axis=0)[order_z] * np.linalg.norm(fitted.best_fz, axis=0)
    assert cosine_z.min() > 0.999
    # The likelihood is flat in the lengths: an error of 3 % of the longest lowers it by 0.001 nats.
    np.testing.assert_allclose(
        np.linalg.norm(weight_fz, axis=0)[order_z], np.linalg.norm(fitted.best_fz, axis=0), rtol=0.05
    )


def test_the_marginal_likelihood_is_the_maximum(fitted: FittedPCA) -> None:
    assert marginal(fitted) <= fitted.best + 1e-6
    assert marginal(fitted) == pytest.approx(fitted.best, abs=0.01)


def test_bounds_are_in_order(fitted: FittedPCA) -> None:
    """The ELBO and the importance-weighted bound equal the marginal likelihood, because posteriors can be exact."""
    torch.manual_seed(2)
    weighted = np.mean([posterior.importance_weighted_bound(fitted.module, [fitted.cells], 20) for _ in range(5)])
    assert elbo(fitted) == pytest.approx(marginal(fitted), abs=0.01)
    # The tolerance is for the noise of the draws.
    assert elbo(fitted) < weighted + 0.003
    assert weighted < marginal(fitted) + 0.003
    # Importance weights correct wrong posteriors, and more so with more draws.
    raw_z = fitted.module.modalities["rna"].encoder.raw_z
    kept_z = raw_z.detach().clone()
    with torch.no_grad():
        raw_z.add_(1.0)
        wrong = elbo(fitted)
        few, many = (posterior.importance_weighted_bound(fitted.module, [fitted.cells], n) for n in (5, 500))
        raw_z.copy_(kept_z)
    assert wrong + 0.2 < few < many - 0.05
    assert many == pytest.approx(marginal(fitted), abs=0.03)


def test_posteriors_are_exact(fitted: FittedPCA) -> None:
    of, module = fitted.module.modalities["rna"], fitted.module
    weight_fz, noise = of.decoder.rate_head.weight.detach().double(), np.exp(2 * of.likelihood.log_deviation.item())
    precision_zz = torch.eye(N_LATENT) + weight_fz.T @ weight_fz / noise
    centered_cf = dense(fitted.cells.counts["rna"]) - of.decoder.rate_head.bias.detach()
    expected_cz = centered_cf.double() @ weight_fz / noise @ torch.linalg.inv(precision_zz)
    with torch.no_grad():
        mu_cz, sigma_cz, *_ = module.encode(fitted.cells)
    assert (mu_cz - expected_cz).abs().max() < 0.05
    torch.testing.assert_close(sigma_cz[0].double(), precision_zz.diag() ** -0.5, rtol=0.03, atol=0)

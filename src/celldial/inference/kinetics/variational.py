r"""The variational posterior of the parameters: normal in their logarithms, with full covariance.

Rates are log-normal. The posterior is reparameterized, :math:`\phi = \phi_0 + R (a + e^\tau \epsilon)` with standard
normal ε, where :math:`\phi_0` is the mode and :math:`R R^T` the inverse of the information there. In these coordinates
the posterior is close to standard normal, so that one location a and one scale τ for each coordinate are enough, and
correlations between the speed and the rates of all genes are in R.

The ELBO is maximized with fixed draws of ε (Giordano et al., 2024, doi:10.48550/arXiv.2304.05527), which makes it a
deterministic function. The draws come in pairs ±ε, and their mean square is 1 in each coordinate, so that the ELBO is
exact if the log posterior density is quadratic.

Axis suffixes as in `celldial.inference.kinetics.parameters`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from celldial.inference.kinetics.counts import BinnedCounts
from celldial.inference.kinetics.mode import information, log_joint
from celldial.inference.kinetics.parameters import Layout

__all__ = ["VariationalPosterior", "fit_posterior"]

# Pairs of draws, and steps of the optimizer.
N_PAIRS, MAX_STEPS = 4, 8
# Bound of τ. The scale of a log-normal must be bounded: its mean is exp(μ + σ²/2), so that a coordinate that the
# counts do not inform could reach any mean by its scale alone. With the prior in R, no scale exceeds this factor
# times that of the prior.
MAX_LOG_SCALE = math.log(2.0)
# Smallest share of the information that remains after the missing information is removed.
MIN_SHARE = 0.1


@dataclass(frozen=True)
class VariationalPosterior:
    """A normal distribution of the parameters.

    Parameters
    ----------
    mean_p
        Mean.
    root_pp
        Matrix whose product with its transpose is the covariance.
    elbo
        ELBO in nats, up to a constant.
    """

    mean_p: Tensor
    root_pp: Tensor
    elbo: float

    def sample(self, n_samples: int, generator: torch.Generator) -> Tensor:
        """Return draws, shape ``(n, p)``."""
        noise_np = torch.randn(n_samples, len(self.mean_p), dtype=torch.float64, generator=generator)
        return self.mean_p + noise_np @ self.root_pp.T


def fit_posterior(
    layout: Layout,
    data: BinnedCounts,
    mode_p: Tensor,
    generator: torch.Generator,
    missing_pp: Tensor | None = None,
) -> VariationalPosterior:
    """Fit the posterior by maximizing the ELBO.

    Parameters
    ----------
    layout, data
        Parameters and counts.
    mode_p
        Mode of the posterior.
    generator
        Source of random numbers.
    missing_pp
        Missing information, by which the precision of the posterior is reduced at the end.
    """
    lower_pp = torch.linalg.cholesky(information(layout, data, mode_p)[2].to_dense())
    root_pp = torch.linalg.solve_triangular(lower_pp.T, torch.eye(len(mode_p), dtype=torch.float64), upper=True)
    noise_np = torch.randn(N_PAIRS, len(mode_p), dtype=torch.float64, generator=generator)
    noise_np = noise_np / noise_np.square().mean(0).sqrt()
    noise_np = torch.cat([noise_np, -noise_np])
    location_p, log_scale_p = (torch.zeros_like(mode_p).requires_grad_() for _ in range(2))
    optimizer = torch.optim.LBFGS(
        [location_p, log_scale_p], max_iter=MAX_STEPS, max_eval=2 * MAX_STEPS, line_search_fn="strong_wolfe"
    )

    def negative_elbo() -> Tensor:
        optimizer.zero_grad()
        bounded_p = MAX_LOG_SCALE * torch.tanh(log_scale_p / MAX_LOG_SCALE)
        total = 0.0
        for noise_p in noise_np:  # one by one, so that the memory is that of a single sample
            sample_p = mode_p + root_pp @ (location_p + bounded_p.exp() * noise_p)
            loss = -log_joint(layout, data, sample_p) / len(noise_np) - bounded_p.sum() / len(noise_np)
            loss.backward(retain_graph=True)
            total += float(loss.detach())
        return torch.tensor(total, dtype=torch.float64)

    optimizer.step(negative_elbo)
    elbo = -float(negative_elbo())
    with torch.no_grad():
        bounded_p = MAX_LOG_SCALE * torch.tanh(log_scale_p / MAX_LOG_SCALE)
        mean_p = mode_p + root_pp @ location_p
        scaled_pp = root_pp * bounded_p.exp()
        if missing_pp is not None:
            scaled_pp = scaled_pp @ _widening(scaled_pp.T @ missing_pp @ scaled_pp)
    return VariationalPosterior(mean_p, scaled_pp, elbo)


def _widening(missing_share_pp: Tensor) -> Tensor:
    """Return the matrix by which a root of the covariance is multiplied to remove missing information."""
    share_p, vector_pp = torch.linalg.eigh((missing_share_pp + missing_share_pp.T) / 2)
    return vector_pp * (1 - share_p).clamp(MIN_SHARE, 1.0).rsqrt()

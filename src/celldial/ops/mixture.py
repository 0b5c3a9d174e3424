"""The log-likelihood of a mixture of background and foreground counts: a plain reference, and a fused function.

Both components share the terms of the gamma functions, which are evaluated at the stored (nonzero) entries only. The
gradients are computed in the forward pass.

Axis suffixes: ``c`` cells, ``f`` features, ``n`` stored entries of a sparse matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from celldial.ops.csr import CSRTensor
from celldial.ops.log_likelihoods import add_at_

__all__ = ["negative_binomial_mixture", "negative_binomial_mixture_reference"]


def negative_binomial_mixture_reference(
    logits_cf: Tensor,
    background_logits_cf: Tensor,
    log_background_f: Tensor,
    log_theta_f: Tensor,
    log_exposure_c: Tensor,
    counts: CSRTensor,
) -> Tensor:
    """Return the log-likelihood of background and foreground per cell; reference."""
    x_cf, theta_f, exposure_c1 = counts.to_dense(), log_theta_f.exp(), log_exposure_c.exp()[:, None]
    background_cf = exposure_c1 * log_background_f.exp()
    foreground_cf = background_cf + exposure_c1 * torch.softmax(logits_cf, -1)
    log_p_of = [
        logsigmoid(sign * background_logits_cf)
        + torch.lgamma(x_cf + theta_f)
        - torch.lgamma(theta_f)
        - torch.lgamma(x_cf + 1)
        + theta_f * (log_theta_f - torch.log(theta_f + mean_cf))
        + torch.xlogy(x_cf, mean_cf)
        - torch.xlogy(x_cf, theta_f + mean_cf)
        for sign, mean_cf in ((1, background_cf), (-1, foreground_cf))
    ]
    return torch.logaddexp(*log_p_of).sum(-1)


def negative_binomial_mixture(
    logits_cf: Tensor,
    background_logits_cf: Tensor,
    log_background_f: Tensor,
    log_theta_f: Tensor,
    log_exposure_c: Tensor,
    counts: CSRTensor,
) -> Tensor:
    r"""Return the log-likelihood per cell of a mixture of two negative binomials, background and foreground.

    With the exposure :math:`\ell`, the level of the background :math:`a`, and the weight of the background
    :math:`\pi = \text{sigmoid}(\text{background logits})`,

    .. math:: \log p = \sum_f \log \left[ \pi_f \, \text{NB}(x_f; b_f, \theta_f)
              + (1 - \pi_f) \, \text{NB}(x_f; m_f, \theta_f) \right], \quad
              b_f = \ell a_f, \quad m_f = b_f + \ell \, \text{softmax}(\text{logits})_f

    Parameters
    ----------
    logits_cf
        Log rates of the foreground beyond the background, up to a constant per cell.
    background_logits_cf
        Log odds that a count is background.
    log_background_f
        Log rate of the background per feature.
    log_theta_f
        Log inverse dispersion per feature.
    log_exposure_c
        Log of the sum of the rates of the foreground beyond the background.
    counts
        The observed counts.

    Returns
    -------
    Tensor
        Log-likelihood in nats, shape ``(c,)``.
    """
    result: Tensor = _NegativeBinomialMixture.apply(
        logits_cf, background_logits_cf, log_background_f, log_theta_f, log_exposure_c, counts
    )
    return result


class _NegativeBinomialMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        terms = _Terms(*arguments)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*terms.gradients())
        return terms.log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        grad_logits_cf, grad_odds_cf, grad_background_cf, grad_log_theta_cf, grad_exposure_c = ctx.saved_tensors
        grad_c1 = grad_c[:, None]
        return (
            grad_logits_cf * grad_c1,
            grad_odds_cf * grad_c1,
            grad_c @ grad_background_cf,
            grad_c @ grad_log_theta_cf,
            grad_exposure_c * grad_c,
            None,
        )


class _Terms:
    """Log-likelihood of the cells, and the terms that its gradients share."""

    def __init__(
        self,
        logits_cf: Tensor,
        background_logits_cf: Tensor,
        log_background_f: Tensor,
        log_theta_f: Tensor,
        log_exposure_c: Tensor,
        counts: CSRTensor,
    ) -> None:
        self.flat_n, self.x_n, column_n = counts.flat_n, counts.value_n, counts.column_n.long()
        self.theta_f = log_theta_f.exp()
        theta_n, log_gamma_theta_f = self.theta_f[column_n], torch.lgamma(self.theta_f)
        exposure_c1 = log_exposure_c.exp()[:, None]
        self.log_odds_cf = background_logits_cf
        self.share_cf = torch.softmax(logits_cf, -1)
        background_cf = exposure_c1 * log_background_f.exp()
        self.excess_cf = exposure_c1 * self.share_cf
        self.means = background_cf, background_cf + self.excess_cf
        # log NB = common + x log(m / theta) - (x + theta) log(1 + m / theta); the first term has no mean.
        self.log1p_of = [(mean_cf / self.theta_f).log1p_() for mean_cf in self.means]
        weighted = []
        for sign, mean_cf, log1p_cf in zip((1, -1), self.means, self.log1p_of, strict=True):
            log_p_cf = torch.addcmul(logsigmoid(sign * self.log_odds_cf), log1p_cf, self.theta_f, value=-1)
            log_share_n = mean_cf.view(-1)[self.flat_n].log() - log1p_cf.view(-1)[self.flat_n]
            weighted.append(add_at_(log_p_cf, self.flat_n, self.x_n * (log_share_n - log_theta_f[column_n])))
        self.posterior_cf = torch.sigmoid(weighted[0] - weighted[1])  # probability that the count is background
        common_n = torch.lgamma(self.x_n + theta_n) - log_gamma_theta_f[column_n] - torch.lgamma(self.x_n + 1)
        self.log_p_c = torch.logaddexp(*weighted).sum(-1) + counts.sum_rows(common_n)
        self.column_n, self.theta_n = column_n, theta_n

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients by logits, log odds, log background, log theta (all ``(c, f)``) and log exposure."""
        by_log_theta_cf, by_log_means = torch.zeros_like(self.share_cf), []
        posteriors = self.posterior_cf, 1 - self.posterior_cf
        for mean_cf, log1p_cf, posterior_cf in zip(self.means, self.log1p_of, posteriors, strict=True):
            lost_cf = mean_cf / (mean_cf + self.theta_f)  # the derivative of log(1 + m / theta) by log m
            lost_n = self.x_n * lost_cf.view(-1)[self.flat_n]
            by_theta_cf = add_at_((lost_cf - log1p_cf).mul_(self.theta_f), self.flat_n, lost_n)
            by_log_theta_cf.addcmul_(by_theta_cf, posterior_cf)
            by_mean_cf = add_at_(lost_cf.mul_(-self.theta_f), self.flat_n, self.x_n - lost_n)
            by_log_means.append(by_mean_cf.mul_(posterior_cf))
        digamma_n = torch.digamma(self.x_n + self.theta_n) - torch.digamma(self.theta_f)[self.column_n]
        add_at_(by_log_theta_cf, self.flat_n, self.theta_n * digamma_n - self.x_n)
        # The log of the foreground's mean b + excess has the derivative of excess / m by the log of the excess.
        by_log_excess_cf = by_log_means[1] * self.excess_cf / self.means[1]
        by_odds_cf = self.posterior_cf - torch.sigmoid(self.log_odds_cf)
        by_logits_cf = by_log_excess_cf - self.share_cf * by_log_excess_cf.sum(-1, keepdim=True)
        by_exposure_cf = by_log_means[0].add_(by_log_means[1])
        by_log_background_cf = by_exposure_cf - by_log_excess_cf
        return by_logits_cf, by_odds_cf, by_log_background_cf, by_log_theta_cf, by_exposure_cf.sum(-1)

"""Fused log-likelihoods of sparse counts, each with a simple reference function in torch.

Counts are 90 to 99 % zeros. The fused functions evaluate expensive special functions at the stored (nonzero) entries
only, compute their gradients in the forward pass, and never make a dense copy of the counts. The ``*_reference``
functions do make one: they are for readers and tests. `celldial.ops.numba_backend` has faster versions of most
functions for float32 on a CPU, with loops that pass once over each row; `celldial.ops.triton_backend` for CUDA devices.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``n`` stored entries of a sparse matrix.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, softplus

from celldial.ops.csr import CSRTensor

__all__ = [
    "add_at_",
    "bernoulli",
    "bernoulli_reference",
    "gather_rows",
    "negative_binomial",
    "negative_binomial_by_cell",
    "negative_binomial_entries",
    "negative_binomial_reference",
    "poisson",
    "poisson_reference",
    "sparse_linear",
    "sparse_linear_reference",
    "zero_inflated_negative_binomial",
    "zero_inflated_negative_binomial_reference",
]

LOG2_E = 1.4426950408889634
# Triton is installed with torch builds for CUDA on Linux.
HAS_TRITON = find_spec("triton") is not None


def are_float32_on_cpu(*tensors: Tensor) -> bool:
    """Return whether `celldial.ops.numba_backend` applies to the tensors."""
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


def backend_for(*tensors: Tensor) -> Any:
    """Return the module with faster functions of the same names for such tensors, or None.

    It is imported when first needed, because importing numba or Triton takes a second.
    """
    if are_float32_on_cpu(*tensors):
        from celldial.ops import numba_backend

        return numba_backend
    if HAS_TRITON and all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors):
        from celldial.ops import triton_backend

        return triton_backend
    return None


def gather_rows(rows: CSRTensor, index_c: Tensor) -> CSRTensor:
    """Return the rows ``index_c``, in that order."""
    if not are_float32_on_cpu(rows.value_n):
        return rows.select(index_c)
    from celldial.ops import numba_backend

    return numba_backend.gather_rows(rows, index_c)


def sparse_linear_reference(rows: CSRTensor, weight_fh: Tensor) -> Tensor:
    """Return the product of a sparse matrix with a weight matrix; reference."""
    return rows.to_dense() @ weight_fh


def sparse_linear(rows: CSRTensor, weight_fh: Tensor) -> Tensor:
    """Return the product of a sparse matrix with weights, shape ``(c, h)``; differentiable in the weights only."""
    backend = backend_for(rows.value_n, weight_fh)
    if backend is not None:
        return backend.sparse_linear(rows, weight_fh)
    result: Tensor = _SparseLinear.apply(weight_fh, rows)
    return result


class _SparseLinear(torch.autograd.Function):
    """Forward with ``embedding_bag``; backward with the transposed matrix, faster than ``embedding_bag`` backward."""

    @staticmethod
    def forward(ctx: Any, weight_fh: Tensor, rows: CSRTensor) -> Tensor:
        ctx.rows = rows
        column_n = rows.column_n.long()  # of the type of the row pointers
        return embedding_bag(column_n, weight_fh, rows.indptr_c[:-1], mode="sum", per_sample_weights=rows.value_n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ch: Tensor) -> tuple[Tensor, None]:
        rows: CSRTensor = ctx.rows
        transposed = torch.sparse_coo_tensor(
            torch.stack([rows.column_n.long(), rows.row_n]),
            rows.value_n,
            (rows.n_columns, rows.n_rows),
            check_invariants=False,
        )
        return transposed @ grad_ch, None


def bernoulli_reference(logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the Bernoulli log-likelihood per cell; reference. Each stored entry is a success."""
    lambda_cf = log_exposure_c.exp()[:, None] * torch.softmax(logits_cf, -1)
    success_cf = counts.to_dense() > 0
    return torch.where(success_cf, torch.log(-torch.expm1(-lambda_cf)), -lambda_cf).sum(-1)


def bernoulli(logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
    r"""Return the Bernoulli log-likelihood per cell, success probability ``1 - exp(-exposure * softmax(logits))``.

    This is the probability that a Poisson count of mean :math:`\lambda = \text{exposure} \cdot \text{softmax}` is not
    zero (the complementary log-log link), so a cell's depth scales rates, not odds. The rates of a cell sum to its
    exposure for any logits, so only the log-partition and the successes matter:
    :math:`\log p = \sum_{x_f = 1} \log(e^{\lambda_f} - 1) - \text{exposure}`.

    Parameters
    ----------
    logits_cf
        Log rates up to a constant per cell.
    log_exposure_c
        Log of the sum of the rates of a cell.
    counts
        The observed counts: each stored entry is a success, whatever its value.

    Returns
    -------
    Tensor
        Log-likelihood in nats, shape ``(c,)``.
    """
    backend = backend_for(logits_cf, counts.value_n)
    if backend is not None:
        return backend.bernoulli(logits_cf, log_exposure_c, counts)
    result: Tensor = _Bernoulli.apply(logits_cf, log_exposure_c, counts)
    return result


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
        row_n, flat_n = counts.row_n, counts.flat_n
        max_c1 = logits_cf.amax(-1, keepdim=True)
        share_cf = (logits_cf - max_c1).mul_(LOG2_E).exp2_()
        total_c1 = share_cf.sum(-1, keepdim=True)
        exposure_c = log_exposure_c.exp()
        log_lambda_n = logits_cf.flatten()[flat_n] + (log_exposure_c - (max_c1 + total_c1.log())[:, 0])[row_n]
        # log(e^r - 1) = log r + r + log((1 - e^-r) / r); near r = 0 the last term is smaller than rounding errors.
        lambda_n = log_lambda_n.exp().clamp_min(torch.finfo(logits_cf.dtype).tiny)
        success_probability_n = -torch.expm1(-lambda_n)
        log_p_c = counts.sum_rows(log_lambda_n + lambda_n + (success_probability_n / lambda_n).log()) - exposure_c
        if any(ctx.needs_input_grad):
            grad_log_lambda_n = lambda_n / success_probability_n
            total_grad_c = counts.sum_rows(grad_log_lambda_n)
            grad_cf = share_cf.mul_(-total_grad_c[:, None] / total_c1)
            ctx.save_for_backward(add_at_(grad_cf, flat_n, grad_log_lambda_n), total_grad_c - exposure_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_logits_cf, grad_log_exposure_c = ctx.saved_tensors
        return grad_logits_cf * grad_c[:, None], grad_log_exposure_c * grad_c, None


def poisson_reference(logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the Poisson log-likelihood per cell; reference."""
    x_cf = counts.to_dense()
    mu_cf = library_c[:, None] * torch.softmax(logits_cf, -1)
    return (torch.xlogy(x_cf, mu_cf) - mu_cf - torch.lgamma(x_cf + 1)).sum(-1)


def poisson(logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    r"""Return the Poisson log-likelihood per cell, mean ``library * softmax(logits)``.

    The rates of a cell sum to its library size for any logits, so only the log-partition and nonzero counts
    matter: :math:`\log p = \sum_{x_f > 0} (x_f \log \mu_f - \log x_f!) - \text{library}`.

    Parameters
    ----------
    logits_cf
        Log expression rates up to a constant per cell.
    library_c
        Library size per cell.
    counts
        The observed counts.

    Returns
    -------
    Tensor
        Log-likelihood in nats, shape ``(c,)``.
    """
    backend = backend_for(logits_cf, counts.value_n)
    if backend is not None:
        return backend.poisson(logits_cf, library_c, counts)
    result: Tensor = _Poisson.apply(logits_cf, library_c, counts)
    return result


class _Poisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
        row_n, x_n, flat_n = counts.row_n, counts.value_n, counts.flat_n
        log_probability_cf = torch.log_softmax(logits_cf, -1)
        log_mu_n = log_probability_cf.view(-1)[flat_n] + library_c.log()[row_n]
        log_p_c = counts.sum_rows(x_n * log_mu_n - torch.lgamma(x_n + 1)) - library_c
        if any(ctx.needs_input_grad):
            grad_cf = log_probability_cf.exp_().mul_(-counts.sum_rows(x_n)[:, None])
            ctx.save_for_backward(add_at_(grad_cf, flat_n, x_n))
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, None, None]:
        (grad_logits_cf,) = ctx.saved_tensors
        return grad_logits_cf * grad_c[:, None], None, None


def negative_binomial_reference(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the negative binomial log-likelihood per cell; reference."""
    return _negative_binomial_entries(logits_cf, log_theta_f, library_c, counts.to_dense()).sum(-1)


def _negative_binomial_entries(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, x_cf: Tensor) -> Tensor:
    mu_cf = library_c[:, None] * torch.softmax(logits_cf, -1)
    theta_f = log_theta_f.exp()
    return (
        torch.lgamma(x_cf + theta_f)
        - torch.lgamma(theta_f)
        - torch.lgamma(x_cf + 1)
        + theta_f * (log_theta_f - torch.log(theta_f + mu_cf))
        + torch.xlogy(x_cf, mu_cf)
        - torch.xlogy(x_cf, theta_f + mu_cf)
    )


def negative_binomial(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    r"""Return the negative binomial log-likelihood per cell, mean ``library * softmax(logits)``.

    With :math:`r = \mu / \theta`,

    .. math:: \log p = -\sum_f \theta_f \log(1 + r_f) + \sum_{x_f > 0} \left[
              \log\Gamma(x_f + \theta_f) - \log\Gamma(\theta_f) - \log x_f! + x_f (\log r_f - \log(1 + r_f)) \right]

    so gamma functions are evaluated at nonzero counts only.

    Parameters
    ----------
    logits_cf
        Log expression rates up to a constant per cell.
    log_theta_f
        Log inverse dispersion per feature.
    library_c
        Library size per cell.
    counts
        The observed counts.

    Returns
    -------
    Tensor
        Log-likelihood in nats, shape ``(c,)``.
    """
    backend = backend_for(logits_cf, counts.value_n)
    if backend is not None:
        return backend.negative_binomial(logits_cf, log_theta_f, library_c, counts)
    result: Tensor = _NegativeBinomial.apply(logits_cf, log_theta_f, library_c, counts)
    return result


def negative_binomial_by_cell(logits_cf: Tensor, log_theta_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the negative binomial log-likelihood per cell if each cell has its own dispersions.

    The terms are those of `negative_binomial`. It has no faster backend.

    Parameters
    ----------
    logits_cf
        Log expression rates up to a constant per cell.
    log_theta_cf
        Log inverse dispersion of each feature in each cell.
    library_c
        Library size per cell.
    counts
        The observed counts.

    Returns
    -------
    Tensor
        Log-likelihood in nats, shape ``(c,)``.
    """
    # The bound matters for cells without counts only.
    log_library_c1 = library_c.clamp_min(torch.finfo(logits_cf.dtype).tiny).log()[:, None]
    log_ratio_cf = logits_cf.log_softmax(-1) + log_library_c1 - log_theta_cf
    log1p_cf = softplus(log_ratio_cf)
    theta_cf, flat_n, x_n = log_theta_cf.exp(), counts.flat_n, counts.value_n
    log_ratio_n, log1p_n, theta_n = (part_cf.flatten()[flat_n] for part_cf in (log_ratio_cf, log1p_cf, theta_cf))
    log_binomial_n = torch.lgamma(x_n + theta_n) - torch.lgamma(theta_n) - torch.lgamma(x_n + 1)
    return counts.sum_rows(log_binomial_n + x_n * (log_ratio_n - log1p_n)) - (theta_cf * log1p_cf).sum(1)


def negative_binomial_entries(value_cf: Tensor, log_rate_cf: Tensor, log_theta_cf: Tensor) -> Tensor:
    """Return the log-likelihood of single counts given their log means, up to a constant of the counts."""
    return value_cf * log_rate_cf - (value_cf + log_theta_cf.exp()) * torch.logaddexp(log_rate_cf, log_theta_cf)


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
        terms = _NegativeBinomialTerms(logits_cf, log_theta_f, library_c, counts)
        log_p_c = counts.sum_rows(terms.log_p_n) - terms.log1p_cf @ terms.theta_f
        if any(ctx.needs_input_grad):
            # In place from here on: each matrix of `terms` is overwritten by a gradient.
            grad_log_theta_cf = torch.sub(terms.share_cf, terms.log1p_cf, out=terms.log1p_cf)
            grad_log_theta_cf.mul_(terms.theta_f)
            add_at_(grad_log_theta_cf, terms.flat_n, terms.grad_log_theta_n())
            grad_log_mu_cf = terms.share_cf.mul_(-terms.theta_f)
            add_at_(grad_log_mu_cf, terms.flat_n, terms.grad_log_mu_n())
            ctx.save_for_backward(terms.softmax_backward_(grad_log_mu_cf), grad_log_theta_cf)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_logits_cf, grad_log_theta_cf = ctx.saved_tensors
        return grad_logits_cf * grad_c[:, None], grad_c @ grad_log_theta_cf, None, None


class _NegativeBinomialTerms:
    """Terms of both negative binomials: the ratio mu / theta of all entries, and the terms of the stored counts."""

    def __init__(self, logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> None:
        self.flat_n, self.x_n = counts.flat_n, counts.value_n
        self.theta_f, self.library_c1 = log_theta_f.exp(), library_c[:, None]
        row_n, column_n = counts.row_n, counts.column_n.long()
        self.theta_n = self.theta_f[column_n]
        self.column_n = column_n

        # One exponential for both the softmax and the ratio; to base 2, which is three times faster on a CPU.
        max_c1 = logits_cf.amax(-1, keepdim=True)
        ratio_cf = (logits_cf - max_c1).mul_(LOG2_E).exp2_()
        scale_c1 = self.library_c1 / ratio_cf.sum(-1, keepdim=True)
        log_ratio_n = logits_cf.flatten()[self.flat_n] + (scale_c1.log() - max_c1)[row_n, 0] - log_theta_f[column_n]
        self.ratio_cf = ratio_cf.mul_(scale_c1).mul_(1 / self.theta_f)
        self.log1p_cf = ratio_cf.log1p()
        share_cf = ratio_cf + 1
        self.share_cf = torch.div(ratio_cf, share_cf, out=share_cf)  # mu / (theta + mu)
        self.log1p_n = self.log1p_cf.view(-1)[self.flat_n]
        self.share_n = self.share_cf.view(-1)[self.flat_n]
        self.log_p_n = (
            torch.lgamma(self.x_n + self.theta_n)
            - torch.lgamma(self.theta_f)[column_n]
            - torch.lgamma(self.x_n + 1)
            + self.x_n * (log_ratio_n - self.log1p_n)
        )

    def grad_log_mu_n(self) -> Tensor:
        """Return the gradient of ``log_p_n`` with respect to the log mean."""
        return self.x_n * (1 - self.share_n)

    def grad_log_theta_n(self) -> Tensor:
        """Return the gradient of ``log_p_n`` with respect to the log inverse dispersion."""
        digamma_n = torch.digamma(self.x_n + self.theta_n) - torch.digamma(self.theta_f)[self.column_n]
        return self.theta_n * digamma_n - self.grad_log_mu_n()

    def softmax_backward_(self, grad_log_mu_cf: Tensor) -> Tensor:
        """Return the gradient with respect to logits, given that of the log means.

        The given gradient and the ratio are overwritten.
        """
        mu_cf = self.ratio_cf.mul_(self.theta_f)
        return grad_log_mu_cf.addcmul_(mu_cf, grad_log_mu_cf.sum(-1, keepdim=True) / self.library_c1, value=-1)


def zero_inflated_negative_binomial_reference(
    logits_cf: Tensor, dropout_logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor
) -> Tensor:
    """Return the zero-inflated negative binomial log-likelihood per cell; reference."""
    x_cf = counts.to_dense()
    log_p_cf = _negative_binomial_entries(logits_cf, log_theta_f, library_c, x_cf)
    kept_cf = log_p_cf - softplus(dropout_logits_cf)
    dropped_cf = torch.nn.functional.logsigmoid(dropout_logits_cf)
    return torch.where(x_cf > 0, kept_cf, torch.logaddexp(dropped_cf, kept_cf)).sum(-1)


def zero_inflated_negative_binomial(
    logits_cf: Tensor, dropout_logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor
) -> Tensor:
    r"""Return the zero-inflated negative binomial log-likelihood per cell.

    Counts are lost with probability ``sigmoid(dropout_logits)``.
    With :math:`w` the dropout logits and :math:`n_f = -\theta_f \log(1 + \mu_f / \theta_f)` the log-probability of a
    negative binomial zero, a zero has :math:`\log p = \zeta(n - w) - \zeta(-w)` and a count has
    :math:`\log p_\text{NB} - \zeta(w)`, where :math:`\zeta` is softplus.

    Parameters
    ----------
    logits_cf
        Log expression rates up to a constant per cell.
    dropout_logits_cf
        Log odds that a count is lost.
    log_theta_f
        Log inverse dispersion per feature.
    library_c
        Library size per cell.
    counts
        The observed counts.

    Returns
    -------
    Tensor
        Log-likelihood in nats, shape ``(c,)``.
    """
    result: Tensor = _ZeroInflatedNegativeBinomial.apply(logits_cf, dropout_logits_cf, log_theta_f, library_c, counts)
    return result


class _ZeroInflatedNegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_cf: Tensor,
        dropout_logits_cf: Tensor,
        log_theta_f: Tensor,
        library_c: Tensor,
        counts: CSRTensor,
    ) -> Tensor:
        terms = _NegativeBinomialTerms(logits_cf, log_theta_f, library_c, counts)
        flat_n, theta_f, theta_n = terms.flat_n, terms.theta_f, terms.theta_n
        # Each entry is first treated as a zero; the stored entries are corrected afterwards.
        dropout_n = dropout_logits_cf.flatten()[flat_n]
        log_odds_cf = -torch.addcmul(dropout_logits_cf, terms.log1p_cf, theta_f)  # log p_NB(0) - dropout logits
        zero_cf = softplus(log_odds_cf) - softplus(-dropout_logits_cf)
        log_p_n = terms.log_p_n - theta_n * terms.log1p_n - softplus(dropout_n) - zero_cf.view(-1)[flat_n]
        log_p_c = zero_cf.sum(-1) + counts.sum_rows(log_p_n)
        if any(ctx.needs_input_grad):
            kept_cf = log_odds_cf.sigmoid_()  # probability that a zero is from the negative binomial
            grad_dropout_cf = torch.sigmoid(-dropout_logits_cf) - kept_cf
            grad_dropout_cf.view(-1)[flat_n] = -torch.sigmoid(dropout_n)
            kept_cf.view(-1)[flat_n] = 1
            grad_log_theta_cf = (terms.share_cf - terms.log1p_cf).mul_(theta_f).mul_(kept_cf)
            add_at_(grad_log_theta_cf, flat_n, terms.grad_log_theta_n())
            grad_log_mu_cf = terms.share_cf.mul_(-theta_f).mul_(kept_cf)
            add_at_(grad_log_mu_cf, flat_n, terms.grad_log_mu_n())
            grad_logits_cf = terms.softmax_backward_(grad_log_mu_cf)
            ctx.save_for_backward(grad_logits_cf, grad_dropout_cf, grad_log_theta_cf)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grad_logits_cf, grad_dropout_cf, grad_log_theta_cf = ctx.saved_tensors
        grad_c1 = grad_c[:, None]
        return grad_logits_cf * grad_c1, grad_dropout_cf * grad_c1, grad_c @ grad_log_theta_cf, None, None


def add_at_(dense_cf: Tensor, flat_n: Tensor, value_n: Tensor) -> Tensor:
    """Add values to the stored entries of a dense matrix, in place."""
    dense_cf.view(-1).index_add_(0, flat_n, value_n)
    return dense_cf

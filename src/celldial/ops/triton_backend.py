"""The log-likelihoods and the sparse first layer of `celldial.ops.log_likelihoods` for CUDA devices, written in Triton.

`celldial.ops.log_likelihoods` calls this where the tensors are on a CUDA device, and says what is computed.
What differs is what costs time. On a GPU that is memory and the number of kernels, not special functions. A matrix of
cells by features is read forward, and read and written once backward, where the gradient is worked out anew rather than
kept. All entries are first taken for zeros; the stored ones are then put right.

Triton takes the current device, which need not be that of the tensors; autograd sees to it in the backward pass. Every
number is computed in float32, also where logits and their gradients are bfloat16. Sums over cells add up in no
fixed order.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden, ``n`` stored entries.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from celldial.ops.csr import CSRTensor

__all__ = ["bernoulli", "negative_binomial", "poisson", "sparse_linear"]

# The families of counts, as the kernels know them.
POISSON, BERNOULLI, NEGATIVE_BINOMIAL = 0, 1, 2

# How much one program holds at once: features of a cell, stored entries, hidden units, and both of the last together.
FEATURES, ENTRIES, HIDDEN, PRODUCTS = 2048, 256, 128, 4096
# The backward pass over all entries takes narrow blocks, whose sums over cells then stay in registers.
BLOCK_FEATURES, BLOCK_CELLS = 512, 8

LOG_ROOT_2_PI = tl.constexpr(0.9189385332046727)


def poisson(logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Poisson log-likelihood per cell; see `celldial.ops.log_likelihoods.poisson`."""
    result: Tensor = _LogLikelihood.apply(logits_cf, library_c.log(), None, counts, POISSON)
    return result


def bernoulli(logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
    """Bernoulli log-likelihood per cell; see `celldial.ops.log_likelihoods.bernoulli`."""
    result: Tensor = _LogLikelihood.apply(logits_cf, log_exposure_c, None, counts, BERNOULLI)
    return result


def negative_binomial(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Negative binomial log-likelihood per cell; see `celldial.ops.log_likelihoods.negative_binomial`."""
    result: Tensor = _LogLikelihood.apply(logits_cf, library_c.log(), log_theta_f, counts, NEGATIVE_BINOMIAL)
    return result


def sparse_linear(rows: CSRTensor, weight_fh: Tensor) -> Tensor:
    """Matrix product of sparse rows with a weight matrix; see `celldial.ops.log_likelihoods.sparse_linear`."""
    result: Tensor = _SparseLinear.apply(weight_fh, rows)
    return result


class _LogLikelihood(torch.autograd.Function):
    """Counts of a family whose means are ``exp(log_total) * softmax(logits)``."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_cf: Tensor,
        log_total_c: Tensor,
        log_theta_f: Tensor | None,
        counts: CSRTensor,
        family: int,
    ) -> Tensor:
        logits_cf, log_total_c = logits_cf.contiguous(), log_total_c.contiguous()
        n_cells, n_features = logits_cf.shape
        # Besides the log-likelihood: what the logits are normalised by, and the gradients by the log means, summed.
        log_p_c, normaliser_c, slope_c = log_total_c.new_empty(3, n_cells)
        with torch.cuda.device_of(logits_cf):
            _forward_kernel[(n_cells,)](
                *_pointers(logits_cf, log_total_c, log_theta_f, counts),
                log_p_c,
                normaliser_c,
                slope_c,
                n_features,
                family=family,
                FEATURES=min(FEATURES, triton.next_power_of_2(n_features)),
                ENTRIES=ENTRIES,
            )
        ctx.save_for_backward(logits_cf, log_total_c, log_theta_f, normaliser_c, slope_c)
        ctx.counts, ctx.family = counts, family
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        logits_cf, log_total_c, log_theta_f, normaliser_c, slope_c = ctx.saved_tensors
        n_cells, n_features = logits_cf.shape
        grad_c = grad_c.contiguous()
        grad_logits_cf = torch.empty_like(logits_cf)
        grad_log_theta_f = None if log_theta_f is None else torch.zeros_like(log_theta_f)
        arguments = (
            *_pointers(logits_cf, log_total_c, log_theta_f, ctx.counts),
            normaliser_c,
            slope_c,
            grad_c,
            grad_logits_cf,
            log_total_c if grad_log_theta_f is None else grad_log_theta_f,
        )
        blocks = (triton.cdiv(n_cells, BLOCK_CELLS), triton.cdiv(n_features, BLOCK_FEATURES))
        _backward_kernel[blocks](
            *arguments, n_features, n_cells, family=ctx.family, FEATURES=BLOCK_FEATURES, CELLS=BLOCK_CELLS
        )
        _entries_backward_kernel[(n_cells,)](*arguments, n_features, family=ctx.family, ENTRIES=ENTRIES)
        if ctx.family != NEGATIVE_BINOMIAL:
            slope_c = slope_c - log_total_c.exp()
        return grad_logits_cf, slope_c * grad_c, grad_log_theta_f, None, None


def _pointers(
    logits_cf: Tensor, log_total_c: Tensor, log_theta_f: Tensor | None, counts: CSRTensor
) -> tuple[Tensor, ...]:
    """Give what all kernels read; a family without dispersions has something in their place, which is not read."""
    theta_f = log_total_c if log_theta_f is None else log_theta_f
    return logits_cf, log_total_c, theta_f, counts.indptr_c, counts.column_n, counts.value_n


class _SparseLinear(torch.autograd.Function):
    """Weights are gathered forward; backward, gradients are added up in place."""

    @staticmethod
    def forward(ctx: Any, weight_fh: Tensor, rows: CSRTensor) -> Tensor:
        weight_fh = weight_fh.contiguous()
        ctx.rows, ctx.shape = rows, weight_fh.shape
        n_hidden = weight_fh.shape[1]
        product_ch = weight_fh.new_empty(rows.n_rows, n_hidden)
        with torch.cuda.device_of(weight_fh):
            _sparse_linear_kernel[_grid(rows, n_hidden)](
                rows.indptr_c, rows.column_n, rows.value_n, weight_fh, product_ch, n_hidden, **_tile(n_hidden)
            )
        return product_ch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ch: Tensor) -> tuple[Tensor, None]:
        rows, n_hidden = ctx.rows, ctx.shape[1]
        grad_fh = grad_ch.new_zeros(ctx.shape)
        _sparse_linear_backward_kernel[_grid(rows, n_hidden)](
            rows.indptr_c, rows.column_n, rows.value_n, grad_ch.contiguous(), grad_fh, n_hidden, **_tile(n_hidden)
        )
        return grad_fh, None


def _tile(n_hidden: int) -> dict[str, int]:
    """Say how many hidden units, and how many stored entries, a program takes at once."""
    n_units = min(HIDDEN, triton.next_power_of_2(n_hidden))
    return {"HIDDEN": n_units, "ENTRIES": PRODUCTS // HIDDEN}


def _grid(rows: CSRTensor, n_hidden: int) -> tuple[int, int]:
    """Give each cell, and each tile of hidden units, a program."""
    return rows.n_rows, triton.cdiv(n_hidden, _tile(n_hidden)["HIDDEN"])


@triton.jit
def _log1p(x):
    """Logarithm of 1 + x, for x not below 0: a series where the sum would lose x to rounding."""
    s = x / (2 + x)
    t = tl.where(x < 0.5, s * s, 0.0)
    series = 2 * s * (1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11))))))
    return tl.where(x < 0.5, series, tl.log(1 + x))


@triton.jit
def _stirling(y):
    """Correct Stirling's ``(y - 1/2) log y - y + log(2 pi) / 2`` for the log of gamma(y), for y above 4."""
    t = 1 / (y * y)
    return (1 / 12 - t * (1 / 360 - t * (1 / 1260 - t / 1680))) / y


@triton.jit
def _log_factorial(x):
    """Logarithm of gamma(x + 1)."""
    y = x + 5
    product = (x + 1) * (x + 2) * ((x + 3) * (x + 4))
    return (y - 0.5) * tl.log(y) - y + LOG_ROOT_2_PI + _stirling(y) - tl.log(product)


@triton.jit
def _log_choose(x, theta):
    """Logarithm of gamma(x + theta) / (gamma(theta) x!), without differences of large numbers."""
    y, above = theta + 5, theta + x
    # Each gamma function by Stirling's series at its argument plus 5, and the five factors that this adds.
    factors = (above / theta) * ((above + 1) / ((theta + 1) * (x + 1)))
    rest = (above + 2) / ((theta + 2) * (x + 2)) * ((above + 3) / ((theta + 3) * (x + 3)))
    log_factors = tl.log(factors) + tl.log(rest * ((above + 4) / ((theta + 4) * (x + 4))))
    result = (y - 0.5) * _log1p(x / y) + x * _log1p(theta / (x + 5)) - 4.5 * tl.log(x + 5) - log_factors
    return result + 5 - LOG_ROOT_2_PI + _stirling(above + 5) - _stirling(y) - _stirling(x + 5)


@triton.jit
def _digamma_rest(y):
    """Subtract the digamma function from ``log y``, for y above 4."""
    t = 1 / (y * y)
    return 0.5 / y + t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t / 240)))


@triton.jit
def _rising_slope(x, theta):
    """Differentiate the logarithm of gamma(x + theta) / gamma(theta) by theta."""
    y, above = theta + 5, theta + x
    steps = 1 / (theta * above) + 1 / ((theta + 1) * (above + 1)) + 1 / ((theta + 2) * (above + 2))
    steps += 1 / ((theta + 3) * (above + 3)) + 1 / ((theta + 4) * (above + 4))
    return _log1p(x / y) + _digamma_rest(y) - _digamma_rest(above + 5) + x * steps


@triton.jit
def _closed(rate):
    """Compute (1 - exp(-rate)) / rate."""
    small = tl.where(rate < 0.5, rate, 0.0)
    series = 1 - small / 2 * (1 - small / 3 * (1 - small / 4 * (1 - small / 5 * (1 - small / 6 * (1 - small / 7)))))
    return tl.where(rate < 0.5, series, (1 - tl.exp(-rate)) / tl.maximum(rate, 0.5))


@triton.jit
def _forward_kernel(
    logits_ptr,
    log_total_ptr,
    log_theta_ptr,
    indptr_ptr,
    column_ptr,
    value_ptr,
    log_p_ptr,
    normaliser_ptr,
    slope_ptr,
    n_features,
    family: tl.constexpr,
    FEATURES: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Take one cell: its log-likelihood, the log-partition of its logits, the sum of the gradients by log means."""
    cell = tl.program_id(0).to(tl.int64)
    logits_ptr += cell * n_features
    feature = tl.arange(0, FEATURES)

    peak = float("-inf")
    total = 0.0
    for start in range(0, n_features, FEATURES):
        here = start + feature < n_features
        logit = tl.load(logits_ptr + start + feature, here, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(logit, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(logit - higher), 0)
        peak = higher
    normaliser = peak + tl.log(total)
    log_total = tl.load(log_total_ptr + cell)
    shift = log_total - normaliser  # of the logits, to log means

    log_p = 0.0
    slope = 0.0
    if family == 2:
        for start in range(0, n_features, FEATURES):
            here = start + feature < n_features
            logit = tl.load(logits_ptr + start + feature, here, other=float("-inf")).to(tl.float32)
            log_theta = tl.load(log_theta_ptr + start + feature, here, other=0.0)
            theta, ratio = tl.exp(log_theta), tl.exp(logit + shift - log_theta)
            log_p -= tl.sum(theta * _log1p(ratio), 0)
            slope -= tl.sum(theta * (ratio / (1 + ratio)), 0)
    else:
        log_p -= tl.exp(log_total)

    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        here = entry < last
        column = tl.load(column_ptr + entry, here, other=0)
        x = tl.load(value_ptr + entry, here, other=1.0)
        log_mu = tl.load(logits_ptr + column, here, other=0.0).to(tl.float32) + shift
        if family == 0:
            term, gradient = x * log_mu - _log_factorial(x), x
        elif family == 1:
            rate = tl.exp(log_mu)
            closed = _closed(rate)
            term, gradient = log_mu + rate + tl.log(closed), 1 / closed
        else:
            log_theta = tl.load(log_theta_ptr + column, here, other=0.0)
            log_ratio = log_mu - log_theta
            log_dispersed = tl.minimum(log_ratio, 0.0) - _log1p(tl.exp(-tl.abs(log_ratio)))
            term = _log_choose(x, tl.exp(log_theta)) + x * log_dispersed
            gradient = x / (1 + tl.exp(log_ratio))
        log_p += tl.sum(tl.where(here, term, 0.0), 0)
        slope += tl.sum(tl.where(here, gradient, 0.0), 0)

    tl.store(log_p_ptr + cell, log_p)
    tl.store(normaliser_ptr + cell, normaliser)
    tl.store(slope_ptr + cell, slope)


@triton.jit(do_not_specialize=["n_cells"])
def _backward_kernel(
    logits_ptr,
    log_total_ptr,
    log_theta_ptr,
    indptr_ptr,
    column_ptr,
    value_ptr,
    normaliser_ptr,
    slope_ptr,
    grad_ptr,
    grad_logits_ptr,
    grad_log_theta_ptr,
    n_features,
    n_cells,
    family: tl.constexpr,
    FEATURES: tl.constexpr,
    CELLS: tl.constexpr,
):
    """Take some cells and features: the gradients as if no count were stored."""
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    here = feature < n_features
    log_theta = tl.zeros([FEATURES], tl.float32)
    if family == 2:
        log_theta = tl.load(log_theta_ptr + feature, here, other=0.0)
    theta = tl.exp(log_theta)
    grad_log_theta = tl.zeros([FEATURES], tl.float32)
    first = tl.program_id(0).to(tl.int64) * CELLS
    for cell in range(first, tl.minimum(first + CELLS, n_cells)):
        logit = tl.load(logits_ptr + cell * n_features + feature, here, other=float("-inf")).to(tl.float32)
        log_share = logit - tl.load(normaliser_ptr + cell)
        grad = tl.load(grad_ptr + cell)
        gradient = -tl.exp(log_share) * tl.load(slope_ptr + cell)
        if family == 2:
            ratio = tl.exp(log_share + tl.load(log_total_ptr + cell) - log_theta)
            dispersed = ratio / (1 + ratio)
            gradient -= theta * dispersed
            grad_log_theta += grad * theta * (dispersed - _log1p(ratio))
        out_ptr = grad_logits_ptr + cell * n_features + feature
        tl.store(out_ptr, (grad * gradient).to(grad_logits_ptr.dtype.element_ty), here)
    if family == 2:
        tl.atomic_add(grad_log_theta_ptr + feature, grad_log_theta, here, sem="relaxed")


@triton.jit
def _entries_backward_kernel(
    logits_ptr,
    log_total_ptr,
    log_theta_ptr,
    indptr_ptr,
    column_ptr,
    value_ptr,
    normaliser_ptr,
    slope_ptr,
    grad_ptr,
    grad_logits_ptr,
    grad_log_theta_ptr,
    n_features,
    family: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Take one cell: the gradients where a count is stored."""
    cell = tl.program_id(0).to(tl.int64)
    normaliser, slope = tl.load(normaliser_ptr + cell), tl.load(slope_ptr + cell)
    log_total, grad = tl.load(log_total_ptr + cell), tl.load(grad_ptr + cell)
    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        here = entry < last
        column = tl.load(column_ptr + entry, here, other=0)
        x = tl.load(value_ptr + entry, here, other=1.0)
        place = cell * n_features + column
        log_share = tl.load(logits_ptr + place, here, other=0.0).to(tl.float32) - normaliser
        gradient = -tl.exp(log_share) * slope
        if family == 0:
            gradient += x
        elif family == 1:
            gradient += 1 / _closed(tl.exp(log_share + log_total))
        else:
            log_theta = tl.load(log_theta_ptr + column, here, other=0.0)
            theta, ratio = tl.exp(log_theta), tl.exp(log_share + log_total - log_theta)
            by_log_mu = x / (1 + ratio)
            gradient += by_log_mu - theta * (ratio / (1 + ratio))
            by_log_theta = grad * (theta * _rising_slope(x, theta) - by_log_mu)
            tl.atomic_add(grad_log_theta_ptr + column, by_log_theta, here, sem="relaxed")
        # The block's own value is written over, so that nothing is rounded twice.
        tl.store(grad_logits_ptr + place, (grad * gradient).to(grad_logits_ptr.dtype.element_ty), here)


@triton.jit
def _sparse_linear_kernel(
    indptr_ptr,
    column_ptr,
    value_ptr,
    weight_ptr,
    product_ptr,
    n_hidden,
    HIDDEN: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Take one cell and some hidden units."""
    cell = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    product = tl.zeros([HIDDEN], tl.float32)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        column = tl.load(column_ptr + entry, entry < last, other=0).to(tl.int64)
        value = tl.load(value_ptr + entry, entry < last, other=0.0)
        weight = tl.load(weight_ptr + column[:, None] * n_hidden + unit[None, :], (unit < n_hidden)[None, :], other=0.0)
        product += tl.sum(value[:, None] * weight, 0)
    tl.store(product_ptr + cell * n_hidden + unit, product, unit < n_hidden)


@triton.jit
def _sparse_linear_backward_kernel(
    indptr_ptr,
    column_ptr,
    value_ptr,
    grad_ptr,
    grad_weight_ptr,
    n_hidden,
    HIDDEN: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Take one cell and some hidden units: what they add to the gradient by the weights."""
    cell = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    grad = tl.load(grad_ptr + cell * n_hidden + unit, unit < n_hidden, other=0.0)
    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        column = tl.load(column_ptr + entry, entry < last, other=0).to(tl.int64)
        value = tl.load(value_ptr + entry, entry < last, other=0.0)
        place = grad_weight_ptr + column[:, None] * n_hidden + unit[None, :]
        here = (entry < last)[:, None] & (unit < n_hidden)[None, :]
        tl.atomic_add(place, value[:, None] * grad[None, :], here, sem="relaxed")

"""The functions of `celldial.ops.log_likelihoods` for CUDA devices, as Triton kernels.

`celldial.ops.log_likelihoods` documents the functions, and calls this module if the tensors are on a CUDA device. On a
GPU, the run time depends on memory traffic and the number of kernels, not on special functions. The forward pass only
reads the matrix of cells by features. The backward pass reads it once and writes the gradient once: the gradient is
recomputed, not stored. Each entry is first treated as a zero; the stored entries are corrected afterwards.

Triton uses the current device, which may differ from that of the tensors, so the forward pass sets it; autograd does so
in the backward pass. All numbers are computed in float32, even if logits and their gradients are bfloat16. The order of
sums over cells is not fixed.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``n`` stored entries.
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

# Codes of the families of likelihoods in the kernels.
POISSON, BERNOULLI, NEGATIVE_BINOMIAL = 0, 1, 2

# Maximum that one program holds at once: features of a cell, stored entries, hidden units, entries times hidden units.
FEATURES, ENTRIES, HIDDEN, PRODUCTS = 2048, 256, 128, 4096
# The backward pass over all entries uses narrow blocks, so that their sums over cells stay in registers.
BLOCK_FEATURES, BLOCK_CELLS = 512, 8

LOG_ROOT_2_PI = tl.constexpr(0.9189385332046727)


def poisson(logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the Poisson log-likelihood per cell; see `celldial.ops.log_likelihoods.poisson`."""
    result: Tensor = _LogLikelihood.apply(logits_cf, library_c.log(), None, counts, POISSON)
    return result


def bernoulli(logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the Bernoulli log-likelihood per cell; see `celldial.ops.log_likelihoods.bernoulli`."""
    result: Tensor = _LogLikelihood.apply(logits_cf, log_exposure_c, None, counts, BERNOULLI)
    return result


def negative_binomial(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the negative binomial log-likelihood per cell; see `celldial.ops.log_likelihoods.negative_binomial`."""
    result: Tensor = _LogLikelihood.apply(logits_cf, library_c.log(), log_theta_f, counts, NEGATIVE_BINOMIAL)
    return result


def sparse_linear(rows: CSRTensor, weight_fh: Tensor) -> Tensor:
    """Return the product of a sparse matrix with a weight matrix; see `celldial.ops.log_likelihoods.sparse_linear`."""
    result: Tensor = _SparseLinear.apply(weight_fh, rows)
    return result


class _LogLikelihood(torch.autograd.Function):
    """Log-likelihood of a family with means ``exp(log_total) * softmax(logits)``."""

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
        # Log-likelihood, log-partition of the logits, and the sum of the gradients with respect to the log means.
        log_p_c, normalizer_c, slope_c = log_total_c.new_empty(3, n_cells)
        with torch.cuda.device_of(logits_cf):
            _forward_kernel[(n_cells,)](
                *_pointers(logits_cf, log_total_c, log_theta_f, counts),
                log_p_c,
                normalizer_c,
                slope_c,
                n_features,
                family=family,
                FEATURES=min(FEATURES, triton.next_power_of_2(n_features)),
                ENTRIES=ENTRIES,
            )
        ctx.save_for_backward(logits_cf, log_total_c, log_theta_f, normalizer_c, slope_c)
        ctx.counts, ctx.family = counts, family
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        logits_cf, log_total_c, log_theta_f, normalizer_c, slope_c = ctx.saved_tensors
        n_cells, n_features = logits_cf.shape
        grad_c = grad_c.contiguous()
        grad_logits_cf = torch.empty_like(logits_cf)
        grad_log_theta_f = None if log_theta_f is None else torch.zeros_like(log_theta_f)
        arguments = (
            *_pointers(logits_cf, log_total_c, log_theta_f, ctx.counts),
            normalizer_c,
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
    """Return the inputs of all kernels; any tensor replaces missing dispersions, because it is not read."""
    theta_f = log_total_c if log_theta_f is None else log_theta_f
    return logits_cf, log_total_c, theta_f, counts.indptr_c, counts.column_n, counts.value_n


class _SparseLinear(torch.autograd.Function):
    """Product of a sparse matrix with weights: the forward pass gathers, the backward pass adds atomically."""

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
    """Return how many hidden units and stored entries a program holds at once."""
    n_units = min(HIDDEN, triton.next_power_of_2(n_hidden))
    return {"HIDDEN": n_units, "ENTRIES": PRODUCTS // HIDDEN}


def _grid(rows: CSRTensor, n_hidden: int) -> tuple[int, int]:
    """Return the grid of programs: one for each cell and tile of hidden units."""
    return rows.n_rows, triton.cdiv(n_hidden, _tile(n_hidden)["HIDDEN"])


@triton.jit
def _log1p(x):
    """Return the logarithm of 1 + x for x of at least 0, by a series if 1 + x would lose digits of x."""
    s = x / (2 + x)
    t = tl.where(x < 0.5, s * s, 0.0)
    series = 2 * s * (1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11))))))
    return tl.where(x < 0.5, series, tl.log(1 + x))


@triton.jit
def _stirling(y):
    """Return log gamma(y) minus Stirling's ``(y - 1/2) log y - y + log(2 pi) / 2``, for y above 4."""
    t = 1 / (y * y)
    return (1 / 12 - t * (1 / 360 - t * (1 / 1260 - t / 1680))) / y


@triton.jit
def _log_factorial(x):
    """Return the logarithm of gamma(x + 1)."""
    y = x + 5
    product = (x + 1) * (x + 2) * ((x + 3) * (x + 4))
    return (y - 0.5) * tl.log(y) - y + LOG_ROOT_2_PI + _stirling(y) - tl.log(product)


@triton.jit
def _log_binomial(x, theta):
    """Return the logarithm of gamma(x + theta) / (gamma(theta) x!), without differences of large numbers."""
    y, theta_plus_x = theta + 5, theta + x
    # Each gamma function is Stirling's series at its argument plus 5, divided by the five factors of this shift.
    factors = (theta_plus_x / theta) * ((theta_plus_x + 1) / ((theta + 1) * (x + 1)))
    rest = (theta_plus_x + 2) / ((theta + 2) * (x + 2)) * ((theta_plus_x + 3) / ((theta + 3) * (x + 3)))
    log_factors = tl.log(factors) + tl.log(rest * ((theta_plus_x + 4) / ((theta + 4) * (x + 4))))
    result = (y - 0.5) * _log1p(x / y) + x * _log1p(theta / (x + 5)) - 4.5 * tl.log(x + 5) - log_factors
    return result + 5 - LOG_ROOT_2_PI + _stirling(theta_plus_x + 5) - _stirling(y) - _stirling(x + 5)


@triton.jit
def _digamma_rest(y):
    """Return ``log y`` minus the digamma function, for y above 4."""
    t = 1 / (y * y)
    return 0.5 / y + t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t / 240)))


@triton.jit
def _rising_slope(x, theta):
    """Return the derivative of the logarithm of gamma(x + theta) / gamma(theta) with respect to theta."""
    y, theta_plus_x = theta + 5, theta + x
    steps = 1 / (theta * theta_plus_x) + 1 / ((theta + 1) * (theta_plus_x + 1)) + 1 / ((theta + 2) * (theta_plus_x + 2))
    steps += 1 / ((theta + 3) * (theta_plus_x + 3)) + 1 / ((theta + 4) * (theta_plus_x + 4))
    return _log1p(x / y) + _digamma_rest(y) - _digamma_rest(theta_plus_x + 5) + x * steps


@triton.jit
def _success_ratio(rate):
    """Return (1 - exp(-rate)) / rate."""
    small = tl.where(rate < 0.5, rate, 0.0)
    series = 1 - small / 2 * (1 - small / 3 * (1 - small / 4 * (1 - small / 5 * (1 - small / 6 * (1 - small / 7)))))
    return tl.where(rate < 0.5, series, (1 - tl.exp(-rate)) / tl.maximum(rate, 0.5))


@triton.jit
def _log_partition(logits_ptr, n_features, FEATURES: tl.constexpr):
    """Return the logarithm of the sum of the exponentials of one row of logits."""
    feature = tl.arange(0, FEATURES)
    maximum = float("-inf")
    total = 0.0
    for start in range(0, n_features, FEATURES):
        mask = start + feature < n_features
        logit = tl.load(logits_ptr + start + feature, mask, other=float("-inf")).to(tl.float32)
        new_maximum = tl.maximum(maximum, tl.max(logit, 0))
        total = total * tl.exp(maximum - new_maximum) + tl.sum(tl.exp(logit - new_maximum), 0)
        maximum = new_maximum
    return maximum + tl.log(total)


@triton.jit
def _forward_kernel(
    logits_ptr,
    log_total_ptr,
    log_theta_ptr,
    indptr_ptr,
    column_ptr,
    value_ptr,
    log_p_ptr,
    normalizer_ptr,
    slope_ptr,
    n_features,
    family: tl.constexpr,
    FEATURES: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Write for one cell its log-likelihood, log-partition, and sum of the gradients with respect to log means."""
    cell = tl.program_id(0).to(tl.int64)
    logits_ptr += cell * n_features
    feature = tl.arange(0, FEATURES)

    normalizer = _log_partition(logits_ptr, n_features, FEATURES)
    log_total = tl.load(log_total_ptr + cell)
    shift = log_total - normalizer  # from logits to log means

    log_p = 0.0
    slope = 0.0
    if family == 2:
        for start in range(0, n_features, FEATURES):
            mask = start + feature < n_features
            logit = tl.load(logits_ptr + start + feature, mask, other=float("-inf")).to(tl.float32)
            log_theta = tl.load(log_theta_ptr + start + feature, mask, other=0.0)
            theta, ratio = tl.exp(log_theta), tl.exp(logit + shift - log_theta)
            log_p -= tl.sum(theta * _log1p(ratio), 0)
            slope -= tl.sum(theta * (ratio / (1 + ratio)), 0)
    else:
        log_p -= tl.exp(log_total)

    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        mask = entry < last
        column = tl.load(column_ptr + entry, mask, other=0)
        x = tl.load(value_ptr + entry, mask, other=1.0)
        log_mu = tl.load(logits_ptr + column, mask, other=0.0).to(tl.float32) + shift
        if family == 0:
            term, gradient = x * log_mu - _log_factorial(x), x
        elif family == 1:
            rate = tl.exp(log_mu)
            ratio = _success_ratio(rate)
            term, gradient = log_mu + rate + tl.log(ratio), 1 / ratio
        else:
            log_theta = tl.load(log_theta_ptr + column, mask, other=0.0)
            log_ratio = log_mu - log_theta
            log_mu_share = tl.minimum(log_ratio, 0.0) - _log1p(tl.exp(-tl.abs(log_ratio)))
            term = _log_binomial(x, tl.exp(log_theta)) + x * log_mu_share
            gradient = x / (1 + tl.exp(log_ratio))
        log_p += tl.sum(tl.where(mask, term, 0.0), 0)
        slope += tl.sum(tl.where(mask, gradient, 0.0), 0)

    tl.store(log_p_ptr + cell, log_p)
    tl.store(normalizer_ptr + cell, normalizer)
    tl.store(slope_ptr + cell, slope)


@triton.jit(do_not_specialize=["n_cells"])
def _backward_kernel(
    logits_ptr,
    log_total_ptr,
    log_theta_ptr,
    indptr_ptr,
    column_ptr,
    value_ptr,
    normalizer_ptr,
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
    """Write gradients for a block of cells and features as if all counts were zero."""
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    mask = feature < n_features
    log_theta = tl.zeros([FEATURES], tl.float32)
    if family == 2:
        log_theta = tl.load(log_theta_ptr + feature, mask, other=0.0)
    theta = tl.exp(log_theta)
    grad_log_theta = tl.zeros([FEATURES], tl.float32)
    first = tl.program_id(0).to(tl.int64) * CELLS
    for cell in range(first, tl.minimum(first + CELLS, n_cells)):
        logit = tl.load(logits_ptr + cell * n_features + feature, mask, other=float("-inf")).to(tl.float32)
        log_share = logit - tl.load(normalizer_ptr + cell)
        grad = tl.load(grad_ptr + cell)
        gradient = -tl.exp(log_share) * tl.load(slope_ptr + cell)
        if family == 2:
            ratio = tl.exp(log_share + tl.load(log_total_ptr + cell) - log_theta)
            mu_share = ratio / (1 + ratio)
            gradient -= theta * mu_share
            grad_log_theta += grad * theta * (mu_share - _log1p(ratio))
        out_ptr = grad_logits_ptr + cell * n_features + feature
        tl.store(out_ptr, (grad * gradient).to(grad_logits_ptr.dtype.element_ty), mask)
    if family == 2:
        tl.atomic_add(grad_log_theta_ptr + feature, grad_log_theta, mask, sem="relaxed")


@triton.jit
def _entries_backward_kernel(
    logits_ptr,
    log_total_ptr,
    log_theta_ptr,
    indptr_ptr,
    column_ptr,
    value_ptr,
    normalizer_ptr,
    slope_ptr,
    grad_ptr,
    grad_logits_ptr,
    grad_log_theta_ptr,
    n_features,
    family: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Overwrite the gradients of one cell at its stored counts."""
    cell = tl.program_id(0).to(tl.int64)
    normalizer, slope = tl.load(normalizer_ptr + cell), tl.load(slope_ptr + cell)
    log_total, grad = tl.load(log_total_ptr + cell), tl.load(grad_ptr + cell)
    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        mask = entry < last
        column = tl.load(column_ptr + entry, mask, other=0)
        x = tl.load(value_ptr + entry, mask, other=1.0)
        position = cell * n_features + column
        log_share = tl.load(logits_ptr + position, mask, other=0.0).to(tl.float32) - normalizer
        gradient = -tl.exp(log_share) * slope
        if family == 0:
            gradient += x
        elif family == 1:
            gradient += 1 / _success_ratio(tl.exp(log_share + log_total))
        else:
            log_theta = tl.load(log_theta_ptr + column, mask, other=0.0)
            theta, ratio = tl.exp(log_theta), tl.exp(log_share + log_total - log_theta)
            grad_log_mu = x / (1 + ratio)
            gradient += grad_log_mu - theta * (ratio / (1 + ratio))
            grad_log_theta = grad * (theta * _rising_slope(x, theta) - grad_log_mu)
            tl.atomic_add(grad_log_theta_ptr + column, grad_log_theta, mask, sem="relaxed")
        # The value is recomputed and overwritten, not corrected, so that nothing is rounded twice.
        tl.store(grad_logits_ptr + position, (grad * gradient).to(grad_logits_ptr.dtype.element_ty), mask)


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
    """Write the product for one cell and a tile of hidden units."""
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
    """Add the contribution of one cell and a tile of hidden units to the gradient with respect to the weights."""
    cell = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    grad = tl.load(grad_ptr + cell * n_hidden + unit, unit < n_hidden, other=0.0)
    first, last = tl.load(indptr_ptr + cell), tl.load(indptr_ptr + cell + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        column = tl.load(column_ptr + entry, entry < last, other=0).to(tl.int64)
        value = tl.load(value_ptr + entry, entry < last, other=0.0)
        weight_ptr = grad_weight_ptr + column[:, None] * n_hidden + unit[None, :]
        mask = (entry < last)[:, None] & (unit < n_hidden)[None, :]
        tl.atomic_add(weight_ptr, value[:, None] * grad[None, :], mask, sem="relaxed")

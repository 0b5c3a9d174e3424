"""The operations of `celldial.ops.log_likelihoods` in single precision on a CPU, by compiled loops.

`celldial.ops.log_likelihoods` calls this where all tensors are so, and says what is computed. The loops are those of
`celldial.ops.numba_kernels`. The forward pass keeps a few numbers a
cell; gradients are worked out from these and the logits in the backward pass, weighted at once, so that a training step
holds two matrices of cells by features, the logits and their gradient. Rows, or columns, are shared out among torch's
threads, and what these add up is added in their order.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden, ``n`` stored entries, ``t`` threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from celldial.ops import numba_kernels
from celldial.ops.csr import SparseRows

__all__ = ["bernoulli", "negative_binomial", "poisson", "select", "sparse_linear"]

# Fewer columns than this are not given a thread of their own.
MIN_COLUMNS = 16


def select(rows: SparseRows, index_c: Tensor) -> SparseRows:
    """Gather rows; see `celldial.ops.log_likelihoods.select`."""
    length_c = (rows.indptr_c[1:] - rows.indptr_c[:-1])[index_c]
    indptr_c = torch.cat([length_c.new_zeros(1), length_c.cumsum(0)])
    n_entries = int(indptr_c[-1])
    column_n, value_n = rows.column_n.new_empty(n_entries), rows.value_n.new_empty(n_entries)
    given = arrays(rows.indptr_c, rows.column_n, rows.value_n, index_c, indptr_c, column_n, value_n)
    in_parts(numba_kernels.gather, parts(len(index_c)), *given)
    return SparseRows(indptr_c, column_n, value_n, rows.n_columns)


def sparse_linear(rows: SparseRows, weight_fh: Tensor) -> Tensor:
    """Matrix product of sparse rows with a weight matrix; see `celldial.ops.log_likelihoods.sparse_linear`."""
    result: Tensor = _SparseLinear.apply(weight_fh, rows)
    return result


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_fh: Tensor, rows: SparseRows) -> Tensor:
        ctx.rows = rows
        value_ch = weight_fh.new_empty(rows.n_rows, weight_fh.shape[1])
        in_parts(numba_kernels.sparse_product, parts(rows.n_rows), *of_rows(rows), *arrays(weight_fh, value_ch))
        return value_ch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ch: Tensor) -> tuple[Tensor, None]:
        rows: SparseRows = ctx.rows
        grad_fh = grad_ch.new_zeros(rows.n_columns, grad_ch.shape[1])
        columns = parts(grad_ch.shape[1], MIN_COLUMNS)
        in_parts(numba_kernels.sparse_product_gradient, columns, *of_rows(rows), *arrays(grad_ch, grad_fh))
        return grad_fh, None


def bernoulli(logits_cf: Tensor, log_exposure_c: Tensor, counts: SparseRows) -> Tensor:
    """Bernoulli log-likelihood per cell; see `celldial.ops.log_likelihoods.bernoulli`."""
    result: Tensor = _Bernoulli.apply(logits_cf, log_exposure_c, counts)
    return result


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, log_exposure_c: Tensor, counts: SparseRows) -> Tensor:
        logits_cf = logits_cf.contiguous()
        log_p_c, peak_c, scale_c, grad_log_exposure_c = logits_cf.new_empty(4, len(logits_cf))
        ctx.gradient = counts.with_values(torch.empty_like(counts.value_n))
        found = arrays(log_p_c, peak_c, scale_c, grad_log_exposure_c)
        given = (*arrays(logits_cf, log_exposure_c), *of_rows(ctx.gradient))
        in_parts(numba_kernels.bernoulli, parts(len(logits_cf)), *given, *found)
        ctx.save_for_backward(logits_cf, peak_c, scale_c, grad_log_exposure_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, None]:
        logits_cf, peak_c, scale_c, grad_log_exposure_c = ctx.saved_tensors
        return _gradient(logits_cf, ctx.gradient, peak_c, scale_c, grad_c), grad_log_exposure_c * grad_c, None


def poisson(logits_cf: Tensor, library_c: Tensor, counts: SparseRows) -> Tensor:
    """Poisson log-likelihood per cell; see `celldial.ops.log_likelihoods.poisson`."""
    result: Tensor = _Poisson.apply(logits_cf, library_c, counts)
    return result


class _Poisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, library_c: Tensor, counts: SparseRows) -> Tensor:
        logits_cf = logits_cf.contiguous()
        log_p_c, peak_c, scale_c = logits_cf.new_empty(3, len(logits_cf))
        given = (*arrays(logits_cf, library_c), *of_rows(counts))
        in_parts(numba_kernels.poisson, parts(len(logits_cf)), *given, *arrays(log_p_c, peak_c, scale_c))
        ctx.counts = counts
        ctx.save_for_backward(logits_cf, peak_c, scale_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, None, None]:
        logits_cf, peak_c, scale_c = ctx.saved_tensors
        return _gradient(logits_cf, ctx.counts, peak_c, scale_c, grad_c), None, None


def _gradient(logits_cf: Tensor, gradient: SparseRows, peak_c: Tensor, scale_c: Tensor, grad_c: Tensor) -> Tensor:
    """Gradient by logits where beyond stored entries only the log-partition matters; see the kernel."""
    result_cf = torch.empty_like(logits_cf)
    given = (*arrays(logits_cf), *of_rows(gradient), *arrays(peak_c, scale_c, grad_c, result_cf))
    in_parts(numba_kernels.log_partition_gradient, parts(len(logits_cf)), *given)
    return result_cf


def negative_binomial(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: SparseRows) -> Tensor:
    """Negative binomial log-likelihood per cell; see `celldial.ops.log_likelihoods.negative_binomial`."""
    result: Tensor = _NegativeBinomial.apply(logits_cf, log_theta_f, library_c, counts)
    return result


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: SparseRows) -> Tensor:
        logits_cf = logits_cf.contiguous()
        log_p_c, peak_c, scale_c = logits_cf.new_empty(3, len(logits_cf))
        given = (*arrays(logits_cf, log_theta_f, library_c), *of_rows(counts))
        in_parts(numba_kernels.negative_binomial, parts(len(logits_cf)), *given, *arrays(log_p_c, peak_c, scale_c))
        ctx.counts = counts
        ctx.save_for_backward(logits_cf, log_theta_f, library_c, peak_c, scale_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logits_cf, log_theta_f, library_c, *kept = ctx.saved_tensors
        rows = parts(len(logits_cf))
        grad_log_theta_tf = logits_cf.new_zeros(len(rows), len(log_theta_f))
        grad_logits_cf = torch.empty_like(logits_cf)
        given = (*arrays(logits_cf, log_theta_f, library_c), *of_rows(ctx.counts), *arrays(*kept, grad_c))
        each = [(*span, sum_f) for span, sum_f in zip(rows, *arrays(grad_log_theta_tf), strict=True)]
        in_parts(numba_kernels.negative_binomial_gradient, each, *given, *arrays(grad_logits_cf))
        return grad_logits_cf, grad_log_theta_tf.sum(0), None, None


def of_rows(rows: SparseRows) -> list[np.ndarray]:
    """Give starts, columns and values of rows as arrays."""
    return arrays(rows.indptr_c, rows.column_n, rows.value_n)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Give tensors as arrays, which share their memory if rows are in order there."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def parts(n: int, least: int = 1) -> list[tuple[int, int]]:
    """Cut ``range(n)`` into one span for each of torch's threads, or fewer of at least `least`."""
    n_parts = max(1, min(torch.get_num_threads(), n // least))
    edges = [n * part // n_parts for part in range(n_parts + 1)]
    return list(pairwise(edges))


def in_parts(kernel: Callable[..., None], parts: list[tuple[Any, ...]], *shared: Any) -> None:
    """Call a kernel for each part, ``kernel(*part, *shared)``, on as many threads.

    numba's own threads are not used: to have a number of them, numba sets the number of threads of all of OpenMP, and
    so torch's.
    """
    others = []
    if len(parts) > 1:
        pool = _pool(os.getpid(), len(parts) - 1)
        others = [pool.submit(kernel, *part, *shared) for part in parts[1:]]
    kernel(*parts[0], *shared)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads beside the caller's; those of a parent process are not there after a fork."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="celldial")

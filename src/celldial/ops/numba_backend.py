"""The functions of `celldial.ops.log_likelihoods` for float32 on a CPU, by the compiled loops of `numba_kernels`.

`celldial.ops.log_likelihoods` documents the functions, and calls this module if all tensors are float32 on a CPU. The
forward pass stores a few numbers per cell. The backward pass computes weighted gradients from these and the logits, so
a training step holds only two matrices of cells by features: the logits and their gradient. Rows or columns are split
over as many threads as torch uses, and sums over threads are added in a fixed order.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``n`` stored entries, ``t`` threads.
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
from celldial.ops.csr import CSRTensor

__all__ = ["bernoulli", "gather_rows", "negative_binomial", "poisson", "sparse_linear"]

# Minimum number of columns per thread.
MIN_COLUMNS = 16


def gather_rows(rows: CSRTensor, index_c: Tensor) -> CSRTensor:
    """Return rows in a given order; see `celldial.ops.log_likelihoods.gather_rows`."""
    length_c = (rows.indptr_c[1:] - rows.indptr_c[:-1])[index_c]
    indptr_c = torch.cat([length_c.new_zeros(1), length_c.cumsum(0)])
    n_entries = int(indptr_c[-1])
    column_n, value_n = rows.column_n.new_empty(n_entries), rows.value_n.new_empty(n_entries)
    gathered = CSRTensor(indptr_c, column_n, value_n, rows.n_columns)
    inputs = (csr_arrays(rows), *to_numpy(index_c))
    run_threaded(numba_kernels.gather, split_range(len(index_c)), *inputs, csr_arrays(gathered))
    return gathered


def sparse_linear(rows: CSRTensor, weight_fh: Tensor) -> Tensor:
    """Return the product of a sparse matrix with a weight matrix; see `celldial.ops.log_likelihoods.sparse_linear`."""
    result: Tensor = _SparseLinear.apply(weight_fh, rows)
    return result


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_fh: Tensor, rows: CSRTensor) -> Tensor:
        ctx.rows = rows
        value_ch = weight_fh.new_empty(rows.n_rows, weight_fh.shape[1])
        spans = split_range(rows.n_rows)
        run_threaded(numba_kernels.sparse_product, spans, csr_arrays(rows), *to_numpy(weight_fh, value_ch))
        return value_ch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ch: Tensor) -> tuple[Tensor, None]:
        rows: CSRTensor = ctx.rows
        grad_fh = grad_ch.new_zeros(rows.n_columns, grad_ch.shape[1])
        columns = split_range(grad_ch.shape[1], MIN_COLUMNS)
        run_threaded(numba_kernels.sparse_product_gradient, columns, csr_arrays(rows), *to_numpy(grad_ch, grad_fh))
        return grad_fh, None


def bernoulli(logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the Bernoulli log-likelihood per cell; see `celldial.ops.log_likelihoods.bernoulli`."""
    result: Tensor = _Bernoulli.apply(logits_cf, log_exposure_c, counts)
    return result


class _Bernoulli(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, log_exposure_c: Tensor, counts: CSRTensor) -> Tensor:
        logits_cf = logits_cf.contiguous()
        log_p_c, max_c, scale_c, grad_log_exposure_c = logits_cf.new_empty(4, len(logits_cf))
        ctx.gradient = counts.with_values(torch.empty_like(counts.value_n))
        outputs = to_numpy(log_p_c, max_c, scale_c, grad_log_exposure_c)
        inputs = (*to_numpy(logits_cf, log_exposure_c), csr_arrays(ctx.gradient))
        run_threaded(numba_kernels.bernoulli, split_range(len(logits_cf)), *inputs, outputs)
        ctx.save_for_backward(logits_cf, max_c, scale_c, grad_log_exposure_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, None]:
        logits_cf, max_c, scale_c, grad_log_exposure_c = ctx.saved_tensors
        return _gradient(logits_cf, ctx.gradient, max_c, scale_c, grad_c), grad_log_exposure_c * grad_c, None


def poisson(logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the Poisson log-likelihood per cell; see `celldial.ops.log_likelihoods.poisson`."""
    result: Tensor = _Poisson.apply(logits_cf, library_c, counts)
    return result


class _Poisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
        logits_cf = logits_cf.contiguous()
        log_p_c, max_c, scale_c = logits_cf.new_empty(3, len(logits_cf))
        inputs = (*to_numpy(logits_cf, library_c), csr_arrays(counts))
        run_threaded(numba_kernels.poisson, split_range(len(logits_cf)), *inputs, to_numpy(log_p_c, max_c, scale_c))
        ctx.counts = counts
        ctx.save_for_backward(logits_cf, max_c, scale_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, None, None]:
        logits_cf, max_c, scale_c = ctx.saved_tensors
        return _gradient(logits_cf, ctx.counts, max_c, scale_c, grad_c), None, None


def _gradient(logits_cf: Tensor, gradient: CSRTensor, max_c: Tensor, scale_c: Tensor, grad_c: Tensor) -> Tensor:
    """Return the gradient with respect to logits that contribute only at stored entries and in the log-partition."""
    result_cf = torch.empty_like(logits_cf)
    inputs = (*to_numpy(logits_cf), csr_arrays(gradient), to_numpy(max_c, scale_c, grad_c))
    run_threaded(numba_kernels.log_partition_gradient, split_range(len(logits_cf)), *inputs, *to_numpy(result_cf))
    return result_cf


def negative_binomial(logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
    """Return the negative binomial log-likelihood per cell; see `celldial.ops.log_likelihoods.negative_binomial`."""
    result: Tensor = _NegativeBinomial.apply(logits_cf, log_theta_f, library_c, counts)
    return result


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_cf: Tensor, log_theta_f: Tensor, library_c: Tensor, counts: CSRTensor) -> Tensor:
        logits_cf = logits_cf.contiguous()
        log_p_c, max_c, scale_c = logits_cf.new_empty(3, len(logits_cf))
        inputs = (*to_numpy(logits_cf, log_theta_f, library_c), csr_arrays(counts))
        outputs = to_numpy(log_p_c, max_c, scale_c)
        run_threaded(numba_kernels.negative_binomial, split_range(len(logits_cf)), *inputs, outputs)
        ctx.counts = counts
        ctx.save_for_backward(logits_cf, log_theta_f, library_c, max_c, scale_c)
        return log_p_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_c: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logits_cf, log_theta_f, library_c, max_c, scale_c = ctx.saved_tensors
        rows = split_range(len(logits_cf))
        grad_log_theta_tf = logits_cf.new_zeros(len(rows), len(log_theta_f))
        grad_logits_cf = torch.empty_like(logits_cf)
        inputs = to_numpy(logits_cf, log_theta_f, library_c)
        saved = to_numpy(max_c, scale_c, grad_c)
        spans = [(*span, sum_f) for span, sum_f in zip(rows, *to_numpy(grad_log_theta_tf), strict=True)]
        counts = csr_arrays(ctx.counts)
        run_threaded(numba_kernels.negative_binomial_gradient, spans, inputs, counts, saved, *to_numpy(grad_logits_cf))
        return grad_logits_cf, grad_log_theta_tf.sum(0), None, None


def csr_arrays(rows: CSRTensor) -> tuple[np.ndarray, ...]:
    """Return row pointers, columns and values of a sparse matrix as arrays."""
    return to_numpy(rows.indptr_c, rows.column_n, rows.value_n)


def to_numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Return tensors as a tuple of arrays, which share the memory of contiguous tensors."""
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def split_range(n: int, min_length: int = 1) -> list[tuple[int, int]]:
    """Split ``range(n)`` into one span per torch thread, or into fewer spans of at least `min_length`."""
    n_parts = max(1, min(torch.get_num_threads(), n // min_length))
    edges = [n * part // n_parts for part in range(n_parts + 1)]
    return list(pairwise(edges))


def run_threaded(kernel: Callable[..., None], spans: list[tuple[Any, ...]], *shared: Any) -> None:
    """Call ``kernel(*span, *shared)`` for each span, in as many threads.

    numba's own threads are not used: numba sets their number for all of OpenMP, and thereby also for torch.
    """
    others = []
    if len(spans) > 1:
        pool = _pool(os.getpid(), len(spans) - 1)
        others = [pool.submit(kernel, *span, *shared) for span in spans[1:]]
    kernel(*spans[0], *shared)
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads, one per process: a forked process does not have the threads of its parent."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="celldial")

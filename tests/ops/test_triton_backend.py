"""The kernels for CUDA devices against the plain references: on a GPU where there is one, else in an interpreter.

The interpreter checks the numbers. Another test checks that the kernels compile, which needs no GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial import VAE
from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.estimator.prepare import build_module
from celldial.model import networks
from celldial.ops import log_likelihoods
from celldial.ops.csr import CSRTensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Interpreters of earlier versions cannot loop over as many entries as a row has, with NumPy 2.
pytest.importorskip("triton", minversion="3.7")

from celldial.ops import triton_backend  # noqa: E402

FAMILIES = {
    "bernoulli": (triton_backend.bernoulli, log_likelihoods.bernoulli_reference),
    "poisson": (triton_backend.poisson, log_likelihoods.poisson_reference),
    "negative_binomial": (triton_backend.negative_binomial, log_likelihoods.negative_binomial_reference),
}
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def sparse_rows(dense_cf, columns=torch.int64):
    row_n, column_n = dense_cf.nonzero(as_tuple=True)
    indptr_c = torch.cat([torch.zeros(1, dtype=torch.int64), (dense_cf != 0).sum(1).cumsum(0)])
    return CSRTensor(indptr_c, column_n.to(columns), dense_cf[row_n, column_n], dense_cf.shape[1])


def some_counts(n_cells, n_features, density=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_cf = torch.poisson(torch.rand(n_cells, n_features, generator=generator) * 4, generator=generator) + 1
    return (x_cf * (torch.rand(n_cells, n_features, generator=generator) < density)).double()


def example(name, x_cf, log_theta=(-3.0, 5.0), scale=2.0, seed=0):
    """Return the arguments that have gradients, and the others except the counts, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits_cf = (torch.randn(x_cf.shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    library_c = x_cf.sum(1) * 1.5 + 1
    if name == "bernoulli":
        return [logits_cf, library_c.clamp_max(1e4).log().requires_grad_()], []
    if name == "poisson":
        return [logits_cf], [library_c]
    low, high = log_theta
    log_theta_f = torch.rand(x_cf.shape[1], generator=generator, dtype=torch.float64) * (high - low) + low
    return [logits_cf, log_theta_f.requires_grad_()], [library_c]


def single(tensor):
    return tensor.detach().to(DEVICE, torch.float32)


def value_and_gradients(function, inputs, others, counts):
    """Return the value per cell, and the gradients of a sum with a different weight for each cell."""
    value_c = function(*inputs, *others, counts)
    weight_c = torch.linspace(-1, 2, len(value_c)).to(value_c)
    return value_c.detach(), torch.autograd.grad(value_c @ weight_c, inputs)


def assert_equal_to_reference(name, x_cf, inputs, others, columns=torch.int64, rtol=1e-5):
    kernel, reference = FAMILIES[name]
    value_c, gradients = value_and_gradients(
        kernel,
        [single(t).requires_grad_() for t in inputs],
        [single(t) for t in others],
        sparse_rows(x_cf.float(), columns).to(DEVICE),
    )
    expected_c, expected = value_and_gradients(reference, inputs, others, sparse_rows(x_cf))
    torch.testing.assert_close(value_c.cpu().double(), expected_c, rtol=rtol, atol=1e-4)
    for gradient, t in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.cpu().double(), t, rtol=rtol, atol=rtol * float(1 + t.abs().max()))


@EVERY_FAMILY
@pytest.mark.parametrize(
    ("shape", "columns"),
    [((7, 11), torch.int32), *((shape, torch.int64) for shape in [(7, 11), (1, 1), (17, 64), (3, 2500)])],
)
def test_value_and_gradients_equal_the_reference(name, shape, columns):
    """Some cells have more features or stored entries than a program holds at once."""
    x_cf = some_counts(*shape, density=0.9 if shape[1] == 1 else 0.3)
    assert_equal_to_reference(name, x_cf, *example(name, x_cf), columns)


@EVERY_FAMILY
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_logits_may_be_equal_or_far_apart(name, scale):
    x_cf = some_counts(5, 40)
    assert_equal_to_reference(name, x_cf, *example(name, x_cf, scale=scale), rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 13.8), st.floats(-3, 10), st.integers(0, 10**6))
def test_negative_binomial_is_close_for_any_count_and_dispersion(log_count, log_theta, seed):
    """Counts up to a million and inverse dispersions from 0.05 to 22,000."""
    x_cf = some_counts(3, 12, seed=seed)
    x_cf[0, 0] = x_cf[1, 3] = round(np.exp(log_count))
    inputs, others = example("negative_binomial", x_cf, (log_theta, log_theta + 0.1), seed=seed)
    assert_equal_to_reference("negative_binomial", x_cf, inputs, others, rtol=3e-5)


@settings(deadline=None, max_examples=20)
@given(st.floats(-60, 9), st.integers(0, 10**6))
def test_bernoulli_is_close_for_any_exposure(log_exposure, seed):
    x_cf = some_counts(3, 8, seed=seed)
    (logits_cf, _), _ = example("bernoulli", x_cf, seed=seed)
    log_exposure_c = torch.full((3,), log_exposure, dtype=torch.float64, requires_grad=True)
    value_c, gradients = value_and_gradients(
        triton_backend.bernoulli,
        [single(t).requires_grad_() for t in (logits_cf, log_exposure_c)],
        [],
        sparse_rows(x_cf.float()).to(DEVICE),
    )
    log_rate_cf = torch.log_softmax(logits_cf, -1) + log_exposure_c[:, None]
    rate_cf = log_rate_cf.exp()
    open_cf = torch.where(rate_cf < 1e-9, log_rate_cf, (-torch.expm1(-rate_cf)).log())
    expected_c = torch.where(x_cf > 0, open_cf, -rate_cf).sum(1).detach()
    # Exposure and the terms of the successes cancel.
    atol = 1e-4 + 1e-6 * float(np.exp(log_exposure))
    torch.testing.assert_close(value_c.cpu().double(), expected_c, rtol=1e-5, atol=atol)
    assert all(gradient.isfinite().all() for gradient in gradients)


@EVERY_FAMILY
def test_cells_without_stored_entries(name):
    x_cf = some_counts(4, 6)
    x_cf[1:3] = 0
    assert_equal_to_reference(name, x_cf, *example(name, x_cf))


@EVERY_FAMILY
def test_a_minibatch_without_cells(name):
    inputs, others = example(name, some_counts(4, 6))
    inputs = [single(t[:0] if len(t) == 4 else t).requires_grad_() for t in inputs]
    others = [single(t[:0]) for t in others]
    value_c, gradients = value_and_gradients(
        FAMILIES[name][0], inputs, others, sparse_rows(torch.zeros(0, 6)).to(DEVICE)
    )
    assert value_c.shape == (0,)
    assert all(torch.equal(gradient, torch.zeros_like(t)) for gradient, t in zip(gradients, inputs, strict=True))


@EVERY_FAMILY
def test_gradient_twice_and_without_grad(name):
    x_cf = some_counts(4, 6)
    inputs, others = example(name, x_cf)
    inputs, others = [single(t).requires_grad_() for t in inputs], [single(t) for t in others]
    counts = sparse_rows(x_cf.float()).to(DEVICE)
    value_c = FAMILIES[name][0](*inputs, *others, counts)
    first = torch.autograd.grad(value_c.sum(), inputs, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(value_c.sum(), inputs))
    with torch.no_grad():
        assert torch.equal(FAMILIES[name][0](*inputs, *others, counts), value_c)


@EVERY_FAMILY
def test_logits_may_be_bfloat16_and_not_contiguous(name):
    """The log-likelihood of bfloat16 logits is that of the same numbers in float32; only gradients are rounded."""
    x_cf = some_counts(5, 40)
    inputs, others = example(name, x_cf)
    logits_fc = single(inputs[0]).bfloat16().T.contiguous()
    others, given = [single(t).requires_grad_() for t in inputs[1:]], [single(t) for t in others]
    counts = sparse_rows(x_cf.float()).to(DEVICE)
    kernel = FAMILIES[name][0]
    half = value_and_gradients(kernel, [logits_fc.T.requires_grad_(), *others], given, counts)
    full = value_and_gradients(kernel, [logits_fc.T.float().requires_grad_(), *others], given, counts)
    assert torch.equal(half[0], full[0])
    assert half[1][0].dtype == torch.bfloat16
    torch.testing.assert_close(half[1][0].float(), full[1][0], rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(half[1][1:], full[1][1:])


@pytest.mark.parametrize("columns", [torch.int32, torch.int64])
@pytest.mark.parametrize("n_hidden", [1, 20, 128, 150])
def test_the_sparse_product_equals_the_reference(n_hidden, columns):
    x_cf = some_counts(6, 90, density=0.6)
    x_cf[2] = 0
    rows = sparse_rows(x_cf, columns)
    generator = torch.Generator().manual_seed(1)
    weight_fh = torch.randn(90, n_hidden, generator=generator, dtype=torch.float64, requires_grad=True)
    grad_ch = torch.randn(6, n_hidden, generator=generator, dtype=torch.float64)
    expected_ch = log_likelihoods.sparse_linear_reference(rows, weight_fh)
    (expected_fh,) = torch.autograd.grad(expected_ch, weight_fh, grad_ch)
    single_fh = single(weight_fh).requires_grad_()
    product_ch = triton_backend.sparse_linear(rows.with_values(rows.value_n.float()).to(DEVICE), single_fh)
    (grad_fh,) = torch.autograd.grad(product_ch, single_fh, single(grad_ch))
    torch.testing.assert_close(product_ch.detach().cpu().double(), expected_ch.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad_fh.cpu().double(), expected_fh, rtol=1e-5, atol=1e-4)


@EVERY_FAMILY
def test_a_training_step_is_the_same_with_and_without_kernels(name, monkeypatch):
    x_cf = some_counts(12, 30, seed=3)
    adata = ad.AnnData(x_cf.float().numpy())
    schema = Schema.from_anndata(adata, likelihood=name)
    cells = Cells.from_anndata(adata, schema).to(DEVICE)
    torch.manual_seed(0)
    module = build_module(VAE(n_latent=3, n_hidden=16, dropout_rate=0.0), schema, None).to(DEVICE)
    module.initialize(cells)

    def loss_and_gradients():
        torch.manual_seed(1)
        loss = module(cells, 0.5)
        return loss.detach(), torch.autograd.grad(loss, list(module.parameters()))

    plain = loss_and_gradients()
    monkeypatch.setattr(log_likelihoods, name, FAMILIES[name][0])
    monkeypatch.setattr(networks, "sparse_linear", triton_backend.sparse_linear)
    by_kernels = loss_and_gradients()
    torch.testing.assert_close(by_kernels, plain, rtol=1e-4, atol=1e-4)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from celldial.ops import triton_backend as kernels

SIZES = {"FEATURES": 2048, "ENTRIES": 256, "CELLS": 8, "HIDDEN": 128}
INTEGERS = {"indptr_ptr": "*i64", "column_ptr": "*i64", "n_features": "i32", "n_cells": "i32", "n_hidden": "i32"}


def check(kernel, logits, **constants):
    names = kernel.arg_names
    constants = {name: value for name, value in (SIZES | constants).items() if name in names}
    signature = {name: INTEGERS.get(name, "*fp32") for name in names} | dict.fromkeys(constants, "constexpr")
    signature |= {name: logits for name in ("logits_ptr", "grad_logits_ptr") if name in signature}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"]


for family, logits in ((0, "*fp32"), (1, "*fp32"), (2, "*fp32"), (2, "*bf16")):
    for kernel in (kernels._forward_kernel, kernels._backward_kernel, kernels._entries_backward_kernel):
        check(kernel, logits, family=family)
check(kernels._sparse_linear_kernel, "*fp32", ENTRIES=32)
check(kernels._sparse_linear_backward_kernel, "*fp32", ENTRIES=32)
"""


@pytest.mark.slow
def test_the_kernels_compile(tmp_path: Path) -> None:
    """They are compiled for a GPU of compute capability 9.0, which need not be present."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""The compiled loops in single precision against the references in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from celldial.ops import log_likelihoods, numba_kernels
from celldial.ops.csr import CSRTensor

LIKELIHOODS = ("bernoulli", "poisson", "negative_binomial")
EVERY_LIKELIHOOD = pytest.mark.parametrize("name", LIKELIHOODS)
# Numbers of cells and features, scale of the logits, mean count, seed.
CASES = given(
    st.integers(1, 6), st.integers(1, 40), st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from([0.0, 0.3, 3.0, 500.0]),
    st.integers(0, 10**6),
)  # fmt: skip


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@njit
def each(function, x_n, out_n):
    for n in range(len(x_n)):
        out_n[n] = function(x_n[n])


def relative_error(function, exact, x_n):
    out_n = np.empty_like(x_n)
    each(function, x_n, out_n)
    return np.abs(out_n / exact(x_n.astype(np.float64)) - 1).max()


def sparse_rows(x_cf):
    """Return a float64 matrix as a sparse matrix of float32."""
    present_cf = x_cf != 0
    indptr_c = torch.cat([torch.zeros(1, dtype=torch.int64), present_cf.sum(1).cumsum(0)])
    return CSRTensor(indptr_c, present_cf.nonzero()[:, 1], x_cf[present_cf].float(), x_cf.shape[1])


def example(name, n_cells, n_features, scale, mean, seed, integers=True):
    """Return the arguments that have gradients, the other arguments, and counts, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    rate_cf = torch.rand(n_cells, n_features, generator=generator, dtype=torch.float64) * 2 * mean
    x_cf = torch.poisson(rate_cf, generator=generator)
    if not integers:
        x_cf = (x_cf + rate_cf * (x_cf > 0)).float().double()
    normal = {"generator": generator, "dtype": torch.float64}
    logits_cf = (torch.randn(n_cells, n_features, **normal) * scale).float().double()
    library_c = (x_cf.sum(-1) + 1).float().double()
    if name == "bernoulli":
        return [logits_cf, library_c.log().float().double()], [], x_cf
    if name == "poisson":
        return [logits_cf], [library_c], x_cf
    return [logits_cf, torch.randn(n_features, **normal).mul_(2).float().double()], [library_c], x_cf


def check(name, inputs, library, x_cf):
    fused, reference = getattr(log_likelihoods, name), getattr(log_likelihoods, f"{name}_reference")
    doubles = [t.clone().requires_grad_() for t in inputs]
    singles = [t.float().requires_grad_() for t in inputs]
    rows = sparse_rows(x_cf)
    expected_c = reference(*doubles, *library, rows.with_values(rows.value_n.double()))
    value_c = fused(*singles, *(t.float() for t in library), rows)
    assert value_c.dtype == torch.float32
    # If large terms cancel, the result has their absolute precision.
    torch.testing.assert_close(value_c.double(), expected_c, rtol=1e-5, atol=1e-4 + 2e-6 * float(x_cf.sum(-1).max()))
    weight_c = torch.linspace(-1, 2, len(x_cf), dtype=torch.float64)
    found = torch.autograd.grad(value_c @ weight_c.float(), singles)
    for gradient, exact in zip(found, torch.autograd.grad(expected_c @ weight_c, doubles), strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-5 * (1 + float(x_cf.max())))


def test_exponential_and_logarithm_have_six_exact_digits():
    x_n = -np.geomspace(1e-12, 87, 20_001).astype(np.float32)
    assert relative_error(numba_kernels.exp_nonpositive, np.exp, x_n) < 1e-6
    assert (
        relative_error(numba_kernels.log1p_nonnegative, np.log1p, np.geomspace(1e-30, 1e30, 20_001).astype(np.float32))
        < 1e-6
    )


def test_exponential_of_very_negative_numbers_is_tiny():
    x_n, out_n = np.array([-88, -1e4, -np.inf], np.float32), np.empty(3, np.float32)
    each(numba_kernels.exp_nonpositive, x_n, out_n)
    assert ((out_n >= 0) & (out_n < 1e-37)).all()


@EVERY_LIKELIHOOD
@settings(deadline=None, max_examples=40)
@CASES
def test_value_and_gradient_equal_the_reference(name, n_cells, n_features, scale, mean, seed):
    if name == "bernoulli":
        scale = min(scale, 1.0)  # otherwise log(1 - exp(-rate)) of the reference is lost to rounding
    check(name, *example(name, n_cells, n_features, scale, mean, seed))


@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
def test_counts_may_be_fractions(name):
    check(name, *example(name, 5, 20, 1.0, 3.0, 0, integers=False))


@EVERY_LIKELIHOOD
def test_cells_of_a_million_counts(name):
    inputs, library, x_cf = example(name, 3, 30, 1.0, 3.0, 0)
    x_cf[0, 0] = 1e6
    check(name, inputs, [x_cf.sum(-1) for _ in library], x_cf)


@EVERY_LIKELIHOOD
def test_no_counts_and_no_cells(name):
    inputs, library, x_cf = example(name, 4, 6, 1.0, 0.0, 0)
    assert not x_cf.any()
    check(name, inputs, library, x_cf)
    nobody = [t[:0].float() if len(t) == 4 else t.float() for t in inputs]
    assert getattr(log_likelihoods, name)(*nobody, *(t[:0].float() for t in library), sparse_rows(x_cf[:0])).shape == (
        0,
    )


@EVERY_LIKELIHOOD
def test_nan_is_not_hidden(name):
    inputs, library, x_cf = example(name, 3, 50, 1.0, 0.3, 0)
    inputs[0][1, 7] = torch.nan
    value_c = getattr(log_likelihoods, name)(*(t.float() for t in [*inputs, *library]), sparse_rows(x_cf))
    assert value_c.isnan().tolist() == [False, True, False]


@EVERY_LIKELIHOOD
def test_threads_give_the_same_result_each_time(name, threads):
    inputs, library, x_cf = example(name, 7, 50, 1.0, 0.3, 0)
    check(name, inputs, library, x_cf)
    singles = [t.float().requires_grad_() for t in inputs]
    once, again = (
        torch.autograd.grad(
            getattr(log_likelihoods, name)(*singles, *(t.float() for t in library), sparse_rows(x_cf)).sum(), singles
        )
        for _ in range(2)
    )
    assert all(map(torch.equal, once, again))
    assert torch.get_num_threads() == threads


@EVERY_LIKELIHOOD
def test_logits_need_not_be_contiguous(name):
    inputs, library, x_cf = example(name, 5, 9, 1.0, 1.0, 0)
    inputs[0] = inputs[0].T.contiguous().T
    check(name, inputs, library, x_cf)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 6), st.integers(1, 9), st.sampled_from([1, 5, 40]), st.integers(0, 10**6))
def test_sparse_product_and_its_gradient(n_cells, n_features, n_hidden, seed):
    torch.manual_seed(seed)
    x_cf = torch.randint(0, 3, (n_cells, n_features)).double()
    weight_fh = torch.randn(n_features, n_hidden, requires_grad=True)
    value_ch = log_likelihoods.sparse_linear(sparse_rows(x_cf), weight_fh)
    torch.testing.assert_close(value_ch, x_cf.float() @ weight_fh)
    grad_ch = torch.randn_like(value_ch)
    torch.testing.assert_close(torch.autograd.grad(value_ch, weight_fh, grad_ch)[0], x_cf.T.float() @ grad_ch)


def test_sparse_product_on_threads(threads):
    x_cf = torch.poisson(torch.full((9, 30), 0.3, dtype=torch.float64))
    weight_fh = torch.randn(30, 64, requires_grad=True)
    value_ch = log_likelihoods.sparse_linear(sparse_rows(x_cf), weight_fh)
    torch.testing.assert_close(value_ch, x_cf.float() @ weight_fh)
    (gradient_fh,) = torch.autograd.grad(value_ch.sum(), weight_fh)
    torch.testing.assert_close(gradient_fh, x_cf.sum(0).float()[:, None].expand(-1, 64))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_gather_rows_equals_dense_indexing(n_cells, n_features, seed):
    torch.manual_seed(seed)
    x_cf = torch.randint(0, 3, (n_cells, n_features)).double()
    index_c = torch.randint(0, n_cells, (5,))
    rows = sparse_rows(x_cf)
    assert torch.equal(log_likelihoods.gather_rows(rows, index_c).to_dense(), x_cf[index_c].float())
    narrow = CSRTensor(rows.indptr_c, rows.column_n.int(), rows.value_n, n_features)
    assert torch.equal(log_likelihoods.gather_rows(narrow, index_c).to_dense(), x_cf[index_c].float())


@pytest.mark.parametrize("n_features", [10, 20, 37, 200])
def test_sums_do_not_depend_on_the_addresses_of_arrays(n_features):
    """Results are identical for any order of and distance between input and output in memory."""
    logit_f = np.random.default_rng(0).normal(size=n_features).astype(np.float32)
    found = set()
    for gap in range(20):
        for order in (1, -1):
            first, second = np.split(np.zeros(2 * n_features + gap, np.float32), [n_features + gap])
            logits_f, out_f = (first[:n_features], second)[::order]
            logits_f[:] = logit_f
            found.add((numba_kernels.exp_shifted(logits_f, out_f), out_f.tobytes()))
    assert len(found) == 1

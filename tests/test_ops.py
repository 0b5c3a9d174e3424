"""Each fused operation against its plain reference: value, gradient, and gradcheck in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial import ops

LIKELIHOODS = {
    "poisson": (ops.poisson, ops.poisson_reference, 0, 1),
    "negative_binomial": (ops.negative_binomial, ops.negative_binomial_reference, 1, 1),
    "zero_inflated_negative_binomial": (
        ops.zero_inflated_negative_binomial,
        ops.zero_inflated_negative_binomial_reference,
        1,
        2,
    ),
}


def sparse_rows(dense_cf):
    sparse = dense_cf.to_sparse_csr()
    return ops.SparseRows(sparse.crow_indices(), sparse.col_indices(), sparse.values(), dense_cf.shape[1])


def example(n_cells, n_features, n_feature_parameters, n_heads, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x_cf = torch.poisson(torch.rand(n_cells, n_features, generator=generator) * 2, generator=generator).to(dtype)
    x_cf[:, 0] = 1  # no empty cell
    heads = [
        torch.randn(n_cells, n_features, generator=generator, dtype=dtype).mul_(scale).requires_grad_()
        for _ in range(n_heads)
    ]
    parameters = [
        torch.randn(n_features, generator=generator, dtype=dtype).requires_grad_() for _ in range(n_feature_parameters)
    ]
    return heads + parameters, x_cf.sum(-1) * 1.5, sparse_rows(x_cf)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_value_and_gradient_equal_the_reference(name):
    fused, reference, n_feature_parameters, n_heads = LIKELIHOODS[name]
    inputs, library_c, counts = example(7, 11, n_feature_parameters, n_heads)
    weight_c = torch.linspace(-1, 2, 7, dtype=torch.float64)
    value_c, expected_c = fused(*inputs, library_c, counts), reference(*inputs, library_c, counts)
    torch.testing.assert_close(value_c, expected_c)
    gradients = torch.autograd.grad(value_c @ weight_c, inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_c @ weight_c, inputs))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradcheck(name):
    fused, _, n_feature_parameters, n_heads = LIKELIHOODS[name]
    inputs, library_c, counts = example(3, 5, n_feature_parameters, n_heads)
    assert torch.autograd.gradcheck(lambda *t: fused(*t, library_c, counts), inputs)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_float32_stays_finite_and_close(name, scale):
    fused, reference, n_feature_parameters, n_heads = LIKELIHOODS[name]
    inputs, library_c, counts = example(5, 40, n_feature_parameters, n_heads, scale=scale)
    expected_c = reference(*inputs, library_c, counts)
    singles = [t.detach().float().requires_grad_() for t in inputs]
    value_c = fused(*singles, library_c.float(), counts.with_values(counts.value_n.float()))
    torch.testing.assert_close(value_c.double(), expected_c, rtol=1e-4, atol=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value_c.sum(), singles))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradient_twice_and_without_grad(name):
    fused, _, n_feature_parameters, n_heads = LIKELIHOODS[name]
    inputs, library_c, counts = example(4, 6, n_feature_parameters, n_heads)
    value_c = fused(*inputs, library_c, counts)
    first = torch.autograd.grad(value_c.sum(), inputs, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(value_c.sum(), inputs))
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs, library_c, counts), value_c.detach())


def test_negative_binomial_tends_to_poisson():
    (logits_cf,), library_c, counts = example(4, 6, 0, 1)
    log_theta_f = torch.full((6,), 20.0, dtype=torch.float64)
    torch.testing.assert_close(
        ops.negative_binomial(logits_cf, log_theta_f, library_c, counts),
        ops.poisson(logits_cf, library_c, counts),
        rtol=1e-6,
        atol=1e-6,
    )


def test_negative_binomial_sums_to_one():
    """Exact enumeration of one feature: all counts from 0 to 400 carry all the probability."""
    x_c1 = torch.arange(401, dtype=torch.float64)[:, None]
    counts = sparse_rows(x_c1)
    logits_c1, library_c = torch.zeros(401, 1, dtype=torch.float64), torch.full((401,), 3.0, dtype=torch.float64)
    log_theta_f = torch.tensor([0.3], dtype=torch.float64)
    total = ops.negative_binomial(logits_c1, log_theta_f, library_c, counts).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))
    dropped_c1 = torch.full_like(logits_c1, -0.4)
    total = ops.zero_inflated_negative_binomial(logits_c1, dropped_c1, log_theta_f, library_c, counts).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_sparse_linear_equals_the_reference(n_cells, n_features, seed):
    torch.manual_seed(seed)
    rows = sparse_rows(torch.randint(0, 3, (n_cells, n_features)).double())
    weight_fh = torch.randn(n_features, 4, dtype=torch.float64, requires_grad=True)
    value_ch, expected_ch = ops.sparse_linear(rows, weight_fh), ops.sparse_linear_reference(rows, weight_fh)
    torch.testing.assert_close(value_ch, expected_ch)
    weight_ch = torch.randn(n_cells, 4, dtype=torch.float64)
    gradient = torch.autograd.grad((value_ch * weight_ch).sum(), weight_fh)
    torch.testing.assert_close(gradient, torch.autograd.grad((expected_ch * weight_ch).sum(), weight_fh))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_select_equals_dense_indexing(n_cells, n_features, seed):
    torch.manual_seed(seed)
    dense_cf = torch.randint(0, 3, (n_cells, n_features)).double()
    index_c = torch.randint(0, n_cells, (5,))
    rows = sparse_rows(dense_cf)
    torch.testing.assert_close(rows.select(index_c).to_dense(), dense_cf[index_c])
    torch.testing.assert_close(rows.sum_rows(rows.value_n), dense_cf.sum(-1))

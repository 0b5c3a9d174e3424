"""Each fused function against its plain reference: value, gradient, and gradcheck in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial.ops import log_likelihoods, mixture
from celldial.ops.csr import CSRTensor

# Fused function, reference, number of parameters per feature, number of decoder outputs, whether exposure is learned.
LIKELIHOODS = {
    "bernoulli": (log_likelihoods.bernoulli, log_likelihoods.bernoulli_reference, 0, 1, True),
    "poisson": (log_likelihoods.poisson, log_likelihoods.poisson_reference, 0, 1, False),
    "negative_binomial": (log_likelihoods.negative_binomial, log_likelihoods.negative_binomial_reference, 1, 1, False),
    "zero_inflated_negative_binomial": (
        log_likelihoods.zero_inflated_negative_binomial,
        log_likelihoods.zero_inflated_negative_binomial_reference,
        1,
        2,
        False,
    ),
    "negative_binomial_mixture": (
        mixture.negative_binomial_mixture,
        mixture.negative_binomial_mixture_reference,
        2,
        2,
        True,
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
EVERY_LIKELIHOOD = pytest.mark.parametrize("name", LIKELIHOODS)


def sparse_rows(dense_cf):
    sparse = dense_cf.to_sparse_csr()
    return CSRTensor(sparse.crow_indices(), sparse.col_indices(), sparse.values(), dense_cf.shape[1])


def empty_rows_like(n_cells, n_features, dtype=torch.float64):
    nothing = torch.zeros(0, dtype=torch.int64)
    return CSRTensor(torch.zeros(n_cells + 1, dtype=torch.int64), nothing, nothing.to(dtype), n_features)


def example(name, n_cells, n_features, seed=0, scale=1.0, dtype=torch.float64):
    """Return the arguments that have gradients, and the others: library sizes, if they are not learned, and counts."""
    _, _, n_feature_parameters, n_heads, learns_exposure = LIKELIHOODS[name]
    generator = torch.Generator().manual_seed(seed)
    x_cf = torch.poisson(torch.rand(n_cells, n_features, generator=generator) * 2, generator=generator).to(dtype)
    x_cf[:, 0] = 1  # no cell is empty
    heads = [
        torch.randn(n_cells, n_features, generator=generator, dtype=dtype).mul_(scale).requires_grad_()
        for _ in range(n_heads)
    ]
    parameters = [
        torch.randn(n_features, generator=generator, dtype=dtype).requires_grad_() for _ in range(n_feature_parameters)
    ]
    library_c = x_cf.sum(-1) * 1.5
    if learns_exposure:
        return [*heads, *parameters, library_c.log().requires_grad_()], (sparse_rows(x_cf),)
    return heads + parameters, (library_c, sparse_rows(x_cf))


@EVERY_LIKELIHOOD
def test_value_and_gradient_equal_the_reference(name):
    fused, reference, *_ = LIKELIHOODS[name]
    inputs, others = example(name, 7, 11)
    weight_c = torch.linspace(-1, 2, 7, dtype=torch.float64)
    value_c, expected_c = fused(*inputs, *others), reference(*inputs, *others)
    torch.testing.assert_close(value_c, expected_c)
    gradients = torch.autograd.grad(value_c @ weight_c, inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_c @ weight_c, inputs))


@EVERY_LIKELIHOOD
def test_gradcheck(name):
    inputs, others = example(name, 3, 5)
    assert torch.autograd.gradcheck(lambda *t: LIKELIHOODS[name][0](*t, *others), inputs)


@EVERY_LIKELIHOOD
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_float32_stays_finite_and_close(name, scale):
    fused, reference, *_ = LIKELIHOODS[name]
    inputs, others = example(name, 5, 40, scale=scale)
    expected_c = reference(*inputs, *others)
    singles = [t.detach().float().requires_grad_() for t in inputs]
    *library, counts = others
    library = [library_c.float() for library_c in library]
    value_c = fused(*singles, *library, counts.with_values(counts.value_n.float()))
    torch.testing.assert_close(value_c.double(), expected_c, rtol=1e-4, atol=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value_c.sum(), singles))


@EVERY_LIKELIHOOD
def test_gradient_twice_and_without_grad(name):
    fused = LIKELIHOODS[name][0]
    inputs, others = example(name, 4, 6)
    value_c = fused(*inputs, *others)
    first = torch.autograd.grad(value_c.sum(), inputs, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(value_c.sum(), inputs))
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs, *others), value_c.detach())


@EVERY_LIKELIHOOD
def test_cells_without_stored_entries(name):
    fused, reference, *_ = LIKELIHOODS[name]
    inputs, (*library, _) = example(name, 4, 6)
    others = (*library, empty_rows_like(4, 6))
    value_c, expected_c = fused(*inputs, *others), reference(*inputs, *others)
    torch.testing.assert_close(value_c, expected_c)
    gradients = torch.autograd.grad(value_c.sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_c.sum(), inputs))


@EVERY_LIKELIHOOD
def test_a_minibatch_without_cells(name):
    """All cells of a minibatch may lack the modality."""
    inputs, (*library, counts) = example(name, 4, 6)
    of_nobody = [t[:0].detach().requires_grad_() if len(t) == 4 else t for t in inputs]
    value_c = LIKELIHOODS[name][0](*of_nobody, *(t[:0] for t in library), counts.select(torch.arange(0)))
    assert value_c.shape == (0,)
    for gradient, t in zip(torch.autograd.grad(value_c.sum(), of_nobody), of_nobody, strict=True):
        assert torch.equal(gradient, torch.zeros_like(t))


@settings(deadline=None, max_examples=60)
@given(st.floats(-80, 80), st.sampled_from([0.0, 1.0, 100.0, 1e4]), st.integers(0, 10**6))
def test_bernoulli_is_finite_for_extreme_exposures(log_exposure, scale, seed):
    inputs, (counts,) = example("bernoulli", 3, 8, seed, scale, torch.float32)
    inputs[1] = torch.full((3,), log_exposure, requires_grad=True)
    value_c = log_likelihoods.bernoulli(*inputs, counts)
    assert value_c.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value_c.sum(), inputs))


@settings(deadline=None, max_examples=60)
@given(st.floats(-60, 3), st.sampled_from([1.0, 100.0]), st.integers(0, 10**6))
def test_bernoulli_in_float32_is_close_for_tiny_rates(log_exposure, scale, seed):
    """For tiny rates log(1 - exp(-rate)) is the log rate, which must not be lost to rounding."""
    inputs, (counts,) = example("bernoulli", 3, 8, seed, scale)
    logits_cf, log_exposure_c = inputs[0].detach(), torch.full((3,), log_exposure, dtype=torch.float64)
    log_lambda_cf = torch.log_softmax(logits_cf, -1) + log_exposure_c[:, None]
    lambda_cf = log_lambda_cf.exp()
    open_cf = torch.where(lambda_cf < 1e-9, log_lambda_cf, (-torch.expm1(-lambda_cf)).log())
    expected_c = torch.where(counts.to_dense() > 0, open_cf, -lambda_cf).sum(-1)
    single = counts.with_values(counts.value_n.float())
    value_c = log_likelihoods.bernoulli(logits_cf.float(), log_exposure_c.float(), single)
    torch.testing.assert_close(value_c.double(), expected_c, rtol=1e-5, atol=1e-4)


def test_each_stored_entry_is_a_bernoulli_success():
    inputs, (counts,) = example("bernoulli", 4, 6)
    ones = counts.with_values(torch.ones_like(counts.value_n))
    assert torch.equal(log_likelihoods.bernoulli(*inputs, counts), log_likelihoods.bernoulli(*inputs, ones))


def test_negative_binomial_by_cell_equals_the_reference():
    """Values and gradients with a dispersion for each feature in each cell, and for a cell without counts."""
    (logits_cf, log_theta_f), others = example("negative_binomial", 7, 11)
    log_theta_cf = (log_theta_f.detach() + torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]).requires_grad_()
    weight_c = torch.linspace(-1, 2, 7, dtype=torch.float64)
    fused, reference = log_likelihoods.negative_binomial_by_cell, log_likelihoods.negative_binomial_reference
    value_c, expected_c = (function(logits_cf, log_theta_cf, *others) for function in (fused, reference))
    torch.testing.assert_close(value_c, expected_c)
    inputs = (logits_cf, log_theta_cf)
    gradients, expected = (torch.autograd.grad(one @ weight_c, inputs) for one in (value_c, expected_c))
    torch.testing.assert_close(gradients, expected)
    empty = torch.zeros(7, dtype=torch.float64), empty_rows_like(7, 11)
    torch.testing.assert_close(fused(logits_cf, log_theta_cf, *empty), torch.zeros(7, dtype=torch.float64))


def test_negative_binomial_tends_to_poisson():
    (logits_cf,), (library_c, counts) = example("poisson", 4, 6)
    log_theta_f = torch.full((6,), 20.0, dtype=torch.float64)
    torch.testing.assert_close(
        log_likelihoods.negative_binomial(logits_cf, log_theta_f, library_c, counts),
        log_likelihoods.poisson(logits_cf, library_c, counts),
        rtol=1e-6,
        atol=1e-6,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_sparse_linear_equals_the_reference(n_cells, n_features, seed):
    torch.manual_seed(seed)
    rows = sparse_rows(torch.randint(0, 3, (n_cells, n_features)).double())
    weight_fh = torch.randn(n_features, 4, dtype=torch.float64, requires_grad=True)
    value_ch, expected_ch = (
        log_likelihoods.sparse_linear(rows, weight_fh),
        log_likelihoods.sparse_linear_reference(rows, weight_fh),
    )
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

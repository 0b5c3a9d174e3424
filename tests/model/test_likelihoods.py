"""Likelihoods: each against its row in `LIKELIHOOD_CASES`, and properties of single likelihoods."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from celldial import VAE
from celldial.model.likelihoods import LIKELIHOODS, THETA_BOUNDS, Likelihood, NegativeBinomial
from celldial.model.observations import SparseObservation
from celldial.ops.csr import CSRTensor
from helpers.assertions import assert_gradients
from helpers.cases import LIKELIHOOD_CASES
from helpers.raises import raises
from helpers.simulate import simulate

N_FEATURES = 6


def sparse_rows(x_cf: Tensor) -> CSRTensor:
    row_n, column_n = x_cf.nonzero(as_tuple=True)
    indptr_c = torch.cat([torch.zeros(1, dtype=torch.int64), (x_cf > 0).sum(1).cumsum(0)])
    return CSRTensor(indptr_c, column_n, x_cf[row_n, column_n], x_cf.shape[1])


def make_observation(name: str, n_cells: int = 5, n_features: int = N_FEATURES) -> SparseObservation:
    """Make an observation in float64 with random heads, dispersions and library sizes."""
    torch.manual_seed(0)
    likelihood = LIKELIHOODS[name](n_features).double()
    for parameter in likelihood.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    heads = [torch.randn(n_cells, n_features, dtype=torch.float64) for _ in range(likelihood.n_heads)]
    # Few open peaks, so that none is open in all draws.
    scale = 0.1 if likelihood.binary else 1.0
    return SparseObservation(likelihood, heads, scale * (torch.rand(n_cells, dtype=torch.float64) * 30 + 10))


def random_counts(n_cells: int = 5) -> Tensor:
    """Return random counts, with one cell without counts and one cell with a single count."""
    x_cf = torch.poisson(torch.rand(n_cells, N_FEATURES, dtype=torch.float64) * 4)
    assert 0 < (x_cf == 0).sum() < x_cf.numel()
    x_cf[0], x_cf[1], x_cf[1, 0] = 0, 0, 3
    return x_cf


def repeat(one: SparseObservation, n_cells: int) -> SparseObservation:
    """Return equal cells."""
    heads = [head.expand(n_cells, -1) for head in one.heads]
    return SparseObservation(one.likelihood, heads, one.library_size_c.expand(n_cells))


def rate_of(observation: SparseObservation) -> Tensor:
    """Return the exposure times the share."""
    exposure_c = observation.likelihood.log_exposure(observation.library_size_c).exp()
    return exposure_c[:, None] * torch.softmax(observation.heads[0], -1)


def log_pmf(name: str, observation: SparseObservation, x: Tensor, rate_cf: Tensor | None = None) -> Tensor:
    """Return the log-probability of each count according to the row of the likelihood."""
    rate_cf = rate_of(observation) if rate_cf is None else rate_cf
    parameters = {key: value.detach().numpy() for key, value in observation.likelihood.named_parameters()}
    further = [head.detach().numpy() for head in observation.heads[1:]]
    library_c1 = observation.library_size_c.detach().numpy()[:, None]
    return torch.from_numpy(
        LIKELIHOOD_CASES[name](x.numpy(), rate_cf.detach().numpy(), parameters, further, library_c1)
    )


def support_of(likelihood: Likelihood) -> Tensor:
    """Return all counts with a probability that is not negligible."""
    return torch.arange(2 if likelihood.binary else 2000, dtype=torch.float64)


# --- All likelihoods --------------------------------------------------------------------------------------------------


def documented_example(root: Path) -> str:
    """Return the likelihood that the guide for contributors has as its example, and its row."""
    text = (root / "docs" / "dev" / "extending.md").read_text(encoding="utf-8")
    section = text.split("## A likelihood")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.fixture(params=[*LIKELIHOOD_CASES, "geometric"])
def name(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a likelihood; "geometric" is the example for contributors."""
    if request.param == "geometric":
        for table in (LIKELIHOODS, LIKELIHOOD_CASES):
            monkeypatch.setitem(table, "geometric", None)  # removes it afterwards
        names = {"torch": torch, "stats": stats, "Likelihood": Likelihood}
        exec(documented_example(root), names | {"LIKELIHOODS": LIKELIHOODS, "LIKELIHOOD_CASES": LIKELIHOOD_CASES})
    return request.param


def test_every_likelihood_has_a_case() -> None:
    assert set(LIKELIHOOD_CASES) == set(LIKELIHOODS)


def test_log_prob_equals_that_of_the_case(name: str) -> None:
    observation, x_cf = make_observation(name), random_counts()
    found_c = observation.log_prob(sparse_rows(x_cf))
    torch.testing.assert_close(found_c, log_pmf(name, observation, x_cf).sum(-1))
    single = SparseObservation(
        observation.likelihood.float(), [head.float() for head in observation.heads], observation.library_size_c.float()
    )
    of_single_c = single.log_prob(sparse_rows(x_cf.float()))
    assert of_single_c.dtype == torch.float32
    torch.testing.assert_close(of_single_c.double(), found_c, rtol=1e-4, atol=1e-4)


def test_probabilities_sum_to_one(name: str) -> None:
    one = make_observation(name, n_cells=1, n_features=1)
    x_c1 = support_of(one.likelihood)[:, None]
    total = repeat(one, len(x_c1)).log_prob(sparse_rows(x_c1)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_gradients_equal_finite_differences(name: str) -> None:
    observation, rows = make_observation(name), sparse_rows(random_counts())
    weight_c = torch.linspace(-1, 2, 5, dtype=torch.float64)
    tensors = [*observation.likelihood.parameters(), *observation.heads]
    assert_gradients(lambda: observation.log_prob(rows) @ weight_c, tensors)


def test_class_attributes_are_consistent(name: str) -> None:
    observation = make_observation(name)
    likelihood, mean_cf = observation.likelihood, observation.mean
    assert likelihood.unit == "probability" or not likelihood.binary
    assert (likelihood.unit == "probability") == (likelihood.upper_bound == 1)
    assert (mean_cf.shape, mean_cf.dtype) == ((5, N_FEATURES), torch.float64)
    assert ((mean_cf > 0) & (mean_cf <= likelihood.upper_bound)).all()
    if not likelihood.has_background:
        assert torch.equal(mean_cf.argsort(-1), observation.heads[0].argsort(-1))
        assert torch.equal(observation.foreground, mean_cf)
    # A likelihood is binary if and only if it treats counts above 1 as 1.
    x_cf = random_counts()
    found, as_ones = (observation.log_prob(sparse_rows(counts_cf)) for counts_cf in (x_cf, x_cf.clamp_max(1)))
    assert torch.equal(found, as_ones) == likelihood.binary
    assert likelihood.n_matrices >= likelihood.n_heads + 1
    assert likelihood.loading_scale > 0
    assert 0 < likelihood.default_library_size(np.array([100.0, 900.0, 1000.0])) < np.inf


def test_draws_have_the_mean_and_the_variance(name: str) -> None:
    one, n_draws = make_observation(name, n_cells=1), 20_000
    x_s1 = support_of(one.likelihood)[:, None]
    p_sf = log_pmf(name, one, x_s1).exp()
    mean_f = (p_sf * x_s1).sum(0)
    variance_f = (p_sf * (x_s1 - mean_f) ** 2).sum(0)
    if len(one.heads) == 1:  # a second head may reduce what is observed
        torch.testing.assert_close(one.mean[0], mean_f)
    error_sf = repeat(one, n_draws).sample() - mean_f
    # Five standard errors. That of the variance is estimated from the draws.
    assert (error_sf.mean(0).abs() < 5 * (variance_f / n_draws).sqrt()).all()
    square_sf = error_sf**2
    assert ((square_sf.mean(0) - variance_f).abs() < 5 * square_sf.std(0) / n_draws**0.5).all()


def test_moments_and_zeros_are_those_of_the_case(name: str) -> None:
    one = make_observation(name, n_cells=1)
    x_s1 = support_of(one.likelihood)[:, None]
    p_sf = log_pmf(name, one, x_s1).exp()
    mean_f = (p_sf * x_s1).sum(0)
    arguments = one.heads, one.library_size_c
    torch.testing.assert_close(one.likelihood.observed_mean(*arguments)[0], mean_f)
    torch.testing.assert_close(one.likelihood.variance(*arguments)[0], (p_sf * (x_s1 - mean_f) ** 2).sum(0))
    torch.testing.assert_close(one.likelihood.zero_probability(*arguments)[0], p_sf[0])


def test_draws_are_counts(name: str) -> None:
    observation = make_observation(name)
    observation.heads[0][:, 0] = -1e4
    torch.manual_seed(1)
    x_cf = observation.sample()
    assert (x_cf.shape, x_cf.dtype) == ((5, N_FEATURES), torch.float64)
    assert ((x_cf >= 0) & (x_cf <= observation.likelihood.upper_bound)).all()
    torch.testing.assert_close(x_cf, x_cf.round())
    if not observation.likelihood.has_background:
        assert (x_cf[:, 0] == 0).all()  # its rate is 0
    torch.manual_seed(1)
    assert torch.equal(observation.sample(), x_cf)
    assert observation.sample(torch.Size([3, 2])).shape == (3, 2, 5, N_FEATURES)


def test_a_cell_is_one_event(name: str) -> None:
    observation = make_observation(name)
    assert (observation.batch_shape, observation.event_shape) == ((5,), (N_FEATURES,))
    assert observation.expand(torch.Size([5])) is observation
    with raises(ValueError, naming=["(5,)", "(7,)"]):
        observation.expand(torch.Size([7]))


@pytest.mark.parametrize("rate", [0.01, 0.5, 4.0])
def test_information_is_the_expected_square_of_the_score(name: str, rate: float) -> None:
    observation, h = make_observation(name, n_cells=1), 1e-4
    likelihood, library_c = observation.likelihood, observation.library_size_c
    observation.heads[0].fill_(0)  # all features have the same share
    library_c *= rate / rate_of(observation)[0, 0]
    rate_cf, x_s1 = rate_of(observation), support_of(likelihood)[:, None]
    up_sf, down_sf = (log_pmf(name, observation, x_s1, rate_cf * np.exp(step)) for step in (h, -h))
    expected_f = (log_pmf(name, observation, x_s1, rate_cf).exp() * ((up_sf - down_sf) / (2 * h)) ** 2).sum(0)
    found_cf = likelihood.fisher_information(observation.heads, library_c)
    if likelihood.has_background:  # a lower bound, which is close if no count is background
        assert ((found_cf > 0) & (found_cf <= expected_f)).all()
    else:
        torch.testing.assert_close(found_cf[0], expected_f, rtol=1e-3, atol=0)
    # The elasticity is the derivative of the log mean with respect to the log rate.
    share_cf, further = torch.softmax(observation.heads[0], -1), observation.heads[1:]
    up_cf, down_cf = (likelihood.expected(share_cf * np.exp(step), library_c, further).log() for step in (h, -h))
    found_cf = likelihood.elasticity(observation.mean, library_c)
    torch.testing.assert_close(found_cf, (up_cf - down_cf) / (2 * h), rtol=1e-4, atol=0)


def test_log_likelihoods_of_entries_and_cells_agree_up_to_a_constant(name: str) -> None:
    observation, x_cf = make_observation(name), random_counts()
    if observation.likelihood.has_background:
        pytest.skip("angles are not inferred from counts with a background")
    for head in observation.heads[1:]:
        head.fill_(-40)  # no count is lost
    rate_cf, column_f = rate_of(observation), torch.arange(N_FEATURES)
    found, exact = (
        f(rate_cf) - f(0.3 * rate_cf)
        for f in (
            lambda rate_cf: observation.likelihood.entry_log_prob(x_cf, rate_cf.log(), column_f),
            lambda rate_cf: log_pmf(name, observation, x_cf, rate_cf),
        )
    )
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("name", ["geometric"], indirect=True)
def test_a_model_trains_and_decodes(name: str) -> None:
    adata = simulate(n_cells=60)
    model = VAE(likelihood=name, n_latent=2).fit(adata, max_epochs=2, progress=False)
    assert model.sample(5).shape == (5, adata.n_vars)
    assert np.isfinite(model.latent_traverse(adata, axis=0, n_steps=3).X).all()


# --- Some likelihoods -------------------------------------------------------------------------------------------------


def test_the_mean_does_not_depend_on_dropout() -> None:
    observation = make_observation("zero_inflated_negative_binomial")
    torch.testing.assert_close(observation.mean, rate_of(observation))
    torch.testing.assert_close(observation.mean.sum(-1), observation.library_size_c)


def test_exposure_is_a_power_of_the_library_size() -> None:
    likelihood = LIKELIHOODS["bernoulli"](N_FEATURES)
    library_c = torch.tensor([1.0, 10.0, 1e5])
    torch.testing.assert_close(likelihood.log_exposure(library_c), library_c.log())  # initial values
    with torch.no_grad():
        likelihood.exposure_offset.fill_(0.3)
        likelihood.exposure_slope.fill_(2.0)
    torch.testing.assert_close(likelihood.log_exposure(library_c), 0.3 + 2 * library_c.log())
    assert likelihood.log_exposure(torch.zeros(1)).isfinite().all()


def test_the_rate_of_fragments_is_proportional_to_the_library_size() -> None:
    """With a slope of 1, twice the library size means twice the rate of fragments, not twice the probability."""
    likelihood, heads = LIKELIHOODS["bernoulli"](N_FEATURES), [torch.randn(1, N_FEATURES)]
    once, twice = (likelihood.mean(heads, torch.tensor([size])) for size in (3.0, 6.0))
    torch.testing.assert_close(1 - twice, (1 - once) ** 2)


def simulate_counts(theta_f: Tensor, n_cells: int = 20_000) -> tuple[CSRTensor, Tensor]:
    """Sample counts that differ between cells only by library size and dispersion."""
    generator = torch.Generator().manual_seed(0)
    library_c = torch.exp(torch.randn(n_cells, generator=generator) * 0.4 + 4)
    share_f = torch.linspace(1, 3, len(theta_f))
    mu_cf = library_c[:, None] * share_f / share_f.sum()
    torch.manual_seed(0)
    x_cf = torch.poisson(torch.distributions.Gamma(theta_f.expand_as(mu_cf), theta_f / mu_cf).sample())
    return sparse_rows(x_cf), library_c


OVERDISPERSED = ["negative_binomial", "zero_inflated_negative_binomial"]


@pytest.mark.parametrize("name", OVERDISPERSED)
def test_initialize_recovers_the_dispersions(name: str) -> None:
    theta_f = torch.tensor([0.1, 0.5, 1.0, 3.0, 10.0])
    likelihood = LIKELIHOODS[name](5)
    likelihood.initialize(*simulate_counts(theta_f))
    found_f = likelihood.log_inverse_dispersion_f.exp()
    assert ((found_f / theta_f).log().abs() < torch.log(torch.tensor(1.3))).all(), found_f


@pytest.mark.parametrize("name", OVERDISPERSED)
def test_initial_dispersions_are_within_bounds(name: str) -> None:
    low, high = THETA_BOUNDS
    counts, library_c = simulate_counts(torch.tensor([1e-3, 1e6, 1.0]))
    without_third = counts.value_n.masked_fill(counts.column_n == 2, 0)
    likelihood = LIKELIHOODS[name](3)
    likelihood.initialize(counts.with_values(without_third), library_c)
    too_wide, like_poisson, without_counts = likelihood.log_inverse_dispersion_f.exp().tolist()
    assert too_wide == pytest.approx(low)
    assert like_poisson == pytest.approx(high)
    assert without_counts == pytest.approx(high)


def test_counts_with_less_than_poisson_variance_start_as_poisson() -> None:
    likelihood = LIKELIHOODS["negative_binomial"](2)
    likelihood.initialize(sparse_rows(torch.full((50, 2), 7.0)), torch.full((50,), 14.0))
    torch.testing.assert_close(likelihood.log_inverse_dispersion_f.exp(), torch.full((2,), THETA_BOUNDS[1]))


def test_poisson_has_no_parameters() -> None:
    likelihood = LIKELIHOODS["poisson"](N_FEATURES)
    likelihood.initialize(sparse_rows(torch.ones(3, N_FEATURES)), torch.full((3,), 6.0))
    assert not list(likelihood.parameters())


# --- Dispersions by batch ---------------------------------------------------------------------------------------------


def test_dispersions_by_batch_are_those_of_a_likelihood_of_the_batch() -> None:
    """Every quantity of cells of a batch is that of a likelihood with the dispersions of this batch."""
    observation, x_cf = make_observation("negative_binomial"), random_counts()
    likelihood, library_size_c = observation.likelihood, observation.library_size_c
    difference_f = torch.linspace(-1, 1, N_FEATURES, dtype=torch.float64)
    heads = [*observation.heads, difference_f.expand(5, -1)]
    of_batch = LIKELIHOODS["negative_binomial"](N_FEATURES).double()
    of_batch.log_inverse_dispersion_f.data = likelihood.log_inverse_dispersion_f.data + difference_f
    for name in ("mean", "variance", "zero_probability", "fisher_information"):
        found_cf, expected_cf = (
            getattr(one, name)(outputs, library_size_c)
            for one, outputs in ((likelihood, heads), (of_batch, observation.heads))
        )
        torch.testing.assert_close(found_cf, expected_cf)
    found_c = likelihood.log_prob(heads, library_size_c, sparse_rows(x_cf))
    torch.testing.assert_close(found_c, of_batch.log_prob(observation.heads, library_size_c, sparse_rows(x_cf)))


def test_draws_have_the_dispersions_of_the_batch() -> None:
    likelihood = NegativeBinomial(2)
    n_cells = 40_000
    heads = [torch.zeros(n_cells, 2), torch.tensor([-1.0, 1.0]).expand(n_cells, -1)]
    torch.manual_seed(0)
    counts_cf = likelihood.sample(heads, torch.full((n_cells,), 20.0))
    expected_f = 10 + 100 / torch.tensor([-1.0, 1.0]).exp()
    torch.testing.assert_close(counts_cf.var(0), expected_f, rtol=0.05, atol=0.0)


# --- Counts with a background -----------------------------------------------------------------------------------------


def test_means_are_those_of_background_and_foreground() -> None:
    observation = make_observation("negative_binomial_mixture")
    likelihood, library_c = observation.likelihood, observation.library_size_c
    torch.testing.assert_close(observation.mean, likelihood.background(library_c) + observation.foreground)
    observation.heads[1].fill_(-40)  # all counts are foreground
    torch.testing.assert_close(observation.foreground, rate_of(observation))
    observation.heads[1].fill_(40)  # all counts are background
    torch.testing.assert_close(observation.mean, likelihood.background(library_c))


def test_background_of_some_features_is_that_of_their_columns() -> None:
    observation, column_f = make_observation("negative_binomial_mixture"), torch.tensor([4, 1])
    share_cf, further_cf = torch.softmax(observation.heads[0], -1)[:, column_f], observation.heads[1][:, column_f]
    found_cf = observation.likelihood.expected(share_cf, observation.library_size_c, [further_cf], column_f)
    torch.testing.assert_close(found_cf, observation.mean[:, column_f])


def test_information_of_counts_without_background_is_that_of_the_negative_binomial() -> None:
    observation = make_observation("negative_binomial_mixture")
    likelihood, library_c = observation.likelihood, observation.library_size_c
    observation.heads[1].fill_(-40)
    likelihood.log_background_f.data.fill_(-40)
    rate_cf, theta_f = rate_of(observation), likelihood.log_inverse_dispersion_f.exp()
    found_cf = likelihood.fisher_information(observation.heads, library_c)
    torch.testing.assert_close(found_cf, rate_cf * theta_f / (rate_cf + theta_f))


@pytest.mark.parametrize(("fraction", "lowest"), [(0.0, 0.25), (0.1, 0.6), (0.4, 0.6)])
def test_initial_background_is_that_of_the_negative_cells(fraction: float, lowest: float) -> None:
    """A fraction of the cells has twenty times the background. If no cell has it, the start is lower."""
    torch.manual_seed(0)
    background_f, library_c = torch.tensor([0.001, 0.004, 0.02]), 1000 + 2000 * torch.rand(3000)
    mu_cf = library_c[:, None] * background_f * torch.where(torch.rand(3000, 3) < fraction, 20.0, 1.0)
    x_cf = torch.poisson(torch.distributions.Gamma(5.0, 5.0 / mu_cf).sample())
    likelihood = LIKELIHOODS["negative_binomial_mixture"](3)
    likelihood.initialize(sparse_rows(x_cf), library_c)
    ratio_f = likelihood.log_background_f.exp() / background_f
    assert ((ratio_f > lowest) & (ratio_f < 1.3)).all(), ratio_f

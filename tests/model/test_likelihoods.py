"""Every observation model: its log-likelihood against torch's own distributions, its draws, its start from data."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Geometric, NegativeBinomial, Poisson
from torch.nn.functional import logsigmoid

from celldial import VAE
from celldial.model.likelihoods import LIKELIHOODS, THETA_BOUNDS, Likelihood, SparseObservation
from celldial.ops.csr import CSRTensor
from helpers.raises import raises
from helpers.simulate import simulate

N_FEATURES = 6


def sparse_rows(x_cf: Tensor) -> CSRTensor:
    row_n, column_n = x_cf.nonzero(as_tuple=True)
    indptr_c = torch.cat([torch.zeros(1, dtype=torch.int64), (x_cf > 0).sum(1).cumsum(0)])
    return CSRTensor(indptr_c, column_n, x_cf[row_n, column_n], x_cf.shape[1])


def make_observation(name: str, n_cells: int = 5, seed: int = 0) -> SparseObservation:
    """Make an observation in float64 with random heads, dispersions and library sizes."""
    torch.manual_seed(seed)
    likelihood = LIKELIHOODS[name](N_FEATURES).double()
    for parameter in likelihood.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    heads = [torch.randn(n_cells, N_FEATURES, dtype=torch.float64) for _ in range(likelihood.n_heads)]
    # Few open peaks, so that none is open in all draws.
    scale = 0.1 if name == "bernoulli" else 1.0
    return SparseObservation(likelihood, heads, scale * (torch.rand(n_cells, dtype=torch.float64) * 30 + 10))


def mu_of(observation: SparseObservation) -> Tensor:
    return observation.library_size_c[:, None] * torch.softmax(observation.heads[0], -1)


def theta_of(observation: SparseObservation) -> Tensor:
    return observation.likelihood.log_inverse_dispersion_f.exp()


def negative_binomial(observation: SparseObservation) -> NegativeBinomial:
    theta_f = theta_of(observation)
    # torch counts failures (theta) before successes with these logits: mean = theta * exp(logits).
    return NegativeBinomial(theta_f.expand_as(mu_of(observation)), logits=(mu_of(observation) / theta_f).log())


def lambda_of(observation: SparseObservation) -> Tensor:
    """Rate of fragments on each peak: a power law of the library size, shared out by the softmax."""
    likelihood = observation.likelihood
    exposure_c = likelihood.exposure_offset.exp() * observation.library_size_c**likelihood.exposure_slope
    return exposure_c[:, None] * torch.softmax(observation.heads[0], -1)


def bernoulli(observation: SparseObservation) -> Bernoulli:
    # The log-odds of 1 - exp(-rate), which in float64 would round to 1.
    return Bernoulli(logits=torch.expm1(lambda_of(observation)).log())


def zero_inflated(observation: SparseObservation, x_cf: Tensor) -> Tensor:
    lost_cf = observation.heads[1]
    kept_cf = logsigmoid(-lost_cf) + negative_binomial(observation).log_prob(x_cf)
    return torch.where(x_cf > 0, kept_cf, torch.logaddexp(logsigmoid(lost_cf), kept_cf))


# A likelihood that is added needs a row here: log-probability of each count, written with what torch offers.
LOG_PROB: dict[str, Callable[[SparseObservation, Tensor], Tensor]] = {
    "bernoulli": lambda observation, x_cf: bernoulli(observation).log_prob((x_cf > 0).double()),
    "negative_binomial": lambda observation, x_cf: negative_binomial(observation).log_prob(x_cf),
    "poisson": lambda observation, x_cf: Poisson(mu_of(observation)).log_prob(x_cf),
    "zero_inflated_negative_binomial": zero_inflated,
}


def moments(name: str, observation: SparseObservation) -> tuple[Tensor, Tensor]:
    """Mean and variance of each count in closed form."""
    if name == "bernoulli":
        return 1 - (-lambda_of(observation)).exp(), bernoulli(observation).variance
    mu_cf = mu_of(observation)
    if name == "poisson":
        return mu_cf, mu_cf
    variance_cf = mu_cf + mu_cf**2 / theta_of(observation)
    if name == "negative_binomial":
        return mu_cf, variance_cf
    kept_cf = torch.sigmoid(-observation.heads[1])
    return kept_cf * mu_cf, kept_cf * (variance_cf + mu_cf**2) - (kept_cf * mu_cf) ** 2


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_that_of_torch(name: str) -> None:
    observation = make_observation(name)
    x_cf = torch.poisson(torch.rand(5, N_FEATURES, dtype=torch.float64) * 4)
    assert 0 < (x_cf == 0).sum() < x_cf.numel()
    expected_c = LOG_PROB[name](observation, x_cf).sum(-1)
    torch.testing.assert_close(observation.log_prob(sparse_rows(x_cf)), expected_c)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_of_a_cell_without_counts(name: str) -> None:
    observation = make_observation(name, n_cells=2)
    x_cf = torch.tensor([[0.0] * N_FEATURES, [3.0] + [0.0] * (N_FEATURES - 1)], dtype=torch.float64)
    torch.testing.assert_close(observation.log_prob(sparse_rows(x_cf)), LOG_PROB[name](observation, x_cf).sum(-1))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_have_the_mean_and_the_variance(name: str) -> None:
    one, n_draws = make_observation(name, n_cells=1), 50_000
    mean_cf, variance_cf = moments(name, one)
    many = SparseObservation(one.likelihood, [head.expand(n_draws, -1) for head in one.heads], one.library_size_c)
    error_sf = many.sample() - mean_cf
    # Five standard errors, those of the variance from the fourth moment of the draws themselves.
    assert (error_sf.mean(0).abs() < 5 * (variance_cf / n_draws).sqrt()).all()
    square_sf = error_sf**2
    assert ((square_sf.mean(0) - variance_cf).abs() < 5 * square_sf.std(0) / n_draws**0.5).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_are_counts(name: str) -> None:
    observation = make_observation(name)
    x_cf = observation.sample()
    assert x_cf.shape == (5, N_FEATURES)
    assert (x_cf >= 0).all()
    torch.testing.assert_close(x_cf, x_cf.round())
    assert observation.sample(torch.Size([3, 2])).shape == (3, 2, 5, N_FEATURES)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_where_a_rate_is_zero(name: str) -> None:
    observation = make_observation(name)
    observation.heads[0][:, 0] = -1e4
    x_cf = observation.sample()
    assert (x_cf[:, 0] == 0).all()
    assert x_cf.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_mean_is_in_the_order_of_the_first_head(name: str) -> None:
    observation = make_observation(name)
    assert observation.mean.shape == (5, N_FEATURES)
    assert torch.equal(observation.mean.argsort(-1), observation.heads[0].argsort(-1))


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "bernoulli"])
def test_mean_of_counts_is_the_share_of_the_library(name: str) -> None:
    """Also where counts are then lost."""
    observation = make_observation(name)
    torch.testing.assert_close(observation.mean, mu_of(observation))
    torch.testing.assert_close(observation.mean.sum(-1), observation.library_size_c)


def test_mean_of_bernoulli_is_the_probability() -> None:
    observation = make_observation("bernoulli")
    torch.testing.assert_close(observation.mean, bernoulli(observation).probs)
    assert ((observation.mean > 0) & (observation.mean < 1)).all()


def test_exposure_is_a_power_of_the_library_size() -> None:
    likelihood = LIKELIHOODS["bernoulli"](N_FEATURES)
    library_c = torch.tensor([1.0, 10.0, 1e5])
    torch.testing.assert_close(likelihood.log_exposure(library_c), library_c.log())  # the start
    with torch.no_grad():
        likelihood.exposure_offset.fill_(0.3)
        likelihood.exposure_slope.fill_(2.0)
    torch.testing.assert_close(likelihood.log_exposure(library_c), 0.3 + 2 * library_c.log())
    assert likelihood.log_exposure(torch.zeros(1)).isfinite().all()


def test_bernoulli_has_few_fragments_where_few_peaks_are_open() -> None:
    """With a slope of 1, twice the library size is twice the rate of fragments, not twice the probability."""
    likelihood, heads = LIKELIHOODS["bernoulli"](N_FEATURES), [torch.randn(1, N_FEATURES)]
    once, twice = (likelihood.mean(heads, torch.tensor([size])) for size in (3.0, 6.0))
    torch.testing.assert_close(1 - twice, (1 - once) ** 2)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_parameter_and_head_gets_a_gradient(name: str) -> None:
    observation = make_observation(name)
    for head in observation.heads:
        head.requires_grad_()
    x_cf = torch.poisson(torch.rand(5, N_FEATURES, dtype=torch.float64) * 4)
    observation.log_prob(sparse_rows(x_cf)).sum().backward()
    for tensor in (*observation.likelihood.parameters(), *observation.heads):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_one_observation_is_one_event_per_cell(name: str) -> None:
    observation = make_observation(name)
    assert (observation.batch_shape, observation.event_shape) == ((5,), (N_FEATURES,))
    assert observation.expand(torch.Size([5])) is observation
    with raises(ValueError, naming=["(5,)", "(7,)"]):
        observation.expand(torch.Size([7]))


def simulate_counts(theta_f: Tensor, n_cells: int = 20_000) -> tuple[CSRTensor, Tensor]:
    """Draw counts whose only variation, beyond the dispersion, is the library size."""
    generator = torch.Generator().manual_seed(0)
    library_c = torch.exp(torch.randn(n_cells, generator=generator) * 0.4 + 4)
    share_f = torch.linspace(1, 3, len(theta_f))
    mu_cf = library_c[:, None] * share_f / share_f.sum()
    torch.manual_seed(0)
    x_cf = torch.poisson(torch.distributions.Gamma(theta_f.expand_as(mu_cf), theta_f / mu_cf).sample())
    return sparse_rows(x_cf), library_c


OVERDISPERSED = [name for name in LIKELIHOODS if name not in ("poisson", "bernoulli")]


@pytest.mark.parametrize("name", OVERDISPERSED)
def test_initialise_finds_the_dispersions(name: str) -> None:
    theta_f = torch.tensor([0.1, 0.5, 1.0, 3.0, 10.0])
    likelihood = LIKELIHOODS[name](5)
    likelihood.initialize(*simulate_counts(theta_f))
    found_f = likelihood.log_inverse_dispersion_f.exp()
    assert ((found_f / theta_f).log().abs() < torch.log(torch.tensor(1.3))).all(), found_f


@pytest.mark.parametrize("name", OVERDISPERSED)
def test_initialise_stays_within_bounds(name: str) -> None:
    low, high = THETA_BOUNDS
    counts, library_c = simulate_counts(torch.tensor([1e-3, 1e6, 1.0]))
    without_third = counts.value_n.masked_fill(counts.column_n == 2, 0)
    likelihood = LIKELIHOODS[name](3)
    likelihood.initialize(counts.with_values(without_third), library_c)
    too_wide, like_poisson, never_seen = likelihood.log_inverse_dispersion_f.exp().tolist()
    assert too_wide == pytest.approx(low)
    assert like_poisson == pytest.approx(high)
    assert never_seen == pytest.approx(high)


def test_initialise_takes_less_than_poisson_variance_for_poisson() -> None:
    likelihood = LIKELIHOODS["negative_binomial"](2)
    likelihood.initialize(sparse_rows(torch.full((50, 2), 7.0)), torch.full((50,), 14.0))
    torch.testing.assert_close(likelihood.log_inverse_dispersion_f.exp(), torch.full((2,), THETA_BOUNDS[1]))


def test_poisson_has_no_parameters() -> None:
    likelihood = LIKELIHOODS["poisson"](N_FEATURES)
    likelihood.initialize(sparse_rows(torch.ones(3, N_FEATURES)), torch.full((3,), 6.0))
    assert not list(likelihood.parameters())


def test_the_example_for_contributors_trains_and_decodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (root / "docs" / "dev" / "extending.md").read_text(encoding="utf-8")
    section = text.split("## A likelihood")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    monkeypatch.setitem(LIKELIHOODS, "geometric", None)  # so that it is gone afterwards
    exec(code, {"torch": torch, "Likelihood": Likelihood, "LIKELIHOODS": LIKELIHOODS})

    observation = make_observation("geometric")
    x_cf = observation.sample()
    exact_cf = Geometric(1 / (1 + mu_of(observation))).log_prob(x_cf)
    torch.testing.assert_close(observation.log_prob(sparse_rows(x_cf)), exact_cf.sum(1))
    adata = simulate(n_cells=60)
    model = VAE(likelihood="geometric", n_latent=2).fit(adata, max_epochs=2, progress=False)
    assert model.sample(5).shape == (5, adata.n_vars)
    assert np.isfinite(model.latent_traverse(adata, axis=0).X).all()

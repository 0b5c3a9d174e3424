"""The Fisher information of every likelihood is the expected square of the score."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from celldial.model.likelihoods import LIKELIHOODS


def log_pmf(name: str, rate: float, theta: float, lost: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the log-probability of counts at a rate, written down anew."""
    if name == "poisson":
        return lambda x: stats.poisson.logpmf(x, rate)
    if name == "bernoulli":
        return lambda x: stats.bernoulli.logpmf(x, 1 - np.exp(-rate))
    kept = lambda x: stats.nbinom.logpmf(x, theta, theta / (theta + rate))  # noqa: E731
    if name == "negative_binomial":
        return kept
    return lambda x: np.where(x == 0, np.log(lost + (1 - lost) * np.exp(kept(x))), np.log(1 - lost) + kept(x))


@pytest.mark.parametrize("rate", [0.01, 0.5, 4.0])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_information_is_the_expected_square_of_the_score(name: str, rate: float) -> None:
    theta, lost = 1.7, 0.3
    likelihood = LIKELIHOODS[name](2)
    if hasattr(likelihood, "log_inverse_dispersion_f"):
        likelihood.log_inverse_dispersion_f.data.fill_(math.log(theta))
    # Two features of one share each; the second takes what the library size leaves.
    heads = [torch.zeros(1, 2), torch.full((1, 2), math.log(lost / (1 - lost)))]
    with torch.no_grad():
        found = likelihood.fisher_information(heads, torch.tensor([2 * rate]))[0, 0].item()
        mean = likelihood.expected(torch.tensor([[0.5]]), torch.tensor([2 * rate])).item()
        slope = likelihood.elasticity(torch.tensor([mean])).item()
        up = likelihood.expected(torch.tensor([[0.5 * 1.001]]), torch.tensor([2 * rate])).item()
    x = np.arange(2 if name == "bernoulli" else 400)
    h = 1e-4
    score = log_pmf(name, rate * np.exp(h), theta, lost)(x) - log_pmf(name, rate * np.exp(-h), theta, lost)(x)
    expected = (np.exp(log_pmf(name, rate, theta, lost)(x)) * (score / (2 * h)) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-3)
    assert slope == pytest.approx(np.log(up / mean) / np.log(1.001), abs=2e-3)

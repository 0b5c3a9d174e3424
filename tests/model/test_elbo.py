"""Parsing of gradient estimators, baselines, and options that exclude each other.

`test_coordinate_gradients.py` and `test_cluster_gradients.py` test that estimators are unbiased.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from celldial import VAE
from celldial.estimator.fitting import SCORE_FUNCTION_LR_DIVISOR
from celldial.model.distributions import NonReparameterized
from celldial.model.elbo import EMA_DECAY, Baseline, Gradient, parse_gradient
from helpers.assertions import assert_untouched
from helpers.raises import raises
from helpers.simulate import simulate

# --- Names of gradient estimators -------------------------------------------------------------------------------------

ACCEPTED: list[tuple[Any, bool, str, str | None]] = [
    ("reparameterized", False, "reparameterized", None),
    ("score_function", False, "score_function", None),
    ({}, False, "reparameterized", None),
    ({"z": "score_function"}, False, "score_function", None),
    ("reparameterized", True, "reparameterized", "enumerate"),
    ("enumerate", True, "reparameterized", "enumerate"),
    ("gumbel_softmax", True, "reparameterized", "gumbel_softmax"),
    ("score_function", True, "reparameterized", "score_function"),
    ({}, True, "reparameterized", "enumerate"),
    ({"cluster": "gumbel_softmax"}, True, "reparameterized", "gumbel_softmax"),
    ({"z": "reparameterized"}, True, "reparameterized", "enumerate"),
    ({"z": "score_function", "cluster": "score_function"}, True, "score_function", "score_function"),
]


@pytest.mark.parametrize(("names", "has_clusters", "z", "cluster"), ACCEPTED)
def test_accepted_gradients(names: Any, has_clusters: bool, z: str, cluster: str | None) -> None:
    gradient = parse_gradient(names, has_clusters)
    assert gradient == Gradient(z, cluster)
    assert gradient.score_function_sites == tuple(
        name for name, word in (("cluster", cluster), ("z", z)) if word == "score_function"
    )


FOR_Z, FOR_CLUSTER = ["'reparameterized'", "'score_function'"], ["'enumerate'", "'gumbel_softmax'", "'score_function'"]
# The parameter, whether the model has clusters, and the facts of the error.
WRONG: list[tuple[Any, bool, list[Any]]] = [
    (None, False, [None]),
    (3, True, [3]),
    (["score_function"], True, ["['score_function']"]),
    ({"clusters": "enumerate"}, True, ["{'clusters': 'enumerate'}", "'cluster'"]),
    ("enumerate", False, ["'enumerate'", "n_clusters"]),
    ("gumbel_softmax", False, ["'gumbel_softmax'", "n_clusters"]),
    ({"cluster": "score_function"}, False, ["n_clusters"]),
    ({"z": "enumerate"}, False, ["n_clusters"]),
    ("reinforce", False, ["'reinforce'", *FOR_Z]),
    ("reinforce", True, ["'reinforce'", *FOR_CLUSTER]),
    ({"z": "gumbel_softmax"}, True, FOR_Z),
    ({"cluster": "reparameterized"}, True, FOR_CLUSTER),
    ({"z": None}, True, FOR_Z),
    ({"z": ["score_function"]}, True, FOR_Z),
    ({"z": "score_function"}, True, ["'z'", "'cluster'"]),
    ({"z": "score_function", "cluster": "gumbel_softmax"}, True, ["'z'", "'cluster'"]),
]


@pytest.mark.parametrize(("gradient", "has_clusters", "facts"), WRONG)
def test_wrong_gradients_are_rejected(gradient: Any, has_clusters: bool, facts: list[Any]) -> None:
    with raises(ValueError, naming=["gradient", *facts]):
        parse_gradient(gradient, has_clusters)


@pytest.mark.parametrize(
    ("parameters", "slower"),
    [
        ({}, 1),
        ({"n_clusters": 2, "gradient": "score_function"}, 1),
        ({"labels_key": "type", "gradient": "gumbel_softmax"}, 1),
        ({"gradient": "score_function"}, SCORE_FUNCTION_LR_DIVISOR),
        (
            {"n_clusters": 2, "gradient": {"z": "score_function", "cluster": "score_function"}},
            SCORE_FUNCTION_LR_DIVISOR,
        ),
    ],
)
def test_the_score_function_has_a_lower_learning_rate(parameters: dict[str, Any], slower: int) -> None:
    adata = simulate()
    model = VAE(2, 4, learning_rate=0.01, **parameters).fit(adata, max_epochs=8, batch_size=16, progress=False)
    assert max(model.history_["learning_rate"]) == pytest.approx(0.01 / slower, rel=0.2)
    assert max(model.history_["learning_rate"]) <= 0.01 / slower * (1 + 1e-6)


# --- Baselines --------------------------------------------------------------------------------------------------------


def test_a_moving_average_starts_as_a_plain_mean() -> None:
    baseline, costs = Baseline(0), torch.randn(40, 8) + 100
    for n, cost_c in enumerate(costs, 1):
        baseline.update(cost_c)
        if n * (1 - EMA_DECAY) <= 1:
            torch.testing.assert_close(baseline.mean, costs[:n].mean())
    assert baseline.n_updates == 40
    torch.testing.assert_close(baseline(torch.empty(5, 0)), baseline.mean.expand(5))
    # Later, new values have a weight of 1/20.
    before = baseline.mean.clone()
    baseline.update(torch.zeros(8))
    torch.testing.assert_close(baseline.mean, EMA_DECAY * before)
    assert list(baseline.parameters()) == []


def test_a_baseline_is_updated_in_training_only() -> None:
    baseline = Baseline(0).eval()
    baseline.update(torch.ones(3))
    assert (baseline.mean, baseline.n_updates) == (0, 0)


def test_updates_do_not_change_earlier_predictions() -> None:
    """An update before the backward pass changes the averages, but not earlier predictions."""
    baseline = Baseline(2)
    predicted_c = baseline(torch.randn(6, 2))
    before_c = predicted_c.detach().clone()
    baseline.update(torch.full((6,), 50.0))
    torch.testing.assert_close(predicted_c, before_c)
    predicted_c.sum().backward()
    assert all(p.grad is not None for p in baseline.parameters())


def test_a_learned_baseline_is_a_function_of_its_inputs() -> None:
    torch.manual_seed(0)
    baseline = Baseline(2)
    input_cp = torch.randn(200, 2) * torch.tensor([1.0, 1000.0]) + torch.tensor([0.0, 5000.0])
    cost_c = -700 + 30 * input_cp[:, 0] + 0.02 * (input_cp[:, 1] - 5000)
    optimizer = torch.optim.Adam(baseline.parameters(), lr=0.02)
    for _ in range(150):
        loss = (baseline(input_cp) - cost_c).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        baseline.update(cost_c)
    error_c = baseline.eval()(input_cp) - cost_c
    assert error_c.square().mean() < 0.05 * cost_c.var()
    # A single cell has no standard deviation.
    assert baseline.train()(input_cp[:1]).shape == (1,)
    assert baseline(input_cp[:1]).isfinite().all()


def test_detached_draws_have_no_gradient_and_the_same_density() -> None:
    mu_cz = torch.zeros(4, 2, requires_grad=True)
    of = Independent(Normal(mu_cz, torch.ones(4, 2)), 1)
    detached = NonReparameterized(of)
    assert (detached.batch_shape, detached.event_shape, detached.has_rsample) == (of.batch_shape, of.event_shape, False)
    draw_cz = detached.sample()
    assert not draw_cz.requires_grad
    torch.testing.assert_close(detached.log_prob(draw_cz), of.log_prob(draw_cz))
    (slope_cz,) = torch.autograd.grad(detached.log_prob(draw_cz).sum(), mu_cz)
    torch.testing.assert_close(slope_cz, draw_cz)  # the score: (z - μ) / σ²
    assert detached.expand(torch.Size([3, 4])).sample().shape == (3, 4, 2)
    assert detached(sample_shape=torch.Size([5])).shape == (5, 4, 2)


# --- Options that exclude each other ----------------------------------------------------------------------------------

# Parameters and facts of the error by case.
EXCLUSIVE: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "unknown latent": ({"latent": "normal"}, ["latent", "'normal'", "'gaussian'", "'laplace'"]),
    "unknown prior": ({"prior": "vamp"}, ["prior", "'vamp'", "'standard'", "'mixture'", "'flow'"]),
    "unknown posterior": ({"posterior": "full"}, ["posterior", "'full'", "'diagonal'", "'flow'"]),
    "unknown decoder": ({"decoder": "tree"}, ["decoder", "'tree'"]),
    "unknown baseline": ({"baseline": "mean"}, ["baseline", "'mean'", "'learned'", "'moving_average'", "None"]),
    "unknown gradient": ({"gradient": "pathwise"}, ["gradient", "'pathwise'", "'reparameterized'"]),
    "gradient of clusters": ({"gradient": "enumerate"}, ["gradient", "'enumerate'", "n_clusters"]),
    "one topic": ({"latent": "logistic_normal", "n_latent": 1}, ["n_latent", 1, "'logistic_normal'", 2]),
    "one component": ({"n_components": 1}, ["n_components", 1, 2]),
    "half a component": ({"n_components": 2.5}, ["n_components", 2.5]),
    "one cluster": ({"n_clusters": 1}, ["n_clusters", 1, 2]),
    "loadings of a network": ({"bayesian_loadings": True}, ["bayesian_loadings", "decoder", "'network'", "'linear'"]),
    "loadings of a sum": ({"bayesian_loadings": True, "decoder": "additive"}, ["bayesian_loadings", "'additive'"]),
    "two priors": ({"n_clusters": 3, "prior": "mixture"}, ["prior", "'mixture'", "n_clusters"]),
    "a prior of labels": ({"labels_key": "type", "prior": "flow"}, ["prior", "'flow'", "labels_key"]),
    "score of a flow": (
        {"gradient": "score_function", "posterior": "flow"},
        ["gradient='score_function'", "posterior='flow'"],
    ),
    "flow with a circle": ({"periodic": True, "posterior": "flow"}, ["posterior", "'flow'", "periodic"]),
    "clusters with a circle": ({"periodic": True, "n_clusters": 3}, ["n_clusters", 3, "periodic"]),
    "labels with a circle": ({"periodic": True, "labels_key": "type"}, ["labels_key", "'type'", "periodic"]),
    "score with a circle": ({"periodic": True, "gradient": "score_function"}, ["'score_function'", "periodic"]),
}


@pytest.mark.parametrize("case", EXCLUSIVE)
def test_exclusive_options_raise_before_fitting(case: str) -> None:
    parameters, facts = EXCLUSIVE[case]
    adata = simulate()
    before = adata.copy()
    model = VAE(**{"n_latent": 2, "n_hidden": 8, **parameters})
    with raises(ValueError, naming=facts):
        model.fit(adata, max_epochs=1, progress=False)
    assert_untouched(adata, before)
    assert not hasattr(model, "module_")


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_clusters": 2, "gradient": "score_function", "posterior": "flow"},  # for the clusters only
        {"latent": "laplace", "n_latent": 1},
        {"n_clusters": np.int64(2), "n_components": np.int64(3)},
    ],
)
def test_combinations_that_are_allowed(parameters: dict[str, Any]) -> None:
    adata = simulate()
    model = VAE(**{"n_latent": 2, "n_hidden": 4, **parameters}).fit(adata, max_epochs=2, progress=False)
    assert math.isfinite(model.score(adata))

"""Gradient estimators of one categorical variable, compared with the exact sum."""

import math
from itertools import pairwise

import pytest
import torch
from pyro.distributions import OneHotCategorical
from torch.distributions import kl_divergence

from celldial.model.distributions import RelaxableCategorical, RelaxedCategorical
from celldial.model.elbo import EnumeratedELBO
from helpers.toys import BASELINES, ERRORS, LOGIT_K, VALUE_K, WEIGHT_K, N, Toss, assert_close, assert_unbiased

pytestmark = pytest.mark.usefixtures("double_precision")


def test_enumeration_equals_the_sum() -> None:
    toss = Toss(n=3)
    torch.testing.assert_close(toss.enumerated(), toss.exact().expand(3, -1))
    loss = EnumeratedELBO().differentiable_loss(toss.model, toss.guide)
    torch.testing.assert_close(loss, -3 * toss.elbo(LOGIT_K))


@BASELINES
def test_the_score_function_of_a_categorical_is_unbiased(baseline: str | None) -> None:
    toss = Toss()
    assert_unbiased(toss.score_function(baseline), toss.exact())


@pytest.mark.parametrize("baseline", ["moving_average", "learned"])
def test_a_baseline_reduces_the_variance_of_a_categorical(baseline: str) -> None:
    bare, with_baseline = Toss(offset=-100), Toss(offset=-100)
    bare_nk, with_baseline_nk = bare.score_function(), with_baseline.score_function(baseline)
    assert_unbiased(with_baseline_nk, bare.exact())
    assert (with_baseline_nk.var(0) < 0.01 * bare_nk.var(0)).all()


@pytest.mark.parametrize("temperature", [2.0, 0.5, 0.05])
@pytest.mark.parametrize("straight_through", [False, True])
def test_the_largest_entry_of_a_relaxed_draw_is_categorical(temperature: float, straight_through: bool) -> None:
    """At any temperature, the largest entry has the categorical distribution: this is the Gumbel-max trick."""
    drawn_nk = RelaxedCategorical(LOGIT_K.expand(N, -1), temperature, straight_through).rsample()
    largest_nk = torch.nn.functional.one_hot(drawn_nk.argmax(1), 4).double()
    assert_unbiased(largest_nk, LOGIT_K.softmax(0))
    torch.testing.assert_close(drawn_nk.sum(1), torch.ones(N))
    assert (drawn_nk >= 0).all()


def test_relaxed_draws_approach_one_hot_as_the_temperature_falls() -> None:
    temperatures = [2.0, 1.0, 0.5, 0.2, 0.05, 0.01]
    drawn = [RelaxedCategorical(LOGIT_K.expand(N, -1), temperature).rsample() for temperature in temperatures]
    distance = [1 - drawn_nk.amax(1) for drawn_nk in drawn]
    for warmer_n, colder_n in pairwise(distance):
        error = (warmer_n.var() + colder_n.var()).sqrt() / math.sqrt(N)
        assert warmer_n.mean() - colder_n.mean() > ERRORS * error
    assert distance[-1].mean() < 0.01
    assert distance[-1].median() < 1e-9
    bias = [(drawn_nk.mean(0) - LOGIT_K.softmax(0)).norm() for drawn_nk in drawn]
    assert bias[0] > bias[1] > bias[2] > bias[3]
    assert_unbiased(drawn[-1], LOGIT_K.softmax(0))


def test_the_bias_of_relaxed_gradients_falls_with_the_temperature_and_their_variance_grows() -> None:
    exact_k = Toss(1).exact()
    bias, error, variance = [], [], []
    for temperature in (2.0, 1.0, 0.5, 0.1):
        drawn_nk = Toss().relaxed(temperature)
        bias.append(float((drawn_nk.mean(0) - exact_k).norm()))
        error.append(float((drawn_nk.var(0).sum() / N).sqrt()))
        variance.append(float(drawn_nk.var(0).sum()))
    for k in range(3):
        assert bias[k] - bias[k + 1] > ERRORS * math.hypot(error[k], error[k + 1])
        assert variance[k + 1] > variance[k]
    assert bias[0] > 10 * ERRORS * error[0]


def test_straight_through_draws_are_one_hot_with_relaxed_gradients() -> None:
    logits_ck = LOGIT_K.repeat(1000, 1).requires_grad_()
    hard, soft = RelaxedCategorical(logits_ck, 0.5, straight_through=True), RelaxedCategorical(logits_ck, 0.5)
    torch.manual_seed(1)
    hard_ck = hard.rsample()
    torch.manual_seed(1)
    soft_ck = soft.rsample()
    # Up to the rounding of y + (hard - y).
    assert_close(hard_ck, torch.nn.functional.one_hot(soft_ck.argmax(1), 4).double())
    assert_close(hard_ck.amax(1), torch.ones(1000))
    by_hard, by_soft = (torch.autograd.grad((part @ VALUE_K).sum(), logits_ck)[0] for part in (hard_ck, soft_ck))
    assert_close(by_hard, by_soft)
    assert by_hard.abs().sum() > 0


def test_relaxed_divergence_equals_that_of_categoricals() -> None:
    q, p = (RelaxedCategorical(logit_k.expand(2, -1), 0.5) for logit_k in (LOGIT_K, WEIGHT_K.log()))
    expected = kl_divergence(OneHotCategorical(logits=LOGIT_K), OneHotCategorical(logits=WEIGHT_K.log()))
    assert_close(kl_divergence(q, p), expected.expand(2))
    single_kk = torch.eye(4)
    assert_close(RelaxedCategorical(LOGIT_K.expand(4, -1), 0.5).log_prob(single_kk), LOGIT_K.log_softmax(0))


def test_relaxing_a_categorical_normalizes_once() -> None:
    """The result is exact to the last bit, because training amplifies rounding errors."""
    logits_ck = torch.linspace(-90, 40, 28).reshape(7, 4).sin() * 30
    relaxed = RelaxableCategorical(logits_ck[:, None]).expand([7, 3]).relaxed(0.5, straight_through=True)
    assert torch.equal(relaxed.logits_ck, logits_ck.log_softmax(-1)[:, None].expand(7, 3, 4))
    assert (relaxed.temperature, relaxed.straight_through) == (0.5, True)

"""Learning rate, weight decay and prior of each kind of parameter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from celldial.data.cells import Cells
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module
from celldial.training import optimizer
from helpers.modules import build_module
from helpers.simulate import simulate_cells, simulate_two_cells
from helpers.training import NOBODY, make_module, make_two, train


@pytest.fixture(scope="module")
def cells() -> Cells:
    return simulate_cells()


def spy_on_groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list that collects the parameter groups of the optimizer."""
    groups: list[dict[str, Any]] = []

    class Spy(optimizer.Adam):
        def __init__(self, parameters: Any, **options: Any) -> None:
            super().__init__(parameters, **options)
            groups.extend(self.param_groups)

    monkeypatch.setattr(optimizer, "Adam", Spy)
    return groups


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_matrices_decay_and_loadings_have_a_prior(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, likelihood: str
) -> None:
    groups = spy_on_groups(monkeypatch)
    module = make_module(cells, likelihood)
    train(module, cells, max_epochs=1, weight_decay=0.5)
    loadings = [head.weight for head in module.modalities["rna"].decoder.heads]
    with_prior = [group for group in groups if not group["decoupled_weight_decay"]]
    assert [id(p) for group in with_prior for p in group["params"]] == [id(p) for p in loadings]
    # The negative log prior per cell is decay / 2 times the sum of squares; 8 hidden units, 50 cells.
    assert with_prior[0]["weight_decay"] == pytest.approx(8 / LIKELIHOODS[likelihood].loading_scale ** 2 / 50)
    others = [group for group in groups if group["decoupled_weight_decay"]]
    decayed = [p for group in others for p in group["params"] if group["weight_decay"] == 0.5]
    undecayed = [p for group in others for p in group["params"] if group["weight_decay"] == 0]
    assert all(parameter.ndim > 1 for parameter in decayed)
    assert all(parameter.ndim <= 1 for parameter in undecayed)
    assert sorted(map(id, [*loadings, *decayed, *undecayed])) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize("options", [{"n_clusters": 3}, {"prior": "mixture"}, {"prior": "flow"}])
def test_priors_and_clusters_do_not_decay(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Decay would pull the means of clusters to 0. Their weights have a higher learning rate."""
    groups = spy_on_groups(monkeypatch)
    torch.manual_seed(0)
    module = build_module({"rna": 20}, "poisson", n_latent=3, dropout_rate=0.2, **options)
    train(module, cells, max_epochs=1, weight_decay=0.5)
    prior = module.coordinates.prior
    found = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in prior.named_parameters():
        assert found[id(parameter)]["weight_decay"] == 0, name
        factor = 10 if name.endswith("logit_k") else 1
        assert found[id(parameter)]["max_lr"] == pytest.approx(factor * 8e-3), name


def test_likelihood_parameters_have_ten_times_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = spy_on_groups(monkeypatch)
    cells = simulate_two_cells()
    module = make_two(cells)
    train(module, cells, max_epochs=1)
    # The schedule stores the peak learning rate of each group.
    fast = {id(p) for group in groups for p in group["params"] if group["max_lr"] == pytest.approx(10 * 8e-3)}
    slow = {id(p) for group in groups for p in group["params"] if group["max_lr"] == pytest.approx(8e-3)}
    assert fast == {id(p) for _, modality in module.by_modality() for p in modality.likelihood.parameters()}
    assert fast | slow == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])
def test_loadings_end_at_the_mode_of_their_posterior(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, likelihood: str
) -> None:
    """The loss is that of 50 cells that each measure each loading as 1 with a standard error of 1."""

    def forward(self: Module, *args: Any) -> Tensor:
        return 0.5 * (self.modalities["rna"].decoder.heads[0].weight - 1).square().sum()

    monkeypatch.setattr(Module, "forward", forward)
    module = make_module(cells, likelihood)
    train(module, cells, max_epochs=300, batch_size=50, validation_c=NOBODY, learning_rate=0.05, early_stopping=False)
    mode = 50 / (50 + 8 / LIKELIHOODS[likelihood].loading_scale ** 2)
    weight_fh = module.modalities["rna"].decoder.heads[0].weight.detach()
    torch.testing.assert_close(weight_fh, torch.full_like(weight_fh, mode), rtol=0, atol=1e-3)


def test_a_narrow_prior_keeps_loadings_small(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    spreads = []
    for scale in (1.7, 0.01):
        monkeypatch.setattr(LIKELIHOODS["poisson"], "loading_scale", scale)
        module = make_module(cells, "poisson")
        train(module, cells, max_epochs=30, validation_c=NOBODY, early_stopping=False)
        with torch.no_grad():
            (logits_cf,) = module.decode(torch.linspace(-2, 2, 120).reshape(60, 2), cells)["rna"].heads
        spreads.append(float(logits_cf.std(0).mean()))
    assert spreads[0] > 0.2
    assert spreads[1] < 0.02

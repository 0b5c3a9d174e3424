"""Rows of parameters that training may change."""

from typing import Any

import pytest
import torch
from torch import nn

from celldial.model.extension import extend_categories, with_mean_rows
from celldial.training.optimizer import make_optimizer
from celldial.training.trainable import TrainableRows
from helpers.modules import build_module


def test_only_the_named_rows_change() -> None:
    """Adam with weight decay, and with a prior, changes any parameter that has a gradient, even one of 0."""
    table: Any = nn.Module()
    table.weight = nn.Parameter(torch.randn(4, 3))
    table.bias = nn.Parameter(torch.randn(3))
    table.register_buffer("average", torch.zeros(()))
    before = table.weight.detach().clone(), table.bias.detach().clone()
    adam = torch.optim.Adam(table.parameters(), lr=0.1, weight_decay=0.5)
    rows = TrainableRows({"weight": 2})
    with rows.only(table):
        assert not table.bias.requires_grad
        rows.protect(table, adam)
        for _ in range(3):
            ((table.weight.sum() + table.bias.sum()) ** 2).backward()
            adam.step()
            adam.zero_grad()
            table.average += 1
    assert table.bias.requires_grad
    assert torch.equal(table.weight[:2], before[0][:2])
    assert torch.equal(table.bias, before[1])
    assert table.average == 0
    assert (table.weight[2:] != before[0][2:]).all()


def test_gradients_return_after_an_error() -> None:
    table = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), TrainableRows({"weight": 1}).only(table):
        raise RuntimeError
    assert table.bias.requires_grad


def test_unknown_parameter() -> None:
    with pytest.raises(KeyError, match="no_such"), TrainableRows({"no_such": 1}).only(nn.Linear(2, 2)):
        pass


def test_every_table_of_effects_grows() -> None:
    module = build_module({"rna": 5}, "negative_binomial", n_categories=[2, 3])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    extended, first_row = extend_categories(module, [2, 5])
    before, after = module.state_dict(), extended.state_dict()
    grown = {name for name in before if before[name].shape != after[name].shape}
    assert grown == {name for name in before if ".categorical.1." in name} == set(first_row)
    assert len(grown) > 1
    for name in grown:
        assert first_row[name] == 3
        assert torch.equal(after[name][:3], before[name])
        assert torch.equal(after[name][3:], before[name].mean(0).expand(2, -1))
    assert all(torch.equal(after[name], before[name]) for name in before if name not in grown)
    assert list(module.config.n_categories) == [2, 3]
    assert list(extended.config.n_categories) == [2, 5]
    assert make_optimizer(extended, 0.1, 0.1, 10).param_groups


def test_mean_rows() -> None:
    weight_kh = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert with_mean_rows(weight_kh, 4).tolist() == [[1, 2], [3, 6], [2, 4], [2, 4]]

"""Training of small modules without a VAE."""

from typing import Any

import torch
from torch import Tensor

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.model.module import Module
from celldial.training import loop
from celldial.training.plan import History, TrainingPlan
from helpers.modules import build_module

TRAIN_C, VALIDATION_C = torch.arange(50), torch.arange(50, 60)
NOBODY = torch.empty(0, dtype=torch.int64)


def make_module(cells: Cells, likelihood: str = "negative_binomial") -> Module:
    """Return a small module for the RNA of cells, with the same weights at each call."""
    torch.manual_seed(0)
    module = build_module({"rna": cells.counts["rna"].n_columns}, likelihood)
    module.initialize(cells)
    return module


def make_two(cells: Cells, fusion: Any = "product") -> Module:
    """Return a small module for RNA and ATAC, with the same weights at each call."""
    torch.manual_seed(0)
    likelihood = {"rna": "negative_binomial", "atac": "bernoulli"}
    n_features = {name: rows.n_columns for name, rows in cells.counts.items()}
    module = build_module(n_features, likelihood, fusion=fusion)
    module.initialize(cells)
    return module


def train(module: Module, cells: Cells, *, validation_c: Tensor = VALIDATION_C, seed: int = 0, **plan: Any) -> History:
    """Train for four epochs unless `plan` has other values, and return the history."""
    torch.manual_seed(seed)
    options = {"max_epochs": 4, "batch_size": 20, **plan}
    return loop.train(module, InMemorySource(cells, TRAIN_C, validation_c), TrainingPlan(**options), seed).history


def assert_weights(module: Module, expected: dict[str, Tensor]) -> None:
    """Assert that a module has the expected weights."""
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name

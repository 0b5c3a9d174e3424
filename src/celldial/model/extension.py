"""More categories for a trained module: every table of effects of categories gets further rows.

A table of effects is an ``nn.Embedding`` in an ``nn.ModuleList`` with the name ``categorical``, one table for each
categorical covariate, in the order of ``ModuleConfig.n_categories``; see `celldial.model.networks.CovariateShift`.

Axis suffixes: ``h`` values of an effect, ``k`` categories.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from celldial.model.module import Module

__all__ = ["extend_categories"]


def extend_categories(module: Module, n_categories: Sequence[int]) -> tuple[Module, dict[str, int]]:
    """Return a copy of a module with more categories, and which rows of its parameters are new.

    The effects of a new category are the mean over the known categories, so that its cells are encoded and decoded as
    those of the average category. All other weights are the same, bit by bit.

    Parameters
    ----------
    module
        A trained module, which stays as it is.
    n_categories
        Number of categories of each categorical covariate, at least as many as the module has.

    Returns
    -------
    module : Module
        The copy.
    first_row : dict[str, int]
        Name of each parameter with new rows to the first of them.
    """
    extended = copy.deepcopy(module)
    extended.config = replace(module.config, n_categories=list(n_categories))
    if extended.integration is not None:
        extended.integration.n_batches = n_categories[0]
    first_row: dict[str, int] = {}
    for name, part in extended.named_modules():
        tables = getattr(part, "categorical", None)
        if not isinstance(tables, nn.ModuleList):
            continue
        # A table of dispersions exists for the batch only, which is the first covariate.
        for index, (table, n_rows) in enumerate(zip(tables, n_categories, strict=False)):
            assert isinstance(table, nn.Embedding)
            n_known = table.num_embeddings
            if n_rows > n_known:
                weight_kh = with_mean_rows(table.weight.detach(), n_rows)
                tables[index] = nn.Embedding.from_pretrained(weight_kh, freeze=False)
                first_row[f"{name}.categorical.{index}.weight"] = n_known
    return extended, first_row


def with_mean_rows(weight_kh: Tensor, n_rows: int) -> Tensor:
    """Return a matrix with copies of its mean row appended, so that it has `n_rows` rows."""
    mean_kh = weight_kh.mean(0, keepdim=True).expand(n_rows - len(weight_kh), -1)
    return torch.cat([weight_kh, mean_kh])

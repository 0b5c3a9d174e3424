"""Small modules for the tests."""

from collections.abc import Mapping
from typing import Any

import torch

from celldial.data.cells import Cells
from celldial.model.config import ModuleConfig
from celldial.model.module import Module

SMALL = {"n_categories": (), "n_continuous": 0, "n_latent": 2, "n_hidden": 8, "n_layers": 1, "dropout_rate": 0.1}


def build_module(n_features: Mapping[str, int], likelihood: str | Mapping[str, str], **options: Any) -> Module:
    """Build a small module without covariates; `options` are fields of `ModuleConfig`."""
    by_modality = dict.fromkeys(n_features, likelihood) if isinstance(likelihood, str) else likelihood
    return Module(ModuleConfig(n_features, by_modality, **(SMALL | options)))


def bare_cells(n_cells: int, dtype: torch.dtype = torch.float32) -> Cells:
    """Return cells without counts and covariates, for priors."""
    return Cells({}, {}, torch.zeros(n_cells, 0, dtype=torch.int64), torch.zeros(n_cells, 0, dtype=dtype))


def sizes_of(cells: Cells) -> dict[str, Any]:
    """Return the fields of `ModuleConfig` that cells determine."""
    return {
        "n_features": {name: rows.n_columns for name, rows in cells.counts.items()},
        "n_categories": [int(code_c.max()) + 1 for code_c in cells.category_ck.unbind(-1)],
        "n_continuous": cells.continuous_ck.shape[1],
    }

"""More categories for a trained module: every table of effects of categories gets further rows.

A table of effects is an ``nn.Embedding`` in an ``nn.ModuleList`` with the name ``categorical``, one table for each
categorical covariate, in the order of ``ModuleConfig.n_categories``; see `celldial.model.networks.CovariateShift`.

Axis suffixes: ``a`` sums, ``c`` cells, ``f`` features, ``h`` values of an effect, ``k`` categories or covariates, ``s``
new categories.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from celldial.data.cells import decode_blocks
from celldial.model.feature_effects import PSEUDOCOUNT, shrink

if TYPE_CHECKING:
    from celldial.data.cells import Cells
    from celldial.model.module import Module

__all__ = ["extend_categories", "initialize_feature_effects"]


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


@torch.no_grad()
def initialize_feature_effects(module: Module, cells: Cells, first_row: Mapping[str, int]) -> None:
    """Start the effects of new categories on features at the shrunken log ratios of observed to decoded counts.

    The prior of the effects becomes as wide as these ratios, if it was narrower: the known categories may have been too
    similar, or only one.

    Parameters
    ----------
    module
        A module with new rows, as `extend_categories` returns it.
    cells
        Cells of the new categories, or a sample of them.
    first_row
        As `extend_categories` returns it.
    """
    for name, modality in module.by_modality():
        effects = modality.decoder.feature_effects
        prefix = f"modalities.{name}.decoder.feature_effects.categorical."
        new = {k: first_row[f"{prefix}{k}.weight"] for k in range(len(first_row)) if f"{prefix}{k}.weight" in first_row}
        if effects is None or not new:
            continue
        k, first = next(iter(new.items()))  # one covariate, so that no ratio counts twice
        n_new = len(effects.tables[k]) - first
        sums_asf = _observed_and_decoded(module, name, cells, k, first, n_new)
        observed_sf, expected_sf, spread_sf = sums_asf + PSEUDOCOUNT
        variance_sf = spread_sf / expected_sf.square()
        has_cells_s1 = (sums_asf[1].sum(1, keepdim=True) > 0).expand_as(variance_sf)
        variance_sf = torch.where(has_cells_s1, variance_sf.clamp_min(1e-6), torch.inf)
        scale, shrunken_sf = shrink((observed_sf / expected_sf).log(), variance_sf)
        effects.scale_k[k] = torch.maximum(effects.scale_k[k], scale)
        effects.tables[k][first:] += shrunken_sf


def _observed_and_decoded(module: Module, name: str, cells: Cells, k: int, first: int, n_new: int) -> Tensor:
    """Return sums over the cells of each new category of one covariate, shape ``(3, s, f)``.

    These are observed counts, decoded counts, and squared differences of the two.
    """
    sums_asf = torch.zeros(3, n_new, module.n_features[name], device=cells.category_ck.device)
    for block in decode_blocks(cells):
        state_cz = module.state({part: q.sample() for part, q in module.posterior(block).items()})
        present_c = block.mask_with(name)
        new_c = block.category_ck[present_c, k] - first
        observed_cf = block.observed_counts(name).to_dense()
        observation = module.decode_modality(name, state_cz, block)
        share_cf = observation.heads[0].softmax(1)
        expected_cf = share_cf * observed_cf.sum(1, keepdim=True)
        kept_c = new_c >= 0
        for total_sf, of_cell_cf in zip(
            sums_asf, (observed_cf, expected_cf, (observed_cf - expected_cf).square()), strict=True
        ):
            total_sf.index_add_(0, new_c[kept_c], of_cell_cf[kept_c])
    return sums_asf


def with_mean_rows(weight_kh: Tensor, n_rows: int) -> Tensor:
    """Return a matrix with copies of its mean row appended, so that it has `n_rows` rows."""
    mean_kh = weight_kh.mean(0, keepdim=True).expand(n_rows - len(weight_kh), -1)
    return torch.cat([weight_kh, mean_kh])

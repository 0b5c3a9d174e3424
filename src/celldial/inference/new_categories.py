"""Start the effects of new categories on features from the cells of these categories.

Axis suffixes: ``c`` cells, ``f`` features, ``s`` new categories.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from celldial.data.cells import Cells
from celldial.inference.group_sums import decoded_sums
from celldial.model.feature_effects import PSEUDOCOUNT, shrink
from celldial.model.module import Module

__all__ = ["initialize_feature_effects"]


def initialize_feature_effects(module: Module, cells: Cells, first_row: Mapping[str, int]) -> None:
    """Start the effects of new categories on features at the shrunken log ratios of observed to decoded counts.

    The prior of the effects becomes as wide as these ratios, if it was narrower: the known categories may have been too
    similar, or only one.

    Parameters
    ----------
    module
        A module with new rows, as `celldial.model.extension.extend_categories` returns it.
    cells
        Cells of the new categories, or a sample of them, on the CPU.
    first_row
        Name of each parameter with new rows to the first of them.
    """
    for name, modality in module.by_modality():
        effects = modality.decoder.feature_effects
        prefix = f"modalities.{name}.decoder.feature_effects.categorical."
        # Of the first covariate with new categories, so that no ratio counts twice.
        rows = ((k, first_row.get(f"{prefix}{k}.weight")) for k in range(cells.category_ck.shape[1]))
        k, first = next(((k, row) for k, row in rows if row is not None), (0, None))
        if effects is None or first is None:
            continue
        new_c = (cells.category_ck[:, k] - first).clamp_min(-1).numpy()
        sums = decoded_sums(module, [(cells, new_c)], name, len(effects.tables[k]) - first, 1.0)
        spread_sf = sums.count_square_gf - 2 * sums.count_expected_gf + sums.expected_square_gf
        observed_sf, expected_sf, spread_sf = (
            torch.from_numpy(part_sf).to(effects.tables[k]) + PSEUDOCOUNT
            for part_sf in (sums.count_gf, sums.expected_gf, spread_sf.clip(0))
        )
        has_cells_s1 = torch.from_numpy(sums.n_cells_g > 0).to(effects.scale_k.device)[:, None]
        variance_sf = torch.where(has_cells_s1, spread_sf / expected_sf.square(), torch.inf)
        scale, shrunken_sf = shrink((observed_sf / expected_sf).log(), variance_sf)
        with torch.no_grad():
            effects.scale_k[k] = torch.maximum(effects.scale_k[k], scale)
            effects.tables[k][first:] += shrunken_sf

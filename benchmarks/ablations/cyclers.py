#!/usr/bin/env python
"""Features called around the circle: how many of them do not cycle, and how many cyclers are found?

    python -m benchmarks.ablations.cyclers [--seeds 0 1 2 3 4] [--depths 6 1] [--cells 1500] [--out RESULT.json]

Cells are simulated, so that the features that cycle are known; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.special import ndtr

import celldial
from celldial import VAE
from celldial.tl import traversal

N_GENES, N_PEAKS, N_TYPES, N_BATCHES = 500, 600, 3, 2
PARTS = {"genes": slice(0, N_GENES), "peaks": slice(N_GENES, None)}
FDR = 0.05
STRONG = 0.5  # log2 fold change from trough to peak


def measure(seed: int, depth: float, n_cells: int) -> list[dict[str, Any]]:
    """Simulate, fit and traverse; return one record for genes and one for peaks."""
    adata = celldial.datasets.simulate_multiome(n_cells, N_GENES, N_PEAKS, N_TYPES, N_BATCHES, depth=depth, seed=seed)
    model = VAE(batch_key="batch", periodic="cell_cycle", seed=seed).fit(adata, progress=False)
    with mock.patch.object(traversal, "Traversal", wraps=traversal.Traversal) as made:
        table = model.latent_traverse(adata, "cell_cycle").var
    called_f = table["fdr"].to_numpy() < FDR
    extremes_f = called_by_extremes(traversal.Traversal(*made.call_args.args))
    p_value_f = 2 * table["lfsr"].to_numpy()
    range_f = 2 * adata.var["cell_cycle_amplitude"].to_numpy() / np.log(2)
    cycling_c = adata.obs["is_cycling"].to_numpy()
    angle_c, true_c = (adata.obs[key].to_numpy()[cycling_c] for key in ("cell_cycle_angle", "true_cell_cycle_angle"))
    records = []
    for name, part in PARTS.items():
        called, flat, strong = called_f[part], range_f[part] == 0, range_f[part] > STRONG
        records.append(
            {
                "seed": seed,
                "depth": depth,
                "features": name,
                "called": int(called.sum()),
                "flat_called": int((called & flat).sum()),
                "called_by_extremes": int(extremes_f[part].sum()),
                "flat_called_by_extremes": int((extremes_f[part] & flat).sum()),
                "found": float(called[strong].mean()),
                "flat_p_below_005": float((p_value_f[part][flat] < 0.05).mean()),
                "angle_error": float(celldial.metrics.angular_error(true_c, angle_c)),
            }
        )
    return records


def called_by_extremes(curves: traversal.Traversal) -> np.ndarray:
    """Return the features that are called if the highest and the lowest step count as chosen beforehand."""
    z_f = np.log(2) * curves.effect_size_f.astype(float) / np.sqrt(np.maximum(curves.change_variance_f, 1e-12))
    return traversal.s_value(ndtr(-z_f)) < FDR


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--depths", type=float, nargs="+", default=[6.0, 1.0])
    parser.add_argument("--cells", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    records: list[dict[str, Any]] = []
    print(
        "| depth | seed | features | called | of these flat | cyclers found | flat with p < 0.05 | angle error | "
        "called by extremes | of these flat |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for depth in options.depths:
        for seed in options.seeds:
            for record in measure(seed, depth, options.cells):
                records.append(record)
                print(
                    f"| {depth:g} | {seed} | {record['features']} | {record['called']} | {record['flat_called']} | "
                    f"{record['found']:.2f} | {record['flat_p_below_005']:.3f} | {record['angle_error']:.2f} | "
                    f"{record['called_by_extremes']} | {record['flat_called_by_extremes']} |",
                    flush=True,
                )
            if options.out is not None:
                options.out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()

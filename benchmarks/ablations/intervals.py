#!/usr/bin/env python
"""Intervals of traversals: how often the truth is inside the 90 % band.

    python -m benchmarks.ablations.intervals [--seeds 0 1 2] [--cells 2000] [--epochs auto]

Cells are simulated, so that the expected values of each cell are known, also in another batch or at another angle of
the cell cycle. Only paths through states with a known truth are used; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import combinations
from typing import Any

import anndata as ad
import numpy as np
import torch

import celldial
from celldial import VAE

N_GENES, N_PEAKS, N_TYPES, N_BATCHES = 500, 3000, 3, 2
N_SINGLE_CELLS = 40
MIN_AMPLITUDE = 0.1  # minimum amplitude of a periodic feature
PARTS = {"genes": slice(0, N_GENES), "peaks": slice(N_GENES, None)}


def true_shares(cells: ad.AnnData, batch: str | None, angle: float | None = None) -> np.ndarray:
    """Return the true share of each feature in its modality, for the cells in a batch or at an angle."""
    log_cf = np.log(cells.layers["mean"].astype(float))
    if batch is not None:
        effect_fb = cells.varm["batch_effect"]
        log_cf += effect_fb[:, [cells.obs["batch"].cat.categories.get_loc(batch)]].T
        log_cf -= effect_fb[:, cells.obs["batch"].cat.codes].T
    if angle is not None:
        own_c4 = harmonics(cells.obs["true_cell_cycle_angle"].to_numpy())
        log_cf += (harmonics(np.array([angle])) - own_c4) @ cells.varm["cell_cycle_effect"].T
    share_cf = np.exp(log_cf)
    for part in PARTS.values():
        share_cf[:, part] /= share_cf[:, part].sum(1, keepdims=True)
    return share_cf


def harmonics(angle_c: np.ndarray) -> np.ndarray:
    """Return cos θ, sin θ, cos 2θ, sin 2θ."""
    return np.stack([part(n * angle_c) for n in (1, 2) for part in (np.cos, np.sin)], -1)


def shares(model: VAE, path: ad.AnnData, layer: str) -> np.ndarray:
    """Convert expected values of a traversal to shares: counts by library size, probabilities by exposure."""
    share_sf = np.array(path.layers[layer], dtype=float)
    size = path.uns["library_size"]
    share_sf[:, PARTS["genes"]] /= size["rna"]
    exposure = float(
        model.module_.modalities["atac"].likelihood.log_exposure(torch.tensor([size["atac"]])).exp().detach()
    )
    share_sf[:, PARTS["peaks"]] = -np.log1p(-np.minimum(share_sf[:, PARTS["peaks"]], 1 - 1e-6)) / exposure
    return share_sf


class Records:
    """Records by kind of path and of feature whether truths are inside the bands, and how wide the bands are."""

    def __init__(self, model: VAE) -> None:
        self.model = model
        self.bands: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        self.signs: dict[str, list[np.ndarray]] = defaultdict(list)

    def band(self, kind: str, path: ad.AnnData, truth_sf: np.ndarray, left_out_f: np.ndarray | None = None) -> None:
        """Record a band: inside, below, above, width in log2, error of the mean; some features may be left out."""
        kept_f = np.ones(truth_sf.shape[1], dtype=bool) if left_out_f is None else ~left_out_f
        lower_sf, upper_sf, mean_sf = (shares(self.model, path, layer) for layer in ("lower", "upper", "mean"))
        for name, part in PARTS.items():
            of = [values[:, part][:, kept_f[part]].ravel() for values in (lower_sf, upper_sf, mean_sf, truth_sf)]
            lower, upper, mean, truth = of
            inside, below, above = (lower <= truth) & (truth <= upper), truth < lower, truth > upper
            self.bands[kind, name].append(
                np.stack([inside, below, above, np.log2(upper / lower), np.log2(mean / truth) ** 2])
            )

    def sign(self, path: ad.AnnData, truth_sf: np.ndarray) -> None:
        """Record the false sign rates of a path with two steps, and which signs are false."""
        false_f = np.sign(np.log(truth_sf[1] / truth_sf[0])) != np.sign(path.var["change"].to_numpy())
        for name, part in PARTS.items():
            self.signs[name].append(
                np.stack([path.var["lfsr"].to_numpy(), path.var["fdr"].to_numpy(), false_f])[:, part]
            )


def measure(seed: int, options: argparse.Namespace) -> Records:
    """Simulate, fit, and traverse."""
    sizes = {"n_genes": N_GENES, "n_peaks": N_PEAKS, "n_types": N_TYPES, "n_batches": N_BATCHES}
    adata = celldial.datasets.simulate_multiome(options.cells, **sizes, truth=True, seed=seed)
    circle: dict[str, Any] = {"periodic": "cell_cycle"} if options.periodic else {}
    model = VAE(batch_key="batch", seed=seed, **circle).fit(adata, max_epochs=options.epochs, progress=False)
    records, random = Records(model), np.random.default_rng(seed)
    adata.obs["half"] = random.choice(["one half", "the other"], adata.n_obs)
    types = [("cell_type", *pair) for pair in combinations(adata.obs["cell_type"].cat.categories, 2)]
    for column, first, last in [*types, ("half", "one half", "the other")]:
        groups = [adata[adata.obs[column] == end] for end in (first, last)]
        kind = "types" if column == "cell_type" else "halves of all cells"
        for batch in adata.obs["batch"].cat.categories:
            truth_sf = np.stack([true_shares(group, batch).mean(0) for group in groups])
            for n_cells in (options.cells, 32):
                # Only the ends of the path, because there is no truth between them.
                path = model.latent_traverse(
                    adata, (first, last), groupby=column, n_steps=2, n_cells=n_cells, transform_batch={"batch": batch}
                )
                records.band(f"{kind}, {'32' if n_cells == 32 else 'all'} cells", path, truth_sf)
                if column == "cell_type" and n_cells > 32:
                    records.sign(path, truth_sf)
    for cell in random.choice(adata.obs_names, N_SINGLE_CELLS, replace=False):
        partner = random.choice(adata.obs_names[adata.obs_names != cell])
        path = model.latent_traverse(adata, (cell, partner), n_steps=2)[:1]
        truth_1f = true_shares(adata[[cell]], None)
        records.band("single cells", path, truth_1f)
        periodic_f = (adata.var["cell_cycle_amplitude"] > MIN_AMPLITUDE).to_numpy()
        records.band("single cells, features that do not cycle", path, truth_1f, periodic_f)
    if options.periodic:
        active = adata[adata.obs["is_cycling"]].copy()
        for batch in adata.obs["batch"].cat.categories:
            path = model.latent_traverse(
                active, "cell_cycle", n_steps=25, n_cells=options.cells, transform_batch={"batch": batch}
            )
            angles = path.obs["angle"]
            truth_sf = np.stack([true_shares(active, batch, angle).mean(0) for angle in angles])
            records.band("cell cycle", path, truth_sf)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--epochs", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--no-periodic", action="store_true", help="fit no circle, and leave the cell cycle out")
    options = parser.parse_args()
    options.periodic = "periodic" in VAE().get_params() and not options.no_periodic
    results = [measure(seed, options) for seed in options.seeds]
    print("| path through | features | inside, by seed | inside | below | above | width, log2 | error, log2 |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, name in results[0].bands:
        of = [np.concatenate(records.bands[kind, name], 1) for records in results]
        inside, below, above, width, error = np.mean([values.mean(1) for values in of], 0)
        by_seed = ", ".join(f"{values[0].mean():.3f}" for values in of)
        shares_of = f"{inside:.3f} | {below:.3f} | {above:.3f}"
        print(f"| {kind} | {name} | {by_seed} | {shares_of} | {width:.2f} | {error**0.5:.2f} |")
    print("\n| features | mean lfsr | false signs | called at fdr 0.05 | false signs among them |")
    print("|---|---|---|---|---|")
    for name in PARTS:
        lfsr, fdr, false = np.concatenate([values for records in results for values in records.signs[name]], 1)
        called = fdr < 0.05
        print(f"| {name} | {lfsr.mean():.3f} | {false.mean():.3f} | {called.mean():.3f} | {false[called].mean():.3f} |")


if __name__ == "__main__":
    main()

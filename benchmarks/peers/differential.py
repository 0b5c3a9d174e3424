#!/usr/bin/env python
"""Differential expression: nulls by cells and by donors, paired donors, simulated truth, and time.

    python -m benchmarks.peers.differential --data DIR --out differential.json

celldial by donors ("replicates") and by the model, beside Wilcoxon's test of cells (scanpy) and the t-test of
pseudobulk log counts (scipy). With --peer-python, the simulated rows also have pseudobulk DESeq2 (pydeseq2) and scVI,
which run in an environment of their own. See benchmarks/README.md for what the rows mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from benchmarks.harness import Row, conditions, markdown, write_report
from scipy import sparse, stats
from sklearn.metrics import average_precision_score, precision_recall_curve

import celldial as cd
from celldial.tl.moderated_t import trimmed_library_sizes

PARTS = ("null_cells", "null_donors", "paired", "stimulated", "simulated", "time")
# Share of the cells in which a gene of the tables has a count, and cells of a type that each donor has.
MIN_SHARE, MIN_CELLS = 0.05, 10
LEVEL = 0.05
DEPTHS, DONORS = (500, 2000, 8000), (2, 4, 8)
N_GENES, N_CELLS, DIFFERENT = 1000, 60, 0.1
# Monocytes have this share of their counts in these genes, which hardly respond to interferon.
MONOCYTE_GENES, MONOCYTE_SHARE = ["LYZ", "CD14", "S100A8", "FCN1", "TYROBP"], 3e-3
# Cells, genes and groups of the call that is timed.
SIZE = (10_000, 2000, 10)

Measured = dict[str, Any]


# --- Data and peers ---------------------------------------------------------------------------------------------------


def read_kang(folder: Path) -> ad.AnnData:
    """Return the cells of `kang_ifnb` whose donor is known."""
    adata = ad.read_h5ad(folder / "kang_ifnb.h5ad")
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    return adata[(adata.obs["donor"] != "unassigned").to_numpy()].copy()


def expressed(adata: ad.AnnData) -> np.ndarray:
    """Return a mask of the genes with counts in 5 % of the cells."""
    share_f: np.ndarray = np.asarray((adata.X > 0).mean(0)).ravel() >= MIN_SHARE
    return share_f


def pseudobulk(adata: ad.AnnData, column: str, trimmed: bool = False) -> tuple[np.ndarray, pd.DataFrame]:
    """Return log counts of each donor and group, per 10,000, and their names.

    If most genes change little but some take a larger share of the counts, all others seem to fall. Trimmed library
    sizes, which celldial uses, correct this; totals do not.
    """
    keys = pd.MultiIndex.from_frame(adata.obs[["donor", column]].astype(str))
    code_c, unique = pd.factorize(keys, sort=True)
    one_hot = sparse.csr_matrix((np.ones(len(code_c)), (code_c, np.arange(len(code_c)))))
    counts_sf = np.asarray((one_hot @ adata.X).todense())
    size_s = counts_sf.sum(1)
    size_s = trimmed_library_sizes(counts_sf, size_s) if trimmed else size_s
    level_sf = np.log1p(1e4 * counts_sf / size_s[:, None])
    return level_sf, pd.DataFrame(list(unique), columns=["donor", "group"])


def pseudobulk_t(
    adata: ad.AnnData, column: str, groups: tuple[str, str], paired: bool, trimmed: bool = False
) -> np.ndarray:
    """Return the p-values of the t-test of pseudobulk log counts."""
    level_sf, table = pseudobulk(adata, column, trimmed)
    first, second = (level_sf[(table["group"] == group).to_numpy()] for group in groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of genes that are constant
        test = stats.ttest_rel(first, second) if paired else stats.ttest_ind(first, second)
    p_value_f: np.ndarray = np.nan_to_num(test.pvalue, nan=1.0)
    return p_value_f


def wilcoxon(adata: ad.AnnData, column: str, groups: tuple[str, str]) -> np.ndarray:
    """Return the p-values of Wilcoxon's test of normalized cells."""
    normalized = ad.AnnData(adata.X.copy(), adata.obs[[column]].astype("category"), adata.var[[]])
    sc.pp.normalize_total(normalized, target_sum=1e4)
    sc.pp.log1p(normalized)
    sc.tl.rank_genes_groups(normalized, column, groups=[groups[0]], reference=groups[1], method="wilcoxon")
    table = sc.get.rank_genes_groups_df(normalized, group=groups[0]).set_index("names")
    p_value_f: np.ndarray = table["pvals"].reindex(adata.var_names).to_numpy()
    return p_value_f


def compare(model: cd.VAE, adata: ad.AnnData, column: str, groups: tuple[str, str], **options: Any) -> pd.DataFrame:
    """Return the table of celldial in the order of the genes."""
    table = model.differential(adata, column, [groups[0]], groups[1], key_added=None, **options)
    return table.set_index("feature").loc[adata.var_names]


def n_found(p_value_f: np.ndarray) -> int:
    """Return the number of genes with a false discovery rate below 5 %."""
    return int((stats.false_discovery_control(np.nan_to_num(p_value_f, nan=1.0)) < LEVEL).sum())


def fit(adata: ad.AnnData, seed: int, max_epochs: int | str) -> cd.VAE:
    """Fit a model with its defaults."""
    return cd.VAE(seed=seed).fit(adata, max_epochs=max_epochs, progress=False)


# --- Parts ------------------------------------------------------------------------------------------------------------


def null_cells(adata: ad.AnnData, model: cd.VAE, n_splits: int) -> list[Measured]:
    """Split the control cells of a type at random, as if they were two groups."""
    measured = []
    for name in ("CD14+ Monocytes", "CD4 T cells"):
        cells = adata[(adata.obs["cell_type_ctrl"] == name).to_numpy()].copy()
        for seed in range(n_splits):
            half_c = np.random.default_rng(seed).permutation(np.arange(cells.n_obs) % 2)
            cells.obs["half"] = np.array(["x", "y"])[half_c]
            table = compare(model, cells, "half", ("x", "y"), method="model")
            p_value_f = wilcoxon(cells, "half", ("x", "y"))
            measured.append(
                {"type": name, "seed": seed, "ours": float((table["fdr"] < LEVEL).mean())}
                | {"wilcoxon": n_found(p_value_f) / len(p_value_f)}
            )
    return measured


def null_donors(adata: ad.AnnData, model: cd.VAE, n_splits: int) -> list[Measured]:
    """Split the donors of the control cells of a type, 4 against 4."""
    measured = []
    control = adata[(adata.obs["condition"] == "ctrl").to_numpy()]
    donors = sorted(control.obs["donor"].unique())
    for name in sorted(control.obs["cell_type_ctrl"].unique()):
        cells = control[(control.obs["cell_type_ctrl"] == name).to_numpy()].copy()
        if (cells.obs["donor"].value_counts().reindex(donors).fillna(0) < MIN_CELLS).any():
            continue
        kept_f = expressed(cells)
        for first in [each for each in combinations(donors, 4) if donors[0] in each][:n_splits]:
            cells.obs["half"] = np.where(cells.obs["donor"].isin(first), "x", "y")
            table = compare(model, cells, "half", ("x", "y"), replicate_key="donor")
            found = {
                "ours": table["p_value"].to_numpy(),
                "pseudobulk t": pseudobulk_t(cells, "half", ("x", "y"), paired=False),
                "wilcoxon": wilcoxon(cells, "half", ("x", "y")),
            }
            shares = {who: float((p_value_f[kept_f] < LEVEL).mean()) for who, p_value_f in found.items()}
            tested = found["ours"][~np.isnan(found["ours"])]
            measured.append({"type": name, **shares, "ours, tested genes": float((tested < LEVEL).mean())})
    return measured


def paired(adata: ad.AnnData, model: cd.VAE, n_permutations: int) -> Measured:
    """Compare the conditions of each donor, and the same with the conditions of half of the donors swapped."""
    kept_f = expressed(adata)
    groups = ("stim", "ctrl")

    def found(cells: ad.AnnData) -> dict[str, int]:
        table = compare(model, cells, "condition", groups, replicate_key="donor")
        return {
            "ours": n_found(table["p_value"].to_numpy()[kept_f]),
            **{
                name: n_found(pseudobulk_t(cells, "condition", groups, paired=True, trimmed=trimmed)[kept_f])
                for name, trimmed in (("pseudobulk t", True), ("pseudobulk t of totals", False))
            },
        }

    measured: Measured = {"genes": int(kept_f.sum()), **found(adata)}
    donors = sorted(adata.obs["donor"].unique())
    swapped = []
    for seed in range(n_permutations):
        cells, chosen = adata.copy(), np.random.default_rng(seed).choice(donors, len(donors) // 2, replace=False)
        condition = cells.obs["condition"].astype(str)
        other = condition.map({"stim": "ctrl", "ctrl": "stim"})
        cells.obs["condition"] = condition.where(~cells.obs["donor"].isin(chosen), other)
        swapped.append(found(cells))
    return measured | {"swapped": swapped}


def stimulated(adata: ad.AnnData, model: cd.VAE) -> Measured:
    """Compare stimulated with control monocytes: correlation with the observed fold change, and the top 100."""
    share_c = np.asarray(adata[:, MONOCYTE_GENES].X.sum(1)).ravel() / np.asarray(adata.X.sum(1)).ravel()
    cells = adata[share_c > MONOCYTE_SHARE].copy()
    groups = ("stim", "ctrl")
    table = compare(model, cells, "condition", groups, method="model")
    kept_f = expressed(cells)
    masks = {group: (cells.obs["condition"] == group).to_numpy() for group in groups}
    counts = {group: np.asarray(cells.X[mask_c].sum(0)).ravel() for group, mask_c in masks.items()}
    observed_f = np.log2((counts["stim"] + 0.5) / counts["stim"].sum()) - np.log2(
        (counts["ctrl"] + 0.5) / counts["ctrl"].sum()
    )
    top_peer = set(np.argsort(pseudobulk_t(cells, "condition", groups, paired=True))[:100])
    measured: Measured = {"cells": cells.n_obs, "genes": int(kept_f.sum())}
    measured["correlation"] = float(np.corrcoef(table["log2_fold_change"][kept_f], observed_f[kept_f])[0, 1])
    by_donor = compare(model, cells, "condition", groups, replicate_key="donor")
    for name, values in (("model", table["lfsr"]), ("replicates", by_donor["p_value"])):
        order_f = np.argsort(values.fillna(1).to_numpy(), kind="stable")
        measured[f"overlap, {name}"] = len(top_peer & set(order_f[:100]))
    return measured


def simulate(depth: int, n_donors: int, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Draw donors in one of two conditions, with an expression of their own; a tenth of the genes differs."""
    random = np.random.default_rng([depth, n_donors, seed])
    level_f = random.normal(0, 1.5, N_GENES)
    different_f = random.random(N_GENES) < DIFFERENT
    effect_f = np.where(different_f, random.normal(0, 1.0, N_GENES), 0)
    donor_df = random.normal(0, 0.25, (2 * n_donors, N_GENES)) * random.gamma(2, 0.5, N_GENES)
    type_kf = random.normal(0, 0.8, (3, N_GENES)) * (random.random((3, N_GENES)) < 0.3)
    donor_c = np.repeat(np.arange(2 * n_donors), N_CELLS)
    log_rate_cf = level_f + donor_df[donor_c] + (donor_c < n_donors)[:, None] * effect_f
    log_rate_cf += type_kf[random.integers(0, 3, len(donor_c))]
    rate_cf = np.exp(log_rate_cf)
    library_c1 = depth * random.lognormal(0, 0.4, (len(donor_c), 1))
    mean_cf = library_c1 * rate_cf / rate_cf.sum(1, keepdims=True)
    counts_cf = random.poisson(mean_cf * random.gamma(3, 1 / 3, mean_cf.shape)).astype(np.float32)
    obs = pd.DataFrame(
        {"donor": [f"d{donor}" for donor in donor_c], "condition": np.where(donor_c < n_donors, "x", "y")},
        index=[f"c{c}" for c in range(len(donor_c))],
    )
    var = pd.DataFrame(index=[f"g{f}" for f in range(N_GENES)])
    adata = ad.AnnData(sparse.csr_matrix(counts_cf), obs, var)
    kept_f = np.asarray((adata.X > 0).mean(0)).ravel() >= 0.01
    return adata[:, kept_f].copy(), effect_f[kept_f] != 0


def run_peers(adata: ad.AnnData, python: str, seed: int, max_epochs: int | str) -> dict[str, tuple[Any, Any]]:
    """Return what DESeq2 and scVI rank genes by, and which they call."""
    script = Path(__file__).parents[1] / "workers" / "differential.py"
    with TemporaryDirectory() as folder:
        cells, out = f"{folder}/cells.h5ad", f"{folder}/out.npz"
        adata.write_h5ad(cells)
        subprocess.run([python, str(script), cells, out, str(seed), str(max_epochs)], check=True)
        found = dict(np.load(out))
    return {
        name: (pd.Series(found[f"{name} rank"]), pd.Series(np.where(found[f"{name} called"], 0.0, 1.0)))
        for name in ("DESeq2", "scVI")
    }


def simulated(depth: int, n_donors: int, seed: int, max_epochs: int | str, python: str | None) -> Measured:
    """Measure the average precision, the true share of false discoveries, and the power at 5 % of them."""
    adata, truth_f = simulate(depth, n_donors, seed)
    model, groups = fit(adata, seed, max_epochs), ("x", "y")
    by_donor = compare(model, adata, "condition", groups, replicate_key="donor")
    by_model = compare(model, adata, "condition", groups, method="model")
    score = {
        "ours": (by_donor["p_value"], by_donor["fdr"]),
        "model": (by_model["lfsr"], by_model["fdr"]),
    }
    peers = {
        "wilcoxon": wilcoxon(adata, "condition", groups),
        "pseudobulk t": pseudobulk_t(adata, "condition", groups, paired=False),
    }
    for name, p_value_f in peers.items():
        score[name] = (pd.Series(p_value_f), pd.Series(stats.false_discovery_control(p_value_f)))
    if python is not None:
        score |= run_peers(adata, python, seed, max_epochs)
    measured: Measured = {"depth": depth, "donors": n_donors, "seed": seed}
    for name, (p_value_f, fdr_f) in score.items():
        rank_f = -p_value_f.fillna(1).to_numpy()
        precision, recall, _ = precision_recall_curve(truth_f, rank_f)
        called_f = (fdr_f < LEVEL).to_numpy()
        measured[name] = {
            "auprc": float(average_precision_score(truth_f, rank_f)),
            "fdr": float((~truth_f[called_f]).mean()) if called_f.any() else 0.0,
            "power": float(recall[precision >= 1 - LEVEL].max(initial=0.0)),
        }
    return measured


def timed() -> Measured:
    """Time one call of the model and of the short form by donors."""
    n_cells, n_genes, n_groups = SIZE
    random = np.random.default_rng(0)
    group_c = random.integers(0, n_groups, n_cells)
    rate_gf = np.exp(random.normal(0, 1, n_genes) + random.normal(0, 0.7, (n_groups, n_genes)))
    counts_cf = random.poisson(2000 * (rate_gf / rate_gf.sum(1, keepdims=True))[group_c]).astype(np.float32)
    obs = pd.DataFrame({"group": group_c.astype(str), "donor": (np.arange(n_cells) % 8).astype(str)})
    obs.index = [f"c{c}" for c in range(n_cells)]
    adata = ad.AnnData(sparse.csr_matrix(counts_cf), obs, pd.DataFrame(index=[f"g{f}" for f in range(n_genes)]))
    model = fit(adata, 0, 1)
    measured: Measured = {}
    for name, options in (("model", {"method": "model"}), ("replicates", {"replicate_key": "donor"})):
        wall, cpu = time.perf_counter(), time.process_time()
        model.differential(adata, "group", **options)
        measured[name] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return measured


# --- Rows -------------------------------------------------------------------------------------------------------------


def rows_of(part: str, measured: list[Measured]) -> list[Row]:
    """Return the rows of a part."""
    if part == "null_cells":
        ours = float(np.mean([each["ours"] for each in measured]))
        peer = f"Wilcoxon {np.mean([each['wilcoxon'] for each in measured]):.4f}"
        return [Row("null by cells: share with fdr < .05", f"{ours:.4f}", peer, ours, "≤ 0.001", ours <= 0.001)]
    if part == "null_donors":
        return [row_of_type(name, list(part)) for name, part in by_type(measured)]
    if part == "paired":
        (each,) = measured
        methods = ("ours", "pseudobulk t", "pseudobulk t of totals")
        false = {who: max([split[who] for split in each["swapped"]], default=0) for who in methods}
        ours, *others = (f"{each[who]} (swapped: at most {false[who]})" for who in methods)
        peer = f"t-test of pseudobulk, same library sizes {others[0]}, library sizes that are totals {others[1]}"
        reached = each["ours"] > each["pseudobulk t"] and false["ours"] <= false["pseudobulk t"]
        return [Row(f"paired donors: of {each['genes']} genes found", ours, peer, each["ours"], "more", reached)]
    if part == "stimulated":
        (each,) = measured
        overlap = min(each["overlap, model"], each["overlap, replicates"])
        value = each["correlation"]
        return [
            Row("monocytes: correlation of fold changes", f"{value:.3f}", "", value, "≥ .97", value >= 0.97),
            Row("monocytes: overlap of the top 100", str(overlap), "", overlap, "≥ 60", overlap >= 60),
        ]
    if part == "time":
        (each,) = measured
        wall = max(each["model"]["wall"], each["replicates"]["wall"])
        return [Row(f"seconds of one call on {SIZE}", f"{wall:.1f}", "", wall, "≤ 20", wall <= 20)]
    return simulated_rows(measured)


def by_type(measured: list[Measured]) -> list[tuple[str, list[Measured]]]:
    """Return the measurements of each cell type."""
    names = sorted({each["type"] for each in measured})
    return [(name, [each for each in measured if each["type"] == name]) for name in names]


def row_of_type(name: str, measured: list[Measured]) -> Row:
    """Return the row of the null by donors in one cell type: mean over splits, and the worst."""
    texts = {}
    for who in ("ours", "pseudobulk t", "wilcoxon"):
        shares = [each[who] for each in measured]
        texts[who] = f"{np.mean(shares):.3f} ({max(shares):.3f})"
    ours = [each["ours"] for each in measured]
    reached = 0.04 <= float(np.mean(ours)) <= 0.06 and max(ours) <= 0.1
    peer = f"pseudobulk t {texts['pseudobulk t']}, Wilcoxon {texts['wilcoxon']}"
    measure = f"null by donors, {name}: p < .05, mean (worst)"
    return Row(measure, texts["ours"], peer, max(ours), ".04–.06 (.10)", reached)


def simulated_rows(measured: list[Measured]) -> list[Row]:
    """Return the rows of each simulation: mean over seeds."""
    rows = []
    for depth, n_donors in sorted({(each["depth"], each["donors"]) for each in measured}):
        here = [each for each in measured if (each["depth"], each["donors"]) == (depth, n_donors)]
        for name in ("auprc", "power", "fdr"):
            everyone = [who for who in here[0] if who not in ("depth", "donors", "seed")]
            mean = {who: float(np.mean([each[who][name] for each in here])) for who in everyone}
            best = max(value for who, value in mean.items() if who not in ("ours", "model"))
            reached = mean["ours"] <= LEVEL + 0.02 if name == "fdr" else mean["ours"] >= best - 0.01
            peer = ", ".join(f"{who} {mean[who]:.3f}" for who in everyone[1:])
            aim = "≤ .05" if name == "fdr" else "first, or within .01"
            measure = f"simulated, {depth} counts, {n_donors} + {n_donors} donors: {name}"
            rows.append(Row(measure, f"{mean['ours']:.3f}", peer, mean["ours"], aim, reached))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=10, help="random splits, permutations and simulations")
    parser.add_argument("--splits", type=int, default=35, help="splits of the donors, at most 35")
    parser.add_argument("--peer-python", help="Python with scvi-tools and pydeseq2, for the simulated rows (none)")
    parser.add_argument("--max-epochs", type=int, help="epochs of each fit (the default of fit)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="the parts (all)")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS), help="depths of simulated cells")
    parser.add_argument("--out", type=Path, help="where to write the rows and all measurements, as JSON, as they come")
    parser.add_argument("--quick", action="store_true", help="two epochs, once: does it run at all?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n_seeds, n_splits = (1, 2) if options.quick else (options.seeds, options.splits)
    max_epochs: int | str = 2 if options.quick else options.max_epochs or "auto"
    rows: list[Row] = []
    runs: list[Measured] = []

    def note(part: str, measured: list[Measured]) -> None:
        runs.extend({"part": part, **each} for each in measured)
        rows.extend(rows_of(part, measured))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        if options.out is not None:
            about = conditions(runs, "peers", {"seeds": n_seeds, "max_epochs": max_epochs}, options.threads)
            write_report(options.out, about, rows, runs)

    if set(options.only) & {"null_cells", "null_donors", "paired", "stimulated"}:
        adata = read_kang(options.data)
        # The test between donors does not depend on the fit.
        needs_fit = set(options.only) & {"null_cells", "stimulated"}
        model = fit(adata, 0, max_epochs if needs_fit else 1)
        for part, run in (
            ("null_cells", lambda: null_cells(adata, model, n_seeds)),
            ("null_donors", lambda: null_donors(adata, model, n_splits)),
            ("paired", lambda: [paired(adata, model, n_seeds)]),
            ("stimulated", lambda: [stimulated(adata, model)]),
        ):
            if part in options.only:
                note(part, run())
    if "simulated" in options.only:
        sizes = [(depth, n) for depth in options.depths for n in DONORS][: 1 if options.quick else None]
        for depth, n_donors in sizes:
            note(
                "simulated",
                [simulated(depth, n_donors, seed, max_epochs, options.peer_python) for seed in range(n_seeds)],
            )
    if "time" in options.only:
        note("time", [timed()])
    print(markdown(rows, "others"))


if __name__ == "__main__":
    main()

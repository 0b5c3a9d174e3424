#!/usr/bin/env python
"""Latent families, priors, posteriors, clusters and gradient estimators: what each gives, in one table.

    python -m benchmarks.peers.latents --peer-python PEERS/bin/python --data DIR --keep peer_runs

scVI and SCANVI run in processes of their own, celldial in this one. See benchmarks/README.md for what the rows mean.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import pyro
import scanpy as sc
import torch
from benchmarks.harness import Bench, Row, conditions, markdown, measure
from benchmarks.peers.rna import DATA_SETS, LABELS, prepare
from benchmarks.timing import milliseconds
from pyro import poutine
from pyro.distributions import Normal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import softplus

import celldial as cd
from celldial.data.cells import Cells
from celldial.metrics import leiden_nmi
from celldial.model.distributions import SOFTPLUS_ONE
from celldial.model.elbo import MeanFieldELBO
from celldial.model.latents import MIN_SCALE
from celldial.model.likelihoods import SparseObservation
from celldial.model.module import Module
from celldial.tl import compare_gradients
from celldial.training.stages import choose_batch_size, choose_max_epochs

WORKERS = {"scvi-tools": "benchmarks.workers.scvi_latents"}
SMALL = "pbmc68k_counts"

# What may be said of the latent state, and how a cell is judged: arguments of VAE.
FAMILIES: dict[str, dict[str, Any]] = {
    "default": {},
    **{family: {"latent": family} for family in ("laplace", "logistic", "log_normal", "logistic_normal")},
    "prior: mixture": {"prior": "mixture"},
    "prior: flow": {"prior": "flow"},
    "posterior: flow": {"posterior": "flow"},
    "prior: mixture, posterior: flow": {"prior": "mixture", "posterior": "flow"},
}
RICHER = tuple(name for name in FAMILIES if ":" in name)
BASELINES = (None, "moving_average", "learned")
# How the gradient with respect to the clusters is estimated.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "enumerate": {"gradient": "enumerate"},
    "gumbel_softmax": {"gradient": "gumbel_softmax"},
    "gumbel_softmax, straight through": {"gradient": "gumbel_softmax", "straight_through": True},
    **{
        f"score_function, baseline: {baseline}": {"gradient": "score_function", "baseline": baseline}
        for baseline in BASELINES
    },
}
N_CLUSTERS = 10
KNOWN, UNKNOWN = 0.1, "unknown"
N_NEIGHBORS = (15, 5, 1)  # the first is the one that the aim is about
N_SAMPLES = 100
GAIN = 2.0
AFTER = (1, 2, 5, 10)  # epochs of the default
WINDOWS = (0.025, 0.1)  # of a moving average, as shares of the epochs of training by the score function


@dataclass(frozen=True)
class Sizes:
    """How long to measure."""

    seeds: int
    our_epochs: int | None  # None: what the default chooses
    peer_epochs: int
    score_function_epochs: int  # times as many as the default takes
    repeats: int


def sizes(seeds: int, quick: bool) -> Sizes:
    return Sizes(1, 2, 2, 2, 5) if quick else Sizes(seeds, None, 400, 10, 500)


# --- Data -------------------------------------------------------------------------------------------------------------


def known_key(seed: int) -> str:
    return f"known_{seed}"


def tell_some(adata: ad.AnnData, seeds: int) -> None:
    """For each seed, a column of labels that are known of a tenth of the cells of each type, and of one at least."""
    label_c = adata.obs[LABELS].astype(str).to_numpy()
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        known_c = np.full(len(label_c), UNKNOWN, dtype=object)
        for label in np.unique(label_c):
            of_type = np.flatnonzero(label_c == label)
            chosen = generator.choice(of_type, max(1, round(KNOWN * len(of_type))), replace=False)
            known_c[chosen] = label
        adata.obs[known_key(seed)] = known_c


def held_out(adata: ad.AnnData) -> np.ndarray:
    """Give the cells to validate on, as peers/rna.py has them: a tenth, rounded down, the first of the file."""
    mask_c: np.ndarray = np.arange(adata.n_obs) < adata.n_obs - math.ceil(0.9 * adata.n_obs)
    return mask_c


# --- Measuring --------------------------------------------------------------------------------------------------------


def fit(adata: ad.AnnData, size: Sizes, seed: int, arguments: Mapping[str, Any], **options: Any) -> cd.VAE:
    """Fit with all defaults, but for what is asked for."""
    options = {"max_epochs": size.our_epochs or "auto", "progress": False} | options
    return cd.VAE(seed=seed, **arguments).fit(adata, **options)


def note(bench: Bench, part: str, data: str, variant: str, seed: int, start: float, **measured: Any) -> None:
    """Keep what was measured in this process beside what the workers measured in theirs."""
    wall = time.perf_counter() - start
    print(f"{'celldial':9}{part:12}{data:16}{variant}, seed {seed}: {wall:.1f} s", file=sys.stderr, flush=True)
    about = {"who": "celldial", "task": part, "data": data, "variant": variant, "seed": seed, "wall": wall}
    bench.done.append({**about, **measured})


def measure_families(bench: Bench, size: Sizes) -> list[Row]:
    """Measure the importance-weighted bound and the ELBO of cells that were held out."""
    rows: list[Row] = []
    gains = {}
    for data in DATA_SETS:
        adata = ad.read_h5ad(bench.paths[data])
        mask_c = held_out(adata)
        values: dict[str, list[tuple[float, float]]] = {name: [] for name in FAMILIES}
        for seed in range(size.seeds):
            for name, arguments in FAMILIES.items():
                start = time.perf_counter()
                model = fit(adata, size, seed, arguments, validation_cells=mask_c)
                bound = model.score(adata[mask_c], n_samples=N_SAMPLES)
                elbo = model.score(adata[mask_c])
                values[name].append((bound, elbo))
                note(bench, "families", data, name, seed, start, bound=bound, elbo=elbo)
        for name, of_seeds in values.items():
            bound, elbo = (median(column) for column in zip(*of_seeds, strict=True))
            # Of the same seed, so of the same first weights and order of cells.
            pairs = zip(of_seeds, values["default"], strict=True)
            gains[name, data] = median(mine[0] - default[0] for mine, default in pairs)
            beside = "" if name == "default" else f"gain over the default: {gains[name, data]:+.2f}"
            measure = f"−bound of {N_SAMPLES} samples (−ELBO), `{data}`, {name}, nats/cell"
            rows.append(Row(measure, f"{-bound:.2f} ({-elbo:.2f})", beside, -bound))
    (name, data), gain = max(((key, gain) for key, gain in gains.items() if key[0] in RICHER), key=lambda pair: pair[1])
    measure = "largest gain of a mixture or flow over the default, nats/cell"
    return [*rows, Row(measure, f"{gain:+.2f}", f"{name}, `{data}`", gain, f"≥ {GAIN:g}", gain >= GAIN)]


def measure_clusters(bench: Bench, size: Sizes) -> list[Row]:
    """Compare the clusters of the model with known types, and with those that Leiden finds in the default embedding."""
    adata = ad.read_h5ad(bench.paths[SMALL])
    label_c = adata.obs[LABELS]
    leiden: list[tuple[float, float]] = []
    values: dict[str, list[tuple[float, int]]] = {name: [] for name in ESTIMATORS}
    for seed in range(size.seeds):
        start = time.perf_counter()
        fit(adata, size, seed, {})
        embedding_cz = adata.obsm["X_celldial"]
        leiden.append((leiden_nmi(embedding_cz, label_c), leiden_nmi(embedding_cz, label_c, [1.0])))
        note(bench, "clusters", SMALL, "Leiden", seed, start, best_of_7=leiden[-1][0], at_1=leiden[-1][1])
        for name, arguments in ESTIMATORS.items():
            start, clustered = time.perf_counter(), adata.copy()
            fit(clustered, size, seed, {"n_clusters": N_CLUSTERS, **arguments})
            cluster_c = clustered.obs["celldial_cluster"].astype(str)
            nmi, in_use = float(normalized_mutual_info_score(label_c, cluster_c)), int(cluster_c.nunique())
            values[name].append((nmi, in_use))
            note(bench, "clusters", SMALL, name, seed, start, nmi=nmi, in_use=in_use)
    best, at_1 = (median(column) for column in zip(*leiden, strict=True))
    beside = f"Leiden, best of 7: {best:.3f}; at resolution 1: {at_1:.3f}"
    rows = []
    for name, of_seeds in values.items():
        nmi, in_use = (median(column) for column in zip(*of_seeds, strict=True))
        ours, measure = f"{nmi:.3f} ({in_use:g} in use)", f"NMI of `{LABELS}`, {N_CLUSTERS} clusters, {name}"
        rows.append(Row(measure, ours, beside, nmi, f"≥ {best:.3f}", nmi >= best))
    return rows


def macro_f1(adata: ad.AnnData, seed: int, predicted_c: np.ndarray) -> float:
    """Score predicted labels of the cells whose label was not known."""
    rest_c = (adata.obs[known_key(seed)] == UNKNOWN).to_numpy()
    label_c = adata.obs[LABELS].astype(str).to_numpy()[rest_c]
    predicted_c = np.asarray(predicted_c)[rest_c]
    return float(f1_score(label_c, predicted_c, labels=np.unique(label_c), average="macro", zero_division=0.0))


def classify(adata: ad.AnnData, seed: int, classifier: Any, feature_ck: np.ndarray) -> float:
    """Train a classifier on the known labels, and score it on the rest."""
    known_c = adata.obs[known_key(seed)].astype(str).to_numpy()
    of_known = known_c != UNKNOWN
    classifier.fit(feature_ck[of_known], known_c[of_known])
    return macro_f1(adata, seed, classifier.predict(feature_ck))


def by_neighbors(adata: ad.AnnData, seed: int, embedding_cz: np.ndarray) -> dict[int, float]:
    """Label each cell by its nearest neighbors of known label; their number to the score."""
    n_known = int((adata.obs[known_key(seed)] != UNKNOWN).sum())
    classifiers = {k: KNeighborsClassifier(min(k, n_known)) for k in N_NEIGHBORS}
    return {k: classify(adata, seed, classifier, embedding_cz) for k, classifier in classifiers.items()}


def labels_of_others(bench: Bench, size: Sizes, adata: ad.AnnData, seed: int) -> dict[str, float]:
    """Score all that is not the model with labels itself."""
    peer = bench.once(
        "scvi-tools", "transfer", SMALL, epochs=size.peer_epochs, seed=seed, known=known_key(seed), share=KNOWN
    )
    start, plain = time.perf_counter(), adata.copy()
    fit(plain, size, seed, {})
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    scores = {f"SCANVI, {way}": macro_f1(adata, seed, peer[way]) for way in ("default", "tutorial")}
    for who, embedding_cz in (("scVI", peer["embedding"]), ("celldial's embedding", plain.obsm["X_celldial"])):
        scores |= {f"{k}-NN on {who}": score for k, score in by_neighbors(adata, seed, embedding_cz).items()}
    classifier = LogisticRegression(max_iter=3000)
    scores["logistic regression"] = classify(adata, seed, classifier, np.asarray(logged.X.todense()))
    note(bench, "labels", SMALL, "others", seed, start, f1=scores)
    return scores


def measure_labels(bench: Bench, size: Sizes) -> list[Row]:
    """Score the labels of cells of which a tenth is known, beside others that know the same."""
    adata = ad.read_h5ad(bench.paths[SMALL])
    others: list[dict[str, float]] = []
    ours: list[float] = []
    for seed in range(size.seeds):
        others.append(labels_of_others(bench, size, adata, seed))
        start, labelled = time.perf_counter(), adata.copy()
        fit(labelled, size, seed, {"labels_key": known_key(seed), "unknown_label": UNKNOWN})
        ours.append(macro_f1(adata, seed, labelled.obs["celldial_cluster"].astype(str).to_numpy()))
        note(bench, "labels", SMALL, "labels_key", seed, start, f1=ours[-1])
    value, beside = median(ours), {name: median(of_seed[name] for of_seed in others) for name in others[0]}
    scanvi = max(beside[f"SCANVI, {way}"] for way in ("default", "tutorial"))
    aims: dict[str, tuple[str, bool]] = {
        "15-NN on scVI": (f"≥ {beside['15-NN on scVI']:.3f}", value >= beside["15-NN on scVI"]),
        "SCANVI, default": (f"> {beside['SCANVI, default']:.3f}", value > beside["SCANVI, default"]),
        "SCANVI, tutorial": (f"> {scanvi:.3f}", value > scanvi),
    }
    measure = f"macro-F1 of `{LABELS}`, {KNOWN:.0%} known"
    return [
        Row(f"{measure}, beside {name}", f"{value:.3f}", f"{score:.3f}", value, *aims.get(name, ("", None)))
        for name, score in beside.items()
    ]


def measure_variance(bench: Bench, size: Sizes) -> list[Row]:
    """Compare the variance of gradients by the score function with that by the reparameterization trick."""
    adata = ad.read_h5ad(bench.paths[SMALL])
    trick = "reparameterized"
    ratios: dict[tuple[str, str], list[float]] = {}
    for seed in range(size.seeds):
        start = time.perf_counter()
        model = fit(adata, size, seed, {})
        variance = compare_gradients(model, adata, n_samples=N_SAMPLES, seed=seed)["variance"]
        for (parameter, estimator), value in variance.items():
            if parameter in ("mu", "sigma") and estimator != trick:
                ratio = float(value / variance[parameter, trick])
                ratios.setdefault((parameter, estimator), []).append(ratio)
        note(bench, "variance", SMALL, trick, seed, start, ratio={" ".join(key): of[-1] for key, of in ratios.items()})
    return [
        Row(
            f"`{SMALL}`: variance of the gradient by {estimator} over that by the trick, {parameter}",
            f"{median(of):,.1f}×",
            "",
            median(of),
        )
        for (parameter, estimator), of in ratios.items()
    ]


def measure_steps(bench: Bench, size: Sizes) -> list[Row]:
    """Count the steps that the score function takes to where the reparameterization trick is after few epochs."""
    adata = ad.read_h5ad(bench.paths[SMALL])
    mask_c = held_out(adata)
    n_train = int((~mask_c).sum())
    steps_per_epoch = math.ceil(n_train / choose_batch_size(n_train))
    # The default in its own time, and for as long as the score function.
    variants = {"default": {}, "default, as long": {}} | {
        f"score_function, baseline: {baseline}": {"gradient": "score_function", "baseline": baseline}
        for baseline in BASELINES
    }
    curves: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    for seed in range(size.seeds):
        for name, arguments in variants.items():
            start = time.perf_counter()
            n_epochs = size.our_epochs or choose_max_epochs(n_train)
            if name != "default":
                n_epochs *= size.score_function_epochs
            options = {"validation_cells": mask_c, "max_epochs": n_epochs, "early_stopping": False}
            model = fit(adata, size, seed, arguments, **options)
            curves[name].append(np.array(model.history_["elbo_validation"]))
            note(bench, "steps", SMALL, name, seed, start, elbo=curves[name][-1].tolist())
    after = [n for n in AFTER if n <= len(curves["default"][0])]
    targets = " / ".join(f"{n * steps_per_epoch}" for n in after)
    of_default = f"default: {targets}; best −ELBO {-median(curve.max() for curve in curves['default']):.1f}"
    rows = []
    for name in [name for name in variants if "score" in name]:
        pairs = list(zip(curves[name], curves["default"], strict=True))
        steps = [median(steps_per_epoch * first_at(curve, default[n - 1]) for curve, default in pairs) for n in after]
        best = -median(curve.max() for curve in curves[name])
        ours = " / ".join(f"{n:g}" if math.isfinite(n) else "never" for n in steps)
        measure = f"steps to the ELBO of the default after {' / '.join(map(str, after))} epochs, {name}"
        rows.append(Row(measure, f"{ours}; best −ELBO {best:.1f}", of_default, best))
    learned = "score_function, baseline: learned"
    others = [name for name in variants if name not in ("default", learned)]
    for part in WINDOWS:
        window = max(1, round(part * len(curves[learned][0])))
        share = {name: median(improving(curve, window) for curve in of_seeds) for name, of_seeds in curves.items()}
        measure = (
            f"share of epochs at which the mean ELBO of {window} is above that of the {window} before, learned baseline"
        )
        beside = "; ".join(f"{name}: {share[name]:.0%}" for name in others)
        rows.append(Row(measure, f"{share[learned]:.0%}", beside, share[learned]))
    return rows


def first_at(curve: np.ndarray, target: float) -> float:
    """Give the number of epochs after which a curve is first at the target; infinite if it never is."""
    there = np.flatnonzero(curve >= target)
    return float(there[0] + 1) if len(there) else math.inf


def improving(curve: np.ndarray, window: int) -> float:
    """Give the share of moving averages that are above those of as many epochs before; 0 if there are none."""
    smooth = np.convolve(curve, np.full(window, 1 / window), mode="valid")
    return float(np.mean([*(smooth[window:] > smooth[:-window])] or 0))


def ways_to_the_loss(module: Module, cells: Cells) -> dict[str, Callable[[], Tensor]]:
    """Give three ways to the same loss, with the same networks: the model's, Pyro's with no choices, and torch's."""
    ((name, modality),) = module.by_modality()
    rows, library_c = cells.counts[name], cells.library_size[name]
    covariates = cells.category_ck, cells.continuous_ck
    elbo = MeanFieldELBO()

    def judge() -> tuple[Tensor, Tensor]:
        mu_cz, raw_cz = modality.encoder(rows, library_c, *covariates).chunk(2, -1)
        return mu_cz, softplus(raw_cz + SOFTPLUS_ONE) + MIN_SCALE

    def by_hand() -> Tensor:
        mu_cz, sigma_cz = judge()
        z_cz = mu_cz + sigma_cz * torch.randn_like(mu_cz)
        log_p_c = modality.likelihood.log_prob(modality.decoder(z_cz, *covariates), library_c, rows)
        kl_c = (0.5 * (mu_cz.square() + sigma_cz.square() - 1) - sigma_cz.log()).sum(-1)
        return (kl_c - log_p_c).mean()

    # The weights of the KL divergence and of the modality, which are 1, are no choice of a latent state: here, too.
    def model() -> None:
        zero_cz = library_c.new_zeros(len(cells), module.latent.n_latent)
        with pyro.plate("cells", len(cells)), poutine.scale(scale=1.0):
            z_cz = pyro.sample("z", Normal(zero_cz, torch.ones_like(zero_cz)).to_event(1))
        observation = SparseObservation(modality.likelihood, modality.decoder(z_cz, *covariates), library_c)
        with pyro.plate(f"cells_{name}", len(cells)), poutine.scale(scale=module.modality_weights[name]):
            pyro.sample("counts", observation, obs=rows)

    def guide() -> None:
        with pyro.plate("cells", len(cells)), poutine.scale(scale=1.0):
            pyro.sample("z", Normal(*judge()).to_event(1))

    def in_pyro() -> Tensor:
        with pyro.validation_enabled(False):
            return elbo.differentiable_loss(model, guide) / len(cells)

    return {"model": lambda: module(cells), "Pyro": in_pyro, "torch": by_hand}


def measure_overhead(bench: Bench, size: Sizes) -> list[Row]:
    """Time forward and backward pass of a minibatch, in turns with the same by hand."""
    data = "balf"
    adata = ad.read_h5ad(bench.paths[data])
    torch.manual_seed(0)
    model = cd.VAE().fit(adata, max_epochs=1, progress=False)
    cells, module = Cells.from_anndata(adata, model.schema_), model.module_.train()
    minibatch = cells.select(torch.randperm(len(cells))[:128])
    parameters = list(module.parameters())
    losses = ways_to_the_loss(module, minibatch)
    values = []
    for loss in losses.values():
        torch.manual_seed(1)
        values.append(float(loss().detach()))
    if not np.allclose(values, values[0], rtol=1e-5):
        raise RuntimeError(f"the losses should be the same, and are {dict(zip(losses, values, strict=True))}")
    # `loss` is bound when each is made.
    steps = {name: lambda loss=loss: torch.autograd.grad(loss(), parameters) for name, loss in losses.items()}
    start = time.perf_counter()
    ms = milliseconds(steps, size.repeats)
    note(bench, "overhead", data, "default", 0, start, ms=ms)
    rows = []
    for other, aim in (("Pyro", "≤ 2 %"), ("torch", "")):
        over = ms["model"] / ms[other] - 1
        measure = f"forward and backward of 128 cells, `{data}`, over the same by hand in {other}"
        ours, beside = f"{ms['model']:.2f} ms ({over:+.1%})", f"{ms[other]:.2f} ms"
        rows.append(Row(measure, ours, beside, over, aim, over <= 0.02 if aim else None))
    return rows


PARTS: dict[str, Callable[[Bench, Sizes], list[Row]]] = {
    "families": measure_families,
    "clusters": measure_clusters,
    "labels": measure_labels,
    "variance": measure_variance,
    "steps": measure_steps,
    "overhead": measure_overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", help="interpreter of the environment that has scvi-tools, for the part labels")
    parser.add_argument("--data", required=True, type=Path, help="folder of pbmc68k_counts.h5ad and balf.h5ad")
    parser.add_argument("--seeds", type=int, default=5, help="models of each kind that medians are of")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="the parts to measure (all)")
    parser.add_argument("--keep", type=Path, help="folder of the peers' runs: found there, they are not run again")
    parser.add_argument("--out", type=Path, help="where to write the rows and all measurements, as JSON, as they come")
    parser.add_argument("--quick", action="store_true", help="two epochs, once: does it run at all?")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if "labels" in options.only and options.peer_python is None:
        parser.error("--peer-python is needed for the part labels")

    torch.set_num_threads(options.threads)  # after scanpy: numba sets the number of threads for all of OpenMP
    size = sizes(options.seeds, options.quick)
    with tempfile.TemporaryDirectory() as scratch:
        paths = prepare(options.data, Path(scratch))
        adata = ad.read_h5ad(paths[SMALL])
        tell_some(adata, size.seeds)
        adata.write_h5ad(paths[SMALL])
        interpreter = dict.fromkeys(WORKERS, options.peer_python)
        bench = Bench(interpreter, WORKERS, paths, Path(scratch), options.threads, keep=options.keep)
        rows, failed = measure(PARTS, bench, size, options.only, options.out)
    about = conditions(bench.done, "peers", asdict(size), options.threads)
    print(markdown(rows, "others"))
    print(
        f"\n{options.threads} threads, {about['processor']}; celldial {about['celldial']}, torch "
        f"{about['torch']['celldial']}, scvi-tools {about['scvi-tools'] or 'not asked'}; medians of {size.seeds} seeds."
    )
    if options.quick:
        print("QUICK: two epochs, so these numbers mean nothing.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

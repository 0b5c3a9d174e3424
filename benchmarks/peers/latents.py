#!/usr/bin/env python
"""Comparison of latent families, priors, posteriors, clusters and gradient estimators, in one table.

    python -m benchmarks.peers.latents --peer-python PEERS/bin/python --data DIR --keep peer_runs

scVI and SCANVI run in separate processes, celldial in this one. See benchmarks/README.md for the rows.
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
from celldial.model.elbo import MeanFieldELBO
from celldial.model.latents import INVERSE_SOFTPLUS_OF_ONE, MIN_SCALE
from celldial.model.module import Module
from celldial.model.observations import SparseObservation
from celldial.tl import compare_gradients
from celldial.training.stages import choose_batch_size, choose_max_epochs

WORKERS = {"scvi-tools": "benchmarks.workers.scvi_latents"}
SMALL = "pbmc68k_counts"

# Latent families, priors and posteriors: arguments of VAE.
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
# Estimators of the gradient with respect to the clusters.
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
N_NEIGHBORS = (15, 5, 1)  # the aim applies to the first one
N_SAMPLES = 100
GAIN = 2.0
AFTER = (1, 2, 5, 10)  # number of epochs of the default
WINDOWS = (0.025, 0.1)  # windows of moving averages, as fractions of the epochs of the score function


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    seeds: int
    our_epochs: int | None  # None for the default
    peer_epochs: int
    score_function_epochs: int  # as a multiple of the default
    repeats: int


def sizes(seeds: int, quick: bool) -> Sizes:
    return Sizes(1, 2, 2, 2, 5) if quick else Sizes(seeds, None, 400, 10, 500)


# --- Data -------------------------------------------------------------------------------------------------------------


def known_key(seed: int) -> str:
    return f"known_{seed}"


def add_known_labels(adata: ad.AnnData, seeds: int) -> None:
    """Add a column per seed in which a tenth of the cells of each type, at least one, have their label."""
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
    """Return a mask of the validation cells, the same as in peers/rna.py: the first tenth, rounded down."""
    mask_c: np.ndarray = np.arange(adata.n_obs) < adata.n_obs - math.ceil(0.9 * adata.n_obs)
    return mask_c


# --- Measuring --------------------------------------------------------------------------------------------------------


def fit(adata: ad.AnnData, size: Sizes, seed: int, arguments: Mapping[str, Any], **options: Any) -> cd.VAE:
    """Fit with the defaults, except for the given arguments and options."""
    options = {"max_epochs": size.our_epochs or "auto", "progress": False} | options
    return cd.VAE(seed=seed, **arguments).fit(adata, **options)


def note(bench: Bench, part: str, data: str, variant: str, seed: int, start: float, **measured: Any) -> None:
    """Record a measurement of this process together with those of the workers."""
    wall = time.perf_counter() - start
    print(f"{'celldial':9}{part:12}{data:16}{variant}, seed {seed}: {wall:.1f} s", file=sys.stderr, flush=True)
    about = {"who": "celldial", "task": part, "data": data, "variant": variant, "seed": seed, "wall": wall}
    bench.done.append({**about, **measured})


def measure_families(bench: Bench, size: Sizes) -> list[Row]:
    """Measure the importance-weighted bound and the ELBO of held-out cells."""
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
            # Pairs have the same seed, and so the same initial weights and order of cells.
            pairs = zip(of_seeds, values["default"], strict=True)
            gains[name, data] = median(mine[0] - default[0] for mine, default in pairs)
            comparison = "" if name == "default" else f"gain over the default: {gains[name, data]:+.2f}"
            measure = f"−bound of {N_SAMPLES} samples (−ELBO), `{data}`, {name}, nats/cell"
            rows.append(Row(measure, f"{-bound:.2f} ({-elbo:.2f})", comparison, -bound))
    (name, data), gain = max(((key, gain) for key, gain in gains.items() if key[0] in RICHER), key=lambda pair: pair[1])
    measure = "largest gain of a mixture or flow over the default, nats/cell"
    return [*rows, Row(measure, f"{gain:+.2f}", f"{name}, `{data}`", gain, f"≥ {GAIN:g}", gain >= GAIN)]


def measure_clusters(bench: Bench, size: Sizes) -> list[Row]:
    """Compare the clusters with known types, and with Leiden clusters of the default embedding."""
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
    comparison = f"Leiden, best of 7: {best:.3f}; at resolution 1: {at_1:.3f}"
    rows = []
    for name, of_seeds in values.items():
        nmi, in_use = (median(column) for column in zip(*of_seeds, strict=True))
        ours, measure = f"{nmi:.3f} ({in_use:g} in use)", f"NMI of `{LABELS}`, {N_CLUSTERS} clusters, {name}"
        rows.append(Row(measure, ours, comparison, nmi, f"≥ {best:.3f}", nmi >= best))
    return rows


def macro_f1(adata: ad.AnnData, seed: int, predicted_c: np.ndarray) -> float:
    """Score the predicted labels of the cells without a known label."""
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
    """Label each cell by its nearest labeled neighbors; return the score for each number of neighbors."""
    n_known = int((adata.obs[known_key(seed)] != UNKNOWN).sum())
    classifiers = {k: KNeighborsClassifier(min(k, n_known)) for k in N_NEIGHBORS}
    return {k: classify(adata, seed, classifier, embedding_cz) for k, classifier in classifiers.items()}


def labels_of_others(bench: Bench, size: Sizes, adata: ad.AnnData, seed: int) -> dict[str, float]:
    """Return the scores of all other methods of label transfer."""
    peer = bench.once(
        "scvi-tools", "transfer", SMALL, epochs=size.peer_epochs, seed=seed, known=known_key(seed), share=KNOWN
    )
    start, plain = time.perf_counter(), adata.copy()
    fit(plain, size, seed, {})
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    scores = {f"SCANVI, {setting}": macro_f1(adata, seed, peer[setting]) for setting in ("default", "tutorial")}
    for who, embedding_cz in (("scVI", peer["embedding"]), ("celldial's embedding", plain.obsm["X_celldial"])):
        scores |= {f"{k}-NN on {who}": score for k, score in by_neighbors(adata, seed, embedding_cz).items()}
    classifier = LogisticRegression(max_iter=3000)
    scores["logistic regression"] = classify(adata, seed, classifier, np.asarray(logged.X.todense()))
    note(bench, "labels", SMALL, "others", seed, start, f1=scores)
    return scores


def measure_labels(bench: Bench, size: Sizes) -> list[Row]:
    """Compare label transfer, with a tenth of the labels known, with other methods."""
    adata = ad.read_h5ad(bench.paths[SMALL])
    others: list[dict[str, float]] = []
    ours: list[float] = []
    for seed in range(size.seeds):
        others.append(labels_of_others(bench, size, adata, seed))
        start, labeled = time.perf_counter(), adata.copy()
        model = fit(labeled, size, seed, {"labels_key": known_key(seed), "unknown_label": UNKNOWN})
        model.clusters(labeled, min_probability=0)
        ours.append(macro_f1(adata, seed, labeled.obs["celldial_cluster"].astype(str).to_numpy()))
        note(bench, "labels", SMALL, "labels_key", seed, start, f1=ours[-1])
    value, comparison = median(ours), {name: median(of_seed[name] for of_seed in others) for name in others[0]}
    scanvi = max(comparison[f"SCANVI, {setting}"] for setting in ("default", "tutorial"))
    aims: dict[str, tuple[str, bool]] = {
        "15-NN on scVI": (f"≥ {comparison['15-NN on scVI']:.3f}", value >= comparison["15-NN on scVI"]),
        "SCANVI, default": (f"> {comparison['SCANVI, default']:.3f}", value > comparison["SCANVI, default"]),
        "SCANVI, tutorial": (f"> {scanvi:.3f}", value > scanvi),
    }
    measure = f"macro-F1 of `{LABELS}`, {KNOWN:.0%} known"
    return [
        Row(f"{measure}, compared with {name}", f"{value:.3f}", f"{score:.3f}", value, *aims.get(name, ("", None)))
        for name, score in comparison.items()
    ]


def measure_variance(bench: Bench, size: Sizes) -> list[Row]:
    """Compare the variance of score-function gradients with that of reparameterized gradients."""
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
    """Count the steps of the score function to the ELBO that reparameterization reaches after few epochs."""
    adata = ad.read_h5ad(bench.paths[SMALL])
    mask_c = held_out(adata)
    n_train = int((~mask_c).sum())
    steps_per_epoch = math.ceil(n_train / choose_batch_size(n_train))
    # The default with its own number of epochs, and with that of the score function.
    variants = {"default": {}, "default, same epochs": {}} | {
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
        comparison = "; ".join(f"{name}: {share[name]:.0%}" for name in others)
        rows.append(Row(measure, f"{share[learned]:.0%}", comparison, share[learned]))
    return rows


def first_at(curve: np.ndarray, target: float) -> float:
    """Return the number of epochs after which a curve first reaches the target, or infinity."""
    reached = np.flatnonzero(curve >= target)
    return float(reached[0] + 1) if len(reached) else math.inf


def improving(curve: np.ndarray, window: int) -> float:
    """Return the fraction of moving averages that exceed those of the window before; 0 if there are none."""
    smooth = np.convolve(curve, np.full(window, 1 / window), mode="valid")
    return float(np.mean([*(smooth[window:] > smooth[:-window])] or 0))


def equivalent_losses(module: Module, cells: Cells) -> dict[str, Callable[[], Tensor]]:
    """Return three implementations of the same loss with the same networks: the model, plain Pyro, and torch."""
    ((name, modality),) = module.by_modality()
    rows, library_c = cells.counts[name], cells.library_size[name]
    covariates = cells.category_ck, cells.continuous_ck
    elbo = MeanFieldELBO()

    def encode() -> tuple[Tensor, Tensor]:
        mu_cz, raw_cz = modality.encoder(rows, library_c, *covariates).chunk(2, -1)
        return mu_cz, softplus(raw_cz + INVERSE_SOFTPLUS_OF_ONE) + MIN_SCALE

    def in_torch() -> Tensor:
        mu_cz, sigma_cz = encode()
        z_cz = mu_cz + sigma_cz * torch.randn_like(mu_cz)
        log_p_c = modality.likelihood.log_prob(modality.decoder(z_cz, *covariates), library_c, rows)
        kl_c = (0.5 * (mu_cz.square() + sigma_cz.square() - 1) - sigma_cz.log()).sum(-1)
        return (kl_c - log_p_c).mean()

    # The weights of the KL divergence and of the modality are 1, but are part of every model, and so of this one.
    def model() -> None:
        zero_cz = library_c.new_zeros(len(cells), module.latent.n_latent)
        with pyro.plate("cells", len(cells)), poutine.scale(scale=1.0):
            z_cz = pyro.sample("z", Normal(zero_cz, torch.ones_like(zero_cz)).to_event(1))
        observation = SparseObservation(modality.likelihood, modality.decoder(z_cz, *covariates), library_c)
        with pyro.plate(f"cells_{name}", len(cells)), poutine.scale(scale=module.modality_weights[name]):
            pyro.sample("counts", observation, obs=rows)

    def guide() -> None:
        with pyro.plate("cells", len(cells)), poutine.scale(scale=1.0):
            pyro.sample("z", Normal(*encode()).to_event(1))

    def in_pyro() -> Tensor:
        with pyro.validation_enabled(False):
            return elbo.differentiable_loss(model, guide) / len(cells)

    return {"model": lambda: module(cells), "Pyro": in_pyro, "torch": in_torch}


def measure_overhead(bench: Bench, size: Sizes) -> list[Row]:
    """Compare the time of a forward and backward pass with that of plain Pyro and torch, in turns."""
    data = "balf"
    adata = ad.read_h5ad(bench.paths[data])
    torch.manual_seed(0)
    model = cd.VAE().fit(adata, max_epochs=1, progress=False)
    cells, module = Cells.from_anndata(adata, model.schema_), model.module_.train()
    minibatch = cells.select(torch.randperm(len(cells))[:128])
    parameters = list(module.parameters())
    losses = equivalent_losses(module, minibatch)
    values = []
    for loss in losses.values():
        torch.manual_seed(1)
        values.append(float(loss().detach()))
    if not np.allclose(values, values[0], rtol=1e-5):
        raise RuntimeError(f"the losses should be equal, but are {dict(zip(losses, values, strict=True))}")
    # The default argument binds `loss` to each lambda.
    steps = {name: lambda loss=loss: torch.autograd.grad(loss(), parameters) for name, loss in losses.items()}
    start = time.perf_counter()
    ms = milliseconds(steps, size.repeats)
    note(bench, "overhead", data, "default", 0, start, ms=ms)
    rows = []
    for other, aim in (("Pyro", "≤ 2 %"), ("torch", "")):
        over = ms["model"] / ms[other] - 1
        measure = f"forward and backward of 128 cells, `{data}`, over plain {other}"
        ours, comparison = f"{ms['model']:.2f} ms ({over:+.1%})", f"{ms[other]:.2f} ms"
        rows.append(Row(measure, ours, comparison, over, aim, over <= 0.02 if aim else None))
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
    parser.add_argument("--seeds", type=int, default=5, help="number of models of each kind for medians")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="the parts to measure (all)")
    parser.add_argument("--keep", type=Path, help="folder with runs of the peers, which are not repeated")
    parser.add_argument("--out", type=Path, help="JSON file for rows and measurements, written after each part")
    parser.add_argument("--quick", action="store_true", help="two epochs, once, to check that it runs")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if "labels" in options.only and options.peer_python is None:
        parser.error("--peer-python is needed for the part labels")

    torch.set_num_threads(options.threads)  # after the import of scanpy, since numba sets it for OpenMP
    size = sizes(options.seeds, options.quick)
    with tempfile.TemporaryDirectory() as scratch:
        paths = prepare(options.data, Path(scratch))
        adata = ad.read_h5ad(paths[SMALL])
        add_known_labels(adata, size.seeds)
        adata.write_h5ad(paths[SMALL])
        interpreter = dict.fromkeys(WORKERS, options.peer_python)
        bench = Bench(interpreter, WORKERS, paths, Path(scratch), options.threads, keep=options.keep)
        rows, failed = measure(PARTS, bench, size, options.only, options.out)
    about = conditions(bench.done, "peers", asdict(size), options.threads)
    print(markdown(rows, "others"))
    print(
        f"\n{options.threads} threads, {about['processor']}; celldial {about['celldial']}, torch "
        f"{about['torch']['celldial']}, scvi-tools {about['scvi-tools'] or 'not used'}; medians of {size.seeds} seeds."
    )
    if options.quick:
        print("QUICK: two epochs, so these numbers mean nothing.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Fitting a `VAE`: from an AnnData through training to the fitted state and the results that are written."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from celldial.data import cell_checks, labels
from celldial.data.cells import Cells, checksum
from celldial.data.in_memory import InMemorySource
from celldial.data.on_disk import OnDiskSource
from celldial.data.schema import Schema
from celldial.data.source import Source
from celldial.data.splits import train_validation_split
from celldial.estimator import validation
from celldial.estimator.label_transfer import fit_labels, hold_out, refit_labels
from celldial.estimator.prepare import EXCLUDED_FROM_TRAINING, build_module, prepare_training_data
from celldial.inference import posterior
from celldial.inference.fitted_model import is_file_path, read_cells, read_from
from celldial.inference.laplace import fit_laplace
from celldial.inference.posterior import LatentState
from celldial.inference.reference import summarize_reference
from celldial.io import results
from celldial.io.checkpoint import Checkpoint
from celldial.io.json_types import to_json
from celldial.model.elbo import parse_gradient
from celldial.model.module import Module
from celldial.periodic.markers import parse_periodic
from celldial.tl.clusters import find_clusters
from celldial.tl.phase import phase_table
from celldial.training import loop, memory
from celldial.training.circle_description import describe_circle
from celldial.training.hardware import Hardware, RunContext
from celldial.training.plan import TrainingPlan
from celldial.training.stages import choose_batch_size, choose_max_epochs, first_stages, further_stages
from celldial.utils.argument_types import check_types
from celldial.utils.prefetch import prefetch
from celldial.utils.random import isolate_rng
from celldial.utils.settings import Precision, override_settings
from celldial.utils.threads import limit_threads
from celldial.utils.torch_defaults import torch_defaults
from celldial.utils.validation import check_integer

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["FitOptions", "extend_history", "fit", "infer_source", "partial_fit", "write_results"]

# Factor by which the learning rate is lower if coordinates are learned by the score function.
SCORE_FUNCTION_LR_DIVISOR = 4
# Factor by which it is lower when training continues.
CONTINUED_LR_DIVISOR = 4
# Cells to initialize biases, scales and dispersions from.
MAX_CELLS_TO_START = 100_000
# Cells to measure the information about the loadings on: 1,000 cells of a modality that one cell in twenty has.
MAX_CELLS_TO_MEASURE = 20_000


@dataclass(frozen=True)
class FitOptions:
    """Arguments of `celldial.VAE.fit` except the cells; see there."""

    max_epochs: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    validation_size: float = 0.1
    validation_cells: Sequence[Any] | np.ndarray | None = None
    early_stopping: bool = True
    key_added: str = "X_celldial"
    include_periodic: bool = False
    progress: bool = True
    device: str | None = None
    precision: Precision | None = None
    compile: bool = False
    devices: int | None = None
    num_nodes: int | None = None
    strategy: str = "auto"
    checkpoint: str | Path | None = None
    checkpoint_minutes: float | None = None
    loggers: Sequence[Any] = ()


def fit(model: VAE, adata: Any, options: FitOptions) -> None:
    """Fit a model, set its fitted attributes, and write the results to the AnnData.

    Nothing is written, and no attribute changes, before everything has succeeded.
    """
    validation.check_parameters(model)
    parameters = model.get_params(deep=False)
    parameters["seed"] = int(model.seed)
    options = _checked(options)
    validation.check_hardware(
        options.device, options.precision, options.devices, options.num_nodes, options.checkpoint_minutes
    )
    process = None if model.periodic is None else parse_periodic(model.periodic)
    found = prepare_training_data(adata, parameters, process, options.validation_size, options.validation_cells)
    schema, source = found.schema, found.source
    if not is_file_path(adata):
        name = None if process is None else process.name
        results.check_fit(adata, options.key_added, name, found.clusters is not None)
    hardware = Hardware(
        options.device,
        options.precision,
        options.compile,
        options.devices,
        options.num_nodes,
        options.strategy,
        options.loggers,
    )
    plan = _plan(model, len(source.train_c), options, hardware.torch_device.type)
    run = RunContext(hardware, _checkpoint(model, schema, source, plan, hardware, options))
    target = found.target
    product = plan.batch_size * max(map(len, schema.feature_names.values())) * model.n_hidden
    with (
        override_settings(options.device, options.precision),
        isolate_rng(int(model.seed)),
        limit_threads(product),
        torch_defaults(),
    ):
        sample = source.training_sample(MAX_CELLS_TO_START)
        held = source.cells if isinstance(source, InMemorySource) else sample
        n_categories = sum(len(names) for names in schema.categories.values())
        sizes = (model.n_hidden, plan.batch_size)
        memory.check_memory(held, schema.likelihood, *sizes, hardware.torch_device, n_categories)
        module = build_module(model, schema, found.clusters)
        module.initialize(sample, len(source.train_c))
        del sample, held
        stages = first_stages(module, plan, int(model.seed), target)
        trained = hold_out(source, int(model.seed))
        history, source = loop.fit(module, trained, stages, int(model.seed), run)
        latent_state = infer_source(module, source, adata)
        reference = summarize_reference(module, source)
        classifier = fit_labels(module, found.source, trained, schema, found.clusters, int(model.seed))
        sample = source.training_sample(MAX_CELLS_TO_MEASURE)
        fit_laplace(module, sample, torch.arange(len(sample)), len(source.train_c) / len(sample))
        periodic = None
        if target is not None:
            assert isinstance(source, InMemorySource)
            periodic = describe_circle(module, schema, source, target, model.gene_symbols)
    model.parameters_, model.schema_, model.module_, model.history_ = to_json(parameters), schema, module, history
    model.periodic_ = periodic
    model.clusters_, model.label_classifier_, model.reference_ = found.clusters, classifier, reference
    model.library_size_quantiles_ = _library_size_quantiles(found.cells, source.train_c)
    model.fingerprint_ = checksum(module.state_dict().values())
    if latent_state is not None:
        write_results(model, adata, latent_state, options)


def partial_fit(model: VAE, adata: Any, options: FitOptions, layer: str | None = None) -> None:
    """Continue to fit a fitted model with the counts of a layer, and write the results to the AnnData."""
    validation.check_parameters(model)
    check_integer("max_epochs", options.max_epochs)
    options = _checked(options)
    name = None if model.periodic_ is None else model.periodic_["name"]
    results.check_fit(adata, options.key_added, name, model.clusters_ is not None)
    table, cells = read_cells(read_from(model, layer), adata)
    if model.labels_key is not None and model.labels_key in table.obs:
        labels.warn_unknown_spellings(table.obs, model.labels_key, model.unknown_label)
    cells = replace(cells, label_c=labels.encode_labels(table.obs, model.clusters_))
    cell_checks.check_has_counts(cells)
    cell_checks.warn_empty_cells(table.obs_names.__getitem__, cells, EXCLUDED_FROM_TRAINING)
    train_c, validation_c = train_validation_split(
        table, cells, options.validation_size, options.validation_cells, int(model.seed)
    )
    plan = _plan(model, len(train_c), options)
    plan = replace(plan, learning_rate=plan.learning_rate / CONTINUED_LR_DIVISOR, kl_warmup=False)
    n_epochs_before = len(model.history_["seconds"])
    seed = int(model.seed) + n_epochs_before
    product = plan.batch_size * max(map(len, model.schema_.feature_names.values())) * model.n_hidden
    with isolate_rng(seed), limit_threads(product), torch_defaults():
        # A copy, so that a failure leaves the fitted model as it was.
        module = copy.deepcopy(model.module_)
        for name, modality in module.by_modality():
            # Weight decay would erase a modality that no training cell has: nothing in the loss counteracts it.
            modality.requires_grad_(bool(cells.mask_with(name)[train_c].any()))
        known = InMemorySource(cells, train_c, validation_c)
        trained = hold_out(known, seed)
        history, _ = loop.fit(module, trained, further_stages(module, plan), seed)
        latent_state = posterior.infer(module, cells)
        reference = summarize_reference(module, known)
        classifier = refit_labels(model, module, known, trained, seed)
        fit_laplace(module, cells, train_c)
        module.requires_grad_(True)
    model.module_, model.label_classifier_, model.reference_ = module, classifier, reference
    model.history_ = extend_history(model.history_, history)
    model.fingerprint_ = checksum(module.state_dict().values())
    write_results(model, adata, latent_state, options)


def _checked(options: FitOptions) -> FitOptions:
    """Return options with integers of Python, which other libraries require; raise if one of them is invalid."""
    check_types(FitOptions, vars(options))
    validation.check_options(options.max_epochs, options.batch_size, options.key_added)
    validation.check_loggers(options.loggers)
    max_epochs, batch_size = (
        value if value == "auto" else int(value) for value in (options.max_epochs, options.batch_size)
    )
    return replace(options, max_epochs=max_epochs, batch_size=batch_size)


def _plan(model: VAE, n_train: int, options: FitOptions, device: str = "cpu") -> TrainingPlan:
    """Return the training plan; the learning rate is lower if gradients are noisy, so that the encoder stays stable."""
    has_clusters = model.n_clusters is not None or model.labels_key is not None
    is_scored = parse_gradient(model.gradient, has_clusters).z != "reparameterized"
    max_epochs, batch_size = options.max_epochs, options.batch_size
    return TrainingPlan(
        max_epochs=choose_max_epochs(n_train) if max_epochs == "auto" else max_epochs,
        batch_size=choose_batch_size(n_train, device) if batch_size == "auto" else batch_size,
        learning_rate=model.learning_rate / (SCORE_FUNCTION_LR_DIVISOR if is_scored else 1),
        early_stopping=options.early_stopping,
        progress=options.progress,
    )


def _checkpoint(
    model: VAE, schema: Schema, source: Source, plan: TrainingPlan, hardware: Hardware, options: FitOptions
) -> Checkpoint | None:
    """Return the checkpoint of a training: its folder, and the settings that a resumed training must share."""
    if options.checkpoint is None:
        return None
    features = json.dumps(schema.to_dict(), sort_keys=True)
    identity = {
        "version": importlib.metadata.version("celldial"),
        "parameters": to_json(model.get_params(deep=False)),
        "plan": {name: value for name, value in asdict(plan).items() if name != "progress"},
        "checksum of features and covariates": zlib.crc32(features.encode()),
        "checksum of cells": source.fingerprint,
        "hardware": hardware.numeric_settings,
    }
    return Checkpoint(Path(options.checkpoint).expanduser(), identity, options.checkpoint_minutes)


def infer_source(module: Module, source: InMemorySource | OnDiskSource, adata: Any) -> LatentState | None:
    """Infer the latent states of all cells, including those not trained on; None if there is no AnnData to write to."""
    if isinstance(source, InMemorySource):
        return posterior.infer(module, source.cells)
    if is_file_path(adata):
        return None
    blocks = (Cells.from_anndata(block, source.schema) for block in prefetch(source.dataset.blocks()))
    return posterior.concat_states([posterior.infer(module, block) for block in blocks])


def _library_size_quantiles(cells: Cells, train_c: torch.Tensor) -> dict[str, np.ndarray]:
    """Return 101 evenly spaced quantiles of the library sizes of the training cells that have each modality."""
    totals = {modality: library_size_c[train_c].numpy() for modality, library_size_c in cells.library_size.items()}
    return {modality: np.quantile(total_c[total_c > 0], np.linspace(0, 1, 101)) for modality, total_c in totals.items()}


def extend_history(before: Mapping[str, list[float]], new: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Append the history of a continued training; values that one of the two lacks are NaN."""
    n_before = len(before["seconds"])
    missing_before, missing_new = [math.nan] * n_before, [math.nan] * len(new["seconds"])
    history = {name: [*before.get(name, missing_before), *new.get(name, missing_new)] for name in {**before, **new}}
    history["kept"][:n_before] = [0.0] * n_before
    return history


def write_results(model: VAE, adata: Any, latent_state: LatentState, options: FitOptions) -> None:
    """Write embedding, record, phases and clusters to the AnnData."""
    record = {
        "parameters": model.parameters_,
        "schema": model.schema_.to_dict(),
        "history": {name: np.array(values) for name, values in model.history_.items()},
    }
    embedding_cz = latent_state.embedding_with_circle if options.include_periodic else latent_state.embedding
    results.write_fit(adata, model.fingerprint_, embedding_cz, options.key_added, record)
    if model.periodic_ is not None:
        table = phase_table(latent_state, model.periodic_, adata.obs_names)
        results.write_phase(adata, model.fingerprint_, table, model.periodic_)
    if model.clusters_ is not None:
        found = find_clusters(model, latent_state, adata.obs)
        results.write_clusters(adata, model.fingerprint_, *found)

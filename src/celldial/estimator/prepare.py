"""Preparation for `fit`: cells that are read, checked and split, and a module with initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data import cell_checks, labels, peak_checks
from celldial.data.cell_checks import check_modalities_connected
from celldial.data.cells import Cells
from celldial.data.counts import is_on_disk
from celldial.data.files import OnDiskDataset
from celldial.data.in_memory import InMemorySource
from celldial.data.modalities import DENSE_TYPES, modality_type, obsm_key
from celldial.data.mudata import mudata_to_anndata
from celldial.data.on_disk import OnDiskSource
from celldial.data.schema import Schema
from celldial.data.splits import train_validation_split
from celldial.io import results
from celldial.model.config import ModuleConfig
from celldial.model.elbo import parse_gradient
from celldial.model.likelihoods import BINARY_LIKELIHOODS, LIKELIHOODS
from celldial.model.module import Module
from celldial.periodic.markers import PeriodicProcess, find_markers, find_reference_genes, parse_periodic
from celldial.training.periodic import PeriodicTarget
from celldial.utils.messages import get_column

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["EXCLUDED_FROM_TRAINING", "TrainingData", "build_module", "find_target", "prepare_training_data"]

# Parameters that describe the cells; see `Schema.from_anndata`.
SCHEMA_PARAMETERS = (
    *("layer", "batch_key", "categorical_covariate_keys", "continuous_covariate_keys", "basis"),
    *("likelihood", "modalities", "modality_key", "presence_keys"),
)
RUN_CELLS = 50  # neighboring cells that are read together to check counts
EXCLUDED_FROM_TRAINING = "they are not used for training, and their posterior is the prior"


@dataclass(frozen=True)
class TrainingData:
    """Cells that are ready for training.

    Parameters
    ----------
    schema
        Modalities, features and covariates of the cells.
    cells
        All cells; of cells in files only library sizes and covariates.
    source
        Source that training reads the cells from.
    clusters
        Description of the clusters to fit, if any.
    target
        The periodic process to infer, with its genes among the features; None if there is none.
    """

    schema: Schema
    cells: Cells
    source: InMemorySource | OnDiskSource
    clusters: dict[str, Any] | None
    target: PeriodicTarget | None = None


def prepare_training_data(
    data: Any,
    parameters: Mapping[str, Any],
    process: PeriodicProcess | None,
    validation_size: float,
    validation_cells: Sequence[Any] | np.ndarray | None,
) -> TrainingData:
    """Read and check the cells to fit.

    Parameters
    ----------
    data
        The cells, as `VAE.fit` accepts them.
    parameters
        Parameters of the `VAE`.
    process
        The periodic process to fit, if any.
    validation_size, validation_cells
        As in `VAE.fit`.

    Raises
    ------
    ValueError, TypeError, KeyError, OSError
        As `VAE.fit`.
    """
    options = {name: parameters[name] for name in SCHEMA_PARAMETERS} | {"binary_likelihoods": BINARY_LIKELIHOODS}
    if is_on_disk(data):
        return _prepare_from_files(data, parameters, options, process, validation_size, validation_cells)
    table = data
    if not isinstance(data, AnnData):
        layer, modality_key = parameters["layer"], parameters["modality_key"]
        table = mudata_to_anndata(data, layer=layer, modality_key=modality_key, obs_keys=_obs_keys(parameters))
    schema = Schema.from_anndata(table, **options)
    cell_checks.check_modality_weights(parameters["modality_weights"], schema)
    check_dispersion(parameters["dispersion"], schema.likelihood)
    cells = Cells.from_anndata(table, schema)
    clusters = describe_clusters(table.obs, parameters)
    if clusters is not None:
        cells = replace(cells, label_c=labels.encode_labels(table.obs, clusters))
    cell_checks.check_min_size(schema, cells, parameters["n_latent"])
    cell_checks.check_n_clusters(clusters, cells)
    check_modalities_connected(cells)
    cell_checks.warn_empty_cells(table.obs_names.__getitem__, cells, EXCLUDED_FROM_TRAINING)
    cell_checks.warn_small_batches(schema, table.obs, cells.empty_c)
    _warn_peaks(table.n_obs, table.__getitem__, schema, parameters)
    train_c, validation_c = train_validation_split(table, cells, validation_size, validation_cells, parameters["seed"])
    check_modalities_connected(cells, train_c)
    target = None if process is None else find_target(table, schema, cells, process, parameters["gene_symbols"])
    return TrainingData(schema, cells, InMemorySource(cells, train_c, validation_c), clusters, target)


def _prepare_from_files(
    data: Any,
    parameters: Mapping[str, Any],
    options: dict[str, Any],
    process: PeriodicProcess | None,
    validation_size: float,
    validation_cells: Sequence[Any] | np.ndarray | None,
) -> TrainingData:
    """Read and check cells in files; see `prepare_training_data`."""
    if process is not None:
        raise ValueError(
            "a periodic coordinate can only be fitted to cells in memory: read them with "
            "adata = anndata.read_h5ad(path), or read a part of them, and fit that"
        )
    in_obsm = [key for key in map(obsm_key, (parameters["modalities"] or {}).values()) if key is not None]
    obs_keys = _obs_keys(parameters)
    dataset = OnDiskDataset.open(data, layer=parameters["layer"], obs_keys=obs_keys, obsm_keys=in_obsm)
    schema = dataset.schema(**options)
    cell_checks.check_modality_weights(parameters["modality_weights"], schema)
    check_dispersion(parameters["dispersion"], schema.likelihood)
    clusters = describe_clusters(dataset.obs, parameters)
    source = OnDiskSource.scan(
        dataset,
        schema,
        validation_size=validation_size,
        validation_cells=validation_cells,
        seed=parameters["seed"],
        encode_labels=lambda obs: labels.encode_labels(obs, clusters),
    )
    cell_checks.check_min_size(schema, source.summary, parameters["n_latent"])
    cell_checks.check_n_clusters(clusters, source.summary)
    check_modalities_connected(source.summary)
    check_modalities_connected(source.summary, source.train_c)

    def name_of(cell: int) -> str:
        return str(dataset.read(np.array([cell])).obs_names[0])

    cell_checks.warn_empty_cells(name_of, source.summary, EXCLUDED_FROM_TRAINING)
    cell_checks.warn_small_batches(schema, dataset.obs, source.summary.empty_c)
    _warn_peaks(dataset.n_cells, dataset.read, schema, parameters)
    return TrainingData(schema, source.summary, source, clusters)


def _obs_keys(parameters: Mapping[str, Any]) -> list[str]:
    """Return the columns of ``obs`` that parameters of `VAE` name."""
    keys = [parameters[name] for name in ("batch_key", "labels_key")]
    keys += [*parameters["categorical_covariate_keys"], *parameters["continuous_covariate_keys"]]
    keys += (parameters["presence_keys"] or {}).values()
    return [key for key in keys if key is not None]


def _warn_peaks(
    n_cells: int, read: Callable[[np.ndarray], AnnData], schema: Schema, parameters: Mapping[str, Any]
) -> None:
    """Warn of counts of peaks that are read as 1, and of peaks that are read as genes."""
    peak_checks.warn_interval_names(schema, parameters["modality_key"])
    if any(schema.binary.values()):
        # Evenly spaced runs of neighboring cells: files are read in runs, and samples often follow each other.
        n_runs = max(1, peak_checks.MAX_CHECKED_CELLS // RUN_CELLS)
        run_c = np.arange(n_cells) // RUN_CELLS
        chosen_c = np.flatnonzero(np.isin(run_c, np.linspace(0, run_c[-1], n_runs, dtype=int)))
        peak_checks.warn_counts_read_as_one(read(chosen_c), schema, parameters["likelihood"])


def describe_clusters(obs: pd.DataFrame, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the description of the clusters to fit, or None."""
    key, n_clusters = parameters["labels_key"], parameters["n_clusters"]
    if key is None:
        return None if n_clusters is None else {"names": labels.name_clusters([], n_clusters)}
    if key == results.CLUSTER:
        raise ValueError(f"labels_key is {key!r}, the column that clusters are written to: copy it under another name")
    known = labels.find_labels(obs, key, parameters["unknown_label"])
    return {
        "names": labels.name_clusters(known, n_clusters),
        "n_labels": len(known),
        "labels_key": key,
        "unknown_label": parameters["unknown_label"],
    }


def find_target(
    adata: AnnData, schema: Schema, cells: Cells, process: PeriodicProcess, gene_symbols: str | None
) -> PeriodicTarget:
    """Find the genes of a periodic process among the features of its modality, which is RNA if there is any.

    Parameters
    ----------
    adata
        AnnData whose ``var`` has the column `gene_symbols`, if one is given.
    schema, cells
        Schema and counts of the same cells.
    process
        The periodic process; nothing is looked up if it has no markers.
    gene_symbols
        Column of ``adata.var`` with the symbols of features; by default their names are used.
    """
    modality = "rna" if "rna" in schema.modalities else schema.modalities[0]
    if not process.markers:
        return PeriodicTarget(process, {}, modality)
    symbols = list(schema.feature_names[modality])
    if gene_symbols is not None:
        symbols = list(get_column(adata.var, gene_symbols, "gene_symbols").astype(str).reindex(symbols))
    counts = cells.counts[modality]
    counted_f = counts.sum_columns(counts.value_n).numpy() > 0
    markers = find_markers(process, symbols, counted_f)
    return PeriodicTarget(process, markers, modality, *find_reference_genes(process, symbols, counted_f))


def check_dispersion(dispersion: str, likelihood: Mapping[str, str]) -> None:
    """Raise if dispersions are to depend on the batch, but no modality has such dispersions."""
    if dispersion == "feature-batch" and not any(LIKELIHOODS[name].dispersion_by_batch for name in likelihood.values()):
        names = ", ".join(f"{name!r} of {modality!r}" for modality, name in likelihood.items())
        raise ValueError(
            f"dispersion is 'feature-batch', for negative binomial counts only, but the likelihood is {names}: "
            "leave dispersion out, or choose likelihood='negative_binomial'"
        )


def build_module(model: VAE, schema: Schema, clusters: Mapping[str, Any] | None) -> Module:
    """Return the module for the parameters of a model and the schema of its cells, with initial weights."""
    config = ModuleConfig(
        n_features={modality: len(names) for modality, names in schema.feature_names.items()},
        likelihood=schema.likelihood,
        n_categories=[len(names) for names in schema.categories.values()],
        n_continuous=schema.n_continuous,
        n_latent=model.n_latent,
        n_hidden=model.n_hidden,
        n_layers=model.n_layers,
        dropout_rate=model.dropout_rate,
        fusion=model.fusion,
        modality_weights=model.modality_weights,
        periodic=model.periodic is not None and parse_periodic(model.periodic) is not None,
        decoder=model.decoder,
        bayesian_loadings=model.bayesian_loadings,
        latent=model.latent,
        prior=model.prior,
        n_components=model.n_components,
        posterior=model.posterior,
        n_clusters=None if clusters is None else len(clusters["names"]),
        n_labels=0 if clusters is None else clusters.get("n_labels", 0),
        gradient=parse_gradient(model.gradient, clusters is not None),
        baseline=model.baseline,
        straight_through=model.straight_through,
        dispersion=model.dispersion,
        integration=0.0 if schema.batch_key is None else model.integration,
        dense=[name for name, source in schema.sources.items() if modality_type(name, source) in DENSE_TYPES],
    )
    return Module(config)

"""`map_query`: cells of categories that `fit` did not see, added to a fitted model without changing the reference."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from celldial.data import cell_checks
from celldial.data.cells import Cells, checksum
from celldial.data.counts import is_on_disk
from celldial.data.files import OnDiskDataset
from celldial.data.in_memory import InMemorySource
from celldial.data.modalities import obsm_key
from celldial.data.on_disk import OnDiskSource
from celldial.data.schema import Schema
from celldial.estimator import validation
from celldial.estimator.fitting import FitOptions, extend_history, infer_source, write_results
from celldial.inference.fitted_model import FittedModel, is_file_path, read_from, to_anndata
from celldial.inference.label_classifier import LabelClassifier
from celldial.inference.new_categories import initialize_feature_effects
from celldial.inference.posterior import LatentState
from celldial.io import results
from celldial.model.extension import extend_categories
from celldial.model.module import Module
from celldial.tl.mapping_quality import find_quality
from celldial.training import loop
from celldial.training.plan import TrainingPlan
from celldial.training.stages import mapping_stages
from celldial.training.trainable import TrainableRows
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import format_names
from celldial.utils.random import isolate_rng

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["map_query"]

# Number of new cells from which the effects on features start.
MAX_CELLS_TO_START = 2000

logger = logging.getLogger("celldial")

EXCLUDED_FROM_MAPPING = "nothing is learned from them, and their posterior is the prior"
# Factor by which the peak learning rate is higher than in `fit`: few parameters are learned, from few steps.
LR_FACTOR = 4.0
# Steps of the optimizer, and cells in a minibatch.
N_STEPS, BATCH_SIZE, MIN_BATCH_SIZE = 80, 128, 32


@validate_types
def map_query(
    model: VAE,
    adata: Any,
    *,
    max_epochs: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    key_added: str = "X_celldial",
    include_periodic: bool = False,
    layer: str | None = None,
    progress: bool = True,
) -> VAE:
    """Add cells of new batches to a fitted model, and write their embedding to the AnnData.

    The model learns the effects of the new categories of its categorical covariates, such as new donors or
    technologies, and nothing else (architecture surgery [1]_). All other weights stay as they are, so the embedding of
    the cells of `fit` is the same, bit by bit. Nothing is learned about known categories. If all categories are known,
    the weights do not change, and the results are those of `transform`.

    Parameters
    ----------
    model
        A fitted `VAE`, which stays as it is; omitted in the method call ``model.map_query(adata)``.
    adata
        The new cells, with raw counts, at least half of the features of the model, and its covariates; or files of
        cells as in `fit`. They may lack modalities.
    max_epochs
        Passes over the cells; ``"auto"`` chooses by the number of cells.
    batch_size
        Cells in a minibatch; ``"auto"`` is 128, or less for few cells.
    key_added
        Key of ``adata.obsm`` for the embedding.
    include_periodic
        As in `fit`.
    layer
        As in `transform`.
    progress
        Whether to show a progress bar.

    Returns
    -------
    VAE
        A new model with the known and the new categories. It is saved and loaded like any other. `map_query` writes the
        same results as `fit`, recorded under this model: the embedding to ``adata.obsm[key_added]``; with labels, the
        results of `clusters`; with a periodic coordinate, those of `phase`. It also writes those of `mapping_quality`:
        how similar each cell is to the cells of `fit`. Nothing is written to files.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `fit`; also if `adata` has too few of the model's features, or lacks a covariate. The AnnData is left
        unchanged.

    References
    ----------
    .. [1] Lotfollahi et al. (2022), Mapping single-cell data to reference atlases by transfer learning,
       doi:10.1038/s41587-021-01001-7.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> adata.obs["donor"] = ["d1", "d2"] * 300 + ["d3"] * 100
    >>> model = celldial.VAE(batch_key="donor").fit(adata[:600].copy(), max_epochs=2, progress=False)
    >>> query = adata[600:].copy()
    >>> mapped = model.map_query(query, progress=False)
    >>> mapped.schema_.categories["donor"]
    ('d1', 'd2', 'd3')
    >>> query.obsm["X_celldial"].shape
    (100, 10)
    >>> bool((mapped.transform(adata[:600]) == model.transform(adata[:600])).all())
    True
    """
    reader = read_from(model, layer)
    options = FitOptions(
        max_epochs=max_epochs,
        batch_size=batch_size,
        key_added=key_added,
        include_periodic=include_periodic,
        progress=progress,
    )
    validation.check_options(max_epochs, batch_size, key_added)
    query = read_query(reader, adata)
    if not is_file_path(adata):
        name = None if model.periodic_ is None else model.periodic_["name"]
        results.check_fit(adata, key_added, name, model.clusters_ is not None)
        results.check_mapping(adata)
    with isolate_rng(model.seed):
        module, history = learn_categories(model, query, options)
        latent_state = infer_source(module, query.source, adata)
    mapped = with_module(model, replace(query.schema, layer=model.schema_.layer), module, history)
    if latent_state is not None:
        table = to_anndata(model, adata)
        mapped.label_classifier_ = add_batches(model, query.schema, latent_state, table.obs)
        quality = None if model.reference_ is None else find_quality(read_from(mapped, layer), adata)
        write_results(mapped, adata, latent_state, options)
        if quality is not None:
            results.write_mapping(adata, mapped.fingerprint_, quality)
    return mapped


def add_batches(model: VAE, schema: Schema, latent_state: LatentState, obs: pd.DataFrame) -> LabelClassifier | None:
    """Return the label classifier of a model with the scales of distances in new batches."""
    classifier, key = model.label_classifier_, schema.batch_key
    if classifier is None or key is None:
        return classifier
    new = schema.categories[key][len(model.schema_.categories[key]) :]
    return classifier.add_batches(latent_state.mean, obs[key].astype(str).to_numpy(), new)


@dataclass(frozen=True)
class Query:
    """New cells that are ready for training.

    Parameters
    ----------
    schema
        The schema of the model, with the new categories.
    source
        Source of the cells; those with counts in a new category are the training cells.
    """

    schema: Schema
    source: InMemorySource | OnDiskSource


def read_query(model: FittedModel, adata: Any) -> Query:
    """Read and check new cells, and find their new categories."""
    if is_on_disk(adata):
        return _read_query_from_files(model, adata)
    table = to_anndata(model, adata)
    schema = model.schema_.extend(table.obs)
    cells = Cells.from_anndata(table, schema)
    cell_checks.check_has_counts(cells)
    cell_checks.warn_empty_cells(table.obs_names.__getitem__, cells, EXCLUDED_FROM_MAPPING)
    train_c = torch.from_numpy(_is_new(model, table.obs)) & ~cells.empty_c
    return Query(schema, InMemorySource(cells, train_c.nonzero().squeeze(1), torch.zeros(0, dtype=torch.int64)))


def _read_query_from_files(model: FittedModel, files: Any) -> Query:
    """Read and check new cells in files; see `read_query`."""
    if model.periodic_ is not None:
        raise ValueError(
            "cells can only be mapped to a model with a periodic coordinate from memory: read them with "
            "adata = anndata.read_h5ad(path), and map that"
        )
    known = model.schema_
    obs_keys = [*known.categories, *known.continuous, *known.presence_keys.values()]
    obsm_keys = [key for key in map(obsm_key, known.sources.values()) if key is not None]
    dataset = OnDiskDataset.open(files, layer=known.layer, obs_keys=obs_keys, obsm_keys=obsm_keys, strict=False)
    schema = known.extend(dataset.obs)
    source = OnDiskSource.scan(dataset, schema, validation_size=0.0, seed=model.seed)
    cell_checks.check_has_counts(source.summary)
    is_new_c = torch.from_numpy(_is_new(model, dataset.obs))
    return Query(schema, replace(source, train_c=source.train_c[is_new_c[source.train_c]]))


def _is_new(model: FittedModel, obs: pd.DataFrame) -> np.ndarray:
    """Return a mask of the cells in a category that the model does not know."""
    is_new_c = np.zeros(len(obs), dtype=bool)
    for key, known in model.schema_.categories.items():
        is_new_c |= ~obs[key].astype(str).isin(known).to_numpy()
    return is_new_c


def learn_categories(model: VAE, query: Query, options: FitOptions) -> tuple[Module, Mapping[str, list[float]]]:
    """Return a module with the effects of the new categories, and the history of the training."""
    n_categories = [len(names) for names in query.schema.categories.values()]
    module, first_row = extend_categories(model.module_, n_categories)
    for key, names in query.schema.categories.items():
        new = names[len(model.schema_.categories[key]) :]
        if new:
            logger.info("learning %d new categories of %r: %s", len(new), key, format_names(new))
    n_train = len(query.source.train_c)
    if not first_row or n_train == 0:
        logger.info("all categories are known: nothing to learn")
        return module, {}
    cells = query.source.cells if isinstance(query.source, InMemorySource) else query.source.summary
    for name in module.modalities:
        # The effects on a modality that no new cell has stay those of the average category.
        if not bool(cells.mask_with(name)[query.source.train_c].any()):
            first_row = {key: row for key, row in first_row.items() if not key.startswith(f"modalities.{name}.")}
    batch_size = choose_batch_size(n_train) if options.batch_size == "auto" else options.batch_size
    plan = TrainingPlan(
        max_epochs=math.ceil(N_STEPS * batch_size / n_train) if options.max_epochs == "auto" else options.max_epochs,
        batch_size=batch_size,
        learning_rate=LR_FACTOR * model.learning_rate,
        kl_warmup=False,
        early_stopping=False,
        progress=options.progress,
        trainable=TrainableRows(first_row),
    )
    scales = {name: part.clone() for name, part in module.named_buffers() if name.endswith("feature_effects.scale_k")}
    initialize_feature_effects(module, query.source.training_sample(MAX_CELLS_TO_START), first_row)
    history, _ = loop.fit(module, query.source, mapping_stages(module, plan), model.seed)
    for name, scale_k in scales.items():  # wider during this training only
        module.get_buffer(name).copy_(scale_k)
    return module, history


def choose_batch_size(n_cells: int) -> int:
    """Return the default size of a minibatch: 128, or less if an epoch would have fewer than four steps."""
    return int(min(max(2 ** round(math.log2(n_cells / 4)), MIN_BATCH_SIZE), BATCH_SIZE))


def with_module(model: VAE, schema: Schema, module: Module, history: Mapping[str, list[float]]) -> VAE:
    """Return a fitted model with another schema and module; everything else is that of `model`."""
    mapped = type(model)(**model.get_params(deep=False))
    for name in ("parameters_", "library_size_quantiles_", "periodic_", "clusters_", "label_classifier_", "reference_"):
        setattr(mapped, name, copy.deepcopy(getattr(model, name)))
    mapped.schema_, mapped.module_ = schema, module
    mapped.history_ = extend_history(model.history_, history) if history else copy.deepcopy(model.history_)
    mapped.fingerprint_ = checksum(module.state_dict().values())
    return mapped

"""Labels in `fit`: which known labels are held out from training, and the classifier that they calibrate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from celldial.data import labels
from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.data.on_disk import OnDiskSource
from celldial.data.schema import Schema
from celldial.data.source import Source
from celldial.inference import posterior
from celldial.inference.label_classifier import LabelClassifier, fit_label_classifier
from celldial.model.module import Module
from celldial.tl.clusters import MIN_PROBABILITY
from celldial.utils.warnings import warn

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["fit_labels", "hold_out", "refit_labels"]

# Largest number of training cells that the classifier is fitted to.
MAX_CELLS = 100_000


def hold_out(source: InMemorySource | OnDiskSource, seed: int) -> InMemorySource | OnDiskSource:
    """Return the source to train on, in which a fraction of the known labels is unknown."""
    if source.label_c is None:
        return source
    return source.with_labels(labels.hold_out_labels(source.label_c, source.train_c, seed))


def fit_labels(
    module: Module,
    known: InMemorySource | OnDiskSource,
    trained: Source,
    schema: Schema,
    clusters: Mapping[str, Any] | None,
    seed: int,
) -> LabelClassifier | None:
    """Return the classifier of a trained module; None if no training cell has a label.

    Parameters
    ----------
    module
        The trained module.
    known, trained
        Sources of the same cells, with all known labels and with those that were used in training.
    schema, clusters
        Covariates and clusters of the model.
    seed
        Seed of the choice of cells.
    """
    if known.label_c is None or clusters is None:
        return None
    cells = known.training_sample(MAX_CELLS)
    assert cells.label_c is not None
    label_c, trained_c = cells.label_c.numpy(), trained.training_sample(MAX_CELLS).label_c
    assert trained_c is not None
    if not (label_c >= 0).any():
        return None
    z_cz = posterior.infer(module, cells).mean
    held_out_c = (label_c >= 0) & (trained_c.numpy() < 0)
    if not held_out_c.any():
        warn(
            f"the probabilities of the labels in adata.obs[{clusters['labels_key']!r}] are not calibrated, and "
            "cells of other types are not recognized: no label has at least "
            f"{labels.MIN_CELLS_TO_HOLD_OUT} training cells",
        )
    batch_c = batch_names(cells, schema)
    return fit_label_classifier(z_cz, label_c, held_out_c, clusters["n_labels"], batch_c, seed)


def refit_labels(
    model: VAE, module: Module, known: InMemorySource, trained: Source, seed: int
) -> LabelClassifier | None:
    """Return the classifier of a module that was trained further.

    Without labels, those that the model inferred before take their place; the calibration is that of before.

    Parameters
    ----------
    model
        The fitted model as it was.
    module
        The module after the training.
    known, trained, seed
        As in `fit_labels`.
    """
    before = model.label_classifier_
    if known.label_c is not None and bool((known.label_c[known.train_c] >= 0).any()):
        return fit_labels(module, known, trained, model.schema_, model.clusters_, seed)
    if before is None:
        return None
    found = before.classify(posterior.infer(model.module_, known.cells).mean, batch_names(known.cells, model.schema_))
    is_sure_c = (found.probability_ck.max(1) >= MIN_PROBABILITY) & (found.distance_c <= 1)
    inferred = known.with_labels(torch.from_numpy(np.where(is_sure_c, found.probability_ck.argmax(1), -1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the labels are inferred ones
        after = fit_labels(module, inferred, hold_out(inferred, seed), model.schema_, model.clusters_, seed)
    if after is None:
        return before
    return replace(after, temperature=before.temperature, calibration_error=None, n_held_out=0)


def batch_names(cells: Cells, schema: Schema) -> np.ndarray | None:
    """Return the name of the batch of each cell; None if the model has no batch key."""
    if schema.batch_key is None:
        return None
    column = list(schema.categories).index(schema.batch_key)
    names = np.array([str(name) for name in schema.categories[schema.batch_key]], dtype=object)
    found: np.ndarray = names[cells.category_ck[:, column].to(torch.device("cpu")).numpy()]
    return found

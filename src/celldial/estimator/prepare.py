"""Cells as `fit` finds them: looked at and checked, in memory or in files, before anything is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data import checks, labels
from celldial.data.cells import Cells
from celldial.data.checks import check_linked
from celldial.data.files import Atlas, is_stored
from celldial.data.in_memory import Resident
from celldial.data.modalities import obsm_key
from celldial.data.mudata import joined
from celldial.data.on_disk import Stream
from celldial.data.schema import Schema
from celldial.data.splits import choose_cells
from celldial.io import results
from celldial.periodic.markers import Rhythm, find_markers
from celldial.utils.messages import find_column

__all__ = ["NO_PART", "ToFit", "look", "marker_columns"]

# The parameters that say what cells have; see `Schema.from_anndata`.
OF_SCHEMA = (
    *("layer", "batch_key", "categorical_covariate_keys", "continuous_covariate_keys"),
    *("likelihood", "modalities", "modality_key", "presence_keys"),
)
NO_PART = "they take no part in training and get the prior as their posterior"


@dataclass(frozen=True)
class ToFit:
    """Cells to fit.

    Parameters
    ----------
    schema
        What they have.
    cells
        All of them; where they are in files, without their counts.
    source
        Where training gets them from.
    clusters
        The clusters that there are to be, if any.
    markers, modality
        Phase to the columns of its markers, and of what; see `celldial.estimator.prepare.marker_columns`.
    """

    schema: Schema
    cells: Cells
    source: Resident | Stream
    clusters: dict[str, Any] | None
    markers: dict[str, np.ndarray] = field(default_factory=dict)
    modality: str = ""


def look(
    data: Any,
    parameters: Mapping[str, Any],
    rhythm: Rhythm | None,
    validation_size: float,
    validation_cells: Sequence[Any] | np.ndarray | None,
) -> ToFit:
    """Look at the cells to fit, and check them.

    Parameters
    ----------
    data
        What `VAE.fit` takes.
    parameters
        Those of the `VAE`.
    rhythm
        What to look for as a periodic coordinate, if anything.
    validation_size, validation_cells
        As in `VAE.fit`.

    Raises
    ------
    ValueError, TypeError, KeyError, OSError
        As `VAE.fit`.
    """
    options = {name: parameters[name] for name in OF_SCHEMA}
    if is_stored(data):
        return _look_into_files(data, parameters, options, rhythm, validation_size, validation_cells)
    table = joined(data, layer=parameters["layer"], modality_key=parameters["modality_key"])
    schema = Schema.from_anndata(table, **options)
    checks.check_modality_weights(parameters["modality_weights"], schema)
    results.check_column_clash(data, None if rhythm is None else rhythm.name)
    cells = Cells.from_anndata(table, schema)
    clusters = describe_clusters(table.obs, parameters)
    cells = replace(cells, label_c=labels.codes(table.obs, clusters))
    checks.check_enough(schema, cells, parameters["n_latent"])
    checks.check_clusters(clusters, cells)
    check_linked(cells)
    checks.warn_of_empty(table.obs_names.__getitem__, cells, NO_PART, stacklevel=4)
    train_c, validation_c = choose_cells(table, cells, validation_size, validation_cells, parameters["seed"])
    check_linked(cells, train_c)
    found = marker_columns(table, schema, cells, rhythm, parameters["gene_symbols"])
    return ToFit(schema, cells, Resident(cells, train_c, validation_c), clusters, *found)


def _look_into_files(
    data: Any,
    parameters: Mapping[str, Any],
    options: dict[str, Any],
    rhythm: Rhythm | None,
    validation_size: float,
    validation_cells: Sequence[Any] | np.ndarray | None,
) -> ToFit:
    if rhythm is not None:
        raise ValueError(
            "a periodic coordinate is found by looking at all cells again and again, which takes memory: read them "
            "(adata = anndata.read_h5ad(path)), or a part of them, and fit that"
        )
    keys = [parameters[name] for name in ("batch_key", "labels_key")]
    keys += [*parameters["categorical_covariate_keys"], *parameters["continuous_covariate_keys"]]
    keys += (parameters["presence_keys"] or {}).values()
    in_obsm = [key for key in map(obsm_key, (parameters["modalities"] or {}).values()) if key is not None]
    obs_keys = [key for key in keys if key is not None]
    atlas = Atlas.open(data, layer=parameters["layer"], obs_keys=obs_keys, obsm_keys=in_obsm)
    schema = atlas.schema(**options)
    checks.check_modality_weights(parameters["modality_weights"], schema)
    clusters = describe_clusters(atlas.obs, parameters)
    stream = Stream.survey(
        atlas,
        schema,
        validation_size=validation_size,
        validation_cells=validation_cells,
        seed=parameters["seed"],
        label_codes=lambda obs: labels.codes(obs, clusters),
    )
    checks.check_enough(schema, stream.summary, parameters["n_latent"])
    checks.check_clusters(clusters, stream.summary)
    check_linked(stream.summary)
    check_linked(stream.summary, stream.train_c)

    def name_of(cell: int) -> str:
        return str(atlas.read(np.array([cell])).obs_names[0])

    checks.warn_of_empty(name_of, stream.summary, NO_PART, stacklevel=5)
    return ToFit(schema, stream.summary, stream, clusters)


def describe_clusters(obs: pd.DataFrame, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Say what clusters there are to be, if any."""
    key, n_clusters = parameters["labels_key"], parameters["n_clusters"]
    if key is None:
        return None if n_clusters is None else {"names": labels.cluster_names([], n_clusters)}
    if key == results.CLUSTER:
        raise ValueError(f"labels_key is {key!r}, the column that clusters are written to: copy it to another")
    known = labels.known_labels(obs, key, parameters["unknown_label"])
    return {
        "names": labels.cluster_names(known, n_clusters),
        "n_labels": len(known),
        "labels_key": key,
        "unknown_label": parameters["unknown_label"],
    }


def marker_columns(
    adata: AnnData, schema: Schema, cells: Cells, rhythm: Rhythm | None, gene_symbols: str | None
) -> tuple[dict[str, np.ndarray], str]:
    """Find the markers of a rhythm: phase to columns, and the modality these are of, RNA where there is some.

    Parameters
    ----------
    adata
        Whose ``var`` has the column `gene_symbols`, if one is named.
    schema, cells
        Of the same cells.
    rhythm
        What to look for; nothing is found where it is None or has no markers.
    gene_symbols
        Column of ``adata.var`` with the symbols of features; by default they are called by them.
    """
    modality = "rna" if "rna" in schema.modalities else schema.modalities[0]
    if rhythm is None or not rhythm.markers:
        return {}, modality
    symbols = list(schema.feature_names[modality])
    if gene_symbols is not None:
        symbols = list(find_column(adata.var, gene_symbols, "gene_symbols").astype(str).reindex(symbols))
    counts = cells.counts[modality]
    return find_markers(rhythm, symbols, counts.sum_columns(counts.value_n).numpy() > 0), modality

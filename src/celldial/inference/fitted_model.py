"""Functions that all analyses of a fitted model share: read cells, infer their latent states, check names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.utils.validation import check_is_fitted

from celldial.data.cell_checks import check_has_counts, warn_empty_cells
from celldial.data.cells import Cells, decode_blocks
from celldial.data.counts import check_is_anndata, is_on_disk
from celldial.data.files import OnDiskDataset
from celldial.data.modalities import obsm_key
from celldial.data.mudata import mudata_to_anndata
from celldial.data.schema import Schema
from celldial.inference import posterior
from celldial.inference.label_classifier import LabelClassifier
from celldial.inference.posterior import LatentState
from celldial.inference.reference import ReferenceSummary
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module
from celldial.utils.prefetch import prefetch
from celldial.utils.validation import check_library_size
from celldial.utils.warnings import warn_once

__all__ = [
    "FittedModel",
    "check_fitted",
    "coordinate_names",
    "feature_table",
    "features_by_modality",
    "get_modality",
    "infer_all",
    "is_file_path",
    "library_size_to_decode",
    "nonempty_blocks",
    "read_cells",
    "read_from",
    "read_obs",
    "read_parts",
    "to_anndata",
]


class FittedModel(Protocol):
    """The attributes of a fitted `celldial.VAE` that analyses read."""

    parameters_: dict[str, Any]
    schema_: Schema
    module_: Module
    history_: dict[str, list[float]]
    library_size_quantiles_: dict[str, np.ndarray]
    periodic_: dict[str, Any] | None
    clusters_: dict[str, Any] | None
    label_classifier_: LabelClassifier | None
    reference_: ReferenceSummary | None
    fingerprint_: str
    seed: int


def check_fitted(model: FittedModel) -> None:
    """Raise `NotFittedError` unless the model is fitted."""
    check_is_fitted(model, msg="this %(name)s is not fitted yet: call fit(adata) first, or VAE.load(path)")


def is_file_path(data: Any) -> bool:
    """Return whether the cells are only in files, so that nothing can be written to them."""
    return is_on_disk(data) and not isinstance(data, AnnData)


def read_from(model: FittedModel, layer: str | None) -> FittedModel:
    """Return a view of a fitted model that reads counts from another layer; it shares everything else with the model.

    Parameters
    ----------
    model
        A fitted model.
    layer
        The layer with raw counts; ``"X"`` for ``adata.X``, and None for the layer that the model was fitted to.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    TypeError
        `layer` is not a name.
    """
    check_fitted(model)
    if layer is None:
        return model
    if not isinstance(layer, str):
        raise TypeError(f'layer is {layer!r}: it must be the name of a layer, or "X" for adata.X')
    name = None if layer == "X" else layer
    view = copy.copy(model)
    view.schema_ = replace(model.schema_, layer=name)
    view.parameters_ = {**model.parameters_, "layer": name}
    return view


def to_anndata(model: FittedModel, adata: Any) -> AnnData:
    """Return the cells of an AnnData or MuData as one AnnData."""
    if isinstance(adata, AnnData):
        return adata
    layer, modality_key = (model.parameters_[name] for name in ("layer", "modality_key"))
    table = mudata_to_anndata(
        adata, layer=layer, modality_key=modality_key, schema=model.schema_, obs_keys=model.schema_.obs_keys
    )
    check_is_anndata(table)
    return table


def read_cells(model: FittedModel, adata: AnnData, modalities: Sequence[str] | None = None) -> tuple[AnnData, Cells]:
    """Read cells as one AnnData and as tensors, with the counts of all modalities or only of those given."""
    table = to_anndata(model, adata)
    cells = Cells.from_anndata(table, model.schema_)
    return table, cells if modalities is None else cells.keep_modalities(*modalities)


def read_parts(model: FittedModel, adata: Any, modalities: Sequence[str] | None) -> Iterator[tuple[AnnData, Cells]]:
    """Read cells as `read_cells` does: those in memory at once, those in files block by block."""
    if not is_on_disk(adata):
        yield read_cells(model, adata, modalities)
        return
    for table in prefetch(_open(model, adata).blocks()):
        yield table, read_cells(model, table, modalities)[1]


def read_sample(model: FittedModel, adata: Any, n_cells: int, seed: int) -> Cells:
    """Read cells of which some are to be used: all cells in memory, `n_cells` random cells of files."""
    if not is_on_disk(adata):
        return read_cells(model, adata)[1]
    dataset = _open(model, adata)
    n_cells = min(n_cells, dataset.n_cells)
    row_c = np.sort(np.random.default_rng(seed).choice(dataset.n_cells, n_cells, replace=False))
    return read_cells(model, dataset.read(row_c))[1]


def _open(model: FittedModel, adata: Any) -> OnDiskDataset:
    """Open cells in files, with the columns and matrices that the model reads."""
    schema = model.schema_
    obsm_keys = [key for key in map(obsm_key, schema.sources.values()) if key is not None]
    return OnDiskDataset.open(adata, layer=schema.layer, obs_keys=schema.obs_keys, obsm_keys=obsm_keys, strict=False)


def read_obs(model: FittedModel, adata: Any, keys: Sequence[str]) -> pd.DataFrame:
    """Return ``obs`` of all cells: the whole table of cells in memory, the columns `keys` of cells in files."""
    if not is_on_disk(adata):
        return to_anndata(model, adata).obs
    return OnDiskDataset.open(adata, layer=model.schema_.layer, obs_keys=list(keys), strict=False).obs


def infer_all(
    model: FittedModel,
    adata: Any,
    modality: str | None = None,
    sources: Sequence[str] | None = None,
    consequence: str = "their posterior is the prior",
) -> tuple[LatentState, pd.DataFrame]:
    """Infer the latent states of all cells.

    Parameters
    ----------
    model
        A fitted model.
    adata
        Cells in memory or in files.
    modality
        The only modality to infer from; by default all that a cell has.
    sources
        Several modalities to infer from. One of them must have counts.
    consequence
        Consequence for cells without counts, as the end of the warning about them.

    Returns
    -------
    tuple[LatentState, pandas.DataFrame]
        Latent states, and ``obs`` of the same cells.
    """
    check_fitted(model)
    used = [get_modality(model, modality)] if modality is not None else sources
    used_names = None if used is None else " or ".join(used)
    parts, tables, n_nonempty = [], [], 0
    with warn_once() if is_on_disk(adata) else nullcontext():
        for table, cells in read_parts(model, adata, used):
            n_nonempty += int((~cells.empty_c).sum())
            if sources is not None and not is_on_disk(adata):
                check_has_counts(cells, sources)
            warn_empty_cells(table.obs_names.__getitem__, cells, consequence, used_names)
            parts.append(posterior.infer(model.module_, cells))
            tables.append(table.obs)
    if sources is not None and n_nonempty == 0:
        check_has_counts(cells, sources)
    return posterior.concat_states(parts), tables[0] if len(tables) == 1 else pd.concat(tables)


def nonempty_blocks(model: FittedModel, adata: Any) -> Iterator[Cells]:
    """Read the cells that have counts, on the device, in blocks that can be decoded at once."""
    device, n_nonempty = posterior.to_eval(model.module_), 0
    for _, cells in read_parts(model, adata, None):
        nonempty = cells.select((~cells.empty_c).nonzero()[:, 0]).to(device)
        n_nonempty += len(nonempty)
        if len(nonempty) > 0:
            yield from decode_blocks(nonempty)
    if n_nonempty == 0:
        check_has_counts(cells)


def get_modality(model: FittedModel, modality: str | None) -> str:
    """Return the name of a modality of the model: the first by default.

    Raises
    ------
    KeyError
        The model has no such modality.
    """
    known = model.schema_.modalities
    if modality is None:
        return known[0]
    if modality not in known:
        raise KeyError(f"the model has no modality {modality!r}; available: {', '.join(map(repr, known))}")
    return modality


def coordinate_names(module: Module) -> list[str]:
    """Return the names of the latent coordinates: ``"axis_0"`` and so on, or ``"topic_0"`` in a topic model."""
    return [f"{module.latent.coordinate_noun}_{k}" for k in range(module.latent.n_latent)]


def library_size_to_decode(model: FittedModel, modality: str, library_size: float | None = None) -> float:
    """Return the library size to decode with: by default 10,000; under a Bernoulli likelihood the training median."""
    if library_size is not None:
        return check_library_size(library_size)
    likelihood = LIKELIHOODS[model.schema_.likelihood[modality]]
    return likelihood.default_library_size(model.library_size_quantiles_[modality])


def feature_table(schema: Schema) -> pd.DataFrame:
    """Return a table of all features in the order of the model, with their ``modality`` if there are several."""
    by_modality = schema.feature_names
    if len(by_modality) == 1:
        (names,) = by_modality.values()
        return pd.DataFrame(index=list(names))
    modality_f = [modality for modality, names in by_modality.items() for _ in names]
    index = pd.Index([name for names in by_modality.values() for name in names], dtype=object)
    if index.has_duplicates:  # features of modalities in obsm
        index = pd.Index([f"{modality}:{name}" for modality, name in zip(modality_f, index, strict=True)])
    return pd.DataFrame({"modality": modality_f}, index=index)


def features_by_modality(schema: Schema) -> Mapping[str, np.ndarray]:
    """Return the names of each modality's features as `feature_table` has them."""
    names_f = feature_table(schema).index.to_numpy()
    ends = np.cumsum([len(names) for names in schema.feature_names.values()])[:-1]
    return dict(zip(schema.modalities, np.split(names_f, ends), strict=True))

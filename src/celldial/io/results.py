"""Results in an AnnData: the key of each, which model wrote it, writing and reading. Nothing else writes to an AnnData.

| where | key | what |
|---|---|---|
| ``obsm`` | ``X_celldial``, or `key_added` | embedding |
| ``obsm`` | ``celldial_cluster_probability`` | probability of each cluster |
| ``obs`` | ``celldial_cluster`` | most probable cluster; ``"unassigned"`` if none of the labels is sure |
| ``obs`` | ``celldial_cluster_disputed`` | whether the nearest labeled cells have another label |
| ``obs`` | ``<periodic>_angle``, ``_concentration``, ``_active_probability``, ``_active``, ``_phase`` | angle, phase |
| ``obs``, ``var`` | ``<periodic>_speed``; ``<periodic>_beta``, ``_gamma`` with ``_lower``, ``_upper`` | RNA kinetics |
| ``obs`` | ``celldial_mapping_likelihood``, ``_distance``, ``_quality`` | similarity to the reference cells |
| ``obs`` | the name of an axis | score of each cell on it |
| ``layers`` or ``obsm`` | `key_added` | denoised or imputed values |
| ``uns["celldial"]`` | | record: parameters, schema, history, axes, which model wrote what |
| ``uns["latent_traverse"]`` | the name of a traversal | traversal |
| ``uns`` | ``rank_genes_groups``, or `key_added` | differences between groups, in scanpy's layout |

The record describes the last fit. If several models have embeddings side by side, under different `key_added`, then
``uns["celldial"]["models"]`` describes the others, by the key of their embedding.
"""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning

from celldial.io.json_types import without_none
from celldial.io.provenance import (
    RECORD,
    check_column,
    check_key,
    check_ranking,
    content_of,
    is_unchanged,
    read_record,
    writer_of,
    writers,
)
from celldial.io.tables import table_for_files
from celldial.utils.warnings import warn

__all__ = [
    "CLUSTER",
    "CLUSTER_DISPUTED",
    "CLUSTER_PROBABILITY",
    "FIT_PARTS",
    "TABLES",
    "TRAVERSALS",
    "check_axis_column",
    "check_clusters",
    "check_expression",
    "check_fit",
    "check_key",
    "check_kinetics",
    "check_mapping",
    "check_periodic_columns",
    "check_ranking",
    "embedding_key",
    "embedding_of_fit",
    "forget",
    "periodic_columns",
    "read_axes",
    "read_record",
    "read_traversals",
    "remove_axis",
    "remove_column",
    "remove_table",
    "write_axis",
    "write_check",
    "write_clusters",
    "write_coordinates",
    "write_embedding",
    "write_expression",
    "write_fit",
    "write_gene_sets",
    "write_imputed",
    "write_integration",
    "write_kinetics",
    "write_mapping",
    "write_phase",
    "write_ranking",
    "write_traversal",
    "writer_of",
    "writing_to",
]

TRAVERSALS = "latent_traverse"
CLUSTER, CLUSTER_PROBABILITY = "celldial_cluster", "celldial_cluster_probability"
CLUSTER_DISPUTED = "celldial_cluster_disputed"
MAPPING = "celldial_mapping_{}"
MAPPING_PARTS = ("likelihood", "distance", "quality")
# Tables in the record, the report on an integration, and RNA kinetics.
COORDINATES, GENE_SETS, CHECK, INTEGRATION, KINETICS = "coordinates", "gene_sets", "check", "integration", "kinetics"
TABLES = (COORDINATES, GENE_SETS, CHECK, INTEGRATION, KINETICS)
# Keys of the record of each fit, other than the key of its embedding.
FIT_PARTS = ("version", "model", "parameters", "schema", "history")
RATES = ("beta", "beta_lower", "beta_upper", "gamma", "gamma_lower", "gamma_upper")
PERIODIC_PARTS = ("angle", "concentration", "active_probability", "active", "phase")


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_axes(adata: Any) -> dict[str, Any]:
    """Return the named axes that `find_axis` stored, by name."""
    return dict(read_record(adata).get("axes", {}))


def read_traversals(adata: Any) -> Mapping[str, Any]:
    """Return the traversals that `latent_traverse` stored, by name, the latest last."""
    stored: Mapping[str, Any] = adata.uns.get(TRAVERSALS, {})
    return stored


def embedding_of_fit(adata: Any) -> np.ndarray:
    """Return a copy of the embedding that the last `fit` wrote."""
    embedding_cz: np.ndarray = adata.obsm[adata.uns[RECORD]["key_added"]]
    return embedding_cz.copy()


def periodic_columns(name: str) -> list[str]:
    """Return the names of the columns of ``adata.obs`` that hold the periodic coordinate `name`."""
    return [f"{name}_{part}" for part in PERIODIC_PARTS]


def embedding_key(adata: Any, model: str | None) -> str | None:
    """Return the key of ``adata.obsm`` with the embedding of a model, or None if there is none.

    Parameters
    ----------
    adata
        Cells.
    model
        Identifier of the model; None for results of earlier versions, which do not have it.
    """
    record = read_record(adata)
    default = str(record.get("key_added", "X_celldial"))
    own = [key for key, writer in writers(adata).get("obsm", {}).items() if writer == model and key in adata.obsm]
    fitted = [key for key in (default, *record.get("models", {})) if key in own]
    if fitted or own:
        return (fitted or own)[0]
    # An embedding without a record of who wrote it may be of any model.
    return default if model is None or writer_of(adata, "obsm", default) is None else None


# --- Checks before anything is computed -------------------------------------------------------------------------------


def check_fit(adata: Any, key_added: str, periodic: str | None, has_clusters: bool) -> None:
    """Raise if the results of a fit would replace what no model wrote."""
    check_key(adata, "obsm", key_added)
    check_periodic_columns(adata, periodic)
    if has_clusters:
        check_clusters(adata)


def check_periodic_columns(adata: Any, periodic: str | None) -> None:
    """Raise if the columns of the periodic coordinate would replace columns that are not as a model wrote them."""
    if periodic is None:
        return
    is_own = read_record(adata).get("periodic", {}).get("name") == periodic
    for column in periodic_columns(periodic):
        check_column(adata, column, is_own)


def check_clusters(adata: Any) -> None:
    """Raise if the clusters would replace a column that is not as a model wrote it."""
    for column in (CLUSTER, CLUSTER_DISPUTED):
        check_column(adata, column, is_own=CLUSTER_PROBABILITY in adata.obsm)


def check_mapping(adata: Any) -> None:
    """Raise if the mapping quality would replace a column that is not as a model wrote it."""
    for part in MAPPING_PARTS:
        check_column(adata, MAPPING.format(part))


def check_kinetics(adata: Any, periodic: str) -> None:
    """Raise if rates or speed would replace columns that no model wrote."""
    for rate in RATES:
        check_key(adata, "var", f"{periodic}_{rate}")
    check_column(adata, f"{periodic}_speed")


def check_axis_column(adata: Any, name: str) -> None:
    """Raise if the scores on an axis would replace a column that is not as `find_axis` wrote it."""
    if name in adata.obs and name not in read_axes(adata):
        raise ValueError(
            f"adata.obs has a column {name!r} that find_axis did not write: choose another name, or remove the column "
            f"with del adata.obs[{name!r}]"
        )
    check_column(adata, name, is_own=True)


def check_expression(adata: Any, key_added: str) -> None:
    """Raise if expression would replace a layer or a table that no model wrote."""
    for place in ("layers", "obsm"):
        check_key(adata, place, key_added)


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_fit(adata: Any, model: str, embedding_cz: np.ndarray, key_added: str, about: Mapping[str, Any]) -> None:
    """Write the embedding of a fitted model and its record, in place of those of the previous model with this key.

    Parameters
    ----------
    adata
        Cells.
    model
        Identifier of the model, its ``fingerprint_``.
    embedding_cz
        Shape ``(cells, n_latent)``.
    key_added
        Key of ``adata.obsm``.
    about
        ``parameters``, ``schema`` and ``history`` of the model.
    """
    version = importlib.metadata.version("celldial")
    with writing_to(adata):
        _replace_model(adata, model, key_added)
        before = read_record(adata)
        others = dict(before.get("models", {}))
        if "model" in before and before["key_added"] != key_added:
            others[str(before["key_added"])] = {part: before[part] for part in FIT_PARTS if part in before}
        others.pop(key_added, None)
        adata.obsm[key_added] = embedding_cz
        kept = {part: value for part, value in before.items() if part not in (*FIT_PARTS, "key_added", "models")}
        record: dict[str, Any] = {"version": version, "model": model, "key_added": key_added, **without_none(about)}
        adata.uns[RECORD] = kept | record | ({"models": others} if others else {})
        _record_writer(adata, model, "obsm", key_added)


def _replace_model(adata: Any, model: str, key_added: str) -> None:
    """Remove the axes and the ranking of the model whose embedding a fit replaces, and mark its traversals.

    Columns that were changed since stay, and so does everything of models with an embedding of their own.
    """
    before, record = writer_of(adata, "obsm", key_added), read_record(adata)
    others = {key: str(other.get("model")) for key, other in record.get("models", {}).items()}
    others[str(record.get("key_added"))] = str(record.get("model"))
    others.pop(key_added, None)
    is_replaced = before not in (model, *others.values())
    _mark_traversals(adata, model, before if is_replaced else None)
    if not is_replaced:
        return
    # Axes of earlier versions do not name their model, which is then the one before.
    for name, stored in read_axes(adata).items():
        if stored.get("model", before) == before:
            remove_axis(adata, name)
    for table in TABLES:
        if table in record and writer_of(adata, table, table) in (before, None):
            remove_table(adata, table)


def _mark_traversals(adata: Any, current: str, replaced: str | None) -> None:
    """Mark the traversals of a replaced model, so that plots reject them, and those of the current model as valid."""
    marked: dict[str, Any] = {}
    for name, stored in read_traversals(adata).items():
        marked[name] = {part: value for part, value in stored.items() if part != "replaced"}
        writer = stored.get("model")  # traversals of earlier versions have none
        if writer not in (None, current) and (writer == replaced or stored.get("replaced", False)):
            marked[name]["replaced"] = True
    if marked:
        adata.uns[TRAVERSALS] = marked


def remove_table(adata: Any, name: str) -> None:
    """Remove a table from the record, and the columns that belong to it."""
    if name == KINETICS:
        for column in [column for column in writers(adata).get("var", {}) if column in adata.var]:
            del adata.var[column]
            forget(adata, "var", column)
        remove_column(adata, f"{read_record(adata)[name]['name']}_speed")
    adata.uns[RECORD] = {part: value for part, value in read_record(adata).items() if part != name}
    forget(adata, name, name)


def remove_axis(adata: Any, name: str) -> None:
    """Remove a named axis and its scores, if they are as they were written."""
    axes = {other: stored for other, stored in read_axes(adata).items() if other != name}
    record = {part: value for part, value in read_record(adata).items() if part != "axes"}
    adata.uns[RECORD] = record | ({"axes": axes} if axes else {})
    remove_column(adata, name)


def remove_column(adata: Any, column: str) -> bool:
    """Remove a column of ``obs`` if a model wrote it and it is unchanged; return whether it was removed."""
    is_own = column in adata.obs and writer_of(adata, "obs", column) is not None and is_unchanged(adata, column)
    if is_own:
        del adata.obs[column]
    forget(adata, "obs", column)
    return is_own


def write_embedding(adata: Any, model: str, key_added: str, embedding_cz: np.ndarray) -> None:
    """Write an embedding to ``adata.obsm[key_added]``."""
    with writing_to(adata):
        adata.obsm[key_added] = embedding_cz.copy()
        _record_writer(adata, model, "obsm", key_added)


def write_phase(adata: Any, model: str, table: pd.DataFrame, periodic: Mapping[str, Any]) -> None:
    """Write the columns of a periodic coordinate to ``adata.obs``, and its description to the record."""
    with writing_to(adata):
        # The phase of an earlier model must not stay next to the angle of a model without phases.
        for column in periodic_columns(periodic["name"]):
            if column in adata.obs and column not in table:
                del adata.obs[column]
        for name in table:
            adata.obs[name] = table[name].array
        # Later calls recognize the columns as a model's by this.
        adata.uns[RECORD] = {**read_record(adata), "periodic": copy.deepcopy(dict(periodic))}
        _record_writer(adata, model, "obs", *table)


def write_clusters(
    adata: Any,
    model: str,
    table: pd.DataFrame,
    cluster_c: pd.Categorical,
    disputed_c: np.ndarray | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the probability of each cluster to ``adata.obsm``, and the cluster of each cell to ``adata.obs``.

    Parameters
    ----------
    adata
        Cells.
    model
        Identifier of the model.
    table
        Probabilities, cells × clusters.
    cluster_c
        Cluster of each cell.
    disputed_c
        For labels, whether the nearest labeled cells have another label.
    about
        For labels, calibration and thresholds, for the record.
    """
    columns = [CLUSTER]
    with writing_to(adata):
        adata.obsm[CLUSTER_PROBABILITY] = table_for_files(table, adata.obs_names.name)
        adata.obs[CLUSTER] = cluster_c
        if disputed_c is not None:
            adata.obs[CLUSTER_DISPUTED] = disputed_c
            columns.append(CLUSTER_DISPUTED)
        elif writer_of(adata, "obs", CLUSTER_DISPUTED) is not None:  # of a model with labels
            adata.obs = adata.obs.drop(columns=CLUSTER_DISPUTED, errors="ignore")
        record = {part: value for part, value in read_record(adata).items() if part != "labels"}
        adata.uns[RECORD] = record | ({} if about is None else {"labels": dict(about)})
        _record_writer(adata, model, "obsm", CLUSTER_PROBABILITY)
        _record_writer(adata, model, "obs", *columns)


def write_mapping(adata: Any, model: str, table: pd.DataFrame) -> None:
    """Write the mapping quality of cells to ``adata.obs``."""
    columns = {MAPPING.format(part): table[part].to_numpy(copy=True) for part in MAPPING_PARTS}
    with writing_to(adata):
        for column, value_c in columns.items():
            adata.obs[column] = value_c
        _record_writer(adata, model, "obs", *columns)


def write_axis(adata: Any, model: str, name: str, score_c: np.ndarray, stored: Mapping[str, Any]) -> None:
    """Write the score on a named axis to ``adata.obs[name]``, and the axis to the record."""
    with writing_to(adata):
        adata.obs[name] = score_c
        adata.uns[RECORD] = {**read_record(adata), "axes": {**read_axes(adata), name: {**stored, "model": model}}}
        _record_writer(adata, model, "obs", name)


def write_coordinates(adata: Any, model: str, table: pd.DataFrame) -> None:
    """Write the ranking of the latent coordinates to the record."""
    _write_table(adata, model, COORDINATES, table)


def write_gene_sets(adata: Any, model: str, table: pd.DataFrame) -> None:
    """Write the correlations of axes with gene sets to the record."""
    _write_table(adata, model, GENE_SETS, table)


def write_check(adata: Any, model: str, table: pd.DataFrame) -> None:
    """Write the results of posterior predictive checks to the record."""
    _write_table(adata, model, CHECK, table)


def write_integration(adata: Any, model: str, report: Mapping[str, Any]) -> None:
    """Write the report on an integration to the record."""
    _write_table(adata, model, INTEGRATION, report)


def write_kinetics(adata: Any, model: str, rates: pd.DataFrame, speed_c: np.ndarray, report: Mapping[str, Any]) -> None:
    """Write rates of genes to ``adata.var``, the speed of cells to ``adata.obs``, and the rest to the record."""
    periodic = report["name"]
    with writing_to(adata):
        for rate in RATES:
            adata.var[f"{periodic}_{rate}"] = rates[rate].reindex(adata.var_names).to_numpy()
        adata.obs[f"{periodic}_speed"] = speed_c
        _record_writer(adata, model, "var", *(f"{periodic}_{rate}" for rate in RATES))
        _record_writer(adata, model, "obs", f"{periodic}_speed")
    _write_table(adata, model, KINETICS, report)


def _write_table(adata: Any, model: str, name: str, table: pd.DataFrame | Mapping[str, Any]) -> None:
    """Write a table, or several in a dict, to the record."""
    with writing_to(adata):
        adata.uns[RECORD] = {**read_record(adata), name: copy.deepcopy(table)}
        _record_writer(adata, model, name, name)


def write_expression(adata: Any, model: str, key_added: str, table: pd.DataFrame) -> None:
    """Write expression to ``adata.layers`` if it has the features of `adata` in their order, else to ``adata.obsm``."""
    is_layer = isinstance(adata, AnnData) and list(adata.var_names) == list(table.columns)
    with writing_to(adata):
        if is_layer:
            adata.layers[key_added] = table.to_numpy(copy=True)
        else:
            adata.obsm[key_added] = table_for_files(table, adata.obs_names.name)
        _record_writer(adata, model, "layers" if is_layer else "obsm", key_added)


def write_imputed(adata: Any, model: str, key_added: str, values: pd.DataFrame | np.ndarray) -> None:
    """Write imputed values to ``adata.obsm[key_added]``."""
    with writing_to(adata):
        adata.obsm[key_added] = (
            table_for_files(values, adata.obs_names.name) if isinstance(values, pd.DataFrame) else values
        )
        _record_writer(adata, model, "obsm", key_added)


def write_traversal(adata: Any, model: str, key_added: str, stored: Mapping[str, Any]) -> None:
    """Write a traversal to ``adata.uns["latent_traverse"][key_added]``."""
    with writing_to(adata):
        others = {name: other for name, other in read_traversals(adata).items() if name != key_added}
        # The latest is last: plots draw it by default.
        adata.uns[TRAVERSALS] = {**others, key_added: {**stored, "model": model}}
        _record_writer(adata, model, TRAVERSALS, key_added)


def write_ranking(adata: Any, model: str, key_added: str, layout: Mapping[str, Any]) -> None:
    """Write differences between groups, in scanpy's layout, to ``adata.uns[key_added]``."""
    with writing_to(adata):
        adata.uns[key_added] = {**layout, "params": {**layout["params"], "model": model}}
        _record_writer(adata, model, "uns", key_added)


# --- Helpers ----------------------------------------------------------------------------------------------------------


def _record_writer(adata: Any, model: str, place: str, *keys: str) -> None:
    """Record which model wrote keys, and the content of columns of ``obs``."""
    record = read_record(adata)
    written = writers(adata)
    written.setdefault(place, {}).update({str(key): model for key in keys})
    adata.uns[RECORD] = {**record, "written": written}
    if place == "obs":
        content = {key: np.unique(content_of(adata, key)) for key in keys}
        adata.uns[RECORD]["content"] = {**record.get("content", {}), **content}


def forget(adata: Any, place: str, key: str) -> None:
    """Remove a key from the record of what models wrote."""
    record = read_record(adata)
    written = writers(adata)
    written.get(place, {}).pop(key, None)
    content = dict(record.get("content", {}))
    if place == "obs":
        content.pop(key, None)
    adata.uns[RECORD] = {**record, "written": written} | ({"content": content} if "content" in record else {})


@contextmanager
def writing_to(adata: Any) -> Iterator[None]:
    """Write results; a view becomes an AnnData of its own, with a warning that says where the results are."""
    if getattr(adata, "is_view", False):
        warn(
            "adata is a view of another AnnData, which does not get the results: they are written to a copy; pass "
            "adata[...].copy(), and keep it, to have them"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield

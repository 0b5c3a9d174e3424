"""Results in an AnnData: the key of each, which model wrote it, writing and reading. Nothing else writes to an AnnData.

| where | key | what |
|---|---|---|
| ``obsm`` | ``X_celldial``, or `key_added` | embedding |
| ``obsm`` | ``celldial_cluster_probability`` | probability of each cluster |
| ``obs`` | ``celldial_cluster`` | most probable cluster |
| ``obs`` | ``<periodic>_angle``, ``_concentration``, ``_active_probability``, ``_active``, ``_phase`` | angle, phase |
| ``obs`` | the name of an axis | score of each cell on it |
| ``layers`` or ``obsm`` | `key_added` | denoised or imputed values |
| ``uns["celldial"]`` | | record: parameters, schema, history, axes, which model wrote what |
| ``uns["latent_traverse"]`` | the name of a traversal | traversal |
"""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning

__all__ = [
    "CLUSTER",
    "CLUSTER_PROBABILITY",
    "check_column_clash",
    "embedding_of_fit",
    "periodic_columns",
    "probability_columns",
    "read_axes",
    "read_traversals",
    "write_axis",
    "write_clusters",
    "write_coordinates",
    "write_embedding",
    "write_expression",
    "write_fit",
    "write_imputed",
    "write_phase",
    "write_traversal",
]

RECORD, TRAVERSALS = "celldial", "latent_traverse"
CLUSTER, CLUSTER_PROBABILITY = "celldial_cluster", "celldial_cluster_probability"
PERIODIC_PARTS = ("angle", "concentration", "active_probability", "active", "phase")


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_record(adata: Any) -> dict[str, Any]:
    """Return a shallow copy of what models have recorded in ``adata.uns["celldial"]``."""
    return dict(adata.uns.get(RECORD, {}))


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


def probability_columns(names: list[str]) -> list[str]:
    """Return the names of clusters as columns: files of cells have no columns with a slash."""
    return [name.replace("/", "-") for name in names]


def check_column_clash(adata: Any, periodic: str | None) -> None:
    """Raise if the columns of the periodic coordinate would replace columns that no model wrote."""
    if periodic is None or read_record(adata).get("periodic", {}).get("name") == periodic:
        return
    for column in periodic_columns(periodic):
        if column in adata.obs:
            raise ValueError(
                f"adata.obs has a column {column!r} that no model wrote, and the periodic coordinate would replace it: "
                "rename the column, or drop it"
            )


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_fit(adata: Any, model: str, embedding_cz: np.ndarray, key_added: str, about: Mapping[str, Any]) -> None:
    """Write the embedding of a fitted model and its record, in place of those of the previous model.

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
    with _silence_view_copy():
        for name in read_axes(adata):
            if name in adata.obs:  # the score on an axis of the previous model
                del adata.obs[name]
        adata.obsm[key_added] = embedding_cz
        # The columns of a periodic coordinate stay if this model has none, and so does their description.
        before = read_record(adata)
        kept = {key: before[key] for key in ("periodic", "written") if key in before}
        version = importlib.metadata.version("celldial")
        record: dict[str, Any] = {"version": version, "model": model, "key_added": key_added, **about}
        adata.uns[RECORD] = kept | record
    _record_writer(adata, model, "obsm", key_added)


def write_embedding(adata: Any, model: str, key_added: str, embedding_cz: np.ndarray) -> None:
    """Write an embedding to ``adata.obsm[key_added]``."""
    with _silence_view_copy():
        adata.obsm[key_added] = embedding_cz.copy()
    _record_writer(adata, model, "obsm", key_added)


def write_phase(adata: Any, model: str, table: pd.DataFrame, periodic: Mapping[str, Any]) -> None:
    """Write the columns of a periodic coordinate to ``adata.obs``, and its description to the record."""
    with _silence_view_copy():
        # The phase of an earlier model must not stay next to the angle of a model without phases.
        for column in periodic_columns(periodic["name"]):
            if column in adata.obs and column not in table:
                del adata.obs[column]
        for name in table:
            adata.obs[name] = table[name].array
        # Later calls recognize the columns as a model's by this.
        adata.uns[RECORD] = {**read_record(adata), "periodic": copy.deepcopy(dict(periodic))}
    _record_writer(adata, model, "obs", *table)


def write_clusters(adata: Any, model: str, table: pd.DataFrame) -> None:
    """Write the probability of each cluster to ``adata.obsm``, and the most probable one to ``adata.obs``."""
    names = list(table.columns)
    with _silence_view_copy():
        adata.obsm[CLUSTER_PROBABILITY] = table.set_axis(probability_columns(names), axis=1)
        adata.obs[CLUSTER] = pd.Categorical.from_codes(np.argmax(table.to_numpy(), axis=1), pd.Index(names))
    _record_writer(adata, model, "obsm", CLUSTER_PROBABILITY)
    _record_writer(adata, model, "obs", CLUSTER)


def write_axis(adata: Any, model: str, name: str, score_c: np.ndarray, stored: Mapping[str, Any]) -> None:
    """Write the score on a named axis to ``adata.obs[name]``, and the axis to the record."""
    with _silence_view_copy():
        adata.obs[name] = score_c
        adata.uns[RECORD] = {**read_record(adata), "axes": {**read_axes(adata), name: dict(stored)}}
    _record_writer(adata, model, "obs", name)


def write_coordinates(adata: Any, table: pd.DataFrame) -> None:
    """Write the ranking of the latent coordinates to the record."""
    with _silence_view_copy():
        adata.uns[RECORD] = {**read_record(adata), "coordinates": table.copy()}


def write_expression(adata: Any, model: str, key_added: str, table: pd.DataFrame) -> None:
    """Write expression to ``adata.layers`` if it has the features of `adata` in their order, else to ``adata.obsm``."""
    is_layer = isinstance(adata, AnnData) and list(adata.var_names) == list(table.columns)
    with _silence_view_copy():
        if is_layer:
            adata.layers[key_added] = table.to_numpy(copy=True)
        else:
            adata.obsm[key_added] = table.copy()
    _record_writer(adata, model, "layers" if is_layer else "obsm", key_added)


def write_imputed(adata: Any, model: str, key_added: str, values: pd.DataFrame | np.ndarray) -> None:
    """Write imputed values to ``adata.obsm[key_added]``."""
    with _silence_view_copy():
        adata.obsm[key_added] = values
    _record_writer(adata, model, "obsm", key_added)


def write_traversal(adata: Any, model: str, key_added: str, stored: Mapping[str, Any]) -> None:
    """Write a traversal to ``adata.uns["latent_traverse"][key_added]``."""
    with _silence_view_copy():
        others = {name: other for name, other in read_traversals(adata).items() if name != key_added}
        # The latest is last: plots draw it by default.
        adata.uns[TRAVERSALS] = {**others, key_added: dict(stored)}
    _record_writer(adata, model, TRAVERSALS, key_added)


def _record_writer(adata: Any, model: str, place: str, *keys: str) -> None:
    """Note which model wrote the keys of ``obs``, ``obsm``, ``layers`` or the traversals."""
    record = read_record(adata)
    written: dict[str, dict[str, str]] = {name: dict(by) for name, by in record.get("written", {}).items()}
    written.setdefault(place, {}).update({str(key): model for key in keys})
    with _silence_view_copy():
        adata.uns[RECORD] = {**record, "written": written}


@contextmanager
def _silence_view_copy() -> Iterator[None]:
    """Let a view become an AnnData of its own without a warning, since the user asked to write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield


def to_json(value: Any) -> Any:
    """Convert numbers and arrays of numpy, sequences and dicts to JSON types."""
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value

"""Removal of what models wrote to an AnnData."""

from __future__ import annotations

from typing import Any

from celldial.io.provenance import RECORD, is_ranking, read_record, writer_of, writers
from celldial.io.results import (
    FIT_PARTS,
    TABLES,
    TRAVERSALS,
    forget,
    periodic_columns,
    read_axes,
    remove_axis,
    remove_column,
    remove_table,
    writing_to,
)
from celldial.utils.messages import format_names

__all__ = ["remove"]


def remove(adata: Any, key_added: str | None) -> list[str]:
    """Remove what models wrote, or what the model with this embedding wrote; see `celldial.tl.remove_results`."""
    model = None if key_added is None else writer_of(adata, "obsm", key_added)
    if key_added is not None and model is None:
        raise KeyError(
            f"no model wrote adata.obsm[{key_added!r}]; embeddings of models: "
            f"{format_names(writers(adata).get('obsm', {}))}"
        )
    removed = []
    with writing_to(adata):
        for place, by in writers(adata).items():
            for key, writer in by.items():
                if model in (None, writer) and _remove_entry(adata, place, key):
                    removed.append(f"{place}: {key}")
        if model is None:
            for key in (RECORD, TRAVERSALS):
                adata.uns.pop(key, None)
        else:
            _remove_fit(adata, model)
    return removed


def _remove_entry(adata: Any, place: str, key: str) -> bool:
    """Remove one result, and return whether it was removed: changed columns of ``obs`` stay."""
    if place == "obs":
        if key in read_axes(adata):
            remove_axis(adata, key)
            return key not in adata.obs
        return remove_column(adata, key)
    if place in TABLES:
        remove_table(adata, place)
        return True
    model = writer_of(adata, place, key)
    forget(adata, place, key)
    entries = adata.uns.get(TRAVERSALS, {}) if place == TRAVERSALS else getattr(adata, place, {})
    if key not in entries or (place == "uns" and not is_ranking(entries[key], model)):
        return False
    del entries[key]
    return True


def _remove_fit(adata: Any, model: str) -> None:
    """Remove the description of a fitted model; that of another model takes its place."""
    record = read_record(adata)
    others = {key: other for key, other in record.pop("models", {}).items() if str(other.get("model")) != model}
    if str(record.get("model")) == model:
        record = {part: value for part, value in record.items() if part not in (*FIT_PARTS, "key_added")}
        if others:
            key, latest = others.popitem()
            record |= {"key_added": key, **latest}
    periodic = record.get("periodic", {})
    if periodic and not set(periodic_columns(periodic["name"])) & set(adata.obs):
        del record["periodic"]
    adata.uns[RECORD] = record | ({"models": others} if others else {})

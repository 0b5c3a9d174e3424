"""Provenance of results: the model that wrote a key of an AnnData, and whether a column has changed since.

The record is in ``adata.uns["celldial"]``:

| key | what |
|---|---|
| ``written`` | place (``obs``, ``obsm``, ``layers``, ``latent_traverse``, ``coordinates``) to key to model |
| ``content`` | column of ``obs`` to the checksums of its entries, sorted |

A model is identified by the checksum of its weights. The checksum of an entry covers the name of the cell and the
value, so that a column is recognized in a part of the cells and in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "RECORD",
    "check_column",
    "check_key",
    "check_ranking",
    "content_of",
    "is_ranking",
    "is_unchanged",
    "read_record",
    "writer_of",
    "writers",
]

RECORD = "celldial"
# Keys that carry the name of the package. An AnnData that lost its record, as after concatenation, still has them.
OWN_KEYS = ("X_celldial", "celldial_cluster_probability")


def read_record(adata: Any) -> dict[str, Any]:
    """Return a shallow copy of what models have recorded in ``adata.uns["celldial"]``."""
    return dict(adata.uns.get(RECORD, {}))


def writers(adata: Any) -> dict[str, dict[str, str]]:
    """Return place to key to the model that wrote it."""
    return {
        place: {str(key): str(model) for key, model in by.items()}
        for place, by in read_record(adata).get("written", {}).items()
    }


def writer_of(adata: Any, place: str, key: str) -> str | None:
    """Return the model that wrote a key, or None if no model has."""
    return writers(adata).get(place, {}).get(key)


def content_of(adata: Any, column: str) -> np.ndarray:
    """Return the checksums of the entries of a column of ``obs``, each of the cell's name and its value, uint32."""
    names_c = adata.obs_names.astype(str).to_numpy(dtype=object)
    values = adata.obs[column]
    if isinstance(values.dtype, pd.CategoricalDtype):
        names = np.array([*map(str, values.cat.categories), ""], dtype=object)
        value_c = pd.util.hash_array(names, categorize=False)[values.cat.codes.to_numpy()]  # missing: the last, ""
    elif pd.api.types.is_numeric_dtype(values):
        value_c = pd.util.hash_array(values.to_numpy(dtype=np.float64, na_value=np.nan))
    else:
        text_c = values.astype(object).map(str, na_action="ignore").fillna("").to_numpy(dtype=object)
        value_c = pd.util.hash_array(text_c, categorize=False)
    combined_c = pd.util.hash_array(names_c, categorize=False) * np.uint64(3) + value_c
    checksum_c: np.ndarray = (combined_c >> np.uint64(32)).astype(np.uint32)
    return checksum_c


def is_unchanged(adata: Any, column: str) -> bool:
    """Return whether a column of ``obs`` is as a model wrote it; True for records of earlier versions."""
    content = read_record(adata).get("content", {}).get(column)
    return content is None or bool(np.isin(content_of(adata, column), content).all())


def check_key(adata: Any, place: str, key: Any) -> None:
    """Raise if a result cannot be written to a key of ``obsm``, ``layers``, ``uns`` or ``var`` without loss of data.

    Parameters
    ----------
    adata
        Cells.
    place
        ``"obsm"``, ``"layers"``, ``"uns"`` or ``"var"``.
    key
        Key to write to.

    Raises
    ------
    ValueError
        The key is not text that a file can hold, or the entry is there and no model wrote it.
    """
    if not isinstance(key, str) or not key or "/" in key:
        raise ValueError(f"key_added is {key!r}: it must be a name without a slash, such as 'X_celldial'")
    entries = getattr(adata, place, None)
    if key in OWN_KEYS or writer_of(adata, place, key) is not None or entries is None or key not in entries:
        return
    raise ValueError(
        f"adata.{place}[{key!r}] was not written by a model, and the result would replace it: choose another "
        f"key_added, or remove the entry with del adata.{place}[{key!r}]"
    )


def check_ranking(adata: Any, key: Any) -> None:
    """Raise if a ranking cannot be written to a key of ``uns``, or would replace something that is not a ranking.

    Raises
    ------
    ValueError
        The key is not text that a file can hold, or the entry is not in the layout of `scanpy.tl.rank_genes_groups`.
    """
    if not is_ranking(adata.uns.get(key) if isinstance(key, str) else None):
        check_key(adata, "uns", key)


def is_ranking(entry: Any, model: str | None = None) -> bool:
    """Return whether an entry of ``uns`` is a ranking in scanpy's layout, and if `model` is given, of this model."""
    if not isinstance(entry, Mapping) or not {"params", "names"} <= set(entry):
        return False
    return model is None or entry["params"].get("model") == model


def check_column(adata: Any, column: str, is_own: bool = False) -> None:
    """Raise if a result would replace a column of ``obs`` that no model wrote, or that was changed since.

    Parameters
    ----------
    adata
        Cells.
    column
        Column to write to.
    is_own
        Whether a record of an earlier version shows that a model wrote the column.

    Raises
    ------
    ValueError
        The column is there, and is not as a model wrote it.
    """
    if column not in adata.obs:
        return
    if writer_of(adata, "obs", column) is None and not is_own:
        raise ValueError(
            f"adata.obs has a column {column!r} that no model wrote, and the result would replace it: rename the "
            f"column, or remove it with del adata.obs[{column!r}]"
        )
    if not is_unchanged(adata, column):
        raise ValueError(
            f"adata.obs[{column!r}] was changed after a model wrote it, and the result would replace it: copy the "
            f"column under another name, then remove it with del adata.obs[{column!r}]"
        )

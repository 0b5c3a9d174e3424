"""Keys and values written to an AnnData."""

from __future__ import annotations

from anndata import AnnData

__all__ = ["check_columns_free"]


def check_columns_free(adata: AnnData, periodic: str | None) -> None:
    """Raise where columns that tell of a rhythm would take the place of what no model wrote."""
    if periodic is None or adata.uns.get("celldial", {}).get("periodic", {}).get("name") == periodic:
        return
    for part in ("angle", "concentration", "active_probability", "active", "phase"):
        if f"{periodic}_{part}" in adata.obs:
            raise ValueError(
                f"adata.obs has a column {periodic + '_' + part!r} that no model wrote, and which the periodic "
                "coordinate would replace: rename it, or drop it"
            )

"""Removal of the results that models wrote to an AnnData."""

from __future__ import annotations

from typing import Any

from celldial.io import removal
from celldial.utils.argument_types import validate_types

__all__ = ["remove_results"]


@validate_types
def remove_results(adata: Any, key_added: str | None = None) -> list[str]:
    """Remove the results that models wrote to an AnnData.

    Only entries that the record ``adata.uns["celldial"]`` lists are removed. A column of ``adata.obs`` that was changed
    after a model wrote it stays.

    Parameters
    ----------
    adata
        Cells with results.
    key_added
        Key of an embedding in ``adata.obsm``: only the results of its model are removed. By default those of all
        models, and the record.

    Returns
    -------
    list[str]
        The removed entries, place and key, such as ``"obsm: X_celldial"``.

    Raises
    ------
    KeyError
        No model wrote an embedding with this key.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
    >>> celldial.tl.remove_results(adata)
    ['obsm: X_celldial', 'obs: B or T']
    >>> "celldial" in adata.uns
    False
    """
    return removal.remove(adata, key_added)

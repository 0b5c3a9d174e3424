"""Tables that h5ad files and zarr stores can hold."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from anndata.utils import make_index_unique

__all__ = ["columns_for_files", "table_for_files"]

# Names of columns with a meaning of their own in a file.
RESERVED = ("", ".", "..", "_index")


def columns_for_files(names: Sequence[str]) -> list[str]:
    """Return names as columns of a table in a file: without slashes, and with reserved names in parentheses.

    Examples
    --------
    >>> columns_for_files(["CD4/CD8", "_index", "B"])
    ['CD4-CD8', '(_index)', 'B']
    """
    columns = [name.replace("/", "-") for name in names]
    return [f"({name})" if name in RESERVED else name for name in columns]


def table_for_files(table: pd.DataFrame, index_name: object) -> pd.DataFrame:
    """Return a copy of a table with columns that a file can hold, all of them different.

    Parameters
    ----------
    table
        A table of cells.
    index_name
        Name of the index of ``adata.obs``, which anndata gives to the table, too. No column may have the same name.

    Examples
    --------
    >>> table = pd.DataFrame({"A/B": [1], "A-B": [2], "cell": [3]})
    >>> list(table_for_files(table, index_name="cell"))
    ['A-B', 'A-B-1', '(cell)']
    """
    names = [f"({name})" if name == index_name else name for name in columns_for_files(list(table.columns))]
    columns = pd.Index(names, dtype=object)
    if not columns.is_unique:
        columns = make_index_unique(columns)
    return table.set_axis(columns, axis=1).rename_axis(index=None, columns=None)

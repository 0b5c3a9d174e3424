"""Names in error messages: lists of names, similar names, columns that may be missing."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import pandas as pd

__all__ = ["describe_value", "did_you_mean", "feature_noun", "format_names", "get_column"]

MAX_VALUE = 80
"""Characters of a value that an error message repeats."""

FEATURE_NOUNS = {"rna": "gene", "atac": "peak", "protein": "protein"}


def feature_noun(modality: str) -> str:
    """Return what a feature of a modality is called, such as ``"gene"``."""
    return FEATURE_NOUNS.get(modality, "feature")


def format_names(names: Iterable[Any], limit: int = 10) -> str:
    """Return quoted names for an error message, at most `limit` of them.

    Examples
    --------
    >>> from celldial.utils.messages import format_names
    >>> format_names(["CD4", "CD8A", "CD19"], limit=2)
    "'CD4', 'CD8A', ... (3 in all)"
    """
    quoted = [repr(str(name)) for name in names]
    if not quoted:
        return "none"
    return ", ".join(quoted[:limit]) + (f", ... ({len(quoted)} in all)" if len(quoted) > limit else "")


def describe_value(value: Any) -> str:
    """Return a value that an argument cannot have, as the code that makes it, or its type if that is long.

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.utils.messages import describe_value
    >>> describe_value("abc"), describe_value(np.zeros((9, 9)))
    ("'abc'", 'of type ndarray')
    """
    text = repr(value)
    return text if len(text) <= MAX_VALUE and "\n" not in text else f"of type {type(value).__name__}"


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """Return a note that proposes the known name most similar to `name`, ignoring case; empty if none is similar.

    Examples
    --------
    >>> from celldial.utils.messages import did_you_mean
    >>> did_you_mean("Cd4", ["CD4", "CD19"])
    " (did you mean 'CD4'?)"
    """
    name_of_upper = {str(other).upper(): str(other) for other in known}
    close = get_close_matches(str(name).upper(), name_of_upper, n=1)
    return f" (did you mean {name_of_upper[close[0]]!r}?)" if close else ""


def get_column(table: pd.DataFrame, key: str, role: str = "covariate") -> pd.Series:
    """Return a column of a table.

    Parameters
    ----------
    table
        The table.
    key
        Name of the column.
    role
        What the error message calls the column.

    Raises
    ------
    KeyError
        The table has no such column.
    TypeError
        `key` is not a name.
    ValueError
        The table has several columns of this name.
    """
    if not isinstance(key, str):
        raise TypeError(f"{role} is {describe_value(key)}: it must be the name of one column")
    if key not in table.columns:
        raise KeyError(
            f"{role} {key!r} is not among the columns{did_you_mean(key, table.columns)}; the columns are: "
            f"{format_names(table.columns)}"
        )
    column = table[key]
    if column.ndim > 1:
        raise ValueError(
            f"{column.shape[1]} columns are called {key!r}, so {role} {key!r} is ambiguous: rename or delete the others"
        )
    return column

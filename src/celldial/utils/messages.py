"""Things looked up by name, and what to say where a name is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import pandas as pd

__all__ = ["feature_noun", "format_names", "get_column"]

FEATURE_NOUNS = {"rna": "gene", "atac": "peak", "protein": "protein"}


def feature_noun(modality: str) -> str:
    """Name what one feature of a modality is."""
    return FEATURE_NOUNS.get(modality, "feature")


def format_names(names: Iterable[Any], limit: int = 10) -> str:
    """Write names for an error message, the first few where there are many."""
    shown = [repr(str(name)) for name in names]
    if not shown:
        return "none"
    return ", ".join(shown[:limit]) + (f", ... ({len(shown)} in all)" if len(shown) > limit else "")


def get_column(table: pd.DataFrame, key: str, what: str = "covariate") -> pd.Series:
    """Look a column up; `what` says in the error what it was wanted for."""
    if key not in table.columns:
        close = get_close_matches(str(key), [str(column) for column in table.columns])
        hint = f"did you mean {format_names(close)}? There" if close else "there"
        raise KeyError(f"{what} {key!r} is not among the columns given; {hint} are: {format_names(table.columns)}")
    return table[key]

"""Conversion of results to the types of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["to_json", "without_none"]


def to_json(value: Any) -> Any:
    """Convert numbers and arrays of numpy, sequences and dicts to JSON types."""
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def without_none(value: Any) -> Any:
    """Return a value without the entries of dicts that are None: earlier versions of anndata cannot read them."""
    if not isinstance(value, Mapping):
        return value
    return {key: without_none(part) for key, part in value.items() if part is not None}

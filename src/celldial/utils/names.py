"""Values of columns as names: the same number is the same name, whether it is stored as 1, 1.0, "1" or "1.0"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["find_name", "has_value", "to_name"]

WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")


def to_name(value: Any) -> str:
    """Return a value of a column as text; whole numbers have no decimal places.

    Columns of numbers change their type easily: a missing value makes integers floats, and a file may store them as
    text.

    Examples
    --------
    >>> from celldial.utils.names import to_name
    >>> [to_name(value) for value in (1, 1.0, "1.0", "donor 1", 1.5, "01")]
    ['1', '1', '1', 'donor 1', '1.5', '01']
    """
    text = str(value)
    whole = WHOLE_NUMBER.fullmatch(text)
    return text if whole is None else whole[1]


def find_name(value: Any, known: Sequence[str]) -> int:
    """Return the position of a value among names, -1 if it is none of them. An identical name comes first.

    Examples
    --------
    >>> from celldial.utils.names import find_name
    >>> find_name(1.0, ["0", "1"]), find_name("1", ["1.0", "1"]), find_name("2", ["0", "1"])
    (1, 1, -1)
    """
    if str(value) in known:
        return known.index(str(value))
    name = to_name(value)
    return next((k for k, other in enumerate(known) if to_name(other) == name), -1)


def has_value(column: pd.Series, value: Any) -> np.ndarray:
    """Return a mask of the cells whose value in a column is `value`, or else has the same name; boolean.

    Examples
    --------
    >>> import pandas as pd
    >>> from celldial.utils.names import has_value
    >>> has_value(pd.Series([0.0, 1.0, None]), "1").tolist()
    [False, True, False]
    """
    equal_c: np.ndarray = (column.astype(object) == value).to_numpy(dtype=bool)
    if equal_c.any():
        return equal_c
    code_c, values = pd.factorize(column)
    same: Iterable[bool] = (to_name(other) == to_name(value) for other in values)
    return np.append(np.fromiter(same, dtype=bool, count=len(values)), False)[code_c]

"""Checks of the types of arguments against the type hints of a function."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

import numpy as np
import pandas as pd
import torch

from celldial.utils.messages import describe_value

__all__ = ["check_types", "validate_types"]

P = ParamSpec("P")
R = TypeVar("R")

SEQUENCES = (Sequence, np.ndarray, pd.Index, pd.Series)
NOUNS: dict[Any, str] = {
    str: "text",
    bool: "True or False",
    int: "an integer",
    float: "a number",
    type(None): "None",
    Path: "a path",
    pd.DataFrame: "a DataFrame",
    np.ndarray: "an array",
}


def check_types(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise if an argument is not of the type that the signature of a function states.

    Arrays and columns count as sequences, text does not. Integers are checked with their range elsewhere: here, any
    number passes for an integer, and any text for a `typing.Literal`.

    Parameters
    ----------
    function
        Function with type hints.
    arguments
        Argument to its value.

    Raises
    ------
    TypeError
        An argument has another type; the message names it.

    Examples
    --------
    >>> from celldial.utils.argument_types import check_types
    >>> def denoise(layer: str | None = None): ...
    >>> check_types(denoise, {"layer": ["counts"]})
    Traceback (most recent call last):
        ...
    TypeError: layer is ['counts']: it must be text or None
    """
    hints = _hints(function)
    for name, value in arguments.items():
        if name in hints and not _is_of(value, hints[name]):
            wanted = _describe(hints[name])
            remedy = f", such as [{value!r}]" if isinstance(value, str) and "a list" in wanted else ""
            raise TypeError(f"{name} is {describe_value(value)}: it must be {wanted}{remedy}")


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a function or class, without those of names that only type checkers import."""
    hints = {}
    scope = vars(sys.modules[function.__module__])
    for name, hint in function.__annotations__.items():
        with contextlib.suppress(NameError):
            hints[name] = eval(hint, scope) if isinstance(hint, str) else hint
    return hints


def validate_types(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that raises a TypeError if an argument is not of the type that its signature states.

    Examples
    --------
    >>> from celldial.utils.argument_types import validate_types
    >>> @validate_types
    ... def denoise(layer: str | None = None): ...
    >>> denoise(["counts"])
    Traceback (most recent call last):
        ...
    TypeError: layer is ['counts']: it must be text or None
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def validated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # missing or unknown arguments, which the call itself reports
            arguments = {}
        check_types(function, arguments)
        return function(*args, **kwargs)

    return validated


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value has the type of a hint."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is Sequence:
        is_text = isinstance(value, str | bytes)
        return isinstance(value, SEQUENCES) and not is_text and np.ndim(value) == 1 and _all_of(value, parts[0])
    if origin is tuple:
        return isinstance(value, tuple | list)
    if hint in (int, float):
        return isinstance(value, int | float | np.number)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is np.ndarray:
        is_text = isinstance(value, str | bytes)
        return (isinstance(value, (*SEQUENCES, pd.DataFrame)) and not is_text) or torch.is_tensor(value)
    return isinstance(value, hint) if hint in NOUNS else True


def _all_of(values: Iterable[Any], hint: Any) -> bool:
    """Return whether all values have the type of a hint."""
    return all(_is_of(value, hint) for value in values)


def _describe(hint: Any) -> str:
    """Return what a hint allows, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Mapping:
        return "a dict"
    if origin is Sequence:
        return "a list" if parts[0] is Any else f"a list of {_describe(parts[0])}"
    if origin is tuple:
        return "a tuple"
    return NOUNS.get(hint, getattr(hint, "__name__", str(hint)))

"""Interruptions of training at a chosen call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class Interrupted(Exception):
    """The error that ends training."""


@contextmanager
def interrupt_at(where: Any, name: str, call: int, error: BaseException) -> Iterator[None]:
    """Make the function `name` of `where` raise `error` at its `call`-th call within the block."""
    function: Callable[..., Any] = getattr(where, name)
    n_calls = 0

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            raise error
        return function(*args, **options)

    with mock.patch.object(where, name, failing):
        yield

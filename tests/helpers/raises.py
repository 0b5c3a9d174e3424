"""Assertions about errors and warnings: their type and the facts they name, never their wording."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def raises(
    expected: type[BaseException] | tuple[type[BaseException], ...], naming: Sequence[Any] = ()
) -> Iterator[Any]:
    """Assert that the block raises `expected`, and that the message contains each fact of `naming`.

    Facts are what a user needs to find the fault: a cell, a gene, a key, a value, a file.
    """
    with pytest.raises(expected) as caught:
        yield caught
    missing = [fact for fact in map(str, naming) if fact not in message_of(caught.value)]
    assert not missing, f"the message does not name {missing}: {message_of(caught.value)}"


@contextmanager
def warns(expected: type[Warning] = UserWarning, naming: Sequence[Any] = ()) -> Iterator[Any]:
    """Assert that the block warns, and that one message contains each fact of `naming`."""
    with pytest.warns(expected) as caught:
        yield caught
    messages = [str(each.message) for each in caught if issubclass(each.category, expected)]
    assert any(all(str(fact) in message for fact in naming) for message in messages), (
        f"no message names all: {messages}"
    )


def message_of(error: BaseException) -> str:
    """Return the message of an error as a user reads it: `KeyError` quotes it once more."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)

"""Assertions about errors and warnings: their type and the facts they name, never their wording."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def raises(
    expected: type[BaseException] | tuple[type[BaseException], ...],
    naming: Sequence[Any] = (),
    omitting: Sequence[Any] = (),
) -> Iterator[Any]:
    """Assert that the block raises `expected`, and that the message has each fact of `naming` and none of `omitting`.

    Facts are what a user needs to find the fault: a cell, a gene, a key, a value, a file. They are whole words: 3 is
    not in "13 cells", and "age" is not in "percentage".
    """
    with pytest.raises(expected) as caught:
        yield caught
    message = message_of(caught.value)
    missing = missing_facts(message, naming)
    assert not missing, f"the message does not name {missing}: {message}"
    found = [str(fact) for fact in omitting if not missing_facts(message, [fact])]
    assert not found, f"the message names {found}: {message}"


@contextmanager
def warns(expected: type[Warning] = UserWarning, naming: Sequence[Any] = ()) -> Iterator[Any]:
    """Assert that the block warns, and that one message contains each fact of `naming`."""
    with pytest.warns(expected) as caught:
        yield caught
    messages = [str(each.message) for each in caught if issubclass(each.category, expected)]
    assert any(not missing_facts(message, naming) for message in messages), f"no message names all: {messages}"


def logged(caplog: pytest.LogCaptureFixture, naming: Sequence[Any]) -> list[str]:
    """Return the log messages that contain each fact of `naming`."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if not missing_facts(message, naming)]


def message_of(error: BaseException) -> str:
    """Return the message of an error as a user reads it: `KeyError` adds quotation marks."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def missing_facts(message: str, facts: Sequence[Any]) -> list[str]:
    """Return the facts that `message` does not contain as whole words."""
    assert not isinstance(facts, str), "naming must be a list of facts"
    return [str(fact) for fact in facts if not re.search(pattern(fact), message)]


def pattern(fact: Any) -> str:
    """Return the regular expression that matches a fact as a whole word, or as a whole number."""
    text = str(fact)
    if isinstance(fact, int | float) and not isinstance(fact, bool):
        return rf"(?<![\w.])(?:{re.escape(text)}|{re.escape(f'{fact:,}')})(?!\w|\.\d)"
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    after = r"(?!\w)" if re.search(r"\w$", text) else ""
    return before + re.escape(text) + after

"""Types of command-line arguments: functions that read a value, or raise with the reason."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def integer_at_least(minimum: int) -> Callable[[str], int]:
    """Return a function that parses integers of at least `minimum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {minimum}")
        return int(text)

    return parse


def parse_pair(text: str) -> tuple[str, str]:
    """Return name and value of ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def likelihood_of(names: list[str]) -> Callable[[str], tuple[str, str]]:
    """Return a function that parses ``MODALITY=NAME``, or ``NAME`` for all modalities, which are then ""."""

    def parse(text: str) -> tuple[str, str]:
        modality, name = parse_pair(text) if "=" in text else ("", text)
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r} is not a likelihood: choose one of {', '.join(names)}")
        return modality, name

    return parse

"""One item is prepared in a thread while the one before it is in use."""

import threading

import pytest

from celldial.utils.prefetch import prefetch


def test_exactly_one_item_is_prefetched():
    made, used = [], threading.Event()

    def items():
        for item in range(4):
            made.append(item)
            if item == 2:
                assert used.wait(600)
            yield item

    generator = prefetch(items())
    assert made == []
    assert next(generator) == 0
    assert next(generator) == 1
    used.set()
    assert list(generator) == [2, 3]


def test_errors_are_raised_when_the_item_is_requested():
    def items():
        yield 1
        raise OSError("gone")

    generator = prefetch(items())
    assert next(generator) == 1
    with pytest.raises(OSError, match="gone"):
        next(generator)

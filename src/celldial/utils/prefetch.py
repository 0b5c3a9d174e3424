"""Preparing the next item in a thread while the current one is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")
END = object()


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield items, and prepare the next one in a thread while the current one is in use.

    If an item fails, its error is raised when the item is requested. The thread ends when this generator is exhausted
    or closed; closing waits for the item in preparation.

    Parameters
    ----------
    items
        Lazy iterable, such as a generator, that does the work for an item when the item is requested.

    Examples
    --------
    >>> from celldial.utils.prefetch import prefetch
    >>> list(prefetch(n * n for n in range(4)))
    [0, 1, 4, 9]
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="celldial-prefetch") as thread:
        pending = thread.submit(next, iterator, END)
        while (item := pending.result()) is not END:
            pending = thread.submit(next, iterator, END)
            yield item  # type: ignore[misc]  # it is not END
            del item  # so that at most two items are in memory

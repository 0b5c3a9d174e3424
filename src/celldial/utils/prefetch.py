"""Making the next thing while the current one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")
END = object()


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Have one item made in a thread while the one before it is used.

    Errors of making an item are raised where it was to be used. The thread ends with this generator: where it is closed
    early, once the item under way is made.

    Parameters
    ----------
    items
        Makes an item when it is asked for the next.

    Examples
    --------
    >>> from celldial.utils.prefetch import prefetch
    >>> list(prefetch(n * n for n in range(4)))
    [0, 1, 4, 9]
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="celldial-ahead") as thread:
        pending = thread.submit(next, iterator, END)
        while (item := pending.result()) is not END:
            pending = thread.submit(next, iterator, END)
            yield item  # type: ignore[misc]  # END was told apart above
            del item  # so that no more than two are held

"""Iterators that run ahead of their consumer in a thread."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def ahead(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Within it, an iterator over `items`, which a thread takes before they are asked for, at most `count` of them.

    What `items` raises is raised where they are asked for. Leaving stops the thread after the item at hand.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:

        def ordered() -> Any:
            return thread.submit(next, iterator, end)

        def given() -> Iterator[T]:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(ordered())
                yield item

        waiting = deque(ordered() for _ in range(count))
        try:
            yield given()
        finally:
            thread.shutdown(cancel_futures=True)

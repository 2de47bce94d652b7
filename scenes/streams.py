"""Iterators that run ahead of their consumer in a thread."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def ahead(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Within it, an iterator over `items`, which a thread takes before they are asked for, at most `count` of them.

    What `items` raises is raised where they are asked for. Leaving stops the thread after the item at hand.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        order = partial(thread.submit, next, iter(items), end)
        waiting: deque[Any] = deque(order() for _ in range(count))

        def given() -> Iterator[T]:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(order())
                yield item

        try:
            yield given()
        finally:
            thread.shutdown(cancel_futures=True)

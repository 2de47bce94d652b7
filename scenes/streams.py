"""Iterators that run ahead of their consumer in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def ahead(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Within it, an iterator over `items`, which a thread takes before they are asked for, at most `count` of them.

    What `items` raises is raised where they are asked for. Leaving stops the thread after the item at hand.
    """
    queue: Queue[tuple[str, Any]] = Queue(count)
    left = threading.Event()

    def put(kind: str, content: Any) -> None:
        while not left.is_set():
            try:
                return queue.put((kind, content), timeout=0.1)
            except Full:
                continue

    def take() -> None:
        try:
            for item in items:
                put("item", item)
                if left.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    def given() -> Iterator[T]:
        while True:
            kind, content = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise content
            yield content

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        left.set()
        while not queue.empty():  # what nobody will ask for
            try:
                queue.get_nowait()
            except Empty:
                break
        thread.join()

"""SIGTERM and Ctrl-C that wait for the end of a step."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from utils.errors import Interrupted

CONTINUES = "the same command continues from what is finished"


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM is raised as `Interrupted`, like Ctrl-C, so that what is half-done is cleared away."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(f"terminated; {CONTINUES}", number)

    with _handling({signal.SIGTERM: stop}):
        yield


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Within it, SIGTERM and SIGINT are only noted in the list that it gives; the same one again acts as before."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, before[signal.Signals(number)])
        print("\nstopping after this step; the same signal again stops at once", file=sys.stderr)

    with _handling({signal.SIGTERM: note, signal.SIGINT: note}) as before:
        yield noted


@contextmanager
def _handling(handlers: dict[signal.Signals, signal._HANDLER]) -> Iterator[dict[signal.Signals, signal._HANDLER]]:
    """Gives the handlers that were there before. Outside the main thread, where Python sets none, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before: dict[signal.Signals, signal._HANDLER] = {}
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

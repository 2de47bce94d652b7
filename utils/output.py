"""What goes to the terminal or a log: standard streams whose reader may go away, and progress."""

import io
import os
import sys
from _thread import interrupt_main
from collections.abc import Iterable
from signal import SIGTERM
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines of progress where there is no terminal
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(things: Iterable[Any] | None = None, **style: Any) -> "tqdm[Any]":
    """A progress bar on stderr; where that is no terminal, a plain line now and then, and none of what takes less."""
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(things, dynamic_ncols=True, **style)
    seldom = {"mininterval": EVERY, "miniters": 1, "delay": EVERY}
    return tqdm(things, **{**style, **seldom}, bar_format=LINE, file=_Lines())


class _Lines(io.StringIO):
    """What tqdm writes, as lines of stderr without the codes that move a cursor."""

    def write(self, text: str) -> int:
        if sys.stderr is not None and (line := text.replace("\x1b[A", "").strip()):
            print(line, file=sys.stderr, flush=True)
        return len(text)


def guard_streams() -> None:
    """Have stdout and stderr never fail: when one of them cannot be written to any more, such as a pipe without a
    reader, what follows is dropped, and this process is asked to end, once, as by SIGTERM. An exception there could
    come in any thread, with the locks of what was being written held."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:  # a stream that is closed: no file may take its number
        pass
    os.close(null)
    asked: list[int] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Guarded(stream.fileno(), asked)
            buffer = raw if stream.write_through else io.BufferedWriter(raw)
            how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, **how))


class _Guarded(io.FileIO):
    def __init__(self, number: int, asked: list[int]) -> None:
        super().__init__(number, "w", closefd=False)
        self.asked = asked

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if not self.asked:
                self.asked.append(SIGTERM)
                interrupt_main(SIGTERM)
            return len(content)

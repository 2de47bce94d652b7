"""Cases that do what no case may do, and two that are as they should be, to see that the runner tells."""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from tests.fuzz.runner import Case, Try
from utils.errors import DataError


def _raise(error: Exception) -> None:
    raise error


WAYS: dict[str, Callable[[Path], object]] = {
    "sound": lambda box: (box / "inside").write_text("x", "utf-8"),
    "named": lambda box: _raise(DataError("data.png: is damaged")),
    "unnamed": lambda box: _raise(DataError("something is damaged")),
    "traceback": lambda box: _raise(KeyError("x")),
    "exit": lambda box: os._exit(0),
    "crash": lambda box: ctypes.string_at(0),
    "hang": lambda box: time.sleep(60),
    "memory": lambda box: np.ones(2**30, np.uint8),
    "written": lambda box: (box / "../escaped").write_text("x", "utf-8"),
    "written_natively": lambda box: ctypes.CDLL(None).creat(os.fsencode(box.parent / "escaped"), 0o644),
    "changed": lambda box: ctypes.CDLL(None).truncate(os.fsencode(box.parent / "seed"), 3),
    "started": lambda box: subprocess.run(["true"], check=True),
}


def _case(name: str) -> Callable[[Random, Path, Path], Case]:
    return lambda rng, base, box: [Try(lambda: WAYS[name](box), ("data.png",))]


FAULTS = {name: _case(name) for name in WAYS}

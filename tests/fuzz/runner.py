"""Cases in forked processes: limits of time and memory, a watch on what is written, and what became of each."""

import ctypes
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from utils.errors import AsdaError

BATCH = 50  # cases of one process
TEXT = 400  # characters of an error that are kept
M_ARENA_MAX = -8  # of malloc.h: every arena of a thread would count 64 MiB against the limit of memory
CHANGES = {  # audit event -> which of its arguments are paths that it changes, and the folders they are relative to
    **{"os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),)},
    **{"os.symlink": ((1, 2),), "os.link": ((1, 3),), "os.chmod": ((0, 2),), "os.utime": ((0, 3),)},
    **{"os.truncate": ((0, None),), "open": ((0, None),)},
}
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo")
Result = dict[str, Any]


class Try(NamedTuple):
    """A call that has to succeed or to raise one of the project's errors, which has to hold one of these texts."""

    call: Callable[[], object]
    names: tuple[str, ...]


Case = list[Try]
Kinds = dict[str, Callable[[Random, Path, Path], Case]]


def run(wanted: Sequence[tuple[str, int]], base: Path, seconds: float, memory: int) -> list[Result]:
    """Run the cases below `base`, and say of each how its calls ended and what was wrong.

    Args:
        wanted: kind and number of each.
        seconds: that a case may take.
        memory: bytes that its process may take beyond what it began with.
    """
    sys.dont_write_bytecode = True
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    kinds = _load(base, {kind for kind, _ in wanted})
    results: list[Result] = []
    while len(results) < len(wanted):
        results += _batch(wanted[len(results) : len(results) + BATCH], kinds, base, seconds, memory)
    return results


def _load(base: Path, names: set[str]) -> Kinds:
    """The kinds, and the valid files below `base`, made in a process of their own: this one stays without threads, so
    that it can be forked safely."""
    from tests.fuzz.faults import FAULTS

    (base / "seed").write_text("nobody changes this\n", "utf-8")
    if names <= FAULTS.keys():
        return FAULTS
    from tests.fuzz.kinds import KINDS
    from tests.fuzz.seeds import make
    from tests.fuzz.shared import prepare

    child = os.fork()
    if not child:
        loud = os.dup(2)
        _silence()
        try:
            make(base)
            os._exit(0)
        except BaseException:
            os.write(loud, traceback.format_exc().encode())
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the valid files could not be made")
    prepare(base)
    return KINDS


def _batch(wanted: Sequence[tuple[str, int]], kinds: Kinds, base: Path, seconds: float, memory: int) -> list[Result]:
    """The results of as many of the cases as one process gets through; of the last one it may not have come back."""
    read, write = os.pipe()
    trace = base / "trace"
    child = os.fork()
    if not child:
        try:
            os.close(read)
            _work(wanted, kinds, base, memory, write, trace)
        finally:
            os._exit(1)
    os.close(write)
    results: list[Result] = []
    lines, fault = b"", None
    while len(results) < len(wanted) and fault is None:
        if not select.select([read], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
            fault = f"took more than {seconds:g} s"
        elif part := os.read(read, 2**20):
            *whole, lines = (lines + part).split(b"\n")
            results += map(json.loads, whole)
        else:
            fault = "its process ended"
    os.close(read)
    status = os.waitpid(child, 0)[1]
    if fault is not None:
        kind, number = wanted[len(results)]
        where = trace.read_text("utf-8", "replace")[-2000:] if trace.exists() else ""
        fault = f"{fault} (status {os.waitstatus_to_exitcode(status)}) {where}"
        results.append({"kind": kind, "case": number, "ways": [], "fault": fault, "seconds": seconds})
    trace.unlink(missing_ok=True)
    shutil.rmtree(base / "box", ignore_errors=True)
    return results


def _work(wanted: Sequence[tuple[str, int]], kinds: Kinds, base: Path, memory: int, answer: int, trace: Path) -> None:
    _silence()
    box = base / "box"
    os.chdir(base)
    tempfile.tempdir = str(box)
    with open(trace, "w", encoding="utf-8") as traced:
        faulthandler.enable(traced)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        watch = _Watch(box)
        sys.addaudithook(watch)
        for kind, number in wanted:
            result = _one(kinds[kind], Random(f"{kind} {number}"), base, box, watch)
            line = json.dumps({"kind": kind, "case": number, **result}) + "\n"
            os.write(answer, line.encode())
    os._exit(0)


def _one(kind: Callable[[Random, Path, Path], Case], rng: Random, base: Path, box: Path, watch: "_Watch") -> Result:
    watch.faults.clear()
    before, began, ways = _tree(base), time.monotonic(), []
    box.mkdir()
    errors, fault = [], None
    try:
        for call, names in kind(rng, base, box):
            try:
                call()
                ways.append("success")
            except AsdaError as error:
                ways.append("error")
                errors.append(str(error)[:TEXT])
                assert any(name in str(error) for name in names), f"names none of {names}: {error}"
    except BaseException:
        fault = traceback.format_exc(limit=-6)
    seconds = time.monotonic() - began
    written = watch.faults or [f"{path} was written" for path in sorted({path for path, _ in _tree(base) ^ before})]
    if written:
        fault = f"{fault or ''}{'; '.join(written[:4])}"
    watch.off = True
    shutil.rmtree(box)
    watch.off = False
    return {"ways": ways, "errors": errors, "fault": fault, "seconds": seconds}


def _tree(base: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Every file below `base` but those of the case, with what changes when it is written."""
    found = set()
    for folder, folders, files in os.walk(base):
        if folder == str(base):
            folders[:] = [name for name in folders if name != "box"]
            files = [name for name in files if name != "trace"]
        for name in (*folders, *files):
            status = os.lstat(os.path.join(folder, name))
            size = (status.st_size, status.st_mtime_ns) if name in files else ()
            found.add((os.path.join(folder, name), (status.st_mode, *size)))
    return found


class _Watch:
    """An audit hook that keeps what Python's own functions write outside of a folder, start or connect to; what native
    code writes is seen by `_tree`."""

    def __init__(self, box: Path) -> None:
        self.inside = f"{box}/"
        self.faults: list[str] = []
        self.off = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.off:
            return
        if event in FORBIDDEN or (event == "subprocess.Popen" and Path(arguments[0]).name != "git"):
            self.faults.append(f"{event} {arguments!r:.200}")
        elif event in CHANGES and not (event == "open" and not _writes(arguments)):
            for place, folder in CHANGES[event]:
                path = arguments[place]
                if isinstance(path, int) or path is None:
                    continue
                fixed = folder is not None and arguments[folder] >= 0
                below = os.readlink(f"/proc/self/fd/{arguments[folder]}") if fixed else os.getcwd()
                full = os.path.normpath(os.path.join(below, os.fsdecode(path)))
                if not full.startswith(self.inside) and full not in (self.inside[:-1], os.devnull):
                    self.faults.append(f"{event} {full}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] or 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))


def _silence() -> None:
    """Send what is printed, by native libraries too, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)

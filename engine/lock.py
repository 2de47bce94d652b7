"""One writer for a folder."""

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import ConfigError, unwritable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

FAR = 2**30  # a byte that Windows locks, far behind the text, since it lets nobody read it
LOCK = ".lock"


@contextmanager
def one_writer(folder: str | Path, *, wait: bool = False, name: str = LOCK) -> Iterator[None]:
    """Within it, this process is the only one that writes to `folder`, which is made if it is not there.

    The lock is the system's, so it ends with the process, however that ends, and is not inherited by loader processes.
    A process must not take the same lock twice.

    Args:
        wait: for the other one, instead of refusing.
        name: of the lock's file; locks of other names are independent of this one.

    Raises:
        ConfigError: another process writes there; names it.
        DataError: the folder cannot be written to.
    """
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        try:
            _take(file.fileno(), wait=False)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or "another process"
            in_use = f"{folder}: in use by {owner}"
            if not wait:
                raise ConfigError(f"{in_use}; wait until it has ended, or give another --out") from None
            print(f"{in_use}; waiting for it")
            _take(file.fileno(), wait=True)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        try:  # not by way of the file's buffer, of which a full disk would be told again when it is closed
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}: {command}\n".encode())
        except OSError as error:
            raise unwritable(path, error) from None
        yield


def _take(file: int, *, wait: bool) -> None:
    """Take the lock of an open file, which a process gives back when it ends; BlockingIOError or PermissionError if
    another one has it."""
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    while True:
        os.lseek(file, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            return
        except PermissionError:
            if not wait:
                raise
            time.sleep(1)

"""Writing files so that they are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from utils.errors import unwritable


@contextmanager
def whole(path: Path, needed: int | None = None, *, shared: bool = False) -> Iterator[Path]:
    """Within it, another name to write to; at its end that file is synced to the disk and takes the place of `path`.

    Whatever is raised, and whenever the process is killed, `path` is what it was before, or the whole new file. If it
    cannot be written, DataError is raised.

    Args:
        needed: size in bytes, for the message.
        shared: other processes may write `path` at the same time.
    """
    own = f".{uuid4().hex[:8]}" if shared else ""
    temporary = path.with_name(f"{path.name}{own}.tmp")
    try:
        yield temporary
        put_in_place(temporary, path)
    except OSError as error:
        raise unwritable(path, error, needed) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def put_in_place(finished: Path, path: Path) -> None:
    """Give a file, once it is on the disk, its name."""
    with open(finished, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(finished, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; see `whole`."""
    with whole(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `whole`."""
    write_bytes(path, text.encode("utf-8"))

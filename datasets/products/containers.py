"""Where a product's files lie: a folder, a zip or a tar, read in place, and nothing outside of it."""

import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.drivers import XML_LIMIT
from datasets.files import below
from utils.errors import CONTROL, DataError

OUTSIDE = re.compile(r"^(/|[A-Za-z]:)|\\|(^|/)\.\.(/|$)")  # a name that leads out of its archive somewhere
AGAIN = "download the product again"


@dataclass(frozen=True)
class Container:
    """A folder or an archive.

    Attributes:
        path: it.
        names: of its files, with / between folders; all of them lie within it.
        prefix: what makes GDAL's name of one of `names`.
        content: at most so many bytes of one of them.
    """

    path: Path
    names: frozenset[str]
    prefix: str
    content: Callable[[str, int], bytes]

    def read(self, name: str) -> bytes:
        """A small file, such as metadata; raises DataError if it cannot be read or is too large for that."""
        try:
            content = self.content(name, XML_LIMIT + 1)
        except Exception as error:  # a damaged or encrypted archive fails with errors of any class
            raise DataError(f"{self.path / name}: cannot be read ({error}); {AGAIN}") from None
        if len(content) > XML_LIMIT:
            raise DataError(f"{self.path / name}: has more than {XML_LIMIT} bytes, expected metadata; {AGAIN}")
        return content


def open_container(path: Path) -> Container:
    """A folder, zip or tar; raises DataError if it is none, cannot be read, or holds a path out of itself."""
    try:
        if path.is_dir():
            return _folder(path)
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        return _zip(path) if zipped else _tar(path)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a folder, zip or tar ({error}); {AGAIN}") from None


def _folder(path: Path) -> Container:
    home = path.resolve()
    files = [file for file in below(path, path) if file.is_file()]
    if outside := [file for file in files if file.is_symlink() and not file.resolve().is_relative_to(home)]:
        raise DataError(f"{outside[0]}: leads out of {path} by a symbolic link; copy it there")

    def content(name: str, limit: int) -> bytes:
        with open(path / name, "rb") as file:
            return file.read(limit)

    return Container(path, _checked(path, [file.relative_to(path).as_posix() for file in files]), f"{home}/", content)


def _zip(path: Path) -> Container:
    with zipfile.ZipFile(path) as archive:
        names = [member.filename for member in archive.infolist() if not member.is_dir()]

    def content(name: str, limit: int) -> bytes:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(limit)

    return Container(path, _checked(path, names), f"/vsizip/{{{path.resolve()}}}/", content)


def _tar(path: Path) -> Container:
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
    if links := [member.name for member in members if not (member.isfile() or member.isdir())]:
        raise DataError(f"{path}: holds {links[0]!r}, a link or a device, expected files; {AGAIN}")

    def content(name: str, limit: int) -> bytes:
        with tarfile.open(path, "r:") as archive:
            file = archive.extractfile(name)
            assert file is not None  # it is a file
            return file.read(limit)

    names = [member.name for member in members if member.isfile()]
    return Container(path, _checked(path, names), f"/vsitar/{{{path.resolve()}}}/", content)


def _checked(path: Path, names: list[str]) -> frozenset[str]:
    for name in names:
        if OUTSIDE.search(name):
            raise DataError(f"{path}: holds {name!r}, a path out of it; do not unpack it, and {AGAIN}")
        if CONTROL.search(name):
            raise DataError(f"{path}: holds {name!r}, a name with control characters; {AGAIN}")
    return frozenset(names)

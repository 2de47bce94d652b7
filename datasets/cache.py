"""Decoded images on disk, so that decoding is paid once.

An entry is named by a hash of its files' content and of every setting that decides how they are decoded, so it never
goes out of date, any number of runs can share and make it at once, and it may be deleted at any time. It is mapped into
memory and not read: a crop costs its own pixels, and what fits into memory stays there between epochs.
"""

import hashlib
import json
import mmap
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets.decoded import Decoded
from datasets.decoder import Decoder
from datasets.files import Item
from utils.errors import DataError
from utils.files import whole

VERSION = 6  # of the layout and of the decoding; an older entry is not found any more
HEADER = struct.Struct("<8i")  # magic, planes, height, width, top, left, full height, full width
START = HEADER.size + 4  # bytes before the pixels: these and their CRC-32
MAGIC = 0x41445341


class Cache:
    """A folder of decoded images and labels."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def key(self, item: Item, decoder: Decoder) -> tuple[str, str | None]:
        """The names of the entries of an image and of its label, whole: tiles of an image share them."""
        how = [decoder.bands, decoder.file_bands, decoder.scaling, decoder.nodata, decoder.scale, decoder.offset]
        image = _name(["image", *how], decoder.sources(item))
        label = None if item.label is None else _name(["label", sorted(decoder.label_map.items())], (item.label,))
        return image, label

    def image(self, key: str, bands: int, decode: Callable[[], Decoded]) -> Decoded:
        """The decoded image of a key, of so many bands, made if it is not there."""
        if (entry := self._open(key)) is None:
            decoded = decode()
            planes = decoded.image.transpose(2, 0, 1)
            if not decoded.valid.all():
                planes = np.concatenate([planes, decoded.valid[None]])
            self._write(key, planes, (decoded.top, decoded.left, decoded.height, decoded.width))
            return decoded
        planes, place = entry
        valid = np.broadcast_to(np.True_, planes.shape[1:]) if len(planes) == bands else planes[bands].view(bool)
        return Decoded(planes[:bands].transpose(1, 2, 0), None, valid, *place)

    def label(self, key: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The decoded label of a key, made if it is not there."""
        if (entry := self._open(key)) is None:
            label = decode()
            self._write(key, label[None], (0, 0, *label.shape))
            return label
        return entry[0][0]

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _open(self, key: str) -> tuple[np.ndarray, tuple[int, ...]] | None:
        """The planes (n, h, w) of an entry, mapped, and its place; None if it is not there or is not whole."""
        try:
            with open(self._path(key), "rb") as file:
                content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError):  # none, or an empty one
            return None
        start, pixels = content[:START].tobytes(), content[START:]
        if start != _with_check(start[: HEADER.size]):  # of a short file too
            return None
        magic, count, height, width, top, left, full_height, full_width = HEADER.unpack_from(start)
        inside = 0 <= top <= full_height - height and 0 <= left <= full_width - width
        fits = min(count, height, width) >= 1 and len(pixels) == count * height * width
        place = top, left, full_height, full_width
        return (pixels.reshape(count, height, width), place) if magic == MAGIC and inside and fits else None

    def _write(self, key: str, planes: np.ndarray, place: tuple[int, ...]) -> None:
        path = self._path(key)
        start = _with_check(HEADER.pack(MAGIC, *planes.shape, *place))
        try:
            with whole(path, len(start) + planes.nbytes, shared=True) as temporary:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file:
                    file.write(start)
                    file.write(np.ascontiguousarray(planes).data)
        except DataError as error:
            raise DataError(f"{error}. Or set data.cache to another folder or to null") from None


def _with_check(header: bytes) -> bytes:
    return header + zlib.crc32(header).to_bytes(4, "little")


def _name(settings: list[object], files: tuple[Path, ...]) -> str:
    beside = (Path(f"{path}{end}") for path in files for end in (".msk", ".aux.xml"))  # what GDAL reads with a file
    headers = (path.with_suffix(".hdr") for path in files if path.suffix == ".img")
    files = (*files, *(path for path in (*beside, *headers) if path.is_file()))
    named = "\n".join([json.dumps([VERSION, *settings], default=str), *map(content_hash, files)])
    return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()


def content_hash(path: Path) -> str:
    """A hash of the content of a file; raises DataError if it cannot be read."""
    try:
        stat = path.stat()
        return _hash(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


@lru_cache(maxsize=256)  # the check for duplicates and the cache ask for the same files
def _hash(path: Path, size: int, modified: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

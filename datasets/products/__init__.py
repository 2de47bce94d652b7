"""Scenes as agencies deliver them, each a folder or an archive with a file a band."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets.products.containers import open_container
from datasets.products.landsat import METADATA as MTL
from datasets.products.landsat import landsat
from datasets.products.product import BandFile, Product
from datasets.products.sentinel2 import METADATA as MTD
from datasets.products.sentinel2 import sentinel2
from utils.errors import DataError

KINDS = ((MTD, sentinel2), (MTL, landsat))
# What an archive of a product is called, among other archives in a folder.
ARCHIVE = re.compile(r"S2\w_MSIL[12][AC]_.*\.zip|L[A-Z]0\d_L[12].*\.tar", re.IGNORECASE)
SAFE = ".SAFE"
# The beginning of a URL -> that of GDAL's name.
REMOTE = {
    "https://": "/vsicurl/https://",
    "http://": "/vsicurl/http://",
    "s3://": "/vsis3/",
    "gs://": "/vsigs/",
    "az://": "/vsiaz/",
}

__all__ = [
    "ARCHIVE",
    "SAFE",
    "Product",
    "is_product",
    "is_remote",
    "open_product",
    "product_folders",
    "product_of_files",
    "product_of_url",
]


def open_product(path: Path) -> Product:
    """The product in a folder, zip or tar: Sentinel-2 L1C or L2A, or Landsat 8 or 9 Collection 2.

    Its metadata lie at the top, or one folder below. Raises DataError if it holds none, or several, or broken ones.
    """
    container = open_container(path)
    found = [(name, read) for name in sorted(container.names) for kind, read in KINDS if _is_metadata(name, kind)]
    if len(found) != 1:
        listed = ", ".join(name for name, _ in found) or "no metadata"
        expected = "MTD_MSIL1C.xml or MTD_MSIL2A.xml of Sentinel-2, or one *_MTL.txt of Landsat"
        raise DataError(
            f"{path}: holds {listed}, expected {expected}; give each product a folder, or download it again"
        )
    [(name, read)] = found
    return read(container, name)


def _is_metadata(name: str, kind: re.Pattern[str]) -> bool:
    return name.count("/") <= 1 and kind.search(name) is not None


def is_product(path: Path) -> bool:
    """Whether a path that was given is to be a product: any archive, a folder that is called one or holds metadata."""
    if path.is_dir():
        return path.suffix.upper() == SAFE or any(map(_names_metadata, next(os.walk(path), ("", [], []))[2]))
    return path.suffix.lower() in (".zip", ".tar")


def product_folders(paths: Iterable[Path]) -> set[Path]:
    """The folders of products among files and folders."""
    return {path if path.suffix.upper() == SAFE else path.parent for path in paths if _marks(path)}


def _marks(path: Path) -> bool:
    return path.suffix.upper() == SAFE or _names_metadata(path.name)


def _names_metadata(name: str) -> bool:
    return any(kind.search(name) for kind, _ in KINDS)


def product_of_files(path: Path, files: Mapping[str, Path]) -> Product:
    """A scene of a file a band, by the names of the bands, of which nothing else is known; `path` names it."""
    return Product(path, {name: BandFile(file, str(file.resolve())) for name, file in files.items()}, agency=False)


def is_remote(text: str) -> bool:
    """Whether this is a URL of a file on the network or in an object store."""
    return text.startswith(tuple(REMOTE))


def product_of_url(url: str, bands: Sequence[str], labels: Mapping[str, str]) -> Product:
    """A scene on the network: a file of these `bands`, in their order, or with {band} in it a file a band, where
    `labels` says what stands for each. Nothing is asked for before it is opened."""
    start = next(start for start in REMOTE if url.startswith(start))
    opened = REMOTE[start] + url.removeprefix(start)
    if "{band}" not in url:
        files = {band: BandFile(url, opened, number=i, together=len(bands)) for i, band in enumerate(bands, start=1)}
    else:
        files = {
            band: BandFile(url.replace("{band}", label), opened.replace("{band}", label))
            for band, label in labels.items()
        }
    return Product(url, files, agency=False)

"""From files to arrays: PNG, JPEG and BMP by OpenCV, labels by Pillow, every kind of TIFF and ENVI by GDAL (rasterio).

The kind is told from the first bytes, not from the name: a JPEG that is called .tif is read as a JPEG.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from datasets.files import Window
from utils.errors import DataError

RGB = ("red", "green", "blue")
DTYPES = ("uint8", "uint16", "int16", "float32")
UPRIGHT = 1  # EXIF orientation
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF
PICTURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"BM": "bmp"}


class Bands(NamedTuple):
    """The pixels of one file: (H, W, C) of one of `DTYPES`, the names of the bands, and where it has data, (H, W) bool,
    by its alpha band, mask band or no-data tag."""

    pixels: np.ndarray
    names: tuple[str, ...]
    mask: np.ndarray


def read_bands(
    path: Path, names: Sequence[str] | None = None, window: Window | None = None, wanted: Sequence[str] | None = None
) -> Bands:
    """Decode an image file.

    Args:
        wanted: the names of the bands to give, in that order; None for all. The others say nothing about where there
            is data.
        names: of its bands, in the file's order; None takes those that the file gives, or gray, or red, green, blue. An
            alpha band has no name unless as many names are given as there are bands.

    Raises:
        DataError: it is missing, damaged, of a kind that would be misread, or has another number of bands.
    """
    kind = _kind(path)
    if kind is None:
        return _read_gdal(path, names, window, wanted)
    bands = _read_picture(path, kind, names)
    _require_count(path, len(bands.names), names, bands.pixels.shape[2])
    chosen = bands.pixels
    if wanted is not None and (order := _order(path, bands.names, wanted)) != list(range(chosen.shape[2])):
        chosen = chosen[..., order]
    return Bands(_cut_array(chosen, window), tuple(wanted or bands.names), _cut_array(bands.mask, window))


def _require_count(path: Path, known: int, names: Sequence[str] | None, count: int) -> None:
    if names is not None and len(names) != count:
        raise DataError(f"{path}: found {count} band(s), expected {len(names)}: {', '.join(names)}")
    if not known:
        raise DataError(f"{path}: found {count} bands without names; give the domain's bands, in the order of the file")


def _order(path: Path, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    if missing := [band for band in wanted if band not in names]:
        raise DataError(
            f"{path}: has no band {', '.join(missing)}, found {', '.join(names)}; set data.bands to bands that both "
            "domains have, or mend the domain's bands"
        )
    return [list(names).index(band) for band in wanted]


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises:
        DataError: it has none that can be read.
    """
    try:
        if _kind(path) is not None:
            with Image.open(path) as header:
                return header.height, header.width
        with _open_gdal(path) as dataset:
            return dataset.height, dataset.width
    except DataError:
        raise
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from None


def read_label(path: Path, label_map: Mapping[int, int], window: Window | None = None) -> np.ndarray:
    """Decode a label image into classes (H, W) uint8: 0 clear, 1 cloud, 255 ignore.

    A palette gives its indices, a one-bit image 0 and 255, grey saved as colour its grey.

    Raises:
        DataError: the file cannot be decoded, is not of one band, or holds a value outside `label_map`.
    """
    pixels = _label_pixels(path, window)
    if pixels.ndim == 3 and (pixels.shape[2] == 1 or (pixels[..., :1] == pixels[..., :3]).all()):
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or not np.issubdtype(pixels.dtype, np.integer):
        raise DataError(
            f"{path}: found shape {pixels.shape} of {pixels.dtype}, expected one band of whole numbers, "
            "a value for each class"
        )
    if pixels.dtype != np.uint8 and pixels.size and (pixels.min() < 0 or pixels.max() > 255):
        raise DataError(f"{path}: found label values {pixels.min()} to {pixels.max()}, expected values from 0 to 255")
    pixels = np.ascontiguousarray(pixels, np.uint8)
    known, classes = np.zeros(pixels.shape, bool), np.zeros(pixels.shape, np.uint8)
    for value, cls in label_map.items():  # a few values: faster than a table
        here = pixels == value
        known |= here
        classes |= here.view(np.uint8) * np.uint8(cls)
    if not known.all():
        unknown = sorted(set(np.unique(pixels).tolist()) - set(label_map))
        raise DataError(
            f"{path}: found label value(s) {', '.join(map(str, unknown[:8]))}, expected {sorted(label_map)}; "
            "set the domain's label_map"
        )
    return classes


def _kind(path: Path) -> str | None:
    """What OpenCV and Pillow are to read; None for GDAL."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise DataError(f"{path}: cannot be decoded as an image (0 bytes); is the file truncated?")
    return next((kind for magic, kind in PICTURES.items() if start.startswith(magic)), None)


def _read_picture(path: Path, kind: str, names: Sequence[str] | None) -> Bands:
    content = path.read_bytes()
    # A colour JPEG is decoded to RGB at once; other files may hold more than the three 8-bit bands that this gives.
    colour_jpeg = kind == "jpeg" and _jpeg_mode(path, content) != "L"
    way = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if colour_jpeg else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), way)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{path}: cannot be decoded as an image ({len(content)} bytes); is the file truncated?")
    if pixels.ndim == 2:
        return Bands(pixels[..., None], tuple(names or ("gray",)), np.ones(pixels.shape, bool))
    if pixels.shape[2] == 3:
        rgb = pixels if colour_jpeg else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return Bands(rgb, tuple(names or RGB), np.ones(rgb.shape[:2], bool))
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    if names is not None and len(names) == 4:
        return Bands(rgba, tuple(names), np.ones(rgba.shape[:2], bool))
    return Bands(rgba[..., :3], tuple(names or RGB), rgba[..., 3] > 0)


def _jpeg_mode(path: Path, content: bytes) -> str:
    """How a JPEG holds its colours, if it is one that is read as it looks."""
    try:
        header = Image.open(io.BytesIO(content))
        orientation = header.getexif().get(0x0112, UPRIGHT)
    except Exception:  # a damaged header fails anywhere in the parser
        raise DataError(
            f"{path}: cannot be decoded as an image ({len(content)} bytes); is the file truncated?"
        ) from None
    if header.mode == "CMYK":
        raise DataError(f"{path}: found CMYK, inks instead of light, expected RGB or grey; save it again as RGB")
    if orientation != UPRIGHT:
        raise DataError(
            f"{path}: found EXIF orientation {orientation}, so viewers turn it and its label may not fit; "
            "expected upright pixels; turn the file itself and remove the tag"
        )
    return header.mode


def _read_gdal(path: Path, names: Sequence[str] | None, window: Window | None, wanted: Sequence[str] | None) -> Bands:
    import rasterio.errors
    from rasterio.enums import ColorInterp

    with _open_gdal(path) as dataset:
        kinds = dataset.colorinterp
        if any(kind in (ColorInterp.cyan, ColorInterp.palette) for kind in kinds):
            raise DataError(f"{path}: found {kinds[0].name} colours, expected bands of light; save it as RGB or grey")
        described = [(name or "").strip().lower() for name in dataset.descriptions]
        # GDAL takes the fourth of four 8-bit bands for alpha; a band that somebody has named otherwise holds data.
        everything = len(names or ()) == dataset.count or (all(described) and "alpha" not in described)
        data = [i + 1 for i, kind in enumerate(kinds) if everything or kind != ColorInterp.alpha]
        own = tuple(described[i - 1] for i in data)
        if not all(own):
            own = {1: ("gray",), 3: RGB}.get(len(data), ())
        known = tuple(names or own)
        _require_count(path, len(known), names, len(data))
        chosen = data if wanted is None else [data[place] for place in _order(path, known, wanted)]
        try:
            pixels = dataset.read(chosen, window=_part(window))
            mask = np.ones(pixels.shape[1:], bool)
            # An alpha band that has a name is a band like the others, and no mask.
            if not everything or ColorInterp.alpha not in kinds or dataset.nodata is not None:
                mask = dataset.read_masks(chosen, window=_part(window)).all(0)
        except (rasterio.errors.RasterioError, OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be decoded ({_reason(error)}); is the file truncated?") from None
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if pixels.dtype not in DTYPES:
        raise DataError(f"{path}: found {pixels.dtype} pixels, expected {', '.join(DTYPES)}")
    return Bands(pixels.transpose(1, 2, 0), tuple(wanted or known), mask)


def _part(window: Window | None) -> Any:
    from rasterio.windows import Window as Part

    return None if window is None else Part(window.left, window.top, window.width, window.height)


@lru_cache(maxsize=1)
def _without_warnings() -> None:
    """Images without coordinates are usual here, and a no-data tag beside an alpha band; rasterio would say so for
    each."""
    from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    warnings.filterwarnings("ignore", category=NodataShadowWarning)


def _open_gdal(path: Path) -> Any:
    import rasterio  # a quarter of a second, which only those pay who read such files
    import rasterio.errors

    _without_warnings()
    with open(path, "rb") as file:
        is_tiff = file.read(4) in TIFF
    # GDAL is not left to guess: some of its formats, such as VRT, read other files than the one that is named.
    if not is_tiff and not path.with_suffix(".hdr").is_file():
        raise DataError(f"{path}: cannot be decoded as an image; expected PNG, JPEG, BMP, TIFF, or ENVI with its .hdr")
    try:
        return rasterio.open(path, driver="GTiff" if is_tiff else "ENVI")
    except (rasterio.errors.RasterioError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be decoded as an image ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error).splitlines()[0]


def _label_pixels(path: Path, window: Window | None) -> np.ndarray:
    if _kind(path) is None:
        with _open_gdal(path) as dataset:
            try:
                pixels: np.ndarray = dataset.read(window=_part(window)).transpose(1, 2, 0)
            except Exception as error:  # rasterio's and GDAL's own
                raise DataError(f"{path}: cannot be decoded ({_reason(error)}); is the file truncated?") from None
        return pixels
    try:
        with Image.open(path) as image:
            if image.mode == "L" and image.format == "PNG":
                image.close()
                grey = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # without Pillow's copy
                if grey is None:
                    raise OSError(f"{path.stat().st_size} bytes")
                return _cut_array(grey, window)
            return _cut_array(np.asarray(image.convert("L") if image.mode == "1" else image), window)
    except (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as an image ({error}); is the file truncated?") from None


def _cut_array(array: np.ndarray, window: Window | None) -> np.ndarray:
    if window is None:
        return array
    return array[window.top : window.top + window.height, window.left : window.left + window.width]

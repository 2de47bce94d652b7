"""From files to arrays: PNG, JPEG and BMP by OpenCV, labels by Pillow; all else by GDAL (rasterio): every kind of TIFF,
JPEG 2000, VRT and ENVI.

The first bytes tell the kind, not the name, and the header how large an image becomes, before any memory is taken.
"""

import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from datasets.drivers import ALONE, TIFF, driver_of, first_bytes
from datasets.files import Window
from utils.errors import DataError

RGB = ("red", "green", "blue")
COLOURS = ("coastal", *RGB, "nir")  # what a band's description or colour interpretation may call it, in any file
DTYPES = ("uint8", "uint16", "int16", "float32")
UPRIGHT = 1  # EXIF orientation
PICTURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"BM": "bmp"}
# of Pillow, each for one kind alone
HEADERS: dict[str, type[ImageFile]] = {"jpeg": JpegImageFile, "png": PngImageFile, "bmp": BmpImageFile}
GREY = ("1", "L", "I", "I;16")  # modes of one value a pixel
LIMIT = 2048  # MiB that may be decoded at once
LIMIT_VARIABLE = "ASDA_MAX_IMAGE_MIB"  # of the environment, in place of it


class Bands(NamedTuple):
    """The pixels of one file: (H, W, C) of one of `DTYPES`, as they are stored; the names of the bands; where it has
    data, (H, W) bool, by its alpha band, mask band or no-data tag; whether the names are the file's own; and of each
    band the no-data tag, and the tags (scale, offset) that make values of what is stored, None for none."""

    pixels: np.ndarray
    names: tuple[str, ...]
    mask: np.ndarray
    named: bool = True
    tags: tuple[float | None, ...] = ()
    units: tuple[tuple[float, float] | None, ...] = ()


def read_bands(
    path: Path, names: Sequence[str] | None = None, window: Window | None = None, wanted: Sequence[str] | None = None
) -> Bands:
    """Decode an image file; raises DataError if it is missing, damaged, of a kind that would be misread, has another
    number of bands, or calls them otherwise.

    `names` are of its bands, in the file's order; None takes those that the file gives, or gray, or red, green, blue.
    An alpha band has no name unless as many names are given as there are bands. `wanted` are the bands to give, in that
    order, None for all; the others do not decide where there is data.
    """
    if (kind := picture_kind(path)) is None:
        return _read_gdal(path, names, window, wanted)
    pixels, own, mask, *_ = _read_picture(path, kind, names)
    # The colours of a picture are those of its format, which says nothing against what the channels are said to hold.
    known = _known_names(path, names, own if names is None else ("",) * len(own), pixels.shape[2])
    if wanted is not None and (order := band_order(path, known, wanted)) != list(range(len(known))):
        pixels = pixels[..., order]
    inside = window.slices if window else ...
    called, none = tuple(wanted or known), (None,) * len(wanted or known)
    return Bands(pixels[inside], called, mask[inside], names is None or len(known) == 1, none, none)


def _known_names(path: Path, given: Sequence[str] | None, own: Sequence[str], count: int) -> tuple[str, ...]:
    """The names of so many bands: those that are given, else the file's `own`, "" for none, or else what is usual;
    raises DataError where the file calls a band otherwise."""
    if given is not None and len(given) != count:
        raise DataError(f"{path}: found {count} band(s), expected {len(given)}: {', '.join(given)}")
    names = tuple(given or (own if all(own) else {1: ("gray",), 3: RGB}.get(count, ())))
    if not names:
        raise DataError(f"{path}: found {count} bands without names; give the domain's bands, in the order of the file")
    if any(word != name and word in (*COLOURS, *names) for word, name in zip(own, names, strict=True)):
        found = ", ".join(word or "(no name)" for word in own)
        fix = "mend the domain's bands, or the file's descriptions or colour interpretation"
        raise DataError(f"{path}: found the bands {found} by the file itself, expected {', '.join(names)}; {fix}")
    return names


def band_order(path: Path, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The places of the wanted bands among those that an image has; raises DataError if it lacks one."""
    if missing := [band for band in wanted if band not in names]:
        fix = "set data.bands to bands that both domains have, or mend the domain's bands"
        raise DataError(f"{path}: has no band {', '.join(missing)}, found {', '.join(names)}; {fix}")
    return [list(names).index(band) for band in wanted]


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header; raises DataError if it has none that can be read."""
    kind = picture_kind(path)
    with _decoding(path), HEADERS[kind](path) if kind else open_raster(path) as header:
        return header.height, header.width


def read_label(path: Path, label_map: Mapping[int, int], window: Window | None = None) -> np.ndarray:
    """Decode a label image into classes (H, W) uint8: 0 clear, 1 cloud, 255 ignore.

    Raises DataError if the file cannot be decoded, is not of one band, or holds a value outside `label_map`.
    """
    return classes_of(path, label_values(path, window), label_map)


def label_values(path: Path, window: Window | None = None) -> np.ndarray:
    """Decode a label image into its values, (H, W) uint8; raises DataError as `read_label`.

    A palette gives its indices, a one-bit image 0 and 255, grey saved as colour its grey.
    """
    pixels = _label_pixels(path, window)
    if pixels.ndim == 3 and (pixels.shape[2] == 1 or (pixels[..., :1] == pixels[..., :3]).all()):
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or not np.issubdtype(pixels.dtype, np.integer):
        found = f"shape {pixels.shape} of {pixels.dtype}"
        raise DataError(f"{path}: found {found}, expected one band of whole numbers, a value for each class")
    if pixels.dtype != np.uint8 and pixels.size and (pixels.min() < 0 or pixels.max() > 255):
        raise DataError(f"{path}: found label values {pixels.min()} to {pixels.max()}, expected values from 0 to 255")
    return np.ascontiguousarray(pixels, np.uint8)


def classes_of(path: Path, pixels: np.ndarray, label_map: Mapping[int, int]) -> np.ndarray:
    """The classes of a label's values, both (H, W) uint8; raises DataError for a value outside `label_map`."""
    known, classes = np.zeros(pixels.shape, bool), np.zeros(pixels.shape, np.uint8)
    for value, cls in label_map.items():  # a few values: faster than a table
        here = pixels == value
        known |= here
        classes |= here.view(np.uint8) * np.uint8(cls)
    if not known.all():
        unknown = ", ".join(map(str, sorted(set(np.unique(pixels).tolist()) - set(label_map))[:8]))
        expected = f"{sorted(label_map)}; set the domain's label_map"
        raise DataError(f"{path}: found label value(s) {unknown}, expected {expected}")
    return classes


def picture_kind(path: Path) -> str | None:
    """The kind of a picture that OpenCV and Pillow are to read, jpeg, png or bmp; None for what is GDAL's. Raises
    DataError if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: cannot be read (it is a folder, a pipe or a device), expected an image file")
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise DataError(f"{path}: cannot be decoded as an image (0 bytes); is the file truncated?")
    return next((kind for magic, kind in PICTURES.items() if start.startswith(magic)), None)


def require_room(path: object, height: int, width: int, pixel_bytes: int, what: str = "the image") -> None:
    """Raises DataError if what a header announces would take more memory than the limit."""
    given = os.environ.get(LIMIT_VARIABLE, str(LIMIT))
    if not given.isdecimal():
        raise DataError(f"{LIMIT_VARIABLE}: found {given!r} in the environment, expected a whole number of MiB")
    needed, limit = height * width * pixel_bytes / 2**20, int(given)
    if needed > limit:
        raise DataError(
            f"{path}: {what} has {width}x{height} pixels by the header, {math.ceil(needed):,} MiB when decoded, and "
            f"the limit is {limit:,} MiB. If that is what it should be, set the environment variable {LIMIT_VARIABLE} "
            f"to {math.ceil(needed)}, or cut it into smaller files; else the file is damaged or made to harm"
        )


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Within it, every error is the file's: a damaged one fails anywhere in a parser, with errors of any class."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be decoded as an image ({_reason(error)}); is the file truncated?") from None


def _require_room_for(path: Path, header: ImageFile) -> None:
    """As `require_room`; palettes become colours, and OpenCV may add a fourth band."""
    depth = 2 if any("16" in str(tile[3]) for tile in header.tile) else 1
    require_room(path, header.height, header.width, depth * (1 if header.mode in GREY else 4))


def _read_picture(path: Path, kind: str, names: Sequence[str] | None) -> Bands:
    """All of it, under its own names; alpha is a band only where four names are given."""
    content = path.read_bytes()
    with _decoding(path):
        header = HEADERS[kind](io.BytesIO(content))
        _require_room_for(path, header)
        # A colour JPEG is decoded to RGB at once; other files may hold more than the three 8-bit bands that this gives.
        colour_jpeg = kind == "jpeg" and header.mode != "L"
        if kind == "jpeg":
            _require_as_seen(path, header)
        way = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if colour_jpeg else cv2.IMREAD_UNCHANGED
        pixels = _by_opencv(np.frombuffer(content, np.uint8), way)
    everywhere = np.ones(pixels.shape[:2], bool)
    if pixels.ndim == 2:
        return Bands(pixels[..., None], ("gray",), everywhere)
    if pixels.shape[2] == 3:
        return Bands(pixels if colour_jpeg else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), RGB, everywhere)
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    if names is not None and len(names) == 4:
        return Bands(rgba, tuple(names), everywhere)
    return Bands(rgba[..., :3], RGB, _alpha(path, rgba[..., 3]))


def _alpha(path: Path, band: np.ndarray) -> np.ndarray:
    """Where an alpha band has data; DataError if it holds anything but 0 and the largest value of its type."""
    top = np.iinfo(band.dtype).max if band.dtype.kind in "iu" else 1
    mask: np.ndarray = band == top
    if (other := band[~mask & (band != 0)]).size:
        found = f"found {other.min()} to {other.max()} in its alpha band, which nobody has named"
        fix = "if it holds data, such as near infrared, give the domain's bands, in the order of the file"
        raise DataError(f"{path}: {found}, expected 0 and {top} alone; {fix}")
    return mask


def _require_as_seen(path: Path, header: ImageFile) -> None:
    orientation = header.getexif().get(0x0112, UPRIGHT)
    if header.mode == "CMYK":
        raise DataError(f"{path}: found CMYK, inks instead of light, expected RGB or grey; save it again as RGB")
    if orientation != UPRIGHT:
        found = f"EXIF orientation {orientation}, so viewers turn it and its label may not fit"
        raise DataError(f"{path}: found {found}; expected upright pixels; turn the file itself and remove the tag")


def _read_gdal(path: Path, names: Sequence[str] | None, window: Window | None, wanted: Sequence[str] | None) -> Bands:
    with open_raster(path) as dataset:
        kinds = [kind.name for kind in dataset.colorinterp]
        if "cyan" in kinds or "palette" in kinds:
            raise DataError(f"{path}: found {kinds[0]} colours, expected bands of light; save it as RGB or grey")
        described = [(name or "").strip().lower() for name in dataset.descriptions]
        # GDAL takes the fourth of four 8-bit bands for alpha; a band that somebody has named otherwise holds data.
        everything = len(names or ()) == dataset.count or (all(described) and "alpha" not in described)
        data = [i + 1 for i, kind in enumerate(kinds) if everything or kind != "alpha"]
        own = described if any(described) else [kind if kind in COLOURS else "" for kind in kinds]
        # So is every file of three or four 8-bit bands called unless its writer says otherwise.
        if names and not any(described) and dataset.dtypes[0] == "uint8" and tuple(own) in (RGB, (*RGB, "")):
            own = [""] * dataset.count
        own = [own[i - 1] for i in data]
        known = _known_names(path, names, own, len(data))
        chosen = data if wanted is None else [data[place] for place in band_order(path, known, wanted)]
        _require_room_in(path, dataset, len(chosen), window)
        inside = window and window.slices
        pixels = dataset.read(chosen, window=inside)
        tags, units = tuple(dataset.nodatavals[i - 1] for i in chosen), _units(path, dataset, chosen)
        mask = np.ones(pixels.shape[1:], bool)
        # An alpha band that has a name is a band like the others, and no mask.
        if not everything or "alpha" not in kinds or dataset.nodata is not None:
            mask = joined_masks(dataset.read_masks(chosen, window=inside) > 0, tags)
        if not everything and "alpha" in kinds and "alpha" not in described:
            mask &= _alpha(path, dataset.read(kinds.index("alpha") + 1, window=inside))
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if pixels.dtype not in DTYPES:
        raise DataError(f"{path}: found {pixels.dtype} pixels, expected {', '.join(DTYPES)}")
    named = len(known) == 1 or tuple(own) == known
    return Bands(pixels.transpose(1, 2, 0), tuple(wanted or known), mask, named, tags, units)


def _units(path: Path, dataset: Any, bands: Sequence[int]) -> tuple[tuple[float, float] | None, ...]:
    """The scale and offset of these bands by the file's tags, which are 1 and 0 where there are none."""
    units = tuple((float(dataset.scales[i - 1]), float(dataset.offsets[i - 1])) for i in bands)
    for scale, offset in units:
        if not (math.isfinite(scale) and math.isfinite(offset) and scale):
            expected = "finite numbers, and a scale other than 0; mend or remove the tags"
            raise DataError(f"{path}: found the tags scale {scale:g} and offset {offset:g}, expected {expected}")
    return units if {*units} != {(1.0, 0.0)} else (None,) * len(units)


def joined_masks(masks: np.ndarray, tags: Sequence[float | None]) -> np.ndarray:
    """Where an image has data, (H, W) bool, by each band's mask, (C, H, W) bool, and no-data tag: where all bands have,
    but where the tag is 0, 0 in some bands alone is a value like others, as in dark water."""
    zero = np.array([tag == 0 for tag in tags], bool)
    valid: np.ndarray = masks[~zero].all(0)
    return valid & masks[zero].any(0) if zero.any() else valid


@lru_cache(maxsize=1)
def _rasterio() -> Any:
    """The module, a quarter of a second that only those pay who read such files. Images without coordinates are usual
    here, and a no-data tag beside alpha; it would say so for each."""
    import rasterio.errors

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    warnings.filterwarnings("ignore", category=rasterio.errors.NodataShadowWarning)
    return rasterio


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """Open a file by the driver of GDAL that its first bytes tell, which reads no other file but those that belong to
    it: of a TIFF or ENVI file .hdr, .aux.xml, and a mask, .msk, that is a TIFF; of a VRT its TIFF and JPEG 2000 files,
    at or below its folder. Raises DataError if it is nothing of this, or damaged, as far as that is met while it is
    open."""
    driver = driver_of(path)
    beside = driver in ("GTiff", "ENVI")
    with (
        _decoding(path),
        nullcontext() if beside else _rasterio().Env(**ALONE),
        _rasterio().open(path, driver=driver) as dataset,
    ):
        for mask in (Path(f"{path}{end}") for end in (".msk", ".MSK") if beside):
            if mask.exists():
                _require_mask(mask, dataset)
        yield dataset


def _require_mask(path: Path, dataset: Any) -> None:
    """Refuse what GDAL would take for a mask by its name, and then open as whatever it is."""
    rasterio = _rasterio()
    try:
        if not first_bytes(path).startswith(TIFF):
            raise ValueError("it is no TIFF")
        with rasterio.open(path, driver="GTiff") as mask:
            if mask.shape != dataset.shape:
                raise ValueError(f"it has {mask.width}x{mask.height} pixels")
            _require_room_in(path, mask, mask.count, Window(0, 0, 1, 1))
    except (rasterio.errors.RasterioError, OSError, ValueError) as error:
        what, expected = f"the mask of {dataset.name}", f"a TIFF of {dataset.width}x{dataset.height} pixels"
        raise DataError(f"{path}: cannot be {what} ({_reason(error)}), expected {expected}; remove it") from None


def _require_room_in(path: Path, dataset: Any, bands: int, window: Window | None) -> None:
    """As `require_room`, for so many bands of a window and for a block of the file, which GDAL decodes as a whole."""
    value = max(16 if "complex" in kind else np.dtype(kind).itemsize for kind in dataset.dtypes)
    height, width = dataset.shape if window is None else (window.height, window.width)
    require_room(path, height, width, bands * value, "the image" if window is None else "a window of the image")
    block_height, block_width = dataset.block_shapes[0]
    together = dataset.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    require_room(path, block_height, block_width, together * value, "a block of the image")


def _reason(error: Exception) -> str:
    return next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)


def _label_pixels(path: Path, window: Window | None) -> np.ndarray:
    if (kind := picture_kind(path)) is None:
        with open_raster(path) as dataset:
            if dataset.count > 4:  # grey saved as colour, at most
                raise DataError(f"{path}: found {dataset.count} bands, expected one of whole numbers")
            _require_room_in(path, dataset, dataset.count, window)
            pixels: np.ndarray = dataset.read(window=window and window.slices).transpose(1, 2, 0)
            if dataset.compression is not None and dataset.compression.name == "jpeg":
                raise _lossy(path, pixels)
            return pixels
    inside = window.slices if window else ...
    with _decoding(path), HEADERS[kind](path) as image:
        _require_room_for(path, image)
        if image.mode == "L" and kind == "png":
            return _by_opencv(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)[inside]  # no Pillow copy
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)[inside]
    if kind == "jpeg":
        raise _lossy(path, pixels)
    return pixels


def _lossy(path: Path, pixels: np.ndarray) -> DataError:
    values = np.unique(pixels)
    few = ", ".join(map(str, values[:8])) + ", ..." * (len(values) > 8)
    return DataError(
        f"{path}: found a JPEG with {len(values)} value(s), {few}, expected one value for each class; its compression "
        "changes values, so write the label as PNG or TIFF, from what the JPEG was made of"
    )


def place_of(path: Path) -> tuple[Any, Any] | None:
    """The CRS, or None, and the transform of a GeoTIFF; None for what says nothing of where it lies."""
    if picture_kind(path):
        return None
    with open_raster(path) as dataset:
        says = dataset.driver == "GTiff" and not dataset.transform.is_identity
        return (dataset.crs, dataset.transform) if says else None


def read_palette(path: Path) -> dict[int, tuple[int, ...]]:
    """The colours (red, green, blue, 0 to 255) in which a file shows its values; none if it has no palette."""
    if (kind := picture_kind(path)) is None:
        with open_raster(path) as dataset:
            palette = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else {}
            return {value: colour[:3] for value, colour in palette.items()}
    with _decoding(path), HEADERS[kind](path) as image:
        colours = image.getpalette() or [] if image.mode == "P" else []
        return {value: tuple(colours[3 * value : 3 * value + 3]) for value in range(len(colours) // 3)}


def _by_opencv(content: np.ndarray, way: int) -> np.ndarray:
    pixels = cv2.imdecode(content, way)
    if pixels is None:
        raise ValueError(f"{len(content)} bytes")
    return pixels

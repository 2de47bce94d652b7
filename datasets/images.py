"""The images of one domain as everything else sees them: 8-bit bands, classes, and which pixels have data.

Whatever a file holds (1 to 13 bands, 8 or 16 bits, floats), the network gets 8-bit bands in one order, scaled by one
fixed rule for the whole domain. A pixel without data is 0 in every band and 255 in the label, and rows and columns at
the border of an image that hold no data at all are cut off, so that such a margin changes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from tqdm import tqdm

from datasets.cache import Cache
from datasets.decode import DTYPES, read_bands, read_label
from datasets.files import Item, Window, raise_all, unique
from datasets.geometry import Raster
from utils.errors import DataError
from utils.labels import IGNORE

PERCENTILES = (0.5, 99.5)
STRETCH_IMAGES, STRETCH_PIXELS = 200, 10_000  # what scalings are measured on: images, and pixels of each
MASK_BAND = "band:"  # begins the no-data rule that names one
PARALLEL = 64  # items that are read ahead
ROWS = 256  # that are scaled at once


class Stretch(NamedTuple):
    """A scaling to 8 bits, one for each band: `low` becomes 0 and `high` 255, what is beyond is cut off, and what is
    between follows the tone curve `x^(1/gamma)`, x in [0, 1]; 1 is linear. `dtype` is the type of the values that
    it was measured on, None where it was given."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    gamma: float = 1.0
    dtype: str | None = None


def recorded_scaling(value: Any, bands: int) -> Stretch | str | None:
    """A scaling as a weights file holds it in JSON: a list of what `Stretch` is made of, a name, or nothing.

    Args:
        bands: their number.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if value in (None, "shift8"):
        return value
    low, high, *rest = value
    stretch = Stretch(tuple(map(float, low)), tuple(map(float, high)), *rest)
    with np.errstate(over="ignore"):
        numbers = np.array([stretch.low, stretch.high], np.float32)
    if numbers.shape != (2, bands) or not np.isfinite(numbers).all() or not (numbers[0] < numbers[1]).all():
        raise ValueError(f"found a range {low} to {high}, expected rising numbers for each of {bands} bands")
    if not 0 < stretch.gamma < math.inf:
        raise ValueError(f"found gamma {stretch.gamma}, expected a number above 0")
    if stretch.dtype not in (None, *DTYPES):
        raise ValueError(f"found {stretch.dtype} pixels, expected {', '.join(DTYPES)}")
    return stretch


class Decoded(NamedTuple):
    """An image of (h, w) pixels, the part of its file's (`height`, `width`) that starts at (`top`, `left`).

    `image` (h, w, C) uint8, 0 where not valid; `label` (h, w) uint8 of 0, 1, 255, or None; `valid` (h, w) bool.
    """

    image: np.ndarray
    label: np.ndarray | None
    valid: np.ndarray
    top: int
    left: int
    height: int
    width: int

    @property
    def raster(self) -> Raster:
        return Raster(self.image, self.label, self.valid)

    def cut(self, window: Window) -> Decoded:
        """The part inside a window of the file, without its rows and columns at the border that hold no data."""
        rows, columns = self.valid.shape
        down = slice(max(0, window.top - self.top), min(rows, max(0, window.top + window.height - self.top)))
        across = slice(max(0, window.left - self.left), min(columns, max(0, window.left + window.width - self.left)))
        part = trimmed(self.image[down, across], self.valid[down, across])
        top, left = self.top + down.start - window.top, self.left + across.start - window.left
        place = (top + part.top, left + part.left, window.height, window.width)
        return Decoded(part.image, None, part.valid, *place)

    def placed(self, layer: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        """A layer (h, w) or (h, w, k) on the grid of the whole file, `fill` where that has no data."""
        rows, columns = layer.shape[:2]
        whole = np.empty((self.height, self.width, *layer.shape[2:]), layer.dtype)
        whole[:] = fill
        part = whole[self.top : self.top + rows, self.left : self.left + columns]
        part[self.valid] = layer[self.valid]
        return whole

    def taken(self, whole: np.ndarray) -> np.ndarray:
        """The part of a layer (H, W) or (H, W, k) of the whole file that is this image; undoes `placed`."""
        rows, columns = self.valid.shape
        return whole[self.top : self.top + rows, self.left : self.left + columns]


def trimmed(image: np.ndarray, valid: np.ndarray) -> Decoded:
    """An image (H, W, C) without its rows and columns at the border that hold no data; all of it if none does."""
    height, width = valid.shape
    if valid.all() or not valid.any():
        return Decoded(image, None, valid, 0, 0, height, width)
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Decoded(image[box], None, valid[box], int(rows[0]), int(columns[0]), height, width)


@dataclass(frozen=True)
class Decoder:
    """How the files of a domain are understood.

    Attributes:
        bands: the bands that the network gets, in its order.
        file_bands: the names of the file's bands, in the file's order; None takes what the file says.
        scaling: None takes 8-bit files as they are and refuses others; "shift8" drops the lower 8 of 16 bits, as the
            released code does; or a `Stretch` of each of `bands`.
        nodata: where there is no data. "file": where the file says so, by alpha, mask band or no-data tag; "none":
            nowhere; "all_zero": where all bands in use are 0; a number: where one of them has that value; "band:NAME":
            where that band of the file is 0. NaN and infinity are no data in any case.
        label_map: value in a label file -> class (0, 1, 255).
    """

    bands: tuple[str, ...]
    file_bands: tuple[str, ...] | None = None
    scaling: Stretch | str | None = None
    nodata: str | float = "file"
    label_map: Mapping[int, int] = field(default_factory=lambda: {0: 0, 255: 1})

    @property
    def wanted(self) -> tuple[str, ...]:
        """The bands that are read: `bands` and, at the end, the one that says where there is data, if one does."""
        rule = str(self.nodata)
        return (*self.bands, rule.removeprefix(MASK_BAND)) if rule.startswith(MASK_BAND) else self.bands

    def read(self, item: Item, *, masked: bool = True) -> Decoded:
        """Decode one image and, where it has one, its label; see `labelled`.

        Raises:
            DataError: a file cannot be used; names it.
        """
        decoded = self.image(item)
        return decoded if item.label is None else self.labelled(decoded, self.label(item), item, masked=masked)

    def image(self, item: Item) -> Decoded:
        """The same without the label."""
        return trimmed(*self.pixels(item))

    def pixels(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The bands in 8 bits, (H, W, C), 0 without data, and where they have data, (H, W) bool; nothing is cut off."""
        stored, valid = self.native(item)
        scaled = self.scaled(stored, item)
        if not valid.all():
            scaled[~valid] = 0
        return scaled, valid

    def label(self, item: Item) -> np.ndarray:
        """The classes of the whole file."""
        assert item.label is not None
        return read_label(item.label, self.label_map, item.label_window)

    def labelled(self, decoded: Decoded, label: np.ndarray, item: Item, *, masked: bool = True) -> Decoded:
        """An image with the part of its file's label that belongs to it, 255 where not valid if `masked`.

        Raises:
            DataError: label and image are not of one size.
        """
        if label.shape != (decoded.height, decoded.width):
            raise DataError(
                f"{item.label}: found {label.shape[1]}x{label.shape[0]} pixels, expected "
                f"{decoded.width}x{decoded.height} as in {item.image}"
            )
        rows, columns = decoded.valid.shape
        part = label[decoded.top : decoded.top + rows, decoded.left : decoded.left + columns]
        return decoded._replace(label=np.where(decoded.valid, part, np.uint8(IGNORE)) if masked else part)

    def sources(self, item: Item) -> tuple[Path, ...]:
        """The files that are read for an image: its one file, or those of the bands that are wanted.

        Raises:
            DataError: a band is unknown or its file is missing.
        """
        if len(item.files) == 1:
            return item.files
        names = self.file_bands or ()
        if len(names) != len(item.files):
            raise DataError(f"{item.image}: found {len(item.files)} files of bands, expected {len(names)} as in bands")
        if missing := [band for band in self.wanted if band not in names]:
            raise DataError(
                f"{item.image}: has no band {', '.join(missing)}, found {', '.join(names)}; set data.bands to bands "
                "that both domains have"
            )
        files = tuple(item.files[names.index(band)] for band in self.wanted)
        for band, path in zip(self.wanted, files, strict=True):
            if not path.is_file():
                raise DataError(f"{path}: does not exist, so the band {band} of {item.name} is missing")
        return files

    def native(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The bands as they are stored, (H, W, C), and where they have data, (H, W) bool."""
        wanted = self.wanted
        if len(item.files) == 1:
            layers, _, valid = read_bands(item.files[0], self.file_bands, item.window, wanted)
        else:
            layers, valid = self._file_a_band(item, wanted)
        if len(wanted) > len(self.bands):
            valid = layers[..., -1] != 0
        pixels = layers[..., : len(self.bands)]
        if self.nodata == "none":
            valid = np.ones(valid.shape, bool)
        elif self.nodata == "all_zero":
            valid = (pixels != 0).any(2)
        elif not isinstance(self.nodata, str):
            valid = (pixels != self.nodata).all(2)
        if pixels.dtype.kind == "f":
            valid = valid & np.isfinite(pixels).all(2)
        return pixels, valid

    def _file_a_band(self, item: Item, wanted: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        layers = [read_bands(path, (band,), item.window) for path, band in zip(self.sources(item), wanted, strict=True)]
        if len(shapes := {layer.mask.shape for layer in layers}) > 1:
            sizes = ", ".join(f"{width}x{height}" for height, width in sorted(shapes))
            raise DataError(f"{item.image}: found bands of {sizes} pixels, expected one size; leave a band out")
        return np.dstack([layer.pixels for layer in layers]), np.logical_and.reduce([layer.mask for layer in layers])

    def scaled(self, pixels: np.ndarray, item: Item) -> np.ndarray:
        """Stored values (H, W, C) in 8 bits.

        Raises:
            DataError: their type does not fit the scaling.
        """
        self.require_type(pixels.dtype, item)
        if self.scaling is None:
            return pixels if pixels.flags.writeable else pixels.copy()
        if isinstance(self.scaling, str):
            return (pixels >> 8).astype(np.uint8)
        low, high = (np.asarray(values, np.float32) for values in self.scaling[:2])
        scaled = np.empty(pixels.shape, np.uint8)
        for begin in range(0, len(pixels), ROWS):  # so that a large scene is not held as floats
            part = slice(begin, begin + ROWS)
            with np.errstate(invalid="ignore"):  # NaN has no data and is set to 0 by the caller
                values = np.nan_to_num((pixels[part].astype(np.float32) - low) * (255 / (high - low)))
            values = np.clip(values, 0, 255)
            if self.scaling.gamma != 1:
                values = 255 * (values / 255) ** np.float32(1 / self.scaling.gamma)
            scaled[part] = values + 0.5
        return scaled

    def require_type(self, dtype: np.dtype, item: Item) -> None:
        """The type of stored values fits the scaling.

        Raises:
            DataError: it does not.
        """
        if self.scaling is None and dtype != np.uint8:
            raise DataError(f"{item.image}: found {dtype} pixels, expected 8 bits, or give the domain's scaling")
        if isinstance(self.scaling, str) and dtype != np.uint16:
            raise DataError(f"{item.image}: found {dtype} pixels, expected 16 bits for scaling shift8")
        if isinstance(self.scaling, Stretch) and self.scaling.dtype not in (None, str(dtype)):
            raise DataError(
                f"{item.image}: found {dtype} pixels, expected {self.scaling.dtype}, on which the scaling was measured"
            )


def has_8_bits(items: Sequence[Item], decoder: Decoder) -> bool:
    """Whether the first image that can be read has 8 bits; all images of a domain must be alike."""
    for item in items:
        try:
            return decoder.native(item)[0].dtype == np.uint8
        except DataError:
            continue
    return True


def measured_stretch(items: Sequence[Item], decoder: Decoder) -> Stretch:
    """The stretch of a domain: percentiles of its valid training pixels, band by band.

    Raises:
        DataError: no pixel is valid.
    """
    values, dtype = drawn_values(items, decoder)
    low, high = np.percentile(values, PERCENTILES, axis=0)
    high = np.where(high > low, high, low + 1)  # a band of one value
    return Stretch(tuple(map(float, low)), tuple(map(float, high)), dtype=dtype)


def matched_stretch(
    items: Sequence[Item],
    decoder: Decoder,
    other_items: Sequence[Item],
    other_decoder: Decoder,
    gamma: float = 1.0,
) -> Stretch:
    """The stretch that gives a domain the colours of another, which has a scaling: band by band the mean and deviation.

    With a tone curve they are those before it: of the other's values, what the curve would have been given. What then
    lies beyond 0 and 255 is cut off, as the brightest clouds of a dark domain may be.

    Source: the colour transfer of Reinhard et al. (CG&A 2001), between domains in place of images and in their own
    bands: a single image may be all cloud or all clear, and would lose what tells one from the other.

    Raises:
        DataError: no pixel of one of them is valid.
    """
    values, dtype = drawn_values(items, decoder)
    wanted = 255 * (drawn_values(other_items, other_decoder, scaled=True)[0] / 255) ** gamma
    spread, other = values.std(0), wanted.std(0)
    sound = (spread > 0) & (other > 0)  # not a band of one value, of which the mean alone can follow
    unit = np.where(sound, other / np.where(sound, spread, 1), 1)  # levels of 8 bits for a step of the stored value
    low = values.mean(0) - wanted.mean(0) / unit
    return Stretch(tuple(map(float, low)), tuple(map(float, low + 255 / unit)), gamma, dtype)


def drawn_values(items: Sequence[Item], decoder: Decoder, *, scaled: bool = False) -> tuple[np.ndarray, str]:
    """Values (N, C) float64 of valid pixels from all over a domain, and the type they are stored in.

    Args:
        scaled: in 8 bits, by the decoder's scaling, in place of the stored values.

    Raises:
        DataError: no pixel is valid.
    """
    step = max(1, math.ceil(len(items) / STRETCH_IMAGES))
    samples: list[np.ndarray] = []
    dtype = None
    for item in tqdm(items[::step], desc="range of values", unit="image", leave=False):
        try:
            pixels, valid = decoder.native(item)
        except DataError:
            continue  # the check of the domain names it
        if dtype not in (None, str(pixels.dtype)):
            continue
        dtype = str(pixels.dtype)
        chosen = pixels[valid]
        chosen = chosen[:: max(1, len(chosen) // STRETCH_PIXELS)]
        samples.append(decoder.scaled(chosen[None], item)[0] if scaled else chosen)
    if dtype is None or not sum(map(len, samples)):
        raise DataError(f"{items[0].image}: neither it nor the other training images hold a valid pixel to scale by")
    return np.concatenate(samples).astype(np.float64), dtype


@dataclass(frozen=True)
class ImageSet(Sequence[Item]):
    """Checked images of a domain and how to read them; `cached` holds what was decoded before, by name."""

    items: tuple[Item, ...]
    decoder: Decoder
    cache: Cache | None = None
    keys: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self.items[index]

    def read(self, item: Item, *, masked: bool = True) -> Decoded:
        """Pixels of one of the images.

        Args:
            masked: False leaves the label as it is where the image is not valid; then nothing of an image that comes
                from the cache is in memory before it is looked at.
        """
        if self.cache is None or item.name not in self.keys:
            return self.decoder.read(item, masked=masked)
        image, label = self.keys[item.name]
        whole = item._replace(window=None, label_window=None)
        decoded = self.cache.image(image, len(self.decoder.bands), lambda: self.decoder.image(whole))
        if item.window is not None:
            decoded = decoded.cut(item.window)
        if item.label is None:
            return decoded
        classes = self.cache.label(label, lambda: self.decoder.label(whole)) if label else self.decoder.label(whole)
        if (part := item.label_window) is not None:
            classes = classes[part.top : part.top + part.height, part.left : part.left + part.width]
        return self.decoder.labelled(decoded, classes, item, masked=masked)

    def only(self, names: Iterable[str], listed_in: Path) -> ImageSet:
        """The images of these names, in their order here.

        Args:
            listed_in: the file that names them, for an error.

        Raises:
            DataError: there is none of some name, or there are no names.
        """
        wanted = set(names)
        if not wanted:
            raise DataError(f"{listed_in}: names no image; make it again with the stage that wrote it")
        if missing := sorted(wanted - {item.name for item in self.items}):
            raise DataError(
                f"{listed_in}: names {len(missing)} image(s) that are no longer there, such as {missing[0]!r}; "
                "restore them"
            )
        return replace(self, items=tuple(item for item in self.items if item.name in wanted))

    def with_labels(self, folder: Path, label_map: Mapping[int, int]) -> ImageSet:
        """The same images, each with the label FOLDER/NAME.png."""
        items = tuple(item._replace(label=folder / f"{item.name}.png", label_window=None) for item in self.items)
        keys: dict[str, tuple[str, str | None]] = {name: (image, None) for name, (image, _) in self.keys.items()}
        return replace(self, items=items, decoder=replace(self.decoder, label_map=dict(label_map)), keys=keys)


def checked(
    items: Sequence[Item], decoder: Decoder, what: str, cache: Cache | None = None, tile: int | None = None
) -> ImageSet:
    """Decode every file once, several at a time, into the cache if there is one; leave images without data out.

    Args:
        tile: cut images with a side of more pixels than this; see `tiles`.

    Raises:
        DataError: lists all files that cannot be used.
    """
    kept: list[Item] = []
    keys: dict[str, tuple[str, str | None]] = {}
    faults: list[str] = []

    def look(item: Item) -> tuple[list[Item], tuple[str, str | None] | None] | str:
        try:
            key = None if cache is None else cache.key(item, decoder)
            decoded = ImageSet((item,), decoder, cache, {item.name: key} if key else {}).read(item)
            return (tiles(item, decoded, tile) if decoded.valid.any() else []), key
        except DataError as error:
            return str(error)

    empty = 0
    for seen in in_parallel(look, items, f"checking {what}"):
        if isinstance(seen, str):
            faults.append(seen)
            continue
        parts, key = seen
        empty += not parts
        kept += parts
        if key is not None:
            keys |= {part.name: key for part in parts}
    kept, twice = unique(kept)
    raise_all([*faults, *twice], what)
    if not kept:
        raise DataError(f"{what}: none of its {len(items)} image(s) holds a pixel of data; see the domain's nodata")
    if empty:
        print(f"{what}: {empty} of {len(items)} images hold no data and are left out")
    return ImageSet(tuple(kept), decoder, cache, keys)


def tiles(item: Item, decoded: Decoded, side: int | None) -> list[Item]:
    """An image, or the tiles with data of one that has more than `side` pixels in a direction.

    Tiles have at most `side` pixels in each direction and cover the part with data evenly, so that a margin without
    data does not move them. A tile is an image of its own, named by the place of its corner in that part.
    """
    height, width = decoded.valid.shape
    if side is None or max(height, width) <= side:
        return [item]
    cut = []
    for top in corners(height, side):
        for left in corners(width, side):
            if decoded.valid[top : top + side, left : left + side].any():
                window = Window(decoded.top + top, decoded.left + left, min(side, height), min(side, width))
                name, scene = f"{item.name}_{top:05d}_{left:05d}", item.scene or item.name
                cut.append(item._replace(name=name, window=window, label_window=window, scene=scene))
    return cut


def in_parallel(look, items: Sequence[Item], what: str) -> Iterator:  # type: ignore[no-untyped-def]
    """`look` at every item in threads, with a bar, a bounded number ahead; results in the order of the items."""
    remaining = iter(items)
    with (
        ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool,
        tqdm(total=len(items), desc=what, unit="image", leave=False, dynamic_ncols=True) as bar,
    ):
        while part := list(islice(remaining, PARALLEL)):
            for result in pool.map(look, part):
                bar.update()
                yield result


def corners(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that cover `length` evenly, as few as possible."""
    count = math.ceil(length / side)
    return [0] if count <= 1 else [round(i * (length - side) / (count - 1)) for i in range(count)]

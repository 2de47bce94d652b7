"""The images of one domain as everything else sees them: 8-bit bands, classes, and which pixels have data.

Whatever a file holds (1 to 13 bands, 8 or 16 bits, floats), the network gets 8-bit bands in one order, scaled by one
fixed rule for the whole domain. A pixel without data is 0 in every band and 255 in the label, and rows and columns at
the border of an image that hold no data at all are cut off, so that such a margin changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from tqdm import tqdm

from datasets.cache import Cache
from datasets.decode import read_bands, read_label, size_of
from datasets.files import Item, Window, raise_all
from datasets.geometry import IGNORE, Raster
from utils.errors import DataError

PERCENTILES = (0.5, 99.5)
STRETCH_IMAGES, STRETCH_PIXELS = 200, 10_000  # what the percentiles are taken from: images, and pixels of each
MASK_BAND = "band:"  # begins the no-data rule that names one
PARALLEL = 64  # items that are read ahead


class Stretch(NamedTuple):
    """A scaling to 8 bits, one for each band: `low` becomes 0 and `high` 255, what is beyond is cut off, and what is
    between follows the tone curve `x^(1/gamma)`, x in [0, 1]; 1 is linear."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    gamma: float = 1.0


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

    def placed(self, layer: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        """A layer (h, w) or (h, w, k) on the grid of the whole file, `fill` where that has no data."""
        rows, columns = layer.shape[:2]
        whole = np.empty((self.height, self.width, *layer.shape[2:]), layer.dtype)
        whole[:] = fill
        part = whole[self.top : self.top + rows, self.left : self.left + columns]
        part[self.valid] = layer[self.valid]
        return whole


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
        scaled, valid = self.pixels(item)
        if valid.all():
            return Decoded(scaled, None, valid, 0, 0, *valid.shape)
        rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
        height, width = valid.shape
        if not len(rows):
            return Decoded(scaled, None, valid, 0, 0, height, width)
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return Decoded(scaled[box], None, valid[box], int(rows[0]), int(columns[0]), height, width)

    def pixels(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The bands in 8 bits, (H, W, C), 0 without data, and where they have data, (H, W) bool; nothing is cut off."""
        stored, valid = self.native(item)
        scaled = self._scaled(stored, item)
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
        assert self.file_bands is not None, "an item of several files belongs to a reader that names them"
        self._require(self.wanted, self.file_bands, item)
        files = tuple(item.files[self.file_bands.index(band)] for band in self.wanted)
        for band, path in zip(self.wanted, files, strict=True):
            if not path.is_file():
                raise DataError(f"{path}: does not exist, so the band {band} of {item.name} is missing")
        return files

    def native(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The bands as they are stored, (H, W, C), and where they have data, (H, W) bool."""
        wanted = self.wanted
        layers, valid = self._one_file(item, wanted) if len(item.files) == 1 else self._file_a_band(item, wanted)
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

    def _one_file(self, item: Item, wanted: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        pixels, names, mask = read_bands(item.files[0], self.file_bands, item.window)
        self._require(wanted, names, item)
        return (pixels if wanted == names else pixels[..., [names.index(band) for band in wanted]]), mask

    def _file_a_band(self, item: Item, wanted: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        layers = [read_bands(path, (band,), item.window) for path, band in zip(self.sources(item), wanted, strict=True)]
        if len(shapes := {layer.mask.shape for layer in layers}) > 1:
            sizes = ", ".join(f"{width}x{height}" for height, width in sorted(shapes))
            raise DataError(f"{item.image}: found bands of {sizes} pixels, expected one size; leave a band out")
        return np.dstack([layer.pixels for layer in layers]), np.logical_and.reduce([layer.mask for layer in layers])

    def _require(self, wanted: Sequence[str], names: Sequence[str], item: Item) -> None:
        if missing := [band for band in wanted if band not in names]:
            raise DataError(
                f"{item.image}: has no band {', '.join(missing)}, found {', '.join(names)}; set data.bands to bands "
                "that both domains have, or mend the domain's bands"
            )

    def _scaled(self, pixels: np.ndarray, item: Item) -> np.ndarray:
        if self.scaling is None:
            if pixels.dtype != np.uint8:
                raise DataError(f"{item.image}: found {pixels.dtype} pixels, expected 8 bits as in the first image")
            return pixels if pixels.flags.writeable else pixels.copy()
        if isinstance(self.scaling, str):
            if pixels.dtype != np.uint16:
                raise DataError(f"{item.image}: found {pixels.dtype} pixels, expected 16 bits for scaling shift8")
            return (pixels >> 8).astype(np.uint8)
        low, high = (np.asarray(values, np.float32) for values in self.scaling[:2])
        with np.errstate(invalid="ignore"):  # NaN has no data and is set to 0 by the caller
            scaled = np.clip(np.nan_to_num((pixels.astype(np.float32) - low) * (255 / (high - low))), 0, 255)
        if self.scaling.gamma != 1:
            scaled = 255 * (scaled / 255) ** np.float32(1 / self.scaling.gamma)
        return (scaled + 0.5).astype(np.uint8)


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
    step = max(1, math.ceil(len(items) / STRETCH_IMAGES))
    samples = []
    for item in tqdm(items[::step], desc="range of values", unit="image", leave=False):
        try:
            pixels, valid = decoder.native(item)
        except DataError:
            continue  # the check of the domain names it
        chosen = pixels[valid]
        samples.append(chosen[:: max(1, len(chosen) // STRETCH_PIXELS)])
    values = np.concatenate(samples) if samples else np.empty((0, len(decoder.bands)))
    if not len(values):
        raise DataError(f"{items[0].image}: neither it nor the other training images hold a valid pixel to scale by")
    low, high = np.percentile(values.astype(np.float64), PERCENTILES, axis=0)
    high = np.where(high > low, high, low + 1)  # a band of one value
    return Stretch(tuple(map(float, low)), tuple(map(float, high)))


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
        decoded = self.cache.image(image, lambda: self.decoder.image(item))
        if item.label is None:
            return decoded
        classes = self.cache.label(label, lambda: self.decoder.label(item)) if label else self.decoder.label(item)
        return self.decoder.labelled(decoded, classes, item, masked=masked)

    def only(self, names: Iterable[str]) -> ImageSet:
        """The images of these names, in their order here.

        Raises:
            DataError: there is none of some name.
        """
        wanted = set(names)
        if missing := sorted(wanted - {item.name for item in self.items}):
            raise DataError(f"{len(missing)} image(s) are no longer there, such as {missing[0]!r}; restore them")
        return replace(self, items=tuple(item for item in self.items if item.name in wanted))

    def with_labels(self, folder: Path, label_map: Mapping[int, int]) -> ImageSet:
        """The same images, each with the label FOLDER/NAME.png."""
        items = tuple(item._replace(label=folder / f"{item.name}.png", label_window=None) for item in self.items)
        keys: dict[str, tuple[str, str | None]] = {name: (image, None) for name, (image, _) in self.keys.items()}
        return replace(self, items=items, decoder=replace(self.decoder, label_map=dict(label_map)), keys=keys)


def checked(items: Sequence[Item], decoder: Decoder, what: str, cache: Cache | None = None) -> ImageSet:
    """Decode every file once, several at a time, into the cache if there is one; leave images without data out.

    Raises:
        DataError: lists all files that cannot be used.
    """
    kept: list[Item] = []
    keys: dict[str, tuple[str, str | None]] = {}
    faults: list[str] = []

    def look(item: Item) -> tuple[bool, tuple[str, str | None] | None] | str:
        try:
            if cache is None:
                return bool(decoder.read(item).valid.any()), None
            key = cache.key(item, decoder)
            return bool(ImageSet((item,), decoder, cache, {item.name: key}).read(item).valid.any()), key
        except DataError as error:
            return str(error)

    for item, seen in zip(items, in_parallel(look, items, f"checking {what}"), strict=True):
        if isinstance(seen, str):
            faults.append(seen)
        elif seen[0]:
            kept.append(item)
            if seen[1] is not None:
                keys[item.name] = seen[1]
    raise_all(faults, what)
    if not kept:
        raise DataError(f"{what}: none of its {len(items)} image(s) holds a pixel of data; see the domain's nodata")
    if len(kept) < len(items):
        print(f"{what}: {len(items) - len(kept)} of {len(items)} images hold no data and are left out")
    return ImageSet(tuple(kept), decoder, cache, keys)


def in_parallel(look, items: Sequence[Item], what: str) -> Iterator:  # type: ignore[no-untyped-def]
    """`look` at every item in threads, with a bar, a bounded number ahead; results in the order of the items."""
    remaining = iter(items)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(items), desc=what, unit="image", leave=False, dynamic_ncols=True) as bar,
    ):
        while part := list(islice(remaining, PARALLEL)):
            for result in pool.map(look, part):
                bar.update()
                yield result


def tiles(items: Iterable[Item], side: int) -> list[Item]:
    """Cut images with a side of more than `side` pixels into windows of at most that, which cover them evenly.

    A tile is an image of its own; its name is that of the image with the place of its corner. An image whose header
    cannot be read stays as it is, for the check to name.
    """
    cut: list[Item] = []
    for item in items:
        try:
            height, width = size_of(next((path for path in item.files if path.is_file()), item.image))
        except DataError:
            height = width = 0
        if max(height, width) <= side:
            cut.append(item)
            continue
        scene = item.scene or item.name
        for top in corners(height, side):
            for left in corners(width, side):
                window = Window(top, left, min(side, height), min(side, width))
                name = f"{item.name}_{top:05d}_{left:05d}"
                cut.append(item._replace(name=name, window=window, label_window=window, scene=scene))
    return cut


def corners(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that cover `length` evenly, as few as possible."""
    count = math.ceil(length / side)
    return [0] if count <= 1 else [round(i * (length - side) / (count - 1)) for i in range(count)]

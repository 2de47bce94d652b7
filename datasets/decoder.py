"""How the files of a domain become 8-bit bands, classes, and where there is data.

Whatever a file holds (1 to 13 bands, 8 or 16 bits, floats), the network gets 8-bit bands in one order, scaled by one
fixed rule for the whole domain. A pixel without data is 0 in every band and 255 in the label.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.decode import Bands, band_order, joined_masks, place_of, read_bands, read_label
from datasets.decoded import Decoded, trimmed
from datasets.drivers import is_vrt, mosaic_files
from datasets.files import Item
from datasets.scaling import Stretch
from utils.errors import DataError
from utils.labels import IGNORE

Seen = Callable[[Bands, np.ndarray], object]


@dataclass(frozen=True)
class Decoder:
    """How the files of a domain are understood.

    Attributes:
        bands: the bands that the network gets, in its order.
        file_bands: the names of the file's bands, in the file's order; None takes what the file says.
        scaling: None takes 8-bit files as they are and refuses others; "shift8" drops the lower 8 of 16 bits, as the
            released code does; or a `Stretch` of each of `bands`.
        nodata: where there is no data. "file": where the file says so, by alpha, mask band or no-data tag; "none":
            nowhere; "all_zero", or 0: where all bands in use are 0, as where the tag is 0; "any_zero": where one of
            them is; another number: where one of them has that value; "band:NAME": where that band of the file is 0.
            NaN and infinity are no data in any case.
        label_map: value in a label file -> class (0, 1, 255).
        scale, offset: a value is `scale` times what is stored, plus `offset`, float32, unless the file has such tags of
            its own; None for 1 and 0. With neither, values are what is stored, of that type.
    """

    bands: tuple[str, ...]
    file_bands: tuple[str, ...] | None = None
    scaling: Stretch | str | None = None
    nodata: str | float = "file"
    label_map: Mapping[int, int] = field(default_factory=lambda: {0: 0, 255: 1})
    scale: float | None = None
    offset: float | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The bands that are read: `bands` and, at the end, the one that says where there is data, if one does."""
        rule = str(self.nodata)
        return (*self.bands, rule.removeprefix("band:")) if rule.startswith("band:") else self.bands

    def read(self, item: Item, *, masked: bool = True) -> Decoded:
        """Decode one image and, where it has one, its label; raises DataError if a file cannot be used."""
        decoded = self.image(item)
        return decoded if item.label is None else self.labelled(decoded, self.label(item), item, masked=masked)

    def image(self, item: Item) -> Decoded:
        """The same without the label."""
        return trimmed(*self.pixels(item))

    def pixels(self, item: Item, seen: Seen = lambda stored, values: None) -> tuple[np.ndarray, np.ndarray]:
        """The bands in 8 bits, (H, W, C), 0 without data, and where they have data, (H, W) bool; nothing is cut off.
        `seen` gets the bands as they are stored, and their values."""
        return self.in_8_bits(self.stored(item), item, seen)

    def in_8_bits(
        self, stored: Bands, item: Item, seen: Seen = lambda stored, values: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of bands that have been read, in the order of `bands`, with a mask by the rule of this domain."""
        values, valid = self.values(stored), stored.mask
        seen(stored, values)
        scaled = self.scaled(values, item)
        if not valid.all():
            scaled[~valid] = 0
        return scaled, valid

    def label(self, item: Item) -> np.ndarray:
        """The classes of the whole file."""
        assert item.label is not None
        return read_label(item.label, self.label_map, item.label_window)

    def labelled(self, decoded: Decoded, label: np.ndarray, item: Item, *, masked: bool = True) -> Decoded:
        """An image with the part of its file's label that belongs to it, 255 where not valid if `masked`."""
        require_size(label, item, decoded.height, decoded.width)
        part = decoded.taken(label)
        return decoded._replace(label=np.where(decoded.valid, part, np.uint8(IGNORE)) if masked else part)

    def sources(self, item: Item) -> tuple[Path, ...]:
        """The files that are read for an image: its one file, with those of a VRT, or those of the wanted bands."""
        if len(item.files) == 1:
            return (*item.files, *(mosaic_files(item.image) if is_vrt(item.image) else ()))
        names = self.file_bands or ()
        if len(names) != len(item.files):
            raise DataError(f"{item.image}: found {len(item.files)} files of bands, expected {len(names)} as in bands")
        files = tuple(item.files[place] for place in band_order(item.image, names, self.wanted))
        for band, path in zip(self.wanted, files, strict=True):
            if not path.is_file():
                raise DataError(f"{path}: does not exist, so the band {band} of {item.name} is missing")
        return files

    def native(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """The values of the bands, (H, W, C), before they are scaled, and where they have data, (H, W) bool."""
        stored = self.stored(item)
        return self.values(stored), stored.mask

    def values(self, stored: Bands) -> np.ndarray:
        """What stored bands mean, (H, W, C): themselves, or float32 by the file's tags, or by `scale` and `offset`."""
        given = None if self.scale is None and self.offset is None else (self.scale or 1.0, self.offset or 0.0)
        units = [unit or given for unit in stored.units]
        if not any(units):
            return stored.pixels
        scale, offset = np.array([unit or (1.0, 0.0) for unit in units], np.float32).T
        return stored.pixels.astype(np.float32) * scale + offset

    def stored(self, item: Item) -> Bands:
        """The bands in use as they are stored, with a mask of where they have data by the rule of this domain."""
        wanted = self.wanted
        if len(item.files) == 1:
            layers, _, valid, named, tags, units = read_bands(item.files[0], self.file_bands, item.window, wanted)
        else:
            files = zip(self.sources(item), wanted, strict=True)
            read = [read_bands(path, (band,), item.window) for path, band in files]
            if len(shapes := {file.mask.shape for file in read}) > 1:
                sizes = ", ".join(f"{width}x{height}" for height, width in sorted(shapes))
                raise DataError(f"{item.image}: found bands of {sizes} pixels, expected one size; leave a band out")
            layers, named = np.dstack([file.pixels for file in read]), True
            tags, units = (tuple(one for file in read for one in getattr(file, of)) for of in ("tags", "units"))
            valid = joined_masks(np.stack([file.mask for file in read]), tags)
        return self.by_rule(Bands(layers, wanted, valid, named, tags, units))

    def by_rule(self, read: Bands) -> Bands:
        """The bands in use, of those in `wanted`, with a mask by the rule of this domain in place of the files'."""
        valid, pixels = read.mask, read.pixels[..., : len(self.bands)]
        if len(read.names) > len(self.bands):
            valid = read.pixels[..., -1] != 0
        if self.nodata == "none":
            valid = np.ones(valid.shape, bool)
        elif self.nodata in ("all_zero", 0):
            valid = (pixels != 0).any(2)
        elif self.nodata == "any_zero":
            valid = (pixels != 0).all(2)
        elif not isinstance(self.nodata, str):
            valid = (pixels != self.nodata).all(2)
        if pixels.dtype.kind == "f":
            valid = valid & np.isfinite(pixels).all(2)
        count = len(self.bands)
        return Bands(pixels, self.bands, valid, read.named, read.tags[:count], read.units[:count])

    def scaled(self, pixels: np.ndarray, item: Item) -> np.ndarray:
        """Stored values (H, W, C), of a type that fits the scaling, in 8 bits."""
        self.require_type(pixels.dtype, item)
        if self.scaling is None:
            return pixels if pixels.flags.writeable else pixels.copy()
        return (pixels >> 8).astype(np.uint8) if isinstance(self.scaling, str) else self.scaling.applied(pixels)

    def require_type(self, dtype: np.dtype, item: Item) -> None:
        """Raise a DataError unless the type of stored values fits the scaling."""
        if isinstance(self.scaling, Stretch):
            given = self.scale is not None or self.offset is not None  # then the type of what is stored says nothing
            wanted = None if given and dtype == np.float32 else self.scaling.dtype
            expected = f"{self.scaling.dtype}, on which the scaling was measured; see the domain's scale and offset"
        elif self.scaling is None:
            wanted, expected = "uint8", "8 bits, or give the domain's scaling"
        else:
            wanted, expected = "uint16", "16 bits for scaling shift8"
        if wanted not in (None, str(dtype)):
            raise DataError(f"{item.image}: found {dtype} pixels, expected {expected}")


def require_size(label: np.ndarray, item: Item, height: int, width: int) -> None:
    """Raise a DataError unless a label has the size of its image."""
    if label.shape != (height, width):
        rows, columns = label.shape
        raise DataError(f"{item.label}: found {columns}x{rows} pixels, expected {width}x{height} as in {item.image}")


def require_same_place(item: Item, height: int, width: int) -> None:
    """Raise a DataError if image and label, of this size, are GeoTIFFs of which a corner lies more than half a pixel
    apart, or of different CRS."""
    assert item.label is not None
    image, label = place_of(item.image), place_of(item.label)
    if image is None or label is None:
        return
    expected = f"as in {item.image}; warp the label to the image's grid, by nearest neighbour"
    if image[0] and label[0] and image[0] != label[0]:
        raise DataError(f"{item.label}: found the CRS {label[0]}, expected {image[0]} {expected}")
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    there, here = (np.array(transform).reshape(3, 3) for transform in (label[1], image[1]))
    if (apart := np.abs(np.linalg.inv(here) @ there @ corners - corners).max()) > 0.5:
        raise DataError(f"{item.label}: found it {apart:.1f} pixels away, expected the same place {expected}")

"""A product: a file a band, what the numbers in it mean, and where it has no data; and its bands read on one grid."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from datasets.decode import COLOURS, DTYPES, Bands, joined_masks, require_room
from datasets.decoder import Decoder
from datasets.drivers import ALONE
from datasets.files import Window
from datasets.products.containers import AGAIN
from datasets.scaling import Stretch
from utils.errors import DataError

DRIVERS = {".jp2": "JP2OpenJPEG", ".tif": "GTiff", ".tiff": "GTiff"}
BRIGHTEST = 10  # a band whose scaling ends at this or below is one of reflectance, where the brightest cloud is about 1
APART = 1.0  # pixels of the coarser band by which the corners of two bands may differ


class BandFile(NamedTuple):
    """The file of a band.

    Attributes:
        path: to name it; a URL where it is on the network.
        opened: GDAL's name of it; None where the product lacks it.
        added: what is added to stored numbers, so that they mean the same in all versions of the product.
        unit: (scale, offset) that make reflectance, or kelvin, of these; None where it has none, or is not known.
        number, together: of the band in the file, from 1, and how many bands that has.
    """

    path: Path | str
    opened: str | None
    added: int = 0
    unit: tuple[float, float] | None = None
    number: int = 1
    together: int = 1


@dataclass(frozen=True)
class Product:
    """A scene of which each band is a file.

    Attributes:
        path: to name it.
        bands: the file of each band, by any of its names.
        nodata: what is stored where there is no data; None: the files say so.
        tags: what is known of the scene, such as the time.
        agency: whether `bands` and `nodata` tell what the numbers mean, and no configuration has to.
    """

    path: Path | str
    bands: Mapping[str, BandFile]
    nodata: int | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    agency: bool = True

    def __str__(self) -> str:
        return str(self.path)

    def decoder(self, decoder: Decoder) -> Decoder:
        """A decoder for what `Rasters.read` gives: that of a network, less what was said of other files."""
        return replace(decoder, file_bands=None, scale=None, offset=None, nodata="file") if self.agency else decoder

    @contextmanager
    def opened(self, decoder: Decoder) -> Iterator["Rasters"]:
        """The bands that a decoder wants, on the grid of the finest of them; raises DataError if one is not there, is
        damaged, or lies elsewhere."""
        import rasterio

        wanted = self.decoder(decoder).wanted
        if missing := [name for name in wanted if name not in self.bands]:
            first: dict[BandFile, str] = {}
            for name, band in self.bands.items():
                first.setdefault(band, name)
            fix = "take a network for these" if self.agency else "name them as in --bands red=04"
            raise DataError(f"{self}: has no band {', '.join(missing)}, found {', '.join(first.values())}; {fix}")
        chosen = [self.bands[name] for name in wanted]
        for name, band in zip(wanted, chosen, strict=True):
            if band.opened is None:
                raise DataError(f"{band.path}: does not exist, so the band {name} of {self} is missing; {AGAIN}")
        with ExitStack() as stack:
            files: dict[str | None, Any] = {}
            for name, band in zip(wanted, chosen, strict=True):
                suffix = PurePosixPath(str(band.path).partition("?")[0]).suffix
                if (driver := DRIVERS.get(suffix.lower())) is None:
                    raise DataError(f"{band.path}: cannot be read as a band, expected {', '.join(DRIVERS)}")
                if band.opened not in files:
                    with _reading(band), rasterio.Env(**ALONE):
                        files[band.opened] = stack.enter_context(rasterio.open(band.opened, driver=driver))
                _require_sound(band, name, files[band.opened])
            datasets = [files[band.opened] for band in chosen]
            finest = min(range(len(datasets)), key=lambda place: abs(datasets[place].transform.a))
            grid = datasets[finest]
            for place, (band, dataset) in enumerate(zip(chosen, datasets, strict=True)):
                if (dataset.shape, dataset.transform) != (grid.shape, grid.transform) or dataset.crs != grid.crs:
                    _require_same_place(band, dataset, chosen[finest], grid)
                    with _reading(band):
                        datasets[place] = stack.enter_context(_resampled(dataset, grid, self.nodata))
            yield Rasters(self, wanted, tuple(chosen), tuple(datasets), grid, decoder.scaling)


class Rasters(NamedTuple):
    """Bands of a product, open, all of them on the grid of the dataset `grid`."""

    product: Product
    wanted: tuple[str, ...]
    bands: tuple[BandFile, ...]
    datasets: tuple[Any, ...]
    grid: Any
    scaling: Stretch | str | None

    def read(self, window: Window) -> Bands:
        """The stored numbers of a window in the type, and with the units, that the network's scaling was measured on:
        reflectance where that of a band ends at 10 or below, else the numbers themselves. Raises DataError if a file is
        damaged."""
        import rasterio

        nodata, planes, masks = self.product.nodata, [], []
        for band, dataset in zip(self.bands, self.datasets, strict=True):
            require_room(band.path, window.height, window.width, 4 * len(self.bands), "a window of the image")
            with _reading(band), rasterio.Env(**ALONE):
                plane = dataset.read(band.number, window=window.slices)
                masks.append(
                    dataset.read_masks(band.number, window=window.slices) > 0 if nodata is None else plane != nodata
                )
            if band.added:
                top = np.iinfo(plane.dtype).max
                plane = np.clip(plane.astype(np.int32) + band.added, 0, top).astype(plane.dtype)
            planes.append(plane)
        tags = tuple(dataset.nodata if nodata is None else nodata for dataset in self.datasets)
        pixels = np.stack(planes, axis=2)
        if pixels.dtype == np.float64:
            pixels = pixels.astype(np.float32)
        units = tuple(_tagged(*pair) for pair in zip(self.bands, self.datasets, strict=True))
        if self.product.agency:
            pixels, units = self._as_measured(pixels)
        return Bands(pixels, self.wanted, joined_masks(np.stack(masks), tags), True, tags, units)

    def _as_measured(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[tuple[float, float] | None, ...]]:
        known = self.scaling if isinstance(self.scaling, Stretch) else None
        if known and min(known.high) <= BRIGHTEST:
            for name, band in zip(self.wanted, self.bands, strict=True):
                if band.unit is None:
                    raise DataError(f"{band.path}: has no reflectance, so {name} cannot be what the network has learnt")
            return pixels, tuple(band.unit for band in self.bands)
        if known and known.dtype == "float32":
            return pixels, ((1.0, 0.0),) * len(self.bands)
        if known and known.dtype == "int16":
            pixels = np.minimum(pixels, np.iinfo(np.int16).max).astype(np.int16)
        return pixels, (None,) * len(self.bands)


@contextmanager
def _reading(band: BandFile) -> Iterator[None]:
    """Within it, every error is the file's: GDAL and its codecs have errors of many classes."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise DataError(f"{band.path}: cannot be read ({reason}), it is damaged or cut off; {AGAIN}") from None


def _require_sound(band: BandFile, name: str, dataset: Any) -> None:
    if dataset.count != band.together or dataset.dtypes[0] not in (*DTYPES, "float64"):
        found, fix = f"{dataset.count} band(s) of {dataset.dtypes[0]}", f"it is to hold {name}"
        raise DataError(f"{band.path}: found {found}, expected {band.together} of {', '.join(DTYPES)}; {fix}")
    told = (dataset.descriptions[band.number - 1] or "").strip().lower()
    if told in COLOURS and told != name:
        raise DataError(f"{band.path}: calls band {band.number} {told}, expected {name}; mend --bands")
    height, width = dataset.block_shapes[0]
    require_room(band.path, height, width, np.dtype(dataset.dtypes[0]).itemsize, "a block of the image")


def _require_same_place(band: BandFile, dataset: Any, other: BandFile, grid: Any) -> None:
    """Raise a DataError unless two bands of other pixel size cover the same ground, by `APART`."""
    found, expected = (_place(raster) for raster in (dataset, grid))
    if dataset.crs == grid.crs and dataset.crs is not None:
        apart = APART * max(abs(raster.transform.a) for raster in (dataset, grid))
        if all(abs(a - b) <= apart for a, b in zip(dataset.bounds, grid.bounds, strict=True)):
            return
    raise DataError(f"{band.path}: lies at {found}, expected {expected} as {other.path}; is it of another scene?")


def _place(raster: Any) -> str:
    if raster.crs is None:
        return f"no known place, {raster.width}x{raster.height} pixels"
    bounds = " ".join(f"{bound:.10g}" for bound in raster.bounds)
    return f"{bounds} in {raster.crs}, {raster.width}x{raster.height} pixels"


def _resampled(dataset: Any, grid: Any, nodata: int | None) -> Any:
    import rasterio
    from rasterio.vrt import WarpedVRT

    lies = {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    declared = dataset.nodata if nodata is None else nodata
    empty = {} if declared is None else {"src_nodata": declared, "nodata": declared}
    with rasterio.Env(**ALONE):
        return WarpedVRT(dataset, **lies, resampling=rasterio.enums.Resampling.bilinear, **empty)


def _tagged(band: BandFile, dataset: Any) -> tuple[float, float] | None:
    scale, offset = (float(tags[band.number - 1]) for tags in (dataset.scales, dataset.offsets))
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        expected = "finite numbers, and a scale other than 0; mend or remove the tags"
        raise DataError(f"{band.path}: found the tags scale {scale:g} and offset {offset:g}, expected {expected}")
    return None if (scale, offset) == (1, 0) else (scale, offset)

"""Scenes read in slabs of rows, and layers written as cloud-optimised GeoTIFF or PNG, in bounded memory."""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.decode import open_raster, picture_kind, require_room, size_of
from datasets.decoder import Decoder, Seen
from datasets.files import Item, Window
from datasets.products import Product
from engine.memory import ran_out
from engine.pictures import MASK_COLOURS
from engine.windows import Rows
from utils.errors import unwritable
from utils.files import put_in_place
from utils.labels import IGNORE

BLOCK = 512  # side of a tile of what is written
PIECE = 2**20  # pixels that are decoded at once, where the file's own blocks are not larger
ROWS = 64  # that a slab has at least
STRIP = 8  # bytes a pixel that are held of a slab at least
TRAILER = 4  # bytes that GDAL puts after each tile of a cloud-optimised GeoTIFF
QUICKLOOK = 1024  # longest side of the picture


class Grid(NamedTuple):
    """Where a scene lies: `height` and `width` in pixels, `place` what rasterio is told of it (CRS and transform, or
    ground control points, and RPCs), `blocks` (h, w) the file's own, `tags` what is said of it, such as the time; a
    picture has none of the three."""

    height: int
    width: int
    place: dict[str, Any] | None = None
    blocks: tuple[int, int] | None = None
    tags: Mapping[str, str] = MappingProxyType({})


class Layer(NamedTuple):
    """A kind of raster: its values and what they mean, and how it is packed and made coarser."""

    dtype: str
    nodata: float
    predictor: int
    overviews: str
    values: str


MASK = Layer("uint8", IGNORE, 1, "mode", f"0 clear, 1 cloud, {IGNORE} no data")
SHARE = Layer("float32", float("nan"), 3, "average", "0 to 1, NaN no data")  # probability or entropy
PALETTE = np.zeros((256, 3), np.uint8)  # value in a mask -> colour
PALETTE[list(MASK_COLOURS)] = list(MASK_COLOURS.values())


def grid_of(path: Path) -> Grid:
    """Where a scene lies, by its header, if there is memory for what that announces."""
    height, width = size_of(path)
    if picture_kind(path):
        require_room(path, height, width, 1)
        return Grid(height, width)
    # All windows are planned before anything is decoded, so that a header alone could ask for any number of them.
    for rows, columns in ((ROWS, width), (height, ROWS)):
        require_room(path, rows, columns, STRIP, "a strip of the scene")
    with open_raster(path) as dataset:
        points, crs = dataset.gcps
        place = {"gcps": points, "crs": crs} if points and crs else {"transform": dataset.transform, "crs": dataset.crs}
        tags = dataset.tags() | dataset.tags(ns="IMAGERY")  # which a cloud-optimised GeoTIFF has no domain for
        for argument in ("bidx", "ns"):  # of rasterio's, which a tag of that name would be taken for
            tags.pop(argument, None)
        return Grid(height, width, place | {"rpcs": dataset.rpcs}, dataset.block_shapes[0], tags)


def grid_of_product(product: Product, decoder: Decoder) -> Grid:
    """Where the bands of a product lie that a decoder wants, on the grid of the finest of them."""
    with product.opened(decoder) as rasters:
        grid = rasters.grid
        for rows, columns in ((ROWS, grid.width), (grid.height, ROWS)):
            require_room(product.path, rows, columns, STRIP, "a strip of the scene")
        place = {"transform": grid.transform, "crs": grid.crs}
        return Grid(grid.height, grid.width, place, grid.block_shapes[0], product.tags)


def slabs(path: Path, decoder: Decoder, grid: Grid, seen: Seen = lambda stored, values: None) -> Iterator[Rows]:
    """The 8-bit bands (h, W, C) of a scene and where it has data, from the top down, each pixel decoded once; `seen`
    gets what is stored and its values, piece by piece.

    A slab is as high as the file's blocks, or several of them; it is decoded in pieces, since decoding takes several
    times the memory of its result. A picture is one slab.
    """
    if grid.blocks is None:
        yield Rows(*decoder.pixels(Item(path.name, (path,)), seen))
        return
    yield from _in_pieces(grid, lambda window: decoder.pixels(Item(path.name, (path,), window=window), seen))


def slabs_of_product(
    product: Product, decoder: Decoder, grid: Grid, seen: Seen = lambda stored, values: None
) -> Iterator[Rows]:
    """As `slabs`, of a product; `decoder` is `product.decoder` of the network's."""
    item = Item(str(product), (Path(str(product)),))
    with product.opened(decoder) as rasters:
        yield from _in_pieces(grid, lambda window: decoder.in_8_bits(decoder.by_rule(rasters.read(window)), item, seen))


def _in_pieces(grid: Grid, read: Callable[[Window], tuple[np.ndarray, np.ndarray]]) -> Iterator[Rows]:
    """The slabs of a scene, each put together from what is `read` of its windows."""
    assert grid.blocks is not None
    block_rows, block_columns = grid.blocks
    rows = min(block_rows * -(-ROWS // block_rows), max(ROWS, PIECE // block_columns))
    columns = block_columns * max(1, PIECE // (rows * block_columns))
    for top in range(0, grid.height, rows):
        height = min(rows, grid.height - top)
        windows = [Window(top, left, height, min(columns, grid.width - left)) for left in range(0, grid.width, columns)]
        yield Rows(*(np.concatenate(part, axis=1) for part in zip(*map(read, windows), strict=True)))


class Output:
    """A layer on its way to a file: rows are added from the top down, and `finish` gives the whole its name.

    Args:
        path: .png, or else a cloud-optimised GeoTIFF of tiles of 512 pixels, with overviews. The layer `SHARE` is
            stored in a PNG as 16 bits, 65534 for 1, and 65535 without data.
        scratch: a folder on the same disk for what is not finished.
        tags: how it was made, which go into a GeoTIFF beside those of the scene, or into the PNG of a mask.

    Every method raises DataError if it cannot be written.
    """

    def __init__(self, path: Path, grid: Grid, layer: Layer, scratch: Path, tags: Mapping[str, str]) -> None:
        self.path, self.grid, self.layer, self.scratch = path, grid, layer, scratch
        self.tags = {"ASDA_VALUES": layer.values, **tags}
        self.top = self.checksum = 0
        self.held = np.empty((0, grid.width), layer.dtype)
        self.tiles: Any = None
        if path.suffix != ".png":
            with writing(path):
                self.tiles = self._open_tiles()

    def add(self, rows: np.ndarray) -> None:
        """Rows are gathered to whole tiles, so that each is packed and written once."""
        self.held = np.concatenate([self.held, rows])
        ready = len(self.held)
        if self.top + ready < self.grid.height:
            ready -= ready % BLOCK
        if self.tiles is not None and ready:
            with writing(self.path):
                self.tiles.write(self.held[:ready], 1, window=((self.top, self.top + ready), (0, self.grid.width)))
            self.checksum = zlib.crc32(self.held[:ready].data, self.checksum)
            self.top, self.held = self.top + ready, self.held[ready:]

    def finish(self) -> None:
        finished = self.scratch / f"finished_{self.path.name}"
        with writing(self.path):
            if self.tiles is None:
                self._to_png(finished)
            else:
                self._to_cog(finished)
            put_in_place(finished, self.path)

    def close(self) -> None:
        """Let go of what is not finished."""
        if self.tiles is not None:
            with suppress(Exception):  # it is thrown away
                self.tiles.close()

    def _open_tiles(self) -> Any:
        import rasterio

        grid, layer = self.grid, self.layer
        shape = {"height": grid.height, "width": grid.width, "count": 1, "dtype": layer.dtype, "nodata": layer.nodata}
        tiled = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "IF_SAFER"}
        packed = {"driver": "GTiff", "compress": "deflate", "zlevel": 1, "predictor": layer.predictor}
        tiles = rasterio.open(self.scratch / self.path.name, "w", **(grid.place or {}), **shape, **tiled, **packed)
        tiles.update_tags(**{**grid.tags, **self.tags})
        if layer is MASK:
            tiles.write_colormap(1, MASK_COLOURS)
        return tiles

    def _to_cog(self, finished: Path) -> None:
        import rasterio.shutil

        self.tiles.close()
        tiles, predictor = self.scratch / self.path.name, {1: "NO", 3: "FLOATING_POINT"}[self.layer.predictor]
        made = {"driver": "COG", "blocksize": BLOCK, "bigtiff": "IF_SAFER", "num_threads": os.cpu_count() or 1}
        packed = {"compress": "DEFLATE", "predictor": predictor, "overview_predictor": predictor}
        rasterio.shutil.copy(tiles, finished, **made, **packed, overview_resampling=self.layer.overviews)
        tiles.unlink()
        # All of it is read again, to its end: GDAL does not report every failure to write.
        checksum, height, width = 0, self.grid.height, self.grid.width
        with rasterio.open(finished) as file:
            for top in range(0, height, BLOCK):
                rows = file.read(1, window=((top, min(top + BLOCK, height)), (0, width)))
                checksum = zlib.crc32(rows.data, checksum)
            last = f"{(width - 1) // BLOCK}_{(height - 1) // BLOCK}"
            begin, size = (int(file.get_tag_item(f"BLOCK_{what}_{last}", "TIFF", 1)) for what in ("OFFSET", "SIZE"))
        if checksum != self.checksum or finished.stat().st_size < begin + size + TRAILER:
            raise OSError("it is not what was written")

    def _to_png(self, finished: Path) -> None:
        info = PngInfo()
        if self.layer is MASK:
            picture = Image.fromarray(self.held)
            picture.putpalette(PALETTE.tobytes())
            for name, text in self.tags.items():
                info.add_text(name, text)
        else:
            depth = np.where(np.isnan(self.held), 65535, np.nan_to_num(self.held) * 65534 + 0.5)
            picture = Image.fromarray(depth.astype(np.uint16))
        picture.save(finished, pnginfo=info)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, whatever is raised becomes a `DataError` that names `path`, unless memory ran out."""
    try:
        yield
    except Exception as error:  # rasterio's, GDAL's own, which have no public class, and the system's
        if ran_out(error):
            raise
        cause = error.__cause__
        raise unwritable(path, cause if isinstance(cause, Exception) else error) from error


class Thumbnail:
    """Every n-th pixel of a layer that comes in rows, so many that the longer side has at most `QUICKLOOK` of them."""

    def __init__(self, grid: Grid) -> None:
        self.step = -(-max(grid.height, grid.width) // QUICKLOOK)
        self.top = 0
        self.parts: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        self.parts.append(rows[-self.top % self.step :: self.step, :: self.step].copy())
        self.top += len(rows)

    @property
    def picture(self) -> np.ndarray:
        return np.concatenate(self.parts)


def write_quicklook(path: Path, image: Thumbnail, mask: Thumbnail, bands: tuple[str, ...], scratch: Path) -> None:
    """The scene beside its mask, as PNG: red, green and blue where the network has them, else its first bands."""
    visible = [bands.index(band) for band in ("red", "green", "blue") if band in bands]
    chosen = visible if len(visible) == 3 else [0, 1, 2] if len(bands) >= 3 else [0, 0, 0]
    with writing(path):
        picture = Image.fromarray(np.hstack([image.picture[..., chosen], PALETTE[mask.picture]]))
        picture.save(scratch / "quicklook.png")
        put_in_place(scratch / "quicklook.png", path)

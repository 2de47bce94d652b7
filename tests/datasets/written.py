"""Files, images and streams of a few pixels, and what reading them says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio

from config.schema import AugmentConfig
from datasets.cache import Cache
from datasets.decoder import Decoder
from datasets.files import Item
from datasets.images import ImageSet, checked
from datasets.readers import find_images
from datasets.samples import EndlessSamples
from utils.errors import DataError

Make = Callable[..., Path]
Build = Callable[..., EndlessSamples]
RGB = Decoder(("red", "green", "blue"))
STILL = AugmentConfig(hflip=0, vflip=0, jitter=0)
STRONG = AugmentConfig(hflip=0.5, vflip=0.5, jitter=1, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)


def raster(path: Path, pixels: np.ndarray, names: Sequence[str] = (), **options: Any) -> Path:
    """Write (H, W, C) as a GeoTIFF."""
    pixels = np.atleast_3d(pixels)
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
        file.write(pixels.transpose(2, 0, 1))
        if names:
            file.descriptions = names
    return path


def picture(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, 3) red first, or (H, W), as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    """Values without 0."""
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1000
    return np.random.default_rng(0).integers(1, top, shape).astype(dtype)


def item_of(path: Path, **more: Any) -> Item:
    return Item(path.stem, (path,), **more)


def fault_of(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    return str(caught.value)


def of_bands(folder: Path, bands: int, holes: bool = False) -> ImageSet:
    """Three images of so many bands with bright pixels and, with `holes`, a block of 0 that holds no data."""
    names, items = tuple(f"b{i}" for i in range(bands)), []
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(100, 256, (bands, 40, 48), np.uint8)
        if holes:
            pixels[:, 10:20, 15:30] = 0
        shape = {"height": 40, "width": 48, "count": bands, "dtype": "uint8"}
        with rasterio.open(folder / f"{i}.tif", "w", driver="GTiff", **shape) as file:
            file.write(pixels)
        label = folder / f"label_{i}.png"
        assert cv2.imwrite(str(label), np.full((40, 48), 255, np.uint8))
        items.append(Item(str(i), (folder / f"{i}.tif",), label))
    return checked(items, Decoder(names, names, nodata="all_zero"), "source")


def samples_of(images: ImageSet, name: str = "source", **changed: Any) -> EndlessSamples:
    options: dict[str, Any] = {"seed": 3, "size": 32, "geometry": "crop", "amounts": AugmentConfig(jitter=0.5)}
    return EndlessSamples(images, name, **(options | changed))


def stream_of(tmp_path: Path, make_domain: Make) -> Build:
    """Seven images of a domain as a stream, from files or from a cache; any argument can be changed."""
    root = make_domain(tmp_path / "domain", count=7)

    def build(name: str = "source", labels: bool = True, cached: bool = False, **changed: Any) -> EndlessSamples:
        cache = Cache(tmp_path / "cache") if cached else None
        return samples_of(checked(find_images(root, labels=labels).items, RGB, name, cache), name, **changed)

    return build

"""Image files of a few pixels, and what reading them says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio

from datasets.files import Item
from utils.errors import DataError


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

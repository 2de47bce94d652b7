"""From a decoded image to the square that the network is trained on, and to the size at which it predicts.

Labels are resampled by nearest neighbour. Pixels that padding adds are invalid: label 255 and `valid` False. Where the
image itself holds no data, its surroundings stand in.
"""

from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from datasets.files import Window
from utils.labels import IGNORE


class Raster(NamedTuple):
    """Image (H, W, C), label (H, W) uint8 or None, valid (H, W) bool: whatever moves together; and the `box` inside
    padding, None without any."""

    image: np.ndarray
    label: np.ndarray | None
    valid: np.ndarray
    box: Window | None = None


def filled(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """An image (H, W, C) uint8 as a network is to see it: where not valid, (H, W) bool, it has the value of a nearest
    valid pixel. Unchanged where there is none, or nothing to fill."""
    if valid.all() or not valid.any():
        return image
    holes = ~valid
    numbers = cv2.distanceTransformWithLabels(
        holes.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]  # (H, W), that of the nearest among the valid pixels, from 1 in their order
    whole = image.copy()
    whole[holes] = image[valid][numbers[holes] - 1]
    return whole


def scale_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample an image (H, W, C) to (height, width, C): area averaging down, cubic up."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return scaled.reshape(height, width, -1)  # OpenCV drops the axis of a single band


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after scaling the longer side to `size`, aspect kept, at least one pixel."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def letterbox(raster: Raster, size: int, rng: np.random.Generator) -> Raster:
    """Scale the longer side to `size` and pad to a square; with equal chance centred or at the bottom right."""
    height, width = fitted_size(raster.valid.shape[0], raster.valid.shape[1], size)
    nearest = partial(cv2.resize, dsize=(width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    label, valid = raster.label, nearest(raster.valid.astype(np.uint8)).astype(bool)
    image = scale_to(filled(raster.image, raster.valid), height, width)
    scaled = Raster(image, None if label is None else nearest(label), valid)
    rows, columns = size - height, size - width
    return _pad(scaled, *((rows // 2, columns // 2) if rng.random() < 0.5 else (rows, columns)), size)


def crop(raster: Raster, size: int, rng: np.random.Generator) -> Raster:
    """Cut a random `size` x `size` window; an image smaller than that is padded at the bottom right."""
    height, width = raster.valid.shape
    top, left = int(rng.integers(max(1, height - size + 1))), int(rng.integers(max(1, width - size + 1)))
    window = slice(top, top + size), slice(left, left + size)
    image, valid = raster.image[window], raster.valid[window]
    cut = Raster(filled(image, valid), None if raster.label is None else raster.label[window], valid)
    return _pad(cut, 0, 0, size)


def _pad(raster: Raster, top: int, left: int, size: int) -> Raster:
    height, width = raster.valid.shape
    if (height, width) == (size, size):
        return raster
    edges = ((top, size - height - top), (left, size - width - left))
    return Raster(
        np.pad(raster.image, (*edges, (0, 0))),
        None if raster.label is None else np.pad(raster.label, edges, constant_values=IGNORE),
        np.pad(raster.valid, edges, constant_values=False),
        Window(top, left, height, width),
    )

"""A decoded image and its place in its file: rows and columns at the border that hold no data at all are cut off, so
that such a margin changes nothing."""

from typing import NamedTuple

import numpy as np

from datasets.files import Window


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

    def cut(self, window: Window) -> "Decoded":
        """The part inside a window of the file, without its rows and columns at the border that hold no data."""
        top, left = self.top - window.top, self.left - window.left  # of this image in the window
        inside = slice(max(0, -top), max(0, window.height - top)), slice(max(0, -left), max(0, window.width - left))
        part = trimmed(self.image[inside], self.valid[inside])
        place = max(0, top) + part.top, max(0, left) + part.left, window.height, window.width
        return Decoded(part.image, None, part.valid, *place)

    def placed(self, layer: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        """A layer (h, w) or (h, w, k) on the grid of the whole file, `fill` where that has no data."""
        whole = np.full((self.height, self.width, *layer.shape[2:]), fill, layer.dtype)
        self.taken(whole)[self.valid] = layer[self.valid]
        return whole

    def taken(self, whole: np.ndarray) -> np.ndarray:
        """The part of a layer (H, W) or (H, W, k) of the whole file that is this image; undoes `placed`."""
        return whole[Window(self.top, self.left, *self.valid.shape).slices]


def trimmed(image: np.ndarray, valid: np.ndarray) -> Decoded:
    """An image (H, W, C) without its rows and columns at the border that hold no data; all of it if none does."""
    height, width = valid.shape
    if valid.all() or not valid.any():
        return Decoded(image, None, valid, 0, 0, height, width)
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Decoded(image[box], None, valid[box], int(rows[0]), int(columns[0]), height, width)

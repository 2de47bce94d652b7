"""The scaling of stored values to 8 bits: one fixed rule for all images of a domain."""

import math
from typing import Any, NamedTuple

import numpy as np

from datasets.decode import DTYPES

ROWS = 256  # that are scaled at once


class Stretch(NamedTuple):
    """A stretch of each band to 8 bits: `low` becomes 0 and `high` 255, what is beyond is cut off, and what is
    between follows the tone curve `x^(1/gamma)`, x in [0, 1]; 1 is linear. `dtype` is the type of the values that
    it was measured on, and `dark` their 0.5 percentile, band by band; None where it was given."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    gamma: float = 1.0
    dtype: str | None = None
    dark: tuple[float, ...] | None = None

    def applied(self, pixels: np.ndarray) -> np.ndarray:
        """Stored values (H, W, C) in 8 bits; what NaN becomes has no meaning."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        scaled = np.empty(pixels.shape, np.uint8)
        for begin in range(0, len(pixels), ROWS):  # so that a large scene is not held as floats
            part = slice(begin, begin + ROWS)
            with np.errstate(invalid="ignore"):
                values = np.nan_to_num((pixels[part].astype(np.float32) - low) * (255 / (high - low)))
            values = np.clip(values, 0, 255)
            if self.gamma != 1:
                values = 255 * (values / 255) ** np.float32(1 / self.gamma)
            scaled[part] = values + 0.5
        return scaled


def recorded_scaling(value: Any, bands: int) -> Stretch | str | None:
    """A scaling of so many bands as a weights file holds it in JSON: a list of what `Stretch` is made of, a name, or
    nothing; raises TypeError or ValueError for anything else."""
    if value in (None, "shift8"):
        return value
    low, high, *rest = value
    stretch = Stretch(tuple(map(float, low)), tuple(map(float, high)), *rest)
    if stretch.dark is not None:
        dark = tuple(map(float, stretch.dark))
        if len(dark) != bands or not np.isfinite(dark).all():
            raise ValueError(f"found the dark values {dark}, expected a number for each of {bands} bands")
        stretch = stretch._replace(dark=dark)
    with np.errstate(over="ignore"):
        numbers = np.array([stretch.low, stretch.high], np.float32)
    if numbers.shape != (2, bands) or not np.isfinite(numbers).all() or not (numbers[0] < numbers[1]).all():
        raise ValueError(f"found a range {low} to {high}, expected rising numbers for each of {bands} bands")
    if not 0 < stretch.gamma < math.inf:
        raise ValueError(f"found gamma {stretch.gamma}, expected a number above 0")
    if stretch.dtype not in (None, *DTYPES):
        raise ValueError(f"found {stretch.dtype} pixels, expected {', '.join(DTYPES)}")
    return stretch

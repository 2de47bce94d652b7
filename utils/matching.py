"""Colours of one domain brought to those of another: mean and deviation of each band over all training images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from datasets.files import Item
from datasets.images import ImageSet
from utils import processes


@dataclass(frozen=True)
class Matching:
    """A linear change of each band, `x -> (x - mean) * deviation' / deviation + mean'`, cut to 8 bits.

    Attributes:
        table: (256, C) uint8, the new value of each old one by band.

    Source: the colour transfer of Reinhard et al. (CG&A 2001), between domains in place of images and in their own
    bands: a single image may be all cloud or all clear, and would lose what tells one from the other.
    """

    table: np.ndarray

    @staticmethod
    def between(domain: ImageSet, other: ImageSet) -> Matching:
        """What gives the images of `domain` the statistics of `other`."""
        (mean, deviation), (wanted, spread) = (band_statistics(images) for images in (domain, other))
        levels = np.arange(256)[:, None]
        changed = (levels - mean) * (spread / np.maximum(deviation, 1e-6)) + wanted
        return Matching(np.clip(changed, 0, 255).round().astype(np.uint8))

    def __call__(self, image: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """The changed image (H, W, C) uint8, 0 where not valid."""
        bands = [column[image[..., band]] for band, column in enumerate(self.table.T)]
        return np.stack(bands, 2) * valid[..., None]


def band_statistics(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) of each band over all valid pixels, in levels of 8 bits."""
    counts = np.sum(processes.divided(partial(_histograms, images), list(images), desc="colours", unit="image"), axis=0)
    levels = np.arange(256)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mean = share @ levels
    return mean, np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))


def _histograms(images: ImageSet, item: Item) -> np.ndarray:
    """Valid pixels by band and level, (C, 256)."""
    decoded = images.read(item)
    return np.stack([np.bincount(band, minlength=256) for band in decoded.image[decoded.valid].T])

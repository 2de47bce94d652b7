"""The scaling of a domain, measured on its training images."""

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from datasets.decoder import Decoder
from datasets.files import Item
from datasets.scaling import Stretch
from datasets.values import Values
from utils.errors import DataError
from utils.output import progress_bar

PERCENTILES = (0.5, 99.5)
STRETCH_IMAGES, STRETCH_PIXELS = 200, 10_000  # what scalings are measured on: images, and pixels of each


def has_8_bits(items: Sequence[Item], decoder: Decoder) -> bool:
    """Whether the first image that can be read has 8 bits; all images of a domain must be alike."""
    for item in items:
        with suppress(DataError):
            return decoder.native(item)[0].dtype == np.uint8
    return True


def measured_stretch(items: Sequence[Item], decoder: Decoder) -> Stretch:
    """The stretch of a domain: percentiles of its valid training pixels, band by band."""
    values, dtype = drawn_values(items, decoder)
    low, high = np.percentile(values, PERCENTILES, axis=0)
    dark, high = tuple(map(float, low)), np.where(high > low, high, low + 1)  # a band of one value
    return Stretch(dark, tuple(map(float, high)), dtype=dtype, dark=dark)


def matched_stretch(
    items: Sequence[Item], decoder: Decoder, other_items: Sequence[Item], other_decoder: Decoder, gamma: float = 1.0
) -> Stretch:
    """The stretch that gives a domain the colours of another, which has a scaling: band by band the mean and deviation.

    With a tone curve they are those before it: of the other's values, what the curve would have been given. What then
    lies beyond 0 and 255 is cut off, as the brightest clouds of a dark domain may be.

    Source: the colour transfer of Reinhard et al. (CG&A 2001), between domains in place of images and in their own
    bands: a single image may be all cloud or all clear, and would lose what tells one from the other.
    """
    values, dtype = drawn_values(items, decoder)
    wanted = 255 * (drawn_values(other_items, other_decoder, scaled=True)[0] / 255) ** gamma
    spread, other = values.std(0), wanted.std(0)
    sound = (spread > 0) & (other > 0)  # not a band of one value, of which the mean alone can follow
    unit = np.where(sound, other / np.where(sound, spread, 1), 1)  # levels of 8 bits for a step of the stored value
    low = values.mean(0) - wanted.mean(0) / unit
    low, high, dark = (
        tuple(map(float, of)) for of in (low, low + 255 / unit, np.percentile(values, PERCENTILES[0], 0))
    )
    return Stretch(low, high, gamma, dtype, dark)


def drawn_values(items: Sequence[Item], decoder: Decoder, *, scaled: bool = False) -> tuple[np.ndarray, str]:
    """Values (N, C) float64 of valid pixels from all over a domain, as they are or `scaled` to 8 bits by the decoder,
    and their type, without undeclared fill (`Values.fills`); raises DataError if no pixel is left."""
    step = max(1, math.ceil(len(items) / STRETCH_IMAGES))
    samples: list[np.ndarray] = []
    dtype = None
    for item in progress_bar(items[::step], desc="range of values", unit="image", leave=False):
        try:
            stored = decoder.stored(item)
        except DataError:
            continue  # the check of the domain names it
        drawn = stored.pixels[stored.mask]
        drawn = drawn[None, :: max(1, len(drawn) // STRETCH_PIXELS)]
        stored = stored._replace(pixels=drawn, mask=np.ones(drawn.shape[:2], bool))
        pixels, seen = decoder.values(stored), Values(decoder)
        if dtype not in (None, str(pixels.dtype)):
            continue
        dtype = str(pixels.dtype)
        seen.add(stored, pixels)
        chosen = pixels[~np.isin(drawn, seen.fills).any(2)]
        samples.append(decoder.scaled(chosen[None], item)[0] if scaled else chosen)
    if dtype is None or not sum(map(len, samples)):
        raise DataError(f"{items[0].image}: neither it nor the other training images hold a valid pixel to scale by")
    return np.concatenate(samples).astype(np.float64), dtype

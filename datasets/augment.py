"""Random changes of a training sample; every draw comes from the generator that the sample is given."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from datasets.geometry import Raster

SQUARES, SQUARE = 3, 0.3  # of a cut-out: how many, and their side as a share of the image's
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# RGB to luma and two chromas (NTSC's I and Q), and back; a grey pixel has no chroma, to the last digit.
TO_YIQ = np.vstack([LUMA, [0.596, -0.275, -0.321], [0.212, -0.523, 0.311]])
FROM_YIQ = np.linalg.inv(TO_YIQ)


@dataclass(frozen=True)  # so that its fields are read and never set
class Amounts(Protocol):
    """How much may change; `config.schema.AugmentConfig` documents each field."""

    hflip: float
    vflip: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gamma: float
    cutout: float


def flip(raster: Raster, amounts: Amounts, rng: np.random.Generator) -> Raster:
    """Mirror image, label and valid mask together."""
    horizontal, vertical = rng.random() < amounts.hflip, rng.random() < amounts.vflip

    def mirrored(layer: np.ndarray) -> np.ndarray:
        """(..., H, W); of one byte a pixel, OpenCV turns rows round several times as fast as a copy of a view."""
        layer = layer[..., ::-1, :] if vertical else layer
        if not horizontal or layer.itemsize > 1:
            return layer[..., ::-1] if horizontal else layer
        rows = np.ascontiguousarray(layer).reshape(-1, layer.shape[-1])
        return cv2.flip(rows.view(np.uint8), 1).view(layer.dtype).reshape(layer.shape)

    label, box = None if raster.label is None else mirrored(raster.label), raster.box
    if box is not None:
        rows, columns = raster.valid.shape
        top = rows - box.top - box.height if vertical else box.top
        box = box._replace(top=top, left=columns - box.left - box.width if horizontal else box.left)
    return Raster(mirrored(raster.image.transpose(2, 0, 1)).transpose(1, 2, 0), label, mirrored(raster.valid), box)


def tone_change(image: np.ndarray, amounts: Amounts, rng: np.random.Generator) -> np.ndarray:
    """A random tone curve `x^g` on an 8-bit image of any shape, the same for all bands, rounded to 8 bits again.

    `ln g` is uniform in [-gamma, gamma]; with probability `1 - jitter` nothing changes. Without `gamma` nothing is
    drawn, so that what comes later in the sample stays the same.
    """
    if not amounts.gamma:
        return image
    exponent = np.exp(rng.uniform(-amounts.gamma, amounts.gamma))
    if rng.random() >= amounts.jitter:
        return image
    return np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)[image]


def cut_out(image: np.ndarray, amounts: Amounts, rng: np.random.Generator) -> np.ndarray:
    """Blank squares of an image (C, H, W), which may overlap; without `cutout` nothing is drawn.

    Source: cutout (DeVries and Taylor, 2017).
    """
    if not amounts.cutout or rng.random() >= amounts.cutout:
        return image
    sides = np.array(image.shape[1:])
    image, square = image.copy(), np.round(SQUARE * sides).astype(int)
    for top, left in rng.integers(sides - square + 1, size=(SQUARES, 2)):
        image[:, top : top + square[0], left : left + square[1]] = 0
    return image


def colour_change(raster: Raster, amounts: Amounts, rng: np.random.Generator) -> np.ndarray:
    """A random change of colour of an image with C bands, as the matrix of `x -> A x + b` on pixels in [0, 1].

    Brightness multiplies, contrast stretches about the mean grey of the valid pixels and, of three bands, saturation
    stretches about the grey of each pixel and hue turns the plane of equal grey. All four are linear, so one matrix is
    the whole change, and whoever holds the pixels applies it, such as a GPU. It is (C, C + 1) float32, `A` beside `b`;
    the identity beside 0 where nothing changes.
    """
    bands = raster.image.shape[2]
    draws = rng.uniform(-1, 1, size=4)  # drawn before any decision: later draws do not depend on it
    if rng.random() >= amounts.jitter:
        return np.eye(bands, bands + 1, dtype=np.float32)
    brightness, contrast = 1 + amounts.brightness * draws[0], 1 + amounts.contrast * draws[1]
    luma = LUMA if bands == 3 else np.full(bands, 1 / bands)
    mask = None if raster.valid.all() else np.ascontiguousarray(raster.valid).view(np.uint8)
    planes = (np.ascontiguousarray(raster.image[..., band]) for band in range(bands))
    grey = luma @ [cv2.mean(plane, mask=mask)[0] for plane in planes] / 255
    linear = brightness * contrast * np.eye(bands)
    if bands == 3:
        saturation = 1 + amounts.saturation * draws[2]
        saturated = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), LUMA)
        angle = 2 * np.pi * (amounts.hue * draws[3])
        cosine, sine = np.cos(angle), np.sin(angle)
        turned = FROM_YIQ @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ TO_YIQ  # keeps the luma
        linear = turned @ saturated @ linear
    offset = np.full((bands, 1), (1 - contrast) * brightness * grey)  # grey stays grey under saturation and hue
    return np.hstack([linear, offset]).astype(np.float32)

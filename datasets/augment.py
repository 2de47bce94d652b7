"""Random changes of a training sample; every draw comes from the generator that the sample is given."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF

from datasets.geometry import Raster


class Amounts(Protocol):
    """How much may change; `utils.config.AugmentConfig` documents each field."""

    @property
    def hflip(self) -> float: ...
    @property
    def vflip(self) -> float: ...
    @property
    def jitter(self) -> float: ...
    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def hue(self) -> float: ...


def flip(raster: Raster, amounts: Amounts, rng: np.random.Generator) -> Raster:
    """Mirror image, label and valid mask together."""
    horizontal, vertical = rng.random() < amounts.hflip, rng.random() < amounts.vflip
    order = (slice(None, None, -1 if vertical else 1), slice(None, None, -1 if horizontal else 1))
    return Raster(raster.image[order], None if raster.label is None else raster.label[order], raster.valid[order])


def jitter(image: torch.Tensor, amounts: Amounts, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast and, with three bands, saturation and hue of an image (C, H, W) in [0, 1]."""
    draws = rng.uniform(-1, 1, size=4)  # drawn before any decision: later draws do not depend on it
    if rng.random() >= amounts.jitter:
        return image
    image = (image * (1 + amounts.brightness * draws[0])).clamp(0, 1)  # torchvision's takes one or three bands alone
    grey = TF.rgb_to_grayscale(image) if image.shape[0] == 3 else image
    mean = float(grey.numpy().mean(dtype=np.float64))  # torch's mean depends on its number of threads
    image = (mean + (image - mean) * (1 + amounts.contrast * draws[1])).clamp(0, 1)
    if image.shape[0] == 3:
        image = TF.adjust_saturation(image, 1 + amounts.saturation * draws[2])
        image = TF.adjust_hue(image, amounts.hue * draws[3])
    return image

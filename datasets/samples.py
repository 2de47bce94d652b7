"""Samples and batches: deterministic in (seed, stream, position), whatever the number of loader processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.augment import Amounts, flip, jitter
from datasets.files import Item, read_item
from datasets.geometry import Raster, crop, fitted_size, letterbox, scale_to

STREAMS = ("source", "target", "easy", "hard")


class Sample(TypedDict, total=False):
    """What a reader gives: `image` (C, H, W) float32 in [0, 1], `valid` (H, W) bool, `name`, and `label` (H, W) int64
    with classes and 255 where nothing is known; `label` is absent in an unlabelled domain."""

    image: Tensor
    label: Tensor
    valid: Tensor
    name: str


class EndlessSamples(Dataset[Sample]):
    """An endless shuffled stream of one domain's samples; position n is always the same sample, changed the same way.

    Every pass over the images is a new permutation, so that each image is seen once per pass, and two domains of
    different length do not pair the same images again and again.

    Args:
        items: images, with labels where the stream is a labelled one.
        stream: which of `STREAMS` it is; streams of one seed are independent.
        size: side of the square sample in pixels.
        geometry: "letterbox" or "crop", see `datasets.geometry`.
        amounts: random changes, see `datasets.augment`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        stream: str,
        *,
        seed: int,
        size: int,
        geometry: Literal["letterbox", "crop"],
        amounts: Amounts,
        label_map: Mapping[int, int],
    ) -> None:
        self.items = list(items)
        self.key = (seed, STREAMS.index(stream))
        self.size = size
        self.place = {"letterbox": letterbox, "crop": crop}[geometry]
        self.amounts = amounts
        self.label_map = dict(label_map)

    def index(self, position: int) -> int:
        """The image that stands at a position of the stream."""
        epoch, place = divmod(position, len(self.items))
        return int(_permutation(*self.key, epoch, len(self.items))[place])

    def __getitem__(self, position: int) -> Sample:
        item = self.items[self.index(position)]
        rng = np.random.default_rng([*self.key, 1, position])
        image, label = read_item(item, self.label_map)
        raster = self.place(Raster(image, label, np.ones(image.shape[:2], bool)), self.size, rng)
        raster = flip(raster, self.amounts, rng)
        sample: Sample = {
            "image": jitter(to_tensor(raster.image), self.amounts, rng),
            "valid": torch.from_numpy(raster.valid.copy()),
            "name": item.name,
        }
        if raster.label is not None:
            sample["label"] = torch.from_numpy(raster.label.astype(np.int64))
        return sample

    def batches(self, batch: int, start: int, stop: int, workers: int = 0) -> Iterator[Sample]:
        """Batches `start` to `stop` of the stream, each stacked along a new first axis."""
        positions = range(start * batch, stop * batch)
        return iter(
            DataLoader(self, batch_size=batch, sampler=positions, num_workers=workers, persistent_workers=False)
        )


@lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, stream, 0, epoch]).permutation(length)


def to_tensor(image: np.ndarray) -> Tensor:
    """An 8-bit image (H, W, C) as float32 (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)


def network_input(image: np.ndarray, size: int, geometry: Literal["letterbox", "crop"]) -> Tensor:
    """The tensor (1, C, h, w) on which a trained network predicts a whole image (H, W, C).

    Follows the training geometry without padding: the longer side scaled to `size`, or native resolution.
    """
    if geometry == "letterbox":
        image = scale_to(image, *fitted_size(image.shape[0], image.shape[1], size))
    return to_tensor(image)[None]

"""From a trained network and a decoded image to class probabilities on the image's own grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from config.schema import DataConfig
from datasets.geometry import scale_to
from datasets.samples import network_input
from nets.segmenter import HEADS, Segmenter, evaluating, resize_logits

HeadChoice = Literal["main", "aux", "mean", "union"]


@torch.inference_mode()
def probabilities(segmenter: Segmenter, image: np.ndarray, data: DataConfig) -> dict[str, Tensor]:
    """Both heads' class probabilities (K, H, W) of an image (H, W, C), at its native size.

    What the network sees has the size it was trained on: the whole image, or windows of `data.tile` pixels of a larger
    one, scaled to it ("letterbox"), or windows of the training crop at native resolution ("crop"). Windows overlap by
    half and are blended.

    One at a time, so that a result never depends on what else is in a batch, and that no forward holds more pixels than
    the smallest training batch. What has the image's size is in main memory, wherever the network is.
    """
    with evaluating(segmenter):
        if data.geometry == "crop":
            return _blend(segmenter, image, data, data.size)
        if data.tile is not None and max(image.shape[:2]) > data.tile:
            return _blend(segmenter, image, data, data.tile)
        return _look(segmenter, image, data)


def mean_over_scales(
    segmenter: Segmenter, image: np.ndarray, data: DataConfig, scales: Sequence[float]
) -> dict[str, Tensor]:
    """The mean of `probabilities` over an image that is seen at these scales, 1 being that of training."""
    total: dict[str, Tensor] = {}
    for scale in scales:
        shown, sized = image, data
        if data.geometry == "crop":
            shown = scale_to(image, *(max(1, round(scale * side)) for side in image.shape[:2]))
        else:
            sized = replace(data, size=max(1, round(scale * data.size)))
        for head, probability in probabilities(segmenter, shown, sized).items():
            total[head] = total.get(head, 0) + resize_logits(probability[None], image.shape[:2])[0] / len(scales)
    return total


def _look(segmenter: Segmenter, window: np.ndarray, data: DataConfig) -> dict[str, Tensor]:
    prediction = segmenter(network_input(window, data.size, data.geometry).to(next(segmenter.parameters()).device))
    return {head: resize_logits(getattr(prediction, head).cpu(), window.shape[:2])[0].softmax(0) for head in HEADS}


def _blend(segmenter: Segmenter, image: np.ndarray, data: DataConfig, side: int) -> dict[str, Tensor]:
    """Probabilities of overlapping windows of `side`, each weighted by a tent that falls towards its border."""
    rows, columns = image.shape[:2]
    height, width = min(side, rows), min(side, columns)
    tent = _tent(height)[:, None] * _tent(width)
    total = {head: torch.zeros(segmenter.classes, rows, columns) for head in HEADS}
    weight = torch.zeros(rows, columns)
    for top, left in product(starts(rows, side), starts(columns, side)):
        down, across = slice(top, top + height), slice(left, left + width)
        weight[down, across] += tent
        for head, probability in _look(segmenter, image[down, across], data).items():
            total[head][:, down, across] += tent * probability
    return {head: summed.div_(weight) for head, summed in total.items()}


def starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin that cover `length` pixels evenly, each overlapping the next by at least half."""
    if length <= size:
        return [0]
    count = math.ceil((length - size) / (size // 2)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def _tent(length: int) -> Tensor:
    place = torch.arange(length) + 0.5
    return torch.minimum(place, length - place)


def decide(probability: dict[str, Tensor], head: HeadChoice = "main") -> Tensor:
    """The mask (H, W) of classes that the chosen head gives; see `EvalConfig.head`."""
    return decided(probability, head).argmax(0)


def decided(probability: dict[str, Tensor], head: HeadChoice = "main") -> Tensor:
    """The class probabilities (K, H, W) behind a mask; `union` takes each pixel's from the head surer of cloud."""
    main, aux = probability["main"], probability["aux"]
    if head == "mean":
        return (main + aux) / 2
    if head == "union":
        return torch.where(main[1] >= aux[1], main, aux)
    return probability[head]

"""From a trained network and a decoded image to class probabilities on the image's own grid."""

from __future__ import annotations

import math
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datasets.samples import network_input
from nets.segmenter import HEADS, Segmenter, upsampled
from utils.config import DataConfig

Head = Literal["main", "aux", "mean", "union"]
AT_ONCE = 16  # windows in one forward


@torch.inference_mode()
def probabilities(segmenter: Segmenter, image: np.ndarray, data: DataConfig) -> dict[str, Tensor]:
    """Both heads' class probabilities (K, H, W) of an image (H, W, C), at its native size.

    What the network sees has the size it was trained on: the whole image, or windows of `data.tile` pixels of a larger
    one, scaled to it ("letterbox"), or windows of the training crop at native resolution ("crop"). Windows overlap by
    half and are blended.
    One image at a time, so that a result never depends on what else is in a batch.
    """
    segmenter.eval()
    if data.geometry == "crop":
        return _blend(segmenter, image, data, data.size)
    if data.tile is not None and max(image.shape[:2]) > data.tile:
        return _blend(segmenter, image, data, data.tile)
    logits = upsampled(segmenter(_input(segmenter, image, data)), image.shape[:2])
    return {head: logits[head][0].softmax(0) for head in HEADS}


def _input(segmenter: Segmenter, image: np.ndarray, data: DataConfig) -> Tensor:
    return network_input(image, data.size, data.geometry).to(next(segmenter.parameters()).device)


def _blend(segmenter: Segmenter, image: np.ndarray, data: DataConfig, side: int) -> dict[str, Tensor]:
    """Probabilities of overlapping windows of `side`, each weighted by a tent that falls towards its border."""
    device = next(segmenter.parameters()).device
    rows, columns = image.shape[:2]
    height, width = min(side, rows), min(side, columns)
    tent = _tent(height)[:, None] * _tent(width)
    tent = tent.to(device)
    corners = list(product(starts(rows, side), starts(columns, side)))
    total = {head: torch.zeros(segmenter.classes, rows, columns, device=device) for head in HEADS}
    weight = torch.zeros(rows, columns, device=device)
    for begin in range(0, len(corners), AT_ONCE):
        part = corners[begin : begin + AT_ONCE]
        places = [(slice(top, top + height), slice(left, left + width)) for top, left in part]
        inputs = torch.cat([_input(segmenter, image[place], data) for place in places])
        logits = upsampled(segmenter(inputs), (height, width))
        for i, (down, across) in enumerate(places):
            weight[down, across] += tent
            for head in HEADS:
                total[head][:, down, across] += tent * logits[head][i].softmax(0)
    return {head: summed / weight for head, summed in total.items()}


def starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin that cover `length` pixels evenly, each overlapping the next by at least half."""
    if length <= size:
        return [0]
    count = math.ceil((length - size) / (size // 2)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def _tent(length: int) -> Tensor:
    place = torch.arange(length) + 0.5
    return torch.minimum(place, length - place)


def decide(probability: dict[str, Tensor], head: Head = "main") -> Tensor:
    """The mask (H, W) of classes that the chosen head gives; see `EvalConfig.head`."""
    return decided(probability, head).argmax(0)


def decided(probability: dict[str, Tensor], head: Head = "main") -> Tensor:
    """The class probabilities (K, H, W) behind a mask; `union` takes each pixel's from the head surer of cloud."""
    main, aux = probability["main"], probability["aux"]
    if head == "mean":
        return (main + aux) / 2
    if head == "union":
        return torch.where(main[1] >= aux[1], main, aux)
    return probability[head]

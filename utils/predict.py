"""From a trained network and a decoded image to class probabilities on the image's own grid."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datasets.samples import network_input
from nets.segmenter import Segmenter, upsampled
from utils.config import DataConfig

Head = Literal["main", "aux", "mean", "union"]


@torch.inference_mode()
def probabilities(segmenter: Segmenter, image: np.ndarray, data: DataConfig) -> dict[str, Tensor]:
    """Both heads' class probabilities (K, H, W) of an image (H, W, C), at its native size.

    One image at a time, so that a result never depends on what else is in a batch.
    """
    device = next(segmenter.parameters()).device
    prediction = segmenter.eval()(network_input(image, data.size, data.geometry).to(device))
    return {head: logits[0].softmax(0) for head, logits in upsampled(prediction, image.shape[:2]).items()}


def decide(probability: dict[str, Tensor], head: Head = "main") -> Tensor:
    """The mask (H, W) of classes that the chosen head gives; see `EvalConfig.head`."""
    if head == "union":
        return torch.maximum(probability["main"].argmax(0), probability["aux"].argmax(0))
    if head == "mean":
        return (probability["main"] + probability["aux"]).argmax(0)
    return probability[head].argmax(0)

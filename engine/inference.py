"""From a trained network and a decoded image to class probabilities on the image's own grid."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from config.schema import DataConfig
from datasets.geometry import scale_to
from datasets.samples import to_tensor
from engine.windows import Rows, blended, plan, usual_window
from nets.segmenter import HEADS, Segmenter, evaluating, resize_logits

HeadChoice = Literal["main", "aux", "mean", "union"]


def probabilities(
    segmenter: Segmenter, image: np.ndarray, data: DataConfig, valid: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Both heads' class probabilities (K, H, W) of an image (H, W, C), at its native size; of no meaning where not
    `valid`, (H, W) bool, or None for everywhere.

    With the geometry "letterbox" the network sees the whole image, or windows of `data.tile` pixels of a larger one,
    scaled to the size of training; with "crop" windows of `usual_window` at native resolution. Windows overlap and are
    blended, as predict.py has them.

    One at a time, so that a result never depends on what else is in a batch. What has the image's size is in main
    memory, wherever the network is.
    """
    device = next(segmenter.parameters()).device

    @torch.inference_mode()
    def predict_window(window: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        prediction = segmenter(to_tensor(window[0]).to(device))
        logits = (resize_logits(getattr(prediction, head).cpu(), size) for head in HEADS)
        return torch.stack([of_head.softmax(1) for of_head in logits], 1).numpy()  # (1, heads, K, H, W)

    height, width = image.shape[:2]
    windows = plan(height, width, data, usual_window(data, segmenter.architecture))
    slabs = iter([Rows(image, np.ones((height, width), bool) if valid is None else valid)])
    found = np.empty((len(HEADS), segmenter.classes, height, width), np.float32)
    top = 0
    with evaluating(segmenter):
        for rows in blended(predict_window, slabs, windows, layers=found.shape[:2]):
            found[..., top : top + len(rows.valid), :] = rows.layer
            top += len(rows.valid)
    return dict(zip(HEADS, torch.from_numpy(found), strict=True))


def mean_over_scales(
    segmenter: Segmenter, image: np.ndarray, data: DataConfig, scales: Sequence[float]
) -> dict[str, Tensor]:
    """The mean of `probabilities` over an image, holes filled, that is seen at these scales, 1 being that of
    training."""
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

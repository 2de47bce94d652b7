"""Supervised losses between a prediction and a label map with ignored pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.labels import IGNORE


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels.

    Args:
        logits: scores, (B, K, H, W).
        label: class indices 0..K-1, or 255 for a pixel that does not count, (B, H, W) int64.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when every pixel is ignored.

    Reference:
        The segmentation loss of ADVENT and ASDA.
    """
    per_pixel = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")  # (B, H, W), 0 where ignored
    return per_pixel.sum() / (label != IGNORE).sum().clamp(min=1)


def focal(logits: Tensor, label: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of `(1 - p)^gamma * -log p` over the labelled pixels, with `p` the probability of the labelled class.

    Args:
        logits: scores, (B, K, H, W).
        label: class indices 0..K-1, or 255 for a pixel that does not count, (B, H, W) int64.
        gamma: how fast a pixel loses weight as it becomes sure; 0 is the cross-entropy. Between 0 and 1 the gradient
            is not finite at p = 1.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when every pixel is ignored.

    Reference:
        Lin et al., ICCV 2017; the segmentation loss of CLAN.
    """
    per_pixel = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")  # (B, H, W), 0 where ignored
    one_minus_pt = -torch.expm1(-per_pixel)
    return (one_minus_pt**gamma * per_pixel).sum() / (label != IGNORE).sum().clamp(min=1)


def soft_jaccard(logits: Tensor, label: Tensor) -> Tensor:
    """One minus the soft intersection over union, counted over batch, classes and pixels at once.

    With `p` the softmax, `Y` the one-hot label and `S = sum p*Y`, the loss is
    `1 - S / (sum p + sum Y - S + 1e-5)`. A pixel adds one to `sum p` and one to `sum Y`, so over `n` labelled
    pixels the denominator is `2n - S + 1e-5`, and a class that is absent needs no rule of its own.

    Args:
        logits: scores, (B, K, H, W).
        label: class indices 0..K-1, or 255 for a pixel that does not count, (B, H, W) int64.

    Returns:
        A scalar in [0, 1]; exactly 0, and still connected to the graph, when every pixel is ignored.

    Reference:
        The term that ASDA adds to the cross-entropy under the name Dice.
    """
    ignored = label == IGNORE
    per_pixel = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    overlap = torch.exp(-per_pixel).masked_fill(ignored, 0.0).sum()  # probability of the labelled class, summed
    labelled = (~ignored).sum()
    return (1.0 - overlap / (2 * labelled - overlap + 1e-5)) * (labelled > 0)

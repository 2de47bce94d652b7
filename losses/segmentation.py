"""Supervised losses between a prediction and a label map with ignored pixels.

All take scores (B, K, H, W) and class indices 0..K-1, or 255 for a pixel that does not count, (B, H, W) int64. They
give a scalar >= 0: exactly 0, and still connected to the graph, when every pixel is ignored.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.labels import IGNORE


def per_pixel_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The cross-entropy of each pixel, (B, H, W), 0 where ignored."""
    return F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels: the segmentation loss of ADVENT and ASDA."""
    return per_pixel_cross_entropy(logits, label).sum() / (label != IGNORE).sum().clamp(min=1)


def weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight, >= 0, (B, H, W) or a scalar, times cross-entropy over the labelled pixels, over their number: the
    loss of DACS (Tranheden et al., WACV 2021), but for the mean, which here leaves out the ignored pixels."""
    return (weight * per_pixel_cross_entropy(logits, label)).sum() / (label != IGNORE).sum().clamp(min=1)


def focal(logits: Tensor, label: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of `(1 - p)^gamma * -log p` over the labelled pixels, with `p` the probability of the labelled class (Lin et
    al., ICCV 2017; the segmentation loss of CLAN).

    Args:
        gamma: how fast a pixel loses weight as it becomes sure; 0 is the cross-entropy. Between 0 and 1 the gradient
            is not finite at p = 1.
    """
    per_pixel = per_pixel_cross_entropy(logits, label)
    one_minus_pt = -torch.expm1(-per_pixel)
    return (one_minus_pt**gamma * per_pixel).sum() / (label != IGNORE).sum().clamp(min=1)


def soft_jaccard(logits: Tensor, label: Tensor) -> Tensor:
    """One minus the soft intersection over union, counted over batch, classes and pixels at once: what ASDA adds to the
    cross-entropy under the name Dice.

    With `p` the softmax, `Y` the one-hot label and `S = sum p*Y`, the loss is
    `1 - S / (sum p + sum Y - S + 1e-5)`. A pixel adds one to `sum p` and one to `sum Y`, so over `n` labelled
    pixels the denominator is `2n - S + 1e-5`, and a class that is absent needs no rule of its own.
    """
    ignored = label == IGNORE
    probability = torch.exp(-per_pixel_cross_entropy(logits, label))  # of the labelled class
    overlap, labelled = probability.masked_fill(ignored, 0.0).sum(), (~ignored).sum()
    return (1.0 - overlap / (2 * labelled - overlap + 1e-5)) * (labelled > 0)

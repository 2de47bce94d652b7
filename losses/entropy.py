"""Entropy of a class distribution: the map that discriminators see, the ranking score and the MinEnt loss."""

import math

import torch
from torch import Tensor


def weighted_self_information(prob: Tensor) -> Tensor:
    """Share of each class in the normalised entropy, `-p * log2(p + 1e-20) / log2(K)`: what the discriminators of
    ADVENT and ASDA see.

    Args:
        prob: class probabilities in [0, 1], (B, K, ...).

    Returns:
        A tensor shaped as `prob`, >= 0 and at most 0.531 for K = 2. The small constant keeps value and gradient
        finite at p = 0; a dtype that cannot hold it (float16) gets its own smallest normal number instead.

    Raises:
        ValueError: there are fewer than two classes.
    """
    classes = prob.shape[1]
    if classes < 2:
        raise ValueError(f"entropy needs at least 2 classes on dimension 1, got a tensor of shape {tuple(prob.shape)}")
    floor = max(1e-20, torch.finfo(prob.dtype).tiny)
    return -prob * torch.log2(prob + floor) / math.log2(classes)


def normalised_entropy(prob: Tensor) -> Tensor:
    """Shannon entropy over the classes of probabilities (B, K, ...), divided by its maximum: (B, ...) in [0, 1].

    It is 0 for a one-hot and 1 for a uniform distribution; IntraDA and ASDA rank target images by it.
    """
    return weighted_self_information(prob).sum(1).clamp(0.0, 1.0)


def entropy_loss(prob: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean normalised entropy of the valid pixels, minimised on unlabelled images (MinEnt of ADVENT).

    Args:
        prob: class probabilities in [0, 1], (B, K, ...).
        valid: True where a pixel counts, (B, ...) bool; None for all.

    Returns:
        A scalar in [0, 1] up to rounding; exactly 0, and still connected to the graph, when no pixel is valid.
    """
    entropy = weighted_self_information(prob).sum(1)
    return entropy.mean() if valid is None else (entropy * valid).sum() / valid.sum().clamp(min=1)


@torch.no_grad()
def mean_entropy(logits: Tensor, valid: Tensor) -> Tensor:
    """Mean normalised entropy of logits (B, K, H, W) over the valid pixels (B, H, W); 0 when there are none."""
    entropy = normalised_entropy(logits.softmax(1)) * valid
    return entropy.sum() / valid.sum().clamp(min=1)

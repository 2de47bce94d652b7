"""Adversarial alignment: a discriminator tells two domains apart, the segmenter hides the difference."""

import torch
from torch import Tensor
from torch.nn import functional as F

SOURCE = 0
TARGET = 1


def domain_cross_entropy(logits: Tensor, domain: int) -> Tensor:
    """Binary cross-entropy against `SOURCE` (0) or `TARGET` (1) at every position of a discriminator's scores."""
    if domain not in (SOURCE, TARGET):
        raise ValueError(f"domain must be SOURCE ({SOURCE}) or TARGET ({TARGET}), got {domain!r}")
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, domain), reduction="none")


def discriminator_loss(logits: Tensor, domain: int, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of a discriminator's output against one domain label for every position (ADVENT; ASDA).

    It serves both players. The segmenter passes the discriminator's view of a *target* map with `SOURCE`, which rewards
    target maps that look like source maps. The discriminator passes detached maps with their true domain.

    Args:
        logits: discriminator scores before the sigmoid, any shape, usually (B, 1, h, w).
        domain: `SOURCE` (0) or `TARGET` (1).
        weight: what a position counts, >= 0, of the same shape, such as its share of pixels with data; None: all alike.

    Returns:
        A scalar >= 0, the weighted mean; exactly 0, and still connected to the graph, when all weights are 0.
    """
    per_position = domain_cross_entropy(logits, domain)
    if weight is None:
        return per_position.mean()
    return (per_position * weight).sum() / weight.sum().clamp(min=torch.finfo(logits.dtype).tiny)

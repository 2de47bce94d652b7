"""Entropy-guided pseudo-labels: a pixel is kept while it is at most as uncertain as the median of its class."""

import torch
from torch import Tensor

from utils.labels import IGNORE

BINS = 65536


def below_threshold(entropy: Tensor, label: Tensor, thresholds: Tensor) -> Tensor:
    """The label with 255 where the entropy is above its class's threshold, of (K,) (ESL, Saporta et al., 2020).

    Args:
        entropy: normalised entropy in [0, 1], any shape.
        label: predicted class, 255 for a pixel that does not count, same shape, int64.
    """
    return label.masked_fill(entropy > thresholds[label.masked_fill(label == IGNORE, 0)], IGNORE)


def quantise(entropy: Tensor, bins: int = BINS) -> Tensor:
    """The nearest of `bins` equal steps from 0 to 1, int64; with 65536 of them a step fits in a uint16."""
    return (entropy.double().clamp(0.0, 1.0) * (bins - 1)).round().long()


class EntropyHistogram:
    """The median entropy of each class over a stream of images, in memory that does not grow with their number.

    The medians are exact for the quantised entropies, so within half a step of those of the entropies themselves.

    Attributes:
        counts: pixels seen per class and step of the entropy, (K, bins) int64, on the CPU.
    """

    def __init__(self, classes: int, bins: int = BINS) -> None:
        self.counts = torch.zeros(classes, bins, dtype=torch.int64)

    def add(self, entropy: Tensor, label: Tensor) -> None:
        """Count the pixels of one image or batch; entropy and label as for `below_threshold`."""
        known = label != IGNORE
        bins = self.counts.shape[1]
        cell = label[known] * bins + quantise(entropy[known], bins)
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).cpu().view_as(self.counts)

    def thresholds(self, floor: float = 0.1) -> Tensor:
        """The highest entropies (K,) float64 that a pixel of each class may have, by all pixels seen so far.

        Of the n sorted entropies of a class the one at `round(n / 2)`; `floor` if that is higher or n is 0, so that a
        class which is sure everywhere keeps more than half of its pixels.
        """
        below = self.counts.cumsum(1)
        number = below[:, -1:]
        step = torch.searchsorted(below, (number.double() / 2).round().long(), right=True) * (number > 0)
        return (step[:, 0].double() / (below.shape[1] - 1)).clamp(min=floor)

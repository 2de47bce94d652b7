"""Entropy-guided pseudo-labels: a pixel is kept while it is at most as uncertain as the median of its class."""

import torch
from torch import Tensor

from utils.labels import IGNORE

BINS = 65536


def class_median_entropy(entropy: Tensor, label: Tensor, classes: int, floor: float = 0.1) -> Tensor:
    """Highest entropy that a pixel of each predicted class may have.

    Args:
        entropy: normalised entropy in [0, 1], any shape.
        label: predicted class, 255 for a pixel that does not count, same shape, int64.
        classes: number of classes K.
        floor: lowest threshold, so that a class which is sure everywhere keeps more than half of its pixels.

    Returns:
        Thresholds (K,) in [floor, 1]: of the n sorted entropies of a class the one at `round(n / 2)`, or the floor if
        that is higher or n is 0.

    Reference:
        ESL (Saporta et al., 2020).
    """
    thresholds = entropy.new_full((classes,), floor)
    for cls in range(classes):
        ordered = entropy[label == cls].sort().values
        if len(ordered):
            thresholds[cls] = ordered[round(len(ordered) / 2)]  # ties to even: at most n - 1
    return thresholds.clamp(min=floor)


def below_threshold(entropy: Tensor, label: Tensor, thresholds: Tensor) -> Tensor:
    """Drop the pixels that are more uncertain than their class allows.

    Args:
        entropy: normalised entropy in [0, 1], any shape.
        label: predicted class, 255 for a pixel that does not count, same shape, int64.
        thresholds: highest entropy of each class, (K,).

    Returns:
        The label with 255 where the entropy is above the threshold of the class.

    Reference:
        ESL (Saporta et al., 2020).
    """
    highest = thresholds[label.masked_fill(label == IGNORE, 0)]
    return label.masked_fill(entropy > highest, IGNORE)


def quantise(entropy: Tensor, bins: int = BINS) -> Tensor:
    """The nearest of `bins` equal steps from 0 to 1, int64; with 65536 of them a step fits in a uint16."""
    return (entropy.double().clamp(0.0, 1.0) * (bins - 1)).round().long()


class EntropyHistogram:
    """`class_median_entropy` of a stream of images, in memory that does not grow with their number.

    The medians are exact for the quantised entropies, so within half a step of those of the entropies themselves.

    Args:
        classes: number of classes K.
        bins: number of steps of the entropy.

    Attributes:
        counts: pixels seen per class and step, (K, bins) int64, on the CPU.
    """

    def __init__(self, classes: int, bins: int = BINS) -> None:
        self.counts = torch.zeros(classes, bins, dtype=torch.int64)

    def add(self, entropy: Tensor, label: Tensor) -> None:
        """Count the pixels of one image or batch; entropy in [0, 1] and label as for `class_median_entropy`."""
        known = label != IGNORE
        bins = self.counts.shape[1]
        cell = label[known] * bins + quantise(entropy[known], bins)
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).cpu().view_as(self.counts)

    def thresholds(self, floor: float = 0.1) -> Tensor:
        """The thresholds (K,) float64 of all pixels seen so far; see `class_median_entropy`."""
        highest = self.counts.shape[1] - 1
        values = []
        for below in self.counts.cumsum(1):
            number = int(below[-1])
            step = int(torch.searchsorted(below, round(number / 2), right=True)) if number else 0
            values.append(max(floor, step / highest))
        return torch.tensor(values, dtype=torch.float64)

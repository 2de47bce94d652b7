"""How far two masks of the same pixels agree, beyond chance."""

import numpy as np


def counts_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many pixels of two masks, bool of one shape, are so and so in both: (2, 2) int64; those of images add up."""
    return np.bincount(2 * one.ravel() + other.ravel(), minlength=4).reshape(2, 2)


def kappa(counts: np.ndarray) -> float:
    """Cohen's kappa of two classifications from their counts (2, 2); 0 where both are of one class throughout."""
    shares = counts / counts.sum()
    by_chance = float(shares.sum(0) @ shares.sum(1))
    return 0.0 if by_chance == 1 else (float(np.trace(shares)) - by_chance) / (1 - by_chance)

"""Results of runs with known scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from comparison.results import Comparison, Result
from comparison.statistics import table


def matrices_of(wrong: Sequence[int]) -> np.ndarray:
    """One image per entry: 100 clear and 100 cloud pixels, `wrong` of each called the other class."""
    return np.array([[[100 - w, w], [w, 100 - w]] for w in wrong], np.int64)


def result(method: str, seed: int = 0, wrong: Sequence[int] = (40, 20), **changes: Any) -> Result:
    values = Result(
        method=method,
        seed=seed,
        images=[f"{i:03}" for i in range(len(wrong))],
        scenes=[],
        matrices=matrices_of(wrong),
        steps=300,
        seconds=90.0,
        peak_mib=None,
        warnings=[],
        selected="last",
        best=None,
    )
    return values._replace(**changes)


def compared(*results: Result, **changes: Any) -> Comparison:
    return Comparison("a_to_b", "held-back images", results, **changes)


def rows_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in table(comparison)}


def noisy(method: str, seed: int, mean: float = 20, images: int = 30) -> Result:
    """Errors that differ between images, methods and seeds."""
    rng = np.random.default_rng([seed, *method.encode()])
    return result(method, seed, rng.normal(mean, 6, images).clip(0, 100).astype(int).tolist())


def miou(wrong: float) -> float:
    """Of `matrices_of`, in percent: with a share e of each class wrong, IoU = (1 - e) / (1 + e)."""
    return 100 * (100 - wrong) / (100 + wrong)

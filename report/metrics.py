"""Scores from one integer confusion matrix, under their true names.

The published tables of this method call precision "recall" and recall "CPA"; here precision is the share of predicted
cloud that is cloud, recall the share of true cloud that is found.
"""

from typing import Any

import cv2
import numpy as np

from utils.labels import IGNORE

CLASSES = ("clear", "cloud")


def confusion_matrix(*, label: np.ndarray, prediction: np.ndarray, classes: int = 2) -> np.ndarray:
    """Count pixels: element [i, j] of (K, K) int64 is how many of class i were predicted as j; label 255 never counts.

    Args:
        label, prediction: integers of any one shape, in [0, K); the label may be 255 as well.
        classes: K, at most 15.

    Raises:
        ValueError: the shapes differ, or a value is out of range.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label has shape {label.shape}, prediction {prediction.shape}; expected equal shapes")
    if not 1 <= classes <= 15:
        raise ValueError(f"classes is {classes}, expected 1 to 15")
    true, found = label.astype(np.uint8, copy=False), prediction.astype(np.uint8, copy=False)
    wrapped = any(of.dtype != np.uint8 and (of != to).any() for of, to in ((label, true), (prediction, found)))
    if wrapped or (true.size and (found.max() >= classes or not ((true < classes) | (true == IGNORE)).all())):
        raise ValueError(f"found classes outside 0..{classes - 1} that are not {IGNORE}")
    # In eight bits 255 * K wraps round to 256 - K: the ignored pixels take the last K codes, beyond all K * K pairs.
    code = (true * np.uint8(classes) + found).reshape(-1, 1)
    counts = np.zeros(256, np.int64)
    for part in np.array_split(code, max(1, -(-code.size >> 24))):  # a histogram is exact up to 2**24
        counts += cv2.calcHist([part], [0], None, [256], [0, 256]).ravel().astype(np.int64) if part.size else 0
    return counts[: classes * classes].reshape(classes, classes)


def calibration_bins(
    *, label: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, bins: int = 15
) -> np.ndarray:
    """Sum pixels by confidence, for the reliability curve and its error; label 255 never counts.

    `label`, `prediction` and `confidence`, the predicted class's probability in [0, 1], are of any one shape; bins are
    of equal width over [0, 1]. Gives (3, bins) float64: pixels, summed confidence, correct pixels; those of several
    images add up.
    """
    known = label != IGNORE
    confidence = confidence[known].astype(np.float64)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    correct = label[known] == prediction[known]
    return np.stack([np.bincount(place, weights=w, minlength=bins) for w in (None, confidence, correct)])


def calibration_error(binned: np.ndarray) -> float:
    """The expected calibration error in [0, 1] (Guo et al., ICML 2017): mean distance of confidence and accuracy, bins
    weighted by pixels."""
    pixels, confidence, correct = binned
    return float(np.abs(confidence - correct).sum() / pixels.sum()) if pixels.sum() else float("nan")


def bootstrap(groups: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """mIoU (..., draws) in [0, 1] of resamples, groups drawn with replacement.

    Args:
        groups: (..., G, 2, 2) confusion matrices of G images or scenes; leading axes are models that share each draw,
            so that their differences can be taken draw by draw.
    """
    count = groups.shape[-3]
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)  # (draws, G)
    matrices = np.einsum("dg,...gij->...dij", times.astype(np.float64), groups.astype(np.float64))
    hit = np.diagonal(matrices, axis1=-2, axis2=-1)
    union = matrices.sum(-1) + matrices.sum(-2) - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(hit / union, -1)  # an absent class has no IoU, as in `scores`


def interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """The central interval that holds `level` of the values."""
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def brightness_counts(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Pixels (2, 256) of each class by brightness, the rounded mean of the bands of an 8-bit image (H, W, C)."""
    code = np.round(image.mean(2)).astype(np.int64) + 256 * label.astype(np.int64)
    return np.bincount(code[label != IGNORE], minlength=512)[:512].reshape(2, 256)


def best_threshold(counts: np.ndarray) -> tuple[int, np.ndarray]:
    """The brightness above which calling everything cloud gives the highest mIoU, and its confusion matrix: chosen on
    the labels that it is scored on, so it is the best that brightness alone can do."""
    below = counts.cumsum(1)  # (2, 256), pixels no brighter than each threshold
    matrices = np.stack([below, below[:, -1:] - below], 2).transpose(1, 0, 2)  # (256, 2, 2)
    best = int(np.nanargmax([scores(matrix)["miou"] for matrix in matrices]))
    return best, matrices[best]


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """IoU, precision, recall and F1 per class, pixel accuracy, balanced accuracy and mIoU, all in [0, 1], of counts
    (2, 2), rows true, columns predicted.

    A class that is neither present nor predicted has no score (NaN), and means are taken over the others; recall of an
    absent class and precision of a class that is never predicted are NaN as well.
    """
    counts = matrix.astype(np.float64)
    hit, true, found = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_class = dict(
            iou=hit / (true + found - hit), precision=hit / found, recall=hit / true, f1=2 * hit / (true + found)
        )
        accuracy = hit.sum() / counts.sum()
    return {
        **{name: dict(zip(CLASSES, values.tolist(), strict=True)) for name, values in of_class.items()},
        "pixel_accuracy": float(accuracy),
        "balanced_accuracy": _mean(of_class["recall"]),
        "miou": _mean(of_class["iou"]),
        "confusion": matrix.tolist(),
    }


def score_at(values: Any, path: tuple[str, ...]) -> Any:
    """One entry of what `scores` gives, such as ("iou", "cloud")."""
    for key in path:
        values = values[key]
    return values


def trivial(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The confusion matrices of calling everything clear, or everything cloud, on the same labels."""
    true = matrix.sum(1)
    return {"all_clear": np.stack([true, 0 * true], 1), "all_cloud": np.stack([0 * true, true], 1)}


def _mean(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")

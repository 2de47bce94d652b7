"""Scores from one integer confusion matrix, under their true names.

The published tables of this method call precision "recall" and recall "CPA"; here precision is the share of predicted
cloud that is cloud, recall the share of true cloud that is found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = ("clear", "cloud")
IGNORE = 255


def confusion_matrix(*, label: np.ndarray, prediction: np.ndarray, classes: int = 2) -> np.ndarray:
    """Count pixels: element [i, j] is the number of pixels of class i that were predicted as j; label 255 never counts.

    Args:
        label: integers of any shape in [0, classes) or 255.
        prediction: integers of the same shape in [0, classes).

    Returns:
        (classes, classes) int64.

    Raises:
        ValueError: the shapes differ, or a value is out of range.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label has shape {label.shape}, prediction {prediction.shape}; expected equal shapes")
    known = label != IGNORE
    true, found = label[known].astype(np.int64), prediction[known].astype(np.int64)
    if true.size and (min(true.min(), found.min()) < 0 or max(true.max(), found.max()) >= classes):
        raise ValueError(f"found classes outside 0..{classes - 1} that are not 255")
    return np.bincount(classes * true + found, minlength=classes * classes).reshape(classes, classes)


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """IoU, precision, recall and F1 per class, pixel accuracy, balanced accuracy and mIoU, all in [0, 1].

    A class that is neither present nor predicted has no score (NaN), and means are taken over the others; recall of an
    absent class and precision of a class that is never predicted are NaN as well.

    Args:
        matrix: (2, 2) counts, rows true, columns predicted.
    """
    counts = matrix.astype(np.float64)
    hit, true, found = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, f1 = hit / (true + found - hit), 2 * hit / (true + found)
        precision, recall = hit / found, hit / true
        accuracy = hit.sum() / counts.sum()
    return {
        "iou": dict(zip(CLASSES, iou.tolist(), strict=True)),
        "precision": dict(zip(CLASSES, precision.tolist(), strict=True)),
        "recall": dict(zip(CLASSES, recall.tolist(), strict=True)),
        "f1": dict(zip(CLASSES, f1.tolist(), strict=True)),
        "pixel_accuracy": float(accuracy),
        "balanced_accuracy": _mean(recall),
        "miou": _mean(iou),
        "confusion": matrix.tolist(),
    }


def trivial(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The confusion matrices of calling everything clear, or everything cloud, on the same labels."""
    true = matrix.sum(1)
    nothing = np.zeros_like(true)
    return {"all_clear": np.stack([true, nothing], 1), "all_cloud": np.stack([nothing, true], 1)}


def _mean(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")

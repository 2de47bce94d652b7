"""Time of counting a 1024x1024 prediction into the confusion matrix, against torchmetrics.

    python bench/metrics.py

Both get the same label (with some pixels of 255) and mask, each in the type in which the project has them; torchmetrics
runs with validate_args=False, so it checks nothing, while the project's function does. Prints the ratio of the medians
of alternating calls, and fails if the matrices differ.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report.metrics import confusion_matrix

SIDE, CALLS = 1024, 60


def main() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 255], (SIDE, SIDE), p=[0.55, 0.35, 0.1]).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.85, label % 255, 1 - label % 2).astype(np.uint8)
    metric = MulticlassConfusionMatrix(2, ignore_index=255, validate_args=False)
    tensors = {
        str(kind): (torch.from_numpy(prediction).to(kind), torch.from_numpy(label).to(kind))
        for kind in (torch.uint8, torch.int64)
    }
    ours: list[float] = []
    theirs: dict[str, list[float]] = {kind: [] for kind in tensors}
    for _ in range(CALLS):
        begin = time.perf_counter()
        matrix = confusion_matrix(label=label, prediction=prediction)
        ours.append(time.perf_counter() - begin)
        for kind, (found, true) in tensors.items():
            metric.reset()
            begin = time.perf_counter()
            metric.update(found, true)
            theirs[kind].append(time.perf_counter() - begin)
            if metric.compute().numpy().tolist() != matrix.tolist():
                sys.exit(f"the matrices differ: {matrix.tolist()} and {metric.compute().tolist()}")
    print(f"{SIDE}x{SIDE} pixels, {torch.get_num_threads()} threads, median of {CALLS} calls each, equal matrices")
    print(f"report.metrics.confusion_matrix (uint8): {1e3 * np.median(ours):.2f} ms")
    for kind, times in theirs.items():
        ratio = np.median(times) / np.median(ours)
        print(f"torchmetrics {kind}: {1e3 * np.median(times):.2f} ms, ratio {ratio:.1f}")


if __name__ == "__main__":
    main()

"""Peak memory of a process, whatever its parent held, and errors that say there is not enough."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engine.memory import memory_explained, peak_mib
from utils.errors import DataError, EvaluationError

REPOSITORY = Path(__file__).parents[2]
CHILD = "from engine.memory import process_peak_mib as peak; a = bytearray({} * 2**20); print(peak())"


def peak_of_child(mib: int) -> float:
    return float(
        subprocess.run(
            [sys.executable, "-c", CHILD.format(mib)], cwd=REPOSITORY, text=True, capture_output=True, check=True
        ).stdout
    )


def test_what_a_process_held_counts_and_what_its_parent_held_does_not():
    own = peak_of_child(0)
    assert peak_of_child(300) - own > 290
    held = np.ones(100 * 2**20)  # 800 MiB
    del held
    assert peak_mib(torch.device("cpu")) > 800
    assert peak_of_child(0) < own + 50


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(1 << 55),
        lambda: np.empty(1 << 55),
        lambda: bytearray(1 << 55),
        lambda: cv2.resize(np.zeros((2, 2), np.uint8), (1 << 17, 1 << 20)),
    ],
    ids=["PyTorch", "NumPy", "Python", "OpenCV"],
)
def test_memory_that_ran_out_is_known_whoever_says_so(ask: Callable[[], object]) -> None:
    with (
        pytest.raises(
            EvaluationError, match=r"^run/eval: cpu has not enough memory for batch 1 \(peak [\d,]+ MiB\)\. Use less$"
        ),
        memory_explained("run/eval", "batch 1", torch.device("cpu"), "Use less"),
    ):
        ask()


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 20 MiB", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_of_a_gpu(text: str) -> None:
    with pytest.raises(EvaluationError, match=r"^a\.tif: cpu has not"), memory_explained("a.tif", "it", None, ""):
        raise torch.OutOfMemoryError(text)


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), DataError("a.png: out of memory cards"), ValueError()])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_explained("here", "it", None, ""):
        raise error
    assert caught.value is error

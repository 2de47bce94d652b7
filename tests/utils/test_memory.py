"""Peak memory of a process, whatever its parent held."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from utils.memory import peak_mib

REPOSITORY = Path(__file__).parents[2]
CHILD = "from utils.memory import process_peak_mib as peak; a = bytearray({} * 2**20); print(peak())"


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

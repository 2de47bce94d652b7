"""How much memory this process has needed so far."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_mib(device: torch.device) -> float:
    """Peak so far in MiB: of PyTorch's tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return process_peak_mib()


def process_peak_mib() -> float:
    """Peak resident memory of this process in MiB.

    Linux's own count of it begins anew with the program; getrusage(2) there begins with what the parent held.
    """
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text("utf-8").splitlines() if ":" in line)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

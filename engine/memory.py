"""How much memory this process has needed so far, and what to say when there is not enough."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import AsdaError, EvaluationError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
# What PyTorch, onnxruntime, OpenCV and GDAL say; their errors are of no class of their own.
NO_MEMORY = re.compile(
    r"(not enough|can't allocate|failed to allocate|insufficient|out of) memory|bad.?alloc|ALLOC_FAILED", re.I
)


def peak_mib(device: torch.device | None) -> float:
    """Peak so far in MiB: of PyTorch's tensors on a GPU, else of the whole process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return process_peak_mib()


def process_peak_mib() -> float:
    """Peak resident memory of this process in MiB.

    Linux's own count of it begins anew with the program; getrusage(2) there begins with what the parent held. Windows
    has neither, and gives 0.
    """
    if STATUS.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text("utf-8"), re.MULTILINE)):
        return int(found[1]) / 1024
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def keep_memory_flat() -> None:
    """Have the C library give back every large block that is freed, where it is glibc.

    By default it keeps ever larger blocks on its heaps, which then creep up with the height of a scene.
    """
    _mallopt(M_MMAP_THRESHOLD, 4 * 2**20)


def reuse_memory() -> None:
    """Have the C library keep what is freed for what is asked for next, where it is glibc.

    The steps of a training ask for the same blocks again and again. By default much of it goes back to the system each
    time, and a twentieth of a step goes into having it mapped and zeroed again.
    """
    _mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it accepts
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(parameter, value)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, in the machine or on a GPU."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


@contextmanager
def memory_explained(place: object, doing: str, device: torch.device | None, advice: str) -> Iterator[None]:
    """Within it, an error that memory ran out becomes an EvaluationError: where, for what, and what to do about it.

    `device` is that of the network, None where PyTorch is not in use.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AsdaError) or not ran_out(error):
            raise
        raise EvaluationError(
            f"{place}: {device or 'cpu'} has not enough memory for {doing} (peak {peak_mib(device):,.0f} MiB). {advice}"
        ) from error

"""Several processes that do one job, as torchrun starts them. A process that was started alone pays nothing for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from utils.output import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(days=1)  # torchrun ends the others when one dies; a slow one is waited for


def started_together() -> bool:
    """Whether this is one of several processes of a torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[None]:
    """Within it, a torchrun's processes know one another, have a GPU each where there are any, and the first prints."""
    if not started_together():
        yield
        return
    import torch
    from torch import distributed

    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
        yield
    distributed.destroy_process_group()  # not after an error: others may still be at work


def size() -> int:
    """Number of processes."""
    return _distributed().get_world_size() if _distributed() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return _distributed().get_rank() if _distributed() else 0


def is_first() -> bool:
    """Whether this is the process that writes what there is one of."""
    return rank() == 0


def cores() -> int:
    """CPU cores for this process: those it may use, shared out among the processes of this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def barrier() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        gathered_objects(None)


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does what is inside, such as making files, and the others do so after it."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def gathered_objects(mine: T) -> list[T]:
    """What each process gives, by its number, on all of them."""
    if size() == 1:
        return [mine]
    found: list[Any] = [None] * size()
    _distributed().all_gather_object(found, mine)
    return found


def divided(function: Callable[[T], R], things: Sequence[T], **bar: Any) -> list[R]:
    """The function of each thing, in their order and on all processes, each of which computes every `size()`-th.

    What it raises is raised on all of them. `bar` is the style of the progress bar over this process's share.
    """
    style: dict[str, Any] = {"disable": not is_first(), **bar}
    found: list[R] = []
    fault: Exception | None = None
    try:
        for thing in progress_bar(list(things)[rank() :: size()], **style):
            found.append(function(thing))
    except Exception as error:
        if size() == 1:
            raise
        fault = error
    shares = gathered_objects((found, fault))
    if faults := [raised for _, raised in shares if raised is not None]:
        raise faults[0]
    return [shares[i % size()][0][i // size()] for i in range(len(things))]


def whole_batch(share: Sequence[T]) -> list[T]:
    """A batch of which each process holds the members number `rank()`, `rank() + size()` and so on."""
    return [member for row in zip(*gathered_objects(list(share)), strict=True) for member in row]


def gather(share: Tensor) -> Tensor:
    """The same for a tensor, along its first axis; the shares have equal shapes."""
    if size() == 1:
        return share
    import torch

    share = share.contiguous()
    parts = [torch.empty_like(share) for _ in range(size())]
    _distributed().all_gather(parts, share)
    return torch.stack(parts, 1).flatten(0, 1)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, all in one message for each device and type."""
    if size() == 1:
        return
    import torch

    kinds: dict[tuple[Any, Any], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        _distributed().all_reduce(flat)
        for tensor, total in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(total.view_as(tensor))


def _distributed() -> Any:
    """torch.distributed if processes were joined; it is not imported for the sake of asking."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None

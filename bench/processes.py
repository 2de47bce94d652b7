"""What several processes compute more than once in a step: the losses, since each of them sees the whole batch.

    python bench/processes.py
    python bench/processes.py --backbone resnet50 --size 256 --batch 32 --calculate 8      # nothing is run

Measured: a step of each stage with 1, 2 and 4 processes of one thread on a CPU, by their processor time, so that it
does not matter how many cores there are. `a step`: of one process, beside the step of one process alone. `repeated`:
the share of it that every process does alike (samples made ready, labels, losses and their backward pass), timed in one
process whose networks are replaced by what they gave. `more than one`: the share of the processor time of all processes
that one process would not have needed; beside what is repeated, these are messages and optimisers.

Calculated for GPUs, by the operations of a step on PyTorch's device "meta": each takes the longest of its
multiplications and additions, its bytes, and its launch. Networks in bfloat16 on a process's share of the images,
losses in float32 on all of them. Messages and optimisers are left out.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from stages import STAGES, built, configured, network_settings, train
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

import engine.forward
import methods.student
import train_intra
import train_teacher
from config.schema import Config
from engine.batches import ready
from engine.build import build_segmenter
from engine.stage import Batch, TrainingStage
from losses.inputs import TrainingProgress

COUNTS, WARM = (1, 2, 4), 2
# One H100: half of the peak in bfloat16 and four fifths of the memory's rate, as good kernels reach; a kernel's launch.
OPERATIONS, BYTES, LAUNCH = 0.5 * 989e12, 0.8 * 3.35e12, 4e-6


class Clocked:
    """A stream that notes the processor time when each batch is asked for."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.culprit = stream, stream.culprit
        self.asked: list[float] = []

    def batches(self, *arguments: Any) -> Iterator[Any]:
        for batch in self.stream.batches(*arguments):
            self.asked.append(time.process_time())
            yield batch


def seconds_alone(config: Config, name: str, steps: int) -> float:
    """Median processor time of a step of this process, one of as many as there are."""
    stage, streams = built(config, name)
    first, *others = streams
    clocked = Clocked(streams[first])
    train(stage, {first: clocked, **{key: streams[key] for key in others}}, config, name, steps + WARM + 1)
    return float(np.median(np.diff(clocked.asked[WARM:])))


def in_processes(count: int, function: Callable[..., float], config: Config, *arguments: Any) -> float:
    """The mean of what a function of a configuration gives in so many processes that work together."""
    context = multiprocessing.get_context("fork")  # what is imported need not be imported again
    results = context.Queue()

    def work(rank: int, store: str) -> None:
        torch.set_num_threads(1)
        own = replace(config, out=f"{config.out}_{count}_{rank}")  # those that are not the first write nothing of use
        if count > 1:
            distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
        results.put(function(own, *arguments))

    with tempfile.TemporaryDirectory() as folder:
        started = [context.Process(target=work, args=(rank, f"{folder}/store")) for rank in range(count)]
        for process in started:
            process.start()
        found = [results.get() for _ in started]
        for process in started:
            process.join()
    return float(np.mean(found))


@contextmanager
def networks_replaced() -> Iterator[None]:
    """Within it, networks give what they gave the first time, and discriminators the means of what they see."""
    given: dict[Any, Any] = {}
    forward_batch = engine.forward.forward_batch

    def recalled(network: nn.Module, batch: Tensor, without: str = "") -> Any:
        key = id(network), batch.shape, torch.is_grad_enabled()
        if key not in given:
            with torch.no_grad():
                given[key] = forward_batch(network, batch, without)
        if isinstance(given[key], Tensor):
            return F.adaptive_avg_pool2d(batch, given[key].shape[-2:]).mean(1, keepdim=True)
        leaves = [x if x is None else x.detach().requires_grad_(torch.is_grad_enabled()) for x in given[key]]
        return type(given[key])(*leaves)

    with ExitStack() as stack:
        for place in (engine.forward, methods.student, train_intra, train_teacher):
            stack.enter_context(mock.patch.object(place, "forward_batch", recalled))
        yield


def differentiate(stage: TrainingStage, batch: Batch) -> None:
    losses = stage.step(batch, TrainingProgress(1, 100, 100, seed=0))
    torch.stack([weight * value for weight, value in losses.terms.values()]).sum().backward()


def repeated_seconds(config: Config, name: str, steps: int) -> float:
    """Median processor time of what every process does with the whole batch."""
    stage, streams = built(config, name)
    sources = {key: s.batches(getattr(config, name).batch, 0, steps + WARM) for key, s in streams.items()}
    found = []
    with networks_replaced():
        for _ in range(steps + WARM):
            loaded = {key: next(source) for key, source in sources.items()}
            began = time.process_time()
            differentiate(stage, {key: ready(samples, torch.device("cpu")) for key, samples in loaded.items()})
            found.append(time.process_time() - began)
    return float(np.median(found[WARM:]))


class Operations(TorchDispatchMode):
    """Lists the operations (multiplications and additions, bytes) of what is computed within it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = [result.alias_info for result in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in returns) or "empty" in str(func):
            return out  # a view, or memory
        count = flop_registry.get(func._overloadpacket)
        tensors = [x for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, Tensor)]
        flops = float(count(*args, **(kwargs or {}), out_val=out)) if count else 0.0
        self.found.append((flops, float(sum(x.numel() * x.element_size() for x in tensors))))
        return out

    def seconds(self, width: float = 1.0) -> float:
        """On the GPU, with numbers of `width` times the bytes that they have here."""
        return sum(max(flops / OPERATIONS, width * size / BYTES, LAUNCH) for flops, size in self.found)


def operations_of(config: Config, name: str, batch: int, *, replaced: bool) -> Operations:
    """Those of a step of `batch` images of each domain; of the losses alone, if networks are replaced."""
    side, meta = config.data.size, torch.device("meta")
    if name == "teacher":
        stage: TrainingStage = train_teacher.TeacherStage(config)
    else:
        stage = train_intra.AsdaStage(config, build_segmenter(config))
    samples = {
        "image": torch.empty(batch, len(config.data.bands), side, side, device=meta),
        "label": torch.empty(batch, side, side, dtype=torch.int64, device=meta),
        "valid": torch.empty(batch, side, side, dtype=torch.bool, device=meta),
    }
    step = dict.fromkeys(("source", "target") if name == "teacher" else ("easy", "hard"), samples)
    with networks_replaced() if replaced else nullcontext():
        if replaced:
            differentiate(stage, step)  # fills what is recalled
        with Operations() as operations:
            differentiate(stage, step)
    return operations


def calculate(config: Config, name: str, gpus: int) -> None:
    """Print a step of one GPU, and of each of several."""
    batch = getattr(config, name).batch
    losses = operations_of(config, name, batch, replaced=True)
    for count in (1, gpus):
        whole = operations_of(config, name, batch // count, replaced=False)
        own = losses if count == 1 else operations_of(config, name, batch // count, replaced=True)
        networks, repeated = whole.seconds(0.5) - own.seconds(0.5), losses.seconds()
        step = networks + repeated
        print(
            f"  {count} GPUs: networks {1e3 * networks:5.1f} ms, losses {1e3 * repeated:4.1f} ms, which are "
            f"{repeated / step:5.1%} of the step; redundant {(repeated - own.seconds()) / step:5.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv3_small_050", help="of timm (the demo's)")
    parser.add_argument("--decoder", default="fpn", help="of net.decoder (fpn); deeplab_v2 at an output stride of 16")
    parser.add_argument("--size", type=int, default=128, help="side of a sample in pixels (128)")
    parser.add_argument("--batch", type=int, default=8, help="images of each domain, of all processes together (8)")
    parser.add_argument("--steps", type=int, default=10, help="that are measured (10)")
    parser.add_argument("--calculate", type=int, metavar="GPUS", help="for so many GPUs, without a measurement")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        **{**network_settings(given.backbone, given.decoder), "data.size": given.size},
        **{"data.tile": max(512, given.size), "data.workers": 0},
        **{"teacher.batch": given.batch, "intra.batch": given.batch, "speed.precision": "float32"},
        **(
            {"device": "meta", "generated.train": 2, "intra.init": "fresh"}
            if given.calculate
            else {"generated.size": given.size}
        ),
    }
    what = f"{given.batch} + {given.batch} images of {given.size} x {given.size}, {given.backbone}"
    for name in STAGES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            config = configured(folder, settings)
            print(f"\n{name}: {what}")
            if given.calculate:
                calculate(config, name, given.calculate)
                continue
            repeated = in_processes(1, repeated_seconds, config, name, given.steps)
            alone: float | None = None
            for count in COUNTS:
                step = in_processes(count, seconds_alone, config, name, given.steps)
                alone = alone or step
                print(
                    f"  {count} processes: a step {step / alone:6.3f} of one alone, repeated {repeated / step:5.1%}, "
                    f"more than one {1 - alone / (count * step):5.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

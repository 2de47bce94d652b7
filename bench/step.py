"""Where the time of a training step goes, in stages 1 and 3, and how fast that is beside the machine's own best.

    python bench/step.py
    python bench/step.py --backbone resnet50 --size 512 --batch 8 --precision auto     # a GPU

For each part: its milliseconds a step and its share. `data`: waiting for samples, and what is done to them on the
device; `forward`: of the segmentation networks (trainee, EMA, anchor), heads and projection; `discriminators`: forward;
`contrast`: forward; `losses`: what is left of the step; `backward`: of all; `checks`: gradient norms and what is looked
at before an update; `update`: optimisers and EMA; `rows` and `pictures` of the log and `checkpointing`: the time of one
divided by the steps between two (log.every, log.pictures, log.checkpoint). On a GPU each part is waited for, so that a
step takes longer here than in a run. The arithmetic of a step is counted by PyTorch (convolutions and matrix products,
forward and backward) and divided by the time without these waits; the rate that it is compared with is the best of some
square matrix products in the same precision and threads.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from stages import STAGES, built, configured, network_settings, train
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from config.schema import Config
from engine import loop as engine
from engine.build import device_of
from engine.log import Logger
from nets.discriminator import Discriminator
from nets.segmenter import Segmenter

PARTS = (
    *("data", "forward", "discriminators", "contrast", "losses", "backward", "checks", "update"),
    *("rows", "pictures", "checkpointing"),
)
WARM = 3


class Stopwatch:
    """Seconds by part; of parts within one another each has its own time alone."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.open: list[tuple[str, float]] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self, part: str) -> None:
        now = self.now()
        if self.open:
            outer, since = self.open[-1]
            self.seconds[outer] += (now - since) * self.on
        self.open.append((part, now))

    def stop(self) -> None:
        now = self.now()
        part, since = self.open.pop()
        self.seconds[part] += (now - since) * self.on
        if self.open:
            self.open[-1] = (self.open[-1][0], now)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.start(part)
            self.calls[function.__name__] += self.on
            try:
                return function(*arguments, **options)
            finally:
                self.stop()

        return call

    @contextmanager
    def watching(self, stage: Any) -> Iterator[None]:
        """Within it, the engine's parts and those of `stage` are timed."""
        with ExitStack() as stack:
            watched: list[tuple[Any, str, str]] = [
                *((engine, name, "checks") for name in ("gradient_norm", "_not_finite")),
                *((engine, name, "rows") for name in ("_row",)),
                (engine, "ready", "data"),
                *((Logger, name, part) for name, part in (("scalars", "rows"), ("picture", "pictures"))),
                (engine, "prediction_grid", "pictures"),
                (engine, "save_checkpoint", "checkpointing"),
                (Tensor, "backward", "backward"),
                (stage, "step", "losses"),
                (stage, "after_update", "update"),
                *((optimizer, "step", "update") for optimizer in stage.optimizers.values()),
            ]
            for holder, name, part in watched:
                stack.enter_context(mock.patch.object(holder, name, self.timed(part, getattr(holder, name))))
            contrast = getattr(stage, "contrast", None)
            networks: dict[str, list[torch.nn.Module]] = {
                "forward": [m for m in _modules(stage) if isinstance(m, Segmenter) or type(m).__name__ == "Student"],
                "discriminators": [m for m in _modules(stage) if isinstance(m, Discriminator)],
                "contrast": [contrast] if contrast is not None else [],
            }
            for part, modules in networks.items():
                for module in modules:
                    stack.enter_context(mock.patch.object(module, "forward", self.timed(part, module.forward)))
            yield


class Watched:
    """A stream whose batches are timed; steps before `WARM` do not count."""

    def __init__(self, stream: Any, watch: Stopwatch) -> None:
        self.stream, self.watch, self.culprit = stream, watch, stream.culprit

    def batches(self, *arguments: Any) -> Iterator[Any]:
        inner = self.stream.batches(*arguments)
        for step in range(arguments[1], arguments[2]):
            self.watch.on = step >= WARM
            yield self.watch.timed("data", next)(inner)


def _modules(stage: Any) -> list[torch.nn.Module]:
    return [m for part in vars(stage).values() if isinstance(part, torch.nn.Module) for m in part.modules()]


def parts_of(config: Config, name: str, steps: int) -> tuple[dict[str, float], float]:
    """Seconds of a step by part, and the seconds of a whole step without the waits."""
    watch = Stopwatch(device_of(config))
    stage, streams = built(config, name)
    with watch.watching(stage):
        train(stage, {key: Watched(stream, watch) for key, stream in streams.items()}, config, name, steps + WARM)
    often = {"rows": ("scalars", config.log.every), "pictures": ("picture", config.log.pictures)}
    often["checkpointing"] = ("save_checkpoint", config.log.checkpoint)
    seconds = {part: watch.seconds[part] / steps for part in PARTS}
    for part, (call, interval) in often.items():  # the last step has one of each
        seconds[part] = watch.seconds[part] / watch.calls[call] / interval
    stage, streams = built(config, name)
    began = time.perf_counter()
    train(stage, streams, config, name, WARM)
    short = watch.now() - began
    stage, streams = built(config, name)
    began = time.perf_counter()
    train(stage, streams, config, name, 2 * WARM + steps)
    return seconds, (watch.now() - began - short) / (WARM + steps)


def operations_of(config: Config, name: str) -> float:
    """Floating-point operations of a step, two for each multiplication with its addition."""
    stage, streams = built(config, name)
    counter = FlopCounterMode(display=False)
    with counter:
        train(stage, streams, config, name, 1)
    return float(counter.get_total_flops())


def best_rate(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Operations per second of the fastest of some square matrix products."""
    best = 0.0
    for side in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        watch, until = Stopwatch(device), time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = watch.now()
            a @ b
            best = max(best, 2 * side**3 / (watch.now() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv3_small_050", help="of timm (the demo's)")
    parser.add_argument("--decoder", default="fpn", help="of net.decoder (fpn); deeplab_v2 at an output stride of 16")
    parser.add_argument("--size", type=int, default=128, help="side of a sample in pixels (128)")
    parser.add_argument("--batch", type=int, default=8, help="images of each domain (8)")
    parser.add_argument("--steps", type=int, default=20, help="that are measured (20)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "auto"])
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    settings = {
        **{**network_settings(given.backbone, given.decoder), "data.size": given.size},
        **{"data.tile": max(512, given.size), "generated.size": given.size, "device": given.device},
        **{"teacher.batch": given.batch, "intra.batch": given.batch, "speed.precision": given.precision},
    }
    for name in STAGES:
        with tempfile.TemporaryDirectory() as folder:
            config = configured(Path(folder), settings)
            device = device_of(config)
            seconds, step = parts_of(config, name, given.steps)
            operations = operations_of(config, name)
            half = engine.prepared(built(config, name)[0], device, config, given.batch, Path(name)).dtype
        rate = best_rate(device, half or torch.float32)
        total = sum(seconds.values())
        print(
            f"\n{name}: {given.batch} + {given.batch} images of {given.size} x {given.size}, {given.backbone}, {device}"
        )
        for part in PARTS:
            print(f"  {part:15s} {1e3 * seconds[part]:9.2f} ms  {seconds[part] / total:6.1%}")
        print(f"  {'sum':15s} {1e3 * total:9.2f} ms")
        print(f"  without waiting {1e3 * step:9.2f} ms a step, {2 * given.batch / step:.1f} images/s")
        print(
            f"  {operations / 1e9:.2f} GFLOP a step, {operations / step / 1e9:.1f} GFLOP/s, "
            f"{operations / step / rate:.0%} of the {rate / 1e9:.1f} GFLOP/s of a matrix product"
        )


if __name__ == "__main__":
    main()

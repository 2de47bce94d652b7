"""A GPU beside itself: bfloat16, channels_last and torch.compile against float32 without them, in both training stages.

    python bench/device.py                                   # ResNet-50, 512 x 512, 2 + 2 images; needs a GPU
    python bench/device.py --final                           # and the scores at the end, on the generated pair
    python bench/device.py --device cpu --backbone mobilenetv3_small_050 --size 64 --batch 2 --steps 2

For each stage and each way: images/s over `--steps` steps of the project's own loop with the decoded cache, after some
that do not count; its ratio to float32; peak memory of PyTorch's tensors; and the share of the time that the GPU was at
work, by the kernels' own times in PyTorch's profiler. Of a way that compiles, also the seconds that this took and the
number of steps after which it is paid for. Then the three stages at the size of the paper (2,095 + 2,095 images of
256 x 256, 25 epochs each, batch 16) by the rates of this run: the steps of each stage times the measured seconds of a
step at that size, and the target's images by those of stage 2. Ends with status 1 on a GPU where a limit is missed: 3
times float32, 90 % of the time at work, 9.7 GB in stage 3 at 2 + 2 images, an hour; and with `--final` a final mIoU of
each model within 0.5 points. On a CPU nothing is judged: there it only shows that it runs.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stages import STAGES, built, configured, network_settings, train

from config.schema import Config
from engine.build import build_segmenter, device_of
from engine.inference import probabilities

WAYS: dict[str, dict[str, Any]] = {
    "float32": {"speed.precision": "float32"},
    "bfloat16": {"speed.precision": "bfloat16"},
    "bfloat16, compiled": {"speed.precision": "bfloat16", "speed.compile": True},
}
FASTER, AT_WORK, MEMORY, HOUR, POINTS = 3.0, 0.9, 9.7e9, 3600.0, 0.5
PAPER = {"images": 2095, "size": 256, "epochs": 25, "batch": 16, "ratio": 0.67}


class Timed:
    """A stream that notes when each batch is asked for; the GPU is waited for at the first and the last that count."""

    def __init__(self, stream: Any, skip: int, device: torch.device) -> None:
        self.stream, self.skip, self.device = stream, skip, device
        self.culprit = stream.culprit
        self.asked: list[float] = []

    def batches(self, *arguments: Any) -> Iterator[Any]:
        for number, batch in enumerate(self.stream.batches(*arguments)):
            if self.device.type == "cuda" and number in (0, self.skip, arguments[2] - 1):
                torch.cuda.synchronize(self.device)
            self.asked.append(time.perf_counter())
            yield batch

    @property
    def step(self) -> float:
        """Seconds of a step, the first ones and the last one left out."""
        return (self.asked[-1] - self.asked[self.skip]) / (len(self.asked) - 1 - self.skip)

    @property
    def start(self) -> float:
        """Seconds of the steps that do not count."""
        return self.asked[self.skip] - self.asked[0]


def measured(config: Config, name: str, steps: int, skip: int) -> tuple[float, float, float]:
    """Seconds of a step, seconds of the first steps, and peak memory in bytes (0 on a CPU)."""
    device = device_of(config)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    stage, streams = built(config, name)
    first, *others = streams
    timed = Timed(streams[first], skip, device)
    train(stage, {first: timed, **{key: streams[key] for key in others}}, config, name, steps + skip + 1)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return timed.step, timed.start, float(peak)


def at_work(config: Config, name: str, steps: int, skip: int) -> float:
    """Share of the time in which the GPU ran a kernel."""
    from torch.profiler import ProfilerActivity, profile, schedule

    stage, streams = built(config, name)
    plan = schedule(wait=skip, warmup=1, active=steps, repeat=1)
    with profile(activities=[ProfilerActivity.CUDA], schedule=plan) as profiler:

        class Stepped(Timed):
            def batches(self, *arguments: Any) -> Iterator[Any]:
                for batch in super().batches(*arguments):
                    profiler.step()
                    yield batch

        first, *others = streams
        stepped = Stepped(streams[first], skip, device_of(config))
        train(stage, {first: stepped, **{k: streams[k] for k in others}}, config, name, steps + skip + 3)
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type.name == "CUDA")
    busy, end = 0.0, -math.inf
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / (end - spans[0][0])


def split_seconds(config: Config) -> float:
    """Seconds of stage 2 for one image, decoding left out."""
    device = device_of(config)
    segmenter = build_segmenter(config).to(device)
    image = np.random.default_rng(0).integers(0, 255, (config.data.size, config.data.size, 3), np.uint8)
    for number in range(12):
        if number == 2:
            began = time.perf_counter()
        probabilities(segmenter, image, config.data)
    return (time.perf_counter() - began) / 10


def paper_seconds(folder: Path, settings: dict[str, Any], steps: int, skip: int) -> float:
    """The three stages at the paper's size, by the measured rates."""
    size = PAPER if settings["backbone_is_large"] else {**PAPER, "size": 64, "batch": 2}
    given = {key: value for key, value in settings.items() if "." in key or key == "device"}
    given |= {"data.size": size["size"], "generated.size": size["size"], "data.tile": max(512, size["size"])}
    given |= {"teacher.batch": size["batch"], "intra.batch": size["batch"]}
    config = configured(folder, given)
    rates = {name: measured(config, name, steps, skip)[0] for name in STAGES}
    hard = size["images"] - int(size["ratio"] * size["images"])
    counts = {"teacher": size["images"], "intra": hard}
    seconds = {
        name: size["epochs"] * math.ceil(count / size["batch"]) * rates[name] for name, count in counts.items()
    } | {"split": size["images"] * split_seconds(config)}
    told = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(
        f"\nall stages of {size['images']} + {size['images']} images of {size['size']} x {size['size']}, "
        f"{size['epochs']} epochs, batch {size['batch']}: {told}; {sum(seconds.values()) / 60:.1f} minutes"
    )
    return sum(seconds.values())


def final_scores(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """mIoU in percent of each model on the generated pair's held-back target images."""
    from eval import evaluate
    from split_entropy import split_entropy
    from train_intra import train_intra
    from train_teacher import train_teacher

    config = configured(folder, {**settings, "eval.parts": "scores"})
    for stage in (train_teacher, split_entropy, train_intra, evaluate):
        stage(config)
    report = json.loads((folder / "run" / "eval" / "metrics.json").read_text("utf-8"))
    models = report["domains"]["target"]["models"]
    return {name: 100 * models[name]["miou"] for name in ("teacher", "student")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="of timm (resnet50)")
    parser.add_argument("--decoder", default="fpn", help="of net.decoder (fpn); deeplab_v2 at an output stride of 16")
    parser.add_argument("--size", type=int, default=512, help="side of a sample in pixels (512)")
    parser.add_argument("--batch", type=int, default=2, help="images of each domain (2)")
    parser.add_argument("--steps", type=int, default=40, help="that are measured (40)")
    parser.add_argument("--skip", type=int, default=10, help="steps before these (10)")
    parser.add_argument("--workers", default="null", help="loader processes of each domain (as many as help)")
    parser.add_argument("--ways", default=",".join(name.replace(", ", "+") for name in WAYS), help="comma-separated")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--final",
        type=int,
        nargs="?",
        const=400,
        metavar="STEPS",
        help="train the demo in float32 and bfloat16 (400 steps of stage 1, half of them of stage 3), and score both",
    )
    given = parser.parse_args()
    usual = {
        **{**network_settings(given.backbone, given.decoder), "net.discriminator_width": 64},
        **{"device": given.device, "data.workers": given.workers, "optim.lr": 1e-3, "log.pictures": 10**6},
    }
    shape = {"data.size": given.size, "data.tile": max(512, given.size), "generated.size": given.size}
    shape |= {"teacher.batch": given.batch, "intra.batch": given.batch}
    ways = [name.replace("+", ", ") for name in given.ways.split(",")]
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in STAGES:
            plain = None
            print(f"\n{name}: {given.batch} + {given.batch} images of {given.size} x {given.size}, {given.backbone}")
            for number, way in enumerate(ways):
                config = configured(folder / f"{name}{number}", {**usual, **shape, **WAYS[way]})
                cuda = device_of(config).type == "cuda"
                step, start, peak = measured(config, name, given.steps, given.skip)
                plain = plain or (step, start)
                ratio = plain[0] / step
                told = f"  {way:18s} {2 * given.batch / step:8.1f} images/s, ratio {ratio:.2f}"
                if cuda:
                    busy = at_work(config, name, min(given.steps, 10), given.skip)
                    told += f", {peak / 1e9:.2f} GB, at work {busy:.0%}"
                    faults += [f"{name}, {way}: at work {busy:.0%}"] * (busy < AT_WORK)
                    large = name == "intra" and way != "float32" and given.batch == 2 and peak > MEMORY
                    faults += [f"{name}, {way}: {peak / 1e9:.2f} GB"] * large
                if WAYS[way].get("speed.compile"):
                    cost, gain = start - plain[1], plain[0] - step
                    told += (
                        f", {start:.0f} s until compiled, paid for after {cost / gain:.0f} steps" if gain > 0 else ""
                    )
                print(told, flush=True)
                best = ratio if number == len(ways) - 1 else 0.0
                faults += [f"{name}: {best:.2f} times float32"] * (cuda and 0 < best < FASTER)
        large = given.backbone == "resnet50"
        paper = {**usual, **WAYS[ways[-1]], "backbone_is_large": large}
        seconds = paper_seconds(folder / "paper", paper, given.steps, given.skip)
        faults += [f"{seconds / 60:.0f} minutes at the paper's size"] * (large and seconds > HOUR)
        if given.final:
            own = {"device": given.device, "data.workers": given.workers, "generated.train": 160}
            own |= {"generated.evaluation": 50, "teacher.steps": given.final, "intra.steps": given.final // 2}
            found = {
                way: final_scores(folder / f"final{number}", {**own, **WAYS[way]})
                for number, way in enumerate(ways[:2])
            }
            for way, scores in found.items():
                print(f"{way}: " + ", ".join(f"{model} mIoU {score:.2f}" for model, score in scores.items()))
            first, second = found.values()
            faults += [f"{model} differs" for model in first if abs(first[model] - second[model]) > POINTS]
    if device_of(config).type == "cpu":
        print(f"\non a CPU nothing is judged: {'; '.join(faults) or 'no limit would be missed'}")
        return
    print("\n" + ("; ".join(faults) or "all limits are kept"))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

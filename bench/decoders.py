"""Time and memory of a step of stage 1 with every decoder, as ratios to DeepLab-v2's head at an output stride of 16.

    python bench/decoders.py                                     # EfficientNet-Lite0, 8 + 8 crops of 128, one thread
    python bench/decoders.py --backbone resnet50 --size 256      # a network of the full-size configurations

Steps of all decoders take turns, and the median of each counts, so that a busy machine is busy for all. The peak of
resident memory is that of a process of its own, less what the same process holds before its first step.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from child import run
from stages import built, configured, network_settings

from engine.batches import ready
from engine.memory import process_peak_mib, reuse_memory
from engine.stage import TrainingStage
from losses.inputs import TrainingProgress

DECODERS = ("deeplab_v2", "fpn", "segformer", "upernet", "unet")
CPU = torch.device("cpu")
CHILD = "import sys; sys.path.insert(0, 'bench'); import decoders; print(decoders.peak(*sys.argv[1:]))"


class Steps:
    """A stage that takes the same step again and again."""

    def __init__(self, folder: Path, backbone: str, decoder: str, size: int, batch: int) -> None:
        torch.set_num_threads(1)
        reuse_memory()
        settings = {"teacher.batch": batch, "data.size": size, "device": "cpu", "net.discriminator_width": 32}
        config = configured(folder, settings | network_settings(backbone, decoder))
        self.stage: TrainingStage
        self.stage, streams = built(config, "teacher")
        self.stage.networks["segmenter"].to(memory_format=torch.channels_last)
        self.batches = {name: ready(next(stream.batches(batch, 0, 1)), CPU) for name, stream in streams.items()}

    def take(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        for optimizer in self.stage.optimizers.values():
            optimizer.zero_grad()
        losses = self.stage.step(self.batches, TrainingProgress(0, 10, 5, seed=0))
        torch.stack([weight * value for weight, value in losses.terms.values()]).sum().backward()
        for optimizer in self.stage.optimizers.values():
            optimizer.step()
        return time.perf_counter() - began


def peak(backbone: str, decoder: str, size: str, batch: str) -> float:
    """MiB by which three steps raise the peak of this process's memory."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(Path(folder), backbone, decoder, int(size), int(batch))
        before = process_peak_mib()
        for _ in range(3):
            steps.take()
        return process_peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="of timm (tf_efficientnet_lite0)")
    parser.add_argument("--size", type=int, default=128, help="side of a sample in pixels (128)")
    parser.add_argument("--batch", type=int, default=8, help="images of each domain (8)")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each decoder (9)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        all_steps = {d: Steps(folder, given.backbone, d, given.size, given.batch) for d in DECODERS}
        seconds: dict[str, list[float]] = {decoder: [] for decoder in DECODERS}
        for _ in range(given.rounds + 1):
            for decoder, steps in all_steps.items():
                seconds[decoder].append(steps.take())
    peaks = {d: float(run(CHILD, given.backbone, d, str(given.size), str(given.batch))) for d in DECODERS}
    medians = {decoder: statistics.median(times[1:]) for decoder, times in seconds.items()}
    print(f"{given.backbone}, {given.batch} + {given.batch} images of {given.size} x {given.size}, one thread")
    print(f"{'decoder':12s} {'s a step':>9s} {'ratio':>6s} {'MiB':>7s} {'ratio':>6s}")
    for decoder in DECODERS:
        time_ratio, memory_ratio = (of[decoder] / of[DECODERS[0]] for of in (medians, peaks))
        print(f"{decoder:12s} {medians[decoder]:9.3f} {time_ratio:6.2f} {peaks[decoder]:7.0f} {memory_ratio:6.2f}")


if __name__ == "__main__":
    main()

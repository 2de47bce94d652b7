"""Time and memory of the high-entropy contrast over 8,192 pixels, beside a contrast of all pairs of them.

    python bench/contrast.py

`high_entropy_contrast` looks at every pixel's entropy, but only samples are compared: up to 256 anchors of each class,
each with its class's prototype and 50 features of the other class, drawn from a bank of 4,096 a class. The reference is
the plain form: every pixel is an anchor, all others of its class are its positives, all pixels its rivals, so that
8,192 x 8,192 cosines are made and differentiated. (The released term of that name compares no two pixels at all:
docs/method.md, section 5.4.) Both get the same features (2, 128, 64, 64), labels and temperature; forward and backward,
bank full, one thread. Calls alternate in one process, medians of their processor times count. Memory is that of a
process which does it against one which only holds features and gradient, both after a contrast of few pixels, which
loads the libraries; medians of five of each, since the C library's own blocks make some MiB of difference. Ends with
status 1 if it is not 20 times as fast or needs more than 20 MiB. Takes three minutes.
"""

import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from child import run
from torch import Tensor
from torch.nn import functional as F

from engine.memory import process_peak_mib
from losses.high_entropy import ContrastMemory, high_entropy_contrast

FASTER, MORE = 20.0, 20.0  # times, MiB
IMAGES, SIDE, LENGTH = 2, 64, 128
TEMPERATURE, CLASSES = 0.5, 2
CALLS, PROCESSES = 7, 5
PEAKS = Path("/proc/self/clear_refs")  # 5 written to it lets the peak begin anew
MEASURE = "import sys; sys.path.insert(0, 'bench'); import contrast; print(contrast.peak_of(sys.argv[1]))"


class Inputs:
    """Features, their entropy and pseudo-labels, and a memory that is full."""

    def __init__(self, side: int) -> None:
        draw = torch.Generator().manual_seed(side)
        shape = (IMAGES, side, side)
        self.label = torch.randint(CLASSES, shape, generator=draw)
        means = torch.randn(CLASSES, LENGTH, generator=draw)
        noise = torch.randn(*shape, LENGTH, generator=draw)
        self.features = (means[self.label] + noise).movedim(-1, 1).contiguous().requires_grad_()
        self.entropy = torch.rand(shape, generator=draw)
        self.memory = ContrastMemory(CLASSES, LENGTH)
        while self.memory.stored.min() < self.memory.bank.shape[1]:
            self.memory.update(self.features.detach(), self.label, torch.ones(shape, dtype=torch.bool))


def sampled(inputs: Inputs) -> None:
    loss, _ = high_entropy_contrast(
        inputs.features,
        inputs.features.detach(),
        inputs.entropy,
        inputs.label,
        inputs.memory,
        0.0,
        generator=torch.Generator().manual_seed(0),
        temperature=TEMPERATURE,
    )
    loss.backward()


def all_pairs(inputs: Inputs) -> None:
    unit = F.normalize(inputs.features, dim=1).movedim(1, -1).flatten(0, -2)  # (P, D)
    label = inputs.label.flatten()
    other = ~torch.eye(len(label), dtype=torch.bool)
    positive = (label[:, None] == label) & other
    similarity = (unit @ unit.T / TEMPERATURE).masked_fill(~other, -torch.inf)  # (P, P)
    surprise = (similarity.logsumexp(1, keepdim=True) - similarity).masked_fill(~positive, 0.0)
    (surprise.sum(1) / positive.sum(1)).mean().backward()


def nothing(inputs: Inputs) -> None:
    (inputs.features.sum() * 0).backward()


WAYS = {"sampled": sampled, "all_pairs": all_pairs, "nothing": nothing}


def peak_of(way: str) -> float:
    """Peak memory of this process in MiB, from when its inputs stand."""
    torch.set_num_threads(1)
    WAYS[way](Inputs(8))
    inputs = Inputs(SIDE)
    nothing(inputs)
    if PEAKS.exists():
        PEAKS.write_text("5")
    WAYS[way](inputs)
    return process_peak_mib()


def gradient(way: str, inputs: Inputs) -> Tensor:
    inputs.features.grad = None
    WAYS[way](inputs)
    assert inputs.features.grad is not None
    return inputs.features.grad


def main() -> None:
    torch.set_num_threads(1)
    inputs = Inputs(SIDE)
    times: dict[str, list[float]] = {"sampled": [], "all_pairs": []}
    for way in times:
        touched = gradient(way, inputs).abs().sum(1).count_nonzero()
        print(f"{way}: {touched} of {inputs.label.numel()} pixels get a gradient")
    for _ in range(CALLS):
        for way, seconds in times.items():
            began = time.process_time()
            gradient(way, inputs)
            seconds.append(time.process_time() - began)
    medians = {way: float(np.median(seconds)) for way, seconds in times.items()}
    peaks = {way: float(np.median([float(run(MEASURE, way)) for _ in range(PROCESSES)])) for way in WAYS}
    more = {way: peaks[way] - peaks["nothing"] for way in times}
    for way, median in medians.items():
        print(f"{way:9s}: {1e3 * median:8.1f} ms, {more[way]:7.1f} MiB more than {peaks['nothing']:.0f}")
    ratio = medians["all_pairs"] / medians["sampled"]
    print(f"ratio {ratio:.1f} (wanted {FASTER:.0f}), memory {more['sampled']:.1f} MiB more (limit {MORE:.0f})")
    sys.exit(int(ratio < FASTER or more["sampled"] > MORE))


if __name__ == "__main__":
    main()

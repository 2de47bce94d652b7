"""Overhead of the engine in stage 1: `engine.loop.fit` against the same steps written by hand in plain PyTorch.

    python bench/engine.py
    python bench/engine.py --batch 2 --size 32

Both train the demo's network (mobilenetv3_small_050, the smallest of the tests too) from the same weights on the same
samples of the generated pair, one thread, CPU. The loop by hand has the operations of the algorithm and nothing else:
samples, forward, losses, backward, learning rates, optimizer steps, and every tenth step a row of losses. First both
log each of a few steps: every loss, and every weight at the end, must be the same to the last bit. Then they take turns
step by step in one process, the loop by hand while the engine waits for its next batch, so that whatever else the
machine does meets both. What counts is the median, over pairs of neighbouring steps, of the ratio of processor times;
that of the clock is printed beside it. Ends with status 1 above 2 %, or at a difference. Takes three to ten minutes.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from small_run import TakingTurns, configured, teacher_streams, train
from torch import Tensor, nn

from config.schema import Config, LogConfig
from datasets.samples import EndlessSamples
from engine.batches import ready
from engine.build import build_segmenter
from engine.optim import BETAS, MOMENTUM
from engine.schedule import POWER
from losses.adversarial import SOURCE, TARGET, discriminator_loss
from losses.entropy import mean_entropy
from losses.entropy import weighted_self_information as self_information
from losses.segmentation import cross_entropy, soft_jaccard
from nets.discriminator import Discriminator

LIMIT = 0.02
EXACT, WARM = 12, 3  # steps that are compared, and pairs of steps that do not count
CPU = torch.device("cpu")


class ByHand:
    """Stage 1 as one would write it; `run` gives control back after each step."""

    def __init__(self, config: Config) -> None:
        self.config, optim = config, config.optim
        self.segmenter = build_segmenter(config)
        self.main, self.aux = (Discriminator(2, config.net.discriminator_width) for _ in range(2))
        for network in (self.segmenter, self.main, self.aux):
            network.to(memory_format=torch.channels_last)
        backbone, heads = self.segmenter.backbone_parameters(), self.segmenter.head_parameters()
        groups = [
            {"params": list(backbone), "lr": optim.lr},
            {"params": list(heads), "lr": optim.lr * optim.head_factor},
        ]
        self.sgd = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=optim.weight_decay)
        both = [*self.main.parameters(), *self.aux.parameters()]
        self.adam = torch.optim.Adam(both, lr=optim.discriminator_lr, betas=BETAS)

    def run(self, streams: Mapping[str, EndlessSamples], steps: int, log: TextIO) -> Iterator[None]:
        config, w = self.config, self.config.teacher
        segmenter, optimizers = self.segmenter.train(), (self.sgd, self.adam)
        first_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        batches = {name: stream.batches(w.batch, 0, steps) for name, stream in streams.items()}
        for step in range(steps):
            source, target = (ready(next(batches[name]), CPU) for name in ("source", "target"))
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0]))
            decay = (1 - step / steps) ** POWER
            rates = iter(first_rates)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = next(rates) * decay
                optimizer.zero_grad()

            valid, label = source["valid"], source["label"]
            main, aux, *_ = segmenter(source["image"])
            seg_main = cross_entropy(main, label) + w.jaccard * soft_jaccard(main, label)
            seg_aux = cross_entropy(aux, label) + w.jaccard * soft_jaccard(aux, label)
            target_main, target_aux, *_ = segmenter(target["image"])
            maps = [self_information(z.softmax(1)) * valid[:, None] for z in (main, aux)]
            target_maps = [self_information(z.softmax(1)) * target["valid"][:, None] for z in (target_main, target_aux)]
            adv_main, dis_main = adversarial(self.main, maps[0], target_maps[0])
            adv_aux, dis_aux = adversarial(self.aux, maps[1], target_maps[1])
            terms = {
                "seg_main": (1.0, seg_main),
                "seg_aux": (w.seg_aux, seg_aux),
                "adv_main": (w.adv_main, adv_main),
                "adv_aux": (w.adv_aux, adv_aux),
                "dis_main": (1.0, dis_main),
                "dis_aux": (1.0, dis_aux),
            }
            loss = torch.zeros(())
            for weight, value in terms.values():
                loss = loss + weight * value
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

            if (step + 1) % config.log.every == 0:
                row = {f"raw/{name}": value.item() for name, (_, value) in terms.items()}
                row |= {f"weighted/{name}": weight * row[f"raw/{name}"] for name, (weight, _) in terms.items()}
                row["stats/entropy_source"] = mean_entropy(main, valid).item()
                row["stats/entropy_target"] = mean_entropy(target_main, target["valid"]).item()
                log.write(json.dumps({"step": step + 1, "lr": self.sgd.param_groups[0]["lr"], **row}) + "\n")
                log.flush()
            yield


def adversarial(discriminator: nn.Module, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The segmenter's loss and the discriminator's."""
    for parameter in discriminator.parameters():
        parameter.requires_grad_(False)
    fooled = discriminator_loss(discriminator(target), SOURCE)
    for parameter in discriminator.parameters():
        parameter.requires_grad_(True)
    on_source, on_target = discriminator(torch.cat([source, target]).detach()).chunk(2)
    return fooled, 0.5 * (discriminator_loss(on_source, SOURCE) + discriminator_loss(on_target, TARGET))


def compare_exactly(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """What differs after a few steps; empty if nothing does."""
    config = configured(folder, {**settings, "log.every": 1})
    streams, hand = teacher_streams(config), ByHand(config)
    with open(folder / "exact.jsonl", "w", encoding="utf-8") as log:
        for _ in hand.run(streams, EXACT, log):
            pass
    stage = train(config, streams, folder / "exact", EXACT)
    rows = [
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in (folder / "exact.jsonl", folder / "exact" / "metrics.jsonl")
    ]
    assert len(rows[0]) == len(rows[1]) == EXACT
    faults = [
        f"step {ours['step']}: {key} is {ours[key]!r} in the engine and {value!r} by hand"
        for theirs, ours in zip(*rows, strict=True)
        for key, value in theirs.items()
        if ours[key] != value
    ]
    states = stage.segmenter.state_dict(), hand.segmenter.state_dict()
    faults += [f"{name} differs" for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    print(f"{EXACT} steps: {len(rows[0][0])} numbers a step, {len(states[0])} tensors at the end: {len(faults)} differ")
    return faults


def take_turns(folder: Path, settings: Mapping[str, Any], pairs: int) -> np.ndarray:
    """Overhead of the engine in each pair of steps, (pairs, 2): of processor time and of time."""
    usual = LogConfig()
    config = configured(folder, {**settings, "log.every": usual.every, "log.checkpoint": usual.checkpoint})
    streams, steps = teacher_streams(config), pairs + WARM + 1
    with open(folder / "timed.jsonl", "w", encoding="utf-8") as log:
        hand = ByHand(config).run(teacher_streams(config), steps, log)
        turns = TakingTurns(streams["source"], hand)
        train(config, {**streams, "source": turns}, folder / "timed", steps)
    engine, by_hand = turns.pairs(WARM)
    print(
        "; ".join(
            f"{name} {1e3 * np.median(part[:, 0]):.1f} ms a step"
            for name, part in (("by hand", by_hand), ("engine", engine))
        )
    )
    return engine / by_hand - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="samples of each domain (8, the demo's)")
    parser.add_argument("--size", type=int, default=128, help="side of a crop in pixels (128, the demo's)")
    parser.add_argument("--pairs", type=int, default=150, help="steps of each that are timed (150)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"teacher.batch": given.batch, "data.size": given.size}
    with tempfile.TemporaryDirectory() as temporary:
        faults = compare_exactly(Path(temporary), settings)
        overhead = take_turns(Path(temporary), settings, given.pairs)
    print("\n".join(faults))
    medians = np.median(overhead, 0)
    half = 0.98 * np.sqrt(len(overhead))  # ranks to both sides of the median: 95 %
    low, high = np.sort(overhead[:, 0])[[int(len(overhead) / 2 - half), int(len(overhead) / 2 + half)]]
    side, batch = given.size, given.batch
    print(f"batch {batch} + {batch} of {side} x {side}, medians of {given.pairs} pairs of steps, one thread")
    print(f"processor time: ratio {1 + medians[0]:.4f}, 95 % interval {1 + low:.4f} to {1 + high:.4f}")
    print(f"clock: ratio {1 + medians[1]:.4f}")
    print(f"overhead {medians[0]:.2%} (limit {LIMIT:.0%})")
    sys.exit(int(bool(faults) or medians[0] > LIMIT))


if __name__ == "__main__":
    main()

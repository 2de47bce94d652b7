"""Speed of stage 1 beside a plain loop of the released code's structure, on two cores.

    python bench/released_loop.py

Both train the demo's network from the same weights on the same samples of the generated pair, batch 8 + 8, 128x128. The
plain loop has what the released one has: its loader makes float images and one-hot labels in float64 of both domains,
its collation turns them into float32; each term has its own forward and backward (source, target, and each
discriminator on each domain), entropy maps are made again for the discriminators, every loss is read with `.item()` at
each step and the progress bar shows it. Its learning rate, its optimizers and its loss are ours, and each parameter is
listed once, as it is not there. Files are decoded by our loader on both sides: in the plain loop whenever they are
read, in ours once (`data.cache`, as in configs/demo.yaml), unless `--cached` gives the plain loop the cache too. Steps
alternate in one process; what counts is the median over pairs of neighbouring steps of the ratio of times. Ends with
status 1 below 1.15, or if the losses of the first steps differ by more than rounding. Takes two to ten minutes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_run import TakingTurns, configured, teacher_streams, train
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from config.schema import Config
from datasets.samples import EndlessSamples
from engine.build import build_segmenter, training_stream
from engine.domains import training_images
from engine.optim import discriminator_optimizer, segmenter_optimizer
from engine.schedule import poly
from nets.discriminator import Discriminator

WANTED = 1.15  # times as fast
SAME, WARM = 2, 3  # steps whose losses are compared, and pairs of steps that do not count
ROUNDING = 1e-3  # relative


class PairedSamples(Dataset[tuple[np.ndarray, ...]]):
    """Source and target side by side: images (3, H, W) float32, one-hot labels (2, H, W) float64 and labels (H, W)."""

    def __init__(self, source: EndlessSamples, target: EndlessSamples) -> None:
        self.streams = source, target

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        parts: list[np.ndarray] = []
        for stream in self.streams:
            sample = stream.sample(position)
            label = sample["label"].numpy()
            one_hot = np.zeros((*label.shape, 2))
            for cls in range(2):
                one_hot[label == cls, cls] = 1
            parts += [sample["image"].numpy().astype(np.float32) / 255, one_hot.transpose(2, 0, 1), label]
        return tuple(parts)


def collate(samples: Sequence[tuple[np.ndarray, ...]]) -> list[Tensor]:
    parts = [torch.from_numpy(np.array(part)) for part in zip(*samples, strict=True)]
    return [part.long() if part.dtype == torch.uint8 else part.float() for part in parts]


def entropy_map(logits: Tensor) -> Tensor:
    prob = F.softmax(logits, 1)
    return -prob * torch.log2(prob + 1e-20) / np.log2(prob.shape[1])


def jaccard(logits: Tensor, one_hot: Tensor) -> Tensor:
    prob = F.softmax(logits, 1)
    overlap = (prob * one_hot).sum()
    return 1 - overlap / (prob.sum() + one_hot.sum() - overlap + 1e-5)


def released_loop(config: Config, samples: PairedSamples, steps: int, losses: list[dict[str, float]]) -> Iterator[None]:
    """Train for `steps`, giving control back after each; the losses of each are appended to `losses`."""
    w = config.teacher
    segmenter = build_segmenter(config)
    discriminators = nn.ModuleDict({head: Discriminator(2, config.net.discriminator_width) for head in ("main", "aux")})
    main, aux = discriminators["main"], discriminators["aux"]
    optimizers = [segmenter_optimizer(segmenter, config.optim)]
    optimizers += [discriminator_optimizer(network, config.optim) for network in (main, aux)]
    criterion, cross_entropy = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()
    segmenter.train()
    totals = dict.fromkeys(("seg", "domain"), 0.0)
    loader = DataLoader(samples, w.batch, sampler=range(steps * w.batch), collate_fn=collate)
    with tqdm(loader, mininterval=0.3, desc="plain loop") as bar:
        for step, (source, source_one_hot, source_label, target, _, _) in enumerate(bar):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = poly(group["base_lr"], step, steps)
                optimizer.zero_grad()

            for parameter in discriminators.parameters():
                parameter.requires_grad = False
            seg_main, seg_aux, *_ = segmenter(source)
            loss_main = jaccard(seg_main, source_one_hot) + cross_entropy(seg_main, source_label)
            loss_aux = jaccard(seg_aux, source_one_hot) + cross_entropy(seg_aux, source_label)
            (loss_main + w.seg_aux * loss_aux).backward()
            row = {"seg_main": loss_main.item(), "seg_aux": loss_aux.item()}

            tar_main, tar_aux, *_ = segmenter(target)
            on_aux, on_main = aux(entropy_map(tar_aux)), main(entropy_map(tar_main))
            real, fake = torch.zeros_like(on_aux), torch.ones_like(on_aux)
            adv_main, adv_aux = criterion(on_main, real), criterion(on_aux, real)
            (w.adv_main * adv_main + w.adv_aux * adv_aux).backward()
            row |= {"adv_main": adv_main.item(), "adv_aux": adv_aux.item()}

            for parameter in discriminators.parameters():
                parameter.requires_grad = True
            row |= {"dis_main": 0.0, "dis_aux": 0.0}
            for domain, logits in ((real, (seg_aux, seg_main)), (fake, (tar_aux, tar_main))):
                for head, network, of_head in zip(("aux", "main"), (aux, main), logits, strict=True):
                    loss = criterion(network(entropy_map(of_head.detach())), domain) / 2
                    loss.backward()
                    row[f"dis_{head}"] += loss.item()
            for optimizer in optimizers:
                optimizer.step()

            totals["seg"] += row["seg_main"] + row["seg_aux"]
            totals["domain"] += row["adv_main"] + row["adv_aux"] + row["dis_main"] + row["dis_aux"]
            bar.set_postfix({name: value / (step + 1) for name, value in totals.items()})
            losses.append(row)
            yield


def paired_samples(config: Config, cached: bool) -> PairedSamples:
    if not cached:
        config = replace(config, data=replace(config.data, cache=None))
    images = {role: training_images(config, role, labels=True) for role in ("source", "target")}
    return PairedSamples(
        *(training_stream(config, part, role, config.teacher.augment) for role, part in images.items())
    )


def largest_difference(folder: Path, settings: Mapping[str, Any]) -> float:
    """Of the losses of the first steps, relative."""
    config = configured(folder, {**settings, "log.every": 1})
    theirs: list[dict[str, float]] = []
    for _ in released_loop(config, paired_samples(config, cached=True), SAME, theirs):
        pass
    train(config, teacher_streams(config), folder / "same", SAME)
    ours = [json.loads(line) for line in (folder / "same" / "metrics.jsonl").read_text("utf-8").splitlines()]
    return max(
        abs(row[f"raw/{name}"] / value - 1)
        for row, others in zip(ours, theirs, strict=True)
        for name, value in others.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="steps of each that are timed (60)")
    parser.add_argument("--cached", action="store_true", help="the plain loop has decoded images too")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (2)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        difference = largest_difference(folder, {})
        config, steps = configured(folder, {"log.checkpoint": 500}), given.pairs + WARM + 1
        streams, plain = teacher_streams(config), released_loop(config, paired_samples(config, given.cached), steps, [])
        turns = TakingTurns(streams["source"], plain)
        train(config, {**streams, "source": turns}, folder / "timed", steps)
    ours, theirs = turns.pairs(WARM)
    ratio = np.median(theirs / ours, 0)
    print(f"losses of {SAME} steps agree within {difference:.1g}")
    for name, part in (("plain loop", theirs), ("engine", ours)):
        seconds = np.median(part, 0)
        print(f"{name}: {2 * config.teacher.batch / seconds[1]:.2f} images/s, processor {seconds[0]:.3f} s a step")
    print(f"{torch.get_num_threads()} threads, medians of {given.pairs} pairs of steps")
    print(f"ratio {ratio[1]:.3f} by the clock (wanted {WANTED}), {ratio[0]:.3f} of processor time")
    sys.exit(int(ratio[1] < WANTED or difference > ROUNDING))


if __name__ == "__main__":
    main()

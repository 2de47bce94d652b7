"""Stage 2: the teacher ranks the unlabelled target images by entropy and splits them into easy and hard.

    python split_entropy.py --config configs/demo.yaml

Writes OUT/split/: entropy.csv, easy.txt, hard.txt, pseudo_labels/. Memory does not grow with the number of images.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

import csv
import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config.schema import Config, SplitConfig
from datasets.files import Item
from datasets.images import ImageSet
from engine import processes
from engine.cli import run
from engine.domains import training_images
from engine.inference import mean_over_scales
from engine.loop import device_of
from engine.memory import memory_explained
from engine.pixel_classifier import UNCERTAIN, read_stored, relabel
from engine.run import make_generated, open_stage, trained, uses_split
from losses.class_threshold import EntropyHistogram, below_threshold, quantise
from losses.entropy import normalised_entropy
from nets.segmenter import Segmenter
from report.plots import write_png
from utils.errors import DataError
from utils.files import write_text
from utils.labels import IGNORE

TABLE = "entropy.csv"
LESS_MEMORY = (
    "Training needs more, so see what else is using it, or give --device cpu; the same command makes the split anew"
)


class Ranked(NamedTuple):
    """One image's place: ascending by score, ties by name."""

    score: float
    name: str
    cloud_fraction: float


def score_image(
    segmenter: Segmenter,
    images: ImageSet,
    item: Item,
    config: Config,
    folder: Path,
    histogram: EntropyHistogram | None,
) -> Ranked:
    """Predict one image, at all scales of the configuration, write its pseudo-label and return its score.

    With a histogram, the entropies are counted there and kept in entropy/, 16 bits a pixel; where a pixel classifier
    will follow, the probability of cloud is kept in cloud/.

    The score is the mean (or sum) over the image's valid pixels of the main head's normalised entropy; no label is
    involved.
    """
    decoded = images.read(item)
    prob = mean_over_scales(segmenter, decoded.image, config.data, config.split.scales)["main"]
    valid = torch.from_numpy(decoded.valid.copy())
    entropies, mask = normalised_entropy(prob[None])[0], prob.argmax(0) * valid
    entropy = entropies[valid].double()
    score = float(entropy.mean() if config.split.score == "mean" else entropy.sum())
    if not math.isfinite(score):
        raise DataError(f"{item.image}: its entropy score is {score}, expected a finite number; is the teacher sound?")
    stored = decoded.placed(mask.mul(255).byte().numpy(), UNCERTAIN)
    write_png(folder / "pseudo_labels" / f"{item.name}.png", stored)
    if histogram is not None:
        histogram.add(entropies, mask.masked_fill(~valid, IGNORE))
        write_png(folder / "entropy" / f"{item.name}.png", decoded.placed(stored_levels(entropies), 0))
    if config.split.pseudo_label == "pixel_classifier":
        write_png(folder / "cloud" / f"{item.name}.png", decoded.placed(stored_levels(prob[1]), 0))
    return Ranked(score, item.name, float(mask[valid].double().mean()))


def stored_levels(values: Tensor) -> np.ndarray:
    """Values in [0, 1] in 16 bits, as they are kept between two passes over the images."""
    return quantise(values).numpy().astype(np.uint16)


def drop_uncertain(folder: Path, names: Sequence[str], thresholds: Tensor) -> float:
    """Mark the pixels (128) of the stored masks whose entropy is above the threshold of their class (ESL).

    Returns:
        The share of the pixels with data that is kept.
    """
    levels, kept, pixels = quantise(thresholds).cpu(), 0, 0
    for name in tqdm(names, desc="thresholds", unit="image", dynamic_ncols=True):
        path = folder / "pseudo_labels" / f"{name}.png"
        mask, entropy = read_stored(path), read_stored(folder / "entropy" / f"{name}.png")
        label = torch.from_numpy(np.where(mask == UNCERTAIN, IGNORE, mask == 255)).long()
        sure = (below_threshold(torch.from_numpy(entropy.astype(np.int64)), label, levels) != IGNORE).numpy()
        kept, pixels = kept + int(sure.sum()), pixels + int((mask != UNCERTAIN).sum())
        write_png(path, np.where(sure, mask, UNCERTAIN).astype(np.uint8))
    return kept / pixels


def easy_count(images: int, split: SplitConfig) -> int:
    """Size of the easy split: `int(ratio * n)`; with `plus_one` one more, but never all.

    Raises:
        DataError: one of the two splits would be empty.
    """
    count = int(split.ratio * images)
    if split.plus_one:
        count = min(count + 1, images - 1)
    if not 0 < count < images:
        raise DataError(
            f"split.ratio {split.ratio} of {images} target image(s) gives {count} easy and {images - count} hard; "
            "both need at least one: change split.ratio or give more target images"
        )
    return count


@torch.inference_mode()
def split_entropy(config: Config) -> None:
    """Run stage 2 to its end."""
    if not uses_split(config):
        print("split: stage 3 of this method, if it has one, needs no split, so none is made")
        return
    make_generated(config)
    doing, device = f"batch 1 of data.size {config.data.size}", device_of(config)
    explained = partial(memory_explained, Path(config.out) / "split", doing, device, LESS_MEMORY)
    with explained():
        segmenter = trained(config, config.teacher.name).to(device)
    folder = open_stage(config, "split", "split")
    table = folder / TABLE
    if table.exists():
        print(f"{table}: finished before, left as it is")
        return
    images = training_images(config, "target", labels=False)
    easy = easy_count(len(images), config.split)
    histogram = EntropyHistogram(segmenter.classes) if config.split.pseudo_label == "class_median" else None
    with explained():

        def score(item: Item) -> Ranked:
            return score_image(segmenter, images, item, config, folder, histogram)

        ranked = sorted(processes.divided(score, list(images), desc="split", unit="image"))
    if histogram is not None:
        processes.add_up([histogram.counts])
    if config.split.pseudo_label == "pixel_classifier":
        share = relabel(images, folder, config.split.pixel_floor)
        print(f"pseudo-labels: of the pixel classifier, {share:.1%} of the pixels kept")
    if processes.is_first():
        write_split(folder, ranked, easy, config, histogram)
    processes.barrier()


def write_split(
    folder: Path, ranked: Sequence[Ranked], easy: int, config: Config, histogram: EntropyHistogram | None
) -> None:
    """Write easy.txt, hard.txt and entropy.csv; with a histogram, first drop what is uncertain from the masks."""
    if histogram is not None:
        thresholds = histogram.thresholds(config.split.entropy_floor)
        share = drop_uncertain(folder, [place.name for place in ranked], thresholds)
        print(f"pseudo-labels: {share:.1%} of the pixels kept, entropy up to {thresholds.tolist()} by class")

    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["name", "score", "rank", "split", "cloud_fraction"])
    for rank, place in enumerate(ranked):
        writer.writerow(
            [place.name, f"{place.score:.9f}", rank, "easy" if rank < easy else "hard", f"{place.cloud_fraction:.6f}"]
        )
    for name, part in (("easy", ranked[:easy]), ("hard", ranked[easy:])):
        write_text(folder / f"{name}.txt", "".join(f"{image}\n" for image in sorted(place.name for place in part)))
        share = sum(place.cloud_fraction for place in part) / len(part)
        low, high = part[0].score, part[-1].score
        print(f"{name}: {len(part)} images, score {low:.4f} to {high:.4f}, predicted cloud {share:.1%}")
    write_text(folder / TABLE, rows.getvalue())  # last: its presence says that the stage is finished


if __name__ == "__main__":
    run(split_entropy, CONFIG, CONFIG.out)

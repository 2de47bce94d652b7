"""Stage 2: the teacher ranks the unlabelled target images by entropy and splits them into easy and hard.

    python split_entropy.py --config configs/demo.yaml

Writes OUT/split/: entropy.csv, easy.txt, hard.txt, pseudo_labels/. Memory does not grow with the number of images.
"""

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

import math
from functools import partial
from pathlib import Path

import torch

from config.schema import Config
from datasets.files import Item
from datasets.geometry import filled
from datasets.images import ImageSet
from engine import processes
from engine.build import device_of, trained
from engine.cli import run
from engine.domains import training_images
from engine.inference import mean_over_scales
from engine.layout import RANKING
from engine.memory import memory_explained
from engine.pixel_classifier import relabel
from engine.pseudo_labels import (
    RankedImage,
    drop_uncertain,
    levels_of,
    write_layer,
    write_pseudo_label,
    write_ranking,
)
from engine.run import make_generated, open_stage, uses_split
from engine.schedule import easy_count
from losses.class_threshold import EntropyHistogram
from losses.entropy import normalised_entropy
from nets.segmenter import Segmenter
from utils.errors import DataError
from utils.labels import IGNORE

LESS_MEMORY = (
    "Training needs more, so see what else is using it, or give --device cpu; the same command makes the split anew"
)


def score_image(
    segmenter: Segmenter, images: ImageSet, item: Item, config: Config, folder: Path, histogram: EntropyHistogram | None
) -> RankedImage:
    """Predict one image, at all scales of the configuration, write its pseudo-label and return its score.

    The score is the mean (or sum) over the image's valid pixels of the main head's normalised entropy; no label is
    involved. With a histogram, the entropies are counted there and kept as a layer; where a pixel classifier will
    follow, so is the probability of cloud.
    """
    decoded = images.read(item)
    image = filled(decoded.image, decoded.valid)
    prob = mean_over_scales(segmenter, image, config.data, config.split.scales)["main"]
    valid = torch.from_numpy(decoded.valid.copy())
    entropies, mask = normalised_entropy(prob[None])[0], prob.argmax(0) * valid
    entropy = entropies[valid].double()
    score = float(entropy.sum() if config.released.split else entropy.mean())
    if not math.isfinite(score):
        raise DataError(f"{item.image}: its entropy score is {score}, expected a finite number; is the teacher sound?")
    write_pseudo_label(folder, item.name, decoded.placed(mask.byte().numpy(), IGNORE))
    if histogram is not None:
        histogram.add(entropies, mask.masked_fill(~valid, IGNORE))
        write_layer(folder, "entropy", item.name, decoded.placed(levels_of(entropies), 0))
    if config.split.pseudo_label == "pixel_classifier":
        write_layer(folder, "cloud", item.name, decoded.placed(levels_of(prob[1]), 0))
    return RankedImage(score, item.name, float(mask[valid].double().mean()))


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
    if (folder / RANKING).exists():
        print(f"{folder / RANKING}: finished before, left as it is")
        return
    images = training_images(config, "target", labels=False)
    easy = easy_count(len(images), config.split.ratio, config.released.split)
    histogram = EntropyHistogram(segmenter.classes) if config.split.pseudo_label == "class_median" else None
    score = partial(score_image, segmenter, images, config=config, folder=folder, histogram=histogram)
    with explained():
        ranked = sorted(processes.divided(score, list(images), desc="split", unit="image"))
    if histogram is not None:
        processes.add_up([histogram.counts])
    if config.split.pseudo_label == "pixel_classifier":
        share = relabel(images, folder, config.split.pixel_floor)
        print(f"pseudo-labels: of the pixel classifier, {share:.1%} of the pixels kept")
    if processes.is_first():
        if histogram is not None:
            thresholds = histogram.thresholds(config.split.entropy_floor)
            share = drop_uncertain(folder, [image.name for image in ranked], thresholds)
            print(f"pseudo-labels: {share:.1%} of the pixels kept, entropy up to {thresholds.tolist()} by class")
        write_ranking(folder, ranked, easy)
        for name, part in (("easy", ranked[:easy]), ("hard", ranked[easy:])):
            share = sum(image.cloud_fraction for image in part) / len(part)
            low, high = part[0].score, part[-1].score
            print(f"{name}: {len(part)} images, score {low:.4f} to {high:.4f}, predicted cloud {share:.1%}")
    processes.barrier()


if __name__ == "__main__":
    run(split_entropy, CONFIG, CONFIG.out)

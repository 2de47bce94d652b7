"""What stage 2 leaves in OUT/split for stage 3 and the report: the ranking of the images, and their pseudo-labels.

entropy.csv, easy.txt and hard.txt have the names; layers are PNG files LAYER/NAME.png on the grid of the image's file:
pseudo_labels/, and from one pass over the images to the next entropy/ and cloud/, shares in 16 bits.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.layout import RANKING
from engine.pictures import write_png
from losses.class_threshold import BINS, below_threshold, quantise
from utils.errors import DataError
from utils.files import write_text
from utils.labels import IGNORE
from utils.output import progress_bar
from utils.records import reading

Layer = Literal["pseudo_labels", "entropy", "cloud"]
UNCERTAIN = 128  # in a stored pseudo-label: no class, or no data
STORED_CLASSES = {0: 0, 255: 1, UNCERTAIN: IGNORE}  # value in the file -> class
LEVELS = BINS - 1  # of a stored share: 1


class RankedImage(NamedTuple):
    """One image's place in the ranking: ascending by score, ties by name; `cloud_fraction` is predicted, in [0, 1]."""

    score: float
    name: str
    cloud_fraction: float


def write_ranking(split: Path, ranked: Sequence[RankedImage], easy: int) -> None:
    """Write the ranking, of which the first `easy` images are easy; entropy.csv last, as a sign that all is there."""
    for half, part in (("easy", ranked[:easy]), ("hard", ranked[easy:])):
        write_text(split / f"{half}.txt", "".join(f"{name}\n" for name in sorted(image.name for image in part)))
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["name", "score", "rank", "split", "cloud_fraction"])
    for rank, (score, name, cloud) in enumerate(ranked):
        writer.writerow([name, f"{score:.9f}", rank, "easy" if rank < easy else "hard", f"{cloud:.6f}"])
    write_text(split / RANKING, rows.getvalue())


def read_ranking(split: Path) -> dict[str, list[RankedImage]]:
    """The "easy" and the "hard" images of a split, each ascending by score."""
    path = split / RANKING
    found: dict[str, list[RankedImage]] = {"easy": [], "hard": []}
    with reading(path, "the ranking of a split", "make the split again"):
        for row in csv.DictReader(io.StringIO(path.read_text("utf-8"))):
            found[row["split"]].append(RankedImage(float(row["score"]), row["name"], float(row["cloud_fraction"])))
        if not all(found.values()):
            raise ValueError("expected easy images and hard ones")
    return found


def write_layer(split: Path, layer: Layer, name: str, pixels: np.ndarray) -> None:
    """Write an image's layer, (H, W) uint8 or uint16."""
    write_png(split / layer / f"{name}.png", pixels)


def read_layer(split: Path, layer: Layer, name: str) -> np.ndarray:
    """An image's layer, as it was written; DataError where it cannot be read."""
    path = split / layer / f"{name}.png"
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise DataError(f"{path}: cannot be read, expected a PNG of stage 2; is the disk full? Make the split anew")
    return np.asarray(found)


def levels_of(share: Tensor) -> np.ndarray:
    """Shares in [0, 1] as a layer holds them, uint16."""
    return quantise(share).numpy().astype(np.uint16)


def write_pseudo_label(split: Path, name: str, label: np.ndarray) -> None:
    """Write an image's pseudo-label, (H, W) uint8 of 0, 1, 255; it is stored as 0, 255 and 128."""
    write_layer(split, "pseudo_labels", name, np.where(label == IGNORE, np.uint8(UNCERTAIN), label * np.uint8(255)))


def read_pseudo_label(split: Path, name: str) -> np.ndarray:
    """An image's pseudo-label, (H, W) uint8 of 0, 1, 255; see `read_layer`."""
    stored = read_layer(split, "pseudo_labels", name)
    return np.where(stored == UNCERTAIN, np.uint8(IGNORE), (stored == 255).astype(np.uint8))


def drop_uncertain(split: Path, names: Sequence[str], thresholds: Tensor) -> float:
    """Take the class from the pixels of the pseudo-labels whose entropy is above the threshold of their class (ESL);
    return the share of the pixels with data that keeps it."""
    levels, kept, pixels = quantise(thresholds).cpu(), 0, 0
    for name in progress_bar(names, desc="thresholds", unit="image"):
        label = torch.from_numpy(read_pseudo_label(split, name)).long()
        entropy = torch.from_numpy(read_layer(split, "entropy", name).astype(np.int64))
        certain = below_threshold(entropy, label, levels)
        kept, pixels = kept + int((certain != IGNORE).sum()), pixels + int((label != IGNORE).sum())
        write_pseudo_label(split, name, certain.byte().numpy())
    return kept / pixels

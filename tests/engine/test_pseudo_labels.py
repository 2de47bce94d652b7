"""What stage 2 leaves on the disk, and how it is read again."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.decode import RGB
from datasets.decoder import Decoder
from datasets.files import Item
from datasets.images import ImageSet
from engine.pictures import write_png
from engine.pseudo_labels import (
    STORED_CLASSES,
    RankedImage,
    drop_uncertain,
    levels_of,
    read_pseudo_label,
    read_ranking,
    write_layer,
    write_pseudo_label,
    write_ranking,
)
from utils.errors import DataError

LABEL = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)


def test_a_label_is_the_same_to_stage_2_and_to_stage_3(tmp_path: Path) -> None:
    write_pseudo_label(tmp_path, "a/b", LABEL)
    file = tmp_path / "pseudo_labels/a/b.png"
    assert cv2.imread(str(file), cv2.IMREAD_UNCHANGED).tolist() == [[0, 255, 128], [255, 255, 0]]
    read = read_pseudo_label(tmp_path, "a/b")
    assert read.dtype == np.uint8 and np.array_equal(read, LABEL)
    write_png(tmp_path / "image.png", np.full((2, 3, 3), 9, np.uint8))
    images = ImageSet((Item("a/b", (tmp_path / "image.png",)),), Decoder(RGB))
    labelled = images.with_labels(tmp_path / "pseudo_labels", STORED_CLASSES)
    assert np.array_equal(labelled.read(labelled[0]).label, LABEL)
    with pytest.raises(DataError, match=r"pseudo_labels/c\.png: cannot be read, expected a PNG of stage 2"):
        read_pseudo_label(tmp_path, "c")


def test_what_is_more_uncertain_than_its_class_allows_has_no_class(tmp_path: Path) -> None:
    write_pseudo_label(tmp_path, "a", LABEL)
    entropy = torch.tensor([[0.1, 0.6, 0.0], [0.4, 0.5, 0.3]])
    write_layer(tmp_path, "entropy", "a", levels_of(entropy))
    assert drop_uncertain(tmp_path, ["a"], torch.tensor([0.2, 0.5])) == pytest.approx(3 / 5)
    assert read_pseudo_label(tmp_path, "a").tolist() == [[0, 255, 255], [1, 1, 255]]


def test_the_ranking_is_read_as_it_was_written(tmp_path: Path) -> None:
    ranked = [RankedImage(0.1, "b", 0.5), RankedImage(0.2, "c, d", 0.25), RankedImage(0.3, "a", 1.0)]
    write_ranking(tmp_path, ranked, 2)
    assert read_ranking(tmp_path) == {"easy": ranked[:2], "hard": ranked[2:]}
    assert (tmp_path / "easy.txt").read_text() == "b\nc, d\n" and (tmp_path / "hard.txt").read_text() == "a\n"

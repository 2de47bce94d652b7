"""Statistics of a domain's bands against NumPy's, and the change that gives one domain those of another."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.files import Item
from datasets.images import Decoder, ImageSet
from utils.matching import Matching, band_statistics


def images(folder: Path, low: int, high: int, seed: int) -> tuple[ImageSet, np.ndarray]:
    """Three images whose left columns hold no data, and all their valid pixels (N, 3)."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    items, pixels = [], []
    for number in range(3):
        image = rng.integers(low, high, (20, 24 + number, 3), dtype=np.uint8)
        image[..., 1] //= 2
        image[:, : 2 * number] = 0
        path = folder / f"i{number}.png"
        cv2.imwrite(str(path), image[..., ::-1])
        items.append(Item(path.stem, (path,), None))
        pixels.append(image[:, 2 * number :].reshape(-1, 3))
    return ImageSet(tuple(items), Decoder(("red", "green", "blue"), nodata="all_zero")), np.concatenate(pixels)


def test_statistics_are_those_of_all_valid_pixels(tmp_path: Path) -> None:
    domain, pixels = images(tmp_path / "a", 20, 200, 0)
    mean, deviation = band_statistics(domain)
    np.testing.assert_allclose(mean, pixels.mean(0))
    np.testing.assert_allclose(deviation, pixels.std(0))


def test_a_matched_domain_has_the_statistics_of_the_other(tmp_path: Path) -> None:
    dark, pixels = images(tmp_path / "dark", 20, 80, 1)
    bright, others = images(tmp_path / "bright", 90, 220, 2)
    changed = Matching.between(dark, bright)(pixels[None], np.ones((1, len(pixels)), bool))[0]
    np.testing.assert_allclose(changed.mean(0), others.mean(0), atol=0.3)
    np.testing.assert_allclose(changed.std(0), others.std(0), atol=0.5)


def test_known_answer_and_no_data(tmp_path: Path) -> None:
    table = np.clip((np.arange(256) - 50) * 2.0 + 100, 0, 255).round().astype(np.uint8)
    matching = Matching(np.stack([table, np.arange(256, dtype=np.uint8)], 1))
    image = np.array([[[50, 7], [60, 8], [200, 9], [0, 10]]], np.uint8)
    found = matching(image, np.array([[True, True, True, False]]))
    assert found.tolist() == [[[100, 7], [120, 8], [255, 9], [0, 0]]] and found.dtype == np.uint8


def test_a_domain_matched_to_itself_stays(tmp_path: Path) -> None:
    domain, pixels = images(tmp_path / "a", 20, 200, 0)
    matching = Matching.between(domain, domain)
    np.testing.assert_array_equal(matching(pixels[None], np.ones((1, len(pixels)), bool))[0], pixels)


@pytest.mark.parametrize("level", [0, 90])
def test_a_band_without_spread_becomes_the_other_s_mean(tmp_path: Path, level: int) -> None:
    path = tmp_path / "even.png"
    cv2.imwrite(str(path), np.full((8, 8, 3), level, np.uint8))
    even = ImageSet((Item("even", (path,), None),), Decoder(("red", "green", "blue"), nodata="none"))
    other, pixels = images(tmp_path / "b", 90, 220, 2)
    changed = Matching.between(even, other)(np.full((2, 2, 3), level, np.uint8), np.ones((2, 2), bool))
    np.testing.assert_array_equal(changed[0, 0], pixels.mean(0).round())

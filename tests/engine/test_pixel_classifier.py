"""The pixel classifier: its features by hand, and what it makes of a network that draws blocks in wrong places."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.decoder import Decoder
from datasets.files import Item
from datasets.images import ImageSet
from engine.pictures import write_png
from engine.pixel_classifier import drawn_places, fit, pixel_features, relabel
from engine.pseudo_labels import LEVELS, UNCERTAIN

Blocky = tuple[ImageSet, dict[str, np.ndarray], Path]  # images, true masks, folder of stage 2


def test_features_of_an_even_image() -> None:
    image = np.empty((40, 50, 3), np.uint8)
    image[:] = (51, 102, 204)
    found = pixel_features(image, np.ones((40, 50), bool))
    mean = 119 / 255
    expected = [mean, 0.2, 0.6, -0.6, mean, 0, mean, 0, mean, mean, mean]
    assert found.shape == (40, 50, 11) and found.dtype == np.float32
    np.testing.assert_allclose(found[20, 20], expected, atol=2e-4)
    np.testing.assert_allclose(found[0, 49], expected, atol=2e-4)


def test_surroundings_are_those_of_a_gaussian_window() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (61, 61, 1), dtype=np.uint8)
    found = pixel_features(image, np.ones((61, 61), bool))[30, 30]
    distance = np.arange(-30, 31)
    for deviation, place in ((2, 4), (8, 6)):
        window = np.exp(-(distance**2) / (2 * deviation**2))
        weight = np.outer(window, window) / window.sum() ** 2
        values = image[..., 0] / 255
        mean = (weight * values).sum()
        assert found[place] == pytest.approx(mean, abs=2e-3)
        assert found[place + 1] == pytest.approx(np.sqrt((weight * (values - mean) ** 2).sum()), abs=2e-3)


@given(st.integers(0, 255))
def test_what_is_not_data_changes_nothing(fill: int) -> None:
    rng = np.random.default_rng(1)
    image, valid = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), np.ones((24, 24), bool)
    valid[:, 18:] = False
    other = np.where(valid[..., None], image, fill).astype(np.uint8)
    first, second = (pixel_features(pixels, valid)[valid] for pixels in (image, other))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_features_of_some_pixels_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    image, valid = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), rng.random((30, 40)) < 0.7
    places = rng.integers(valid.sum(), size=50)
    whole = pixel_features(image * valid[..., None], valid)
    np.testing.assert_array_equal(pixel_features(image * valid[..., None], valid, places), whole[valid][places])


@pytest.mark.parametrize(("images", "each"), [(1, 40_000), (26, 1539), (80, 500), (400, 500), (2000, 100)])
def test_so_many_pixels_are_drawn_by_the_image_s_name(images: int, each: int) -> None:
    drawn = drawn_places("scene", 700, images)
    assert len(drawn) == each and drawn.min() >= 0 and drawn.max() < 700
    np.testing.assert_array_equal(drawn, drawn_places("scene", 700, images))
    assert (drawn != drawn_places("other", 700, images)).any()


def test_one_class_teaches_nothing() -> None:
    features = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    assert fit(features, np.full(50, 0.9)) is None
    assert fit(features, np.full(50, 0.1)) is None
    assert fit(features, np.full(50, 0.5)) is None


@pytest.fixture
def blocky(tmp_path: Path) -> Blocky:
    """Eight dark images with a bright disc, and a network's probability that is a soft block, shifted at random; a
    quarter of the first is without data."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    items, truth = [], {}
    for number in range(8):
        name = f"i{number}"
        row, column = rng.integers(40, 88, 2)
        disc = np.zeros((128, 128), np.uint8)
        cv2.circle(disc, (int(column), int(row)), 24, 1, -1)
        image = np.where(disc[..., None] == 1, 190, 60) + rng.integers(-15, 16, (128, 128, 3))
        image = image.astype(np.uint8)
        if number == 0:
            image[:, :32] = 0
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        guess = np.full((128, 128), 0.1)
        down, across = rng.integers(-10, 11, 2)
        guess[row + down - 22 : row + down + 22, column + across - 22 : column + across + 22] = 0.9
        guess = cv2.GaussianBlur(guess, (0, 0), 6)
        write_png(tmp_path / "split" / "cloud" / f"{name}.png", (guess * LEVELS).astype(np.uint16))
        items.append(Item(name, (tmp_path / "images" / f"{name}.png",), None))
        truth[name] = disc
    images = ImageSet(tuple(items), Decoder(("red", "green", "blue"), nodata="all_zero"))
    return images, truth, tmp_path / "split"


def stored(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def data_of(item: Item) -> np.ndarray:
    return (np.arange(128) >= (32 if item.name == "i0" else 0))[None].repeat(128, 0)


def test_masks_follow_the_image(blocky: Blocky) -> None:
    images, truth, folder = blocky
    relabel(images, folder, 0)
    before, after = [], []
    for item in images:
        valid = data_of(item)
        guess = stored(folder / "cloud" / f"{item.name}.png") > LEVELS / 2
        mask = stored(folder / "pseudo_labels" / f"{item.name}.png")
        assert (mask[~valid] == UNCERTAIN).all() and set(np.unique(mask[valid])) == {0, 255}
        before.append((guess != truth[item.name])[valid].mean())
        after.append(((mask == 255) != truth[item.name])[valid].mean())
    assert np.mean(before) > 0.03 and np.mean(after) < 0.5 * np.mean(before)


def test_uncertain_pixels_are_marked_and_more_often_wrong(blocky: Blocky) -> None:
    images, truth, folder = blocky
    relabel(images, folder, 0)
    every = {item.name: stored(folder / "pseudo_labels" / f"{item.name}.png") == 255 for item in images}
    kept = relabel(images, folder, 0.6)
    wrong: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for item in images:
        mask, valid = stored(folder / "pseudo_labels" / f"{item.name}.png"), data_of(item)
        sure = mask != UNCERTAIN
        np.testing.assert_array_equal(mask[sure] == 255, every[item.name][sure])
        for known in (True, False):
            wrong[known].append((every[item.name] != truth[item.name])[valid & (sure == known)])
    sure, unsure = np.concatenate(wrong[True]), np.concatenate(wrong[False])
    assert kept == pytest.approx(len(sure) / (len(sure) + len(unsure))) and 0.8 < kept < 1
    assert unsure.mean() > 5 * sure.mean()


def test_a_floor_of_nothing_keeps_every_pixel_and_the_bytes_are_the_same_each_time(blocky: Blocky) -> None:
    images, _, folder = blocky
    assert relabel(images, folder, 0) == 1
    first = {path.name: path.read_bytes() for path in (folder / "pseudo_labels").iterdir()}
    assert relabel(images, folder, 0) == 1
    assert first == {path.name: path.read_bytes() for path in (folder / "pseudo_labels").iterdir()}


def test_a_teacher_of_one_class_keeps_its_masks(blocky: Blocky, capsys: pytest.CaptureFixture[str]) -> None:
    images, _, folder = blocky
    for item in images:
        write_png(folder / "cloud" / f"{item.name}.png", np.full((128, 128), LEVELS // 5, np.uint16))
        write_png(folder / "pseudo_labels" / f"{item.name}.png", np.zeros((128, 128), np.uint8))
    relabel(images, folder, 0.6)
    assert not stored(folder / "pseudo_labels" / "i1.png").any() and "one class alone" in capsys.readouterr().out

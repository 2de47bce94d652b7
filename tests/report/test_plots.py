"""Pictures: exact colours, and grids that leave the network as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from nets.segmenter import Segmenter
from report.embedding import Panel
from report.plots import (
    CLEAR,
    CLOUD,
    EMBEDDED,
    FALSE_ALARM,
    MISS,
    OUTLINE,
    UNKNOWN,
    colour_entropy,
    colour_errors,
    colour_mask,
    embedding_panels,
    entropy_histograms,
    grid,
    laid_over,
    outlined,
    picture_grid,
    prediction_grid,
    training_curves,
    write_png,
)


def test_colour_mask() -> None:
    coloured = colour_mask(np.array([[0, 1], [255, 0]]))
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == [[list(CLEAR), list(CLOUD)], [list(UNKNOWN), list(CLEAR)]]
    assert len({CLEAR, CLOUD, UNKNOWN}) == 3


def test_colour_entropy_goes_from_yellow_to_red() -> None:
    coloured = colour_entropy(np.array([[0.0, 1.0, 0.5, -0.2, 1.3]]))
    assert coloured.dtype == np.uint8 and coloured.shape == (1, 5, 3)
    yellow, red, middle, below, above = coloured[0].tolist()
    assert (yellow, red) == ([255, 237, 120], [189, 0, 38]) == (below, above)
    assert middle == [222, 118, 79]
    green = colour_entropy(np.linspace(0, 1, 50)[None])[0, :, 1].astype(int)
    assert (np.diff(green) < 0).all()


def test_colour_errors_names_each_kind_of_pixel() -> None:
    label, mask = np.array([[0, 0, 1, 1, 255, 255]]), np.array([[0, 1, 0, 1, 0, 1]])
    expected = [CLEAR, FALSE_ALARM, MISS, CLOUD, UNKNOWN, UNKNOWN]
    assert colour_errors(label, mask)[0].tolist() == [list(colour) for colour in expected]
    assert len({*expected}) == 5


def test_outline_runs_round_the_cloud_and_nowhere_else() -> None:
    image, mask = np.full((20, 30, 3), 7, np.uint8), np.zeros((20, 30), np.uint8)
    mask[5:15, 10:20] = 1
    mask[0, 0] = 255
    drawn = (outlined(image, mask) == OUTLINE).all(2)
    expected = np.zeros_like(drawn)
    expected[5:15, 10:20] = True
    expected[6:14, 11:19] = False
    assert np.array_equal(drawn, expected)
    assert (image == 7).all()  # the image itself is not drawn upon
    assert (outlined(image, np.zeros_like(mask)) == 7).all()


def test_heat_is_brightest_where_it_is_highest() -> None:
    over = laid_over(np.full((1, 5, 3), 100, np.uint8), np.array([[0.0, 0.25, 0.5, 0.75, 1.0]])).astype(int).sum(2)[0]
    assert (np.diff(over) > 0).all()


def test_training_curves_draw_every_row(tmp_path: Path) -> None:
    rows = [{"step": s, "lr": 0.1, "loss": 1.0, "raw/seg": 1 / s, "stats/entropy": 0.1 * s} for s in (1, 2, 3)]
    training_curves(tmp_path / "one.png", {"teacher": rows})
    training_curves(tmp_path / "other.png", {"teacher": [*rows[:2], rows[2] | {"raw/seg": 9.0}]})
    one, other = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("one", "other"))
    changed = (one != other).any(2)
    assert changed.any() and not changed[:, one.shape[1] // 3 + 20 :].any()  # the losses' panel alone


def test_histograms_differ_where_the_entropies_do(tmp_path: Path) -> None:
    low, high = np.full(100, 0.5), np.tile([0.1, 0.9], 50)  # of one mean, so the legends are the same
    entropy_histograms(tmp_path / "a.png", {"teacher": {"easy": low, "hard": high}})
    entropy_histograms(tmp_path / "b.png", {"teacher": {"easy": low, "hard": low}})
    assert not np.array_equal(cv2.imread(str(tmp_path / "a.png")), cv2.imread(str(tmp_path / "b.png")))


def test_each_kind_of_point_has_its_colour(tmp_path: Path) -> None:
    """Four far points, one of each kind, in a known order from left to right."""
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    source, cloud = np.array([True, True, False, False]), np.array([False, True, False, True])
    panel = Panel(np.repeat(points, 50, 0), 0.5, 0.25)
    embedding_panels(tmp_path / "t.png", {"student": panel}, np.repeat(source, 50), np.repeat(cloud, 50))
    picture = cv2.imread(str(tmp_path / "t.png"))[..., ::-1].astype(int)
    picture = picture[: picture.shape[0] // 2 + 60]  # above the legend
    places = []
    for _, name, colour in EMBEDDED:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        found = np.argwhere((np.abs(picture - rgb) < 3).all(2))
        assert len(found), name
        places.append(found[:, 1].mean())
    assert places == sorted(places)


def test_grid_places_tiles_with_white_between() -> None:
    tiles = [[np.full((2, 3, 3), 10 * i + j, np.uint8) for j in range(2)] for i in range(2)]
    picture = grid(tiles, gap=1)
    expected = np.full((5, 7), 255)
    expected[:2, :3], expected[:2, 4:], expected[3:, :3], expected[3:, 4:] = 0, 1, 10, 11
    assert np.array_equal(picture, np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize("training", [True, False])
def test_prediction_grid(training: bool) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter("mobilenetv3_small_050").train(training)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    image = torch.rand(3, 3, 32, 32)
    label = torch.full((3, 32, 32), 255)
    label[1] = 1
    batch: dict[str, dict[str, Any]] = {"source": {"image": image, "label": label}, "target": {"image": image}}
    picture = prediction_grid(segmenter, batch, images=2)
    assert picture.shape == (7 * 32 + 6 * 4, 2 * 32 + 4, 3) and picture.dtype == np.uint8  # 4 + 3 rows

    def tile(row: int, column: int) -> np.ndarray:
        return picture[row * 36 : row * 36 + 32, column * 36 : column * 36 + 32]

    assert np.array_equal(tile(0, 1), (image[1].permute(1, 2, 0) * 255).byte().numpy())
    assert (tile(1, 0) == UNKNOWN).all() and (tile(1, 1) == CLOUD).all()
    assert ((tile(2, 0) == CLEAR).all(-1) | (tile(2, 0) == CLOUD).all(-1)).all()
    for row in (2, 3):  # the same images in both streams: the same masks and entropies
        assert np.array_equal(tile(row, 0), tile(row + 3, 0))
    assert segmenter.training == training
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())


def test_write_png_keeps_rgb_and_grey(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "new/folder/a.png", pixels)
    write_png(tmp_path / "new/folder/b.png", pixels[..., 0])
    assert np.array_equal(cv2.imread(str(tmp_path / "new/folder/a.png"))[..., ::-1], pixels)
    assert np.array_equal(cv2.imread(str(tmp_path / "new/folder/b.png"), cv2.IMREAD_UNCHANGED), pixels[..., 0])


def test_picture_grid_shows_every_picture(tmp_path: Path) -> None:
    colours = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]]
    columns = {
        title: [np.full((8, 8, 3), colour, np.uint8) for colour in column]
        for title, column in zip(("image", "student"), colours, strict=True)
    }
    picture_grid(tmp_path / "o.png", ["one", "two"], columns, "target: held-back images")
    drawn = cv2.imread(str(tmp_path / "o.png"))[..., ::-1]
    centres = {}
    for column in colours:
        for colour in column:
            rows, across = np.nonzero((drawn == colour).all(-1))
            assert len(rows) > 50 * 50
            centres[colour] = rows.mean(), across.mean()
    assert centres[200, 0, 0][0] < centres[0, 200, 0][0]  # rows below each other
    assert centres[200, 0, 0][1] < centres[0, 0, 200][1]  # columns side by side

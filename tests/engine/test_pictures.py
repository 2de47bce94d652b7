"""Pictures: exact colours."""

from pathlib import Path

import cv2
import numpy as np

from engine.pictures import (
    CLEAR,
    CLOUD,
    FALSE_ALARM,
    MISS,
    OUTLINE,
    UNKNOWN,
    colour_entropy,
    colour_errors,
    colour_mask,
    grid,
    laid_over,
    outlined,
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


def test_grid_places_tiles_with_white_between() -> None:
    tiles = [[np.full((2, 3, 3), 10 * i + j, np.uint8) for j in range(2)] for i in range(2)]
    picture = grid(tiles, gap=1)
    expected = np.full((5, 7), 255)
    expected[:2, :3], expected[:2, 4:], expected[3:, :3], expected[3:, 4:] = 0, 1, 10, 11
    assert np.array_equal(picture, np.repeat(expected[..., None], 3, 2))


def test_write_png_keeps_rgb_and_grey(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "new/folder/a.png", pixels)
    write_png(tmp_path / "new/folder/b.png", pixels[..., 0])
    assert np.array_equal(cv2.imread(str(tmp_path / "new/folder/a.png"))[..., ::-1], pixels)
    assert np.array_equal(cv2.imread(str(tmp_path / "new/folder/b.png"), cv2.IMREAD_UNCHANGED), pixels[..., 0])

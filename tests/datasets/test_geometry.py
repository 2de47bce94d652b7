"""Image, label and valid mask move together, and what is padded is never counted."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.geometry import Raster, crop, filled, fitted_size, letterbox, scale_to
from utils.labels import IGNORE

Place = Callable[[Raster, int, np.random.Generator], Raster]
SIDES = st.integers(1, 90)
SIZES = st.integers(1, 64)
few = settings(max_examples=60, deadline=None)


def positions(height: int, width: int) -> Raster:
    """Red and green hold 1 + row and 1 + column, the label mixes both; 0 occurs in padding alone."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows + 1, columns + 1, np.full_like(rows, 200)], -1).astype(np.uint8)
    label = (((rows // 3) + (columns // 5)) % 2).astype(np.uint8)
    return Raster(image, label, np.ones((height, width), bool))


@few
@given(SIDES, SIDES, SIZES)
def test_fitted_size(height: int, width: int, size: int) -> None:
    new_height, new_width = fitted_size(height, width, size)
    assert max(new_height, new_width) == size and min(new_height, new_width) >= 1
    scale = size / max(height, width)
    assert abs(new_height - height * scale) < 1 and abs(new_width - width * scale) < 1


@pytest.mark.parametrize(
    ("given_size", "expected"), [((100, 50), (32, 16)), ((50, 100), (16, 32)), ((8, 8), (32, 32)), ((1000, 3), (32, 1))]
)
def test_fitted_size_by_hand(given_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*given_size, 32) == expected


@few
@given(SIDES, SIDES, SIZES, st.integers(0, 1000), st.sampled_from([letterbox, crop]))
def test_square_padding_and_label_values(height: int, width: int, size: int, seed: int, place: Place) -> None:
    raster = positions(height, width)
    assert raster.label is not None
    raster.label[0, 0] = 7  # a value that interpolation would not keep apart
    moved = place(raster, size, np.random.default_rng(seed))
    assert moved.label is not None
    assert moved.image.shape == (size, size, 3) and moved.label.shape == moved.valid.shape == (size, size)
    assert moved.image.dtype == moved.label.dtype == np.uint8 and moved.valid.dtype == bool
    assert set(np.unique(moved.label[moved.valid])) <= set(np.unique(raster.label))
    assert (moved.label[~moved.valid] == IGNORE).all() and (moved.image[~moved.valid] == 0).all()
    expected = fitted_size(height, width, size) if place is letterbox else (min(height, size), min(width, size))
    assert moved.valid.sum() == expected[0] * expected[1]
    rows, columns = np.flatnonzero(moved.valid.any(1)), np.flatnonzero(moved.valid.any(0))
    assert (len(rows), len(columns)) == expected  # one rectangle: aspect kept
    assert moved.valid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@few
@given(SIDES, SIDES, SIZES, st.integers(0, 1000))
def test_crop_is_a_window_of_image_and_label(height: int, width: int, size: int, seed: int) -> None:
    raster = positions(height, width)
    moved = crop(raster, size, np.random.default_rng(seed))
    assert moved.label is not None and raster.label is not None
    rows, columns = (moved.image[moved.valid][:, band].astype(int) - 1 for band in (0, 1))
    assert np.array_equal(moved.label[moved.valid], raster.label[rows, columns])
    assert moved.valid[0, 0]  # padding stands at the bottom right
    shape = min(height, size), min(width, size)
    assert np.array_equal(rows.reshape(shape)[:, 0], rows[0] + np.arange(shape[0]))
    assert np.array_equal(columns.reshape(shape)[0], columns[0] + np.arange(shape[1]))


@few
@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 64), st.integers(0, 1000))
def test_letterbox_keeps_image_and_label_aligned(height: int, width: int, size: int, seed: int) -> None:
    """The column that a scaled pixel's value names and the one that its label names: half a pixel plus rounding."""
    _, columns = np.mgrid[:height, :width]
    raster = positions(height, width)._replace(label=columns.astype(np.uint8))
    moved = letterbox(raster, size, np.random.default_rng(seed))
    assert moved.label is not None
    from_image = moved.image[moved.valid][:, 1].astype(float) - 1
    from_label = moved.label[moved.valid].astype(float)
    assert np.abs(from_image - from_label).max() <= 1.25


@pytest.mark.parametrize("step", [3, 5])
def test_letterbox_samples_labels_at_pixel_centres(step: int) -> None:
    """By an odd factor, the centre of the averaged block is a pixel; a corner rule would be (step - 1) / 2 off."""
    raster = positions(16 * step, 16 * step)
    label = (raster.image[..., 1] - 1).astype(np.uint8)
    moved = letterbox(raster._replace(label=label), 16, np.random.default_rng(0))
    assert np.array_equal(moved.label, moved.image[..., 1] - 1)


@pytest.mark.parametrize(("shape", "padding"), [((64, 32), (0, 8)), ((32, 64), (8, 0))])
def test_letterbox_uses_both_placements(shape: tuple[int, int], padding: tuple[int, int]) -> None:
    found = []
    for seed in range(60):
        valid = letterbox(positions(*shape), 32, np.random.default_rng(seed)).valid
        found.append((int(valid.any(1).argmax()), int(valid.any(0).argmax())))
    centred, corner = padding, (2 * padding[0], 2 * padding[1])
    assert set(found) == {centred, corner}
    assert 15 <= found.count(centred) <= 45


def test_letterbox_of_a_square_of_that_size_changes_nothing() -> None:
    raster = positions(32, 32)
    moved = letterbox(raster, 32, np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip(raster, moved, strict=True))


def test_crop_reaches_every_corner() -> None:
    starts = {tuple(crop(positions(6, 7), 5, np.random.default_rng(seed)).image[0, 0, :2]) for seed in range(200)}
    assert starts == {(row, column) for row in (1, 2) for column in (1, 2, 3)}


@pytest.mark.parametrize("place", [letterbox, crop])
def test_unlabelled_and_partly_invalid(place: Place) -> None:
    valid = np.ones((40, 40), bool)
    valid[:, :20] = False
    moved = place(Raster(positions(40, 40).image, None, valid), 40, np.random.default_rng(0))
    assert moved.label is None and np.array_equal(moved.valid, valid)


@few
@given(SIDES, SIDES, st.floats(0, 1), st.integers(0, 1000))
def test_holes_take_the_value_of_a_near_pixel_with_data(height: int, width: int, share: float, seed: int) -> None:
    raster = positions(height, width)
    valid = np.random.default_rng(seed).random((height, width)) >= share
    image = np.where(valid[..., None], raster.image, np.uint8(0))
    found = filled(image, valid)
    if not valid.any():
        assert not found.any()
        return
    assert np.array_equal(found[valid], raster.image[valid])  # what has data stays
    known, holes = np.argwhere(valid), np.argwhere(~valid)[:50]
    nearest = np.sqrt(((holes[:, None] - known[None]) ** 2).sum(2).min(1))
    rows, columns = (found[tuple(holes.T)][:, band].astype(int) - 1 for band in (0, 1))
    assert valid[rows, columns].all()  # a pixel of the image, not a mixture of several
    assert (np.hypot(rows - holes[:, 0], columns - holes[:, 1]) <= 1.1 * nearest + 1e-6).all()


@pytest.mark.parametrize("place", [letterbox, crop])
@pytest.mark.parametrize("size", [24, 40, 56])
def test_the_network_is_shown_no_holes(place: Place, size: int) -> None:
    """A flat image of 200 with holes of 0: flat wherever the image lies, also where scaling would mix the two."""
    valid = np.random.default_rng(0).random((40, 40)) > 0.1
    valid[:, :15] = False
    image = np.where(valid, np.uint8(200), np.uint8(0))[..., None]
    moved = place(Raster(image, None, valid), size, np.random.default_rng(0))
    inside = np.zeros((size, size), bool)
    inside[moved.box.slices if moved.box else ...] = True
    assert (moved.image[inside] == 200).all() and (moved.image[~inside] == 0).all()
    assert not moved.valid[~inside].any() and not moved.valid.all()
    side = size if place is letterbox else min(40, size)
    assert inside.sum() == side * side


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("size", [(5, 4), (20, 16), (10, 8)])
def test_scale_to_keeps_the_bands(bands: int, size: tuple[int, int]) -> None:
    flat = np.full((10, 8, bands), 93, np.uint8)
    scaled = scale_to(flat, *size)
    assert scaled.shape == (*size, bands) and (scaled == 93).all()


def test_shrinking_averages() -> None:
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (scale_to(stripes, 4, 4) == 100).all()  # a nearest or bilinear rule could give stripes again

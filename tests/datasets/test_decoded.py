"""A margin without data changes nothing, and a layer goes back to its place in the file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datasets.decoded import Decoded
from datasets.decoder import Decoder
from datasets.files import Item
from tests.datasets.written import item_of, noise, picture
from utils.labels import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = ("red", "green", "blue")
few = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("margin", [(0, 0, 0, 0), (3, 0, 0, 0), (0, 2, 5, 0), (1, 2, 3, 4)])
def test_margin_without_data_changes_nothing(tmp_path: Path, margin: tuple[int, int, int, int]) -> None:
    above, below, left, right = margin
    pixels, label = noise(6, 7, 3, dtype="uint8"), (noise(6, 7) % 2 * 255).astype(np.uint8)
    pixels[2, 3] = 0  # a hole inside stays where it is
    edges = ((above, below), (left, right))
    plain = Item("a", (picture(tmp_path / "a.png", pixels),), picture(tmp_path / "al.png", label))
    padded = Item(
        "b",
        (picture(tmp_path / "b.png", np.pad(pixels, (*edges, (0, 0)))),),
        picture(tmp_path / "bl.png", np.pad(label, edges, constant_values=255)),
    )
    decoder = Decoder(RGB, nodata="all_zero")
    first, second = decoder.read(plain), decoder.read(padded)
    for one, two in zip(first[:3], second[:3], strict=True):
        assert one is not None and two is not None and np.array_equal(one, two) and one.dtype == two.dtype
    assert (second.top, second.left) == (above, left)
    assert (second.height, second.width) == (6 + above + below, 7 + left + right)
    assert first.label is not None and second.label is not None
    expected = np.where(np.pad(first.valid, edges), np.pad(label // 255, edges), IGNORE)
    assert np.array_equal(second.placed(second.label, IGNORE), expected)


@few
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.integers(0, 3))
def test_placed_is_the_inverse_of_trimming(valid: np.ndarray, bands: int) -> None:
    """Any mask: what has data stands at its old place, all else is filled."""

    class Fixed(Decoder):
        def pixels(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
            return whole * valid[..., None], valid

    shape = (*valid.shape, max(1, bands))
    whole = np.random.default_rng(0).integers(1, 255, shape).astype(np.uint8)
    decoded = Fixed(RGB).image(Item("x", (Path("x"),)))
    layer = decoded.image if bands else decoded.image[..., 0]
    expected = np.where(valid[..., None], whole, 99) if bands else np.where(valid, whole[..., 0], 99)
    assert np.array_equal(decoded.placed(layer, 99), expected)
    if valid.any():
        assert all(edge.any() for edge in (*decoded.valid[[0, -1]], *decoded.valid[:, [0, -1]].T))


def test_placed_takes_a_colour() -> None:
    decoded = Decoded(np.zeros((1, 1, 3), np.uint8), None, np.ones((1, 1), bool), 1, 0, 2, 1)
    layer = np.array([[[1, 2, 3]]], np.uint8)
    assert decoded.placed(layer, (7, 8, 9)).tolist() == [[[7, 8, 9]], [[1, 2, 3]]]


def test_image_without_any_data_is_not_cut(tmp_path: Path) -> None:
    item = item_of(picture(tmp_path / "x.png", np.zeros((4, 5, 3), np.uint8)))
    decoded = Decoder(RGB, nodata="all_zero").read(item)
    assert decoded.image.shape == (4, 5, 3) and not decoded.valid.any()
    assert (decoded.placed(decoded.valid.astype(np.uint8), 3) == 3).all()

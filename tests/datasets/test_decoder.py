"""How files are understood: bands and scaling as told, no data nowhere counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.decoder import Decoder
from datasets.files import Item
from datasets.scaling import Stretch
from tests.datasets.written import fault_of, item_of, noise, picture, raster
from utils.labels import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")


def test_no_data_rules(tmp_path: Path) -> None:
    """Where one image of three bands has data, by each rule."""
    pixels = noise(4, 5, 3)
    pixels[0, 0] = 0  # 0 everywhere
    pixels[1, 1, 1] = 0  # 0 in one band in use
    pixels[2, 2, 2] = 0  # 0 in the mask band
    pixels[3, 3, 0] = 9  # the tagged value
    item = item_of(raster(tmp_path / "x.tif", pixels, ("red", "green", "qa"), nodata=9))
    holes = {
        "file": [(3, 3)],
        "none": [],
        "all_zero": [(0, 0)],
        0: [(0, 0)],
        "any_zero": [(0, 0), (1, 1)],
        9.0: [(3, 3)],
        "band:qa": [(0, 0), (2, 2)],
    }
    for rule, expected in holes.items():
        _, valid = Decoder(("red", "green"), nodata=rule).native(item)
        assert list(zip(*np.nonzero(~valid), strict=True)) == expected, rule


def test_0_in_one_band_alone_is_dark_water_and_no_hole(tmp_path: Path) -> None:
    """Whether 0 is the rule or the file's tag, in one file or in a file a band; the strict rule has a name."""
    pixels = noise(4, 5, 3, dtype="uint8")
    pixels[1, 1, 2] = 0
    pixels[3] = 0
    whole = item_of(raster(tmp_path / "x.tif", pixels, nodata=0))
    files = tuple(raster(tmp_path / f"{band}.tif", pixels[..., i], nodata=0) for i, band in enumerate(RGB))
    for item, decoder in ((whole, Decoder(RGB)), (Item("y", files), Decoder(RGB, RGB))):
        for rule in ("file", "all_zero", 0, 0.0):
            assert np.array_equal(replace(decoder, nodata=rule).native(item)[1], pixels.any(2)), (item.name, rule)
        assert np.array_equal(replace(decoder, nodata="any_zero").native(item)[1], pixels.all(2))
    gray = item_of(raster(tmp_path / "gray.tif", pixels[..., 2], nodata=0))
    assert np.array_equal(Decoder(("gray",)).native(gray)[1], pixels[..., 2] != 0)


@pytest.mark.parametrize("rule", ["file", "none", "all_zero", -1.0, "band:blue"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_never_data(tmp_path: Path, rule: str | float, value: float) -> None:
    pixels = noise(4, 5, 3, dtype="float32")
    pixels[1, 2, 1] = value
    item = item_of(raster(tmp_path / "x.tif", pixels))
    decoder = Decoder(("red", "green"), scaling=Stretch((0, 0), (1000, 1000)), nodata=rule)
    scaled, valid = decoder.pixels(item)
    assert np.argwhere(~valid).tolist() == [[1, 2]] and scaled[1, 2].tolist() == [0, 0]
    assert np.argwhere(~Decoder(("red", "blue"), nodata=rule).native(item)[1]).size == 0  # the bands in use alone


def test_pixels_without_data_are_0_and_their_label_is_ignored(tmp_path: Path) -> None:
    pixels = np.full((4, 5, 3), 200, np.uint8)
    pixels[1, 2] = 0
    label = picture(tmp_path / "l.png", np.full((4, 5), 255, np.uint8))
    item = Item("x", (picture(tmp_path / "x.png", pixels),), label)
    decoded = Decoder(RGB, nodata=0).read(item)
    assert decoded.label is not None and np.argwhere(~decoded.valid).tolist() == [[1, 2]]
    assert decoded.image[1, 2].tolist() == [0, 0, 0] and (decoded.image[decoded.valid] == 200).all()
    assert decoded.label[1, 2] == IGNORE and (decoded.label[decoded.valid] == 1).all()
    decoder = Decoder(RGB, nodata=0)
    bare = decoder.labelled(decoder.image(item), decoder.label(item), item, masked=False)
    assert bare.label is not None and (bare.label == 1).all()


def test_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    pixels = noise(4, 5, 3, dtype="uint8")
    decoded = Decoder(RGB).read(item_of(picture(tmp_path / "x.png", pixels)))
    assert np.array_equal(decoded.image, pixels) and decoded.valid.all() and decoded.label is None


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_types_need_a_scaling(tmp_path: Path, dtype: str) -> None:
    item = item_of(raster(tmp_path / "x.tif", noise(4, 5, 3, dtype=dtype)))
    assert fault_of(lambda: Decoder(RGB).read(item)) == (
        f"{item.image}: found {dtype} pixels, expected 8 bits, or give the domain's scaling"
    )


def test_shift8_drops_the_lower_8_bits(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 7, dtype=np.uint16).reshape(1, -1)[:, :9000].reshape(90, 100)
    decoded = Decoder(("gray",), scaling="shift8").read(item_of(raster(tmp_path / "x.tif", values)))
    assert np.array_equal(decoded.image[..., 0], values >> 8)
    eight = item_of(raster(tmp_path / "y.tif", noise(4, 5, dtype="uint8")))
    assert "found uint8 pixels, expected 16 bits" in fault_of(lambda: Decoder(("gray",), scaling="shift8").read(eight))


def test_stretch_by_hand(tmp_path: Path) -> None:
    values = np.array([[0, 999, 1000, 1001, 1010, 1255, 1510, 1900, 65535]], np.uint16)
    decoder = Decoder(("gray",), scaling=Stretch((1000,), (1510,)), nodata="none")
    decoded = decoder.read(item_of(raster(tmp_path / "x.tif", values)))
    assert decoded.image[0, :, 0].tolist() == [0, 0, 0, 1, 5, 128, 255, 255, 255]  # halves are rounded up


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_stretch_is_taken_band_by_band_of_any_type(tmp_path: Path, dtype: str) -> None:
    pixels = np.array([[[0, 50, 100], [50, 100, 25], [100, 0, 50]]], dtype)
    decoder = Decoder(("blue", "red"), scaling=Stretch((0, 25), (100, 75)), nodata="none")
    decoded = decoder.read(item_of(raster(tmp_path / "x.tif", pixels)))
    assert decoded.image.tolist() == [[[255, 0], [64, 128], [128, 255]]]


def test_tone_curve(tmp_path: Path) -> None:
    pixels = np.array([[0, 250, 500, 1000, 1200]], np.uint16)
    decoder = Decoder(("gray",), scaling=Stretch((0,), (1000,), gamma=2.0), nodata="none")
    expected = [0, 255 * 0.25**0.5, 255 * 0.5**0.5, 255, 255]
    found = decoder.read(item_of(raster(tmp_path / "x.tif", pixels))).image[0, :, 0]
    assert found.tolist() == [int(value + 0.5) for value in expected]


def test_bands_are_chosen_by_name_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = noise(4, 5, 4)
    described = item_of(raster(tmp_path / "described.tif", pixels, RGBN))
    plain = item_of(raster(tmp_path / "plain.tif", pixels))
    for bands in (("nir", "red"), ("green",), RGBN, tuple(reversed(RGBN))):
        expected = pixels[..., [RGBN.index(band) for band in bands]] >> 8
        for item, named in ((described, None), (plain, RGBN)):
            decoded = Decoder(bands, file_bands=named, scaling="shift8").read(item)
            assert np.array_equal(decoded.image, expected)


def test_missing_band_is_named(tmp_path: Path) -> None:
    item = item_of(picture(tmp_path / "x.png", noise(4, 5, 3, dtype="uint8")))
    message = fault_of(lambda: Decoder(("nir", "red", "swir1")).read(item))
    assert message.startswith(f"{item.image}: has no band nir, swir1, found red, green, blue; set data.bands")
    assert "has no band qa" in fault_of(lambda: Decoder(RGB, nodata="band:qa").read(item))


def test_one_file_a_band(tmp_path: Path) -> None:
    pixels = noise(4, 5, 4)
    pixels[1, 2, 3] = 0
    files = tuple(raster(tmp_path / f"{band}.tif", pixels[..., i]) for i, band in enumerate(RGBN))
    item = Item("x", files)
    decoded = Decoder(("nir", "green"), file_bands=RGBN, scaling="shift8").read(item)
    assert np.array_equal(decoded.image, pixels[..., [3, 1]] >> 8)
    masked = Decoder(("green",), file_bands=RGBN, scaling="shift8", nodata="band:nir").read(item)
    assert np.argwhere(~masked.valid).tolist() == [[1, 2]]
    files[0].unlink()  # a band that is not asked for may be missing
    assert np.array_equal(Decoder(("blue",), RGBN, "shift8").read(item).image[..., 0], pixels[..., 2] >> 8)
    message = fault_of(lambda: Decoder(("blue", "red"), RGBN, "shift8").read(item))
    assert message == f"{files[0]}: does not exist, so the band red of x is missing"


def test_no_data_of_a_file_a_band_is_that_of_any_band(tmp_path: Path) -> None:
    pixels = noise(4, 5, 2)
    pixels[0, 1, 0] = pixels[2, 3, 1] = 7
    files = tuple(raster(tmp_path / f"{i}.tif", pixels[..., i], nodata=7) for i in range(2))
    decoded = Decoder(("a", "b"), ("a", "b"), "shift8").read(Item("x", files))
    assert np.argwhere(~decoded.valid).tolist() == [[0, 1], [2, 3]]


def test_bands_of_another_size_are_refused(tmp_path: Path) -> None:
    files = raster(tmp_path / "a.tif", noise(4, 5)), raster(tmp_path / "b.tif", noise(8, 10))
    message = fault_of(lambda: Decoder(("a", "b"), ("a", "b"), "shift8").read(Item("x", files)))
    assert message.startswith(f"{files[0]}: found bands of 5x4, 10x8 pixels, expected one size")
    assert Decoder(("b",), ("a", "b"), "shift8").read(Item("x", files)).valid.shape == (8, 10)


def test_label_of_another_size(tmp_path: Path) -> None:
    """The label must fit the file, not what is left of it without its margin."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 1:5] = 9
    label = picture(tmp_path / "l.png", np.zeros((4, 4), np.uint8))
    item = Item("x", (picture(tmp_path / "x.png", pixels),), label)
    message = fault_of(lambda: Decoder(RGB, nodata="all_zero").read(item))
    assert message == f"{label}: found 4x4 pixels, expected 6x4 as in {item.image}"


def test_bands_that_are_not_used_say_nothing_about_data(tmp_path: Path) -> None:
    pixels = np.maximum(noise(4, 5, 4), 10)
    pixels[..., 3] = 9
    item = item_of(raster(tmp_path / "x.tif", pixels, RGBN, nodata=9))
    assert Decoder(RGB, scaling="shift8").read(item).valid.all()
    assert not Decoder(RGBN, scaling="shift8").read(item).valid.any()


def test_number_of_band_files_is_that_of_the_names(tmp_path: Path) -> None:
    files = tuple(raster(tmp_path / f"{band}.tif", noise(4, 5)) for band in RGB)
    message = fault_of(lambda: Decoder(RGB, RGBN, "shift8").read(Item("x", files)))
    assert "found 3 files of bands, expected 4" in message

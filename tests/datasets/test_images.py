"""The images of a domain: bands and scaling as told, no data nowhere counted, and every fault named at once."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datasets import images
from datasets.cache import Cache
from datasets.files import Item, Window
from datasets.images import (
    Decoded,
    Decoder,
    ImageSet,
    Stretch,
    checked,
    corners,
    has_8_bits,
    in_parallel,
    matched_stretch,
    measured_stretch,
    recorded_scaling,
    tiles,
)
from datasets.readers import find_images
from utils.errors import DataError
from utils.labels import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
Make = Callable[..., Path]
RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")
few = settings(max_examples=60, deadline=None)


def raster(path: Path, pixels: np.ndarray, names: Sequence[str] = (), **options: Any) -> Path:
    """Write (H, W, C) as a GeoTIFF."""
    pixels = np.atleast_3d(pixels)
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
        file.write(pixels.transpose(2, 0, 1))
        if names:
            file.descriptions = names
    return path


def picture(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, 3) red first, or (H, W), as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    """Values without 0."""
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1000
    return np.random.default_rng(0).integers(1, top, shape).astype(dtype)


def item_of(path: Path, **more: Any) -> Item:
    return Item(path.stem, (path,), **more)


def fault_of(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    return str(caught.value)


# no data


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
        0: [(0, 0), (1, 1)],
        9.0: [(3, 3)],
        "band:qa": [(0, 0), (2, 2)],
    }
    for rule, expected in holes.items():
        _, valid = Decoder(("red", "green"), nodata=rule).native(item)
        assert list(zip(*np.nonzero(~valid), strict=True)) == expected, rule


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
    pixels[1, 2] = (0, 7, 7)
    label = picture(tmp_path / "l.png", np.full((4, 5), 255, np.uint8))
    item = Item("x", (picture(tmp_path / "x.png", pixels),), label)
    decoded = Decoder(RGB, nodata=0).read(item)
    assert decoded.label is not None and np.argwhere(~decoded.valid).tolist() == [[1, 2]]
    assert decoded.image[1, 2].tolist() == [0, 0, 0] and (decoded.image[decoded.valid] == 200).all()
    assert decoded.label[1, 2] == IGNORE and (decoded.label[decoded.valid] == 1).all()
    decoder = Decoder(RGB, nodata=0)
    bare = decoder.labelled(decoder.image(item), decoder.label(item), item, masked=False)
    assert bare.label is not None and (bare.label == 1).all()


# scaling


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


# bands


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


# margins without data


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
    for one, two in zip(first.raster, second.raster, strict=True):
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


def test_label_of_another_size(tmp_path: Path) -> None:
    """The label must fit the file, not what is left of it without its margin."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 1:5] = 9
    label = picture(tmp_path / "l.png", np.zeros((4, 4), np.uint8))
    item = Item("x", (picture(tmp_path / "x.png", pixels),), label)
    message = fault_of(lambda: Decoder(RGB, nodata="all_zero").read(item))
    assert message == f"{label}: found 4x4 pixels, expected 6x4 as in {item.image}"


# the measured scaling


def test_measured_stretch_is_that_of_numpy_on_valid_pixels_alone(tmp_path: Path) -> None:
    arrays = [noise(30, 40, 2) // (i + 1) for i in range(3)]
    for array in arrays:
        array[:10] = 0  # no data, which would pull every lower percentile to 0
    items = [item_of(raster(tmp_path / f"{i}.tif", a, ("a", "b"), nodata=0)) for i, a in enumerate(arrays)]
    measured = measured_stretch(items, Decoder(("b", "a")))
    values = np.concatenate([array[10:].reshape(-1, 2)[:, ::-1] for array in arrays])
    low, high = np.percentile(values.astype(float), (0.5, 99.5), axis=0)
    assert measured.low == pytest.approx(low) and measured.high == pytest.approx(high)
    assert min(measured.low) > 0 and measured.low[0] != measured.low[1]


def test_measured_stretch_of_many_large_images_is_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "STRETCH_IMAGES", 2)
    monkeypatch.setattr(images, "STRETCH_PIXELS", 500)
    items = [item_of(raster(tmp_path / f"{i}.tif", noise(60, 70) // 4)) for i in range(5)]
    measured = measured_stretch(items, Decoder(("gray",)))
    low, high = np.percentile(noise(60, 70) // 4, (0.5, 99.5))
    assert measured.low[0] == pytest.approx(low, abs=400) and measured.high[0] == pytest.approx(high, abs=400)


def test_measured_stretch_of_one_value_and_of_none(tmp_path: Path) -> None:
    flat = item_of(raster(tmp_path / "flat.tif", np.full((4, 5), 70, np.uint16)))
    assert measured_stretch([flat], Decoder(("gray",))) == Stretch((70.0,), (71.0,), dtype="uint16")
    empty = item_of(raster(tmp_path / "empty.tif", np.zeros((4, 5), np.uint16)))
    message = fault_of(lambda: measured_stretch([empty], Decoder(("gray",), nodata=0)))
    assert message.startswith(f"{empty.image}: neither it nor the other training images hold a valid pixel")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_matched_domain_has_mean_and_deviation_of_the_other(tmp_path: Path, dtype: str) -> None:
    """Band by band, without what holds no data, and whatever its values are stored in."""
    rng, unit = np.random.default_rng(0), {"uint8": 1, "uint16": 200, "float32": 0.004}[dtype]
    dark = [(rng.integers(20, (80, 120), (30, 40, 2)) * unit).astype(dtype) for _ in range(2)]
    bright = [rng.integers(90, (170, 220), (20, 30, 2)).astype(np.uint8) for _ in range(3)]
    for array in dark:
        array[:10] = 0
    names = ("a", "b")
    items = [item_of(raster(tmp_path / f"d{i}.tif", a, names, nodata=0)) for i, a in enumerate(dark)]
    others = [item_of(raster(tmp_path / f"b{i}.tif", a, names)) for i, a in enumerate(bright)]
    decoder = Decoder(names)
    stretch = matched_stretch(items, decoder, others, decoder)
    assert stretch.dtype == dtype and stretch.gamma == 1
    decoded = [replace(decoder, scaling=stretch).read(item) for item in items]
    seen = np.concatenate([d.image[d.valid] for d in decoded]).astype(float)
    wanted = np.concatenate([a.reshape(-1, 2) for a in bright]).astype(float)
    np.testing.assert_allclose(seen.mean(0), wanted.mean(0), atol=0.5)
    np.testing.assert_allclose(seen.std(0), wanted.std(0), rtol=0.02)


def test_matched_stretch_by_hand(tmp_path: Path) -> None:
    """Mean 50 and deviation 10 become 100 and 20: twice the value, so 0 and 255 lie at 0 and 127.5."""
    dark = item_of(raster(tmp_path / "dark.tif", np.array([[40, 60]], np.uint8)))
    bright = item_of(raster(tmp_path / "bright.tif", np.array([[80, 120]], np.uint8)))
    decoder = Decoder(("gray",))
    stretch = matched_stretch([dark], decoder, [bright], decoder)
    assert stretch.low == pytest.approx([0]) and stretch.high == pytest.approx([127.5])
    same = matched_stretch([dark], decoder, [dark], decoder)
    assert same.low == pytest.approx([0]) and same.high == pytest.approx([255])


def test_matched_stretch_follows_the_other_s_own_scaling(tmp_path: Path) -> None:
    deep = item_of(raster(tmp_path / "deep.tif", np.array([[8000, 12000]], np.uint16)))
    item = item_of(raster(tmp_path / "x.tif", np.array([[40, 60]], np.uint8)))
    decoder = Decoder(("gray",))
    scaled = replace(decoder, scaling=Stretch((0.0,), (25500.0,)))
    stretch = matched_stretch([item], decoder, [deep], scaled)
    assert stretch.low == pytest.approx([0]) and stretch.high == pytest.approx([127.5])


def test_matched_stretch_before_a_tone_curve_by_hand(tmp_path: Path) -> None:
    """With gamma 2, levels 102 and 204 are 0.16 and 0.64 before the curve, as 1000 and 4000 are between 0 and 6250."""
    deep = item_of(raster(tmp_path / "deep.tif", np.array([[1000, 4000]], np.uint16)))
    seen = item_of(raster(tmp_path / "seen.tif", np.array([[102, 204]], np.uint8)))
    decoder = Decoder(("gray",))
    stretch = matched_stretch([deep], decoder, [seen], decoder, 2.0)
    assert stretch.low == pytest.approx([0], abs=1e-9) and stretch.high == pytest.approx([6250]) and stretch.gamma == 2
    assert replace(decoder, scaling=stretch).read(deep).image[..., 0].tolist() == [[102, 204]]


@pytest.mark.parametrize("levels", [(70, 90), (70, 70)])
def test_a_band_of_one_value_is_matched_to_the_other_s_mean(tmp_path: Path, levels: tuple[int, int]) -> None:
    flat = item_of(raster(tmp_path / "flat.tif", np.full((4, 5), 7000, np.uint16)))
    other = item_of(raster(tmp_path / "other.tif", np.array([levels], np.uint8)))
    decoder = Decoder(("gray",))
    stretch = matched_stretch([flat], decoder, [other], decoder)
    assert recorded_scaling(list(stretch), 1) == stretch
    seen = replace(decoder, scaling=stretch).read(flat).image
    assert np.unique(seen).tolist() == [sum(levels) // 2]


def test_measured_stretch_leaves_damaged_files_to_the_check(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0")
    bad, good = item_of(tmp_path / "bad.tif"), item_of(raster(tmp_path / "x.tif", noise(4, 5)))
    decoder = Decoder(("gray",))
    assert measured_stretch([bad, good], decoder) == measured_stretch([good], decoder)
    assert not has_8_bits([bad, good], decoder)
    assert has_8_bits([item_of(raster(tmp_path / "y.tif", noise(4, 5, dtype="uint8"))), good], decoder)


# the check


@pytest.mark.parametrize("cached", [False, True])
def test_check_names_all_bad_files_at_once(tmp_path: Path, make_domain: Make, cached: bool) -> None:
    root = make_domain(tmp_path / "domain", count=5)
    picture(root / "labels/scene_00.png", np.zeros((8, 8), np.uint8))
    picture(root / "labels/scene_01.png", np.full((40, 48), 9, np.uint8))
    (root / "images/scene_02.png").write_bytes((root / "images/scene_02.png").read_bytes()[:-30])
    picture(root / "images/scene_03.png", np.zeros((40, 48), np.uint8))
    cache = Cache(tmp_path / "cache") if cached else None
    message = fault_of(lambda: checked(find_images(root, labels=True).items, Decoder(RGB), "source", cache))
    lines = message.splitlines()
    assert lines[0] == "source has 4 fault(s); mend or remove these files:"
    assert len(lines) == 5 and "scene_04" not in message
    wanted = {
        "images/scene_02.png": "cannot be decoded",
        "images/scene_03.png": "has no band red, green, blue, found gray",
        "labels/scene_00.png": "found 8x8 pixels, expected 48x40",
        "labels/scene_01.png": "found label value(s) 9",
    }
    for line, (name, text) in zip(lines[1:], wanted.items(), strict=True):  # sorted by file
        assert line.strip().startswith(f"{root / name}: ") and text in line


@pytest.mark.parametrize("cached", [False, True])
def test_check_leaves_images_without_data_out(
    tmp_path: Path, make_domain: Make, capsys: pytest.CaptureFixture[str], cached: bool
) -> None:
    root = make_domain(tmp_path / "domain", count=4)
    picture(root / "images/scene_02.png", np.zeros((40, 48, 3), np.uint8))
    cache = Cache(tmp_path / "cache") if cached else None
    decoder = Decoder(RGB, nodata="all_zero")
    found = checked(find_images(root, labels=True).items, decoder, "source", cache)
    assert [item.name for item in found] == ["scene_00", "scene_01", "scene_03"]
    assert capsys.readouterr().out == "source: 1 of 4 images hold no data and are left out\n"
    alone = find_images(root, labels=False).items[2:3]
    message = fault_of(lambda: checked(alone, decoder, "target", cache))
    assert message == "target: none of its 1 image(s) holds a pixel of data; see the domain's nodata"


def test_check_gives_the_same_images_with_and_without_cache(tmp_path: Path, make_domain: Make) -> None:
    items = find_images(make_domain(tmp_path / "domain"), labels=True).items
    decoder, cache = Decoder(RGB), Cache(tmp_path / "cache")
    plain, first, second = (checked(items, decoder, "source", c) for c in (None, cache, cache))
    assert plain.items == first.items == second.items == tuple(items)
    for item in items:
        for masked in (False, True):
            one, two, three = (found.read(item, masked=masked) for found in (plain, first, second))
            for layer in ("image", "label", "valid"):
                assert np.array_equal(getattr(one, layer), getattr(two, layer))
                assert np.array_equal(getattr(one, layer), getattr(three, layer))
            assert one[3:] == two[3:] == three[3:]


def test_image_set_is_chosen_by_name_and_given_other_labels(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path / "domain", count=3)
    found = checked(find_images(root, labels=False).items, Decoder(RGB), "target")
    chosen = found.only(["scene_02", "scene_00"], Path("easy.txt"))
    assert isinstance(chosen, ImageSet) and [item.name for item in chosen] == ["scene_00", "scene_02"]
    message = fault_of(lambda: found.only(["scene_00", "gone", "lost"], Path("easy.txt")))
    assert message == "easy.txt: names 2 image(s) that are no longer there, such as 'gone'; restore them"
    assert fault_of(lambda: found.only([], Path("easy.txt"))).startswith("easy.txt: names no image")
    for i in (0, 2):
        picture(tmp_path / f"masks/scene_0{i}.png", np.full((40, 48), i, np.uint8))
    labelled = chosen.with_labels(tmp_path / "masks", {0: 0, 2: 1})
    labels = [labelled.read(item).label for item in labelled]
    assert [None if label is None else np.unique(label).tolist() for label in labels] == [[0], [1]]


# tiles


def sized(folder: Path, height: int, width: int) -> Item:
    """Row and column of every pixel in the image; their sum, halved, decides the label."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, np.full_like(rows, 9)], -1).astype(np.uint8)
    label = ((rows // 3 + columns // 5) % 2 * 255).astype(np.uint8)
    name = f"{height}x{width}"
    return Item(name, (picture(folder / f"{name}.png", pixels),), picture(folder / f"l/{name}.png", label))


@few
@given(st.integers(1, 3000), st.integers(1, 600))
def test_corners_cover_evenly_with_as_few_as_possible(length: int, side: int) -> None:
    found = corners(length, side)
    assert found[0] == 0 and len(found) == -(-length // side)
    assert found[-1] + min(side, length) == length
    steps = np.diff(found)
    assert (steps >= 1).all() and (steps <= side).all()
    assert not len(steps) or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    ("length", "side", "expected"),
    [(10, 10, [0]), (3, 10, [0]), (11, 10, [0, 1]), (20, 10, [0, 10]), (1280, 512, [0, 384, 768]), (7, 3, [0, 2, 4])],
)
def test_corners_by_hand(length: int, side: int, expected: list[int]) -> None:
    assert corners(length, side) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(6, 25))
def test_tiles_cover_every_pixel_and_move_image_and_label_together(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, side: int
) -> None:
    item = sized(tmp_path_factory.mktemp("tiles"), height, width)
    cut = tiles(item, Decoder(RGB).read(item), side)
    if max(height, width) <= side:
        assert cut == [item]
        return
    assert len({tile.name for tile in cut}) == len(cut) == -(-height // side) * -(-width // side)
    seen = np.zeros((height, width), int)
    for tile in cut:
        decoded = Decoder(RGB).read(tile)
        assert decoded.label is not None and tile.scene == item.name and tile.window == tile.label_window
        assert decoded.label.shape == (min(side, height), min(side, width))
        rows, columns = decoded.image[..., 0].astype(int), decoded.image[..., 1].astype(int)
        assert tile.name == f"{item.name}_{rows[0, 0]:05d}_{columns[0, 0]:05d}"
        assert np.array_equal(decoded.label, (rows // 3 + columns // 5) % 2)
        seen[rows, columns] += 1
    assert seen.min() >= 1


def test_tiles_keep_scene_and_files_and_leave_out_what_holds_no_data(tmp_path: Path) -> None:
    layers = [noise(20, 30) for _ in RGB]
    for layer in layers:
        layer[:, 14:] = 0
        layer[-1, -1] = 9  # one pixel at the far corner: the part with data is all of it
    files = tuple(raster(tmp_path / f"{band}.tif", layer) for band, layer in zip(RGB, layers, strict=True))
    decoder = Decoder(RGB, RGB, "shift8", "all_zero")
    item = Item("x", files, scene="s")
    cut = tiles(item, decoder.read(item), 16)
    assert [tile.window for tile in cut] == [Window(0, 0, 16, 16), Window(4, 0, 16, 16), Window(4, 14, 16, 16)]
    assert {tile.scene for tile in cut} == {"s"} and all(tile.files == files for tile in cut)


def test_a_margin_does_not_move_the_tiles(tmp_path: Path) -> None:
    pixels = np.maximum(noise(20, 30, 3), 1)
    plain = Item("x", (raster(tmp_path / "plain.tif", pixels),))
    padded = Item("x", (raster(tmp_path / "padded.tif", np.pad(pixels, ((5, 1), (3, 9), (0, 0)))),))
    decoder = Decoder(RGB, RGB, "shift8", "all_zero")
    first, second = (checked([item], decoder, "source", tile=16) for item in (plain, padded))
    assert [item.name for item in first] == [item.name for item in second] and len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(first.read(one).image, second.read(other).image)


@pytest.mark.parametrize("cached", [False, True])
def test_files_of_another_size_are_named_before_anything_is_cut(tmp_path: Path, cached: bool) -> None:
    item, other = sized(tmp_path, 40, 40), sized(tmp_path, 44, 44)
    cache = Cache(tmp_path / "cache") if cached else None
    message = fault_of(lambda: checked([item._replace(label=other.label)], Decoder(RGB), "source", cache, tile=16))
    assert "found 44x44 pixels, expected 40x40" in message


def test_tiles_whose_names_collide_are_refused(tmp_path: Path) -> None:
    tall = sized(tmp_path, 40, 10)._replace(name="a")
    twin = sized(tmp_path, 8, 8)._replace(name="a_00000_00000")
    message = fault_of(lambda: checked([tall, twin], Decoder(RGB), "source", tile=20))
    assert "has the name 'a_00000_00000'" in message and "must be unique" in message


def test_unreadable_images_are_named_when_others_are_cut(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad, gone = item_of(tmp_path / "bad.png"), item_of(tmp_path / "gone.png")
    message = fault_of(lambda: checked([sized(tmp_path, 40, 40), bad, gone], Decoder(RGB), "source", tile=16))
    assert "source has 2 fault(s)" in message and str(bad.image) in message and str(gone.image) in message


def test_another_type_than_the_scaling_was_measured_on_is_named(tmp_path: Path) -> None:
    deep = [item_of(raster(tmp_path / f"{i}.tif", noise(4, 5))) for i in range(3)]
    flat = item_of(raster(tmp_path / "flat.tif", noise(4, 5, dtype="uint8")))
    decoder = Decoder(("gray",))
    decoder = replace(decoder, scaling=measured_stretch(deep, decoder))
    message = fault_of(lambda: checked([*deep, flat], decoder, "source"))
    assert "1 fault(s)" in message and f"{flat.image}: found uint8 pixels, expected uint16" in message


def test_bands_that_are_not_used_say_nothing_about_data(tmp_path: Path) -> None:
    pixels = np.maximum(noise(4, 5, 4), 1)
    pixels[..., 3] = 0
    item = item_of(raster(tmp_path / "x.tif", pixels, RGBN, nodata=0))
    assert Decoder(RGB, scaling="shift8").read(item).valid.all()
    assert not Decoder(RGBN, scaling="shift8").read(item).valid.any()


def test_number_of_band_files_is_that_of_the_names(tmp_path: Path) -> None:
    files = tuple(raster(tmp_path / f"{band}.tif", noise(4, 5)) for band in RGB)
    message = fault_of(lambda: Decoder(RGB, RGBN, "shift8").read(Item("x", files)))
    assert "found 3 files of bands, expected 4" in message


# several at a time


def test_in_parallel_keeps_the_order_and_reads_a_bounded_number_ahead() -> None:
    items = [Item(str(i), (Path(str(i)),)) for i in range(3 * images.PARALLEL)]
    started, both = [], threading.Barrier(2)

    def look(item: Item) -> str:
        started.append(item.name)
        if int(item.name) < 2:
            both.wait(timeout=20)  # two at a time, or this ends in an error
        return item.name

    results = in_parallel(look, items, "looking")
    assert next(results) == "0"
    assert len(started) <= images.PARALLEL
    assert ["0", *results] == [item.name for item in items]


@pytest.mark.parametrize("value", [None, "shift8"])
def test_recorded_scalings_without_numbers(value: str | None) -> None:
    assert recorded_scaling(value, 3) == value


def test_recorded_scaling_is_the_stretch_that_was_written() -> None:
    stretch = Stretch((0.0, 1.0), (2.0, 3.0), 2.2, "int16")
    assert recorded_scaling(json.loads(json.dumps(stretch)), 2) == stretch
    assert recorded_scaling([[0, 1], [2, 3]], 2) == Stretch((0.0, 1.0), (2.0, 3.0))


@pytest.mark.parametrize(
    "value",
    [
        *(1, "shift9", [], {}, [[0, 0]], [[0, 0], [1]], [[0], [1]], [[0, 0], [1, 0]], [[0, 0], [1, math.inf]]),
        *([[0, 0], [1, math.nan]], [[0, 0], [1, 1e300]], [[0, "a"], [1, 1]], [[0, 0], [1, 1], 0], [None, None]),
        *([[0, 0], [1, 1], "a"], [[0, 0], [1, 1], 1, "int64"], [[0, 0], [1, 1], 1, None, 1]),
    ],
)
def test_recorded_scaling_of_no_meaning(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        recorded_scaling(value, 2)

"""What values say of an image: fill that nobody declared, units, and Sentinel-2's offset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from datasets.decoder import Decoder
from datasets.files import Item
from datasets.images import checked
from datasets.measured_scaling import has_8_bits, matched_stretch, measured_stretch
from datasets.scaling import Stretch
from datasets.values import Values, grouped, shift_between
from tests.datasets.written import fault_of, item_of, raster
from utils.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = ("red", "green", "blue")
GRAY = Decoder(("gray",))


def tagged(path: Path, pixels: np.ndarray, scale: float, offset: float, **options: object) -> Item:
    raster(path, pixels, **options)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [scale] * file.count, [offset] * file.count
    return item_of(path)


def seen(decoder: Decoder, item: Item) -> Values:
    values = Values(decoder)
    stored = decoder.stored(item)
    for part in (slice(0, 7), slice(7, None)):  # as a scene comes in pieces
        piece = stored._replace(pixels=stored.pixels[part], mask=stored.mask[part])
        values.add(piece, decoder.values(piece))
    return values


@pytest.mark.parametrize(
    ("fill", "dtype"), [(-9999, "int16"), (-32768, "int16"), (65535, "uint16"), (-9999, "float32")]
)
def test_undeclared_fill_is_told_and_ruins_no_scaling(tmp_path: Path, fill: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(200, 9000, (40, 50)).astype(dtype) / (1 if dtype != "float32" else np.float32(9000))
    clean = item_of(raster(tmp_path / "clean.tif", pixels))
    holes = pixels.copy()
    holes.ravel()[rng.choice(2000, 20, replace=False)] = fill
    spoilt = item_of(raster(tmp_path / "spoilt.tif", holes))
    values = seen(GRAY, spoilt)
    assert values.fills == [fill] and min(values.range[0]) >= pixels.min() and max(values.range[1]) <= pixels.max()
    told = f"pixels hold {fill}, far from all other values, and count as data; set the domain's nodata (1.00% of them)"
    assert told in values.notes() and not seen(GRAY, clean).fills
    other = replace(GRAY, scaling=measured_stretch([clean], GRAY))
    for measured in (measured_stretch, lambda items, of: matched_stretch(items, of, [clean], other)):
        expected, found = (measured([item], GRAY) for item in (clean, spoilt))
        whole = expected.high[0] - expected.low[0]
        assert abs(found.low[0] - expected.low[0]) + abs(found.high[0] - expected.high[0]) < 0.02 * whole
    assert not seen(replace(GRAY, nodata=fill), spoilt).notes()


def test_saturated_values_are_values(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(200, 65536, (40, 50)).astype(np.uint16)
    pixels[:4] = 65535
    values = seen(GRAY, item_of(raster(tmp_path / "x.tif", pixels)))
    assert not values.fills and values.range[1] == (65535,) and not values.notes()


def test_nothing_but_fill_and_a_band_of_one_value(tmp_path: Path) -> None:
    full = seen(GRAY, item_of(raster(tmp_path / "full.tif", np.full((9, 9), 65535, np.uint16))))
    assert full.fills == [65535] and "65535" in full.notes()[0] and full.range == ((), ()) == (full.dark, full.dark)
    pixels = np.random.default_rng(0).integers(1, 255, (9, 9, 3)).astype(np.uint8)
    pixels[..., 1] = 7
    flat = seen(Decoder(RGB), item_of(raster(tmp_path / "flat.tif", pixels)))
    assert flat.notes() == ["a band has one value at every pixel, expected many; is the file whole? (green 7)"]


def test_tags_of_scale_and_offset_make_the_values(tmp_path: Path) -> None:
    """And no-data rules see what is stored; what a domain gives is for files without tags."""
    pixels = np.random.default_rng(0).integers(1100, 9000, (20, 30, 3)).astype(np.uint16)
    pixels[2, 3] = 0
    item = tagged(tmp_path / "x.tif", pixels, 1e-4, -0.1, nodata=0)
    plain = item_of(raster(tmp_path / "plain.tif", pixels, nodata=0))
    for decoder, of in (
        (Decoder(RGB), item),
        (Decoder(RGB, nodata=0), item),
        (Decoder(RGB, scale=5.0, offset=7.0), item),
        (Decoder(RGB, scale=1e-4, offset=-0.1), plain),
    ):
        values, valid = decoder.native(of)
        assert values.dtype == np.float32 and np.argwhere(~valid).tolist() == [[2, 3]]
        np.testing.assert_allclose(values, pixels * 1e-4 - 0.1, atol=1e-6)
    assert Decoder(RGB).native(plain)[0].dtype == np.uint16
    assert not has_8_bits([item], Decoder(RGB)) and measured_stretch([item], Decoder(RGB)).dtype == "float32"
    files = tuple(tagged(tmp_path / f"{band}.tif", pixels[..., i], 1e-4, -0.1).files[0] for i, band in enumerate(RGB))
    values, _ = Decoder(RGB, RGB).native(Item("y", files))
    np.testing.assert_allclose(values, pixels * 1e-4 - 0.1, atol=1e-6)
    for scale, offset in ((0.0, 1.0), (float("nan"), 0.0), (1.0, float("inf"))):
        bad = tagged(tmp_path / "bad.tif", pixels, scale, offset)
        assert "found the tags scale" in fault_of(lambda bad=bad: Decoder(RGB).native(bad))  # type: ignore[misc]


def test_types_are_compared_unless_the_unit_is_given(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1100, 9000, (20, 30, 3)).astype(np.uint16)
    plain, item = item_of(raster(tmp_path / "p.tif", pixels)), tagged(tmp_path / "x.tif", pixels, 1e-4, -0.1)
    deep = Decoder(RGB, scaling=Stretch((0.0,) * 3, (9000.0,) * 3, dtype="uint16"))
    assert deep.read(plain).valid.all()
    assert "found float32 pixels, expected uint16" in fault_of(lambda: deep.read(item))
    moved = replace(deep, offset=-1000.0).read(plain).image
    np.testing.assert_allclose(moved, (pixels - 1000.0) / 9000 * 255, atol=0.51)
    unit = Decoder(RGB, scaling=Stretch((0.0,) * 3, (0.9,) * 3, dtype="float32"))
    assert np.abs(unit.read(item).image.astype(int) - moved).max() <= 1
    assert "found uint16 pixels, expected float32" in fault_of(lambda: unit.read(plain))
    assert np.array_equal(replace(unit, scale=1e-4, offset=-0.1).read(plain).image, unit.read(item).image)


def test_images_in_another_unit_are_refused_before_training(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1100, 9000, (20, 30, 3)).astype(np.uint16)
    item = item_of(raster(tmp_path / "x.tif", pixels))
    unit = Decoder(RGB, scaling=Stretch((0.0,) * 3, (1.0,) * 3))
    assert seen(unit, item).outside_share == 1 and "100.0% of them" in seen(unit, item).notes()[1]
    with pytest.raises(DataError, match="target: most values lie outside the range 0 to 1 that the scaling"):
        checked([item], unit, "target")
    assert len(checked([item], replace(unit, scale=1e-4), "target")) == 1


def test_a_constant_of_all_bands_is_recognised() -> None:
    dark = (300.0, 500.0, 200.0)
    assert shift_between([1310, 1490, 1205], dark) == 1000 and shift_between(dark, [1310, 1490, 1205]) == -1000
    assert shift_between(dark, dark) is None and shift_between([1300, 1500, 500], dark) is None
    assert shift_between([0.12, 0.13], [0.02, 0.04]) == pytest.approx(0.1)
    assert shift_between([2300, 2500, 2200], dark) is None


def test_notes_are_said_once() -> None:
    notes = [("a", "x; mend (1 %)"), ("b", "x; mend (2 %)"), ("a", "y")]
    assert grouped(notes) == ["a: x; mend (1 %), and so 1 more: b", "a: y"]
    many = grouped([(str(i), "x") for i in range(30)])
    assert many == [f"0: x, and so 29 more: {', '.join(map(str, range(1, 21)))}, ..."]

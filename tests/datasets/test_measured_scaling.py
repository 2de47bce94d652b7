"""Scalings that are measured on the images of a domain, or matched to those of another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets import measured_scaling
from datasets.decoder import Decoder
from datasets.measured_scaling import has_8_bits, matched_stretch, measured_stretch
from datasets.scaling import Stretch, recorded_scaling
from tests.datasets.written import fault_of, item_of, noise, raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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
    monkeypatch.setattr(measured_scaling, "STRETCH_IMAGES", 2)
    monkeypatch.setattr(measured_scaling, "STRETCH_PIXELS", 500)
    items = [item_of(raster(tmp_path / f"{i}.tif", noise(60, 70) // 4)) for i in range(5)]
    measured = measured_stretch(items, Decoder(("gray",)))
    low, high = np.percentile(noise(60, 70) // 4, (0.5, 99.5))
    assert measured.low[0] == pytest.approx(low, abs=400) and measured.high[0] == pytest.approx(high, abs=400)


def test_measured_stretch_of_one_value_and_of_none(tmp_path: Path) -> None:
    flat = item_of(raster(tmp_path / "flat.tif", np.full((4, 5), 70, np.uint16)))
    assert measured_stretch([flat], Decoder(("gray",))) == Stretch((70.0,), (71.0,), dtype="uint16", dark=(70.0,))
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

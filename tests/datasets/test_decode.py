"""From files to bands and classes: every kind of file as it is meant, and what would be misread is refused by name."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from datasets.decode import read_bands, read_label, size_of
from datasets.files import Window
from utils.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
MAP = {0: 0, 255: 1}
RGBN = ("red", "green", "blue", "nir")
ALL = {value: value % 2 for value in range(256)}


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Values of every size that the type holds, without 0."""
    kind = np.dtype(dtype)
    top = 2**15 if kind.kind in "if" else np.iinfo(kind).max
    return np.random.default_rng(0).integers(1, top, shape).astype(kind)


def picture(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def raster(
    path: Path, pixels: np.ndarray, names: Sequence[str] = (), mask: np.ndarray | None = None, **options: Any
) -> Path:
    """Write (H, W, C) by GDAL."""
    pixels = np.atleast_3d(pixels)
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff", **shape, **options}) as file:
        file.write(pixels.transpose(2, 0, 1))
        if names:
            file.descriptions = names
        if mask is not None:
            file.write_mask(mask)
    return path


def fault_of(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    return str(caught.value)


# pictures


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_colours_come_in_the_order_red_green_blue(tmp_path: Path, suffix: str) -> None:
    rgb = noise(5, 7, 3)
    bands = read_bands(picture(tmp_path / f"x{suffix}", rgb))
    assert bands.names == ("red", "green", "blue") and bands.mask.all() and bands.mask.shape == (5, 7)
    assert bands.pixels.dtype == np.uint8 and np.array_equal(bands.pixels, rgb)


def test_jpeg_is_read_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    flat = np.full((16, 24, 3), (200, 90, 20), np.uint8)
    path = picture(tmp_path / "x.jpg", flat, quality=100).rename(tmp_path / "x.tif")
    bands = read_bands(path)
    assert bands.names == ("red", "green", "blue") and size_of(path) == (16, 24)
    assert np.abs(bands.pixels.astype(int) - flat).max() <= 3


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_gives_the_pixels_of_other_decoders(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    smooth = cv2.GaussianBlur(noise(37, 53, 3), (9, 9), 3)
    path = picture(tmp_path / "x.jpg", smooth, mode, **options)
    bands = read_bands(path)
    expected = np.asarray(Image.open(path)).reshape(37, 53, -1).astype(int)
    assert bands.names == (("red", "green", "blue") if mode == "RGB" else ("gray",))
    assert bands.pixels.dtype == np.uint8 and bands.mask.all() and bands.mask.shape == (37, 53)
    assert np.abs(bands.pixels - expected).max() <= 2


def test_alpha_is_a_mask_and_no_band(tmp_path: Path) -> None:
    rgba = noise(5, 7, 4)
    rgba[..., 3] = 255
    rgba[:2, :, 3] = 0
    bands = read_bands(picture(tmp_path / "x.png", rgba))
    assert bands.names == ("red", "green", "blue") and np.array_equal(bands.pixels, rgba[..., :3])
    assert np.array_equal(bands.mask, rgba[..., 3] > 0)


def test_alpha_is_data_where_four_bands_are_named(tmp_path: Path) -> None:
    rgba = noise(5, 7, 4)
    rgba[:2, :, 3] = 0
    bands = read_bands(picture(tmp_path / "x.png", rgba), RGBN)
    assert bands.names == RGBN and np.array_equal(bands.pixels, rgba) and bands.mask.all()


def test_16_bit_png_keeps_its_bits(tmp_path: Path) -> None:
    rgb = noise(5, 7, 3, dtype="uint16")
    assert cv2.imwrite(str(tmp_path / "x.png"), rgb[..., ::-1])
    bands = read_bands(tmp_path / "x.png")
    assert bands.pixels.dtype == np.uint16 and np.array_equal(bands.pixels, rgb)


def test_grey_is_one_band_of_any_name(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", noise(5, 7))
    bands = read_bands(path)
    assert bands.names == ("gray",) and np.array_equal(bands.pixels[..., 0], noise(5, 7))
    assert read_bands(path, ["pan"]).names == ("pan",)


def test_palette_gives_colours_to_an_image_and_indices_to_a_label(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    image.save(tmp_path / "x.png")
    colours = np.array([[10, 20, 30], [200, 100, 50], [7, 8, 9]], np.uint8)
    assert np.array_equal(read_bands(tmp_path / "x.png").pixels, colours[indices])
    assert read_label(tmp_path / "x.png", {0: 0, 1: 1, 2: 255}).tolist() == [[0, 1, 255], [255, 1, 0]]


def test_window_is_the_part_of_the_whole(tmp_path: Path) -> None:
    window, part = Window(1, 2, 3, 4), (slice(1, 4), slice(2, 6))
    rgba, wide = noise(6, 9, 4), noise(6, 9, 4, dtype="uint16")
    rgba[..., 3] = 255
    rgba[2, 3, 3] = 0
    wide[2, 3] = wide[2, 3, 0]
    for path in (picture(tmp_path / "x.png", rgba), raster(tmp_path / "x.tif", wide, RGBN, nodata=wide[2, 3, 0])):
        whole, cut = read_bands(path), read_bands(path, window=window)
        assert np.array_equal(cut.pixels, whole.pixels[part]) and cut.pixels.shape[:2] == (3, 4)
        assert np.array_equal(cut.mask, whole.mask[part]) and not cut.mask[1, 1] and cut.names == whole.names


# GeoTIFF


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", [None, "lzw", "deflate"])
def test_geotiff_of_four_bands_says_their_names(tmp_path: Path, interleave: str, compress: str | None) -> None:
    pixels = noise(33, 20, 4, dtype="uint16")
    names = ("Red", "green", "BLUE ", "nir")
    path = raster(tmp_path / "x.tif", pixels, names, interleave=interleave, compress=compress, blockysize=8)
    bands = read_bands(path)
    assert bands.names == RGBN and bands.mask.all() and size_of(path) == (33, 20)
    assert bands.pixels.dtype == np.uint16 and np.array_equal(bands.pixels, pixels)


def test_tiled_geotiff_is_read_whole_and_by_window(tmp_path: Path) -> None:
    pixels = noise(100, 70, 3, dtype="uint16")
    path = raster(tmp_path / "x.tif", pixels, tiled=True, blockxsize=32, blockysize=32)
    assert np.array_equal(read_bands(path).pixels, pixels)
    assert np.array_equal(read_bands(path, window=Window(30, 20, 40, 50)).pixels, pixels[30:70, 20:70])


@pytest.mark.parametrize(("count", "names"), [(1, ("gray",)), (3, ("red", "green", "blue"))])
def test_geotiff_without_descriptions(tmp_path: Path, count: int, names: tuple[str, ...]) -> None:
    assert read_bands(raster(tmp_path / "x.tif", noise(4, 5, count, dtype="uint16"))).names == names


def test_unnamed_bands_of_another_number_are_not_guessed(tmp_path: Path) -> None:
    path = raster(tmp_path / "x.tif", noise(4, 5, 4, dtype="uint16"))
    assert fault_of(lambda: read_bands(path)).startswith(f"{path}: found 4 bands without names; give the domain's")
    assert read_bands(path, RGBN).names == RGBN


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_geotiff_keeps_its_type(tmp_path: Path, dtype: str) -> None:
    bands = read_bands(raster(tmp_path / "x.tif", noise(4, 5, 3, dtype=dtype)))
    assert bands.pixels.dtype == dtype and np.array_equal(bands.pixels, noise(4, 5, 3, dtype=dtype))


def test_double_precision_becomes_single(tmp_path: Path) -> None:
    bands = read_bands(raster(tmp_path / "x.tif", np.array([[0.1, 1e5]])))
    assert bands.pixels.dtype == np.float32 and bands.pixels[0, :, 0].tolist() == pytest.approx([0.1, 1e5])


@pytest.mark.parametrize("dtype", ["uint32", "int32", "complex64"])
def test_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    path = raster(tmp_path / "x.tif", np.ones((4, 5), dtype))
    message = fault_of(lambda: read_bands(path))
    assert message == f"{path}: found {dtype} pixels, expected uint8, uint16, int16, float32"


def test_no_data_tag_is_a_mask_of_any_band(tmp_path: Path) -> None:
    pixels = noise(4, 5, 3, dtype="int16")
    pixels[0] = -9999
    pixels[1, 1, 2] = -9999
    assert np.array_equal(
        read_bands(raster(tmp_path / "x.tif", pixels, nodata=-9999)).mask, (pixels != -9999).all(axis=2)
    )
    assert read_bands(raster(tmp_path / "untagged.tif", pixels)).mask.all()


def test_nan_as_no_data_tag(tmp_path: Path) -> None:
    pixels = noise(4, 5, 3, dtype="float32")
    pixels[2, 3, 1] = np.nan
    bands = read_bands(raster(tmp_path / "x.tif", pixels, nodata=np.nan))
    assert np.array_equal(bands.pixels, pixels, equal_nan=True) and np.argwhere(~bands.mask).tolist() == [[2, 3]]


def test_mask_band_and_alpha_band_of_a_geotiff(tmp_path: Path) -> None:
    pixels, mask = noise(4, 5, 4), np.ones((4, 5), bool)
    mask[1:3, 2] = False
    pixels[..., 3] = np.where(mask, 255, 0)
    inner = read_bands(raster(tmp_path / "mask.tif", pixels[..., :3], mask=mask))
    alpha = read_bands(raster(tmp_path / "alpha.tif", pixels, photometric="rgb", alpha="yes"))
    for bands in (inner, alpha):
        assert bands.names == ("red", "green", "blue") and np.array_equal(bands.pixels, pixels[..., :3])
        assert np.array_equal(bands.mask, mask)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning")
def test_alpha_of_a_geotiff_is_data_where_it_has_a_name(tmp_path: Path) -> None:
    """GDAL takes the fourth of four 8-bit bands for alpha; the no-data tag beside it still holds."""
    pixels = noise(4, 5, 4)
    pixels[1, 1], pixels[2, 2, 3] = 0, 0
    plain = read_bands(raster(tmp_path / "x.tif", pixels), RGBN)
    assert plain.names == RGBN and np.array_equal(plain.pixels, pixels) and plain.mask.all()
    tagged = read_bands(raster(tmp_path / "y.tif", pixels, nodata=0), RGBN)
    assert np.array_equal(tagged.pixels, pixels) and np.array_equal(tagged.mask, (pixels != 0).any(axis=2))


@pytest.mark.parametrize("kind", ["nir.png", "nir.tif", "nir16.tif"])
def test_a_fourth_band_of_other_values_than_0_and_255_is_no_alpha(tmp_path: Path, kind: str) -> None:
    """As rasterio writes four 8-bit bands by default, near infrared is called alpha."""
    deep = "16" in kind
    pixels = noise(20, 30, 4, dtype="uint16" if deep else "uint8")
    pixels[3, 4, 3] = 0
    options = {"photometric": "rgb", "alpha": "yes"} if deep else {}
    path = raster(tmp_path / kind, pixels, **options) if "tif" in kind else picture(tmp_path / kind, pixels)
    top = 65535 if deep else 255
    message = fault_of(lambda: read_bands(path))
    assert f"in its alpha band, which nobody has named, expected 0 and {top} alone; if it holds data" in message
    assert message.endswith("give the domain's bands, in the order of the file")
    bands = read_bands(path, RGBN)
    assert np.array_equal(bands.pixels, pixels) and bands.mask.all()


# the order of bands


ORDERS = [
    {"names": ("Blue", "green", "red")},
    {"interp": ("blue", "green", "red")},
    {"names": ("blue", "", "")},
    {"names": ("blue", "green", "red"), "interp": ("red", "green", "blue")},
]


def ordered(path: Path, dtype: str, names: Sequence[str] = (), interp: Sequence[str] = ()) -> tuple[Path, np.ndarray]:
    pixels = noise(4, 5, 3, dtype=dtype)
    raster(path, pixels, names)
    with rasterio.open(path, "r+") as file:
        if interp:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in interp]
    return path, pixels


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("words", ORDERS)
def test_a_file_that_names_its_bands_is_not_read_in_another_order(tmp_path: Path, dtype: str, words: Any) -> None:
    path, pixels = ordered(tmp_path / "x.tif", dtype, **words)
    message = fault_of(lambda: read_bands(path, ("red", "green", "blue")))
    assert message.startswith(f"{path}: found the bands blue, ") and "expected red, green, blue; mend" in message
    if len([word for word in words.get("names", words.get("interp", ())) if word]) == 3:
        rgb = read_bands(path, wanted=("red", "green", "blue"))
        assert np.array_equal(rgb.pixels, pixels[..., ::-1]) and rgb.named
        same = read_bands(path, ("blue", "green", "red"), wanted=("red", "green", "blue"))
        assert np.array_equal(same.pixels, pixels[..., ::-1]) and same.named
    else:  # what is not named is not guessed against the one that is
        assert "found the bands blue, (no name), (no name) by the file" in fault_of(lambda: read_bands(path))


@pytest.mark.parametrize("names", [(), ("Band 1", "Band 2", "Band 3")])
@pytest.mark.parametrize("given", [("nir", "red", "green"), ("blue", "green", "red")])
def test_where_a_file_names_nothing_the_given_order_holds(tmp_path: Path, names: Any, given: tuple[str, ...]) -> None:
    """Red, green, blue of three 8-bit bands is what GDAL writes by default; that of 16 bits somebody has stated."""
    for dtype in ("uint8", "uint16"):
        path, pixels = ordered(tmp_path / f"{dtype}.tif", dtype, names)
        bands = read_bands(path, given)
        assert bands.names == given and not bands.named and np.array_equal(bands.pixels, pixels)
    stated, _ = ordered(tmp_path / "stated.tif", "uint16", interp=("red", "green", "blue"))
    assert "found the bands red, green, blue by the file itself" in fault_of(lambda: read_bands(stated, given))
    assert not read_bands(ordered(tmp_path / "deep.tif", "uint16")[0]).named  # taken for red, green, blue
    assert read_bands(ordered(tmp_path / "plain.tif", "uint8")[0]).named


def test_names_of_another_s_own_are_compared_too(tmp_path: Path) -> None:
    path, _ = ordered(tmp_path / "x.tif", "uint16", ("swir1", "swir2", "nir"))
    assert "found the bands swir1, swir2, nir" in fault_of(lambda: read_bands(path, ("swir2", "swir1", "nir")))
    assert read_bands(path, ("b5", "b6", "nir")).names == ("b5", "b6", "nir")


def test_a_picture_says_nothing_of_what_its_channels_hold(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", noise(5, 7, 3))
    given = read_bands(path, ("nir", "red", "green"))
    assert given.names == ("nir", "red", "green") and not given.named and read_bands(path).named


def test_envi_image_is_read(tmp_path: Path) -> None:
    pixels = noise(6, 5, dtype="uint8")
    path = raster(tmp_path / "x.img", pixels, driver="ENVI")
    assert np.array_equal(read_bands(path).pixels[..., 0], pixels) and size_of(path) == (6, 5)
    assert np.array_equal(read_label(path, ALL), pixels % 2)


# what would be misread


def test_wrong_number_of_bands(tmp_path: Path) -> None:
    files = {"x.png": noise(4, 5, 3), "grey.png": noise(4, 5), "x.tif": noise(4, 5, 5, dtype="uint16")}
    for name, pixels in files.items():
        path = tmp_path / name
        raster(path, pixels) if path.suffix == ".tif" else picture(path, pixels)
        found = np.atleast_3d(pixels).shape[2]
        message = fault_of(lambda path=path: read_bands(path, ("nir", "red")))  # type: ignore[misc]
        assert message == f"{path}: found {found} band(s), expected 2: nir, red"


def test_inks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("CMYK", (8, 8), (10, 20, 30, 40)).save(path)
    assert fault_of(lambda: read_bands(path)).startswith(f"{path}: found CMYK, inks instead of light")


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_turned_jpeg_is_refused(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = picture(tmp_path / "x.jpg", noise(8, 8, 3), exif=exif)
    message = fault_of(lambda: read_bands(path))
    assert message.startswith(f"{path}: found EXIF orientation {orientation}, so viewers turn it")
    exif[0x0112] = 1
    assert read_bands(picture(path, noise(8, 8, 3), exif=exif)).pixels.shape == (8, 8, 3)


def test_palette_of_a_tiff_is_refused_as_an_image_and_read_as_a_label(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.tif", noise(4, 5), "P")
    assert "found palette colours, expected bands of light" in fault_of(lambda: read_bands(path))
    assert np.array_equal(read_label(path, ALL), np.asarray(Image.open(path)) % 2)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 17, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_truncated_file(tmp_path: Path, keep: float, suffix: str) -> None:
    pixels = noise(40, 48, 3)
    path = tmp_path / f"x{suffix}"
    raster(path, pixels) if suffix == ".tif" else picture(path, pixels)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    for action in (lambda: read_bands(path), lambda: read_label(path, ALL)):
        assert fault_of(action).startswith(f"{path}: cannot be decoded")
    if keep == int(keep):  # the header itself is cut
        assert fault_of(lambda: size_of(path)).startswith(f"{path}: cannot be decoded")


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"no image"])
def test_garbage(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(start + np.random.default_rng(0).bytes(500))
    for action in (lambda: read_bands(path), lambda: read_label(path, ALL), lambda: size_of(path)):
        message = fault_of(action)
        assert message.startswith(f"{path}: cannot be decoded as an image") and "object at" not in message


@pytest.mark.parametrize("place", ["gone.png", "."])
def test_file_that_is_none(tmp_path: Path, place: str) -> None:
    for action in (read_bands, size_of, lambda path: read_label(path, MAP)):
        assert fault_of(lambda action=action: action(tmp_path / place)).startswith(  # type: ignore[misc]
            f"{tmp_path / place}: cannot be read ("
        )


# sizes


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_size_is_height_and_width_as_decoded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    raster(path, noise(11, 23, 3)) if suffix == ".tif" else picture(path, noise(11, 23, 3))
    assert size_of(path) == read_bands(path).mask.shape == (11, 23)


# labels


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_label_values_become_classes(tmp_path: Path, suffix: str) -> None:
    pixels = np.array([[0, 64, 128], [192, 255, 0]], np.uint8)
    values = {0: 0, 64: 255, 128: 1, 192: 1, 255: 255}
    expected = [[0, 255, 1], [1, 255, 0]]
    label = read_label(picture(tmp_path / f"l{suffix}", pixels), values)
    assert label.tolist() == expected and label.dtype == np.uint8
    coloured = picture(tmp_path / f"colour{suffix}", np.repeat(pixels[..., None], 3, 2))
    assert read_label(coloured, values).tolist() == expected


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_of_one_bit(tmp_path: Path, suffix: str) -> None:
    cloud = np.array([[True, False, True], [False, False, True]])
    path = picture(tmp_path / f"l{suffix}", cloud)
    values = MAP if suffix == ".png" else {0: 0, 1: 1}  # GDAL gives the bit itself
    assert np.array_equal(read_label(path, values), cloud)


def test_label_of_16_bits_that_holds_small_values(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 99]], np.uint16)
    assert cv2.imwrite(str(tmp_path / "l.png"), pixels)
    for path in (tmp_path / "l.png", raster(tmp_path / "l.tif", pixels)):
        assert read_label(path, {0: 0, 1: 1, 99: 255}).tolist() == [[0, 1, 255]]


def test_label_window(tmp_path: Path) -> None:
    pixels = noise(6, 9)
    for path in (picture(tmp_path / "l.png", pixels), raster(tmp_path / "l.tif", pixels)):
        assert np.array_equal(read_label(path, ALL, Window(2, 3, 4, 5)), pixels[2:6, 3:8] % 2)


def test_label_value_outside_the_map(tmp_path: Path) -> None:
    path = picture(tmp_path / "l.png", np.array([[0, 3, 255, 7]], np.uint8))
    message = fault_of(lambda: read_label(path, MAP))
    assert message == f"{path}: found label value(s) 3, 7, expected [0, 255]; set the domain's label_map"


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_label_value_of_no_8_bits(tmp_path: Path, dtype: str) -> None:
    pixels = np.array([[0, 1, 300]], dtype) if dtype == "uint16" else np.array([[0, 1, -3]], dtype)
    path = raster(tmp_path / "l.tif", pixels)
    low, high = pixels.min(), pixels.max()
    assert fault_of(lambda: read_label(path, ALL)) == (
        f"{path}: found label values {low} to {high}, expected values from 0 to 255"
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_of_several_colours(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"l{suffix}", np.full((4, 5, 3), (255, 0, 0), np.uint8))
    message = fault_of(lambda: read_label(path, MAP))
    assert message.startswith(f"{path}: found shape (4, 5, 3) of uint8, expected one band of whole numbers")


def test_label_of_floats(tmp_path: Path) -> None:
    path = raster(tmp_path / "l.tif", np.zeros((4, 5), np.float32))
    assert "of float32, expected one band of whole numbers" in fault_of(lambda: read_label(path, MAP))


def test_errors_of_gdal_itself_name_the_file(tmp_path: Path) -> None:
    """A key of its coordinates points to texts that are not there; rasterio has no error of its own for that."""
    path = raster(tmp_path / "a.tif", noise(4, 5), crs="EPSG:32633", transform=rasterio.Affine(1, 0, 0, 0, -1, 0))
    content = path.read_bytes()
    for tag, kind in ((34737, 2), (33550, 12)):  # the texts, and the size of a pixel
        assert struct.pack("<HH", tag, kind) in content
        content = content.replace(struct.pack("<HH", tag, kind), struct.pack("<HH", 65000, kind))
    path.write_bytes(content)
    message = fault_of(lambda: read_bands(path))
    assert message.startswith(f"{path}: cannot be decoded as an image (Key GTCitationGeoKey is of type ASCII")


def test_label_of_thousands_of_bands_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Of a few bytes GDAL would make as many bands as the header asks for, and take minutes over it."""
    path = raster(tmp_path / "l.tif", np.zeros((40, 48), np.float32))
    samples = struct.pack("<HHIH", 277, 3, 1, 1)
    assert samples in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(samples, struct.pack("<HHIH", 277, 3, 1, 32768)))
    assert fault_of(lambda: read_label(path, MAP)) == (f"{path}: found 32768 bands, expected one of whole numbers")


def test_a_jpeg_is_no_label(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[7:29, 5:31] = 255
    assert cv2.imwrite(str(tmp_path / "l.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])
    tiff = raster(tmp_path / "l.tif", pixels, compress="JPEG")
    for path in (tmp_path / "l.jpg", tiff):
        message = fault_of(lambda path=path: read_label(path, dict.fromkeys(range(256), 0)))  # type: ignore[misc]
        assert message.startswith(f"{path}: found a JPEG with ") and " value(s), 0, 1, 2, " in message
        assert "so write the label as PNG or TIFF" in message

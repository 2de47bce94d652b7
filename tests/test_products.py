"""Scenes as agencies deliver them: the same mask as of the same pixels in one TIFF, and a line for what is broken."""

import json
import math
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from datasets.decoder import Decoder
from datasets.products import open_product
from datasets.scaling import Stretch
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from predict import predict, read_request
from scenes import CloudNetwork, Images, predict_scene
from tests.products import ADD, CORNER, MULT, SUN, write_band, write_landsat, write_safe, zipped
from utils.errors import ConfigError, DataError

SIDE = 180  # pixels of 10 m
RGB = ("red", "green", "blue")
LEVELS, REFLECTANCE = (0.0, 12_000.0), (0.0, 1.2)
RESAMPLED = 0.001  # share of the pixels that may differ where bands are resampled


def ground(side: int, seed: int) -> np.ndarray:
    """Reflectance times 10,000 of ground and clouds, smooth, with a corner of no data, (side, side) uint16."""
    rng = np.random.default_rng(seed)
    knots = rng.random((7, 7)).astype(np.float32)
    pixels = 500 + 9000 * np.clip(cv2.resize(knots, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    pixels += rng.normal(0, 20, pixels.shape)
    pixels[np.add.outer(np.arange(side), np.arange(side)) < side // 5] = 0
    return pixels.astype(np.uint16)


def sentinel2_bands(*names: str) -> dict[str, np.ndarray]:
    sides = {"B11": SIDE // 2, "B8A": SIDE // 2, "B01": SIDE // 6}
    return {name: ground(sides.get(name, SIDE), seed) for seed, name in enumerate(names)}


def network_of(
    bands: Sequence[str], ends: tuple[float, float], dtype: str | None = None, nodata: str | float = "all_zero"
) -> CloudNetwork:
    """Cloud is where the mean of the bands is bright, sharply, so that every value of theirs tells."""

    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        assert windows.shape[1:3] == size
        return 1 / (1 + np.exp(np.clip(104.6 - windows.mean(3, dtype=np.float32), -50, 50)))

    scaling = Stretch((ends[0],) * len(bands), (ends[1],) * len(bands), dtype=dtype)
    decoder = Decoder(tuple(bands), tuple(bands), scaling, nodata)
    return CloudNetwork(Path("network"), Images(decoder, 64, "crop", None), cloud)


def mask_of(scene: Path, network: CloudNetwork, out: Path) -> np.ndarray:
    predict_scene(network, scene, {"mask": out / "mask.tif"})
    with rasterio.open(out / "mask.tif") as file:
        mask: np.ndarray = file.read(1)
    assert {0, 1, 255} == set(np.unique(mask))
    return mask


def write_plain(
    path: Path, bands: Sequence[np.ndarray], metres: float = 10, unit: tuple[float, float] | None = None
) -> Path:
    pixels = np.stack(bands)
    shape = {"height": pixels.shape[1], "width": pixels.shape[2], "count": len(pixels), "dtype": pixels.dtype}
    place = {"crs": "EPSG:32633", "transform": from_origin(*CORNER, metres, metres), "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as file:
        file.write(pixels)
        if unit is not None:
            file.scales, file.offsets = (unit[0],) * len(pixels), (unit[1],) * len(pixels)
    return path


def test_sentinel2_of_any_baseline_folder_and_zip(tmp_path: Path) -> None:
    bands = sentinel2_bands("B04", "B03", "B02")
    plain = write_plain(tmp_path / "plain.tif", [*bands.values()])
    levels, reflectance = network_of(RGB, LEVELS, "uint16"), network_of(RGB, REFLECTANCE, "float32")
    tagged = write_plain(tmp_path / "tagged.tif", [*bands.values()], unit=(1e-4, 0.0))
    expected = mask_of(plain, levels, tmp_path), mask_of(tagged, reflectance, tmp_path)
    for level in ("L1C", "L2A"):
        for baseline in ("02.09", "04.00"):
            safe = write_safe(tmp_path / level, bands, level, baseline)
            for scene in (safe, zipped(safe)):
                for network, mask in zip((levels, reflectance), expected, strict=True):
                    np.testing.assert_array_equal(mask_of(scene, network, tmp_path), mask)
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.crs == "EPSG:32633" and file.transform == from_origin(*CORNER, 10, 10)
        assert file.tags()["ACQUISITIONDATETIME"] == "2022-01-01T10:13:29.024Z"


def test_sentinel2_bands_of_other_pixel_sizes_are_resampled(tmp_path: Path) -> None:
    names = {"B04": "red", "B8A": "nir08", "B11": "swir16", "B01": "coastal"}
    bands = sentinel2_bands(*names)
    bands = {name: np.maximum(pixels, 1) for name, pixels in bands.items()}  # at holes the kernels differ
    network = network_of([*names.values()], LEVELS, "uint16")
    bands["B04"][:20, :30] = 0
    for name in ("B8A", "B11", "B01"):
        step = SIDE // len(bands[name])
        bands[name][: 20 // step, : 30 // step] = 0
    whole = [
        cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for pixels in bands.values()
    ]
    plain = write_plain(tmp_path / "plain.tif", [np.round(pixels).astype(np.uint16) for pixels in whole])
    for level, baseline in (("L1C", "02.09"), ("L2A", "05.10")):
        mask = mask_of(write_safe(tmp_path, bands, level, baseline), network, tmp_path)
        expected = mask_of(plain, network, tmp_path)
        inner = np.s_[25:, 35:]
        assert (mask[inner] != expected[inner]).mean() <= RESAMPLED
        assert (mask[:18, :28] == 255).all()


@pytest.mark.parametrize("level", ["L1TP", "L2SP"])
@pytest.mark.parametrize("mission", [8, 9])
def test_landsat_folder_and_tar(tmp_path: Path, level: str, mission: int) -> None:
    names = ("red", "green", "nir08", "swir16")
    bands = dict(zip("4356", (ground(SIDE, seed) * 4 + 8000 for seed in range(4)), strict=True))
    for pixels in bands.values():
        pixels[:20, :40] = 0
    product = write_landsat(tmp_path, bands, level, mission)
    archive = tmp_path / f"{product.name}.tar"
    with tarfile.open(archive, "w") as file:
        for path in sorted(product.iterdir()):
            file.add(path, path.name)
    unit = (2.75e-5, -0.2)
    if level == "L1TP":
        unit = MULT / math.sin(math.radians(SUN)), ADD / math.sin(math.radians(SUN))
    numbers = write_plain(tmp_path / "plain.tif", [*bands.values()], 30)
    tagged = write_plain(tmp_path / "tagged.tif", [*bands.values()], 30, unit)
    stored, reflectance = network_of(names, (4000, 48_000), "uint16"), network_of(names, (-0.2, 1.7), "float32")
    for scene in (product, archive):
        np.testing.assert_array_equal(mask_of(scene, stored, tmp_path), mask_of(numbers, stored, tmp_path))
        np.testing.assert_array_equal(mask_of(scene, reflectance, tmp_path), mask_of(tagged, reflectance, tmp_path))


def test_landsat_on_the_grid_of_its_panchromatic_band(tmp_path: Path) -> None:
    red, pan = np.maximum(ground(60, 0), 900), np.maximum(ground(120, 1), 900)
    red[:4, :4] = pan[:8, :8] = 0
    product = write_landsat(tmp_path, {"4": red, "8": pan})
    mask = mask_of(product, network_of(("red", "pan"), LEVELS, "uint16"), tmp_path)
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert mask.shape == pan.shape and file.transform == from_origin(CORNER[0] - 7.5, CORNER[1] + 7.5, 15, 15)


def test_a_pattern_a_vrt_and_jpeg_2000(tmp_path: Path) -> None:
    bands = sentinel2_bands("B04", "B03", "B02")
    network = network_of(RGB, LEVELS, "uint16")
    expected = mask_of(write_plain(tmp_path / "plain.tif", [*bands.values()]), network, tmp_path)
    for scene in ("one", "two"):
        for name, pixels in bands.items():
            write_band(tmp_path / "files" / scene / f"x_{name}.tif", pixels, 10)
    weights = save_weights(tmp_path / "weights.safetensors")
    labels = "red=04,green=03,blue=02"
    out = masks_of(weights, tmp_path / "out", tmp_path / "files" / "{scene}" / "*_B{band}.tif", "--bands", labels)
    plain = masks_of(weights, tmp_path / "plain", tmp_path / "plain.tif")
    for scene in ("one", "two"):
        assert (out / f"{scene}_mask.tif").is_file()
        with rasterio.open(out / f"{scene}_mask.tif") as file, rasterio.open(plain / "plain_mask.tif") as other:
            np.testing.assert_array_equal(file.read(1), other.read(1))
    vrt = tmp_path / "files" / "one" / "mosaic.vrt"
    vrt.write_text(virtual([f"x_{name}.tif" for name in bands]))
    np.testing.assert_array_equal(mask_of(vrt, network, tmp_path), expected)
    with rasterio.open(tmp_path / "plain.tif") as file:
        lossless = {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "yes", "ycbcr420": "no"}
        profile = {**file.profile, **lossless, "blockxsize": 64, "blockysize": 64}
        profile = {key: profile[key] for key in profile if key not in ("nodata", "tiled", "interleave", "compress")}
        with rasterio.open(tmp_path / "scene.jp2", "w", **profile) as other:
            other.write(file.read())
    np.testing.assert_array_equal(mask_of(tmp_path / "scene.jp2", network, tmp_path), expected)


class Ranges(SimpleHTTPRequestHandler):
    """Answers requests for a part of a file, as stores do."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        begin, end = 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), min(end, int(asked[2]) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])

    def log_message(self, *_: object) -> None:
        pass


def test_urls_are_read_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bands = sentinel2_bands("B04", "B03", "B02")
    for name, pixels in bands.items():
        write_band(tmp_path / "files" / f"x_{name}.tif", pixels, 10)
    write_plain(tmp_path / "files" / "plain.tif", [*bands.values()])
    weights = save_weights(tmp_path / "weights.safetensors")
    monkeypatch.setenv("no_proxy", "localhost")
    with ThreadingHTTPServer(("localhost", 0), partial(Ranges, directory=tmp_path / "files")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}"
        with pytest.raises(ConfigError, match="without --remote"):
            masks_of(weights, tmp_path / "out", f"{url}/plain.tif")
        with pytest.raises(ConfigError, match="does not say which bands"):
            masks_of(weights, tmp_path / "out", f"{url}/plain.tif", "--remote")
        labels = "red=04,green=03,blue=02"
        local = masks_of(weights, tmp_path / "local", tmp_path / "files" / "plain.tif")
        one = masks_of(weights, tmp_path / "one", f"{url}/plain.tif", "--remote", "--bands", "red,green,blue")
        many = masks_of(weights, tmp_path / "many", f"{url}/x_B{{band}}.tif", "--remote", "--bands", labels)
        with pytest.raises(DataError, match=f"{url}/no.tif: cannot be read"):
            masks_of(weights, tmp_path / "no", f"{url}/no.tif", "--remote", "--bands", "red,green,blue")
        server.shutdown()
    masks = []
    for path in (local / "plain_mask.tif", one / "plain_mask.tif", many / "x_B_mask.tif"):
        with rasterio.open(path) as file:
            masks.append(file.read(1))
    assert (masks[0] == masks[1]).all() and (masks[0] == masks[2]).all() and len(np.unique(masks[0])) > 1


def virtual(sources: Sequence[str], relative: int = 1, **changes: str) -> str:
    """A VRT with a file a band."""
    place = f"{CORNER[0]}, 10, 0, {CORNER[1]}, 0, -10"
    head = f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS>'
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{number}"><NoDataValue>0</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/>'
        f'<DstRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/></SimpleSource></VRTRasterBand>'
        for number, source in enumerate(sources, start=1)
    )
    return f"{head}<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>"


def hostile_vrts(folder: Path) -> Mapping[str, tuple[str, str]]:
    """Text of a VRT and what is said of it, by name."""
    good = virtual(["a.tif"] * 3)
    return {
        "out": (virtual(["../outside.tif"] * 3), "out of its own folder"),
        "absolute": (virtual([f"{folder.parent / 'outside.tif'}"] * 3, 0), "out of its own folder"),
        "remote": (virtual(["/vsicurl/http://localhost/a.tif"] * 3, 0), "out of its own folder"),
        "link": (virtual(["link.tif"] * 3), "out of its own folder"),
        "nested": (virtual(["good.vrt"] * 3), "expected a TIFF"),
        "missing": (virtual(["no.tif"] * 3), "expected a TIFF"),
        "working_folder": (virtual(["a.tif"] * 3, 0), "without relativeToVRT"),
        "derived": (good.replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"'), "found VRTDerivedRaster"),
        "raw": (good.replace('band="1"', 'band="1" subClass="VRTRawRasterBand"'), "found VRTRawRasterBand"),
        "options": (good.replace("<SourceBand>", "<OpenOptions/><SourceBand>", 1), "found OpenOptions"),
        "overview": (good.replace("<SimpleSource>", "<Overview/><SimpleSource>", 1), "found Overview"),
        "entities": ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]>' + good, "entities"),
        "cut_off": (good[:200], "no XML"),
        "linked": ("", "is a link"),
    }


def test_a_vrt_reads_its_own_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    write_band(folder / "a.tif", ground(SIDE, 0), 10)
    write_band(tmp_path / "outside.tif", ground(SIDE, 0), 10)
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    (folder / "good.vrt").write_text(virtual(["a.tif"] * 3))
    (folder / "linked.vrt").symlink_to(folder / "good.vrt")
    network = network_of(RGB, LEVELS, "uint16")
    mask_of(folder / "good.vrt", network, tmp_path)
    for name, (text, says) in hostile_vrts(folder).items():
        path = folder / f"{name}.vrt"
        if text:
            path.write_text(text)
        with pytest.raises(DataError, match=says) as caught:
            predict_scene(network, path, {"mask": tmp_path / "no.tif"})
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name


def test_files_beside_those_of_a_vrt_are_not_read(tmp_path: Path) -> None:
    """GDAL would take a mask, overviews and statistics of a source by their names, of whatever kind they are."""
    write_band(tmp_path / "a.tif", ground(SIDE, 0), 10)
    (tmp_path / "good.vrt").write_text(virtual(["a.tif"] * 3))
    network = network_of(RGB, LEVELS, "uint16")
    expected = mask_of(tmp_path / "good.vrt", network, tmp_path)
    write_band(tmp_path / "a.tif.msk", np.zeros((SIDE, SIDE), np.uint8), 10)
    write_band(tmp_path / "a.tif.ovr", np.zeros((SIDE // 2, SIDE // 2), np.uint16), 20)
    nodata = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>5000</NoDataValue></PAMRasterBand></PAMDataset>"
    (tmp_path / "a.tif.aux.xml").write_text(nodata)
    np.testing.assert_array_equal(mask_of(tmp_path / "good.vrt", network, tmp_path), expected)


def save_weights(path: Path) -> Path:
    """A random network for red, green and blue of 16 bits."""
    torch.manual_seed(1)
    target = {"bands": None, "scaling": [[0.0] * 3, [12_000.0] * 3], "nodata": 0}
    data = {"bands": list(RGB), "size": 64, "geometry": "crop", "tile": None, "target": target}
    save_segmenter(path, Segmenter("mobilenetv3_small_050", init="kaiming"), {"data": json.dumps(data)})
    return path


def masks_of(weights: Path, out: Path, *arguments: object) -> Path:
    words = ["--weights", weights, "--out", out, "--device", "cpu", "--quiet", *arguments]
    predict(read_request([str(word) for word in words]))
    return out


def green_of(product: Path) -> Path:
    return next(path for path in product.rglob("*") if re.search(r"_B0?3\.", path.name))


def without_a_band(product: Path) -> str:
    green_of(product).unlink()
    return "3."


def of_another_tile(product: Path) -> str:
    path = green_of(product)
    path.unlink()  # else GDAL removes the metadata with it
    write_band(path, ground(SIDE, 5), 10, (CORNER[0] + 100_000, CORNER[1]))
    return "3."


def cut_off(product: Path) -> str:
    path = green_of(product)
    path.write_bytes(path.read_bytes()[:-2000])
    return "3."


def no_image(product: Path) -> str:
    green_of(product).write_text("Not found")
    return "3."


def without(word: str) -> Callable[[Path], str]:
    def without_word(product: Path) -> str:
        path = next(path for path in product.iterdir() if path.name.endswith(("MTL.txt", "L1C.xml")))
        path.write_text(path.read_text().replace(word, "OTHER"))
        return word

    return without_word


def without_metadata(product: Path) -> str:
    next(path for path in product.iterdir() if path.name.startswith("MTD")).unlink()
    return "no metadata"


def entities(product: Path) -> str:
    path = next(path for path in product.iterdir() if path.name.startswith("MTD"))
    path.write_text(path.read_text().replace("?>\n", '?>\n<!DOCTYPE a [<!ENTITY b "c">]>\n', 1))
    return "entities"


SENTINEL_2 = [without_a_band, of_another_tile, cut_off, no_image, without_metadata, entities]
SENTINEL_2 += [without("QUANTIFICATION_VALUE"), without("RADIO_ADD_OFFSET"), without("PROCESSING_BASELINE")]
LANDSAT = [without_a_band, of_another_tile, cut_off, no_image]
LANDSAT += [without("REFLECTANCE_MULT_BAND_4"), without("SUN_ELEVATION"), without("PROCESSING_LEVEL")]
LANDSAT += [without("LANDSAT_METADATA_FILE")]


def test_broken_products_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    sentinel2 = write_safe(tmp_path, sentinel2_bands("B04", "B03", "B02"), baseline="04.00")
    landsat = write_landsat(tmp_path, {number: ground(60, int(number)) for number in "234"})
    root = tmp_path / "scenes"
    expected = {}
    for sound, ways in ((sentinel2, SENTINEL_2), (landsat, LANDSAT)):
        shutil.copytree(sound, root / "sound" / sound.name)
        for number, way in enumerate(ways):
            product = root / f"{sound.name[:4]}{number}" / sound.name
            shutil.copytree(sound, product)
            expected[product] = way(product)
    hostile = root / "hostile" / "S2A_MSIL1C_out.zip"
    hostile.parent.mkdir()
    with zipfile.ZipFile(hostile, "w") as file:
        file.writestr("../../out_of_it", "")
    expected[hostile] = "a path out of it"
    linked = hostile.with_name("LC08_L1TP_linked.tar")
    with tarfile.open(linked, "w") as file:
        member = tarfile.TarInfo("LC08_L1TP_B4.TIF")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        file.addfile(member)
    expected[linked] = "a link"
    short = hostile.with_name("S2A_MSIL1C_short.zip")
    short.write_bytes(zipped(sentinel2).read_bytes()[:5000])
    expected[short] = "cannot be read"
    weights = save_weights(tmp_path / "weights.safetensors")
    with pytest.raises(DataError) as caught:
        masks_of(weights, tmp_path / "out", root)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(f"{len(expected)} of {len(expected) + 2} scenes failed")
    for product, says in expected.items():
        told = [line for line in lines if str(product) in line]
        assert len(told) == 1 and says in told[0], (product, says, lines)
        assert any(fix in told[0] for fix in ("download", "of another scene?", "its own folder")), told
    masks = {path.relative_to(tmp_path / "out").parent.name for path in (tmp_path / "out").rglob("*_mask.tif")}
    assert masks == {"sound"} and len(list((tmp_path / "out" / "sound").iterdir())) == 2


def test_what_a_product_does_not_have(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, sentinel2_bands("B04"), "L2A")
    outputs = {"mask": tmp_path / "no.tif"}
    with pytest.raises(DataError, match=r"has no band cirrus, found blue, green, red, nir, rededge071, .*; take"):
        predict_scene(network_of(("red", "cirrus"), LEVELS, "uint16"), safe, outputs)
    landsat = write_landsat(tmp_path, {"10": ground(60, 0)})
    with pytest.raises(DataError, match=r"B10\.TIF: has no reflectance"):
        predict_scene(network_of(("lwir11",), REFLECTANCE, "float32"), landsat, outputs)
    empty = tmp_path / "empty.SAFE"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no metadata"):
        open_product(empty)
    with pytest.raises(DataError, match="finds no file"):
        masks_of(save_weights(tmp_path / "w.safetensors"), tmp_path / "out", tmp_path / "{scene}_{band}.tif")


def test_a_folder_of_products_gives_a_scene_each(tmp_path: Path) -> None:
    bands = sentinel2_bands("B04", "B03", "B02")
    safe = write_safe(tmp_path / "scenes" / "a", bands)
    archive = zipped(write_safe(tmp_path / "scenes" / "b", bands))
    shutil.rmtree(archive.with_suffix(".SAFE"))
    write_plain(tmp_path / "scenes" / "plain.tif", [*bands.values()])
    weights = save_weights(tmp_path / "weights.safetensors")
    out = masks_of(weights, tmp_path / "out", tmp_path / "scenes")
    name = safe.name.removesuffix(".SAFE")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*_mask.tif")}
    assert found == {f"a/{name}_mask.tif", f"b/{name}_mask.tif", "plain_mask.tif"}
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*_mask.tif")}
    masks_of(weights, out, tmp_path / "scenes")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}  # finished scenes are left
    with pytest.raises(ConfigError, match="other settings"):
        masks_of(weights, out, tmp_path / "scenes", "--bands", "red=04,green=03,blue=02")
    for mixed in ("red=04,green,blue", "red=04,red=03", "red=04,green=04"):
        with pytest.raises(ConfigError, match=f"--bands: found {mixed}"):
            masks_of(weights, out, tmp_path / "scenes", "--bands", mixed)

"""predict.py from the command line: grids, no data, batches that fail in part, and what a kill leaves."""

import csv
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from engine.lock import LOCK
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from predict import predict, read_request
from scenes import Options, predict_array, predict_scene
from scenes.folder import open_folder, read_summary
from scenes.network import load_network
from utils.errors import ConfigError, DataError, WeightsError
from utils.records import commit
from utils.version import VERSION

REPOSITORY = Path(__file__).resolve().parents[1]
PLACE = {"crs": "EPSG:32633", "transform": from_origin(499_980, 5_300_040, 10, 10)}
LOW, HIGH = 500.0, 9000.0


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A random network for 16-bit RGB whose files say where they have no data."""
    torch.manual_seed(1)
    target = {"bands": None, "scaling": [[LOW] * 3, [HIGH] * 3], "nodata": "file"}
    data = {"bands": ["red", "green", "blue"], "size": 64, "geometry": "crop", "tile": None, "target": target}
    path = tmp_path / "run" / "intra" / "student.safetensors"
    path.parent.mkdir(parents=True)
    segmenter = Segmenter("mobilenetv3_small_050", init="kaiming")
    save_segmenter(path, segmenter, {"data": json.dumps(data)})
    return path


def draw(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """Clouds over ground, (bands, H, W) uint16, 0 left of a slanted line."""
    rng = np.random.default_rng(seed)
    knots = rng.random((height // 25 + 2, width // 25 + 2)).astype(np.float32)
    cloud = np.clip(4 * (cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC) - 0.6), 0, 1)
    pixels = (1 - cloud) * rng.normal(1500, 100, (bands, height, width)) + 9000 * cloud
    pixels[:, np.arange(width) < 20 + 0.2 * np.arange(height)[:, None]] = 0
    return pixels.clip(0, 65535).astype(np.uint16)


def write_scene(path: Path, height: int = 150, width: int = 130, bands: int = 3, **changes: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = draw(height, width, bands)
    shape = {"height": height, "width": width, "count": bands, "dtype": "uint16", "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", **shape, **{**PLACE, **changes}) as file:
        file.write(pixels)
    return pixels


def masks_of(weights: Path, out: Path, *arguments: object) -> Path:
    words = ["--weights", weights, "--out", out, "--device", "cpu", *arguments]
    predict(read_request([str(word) for word in words]))
    return out


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != LOCK}


def test_a_mask_lies_where_its_scene_lies(tmp_path: Path, weights: Path) -> None:
    pixels = write_scene(tmp_path / "scenes" / "tile" / "a.tif", 700, 600)
    out = masks_of(weights, tmp_path / "out", tmp_path / "scenes", "--probability", "--entropy", "--quicklook")
    layers = {f"tile/a_{name}" for name in ("mask.tif", "probability.tif", "entropy.tif", "quicklook.png")}
    assert files_of(out) == {"predict.json", "summary.csv", "tile", *layers}
    image = pixels.transpose(1, 2, 0)
    expected = predict_array(load_network(weights, "cpu"), image, (image > 0).all(2))
    for name in ("mask", "probability", "entropy"):
        with rasterio.open(out / "tile" / f"a_{name}.tif") as file:
            assert file.crs == PLACE["crs"] and file.transform == PLACE["transform"] and file.shape == (700, 600)
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and file.overviews(1) == [2]
            assert file.block_shapes == [(512, 512)] and file.compression is not None
            np.testing.assert_array_equal(file.read(1), getattr(expected, name))
            assert np.array_equal(file.read_masks(1) > 0, (pixels > 0).all(0))
    with rasterio.open(out / "tile" / "a_mask.tif") as file:
        mask = file.read(1)
        assert file.dtypes == ("uint8",) and file.nodata == 255 and set(np.unique(mask)) == {0, 1, 255}
        assert file.colormap(1)[1] == (255, 255, 255, 255) and np.array_equal(mask == 255, (pixels == 0).any(0))
    row = next(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    assert row["scene"] == "tile/a" and float(row["seconds"]) > 0
    assert float(row["cloud_share"]) == pytest.approx((mask == 1).sum() / (mask != 255).sum(), rel=1e-4)
    assert float(row["valid_share"]) == pytest.approx((mask != 255).mean(), rel=1e-4)
    assert float(row["mean_entropy"]) == pytest.approx(np.nanmean(expected.entropy), rel=1e-4)
    assert Image.open(out / "tile" / "a_quicklook.png").size == (1200, 700)


def test_ground_control_points_are_kept(tmp_path: Path, weights: Path) -> None:
    from rasterio.control import GroundControlPoint

    points = [GroundControlPoint(row, col, 10 + col / 9, 50 - row / 9) for row in (0, 150) for col in (0, 130)]
    write_scene(tmp_path / "a.tif", transform=None, gcps=points, crs="EPSG:4326")
    out = masks_of(weights, tmp_path / "out", tmp_path / "a.tif")
    with rasterio.open(out / "a_mask.tif") as file:
        assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
        assert file.gcps[1] == "EPSG:4326"


def test_masks_keep_the_tags_of_their_scene_and_say_what_they_hold(tmp_path: Path, weights: Path) -> None:
    polynomial = {f"{of}_{part}_coeff": [1.0, *[0.5] * 19] for of in ("line", "samp") for part in ("num", "den")}
    offsets = {f"{of}_{kind}": 2.5 for of in ("height", "lat", "line", "long", "samp") for kind in ("off", "scale")}
    rpcs = RPC(**polynomial, **offsets, err_bias=0.5, err_rand=0.25)
    write_scene(tmp_path / "a.tif", transform=None, crs=None, rpcs=rpcs)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2026:03:01 10:20:30")
        file.update_tags(ns="IMAGERY", SATELLITEID="S9")
    out = masks_of(weights, tmp_path / "out", tmp_path / "a.tif", "--probability", "--threshold", 0.7)
    values = {"mask": "0 clear, 1 cloud, 255 no data", "probability": "0 to 1, NaN no data"}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    for layer, meaning in values.items():
        with rasterio.open(out / f"a_{layer}.tif") as file:
            tags = file.tags()
            assert file.rpcs.to_dict() == rpcs.to_dict()
        assert tags["TIFFTAG_DATETIME"] == "2026:03:01 10:20:30" and tags["SATELLITEID"] == "S9"
        assert tags["ASDA_VALUES"] == meaning
        assert tags["ASDA_THRESHOLD"] == "0.7" and tags["ASDA_MODEL"] == f"{weights.name}, sha256 {digest}"
        assert tags["ASDA_VERSION"] == f"{VERSION}, commit {commit()}"


def test_a_picture_gives_a_picture(tmp_path: Path, weights: Path) -> None:
    target = {"bands": None, "scaling": None, "nodata": "file"}
    data = {"bands": ["red", "green", "blue"], "size": 64, "geometry": "letterbox", "tile": 96, "target": target}
    save_segmenter(weights, Segmenter("mobilenetv3_small_050"), {"data": json.dumps(data)})
    image = (draw(90, 120) >> 8).astype(np.uint8).transpose(1, 2, 0)
    alpha = np.full((90, 120, 1), 255, np.uint8)
    alpha[:10] = 0
    Image.fromarray(np.concatenate([image, alpha], 2)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "b.jpg"), image)
    out = masks_of(weights, tmp_path / "out", tmp_path / "*.png", tmp_path / "b.jpg", "--probability")
    mask = np.asarray(Image.open(out / "a_mask.png"))
    assert Image.open(out / "a_mask.png").text["ASDA_VALUES"] == "0 clear, 1 cloud, 255 no data"  # type: ignore[attr-defined]
    assert Image.open(out / "a_mask.png").mode == "P" and np.array_equal(mask == 255, alpha[..., 0] == 0)
    probability = np.asarray(Image.open(out / "a_probability.png"))
    assert probability.dtype == np.uint16 and np.array_equal(probability == 65535, mask == 255)
    assert np.array_equal(probability[10:] / 65534 > 0.5, mask[10:] == 1)
    assert Image.open(out / "b_mask.png").size == (120, 90)


def test_small_clouds_go_before_clouds_are_widened(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "a.tif")
    masks = {}
    for name, options in {"plain": [], "small": ["--min-cloud", 400], "wide": ["--buffer", 3]}.items():
        out = masks_of(weights, tmp_path / name, tmp_path / "a.tif", "--window", 64, *options)
        masks[name] = rasterio.open(out / "a_mask.tif").read(1)
    assert set(np.unique(masks["plain"])) == {0, 1, 255}
    assert np.array_equal(masks["plain"] == 255, masks["wide"] == 255)
    assert (masks["small"] == 1).sum() < (masks["plain"] == 1).sum() < (masks["wide"] == 1).sum()
    always = masks_of(weights, tmp_path / "all", tmp_path / "a.tif", "--threshold", 0, "--min-cloud", 10**6)
    assert not (rasterio.open(always / "a_mask.tif").read(1) == 1).any()


def test_finished_scenes_are_left_and_missing_ones_made(tmp_path: Path, weights: Path) -> None:
    for name in "ab":
        write_scene(tmp_path / "scenes" / f"{name}.tif", 80, 70)
    out = masks_of(weights, tmp_path / "out", tmp_path / "scenes")
    content = {name: (out / f"{name}_mask.tif").read_bytes() for name in "ab"}
    (out / "a_mask.tif").unlink()
    before = (out / "b_mask.tif").stat()
    masks_of(weights, out, tmp_path / "scenes")
    assert {name: (out / f"{name}_mask.tif").read_bytes() for name in "ab"} == content
    after = (out / "b_mask.tif").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    masks_of(weights, out, tmp_path / "scenes", "--entropy")
    assert (out / "a_entropy.tif").exists() and (out / "b_entropy.tif").exists()
    with pytest.raises(ConfigError, match=r"begun with other settings: threshold was 0\.5, is 0\.7"):
        masks_of(weights, out, tmp_path / "scenes", "--threshold", 0.7)


def test_a_scene_that_was_replaced_gets_a_new_mask(tmp_path: Path, weights: Path) -> None:
    scene, out = tmp_path / "scenes" / "a.tif", tmp_path / "out"
    for name in "ab":
        write_scene(tmp_path / "scenes" / f"{name}.tif", 80, 70)
    masks_of(weights, out, tmp_path / "scenes", "--entropy")
    old, other = ((out / f"{name}_mask.tif").stat().st_ino for name in "ab")
    write_scene(tmp_path / "new.tif", 90, 60)
    (tmp_path / "new.tif").replace(scene)
    masks_of(weights, out, tmp_path / "scenes")
    assert rasterio.open(out / "a_mask.tif").shape == (90, 60) and (out / "a_mask.tif").stat().st_ino != old
    assert (out / "b_mask.tif").stat().st_ino == other and not (out / "a_entropy.tif").exists()
    scene.touch()  # the same size, another time: nobody knows what changed
    before = (out / "a_mask.tif").stat().st_ino
    masks_of(weights, out, tmp_path / "scenes", "--entropy")
    assert (out / "a_mask.tif").stat().st_ino != before and (out / "a_entropy.tif").exists()
    scene.write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 2 scenes failed"):
        masks_of(weights, out, tmp_path / "scenes")
    assert not (out / "a_mask.tif").exists() and [*read_summary(out / "summary.csv")] == [
        "b"
    ]  # it is none of this file


def test_a_summary_that_was_being_written_is_read_but_for_its_last_row(tmp_path: Path, weights: Path) -> None:
    for name in "ab":
        write_scene(tmp_path / "scenes" / f"{name}.tif", 80, 70)
    out = masks_of(weights, tmp_path / "out", tmp_path / "scenes")
    whole = (out / "summary.csv").read_text()
    (out / "summary.csv").write_text(whole[:-9])
    assert [*read_summary(out / "summary.csv")] == ["a"]
    masks_of(weights, out, tmp_path / "scenes")
    rows = read_summary(out / "summary.csv")
    assert [*rows] == ["a", "b"] and rows["b"].bytes == (tmp_path / "scenes" / "b.tif").stat().st_size


def test_a_failed_start_binds_no_folder(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "a.tif", 80, 70)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError):
        masks_of(tmp_path / "bad.safetensors", tmp_path / "out", tmp_path / "a.tif", "--threshold", 0.7)
    masks_of(weights, tmp_path / "out", tmp_path / "a.tif")
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["threshold"] == 0.5


def test_one_bad_scene_is_named_and_the_others_go_on(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "scenes" / "b_good.tif")
    write_scene(tmp_path / "scenes" / "c_two_bands.tif", bands=2)
    content = (tmp_path / "scenes" / "b_good.tif").read_bytes()
    (tmp_path / "scenes" / "a_truncated.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "scenes" / "d_empty.tif").touch()
    (tmp_path / "scenes" / "e_bytes.tif").write_bytes(b"no image at all")
    write_scene(tmp_path / "scenes" / "f_good.tif")
    with pytest.raises(DataError, match=r"4 of 6 scenes failed") as failed:
        masks_of(weights, tmp_path / "out", tmp_path / "scenes")
    assert files_of(tmp_path / "out") == {"predict.json", "summary.csv", "b_good_mask.tif", "f_good_mask.tif"}
    for name, reason in {
        "a_truncated": "is the file truncated?",
        "c_two_bands": "found 2 bands without names",
        "d_empty": "0 bytes",
        "e_bytes": "cannot be decoded as an image",
    }.items():
        assert any(f"{name}.tif" in line and reason in line for line in str(failed.value).splitlines())
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines()))
    assert [row["scene"] for row in rows] == ["b_good", "f_good"]


@pytest.mark.parametrize(
    ("target", "bands", "reason"),
    [
        ({"bands": ["blue", "green", "red", "nir"]}, 3, r"found 3 band\(s\), expected 4: blue, green, red, nir"),
        ({"scaling": None}, 3, "found uint16 pixels, expected 8 bits"),
        ({"bands": ["blue", "green", "swir"]}, 3, "has no band red"),
    ],
)
def test_a_scene_of_another_kind_is_refused(
    tmp_path: Path, weights: Path, target: dict[str, Any], bands: int, reason: str
) -> None:
    usual = {"bands": None, "scaling": [[LOW] * 3, [HIGH] * 3], "nodata": "file"}
    data = {"bands": ["red", "green", "blue"], "size": 64, "geometry": "crop", "tile": None, "target": usual | target}
    save_segmenter(weights, Segmenter("mobilenetv3_small_050"), {"data": json.dumps(data)})
    write_scene(tmp_path / "a.tif", bands=bands)
    with pytest.raises(DataError, match=reason):
        masks_of(weights, tmp_path / "out", tmp_path / "a.tif")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it the system refuses to write more to any file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_what_is_finished(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "a_small.tif", 100, 100)
    write_scene(tmp_path / "b_large.tif", 600, 600)
    network = load_network(weights, "cpu")
    sizes = {}
    for name in ("a_small", "b_large"):
        predict_scene(network, tmp_path / f"{name}.tif", {"mask": tmp_path / f"{name}_mask.tif"})
        sizes[name] = (tmp_path / f"{name}_mask.tif").stat().st_size
    assert sizes["b_large"] > sizes["a_small"] + 1000
    for limit in (sizes["a_small"] + 500, (sizes["a_small"] + sizes["b_large"]) // 2, sizes["b_large"] - 1):
        out = tmp_path / f"out_{limit}"
        with (
            largest_file(limit),
            pytest.raises(DataError, match=r"b_large_mask.tif: cannot be written \(.*disk has room"),
        ):
            masks_of(weights, out, tmp_path / "a_small.tif", tmp_path / "b_large.tif")
        assert files_of(out) == {"predict.json", "summary.csv", "a_small_mask.tif"}
        assert (out / "a_small_mask.tif").read_bytes() == (tmp_path / "a_small_mask.tif").read_bytes()
    masks_of(weights, out, tmp_path / "a_small.tif", tmp_path / "b_large.tif")
    assert (out / "b_large_mask.tif").read_bytes() == (tmp_path / "b_large_mask.tif").read_bytes()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", 80, 70)
    write_scene(tmp_path / "scenes" / "sub" / "b.tif", 80, 70)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"file: cannot be used as --out .*give another folder"):
        masks_of(weights, tmp_path / "file", tmp_path / "scenes")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("in the place of a folder")
    with pytest.raises(DataError, match=r"1 of 2 scenes failed:\n.*b_mask\.tif: cannot be written"):
        masks_of(weights, tmp_path / "out", tmp_path / "scenes")
    assert (tmp_path / "out" / "a_mask.tif").exists()


def test_two_scenes_of_one_name_fail_and_the_others_go_on(tmp_path: Path, weights: Path) -> None:
    for path in ("one/a.tif", "one/b.tif", "two/a.tif"):
        write_scene(tmp_path / path, 80, 70)
    Image.new("RGB", (70, 80)).save(tmp_path / "one" / "a.png")
    expected = r"1 of 2 scenes failed:\n  .*one/a\.png, .*one/a\.tif, .*two/a\.tif: would have one mask file"
    with pytest.raises(DataError, match=expected):
        masks_of(weights, tmp_path / "out", tmp_path / "one", tmp_path / "two")
    assert files_of(tmp_path / "out") == {"predict.json", "summary.csv", "b_mask.tif"}


def test_a_link_that_leads_out_fails_and_the_scenes_beside_it_go_on(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", 80, 70)
    write_scene(tmp_path / "other" / "b.tif", 80, 70)
    (tmp_path / "scenes" / "far").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match=r"1 of 2 scenes failed:\n  .*scenes/far: leads out of .* by a symbolic link"):
        masks_of(weights, tmp_path / "out", tmp_path / "scenes")
    assert files_of(tmp_path / "out") == {"predict.json", "summary.csv", "a_mask.tif"}


def test_scenes_smaller_than_the_training_crop_are_noted(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, height in {"a": 63, "b": 64, "c": 40}.items():
        write_scene(tmp_path / f"{name}.tif", height, 70)
    masks_of(weights, tmp_path / "out", tmp_path / "*.tif")
    told = capsys.readouterr().out
    assert "note: a: the scene is smaller than the 64 pixels that the network was trained on" in told
    assert "and so 1 more" in told
    masks_of(weights, tmp_path / "other", tmp_path / "b.tif")
    assert "smaller than" not in capsys.readouterr().out


def test_inputs_that_cannot_be_meant_are_refused(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "one" / "a.tif", 80, 70)
    with pytest.raises(ConfigError, match="its masks would be taken for scenes"):
        masks_of(weights, tmp_path / "one" / "out", tmp_path / "one")
    with pytest.raises(DataError, match=r"none\*\.tif: no such file, folder or glob"):
        masks_of(weights, tmp_path / "out", tmp_path / "none*.tif")
    with pytest.raises(WeightsError, match="no such weights file"):
        masks_of(tmp_path / "none.safetensors", tmp_path / "out2", tmp_path / "one")


RGB = ["red", "green", "blue"]


def record(weights: Path, **target: Any) -> None:
    """Write the network once more, with another record of the target."""
    usual = {"bands": None, "scaling": [[LOW] * 3, [HIGH] * 3], "nodata": "file"}
    data = {"bands": RGB, "size": 64, "geometry": "crop", "tile": None, "target": usual | target}
    torch.manual_seed(1)
    save_segmenter(weights, Segmenter("mobilenetv3_small_050", init="kaiming"), {"data": json.dumps(data)})


def rewritten(source: Path, path: Path, change: Callable[[np.ndarray], np.ndarray], **tags: Any) -> Path:
    """The scene with other values, and other tags of its bands."""
    with rasterio.open(source) as file:
        pixels = change(file.read())
        profile = {**file.profile, "dtype": pixels.dtype, "nodata": None}
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
        for name, value in tags.items():
            setattr(file, name, value)
    return path


def mask_of(weights: Path, out: Path, *arguments: object) -> np.ndarray:
    [mask] = masks_of(weights, out, *arguments).glob("*_mask.tif")
    return rasterio.open(mask).read(1)


def test_a_scene_of_another_unit_is_refused_and_read_with_scale_and_offset(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(weights, nodata="none")
    write_scene(tmp_path / "a.tif")
    expected = mask_of(weights, tmp_path / "expected", tmp_path / "a.tif")
    share = rewritten(tmp_path / "a.tif", tmp_path / "share.tif", lambda p: p.astype(np.float32) / 10_000)
    with pytest.raises(DataError) as refused:
        masks_of(weights, tmp_path / "out", share)
    known = r"100\.0% of them, found 0 to 0\.\d+, expected 500 to 9000"
    assert re.search(
        rf"share\.tif: most values lie outside .*; see --scale and --offset \({known}\)", str(refused.value)
    )
    assert not list((tmp_path / "out").glob("*share*"))
    assert (mask_of(weights, tmp_path / "unit", share, "--scale", 10_000) != expected).mean() < 0.01
    later = rewritten(tmp_path / "a.tif", tmp_path / "later.tif", lambda p: p + np.uint16(1000))
    assert np.array_equal(mask_of(weights, tmp_path / "later", later, "--offset", -1000), expected)
    record(weights, nodata="none", scaling=[[0.05] * 3, [0.9] * 3, 1, "float32"])
    tagged = {"scales": [1e-4] * 3, "offsets": [-0.1] * 3}
    later = rewritten(tmp_path / "a.tif", tmp_path / "tags.tif", lambda p: p + np.uint16(1000), **tagged)
    assert (mask_of(weights, tmp_path / "tags", later) != expected).mean() < 0.01
    with pytest.raises(DataError, match=r"expected float32, .* see --scale and --offset"):
        masks_of(weights, tmp_path / "deep", tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=r"begun with other settings: .*scale was 10000\.0, is 2"):
        masks_of(weights, tmp_path / "unit", share, "--scale", 2)


def test_what_is_odd_about_a_scene_stands_in_the_summary_and_on_the_screen(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(weights, nodata="none", scaling=[[LOW] * 3, [HIGH] * 3, 1, None, [400.0, 500.0, 600.0]])
    ground = np.random.default_rng(0).integers(1450, 3000, (3, 150, 130)).astype(np.uint16)
    write_scene(tmp_path / "a.tif")
    holes, flat = ground.copy(), ground.copy()
    holes[:, ::20, ::20] = 65535
    flat[1] = 2000
    scenes = {
        "fill": holes,
        "flat": flat,
        "two": ground,
        "bright": np.where(ground < 2000, 2000, 9001).astype(np.uint16),
    }
    for name, pixels in scenes.items():
        rewritten(tmp_path / "a.tif", tmp_path / f"{name}.tif", lambda _, pixels=pixels: pixels)  # type: ignore[misc]
    rewritten(tmp_path / "a.tif", tmp_path / "full.tif", np.ones_like).unlink()
    rewritten(tmp_path / "a.tif", tmp_path / "full.tif", lambda p: np.full_like(p, 65535))
    with pytest.raises(DataError, match=r"1 of 5 scenes failed:\n.*full\.tif: most values .*found 65535, expected 500"):
        masks_of(weights, tmp_path / "out", *(tmp_path / f"{name}.tif" for name in (*scenes, "full")))
    rows = {row["scene"]: row for row in csv.DictReader((tmp_path / "out/summary.csv").read_text().splitlines())}
    unnamed = "the file does not name its bands, which are taken for red, green, blue, in this order"
    assert all(unnamed in row["notes"] for row in rows.values())
    assert "pixels hold 65535, far from all other values, and count as data" in rows["fill"]["notes"]
    flat_note = "a band has one value at every pixel, expected many; is the file whole? (green 2000)"
    assert flat_note in rows["flat"]["notes"]
    assert "all bands are about +1000 off those of training" in rows["two"]["notes"]
    assert float(rows["bright"]["outside_share"]) == pytest.approx((ground >= 2000).mean(), rel=1e-4)
    assert "most values lie outside the range" in rows["bright"]["notes"]
    printed = capsys.readouterr().out
    assert f"note: bright: {unnamed}; if they are others, mend --bands, and so 3 more: fill, flat, two\n" in printed
    assert "set --nodata (0." in printed
    assert "the domain's" not in printed and "see --offset" in printed
    old = "scene,cloud_share,valid_share,mean_entropy,seconds\na,0.5,1,0.25,3\n"
    (tmp_path / "old.csv").write_text(old)
    (summary, *stamp) = read_summary(tmp_path / "old.csv")["a"]
    assert summary[4:] == (0.0, "") and stamp == [0, 0]


def test_bands_in_another_order_are_refused_and_read_by_name(tmp_path: Path, weights: Path) -> None:
    record(weights, bands=RGB)
    pixels = write_scene(tmp_path / "a.tif")
    expected = mask_of(weights, tmp_path / "expected", tmp_path / "a.tif")
    turned = rewritten(tmp_path / "a.tif", tmp_path / "b.tif", lambda p: p[::-1], nodata=0)
    named = rewritten(turned, tmp_path / "c.tif", lambda p: p, descriptions=("blue", "green", "red"), nodata=0)
    with pytest.raises(DataError, match=r"found the bands blue, green, red .* expected red, green, blue; mend --bands"):
        masks_of(weights, tmp_path / "out", named)
    for name, path in (("unnamed", turned), ("named", named)):
        assert np.array_equal(mask_of(weights, tmp_path / name, path, "--bands", "Blue, green,red"), expected)
    assert not np.array_equal(pixels[0], pixels[2])
    with pytest.raises(DataError, match=r"has no band red, green, blue, found a, b, c; mend --bands"):
        masks_of(weights, tmp_path / "none", turned, "--bands", "a,b,c")


def test_the_no_data_rule_may_be_given(tmp_path: Path, weights: Path) -> None:
    pixels = write_scene(tmp_path / "a.tif")
    pixels[1, 60:70, 80:90] = 0
    rewritten(tmp_path / "a.tif", tmp_path / "b.tif", lambda _: pixels)
    with rasterio.open(tmp_path / "b.tif", "r+") as file:
        file.nodata = 0
    for rule, valid in {
        None: pixels.any(0),
        "any_zero": pixels.all(0),
        "0": pixels.any(0),
        "none": pixels[0] >= 0,
    }.items():
        given = [] if rule is None else ["--nodata", rule]
        mask = mask_of(weights, tmp_path / f"out_{rule}", tmp_path / "b.tif", *given)
        assert np.array_equal(mask != 255, valid), rule
    with pytest.raises(ConfigError, match="--nodata is 'zero', expected file, none, all_zero, any_zero, band:NAME"):
        masks_of(weights, tmp_path / "out", tmp_path / "b.tif", "--nodata", "zero")


def test_an_array_of_another_unit_is_refused(weights: Path) -> None:
    network, image = load_network(weights, "cpu"), draw(90, 80).transpose(1, 2, 0)
    with pytest.raises(DataError, match=r"array: most values lie outside the range .*expected 500 to 9000"):
        predict_array(network, image.astype(np.float32) / 10_000)
    with pytest.warns(UserWarning, match="a band has one value at every pixel"):
        predict_array(network, np.full_like(image, 3000))


def started(weights: Path, out: Path, scene: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "predict.py", "--weights", weights, "--out", out, "--device", "cpu", scene]
    return subprocess.Popen(
        list(map(str, command)), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def waited_for(holds: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    while not holds() and child.poll() is None:
        time.sleep(0.005)


def test_a_kill_in_a_scene_leaves_nothing_half_and_the_next_start_gives_the_same_bytes(
    tmp_path: Path, weights: Path
) -> None:
    write_scene(tmp_path / "a.tif", 1200, 900)
    out = tmp_path / "out"
    child = started(weights, out, tmp_path / "a.tif")
    waited_for(lambda: (out / ".a_mask.tif.part" / "a_mask.tif").exists(), child)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert (out / ".a_mask.tif.part").exists() and not (out / "a_mask.tif").exists()
    masks_of(weights, out, tmp_path / "a.tif")
    assert files_of(out) == {"predict.json", "summary.csv", "a_mask.tif"}
    whole = masks_of(weights, tmp_path / "whole", tmp_path / "a.tif")
    assert (out / "a_mask.tif").read_bytes() == (whole / "a_mask.tif").read_bytes()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_reader_that_goes_away_ends_it_and_quiet_says_nothing(tmp_path: Path, weights: Path, quiet: bool) -> None:
    """`predict.py ... 2>&1 | head -1`: the bar is moved, and fails, in a thread."""
    write_scene(tmp_path / "a.tif", 300 if quiet else 1500, 300)
    code = "import runpy, utils.output\nutils.output.EVERY = 0\nrunpy.run_path('predict.py', run_name='__main__')"
    words = [
        "--weights",
        weights,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        tmp_path / "a.tif",
        *["--quiet"] * quiet,
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words), *["--quiet"] * quiet],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b"" if quiet else b"scenes: 0/1 [")
    child.stdout.close()
    assert child.wait(120) == (0 if quiet else 128 + signal.SIGTERM)
    assert files_of(tmp_path / "out") == {"predict.json", *["summary.csv", "a_mask.tif"] * quiet}


@pytest.mark.slow
def test_kills_at_many_moments(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "a.tif", 1200, 900)
    whole = masks_of(weights, tmp_path / "whole", tmp_path / "a.tif")
    for moment in range(20):
        out = tmp_path / f"out_{moment}"
        child = started(weights, out, tmp_path / "a.tif")
        waited_for((out / ".a_mask.tif.part").exists, child)
        time.sleep(0.1 * moment)
        child.kill()
        child.communicate()
        if (out / "a_mask.tif").exists():
            assert (out / "a_mask.tif").read_bytes() == (whole / "a_mask.tif").read_bytes()
        masks_of(weights, out, tmp_path / "a.tif")
        assert files_of(out) == {"predict.json", "summary.csv", "a_mask.tif"}
        assert (out / "a_mask.tif").read_bytes() == (whole / "a_mask.tif").read_bytes()


def test_the_command_ends_with_a_sentence_and_its_status(tmp_path: Path, weights: Path) -> None:
    """And it has loaded no part of the training."""
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path('predict.py', run_name='__main__')\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    (tmp_path / "bad.tif").write_bytes(b"no image")
    write_scene(tmp_path / "good.tif", 80, 70)
    scenes = [tmp_path / "bad.tif", tmp_path / "good.tif"]
    words = ["predict.py", "--run", tmp_path / "run", "--out", tmp_path / "out", "--device", "cpu", *scenes]
    child = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert child.returncode == 1 and "error: 1 of 2 scenes failed" in child.stderr and "Traceback" not in child.stderr
    assert child.stderr.count("bad.tif: cannot be decoded") == 1
    assert (tmp_path / "out" / "good_mask.tif").exists()
    loaded = set(child.stderr.splitlines()[-1].split()) | set(" ".join(child.stderr.splitlines()[-3:]).split())
    assert "scenes.predict" in loaded
    training = ("losses", "engine.loop", "engine.run", "datasets.samples", "datasets.augment", "train_", "tensorboardX")
    names = {"losses", "losses.registry"}  # what a configuration may choose, without what it chooses
    assert not [name for name in loaded - names if name.startswith(training)]


def test_names_that_no_table_can_hold_are_refused(tmp_path: Path, weights: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", 80, 70)
    (tmp_path / "scenes" / "a.tif").rename(tmp_path / "scenes" / "a\udcff.tif")
    with pytest.raises(ConfigError, match=r"a\\udcff\.tif': has a control character in its name; rename it"):
        masks_of(weights, tmp_path / "out", tmp_path / "scenes")


@pytest.mark.parametrize("text", ["[]", "{", "3", "[" * 99_999])
def test_damaged_settings_are_named(tmp_path: Path, weights: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predict.json").write_text(text)
    with pytest.raises(ConfigError, match=r"predict\.json: is not the settings of predict\.py .*give another --out"):
        open_folder(tmp_path / "out", weights, Options())


@pytest.mark.parametrize("text", ["scene\na\n", "scene,cloud_share\na,x\n", "a\x00,b\n1,2\n"])
def test_a_damaged_summary_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.csv").write_text(text)
    with pytest.raises(DataError, match=r"summary\.csv: is not a summary of predict\.py .*remove it to predict all"):
        read_summary(tmp_path / "summary.csv")

"""Scenes: windows and their weights, masks as streams, what a weights file says, and threads that run ahead."""

import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from torch import nn

from config.schema import DataConfig
from datasets.decoder import Decoder
from datasets.scaling import Stretch
from engine.inference import probabilities
from engine.layout import best_model
from engine.windows import Plan, Rows, blended
from nets.segmenter import Segmenter, resize_logits
from nets.weights import save_segmenter
from scenes import CloudNetwork, Images, Options, load_network, predict_array, predict_scene
from scenes.masks import dilated, without_small
from scenes.rasters import Thumbnail, grid_of, slabs
from scenes.streams import ahead
from utils.errors import ConfigError, DataError, WeightsError

PLACE = from_origin(500_000, 5_300_000, 10, 10)
RGB = ("red", "green", "blue")


def images(size: int = 32, geometry: str = "crop", tile: int | None = None) -> Images:
    return Images(Decoder(RGB), size, geometry, tile)


def network_of(cloud: Callable[..., np.ndarray], of: Images, workers: int = 2) -> CloudNetwork:
    return CloudNetwork(Path("network"), of, cloud, workers)


def convolutions(radius: int) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """A network of stride 1 that sees `radius` pixels around each."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 2 * radius - 1, padding=radius - 1)
    )
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)

    @torch.inference_mode()
    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        assert windows.shape[1:3] == size
        return layers(torch.from_numpy(windows).permute(0, 3, 1, 2).float() / 255)[:, 0].sigmoid().numpy()

    return cloud


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", [(150, 117), (40, 200), (20, 30), (64, 64)])
@pytest.mark.parametrize("flips", [False, True])
def test_a_constant_is_blended_to_itself(shape: tuple[int, int], flips: bool) -> None:
    constant = network_of(lambda windows, size: np.full((len(windows), *size), 0.3, np.float32), images())
    probability = predict_array(constant, noise(*shape), options=Options(flips=flips)).probability
    np.testing.assert_allclose(probability, 0.3, rtol=0, atol=1e-6)


def uncertain(windows: Plan, radius: int) -> np.ndarray:
    """The share of each pixel that comes from windows whose border, within the scene, is less than `radius` away."""
    certain = []
    for spans in windows.rows, windows.columns:
        length = spans[-1].stop
        certain.append(np.zeros(length, np.float32))
        for span in spans:
            inside = slice(radius * (span.start > 0), len(span.weight) - radius * (span.stop < length))
            certain[-1][span.start : span.stop][inside] += span.weight[inside]
    return 1 - certain[0][:, None] * certain[1]


@pytest.mark.parametrize("shape", [(150, 117), (40, 200), (20, 30)])
def test_tiles_equal_the_whole_but_for_what_a_border_is_seen_in(shape: tuple[int, int]) -> None:
    radius = 5
    cloud = convolutions(radius)
    image = noise(*shape)
    whole = cloud(image[None], shape)[0]
    for overlap in (2 * radius, 24, 2):
        options = Options(window=48, overlap=overlap)
        tiled = predict_array(network_of(cloud, images()), image, options=options).probability
        bound = uncertain(options.plan(*shape, network_of(cloud, images())), radius)
        assert (bound < 1e-6).mean() > 0.3 and (np.abs(tiled - whole) <= bound + 1e-5).all()
        assert max(shape) <= 48 or np.abs(tiled - whole).max() > 1e-3


def test_tiles_of_a_strided_network_equal_the_whole_where_their_grids_do() -> None:
    """Stride 4: windows and steps of a multiple, and resizing about the pixels' centres is in place."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 1, 3, 2, 1)).requires_grad_(False)

    @torch.inference_mode()
    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        score = layers(torch.from_numpy(windows).permute(0, 3, 1, 2).float() / 255)
        return resize_logits(score, size)[:, 0].sigmoid().numpy()

    image = noise(128, 160)
    whole = cloud(image[None], (128, 160))[0]
    options = Options(window=64, overlap=32)
    tiled = predict_array(network_of(cloud, images()), image, options=options).probability
    bound = uncertain(options.plan(128, 160, network_of(cloud, images())), radius=8)
    assert (bound < 1e-6).mean() > 0.3 and (np.abs(tiled - whole) <= bound + 1e-5).all()


def test_a_segmenter_sees_inside_a_window_what_it_sees_in_the_whole() -> None:
    """Its decoder reaches a few features of 32 pixels to each side, its backbone some 240 pixels more. Only a backbone
    without squeeze and excitation, which takes means over all that it is shown, has a receptive field at all."""
    torch.manual_seed(0)
    segmenter = Segmenter("mobilenetv2_035", init="kaiming").eval()

    @torch.inference_mode()
    def cloud(image: np.ndarray) -> np.ndarray:
        logits = segmenter(torch.from_numpy(image[None]).permute(0, 3, 1, 2).float() / 255).main
        return (logits[:, 1] - logits[:, 0])[0].sigmoid().numpy()

    image = noise(128, 1024)
    whole, part = cloud(image), cloud(image[:, :896])
    difference = np.abs(part - whole[:, : part.shape[1]]).max(0)
    assert difference[:256].max() < 1e-5 < difference[-256:].max()


def test_windows_without_data_are_not_computed_and_what_lies_in_them_is_unknown() -> None:
    shown: list[int] = []

    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        shown.append(len(windows))
        return np.full((len(windows), *size), 0.9, np.float32)

    valid = np.zeros((100, 100), bool)
    valid[:20, :20] = True
    result = predict_array(network_of(cloud, images()), noise(100, 100), valid)
    assert sum(shown) == 1
    assert np.array_equal(result.mask, np.where(valid, 1, 255))
    assert np.isnan(result.probability[~valid]).all() and np.isnan(result.entropy[~valid]).all()
    nothing = predict_array(network_of(cloud, images()), noise(40, 40), np.zeros((40, 40), bool))
    assert (nothing.mask == 255).all() and sum(shown) == 1


def holed(height: int, width: int) -> np.ndarray:
    """Valid but at single pixels and in a corner."""
    valid = np.random.default_rng(2).random((height, width)) > 0.05
    valid[: height // 3, : width // 4] = False
    return valid


@pytest.mark.parametrize("of", [images(), images(32, "letterbox", None), images(32, "letterbox", 64)])
def test_no_window_is_shown_a_hole(tmp_path: Path, of: Images) -> None:
    """A flat scene with holes, as an array, with NaN, and as a file: flat in every window, 255 at the holes."""
    shown: set[int] = set()

    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        shown.update(np.unique(windows).tolist())
        return np.full((len(windows), *size), 0.9, np.float32)

    valid = holed(100, 90)
    image = np.where(valid[..., None], np.uint8(200), np.uint8(0)).repeat(3, 2)
    assert np.array_equal(predict_array(network_of(cloud, of), image, valid).mask, np.where(valid, 1, 255))
    stored = np.where(valid[..., None], np.float32(0.8), np.float32("nan")).repeat(3, 2)
    reflectance = replace(of, decoder=Decoder(RGB, scaling=Stretch((0.0,) * 3, (1.02,) * 3)))
    assert np.array_equal(predict_array(network_of(cloud, reflectance), stored).mask, np.where(valid, 1, 255))
    kind = {"height": 100, "width": 90, "count": 3, "dtype": "float32", "transform": PLACE}
    with rasterio.open(tmp_path / "a.tif", "w", **kind, tiled=True, blockxsize=16, blockysize=16) as file:
        file.write(stored.transpose(2, 0, 1))
    predict_scene(network_of(cloud, reflectance), tmp_path / "a.tif", {"mask": tmp_path / "mask.tif"})
    assert np.array_equal(rasterio.open(tmp_path / "mask.tif").read(1), np.where(valid, 1, 255))
    assert shown == {200}


def test_flips_make_a_mirrored_image_a_mirrored_mask() -> None:
    network = network_of(convolutions(3), images())
    image = noise(48, 48)
    options = Options(window=48, flips=True)
    one, other = (predict_array(network, turned, options=options).probability for turned in (image, image[:, ::-1]))
    np.testing.assert_allclose(other[:, ::-1], one, rtol=0, atol=1e-6)
    assert not np.array_equal(one, predict_array(network, image, options=Options(window=48)).probability)


@pytest.mark.parametrize(
    ("shape", "of"), [((1, 70), images()), ((70, 1), images()), ((2, 400), images(64, "letterbox"))]
)
def test_flips_of_a_scene_of_one_pixel_in_height_or_width(shape: tuple[int, int], of: Images) -> None:
    """NumPy takes an axis of one pixel for contiguous whichever way it runs, torch does not."""

    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return torch.from_numpy(windows)[..., 0].float().mean((1, 2)).div(255).numpy()[:, None, None] + np.zeros(size)

    image = noise(*shape)
    plain, mean = (predict_array(network_of(cloud, of), image, options=Options(flips=flips)) for flips in (False, True))
    np.testing.assert_allclose(mean.probability, plain.probability, rtol=0, atol=1e-6)


def test_rows_do_not_depend_on_how_the_scene_is_read() -> None:
    network = network_of(convolutions(3), images())
    image, valid = noise(131, 70), np.random.default_rng(1).random((131, 70)) > 0.2
    windows = Options().plan(131, 70, network)

    def read(rows: int) -> np.ndarray:
        parts = (Rows(image[top : top + rows], valid[top : top + rows]) for top in range(0, 131, rows))
        given = list(blended(network.cloud, parts, windows))
        assert np.array_equal(np.concatenate([part.valid for part in given]), valid)
        return np.concatenate([part.layer for part in given])

    assert np.array_equal(read(131), read(1)) and np.array_equal(read(131), read(50))


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter("mobilenetv3_small_050", init="kaiming").eval()


def record(**changes: Any) -> dict[str, str]:
    target = {"bands": None, "scaling": None, "nodata": "file"}
    return {
        "data": json.dumps({"bands": RGB, "size": 64, "geometry": "crop", "tile": None, "target": target} | changes)
    }


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((64, 64), DataConfig(size=64, geometry="crop")),
        ((530, 200), DataConfig(size=64, geometry="crop")),
        ((50, 90), DataConfig(size=64, geometry="letterbox", tile=96)),
        ((50, 90), DataConfig(size=64, geometry="letterbox", tile=None)),
        ((96, 96), DataConfig(size=64, geometry="letterbox", tile=96)),
    ],
)
def test_a_scene_is_seen_as_the_evaluation_sees_it(
    tmp_path: Path, segmenter: Segmenter, shape: tuple[int, int], data: DataConfig
) -> None:
    metadata = record(size=data.size, geometry=data.geometry, tile=data.tile)
    save_segmenter(tmp_path / "student.safetensors", segmenter, metadata)
    image, valid = cv2.GaussianBlur(noise(*shape), (0, 0), 5), holed(*shape)
    expected = probabilities(segmenter, image, data, valid)["main"][1].numpy()
    found = predict_array(load_network(tmp_path / "student.safetensors", "cpu"), image, valid).probability
    np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-5)


def test_a_letterbox_network_sees_tiles_scaled_to_the_training_size() -> None:
    shown: set[tuple[int, ...]] = set()

    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        shown.add((*windows.shape[1:3], *size))
        return np.zeros((len(windows), *size), np.float32)

    scaled = images(32, "letterbox", 64)
    predict_array(network_of(cloud, scaled), noise(100, 80))
    assert shown == {(32, 32, 64, 64)}
    shown.clear()
    predict_array(network_of(cloud, scaled), noise(100, 80), options=Options(window=48))
    assert shown == {(24, 24, 48, 48)}
    shown.clear()
    valid = np.zeros((60, 50), bool)
    valid[10:30, 5:45] = True  # 20 x 40: what has no data around it is cut off before it is scaled, as in training
    predict_array(network_of(cloud, scaled), noise(60, 50), valid)
    assert shown == {(16, 32, 20, 40)}


def test_a_scene_too_large_to_be_looked_at_as_a_whole_is_refused() -> None:
    network = network_of(convolutions(3), images(32, "letterbox", None))
    with pytest.raises(ConfigError, match=r"5000x100 pixels.*give --window"):
        Options().plan(100, 5000, network)
    assert len(Options(window=512).plan(100, 5000, network).columns) > 1


@pytest.mark.parametrize(("window", "overlap"), [(32, 32), (32, 40)])
def test_windows_that_do_not_move_are_refused(window: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"overlap is {overlap}, expected"):
        Options(window, overlap).plan(100, 100, network_of(convolutions(3), images()))


@pytest.mark.parametrize(
    "change", [{"threshold": 1.5}, {"window": 0}, {"overlap": -1}, {"min_cloud": -1}, {"buffer": -1}]
)
def test_options_that_mean_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is .*, expected"):
        Options(**change)


def test_arrays_that_are_no_image_of_the_network_are_refused() -> None:
    network = network_of(convolutions(3), images())
    with pytest.raises(DataError, match=r"found an array \(40, 40, 2\), expected \(H, W, 3\): red, green, blue"):
        predict_array(network, noise(40, 40)[..., :2])
    with pytest.raises(DataError, match="found uint16"):
        predict_array(network, noise(40, 40).astype(np.uint16))
    with pytest.raises(DataError, match="found valid"):
        predict_array(network, noise(40, 40), np.ones((40, 41), bool))


def test_an_array_is_scaled_as_the_files_are() -> None:
    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return windows[..., 0].astype(np.float32) / 255

    of = Images(Decoder(RGB, scaling=Stretch((1000.0,) * 3, (3000.0,) * 3)), 32, "crop", None)
    image = np.full((40, 40, 3), 2000, np.float32)
    image[0, 0] = np.nan
    given = image.copy()
    result = predict_array(network_of(cloud, of), image)
    np.testing.assert_array_equal(image, given)
    assert result.mask[0, 0] == 255 and result.probability[1, 1] == pytest.approx(0.5, abs=0.005)


def strips_of(mask: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (mask[top : top + rows].copy() for top in range(0, len(mask), rows))


def random_mask(seed: int, share: float, shape: tuple[int, int] = (60, 40)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.05, 255, rng.random(shape) < share).astype(np.uint8)


@pytest.mark.parametrize("rows", [1, 7, 60])
@pytest.mark.parametrize("least", [2, 5, 30])
@pytest.mark.parametrize("share", [0.15, 0.35, 0.5])
def test_small_clouds_are_cleared_whatever_the_strips(share: float, least: int, rows: int) -> None:
    for seed in range(5):
        mask = random_mask(seed, share)
        _, labels = cv2.connectedComponents((mask == 1).astype(np.uint8), connectivity=8)
        sizes = np.bincount(labels.ravel())
        expected = np.where((mask == 1) & (sizes[labels] < least), 0, mask)
        given = list(without_small(strips_of(mask, rows), least))
        assert np.array_equal(np.concatenate(given), expected)


def test_rows_held_back_for_small_clouds_are_bounded() -> None:
    """A cloud one pixel wide is held back until it is large enough, and no longer."""
    least = 10
    read: list[int] = []

    def column() -> Iterator[np.ndarray]:
        for top in range(100):
            read.append(top)
            yield np.ones((1, 1), np.uint8)

    given = 0
    for strip in without_small(column(), least):
        given += len(strip)
        assert len(read) - given < least
    assert given == 100


@pytest.mark.parametrize("rows", [1, 7, 60])
@pytest.mark.parametrize("radius", [1, 3, 11])
def test_clouds_are_widened_by_a_disc_whatever_the_strips(radius: int, rows: int) -> None:
    mask = random_mask(radius, 0.01)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    cloud = np.argwhere(mask == 1)
    near = ((y[..., None] - cloud[:, 0]) ** 2 + (x[..., None] - cloud[:, 1]) ** 2 <= radius**2).any(-1)
    expected = np.where(near & (mask != 255), 1, mask)
    assert np.array_equal(np.concatenate(list(dilated(strips_of(mask, rows), radius))), expected)


def test_a_mask_without_cloud_stays_clear() -> None:
    clear = np.zeros((30, 20), np.uint8)
    assert not np.concatenate(list(dilated(without_small(strips_of(clear, 7), 5), 3))).any()


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_a_thumbnail_is_every_nth_pixel_whatever_the_strips(tmp_path: Path, rows: int) -> None:
    layer = np.arange(2100 * 30).reshape(2100, 30)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros(layer.shape, np.uint8))
    small = Thumbnail(grid_of(tmp_path / "a.png"))
    for strip in strips_of(layer, rows):
        small.add(strip)
    assert np.array_equal(small.picture, layer[::3, ::3])


@pytest.mark.parametrize(
    "blocks", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 32}, {"blockysize": 1}, {"blockysize": 300}]
)
def test_slabs_are_the_scene_whatever_its_blocks(
    tmp_path: Path, blocks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenes.rasters.PIECE", 64 * 130)
    pixels = np.random.default_rng(0).integers(0, 3, (3, 300, 200), np.uint8)
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=300, width=200, count=3, dtype="uint8", nodata=0, transform=PLACE, **blocks
    ) as file:
        file.write(pixels)
    decoder = Decoder(RGB)
    parts = list(slabs(path, decoder, grid_of(path)))
    assert len(parts) > 1
    assert np.array_equal(np.concatenate([part.valid for part in parts]), (pixels > 0).any(0))
    expected = np.where((pixels > 0).any(0)[..., None], pixels.transpose(1, 2, 0), 0)
    assert np.array_equal(np.concatenate([part.layer for part in parts]), expected)


def test_what_runs_ahead_stops_when_nobody_asks_and_raises_where_it_is_asked() -> None:
    before = threading.active_count()

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)

    with ahead(endless(), 2) as numbers:
        assert [next(numbers) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert threading.active_count() == before

    def failing() -> Iterator[int]:
        yield 1
        raise DataError("scene.tif: is damaged")

    with ahead(failing(), 2) as numbers, pytest.raises(DataError, match="is damaged"):
        list(numbers)
    with pytest.raises(KeyError), ahead(endless(), 2):
        raise KeyError
    assert threading.active_count() == before


def test_a_record_of_other_bands_is_refused(tmp_path: Path, segmenter: Segmenter) -> None:
    save_segmenter(tmp_path / "student.safetensors", segmenter, record(bands=["red", "nir"]))
    with pytest.raises(WeightsError, match=r"takes 3 band\(s\), and its record names red, nir"):
        load_network(tmp_path / "student.safetensors", "cpu")


def test_a_run_gives_its_best_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no weights, expected one of"):
        best_model(tmp_path).weights(tmp_path)
    for name in ("source_only/source_only", "teacher/teacher", "intra/student"):
        (path := tmp_path / f"{name}.safetensors").parent.mkdir()
        path.touch()
        assert best_model(tmp_path).weights(tmp_path) == path


def test_control_points_without_a_reference_system_are_left_out(tmp_path: Path) -> None:
    """GDAL cannot write them; such a scene has a mask all the same."""
    points = [GroundControlPoint(row, col, col, row) for row in (0, 40) for col in (0, 40)]
    path = tmp_path / "a.tif"
    shape = {"height": 40, "width": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", gcps=points, crs="EPSG:4326", **shape) as file:
        file.write(noise(40, 40).transpose(2, 0, 1))
    directory = struct.pack("<HH", 34735, 3)  # of keys that say which system it is; no reader knows the other tag
    path.write_bytes(path.read_bytes().replace(directory, struct.pack("<HH", 65000, 3)))
    with rasterio.open(path) as file:
        assert file.gcps[0] and file.gcps[1] is None
    dark = network_of(lambda windows, size: np.zeros((len(windows), *size), np.float32), images())
    summary = predict_scene(dark, path, {"mask": tmp_path / "mask.tif"})
    assert summary.cloud_share == 0 and summary.valid_share == 1


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("shape", [(2, 3000), (3000, 2)])
def test_a_scene_is_planned_only_where_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, int]
) -> None:
    """A header of a few bytes may announce so many windows that to plan them alone would never end."""
    monkeypatch.setattr("scenes.rasters.ROWS", 1000)
    monkeypatch.setattr("scenes.rasters.STRIP", 1)
    height, width = shape if name == "a.tif" else (3000, 1000)
    path = tmp_path / name
    assert cv2.imwrite(str(path), np.zeros((height, width), np.uint8))
    assert grid_of(path)[:2] == (height, width)
    monkeypatch.setenv("ASDA_MAX_IMAGE_MIB", "2")
    with pytest.raises(
        DataError, match=rf"{name}: .* pixels by the header, 3 MiB when decoded, and the limit is 2 MiB"
    ):
        grid_of(path)

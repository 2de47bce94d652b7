"""The images of a domain: every fault named at once, large images cut into tiles, several read at a time."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import images
from datasets.cache import Cache
from datasets.check import inspect_image
from datasets.decoder import Decoder
from datasets.files import Item, Window
from datasets.images import ImageSet, checked, corners, in_parallel, tiles
from datasets.measured_scaling import measured_stretch
from datasets.readers import find_images
from tests.datasets.written import fault_of, item_of, noise, picture, raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
Make = Callable[..., Path]
RGB = ("red", "green", "blue")
few = settings(max_examples=60, deadline=None)


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


def test_in_parallel_keeps_the_order_and_reads_a_bounded_number_ahead() -> None:
    items = [Item(str(i), (Path(str(i)),)) for i in range(3 * images.PARALLEL)]
    started, both = [], threading.Barrier(2)

    def inspect(item: Item) -> str:
        started.append(item.name)
        if int(item.name) < 2:
            both.wait(timeout=20)  # two at a time, or this ends in an error
        return item.name

    results = in_parallel(inspect, items, "inspecting")
    assert next(results) == "0"
    assert len(started) <= images.PARALLEL
    assert ["0", *results] == [item.name for item in items]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("label_map", "missing"), [({0: 0, 1: 1, 255: 255}, "cloud"), ({0: 255, 255: 255}, "clear or cloud")]
)
def test_labels_without_a_class_teach_nothing(
    tmp_path: Path, make_domain: Make, label_map: dict[int, int], missing: str, cached: bool
) -> None:
    items = find_images(make_domain(tmp_path / "domain", count=3), labels=True).items
    decoder, cache = Decoder(RGB, label_map=label_map), Cache(tmp_path / "cache") if cached else None
    for _ in range(2):
        message = fault_of(lambda: checked(items, decoder, "source", cache, taught=True))
        assert message.startswith(f"source: found labels in which no pixel is {missing} by the label_map {label_map}")
        assert f"{items[0].label} holds 0, 255: set the domain's label_map" in message
    assert len(checked(items, decoder, "source evaluation", cache)) == 3
    assert len(checked(items, Decoder(RGB), "source", cache, taught=True)) == 3


PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5.3e6)}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"crs": "EPSG:32632"}, "found the CRS EPSG:32632, expected EPSG:32633 as in "),
        ({"transform": Affine(10, 0, 5e5 + 10, 0, -10, 5.3e6)}, "found it 1.0 pixels away, expected the same place as"),
        ({"transform": Affine(20, 0, 5e5, 0, -20, 5.3e6)}, "found it 30.0 pixels away"),
        ({"transform": Affine(10, 0, 5e5 + 4, 0, -10, 5.3e6)}, None),
        ({"transform": Affine.identity(), "crs": None}, None),
        ({}, None),
    ],
)
def test_a_label_lies_where_its_image_lies(tmp_path: Path, change: dict[str, Any], found: str | None) -> None:
    image = raster(tmp_path / "a.tif", noise(20, 30, 3, dtype="uint8"), photometric="rgb", **PLACE)
    label = raster(tmp_path / "l.tif", np.zeros((20, 30), np.uint8), **{**PLACE, **change})
    item, decoder = item_of(image, label=label), Decoder(RGB)
    if found is None:
        assert len(checked([item], decoder, "source")) == 1 and inspect_image(item, decoder)
        return
    for action in (lambda: checked([item], decoder, "source"), lambda: inspect_image(item, decoder)):
        message = fault_of(action)
        assert f"{label}: {found}" in message and "warp the label to the image's grid" in message

"""The cache: paid once, found by content and rules alone, whole or not at all, and never with a label in an image."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import decoder as decoding
from datasets.cache import Cache
from datasets.decoder import Decoder
from datasets.files import Item, Window
from datasets.images import ImageSet, checked
from datasets.scaling import Stretch
from utils.errors import DataError

RGB = ("red", "green", "blue")
RULES = Decoder(RGB, nodata="all_zero")


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Three images with labels, the first with a margin that holds no data."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(3):
        pixels, label = rng.integers(1, 256, (12, 9, 3), np.uint8), rng.integers(0, 2, (12, 9), np.uint8) * 255
        pixels[: 3 if i == 0 else 0] = 0
        image = picture(tmp_path / f"data/images/{i}.png", pixels)
        found.append(Item(str(i), (image,), picture(tmp_path / f"data/labels/{i}.png", label)))
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is decoded, in order."""
    seen: list[Path] = []
    for name in ("read_bands", "read_label"):
        inner = getattr(decoding, name)

        def counted(path: Path, *rest: Any, inner: Callable[..., Any] = inner) -> Any:
            seen.append(path)
            return inner(path, *rest)

        monkeypatch.setattr(decoding, name, counted)
    return seen


def entries(cache: Cache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.folder.rglob("*")) if path.is_file()}


def same(first: ImageSet, second: ImageSet) -> bool:
    pairs = [(first.read(item), second.read(item)) for item in first]
    layers = [pair for one, two in pairs for pair in zip(one, two, strict=True)]
    return first.items == second.items and all(np.array_equal(one, two) for one, two in layers)


def test_second_reading_decodes_nothing(items: list[Item], cache: Cache, decoded: list[Path]) -> None:
    plain = checked(items, RULES, "source")
    assert len(decoded) == 6
    decoded.clear()
    first = checked(items, RULES, "source", cache)
    assert len(decoded) == 6 and same(plain, first)
    decoded.clear()
    again = checked(items, RULES, "source", cache)
    from_cache = [again.read(item) for item in again]
    assert decoded == []
    assert same(plain, again)
    assert [one.top for one in from_cache] == [3, 0, 0] and from_cache[0].height == 12
    assert all(one.valid.dtype == bool and one.image.dtype == np.uint8 for one in from_cache)


def test_cached_image_cannot_be_changed(items: list[Item], cache: Cache) -> None:
    found = checked(items, RULES, "source", cache)
    with pytest.raises(ValueError, match="read-only"):
        found.read(items[1]).image[:] = 0


def test_key_follows_content_and_not_path_or_time(items: list[Item], cache: Cache, tmp_path: Path) -> None:
    item = items[0]
    before = cache.key(item, RULES)
    assert item.label is not None
    moved = Item("another", (tmp_path / "x.tif",), tmp_path / "y.tif", "scene")
    for old, new in ((item.image, moved.files[0]), (item.label, tmp_path / "y.tif")):
        new.write_bytes(old.read_bytes())
        os.utime(new, (1, 1))
    assert cache.key(moved, RULES) == before
    os.utime(item.image, (5, 5))
    assert cache.key(item, RULES) == before
    content = bytearray(item.image.read_bytes())
    content[-1] ^= 1  # the same length
    item.image.write_bytes(content)
    os.utime(item.image, (6, 6))
    changed = cache.key(item, RULES)
    assert changed[0] != before[0] and changed[1] == before[1]
    item.label.write_bytes(content)
    assert cache.key(item, RULES)[1] != before[1]


def test_key_follows_every_rule_of_decoding(items: list[Item], cache: Cache) -> None:
    item, window = items[0], Window(0, 0, 4, 4)
    variants: list[tuple[Item, Decoder]] = [
        (item, RULES),
        (item, replace(RULES, bands=("blue", "green", "red"))),
        (item, replace(RULES, bands=("red",))),
        (item, replace(RULES, file_bands=("blue", "green", "red"))),
        (item, replace(RULES, scaling="shift8")),
        (item, replace(RULES, scaling=Stretch((0.0, 0.0, 0.0), (9.0, 9.0, 9.0)))),
        (item, replace(RULES, scaling=Stretch((0.0, 0.0, 0.0), (9.0, 9.0, 9.5)))),
        (item, replace(RULES, nodata="file")),
        (item, replace(RULES, nodata=0)),
        (item, replace(RULES, scaling=Stretch((0.0, 0.0, 0.0), (9.0, 9.0, 9.0), gamma=2.0))),
        (item, replace(RULES, scaling=Stretch((0.0, 0.0, 0.0), (9.0, 9.0, 9.0), dtype="uint16"))),
    ]
    keys = [cache.key(*variant) for variant in variants]
    assert len({image for image, _ in keys}) == len(variants)
    assert len({label for _, label in keys}) == 1  # a label is the same by any rule for images
    others = [
        cache.key(item, replace(RULES, label_map={0: 0, 255: 255})),
        cache.key(item._replace(label=None), RULES),
    ]
    assert {image for image, _ in others} == {keys[0][0]}  # and the other way round
    assert len({keys[0][1], *(label for _, label in others)}) == 3 and others[1][1] is None
    assert cache.key(item._replace(window=window, label_window=window), RULES) == keys[0]  # tiles share what is whole


def test_key_follows_the_files_that_gdal_reads_beside_an_image(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.full((4, 5), 9, np.uint8)).save(path)
    item, decoder = Item("x", (path,)), Decoder(("gray",))
    keys = [cache.key(item, decoder)]
    for end in (".msk", ".aux.xml"):
        Path(f"{path}{end}").write_bytes(b"something")
        keys.append(cache.key(item, decoder))
    assert len(set(keys)) == 3


def test_tiles_of_one_image_are_decoded_once(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    decoder, calls = Decoder(("red", "green", "blue")), []
    original = Decoder.stored
    monkeypatch.setattr(Decoder, "stored", lambda *a: (calls.append(a), original(*a))[1])
    images = checked([Item("x", (tmp_path / "x.png",))], decoder, "x", cache, tile=20)
    assert len(images) == 6 and len(calls) == 1
    for item in images:
        assert item.window is not None
        top, left, height, width = item.window
        assert np.array_equal(images.read(item).image, pixels[top : top + height, left : left + width])
    assert len(calls) == 1


def test_order_of_a_label_map_does_not_matter(items: list[Item], cache: Cache) -> None:
    first, second = replace(RULES, label_map={0: 0, 255: 1}), replace(RULES, label_map={255: 1, 0: 0})
    assert cache.key(items[0], first) == cache.key(items[0], second)


def test_key_of_a_file_a_band_follows_the_bands_that_are_read(tmp_path: Path, cache: Cache) -> None:
    names = ("red", "nir", "qa", "swir")
    files = tuple(picture(tmp_path / f"{name}.png", np.full((4, 5), 9, np.uint8)) for name in names)
    item, decoder = Item("x", files), Decoder(("nir", "red"), names, nodata="band:qa")
    before = cache.key(item, decoder)
    for name, matters in (("swir", False), ("red", True), ("nir", True), ("qa", True)):
        path, kept = tmp_path / f"{name}.png", (tmp_path / f"{name}.png").read_bytes()
        picture(path, np.full((4, 5), 77, np.uint8))
        assert (cache.key(item, decoder) != before) == matters, name
        path.write_bytes(kept)
    assert cache.key(item, replace(decoder, bands=("red", "nir"))) != before


def test_mask_band_that_changes_is_read_again(tmp_path: Path, cache: Cache) -> None:
    files = tuple(picture(tmp_path / f"{name}.png", np.full((4, 5), 9, np.uint8)) for name in "ab")
    decoder = Decoder(("a",), ("a", "b"), nodata="band:b")
    first = checked([Item("x", files)], decoder, "source", cache)
    assert first.read(first[0]).valid.all()
    mask = np.full((4, 5), 9, np.uint8)
    mask[1, 1] = 0
    picture(files[1], mask)
    valid = checked(first.items, decoder, "source", cache).read(first[0]).valid
    assert np.argwhere(~valid).tolist() == [[1, 1]]


@pytest.mark.parametrize("damage", ["empty", "short", "header", "long", "garbage", "kind"])
def test_damaged_entry_is_made_again(items: list[Item], cache: Cache, decoded: list[Path], damage: str) -> None:
    plain = checked(items, RULES, "source")
    checked(items, RULES, "source", cache)
    before = entries(cache)
    for path in (path for path in cache.folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        kinds = {
            "empty": b"",
            "short": content[:-1],
            "header": content[:10],
            "long": content + b"\0",
            "kind": bytes(4) + content[4:],
            "garbage": np.random.default_rng(0).bytes(len(content)),
        }
        path.write_bytes(kinds[damage])
    decoded.clear()
    mended = checked(items, RULES, "source", cache)
    assert len(decoded) == 6 and entries(cache) == before and same(plain, mended)


def test_image_entries_hold_no_label(items: list[Item], cache: Cache, decoded: list[Path]) -> None:
    """What an unlabelled stage leaves in the cache is what a labelled one finds, and a label has its own entry."""
    bare = [item._replace(label=None) for item in items]
    checked(bare, RULES, "target", cache)
    alone = entries(cache)
    assert len(alone) == 3 and not [path for path in decoded if "labels" in path.parts]
    decoded.clear()
    checked(items, RULES, "source", cache)
    assert [path.parent.name for path in decoded] == ["labels"] * 3
    both = entries(cache)
    assert len(both) == 6 and alone.items() <= both.items()
    assert checked(bare, RULES, "target", cache).read(bare[0]).label is None


def test_other_labels_of_the_same_image_share_its_entry(items: list[Item], cache: Cache, tmp_path: Path) -> None:
    checked(items[:1], RULES, "source", cache)
    other = picture(tmp_path / "other.png", np.full((12, 9), 255, np.uint8))
    found = checked([items[0]._replace(label=other)], RULES, "source", cache)
    label = found.read(found[0]).label
    assert label is not None and (label == 1).all() and len(entries(cache)) == 3


def test_threads_fill_one_cache_at_once(items: list[Item], cache: Cache) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: checked(items, RULES, "source", cache), range(16)))
    assert len(entries(cache)) == 6 and not list(cache.folder.rglob("*.tmp"))
    plain = checked(items, RULES, "source")
    assert all(same(plain, one) for one in found)


FILL = """
import sys
from pathlib import Path
from datasets.cache import Cache
from datasets.files import Item
from datasets.decoder import Decoder
from datasets.images import checked
data, folder = map(Path, sys.argv[1:])
items = [Item(str(i), (data / f"images/{i}.png",), data / f"labels/{i}.png") for i in range(3)]
print("ready", flush=True)
sys.stdin.readline()
checked(items, Decoder(("red", "green", "blue"), nodata="all_zero"), "source", Cache(folder))
"""


def test_processes_fill_one_cache_at_once(items: list[Item], cache: Cache, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path / "data"), str(cache.folder)]
    root = str(Path(decoding.__file__).parents[1])
    runs = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for run in runs:  # both wait until both have started
        assert run.stdout is not None and run.stdout.readline() == b"ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write(b"go\n")
        run.stdin.flush()
    for run in runs:
        _, error = run.communicate(timeout=60)
        assert run.returncode == 0, error.decode()
    alone = Cache(tmp_path / "alone")
    checked(items, RULES, "source", alone)
    assert entries(cache) == entries(alone) and len(entries(cache)) == 6
    assert not list(cache.folder.rglob("*.tmp"))


@pytest.mark.parametrize("below", ["cache", "cache/deeper"])
def test_folder_that_cannot_be_written_is_named(items: list[Item], tmp_path: Path, below: str) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(DataError) as caught:
        checked(items, RULES, "source", Cache(tmp_path / below))
    message = str(caught.value)
    assert "source has 3 fault(s)" in message and "set data.cache to another folder or to null" in message
    assert f"{tmp_path / below}{os.sep}" in message and "cannot be written (" in message


def test_interrupted_write_leaves_nothing(items: list[Item], cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        with pytest.raises(DataError, match="No space left on device"):
            checked(items, RULES, "source", cache)
    assert entries(cache) == {}
    assert len(checked(items, RULES, "source", cache)) == 3


def test_file_that_went_away_is_named(items: list[Item], cache: Cache) -> None:
    items[1].image.unlink()
    with pytest.raises(DataError, match="cannot be read") as caught:
        checked(items, RULES, "source", cache)
    assert str(items[1].image) in str(caught.value) and "1 fault(s)" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "value"), [(0, 1), (1, -3), (2, -9), (4, 1), (5, -1), (6, 3), (6, 9568296), (7, 0)], ids=lambda v: str(v)
)
def test_an_entry_whose_header_is_damaged_is_made_again(items: list[Item], cache: Cache, word: int, value: int) -> None:
    """Words: magic, planes, height, width, top, left, full height, full width."""
    expected = checked(items, RULES, "source").read(items[0])
    found = checked(items, RULES, "source", cache)
    image, _ = found.keys["0"]
    path = cache.folder / image[:2] / image
    header = np.frombuffer(path.read_bytes()[:32], "<i4").copy()
    header[word] = value if word != 4 else header[6] - header[2] + 1
    path.write_bytes(header.tobytes() + path.read_bytes()[32:])
    decoded = found.read(items[0])
    assert np.array_equal(decoded.image, expected.image) and decoded[3:] == expected[3:]


def test_an_entry_of_negative_sizes_whose_product_is_right_is_made_again(items: list[Item], cache: Cache) -> None:
    found = checked(items, RULES, "source", cache)
    image, _ = found.keys["1"]
    path = cache.folder / image[:2] / image
    header = np.frombuffer(path.read_bytes()[:32], "<i4").copy()
    header[2:4] *= -1
    path.write_bytes(header.tobytes() + path.read_bytes()[32:])
    assert found.read(items[1]).image.shape == (12, 9, 3)

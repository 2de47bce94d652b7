"""A domain on disk: what is listed, what is never opened, and how each fault is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.files import Item, check_items, list_domain, read_image, read_item, read_label
from utils.errors import DataError

Make = Callable[..., Path]
MAP = {0: 0, 255: 1}


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def fault_of(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    return str(caught.value)


# listing


def test_folder_pairs_images_and_labels_by_stem(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=3)
    items = list_domain(root, labels=True)
    assert [item.name for item in items] == ["scene_00", "scene_01", "scene_02"]
    assert items[1] == Item("scene_01", root / "images/scene_01.png", root / "labels/scene_01.png")


def test_folder_reads_nested_folders_and_leaves_other_files(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    for name in ("b/1.png", "a/1.png", "a/2.JPG"):
        write(tmp_path / "images" / name, pixels)
    (tmp_path / "images/notes.txt").write_text("no image")
    assert [item.name for item in list_domain(tmp_path, labels=False)] == ["a/1", "a/2", "b/1"]


def test_label_may_have_another_suffix(tmp_path: Path) -> None:
    write(tmp_path / "images/a.jpg", np.zeros((4, 4, 3), np.uint8))
    label = write(tmp_path / "labels/a.png", np.zeros((4, 4), np.uint8))
    assert list_domain(tmp_path, labels=True)[0].label == label


def test_list_selects_and_sorts(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=4)
    (root / "some.txt").write_text(
        "images/scene_03.png labels/scene_03.png\n\n./images/scene_01.png labels/scene_02.png\n"
    )
    items = list_domain(root, "some.txt", labels=True)
    assert [(item.name, item.label) for item in items] == [
        ("scene_01", root / "labels/scene_02.png"),  # the row decides, not the stem
        ("scene_03", root / "labels/scene_03.png"),
    ]


def test_list_may_lie_elsewhere_while_its_rows_stay_below_root(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path / "domain", count=2)
    elsewhere = tmp_path / "easy.txt"
    elsewhere.write_text("images/scene_01.png\n")
    assert [i.image for i in list_domain(root, str(elsewhere), labels=False)] == [root / "images/scene_01.png"]


def test_list_and_folder_give_the_same_names(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=3)
    (root / "all.txt").write_text("".join(f"images/scene_{i:02d}.png labels/scene_{i:02d}.png\n" for i in range(3)))
    assert list_domain(root, "all.txt", labels=True) == list_domain(root, labels=True)


@pytest.mark.parametrize("rows", [None, "train.txt"])
@pytest.mark.parametrize("damage", ["delete", "garbage"])
def test_unwanted_labels_are_never_opened(tmp_path: Path, make_domain: Make, rows: str | None, damage: str) -> None:
    root = make_domain(tmp_path, count=3)
    (root / "train.txt").write_text("".join(f"images/scene_{i:02d}.png labels/scene_{i:02d}.png\n" for i in range(3)))
    before = list_domain(root, rows, labels=False)
    for label in (root / "labels").iterdir():
        label.unlink() if damage == "delete" else label.write_text("not a picture")
    after = list_domain(root, rows, labels=False)
    check_items(after, MAP, "target")
    assert after == before and all(item.label is None for item in after)
    assert read_item(after[0], MAP)[1] is None


def test_partial_labels(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path / "a")
    (root / "labels" / "scene_01.png").unlink()
    found = list_domain(root, labels=True, partial=True)
    assert [item.name for item in found if item.label is None] == ["scene_01"] and len(found) == 6
    assert "scene_01.png: has no label" in fault_of(lambda: list_domain(root, labels=True))
    (root / "rows.txt").write_text("images/scene_00.png labels/scene_00.png\nimages/scene_01.png labels/scene_01.png\n")
    assert [item.label is None for item in list_domain(root, "rows.txt", labels=True, partial=True)] == [False, True]
    assert "line 2" in fault_of(lambda: list_domain(root, "rows.txt", labels=True))
    bare = make_domain(tmp_path / "b", labels=False)
    assert all(item.label is None for item in list_domain(bare, labels=True, partial=True))


def test_white_space_in_a_name_is_refused_before_stage_1(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path / "a", labels=False)
    (root / "images/scene_00.png").rename(root / "images/scene 00.png")
    assert "scene 00.png: has white space" in fault_of(lambda: list_domain(root, labels=False))


# faults of a listing


def test_missing_root(tmp_path: Path) -> None:
    message = fault_of(lambda: list_domain(tmp_path / "nowhere", labels=False))
    assert str(tmp_path / "nowhere") in message and "no such folder" in message and "root" in message


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_missing_folder(tmp_path: Path, make_domain: Make, missing: str) -> None:
    root = make_domain(tmp_path)
    (root / missing).rename(root / "renamed")
    message = fault_of(lambda: list_domain(root, labels=True))
    assert str(root / missing) in message and "no such folder" in message and "list file" in message


def test_missing_list(tmp_path: Path, make_domain: Make) -> None:
    message = fault_of(lambda: list_domain(make_domain(tmp_path), "no.txt", labels=False))
    assert str(tmp_path / "no.txt") in message and "cannot read" in message and "image [label]" in message


def test_list_that_is_no_text(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path)
    message = fault_of(lambda: list_domain(root, "images/scene_00.png", labels=False))
    assert "scene_00.png" in message and "not a text file" in message and "UTF-8" in message


def test_empty_list_and_empty_folder(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=0)
    (root / "empty.txt").write_text("\n  \n")
    assert "empty.txt: lists no image; expected .png" in fault_of(lambda: list_domain(root, "empty.txt", labels=False))
    assert f"{root / 'images'}: lists no image" in fault_of(lambda: list_domain(root, labels=False))


def test_every_faulty_row_of_a_list_is_named_with_its_line(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=4)
    rows = [
        "images/scene_00.png labels/scene_00.png",
        "images/gone.png labels/scene_01.png",
        "",
        "images/scene_01.png labels/gone.png",
        "images/scene_02.png",
        "images/with space.png labels/scene_03.png",
    ]
    (root / "bad.txt").write_text("\n".join(rows))
    message = fault_of(lambda: list_domain(root, "bad.txt", labels=True))
    place = f"{root / 'bad.txt'}, line"
    assert f"{root} has 4 fault(s); mend or remove" in message
    assert f"{place} 2: the image {root / 'images/gone.png'} does not exist" in message
    assert f"{place} 4: the label {root / 'labels/gone.png'} does not exist" in message
    assert f"{place} 5: has no label column, expected 'image label'" in message
    assert f"{place} 6: found 3 columns, expected" in message
    assert "line 1:" not in message


@pytest.mark.parametrize("escape", ["../other/images/x.png", "images/../../x.png", None])
def test_image_outside_root_is_refused(tmp_path: Path, make_domain: Make, escape: str | None) -> None:
    """A name that leads out of root would let stage 2 write its masks outside the run, over the image itself."""
    root = make_domain(tmp_path / "domain", count=1)
    row = escape or str((root / "images/scene_00.png").resolve())
    (root / "bad.txt").write_text(f"{row}\n")
    message = fault_of(lambda: list_domain(root, "bad.txt", labels=False))
    assert "bad.txt, line 1" in message and row in message and f"relative to {root}" in message


def test_image_without_label_and_label_without_image(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=3)
    (root / "labels/scene_00.png").unlink()
    (root / "images/scene_02.png").unlink()
    message = fault_of(lambda: list_domain(root, labels=True))
    assert "has 2 fault(s)" in message
    assert f"{root / 'images/scene_00.png'}: has no label in {root / 'labels'}" in message
    assert f"{root / 'labels/scene_02.png'}: is a label without its image in {root / 'images'}" in message
    assert "scene_01" not in message


@pytest.mark.parametrize("labels", [False, True])
def test_two_files_of_one_name(tmp_path: Path, make_domain: Make, labels: bool) -> None:
    root = make_domain(tmp_path, count=2)
    write(root / "images/scene_01.jpg", np.zeros((4, 4, 3), np.uint8))
    message = fault_of(lambda: list_domain(root, labels=labels))
    assert "1 fault(s)" in message and "scene_01.jpg" in message and "scene_01.png" in message
    assert "share one name; keep one" in message


def test_list_with_one_image_twice(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=2)
    (root / "twice.txt").write_text("images/scene_00.png\nimages/scene_01.png\n./images/scene_00.png\n")
    message = fault_of(lambda: list_domain(root, "twice.txt", labels=False))
    assert "1 fault(s)" in message and "'scene_00'" in message and "must be unique" in message


# decoding


def test_image_is_rgb_and_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.zeros((5, 7, 4), np.uint8)
    rgba[:] = (10, 20, 30, 77)  # OpenCV writes blue first
    expected = np.broadcast_to(np.array([30, 20, 10], np.uint8), (5, 7, 3))
    assert np.array_equal(read_image(write(tmp_path / "rgba.png", rgba)), expected)
    assert np.array_equal(read_image(write(tmp_path / "rgb.png", rgba[..., :3])), expected)


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.zeros((4, 4), np.uint8), "found 1 band(s) of uint8"),
        (np.zeros((4, 4, 3), np.uint16), "found 3 band(s) of uint16"),
    ],
)
def test_grey_and_16_bit_images_are_refused(tmp_path: Path, pixels: np.ndarray, found: str) -> None:
    path = write(tmp_path / "x.png", pixels)
    assert fault_of(lambda: read_image(path)) == f"{path}: {found}, expected an 8-bit RGB image"


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image(tmp_path: Path, keep: float, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    path = write(tmp_path / f"x{suffix}", noise)
    content = path.read_bytes()
    size = int(keep * len(content)) if keep < 1 else int(keep)
    path.write_bytes(content[:size])
    message = fault_of(lambda: read_image(path))
    assert f"{path}: cannot be decoded as an image ({size} bytes)" in message and "truncated?" in message


def test_file_that_went_away(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in fault_of(lambda: read_image(tmp_path / "gone.png"))


def test_label_values_become_classes(tmp_path: Path) -> None:
    pixels = np.array([[0, 64, 128], [192, 255, 0]], np.uint8)
    path = write(tmp_path / "l.png", pixels)
    expected = [[0, 255, 1], [1, 255, 0]]
    assert read_label(path, {0: 0, 64: 255, 128: 1, 192: 1, 255: 255}).tolist() == expected
    colour = write(tmp_path / "colour.png", np.repeat(pixels[..., None], 3, 2))
    assert read_label(colour, {0: 0, 64: 255, 128: 1, 192: 1, 255: 255}).tolist() == expected


def test_label_value_outside_the_map(tmp_path: Path) -> None:
    path = write(tmp_path / "l.png", np.array([[0, 3, 255, 7]], np.uint8))
    message = fault_of(lambda: read_label(path, MAP))
    assert message == f"{path}: found label value(s) 3, 7, expected [0, 255]; set the domain's label_map"


def test_label_of_several_colours(tmp_path: Path) -> None:
    path = write(tmp_path / "l.png", np.full((4, 4, 3), (0, 0, 255), np.uint8))
    message = fault_of(lambda: read_label(path, MAP))
    assert str(path) in message and "found shape (4, 4, 3)" in message and "expected one band of 8 bits" in message


def test_label_of_another_size(tmp_path: Path, make_domain: Make) -> None:
    item = list_domain(make_domain(tmp_path, count=1), labels=True)[0]
    assert item.label is not None
    write(item.label, np.zeros((40, 47), np.uint8))
    message = fault_of(lambda: read_item(item, MAP))
    assert message == f"{item.label}: found 47x40 pixels, expected 48x40 as in {item.image}"


def test_check_names_all_bad_files_at_once(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=5)
    write(root / "labels/scene_00.png", np.zeros((8, 8), np.uint8))
    write(root / "labels/scene_01.png", np.full((40, 48), 9, np.uint8))
    (root / "images/scene_02.png").write_bytes((root / "images/scene_02.png").read_bytes()[:-30])
    write(root / "images/scene_03.png", np.zeros((40, 48), np.uint8))
    message = fault_of(lambda: check_items(list_domain(root, labels=True), MAP, "source"))
    lines = message.splitlines()
    assert lines[0] == "source has 4 fault(s); mend or remove these files:"
    assert len(lines) == 5 and "scene_04" not in message
    wanted = {
        "images/scene_02.png": "cannot be decoded",
        "images/scene_03.png": "found 1 band(s)",
        "labels/scene_00.png": "found 8x8 pixels, expected 48x40",
        "labels/scene_01.png": "found label value(s) 9",
    }
    for line, (name, text) in zip(lines[1:], wanted.items(), strict=True):  # sorted by file
        assert line.strip().startswith(f"{root / name}: ") and text in line


def test_check_accepts_a_sound_domain(tmp_path: Path, make_domain: Make) -> None:
    items = list_domain(make_domain(tmp_path), labels=True)
    check_items(items, MAP, "source")
    image, label = read_item(items[0], MAP)
    assert label is not None and image.shape == (40, 48, 3) and label.shape == (40, 48)
    assert set(np.unique(label)) == {0, 1}
    assert image[label == 1].mean() > image[label == 0].mean() + 80  # the label lies on the cloud

"""A domain on disk: what is listed, what is never looked for, and how each fault is reported."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.decoder import Decoder
from datasets.files import Item, from_folders, from_list, raise_all, read_names, unique
from datasets.images import checked
from datasets.readers import find_images
from utils.errors import DataError

Make = Callable[..., Path]
RGB = Decoder(bands=("red", "green", "blue"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def fault_of(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    return str(caught.value)


def rows_of(root: Path, text: str | bytes, *, labels: bool = True, partial: bool = False) -> list[tuple[str, str]]:
    """Image and label of every row of a list, relative to the root."""
    (root / "rows.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    found = from_list(root, Path("rows.txt"), labels, partial)
    assert not found.faults, found.faults
    relative = [(item.image, item.label or root) for item in found.items]
    return [(image.relative_to(root).as_posix(), label.relative_to(root).as_posix()) for image, label in relative]


# folders


def test_folder_pairs_images_and_labels_by_stem(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=3)
    found = find_images(root, labels=True)
    assert found.faults == [] and [item.name for item in found.items] == ["scene_00", "scene_01", "scene_02"]
    assert found.items[1] == Item("scene_01", (root / "images/scene_01.png",), root / "labels/scene_01.png")


def test_folder_reads_nested_folders_and_leaves_other_files(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{name}" for name in ("b/1.png", "a/1.png", "a/2.JPG", "a/3.TiFF", "notes.txt", "x.npy")))
    assert [item.name for item in find_images(tmp_path, labels=False).items] == ["a/1", "a/2", "a/3", "b/1"]


def test_label_may_have_another_suffix_and_dots_in_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/v1.2/a.b.jpg", "labels/v1.2/a.b.png", "images/v1.2/a.c.jpg", "labels/v1.2/a.c.png")
    found = from_folders(tmp_path, labels=True, partial=False)
    assert not found.faults
    assert {item.name: item.label for item in found.items} == {
        name: tmp_path / f"labels/{name}.png" for name in ("v1.2/a.b", "v1.2/a.c")
    }


def test_names_may_hold_spaces_and_any_letters(tmp_path: Path) -> None:
    touch(tmp_path, "images/Straße 1/wölk chen.png", "labels/Straße 1/wölk chen.png", "images/云.png", "labels/云.png")
    found = find_images(tmp_path, labels=True)
    assert not found.faults and [item.name for item in found.items] == ["Straße 1/wölk chen", "云"]


def test_image_without_label_and_label_without_image(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=3)
    (root / "labels/scene_00.png").unlink()
    (root / "images/scene_02.png").unlink()
    found = find_images(root, labels=True)
    assert found.faults == [
        f"{root / 'images/scene_00.png'}: has no label in {root / 'labels'}",
        f"{root / 'labels/scene_02.png'}: is a label without its image in {root / 'images'}",
    ]
    assert [item.name for item in found.items] == ["scene_01"]


@pytest.mark.parametrize("labels", [False, True])
def test_two_files_of_one_name(tmp_path: Path, make_domain: Make, labels: bool) -> None:
    root = make_domain(tmp_path, count=2)
    touch(root, "images/scene_01.jpg")
    both = f"{root / 'images/scene_01.jpg'}, {root / 'images/scene_01.png'}"
    assert find_images(root, labels=labels).faults == [f"{both}: share one name; keep one of them"]


def test_two_labels_of_one_name(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=2)
    touch(root, "labels/scene_01.tif")
    (fault,) = find_images(root, labels=True).faults
    assert "labels/scene_01.png" in fault and "labels/scene_01.tif: share one name" in fault


# lists


def test_list_selects_and_its_rows_decide(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=4)
    (root / "some.txt").write_text("images/scene_03.png labels/scene_03.png\n./images/scene_01.png labels/scene_02.png")
    found = find_images(root, "some.txt", labels=True)
    assert not found.faults
    assert [(item.name, item.label) for item in found.items] == [  # in the order of names
        ("scene_01", root / "labels/scene_02.png"),  # the row decides, not the stem
        ("scene_03", root / "labels/scene_03.png"),
    ]


def test_list_may_lie_elsewhere_while_its_rows_stay_below_root(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path / "domain", count=2)
    elsewhere = tmp_path / "easy.txt"
    elsewhere.write_text("images/scene_01.png\n")
    assert [item.image for item in find_images(root, str(elsewhere), labels=False).items] == [
        root / "images/scene_01.png"
    ]


def test_list_and_folder_give_the_same_items(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=3)
    (root / "all.txt").write_text("".join(f"images/scene_{i:02d}.png labels/scene_{i:02d}.png\n" for i in range(3)))
    assert find_images(root, "all.txt", labels=True) == find_images(root, labels=True)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("gap", [" ", "   ", "\t", " \t "])
def test_list_of_any_editor(tmp_path: Path, mark: bytes, end: str, gap: str) -> None:
    touch(tmp_path, "a.png", "b.png", "l/a.png", "l/b.png")
    lines = ["", f"a.png{gap}l/a.png", "  ", f"  b.png{gap}l/b.png ", "", ""]
    assert rows_of(tmp_path, mark + end.join(lines).encode()) == [("a.png", "l/a.png"), ("b.png", "l/b.png")]


def test_tab_separates_names_with_spaces(tmp_path: Path) -> None:
    touch(tmp_path, "in put/wölk 1.png", "out put/wölk 1.png", "in")
    expected = [("in put/wölk 1.png", "out put/wölk 1.png")]
    assert rows_of(tmp_path, "in put/wölk 1.png\tout put/wölk 1.png\n") == expected
    assert rows_of(tmp_path, "in put/wölk 1.png\t\n", partial=True) == [("in put/wölk 1.png", ".")]


def test_spaces_in_a_row_are_understood_where_these_files_exist(tmp_path: Path) -> None:
    touch(tmp_path, "in put/a 1.png", "out put/a 1.png", "plain.png")
    assert rows_of(tmp_path, "in put/a 1.png out put/a 1.png\n") == [("in put/a 1.png", "out put/a 1.png")]
    assert rows_of(tmp_path, "plain.png out put/a 1.png\n") == [("plain.png", "out put/a 1.png")]
    assert rows_of(tmp_path, "in put/a 1.png\n", labels=False) == [("in put/a 1.png", ".")]


def test_spaces_in_a_row_are_understood_without_looking_for_the_label(tmp_path: Path) -> None:
    touch(tmp_path, "in put/a 1.png")
    assert rows_of(tmp_path, "in put/a 1.png out put/gone 1.png\n", labels=False) == [("in put/a 1.png", ".")]


def test_row_longer_than_a_file_name_may_be(tmp_path: Path) -> None:
    image, label = f"{'i' * 140}.png", f"{'l' * 140}.png"
    touch(tmp_path, image, label)
    assert rows_of(tmp_path, f"{image} {label}\n") == [(image, label)]
    (tmp_path / "long.txt").write_text("x" * 300)
    assert "line 1: the image" in from_list(tmp_path, Path("long.txt"), labels=False, partial=False).faults[0]


def test_every_faulty_row_is_named_with_its_line_and_gives_no_item(tmp_path: Path, make_domain: Make) -> None:
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
    found = find_images(root, "bad.txt", labels=True)
    place = f"{root / 'bad.txt'}, line"
    assert found.faults[:3] == [
        f"{place} 2: the image {root / 'images/gone.png'} does not exist",
        f"{place} 4: the label {root / 'labels/gone.png'} does not exist",
        f"{place} 5: has no label column, expected 'image label'",
    ]
    assert len(found.faults) == 4 and f"{place} 6: found 3 columns, expected" in found.faults[3]
    assert [item.name for item in found.items] == ["scene_00"]
    message = fault_of(lambda: raise_all(found.faults, "source"))
    assert message.startswith("source has 4 fault(s); mend or remove these files:\n") and message.count("\n") == 4


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("escape", ["../other/x.png", "images/../../x.png", None])
def test_path_outside_root_is_refused(tmp_path: Path, make_domain: Make, escape: str | None, column: int) -> None:
    """A name that leads out of root would let stage 2 write its masks outside the run, over the image itself."""
    root = make_domain(tmp_path / "domain", count=1)
    touch(tmp_path, "other/x.png", "x.png")  # they exist, and are refused all the same
    row = ["images/scene_00.png", "labels/scene_00.png"]
    row[column] = escape or str((root / row[column]).resolve())
    (root / "bad.txt").write_text(" ".join(row))
    found = find_images(root, "bad.txt", labels=True)
    assert found.items == []
    assert found.faults == [
        f"{root / 'bad.txt'}, line 1: found {row[column]}, expected a path below and relative to {root}"
    ]


def test_list_with_one_image_twice(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=2)
    (root / "twice.txt").write_text("images/scene_00.png\nimages/scene_01.png\n./images/scene_00.png\n")
    found = find_images(root, "twice.txt", labels=False)
    assert len(found.items) == 2 and len(found.faults) == 1
    assert "'scene_00'" in found.faults[0] and "must be unique" in found.faults[0]


def test_unique_sorts_and_keeps_the_first_of_a_name() -> None:
    items = [Item(name, (Path(file),)) for name, file in (("b", "1"), ("a", "2"), ("b", "3"))]
    found = unique(items)
    assert found.items == [items[1], items[0]]
    assert found.faults == ["3: has the name 'b' of 1; names must be unique"]


# links to folders


@pytest.mark.parametrize("leads", ["within", "out", "round", "nowhere"])
def test_a_linked_folder_is_followed_or_refused_by_name(tmp_path: Path, make_domain: Make, leads: str) -> None:
    root = make_domain(tmp_path / "domain", count=1)
    make_domain(root / "more" if leads == "within" else tmp_path / "other", count=4)
    for part in ("images", "labels"):
        to = {"within": f"../more/{part}", "out": f"../../other/{part}", "round": "..", "nowhere": "gone"}[leads]
        (root / part / "sub").symlink_to(to, target_is_directory=True)
    if leads == "within":
        found = find_images(root, labels=True)
        names = ["scene_00", *(f"sub/scene_0{i}" for i in range(4))]
        assert not found.faults and [item.name for item in found.items] == names
        assert [item.label for item in found.items] == [root / f"labels/{name}.png" for name in names]
        return
    says = {
        "out": f"leads out of {root} by a symbolic link; copy it there, or give a root that holds",
        "round": f"is a link to {root}, which holds the link; remove it",
        "nowhere": f"is a link to {root / 'images/gone'}, which does not exist; mend or remove it",
    }[leads]
    found = find_images(root, labels=False)
    assert [item.name for item in found.items] == ["scene_00"]
    assert len(found.faults) == 1 and found.faults[0].startswith(f"{root / 'images/sub'}: {says}")


# labels that are not wanted, and labels that may lack


@pytest.mark.parametrize("rows", [None, "train.txt"])
@pytest.mark.parametrize("damage", ["delete", "garbage"])
def test_unwanted_labels_are_never_opened(tmp_path: Path, make_domain: Make, rows: str | None, damage: str) -> None:
    root = make_domain(tmp_path, count=3)
    (root / "train.txt").write_text("".join(f"images/scene_{i:02d}.png labels/scene_{i:02d}.png\n" for i in range(3)))
    before = find_images(root, rows, labels=False)
    for label in (root / "labels").iterdir():
        label.unlink() if damage == "delete" else label.write_text("not a picture")
    after = find_images(root, rows, labels=False)
    images = checked(after.items, RGB, "target")
    assert after == before and len(images) == 3 and all(item.label is None for item in after.items)
    assert images.read(images[0]).label is None


def test_partial_labels(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path / "a")
    (root / "labels" / "scene_01.png").unlink()
    found = find_images(root, labels=True, partial=True)
    assert [item.name for item in found.items if item.label is None] == ["scene_01"] and len(found.items) == 6
    assert found.faults == [] and "scene_01.png: has no label" in find_images(root, labels=True).faults[0]
    (root / "rows.txt").write_text("images/scene_00.png labels/scene_00.png\nimages/scene_01.png labels/scene_01.png\n")
    partial = find_images(root, "rows.txt", labels=True, partial=True)
    assert [item.label is None for item in partial.items] == [False, True] and partial.faults == []
    bare = make_domain(tmp_path / "b", labels=False)
    assert all(item.label is None for item in find_images(bare, labels=True, partial=True).items)


# what cannot be listed at all


def test_missing_root(tmp_path: Path) -> None:
    message = fault_of(lambda: find_images(tmp_path / "nowhere", labels=False))
    assert str(tmp_path / "nowhere") in message and "no such folder" in message and "root" in message


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_missing_folder(tmp_path: Path, make_domain: Make, missing: str) -> None:
    root = make_domain(tmp_path)
    (root / missing).rename(root / "renamed")
    message = fault_of(lambda: find_images(root, labels=True))
    assert str(root / missing) in message and "no such folder" in message and "list file" in message


def test_missing_list(tmp_path: Path, make_domain: Make) -> None:
    message = fault_of(lambda: find_images(make_domain(tmp_path), "no.txt", labels=False))
    assert str(tmp_path / "no.txt") in message and "cannot read" in message and "image [label]" in message


def test_list_that_is_no_text(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path)
    message = fault_of(lambda: find_images(root, "images/scene_00.png", labels=False))
    assert "scene_00.png" in message and "not a text file" in message and "UTF-8" in message


def test_read_names_are_exact_without_marks_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffone\r\n\r\n two words \n".encode())
    assert read_names(tmp_path / "names.txt") == ["one", " two words "]
    assert "cannot read the list" in fault_of(lambda: read_names(tmp_path / "gone.txt"))


def test_images_that_differ_in_what_is_drawn_keep_their_own_label(tmp_path: Path, make_domain: Make) -> None:
    """The pair that the listing makes is the right one: the label lies on the bright disc of its own image."""
    images = checked(find_images(make_domain(tmp_path), labels=True).items, RGB, "source")
    for item in images:
        decoded = images.read(item)
        assert decoded.label is not None and set(np.unique(decoded.label)) == {0, 1}
        assert decoded.image[decoded.label == 1].mean() > decoded.image[decoded.label == 0].mean() + 80
        assert np.array_equal(decoded.image, cv2.imread(str(item.image))[..., ::-1])


def test_hidden_files_are_no_images(tmp_path: Path, make_domain: Make) -> None:
    root = make_domain(tmp_path, count=2)
    for name in ("._scene_00.png", ".ipynb_checkpoints/scene_00.png"):
        path = root / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"of another program")
    found = find_images(root, labels=True)
    assert not found.faults and [item.name for item in found.items] == ["scene_00", "scene_01"]

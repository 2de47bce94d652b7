"""Small trees in exactly the published layouts: which images each reader finds, and what their labels mean."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from config.schema import DomainConfig
from datasets.decoder import Decoder
from datasets.files import Found, Item
from datasets.images import checked
from datasets.readers import READERS, SENTINEL_2, find_images
from engine.domains import drawn_scenes, search
from utils.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = ("red", "green", "blue")
SIDE = 4


def fault_of(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    return str(caught.value)


def raster(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Write (H, W) or (H, W, C) by GDAL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.atleast_3d(pixels)
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff", **shape, **options}) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def wide(value: int, bands: int = 1, size: int = SIDE) -> np.ndarray:
    return np.full((size, size, bands), value, np.uint16)


def classes(*rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def remove(root: Path, pattern: str) -> None:
    gone = list(root.rglob(pattern))
    assert gone
    for path in gone:
        path.unlink()


def names_of(root: Path, rows: str | None = None, *, reader: str, labels: bool = False) -> list[str]:
    found = find_images(root, rows, reader=reader, labels=labels)
    assert not found.faults, found.faults
    return [item.name for item in found.items]


def decoder(reader: str, *bands: str, scaling: str | None = "shift8") -> Decoder:
    """The reader's own rules."""
    known = READERS[reader]
    return Decoder(bands, known.bands, scaling, known.nodata, known.label_map)


def no_label_is_looked_for(root: Path, reader: str, labels: Sequence[str], rows: str | None = None) -> None:
    """Without the label files, the images are the same and none has a label; with labels wanted, each is missed."""
    wanted = find_images(root, rows, reader=reader, labels=True)
    before = find_images(root, rows, reader=reader, labels=False)
    assert not wanted.faults and all(item.label is not None for item in wanted.items)
    assert [item._replace(label=None, label_window=None) for item in wanted.items] == before.items
    for pattern in labels:
        remove(root, pattern)
    assert find_images(root, rows, reader=reader, labels=False) == before
    partial = find_images(root, rows, reader=reader, labels=True, partial=True)
    assert partial == before
    missing = find_images(root, rows, reader=reader, labels=True)
    assert missing.items == [] and len(missing.faults) == len(before.items)


# ms_cloud


@pytest.fixture
def ms_cloud(tmp_path: Path) -> Path:
    for name in ("0_0_0", "0_512_0", "25_0_1024", "14_06_06_0_0"):
        picture(tmp_path / f"images/{name}.jpg", np.full((SIDE, SIDE, 3), 90, np.uint8))
        picture(tmp_path / f"labels/{name}.png", classes([0, 1, 255, 0]).repeat(SIDE, 0))
    return tmp_path


def test_ms_cloud(ms_cloud: Path) -> None:
    found = find_images(ms_cloud, reader="ms_cloud", labels=True)
    assert not found.faults
    assert {item.name: item.scene for item in found.items} == {
        "0_0_0": "0",
        "0_512_0": "0",
        "14_06_06_0_0": "14_06_06",  # tiles of the released list that are named by a date
        "25_0_1024": "25",
    }
    read = checked(found.items, decoder("ms_cloud", *RGB, scaling=None), "source")
    label = read.read(read[0]).label
    assert label is not None and label[0].tolist() == [0, 1, 1, 0]


def test_ms_cloud_in_folders_of_folders_has_the_same_scenes(ms_cloud: Path) -> None:
    before = [item.scene for item in find_images(ms_cloud, reader="ms_cloud", labels=False).items]
    (ms_cloud / "images").rename(ms_cloud / "all")
    (ms_cloud / "images").mkdir()
    (ms_cloud / "all").rename(ms_cloud / "images/1_2_3")
    found = find_images(ms_cloud, reader="ms_cloud", labels=False)
    assert [item.scene for item in found.items] == before and found.items[0].name == "1_2_3/0_0_0"


def test_ms_cloud_takes_the_released_list(ms_cloud: Path) -> None:
    (ms_cloud / "train.txt").write_text("images/0_0_0.jpg labels/0_0_0.png\nimages/25_0_1024.jpg labels/25_0_1024.png")
    assert names_of(ms_cloud, "train.txt", reader="ms_cloud", labels=True) == ["0_0_0", "25_0_1024"]


def test_ms_cloud_value_for_snow_is_an_error_until_it_is_explained(ms_cloud: Path) -> None:
    picture(ms_cloud / "labels/0_0_0.png", np.full((SIDE, SIDE), 2, np.uint8))
    items = find_images(ms_cloud, reader="ms_cloud", labels=True).items
    message = fault_of(lambda: checked(items, decoder("ms_cloud", *RGB, scaling=None), "source"))
    assert "1 fault(s)" in message and "labels/0_0_0.png: found label value(s) 2, expected [0, 1, 255]" in message


def test_ms_cloud_without_labels(ms_cloud: Path) -> None:
    no_label_is_looked_for(ms_cloud, "ms_cloud", ["labels/*.png"])


# hrc_whu

COVERS = ("barren", "snow", "urban", "vegetation", "water")


def hrc_whu(root: Path, layout: str, numbers: int = 6) -> Path:
    """The same images in one of three layouts, with masks of 0 and 255, or 0 and 1 in the copy."""
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    for cover in COVERS:
        for number in range(1, numbers + 1):
            name, part = f"{cover}_{number}", "test" if number == 1 else "train"
            image_path, mask_path, cloud = {
                "suffix": (f"{name}.tif", f"{name}_ReferenceMask.tif", 255),
                "folders": (f"Image/{name}.tif", f"Ground_truth/labels/{name}.png", 255),
                "copy": (f"img_dir/{part}/{name}.png", f"ann_dir/{part}/{name}.png", 1),
            }[layout]
            picture(root / image_path, image)
            picture(root / mask_path, np.where(np.arange(SIDE) < 1, cloud, 0).astype(np.uint8)[None].repeat(SIDE, 0))
    return root


@pytest.mark.parametrize("layout", ["suffix", "folders", "copy"])
def test_hrc_whu_in_every_layout(tmp_path: Path, layout: str) -> None:
    found = find_images(hrc_whu(tmp_path, layout), reader="hrc_whu", labels=True)
    assert not found.faults
    assert [item.name for item in found.items] == sorted(f"{cover}_{n}" for cover in COVERS for n in range(1, 7))
    assert all(item.scene == item.name and item.label not in item.files for item in found.items)
    read = checked(found.items, decoder("hrc_whu", *RGB, scaling=None), "source")
    for item in read:
        label = read.read(item).label
        assert label is not None and label[0].tolist() == [1, 0, 0, 0]
        assert item.label is not None and item.label.stem.startswith(item.name)


def test_hrc_whu_list_gives_the_same_names_and_scenes(tmp_path: Path) -> None:
    root = hrc_whu(tmp_path, "folders")
    (root / "list.txt").write_text("Image/snow_2.tif Ground_truth/labels/snow_2.png\n")
    (item,) = find_images(root, "list.txt", reader="hrc_whu", labels=True).items
    assert item in find_images(root, reader="hrc_whu", labels=True).items and item.scene == "snow_2"


@pytest.mark.parametrize("layout", ["suffix", "folders"])
def test_hrc_whu_holds_every_fifth_image_of_each_cover_back(tmp_path: Path, layout: str) -> None:
    root = hrc_whu(tmp_path, layout, numbers=12)
    train, test = (names_of(root, part, reader="hrc_whu") for part in ("train", "test"))
    assert test == sorted(f"{cover}_{number}" for cover in COVERS for number in (5, 10))  # by number, not by letter
    assert not set(train) & set(test) and len(train) == 50


def test_hrc_whu_split_of_150_images(tmp_path: Path) -> None:
    for cover in COVERS:
        for number in range(1, 31):
            (tmp_path / f"{cover}_{number}.tif").write_bytes(b"")
            (tmp_path / f"{cover}_{number}_ReferenceMask.tif").write_bytes(b"")
    parts = {part: names_of(tmp_path, part, reader="hrc_whu", labels=True) for part in ("train", "test")}
    assert {part: len(names) for part, names in parts.items()} == {"train": 120, "test": 30}
    assert {name.split("_")[0]: 6 for name in parts["test"]} == {cover: 6 for cover in COVERS}
    assert sorted(parts["train"] + parts["test"]) == names_of(tmp_path, reader="hrc_whu")
    assert READERS["hrc_whu"].published is not None
    assert READERS["hrc_whu"].published.images == {"all": 150, "train": 120, "test": 30}


def test_hrc_whu_parts_of_the_copy_are_its_folders(tmp_path: Path) -> None:
    root = hrc_whu(tmp_path, "copy")
    assert names_of(root, "test", reader="hrc_whu", labels=True) == [f"{cover}_1" for cover in COVERS]
    assert len(names_of(root, "train", reader="hrc_whu", labels=True)) == 25


def test_hrc_whu_tiles_of_one_image_stay_together(tmp_path: Path) -> None:
    for number in range(1, 6):
        for tile in range(3):
            (tmp_path / f"water_{number}_{tile}.png").write_bytes(b"")
    assert names_of(tmp_path, "test", reader="hrc_whu") == [f"water_5_{tile}" for tile in range(3)]
    found = find_images(tmp_path, reader="hrc_whu", labels=False)
    assert [item.scene for item in found.items[:3]] == ["water_1"] * 3


@pytest.mark.parametrize(
    ("layout", "masks"), [("suffix", "*_ReferenceMask.tif"), ("folders", "labels/*.png"), ("copy", "ann_dir/*/*.png")]
)
def test_hrc_whu_without_labels(tmp_path: Path, layout: str, masks: str) -> None:
    root = hrc_whu(tmp_path, layout)
    parts = {part: names_of(root, part, reader="hrc_whu") for part in ("train", "test")}
    no_label_is_looked_for(root, "hrc_whu", [masks])
    assert parts == {part: names_of(root, part, reader="hrc_whu") for part in ("train", "test")}


def test_hrc_whu_faults(tmp_path: Path) -> None:
    root = hrc_whu(tmp_path, "suffix", numbers=2)
    (root / "snow_1_ReferenceMask.tif").unlink()
    picture(root / "masks/urban_1.png", np.zeros((SIDE, SIDE), np.uint8))
    picture(root / "more/water_1.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    (root / "readme_1.png").write_bytes(b"no cover, so no image")
    found = find_images(root, reader="hrc_whu", labels=True)
    faults = sorted(found.faults)
    assert len(faults) == 3
    pair = f"{root / 'more/water_1.png'}, {root / 'water_1.tif'}: share one name"
    assert any(fault.startswith(pair) and "a folder called labels, masks" in fault for fault in faults)
    assert f"{root / 'snow_1.tif'}: has no mask below {root}" in faults
    assert "are several masks of urban_1.tif; keep one of them" in "".join(faults)
    assert {"snow_1", "urban_1"}.isdisjoint(item.name for item in found.items)


# cloud38 and cloud95

SCENES = ("LC08_L1TP_002053_20160520_20170324_01_T1", "LC08_L1TP_032029_20160720_20170222_01_T1")
HALVES = {
    "38": ("38-Cloud_training", "train_{}"),
    "test": ("38-Cloud_test", "test_{}"),
    "95": ("95-cloud_training_only_additional_to38-cloud", "train_{}_additional_to38cloud"),
}


def patch(number: int, scene: int = 0) -> str:
    return f"patch_{number}_1_by_{number}_{SCENES[scene]}"


def write_patches(root: Path, half: str, names: Sequence[str], empty: Sequence[str] = ()) -> Path:
    folder, pattern = HALVES[half]
    for name in names:
        for i, band in enumerate((*RGB, "nir")):
            value = 0 if name in empty else (i + 1) << 8
            raster(root / folder / pattern.format(band) / f"{band}_{name}.TIF", wide(value))
        if half != "test":
            mask = np.tile(classes([0, 255, 255, 0]), (SIDE, 1))
            raster(root / folder / pattern.format("gt") / f"gt_{name}.TIF", mask)
    return root


@pytest.fixture
def cloud38(tmp_path: Path) -> Path:
    """Three training patches of two scenes, the second without data, and two test patches with a scene's truth."""
    training = [patch(1), patch(2), patch(10, 1)]
    write_patches(tmp_path, "38", training, empty=training[1:2])
    write_patches(tmp_path, "test", [patch(1, 1), patch(2, 1)])
    truth = tmp_path / f"38-Cloud_test/Entire_scene_gts/edited_corrected_gts_{SCENES[1]}.TIF"
    raster(truth, np.zeros((8, 8), np.uint8))
    return tmp_path


def test_cloud38_pairs_a_file_a_band_by_name(cloud38: Path) -> None:
    found = find_images(cloud38, reader="cloud38", labels=True)
    assert not found.faults and [item.name for item in found.items] == sorted([patch(1), patch(2), patch(10, 1)])
    item = next(item for item in found.items if item.name == patch(10, 1))
    base = cloud38 / "38-Cloud_training"
    assert item.files == tuple(base / f"train_{b}/{b}_{patch(10, 1)}.TIF" for b in (*RGB, "nir"))
    assert item.label == base / f"train_gt/gt_{patch(10, 1)}.TIF" and item.scene == SCENES[1]
    read = checked(found.items, decoder("cloud38", "nir", *RGB), "source")
    assert sorted(item.name for item in read) == sorted([patch(1), patch(10, 1)])  # one holds no data
    decoded = read.read(item)
    assert decoded.image[0, 0].tolist() == [4, 1, 2, 3]
    assert decoded.label is not None and decoded.label[0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("file", ["training_patches_38-Cloud_nonempty.csv", "training_patches_38-cloud_nonempty.csv"])
@pytest.mark.parametrize("folder", [".", "38-Cloud_training", "lists"])
@pytest.mark.parametrize("header", ["name\r\n", ""])
def test_cloud38_training_patches_are_the_nonempty_ones(cloud38: Path, file: str, folder: str, header: str) -> None:
    (cloud38 / folder).mkdir(exist_ok=True)
    (cloud38 / folder / file).write_bytes(f"{header}{patch(1)}\r\n{patch(10, 1)}\r\n{patch(77)}\r\n".encode())
    chosen = sorted([patch(1), patch(10, 1)])
    assert names_of(cloud38, reader="cloud38", labels=True) == chosen
    assert names_of(cloud38, "train", reader="cloud38", labels=True) == chosen
    assert names_of(cloud38, "all", reader="cloud38", labels=True) == sorted([*chosen, patch(2)])


def test_cloud38_list_of_the_user(cloud38: Path) -> None:
    (cloud38 / "mine.csv").write_text(f"id,name\n7,{patch(2)}\n8,{patch(1)}\n")
    assert names_of(cloud38, "mine.csv", reader="cloud38", labels=True) == sorted([patch(1), patch(2)])
    remove(cloud38, f"gt_{patch(1)}.TIF")
    (cloud38 / "mine.txt").write_text(f"{patch(2)}\n{patch(99)}\n")
    found = find_images(cloud38, "mine.txt", reader="cloud38", labels=True)
    assert [item.name for item in found.items] == [patch(2)]
    assert found.faults == [f"mine.txt: names {patch(99)}, which is not there"]


def test_cloud38_test_patches_have_no_label_but_their_scenes_have(cloud38: Path) -> None:
    found = find_images(cloud38, "test", reader="cloud38", labels=True)
    assert not found.faults and [item.name for item in found.items] == [patch(1, 1), patch(2, 1)]
    assert all(item.label is None and item.scene == SCENES[1] for item in found.items)
    truth = READERS["cloud38"].scene_truth(cloud38)
    assert truth == {SCENES[1]: cloud38 / f"38-Cloud_test/Entire_scene_gts/edited_corrected_gts_{SCENES[1]}.TIF"}
    assert {item.scene for item in found.items} == set(truth)


def test_cloud38_without_labels(cloud38: Path) -> None:
    no_label_is_looked_for(cloud38, "cloud38", ["train_gt/*"])


def test_cloud38_missing_band_and_missing_truth_are_named(cloud38: Path) -> None:
    base = cloud38 / "38-Cloud_training"
    (base / f"train_nir/nir_{patch(1)}.TIF").unlink()
    (base / f"train_gt/gt_{patch(2)}.TIF").unlink()
    found = find_images(cloud38, reader="cloud38", labels=True)
    assert found.faults == [f"{base / f'train_gt/gt_{patch(2)}.TIF'}: does not exist, so {patch(2)} has no label"]
    message = fault_of(lambda: checked(found.items, decoder("cloud38", *RGB, "nir"), "source"))
    assert "1 fault(s)" in message and f"nir_{patch(1)}.TIF: does not exist, so the band nir" in message
    assert len(checked(found.items, decoder("cloud38", *RGB), "source")) == 2  # where nir is not asked for


def test_cloud38_takes_no_notice_of_other_files(cloud38: Path) -> None:
    before = find_images(cloud38, reader="cloud38", labels=True)
    for band in (*RGB, "nir", "gt"):
        (cloud38 / f"38-Cloud_training/train_{band}/.DS_Store").write_bytes(b"")
        (cloud38 / f"38-Cloud_training/train_{band}/0_readme.txt").write_text("")
    assert find_images(cloud38, reader="cloud38", labels=True) == before


def test_cloud38_in_the_wrong_place(cloud38: Path) -> None:
    message = fault_of(lambda: find_images(cloud38 / "38-Cloud_training", reader="cloud38", labels=True))
    assert "has no folder 38-Cloud_training; set the domain's root to the folder that holds it" in message
    message = fault_of(lambda: find_images(cloud38 / "38-Cloud_test", "test", reader="cloud38", labels=False))
    assert "holds no patches; expected test_red/red_patch_*.TIF" in message


@pytest.fixture
def cloud95(cloud38: Path) -> Path:
    """38-Cloud and two additional patches of another scene."""
    return write_patches(cloud38, "95", [patch(5, 1), patch(6, 1)])


def test_cloud95_has_both_halves(cloud95: Path) -> None:
    both = sorted([patch(1), patch(2), patch(10, 1), patch(5, 1), patch(6, 1)])
    for part in (None, "train", "all"):
        assert names_of(cloud95, part, reader="cloud95", labels=True) == both
    assert names_of(cloud95, "additional", reader="cloud95", labels=True) == [patch(5, 1), patch(6, 1)]
    assert names_of(cloud95, "test", reader="cloud95") == [patch(1, 1), patch(2, 1)]
    item = find_images(cloud95, "additional", reader="cloud95", labels=True).items[0]
    base = cloud95 / HALVES["95"][0]
    assert item.files[3] == base / f"train_nir_additional_to38cloud/nir_{patch(5, 1)}.TIF"
    assert item.label == base / f"train_gt_additional_to38cloud/gt_{patch(5, 1)}.TIF" and item.scene == SCENES[1]
    assert names_of(cloud95, reader="cloud38", labels=True) == sorted([patch(1), patch(2), patch(10, 1)])


def test_cloud95_nonempty_list_covers_both_halves(cloud95: Path) -> None:
    (cloud95 / "training_patches_95-cloud_nonempty.csv").write_text(f"name\n{patch(1)}\n{patch(6, 1)}\n")
    assert names_of(cloud95, "train", reader="cloud95", labels=True) == sorted([patch(1), patch(6, 1)])
    assert names_of(cloud95, "additional", reader="cloud95", labels=True) == [patch(6, 1)]
    assert len(names_of(cloud95, "all", reader="cloud95", labels=True)) == 5
    assert len(names_of(cloud95, reader="cloud38", labels=True)) == 3  # another list than that of 38-Cloud


def test_cloud95_additional_half_alone(tmp_path: Path) -> None:
    root = write_patches(tmp_path, "95", [patch(5), patch(6)])
    for part in (None, "train", "all", "additional"):
        assert names_of(root, part, reader="cloud95", labels=True) == [patch(5), patch(6)]
    assert len(checked(find_images(root, reader="cloud95", labels=True).items, decoder("cloud95", *RGB), "x")) == 2
    message = fault_of(lambda: find_images(root, "test", reader="cloud95", labels=False))
    assert "38-Cloud_test: holds no patches" in message
    (root / HALVES["95"][0]).rename(root / "elsewhere")
    message = fault_of(lambda: find_images(root, reader="cloud95", labels=False))
    assert "no folder 38-Cloud_training or 95-cloud_training_only_additional_to38-cloud" in message


def test_cloud95_without_labels(cloud95: Path) -> None:
    no_label_is_looked_for(cloud95, "cloud95", ["train_gt*/*"])


# l8_biome

BIOME = ("LC80010112014080LGN00", "LC81570452014213LGN00")
USGS_VALUES = classes([0, 64, 128, 192], [255, 128, 128, 0], [128] * 4, [128] * 4)


@pytest.fixture
def l8_biome(tmp_path: Path) -> Path:
    for scene in BIOME:
        folder = tmp_path / "BC" / scene
        for number in range(1, 12):
            pixels = wide(number << 8, size=2 * SIDE if number == 8 else SIDE)  # the panchromatic band is finer
            if number != 8:
                pixels[0, 0] = 0
            raster(folder / f"{scene}_B{number}.TIF", pixels)
        raster(folder / f"{scene}_fixedmask.img", USGS_VALUES, driver="ENVI")
        (folder / f"{scene}_MTL.txt").write_text("GROUP = L1_METADATA_FILE\n")
    return tmp_path


def test_l8_biome(l8_biome: Path) -> None:
    assert list((l8_biome / "BC" / BIOME[0]).glob("*_fixedmask.hdr"))
    found = find_images(l8_biome, reader="l8_biome", labels=True)
    assert not found.faults
    assert [(item.name, item.scene) for item in found.items] == [(scene, scene) for scene in BIOME]
    assert [file.stem.rsplit("_B")[1] for file in found.items[0].files] == [*"12345679", "10", "11"]
    read = checked(found.items, decoder("l8_biome", "red", "green", "blue", "nir", "cirrus", "thermal2"), "source")
    decoded = read.read(read[0])
    assert decoded.label is not None and decoded.image[1, 1].tolist() == [4, 3, 2, 5, 9, 11]
    assert not decoded.valid[0, 0] and decoded.valid.sum() == SIDE * SIDE - 1
    assert decoded.label[:2].tolist() == [[255, 0, 0, 1], [1, 0, 0, 255]]  # fill, shadow, clear, thin; cloud


def test_l8_biome_is_cut_into_tiles_of_its_scene(l8_biome: Path) -> None:
    items = find_images(l8_biome, reader="l8_biome", labels=True).items
    read = checked(items, decoder("l8_biome", "red"), "source", tile=2)
    assert len(read) == 8 and {item.scene for item in read} == set(BIOME)
    labels = {item.name: read.read(item).label for item in read}
    assert labels[f"{BIOME[1]}_00000_00002"].tolist() == [[0, 1], [0, 255]]  # type: ignore[union-attr]


@pytest.mark.parametrize(("reader", "pattern"), [("l8_biome", "*_fixedmask.img"), ("sparcs", "*_mask.png")])
def test_list_of_names_has_no_fault_of_what_it_does_not_name(
    request: pytest.FixtureRequest, reader: str, pattern: str
) -> None:
    root = request.getfixturevalue(reader)
    found = find_images(root, reader=reader, labels=True)
    good = found.items[-1]
    remove(root, pattern.replace("*", f"*{found.items[0].name}"))
    (root / "list.txt").write_text(good.name)
    assert find_images(root, "list.txt", reader=reader, labels=True) == Found([good], [])
    (root / "list.txt").write_text(found.items[0].name)
    (fault,) = find_images(root, "list.txt", reader=reader, labels=True).faults
    assert found.items[0].name in fault and "not there" not in fault


def test_l8_biome_list_of_names(l8_biome: Path) -> None:
    (l8_biome / "scenes.txt").write_text(f"{BIOME[1]}\nLC8gone\n")
    found = find_images(l8_biome, "scenes.txt", reader="l8_biome", labels=True)
    assert [item.name for item in found.items] == [BIOME[1]]
    assert found.faults == ["scenes.txt: names LC8gone, which is not there"]


def test_l8_biome_without_labels_and_with_faults(l8_biome: Path) -> None:
    no_label_is_looked_for(l8_biome, "l8_biome", ["*_fixedmask.img"])
    folder = l8_biome / "BC" / BIOME[0]
    assert (
        f"{folder / BIOME[0]}_fixedmask.img: does not exist"
        in find_images(l8_biome, reader="l8_biome", labels=True).faults[0]
    )
    message = fault_of(lambda: find_images(folder.parent / "none", reader="l8_biome", labels=False))
    assert "no such folder" in message
    (l8_biome / "empty").mkdir()
    message = fault_of(lambda: find_images(l8_biome / "empty", reader="l8_biome", labels=False))
    assert "holds no <scene>/<scene>_B4.TIF" in message


# sparcs


@pytest.fixture
def sparcs(tmp_path: Path) -> Path:
    """One part with the palette of the USGS, one with the file of Oregon State University."""
    values = np.resize(np.arange(7), (SIDE, SIDE)).astype(np.uint8)
    for i, name in enumerate(("LC80010812013365LGN00_18", "LC82290572014141LGN00_9")):
        pixels = np.dstack([wide(number << 8) for number in range(1, 11)])
        raster(tmp_path / "sending" / f"{name}_data.tif", pixels)
        if i == 0:
            mask = Image.fromarray(values).convert("P")
            mask.putpalette([0, 0, 0, 0, 0, 128, 0, 0, 255, 0, 255, 255, 128, 128, 128, 255, 255, 255, 127, 127, 0])
            mask.save(tmp_path / "sending" / f"{name}_mask.png")
            picture(tmp_path / "sending" / f"{name}_photo.png", np.zeros((SIDE, SIDE, 3), np.uint8))
        else:
            raster(tmp_path / "sending" / f"{name}_labels.tif", values)
    return tmp_path


def test_sparcs(sparcs: Path) -> None:
    found = find_images(sparcs, reader="sparcs", labels=True)
    assert not found.faults
    assert [(item.name, item.scene) for item in found.items] == [
        ("LC80010812013365LGN00_18", "LC80010812013365LGN00"),
        ("LC82290572014141LGN00_9", "LC82290572014141LGN00"),
    ]
    assert [item.label.name.rsplit("_")[-1] for item in found.items if item.label] == ["mask.png", "labels.tif"]
    read = checked(found.items, decoder("sparcs", "red", "cirrus", "thermal2", "coastal"), "source")
    for item in read:
        decoded = read.read(item)
        assert decoded.image[0, 0].tolist() == [4, 8, 10, 1]
        assert decoded.label is not None and decoded.label.ravel()[:7].tolist() == [0, 0, 0, 0, 0, 1, 0]


def test_sparcs_without_labels_and_with_faults(sparcs: Path) -> None:
    no_label_is_looked_for(sparcs, "sparcs", ["*_mask.png", "*_labels.tif"])
    faults = find_images(sparcs, reader="sparcs", labels=True).faults
    assert "has no LC80010812013365LGN00_18_mask.png or LC80010812013365LGN00_18_labels.tif beside it" in faults[0]
    remove(sparcs, "*_data.tif")
    message = fault_of(lambda: find_images(sparcs, reader="sparcs", labels=False))
    assert message == f"{sparcs}: holds no <scene>_<n>_data.tif"


# cloudsen12


@pytest.fixture
def cloudsen12(tmp_path: Path) -> Path:
    values = classes([0, 1, 2, 3], [99, 0, 0, 0], [0] * 4, [0] * 4)
    for part, region, image in (
        ("high", "ROI_0001", "20190101T000000_A"),
        ("high", "ROI_0001", "20190202T000000_A"),
        ("scribble", "ROI_0002", "20190101T000000_A"),
        ("no-label", "ROI_0003", "20190101T000000_B"),
    ):
        folder = tmp_path / part / region / image
        raster(folder / "S2L1C.tif", np.dstack([wide(number << 8) for number in range(1, 14)]))
        raster(folder / "S1.tif", np.zeros((SIDE, SIDE, 2), np.float32))
        if part == "high":
            raster(folder / "labels/manual_hq.tif", values)
            raster(folder / "labels/fmask.tif", np.full((SIDE, SIDE), 4, np.uint8))
    return tmp_path


def test_cloudsen12(cloudsen12: Path) -> None:
    found = find_images(cloudsen12, "high", reader="cloudsen12", labels=True)
    assert not found.faults
    assert [(item.name, item.scene) for item in found.items] == [
        (f"high/ROI_0001/{image}", "ROI_0001") for image in ("20190101T000000_A", "20190202T000000_A")
    ]
    read = checked(found.items, decoder("cloudsen12", *SENTINEL_2), "source")
    decoded = read.read(read[0])
    assert decoded.image[0, 0].tolist() == list(range(1, 14)) and len(SENTINEL_2) == 13
    assert decoded.label is not None and decoded.label[:2].tolist() == [[0, 1, 1, 0], [255, 0, 0, 0]]
    chosen = decoder("cloudsen12", "red", "green", "blue", "nir", "swir2").read(read[0])
    assert chosen.image[0, 0].tolist() == [4, 3, 2, 8, 13]  # B4, B3, B2, B8, B12


def test_cloudsen12_parts(cloudsen12: Path) -> None:
    assert len(names_of(cloudsen12, reader="cloudsen12")) == 4
    for part, scene in (("scribble", "ROI_0002"), ("no-label", "ROI_0003")):
        (item,) = find_images(cloudsen12, part, reader="cloudsen12", labels=False).items
        assert item.scene == scene and item.label is None
    (fault,) = find_images(cloudsen12, "scribble", reader="cloudsen12", labels=True).faults
    assert "labels/manual_hq.tif: does not exist, so 20190101T000000_A has no label; take the part high" in fault
    (cloudsen12 / "some.txt").write_text("no-label/ROI_0003/20190101T000000_B\n")
    assert len(names_of(cloudsen12, "some.txt", reader="cloudsen12")) == 1


def test_cloudsen12_without_labels(cloudsen12: Path) -> None:
    no_label_is_looked_for(cloudsen12, "cloudsen12", ["manual_hq.tif"], rows="high")


# every reader


@pytest.mark.parametrize("reader", sorted(READERS))
def test_list_of_images_is_understood_by_the_reader_that_wrote_it(
    tmp_path: Path, reader: str, request: pytest.FixtureRequest
) -> None:
    """Such as the lists of easy and hard images; names hold spaces where the layout leaves them free."""
    if reader == "folder":
        root = tmp_path
        for i in range(3):
            picture(root / f"images/a b/scene {i}.png", np.zeros((SIDE, SIDE, 3), np.uint8))
            picture(root / f"labels/a b/scene {i}.png", np.zeros((SIDE, SIDE), np.uint8))
    else:
        root = hrc_whu(tmp_path, "copy") if reader == "hrc_whu" else request.getfixturevalue(reader)
    rows = "high" if reader == "cloudsen12" else None
    for labels in (True, False):
        items = find_images(root, rows, reader=reader, labels=labels).items[1:]
        (tmp_path / "list of images.txt").write_text(READERS[reader].list_text(items, root))
        again = find_images(root, str(tmp_path / "list of images.txt"), reader=reader, labels=labels)
        assert again == Found(items, []) and items


@pytest.mark.parametrize("reader", sorted(READERS))
def test_rules_of_a_reader_are_possible(reader: str) -> None:
    known = READERS[reader]
    assert set(known.label_map.values()) <= {0, 1, 255} and {0, 1} <= set(known.label_map.values())
    assert all(0 <= value <= 255 for value in known.label_map)
    assert known.bands is None or len(set(known.bands)) == len(known.bands)
    assert "Licence" in str(type(known).__doc__) or reader == "folder"


def test_missing_root(tmp_path: Path) -> None:
    for reader in READERS:
        message = fault_of(lambda reader=reader: find_images(tmp_path / "no", reader=reader, labels=False))  # type: ignore[misc]
        assert message.startswith(f"{tmp_path / 'no'}: no such folder; set the domain's root")


def test_scene_pattern_of_the_config(ms_cloud: Path) -> None:
    found = find_images(ms_cloud, reader="ms_cloud", scene=r"_(\d+)$", labels=False)
    assert [item.scene for item in found.items] == ["0", "0", "0", "1024"] and not found.faults
    whole = find_images(ms_cloud, reader="ms_cloud", scene=r"^\d+", labels=False)
    assert [item.scene for item in whole.items] == ["0", "0", "14", "25"]
    (fault,) = find_images(ms_cloud, reader="ms_cloud", scene=r"^(25)_", labels=False).faults
    assert "finds nothing in 3 image name(s), such as '0_0_0'" in fault


# images that are held back


def of_scenes(*counts: int) -> list[Item]:
    return [Item(f"s{scene}_{i}", (Path("x"),), scene=f"s{scene}") for scene, n in enumerate(counts) for i in range(n)]


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.25, 2), (0.5, 5), (0.9, 9)])
def test_share_of_the_scenes_is_held_back(share: float, expected: int) -> None:
    items = of_scenes(*range(1, 11))
    domain = DomainConfig(root="d", eval_share=share)
    drawn = drawn_scenes(items, domain)
    assert len(drawn) == expected and drawn <= {item.scene for item in items}
    assert drawn_scenes(list(reversed(items)), domain) == drawn  # whatever their order
    assert len(drawn_scenes(of_scenes(3, 3), domain)) == 1  # one is left
    message = fault_of(lambda: drawn_scenes(of_scenes(3), domain))  # one scene cannot be on both sides
    assert message.startswith("d: found 1 scene(s), expected two or more")


def test_images_without_scenes_stand_for_themselves() -> None:
    items = [Item(f"i{i}", (Path("x"),)) for i in range(8)]
    drawn = drawn_scenes(items, DomainConfig(eval_share=0.5))
    assert len(drawn) == 4 and drawn <= {item.name for item in items}


def test_held_back_images_are_whole_scenes_and_never_train(tmp_path: Path) -> None:
    for scene in range(6):
        for x in range(4):
            picture(tmp_path / f"images/{scene}_{x}_0.png", np.zeros((SIDE, SIDE, 3), np.uint8))
            if (scene, x) != (2, 2):
                picture(tmp_path / f"labels/{scene}_{x}_0.png", np.zeros((SIDE, SIDE), np.uint8))
    domain = DomainConfig(root=str(tmp_path), reader="ms_cloud", eval_share=0.34)
    train, evaluation = search(domain, "train", labels=False), search(domain, "eval", labels=True, partial=True)
    assert not train.faults and not evaluation.faults
    scenes = [{item.scene for item in found.items} for found in (train, evaluation)]
    assert not scenes[0] & scenes[1] and [len(one) for one in scenes] == [4, 2]
    assert len(train.items) == 16 and len(evaluation.items) == 8
    assert all(item.label is None for item in train.items)
    for part in ("train", "eval"):  # the same images, whether labels are wanted or not
        bare, partial = (search(domain, part, labels=labels, partial=True) for labels in (False, True))  # type: ignore[arg-type]
        assert [item.name for item in bare.items] == [item.name for item in partial.items]


def test_list_of_held_back_images_comes_before_the_share(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"images/{i}.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    (tmp_path / "a.txt").write_text("images/0.png\nimages/1.png\n")
    (tmp_path / "b.txt").write_text("images/3.png\n")
    domain = DomainConfig(root=str(tmp_path), train="a.txt", eval="b.txt")
    assert [[item.name for item in search(domain, part, labels=False).items] for part in ("train", "eval")] == [  # type: ignore[arg-type]
        ["0", "1"],
        ["3"],
    ]
    every = DomainConfig(root=str(tmp_path), train="a.txt")  # scored on what it is trained on
    assert search(every, "train", labels=False) == search(every, "eval", labels=False)


def test_share_of_the_training_part_of_hrc_whu(tmp_path: Path) -> None:
    root = hrc_whu(tmp_path, "suffix")
    domain = DomainConfig(root=str(root), reader="hrc_whu", train="train", eval="test")
    train, test = (search(domain, part, labels=True) for part in ("train", "eval"))  # type: ignore[arg-type]
    assert (len(train.items), len(test.items)) == (25, 5)
    assert not {item.scene for item in train.items} & {item.scene for item in test.items}
    assert cv2.imread(str(train.items[0].image)) is not None


def test_published_counts_follow_the_part_and_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "95-cloud_training_only_additional_to38-cloud"
    folder.mkdir()
    reader = READERS["cloud95"]
    assert reader.published is not None
    counts = [
        reader.published.images[reader.published_key(tmp_path, rows)] for rows in ("additional", "all", "test", None)
    ]
    assert counts == [26301, 34701, 9201, 34701]
    (folder / "training_patches_95-cloud_nonempty.csv").write_text("name\n")
    keys = [reader.published_key(tmp_path, rows) for rows in ("train", "additional", "all")]
    assert [reader.published.images[key] for key in keys] == [21502, 16347, 34701]


@pytest.mark.parametrize("folder", ["GroundTruth", "truth", "annotations", "ref", "masks", "ann_dir/train"])
def test_hrc_whu_knows_folders_of_masks(tmp_path: Path, folder: str) -> None:
    picture(tmp_path / "img/water_1.png", np.full((SIDE, SIDE, 3), 9, np.uint8))
    mask = picture(tmp_path / folder / "water_1.png", np.zeros((SIDE, SIDE), np.uint8))
    found = find_images(tmp_path, reader="hrc_whu", labels=True)
    assert not found.faults and [item.label for item in found.items] == [mask]


def test_a_published_layout_is_not_read_out_of_its_root(tmp_path: Path, make_tree: Callable[[str, Path], Path]) -> None:
    root = make_tree("l8_biome", tmp_path / "biome")
    (root / "BC").rename(tmp_path / "stored")
    (root / "BC").symlink_to(tmp_path / "stored", target_is_directory=True)
    message = fault_of(lambda: find_images(root, reader="l8_biome", labels=True))
    assert message.startswith(f"{root / 'BC'}: leads out of {root} by a symbolic link; copy it there, or give a root")
    whole = find_images(tmp_path, reader="l8_biome", labels=True)  # by the link and without it: two of each
    assert len(whole.items) == 2 and all("names must be unique" in fault for fault in whole.faults)

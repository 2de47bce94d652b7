"""Tiny domains on disk, and the arguments of a run that takes seconds."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and a test would wait for it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def draw_scene(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 of dark noisy ground with a bright soft disc, whose core is the label (0, 255)."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - rng.uniform(0.3, 0.7) * height, columns - rng.uniform(0.3, 0.7) * width)
    radius = rng.uniform(0.2, 0.4) * min(height, width)
    opacity = np.clip((radius - distance) / 4 + 0.5, 0, 1)[..., None]
    ground = rng.uniform(20, 90, 3) + rng.normal(0, 12, (height, width, 3))
    pixels = np.clip((1 - opacity) * ground + opacity * 230, 0, 255).astype(np.uint8)
    return pixels, np.where(opacity[..., 0] > 0.5, 255, 0).astype(np.uint8)


@pytest.fixture
def make_domain() -> Callable[..., Path]:
    """Write a domain: dark noisy ground, one bright soft disc as the cloud, its core as the label (0 and 255)."""

    def make(root: Path, count: int = 6, size: tuple[int, int] = (40, 48), labels: bool = True, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for folder in ("images", "labels") if labels else ("images",):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels, mask = draw_scene(*size, rng)
            assert cv2.imwrite(str(root / "images" / f"scene_{i:02d}.png"), pixels)
            if labels:
                assert cv2.imwrite(str(root / "labels" / f"scene_{i:02d}.png"), mask)
        return root

    return make


@pytest.fixture
def make_tree() -> Callable[[str, Path], Path]:
    """Write a small data set in a published layout, by the reader's name; returns its root."""

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)

    def ms_cloud(root: Path, rng: np.random.Generator) -> None:
        for scene in range(4):
            for offset in (0, 480):
                image, label = draw_scene(480, 480, rng)
                write(root / f"images/{scene}_{offset}_960.jpg", image)
                write(root / f"labels/{scene}_{offset}_960.png", label // 255)

    def hrc_whu(root: Path, rng: np.random.Generator) -> None:
        for cover in ("barren", "water"):
            for number in range(1, 6):
                image, label = draw_scene(720, 1280, rng)
                write(root / f"{cover}_{number}.tif", image)
                write(root / f"{cover}_{number}_ReferenceMask.tif", label)

    def patches(base: Path, part: str, end: str, scenes: dict[str, int], rng: np.random.Generator) -> None:
        for scene, count in scenes.items():
            for i in range(count):
                name = f"patch_{i + 1}_1_by_{i + 1}_{scene}.TIF"
                image, label = draw_scene(384, 384, rng)
                image, empty = image.astype(np.uint16) * 200, i == count - 1  # the last one holds no data
                for band, pixels in zip(
                    ("red", "green", "blue", "nir"), (*cv2.split(image), image[..., 0]), strict=True
                ):
                    write(base / f"{part}_{band}{end}" / f"{band}_{name}", pixels * np.uint16(not empty))
                if part == "train":
                    write(base / f"{part}_gt{end}" / f"gt_{name}", label * np.uint8(not empty))
            if part == "test":  # one row of patches, of which the margin of three pixels is no part of the scene
                truth = np.zeros((381, 384 * count - 5), np.uint8)
                truth[100:200, 100:200] = 1
                write(base / f"Entire_scene_gts/edited_corrected_gts_{scene}.TIF", truth)

    def cloud38(root: Path, rng: np.random.Generator) -> None:
        training = {f"LC08_L1TP_00205{i}_20160520_20170324_01_T1": 3 for i in range(2)}
        patches(root / "38-Cloud_training", "train", "", training, rng)
        patches(root / "38-Cloud_test", "test", "", {"LC08_L1TP_003052_20160120_20170405_01_T1": 3}, rng)

    def cloud95(root: Path, rng: np.random.Generator) -> None:
        cloud38(root, rng)
        folder = root / "95-cloud_training_only_additional_to38-cloud"
        scenes = {f"LC08_L1TP_01003{i}_20160520_20170324_01_T1": 3 for i in range(3)}
        patches(folder, "train", "_additional_to38cloud", scenes, rng)
        names = (
            path.stem.removeprefix("gt_") for path in folder.glob("train_gt*/*.TIF") if "patch_3_" not in path.name
        )
        (folder / "training_patches_95-cloud_nonempty.csv").write_text("\n".join(["name", *sorted(names)]) + "\n")

    def landsat(base: Path, numbers: range, rng: np.random.Generator, side: int) -> np.ndarray:
        image, label = draw_scene(side, side, rng)
        image[:, :9] = 0  # a margin without data
        for number in numbers:
            write(base.with_name(f"{base.name}{number}.TIF"), image[..., number % 3].astype(np.uint16) * 100)
        return label

    def l8_biome(root: Path, rng: np.random.Generator) -> None:
        for i in range(2):
            scene = f"LC8042008201322{i}LGN00"
            label = landsat(root / f"BC/{scene}/{scene}_B", range(1, 12), rng, 560)
            mask = np.where(label > 0, np.uint8(192), np.uint8(128))
            mask[:, :9] = 0
            profile = {"driver": "ENVI", "height": 560, "width": 560, "count": 1, "dtype": "uint8"}
            with rasterio.open(root / f"BC/{scene}/{scene}_fixedmask.img", "w", **profile) as file:
                file.write(mask, 1)

    def many_bands(path: Path, count: int, rng: np.random.Generator, side: int) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        image, label = draw_scene(side, side, rng)
        profile = {"driver": "GTiff", "height": side, "width": side, "count": count, "dtype": "uint16"}
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.stack([image[..., band % 3].astype(np.uint16) * 30 for band in range(count)]))
        return label // 255

    def sparcs(root: Path, rng: np.random.Generator) -> None:
        for i in range(5):
            label = many_bands(root / f"sending/LC8229056201415{i}LGN00_24_data.tif", 10, rng, 200)
            mask = Image.fromarray(np.where(label > 0, np.uint8(5), np.uint8(4)), "P")
            mask.putpalette([value for index in range(7) for value in (index * 30, 90, 200)])
            mask.save(root / f"sending/LC8229056201415{i}LGN00_24_mask.png")

    def cloudsen12(root: Path, rng: np.random.Generator) -> None:
        for i in range(5):
            folder = root / f"high/ROI_000{i}/20200215T082021_20200215T084629_T34JCP"
            label = many_bands(folder / "S2L1C.tif", 13, rng, 509)
            (folder / "labels").mkdir()
            cv2.imwrite(str(folder / "labels/manual_hq.tif"), label * 2)

    kinds = {
        **{"l8_biome": l8_biome, "sparcs": sparcs, "cloudsen12": cloudsen12},
        **{"ms_cloud": ms_cloud, "hrc_whu": hrc_whu, "cloud38": cloud38, "cloud95": cloud95},
    }

    def make(reader: str, root: Path) -> Path:
        kinds[reader](root, np.random.default_rng(len(reader)))
        return root

    return make


@pytest.fixture
def tiny_arguments(make_domain: Callable[..., Path]) -> Callable[..., list[str]]:
    """The command line of a run of seconds; makes its two labelled domains below `tmp_path` on first use."""

    def arguments(tmp_path: Path, *extra: str) -> list[str]:
        for seed, role in enumerate(("source", "target")):
            if not (tmp_path / role).exists():
                make_domain(tmp_path / role, seed=seed)
        values = {
            "out": tmp_path / "run",
            "device": "cpu",
            "source.root": tmp_path / "source",
            "target.root": tmp_path / "target",
            "data.size": 32,
            "net.backbone": "mobilenetv3_small_050",
            "net.discriminator_width": 4,
            "teacher.steps": 6,
            "teacher.batch": 2,
            "intra.steps": 6,
            "intra.batch": 2,
            "log.every": 1,
            "log.checkpoint": 2,
            "log.pictures": 3,
        }
        return [word for key, value in values.items() for word in (f"--{key}", str(value))] + list(extra)

    return arguments


@pytest.fixture
def run_stages() -> Callable[[Any], Path]:
    """Run stages 1 to 3 of a configuration in this process; gives the run's folder."""
    from split_entropy import split_entropy
    from train_intra import train_intra
    from train_teacher import train_teacher

    def run(config: Any) -> Path:
        for stage in (train_teacher, split_entropy, train_intra):
            stage(config)
        return Path(config.out)

    return run


@pytest.fixture
def written() -> Callable[[Path], dict[str, bytes]]:
    """All files below a folder, but for those that tell of the machine, the time and the command."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("timing.jsonl", "config.yaml", ".lock")
            if path.parent.name != "tensorboard"
        }

    return read

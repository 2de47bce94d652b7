"""Same seed, same bytes: whatever the loader processes, the cache, the interruptions and the order of the lists.

The target is of 16 bits, with a margin and a hole without data, cut into tiles; the source is of 8 bits.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import rasterio
import torch

import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from config.schema import Config
from engine.build import build_segmenter
from nets.weights import save_segmenter

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml"))
STEPS, CHECKPOINT, IMAGES = 4, 2, 4
STAGES: dict[
    str, tuple[Callable[[Config], None], Any, str]
] = {  # what runs it, and what it calls at each step or image
    "teacher": (train_teacher.train_teacher, train_teacher.TeacherStage, "after_update"),
    "split": (split_entropy.split_entropy, split_entropy, "score_image"),
    "intra": (train_intra.train_intra, train_intra.AsdaStage, "after_update"),
}
RESULTS = {
    *(f"{stage}/{file}" for stage in ("teacher", "intra") for file in ("checkpoint.pt", "metrics.jsonl")),
    *("teacher/teacher.safetensors", "split/entropy.csv", "split/easy.txt", "split/hard.txt"),
    *("split/pseudo_labels/scene_00_00000_00000.png", "intra/student.safetensors", "scaling_target.json"),
}
Files = dict[str, bytes]


class StoppedError(Exception):
    """Stands for a kill."""


class Way(NamedTuple):
    """How a run is made, which must not show in its result. Stages are stopped in these calls of theirs, and go on."""

    workers: int = 0
    cached: bool = False
    stops: tuple[int, ...] = ()


PLAIN = Way()


class World:
    """A pair of domains below a folder, and runs over it."""

    def __init__(self, folder: Path, make_domain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.settings: dict[tuple[str, ...], Config] = {}
        for seed, role in enumerate(("source", "target")):
            make_domain(folder / role, count=IMAGES, seed=seed)
        for path in (folder / "target/images").iterdir():
            self.widen(path)
        for role in ("source", "target"):
            self.list_images(role, self.images(role))

    def widen(self, path: Path) -> None:
        """Make a picture a TIFF of four bands of 16 bits with a margin and a hole without data."""
        pixels = cv2.imread(str(path)).astype(np.uint16) * 200 + 1
        pixels[:, :3], pixels[20:24, 20:30] = 0, 0
        profile = {"driver": "GTiff", "height": 40, "width": 48, "count": 4, "dtype": "uint16"}
        with rasterio.open(path.with_suffix(".tif"), "w", **profile) as file:
            file.write(np.concatenate([pixels, pixels[..., :1]], 2).transpose(2, 0, 1))
        path.unlink()

    def images(self, role: str) -> list[Path]:
        return sorted(path for path in (self.folder / role / "images").rglob("*") if path.is_file())

    def list_images(self, role: str, images: Sequence[Path], start: str = "", end: str = "\n") -> None:
        names = [path.relative_to(self.folder / role / "images") for path in images]
        rows = (f"{start}images/{name} labels/{name.with_suffix('.png')}{end}" for name in names)
        (self.folder / role / "train.txt").write_bytes("".join(rows).encode())

    def config(self, out: str, *extra: str, way: Way = PLAIN) -> Config:
        if extra not in self.settings:  # reading them takes as long as a few steps
            self.settings[extra] = self.loaded(*extra)
        config = self.settings[extra]
        data = replace(config.data, workers=way.workers, cache=str(self.folder / "cache") if way.cached else None)
        return replace(config, out=str(self.folder / out), data=data)

    def loaded(self, *extra: str) -> Config:
        """The settings of a small run; `extra` is a method, over which they win, or keys, which win over them."""
        values = {
            "device": "cpu",
            "source.root": self.folder / "source",
            "source.train": "train.txt",
            "target.root": self.folder / "target",
            "target.train": "train.txt",
            "target.bands": "[blue, green, red, nir]",
            "target.nodata": "all_zero",
            "target.eval": "train.txt",  # the oracle asks for one
            "data.size": 32,
            "data.tile": 40,
            "data.geometry": "crop",
            "net.backbone": "mobilenetv3_small_050",
            "net.layout": "timm",
            "net.discriminator_width": 4,
            "optim.lr": 0.1,
            "optim.head_factor": 3,
            "teacher.steps": STEPS,
            "teacher.batch": 2,
            "intra.steps": STEPS,
            "intra.batch": 2,
            "intra.lr_factor": 0.02,
            "log.every": 1,
            "log.checkpoint": CHECKPOINT,
        }
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        return load_config([*words, *extra])

    def run(self, out: str, *extra: str, way: Way = PLAIN, begun: Config | None = None) -> Path:
        """A run that is made in one way. With `begun`, every stage is begun with these settings until it is stopped."""
        config = self.config(out, *extra, way=way)
        there = {"teacher": True, "split": split_entropy.uses_split(config), "intra": config.intra.enabled}
        for stage, (run, _, _) in STAGES.items():
            for calls in way.stops if there[stage] else ():
                with self.stopped(stage, calls):
                    run(begun or config)
            run(config)
        return self.folder / out

    @contextmanager
    def stopped(self, stage: str, calls: int) -> Iterator[None]:
        """Within it, a stage ends at that step, counted from where it goes on, or image."""
        _, owner, name = STAGES[stage]
        original, counter = getattr(owner, name), count(1)

        def stop(*given: Any, **named: Any) -> Any:
            if next(counter) == calls:
                raise StoppedError
            return original(*given, **named)

        with self.monkeypatch.context() as patched, pytest.raises(StoppedError):
            patched.setattr(owner, name, stop)
            yield


@pytest.fixture
def world(tmp_path: Path, make_domain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, make_domain, monkeypatch)


def require_same(found: Files, wanted: Files, how: object = "") -> None:
    assert found.keys() == wanted.keys(), how
    assert [name for name in wanted if found[name] != wanted[name]] == [], how


def test_workers_cache_and_stops_do_not_show(world: World, written: Callable[[Path], Files]) -> None:
    wanted = written(world.run("plain"))
    assert wanted.keys() >= RESULTS
    assert sum(name.startswith("split/pseudo_labels/") for name in wanted) == 2 * IMAGES  # tiles
    for way in (Way(2, cached=True), Way(4)):  # the first one fills the cache, the next one reads from it
        require_same(written(world.run(f"{way}", way=way)), wanted, way)
    begun = world.config("crossed", way=Way(2))
    way = Way(0, cached=True, stops=(STEPS,))  # after rows that the checkpoint does not know
    require_same(written(world.run("crossed", way=way, begun=begun)), wanted, "begun in another way")
    train_teacher.train_teacher(world.config("other", "--seed", "1"))
    other = written(world.folder / "other")
    assert [name for name in RESULTS & other.keys() if other[name] == wanted[name]] == ["scaling_target.json"]


def test_order_of_lists_spelling_of_paths_and_place_of_the_run_do_not_show(
    world: World, written: Callable[[Path], Files]
) -> None:
    wanted = written(world.run("plain"))
    order = np.random.default_rng(0).permutation(IMAGES)
    assert not (np.diff(order) > 0).all()
    for role in ("source", "target"):
        world.list_images(role, [world.images(role)[i] for i in order], start="./", end="\r\n")
    (world.folder / "deep/link").mkdir(parents=True)
    (world.folder / "deep/link/target").symlink_to(world.folder / "target")
    world.monkeypatch.chdir(world.folder / "deep")
    roots = ("--source.root", "../source/../source/", "--target.root", "link/target")
    found = written(world.run("deep/elsewhere/run", *roots))
    scaling = "scaling_target.json"  # tells the root that it was measured in
    found[scaling] = found[scaling].replace(b"link/target", str(world.folder / "target").encode())
    require_same(found, wanted)


# the split


def with_teacher(config: Config) -> Config:
    """Put a network that has learnt nothing in the teacher's place."""
    folder = Path(config.out) / "teacher"
    folder.mkdir(parents=True)
    save_segmenter(folder / "teacher.safetensors", build_segmenter(config))
    return config


def ranked(config: Config) -> list[dict[str, str]]:
    with open(Path(config.out) / "split/entropy.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_split_follows_the_teacher_and_a_score_its_image_alone(
    world: World, written: Callable[[Path], Files]
) -> None:
    """Neither batch sizes nor loader processes, cache, order of the list or the other images."""
    config = with_teacher(world.config("plain"))
    split_entropy.split_entropy(config)
    wanted, scores = written(world.folder / "plain"), {row["name"]: row["score"] for row in ranked(config)}
    assert len(set(scores.values())) == 2 * IMAGES
    world.list_images("target", world.images("target")[::-1])
    for batch, way in product((1, 5), (Way(2, cached=True), Way(4), Way(0, cached=True))):
        config = world.config(f"{batch}-{way}", way=way)
        stages = {"teacher": replace(config.teacher, batch=batch), "intra": replace(config.intra, batch=batch)}
        split_entropy.split_entropy(with_teacher(replace(config, **stages)))
        require_same(written(Path(config.out)), wanted, config.out)
    world.list_images("target", world.images("target")[1:2])
    scaling = world.folder / "plain/scaling_target.json"  # is measured on all of them
    config = with_teacher(world.config("alone"))
    (world.folder / "alone" / scaling.name).write_bytes(scaling.read_bytes())
    split_entropy.split_entropy(config)
    assert {row["name"]: row["score"] for row in ranked(config)}.items() < scores.items()


@pytest.mark.parametrize("released", [False, True])
def test_equal_scores_are_split_by_name(world: World, released: bool) -> None:
    names = ["B", "a", "a/1", "a10", "a2", "b"]  # in their order: that of the characters' numbers
    first, *others = world.images("target")
    for name in names:
        copy = first.parent / f"{name}.tif"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(first.read_bytes())
    for path in (first, *others):
        path.unlink()
    shuffled = np.random.default_rng(1).permutation(world.images("target")).tolist()
    for out, images in (
        ("listed", world.images("target")),
        ("turned", world.images("target")[::-1]),
        ("mixed", shuffled),
    ):
        world.list_images("target", images)
        settings = ("--data.tile", "null", "--split.ratio", "0.5", "--released.split", str(released).lower())
        config = with_teacher(world.config(out, *settings))
        split_entropy.split_entropy(config)
        assert [row["name"] for row in ranked(config)] == names
        assert len({row["score"] for row in ranked(config)}) == 1
        assert (world.folder / out / "split/easy.txt").read_text().split() == names[: 3 + released]
        assert (world.folder / out / "split/hard.txt").read_text().split() == names[3 + released :]


# the long ones


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
def test_every_way(geometry: str, world: World, written: Callable[[Path], Files]) -> None:
    extra = ("--data.geometry", geometry)
    wanted = written(world.run("plain", *extra))
    for way in map(Way, *zip(*product((0, 2, 4), (False, True), ((), (2, STEPS))), strict=True)):
        require_same(written(world.run(f"{way}", *extra, way=way)), wanted, way)


@pytest.mark.slow
def test_stopped_at_every_step(world: World, written: Callable[[Path], Files]) -> None:
    """Wherever the checkpoint stands, and however many rows are behind it."""
    wanted = written(world.run("plain"))
    for calls, interval in product(range(1, STEPS + 1), (1, 2, 3)):
        out = f"{calls}-{interval}"
        begun = world.config(out, "--log.checkpoint", str(interval))
        found = written(world.run(out, way=Way(stops=(calls,)), begun=begun))
        for files in (found, wanted):  # the step of the one before the last follows the interval
            for stage in ("teacher", "intra"):
                files.pop(f"{stage}/checkpoint.previous.pt", None)
        require_same(found, wanted, out)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, world: World, written: Callable[[Path], Files]) -> None:
    extra = ("--method", method)
    begun = world.config("other", *extra, way=Way(2))
    way = Way(4, cached=True, stops=(2, STEPS - 1))
    require_same(written(world.run("other", *extra, way=way, begun=begun)), written(world.run("plain", *extra)), method)


@pytest.mark.slow
def test_another_process_with_other_hashes(world: World, written: Callable[[Path], Files]) -> None:
    """Sets and dictionaries of another order, a fresh PyTorch, as many threads."""
    wanted = written(world.run("plain"))
    record = str(world.folder / "plain/teacher/config.yaml")
    for seed in ("1", "2"):
        out = world.folder / f"hash{seed}"
        for script in ("train_teacher.py", "split_entropy.py", "train_intra.py"):
            command = [sys.executable, str(ROOT / script), "--config", record, "--out", str(out)]
            environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        require_same(written(out), wanted, seed)

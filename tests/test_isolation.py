"""Labels of the target reach no stage of any method but the oracle.

Shown twice: Linux tells which files are opened, by whichever library or process; and real, random and absent labels
give the same bytes.
"""

import ctypes
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from comparison import scoring
from comparison.jobs import plan
from config.load import load_compare_config, load_config
from config.schema import Config
from datasets.readers import READERS, find_images
from engine.domains import training_images
from engine.run import make_generated

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml") if path.stem != "oracle")
QUICK = {("asda", "list"), ("esl", "folder"), ("mic", "list")}  # easy and hard; stored masks; mixed and masked images
LAYOUTS = {"folder": (), "list": ("--target.train", "train.txt", "--target.eval", "eval.txt")}
OPENED, LOST, EVENT = 0x20, 0x4000, struct.Struct("iIII")  # of linux/inotify.h
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
Settings = Callable[..., Config]
Stages = Callable[[Config], Path]
Written = Callable[[Path], dict[str, bytes]]


class Watch:
    """Tells which files and folders below a folder are opened from now on."""

    def __init__(self, root: Path) -> None:
        system = ctypes.CDLL(None, use_errno=True)
        self.file = system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        self.folders = {system.inotify_add_watch(self.file, os.fsencode(path), OPENED): path for path in folders}
        assert len(self.folders) == len(folders) and -1 not in self.folders, os.strerror(ctypes.get_errno())

    def opened(self) -> set[Path]:
        """What was opened since this was asked before."""
        found = set()
        while content := self._read():
            place = 0
            while place < len(content):
                number, kind, _, length = EVENT.unpack_from(content, place)
                assert not kind & LOST, "more was opened than Linux keeps in mind"
                name = content[place + EVENT.size :][:length].rstrip(b"\0")
                found.add(self.folders[number] / os.fsdecode(name))
                place += EVENT.size + length
        return found

    def _read(self) -> bytes:
        try:
            return os.read(self.file, 1 << 16)
        except BlockingIOError:
            return b""


@pytest.fixture
def watch() -> Iterator[Callable[[Path], Watch]]:
    watches: list[Watch] = []

    def begin(root: Path) -> Watch:
        watches.append(Watch(root))
        return watches[-1]

    yield begin
    for one in watches:
        os.close(one.file)


@pytest.fixture
def settings(tmp_path: Path, tiny_arguments: Callable[..., list[str]]) -> Settings:
    """A small run of a method; makes the domains, the target's with lists that name its labels."""

    def given(method: str, *extra: str) -> Config:
        steps = [
            "--teacher.steps",
            "2",
            "--intra.steps",
            "2",
            "--net.layout",
            "timm",
            "--net.decoder",
            "fpn",
            "--net.output_stride=null",
        ]
        words = ["--method", method, *tiny_arguments(tmp_path), *steps]
        rows = [f"images/scene_{i:02d}.png labels/scene_{i:02d}.png\n" for i in range(6)]
        (tmp_path / "target/train.txt").write_text("".join(rows[:4]))
        (tmp_path / "target/eval.txt").write_text("".join(rows[4:]))
        return load_config([*words, *extra])

    return given


def of_labels(opened: set[Path], target: Path) -> set[str]:
    """The labels among what was opened, and their folder; the images have to be there as well."""
    assert {path.parent.name for path in opened} >= {"images"}, "the watch saw nothing"
    return {path.relative_to(target).as_posix() for path in opened if "labels" in path.relative_to(target).parts}


def make_random(labels: Path) -> None:
    """Replace the labels by others that can be read."""
    rng = np.random.default_rng(0)
    for path in labels.iterdir():
        assert cv2.imwrite(str(path), rng.integers(0, 2, (40, 48), np.uint8) * 255)


# no label is opened


@on_linux
@pytest.mark.parametrize("method", METHODS)
def test_no_label_is_opened(
    method: str, tmp_path: Path, settings: Settings, run_stages: Stages, watch: Callable[[Path], Watch]
) -> None:
    """Where a list names the labels beside the images."""
    config = settings(method, *LAYOUTS["list"])
    seen = watch(tmp_path / "target")
    run_stages(config)
    assert of_labels(seen.opened(), tmp_path / "target") == set()


@on_linux
def test_no_label_is_opened_by_loader_processes_nor_for_the_cache(
    tmp_path: Path, settings: Settings, run_stages: Stages, watch: Callable[[Path], Watch]
) -> None:
    config = settings("asda", "--data.workers", "2", "--data.cache", str(tmp_path / "cache"))
    seen = watch(tmp_path / "target")
    run_stages(config)
    assert of_labels(seen.opened(), tmp_path / "target") == set()


@on_linux
@pytest.mark.slow
def test_no_label_of_the_generated_pair_is_opened(
    tmp_path: Path, settings: Settings, run_stages: Stages, watch: Callable[[Path], Watch]
) -> None:
    pair = {"root": str(tmp_path / "pair"), "train": 4, "evaluation": 2, "size": 40}
    roots = [word for role in ("source", "target") for word in (f"--{role}.root", str(tmp_path / "pair" / role))]
    config = settings("asda", *LAYOUTS["list"], "--generated", json.dumps(pair), *roots)
    make_generated(config)
    seen = watch(tmp_path / "pair/target")
    run_stages(config)
    assert of_labels(seen.opened(), tmp_path / "pair/target") == set()


@on_linux
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("scaling", ["train", "source"])
@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(reader, marks=[pytest.mark.slow] * (reader != "sparcs"))  # whose labels lie beside the images
        for reader in READERS
        if reader != "folder"
    ],
)
def test_no_label_of_a_published_layout_is_opened(
    reader: str, scaling: str, tmp_path: Path, make_tree: Callable[[str, Path], Path], watch: Callable[[Path], Watch]
) -> None:
    """And without labels the training images and their scaling are the same."""
    root = make_tree(reader, tmp_path / "data")
    labels = {item.label for item in find_images(root, reader=reader, labels=True).items if item.label is not None}
    roots = ["--source.root", str(root), "--target.root", str(root)]
    roots += ["--source.reader", reader, "--target.reader", reader, "--target.scaling", scaling]
    seen = watch(root)
    config = load_config(["--out", str(tmp_path / "a"), *roots])
    images = training_images(config, "target", labels=False)
    opened = seen.opened()
    assert labels and not labels & opened
    assert {path for item in images for path in images.decoder.sources(item)} <= opened
    for path in labels:
        path.unlink()
    bare = load_config(["--out", str(tmp_path / "b"), *roots])
    assert training_images(bare, "target", labels=False) == images


@on_linux
def test_the_oracle_opens_the_labels_of_its_training_images(
    tmp_path: Path, settings: Settings, run_stages: Stages, written: Written, watch: Callable[[Path], Watch]
) -> None:
    """So the tests above would see it; and it looks at neither held-back labels nor the source."""
    config = settings("oracle", *LAYOUTS["list"])
    seen, source = watch(tmp_path / "target"), watch(tmp_path / "source")
    real = written(run_stages(config))
    opened = of_labels(seen.opened(), tmp_path / "target") - {"labels"}
    assert opened == {f"labels/scene_{i:02d}.png" for i in range(4)}
    assert source.opened() == set()
    make_random(tmp_path / "target/labels")
    other = written(run_stages(replace(config, out=str(tmp_path / "random"))))
    assert other.keys() == real.keys() and all(other[name] != real[name] for name in real)


# the same bytes


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        pytest.param(method, layout, marks=[pytest.mark.slow] * ((method, layout) not in QUICK))
        for method in METHODS
        for layout in LAYOUTS
    ],
)
def test_real_random_and_absent_labels_give_the_same_bytes(
    method: str, layout: str, tmp_path: Path, settings: Settings, run_stages: Stages, written: Written
) -> None:
    config = settings(method, *LAYOUTS[layout])
    labels = tmp_path / "target/labels"
    found = {}
    for kind, change in {"real": None, "random": make_random, "absent": shutil.rmtree}.items():
        if change is not None:
            change(labels)
        found[kind] = written(run_stages(replace(config, out=str(tmp_path / kind))))
    assert {Path(name).name for name in found["real"]} >= {"checkpoint.pt", "metrics.jsonl"}
    assert found["real"] == found["random"] == found["absent"]


# compare.py


@on_linux
def test_a_comparison_opens_no_label_before_it_scores(
    tmp_path: Path,
    settings: Settings,
    written: Written,
    watch: Callable[[Path], Watch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the labels, the trained networks and the choice of the checkpoint by entropy are the same."""
    settings("advent")
    pair = {
        "device": "cpu",
        **{role: {"root": str(tmp_path / role)} for role in ("source", "target")},
        "data": {"size": 32},
        "net": {"backbone": "mobilenetv3_small_050", "discriminator_width": 4},
        "teacher": {"steps": 2, "batch": 2},
    }
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(pair))
    comparison = {
        "pairs": {"tiny": str(tmp_path / "pair.yaml")},
        "methods": {"advent": None},
        "seeds": [0],
        "protocol": {"log": {"snapshots": 1}},
        "selection": "entropy",
        "best_on_labels": True,
    }
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(comparison))
    seen = watch(tmp_path / "target")
    original, moments = scoring.score, []

    def score(*given: Any) -> Any:
        moments.append(of_labels(seen.opened(), tmp_path / "target"))
        return original(*given)

    monkeypatch.setattr(scoring, "score", score)
    results, files = [], []
    for kind in ("real", "random"):
        if kind == "random":
            make_random(tmp_path / "target/labels")
            seen.opened()
        config = load_compare_config(["--config", str(tmp_path / "comparison.yaml"), "--out", str(tmp_path / kind)])
        (job,) = plan(config)
        results.append(scoring.make_result(job))
        assert of_labels(seen.opened(), tmp_path / "target")  # then it does
        files.append(written(job.folder))
    assert moments == [set(), set()]
    assert files[0] == files[1] and any("snapshots/" in name for name in files[0])
    same = {
        key: np.array_equal(*(getattr(result, key) for result in results)) for key in ("chosen", "selected", "matrices")
    }
    assert same == {"chosen": True, "selected": True, "matrices": False}

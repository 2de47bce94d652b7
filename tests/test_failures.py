"""Failures in the middle of eval.py, split_entropy.py, compare.py, predict.py and export.py.

What had its final name before is there still, whole; nothing half-written has a final name; the networks are as they
were; the command ends with a status and a sentence; and given again, it makes what it would have made.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from torch import nn

import eval as evaluation
import export
import predict
import utils.files
from comparison import scoring
from comparison.results import Comparison, Result
from comparison.run import JOB_LOCK
from comparison.tables import write as write_comparison
from config.load import load_config, to_yaml
from config.schema import Config
from datasets.generated import make_pair
from engine.lock import LOCK, one_writer
from engine.log import prediction_grid
from nets.segmenter import Segmenter
from nets.weights import load_segmenter, save_segmenter
from report.gradcam import grad_cam
from scenes import Options, load_network, predict_array
from split_entropy import split_entropy
from utils.errors import DataError, EvaluationError, WeightsError

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
RECORDS = ("pictures.json", "commands.json", "report.html")  # say what happened, so they may be neither old nor new
FAULTS: dict[str, Callable[[], BaseException]] = {
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "memory": lambda: MemoryError("no more"),
    "torch": lambda: RuntimeError("cuDNN error"),
    "Ctrl-C": KeyboardInterrupt,
}
Files = dict[str, bytes]


def files_in(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


@cache
def network_of(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter("mobilenetv3_small_050", init="kaiming")


@pytest.fixture(autouse=True)
def same_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may commit between two evaluations."""
    monkeypatch.setattr("report.tables.versions", lambda: "")


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure's file holds what is drawn and is not drawn, which takes most of an evaluation's time."""

    def save(figure: Figure, path: Path, **_: object) -> None:
        content = hashlib.sha256()
        for artist in figure.findobj():
            for name in ("get_array", "get_offsets", "get_xydata", "get_xy", "get_text"):
                drawn = np.asarray(getattr(artist, name, str)())
                content.update(b"" if drawn.dtype == object else drawn.tobytes())
        picture = np.frombuffer(content.digest(), np.uint8).reshape(4, 8)
        Path(path).write_bytes(cv2.imencode(".png", picture)[1].tobytes())

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three images a domain, and a run with a split and a student that has learnt nothing; the teacher is put aside."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for role in ("source", "target"):
        for i in range(3):
            image, label = rng.integers(20, 90, (40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8)
            label[8 : 24 + 4 * i, 12:30] = 255
            image[label > 0] += 130
            for kind, pixels in (("images", image), ("labels", label)):
                (folder / role / kind).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / f"{role}/{kind}/scene_{i:02d}.png"), pixels)
    values = {
        "out": folder / "run",
        "device": "cpu",
        "source.root": folder / "source",
        "target.root": folder / "target",
    }
    values |= {"data.size": 32, "net.backbone": "mobilenetv3_small_050", "teacher.batch": 2, "intra.batch": 2}
    values |= {"eval.pictures": 1, "eval.tsne_pixels": 4}
    config = load_config([word for key, value in values.items() for word in (f"--{key}", str(value))])
    for name in ("intra/student", "teacher/teacher"):
        (folder / "run" / name).parent.mkdir(parents=True)
        save_segmenter(folder / f"run/{name}.safetensors", network_of(0))
    split_entropy(config)
    (folder / "run/teacher/teacher.safetensors").rename(folder / "teacher.safetensors")
    rows = ({"step": step, "lr": 0.1, "loss": 1 / step, "raw/seg": 1 / step, "stats/entropy": 0.5} for step in (1, 2))
    (folder / "run/intra/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return config


@pytest.fixture
def config(tmp_path: Path, made_once: Config) -> Config:
    """`made_once`, with a copy of its run."""
    shutil.copytree(made_once.out, tmp_path / "run")
    shutil.copy(Path(made_once.out).with_name("teacher.safetensors"), tmp_path)
    return replace(made_once, out=str(tmp_path / "run"))


def only(config: Config, parts: str) -> Config:
    return replace(config, eval=replace(config.eval, parts=parts))


def stop_half_way(patch: pytest.MonkeyPatch, name: str, fault: BaseException) -> None:
    """Have the write of the file that ends with `name` leave half of it and fail."""
    whole = utils.files.put_in_place

    def half(finished: Path, path: Path) -> None:
        if str(path).endswith(name):
            os.truncate(finished, finished.stat().st_size // 2)
            raise fault
        whole(finished, path)

    patch.setattr(utils.files, "put_in_place", half)


def require_old_or_new(found: Files, old: Files, new: Files, case: object) -> None:
    assert old.keys() <= found.keys(), case
    for name, content in found.items():
        if name.endswith(".json"):
            json.loads(content)
        if name in RECORDS or name.endswith("_failed.txt"):
            continue
        assert content in (old.get(name), new.get(name)), (case, name)


# files of an evaluation

EVALUATION = [
    ("masks", "masks/target/student/scene_01.png", "disk", "predictions"),
    ("scores", "metrics.csv", "torch", "scores"),
    ("masks", "masks/target_errors.png", "memory", "masks"),
    ("entropy", "entropy/easy_hard.png", "Ctrl-C", "entropy"),
    ("tsne", "tsne.png", "disk", "tsne"),
    ("gradcam", "gradcam/target.png", "memory", "gradcam"),
    ("report", "report.html", "disk", "report"),
    ("gradcam", "pictures.json", "disk", None),
]


def old_and_new(config: Config, tmp_path: Path) -> tuple[Files, Files]:
    """What the evaluations of two networks leave; that of the first is in place, the second network is."""
    folder, results = tmp_path / "run/eval", []
    for seed in (1, 2):
        save_segmenter(tmp_path / "run/intra/student.safetensors", network_of(seed))
        evaluation.evaluate(config)
        results.append(files_in(folder))
        if seed == 1:
            shutil.copytree(folder, tmp_path / "old")
    old, new = results
    assert old.keys() == new.keys() and not [name for name in new if name.endswith("_failed.txt")]
    assert all(old[name] != new[name] for name in ("masks/target.png", "gradcam/target.png"))
    return old, new


def evaluate_with_fault(config: Config, tmp_path: Path, part: str, name: str, fault: str, failing: str | None) -> str:
    """The message with which an evaluation of the new network over the old results ends."""
    shutil.rmtree(tmp_path / "run/eval")
    shutil.copytree(tmp_path / "old", tmp_path / "run/eval")
    expected = KeyboardInterrupt if fault == "Ctrl-C" else DataError if failing is None else EvaluationError
    with pytest.MonkeyPatch.context() as patch, pytest.raises(expected) as caught:
        stop_half_way(patch, name, FAULTS[fault]())
        evaluation.evaluate(only(config, part))
    return str(caught.value)


def test_an_evaluation_that_fails_in_any_part_leaves_old_or_new_files(
    config: Config, tmp_path: Path, quick_figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(config, tmp_path)
    for case in EVALUATION:
        _, name, fault, failing = case
        capsys.readouterr()
        message = evaluate_with_fault(config, tmp_path, *case)
        told = message + capsys.readouterr().out
        require_old_or_new(files_in(tmp_path / "run/eval"), old, new, case)
        assert files_in(tmp_path / "run/eval").get(name) == old[name], case
        if failing is not None and fault != "Ctrl-C":
            assert message.startswith(f"{failing} failed") and f"{failing}: failed, the other parts go on" in told, case
        if fault == "disk":
            assert f"{name}: cannot be written (No space left on device)" in told, case
        if fault == "memory":
            assert "not enough memory for batch 1 of data.size 32" in told and "--device cpu" in told, case
    evaluation.evaluate(config)
    assert files_in(tmp_path / "run/eval") == new


@pytest.mark.slow
def test_an_evaluation_that_fails_at_any_file_in_any_way(config: Config, tmp_path: Path) -> None:
    old, new = old_and_new(config, tmp_path)
    parts = {name: name.split("/")[0].split(".")[0] for name in new}
    parts |= {name: "entropy" for name in new if name.startswith("entropy")}
    parts |= {name: "masks" for name in new if name.startswith(("masks", "errors"))}
    parts |= {name: "scores" for name in new if name.startswith(("metrics", "images_"))}
    parts |= {"pictures.json": "gradcam", "commands.json": "gradcam", "curves.png": "report"}
    tried = 0
    for name, part in parts.items():
        for fault in FAULTS:
            failing = None if name in ("pictures.json", "commands.json") else part
            if failing is None and fault in ("memory", "torch"):
                continue
            evaluate_with_fault(config, tmp_path, part, name, fault, failing)
            require_old_or_new(files_in(tmp_path / "run/eval"), old, new, (name, fault))
            tried += 1
    evaluation.evaluate(config)
    assert files_in(tmp_path / "run/eval") == new
    print(f"{tried} faults at {len(parts)} files")
    assert tried > 60


# networks


def state_of(network: nn.Module) -> list[object]:
    kinds = [key for key in vars(network) if key.endswith("_hooks")]
    assert {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks"} <= set(kinds)
    return [
        {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()},
        [module.training for module in network.modules()],
        [[*getattr(module, kind)] for kind in kinds for module in network.modules()],
        [(p.requires_grad, p.grad is None) for p in network.parameters()],
    ]


@pytest.fixture
def network() -> Segmenter:
    """A network in the middle of something: modules of both modes, frozen weights, hooks of its own."""
    made = deepcopy(network_of(1)).train()
    made.head_aux.eval()
    next(module for module in made.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    next(made.parameters()).requires_grad_(False)
    made.register_forward_hook(lambda *_: None)
    made.head_main.register_forward_pre_hook(lambda *_: None)
    return made


def fail_in_forward(patch: pytest.MonkeyPatch, call: int, fault: BaseException) -> None:
    """Have a network fail at its `call`-th use, between backbone and prediction."""
    calls, on_image = 0, Segmenter.on_image

    def fails(self: Segmenter, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise fault
        return on_image(self, logits, image)

    patch.setattr(Segmenter, "on_image", fails)


@pytest.mark.parametrize("part", ["scores", "entropy", "tsne", "gradcam"])
def test_networks_are_as_they_were(
    part: str, config: Config, network: Segmenter, quick_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "load_models", lambda config: {"student": network})
    config = only(config, part)
    before = state_of(network)

    def drawing(patch: pytest.MonkeyPatch) -> None:
        if part == "scores":
            stop_half_way(patch, "images_target.csv", RuntimeError("no paint left"))
        else:
            patch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)

    for fault in (
        lambda patch: fail_in_forward(patch, 3, torch.OutOfMemoryError("CUDA out of memory")),
        lambda patch: fail_in_forward(patch, 2, RuntimeError("cuDNN error")),
        drawing,
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(EvaluationError):
            fault(patch)
            evaluation.evaluate(config)
        assert state_of(network) == before
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_in_forward(patch, 3, KeyboardInterrupt())
        evaluation.evaluate(config)
    assert state_of(network) == before
    evaluation.evaluate(config)
    assert state_of(network) == before


@pytest.mark.parametrize("layer", ["", "backbone.blocks.3"])
@pytest.mark.parametrize("fault", ["torch", "Ctrl-C"])
def test_a_failing_grad_cam_leaves_no_trace(
    fault: str, layer: str, network: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(network)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BaseException, match=r"cuDNN|^$"):
        fail_in_forward(patch, 2, FAULTS[fault]())
        grad_cam(network, torch.rand(1, 3, 32, 32), 1, layer=layer)
    assert state_of(network) == before
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grad_cam(network, torch.rand(1, 3, 32, 32), 1, layer=layer)
    assert state_of(network) == before


@pytest.mark.parametrize("fault", ["torch", "memory", "Ctrl-C"])
def test_a_failing_picture_in_training_leaves_no_trace(
    fault: str, network: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, batch = state_of(network), {"target": {"image": torch.rand(2, 3, 32, 32)}}
    prediction_grid(network, batch)
    assert state_of(network) == before
    fail_in_forward(monkeypatch, 2, FAULTS[fault]())
    with pytest.raises(type(FAULTS[fault]())):
        prediction_grid(network, batch)
    assert state_of(network) == before


def test_a_network_predicts_the_same_after_a_scene_that_failed(
    scene_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Segmenter] = []
    monkeypatch.setattr("nets.weights.load_segmenter", lambda path: loaded.append(load_segmenter(path)) or loaded[0])
    network, image = (
        load_network(scene_weights, "cpu"),
        np.random.default_rng(0).integers(0, 256, (300, 80, 3), np.uint8),
    )
    options = Options(window=64)
    before, expected = state_of(loaded[0]), predict_array(network, image, options=options)
    for fault in ("torch", "memory", "Ctrl-C"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(type(FAULTS[fault]())):
            fail_in_forward(patch, 3, FAULTS[fault]())
            predict_array(network, image, options=options)
        assert state_of(loaded[0]) == before
        assert np.array_equal(predict_array(network, image, options=options).probability, expected.probability)


# the split


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pseudo_labels/scene_01.png", "disk"),
        ("entropy/scene_02.png", "memory"),
        ("easy.txt", "Ctrl-C"),
        ("entropy.csv", "torch"),
        ("forward", "memory"),
    ],
)
def test_a_split_that_fails_is_not_finished_and_made_by_the_same_command(
    name: str, fault: str, config: Config, tmp_path: Path
) -> None:
    config = replace(config, split=replace(config.split, pseudo_label="class_median"))
    (tmp_path / "teacher.safetensors").rename(tmp_path / "run/teacher/teacher.safetensors")
    folder = tmp_path / "run/split"
    masks = {name: mask for name, mask in files_in(folder).items() if name.endswith(".png")}  # with all their pixels
    shutil.rmtree(folder)
    split_entropy(config)
    expected = files_in(folder)
    assert set(expected) > {"entropy.csv", "easy.txt", "hard.txt", "entropy/scene_00.png"}
    shutil.rmtree(folder)
    error = {"disk": DataError, "memory": EvaluationError}.get(fault, type(FAULTS[fault]()))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error) as caught:
        if name == "forward":
            fail_in_forward(patch, 3, FAULTS[fault]())
        else:
            stop_half_way(patch, name, FAULTS[fault]())
        split_entropy(config)
    if fault == "disk":
        assert f"{name}: cannot be written (No space left on device); " in str(caught.value)
    if fault == "memory":
        assert "run/split: cpu has not enough memory for batch 1 of data.size 32 (peak" in str(caught.value)
        assert "--device cpu" in str(caught.value)
    left = files_in(folder)
    assert "entropy.csv" not in left
    for file, content in left.items():
        assert file == "config.yaml" or content in (expected[file], masks.get(file)), file
    split_entropy(config)
    assert files_in(folder) | {"config.yaml": b""} == expected | {"config.yaml": b""}


# the comparison


def comparison_of(shift: int) -> Comparison:
    results = [
        Result(
            method=method,
            seed=0,
            images=["a", "b"],
            scenes=None,
            matrices=np.array([[[50, 3 + shift], [4, 43]], [[20 + i, 30 - i], [3, 47]]], np.int64),
            steps=4,
            seconds=2.0,
            peak_mib=None,
            warnings=[],
            selected="last",
            best=None,
        )
        for i, method in enumerate(("source_only", "asda"))
    ]
    return Comparison("a_to_b", "held-back images", results, methods=["source_only", "asda"], seeds=[0])


def test_a_comparison_that_fails_leaves_old_or_new_tables(tmp_path: Path, quick_figures: None) -> None:
    folder, results = tmp_path / "table", []
    for shift in (0, 9):
        write_comparison(folder, [comparison_of(shift)])
        results.append(files_in(folder))
    old, new = results
    assert set(old) == {"table.md", "table.csv", "table.tex", "results.json", "plot_a_to_b.png"} == set(new)
    assert all(old[name] != new[name] for name in old)
    for name, fault in zip(sorted(old), cycle(FAULTS), strict=False):
        for file, content in old.items():
            (folder / file).write_bytes(content)
        error = DataError if fault == "disk" else type(FAULTS[fault]())
        with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
            stop_half_way(patch, name, FAULTS[fault]())
            write_comparison(folder, [comparison_of(9)])
        found = files_in(folder)
        require_old_or_new(found, old, new, (name, fault))
        assert found[name] == old[name] and found.keys() == old.keys()


def test_checkpoints_are_in_memory_one_at_a_time_and_memory_is_told(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "run/intra/student.safetensors"
    (weights.parent / "snapshots").mkdir()
    for step in (2, 4):
        save_segmenter(weights.parent / f"snapshots/step_{step:08d}.safetensors", network_of(step))
    alive, most = 0, 0

    def counted(path: Path) -> Segmenter:
        nonlocal alive, most
        made = load_segmenter(path)
        alive, most = alive + 1, max(most, alive + 1)

        def gone() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(made, gone)
        return made

    monkeypatch.setattr(scoring, "load_segmenter", counted)
    found = scoring.score(config, weights, {"selection": "entropy", "best_on_labels": True})
    assert found["selected"].startswith("lowest mean entropy of 3 checkpoints") and most == 1
    fail_in_forward(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(
        EvaluationError, match=r"student.safetensors: cpu has not enough memory for batch 1 of data.size"
    ):
        scoring.score(config, weights, {"selection": "last", "best_on_labels": False})


# prediction and export


@pytest.fixture
def scene_weights(tmp_path: Path) -> Path:
    """A random network of crops of 64 of 8-bit RGB, in a run."""
    target = {"bands": None, "scaling": None, "nodata": "none"}
    data = {"bands": ["red", "green", "blue"], "size": 64, "geometry": "crop", "tile": None, "target": target}
    path = tmp_path / "scenes_run/intra/student.safetensors"
    path.parent.mkdir(parents=True)
    save_segmenter(path, network_of(0), {"data": json.dumps(data)})
    config = {"generated": None, "source": {"root": "a"}, "target": {"root": "b"}}
    (path.parent / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def write_scenes(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (70 + i, 90, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return folder


def predicted(weights: Path, out: Path, scenes: Path, *more: str) -> Files:
    words = ["--weights", str(weights), "--out", str(out), "--device", "cpu", str(scenes), *more]
    predict.predict(predict.read_request(words))
    return files_in(out)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("b_mask.png", "disk"),
        ("b_quicklook.png", "memory"),
        ("summary.csv", "disk"),
        ("predict.json", "disk"),
        ("b_mask.png", "Ctrl-C"),
        ("forward", "memory"),
    ],
)
def test_a_prediction_that_fails_leaves_whole_scenes(
    name: str, fault: str, scene_weights: Path, tmp_path: Path
) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", "a", "b"), tmp_path / "out"
    expected = predicted(scene_weights, tmp_path / "whole", scenes, "--quicklook")
    assert set(expected) == {f"{scene}_{layer}.png" for scene in "ab" for layer in ("mask", "quicklook")} | {
        "predict.json",
        "summary.csv",
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(KeyboardInterrupt if fault == "Ctrl-C" else DataError) as e,
    ):
        if name == "forward":  # the first scene has four windows in one forward
            fail_in_forward(patch, 2, FAULTS[fault]())
        else:
            stop_half_way(patch, name, FAULTS[fault]())
            patch.setattr("scenes.rasters.put_in_place", utils.files.put_in_place)
        predicted(scene_weights, out, scenes, "--quicklook")
    if fault == "disk":
        assert f"{name}: cannot be written (No space left on device)" in str(e.value)
    if (name, fault) == ("forward", "memory"):
        assert re.search(r"[ab]\.png: cpu has not enough memory for windows of \d+ pixels \(peak", str(e.value))
        assert "smaller --window" in str(e.value)
    left = files_in(out)
    assert all(content == expected[file] for file, content in left.items() if file != "summary.csv")
    assert not [path for path in out.rglob("*") if path.suffix in (".tmp", ".part")]
    again = predicted(scene_weights, out, scenes, "--quicklook")
    assert {**again, "summary.csv": b""} == {**expected, "summary.csv": b""}
    rows = [file["summary.csv"].decode().splitlines() for file in (again, expected)]
    rows = [[field for row in table for i, field in enumerate(row.split(",")) if i != 4] for table in rows]
    assert rows[0] == rows[1]  # without the seconds


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is not traced, which takes seconds, and not compared."""
    identity = onnx.helper.make_node("Identity", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([identity], "graph", ends[:1], ends[1:]))
    monkeypatch.setattr("scenes.export.to_onnx", lambda *_: model)
    monkeypatch.setattr(export, "largest_difference", lambda *_: 0.0)
    real = export.load_network
    monkeypatch.setattr(export, "load_network", lambda path, *device: real(path, *device) if device else None)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("student.safetensors", "disk"),
        ("README.md", "Ctrl-C"),
        ("student.onnx", "disk"),
        ("student.onnx", "Ctrl-C"),
        ("student.onnx", "differs"),
    ],
)
def test_an_export_that_fails_leaves_whole_files(
    name: str, fault: str, scene_weights: Path, tmp_path: Path, quick_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = export.Request(scene_weights, tmp_path / "out")
    export.export(request)
    before = files_in(tmp_path / "out")
    assert set(before) == {"student.safetensors", "student.onnx", "README.md"}
    if fault == "differs":
        monkeypatch.setattr(export, "largest_difference", lambda *_: 1.0)
        error: type[BaseException] = WeightsError
    else:
        error = DataError if fault == "disk" else KeyboardInterrupt
        stop_half_way(monkeypatch, name, FAULTS[fault]())
        monkeypatch.setattr(export, "put_in_place", utils.files.put_in_place)
    with pytest.raises(error) as caught:
        export.export(request)
    if fault == "disk":
        size = len(before[name])
        assert f"out/{name}: cannot be written (No space left on device); {size:,} bytes" in str(caught.value)
    assert files_in(tmp_path / "out") == before
    assert len([*(tmp_path / "out").iterdir()]) == 3


# data


@pytest.mark.parametrize(("name", "fault"), [("labels/", "disk"), ("eval.txt", "Ctrl-C"), ("generated.json", "disk")])
def test_a_generated_pair_is_whole_or_not_there(name: str, fault: str, tmp_path: Path) -> None:
    def make() -> None:
        make_pair(tmp_path / "pair", train=1, evaluation=1, size=32, progress=False)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(DataError if fault == "disk" else KeyboardInterrupt) as caught,
    ):
        whole = utils.files.put_in_place

        def half(finished: Path, path: Path) -> None:
            if name in str(path):
                raise FAULTS[fault]()
            whole(finished, path)

        patch.setattr(utils.files, "put_in_place", half)
        make()
    if fault == "disk":
        assert "cannot be written (No space left on device); " in str(caught.value)
    assert not [*tmp_path.iterdir()]
    make()
    assert (tmp_path / "pair/generated.json").exists()


# commands, as a user gives them


def command(script: str, *words: object) -> str | int | None:
    """What a script, run in this process, ends with."""
    before = sys.argv
    sys.argv = [script, *map(str, words)]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def commands(config: Config, scene_weights: Path, tmp_path: Path) -> Callable[[str, Path], list[object]]:
    """The words of a command that writes below a folder, by its script; a run is made there where it needs one."""
    scenes = write_scenes(tmp_path / "scenes", "a")

    def words(script: str, disk: Path) -> list[object]:
        if script == "compare.py":
            text = {"out": str(disk), "name": "table", "pairs": {"tiny": str(tmp_path / "pair.yaml")}, "seeds": [0]}
            (tmp_path / "pair.yaml").write_text(to_yaml(replace(config, out="")))
            (tmp_path / "compare.yaml").write_text(yaml.safe_dump(text | {"methods": {"source_only": None}}))
            return ["--config", tmp_path / "compare.yaml"]
        if script == "predict.py":
            return ["--weights", scene_weights, "--device", "cpu", "--out", disk / "masks", scenes]
        if script == "export.py":
            return ["--run", scene_weights.parents[1], "--out", disk / "export"]
        if not (disk / "run").exists():
            shutil.copytree(tmp_path / "run", disk / "run")
            shutil.copy(tmp_path / "teacher.safetensors", disk / "run/teacher")
            if script == "split_entropy.py":
                shutil.rmtree(disk / "run/split")
        (disk / "config.yaml").write_text(to_yaml(only(config, "scores")))
        return ["--config", disk / "config.yaml", "--out", disk / "run"]

    return words


SCRIPTS = ["eval.py", "split_entropy.py", "predict.py", "export.py", "compare.py"]
WRITTEN = {"eval.py": "run", "split_entropy.py": "run", "predict.py": "masks", "export.py": "export"}


def hold(folder: Path, told: Connection) -> None:
    with one_writer(folder):
        told.send("held")
        time.sleep(600)


@pytest.mark.parametrize("script", ["eval.py", "predict.py", "export.py", "compare.py"])
def test_a_second_command_on_the_same_folder_is_refused(
    script: str, commands: Callable[[str, Path], list[object]], tmp_path: Path
) -> None:
    words, folder = commands(script, tmp_path / "disk"), tmp_path / "disk" / WRITTEN.get(script, "table")
    ours, theirs = FORK.Pipe()
    holder = FORK.Process(target=hold, args=(folder, theirs), daemon=True)
    holder.start()
    assert ours.recv() == "held"
    before = files_in(tmp_path / "disk")
    try:
        assert str(command(script, *words)).startswith(f"error: {folder}: in use by process {holder.pid} on ")
    finally:
        holder.kill()
        holder.join()
    assert files_in(tmp_path / "disk") == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave so many bytes free."""
    with open(disk / "filler", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - room)


# With no room at all the lock is what cannot be written, with a page or two something later.
ROOMS = [("eval.py", 8192), ("split_entropy.py", 8192), ("predict.py", 8192), ("export.py", 8192), ("compare.py", 4096)]
QUICK = [*ROOMS, ("eval.py", 0), ("predict.py", "read-only")]


@pytest.mark.parametrize(
    ("script", "room"),
    [
        pytest.param(script, room, marks=[] if (script, room) in QUICK else pytest.mark.slow)
        for script in SCRIPTS
        for room in (0, 4096, 8192, "read-only")
        if (script, room) != ("compare.py", 8192)  # then it begins
    ],
)
def test_a_full_or_read_only_disk_is_told_and_leaves_earlier_files(
    script: str,
    room: int | str,
    commands: Callable[[str, Path], list[object]],
    disk: Path,
    quick_export: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if script == "export.py":  # whose main module is a new one, without what is patched in the other
        monkeypatch.setattr("scenes.network.load_network", export.load_network)
    words = commands(script, disk)
    (disk / "earlier").write_text("earlier")
    before = files_in(disk)
    if room == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        fill(disk, int(room))
    if script == "compare.py":  # whose runs are processes of their own, which take seconds to start
        monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", lambda **_: pytest.fail("has begun"))
    end = command(script, *words)
    told = str(end) + capsys.readouterr().out
    reason = "Read-only file system" if room == "read-only" else "No space left on device"
    assert str(end).startswith("error: ") and f": cannot be written ({reason})" in told and str(disk) in told, told
    if room == "read-only":
        assert files_in(disk) == before
        return
    (disk / "filler").unlink()
    found = files_in(disk)
    assert found.items() >= before.items() and all(found.values()), "an empty file"
    assert not [name for name in found if name.endswith(".tmp")]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it the system refuses to write more to any file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_the_system_cuts_short(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without rights of any kind: small files can be written, pictures of an overview cannot."""
    config = only(config, "masks,gradcam")
    old, new = old_and_new(config, tmp_path)
    shutil.rmtree(tmp_path / "run/eval")
    shutil.copytree(tmp_path / "old", tmp_path / "run/eval")
    assert len(new["masks/target.png"]) > 6000 > max(len(new[name]) for name in new if "student/" in name)
    with largest_file(6000), pytest.raises(EvaluationError, match=r"^masks, gradcam failed"):
        evaluation.evaluate(config)
    assert "masks/target.png: cannot be written (File too large)" in capsys.readouterr().out
    found = files_in(tmp_path / "run/eval")
    require_old_or_new(found, old, new, "cut short")
    assert found["masks/target.png"] == old["masks/target.png"]
    assert found["masks/target/student/scene_00.png"] == new["masks/target/student/scene_00.png"]


# kills


def started(script: str, *words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, script, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed_after(child: subprocess.Popen[str], begun: Callable[[], bool], seconds: float) -> bool:
    """Kill a process so long after something has begun; whether it was still there."""
    while not begun() and child.poll() is None:
        time.sleep(0.01)
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    child.kill()
    child.communicate()
    return child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_evaluations_killed_at_many_moments(config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    words = ("eval.py", "--config", tmp_path / "config.yaml")
    folder, results = tmp_path / "run/eval", []
    for seed in (1, 2):
        save_segmenter(tmp_path / "run/intra/student.safetensors", network_of(seed))
        child = started(*words)
        assert child.wait() == 0, child.communicate()[0]
        results.append(files_in(folder))
        if seed == 1:
            shutil.copytree(folder, tmp_path / "old")
    old, new = results
    first = "masks/target/student/scene_00.png"
    kills, mixed = 0, 0
    for moment in np.linspace(0, 3, 15):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "old", folder)
        child = started(*words)
        kills += killed_after(child, lambda: (folder / first).read_bytes() == new[first], float(moment))
        found = {name: content for name, content in files_in(folder).items() if not name.endswith(".tmp")}
        require_old_or_new(found, old, new, moment)
        mixed += any(found[name] != new[name] for name in new)
    assert kills >= 8 and mixed >= 8
    print(f"{kills} kills, {mixed} of them before the end")
    child = started(*words)
    assert child.wait() == 0 and files_in(folder) == new


@pytest.mark.slow
def test_comparisons_killed_at_many_moments(config: Config, tmp_path: Path) -> None:
    pair = replace(
        config, out="", teacher=replace(config.teacher, steps=4), log=replace(config.log, every=1, checkpoint=2)
    )
    (tmp_path / "pair.yaml").write_text(to_yaml(pair))
    values = {"out": "", "pairs": {"tiny": str(tmp_path / "pair.yaml")}, "seeds": [0], "threads": 1}
    methods = {"methods": dict.fromkeys(("source_only", "advent"))}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(values | methods))

    def command_for(out: Path) -> subprocess.Popen[str]:
        return started("compare.py", "--config", tmp_path / "compare.yaml", "--out", out, "--workers", 2)

    def numbers(out: Path) -> list[dict[str, object]]:
        rows = json.loads((out / "table/results.json").read_text())["tiny"]["table"]
        return [{key: value for key, value in row.items() if key not in ("minutes", "peak_mib")} for row in rows]

    child = command_for(tmp_path / "whole")
    text, _ = child.communicate()
    assert child.returncode == 0, text
    kills, out = 0, tmp_path / "killed"

    def working(since: float) -> bool:
        return any(lock.stat().st_mtime > since for lock in out.glob(f"tiny/seed0/*/{LOCK}"))

    for moment in np.linspace(0, 3, 10):
        kills += killed_after(command_for(out), partial(working, time.time()), float(moment))
        for folder in out.glob("tiny/seed0/*"):
            with one_writer(folder, wait=True, name=JOB_LOCK):  # the process of the job has ended as well
                pass
        for name, content in files_in(out).items():
            if name.endswith(".json"):
                json.loads(content)
            if name.endswith(".safetensors"):
                assert content == (tmp_path / "whole" / name).read_bytes(), (moment, name)
            if name.endswith(".png"):
                assert cv2.imdecode(np.frombuffer(content, np.uint8), 1) is not None, (moment, name)
        assert not (out / "table/results.json").exists() or numbers(out) == numbers(tmp_path / "whole")
    assert kills >= 5
    print(f"{kills} kills")
    child = command_for(out)
    text, _ = child.communicate()
    assert child.returncode == 0, text
    assert numbers(out) == numbers(tmp_path / "whole")

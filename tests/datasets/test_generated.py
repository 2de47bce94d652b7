"""The generated pair: determinism, exact labels, difficulty that brightness does not solve, and honest folders."""

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import generated
from datasets.generated import (
    CLOUD_OPACITY,
    SENSORS,
    Sensor,
    make_pair,
    render_scene,
    sensor_at_strength,
)
from datasets.landcover import PAINTERS, Ground, fractal_noise
from utils.errors import DataError

SMALL = {"train": 3, "evaluation": 2, "size": 48, "progress": False}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_same_seed_same_scene_whatever_the_threads(name: str) -> None:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = render_scene(SENSORS[name], 11, 96)
        cv2.setNumThreads(4)
        second = render_scene(SENSORS[name], 11, 96)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], render_scene(SENSORS[name], 12, 96)[0])


@pytest.mark.parametrize("size", [16, 33, 128])
def test_scene_shape_dtype_and_values(size: int) -> None:
    image, label = render_scene(SENSORS["sensor_b"], 3, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert label.shape == (size, size) and label.dtype == np.uint8
    assert set(np.unique(label)) <= {0, 255}


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_label_is_the_opacity_threshold_exactly(name: str) -> None:
    for seed in range(8):
        _, label = render_scene(SENSORS[name], seed, 64)
        _, alpha, _ = generated._compose(SENSORS[name], seed, 64)
        assert alpha.min() >= 0 and alpha.max() <= 1
        np.testing.assert_array_equal(label == 255, alpha >= CLOUD_OPACITY)


def test_label_does_not_depend_on_the_camera() -> None:
    dark = replace(SENSORS["sensor_a"], gain=0.4, blur=2.0, haze=0.3, noise=0.05)
    bright_image, bright_label = render_scene(SENSORS["sensor_a"], 5, 64)
    dark_image, dark_label = render_scene(dark, 5, 64)
    np.testing.assert_array_equal(bright_label, dark_label)
    assert dark_image.mean() < bright_image.mean()


@pytest.mark.parametrize("name", sorted(PAINTERS))
def test_every_painter_gives_finite_colour(name: str) -> None:
    for seed in range(3):
        ground = PAINTERS[name](Ground(np.random.default_rng(seed), 64, 3.0, (0.6, 0.8)))
        assert ground.shape == (64, 64, 3) and ground.dtype == np.float32
        assert np.isfinite(ground).all() and ground.std() > 0.005


def test_noise_is_periodic_and_standardised() -> None:
    field = fractal_noise(np.random.default_rng(0), 128, 60, 1.8)
    assert abs(float(field.mean())) < 1e-4 and abs(float(field.std()) - 1) < 1e-3
    seam, inside = np.abs(field[:, 0] - field[:, -1]).mean(), np.abs(np.diff(field, axis=1)).mean()
    assert seam < 2 * inside


@cache
def _scenes(name: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(render_scene(SENSORS[name], 1000 + seed, 64) for seed in range(60)), strict=True)
    return np.stack(images), np.stack(labels) == 255


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_shares_are_balanced_and_brightness_alone_fails(name: str) -> None:
    images, cloud = _scenes(name)
    shares = cloud.mean((1, 2))
    assert 0.3 < shares.mean() < 0.5
    assert shares.min() < 0.05 and shares.max() > 0.8
    grey = images.mean(-1)

    def miou(predicted: np.ndarray) -> float:
        ious = [(p & t).sum() / (p | t).sum() for p, t in ((predicted, cloud), (~predicted, ~cloud))]
        return float(np.mean(ious))

    assert max(miou(grey >= threshold) for threshold in range(20, 250, 5)) < 0.8
    assert grey[cloud].mean() > 1.2 * grey[~cloud].mean()  # clouds stay the brighter class, so adaptation has a hold


def test_target_is_darker_than_source() -> None:
    assert _scenes("sensor_b")[0].mean() < 0.85 * _scenes("sensor_a")[0].mean()


def test_strength_interpolates_and_clips() -> None:
    a, b = SENSORS["sensor_a"], SENSORS["sensor_b"]
    for strength, preset in ((0.0, a), (1.0, b)):
        sensor = sensor_at_strength(strength)
        assert sensor.name == preset.name
        for item in fields(Sensor):
            if "range" in item.metadata:
                np.testing.assert_allclose(getattr(sensor, item.name), getattr(preset, item.name))
        assert dict(sensor.land_cover) == pytest.approx(
            {n: w / sum(dict(preset.land_cover).values()) for n, w in preset.land_cover}
        )
    assert sensor_at_strength(0.5).gain == pytest.approx((a.gain + b.gain) / 2)
    with pytest.raises(ValueError, match="strength"):
        sensor_at_strength(-0.1)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 50))
def test_any_strength_is_legal(strength: float) -> None:
    sensor = sensor_at_strength(strength)
    for item in fields(Sensor):
        if "range" in item.metadata:
            low, high = item.metadata["range"]
            assert np.all(np.asarray(getattr(sensor, item.name)) >= low)
            assert np.all(np.asarray(getattr(sensor, item.name)) <= high)
    weights = [weight for _, weight in sensor.land_cover]
    assert min(weights) >= 0 and sum(weights) == pytest.approx(1)


def test_pair_layout(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "pair"
    make_pair(root, seed=4, **SMALL)
    assert sorted(p.name for p in root.iterdir()) == ["generated.json", "source", "target"]
    record = json.loads((root / "generated.json").read_text())
    assert record["seed"] == 4 and record["train"] == 3 and record["sensors"]["target"]["name"] == "sensor_b"
    for role in ("source", "target"):
        domain = root / role
        assert sorted(p.name for p in domain.iterdir()) == ["eval.txt", "images", "labels", "train.txt"]
        train, evaluation = ((domain / f"{s}.txt").read_text().splitlines() for s in ("train", "eval"))
        assert len(train) == 3 and len(evaluation) == 2 and not set(train) & set(evaluation)
        for row in train + evaluation:
            image, label = row.split(" ")
            assert image.split("/")[1].split("_")[0] in PAINTERS
            with Image.open(domain / image) as picture, Image.open(domain / label) as mask:
                assert picture.mode == "RGB" and mask.mode == "L" and picture.size == mask.size == (48, 48)
    assert list(root.parent.iterdir()) == [root]


def test_stored_image_is_rgb_and_unchanged(tmp_path: Path) -> None:
    make_pair(tmp_path / "pair", seed=9, **SMALL)
    row = (tmp_path / "pair/source" / "train.txt").read_text().splitlines()[1].split()
    image, label = render_scene(SENSORS["sensor_a"], generated._derive(generated._derive(9, 0), 0, 1), 48)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pair/source" / row[0])), image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pair/source" / row[1])), label)


def test_pair_is_reproducible_and_unpaired(tmp_path: Path) -> None:
    make_pair(tmp_path / "one", seed=4, strength=0.0, **SMALL)
    make_pair(tmp_path / "two", seed=4, strength=0.0, **SMALL)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    source, target = (set(files(tmp_path / "one" / role / "images").values()) for role in ("source", "target"))
    assert len(source) == len(target) == 5 and not source & target


def test_scene_does_not_depend_on_the_counts(tmp_path: Path) -> None:
    make_pair(tmp_path / "few", train=1, evaluation=1, size=32, progress=False)
    make_pair(tmp_path / "more", train=2, evaluation=2, size=32, progress=False)
    for split in ("train", "eval"):
        first = [(tmp_path / n / "target" / f"{split}.txt").read_text().split()[0] for n in ("few", "more")]
        few, more = (tmp_path / n / "target" / f for n, f in zip(("few", "more"), first, strict=True))
        assert few.read_bytes() == more.read_bytes()


def test_second_call_leaves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pair"
    make_pair(root, **SMALL)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    monkeypatch.setattr(generated, "_render", None)  # would fail if anything were rendered again
    make_pair(root, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "pair"
    make_pair(root, **SMALL)
    before = files(root)
    with pytest.raises(DataError, match="seed 0 instead of 1"):
        make_pair(root, seed=1, **SMALL)
    with pytest.raises(DataError, match=r"strength 1\.0 instead of 0\.5"):
        make_pair(root, strength=0.5, **SMALL)
    assert files(root) == before


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_foreign_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    if content is not None:
        (tmp_path / "mine" / "generated.json").write_text(content)
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"generated\.json"):
        make_pair(tmp_path / "mine", **SMALL)
    assert files(tmp_path) == before


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = generated._render, []

    def fails_later(sensor: Sensor, seed: int, size: int) -> object:
        calls.append(seed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(sensor, seed, size)

    monkeypatch.setattr(generated, "_render", fails_later)
    with pytest.raises(KeyboardInterrupt):
        make_pair(tmp_path / "pair", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, original, calls = tmp_path / "pair", generated._render, []

    def overtaken(sensor: Sensor, seed: int, size: int) -> object:
        calls.append(seed)
        if len(calls) == 1:  # while the first writer works, a second one finishes
            make_pair(root, **SMALL)
        return original(sensor, seed, size)

    monkeypatch.setattr(generated, "_render", overtaken)
    make_pair(root, **SMALL)
    assert list(tmp_path.iterdir()) == [root]
    assert len(calls) == 20


def test_a_record_that_is_too_deep_is_damaged(tmp_path: Path) -> None:
    make_pair(tmp_path / "a", **SMALL)
    (tmp_path / "a" / "generated.json").write_text("[" * 99_999)
    with pytest.raises(DataError, match=r"exists without a readable generated\.json"):
        make_pair(tmp_path / "a", **SMALL)

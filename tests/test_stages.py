"""The three stages and the evaluation as a user runs them, on tiny domains."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from config.schema import Config
from engine.domains import training_images
from engine.log import prediction_grid
from engine.pseudo_labels import read_layer
from engine.schedule import easy_count
from export import export, read_request
from losses.inputs import TrainingProgress
from nets.weights import load_segmenter, load_weights
from scenes import load_network, predict_array
from utils.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[1]
Arguments = Callable[..., list[str]]
SCRIPTS = ("train_teacher.py", "split_entropy.py", "train_intra.py", "eval.py")


def run_all(arguments: list[str]) -> Config:
    config = load_config(arguments)
    train_teacher.train_teacher(config)
    split_entropy.split_entropy(config)
    train_intra.train_intra(config)
    return config


def files_of(folder: Path) -> dict[str, bytes]:
    """The results of a run that must be reproducible: weights, checkpoints, split and metrics."""
    kinds = (".safetensors", ".pt", ".csv", ".txt", ".png", ".jsonl")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in kinds and path.name != "timing.jsonl"
    }


def test_whole_run(tmp_path: Path, tiny_arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = tiny_arguments(tmp_path)
    config = run_all(arguments)
    train_teacher.train_teacher(load_config([*arguments, "--method", "source_only"]))
    evaluation.evaluate(config)
    out = Path(config.out)

    teacher, student = (
        load_segmenter(out / "teacher/teacher.safetensors"),
        load_segmenter(out / "intra/student.safetensors"),
    )
    assert any(not torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())

    rows = list(csv.DictReader((out / "split/entropy.csv").open()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores) and all(0 <= score <= 1 for score in scores)
    assert [row["split"] for row in rows] == ["easy"] * 4 + ["hard"] * 2  # int(0.67 * 6)
    listed = {part: (out / f"split/{part}.txt").read_text().split() for part in ("easy", "hard")}
    for part, names in listed.items():
        assert names == sorted(row["name"] for row in rows if row["split"] == part)
    for row in rows:
        pseudo = cv2.imread(str(out / f"split/pseudo_labels/{row['name']}.png"), cv2.IMREAD_UNCHANGED)
        assert pseudo.shape == (40, 48) and set(np.unique(pseudo)) <= {0, 255}
        assert float(row["cloud_fraction"]) == pytest.approx((pseudo == 255).mean(), abs=1e-6)

    metrics = json.loads((out / "eval/metrics.json").read_text())["domains"]["target"]
    assert set(metrics["models"]) == {"source_only", "teacher", "student", "all_clear", "all_cloud", "brightness"}
    assert metrics["protocol"].startswith("transductive")
    label_pixels = [cv2.imread(str(p), 0) > 0 for p in (Path(config.target.root) / "labels").glob("*.png")]
    for values in metrics["models"].values():
        matrix = np.array(values["confusion"])
        assert matrix.sum() == 6 * 40 * 48
        assert matrix[1].sum() == sum(pixels.sum() for pixels in label_pixels)
    assert "mIoU" in capsys.readouterr().out
    assert (out / "eval/masks/target.png").stat().st_size > 10_000
    mask = cv2.imread(str(next((out / "eval/masks/target/student").glob("*.png"))))[..., ::-1]
    assert {tuple(pixel) for pixel in mask.reshape(-1, 3).tolist()} <= {(176, 235, 180), (255, 255, 255)}


def test_every_term_is_logged_raw_and_weighted(tmp_path: Path, tiny_arguments: Arguments) -> None:
    config = run_all(tiny_arguments(tmp_path))
    w = config.intra
    weights = {"seg_main": 2, "seg_aux": 2, "consistency": 0.1, "contrast": 0.1, "adv_main": 1e-3, "adv_aux": 2e-4}
    for line in (Path(config.out) / "intra/metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, weight in (weights | {"dis_main": 1, "dis_aux": 1}).items():
            assert row[f"weighted/{name}"] == pytest.approx(weight * row[f"raw/{name}"])
        assert row["loss"] == pytest.approx(sum(value for key, value in row.items() if key.startswith("weighted/")))
        assert row["stats/accepted"] == 1  # union without a floor labels every valid pixel
        assert 0 <= row["stats/entropy_hard"] <= 1 and row["grad_norm/segmenter"] > 0
    assert row["step"] == w.steps
    timing = json.loads((Path(config.out) / "intra/timing.jsonl").read_text().splitlines()[0])
    assert timing["images_per_s"] > 0 and timing["data_time"] <= timing["step_time"]


def test_again_leaves_what_is_finished_and_other_settings_are_refused(
    tmp_path: Path, tiny_arguments: Arguments
) -> None:
    arguments = tiny_arguments(tmp_path)
    out = Path(run_all(arguments).out)
    before = files_of(out)
    run_all(arguments)
    assert files_of(out) == before
    with pytest.raises(ConfigError, match=r"optim.lr was .* --out"):
        run_all([*arguments, "--optim.lr", "0.123"])
    assert files_of(out) == before


def test_anchor_is_bit_identical_and_its_file_untouched(tmp_path: Path, tiny_arguments: Arguments) -> None:
    arguments = tiny_arguments(tmp_path)
    config = load_config(arguments)
    train_teacher.train_teacher(config)
    path = Path(config.out) / "teacher/teacher.safetensors"
    before = path.read_bytes()
    anchor = load_segmenter(path)
    stage = train_intra.AsdaStage(config, anchor)
    image, valid = torch.rand(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    batch = {name: {"image": image, "valid": valid, "name": ["a", "b"]} for name in ("easy", "hard")}
    losses = stage.step(batch, TrainingProgress(0, 10, 5, seed=0))
    torch.stack([weight * value for weight, value in losses.terms.values()]).sum().backward()
    for optimizer in stage.optimizers.values():
        optimizer.step()
    stage.after_update(TrainingProgress(0, 10, 5, seed=0))
    saved = load_weights(path)[0]
    assert path.read_bytes() == before
    assert all(parameter.grad is None for parameter in stage.anchor.parameters())
    assert all(torch.equal(value, saved[name]) for name, value in stage.anchor.state_dict().items())
    trained = stage.trainee.segmenter.state_dict()
    assert any(not torch.equal(value, saved[name]) for name, value in trained.items())


@pytest.mark.parametrize("policy", ["both", "target"])
def test_batch_norm_of_the_teacher(policy: str, tmp_path: Path, tiny_arguments: Arguments) -> None:
    """In training each domain has its own statistics; the running ones follow what the policy says."""
    config = load_config(tiny_arguments(tmp_path, "--teacher.batch_norm", policy))
    source, target = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    valid, label = torch.ones(2, 32, 32, dtype=torch.bool), torch.zeros(2, 32, 32, dtype=torch.int64)

    def outcome(source_image: torch.Tensor, target_image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        stage = train_teacher.TeacherStage(config)
        images = {"source": source_image, "target": target_image}
        batch = {name: {"image": image, "valid": valid, "label": label} for name, image in images.items()}
        loss = stage.step(batch, TrainingProgress(0, 10, 5, seed=0)).terms["seg_main"][1]
        return loss, {name: value.clone() for name, value in stage.segmenter.named_buffers() if "running" in name}

    def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(first[name], second[name]) for name in first)

    loss, running = outcome(source, target)
    other_loss, other_target = outcome(source, target**2)
    _, other_source = outcome(source**2, target)
    assert torch.equal(loss, other_loss)
    assert not same(running, other_target)
    assert same(running, other_source) == (policy == "target")


def test_preview_leaves_the_stage_as_it_was(tmp_path: Path, tiny_arguments: Arguments) -> None:
    config = load_config(tiny_arguments(tmp_path))
    stage = train_teacher.TeacherStage(config)
    stage.segmenter.train()
    before = {name: value.clone() for name, value in stage.segmenter.state_dict().items()}
    image = torch.rand(2, 3, 32, 32)
    picture = prediction_grid(
        stage.exported, {"source": {"image": image, "label": torch.ones(2, 32, 32, dtype=torch.int64)}}
    )
    assert picture.dtype == np.uint8 and picture.shape == (4 * 36 - 4, 2 * 36 - 4, 3)
    np.testing.assert_array_equal(picture[:32, :32], (image[0].permute(1, 2, 0) * 255).byte().numpy())
    assert stage.segmenter.training
    assert all(torch.equal(value, before[name]) for name, value in stage.segmenter.state_dict().items())


@pytest.mark.parametrize("method", ["intrada", "asda_released"])
def test_methods_run(method: str, tmp_path: Path, tiny_arguments: Arguments) -> None:
    extra = ["--method", method]
    if method == "asda_released":  # the preset's own network, on small images and for one epoch
        extra += ["--net.backbone", "resnet50", "--teacher.epochs", "0.5", "--intra.epochs", "2", "--data.size", "64"]
        extra += ["--teacher.batch", "2", "--intra.batch", "1", "--split.ratio", "0.5"]
    config = run_all(tiny_arguments(tmp_path, *extra))
    out = Path(config.out)
    rows = [json.loads(line) for line in (out / "intra/metrics.jsonl").read_text().splitlines()]
    if method == "intrada":
        assert not any("contrast" in key or "consistency" in key for key in rows[0])
        return
    assert [row["split"] for row in csv.DictReader((out / "split/entropy.csv").open())].count("easy") == 4  # int(3) + 1
    assert rows[0]["lr"] == pytest.approx(2.5e-4) and len(rows) == 4  # two epochs of two hard images
    state = torch.load(out / "intra/checkpoint.pt", weights_only=True)
    teacher = load_weights(out / "teacher/teacher.safetensors")[0]
    name = "backbone.conv1.weight"
    ema, start_value = state["networks"]["ema"][f"model.segmenter.{name}"], teacher[name]
    trainee = state["networks"]["trainee"][f"segmenter.{name}"]
    # Two updates, one per epoch: 0.995^2 of the EMA is still the teacher, so it has moved far less than the trainee.
    assert 0 < (ema - start_value).norm() < 0.02 * (trainee - start_value).norm()


def test_advent_has_no_stage_3(tmp_path: Path, tiny_arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_all(tiny_arguments(tmp_path, "--method", "advent"))
    assert "no stage 3" in capsys.readouterr().out
    assert sorted(path.name for path in Path(config.out).iterdir()) == ["teacher"]


def test_later_stages_name_what_is_missing(tmp_path: Path, tiny_arguments: Arguments) -> None:
    config = load_config(tiny_arguments(tmp_path))
    with pytest.raises(DataError, match=r"teacher.safetensors: does not exist"):
        split_entropy.split_entropy(config)
    with pytest.raises(DataError, match="holds no trained model"):
        evaluation.evaluate(config)
    train_teacher.train_teacher(config)
    with pytest.raises(DataError, match=r"entropy.csv: does not exist; run split_entropy.py"):
        train_intra.train_intra(config)


def test_bad_files_stop_a_stage_before_training_with_one_sentence(tmp_path: Path, tiny_arguments: Arguments) -> None:
    arguments = tiny_arguments(tmp_path)
    labels = tmp_path / "source" / "labels"
    first, second, *_ = sorted(labels.iterdir())
    cv2.imwrite(str(first), np.full((40, 48), 7, np.uint8))
    cv2.imwrite(str(second), np.zeros((10, 10), np.uint8))
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_teacher.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "2 fault(s)" in done.stderr and str(first) in done.stderr and str(second) in done.stderr
    assert "label value(s) 7" in done.stderr and "label_map" in done.stderr and "found 10x10" in done.stderr
    assert not list((tmp_path / "run").rglob("*.jsonl"))


def test_one_target_image_is_refused_before_training(
    tmp_path: Path, tiny_arguments: Arguments, make_domain: Callable[..., Path]
) -> None:
    make_domain(tmp_path / "target", count=1)
    arguments = tiny_arguments(tmp_path)
    with pytest.raises(DataError, match=r"of 1 target image\(s\) gives 0 easy .* give more target images, a smaller"):
        train_teacher.train_teacher(load_config(arguments))
    assert not list((tmp_path / "run").rglob("*.pt"))


@pytest.mark.parametrize(("one_more", "easy", "hard"), [(True, 1467, 628), (False, 1466, 629)])
def test_known_answer_18(one_more: bool, easy: int, hard: int) -> None:
    assert easy_count(2095, 0.7, one_more) == easy and 2095 - easy == hard


@pytest.mark.parametrize(("images", "ratio", "easy"), [(8, 0.9, 7), (8, 0.75, 7), (8, 0.6, 5), (2, 0.9, 1)])
def test_one_more_easy_image_leaves_a_hard_one(images: int, ratio: float, easy: int) -> None:
    assert easy_count(images, ratio, one_more=True) == easy


@pytest.mark.parametrize(("images", "ratio"), [(1, 0.67), (2, 0.2), (1, 0.999)])
def test_a_split_that_would_be_empty_is_refused(images: int, ratio: float) -> None:
    with pytest.raises(DataError, match="both need at least one"):
        easy_count(images, ratio)


def test_score_is_the_mean_entropy_and_ranks_do_not_depend_on_order(
    tmp_path: Path, tiny_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_arguments(tmp_path))
    images = training_images(config, "target", labels=False)
    prob = {head: torch.tensor([0.9, 0.1])[:, None, None].expand(2, 40, 48) for head in ("main", "aux")}
    monkeypatch.setattr(split_entropy, "mean_over_scales", lambda *_: prob)
    folder = tmp_path / "p"
    score = partial(split_entropy.score_image, None, images, config=config, folder=folder, histogram=None)  # type: ignore[arg-type]
    ranked = sorted(score(item) for item in reversed(images))
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert [place.score for place in ranked] == pytest.approx([entropy] * 6, abs=1e-6)
    assert [place.name for place in ranked] == [item.name for item in images]  # ties by name
    prob["main"] = torch.full((2, 40, 48), torch.nan)
    with pytest.raises(DataError, match=images[0].image.name):
        score(images[0])


def test_the_split_shows_the_network_no_holes(
    tmp_path: Path, tiny_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_arguments(tmp_path, "--target.nodata=0"))
    images = training_images(config, "target", labels=False)
    pixels = np.full((40, 48, 3), 200, np.uint8)
    pixels[4:30:5, 3::7] = 0
    cv2.imwrite(str(images[0].image), pixels)
    seen: list[np.ndarray] = []

    def predicted(network: object, image: np.ndarray, *_: object) -> dict[str, torch.Tensor]:
        seen.append(image)
        return {"main": torch.full((2, 40, 48), 0.5)}

    monkeypatch.setattr(split_entropy, "mean_over_scales", predicted)
    split_entropy.score_image(None, images, images[0], config, tmp_path, None)  # type: ignore[arg-type]
    assert (seen[0] == 200).all()
    label = read_layer(tmp_path, "pseudo_labels", images[0].name)
    assert np.array_equal(label == 128, (pixels == 0).all(2))


@pytest.mark.parametrize("cloud", [0.3, 0.9])
def test_the_main_head_gives_score_mask_and_what_the_pixel_classifier_learns(
    tmp_path: Path, tiny_arguments: Arguments, monkeypatch: pytest.MonkeyPatch, cloud: float
) -> None:
    config = load_config([*tiny_arguments(tmp_path), "--split.pseudo_label", "pixel_classifier"])
    images = training_images(config, "target", labels=False)
    shares = {"main": cloud, "aux": 0.6}
    prob = {name: torch.tensor([1 - p, p])[:, None, None].expand(2, 40, 48) for name, p in shares.items()}
    monkeypatch.setattr(split_entropy, "mean_over_scales", lambda *_: prob)
    ranked = split_entropy.score_image(None, images, images[0], config, tmp_path, None)  # type: ignore[arg-type]
    name = images[0].name
    assert ranked.score == pytest.approx(-(cloud * np.log2(cloud) + (1 - cloud) * np.log2(1 - cloud)), abs=1e-6)
    assert ranked.cloud_fraction == (cloud > 0.5)
    assert read_layer(tmp_path, "cloud", name) == pytest.approx(cloud * 65_535, abs=1)
    assert set(read_layer(tmp_path, "pseudo_labels", name).flat) == {255 * (cloud > 0.5)}


def test_a_decoder_that_the_backbone_cannot_feed_stops_before_anything_is_written(
    tmp_path: Path, tiny_arguments: Arguments
) -> None:
    arguments = tiny_arguments(tmp_path, "--net.backbone", "vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"net: decoder fpn cannot be fed by .*; set decoder to dpt or deeplab_v2"):
        train_teacher.train_teacher(load_config(arguments))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        pytest.param("vit_tiny_patch16_224", "dpt", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", "segformer", marks=pytest.mark.slow),
        ("convnext_atto", "unet"),
        pytest.param("resnet50", "fpn", marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_050", "upernet", marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_lite0", "fpn", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_network_trains_and_is_exported(
    backbone: str, decoder: str, tmp_path: Path, tiny_arguments: Arguments
) -> None:
    """All three stages, and the student as ONNX gives the masks of the student. At 32 pixels the coarsest level is one
    pixel, whose batch statistics over a few like images let gradients of a deep network overflow."""
    net = ["--net.backbone", backbone, "--net.decoder", decoder, "--net.decoder_width", "32", "--data.size", "64"]
    config = run_all(tiny_arguments(tmp_path, *net, "--teacher.steps", "1", "--intra.steps", "1"))
    student = Path(config.out) / "intra" / "student.safetensors"
    export(read_request(["--run", config.out, "--out", str(tmp_path / "exported")]))
    image = np.random.default_rng(0).integers(0, 255, (45, 70, 3), np.uint8)
    networks = [load_network(path, "cpu") for path in (student, tmp_path / "exported" / "student.onnx")]
    by_torch, by_onnx = (predict_array(network, image) for network in networks)
    np.testing.assert_allclose(by_onnx.probability, by_torch.probability, rtol=0, atol=1e-4)
    assert ((by_torch.mask == by_onnx.mask) | (np.abs(by_torch.probability - 0.5) < 1e-4)).all()

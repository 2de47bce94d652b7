"""The evaluation as a user runs it: parts, any weights, no labels, and parts that fail."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import report.figures
from config.load import load_config, to_yaml
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from report.evaluation import Evaluation
from utils.errors import ConfigError, DataError, EvaluationError, WeightsError

Arguments = Callable[..., list[str]]


@pytest.fixture
def arguments(tmp_path: Path, tiny_arguments: Arguments) -> list[str]:
    """A run with a teacher and a student that were never trained, and a split."""
    made = tiny_arguments(tmp_path, "--eval.pictures", "2", "--eval.tsne_pixels", "5")
    for seed, (stage, name) in enumerate((("teacher", "teacher"), ("intra", "student"))):
        torch.manual_seed(seed)
        (tmp_path / "run" / stage).mkdir(parents=True)
        save_segmenter(tmp_path / f"run/{stage}/{name}.safetensors", Segmenter("mobilenetv3_small_050"))
    split = tmp_path / "run/split"
    split.mkdir()
    rows = "".join(f"scene_0{i},0.{i},{i},{'easy' if i < 2 else 'hard'},0.5\n" for i in range(3))
    (split / "entropy.csv").write_text(f"name,score,rank,split,cloud_fraction\n{rows}")
    (split / "easy.txt").write_text("images/scene_00.png\nimages/scene_01.png\n")
    (split / "hard.txt").write_text("images/scene_02.png\n")
    (split / "config.yaml").write_text(to_yaml(load_config(made)))
    return made


def both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained networks may predict one class alone; the t-SNE then has the labels to go by, but not without them."""
    monkeypatch.setattr(Segmenter, "forward", _by_brightness(Segmenter.forward))


def _by_brightness(forward: Callable[..., object]) -> Callable[..., object]:
    def patched(self: Segmenter, image: torch.Tensor) -> object:
        found = forward(self, image)
        bright = torch.nn.functional.adaptive_avg_pool2d(image.mean(1, keepdim=True), found.main.shape[-2:])  # type: ignore[attr-defined]
        logits = found.main + 9 * torch.cat([0.5 - bright, bright - 0.5], 1)  # type: ignore[attr-defined]
        return found._replace(main=logits)  # type: ignore[attr-defined]

    return patched


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_tree(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both_classes(monkeypatch)
    evaluation.evaluate(load_config(arguments))
    made = tree(tmp_path / "run/eval")
    expected = {f"metrics.{kind}" for kind in ("json", "md", "csv", "tex")}
    expected |= {"images_target.csv", "report.html", "pictures.json", "tsne.png", "tsne.json"}
    expected |= {"masks/target.png", "masks/target_errors.png", "entropy/target.png", "entropy/easy_hard.png"}
    expected |= {"gradcam/target.png", "entropy/split.png", "commands.json"}
    for kind in ("masks", "errors", "entropy"):
        expected |= {f"{kind}/target/{model}/scene_0{i}.png" for model in ("teacher", "student") for i in range(6)}
    assert made == expected
    assert "mIoU" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "run/eval/tsne.json").read_text())
    assert numbers["classes"] == "labels" and numbers["pixels"] == 20
    assert set(numbers["models"]) == {"teacher", "student"}


def test_parts_alone_leave_the_others_out_and_what_was_made_before_in(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run/eval"
    evaluation.evaluate(load_config([*arguments, "--eval.parts", "masks"]))
    assert not {"metrics.json", "tsne.png", "report.html"} & tree(folder)
    assert {"masks/target.png", "errors/target/student/scene_00.png"} <= tree(folder)
    evaluation.evaluate(load_config([*arguments, "--eval.parts", "gradcam,report"]))
    page = (folder / "report.html").read_text()
    assert "Masks on the target" in page and "Class activation on the target" in page
    assert not {"metrics.json", "tsne.png", "entropy/target.png"} & tree(folder)


def test_any_weights_on_any_images_without_labels(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both_classes(monkeypatch)
    shutil.rmtree(tmp_path / "target/labels")
    weights = str(tmp_path / "run/intra/student.safetensors")
    no_lists = ["--target.train", "null", "--target.eval", "null"]
    evaluation.evaluate(
        load_config([*arguments, *no_lists, "--eval.weights", weights, "--out", str(tmp_path / "look")])
    )
    folder = tmp_path / "look/eval"
    report = json.loads((folder / "metrics.json").read_text())["domains"]["target"]
    assert report["models"] == {} and set(report["signs"]) == {"student"}
    assert report["protocol"].startswith("given images")
    assert {"masks/target.png", "entropy/target.png", "gradcam/target.png", "tsne.png"} <= tree(folder)
    assert not [name for name in tree(folder) if name.startswith("errors")]
    assert "what the student predicts" in json.loads((folder / "tsne.json").read_text())["classes"]
    assert (
        "No label with" in capsys.readouterr().out
        and "no label with a known pixel" in (folder / "report.html").read_text()
    )


def test_without_a_source_only_the_tsne_is_missing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(tmp_path / "run/intra/student.safetensors")
    config = load_config([*arguments, "--source.root", "", "--eval.weights", weights, "--out", str(tmp_path / "look")])
    evaluation.evaluate(config)
    folder = tmp_path / "look/eval"
    assert "give source.root" in capsys.readouterr().out
    assert "tsne</b> is left out: t-SNE compares two domains" in (folder / "report.html").read_text()
    assert {"metrics.json", "masks/target.png", "gradcam/target.png"} <= tree(folder) - {"tsne.png"}


def test_large_images_names_in_folders_lists_and_images_without_label(
    arguments: list[str], tmp_path: Path, make_domain: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops of 32 of images of 75x50, a held-back list in both domains, names of several parts, one label missing."""
    both_classes(monkeypatch)
    for role in ("source", "target"):
        root = make_domain(tmp_path / f"large_{role}", count=3, size=(75, 50))
        for kind in ("images", "labels"):
            (root / kind / "a/b").mkdir(parents=True)
            (root / kind / "scene_00.png").rename(root / kind / "a/b" / "sc[e]ne.png")
        (root / "eval.txt").write_text("".join(f"images/scene_0{i}.png labels/scene_0{i}.png\n" for i in (1, 2)))
    (tmp_path / "large_target/labels/scene_02.png").unlink()
    extra = [f"--{role}.root={tmp_path / f'large_{role}'}" for role in ("source", "target")]
    extra += ["--source.eval", "eval.txt", "--data.geometry", "crop", "--out", str(tmp_path / "large")]
    extra += ["--eval.weights", str(tmp_path / "run/intra/student.safetensors")]
    evaluation.evaluate(load_config([*arguments, *extra]))
    folder = tmp_path / "large/eval"
    made = tree(folder)
    assert {"masks/target/student/a/b/sc[e]ne.png", "errors/target/student/a/b/sc[e]ne.png"} <= made
    assert "errors/target/student/scene_02.png" not in made and "masks/target/student/scene_02.png" in made
    report = json.loads((folder / "metrics.json").read_text())["domains"]
    assert (report["target"]["images"], report["target"]["labelled"], report["source"]["images"]) == (3, 2, 2)
    assert "2 of them with labels" in (folder / "report.html").read_text()
    assert cv2.imread(str(folder / "masks/target/student/scene_02.png")).shape == (75, 50, 3)


def test_another_view_than_in_training_is_refused(arguments: list[str], tmp_path: Path) -> None:
    config = load_config(arguments)
    (tmp_path / "run/intra/config.yaml").write_text(to_yaml(config))
    weights = str(tmp_path / "run/intra/student.safetensors")
    for extra in ([], ["--eval.weights", weights, "--out", str(tmp_path / "look")]):
        with pytest.raises(ConfigError, match=r"data.size is 48, but .*intra was trained with 32; .*config.yaml"):
            evaluation.evaluate(load_config([*arguments, *extra, "--data.size", "48"]))
    with pytest.raises(ConfigError, match="a run of its own; give another --out"):
        evaluation.evaluate(load_config([*arguments, "--eval.weights", weights]))


@pytest.mark.slow
def test_a_part_that_fails_says_why_and_is_forgotten_when_it_works(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no paint left")

    with monkeypatch.context() as patch:
        patch.setitem(report.figures.FIGURES, "entropy", (fails,))
        with pytest.raises(EvaluationError, match="entropy failed"):
            evaluation.evaluate(load_config([*arguments, "--eval.parts", "entropy,gradcam,report"]))
    folder = tmp_path / "run/eval"
    assert "no paint left" in (folder / "report.html").read_text()
    assert "RuntimeError" in (folder / "entropy_failed.txt").read_text() and (folder / "gradcam/target.png").exists()
    evaluation.evaluate(load_config([*arguments, "--eval.parts", "entropy,report"]))
    assert "no paint left" not in (folder / "report.html").read_text()
    assert not (folder / "entropy_failed.txt").exists()


def test_when_no_image_can_be_predicted_the_other_parts_stand(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no memory left")

    evaluation.evaluate(load_config([*arguments, "--eval.parts", "masks,report"]))
    folder = tmp_path / "run/eval"
    assert "Masks on the target" in (folder / "report.html").read_text()
    monkeypatch.setattr(evaluation, "evaluate_domain", fails)
    with pytest.raises(EvaluationError, match=r"^predictions failed"):
        evaluation.evaluate(load_config([*arguments, "--eval.parts", "scores,masks,gradcam,report"]))
    assert "Masks on the target" not in (folder / "report.html").read_text()
    assert "no memory left" in (folder / "report.html").read_text() and (folder / "gradcam/target.png").exists()
    assert not (folder / "metrics.json").exists() and not (folder / "scores_failed.txt").exists()


def test_one_hot_predictions_give_the_reliable_colour_and_the_pixels_own_mask(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is certain: every entropy map is the reliable yellow, every mask the bright pixels."""
    label = cv2.imread(str(tmp_path / "target/labels/scene_03.png"), 0)

    def certain(segmenter: Segmenter, image: np.ndarray, *_: object) -> dict[str, torch.Tensor]:
        cloud = torch.from_numpy(image.mean(2) > 140).float()
        return dict.fromkeys(("main", "aux"), torch.stack([1 - cloud, cloud]))

    monkeypatch.setattr("report.evaluation.probabilities", certain)
    monkeypatch.setattr(report.figures, "probabilities", certain)
    evaluation.evaluate(load_config([*arguments, "--eval.parts", "scores,masks,entropy"]))
    folder = tmp_path / "run/eval"
    entropy = cv2.imread(str(folder / "entropy/target/student/scene_03.png"))[..., ::-1]
    assert {tuple(pixel) for pixel in entropy.reshape(-1, 3).tolist()} == {(255, 237, 120)}
    image = cv2.imread(str(tmp_path / "target/images/scene_03.png"))
    cloud = image.mean(2) > 140
    mask = cv2.imread(str(folder / "masks/target/student/scene_03.png"))[..., ::-1]
    assert np.array_equal((mask == 255).all(2), cloud)
    errors = cv2.imread(str(folder / "errors/target/student/scene_03.png"))[..., ::-1]
    assert np.array_equal((errors == (213, 62, 79)).all(2), (label > 0) & ~cloud)
    assert np.array_equal((errors == (50, 100, 190)).all(2), (label == 0) & cloud)
    values = json.loads((folder / "metrics.json").read_text())["domains"]["target"]
    assert values["signs"]["student"]["mean_entropy"] == 0 and values["signs"]["student"]["head_agreement"] == 1
    assert values["agreement"] == {"teacher and student": 1}
    wrong = 1 - values["models"]["student"]["pixel_accuracy"]
    assert values["models"]["student"]["ece"] == pytest.approx(wrong)  # certain, and wrong that often


@pytest.mark.parametrize("change", ["--target.eval_share=0.3", "--target.nodata=0", "--source.scaling=train"])
def test_images_are_not_shown_in_another_way_than_in_training(change: str, arguments: list[str]) -> None:
    trained_with = load_config(arguments)
    (Path(trained_with.out) / "teacher/config.yaml").write_text(to_yaml(trained_with))
    key = change.split("=")[0].removeprefix("--")
    with pytest.raises(ConfigError, match=f"{key} is .*, but .* was trained with"):
        evaluation.evaluate(load_config([*arguments, change]))


@pytest.mark.slow
def test_each_model_sees_the_target_with_the_scaling_that_it_was_trained_with(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every part; and what a view changes is the scores of its own model alone."""
    both_classes(monkeypatch)
    recorded = [[[20.0, 30.0, 40.0], [200.0, 190.0, 180.0]], None]
    places = [tmp_path / "run" / name for name in ("source_only/source_only.safetensors", "intra/student.safetensors")]
    for path, scaling in zip(places, recorded, strict=True):
        path.parent.mkdir(exist_ok=True)
        torch.manual_seed(1)
        target = {"bands": None, "scaling": scaling, "nodata": "file"}
        images = {"bands": ["red", "green", "blue"], "size": 64, "geometry": "letterbox", "tile": None}
        record = json.dumps({**images, "target": target})
        save_segmenter(path, Segmenter("mobilenetv3_small_050"), {"data": record})
    evaluation.evaluate(load_config(arguments))
    report = json.loads((tmp_path / "run/eval/metrics.json").read_text())["domains"]["target"]
    for path in places:
        few = ["--eval.parts", "scores", "--eval.weights", str(path)]
        alone = load_config([*arguments, *few, "--out", str(tmp_path / path.stem)])
        evaluation.evaluate(alone)
        same = json.loads((tmp_path / path.stem / "eval/metrics.json").read_text())["domains"]["target"]
        assert report["models"][path.stem]["confusion"] == same["models"][path.stem]["confusion"]
        assert report["signs"][path.stem]["mean_entropy"] == same["signs"][path.stem]["mean_entropy"]
    one, other = (report["signs"][path.stem]["mean_entropy"] for path in places)
    assert one != other  # the same weights, on other values


def test_bad_requests(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval.parts is 'masks,tnse', expected .*tsne"):
        load_config([*arguments, "--eval.parts", "masks,tnse"])
    with pytest.raises(ConfigError, match=r"target.scene is '\(', expected a regular expression"):
        load_config([*arguments, "--target.scene", "("])
    with pytest.raises(ConfigError, match=r"source.root"):
        load_config([*arguments, "--source.root", ""])
    with pytest.raises(WeightsError, match="no such weights file"):
        evaluation.evaluate(load_config([*arguments, "--eval.weights", str(tmp_path / "no.safetensors")]))
    with pytest.raises(DataError, match="holds no trained model"):
        evaluation.evaluate(load_config([*arguments, "--out", str(tmp_path / "empty")]))
    with pytest.raises(EvaluationError, match="gradcam failed"):
        evaluation.evaluate(load_config([*arguments, "--eval.parts", "gradcam", "--eval.cam_layer", "backbone.blok"]))


@pytest.mark.parametrize("text", ["data: [", "data: 1", "a: &a {b: *a}", "source: {root: s}"])
def test_a_damaged_configuration_of_a_stage_is_named(arguments: list[str], text: str) -> None:
    config = load_config(arguments)
    (Path(config.out) / "teacher/config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"teacher/config\.yaml: (is not|is too large)"):
        evaluation.load_models(config)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "target: 1"),
        ("entropy.csv", "name,score\n"),
        ("entropy.csv", "name,score,split,cloud_fraction\nx,0,easy,0\ny,1,hard,0\n"),
    ],
)
def test_a_damaged_split_is_named(arguments: list[str], file: str, text: str) -> None:
    config = load_config(arguments)
    path = Path(config.out) / "split" / file
    path.write_text(text)
    with pytest.raises(DataError, match=f"split/{file}: "):
        report.figures.draw_entropy(Evaluation(config, Path(config.out) / "eval", {}, [], []))

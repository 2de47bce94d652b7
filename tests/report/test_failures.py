"""The picture of a run's worst images, on runs that were really trained."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from config.load import load_config
from engine.build import trained
from engine.domains import evaluation_images
from engine.inference import probabilities
from engine.run import make_generated
from report import failures
from report.failures import draw_failures
from train_teacher import train_teacher
from utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_the_worst_images_come_first_and_every_run_is_drawn_on_them(
    tmp_path: Path, tiny_arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name, words in (("source_only", ["--method", "source_only"]), ("advent", [])):
        config = load_config([*tiny_arguments(tmp_path), *words, "--out", str(tmp_path / "runs" / name)])
        make_generated(config)
        train_teacher(config)
        runs.append(Path(config.out))
    network = trained(config, "teacher")
    wrong = {}
    for item in evaluation_images(config, "target"):
        label = cv2.imread(str(item.label), cv2.IMREAD_GRAYSCALE) == 255
        image = cv2.cvtColor(cv2.imread(str(item.image)), cv2.COLOR_BGR2RGB)
        mask = probabilities(network, image, config.data)["main"].argmax(0).numpy()
        wrong[item.name] = float((mask != label).mean())
    wanted = sorted(wrong, key=lambda name: (-wrong[name], name))[:2]

    drawn = []
    write = failures.picture_grid
    monkeypatch.setattr(failures, "picture_grid", lambda *args, **named: (drawn.append(args), write(*args, **named)))
    picture = tmp_path / "failures.png"
    draw_failures(runs, picture, count=2)
    ((path, names, columns, caption),) = drawn
    assert path == picture and cv2.imread(str(picture)) is not None
    assert list(names) == wanted and f"of {len(wrong)} images on which advent is worst" in caption
    mean = 100 * np.mean([wrong[name] for name in wanted])
    assert [title.split(":")[0] for title in columns] == ["image", "label", "source_only", "advent"]
    assert list(columns)[-1] == f"advent: {mean:.0f} %"
    red, blue = (213, 62, 79), (50, 100, 190)
    for name, picture_of in zip(wanted, columns[list(columns)[-1]], strict=True):
        marked = (picture_of == red).all(2) | (picture_of == blue).all(2)
        assert marked.mean() == pytest.approx(wrong[name])

    with pytest.raises(DataError, match="exists and is left as it is"):
        draw_failures(runs, picture)
    with pytest.raises(DataError, match="holds no weights"):
        draw_failures([tmp_path / "runs"], tmp_path / "other.png")


def test_the_command_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "report.failures", "runs/demo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "python -m report.failures" in done.stderr and "Traceback" not in done.stderr

"""The evaluation and the split never show a network more pixels at once than a step of training, however large images
are, and keep no graph but for Grad-CAM."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import eval as evaluation
from config.load import load_config
from config.schema import Config, DataConfig
from engine.inference import probabilities
from engine.pictures import SHOWN, thinned
from nets.segmenter import HEADS, Prediction, Segmenter
from split_entropy import split_entropy
from train_intra import train_intra
from train_teacher import train_teacher

SIZE = 64


class Forward(NamedTuple):
    pixels: int
    graph: bool


@contextmanager
def forwards() -> Iterator[list[Forward]]:
    """Every forward of a segmenter within it: pixels of its input, and whether a graph is made."""
    seen: list[Forward] = []
    forward = Segmenter.forward

    def noted(self: Segmenter, image: Tensor) -> Prediction:
        found = forward(self, image)
        seen.append(Forward(image.shape[0] * image.shape[2] * image.shape[3], found.main.requires_grad))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "forward", noted)
        yield seen


def most(seen: list[Forward]) -> int:
    return max(forward.pixels for forward in seen)


@pytest.fixture
def config(tmp_path: Path, make_domain: Callable[..., Path], tiny_arguments: Callable[..., list[str]]) -> Config:
    """Training in batches of one, the smallest there are, on images much larger than what the network is shown."""
    for seed, role in enumerate(("source", "target")):
        make_domain(tmp_path / role, count=2, size=(140, 180), seed=seed)
    extra = {"teacher.batch": 1, "intra.batch": 1, "teacher.steps": 1, "intra.steps": 1, "log.pictures": 1}
    extra |= {"eval.pictures": 1, "eval.tsne_pixels": 4, "split.ratio": 0.5, "data.size": SIZE}
    return load_config([*tiny_arguments(tmp_path), *(f"--{key}={value}" for key, value in extra.items())])


@pytest.mark.parametrize(
    ("geometry", "tile"),
    [("crop", 128), ("letterbox", 128), pytest.param("letterbox", None, marks=pytest.mark.slow)],
    ids=["crop", "tiles", "whole"],
)
def test_no_forward_is_larger_than_one_of_the_smallest_training_or_a_window(
    geometry: str, tile: int | None, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.windows.WINDOW", SIZE)
    config = replace(config, data=replace(config.data, geometry=geometry, tile=tile))
    with forwards() as teacher:
        train_teacher(config)
    with forwards() as split:
        split_entropy(config)
    with forwards() as student:
        train_intra(config)
    smallest = min(most(teacher), most(student))
    assert smallest == SIZE**2  # a batch of one of a stream, and so are the pictures for TensorBoard
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())
    models = {"student": evaluation.load_models(config)["student"]}
    monkeypatch.setattr(evaluation, "load_models", lambda config: models)
    parts = {}
    for part in ("scores", "entropy", "tsne", "gradcam"):
        with forwards() as parts[part]:
            evaluation.evaluate(replace(config, eval=replace(config.eval, parts=part)))
    for part, seen in {"split": split, **parts}.items():
        assert seen and most(seen) <= smallest, part
        assert all(forward.graph == (part == "gradcam") for forward in seen), part
    if geometry == "crop":
        assert len(split) > 30  # windows of the tiles of two images


class LastRow(Segmenter):
    """Logits that follow from a pixel and its place in the window, so that windows differ."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.classes, self.architecture = 2, "{}"
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Prediction:
        cloud = image[:, :1] * torch.linspace(-3, 3, image.shape[3])
        logits = torch.cat([-cloud, cloud], 1) * self.weight
        return Prediction(main=logits, aux=logits.flip(1), features=logits, scores=logits)


@torch.inference_mode()
def all_at_once(network: Segmenter, image: np.ndarray, side: int) -> dict[str, Tensor]:
    """All windows in one forward, blended in double precision: what `probabilities` stands for."""
    rows, columns = image.shape[:2]
    shared = side // 4
    step = side - shared
    corners = [(top, left) for top in range(0, rows - shared, step) for left in range(0, columns - shared, step)]
    windows = torch.stack([torch.from_numpy(image[t : t + side, l : l + side].copy()) for t, l in corners])  # noqa: E741
    prediction = network(windows.permute(0, 3, 1, 2).float() / 255)
    rising = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5).clip(max=shared)
    weight = torch.from_numpy(np.outer(rising, rising))
    found = {}
    for head in HEADS:
        logits = getattr(prediction, head)
        total, weights = torch.zeros(2, rows, columns, dtype=torch.float64), torch.zeros(rows, columns)
        for (top, left), window in zip(corners, logits.softmax(1), strict=True):
            total[:, top : top + side, left : left + side] += weight * window
            weights[top : top + side, left : left + side] += weight
        found[head] = total / weights
    return found


@pytest.mark.parametrize("network", [LastRow(), None], ids=["by place", "MobileNetV3"])
def test_one_window_at_a_time_gives_what_all_at_once_give(network: Segmenter | None) -> None:
    torch.manual_seed(0)
    network = network or Segmenter("mobilenetv3_small_050", decoder="upernet", init="kaiming").eval()
    image = np.random.default_rng(0).integers(0, 256, (160, 208, 3), np.uint8)  # windows share exactly a quarter
    found = probabilities(network, image, DataConfig(size=SIZE, geometry="crop"))
    for head, expected in all_at_once(network, image, SIZE).items():
        assert float(expected.std()) > 0.01
        np.testing.assert_allclose(found[head].numpy(), expected.numpy(), rtol=0, atol=5e-5)


def test_a_large_raster_is_thinned_to_what_can_be_shown() -> None:
    raster = np.arange(3 * SHOWN * 20, dtype=np.int64).reshape(20, 3 * SHOWN)
    small = thinned(raster)
    assert small.shape == (7, SHOWN) and np.array_equal(small, raster[::3, ::3]) and small.base is None
    assert thinned(small) is small
    assert thinned(np.zeros((SHOWN + 1, 5, 3))).shape == (SHOWN // 2 + 1, 3, 3)

"""Prediction at native size: windows that cover an image, blended without seams."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from config.schema import DataConfig
from engine.inference import decide, mean_over_scales, probabilities
from engine.windows import plan
from nets.segmenter import Prediction, Segmenter

CROP = DataConfig(size=32, geometry="crop")


class PerPixel(Segmenter):
    """Logits that follow from each pixel alone, and a record of what it was shown."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.classes, self.architecture = 2, "{}"
        self.shown: list[tuple[int, ...]] = []
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Prediction:
        self.shown.append(tuple(image.shape))
        logits = torch.cat([torch.zeros_like(image[:, :1]), 8 * image[:, :1] - 4], 1)
        return Prediction(main=logits, aux=-logits, features=image, scores=logits)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 48, 64, 65, 100, 257])
def test_windows_cover_everything_and_overlap_by_a_quarter(length: int) -> None:
    begins = [span.start for span in plan(length, 1, CROP).rows]
    assert begins[0] == 0 and begins[-1] == max(0, length - 32)
    assert all(0 < b - a <= 24 for a, b in itertools.pairwise(begins))


@pytest.mark.parametrize("shape", [(20, 24), (32, 32), (33, 47), (90, 32), (100, 75)])
def test_blended_windows_equal_one_forward_of_a_network_that_looks_at_single_pixels(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    network = PerPixel()
    found = probabilities(network, image, CROP)
    cloud = torch.sigmoid(8 * torch.from_numpy(image[..., 0]).float() / 255 - 4)
    torch.testing.assert_close(found["main"], torch.stack([1 - cloud, cloud]))
    torch.testing.assert_close(found["aux"], torch.stack([cloud, 1 - cloud]))
    window = (1, 3, min(shape[0], 32), min(shape[1], 32))
    windows = plan(*shape, CROP)
    assert network.shown == [window] * len(windows.rows) * len(windows.columns)


def test_letterbox_shows_the_whole_image_once_at_the_training_size() -> None:
    network = PerPixel()
    found = probabilities(network, np.zeros((64, 48, 3), np.uint8), DataConfig(size=32, geometry="letterbox"))
    assert network.shown == [(1, 3, 32, 24)]
    assert found["main"].shape == (2, 64, 48)


def test_probabilities_sum_to_one_and_are_the_same_every_time() -> None:
    torch.manual_seed(0)
    network = Segmenter("mobilenetv3_small_050")
    image = np.random.default_rng(1).integers(0, 256, (70, 50, 3), np.uint8)
    first, second = (probabilities(network.train(), image, CROP) for _ in range(2))
    for head, probability in first.items():
        assert probability.shape == (2, 70, 50)
        torch.testing.assert_close(probability.sum(0), torch.ones(70, 50))
        assert torch.equal(probability, second[head])
    assert all(module.training for module in network.modules())  # as it was


def test_one_scale_of_one_is_the_image_itself() -> None:
    image = np.random.default_rng(1).integers(0, 256, (70, 50, 3), np.uint8)
    network = PerPixel()
    once, mean = probabilities(network, image, CROP), mean_over_scales(network, image, CROP, [1.0])
    assert all(torch.equal(once[head], mean[head]) for head in once)


def test_mean_over_scales_is_that_of_the_scaled_images_and_stays_a_probability() -> None:
    image = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)  # a ramp
    network = PerPixel()
    found = mean_over_scales(network, image, CROP, [0.5, 1, 2])
    assert {window[2:] for window in network.shown} == {(32, 32)} and len(network.shown) == 1 + 9 + 25
    assert found["main"].shape == (2, 64, 64)
    torch.testing.assert_close(found["main"].sum(0), torch.ones(64, 64))
    expected = torch.sigmoid(8 * torch.from_numpy(image[..., 0]).float() / 255 - 4)
    torch.testing.assert_close(found["main"][1], expected, atol=0.02, rtol=0)  # a ramp is one at every scale


def test_scales_of_a_letterbox_are_those_of_what_the_network_sees() -> None:
    network, image = PerPixel(), np.full((64, 48, 3), 90, np.uint8)
    found = mean_over_scales(network, image, DataConfig(size=32, geometry="letterbox"), [0.5, 1])
    assert network.shown == [(1, 3, 16, 12), (1, 3, 32, 24)] and found["main"].shape == (2, 64, 48)
    torch.testing.assert_close(found["main"][1], torch.full((64, 48), 8 * 90 / 255 - 4).sigmoid())


@pytest.mark.parametrize(
    ("head", "expected"), [("main", [1, 0, 0]), ("aux", [0, 1, 0]), ("mean", [1, 0, 0]), ("union", [1, 1, 0])]
)
def test_which_head_decides(head: Any, expected: list[int]) -> None:
    cloud = {"main": torch.tensor([[0.9, 0.1, 0.2]]), "aux": torch.tensor([[0.2, 0.8, 0.3]])}
    probability = {name: torch.stack([1 - value, value]) for name, value in cloud.items()}
    assert decide(probability, head).tolist() == [expected]

"""Batches as the stages want them: float images with their change of colour, holes filled, padding 0."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config.schema import AugmentConfig
from datasets.augment import LUMA
from datasets.samples import STREAMS
from engine.batches import ready
from tests.datasets.written import STILL, STRONG, Build, Make, of_bands, samples_of, stream_of
from utils.labels import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
CPU = torch.device("cpu")


@pytest.fixture
def stream(tmp_path: Path, make_domain: Make) -> Build:
    return stream_of(tmp_path, make_domain)


def test_ready_batch_has_its_types_and_range(stream: Build) -> None:
    batch = next(stream(size=64, amounts=STRONG).batches(4, 0, 1))
    kept = {key: part.clone() for key, part in batch.items() if isinstance(part, torch.Tensor)}
    result = ready(batch, CPU)
    assert result["image"].dtype == torch.float32 and result["image"].shape == (4, 3, 64, 64)
    assert result["image"].min() >= 0 and 0.3 < result["image"].max() <= 1
    assert result["label"].dtype == torch.int64 and torch.equal(result["label"], kept["label"].long())
    assert result["valid"].dtype == torch.bool and result["name"] == batch["name"] and "colour" not in result
    assert all(torch.equal(batch[key], part) for key, part in kept.items())  # the batch itself stays as it was


def test_unlabelled_batch_has_no_label(stream: Build) -> None:
    assert "label" not in ready(next(stream("target", labels=False).batches(2, 0, 1)), CPU)


@pytest.mark.parametrize("position", range(6))
def test_ready_sample_equals_a_computation_by_hand(stream: Build, position: int) -> None:
    """Crop, mirrors, brightness and contrast with numpy, from the draws in the order in which they are documented."""
    amounts = AugmentConfig(hflip=0.5, vflip=0.5, jitter=0.7, brightness=0.5, contrast=0.5, saturation=0, hue=0)
    samples = stream("target", amounts=amounts)
    item = samples.images[samples.index(position)]
    assert item.label is not None
    image = cv2.imread(str(item.image))[..., ::-1] / 255
    label = cv2.imread(str(item.label), cv2.IMREAD_GRAYSCALE) // 255
    rng = np.random.default_rng([3, STREAMS.index("target"), 1, position])
    top, left = rng.integers(40 - 32 + 1), rng.integers(48 - 32 + 1)
    image, label = (layer[top : top + 32, left : left + 32] for layer in (image, label))
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    if rng.random() < 0.5:
        image, label = image[::-1], label[::-1]
    brightness, contrast, *_ = 1 + 0.5 * rng.uniform(-1, 1, 4)
    if rng.random() < 0.7:
        image = image * brightness
        grey = (image @ LUMA).mean()
        image = np.clip(grey + contrast * (image - grey), 0, 1)
    result = ready(torch.utils.data.default_collate([samples[position]]), CPU)
    np.testing.assert_allclose(result["image"][0].permute(1, 2, 0).numpy(), image, atol=1e-5)
    assert np.array_equal(result["label"][0], label) and result["name"] == [item.name]


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
def test_still_samples_are_exact_for_any_number_of_bands(tmp_path: Path, bands: int) -> None:
    samples = samples_of(of_bands(tmp_path, bands), amounts=STILL)
    batch = next(samples.batches(3, 0, 1))
    assert batch["image"].shape == (3, bands, 32, 32) and batch["colour"].shape == (3, bands, bands + 1)
    result = ready(batch, CPU)["image"]
    assert torch.equal(result, batch["image"].float() / 255)  # bit by bit


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
def test_padding_stays_0_and_holes_stay_filled_under_any_change(tmp_path: Path, bands: int, geometry: str) -> None:
    samples = samples_of(of_bands(tmp_path, bands, holes=True), amounts=STRONG, size=64, geometry=geometry)
    batch = next(samples.batches(6, 0, 1))
    result = ready(batch, CPU)
    empty, padding = ~result["valid"], torch.ones_like(result["valid"])
    for of_sample, (top, left, height, width) in zip(padding, batch["box"].tolist(), strict=True):
        of_sample[top : top + height, left : left + width] = False
    assert 0.1 < empty.float().mean() < 0.9 and (result["label"][empty] == IGNORE).all()
    assert (padding & empty).sum() == padding.sum() < empty.sum() and "box" not in result
    assert (result["image"].permute(0, 2, 3, 1)[padding] == 0).all()
    image = batch["image"].permute(0, 2, 3, 1)
    assert image[~padding].min() > 50 and (image[padding] == 0).all()  # files hold 100 or more, or no data
    moved = result["image"] - batch["image"] / 255
    assert moved.abs().amax((1, 2, 3)).min() > 0.005  # each was changed elsewhere
    assert (result["image"].permute(0, 2, 3, 1)[result["valid"]] > 0).any()


def test_still_sample_is_exact_beside_one_that_changes(tmp_path: Path) -> None:
    batch = next(samples_of(of_bands(tmp_path, 3), amounts=replace(STRONG, jitter=0.5)).batches(16, 0, 1))
    still = (batch["colour"] == torch.eye(3, 4)).all(2).all(1)
    assert 2 < still.sum() < 14
    result = ready(batch, CPU)["image"]
    assert torch.equal(result[still], batch["image"][still].float() / 255)
    alone = [ready({k: v[i : i + 1] for k, v in batch.items()}, CPU)["image"] for i in range(16)]
    torch.testing.assert_close(result, torch.cat(alone), atol=1e-6, rtol=0)  # whatever else is in the batch


def test_jitter_changes_the_image_alone(stream: Build) -> None:
    still, moved = (next(stream(amounts=a).batches(5, 0, 1)) for a in (STILL, replace(STILL, jitter=1.0)))
    assert not torch.equal(still["colour"], moved["colour"])
    assert all(torch.equal(still[key], moved[key]) for key in ("image", "label", "valid"))
    before, after = (ready(batch, CPU) for batch in (still, moved))
    assert (before["image"] - after["image"]).abs().amax((1, 2, 3)).min() > 0.005
    assert torch.equal(before["label"], after["label"]) and torch.equal(before["valid"], after["valid"])


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_ready_does_not_depend_on_the_number_of_threads(bands: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (2, bands, 256, 256), generator=generator, dtype=torch.uint8),
        "colour": torch.randn(2, bands, bands + 1, generator=generator),
        "valid": torch.ones(2, 256, 256, dtype=torch.bool),
        "box": torch.tensor([[0, 0, 256, 256], [3, 0, 200, 256]]),
    }
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ready(batch, CPU)["image"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)

"""Samples are a pure function of (seed, stream, position), and labels move with their images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.augment import flip, jitter
from datasets.files import list_domain
from datasets.geometry import IGNORE, Raster
from datasets.samples import EndlessSamples, network_input
from utils.config import AugmentConfig

Make = Callable[..., Path]
STILL = AugmentConfig(hflip=0, vflip=0, jitter=0)


@pytest.fixture
def stream(tmp_path: Path, make_domain: Make) -> Callable[..., EndlessSamples]:
    """Seven images of a domain as a stream; any argument can be changed."""
    root = make_domain(tmp_path / "domain", count=7)

    def build(name: str = "source", labels: bool = True, **changed: Any) -> EndlessSamples:
        options: dict[str, Any] = {
            "seed": 3,
            "size": 32,
            "geometry": "crop",
            "amounts": AugmentConfig(jitter=0.5),
            "label_map": {0: 0, 255: 1},
        }
        return EndlessSamples(list_domain(root, labels=labels), name, **(options | changed))

    return build


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
def test_sample_has_its_types_and_range(stream: Callable[..., EndlessSamples], geometry: str) -> None:
    sample = stream(geometry=geometry, size=64)[0]
    assert sample["image"].shape == (3, 64, 64) and sample["image"].dtype == torch.float32
    assert sample["image"].min() >= 0 and 0.5 < sample["image"].max() <= 1
    assert sample["label"].dtype == torch.int64 and set(sample["label"].unique().tolist()) == {0, 1, IGNORE}
    assert sample["valid"].dtype == torch.bool and torch.equal(sample["label"] == IGNORE, ~sample["valid"])
    assert sample["name"].startswith("scene_")


def test_same_bytes_for_any_number_of_workers(stream: Callable[..., EndlessSamples]) -> None:
    alone, shared = (list(stream().batches(3, 0, 4, workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == 4
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_position_is_a_pure_function(stream: Callable[..., EndlessSamples]) -> None:
    first, second = stream(), stream()
    backwards = {position: second[position] for position in (20, 9, 3)}
    torch.manual_seed(99)
    np.random.seed(99)
    for position in (3, 9, 20):
        assert same(first[position], backwards[position])
    assert not torch.equal(first[3]["image"], first[9]["image"])


def test_resuming_equals_the_tail(stream: Callable[..., EndlessSamples]) -> None:
    whole = list(stream().batches(2, 0, 6))
    tail = list(stream().batches(2, 4, 6))
    assert len(tail) == 2 and all(same(a, b) for a, b in zip(whole[4:], tail, strict=True))
    assert list(stream().batches(2, 6, 6)) == []


def test_each_image_once_per_pass_in_a_new_order(stream: Callable[..., EndlessSamples]) -> None:
    samples = stream()
    passes = [[samples.index(7 * epoch + place) for place in range(7)] for epoch in range(5)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 5


def test_streams_and_seeds_are_independent(stream: Callable[..., EndlessSamples]) -> None:
    orders = {
        (name, seed): tuple(stream(name, seed=seed).index(i) for i in range(35))
        for name in ("source", "target", "easy", "hard")
        for seed in (0, 1)
    }
    assert len(set(orders.values())) == 8
    changes = {(name, seed): _mirrored(stream(name, seed=seed)) for name in ("source", "target") for seed in (0, 1)}
    assert len(set(changes.values())) == 4  # augmentation differs as well, not only the order


def _mirrored(samples: EndlessSamples) -> tuple[bool, ...]:
    """For the first positions, whether the sample differs from the same crop without flips."""
    plain = EndlessSamples(
        samples.items,
        "source",
        seed=0,
        size=32,
        geometry="crop",
        amounts=STILL,
        label_map=samples.label_map,
    )
    plain.key = samples.key
    samples.amounts = AugmentConfig(hflip=0.5, vflip=0.5, jitter=0)
    return tuple(not torch.equal(samples[i]["image"], plain[i]["image"]) for i in range(24))


def test_unknown_stream_is_refused(stream: Callable[..., EndlessSamples]) -> None:
    with pytest.raises(ValueError, match="not in"):
        stream("nonsense")


def test_unlabelled_samples_have_no_label(stream: Callable[..., EndlessSamples]) -> None:
    with_label, without = stream("target"), stream("target", labels=False)
    assert "label" not in without[0] and "label" not in next(without.batches(2, 0, 1))
    assert torch.equal(with_label[5]["image"], without[5]["image"])  # a label changes nothing about the image


@pytest.mark.parametrize("horizontal", [0, 1])
@pytest.mark.parametrize("vertical", [0, 1])
def test_flip_moves_all_layers(horizontal: int, vertical: int) -> None:
    image = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    raster = Raster(image, image[..., 0].copy(), image[..., 0] % 2 == 0)
    flipped = flip(raster, AugmentConfig(hflip=horizontal, vflip=vertical), np.random.default_rng(0))
    rows = range(3, -1, -1) if vertical else range(4)
    columns = range(5, -1, -1) if horizontal else range(6)
    for before, after in zip(raster, flipped, strict=True):
        assert before is not None and after is not None
        assert np.array_equal(after, [[before[row, column] for column in columns] for row in rows])
    assert flip(raster._replace(label=None), AugmentConfig(), np.random.default_rng(0)).label is None


def test_flip_follows_its_probability() -> None:
    raster = Raster(np.array([[[1], [2]]]), None, np.ones((1, 2), bool))
    amounts, rng = AugmentConfig(hflip=0.25, vflip=0), np.random.default_rng(0)
    share = np.mean([flip(raster, amounts, rng).image[0, 0, 0] == 2 for _ in range(2000)])
    assert abs(share - 0.25) < 0.04


def test_jitter_changes_the_image_alone(stream: Callable[..., EndlessSamples]) -> None:
    still, moved = stream(amounts=STILL), stream(amounts=replace(STILL, jitter=1.0))
    for position in range(5):
        before, after = still[position], moved[position]
        assert not torch.equal(before["image"], after["image"])
        assert torch.equal(before["label"], after["label"]) and torch.equal(before["valid"], after["valid"])


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_jitter_does_not_depend_on_the_number_of_threads(bands: int) -> None:
    """A loader process has one thread, the main process many."""
    image = torch.rand(bands, 256, 256, generator=torch.Generator().manual_seed(0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seeds = range(8)
            results.append([jitter(image, AugmentConfig(jitter=1.0), np.random.default_rng(seed)) for seed in seeds])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_jitter_of_any_number_of_bands_stays_in_range(bands: int) -> None:
    image = torch.rand(bands, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = image.clone()
    amounts = AugmentConfig(jitter=1.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    results = [jitter(image, amounts, np.random.default_rng(seed)) for seed in range(20)]
    assert torch.equal(image, kept)
    assert all(r.shape == image.shape and r.min() >= 0 and r.max() <= 1 for r in results)
    assert len({float(r.mean()) for r in results}) == 20


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_brightness_multiplies(bands: int) -> None:
    image = torch.full((bands, 2, 2), 0.4)
    amounts = AugmentConfig(jitter=1.0, brightness=0.5, contrast=0, saturation=0, hue=0)
    factor = 1 + 0.5 * np.random.default_rng(4).uniform(-1, 1, size=4)[0]
    torch.testing.assert_close(jitter(image, amounts, np.random.default_rng(4)), image * factor)


def test_jitter_without_chance_or_amounts_changes_nothing() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jitter(image, AugmentConfig(jitter=0), np.random.default_rng(0)), image)
    nothing = AugmentConfig(jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0)
    torch.testing.assert_close(jitter(image, nothing, np.random.default_rng(0)), image, atol=1e-5, rtol=0)


def test_network_input_follows_the_geometry_without_padding() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)
    native = network_input(image, 32, "crop")
    assert native.shape == (1, 3, 40, 20) and torch.equal(native[0, :, 7, 9] * 255, torch.tensor(image[7, 9]).float())
    assert network_input(image, 32, "letterbox").shape == (1, 3, 32, 16)

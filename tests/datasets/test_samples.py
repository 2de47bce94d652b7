"""Samples are a pure function of (seed, stream, position), and labels move with their images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch

from config.schema import AugmentConfig
from datasets.augment import LUMA
from datasets.cache import Cache
from datasets.decoder import Decoder
from datasets.files import Item
from datasets.images import ImageSet, checked
from datasets.readers import find_images
from datasets.samples import STREAMS, EndlessSamples, network_input, to_tensor
from utils.labels import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
Make = Callable[..., Path]
Build = Callable[..., EndlessSamples]
CPU = torch.device("cpu")
RGB = Decoder(("red", "green", "blue"))
STILL = AugmentConfig(hflip=0, vflip=0, jitter=0)
STRONG = AugmentConfig(hflip=0.5, vflip=0.5, jitter=1, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)


def samples_of(images: ImageSet, name: str = "source", **changed: Any) -> EndlessSamples:
    options: dict[str, Any] = {"seed": 3, "size": 32, "geometry": "crop", "amounts": AugmentConfig(jitter=0.5)}
    return EndlessSamples(images, name, **(options | changed))


@pytest.fixture
def stream(tmp_path: Path, make_domain: Make) -> Build:
    """Seven images of a domain as a stream, from files or from a cache; any argument can be changed."""
    root = make_domain(tmp_path / "domain", count=7)

    def build(name: str = "source", labels: bool = True, cached: bool = False, **changed: Any) -> EndlessSamples:
        cache = Cache(tmp_path / "cache") if cached else None
        return samples_of(checked(find_images(root, labels=labels).items, RGB, name, cache), name, **changed)

    return build


def of_bands(folder: Path, bands: int, holes: bool = False) -> ImageSet:
    """Three images of so many bands with bright pixels and, with `holes`, a block of 0 that holds no data."""
    names, items = tuple(f"b{i}" for i in range(bands)), []
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(100, 256, (bands, 40, 48), np.uint8)
        if holes:
            pixels[:, 10:20, 15:30] = 0
        shape = {"height": 40, "width": 48, "count": bands, "dtype": "uint8"}
        with rasterio.open(folder / f"{i}.tif", "w", driver="GTiff", **shape) as file:
            file.write(pixels)
        label = folder / f"label_{i}.png"
        assert cv2.imwrite(str(label), np.full((40, 48), 255, np.uint8))
        items.append(Item(str(i), (folder / f"{i}.tif",), label))
    return checked(items, Decoder(names, names, nodata="all_zero"), "source")


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else first[key] == second[key]
        for key in first
    )


# what a sample is


@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
def test_sample_has_its_types_and_range(stream: Build, geometry: str) -> None:
    sample = stream(geometry=geometry, size=64)[0]
    assert sample["image"].shape == (3, 64, 64) and sample["image"].dtype == torch.uint8
    assert sample["image"].max() > 128
    assert sample["label"].dtype == torch.uint8 and set(sample["label"].unique().tolist()) == {0, 1, IGNORE}
    assert sample["valid"].dtype == torch.bool and torch.equal(sample["label"] == IGNORE, ~sample["valid"])
    assert sample["colour"].shape == (3, 4) and sample["name"].startswith("scene_")


@pytest.mark.parametrize("workers", [0, 1])
def test_only_bytes_and_a_small_matrix_cross_the_border_of_a_process(stream: Build, workers: int) -> None:
    batch = next(stream().batches(3, 0, 1, workers))
    tensors = {key: part for key, part in batch.items() if isinstance(part, torch.Tensor)}
    assert tensors.pop("colour").shape == (3, 3, 4)
    assert {key: (part.dtype, tuple(part.shape)) for key, part in tensors.items()} == {
        "image": (torch.uint8, (3, 3, 32, 32)),
        "label": (torch.uint8, (3, 32, 32)),
        "valid": (torch.bool, (3, 32, 32)),
    }
    assert len(batch["name"]) == 3


def test_ready_batch_has_its_types_and_range(stream: Build) -> None:
    batch = next(stream(size=64, amounts=STRONG).batches(4, 0, 1))
    kept = {key: part.clone() for key, part in batch.items() if isinstance(part, torch.Tensor)}
    ready = EndlessSamples.ready(batch, CPU)
    assert ready["image"].dtype == torch.float32 and ready["image"].shape == (4, 3, 64, 64)
    assert ready["image"].min() >= 0 and 0.3 < ready["image"].max() <= 1
    assert ready["label"].dtype == torch.int64 and torch.equal(ready["label"], kept["label"].long())
    assert ready["valid"].dtype == torch.bool and ready["name"] == batch["name"] and "colour" not in ready
    assert all(torch.equal(batch[key], part) for key, part in kept.items())  # the batch itself stays as it was


# the same samples, however they are made


def test_same_bytes_for_any_number_of_workers_with_and_without_cache(stream: Build) -> None:
    reference = list(stream().batches(3, 0, 4))
    assert len(reference) == 4
    for workers, cached in ((2, False), (0, True), (2, True)):
        other = list(stream(cached=cached).batches(3, 0, 4, workers))
        assert len(other) == 4 and all(same(a, b) for a, b in zip(reference, other, strict=True))


@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
def test_holes_are_the_same_bytes_with_and_without_cache(tmp_path: Path, geometry: str) -> None:
    plain = of_bands(tmp_path, 4, holes=True)
    cached = checked(plain.items, plain.decoder, "source", Cache(tmp_path / "cache"))
    for position in range(6):
        one, two = (samples_of(images, size=24, geometry=geometry)[position] for images in (plain, cached))
        assert same(one, two)


@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
@pytest.mark.filterwarnings("error")
def test_cached_image_of_the_size_of_a_sample_is_copied(tmp_path: Path, make_domain: Make, geometry: str) -> None:
    """Nothing is cut off or scaled, so that the entry itself would become the tensor, which torch warns of."""
    items = find_images(make_domain(tmp_path / "domain", count=2, size=(32, 32)), labels=True).items
    sets = [checked(items, RGB, "source", cache) for cache in (None, Cache(tmp_path / "cache"))]
    torch.set_warn_always(True)
    try:
        for position in (0, 1):
            plain, cached = (samples_of(images, geometry=geometry, amounts=STILL)[position] for images in sets)
            assert same(plain, cached)
            cached["image"].zero_()  # would end the process if it were the mapped file
    finally:
        torch.set_warn_always(False)


def test_position_is_a_pure_function(stream: Build) -> None:
    first, second = stream(), stream()
    backwards = {position: second[position] for position in (20, 9, 3)}
    torch.manual_seed(99)
    np.random.seed(99)
    for position in (3, 9, 20):
        assert same(first[position], backwards[position])
    assert not torch.equal(first[3]["image"], first[9]["image"])


def test_resuming_equals_the_tail(stream: Build) -> None:
    whole = list(stream().batches(2, 0, 6))
    tail = list(stream().batches(2, 4, 6))
    assert len(tail) == 2 and all(same(a, b) for a, b in zip(whole[4:], tail, strict=True))
    assert list(stream().batches(2, 6, 6)) == []


def test_each_image_once_per_pass_in_a_new_order(stream: Build) -> None:
    samples = stream()
    passes = [[samples.index(7 * epoch + place) for place in range(7)] for epoch in range(5)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 5


def test_streams_and_seeds_are_independent(stream: Build) -> None:
    made = {(name, seed): stream(name, seed=seed) for name in STREAMS for seed in (0, 1)}
    orders = {tuple(samples.index(i) for i in range(35)) for samples in made.values()}
    assert len(orders) == 8
    changes = {_mirrored(made[name, seed]) for name in ("source", "target") for seed in (0, 1)}
    assert len(changes) == 4  # augmentation differs as well, not only the order


def _mirrored(samples: EndlessSamples) -> tuple[bool, ...]:
    """For the first positions, whether the sample differs from the same crop without flips."""
    plain = samples_of(samples.images, amounts=STILL)
    plain.key = samples.key
    samples.amounts = AugmentConfig(hflip=0.5, vflip=0.5, jitter=0)
    return tuple(not torch.equal(samples[i]["image"], plain[i]["image"]) for i in range(24))


def test_unknown_stream_is_refused(stream: Build) -> None:
    images = stream().images
    with pytest.raises(ValueError, match="not in"):
        samples_of(images, "nonsense")


def test_unlabelled_samples_have_no_label(stream: Build) -> None:
    with_label, without = stream("target"), stream("target", labels=False)
    assert "label" not in without[0] and "label" not in next(without.batches(2, 0, 1))
    assert same({**without[5], "label": with_label[5]["label"]}, with_label[5])  # a label changes nothing else
    assert "label" not in EndlessSamples.ready(next(without.batches(2, 0, 1)), CPU)


# what is done to it


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
    ready = EndlessSamples.ready(torch.utils.data.default_collate([samples[position]]), CPU)
    np.testing.assert_allclose(ready["image"][0].permute(1, 2, 0).numpy(), image, atol=1e-5)
    assert np.array_equal(ready["label"][0], label) and ready["name"] == [item.name]


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
def test_still_samples_are_exact_for_any_number_of_bands(tmp_path: Path, bands: int) -> None:
    samples = samples_of(of_bands(tmp_path, bands), amounts=STILL)
    batch = next(samples.batches(3, 0, 1))
    assert batch["image"].shape == (3, bands, 32, 32) and batch["colour"].shape == (3, bands, bands + 1)
    ready = EndlessSamples.ready(batch, CPU)["image"]
    assert torch.equal(ready, batch["image"].float() / 255)  # bit by bit


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("geometry", ["crop", "letterbox"])
def test_pixels_without_data_stay_0_under_any_change(tmp_path: Path, bands: int, geometry: str) -> None:
    samples = samples_of(of_bands(tmp_path, bands, holes=True), amounts=STRONG, size=64, geometry=geometry)
    batch = next(samples.batches(6, 0, 1))
    ready = EndlessSamples.ready(batch, CPU)
    empty = ~ready["valid"]
    assert 0.1 < empty.float().mean() < 0.9 and (ready["label"][empty] == IGNORE).all()
    assert (ready["image"].permute(0, 2, 3, 1)[empty] == 0).all()
    moved = ready["image"] - batch["image"] / 255
    assert moved.abs().amax((1, 2, 3)).min() > 0.005  # each was changed elsewhere
    assert (ready["image"].permute(0, 2, 3, 1)[ready["valid"]] > 0).any()


def test_still_sample_is_exact_beside_one_that_changes(tmp_path: Path) -> None:
    batch = next(samples_of(of_bands(tmp_path, 3), amounts=replace(STRONG, jitter=0.5)).batches(16, 0, 1))
    still = (batch["colour"] == torch.eye(3, 4)).all(2).all(1)
    assert 2 < still.sum() < 14
    ready = EndlessSamples.ready(batch, CPU)["image"]
    assert torch.equal(ready[still], batch["image"][still].float() / 255)
    alone = [EndlessSamples.ready({k: v[i : i + 1] for k, v in batch.items()}, CPU)["image"] for i in range(16)]
    torch.testing.assert_close(ready, torch.cat(alone), atol=1e-6, rtol=0)  # whatever else is in the batch


def test_jitter_changes_the_image_alone(stream: Build) -> None:
    still, moved = (next(stream(amounts=a).batches(5, 0, 1)) for a in (STILL, replace(STILL, jitter=1.0)))
    assert not torch.equal(still["colour"], moved["colour"])
    assert all(torch.equal(still[key], moved[key]) for key in ("image", "label", "valid"))
    before, after = (EndlessSamples.ready(batch, CPU) for batch in (still, moved))
    assert (before["image"] - after["image"]).abs().amax((1, 2, 3)).min() > 0.005
    assert torch.equal(before["label"], after["label"]) and torch.equal(before["valid"], after["valid"])


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_ready_does_not_depend_on_the_number_of_threads(bands: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (2, bands, 256, 256), generator=generator, dtype=torch.uint8),
        "colour": torch.randn(2, bands, bands + 1, generator=generator),
        "valid": torch.ones(2, 256, 256, dtype=torch.bool),
    }
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(EndlessSamples.ready(batch, CPU)["image"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_label_of_a_letterboxed_sample_lies_on_its_cloud(stream: Build) -> None:
    for position in range(7):
        sample = stream(geometry="letterbox", size=64, amounts=STRONG)[position]
        grey = sample["image"].float().mean(0)
        assert grey[sample["label"] == 1].mean() > grey[sample["label"] == 0].mean() + 80


# whole images


def test_to_tensor_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 2), np.uint8)
    assert torch.equal(to_tensor(image) * 255, torch.from_numpy(image).permute(2, 0, 1).float())


def test_network_input_follows_the_geometry_without_padding() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8)
    native = network_input(image, 32, "crop")
    assert native.shape == (1, 3, 40, 20) and torch.equal(native[0, :, 7, 9] * 255, torch.tensor(image[7, 9]).float())
    assert network_input(image, 32, "letterbox").shape == (1, 3, 32, 16)


# loader processes that die or hang


class Trouble(EndlessSamples):
    """At one position the loader process dies, or hangs."""

    fatal, how = 7, ""

    def sample(self, position: int) -> Any:
        if position == self.fatal:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "left":
                os._exit(3)
            time.sleep(600)
        return super().sample(position)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["killed", "left", "hangs"])
def test_loader_process_that_dies_or_hangs_is_named_with_its_image(stream: Build, how: str, workers: int) -> None:
    trouble = stream()
    trouble.__class__, trouble.how = Trouble, how
    began, error = time.monotonic(), None
    try:
        for _ in trouble.batches(2, 0, 8, workers, timeout=2):
            pass
    except RuntimeError as caught:
        error = caught
    assert error is not None and time.monotonic() - began < 20
    assert trouble.culprit(error) == str(trouble.images[trouble.index(7)].image)
    assert stream("target").culprit(error) is None and trouble.culprit(RuntimeError("shapes differ")) is None


def test_no_loader_process_outlives_a_killed_run(stream: Build) -> None:
    """Not even one that hangs and so would never see that its parent is gone."""
    trouble = stream()
    trouble.__class__, trouble.how, trouble.fatal = Trouble, "hangs", 4
    ours, theirs = multiprocessing.Pipe()

    def run() -> None:
        batches = trouble.batches(2, 0, 8, 2)
        next(batches)
        time.sleep(0.5)  # until one hangs
        theirs.send([pid for pid, _ in trouble.places.tolist()])
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    pids = ours.recv()
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 2  # less than the 5 s after which PyTorch's own loaders look for their parent
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_is_left_to_the_run(stream: Build) -> None:
    samples = stream()
    batches = samples.batches(2, 0, 6, 1)
    next(batches)
    assert os.getpgid(int(samples.places[0, 0])) != os.getpgrp()  # a terminal sends it to the whole group
    assert len(list(batches)) == 5

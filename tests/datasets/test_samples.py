"""Samples are a pure function of (seed, stream, position), and labels move with their images."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.schema import AugmentConfig
from datasets.cache import Cache
from datasets.images import checked
from datasets.readers import find_images
from datasets.samples import STREAMS, EndlessSamples, network_input
from tests.datasets.written import RGB, STILL, STRONG, Build, Make, of_bands, samples_of, stream_of
from utils.labels import IGNORE

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def stream(tmp_path: Path, make_domain: Make) -> Build:
    return stream_of(tmp_path, make_domain)


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
    assert tensors.pop("colour").shape == (3, 3, 4) and tensors.pop("box").tolist() == [[0, 0, 32, 32]] * 3
    assert {key: (part.dtype, tuple(part.shape)) for key, part in tensors.items()} == {
        "image": (torch.uint8, (3, 3, 32, 32)),
        "label": (torch.uint8, (3, 32, 32)),
        "valid": (torch.bool, (3, 32, 32)),
    }
    assert len(batch["name"]) == 3


# the same samples, however they are made


def test_same_bytes_for_any_number_of_workers_with_and_without_cache(stream: Build) -> None:
    reference = list(stream().batches(3, 0, 4))
    assert len(reference) == 4
    for workers, cached in ((1, False), (2, False), (8, False), (0, True), (2, True)):
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


def test_shares_of_several_processes_are_the_batch(stream: Build) -> None:
    whole = next(stream().batches(6, 1, 2))
    shares = [next(stream().batches(6, 1, 2, rank=rank, processes=3)) for rank in range(3)]
    for key in ("image", "colour", "box", "valid", "label"):
        assert torch.equal(torch.stack([share[key] for share in shares], 1).flatten(0, 1), whole[key])
    assert [share["name"] for share in shares] == [whole["name"][rank::3] for rank in range(3)]


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


# labels


def test_label_of_a_letterboxed_sample_lies_on_its_cloud(stream: Build) -> None:
    for position in range(7):
        sample = stream(geometry="letterbox", size=64, amounts=STRONG)[position]
        grey = sample["image"].float().mean(0)
        assert grey[sample["label"] == 1].mean() > grey[sample["label"] == 0].mean() + 80


# whole images


def test_network_input_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 2), np.uint8)
    assert torch.equal(network_input(image, 5, "crop")[0] * 255, torch.from_numpy(image).permute(2, 0, 1).float())


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
        for _ in trouble.batches(2, 0, 8, workers, timeout=4):
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

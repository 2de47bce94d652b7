"""Rows and pictures of training on disk, a disk that is full, and grids that leave the network as it was."""

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from engine.log import Logger, prediction_grid
from engine.pictures import CLEAR, CLOUD, UNKNOWN
from nets.segmenter import Segmenter
from utils.errors import DataError


def events(folder: Path) -> Iterator[Event]:
    """What TensorBoard reads: records of length, its checksum, content, its checksum."""
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_rows_and_pictures(tmp_path: Path) -> None:
    with Logger(tmp_path, 0) as log:
        log.scalars(10, {"loss": 0.5, "raw/seg": 0.25}, {"step_time": 2.0})
        log.picture(10, "predictions", np.full((4, 6, 3), 7, np.uint8))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 10, "loss": 0.5, "raw/seg": 0.25}
    assert json.loads((tmp_path / "timing.jsonl").read_text()) == {"step": 10, "step_time": 2.0}
    found = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    assert found.keys() == {"metrics/loss", "raw/seg", "timing/step_time", "predictions"}
    assert all(step == 10 for step, _ in found.values())
    assert found["metrics/loss"][1].simple_value == 0.5 and found["timing/step_time"][1].simple_value == 2.0
    image = found["predictions"][1].image
    assert (image.height, image.width) == (4, 6)


def test_going_on_drops_rows_of_a_killed_run(tmp_path: Path) -> None:
    with Logger(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.scalars(step, {"loss": float(step)}, {"step_time": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # as a kill leaves it
    with Logger(tmp_path, 2) as log:
        log.scalars(3, {"loss": 30.0}, {"step_time": 1.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts[-1] == 3  # TensorBoard hides what was there from this step on


def test_full_disk_ends_in_a_sentence_and_not_in_waiting(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a small disk")
    try:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        with (
            pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"),
            Logger(tmp_path, 0) as log,
        ):
            for step in range(1000):
                log.scalars(step, {"loss": 1.0}, {"step_time": 1.0})
                log.picture(step, "predictions", pixels)
        assert 0 < step < 999
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}/gone: cannot be written \(No such file or directory\)"):
        Logger(tmp_path / "gone", 0)


@pytest.mark.parametrize("training", [True, False])
def test_prediction_grid(training: bool) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter("mobilenetv3_small_050").train(training)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    image = torch.rand(3, 3, 32, 32)
    label = torch.full((3, 32, 32), 255)
    label[1] = 1
    batch: dict[str, dict[str, Any]] = {"source": {"image": image, "label": label}, "target": {"image": image}}
    picture = prediction_grid(segmenter, batch, images=2)
    assert picture.shape == (7 * 32 + 6 * 4, 2 * 32 + 4, 3) and picture.dtype == np.uint8  # 4 + 3 rows

    def tile(row: int, column: int) -> np.ndarray:
        return picture[row * 36 : row * 36 + 32, column * 36 : column * 36 + 32]

    assert np.array_equal(tile(0, 1), (image[1].permute(1, 2, 0) * 255).byte().numpy())
    assert (tile(1, 0) == UNKNOWN).all() and (tile(1, 1) == CLOUD).all()
    assert ((tile(2, 0) == CLEAR).all(-1) | (tile(2, 0) == CLOUD).all(-1)).all()
    for row in (2, 3):  # the same images in both streams: the same masks and entropies
        assert np.array_equal(tile(row, 0), tile(row + 3, 0))
    assert segmenter.training == training
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())

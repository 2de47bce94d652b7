"""Rows and pictures of training on disk, and a disk that is full."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from engine.log import Logger
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

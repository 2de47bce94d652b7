"""Checkpoints: whole or not there, exact, and refused with the file's name where they do not fit."""

import errno
import hashlib
import io
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.checkpoint import DAMAGED, NAME, PREVIOUS, SCHEMA, resume, save_checkpoint
from utils.errors import DataError, TrainingError, WeightsError

ABOUT = {"architecture": '{"backbone": "a", "classes": 2}', "data": '{"bands": ["red"], "target": {"scaling": [0, 9]}}'}


class Parts:
    """Two networks and two optimisers after some updates."""

    def __init__(self, seed: int = 0, width: int = 4, updates: int = 3) -> None:
        torch.manual_seed(seed)
        self.networks: dict[str, nn.Module] = {
            "segmenter": nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2)),
            "discriminators": nn.Linear(2, 1),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "segmenter": torch.optim.SGD(self.networks["segmenter"].parameters(), lr=0.1, momentum=0.9),
            "discriminators": torch.optim.Adam(self.networks["discriminators"].parameters(), lr=0.01),
        }
        for _ in range(updates):
            self.update(torch.randn(5, 3))

    def update(self, data: torch.Tensor) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.networks["discriminators"](self.networks["segmenter"](data)).square().mean().backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

    def state(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": value.clone() for name, n in self.networks.items() for key, value in n.state_dict().items()
        }

    def save(self, folder: Path, step: int = 3) -> None:
        save_checkpoint(folder, step, self.networks, self.optimizers, ABOUT)

    def load(self, folder: Path) -> int:
        return resume(folder, self.networks, self.optimizers, ABOUT)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def fault_of(parts: Parts, folder: Path) -> str:
    before = parts.state()
    with pytest.raises(WeightsError) as caught:
        parts.load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / NAME}: ")
    assert equal(parts.state(), before) or "another architecture" in message
    return message


def rewritten(path: Path, content: Any) -> None:
    """A checkpoint of any content with a sound checksum."""
    packed = io.BytesIO()
    torch.save(content, packed)
    path.write_bytes(packed.getvalue() + b"\nsha256 " + hashlib.sha256(packed.getvalue()).hexdigest().encode() + b"\n")


def test_round_trip_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    trained, fresh = Parts(), Parts(seed=1, updates=0)
    trained.save(tmp_path, step=17)
    assert not equal(trained.state(), fresh.state())
    assert fresh.load(tmp_path) == 17
    assert equal(trained.state(), fresh.state())
    data = torch.randn(5, 3)
    trained.update(data)  # momentum and Adam's moments decide where this leads
    fresh.update(data)
    assert equal(trained.state(), fresh.state())


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert Parts().load(tmp_path) == 0


def test_without_optimizer_state_it_would_differ(tmp_path: Path) -> None:
    """The last assertion of the round trip can fail."""
    trained, fresh = Parts(), Parts(seed=1, updates=0)
    for name, network in fresh.networks.items():
        network.load_state_dict(trained.networks[name].state_dict())
    data = torch.randn(5, 3)
    trained.update(data)
    fresh.update(data)
    assert not equal(trained.state(), fresh.state())


def test_equal_states_give_equal_bytes_after_loading_too(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in "ab")
    first.mkdir()
    second.mkdir()
    trained, fresh = Parts(), Parts(seed=1, updates=0)
    trained.save(first)
    fresh.load(first)
    fresh.save(second)
    assert (first / NAME).read_bytes() == (second / NAME).read_bytes()


def test_torch_reads_the_file_as_it_is(tmp_path: Path) -> None:
    Parts().save(tmp_path, step=9)
    state = torch.load(tmp_path / NAME, weights_only=True)
    assert (state["schema"], state["step"], state["about"]) == (SCHEMA, 9, ABOUT)


def test_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old, new = tmp_path / NAME, Parts(), Parts(seed=5)
    old.save(tmp_path, step=3)
    before = path.read_bytes()

    def half(state: Any, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(DataError) as caught:
            new.save(tmp_path, step=4)
    needed = sum(tensor.nbytes for tensor in new.state().values())
    assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device); ")
    found = int(re.search(r"([\d,]+) bytes are needed", str(caught.value))[1].replace(",", ""))
    assert needed < found < 4 * needed  # with momentum and moments
    assert path.read_bytes() == before and new.load(tmp_path) == 3
    new.save(tmp_path, step=5)  # what the crash left does not stand in the way
    assert new.load(tmp_path) == 5 and sorted(p.name for p in tmp_path.iterdir()) == [PREVIOUS, NAME]


def test_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        parts = Parts(width=500)
        with pytest.raises(DataError, match=r"No space left on device.*; [\d,]+ bytes are needed"):
            for step in range(9):
                parts.save(small, step)
        assert parts.load(small) == step - 1
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone/checkpoint\.pt: cannot be written \(No such file or directory\)"):
        Parts().save(tmp_path / "gone")


@pytest.mark.parametrize("place", ["momentum", "parameter", "statistics"])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, place: str) -> None:
    parts = Parts()
    segmenter, name = parts.networks["segmenter"], "networks.segmenter"
    if place == "momentum":
        next(iter(parts.optimizers["segmenter"].state.values()))["momentum_buffer"][0, 0] = float("nan")
        name = "optimizers.segmenter.state.0.momentum_buffer"
    else:
        key = {"parameter": "2.bias", "statistics": "1.running_var"}[place]
        segmenter.state_dict()[key][0] = float("inf")
        name = f"networks.segmenter.{key}"
    with pytest.raises(TrainingError, match=rf"after step 3: {re.escape(name)} holds NaN or infinity"):
        parts.save(tmp_path)
    assert not list(tmp_path.iterdir())


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "first bytes": lambda content: content[:10],
    "half": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "trailer missing": lambda content: content[:-72],
    "bit of a tensor": lambda content: _flipped(content, len(content) // 3),
    "bit of the beginning": lambda content: _flipped(content, 0),
    "bit of the checksum": lambda content: _flipped(content, len(content) - 5),
}


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("fault", SPOILT)
def test_spoilt_newest_is_reported_and_the_previous_used(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, old, new = tmp_path / NAME, Parts(), Parts(seed=5)
    old.save(tmp_path, step=3)
    new.save(tmp_path, step=4)
    spoilt = SPOILT[fault](path.read_bytes())
    path.write_bytes(spoilt)
    fresh = Parts(seed=2)
    assert fresh.load(tmp_path) == 3
    assert equal(fresh.state(), old.state())
    said = capsys.readouterr().err
    assert str(path) in said and PREVIOUS in said and DAMAGED in said
    assert (tmp_path / DAMAGED).read_bytes() == spoilt  # nothing is deleted
    fresh.save(tmp_path, step=5)  # and the sound one is not pushed out by the spoilt one
    assert fresh.load(tmp_path) == 5
    path.unlink()
    assert fresh.load(tmp_path) == 3


@pytest.mark.parametrize("fault", SPOILT)
def test_spoilt_only_one(tmp_path: Path, fault: str) -> None:
    path, parts = tmp_path / NAME, Parts()
    parts.save(tmp_path)
    path.write_bytes(SPOILT[fault](path.read_bytes()))
    message = fault_of(parts, tmp_path)
    assert ("cut off" in message or "damaged" in message) and "remove it" in message
    assert path.exists()


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    parts = Parts()
    parts.save(tmp_path, step=3)
    (tmp_path / NAME).rename(tmp_path / PREVIOUS)
    assert parts.load(tmp_path) == 3


def test_other_schema_and_other_content(tmp_path: Path) -> None:
    parts = Parts()
    for content, found in (({"schema": SCHEMA + 1}, str(SCHEMA + 1)), ({}, "None"), ([1, 2], "None")):
        rewritten(tmp_path / NAME, content)
        message = fault_of(parts, tmp_path)
        assert f"found checkpoint schema {found}, expected {SCHEMA}" in message and "use another out" in message


@pytest.mark.parametrize("change", [{"about": None}, {"about": {"data": '{"a\n'}}, {"networks": []}, {"step": "x"}])
def test_a_part_that_is_missing_or_of_another_kind_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    """As somebody might make it, whose checksum is right."""
    parts = Parts()
    parts.save(tmp_path)
    state = torch.load(tmp_path / NAME, weights_only=True)
    rewritten(tmp_path / NAME, {**state, **change})
    assert "is not a checkpoint of this version" in fault_of(parts, tmp_path)
    rewritten(tmp_path / NAME, {key: value for key, value in state.items() if key not in change})
    assert "is not a checkpoint of this version" in fault_of(parts, tmp_path)


def test_another_run_says_what_differs(tmp_path: Path) -> None:
    parts = Parts()
    parts.save(tmp_path)
    now = {"architecture": '{"backbone": "b", "classes": 2}', "data": '{"bands": ["nir"], "target": {"scaling": null}}'}
    with pytest.raises(WeightsError) as caught:
        resume(tmp_path, parts.networks, parts.optimizers, now)
    message = str(caught.value)
    assert "architecture.backbone was 'a', is 'b'" in message and "classes" not in message
    assert "data.bands was ['red'], is ['nir']" in message and "data.target.scaling was [0, 9], is None" in message


def test_other_networks(tmp_path: Path) -> None:
    parts = Parts()
    save_checkpoint(tmp_path, 3, {"segmenter": parts.networks["segmenter"]}, parts.optimizers, ABOUT)
    message = fault_of(parts, tmp_path)
    assert "found networks ['segmenter'], expected ['discriminators', 'segmenter']" in message
    save_checkpoint(tmp_path, 3, parts.networks, {"segmenter": parts.optimizers["segmenter"]}, ABOUT)
    assert "found optimizers ['segmenter'], expected ['discriminators', 'segmenter']" in fault_of(parts, tmp_path)


def test_other_architecture(tmp_path: Path) -> None:
    Parts(width=6).save(tmp_path)
    message = fault_of(Parts(width=4), tmp_path)
    assert "network 'segmenter' is of another architecture" in message and "[6, 3]" in message and "[4, 3]" in message


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / NAME, tmp_path / "ran"
    rewritten(path, {"schema": SCHEMA, "step": Evil(marker)})
    assert "cannot be read as a checkpoint" in fault_of(Parts(), tmp_path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file would have run it


KILLED = """
import sys, torch
from pathlib import Path
from torch import nn
from engine.checkpoint import resume, save_checkpoint
network = nn.Linear(400, 400)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
parts = {"network": network}, {"segmenter": optimizer}, {}
print("ready", resume(Path(sys.argv[1]), *parts), flush=True)
for step in range(10**6):
    with torch.no_grad():
        network.weight.fill_(step)
    save_checkpoint(Path(sys.argv[1]), step, *parts)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_saving_a_sound_one_is_there(tmp_path: Path, kills: int) -> None:
    """A process that does nothing but save, killed at random moments: each time the next one finds a checkpoint."""
    rng, moments, context = random.Random(0), [], multiprocessing.get_context("fork")
    for _ in range(kills):
        child = context.Process(target=exec, args=(KILLED, {"__name__": "child"}), daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["child", str(tmp_path)])
            child.start()
        while not (tmp_path / NAME).exists() and child.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        moments.append((tmp_path / f"{NAME}.tmp").exists())
        network = nn.Linear(400, 400)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        step = resume(tmp_path, {"network": network}, {"segmenter": optimizer}, {})
        assert bool((network.weight == step).all()) and not (tmp_path / DAMAGED).exists()
    print(f"{kills} kills, {sum(moments)} of them while a file was half-written: a sound checkpoint each time")
    assert sum(moments) > kills // 4

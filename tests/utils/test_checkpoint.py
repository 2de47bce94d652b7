"""Checkpoints: whole or not there, exact, and refused with the file's name where they do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utils.checkpoint import SCHEMA, load_checkpoint, save_checkpoint
from utils.errors import WeightsError


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

    def save(self, path: Path, step: int = 3) -> None:
        save_checkpoint(path, step, self.networks, self.optimizers)

    def load(self, path: Path) -> int:
        return load_checkpoint(path, self.networks, self.optimizers)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def fault_of(parts: Parts, path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        parts.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


def test_round_trip_continues_as_if_nothing_had_been(tmp_path: Path) -> None:
    trained, fresh = Parts(), Parts(seed=1, updates=0)
    trained.save(tmp_path / "c.pt", step=17)
    assert not equal(trained.state(), fresh.state())
    assert fresh.load(tmp_path / "c.pt") == 17
    assert equal(trained.state(), fresh.state())
    data = torch.randn(5, 3)
    trained.update(data)  # momentum and Adam's moments decide where this leads
    fresh.update(data)
    assert equal(trained.state(), fresh.state())


def test_without_optimizer_state_it_would_differ(tmp_path: Path) -> None:
    """The last assertion of the round trip can fail."""
    trained, fresh = Parts(), Parts(seed=1, updates=0)
    for name, network in fresh.networks.items():
        network.load_state_dict(trained.networks[name].state_dict())
    data = torch.randn(5, 3)
    trained.update(data)
    fresh.update(data)
    assert not equal(trained.state(), fresh.state())


def test_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old, new = tmp_path / "c.pt", Parts(), Parts(seed=5)
    old.save(path, step=3)
    before = path.read_bytes()

    def half(state: Any, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(OSError, match="disk full"):
            new.save(path, step=4)
    assert path.read_bytes() == before and new.load(path) == 3
    new.save(path, step=5)  # what the crash left does not stand in the way
    assert new.load(path) == 5 and list(tmp_path.iterdir()) == [path]


def test_truncated_file(tmp_path: Path) -> None:
    path, parts = tmp_path / "c.pt", Parts()
    parts.save(path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        message = fault_of(parts, path)
        assert "cannot be read as a checkpoint" in message and "remove it" in message


def test_other_schema_and_other_content(tmp_path: Path) -> None:
    path, parts = tmp_path / "c.pt", Parts()
    for content, found in (({"schema": SCHEMA + 1}, str(SCHEMA + 1)), ({}, "None"), ([1, 2], "None")):
        torch.save(content, path)
        message = fault_of(parts, path)
        assert f"found checkpoint schema {found}, expected {SCHEMA}" in message and "use another out" in message


def test_other_networks(tmp_path: Path) -> None:
    path, parts = tmp_path / "c.pt", Parts()
    save_checkpoint(path, 3, {"segmenter": parts.networks["segmenter"]}, parts.optimizers)
    message = fault_of(parts, path)
    assert "found networks ['segmenter'], expected ['discriminators', 'segmenter']" in message
    save_checkpoint(path, 3, parts.networks, {"segmenter": parts.optimizers["segmenter"]})
    assert "found optimizers ['segmenter'], expected ['discriminators', 'segmenter']" in fault_of(parts, path)


def test_other_architecture(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    Parts(width=6).save(path)
    message = fault_of(Parts(width=4), path)
    assert "network 'segmenter' is of another architecture" in message and "[6, 3]" in message and "[4, 3]" in message


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "c.pt", tmp_path / "ran"
    torch.save({"schema": SCHEMA, "step": Evil(marker)}, path)
    assert "cannot be read as a checkpoint" in fault_of(Parts(), path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file would have run it

"""Checkpoints: everything that resuming needs, written atomically, read without running code from the file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import WeightsError

SCHEMA = 1


def save_checkpoint(
    path: Path, step: int, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Write a checkpoint to a temporary file of the same folder, flush it to the disk, then rename it."""
    state = _plain(
        {
            "schema": SCHEMA,
            "step": step,
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        }
    )
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> int:
    """Load a checkpoint in place and return the number of finished steps.

    Raises:
        WeightsError: the file cannot be read, is of another schema, or holds another architecture.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever the unpickler meets
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({error}); remove it to start the stage anew"
        ) from error
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise WeightsError(f"{path}: found checkpoint schema {schema!r}, expected {SCHEMA}; use another out")
    for kind, ours in (("networks", networks), ("optimizers", optimizers)):
        if state[kind].keys() != ours.keys():
            raise WeightsError(f"{path}: found {kind} {sorted(state[kind])}, expected {sorted(ours)}; use another out")
        for name, part in ours.items():
            try:
                part.load_state_dict(state[kind][name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise WeightsError(f"{path}: {kind[:-1]} {name!r} is of another architecture: {error}") from None
    return int(state["step"])


def _plain(value: Any) -> Any:
    """The same content in fresh containers and interned strings: pickle writes objects that are shared differently, as
    after loading, into different bytes, and equal states should give equal files."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return sys.intern(value) if isinstance(value, str) else value

"""Checkpoints: everything that resuming needs, whole or not there, read without running code from the file.

A file is what `torch.save` writes and, behind it, a line with its checksum; `torch.load` reads it as it is. The one
before it is kept, so a file that the disk or a kill has spoilt costs some steps and not the run.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import TrainingError, WeightsError, unwritable
from utils.records import changes, reading

SCHEMA = 2
NAME, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
MARK = b"\nsha256 "
TRAILER = len(MARK) + 64 + 1  # the checksum in hexadecimal digits and a line feed
KIND, REMEDY = "a checkpoint of this version", "remove it to start the stage anew"


def save_checkpoint(
    folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    about: Mapping[str, str],
) -> None:
    """Write FOLDER/checkpoint.pt; what had that name becomes checkpoint.previous.pt.

    It is written under another name, flushed to the disk and renamed, so that at every moment one of the two is whole.

    Args:
        step: finished steps.
        about: what has to be the same when the run goes on, such as architecture, bands and scaling, as JSON or text.

    Raises:
        TrainingError: a parameter or buffer is not finite; nothing is written.
        DataError: it cannot be written; earlier checkpoints are as they were.
    """
    state = {
        "networks": {name: network.state_dict() for name, network in networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"after step {step}: {name} holds NaN or infinity, so no checkpoint is written and those before it are "
                "kept. Lower optim.lr; the same command goes on from the last checkpoint"
            )
    path, temporary = folder / NAME, folder / f"{NAME}.tmp"
    try:
        with open(temporary, "w+b") as file:
            torch.save(_plain({"schema": SCHEMA, "step": step, "about": about, **state}), file)
            file.seek(0)
            file.write(_trailer(iter(partial(file.read, 2**20), b"")))
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, folder / PREVIOUS)
        os.replace(temporary, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # PyTorch's writer says RuntimeError when the disk is full
        cause = error if isinstance(error, OSError) else error.__context__ or error
        needed = sum(tensor.nbytes for _, tensor in _tensors(state))
        raise unwritable(path, cause if isinstance(cause, Exception) else error, needed) from error


def resume(
    folder: Path,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    about: Mapping[str, str],
) -> int:
    """Load the newest sound checkpoint of a folder in place and return the number of finished steps, 0 without one.

    One that is not sound is reported and renamed to checkpoint.damaged.pt, and the one before it is taken.

    Raises:
        WeightsError: there are checkpoints and none is sound, or it belongs to another run; says what differs.
    """
    found = [path for path in (folder / NAME, folder / PREVIOUS) if path.exists()]
    for path in found:
        try:
            state = _read(path)
            break
        except WeightsError as error:
            if path == found[-1]:
                raise
            os.replace(path, folder / DAMAGED)
            print(f"WARNING: {error}. It is kept as {DAMAGED}; going on from {PREVIOUS}", file=sys.stderr)
    else:
        return 0
    with reading(path, KIND, REMEDY, WeightsError):
        if changed := changes(_parsed(state["about"]), _parsed(about)):
            raise WeightsError(f"{path}: belongs to another run: {'; '.join(changed)}; use another out")
        for kind, ours in (("networks", networks), ("optimizers", optimizers)):
            if state[kind].keys() != ours.keys():
                names = f"found {kind} {sorted(state[kind])}, expected {sorted(ours)}"
                raise WeightsError(f"{path}: {names}; use another out")
            for name, part in ours.items():
                try:
                    part.load_state_dict(state[kind][name])
                except (RuntimeError, ValueError, KeyError) as error:
                    raise WeightsError(f"{path}: {kind[:-1]} {name!r} is of another architecture: {error}") from None
        return int(state["step"])


def _read(path: Path) -> dict[str, Any]:
    with reading(path, KIND, REMEDY, WeightsError):
        content = path.read_bytes()
        payload = memoryview(content)[:-TRAILER]
        if content[-TRAILER:] != _trailer([payload]):
            raise ValueError("cut off or damaged: it does not end with the checksum of its content")
    try:
        state: Any = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # it raises whatever the unpickler meets
        raise WeightsError(f"{path}: cannot be read as a checkpoint ({error}); {REMEDY}") from error
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise WeightsError(f"{path}: found checkpoint schema {schema!r}, expected {SCHEMA}; use another out")
    return state


def _parsed(about: Mapping[str, str]) -> dict[str, Any]:
    return {key: json.loads(value) if value.startswith("{") else value for key, value in about.items()}


def _tensors(state: Any, name: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        return [(name, state)]
    parts = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    return [found for key, part in parts for found in _tensors(part, f"{name}.{key}" if name else str(key))]


def _plain(value: Any) -> Any:
    """The same content in fresh containers and interned strings: pickle writes objects that are shared differently, as
    after loading, into different bytes, and equal states should give equal files."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return sys.intern(value) if isinstance(value, str) else value


def _trailer(content: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for block in content:
        digest.update(block)
    return MARK + digest.hexdigest().encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

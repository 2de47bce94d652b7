"""What a training stage leaves behind: metrics.jsonl, timing.jsonl and TensorBoard.

metrics.jsonl holds only what the configuration and the seed decide, so an interrupted and resumed run has the same
bytes as an uninterrupted one; the machine's part (data time, images/s) goes to timing.jsonl. TensorBoard has both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np


class Logger:
    """Appends rows of scalars to the files of `folder`; rows after `start` finished steps, left by a killed run, go."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX import SummaryWriter

        for name in ("metrics.jsonl", "timing.jsonl"):
            _keep_until(folder / name, start)
        self._files = {name: open(folder / f"{name}.jsonl", "a", encoding="utf-8") for name in ("metrics", "timing")}  # noqa: SIM115
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, flush_secs=30)

    def scalars(self, step: int, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Add one row after `step` finished steps."""
        for name, values in (("metrics", metrics), ("timing", timing)):
            self._files[name].write(json.dumps({"step": step, **values}) + "\n")
            self._files[name].flush()
            for key, value in values.items():
                self._board.add_scalar(key if "/" in key else f"{name}/{key}", value, step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add an image (H, W, 3) uint8 to TensorBoard."""
        self._board.add_image(name, pixels, step, dataformats="HWC")

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._board.close()


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last row of a killed run
            break
        if row["step"] > step:
            break
        kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), "utf-8")
    os.replace(temporary, path)

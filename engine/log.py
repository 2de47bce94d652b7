"""What a training stage leaves behind: metrics.jsonl, timing.jsonl and TensorBoard.

metrics.jsonl holds only what the configuration and the seed decide, so an interrupted and resumed run has the same
bytes as an uninterrupted one; the machine's part (data time, images/s) goes to timing.jsonl. TensorBoard has both.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image as image_summary
from tensorboardX.summary import scalar as scalar_summary
from torch import Tensor

from engine.pictures import as_rgb, colour_entropy, colour_mask, grid
from losses.entropy import normalised_entropy
from nets.segmenter import Segmenter, evaluating
from utils.errors import unwritable
from utils.files import write_text
from utils.records import reading

LOGS = ("metrics", "timing")


class Logger:
    """Appends rows of scalars to the files of `folder`; rows after `start` finished steps, left by a killed run, go.
    Each method raises a DataError where a file cannot be written."""

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        with self._writing():
            for name in LOGS:
                _keep_until(folder / f"{name}.jsonl", start)
            self._files = {name: (folder / f"{name}.jsonl").open("a", encoding="utf-8") for name in LOGS}
            # SummaryWriter writes in a thread, which dies in silence when the disk is full, and then all waits for it.
            (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
            self._board = EventsWriter(str(folder / "tensorboard/events"))
            self._add(start + 1, session_log=SessionLog(status=SessionLog.START))  # hides what a killed run wrote after

    def scalars(self, step: int, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Add one row after `step` finished steps."""
        with self._writing():
            for name, values in (("metrics", metrics), ("timing", timing)):
                self._files[name].write(json.dumps({"step": step, **values}) + "\n")
                self._files[name].flush()
                for key, value in values.items():
                    self._add(step, summary=scalar_summary(key if "/" in key else f"{name}/{key}", value))
            self._board.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add an image (H, W, 3) uint8 to TensorBoard."""
        with self._writing():
            self._add(step, summary=image_summary(name, pixels, dataformats="HWC"))
            self._board.flush()

    def _add(self, step: int, **content: Any) -> None:
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            for file in self._files.values():
                file.close()
            self._board.close()
        except OSError as failure:
            if error is None:  # else that is what to tell
                raise unwritable(self._folder, failure) from failure

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self._folder, error) from error


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    with reading(path, "the log of a stage", "remove it, and the rows before this step are lost"):
        lines, kept = path.read_text("utf-8").splitlines(), []
        for line in lines:
            try:
                done = int(json.loads(line)["step"])
            except ValueError:  # the last row of a killed run
                if line is not lines[-1]:
                    raise
                break
            if done > step:
                break
            kept.append(line + "\n")
    write_text(path, "".join(kept))


@torch.no_grad()
def prediction_grid(segmenter: Segmenter, batch: Mapping[str, Mapping[str, Any]], images: int = 4) -> np.ndarray:
    """Per stream of a batch: images, labels where the stream has them, predicted masks, entropy maps."""
    rows = []
    for samples in batch.values():
        image: Tensor = samples["image"][:images]
        with evaluating(segmenter):
            prob = segmenter(image).main.softmax(1)
        shown = (image.permute(0, 2, 3, 1).clamp(0, 1) * 255).byte().cpu().numpy()
        rows.append([as_rgb(pixels) for pixels in shown])
        if "label" in samples:
            rows.append([colour_mask(label.cpu().numpy()) for label in samples["label"][:images]])
        rows.append([colour_mask(mask.cpu().numpy()) for mask in prob.argmax(1)])
        rows.append([colour_entropy(entropy.cpu().numpy()) for entropy in normalised_entropy(prob)])
    return grid(rows)

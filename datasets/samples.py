"""Samples and batches: deterministic in (seed, stream, position), whatever the number of loader processes."""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.augment import Amounts, colour_change, cut_out, flip, tone_change
from datasets.geometry import Raster, crop, fitted_size, letterbox, scale_to
from datasets.images import ImageSet
from utils.labels import IGNORE

STREAMS = ("source", "target", "easy", "hard")
IDLE = -1
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)")
HANGS = "DataLoader timed out"


class Sample(TypedDict, total=False):
    """What a loader process sends, in few bytes: `image` (C, H, W) uint8, filled; `colour` (C, C + 1) float32, the
    change of it that is left to `engine.batches.ready`; `box` (4,), top, left, height and width inside the padding;
    `valid` (H, W) bool; `name`; in a labelled domain alone, `label` (H, W) uint8, classes and 255 where unknown."""

    image: Tensor
    colour: Tensor
    box: Tensor
    label: Tensor
    valid: Tensor
    name: str


@dataclass(eq=False)
class EndlessSamples(Dataset[Sample]):
    """An endless shuffled stream of one domain's samples; position n is always the same sample, changed the same way.

    Every pass over the images is a new permutation, so that each image is seen once per pass, and two domains of
    different length do not pair the same images again and again. `stream` is one of `STREAMS`, of which those of one
    seed are independent; `size` is the side of the square sample in pixels.
    """

    images: ImageSet
    stream: str
    _: KW_ONLY
    seed: int
    size: int
    geometry: Literal["letterbox", "crop"]
    amounts: Amounts

    def __post_init__(self) -> None:
        self.key = (self.seed, STREAMS.index(self.stream))
        self.place = {"letterbox": letterbox, "crop": crop}[self.geometry]
        self.places = torch.zeros(0, 2, dtype=torch.int64)  # of each loader process its pid and position

    def index(self, position: int) -> int:
        """The image that stands at a position of the stream."""
        epoch, place = divmod(position, len(self.images))
        return int(_permutation(*self.key, epoch, len(self.images))[place])

    def __getitem__(self, position: int) -> Sample:
        if (worker := get_worker_info()) is None:
            return self.sample(position)
        self.places[worker.id] = torch.tensor([os.getpid(), position])
        sample = self.sample(position)
        self.places[worker.id, 1] = IDLE
        return sample

    def sample(self, position: int) -> Sample:
        item = self.images[self.index(position)]
        rng = np.random.default_rng([*self.key, 1, position])
        whole = Raster(*self.images.read(item, masked=False)[:3])
        image, label, valid, box = flip(self.place(whole, self.size, rng), self.amounts, rng)
        planes = np.array(image.transpose(2, 0, 1), order="C")  # (C, H, W), never the read-only cache itself
        planes, valid = tone_change(planes, self.amounts, rng), np.array(valid)
        colour = colour_change(Raster(planes.transpose(1, 2, 0), label, valid), self.amounts, rng)
        sample: Sample = {
            "image": torch.from_numpy(cut_out(planes, self.amounts, rng)),
            "colour": torch.from_numpy(colour),
            "box": torch.tensor(box or (0, 0, *valid.shape)),
            "valid": torch.from_numpy(valid),
            "name": item.name,
        }
        if label is not None:
            sample["label"] = torch.from_numpy(np.where(valid, label, np.uint8(IGNORE)))
        return sample

    def batches(
        self, batch: int, start: int, stop: int, workers: int = 0, timeout: int = 0, rank: int = 0, processes: int = 1
    ) -> Iterator[Sample]:
        """Batches `start` to `stop` of the stream, each stacked along a new first axis.

        A batch has `batch` samples of all `processes` together, a multiple of their number; this one gets the samples
        `rank`, `rank + processes` and so on. After `timeout` seconds, unless 0, a loader process that gives nothing is
        taken for dead.
        """
        self.places = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()
        loader = DataLoader(
            self,
            batch_size=batch // processes,
            sampler=range(start * batch + rank, stop * batch, processes),
            num_workers=workers,
            timeout=timeout if workers else 0,
            pin_memory=torch.cuda.is_initialized(),  # a GPU is in use: it copies without being waited for
            worker_init_fn=_end_with_parent,
        )
        try:
            yield from loader
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # a loader died as it handed over a batch
            time.sleep(1)  # second, in which PyTorch's handler of SIGCHLD may raise what is raised below
            alive = {child.pid for child in multiprocessing.active_children()}
            dead = ", ".join(str(pid) for pid in self.places[:, 0].tolist() if pid not in alive)
            raise RuntimeError(f"DataLoader worker (pid(s) {dead}) exited unexpectedly") from error

    def culprit(self, error: Exception) -> str | None:
        """The image at which a loader process of this stream was, or all it may have been, if `error` says that one
        died or hangs."""
        pids = {int(pid) for died in DIED.findall(str(error)) for pid in died.split(",")}
        mine = [position for pid, position in self.places.tolist() if pid and (pid in pids or HANGS in str(error))]
        if not mine:
            return None
        files = (str(self.images[self.index(position)].image) for position in mine if position != IDLE)
        return " or ".join(files) or "no image"


def _end_with_parent(worker: int) -> None:
    """Have Linux kill this loader process when the run dies, hanging or not; and leave to the run, which needs the
    loaders to end its step, what is sent to all of a terminal or a batch job, such as Ctrl-C."""
    if sys.platform != "win32":
        os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, stream, 0, epoch]).permutation(length)


def network_input(image: np.ndarray, size: int, geometry: Literal["letterbox", "crop"]) -> Tensor:
    """The tensor (1, C, h, w) in [0, 1] on which a trained network predicts a whole 8-bit image (H, W, C), holes
    filled: as in training without padding, the longer side scaled to `size`, or at native resolution."""
    if geometry == "letterbox":
        image = scale_to(image, *fitted_size(image.shape[0], image.shape[1], size))
    return to_tensor(image)


def to_tensor(image: np.ndarray) -> Tensor:
    """An 8-bit image (H, W, C) as a batch of one, float32 (1, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None].float().div_(255)

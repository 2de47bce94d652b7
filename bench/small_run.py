"""The settings of configs/demo.yaml on a few scenes of the generated pair, for the benchmarks of training."""

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from child import REPOSITORY

from config.load import load_config
from config.schema import Config
from datasets.samples import EndlessSamples
from engine.build import training_stream
from engine.domains import training_images
from engine.loop import fit
from engine.run import make_generated
from train_teacher import TeacherStage

SCENES = 24  # of each domain


def configured(folder: Path, settings: dict[str, Any]) -> Config:
    """The demo's settings with `settings` on top; its run and its pair, which is drawn, are in `folder`."""
    pair = folder / "pair"
    given = {"out": folder / "run", "device": "cpu", "generated.root": pair, "generated.train": SCENES}
    given |= {
        "data.cache": folder / "cache",
        "generated.evaluation": 2,
        "source.root": pair / "source",
        "target.root": pair / "target",
        **settings,
    }
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    config = load_config(["--config", str(REPOSITORY / "configs" / "demo.yaml"), *words])
    make_generated(config)
    return config


def teacher_streams(config: Config) -> dict[str, EndlessSamples]:
    """The two streams of stage 1."""
    images = {role: training_images(config, role, labels=role == "source") for role in ("source", "target")}
    return {role: training_stream(config, part, role, config.teacher.augment) for role, part in images.items()}


class TakingTurns:
    """A stream of the engine; whenever the engine asks it for a batch, another loop takes a step first.

    Attributes:
        engine, other: processor time and time in seconds of each step. `engine` begins with one that means nothing.
    """

    def __init__(self, stream: EndlessSamples, other: Iterator[None]) -> None:
        self.stream, self.loop = stream, other
        self.culprit = stream.culprit
        self.engine: list[np.ndarray] = []
        self.other: list[np.ndarray] = []

    def batches(self, *arguments: Any) -> Iterator[Any]:
        inner, started = self.stream.batches(*arguments), now()
        for _ in range(arguments[2] - arguments[1]):
            asked = now()
            next(self.loop)
            self.engine.append(asked - started)
            started = now()
            self.other.append(started - asked)
            yield next(inner)

    def pairs(self, skip: int) -> tuple[np.ndarray, np.ndarray]:
        """What neighbouring steps took, engine and other, (N, 2) each, without the first `skip` and the last one."""
        return np.array(self.engine[skip + 1 :]), np.array(self.other[skip:-1])


def now() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def train(config: Config, streams: Mapping[str, Any], folder: Path, steps: int) -> TeacherStage:
    stage, batch = TeacherStage(config), config.teacher.batch
    folder.mkdir()
    fit(stage, streams, folder, config, batch=batch, steps=steps, epoch_steps=1)
    return stage

"""What the runs gave: each one's result.json, written and read here, and those of a pair that can be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from comparison.jobs import Job
from comparison.published import Published
from comparison.stages import SETTINGS
from config.comparison import CompareConfig
from config.fields import flatten
from engine.run import differences
from report.metrics import scores
from report.protocol import HELD_BACK, TRANSDUCTIVE, held_back
from utils.errors import ConfigError, DataError
from utils.files import write_text
from utils.records import read_json, reading

RESULT = "result.json"
NOT_SCORED = (
    "device",
    "out",
    "log.",
    "data.workers",
    "data.timeout",
    *(f"eval.{key}" for key in ("parts", "pictures", "cam_layer", "tsne")),
)


class Result(NamedTuple):
    """What one run of one method on one pair of domains gave on the target.

    All but the first two stand in its result.json, by the same names.
    """

    method: str
    seed: int
    images: list[str]  # the same names for all results of a pair, in any order
    scenes: list[str]  # the scene of each image; empty where they are not known
    matrices: np.ndarray  # (images, 2, 2) int64, rows true, columns predicted, at the checkpoint `selected`
    steps: int  # optimiser steps of all stages
    seconds: float  # training time of all stages
    peak_mib: float | None
    warnings: list[str]
    selected: str  # "last", or the rule by which the checkpoint was chosen
    best: np.ndarray | None  # as `matrices`, at the checkpoint that is best on the target's labels
    repeatability: float | None = None  # of the masks on the target, see report/repeatability.py; needs no labels
    chosen: str | None = None  # the checkpoint, where there is one network

    @property
    def run(self) -> str:
        """Its name within the pair."""
        return f"{self.method}, seed {self.seed}"

    @property
    def miou(self) -> float:
        """On all images together, in percent."""
        return 100 * float(scores(self.matrices.sum(0))["miou"])


class Comparison(NamedTuple):
    """All runs on one pair of domains."""

    pair: str
    protocol: str
    results: Sequence[Result]
    reference: str = "asda"
    published: Sequence[Published] = ()
    methods: Sequence[str] = ()  # the order of the rows, failed methods too; others that have results follow
    seeds: Sequence[int] = ()  # those that were asked for
    baselines: Mapping[str, str] = {}  # the row over which a method gains, where it is not source_only
    left_out: Sequence[str] = ()  # results that cannot be used, and why


def finished(job: Job) -> bool:
    """Whether the job's result is there, and was made with these settings.

    Raises:
        ConfigError: the folder was begun with other settings.
        DataError: the result is damaged.
    """
    record = job.folder / SETTINGS
    if record.exists():
        settings = {key: value for key, value in flatten(job.config).items() if not key.startswith(NOT_SCORED)}
        if changed := differences(record, settings):
            raise ConfigError(
                f"{job.folder}: begun with other settings: {'; '.join(changed)}. Give the same settings, another name "
                "to the method, or another --out"
            )
    return read_result(job) is not None


def write_result(job: Job, result: Result) -> None:
    """Write result.json, which says that a job is finished, and by which choice it was scored."""
    values = {key: value for key, value in result._asdict().items() if key not in ("method", "seed")}
    for key in ("matrices", "best"):
        values[key] = [] if values[key] is None else values[key].tolist()
    write_text(job.folder / RESULT, json.dumps({"choice": job.choice, **values}))


def read_result(job: Job) -> Result | None:
    """The result of a job; None if there is none, or one that was scored by another choice.

    Raises:
        DataError: it is damaged.
    """
    path = job.folder / RESULT
    if not path.exists():
        return None
    with reading(path, "the result of a run", "remove it to score the run again"):
        values = read_json(path)
        if values["choice"] != job.choice:
            return None
        result = Result(
            method=job.method,
            seed=job.config.seed,
            images=[str(name) for name in values["images"]],
            scenes=[str(name) for name in values["scenes"]],
            matrices=np.array(values["matrices"], np.int64),
            steps=int(values["steps"]),
            seconds=float(values["seconds"]),
            peak_mib=None if values["peak_mib"] is None else float(values["peak_mib"]),
            warnings=[str(warning) for warning in values["warnings"]],
            selected=str(values["selected"]),
            best=np.array(values["best"], np.int64) if values["best"] else None,
            repeatability=None if values.get("repeatability") is None else float(values["repeatability"]),
            chosen=values.get("chosen"),
        )
        if len(result.scenes) not in (0, len(result.images)):
            raise ValueError(f"found {len(result.images)} images and {len(result.scenes)} scenes")
        for matrices in (result.matrices, result.matrices if result.best is None else result.best):
            if matrices.shape != (len(result.images), 2, 2) or (matrices < 0).any():
                raise ValueError(f"found {len(result.images)} images and counts of {matrices.shape}")
        return result


def gather(pair: str, jobs: Sequence[Job], config: CompareConfig, published: Sequence[Published] = ()) -> Comparison:
    """The finished results of one pair; those that are damaged or of other images than the rest are left out."""
    jobs = [job for job in jobs if job.pair == pair]
    results, damaged = [], []
    for job in jobs:
        try:
            results.append(read_result(job))
        except DataError as error:
            damaged.append(f"{job.method}, seed {job.config.seed}: {error}")
    usable, misfits = paired([result for result in results if result is not None])
    return Comparison(
        pair=pair,
        protocol=HELD_BACK if held_back(jobs[0].config.target) else TRANSDUCTIVE,
        methods=list(config.methods),
        results=usable,
        reference=config.reference,
        seeds=config.seeds,
        baselines={name: own["baseline"] for name, own in config.methods.items() if own and "baseline" in own},
        published=published,
        left_out=[*damaged, *misfits],
    )


def paired(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """What paired tests can compare: the results of the images and labels that most of them have.

    Returns:
        These results by seed, each with its images of a known label sorted by name, since folds mix their order; and
        for each of the others why it is none of them.
    """
    aligned: list[Result] = []
    for result in sorted(results, key=lambda result: result.seed):
        order = [int(i) for i in np.argsort(result.images, kind="stable") if result.matrices[i].any()]
        images, scenes = ([names[i] for i in order] if names else [] for names in (result.images, result.scenes))
        aligned.append(result._replace(images=images, scenes=scenes, matrices=result.matrices[order]))
    counts = Counter(_scored_on(result) for result in aligned if result.images)
    usual = max(counts, key=lambda scored_on: counts[scored_on], default=None)
    first = next((result for result in aligned if _scored_on(result) == usual), None)
    kept: dict[str, Result] = {}
    reasons = []
    for result in aligned:
        if first is None or not result.images:
            reasons.append(f"{result.run}: no image has a label with a known pixel, so there is nothing to compare")
        elif _scored_on(result) != usual:
            what = "against other labels" if result.images == first.images else "on other images"
            reasons.append(f"{result.run}: scored {what} than {first.method}; paired tests need the same ones")
        elif result.run in kept:
            reasons.append(f"{result.run}: there are two results, expected one")
        else:
            kept[result.run] = result
    return list(kept.values()), reasons


def _scored_on(result: Result) -> tuple[tuple[str, ...], bytes]:
    """The images, and the pixels of each class in their labels."""
    return tuple(result.images), result.matrices.sum(2).tobytes()

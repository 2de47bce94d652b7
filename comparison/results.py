"""What the runs gave: each one's result.json, written and read here, and those of a pair that can be compared."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    *("device", "out", "log.", "data.workers", "data.timeout"),
    *("eval.parts", "eval.pictures", "eval.cam_layer", "eval.tsne"),
)


class Result(NamedTuple):
    """What one run gave on the target; all but the first two stand in its result.json, by the same names."""

    method: str
    seed: int
    images: list[str]  # the same names for all results of a pair, in any order
    scenes: list[str]  # the scene of each image; empty where they are not known
    matrices: np.ndarray  # (images, 2, 2) int64, rows true, columns predicted, at the checkpoint `selected`
    steps: int  # optimiser steps of all stages
    seconds: float  # training time of all stages
    warnings: list[str]
    selected: str  # "last", or the rule by which the checkpoint was chosen
    peak_mib: float | None = None
    best: np.ndarray | None = None  # as `matrices`, at the checkpoint that is best on the target's labels
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
    """Whether the job's result is there; raises ConfigError if its folder was begun with other settings."""
    record = job.folder / SETTINGS
    if record.exists():
        settings = {key: value for key, value in flatten(job.config).items() if not key.startswith(NOT_SCORED)}
        if changed := differences(record, settings):
            fix = "Give the same settings, another name to the method, or another --out"
            raise ConfigError(f"{job.folder}: begun with other settings: {'; '.join(changed)}. {fix}")
    return read_result(job) is not None


def write_result(job: Job, result: Result) -> None:
    """Write result.json, which says that a job is finished, and by which choice it was scored."""
    values = {"choice": job.choice, **result._asdict(), "best": [] if result.best is None else result.best}
    del values["method"], values["seed"]
    write_text(job.folder / RESULT, json.dumps(values, default=np.ndarray.tolist))


def read_result(job: Job) -> Result | None:
    """The result of a job; None if there is none, or one that was scored by another choice; a damaged one raises
    DataError."""
    path = job.folder / RESULT
    if not path.exists():
        return None
    with reading(path, "the result of a run", "remove it to score the run again"):
        values = read_json(path)
        if values["choice"] != job.choice:
            return None
        texts = {key: [str(text) for text in values[key]] for key in ("images", "scenes", "warnings")}
        counts = {key: np.array(values[key], np.int64) for key in ("matrices", "best") if values[key]}
        if len(texts["scenes"]) not in (0, images := len(texts["images"])):
            raise ValueError(f"found {images} images and {len(texts['scenes'])} scenes")
        for matrices in counts.values():
            if matrices.shape != (images, 2, 2) or (matrices < 0).any():
                raise ValueError(f"found {images} images and counts of {matrices.shape}")
        measured = [key for key in ("seconds", "peak_mib", "repeatability") if values.get(key) is not None]
        own: dict[str, Any] = texts | counts | {key: float(values[key]) for key in measured}
        own |= {"steps": int(values["steps"]), "selected": str(values["selected"]), "chosen": values.get("chosen")}
        return Result(job.method, job.config.seed, **own)


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
    """What paired tests can compare: the results of the images and labels that most of them have, by seed, each with
    its images of a known label sorted by name, since folds mix their order; and why each of the others is left out."""
    aligned = []
    for result in sorted(results, key=lambda result: result.seed):
        order = [int(i) for i in np.argsort(result.images, kind="stable") if result.matrices[i].any()]
        images, scenes = ([names[i] for i in order] if names else [] for names in (result.images, result.scenes))
        aligned.append(result._replace(images=images, scenes=scenes, matrices=result.matrices[order]))
    # The images, and the pixels of each class in their labels.
    scored_on = [(tuple(result.images), result.matrices.sum(2).tobytes()) for result in aligned]
    counts = Counter(key for key in scored_on if key[0])
    usual = max(counts, key=counts.__getitem__, default=None)
    kept: dict[str, Result] = {}
    reasons = []
    for result, key in zip(aligned, scored_on, strict=True):
        if usual is None or not result.images:
            reasons.append(f"{result.run}: no image has a label with a known pixel, so there is nothing to compare")
        elif key != usual:
            first = aligned[scored_on.index(usual)]
            what = "against other labels" if result.images == first.images else "on other images"
            reasons.append(f"{result.run}: scored {what} than {first.method}; paired tests need the same ones")
        elif result.run in kept:
            reasons.append(f"{result.run}: there are two results, expected one")
        else:
            kept[result.run] = result
    return list(kept.values()), reasons

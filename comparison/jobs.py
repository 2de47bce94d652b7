"""The jobs of a comparison: each method on each pair with each seed, and the configuration of each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from comparison.stages import find_reusable, stages_of
from config.comparison import CompareConfig
from config.load import METHODS, load_config
from config.schema import Config
from engine.domains import expected_images
from engine.run import bound_settings
from engine.schedule import intra_length, stage_length
from report.protocol import held_back
from utils.errors import ConfigError
from utils.files import write_text


class Job(NamedTuple):
    """One method on one pair with one seed. `choice` says how it is scored: which checkpoint and, for an oracle without
    held-back images, how many folds. `after` is the run from which it will take its finished stage 1."""

    pair: str
    method: str
    config: Config
    choice: dict[str, Any]
    after: Path | None

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def name(self) -> str:
        return f"{self.pair}, {self.method}, seed {self.config.seed}"

    @property
    def steps(self) -> int:
        """Optimiser steps of all its stages."""
        teacher, images = self.config.teacher, expected_images(self.config, "target")
        steps, _ = stage_length(teacher.steps, teacher.epochs, images, teacher.batch)
        intra = intra_length(self.config, images)[0] if self.config.intra.enabled else 0
        return steps * self.choice.get("folds", 1) + intra


def plan(config: CompareConfig) -> list[Job]:
    """All jobs in the order of pairs, seeds and methods; faults of their settings are found before anything runs."""
    jobs: list[Job] = []
    for pair, file in config.pairs.items():
        for seed in config.seeds:
            first: dict[str, Path] = {}  # settings of a stage 1 -> the run that trains it
            for method in config.methods:
                resolved = resolve(config, file, method, seed, Path(config.out) / pair / f"seed{seed}" / method)
                stage_1 = json.dumps(bound_settings(resolved, "teacher"), sort_keys=True, default=str)
                after = None if find_reusable(resolved, stages_of(resolved)[0]) else first.get(stage_1)
                jobs.append(Job(pair, method, resolved, choice_of(config, resolved), after))
                if method in config.selected:
                    first.setdefault(stage_1, jobs[-1].folder)
    return jobs


def choice_of(config: CompareConfig, resolved: Config) -> dict[str, Any]:
    """How a run is scored, see `Job`; what was scored otherwise is scored again."""
    choice: dict[str, Any] = {"selection": config.selection, "best_on_labels": config.best_on_labels}
    if resolved.teacher.supervise == "target" and not held_back(resolved.target):
        choice["folds"] = config.folds
    if config.selection != "last" or config.best_on_labels:
        choice["snapshots"] = resolved.log.snapshots
    return choice


def resolve(config: CompareConfig, file: str, method: str, seed: int, out: Path) -> Config:
    """The configuration of one run: the pair's, the method's, what a variant changes, and the protocol; later wins."""
    changes = dict(config.methods[method] or {})
    base = METHODS / f"{changes.pop('base', method)}.yaml"
    changes.pop("baseline", None)
    if not base.exists():
        known = ", ".join(sorted(path.stem for path in METHODS.glob("*.yaml")))
        raise ConfigError(f"methods.{method}: there is no {base.name} in configs/methods (known: {known}); give base")
    changes = _merged(changes, config.protocol)
    for key, value in config.set.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        changes = _merged(changes, value)
    overrides = Path(config.out) / config.name / "overrides" / f"{method}.yaml"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    write_text(overrides, yaml.safe_dump(changes, sort_keys=False))
    files = ["--config", file, "--method", str(base), "--override", str(overrides)]
    return load_config([*files, "--seed", str(seed), "--out", str(out)])


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = [key for key in below.keys() & above.keys() if isinstance(above[key], dict)]
    if flat := [key for key in both if not isinstance(below[key], dict)]:
        raise ConfigError(f"configuration: {flat[0]} is {below[flat[0]]!r}, expected a mapping of keys to values")
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}

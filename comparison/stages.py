"""The stages of one run: taken from another run that has the same settings, or made by the stages' own scripts."""

import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from config.load import to_yaml
from config.schema import Config
from engine.layout import read_warnings
from engine.run import Kind, bound_settings, differences, uses_split
from utils.errors import EvaluationError
from utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = "config.yaml"  # of a run, from which its scripts read their settings


class Stage(NamedTuple):
    """A script, the folder of a run that it fills, and the file there that it writes last."""

    script: str
    kind: Kind
    folder: str
    last: str


def stages_of(config: Config) -> list[Stage]:
    """The stages that a configuration has, in their order; the file of the last one is the network that is scored."""
    name = config.teacher.name
    stages = [Stage("train_teacher.py", "teacher", name, f"{name}.safetensors")]
    if uses_split(config):
        stages.append(Stage("split_entropy.py", "split", "split", "entropy.csv"))
    if config.intra.enabled:
        stages.append(Stage("train_intra.py", "intra", "intra", "student.safetensors"))
    return stages


def make_stages(config: Config) -> Path:
    """Make or continue all stages of a run, and return the weights file of the last one."""
    settings = write_settings(config)
    for stage in stages_of(config):
        if stage.kind != "intra":
            reuse_stage(config, stage)
        run_script(stage.script, "--config", str(settings))
    return Path(config.out) / stage.folder / stage.last


def write_settings(config: Config) -> Path:
    """Write the config.yaml of a run, which its scripts are started with."""
    path = Path(config.out) / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_yaml(config))
    return path


def run_script(script: str, *words: str) -> None:
    """Run a script of the project as if it were typed with these words; torch, which is here already, starts once. A
    status that is not 0 raises EvaluationError."""
    before = sys.argv
    sys.argv = [str(ROOT / script), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            reason = end.code if isinstance(end.code, str) else f"ended with status {end.code}"
            raise EvaluationError(f"{script}: {reason}") from None
    finally:
        sys.argv = before


def reuse_stage(config: Config, stage: Stage) -> None:
    """Copy a stage that has not begun from another run of this pair and seed, if one has finished it."""
    folder = Path(config.out) / stage.folder
    if folder.exists() or (finished := find_reusable(config, stage)) is None:
        return
    temporary = folder.with_name(f".{stage.folder}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a copy that was interrupted
    shutil.copytree(finished, temporary, ignore=shutil.ignore_patterns("checkpoint*.pt", "tensorboard", "*.tmp"))
    temporary.rename(folder)
    print(f"{folder}: copied from {finished}, which has the same settings")


def find_reusable(config: Config, stage: Stage) -> Path | None:
    """The folder of the same stage with the same settings, finished in this run or one beside it."""
    settings = bound_settings(config, stage.kind)
    for folder in sorted(Path(config.out).parent.glob(f"*/{stage.folder}")):
        if (folder / stage.last).exists() and not differences(folder / SETTINGS, settings):
            return folder
    return None


def training_cost(config: Config) -> dict[str, Any]:
    """What the finished stages of a run took, and what they warned of."""
    folders = [Path(config.out) / stage.folder for stage in stages_of(config)]
    rows = [row for folder in folders for row in _timing(folder)]
    return {
        "steps": sum(steps for steps, _, _ in rows),
        "seconds": sum(steps * step_time for steps, step_time, _ in rows),
        "peak_mib": max(peak for _, _, peak in rows),
        "warnings": [f"{folder.name}: {line}" for folder in folders for line in read_warnings(folder)],
    }


def steps_done(run: Path) -> int:
    """Optimiser steps in the stages of a run, by what they have logged."""
    return sum(steps for file in run.rglob("timing.jsonl") for steps, _, _ in _timing(file.parent))


def _timing(stage: Path) -> Iterator[tuple[int, float, float]]:
    """Of each sound row of timing.jsonl, the steps that it stands for, the seconds of one, and the peak in MiB."""
    done = 0
    # It is read while it is written, so the last row may be half there.
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        for line in (stage / "timing.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            yield int(row["step"]) - done, float(row["step_time"]), float(row["peak_mib"])
            done = int(row["step"])

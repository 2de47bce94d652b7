"""A run's directory: opened, continued or refused, and what is written into it of how it was made."""

import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch

from config.fields import flatten
from config.load import recorded_config, to_yaml
from config.schema import Config
from datasets.generated import make_pair
from engine.layout import RANKING, SNAPSHOTS
from engine.processes import barrier, first_alone, is_first
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from utils.errors import ConfigError
from utils.files import write_text
from utils.records import changes, commit, reading
from utils.version import VERSION

# What a stage's result does not depend on: it may differ when a run is continued. With a point at the end: all below.
FREE_KEYS = (
    *("out", "device", "log.", "eval.", "data.workers", "data.timeout", "data.cache"),
    *("speed.precision", "speed.compile", "speed.deterministic"),
    *("source.eval", "source.scene", "target.eval", "target.scene", "target.label_map"),
)
Kind = Literal["teacher", "split", "intra"]
COMMAND = "# command: "
LATER_KEYS: dict[Kind, tuple[str, ...]] = {
    "teacher": ("split.", "released.split", "intra."),
    "split": ("intra.",),
    "intra": (),
}


def open_stage(config: Config, kind: Kind, name: str) -> Path:
    """Make the directory of a stage, or continue it. Until something is made in it, its settings may change; what was
    measured under the earlier ones is then measured anew, unless another stage of the run was made with it.

    Raises:
        ConfigError: it was made with other settings; names each of them. Or `eval.weights` is given.
    """
    if config.eval.weights is not None:  # it brings its own scaling, which training must not follow
        raise ConfigError(
            f"eval.weights is {config.eval.weights!r}: it is for eval.py alone; leave it out of what trains, or give "
            "net.checkpoint to start from a file"
        )
    folder = Path(config.out) / name
    record = folder / "config.yaml"
    with first_alone():
        if record.exists():
            if not (changed := differences(record, bound_settings(config, kind))):
                return folder
            if _made(folder):
                what = f"begun with other settings: {'; '.join(changed)}"
                raise ConfigError(f"{folder}: {what}. Give the same settings, or another --out")
            if not any(_made(stage) for stage in folder.parent.iterdir()):
                for measured in folder.parent.glob("scaling_*.json"):
                    measured.unlink()
        elif folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
            what = "exists without config.yaml, so it is not a run of this project"
            raise ConfigError(f"{folder}: {what}; give another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(record, f"# {versions()}\n{COMMAND}{command_line()}\n{to_yaml(config)}")
    return folder


def _made(folder: Path) -> bool:
    """Whether a stage has made anything that follows its settings."""
    return any(next(folder.glob(kind), None) for kind in ("checkpoint*.pt", "*.safetensors", SNAPSHOTS, RANKING))


def bound_settings(config: Config, kind: Kind) -> dict[str, Any]:
    """The settings on which the result of a stage depends, by their full names."""
    free = {*FREE_KEYS, *LATER_KEYS[kind]}
    for role, domain in (("source", config.source), ("target", config.target)):
        if domain.eval_share:  # then the scenes decide which images train
            free.discard(f"{role}.scene")
    if config.teacher.supervise == "target":  # the oracle learns from these labels
        free.discard("target.label_map")
    sections = tuple(key for key in free if key.endswith("."))
    return {key: value for key, value in flatten(config).items() if key not in free and not key.startswith(sections)}


def differences(record: Path, settings: dict[str, Any]) -> list[str]:
    """What differs between a config.yaml on disk and these settings, one sentence for each key."""
    with reading(record, "the config.yaml of a stage", "give another --out", ConfigError):
        values = recorded_config(record)
        now = {key: value for key, value in settings.items() if key != "generated"}  # null: the pair is there
        return changes({key: reduce(_entry, key.split("."), values) for key in now}, now)


def command_line() -> str:
    """The command that this process was started with, without the place of the interpreter."""
    script, *arguments = sys.argv
    return shlex.join(["python", Path(script).name, *arguments]).replace("\n", " ")


def _entry(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def versions() -> str:
    """Versions and, in a git checkout, the commit, in one line."""
    return f"asda {VERSION}, python {platform.python_version()}, torch {torch.__version__}, commit {commit()}"


def uses_split(config: Config) -> bool:
    """Whether stage 3 needs stage 2: for easy and hard images, or for stored masks."""
    return config.intra.enabled and (config.intra.step != "source_target" or "stored" in config.intra.self_training)


def make_generated(config: Config) -> None:
    """Draw the generated pair, where the configuration asks for one."""
    if config.generated is not None:
        options = asdict(config.generated)
        with first_alone():
            make_pair(Path(options.pop("root")), **options)


def write_weights(path: Path, network: Segmenter, metadata: Mapping[str, str]) -> None:
    """Write the network of a finished stage; all processes return when it is there."""
    if is_first():
        save_segmenter(path, network, metadata)
        print(f"{path}: written")
    barrier()

"""A run's directory and the parts that several stages build the same way."""

from __future__ import annotations

import inspect
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from config.fields import flatten
from config.load import recorded_config, to_yaml
from config.schema import AugmentConfig, Config
from datasets.generated import make_pair
from datasets.images import ImageSet
from datasets.samples import EndlessSamples
from engine.layout import MODELS
from engine.processes import first_alone
from nets.pretrained import load_exactly
from nets.segmenter import Segmenter
from nets.weights import import_deeplab_v2, is_segmenter_file, load_segmenter, load_weights
from utils.errors import ConfigError, DataError, WeightsError
from utils.files import write_text
from utils.records import reading

T = TypeVar("T")
# What a stage's result does not depend on: it may differ when a run is continued. With a point at the end: all below.
FREE_KEYS = (
    "out",
    "device",
    "data.workers",
    "data.timeout",
    "data.cache",
    "speed.precision",
    "speed.compile",
    "speed.deterministic",
    "log.",
    "eval.",
    "source.eval",
    "target.eval",
    "target.label_map",
    "source.scene",
    "target.scene",
)
Kind = Literal["teacher", "split", "intra"]
COMMAND = "# command: "
LATER_KEYS: dict[Kind, tuple[str, ...]] = {"teacher": ("split.", "intra."), "split": ("intra.",), "intra": ()}


def open_stage(config: Config, kind: Kind, name: str) -> Path:
    """Make the directory of a stage, or continue it.

    Raises:
        ConfigError: the directory was begun with other settings; names each of them. Or `eval.weights` is given.
    """
    if config.eval.weights is not None:  # it brings its own scaling, which training must not follow
        raise ConfigError(
            f"eval.weights is {config.eval.weights!r}: it is for eval.py alone; leave it out of what trains, or give "
            "net.checkpoint to start from a file"
        )
    folder = Path(config.out) / name
    with first_alone():
        _open(folder, config, kind)
    return folder


def _open(folder: Path, config: Config, kind: Kind) -> None:
    record = folder / "config.yaml"
    if record.exists():
        if changed := differences(record, bound_settings(config, kind)):
            raise ConfigError(
                f"{folder}: begun with other settings: {'; '.join(changed)}. Give the same settings, or another --out"
            )
        return
    if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise ConfigError(
            f"{folder}: exists without config.yaml, so it is not a run of this project; give another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, f"# {versions()}\n{COMMAND}{command_line()}\n{to_yaml(config)}")


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
    """What differs between a config.yaml on disk and these settings, one sentence for each key.

    Raises:
        ConfigError: it is damaged.
    """
    with reading(record, "the config.yaml of a stage", "give another --out", ConfigError):
        before = _flatten_yaml(recorded_config(record))
    return [
        f"{key} was {before.get(key)!r}, is {value!r}" for key, value in settings.items() if before.get(key) != value
    ]


def command_line() -> str:
    """The command that this process was started with, without the place of the interpreter."""
    script, *arguments = sys.argv
    return shlex.join(["python", Path(script).name, *arguments]).replace("\n", " ")


def _flatten_yaml(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("label_map", "options"):
            leaves |= _flatten_yaml(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def versions() -> str:
    """Versions and, in a git checkout, the commit, in one line."""
    root = Path(__file__).resolve().parents[1]
    try:
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
        commit = git.stdout.strip() if git.returncode == 0 else "unknown"
    except (OSError, subprocess.TimeoutExpired):
        commit = "unknown"
    return f"python {platform.python_version()}, torch {torch.__version__}, commit {commit}"


def uses_split(config: Config) -> bool:
    """Whether stage 3 needs stage 2: for easy and hard images, or for stored masks."""
    return config.intra.enabled and (config.intra.domains == "easy_hard" or "stored" in config.intra.self_training)


def make_generated(config: Config) -> None:
    """Draw the generated pair, where the configuration asks for one."""
    if (wanted := config.generated) is not None:
        with first_alone():
            make_pair(
                Path(wanted.root),
                seed=wanted.seed,
                train=wanted.train,
                evaluation=wanted.evaluation,
                size=wanted.size,
                strength=wanted.strength,
            )


def training_stream(config: Config, images: ImageSet, stream: str, augment: AugmentConfig) -> EndlessSamples:
    """The endless stream of a training stage over `images`."""
    return EndlessSamples(
        images,
        stream,
        seed=config.seed,
        size=config.data.size,
        geometry=config.data.geometry,
        amounts=augment,
    )


def build_segmenter(config: Config) -> Segmenter:
    """The segmentation network at the start of training: the same for the same seed."""
    net = config.net
    torch.manual_seed(config.seed)
    segmenter = Segmenter(
        net.backbone,
        output_stride=net.output_stride,
        layout=net.layout,
        pretrained=net.weights,
        freeze_bn=net.freeze_bn,
        in_channels=len(config.data.bands),
        mean=net.mean,
        std=net.std,
        init=net.init,
        aux_level=net.aux_level,
    )
    if net.checkpoint is not None:
        if not Path(net.checkpoint).is_file():
            raise WeightsError(f"{net.checkpoint}: no such weights file; mend net.checkpoint, or set it to null")
        if is_segmenter_file(Path(net.checkpoint)):
            state, metadata = load_weights(net.checkpoint)
            ours = f"the configured {segmenter.architecture}; the file holds {metadata['architecture']}"
            load_exactly(segmenter, state, source=net.checkpoint, expected=ours)
        else:
            import_deeplab_v2(Path(net.checkpoint), segmenter)
    return segmenter


def build_choice(
    choices: Mapping[str, Callable[..., T]], name: str, options: Mapping[str, Mapping[str, float]], *given: Any
) -> T:
    """Build what a config chose by name, with its entry of `options` as keyword arguments.

    Raises:
        ConfigError: an option that the choice does not have.
    """
    return choices[name](*given, **options_of(choices, name, options))


def options_of(
    choices: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Mapping[str, float]]
) -> Mapping[str, float]:
    """The entry of `options` for what a config chose by name.

    Raises:
        ConfigError: an option that the choice does not have.
    """
    known = [
        parameter.name
        for parameter in inspect.signature(choices[name]).parameters.values()
        if isinstance(parameter.default, (int, float))
    ]
    mine = options.get(name, {})
    if unknown := [key for key in mine if key not in known]:
        raise ConfigError(f"options.{name}.{unknown[0]}: unknown; {name} has {', '.join(known) or 'no options'}")
    return mine


def trained(config: Config, name: str) -> Segmenter:
    """The finished network of an earlier stage, by its name in `engine.layout.MODELS`.

    Raises:
        DataError: the stage has not been run to its end.
    """
    path = MODELS[name].weights(config.out)
    if not path.exists():
        raise DataError(f"{path}: does not exist; run the stage that makes it first (see bash.sh), with the same --out")
    return load_segmenter(path)

"""A run's directory and the parts that several stages build the same way."""

from __future__ import annotations

import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import yaml

from datasets.cache import Cache
from datasets.files import SUFFIXES, Found, Item, raise_all
from datasets.generated import make_pair
from datasets.images import Decoder, ImageSet, Stretch, checked, has_8_bits, measured_stretch, tiles
from datasets.readers import READERS, find_images
from datasets.samples import EndlessSamples
from nets.pretrained import load_exactly
from nets.segmenter import Segmenter
from nets.weights import import_deeplab_v2, is_segmenter_file, load_segmenter, load_weights
from utils.config import SHIFT8, AugmentConfig, Config, DomainConfig, flatten, to_yaml
from utils.errors import ConfigError, DataError, WeightsError

T = TypeVar("T")
# What a stage's result does not depend on: it may differ when a run is continued.
FREE_KEYS = (
    "out",
    "device",
    "data.workers",
    "data.cache",
    "log.",
    "eval.",
    "source.eval",
    "target.eval",
    "target.label_map",
    "source.scene",
    "target.scene",
)
Kind = Literal["teacher", "split", "intra"]
Role = Literal["source", "target"]
Part = Literal["train", "eval"]
COMMAND = "# command: "
WARNINGS = "warnings.txt"  # of a training stage
LATER_KEYS: dict[Kind, tuple[str, ...]] = {"teacher": ("split.", "intra."), "split": ("intra.",), "intra": ()}


def open_stage(config: Config, kind: Kind, name: str) -> Path:
    """Make the directory of a stage, or continue it.

    Raises:
        ConfigError: the directory was begun with other settings; names each of them.
    """
    folder = Path(config.out) / name
    record = folder / "config.yaml"
    if record.exists():
        if changed := differences(record, bound_settings(config, kind)):
            raise ConfigError(
                f"{folder}: begun with other settings: {'; '.join(changed)}. Give the same settings, or another --out"
            )
        return folder
    if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise ConfigError(
            f"{folder}: exists without config.yaml, so it is not a run of this project; give another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, f"# {versions()}\n{COMMAND}{command_line()}\n{to_yaml(config)}")
    return folder


def bound_settings(config: Config, kind: Kind) -> dict[str, Any]:
    """The settings on which the result of a stage depends, by their full names."""
    free = (*FREE_KEYS, *LATER_KEYS[kind])
    return {key: value for key, value in flatten(config).items() if not key.startswith(free)}


def differences(record: Path, settings: dict[str, Any]) -> list[str]:
    """What differs between a config.yaml on disk and these settings, one sentence for each key."""
    before = _flatten_yaml(yaml.safe_load(record.read_text("utf-8")))
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


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_warnings(stage: Path) -> list[str]:
    """What a training stage warned of, a line each."""
    path = stage / WARNINGS
    return path.read_text("utf-8").splitlines() if path.exists() else []


def uses_split(config: Config) -> bool:
    """Whether stage 3 needs stage 2: for easy and hard images, or for stored masks."""
    return config.intra.enabled and (config.intra.domains == "easy_hard" or "stored" in config.intra.self_training)


def make_generated(config: Config) -> None:
    """Draw the generated pair, where the configuration asks for one."""
    if (wanted := config.generated) is not None:
        make_pair(
            Path(wanted.root),
            seed=wanted.seed,
            train=wanted.train,
            evaluation=wanted.evaluation,
            size=wanted.size,
            strength=wanted.strength,
        )


def training_images(config: Config, role: Role, *, labels: bool) -> ImageSet:
    """The checked training images of a domain, large ones cut into tiles; without `labels` none is even looked for.

    Raises:
        DataError: lists all files that cannot be used.
    """
    domain = domain_of(config, role)
    items = tiled(config, listed(config, role, "train", labels=labels))
    decoder = decoder_of(config, role)
    return checked(items, decoder, f"{role} ({domain.root})", cache_of(config))


def evaluation_images(config: Config, role: Role) -> ImageSet:
    """The checked images on which a domain is scored, whole; those of a target may lack labels.

    Raises:
        DataError: lists all files that cannot be used.
    """
    items = listed(config, role, "eval", labels=True, partial=role == "target")
    what = f"{role} evaluation ({domain_of(config, role).root})"
    return checked(items, decoder_of(config, role), what, cache_of(config))


def tiled(config: Config, items: list[Item]) -> list[Item]:
    return items if config.data.tile is None else tiles(items, config.data.tile)


def domain_of(config: Config, role: Role) -> DomainConfig:
    return config.source if role == "source" else config.target


def listed(config: Config, role: Role, part: Part, *, labels: bool, partial: bool = False) -> list[Item]:
    """The images of a domain that train or are scored, by its lists or by the share that is held back.

    Raises:
        DataError: everything that is wrong with the listing.
    """
    domain = domain_of(config, role)
    found = search(domain, part, labels=labels, partial=partial)
    raise_all(found.faults, f"the domain {domain.root}")
    if not found.items:
        raise DataError(f"{domain.root}: lists no image as {domain.reader}; expected {', '.join(SUFFIXES)} files")
    return found.items


def search(domain: DomainConfig, part: Part, *, labels: bool, partial: bool = False) -> Found:
    """The same with the faults beside it."""
    rows = domain.eval if part == "eval" and domain.eval is not None else domain.train
    found = find_images(domain.root, rows, reader=domain.reader, scene=domain.scene, labels=labels, partial=partial)
    if not domain.eval_share:
        return found
    held_back = drawn_scenes(found.items, domain.eval_share)
    return Found([i for i in found.items if ((i.scene or i.name) in held_back) == (part == "eval")], found.faults)


def drawn_scenes(items: Sequence[Item], share: float) -> set[str]:
    """The scenes, or names of images without one, that are held back: the same for the same images, at least one."""
    scenes = sorted({item.scene or item.name for item in items})
    order = np.random.default_rng(len(scenes)).permutation(len(scenes))
    return {scenes[i] for i in order[: max(1, round(share * len(scenes)))]} if len(scenes) > 1 else set()


def decoder_of(config: Config, role: Role) -> Decoder:
    """How a domain's files are understood: the reader's own rules, unless the config says otherwise.

    A scaling that is measured is written to OUT/scaling_ROLE.json by the first stage that needs it, and read by the
    others.
    """
    domain = domain_of(config, role)
    reader = READERS[domain.reader]
    bands = tuple(config.data.bands)
    named = tuple(domain.bands) if domain.bands is not None else reader.bands
    decoder = Decoder(
        bands=bands,
        file_bands=named,
        nodata=reader.nodata if domain.nodata is None else domain.nodata,
        label_map=reader.label_map if domain.label_map is None else domain.label_map,
    )
    scaling = reader.scaling if domain.scaling is None else domain.scaling
    if isinstance(scaling, list):
        low, high = scaling
        return replace(decoder, scaling=Stretch((low,) * len(bands), (high,) * len(bands)))
    if scaling == SHIFT8:
        return replace(decoder, scaling=SHIFT8)
    return replace(decoder, scaling=_stretch(config, role, decoder, always=scaling == "train"))


def _stretch(config: Config, role: Role, decoder: Decoder, *, always: bool) -> Stretch | None:
    """The measured stretch of a domain; None for files of 8 bits, unless `always`."""
    record = Path(config.out) / f"scaling_{role}.json"
    whose = {"root": domain_of(config, role).root, "bands": list(decoder.bands)}
    if record.exists():
        known = json.loads(record.read_text("utf-8"))
        if {key: known[key] for key in whose} != whose:
            raise ConfigError(f"{record}: measured for {known['root']}, {known['bands']}; give another --out")
        return Stretch(tuple(known["low"]), tuple(known["high"]))
    items = listed(config, role, "train", labels=False)
    if not always and has_8_bits(items, decoder):
        return None
    stretch = measured_stretch(items, decoder)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps({**whose, **stretch._asdict()}, indent=2) + "\n")
    return stretch


def cache_of(config: Config) -> Cache | None:
    return None if config.data.cache is None else Cache(config.data.cache)


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


def data_record(config: Config) -> dict[str, str]:
    """What a weights file says of the images that its network is for."""
    target = decoder_of(config, "target")
    record = {
        "bands": target.bands,
        "size": config.data.size,
        "geometry": config.data.geometry,
        "tile": config.data.tile,
        "target": {"bands": target.file_bands, "scaling": target.scaling, "nodata": target.nodata},
    }
    return {"data": json.dumps(record)}


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


def trained(config: Config, stage: str, weights: str) -> Segmenter:
    """The finished network of an earlier stage.

    Raises:
        DataError: the stage has not been run to its end.
    """
    path = Path(config.out) / stage / f"{weights}.safetensors"
    if not path.exists():
        raise DataError(f"{path}: does not exist; run the stage that makes it first (see bash.sh), with the same --out")
    return load_segmenter(path)

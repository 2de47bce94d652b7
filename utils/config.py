"""The configuration: one tree of frozen dataclasses, filled by YAML files and the command line; the later one wins.

    config = load_config(["--config", "configs/demo.yaml", "--config", "configs/methods/asda.yaml", "--seed", "1"])

Every key is documented once, by the string below it, and `--help` of every script shows exactly these texts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from utils.errors import ConfigError

PARTS = ("scores", "masks", "entropy", "tsne", "gradcam", "report")


@dataclass(frozen=True)
class GeneratedConfig:
    """The generated pair: two synthetic sensors, drawn on first use."""

    root: str = "data/demo"
    """folder that receives source/ and target/"""
    seed: int = 0
    """seed of the scenes; independent of the training seed"""
    train: int = 200
    """training scenes of each domain"""
    evaluation: int = 60
    """held-back scenes of each domain"""
    size: int = 256
    """side of a scene in pixels"""
    strength: float = 1.0
    """strength of the domain shift: 0 none, 1 the two presets"""


@dataclass(frozen=True)
class DomainConfig:
    """One domain: a folder with images/ and labels/, or text lists of them."""

    root: str = ""
    """folder of the domain; it holds images/ and, where there are labels, labels/ with the same stems"""
    train: str | None = None
    """list file below root (one column: image; two: image label), rows relative to root; null: every file of images/"""
    eval: str | None = None
    """list file of held-back images; null: a target is scored on its training images (transductive), a source is not"""
    label_map: dict[int, int] = field(default_factory=lambda: {0: 0, 255: 1})
    """label value in the file -> class (0 clear, 1 cloud, 255 ignore); any other value is an error"""
    scene: str | None = None
    """regular expression that finds the scene in an image's name (its first group, or all of it), so that intervals are
    taken over scenes; null: every image stands for itself"""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training sample; drawn from (seed, domain, position), never from global state."""

    hflip: float = 0.5
    """probability of a left-right flip"""
    vflip: float = 0.5
    """probability of an up-down flip"""
    jitter: float = 0.0
    """probability of a change of colour by the four amounts below"""
    brightness: float = 0.25
    """brightness factor is drawn from [1 - b, 1 + b]"""
    contrast: float = 0.25
    """contrast factor is drawn from [1 - c, 1 + c]"""
    saturation: float = 0.25
    """saturation factor is drawn from [1 - s, 1 + s]; three bands only"""
    hue: float = 0.05
    """hue shift is drawn from [-h, h] turns; three bands only"""


@dataclass(frozen=True)
class DataConfig:
    """How files become samples."""

    size: int = 256
    """side of a training sample in pixels"""
    geometry: Literal["letterbox", "crop"] = "letterbox"
    """letterbox: the whole image, scaled to size and padded; crop: a random window at native resolution. Inference
    follows: the longer side scaled to size, or blended windows of that size. Scores are always on the native grid"""
    workers: int = 0
    """loader processes per domain; samples are the same bytes for any number"""


@dataclass(frozen=True)
class NetConfig:
    """The segmentation network: DeepLab-v2 with two heads on the last two levels of a timm backbone."""

    backbone: str = "resnet50"
    """any timm backbone that gives features, by name"""
    weights: str | None = None
    """ImageNet weights of the backbone: hub (timm downloads them), the path of a local file, or null for none"""
    output_stride: int | None = 8
    """input pixels per feature pixel (8, 16, 32); null: as the backbone comes"""
    layout: Literal["timm", "deeplab_v2"] = "timm"
    """deeplab_v2: stride on the first 1x1 and ceil-mode pooling, as in checkpoints of ADVENT and ASDA (ResNets only)"""
    init: Literal["default", "kaiming"] = "default"
    """random start of what is not loaded; kaiming is the released code's"""
    freeze_bn: bool = False
    """keep scale and shift of batch normalisation fixed; running statistics still follow the data"""
    mean: list[float] | None = None
    """input mean per band in [0, 1]; null: the pretrained backbone's own, or ImageNet's"""
    std: list[float] | None = None
    """input standard deviation per band in [0, 1]; null: as for mean"""
    discriminator_width: int = 64
    """channels of the first of the discriminators' five layers"""
    checkpoint: str | None = None
    """start the segmentation network from this file: weights of this project, or a DeepLab-v2 checkpoint of ADVENT or
    ASDA (needs layout deeplab_v2)"""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisers and the learning-rate schedule of both training stages."""

    algorithm: Literal["sgd", "adamw"] = "sgd"
    """of the segmentation network: sgd as in the references; adamw, whose rate suits most backbones (about 3e-4)"""
    lr: float = 2.5e-4
    """learning rate of the backbone"""
    head_factor: float = 10.0
    """learning rate of heads and projection, as a multiple of lr"""
    momentum: float = 0.9
    """momentum of SGD; AdamW has its usual betas, 0.9 and 0.999"""
    weight_decay: float = 5e-4
    """weight decay; that of AdamW is decoupled from the gradient"""
    discriminator_lr: float = 1e-4
    """Adam learning rate of the discriminators"""
    discriminator_betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """Adam betas of the discriminators"""
    schedule: Literal["poly", "asda_released"] = "poly"
    """poly: every rate times (1 - step/steps)^power; asda_released: the released piecewise cosine per epoch, one rate
    for every segmenter group, discriminators constant"""
    power: float = 0.9
    """exponent of the poly schedule"""


@dataclass(frozen=True)
class TeacherConfig:
    """Stage 1: source with labels + target without."""

    name: Literal["teacher", "source_only"] = "teacher"
    """folder and weights file of this stage below out"""
    steps: int = 20000
    """optimiser steps"""
    epochs: float | None = None
    """passes over the target's training images; when given, replaces steps"""
    batch: int = 16
    """images per step and domain"""
    seg_main: float = 1.0
    """weight of the main head's segmentation loss"""
    seg_aux: float = 0.1
    """weight of the auxiliary head's segmentation loss"""
    jaccard: float = 1.0
    """weight of the soft Jaccard loss beside cross-entropy"""
    adversarial: Literal["entropy", "none"] = "entropy"
    """what the discriminators see: maps of weighted self-information (AdvEnt), or no adversarial term at all"""
    adv_main: float = 1e-3
    """weight of the main head's adversarial loss"""
    adv_aux: float = 2e-4
    """weight of the auxiliary head's adversarial loss"""
    batch_norm: Literal["both", "target"] = "both"
    """whose batches the running statistics of batch normalisation follow: both domains' in turn, as in AdvEnt, or the
    target's alone (AdaBN); in training each domain has its own; source-only sees the source alone"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """changes of both domains' samples"""


@dataclass(frozen=True)
class SplitConfig:
    """Stage 2: the teacher ranks the target images by entropy."""

    ratio: float = 0.67
    """share of the target images that becomes the easy split"""
    score: Literal["mean", "sum"] = "mean"
    """mean or sum of the normalised entropy over the image's pixels"""
    plus_one: bool = False
    """easy split of int(ratio * n) + 1 images, as released, instead of int(ratio * n)"""
    iou_weight: float = 0.0
    """rank by score - iou_weight * IoU of the two heads' masks; 0: entropy alone"""


@dataclass(frozen=True)
class IntraConfig:
    """Stage 3: easy -> hard, with the anchor."""

    enabled: bool = True
    """false: the method ends with stage 1; stages 2 and 3 do nothing"""
    steps: int = 10000
    """optimiser steps"""
    epochs: float | None = None
    """passes over the hard images; when given, replaces steps"""
    batch: int = 16
    """images per step and split"""
    lr_factor: float = 1.0
    """learning rate of the segmentation network in this stage, as a multiple of optim.lr"""
    init: Literal["teacher", "fresh"] = "teacher"
    """start of the trainee: the teacher's weights, or the same start as stage 1 (IntraDA)"""
    joint_forward: bool = True
    """easy and hard images pass the trainee together and share batch-norm statistics; false: one after the other, as
    released"""
    pseudo_label: Literal["online", "stored"] = "online"
    """online: anchor and EMA label each batch anew; stored: the masks that stage 2 wrote (IntraDA)"""
    fuse: Literal["union", "anchor", "ema", "agree", "mean"] = "union"
    """how the anchor's and the EMA's predictions become one pseudo-label"""
    floor: float = 0.0
    """pseudo-labels below this confidence are ignored; 0: all are used"""
    seg_para: float = 2.0
    """weight of the cross-entropy on easy pseudo-labels, both heads"""
    seg_aux: float = 1.0
    """the auxiliary head's share of it, relative to the main head"""
    contrast: Literal["hec", "pix", "none"] = "hec"
    """hec: high-entropy contrast; pix: the released term, for parity only"""
    contrast_weight: float = 0.1
    """weight of the contrast"""
    contrast_momentum: float = 0.99
    """momentum of the class prototypes of hec"""
    consistency: Literal["logits", "prob", "kl", "none"] = "logits"
    """what the two heads are asked to agree on"""
    consistency_weight: float = 0.1
    """weight of the consistency"""
    adv_main: float = 1e-3
    """weight of the main head's adversarial loss, hard towards easy"""
    adv_aux: float = 2e-4
    """weight of the auxiliary head's adversarial loss, hard towards easy"""
    ema_decay: float = 0.995
    """decay of the EMA per step"""
    ema_ramp: bool = True
    """use min(1 - 1/(t + 1), ema_decay) at step t"""
    step_every: Literal["iteration", "epoch"] = "iteration"
    """epoch: one update per epoch from its last batch, the released defect, for the record only"""
    export: Literal["ema", "trainee"] = "ema"
    """which network becomes the student"""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(jitter=0.5))
    """changes of the easy and hard samples"""


@dataclass(frozen=True)
class LogConfig:
    """What is written while training, and how often."""

    every: int = 10
    """steps between two rows of metrics.jsonl and TensorBoard"""
    pictures: int = 100
    """steps between two grids of predictions in TensorBoard"""
    checkpoint: int = 500
    """steps between two checkpoints"""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    head: Literal["main", "aux", "mean", "union"] = "main"
    """which head decides: main, aux, the mean of both probabilities, or cloud where either says so"""
    pictures: int = 8
    """images in each overview of masks, errors, entropies and class activation"""
    parts: str = ",".join(PARTS)
    """what to make, comma-separated; what was made before stays"""
    weights: str | None = None
    """a weights file (.safetensors) to evaluate in place of the run's own models"""
    cam_layer: str = ""
    """layer for Grad-CAM, a dotted name such as backbone.blocks.3; empty: the features that each head reads"""
    tsne_pixels: int = 300
    """feature pixels of each class and domain in the t-SNE"""


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    out: str = "runs/demo"
    """the run's directory; an existing one is continued, or refused if it was made with other settings"""
    seed: int = 0
    """seed of initial weights, sampling and augmentation"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    generated: GeneratedConfig | None = None
    """make this generated pair first; null: the domains exist"""
    source: DomainConfig = field(default_factory=DomainConfig)
    """the labelled domain"""
    target: DomainConfig = field(default_factory=DomainConfig)
    """the unlabelled domain; labels, where there are any, are for evaluation alone"""
    data: DataConfig = field(default_factory=DataConfig)
    """samples"""
    net: NetConfig = field(default_factory=NetConfig)
    """network"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """optimisation"""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """stage 1"""
    split: SplitConfig = field(default_factory=SplitConfig)
    """stage 2"""
    intra: IntraConfig = field(default_factory=IntraConfig)
    """stage 3"""
    log: LogConfig = field(default_factory=LogConfig)
    """records"""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """evaluation"""


def load_config(arguments: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Read `--config FILE` (any number, in order) and `--key value` overrides into a checked `Config`.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value, with file, key and nearest match.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; may be given several times, later wins")
    parser.add_class_arguments(Config, None)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for path in _config_files(arguments):
        _check_file(path, parser)
    try:
        namespace = parser.parse_args(arguments)
    except (ArgumentError, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        raise ConfigError(f"command line: {_explain(str(error), arguments)}") from None
    values = {key: value for key, value in vars(parser.instantiate(namespace)).items() if key != "config"}
    config = Config(**values)
    _check_values(config)
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All leaves of a configuration as `{"net.backbone": ...}`."""
    leaves: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value, f"{prefix}{f.name}.")
        else:
            leaves[prefix + f.name] = value
    return leaves


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _config_files(arguments: Sequence[str]) -> Iterator[Path]:
    for position, word in enumerate(arguments):
        if word == "--config":
            yield Path(*arguments[position + 1 : position + 2])
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))


def _check_file(path: Path, parser: Any) -> None:
    """Stop at the first fault of one YAML file, so that the message can name the file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a YAML file after --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected a mapping of keys to values")
    for fault in _key_faults(values, Config):
        raise ConfigError(f"{path}: {fault}")
    try:
        parser.parse_path(str(path))
    except Exception as error:  # jsonargparse raises several types here
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def _key_faults(values: dict[str, Any], schema: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            yield f"unknown key {prefix + str(key)!r}{_nearest(prefix + str(key), [prefix + name for name in hints])}"
            continue
        options = getattr(hints[key], "__args__", (hints[key],))
        branches = [t for t in options if dataclasses.is_dataclass(t)]
        if branches and isinstance(value, dict):
            yield from _key_faults(value, branches[0], f"{prefix}{key}.")  # type: ignore[arg-type]
        elif branches and not (value is None and type(None) in options):
            yield f"key {prefix + key!r}: found {type(value).__name__}, expected a mapping of keys to values"


def _nearest(key: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known here: {', '.join(known)}"


def _explain(message: str, arguments: Sequence[str]) -> str:
    known = [f"--{key}" for key in flatten(Config(generated=GeneratedConfig()))]
    for word in (word.split("=")[0] for word in arguments if word.startswith("--")):
        if word not in known and f"error: unrecognized arguments: {word}"[7:] in message:
            return f"unknown option {word!r}{_nearest(word, known)}"
    return " ".join(message.split())


_SHARES = ("hflip", "vflip", "jitter", "brightness", "contrast", "saturation", "floor", "contrast_momentum", "momentum")
_COUNTS = ("steps", "batch", "size", "train", "evaluation", "every", "checkpoint", "pictures", "discriminator_width")
_WEIGHTS = (
    *("seed", "workers", "strength", "jaccard", "iou_weight", "weight_decay", "power"),
    *("consistency_weight", "contrast_weight", "head_factor", "lr_factor"),
)


def _check_values(config: Config) -> None:
    """Reject what the types allow and the method does not."""
    faults: list[str] = []

    def need(holds: bool, key: str, expected: str) -> None:
        if not holds:
            faults.append(f"{key} is {flatten(config).get(key)!r}, expected {expected}")

    for key, value in flatten(config).items():
        name = key.rsplit(".", 1)[-1]
        if isinstance(value, float) and not math.isfinite(value):
            need(False, key, "a finite number")
            continue
        if name in _SHARES and not isinstance(value, str):  # intra.contrast is a choice
            need(0 <= value <= 1, key, "a number in [0, 1]")
        if name in _COUNTS and isinstance(value, int):
            need(value >= 1, key, "1 or more")
        if name in _WEIGHTS or name.startswith(("seg_", "adv_")):
            need(value >= 0, key, "0 or more")
        if name == "hue":
            need(0 <= value <= 0.5, key, "a number of turns in [0, 0.5]")
        if name in ("lr", "discriminator_lr", "epochs") and value is not None:
            need(value > 0, key, "a number above 0")
        if name == "label_map":
            need(bool(value) and set(value.values()) <= {0, 1, 255}, key, "classes 0 (clear), 1 (cloud), 255 (ignore)")
            need(all(0 <= pixel <= 255 for pixel in value or ()), key, "label values in 0..255")
    need(0 < config.split.ratio < 1, "split.ratio", "a number between 0 and 1; at 0 or 1 one split would be empty")
    need(
        config.intra.step_every == "iteration" or not config.intra.ema_ramp,
        "intra.ema_ramp",
        "false when stepping per epoch",
    )
    need(0 <= config.intra.ema_decay < 1, "intra.ema_decay", "a number in [0, 1)")
    need(config.data.size >= 32, "data.size", "32 or more: the discriminators halve the map five times")
    need((config.net.mean is None) == (config.net.std is None), "net.mean", "both net.mean and net.std, or neither")
    betas = config.optim.discriminator_betas
    need(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "optim.discriminator_betas", "two numbers in [0, 1)")
    need(config.net.output_stride in (None, 8, 16, 32), "net.output_stride", "8, 16, 32 or null")
    need(bool(config.source.root or config.eval.weights), "source.root", "the folder of the labelled domain")
    unknown = [part for part in config.eval.parts.split(",") if part not in PARTS]
    need(not unknown, "eval.parts", f"a comma-separated choice of {', '.join(PARTS)}")
    need(config.eval.tsne_pixels >= 2, "eval.tsne_pixels", "2 or more")
    for role, domain in (("source", config.source), ("target", config.target)):
        try:
            re.compile(domain.scene or "")
        except re.error as error:
            need(False, f"{role}.scene", f"a regular expression ({error})")
    need(bool(config.target.root), "target.root", "the folder of the unlabelled domain")
    if faults:
        raise ConfigError("configuration: " + "; ".join(faults))

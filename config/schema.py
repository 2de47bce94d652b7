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
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml

from datasets.readers import READERS
from utils.errors import CONTROL, ConfigError

PARTS = ("scores", "scenes", "masks", "entropy", "tsne", "gradcam", "report")
NO_DATA = ("file", "none", "all_zero")  # beside a number and band:NAME; datasets/decoder.py has what they mean
SHIFT8 = "shift8"
LIKE_SOURCE = "source"
# The choices of losses/registry.py, by name. They stand here again so that a config is checked without torch.
ALIGNMENTS = ("entropy", "softmax", "minent", "clan")
CONTRASTS = ("hec", "pix", "u2pl", "sdca")
SELF_TRAINING = ("stored", "entropy_drop", "classmix", "masked")
LARGEST, VALUES, LEVELS = 2**20, 100_000, 50  # of a YAML file: characters; values and levels, aliases written out
T = TypeVar("T")


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
    """One domain: where its files are, how they are laid out, and what their values mean."""

    root: str = ""
    """folder of the data, as downloaded"""
    reader: str = "folder"
    """layout of the files: folder (images/ and labels/ of the same stems, or lists), ms_cloud, hrc_whu, cloud38,
    cloud95, l8_biome, sparcs or cloudsen12, each as published; docs/data.md describes them"""
    train: str | None = None
    """list file below root (one column: image; two: image label), rows relative to root, or a part that the reader
    knows, such as train; null: all images"""
    eval: str | None = None
    """the same for held-back images; null: eval_share decides"""
    eval_share: float = 0.0
    """without eval: share of the scenes of train (of the images, where scenes are unknown) that is held back for
    evaluation; 0: a target is scored on its training images (transductive), a source is not"""
    bands: list[str] | None = None
    """names of the file's bands, in the file's order; null: the reader's, or what the file says, or red, green, blue"""
    scaling: str | list[float] | None = None
    """how values become 8 bits, once for the whole domain: train (the 0.5 and 99.5 percentiles of the training images,
    for each band), source (of a target: each band gets the mean and deviation that it has in the source), [low, high],
    or shift8 (16 bits without the lower 8, as released); null: train unless the files have 8 bits, which stay as they
    are"""
    gamma: float = 1.0
    """tone curve of that scaling, x^(1/gamma): 1 leaves reflectance linear; about 2.2 makes it look like 8-bit
    pictures that are made for the eye, such as those of the other domain"""
    nodata: float | str | None = None
    """pixels without data: file (its alpha, mask band or no-data tag), none, all_zero (all bands 0), a number (any band
    has it), band:NAME (that band is 0); null: the reader's rule, usually file. NaN is never data"""
    label_map: dict[int, int] | None = None
    """label value in the file -> class (0 clear, 1 cloud, 255 ignore); any other value is an error; null: the reader's,
    usually {0: 0, 255: 1}"""
    scene: str | None = None
    """regular expression that finds the scene in an image's name (its first group, or all of it), so that intervals are
    taken over scenes and held-back images are whole scenes; null: the reader's, or every image stands for itself"""


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
    gamma: float = 0.0
    """tone curve x^g before the other changes, ln g drawn from [-gamma, gamma]"""


@dataclass(frozen=True)
class DataConfig:
    """How files become samples."""

    size: int = 256
    """side of a training sample in pixels"""
    geometry: Literal["letterbox", "crop"] = "letterbox"
    """letterbox: the whole image, scaled to size and padded; crop: a random window at native resolution. Inference
    follows: the longer side scaled to size, or blended windows of that size. Scores are always on the native grid"""
    tile: int | None = 512
    """training images with a longer side than this are cut into tiles of it, each an image of its own in sampling and
    in the entropy ranking; letterbox inference slides a window of it over them; null: never cut"""
    bands: list[str] = field(default_factory=lambda: ["red", "green", "blue"])
    """the bands that the network gets, in its order; both domains must have them"""
    cache: str | None = None
    """folder for decoded images, which any number of runs may share; null: files are decoded whenever they are read"""
    workers: int = 0
    """loader processes per domain; samples are the same bytes for any number"""
    timeout: int = 300
    """seconds after which a loader process that gives nothing is taken for dead"""


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
    aux_level: Literal["previous", "last"] = "previous"
    """what the auxiliary head reads: the last but one feature level, or the last one as the main head does (CLAN)"""
    detail: int = 0
    """channels of a branch that sharpens the main head's logits at full resolution, about 16; 0: none"""
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
    skip_not_finite: int = 0
    """steps whose loss, gradient or optimizer is not finite that are left out before the run stops"""


@dataclass(frozen=True)
class SpeedConfig:
    """How the machine is used. The result is the same up to rounding, but for what `pieces` says."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """numbers within the networks; losses, weights and optimisers are always float32. auto: bfloat16 on a GPU that has
    it, else float32"""
    pieces: int = 1
    """a batch passes the networks in so many pieces (gradient accumulation): less memory, one more forward. Losses see
    the whole batch; only batch normalisation sees each piece alone"""
    compile: bool = False
    """compile the networks with torch.compile: takes minutes first, and pays where a run is long"""
    deterministic: bool = False
    """choose GPU kernels that give the same bytes each time, where there are any; on a CPU it is so in any case"""


@dataclass(frozen=True)
class TeacherConfig:
    """Stage 1: source with labels + target without."""

    name: Literal["teacher", "source_only", "oracle"] = "teacher"
    """folder and weights file of this stage below out"""
    supervise: Literal["source", "target"] = "source"
    """whose labels train the network; target is the oracle alone, and needs held-back target images to be scored on"""
    steps: int = 20000
    """optimiser steps"""
    epochs: float | None = None
    """passes over the target's training images; when given, replaces steps"""
    batch: int = 16
    """images per step and domain, over all processes"""
    seg_main: float = 1.0
    """weight of the main head's segmentation loss"""
    seg_aux: float = 0.1
    """weight of the auxiliary head's segmentation loss"""
    jaccard: float = 1.0
    """weight of the soft Jaccard loss beside cross-entropy"""
    focal: float = 0.0
    """exponent of the focal factor on cross-entropy; 0: plain cross-entropy, 2: CLAN"""
    alignment: str = "entropy"
    """how the target is aligned: entropy (a discriminator on entropy maps, AdvEnt), softmax (on probabilities,
    AdaptSegNet), minent (minimal entropy, no discriminator), clan (a category-level adversary), or none"""
    adv_main: float = 1e-3
    """weight of the main head's alignment"""
    adv_aux: float = 2e-4
    """weight of the auxiliary head's alignment"""
    options: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """settings of the alignment that differ from its own defaults, such as {clan: {lambda_local: 10}}"""
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
    """easy split of int(ratio * n) + 1 images, as released, but never of all, instead of int(ratio * n)"""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """the teacher's probabilities are the mean over the image at these scales"""
    head: Literal["main", "aux", "mean", "union"] = "main"
    """which head gives them, see eval.head"""
    iou_weight: float = 0.0
    """rank by score - iou_weight * IoU of the two heads' masks; 0: entropy alone"""
    pseudo_label: Literal["argmax", "class_median", "pixel_classifier"] = "argmax"
    """what the stored masks hold: the teacher's class of every pixel, of each class the half of lower entropy (ESL), or
    what a classifier of single pixels says that the teacher has taught on these images"""
    pixel_floor: float = 0.6
    """pixel_classifier: pixels whose probability is below this are ignored"""
    entropy_floor: float = 0.1
    """class_median: an entropy up to this is kept in any case"""


@dataclass(frozen=True)
class IntraConfig:
    """Stage 3: easy -> hard, with the anchor."""

    enabled: bool = True
    """false: the method ends with stage 1; stages 2 and 3 do nothing"""
    steps: int | None = 10000
    """optimiser steps; null: as many as stage 1"""
    epochs: float | None = None
    """passes over as many images as are hard; when given, replaces steps, unless these are null"""
    batch: int = 16
    """images per step and split, over all processes"""
    lr_factor: float = 1.0
    """learning rate of the segmentation network in this stage, as a multiple of optim.lr"""
    init: Literal["teacher", "fresh"] = "teacher"
    """start of the trainee: the teacher's weights, or the same start as stage 1 (IntraDA)"""
    detail: int = 0
    """channels of a branch, as net.detail, that the trainee has and the teacher has not; 0: none. It starts at 0 and
    learns at 10 times optim.lr"""
    step: Literal["asda", "asda_released", "intrada", "source_target"] = "asda"
    """what a step learns from: asda, easy images labelled by anchor and EMA, and hard ones; the steps of methods/ are
    asda_released (the same, slips included), intrada (easy images with the masks of stage 2, and hard ones) and
    source_target (source images with their labels, and target images by self_training)"""
    anchor: Literal["online", "stored"] = "online"
    """what the anchor says of an easy image, to be fused with what the EMA says. online: of the augmented image;
    stored: the masks of stage 2, where it may have looked longer; pixels that these leave open are the EMA's"""
    fuse: Literal["union", "anchor", "ema", "agree", "mean"] = "union"
    """how the anchor's and the EMA's predictions become one pseudo-label"""
    floor: float = 0.0
    """pseudo-labels below this confidence are ignored; 0: all are used"""
    seg_para: float = 2.0
    """weight of the cross-entropy on easy pseudo-labels, both heads"""
    seg_aux: float = 1.0
    """the auxiliary head's share of it, relative to the main head"""
    self_training: list[str] = field(default_factory=list)
    """source_target: what is learnt from pseudo-labels of the target, any of: stored (masks of stage 2, ESL),
    entropy_drop (U2PL), classmix (DACS), masked (MIC); the main head's cross-entropy has the weight 1"""
    contrast: str = "hec"
    """hec: high-entropy contrast; pix: the released term, for parity only; u2pl, sdca: the terms of these methods; or
    none"""
    contrast_weight: float = 0.1
    """weight of the contrast"""
    contrast_floor: float = 0.0
    """u2pl and sdca: a pseudo-label of the unlabelled side below this confidence is not contrasted"""
    options: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """settings of the contrast, the alignment and the self-training that differ from their own defaults, such as
    {masked: {ratio: 0.5}, hec: {momentum: 0.9}}"""
    consistency: Literal["logits", "prob", "kl", "none"] = "logits"
    """what the two heads are asked to agree on"""
    consistency_weight: float = 0.1
    """weight of the consistency"""
    alignment: str = "entropy"
    """how the unlabelled side is aligned with the labelled one; the choices are those of teacher.alignment"""
    adv_main: float = 1e-3
    """weight of the main head's alignment, hard towards easy"""
    adv_aux: float = 2e-4
    """weight of the auxiliary head's alignment, hard towards easy"""
    ema_decay: float = 0.995
    """decay of the EMA per step"""
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
    snapshots: int | None = None
    """steps between two copies of the network as it would be exported, for compare.py to choose from; null: none"""


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
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """speed and memory"""
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


@dataclass(frozen=True)
class CompareConfig:
    """A comparison: every method on every pair with every seed, under one protocol."""

    name: str = "table"
    """folder of the tables below out"""
    out: str = "runs/compare"
    """folder of the runs; several comparisons may share one, and then share what they have in common"""
    pairs: dict[str, str] = field(default_factory=dict)
    """name of a pair of domains -> its configuration file"""
    # No Any below: jsonargparse would import and call what a mapping with the key class_path names.
    methods: dict[str, dict | None] = field(default_factory=dict)
    """name of a row -> null for configs/methods/NAME.yaml, or what differs from the method given as `base`, such as
    {base: asda, intra: {contrast: none}}; `baseline` names the row over which it gains, if that is not source_only"""
    protocol: dict = field(default_factory=dict)
    """settings that are the same for all methods and win over their own, such as {net: {backbone: resnet50}}"""
    set: dict = field(default_factory=dict)
    """more of the protocol by full names, for the command line: '{net.weights: FILE, source.root: FOLDER}'"""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """training seeds"""
    only: str = ""
    """run these methods alone, comma-separated; the table shows every method that is finished; empty: all"""
    reference: str = "asda"
    """the method that the paired test compares the others with"""
    folds: int = 4
    """an oracle on a target without held-back images is cross-validated with that many folds"""
    workers: int | None = None
    """jobs at the same time; null: one per GPU, or one"""
    threads: int | None = None
    """CPU threads of a job; null: the cores, divided by workers; another number changes the last digits"""
    selection: Literal["last", "entropy"] = "last"
    """which checkpoint is scored: the last, or that of the lowest mean entropy on the target's training images (needs
    protocol.log.snapshots); no label is involved"""
    best_on_labels: bool = False
    """add a column with the checkpoint that is best on the target's labels, which no user can choose"""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """title -> pairs over which the gains are averaged, such as {real sensors: [a, b], generated: [c]}; empty: all"""
    published: str | None = None
    """YAML file of published scores to show beside ours"""

    @property
    def selected(self) -> list[str]:
        """The methods to run."""
        return self.only.split(",") if self.only else list(self.methods)


def load_config(arguments: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Read `--config FILE` (any number, in order) and `--key value` overrides into a checked `Config`.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value, with file, key and nearest match.
    """
    config = _load(Config, arguments, description)
    _check_values(config)
    return config


def load_compare_config(arguments: Sequence[str] | None = None, description: str | None = None) -> CompareConfig:
    """The same for a comparison.

    Raises:
        ConfigError: as `load_config`.
    """
    config = _load(CompareConfig, arguments, description)
    for key in ("pairs", "methods", "seeds"):
        if not getattr(config, key):
            raise ConfigError(f"configuration: {key} is empty, expected at least one; give --config FILE")
    for key, least in (("folds", 2), ("workers", 1), ("threads", 1)):
        value = getattr(config, key)
        if value is not None and value < least:
            raise ConfigError(f"configuration: {key} is {value}, expected {least} or more")
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"configuration: seeds is {config.seeds}, expected each seed once")
    for key in (config.name, *config.pairs, *config.methods):
        if key in ("", "..") or Path(key).name != key or CONTROL.search(key):
            raise ConfigError(f"configuration: {key!r} is to name a folder below out, expected a name without / or ..")
    for key, value in config.methods.items():
        if (baseline := (value or {}).get("baseline", key)) not in config.methods:
            raise ConfigError(f"configuration: methods.{key}.baseline is {baseline!r}, which is not one of the methods")
    sections = {"protocol": config.protocol} | {f"methods.{key}": value or {} for key, value in config.methods.items()}
    if empty := [f"{place}.{key}" for place, section in sections.items() for key in section if section[key] is None]:
        raise ConfigError(f"configuration: {empty[0]} is empty, expected a value or a mapping of settings")
    if config.reference not in (*config.methods, "asda"):
        near = _nearest(config.reference, list(config.methods))
        raise ConfigError(f"configuration: reference is {config.reference!r}, which is not one of the methods{near}")
    for title, pairs in config.groups.items():
        if strange := [pair for pair in pairs if pair not in config.pairs]:
            near = _nearest(strange[0], list(config.pairs))
            raise ConfigError(
                f"configuration: groups.{title} names {strange[0]!r}, which is not one of the pairs{near}"
            )
    if config.name in config.pairs:
        raise ConfigError(f"configuration: name is {config.name!r}, which is also a pair; give the table another name")
    if unknown := [name for name in config.selected if name not in config.methods]:
        near = _nearest(unknown[0], list(config.methods))
        raise ConfigError(f"configuration: only names {unknown[0]!r}, which is not one of the methods{near}")
    if fixed := [key for key in config.set if key in ("seed", "out")]:
        raise ConfigError(f"configuration: set names {fixed[0]!r}, which compare.py sets itself; give seeds or out")
    if unknown := [key for key in config.set if key not in flatten(Config(generated=GeneratedConfig()))]:
        near = _nearest(unknown[0], list(flatten(Config(generated=GeneratedConfig()))))
        raise ConfigError(f"configuration: set has the unknown key {unknown[0]!r}{near}")
    needs_snapshots = config.selection != "last" or config.best_on_labels
    if needs_snapshots and not (config.protocol.get("log", {}).get("snapshots") or config.set.get("log.snapshots")):
        raise ConfigError(
            "configuration: choosing among checkpoints needs copies of the network; give protocol.log.snapshots, "
            "the steps between two of them"
        )
    return config


@cache
def _parser(schema: Any, description: str | None) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; may be given several times, later wins")
    parser.add_class_arguments(schema, None)
    return parser


def _load(schema: type[T], arguments: Sequence[str] | None, description: str | None) -> T:
    from jsonargparse import ArgumentError

    parser = _parser(schema, description)  # type: ignore[arg-type]
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for path in _config_files(arguments):
        _check_file(path, parser, schema)
    try:
        namespace = parser.parse_args(arguments)
    except (ArgumentError, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        raise ConfigError(f"command line: {_explain(str(error), arguments, schema)}") from None
    values = {key: value for key, value in vars(parser.instantiate(namespace)).items() if key != "config"}
    return schema(**values)


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


def read_mapping(path: Path, file: str, mapping: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; `file` and `mapping` say in an error what was expected.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
        values = yaml.safe_load(text) if len(text) <= LARGEST else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected {file}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of text, numbers, and too many levels
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if len(text) > LARGEST or _is_bomb(values):
        raise ConfigError(
            f"{path}: is too large, expected up to {LARGEST:,} characters, {VALUES:,} values and {LEVELS} levels, "
            "aliases written out"
        )
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected {mapping}")
    return values


def recorded_config(path: Path) -> dict[str, Any]:
    """What the config.yaml of a stage holds.

    Raises:
        ConfigError: as `read_mapping`.
    """
    return read_mapping(path, "the config.yaml of a stage", "a mapping of keys to values")


def _is_bomb(values: Any) -> bool:
    """Whether a few aliases stand for more than anybody writes."""
    waiting, count = [(values, 0)], 0
    while waiting:
        value, level = waiting.pop()
        count += 1
        if count > VALUES or level > LEVELS:
            return True
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(part, level + 1) for part in parts]
    return False


def _check_file(path: Path, parser: Any, schema: type) -> None:
    """Stop at the first fault of one YAML file, so that the message can name the file."""
    values = read_mapping(path, "a YAML file after --config", "a mapping of keys to values")
    for fault in _key_faults(values, schema):
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
        elif value is None and type(None) not in options:  # jsonargparse takes null for any key of a file
            yield f"key {prefix + key!r}: found null, expected a value; leave the key out for its default"


def _nearest(key: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known here: {', '.join(known)}"


def _explain(message: str, arguments: Sequence[str], schema: type) -> str:
    known = [f"--{key}" for key in flatten(Config(generated=GeneratedConfig()) if schema is Config else schema())]
    for word in (word.split("=")[0] for word in arguments if word.startswith("--")):
        if word not in known and f"error: unrecognized arguments: {word}"[7:] in message:
            return f"unknown option {word!r}{_nearest(word, known)}"
    return " ".join(message.split())


_SHARES = (
    *("hflip", "vflip", "jitter", "brightness", "contrast", "saturation", "momentum"),
    *("floor", "contrast_floor", "entropy_floor", "pixel_floor"),
)
_COUNTS = (
    *("steps", "batch", "size", "train", "evaluation", "discriminator_width"),
    *("every", "checkpoint", "pictures", "snapshots", "pieces"),
)
_WEIGHTS = (
    *("seed", "workers", "strength", "jaccard", "detail", "iou_weight", "weight_decay", "power"),
    *("consistency_weight", "contrast_weight", "self_weight", "head_factor", "lr_factor", "focal"),
)


def _check_values(config: Config) -> None:
    """Reject what the types allow and the method does not."""
    faults: list[str] = []

    def need(holds: bool, key: str, expected: str) -> None:
        if not holds:
            faults.append(f"{key} is {flatten(config).get(key)!r}, expected {expected}")

    for key, value in flatten(config).items():
        name = key.rsplit(".", 1)[-1]
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            need(False, key, "text without zero bytes and in UTF-8")
            continue
        if isinstance(value, float) and not math.isfinite(value):
            need(False, key, "a finite number")
            continue
        if name in _SHARES and not isinstance(value, str):  # intra.contrast is a choice
            need(0 <= value <= 1, key, "a number in [0, 1]")
        if name in _COUNTS and isinstance(value, int):
            need(value >= 1, key, "1 or more")
        if name in _WEIGHTS or name.startswith(("seg_", "adv_")):
            need(value >= 0, key, "0 or more")
        if name == "gamma" and ".augment." in key:
            need(0 <= value <= 2, key, "a number in [0, 2]")
        if name == "hue":
            need(0 <= value <= 0.5, key, "a number of turns in [0, 0.5]")
        if name in ("lr", "discriminator_lr", "epochs") and value is not None:
            need(value > 0, key, "a number above 0")
        if name == "label_map" and value is not None:
            need(bool(value) and set(value.values()) <= {0, 1, 255}, key, "classes 0 (clear), 1 (cloud), 255 (ignore)")
            need(all(0 <= pixel <= 255 for pixel in value or ()), key, "label values in 0..255")
    need(bool(config.split.scales), "split.scales", "at least one scale")
    need(all(0.1 <= scale <= 10 for scale in config.split.scales), "split.scales", "numbers in [0.1, 10]")
    need(0 < config.split.ratio < 1, "split.ratio", "a number between 0 and 1; at 0 or 1 one split would be empty")
    need(
        not (config.intra.detail and config.net.detail),
        "intra.detail",
        f"0, since net.detail {config.net.detail} gives a branch to teacher and trainee; or net.detail 0",
    )
    need(0 <= config.intra.ema_decay < 1, "intra.ema_decay", "a number in [0, 1)")
    for stage in ("teacher", "intra"):
        chosen = getattr(config, stage).alignment
        need(chosen in (*ALIGNMENTS, "none"), f"{stage}.alignment", f"one of {', '.join(ALIGNMENTS)} or none")
    need(config.intra.contrast in (*CONTRASTS, "none"), "intra.contrast", f"one of {', '.join(CONTRASTS)} or none")
    rules = config.intra.self_training
    need(set(rules) <= set(SELF_TRAINING), "intra.self_training", f"any of {', '.join(SELF_TRAINING)}")
    need(len(set(rules)) == len(rules), "intra.self_training", "each rule once")
    need(
        "clan" not in (config.teacher.alignment, config.intra.alignment) or config.net.aux_level == "last",
        "net.aux_level",
        "last, where alignment is clan: its two classifiers read the same features",
    )
    for stage, names in (
        ("teacher", [config.teacher.alignment]),
        ("intra", [config.intra.alignment, config.intra.contrast, *rules]),
    ):
        strange = set(getattr(config, stage).options) - set(names)
        need(not strange, f"{stage}.options", f"settings of what is chosen ({', '.join(names)}) alone")
    oracle = config.teacher.supervise == "target"
    need(not (oracle and config.intra.enabled), "intra.enabled", "false for the oracle (teacher.supervise: target)")
    need(not oracle or config.teacher.alignment == "none", "teacher.alignment", "none for the oracle")
    need(not rules or config.intra.step == "source_target", "intra.step", "source_target, which has self_training")
    need(config.intra.anchor == "online" or config.intra.step == "asda", "intra.anchor", "online unless step is asda")
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
        need(domain.reader in READERS, f"{role}.reader", f"one of {', '.join(READERS)}")
        own = domain.reader in READERS and READERS[domain.reader].bands is not None
        need(
            not (own and domain.bands), f"{role}.bands", "null: this reader knows them; choose among them by data.bands"
        )
        need(0 <= domain.eval_share < 1, f"{role}.eval_share", "a share in [0, 1)")
        need(domain.eval is None or not domain.eval_share, f"{role}.eval_share", f"0 where {role}.eval is given")
        rule = domain.nodata
        known = rule is None or not isinstance(rule, str) or rule in NO_DATA or rule.startswith("band:")
        need(known, f"{role}.nodata", f"{', '.join(NO_DATA)}, band:NAME or a number")
        need(domain.gamma > 0, f"{role}.gamma", "a number above 0")
        need(domain.gamma == 1 or domain.scaling != SHIFT8, f"{role}.gamma", f"1 where scaling is {SHIFT8}")
        bounds = domain.scaling
        if isinstance(bounds, list):
            need(len(bounds) == 2 and bounds[0] < bounds[1], f"{role}.scaling", "[low, high] with low below high")
        else:
            rules = ["train", *[LIKE_SOURCE] * (role == "target"), SHIFT8]
            need(bounds is None or bounds in rules, f"{role}.scaling", f"{', '.join(rules)} or [low, high]")
    need(bool(config.data.bands), "data.bands", "at least one band")
    need(len(set(config.data.bands)) == len(config.data.bands), "data.bands", "each band once")
    need(config.data.tile is None or config.data.tile >= config.data.size, "data.tile", "data.size or more, or null")
    need(bool(config.target.root), "target.root", "the folder of the unlabelled domain")
    if faults:
        raise ConfigError("configuration: " + "; ".join(faults))

"""The keys of a run: one tree of frozen dataclasses, each key with its type, default, bounds and text, once.

The text is the string below a key; `--help` of every script shows exactly these texts.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from config.fields import at_least, bounded, choice, flatten, positive, share, within
from datasets.readers import READERS
from losses.registry import ALIGNMENTS, CONTRASTS, SELF_TRAINING

PARTS = ("scores", "scenes", "masks", "entropy", "tsne", "gradcam", "report")
DECODERS = ("fpn", "unet", "segformer", "upernet", "dpt", "deeplab_v2")
NO_DATA = ("file", "none", "all_zero", "any_zero")  # beside a number and band:NAME; see datasets/decoder.py
SHIFT8 = "shift8"
LIKE_SOURCE, AUTO = "source", "auto"


@dataclass(frozen=True)
class GeneratedConfig:
    """The generated pair: two synthetic sensors, drawn on first use."""

    root: str = "data/demo"
    """folder that receives source/ and target/"""
    seed: int = at_least(0, 0)
    """seed of the scenes, independent of the training seed; another seed is another pair of the same two sensors"""
    train: int = at_least(200, 1)
    """training scenes of each domain"""
    evaluation: int = at_least(60, 1)
    """held-back scenes of each domain"""
    size: int = at_least(256, 1)
    """side of a scene in pixels; small ones are drawn fast, large ones are cut by data.tile"""
    strength: float = at_least(1.0, 0)
    """strength of the domain shift: 0 none, 1 the two presets"""


@dataclass(frozen=True)
class DomainConfig:
    """One domain: where its files are, how they are laid out, and what their values mean."""

    root: str = ""
    """folder of the data, as downloaded"""
    reader: str = choice("folder", READERS)
    """layout of the files: folder (images/ and labels/ of the same stems, or lists), ms_cloud, hrc_whu, cloud38,
    cloud95, l8_biome, sparcs or cloudsen12, each as published; docs/data.md describes them"""
    train: str | None = None
    """list file below root (one column: image; two: image label), rows relative to root, or a part that the reader
    knows, such as train; null: all images"""
    eval: str | None = None
    """the same for held-back images; null: eval_share decides"""
    eval_share: float = bounded(0.0, (lambda x: 0 <= x < 1, "a share in [0, 1)"))
    """without eval: share of the scenes of train (of the images, where scenes are unknown) that is held back for
    evaluation; 0: a target is scored on its training images (transductive), a source is not"""
    bands: list[str] | None = None
    """names of the file's bands, in the file's order; null: the reader's, or what the file says, or red, green, blue"""
    scaling: str | list[float] | None = None
    """how values become 8 bits, once for the whole domain: train (the 0.5 and 99.5 percentiles of the training images,
    for each band), source (of a target: each band gets the mean and deviation that it has in the source), auto (of a
    target: the same until stage 1 is trained, which then chooses the target's colours and statistics), [low, high], or
    shift8 (16 bits without the lower 8, as released); null: files of 8 bits as they are, others train"""
    gamma: float = positive(1.0)
    """tone curve of that scaling, x^(1/gamma): 1 leaves reflectance linear; about 2.2 makes it look like 8-bit
    pictures that are made for the eye, such as those of the other domain"""
    scale: float | None = positive(None)
    """of files without scale and offset tags: a value is scale times what is stored, plus offset; null: 1"""
    offset: float | None = None
    """see scale; Sentinel-2 has -1000 since processing baseline 04.00, or -0.1 with the scale 0.0001; null: 0"""
    nodata: float | str | None = bounded(
        None,
        (
            lambda rule: not isinstance(rule, str) or rule in NO_DATA or rule.startswith("band:"),
            f"{', '.join(NO_DATA)}, band:NAME or a number",
        ),
    )
    """pixels without data, by what is stored: file (its alpha, mask band or no-data tag), none, all_zero or 0 (all
    bands 0), any_zero, a number (any band has it), band:NAME (that band is 0); null: the reader's rule, usually file.
    NaN is never data"""
    label_map: dict[int, int] | None = bounded(
        None,
        (lambda classes: classes and {*classes.values()} <= {0, 1, 255}, "classes 0 (clear), 1 (cloud), 255 (ignore)"),
        (lambda classes: all(0 <= value <= 255 for value in classes), "label values in 0..255"),
    )
    """label value in the file -> class (0 clear, 1 cloud, 255 ignore), no others; null: the reader's, {0: 0, 255: 1}"""
    scene: str | None = bounded(None, (re.compile, "a regular expression"))
    """regular expression that finds the scene in an image's name (its first group, or all of it), so that intervals are
    taken over scenes and held-back images are whole scenes; null: the reader's, or every image stands for itself"""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training sample; drawn from (seed, domain, position), never from global state."""

    hflip: float = share(0.5)
    """probability of a left-right flip"""
    vflip: float = share(0.5)
    """probability of an up-down flip"""
    jitter: float = share(0.0)
    """probability of a change of colour by the four amounts below"""
    brightness: float = share(0.25)
    """brightness factor is drawn from [1 - b, 1 + b]"""
    contrast: float = share(0.25)
    """contrast factor is drawn from [1 - c, 1 + c]"""
    saturation: float = share(0.25)
    """saturation factor is drawn from [1 - s, 1 + s]; three bands only"""
    hue: float = within(0.05, 0, 0.5, "a number of turns")
    """hue shift is drawn from [-h, h] turns; three bands only"""
    gamma: float = within(0.0, 0, 2)
    """tone curve x^g before the other changes, ln g drawn from [-gamma, gamma]"""
    cutout: float = share(0.0)
    """probability that three squares of 0.3 of the side are blanked in the image, and in the label are not"""


@dataclass(frozen=True)
class DataConfig:
    """How files become samples."""

    size: int = at_least(256, 32, ": the discriminators halve the map five times")
    """side of a training sample in pixels"""
    geometry: Literal["letterbox", "crop"] = "letterbox"
    """letterbox: the whole image, scaled to size and padded; crop: a random window at native resolution. Inference
    follows: the longer side scaled to size, or blended windows. Scores are always on the native grid"""
    tile: int | None = 512
    """training images with a longer side than this are cut into tiles of it, each an image of its own in sampling and
    in the entropy ranking; letterbox inference slides a window of it over them; null: never cut"""
    bands: list[str] = bounded(
        ["red", "green", "blue"], (lambda bands: 0 < len(bands) == len({*bands}), "at least one band, each band once")
    )
    """the bands that the network gets, in its order; both domains must have them"""
    cache: str | None = None
    """folder for decoded images, which any number of runs may share; null: files are decoded whenever they are read"""
    workers: int | None = at_least(None, 0)
    """loader processes per domain; samples are the same bytes for any number. null: as many as help, which beside a
    GPU is half of the cores of a training process, at most 8, and without one an eighth: none on a small machine"""
    timeout: int = 300
    """seconds after which a loader process that gives nothing is taken for dead; more for a slow disk"""


@dataclass(frozen=True)
class NetConfig:
    """The segmentation network: a timm backbone, a decoder of its levels, and two heads."""

    backbone: str = "resnet50"
    """any timm backbone that gives features, by name"""
    weights: str | None = None
    """ImageNet weights of the backbone: hub (timm downloads them), the path of a local file, or null for none"""
    decoder: str = choice("fpn", DECODERS)
    """how masks are drawn from the backbone's levels: fpn, unet, segformer or upernet, of CNNs and windowed
    transformers; dpt, of transformers without pyramid; deeplab_v2, two atrous heads on the last two levels, as the
    paper and its checkpoints have it"""
    decoder_width: int = at_least(64, 1)
    """channels of the decoder's features; nothing to deeplab_v2"""
    output_stride: int | None = bounded(None, (lambda stride: stride in (8, 16, 32), "8, 16, 32 or null"))
    """of deeplab_v2: input pixels per feature pixel (8, 16, 32), by dilation; null: as the backbone comes"""
    layout: Literal["timm", "deeplab_v2"] = "timm"
    """deeplab_v2: stride on the first 1x1 and ceil-mode pooling, as in checkpoints of ADVENT and ASDA (ResNets only)"""
    aux_level: Literal["previous", "last"] = "previous"
    """what the auxiliary head reads: the last but one level of the backbone, or what the main head reads (CLAN)"""
    freeze_bn: bool = False
    """keep scale and shift of batch normalisation fixed; running statistics still follow the data"""
    mean: list[float] | None = None
    """input mean per band in [0, 1]; null: the pretrained backbone's own, or ImageNet's"""
    std: list[float] | None = None
    """input standard deviation per band in [0, 1]; null: as for mean"""
    discriminator_width: int = at_least(64, 1)
    """channels of the first of the discriminators' five layers"""
    checkpoint: str | None = None
    """start from this file: weights of this project, or a checkpoint of ADVENT or ASDA (needs layout deeplab_v2)"""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisers and the learning-rate schedule of both training stages."""

    algorithm: Literal["sgd", "adamw"] = "sgd"
    """of the segmentation network: sgd as in the references; adamw, whose rate suits most backbones (about 3e-4)"""
    lr: float = positive(2.5e-4)
    """learning rate of the backbone"""
    head_factor: float = at_least(10.0, 0)
    """learning rate of decoder, heads and projection, as a multiple of lr"""
    weight_decay: float = at_least(5e-4, 0)
    """weight decay; that of AdamW is decoupled from the gradient and usually larger, 0.01 to 0.05"""
    discriminator_lr: float = positive(1e-4)
    """Adam learning rate of the discriminators, to be moved with lr, so that neither side of the game runs away"""
    skip_not_finite: int = 0
    """steps whose loss, gradient or optimizer is not finite that are left out before the run stops"""


@dataclass(frozen=True)
class SpeedConfig:
    """How the machine is used. The result is the same up to rounding, but for what `pieces` says."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """numbers within the networks (losses, weights, optimisers: float32); auto: bfloat16 on a GPU that has it"""
    pieces: int = at_least(1, 1)
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
    steps: int = at_least(20000, 1)
    """optimiser steps"""
    epochs: float | None = positive(None)
    """passes over the target's training images; when given, replaces steps"""
    batch: int = at_least(16, 1)
    """images per step and domain, over all processes"""
    seg_aux: float = at_least(0.1, 0)
    """weight of the auxiliary head's segmentation loss; that of the main head is 1"""
    jaccard: float = at_least(1.0, 0)
    """weight of the soft Jaccard loss beside cross-entropy"""
    focal: float = at_least(0.0, 0)
    """exponent of the focal factor on cross-entropy; 0: plain cross-entropy, 2: CLAN"""
    alignment: str = choice("entropy", ALIGNMENTS, "none")
    """how the target is aligned: entropy (a discriminator on entropy maps, AdvEnt), softmax (on probabilities,
    AdaptSegNet), minent (minimal entropy, no discriminator), clan (a category-level adversary), or none"""
    adv_main: float = at_least(1e-3, 0)
    """weight of the main head's alignment"""
    adv_aux: float = at_least(2e-4, 0)
    """weight of the auxiliary head's alignment; 0 aligns the main head alone"""
    options: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """settings of the alignment that differ from its own defaults, such as {clan: {lambda_local: 10}}"""
    batch_norm: Literal["both", "target"] = "both"
    """whose batches the running statistics of batch normalisation follow: both domains' in turn, as in AdvEnt, or the
    target's alone; in training each domain has its own; without an alignment there is the source alone"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """changes of both domains' samples"""


@dataclass(frozen=True)
class SplitConfig:
    """Stage 2: the teacher ranks the target images by entropy."""

    ratio: float = bounded(0.67, (lambda x: 0 < x < 1, "a number between 0 and 1; at 0 or 1 one split would be empty"))
    """share of the target images that becomes the easy split"""
    scales: list[float] = bounded(
        [1.0], (lambda xs: xs and all(0.1 <= x <= 10 for x in xs), "at least one scale, numbers in [0.1, 10]")
    )
    """the teacher's probabilities are the mean over the image at these scales"""
    pseudo_label: Literal["argmax", "class_median", "pixel_classifier"] = "argmax"
    """what the stored masks hold: the teacher's class of every pixel, of each class the half of lower entropy (ESL), or
    what a classifier of single pixels says that the teacher has taught on these images"""
    pixel_floor: float = share(0.6)
    """pixel_classifier: pixels whose probability is below this are ignored; 0.5 keeps all"""
    entropy_floor: float = share(0.1)
    """class_median: an entropy up to this is kept in any case; 0 keeps the half alone"""


@dataclass(frozen=True)
class IntraConfig:
    """Stage 3: easy -> hard, with the anchor."""

    enabled: bool = True
    """false: the method ends with stage 1; stages 2 and 3 do nothing"""
    steps: int | None = at_least(10000, 1)
    """optimiser steps; null: as many as stage 1"""
    epochs: float | None = positive(None)
    """passes over as many images as are hard; when given, replaces steps, unless these are null"""
    batch: int = at_least(16, 1)
    """images per step and split, over all processes"""
    lr_factor: float = at_least(1.0, 0)
    """learning rate of the segmentation network in this stage, as a multiple of optim.lr"""
    init: Literal["teacher", "fresh"] = "teacher"
    """start of the trainee: the teacher's weights, or the same start as stage 1 (IntraDA)"""
    step: Literal["asda", "asda_released", "intrada", "source_target"] = "asda"
    """what a step learns from: asda, easy images labelled by anchor and EMA, and hard ones; the steps of methods/ are
    asda_released (the same, slips included), intrada (easy images with the masks of stage 2, and hard ones) and
    source_target (source images with their labels, and target images by self_training)"""
    anchor: Literal["online", "stored"] = "online"
    """what the anchor says of an easy image, to be fused with what the EMA says. online: of the augmented image;
    stored: the masks of stage 2, where it may have looked longer; pixels that these leave open are the EMA's"""
    fuse: Literal["union", "anchor", "ema", "agree", "mean"] = "union"
    """how the anchor's and the EMA's predictions become one pseudo-label"""
    floor: float = share(0.0)
    """pseudo-labels below this confidence are ignored; 0: all are used"""
    seg_para: float = at_least(2.0, 0)
    """weight of the cross-entropy on easy pseudo-labels, both heads"""
    seg_aux: float = at_least(1.0, 0)
    """the auxiliary head's share of it, relative to the main head"""
    self_training: list[str] = bounded(
        [], (lambda xs: len({*xs} & {*SELF_TRAINING}) == len(xs), f"any of {', '.join(SELF_TRAINING)}, each rule once")
    )
    """source_target: what is learnt from pseudo-labels of the target, any of: stored (masks of stage 2, ESL),
    entropy_drop (U2PL), classmix (DACS), masked (MIC); the main head's cross-entropy has the weight 1"""
    contrast: str = choice("hec", CONTRASTS, "none")
    """hec: high-entropy contrast; pix: the released term, for parity only; u2pl, sdca: the terms of these methods; or
    none"""
    contrast_weight: float = at_least(0.1, 0)
    """weight of the contrast"""
    contrast_floor: float = share(0.0)
    """u2pl and sdca: a pseudo-label of the unlabelled side below this confidence is not contrasted"""
    options: dict[str, dict[str, int | float]] = field(default_factory=dict)
    """settings of the contrast, the alignment and the self-training that differ from their own defaults, such as
    {masked: {ratio: 0.5}, hec: {momentum: 0.9}}"""
    consistency: Literal["logits", "prob", "kl", "none"] = "logits"
    """what the two heads are asked to agree on"""
    consistency_weight: float = at_least(0.1, 0)
    """weight of the consistency"""
    alignment: str = choice("entropy", ALIGNMENTS, "none")
    """how the unlabelled side is aligned with the labelled one; the choices are those of teacher.alignment"""
    adv_main: float = at_least(1e-3, 0)
    """weight of the main head's alignment, hard towards easy"""
    adv_aux: float = at_least(2e-4, 0)
    """weight of the auxiliary head's alignment, hard towards easy"""
    ema_decay: float = bounded(0.995, (lambda x: 0 <= x < 1, "a number in [0, 1)"))
    """decay of the EMA per step"""
    export: Literal["ema", "trainee"] = "ema"
    """which network becomes the student"""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(jitter=0.5))
    """changes of the target's samples, easy or hard; those of the source are `teacher.augment`"""


@dataclass(frozen=True)
class ReleasedConfig:
    """What the released code does otherwise, its slips included; for the method asda_released alone."""

    init: bool = False
    """the segmentation network starts from fan-in Kaiming weights, batch-norm scales from N(1, 0.02), biases 0"""
    schedule: bool = False
    """piecewise cosine per epoch, one rate for the whole segmenter, discriminators fixed; else (1 - step/steps)^0.9"""
    split: bool = False
    """images are ranked by the sum of their pixels' entropies, not the mean, and one more is easy, but never all"""


@dataclass(frozen=True)
class LogConfig:
    """What is written while training, and how often."""

    every: int = at_least(10, 1)
    """steps between two rows of metrics.jsonl and TensorBoard"""
    pictures: int = at_least(100, 1)
    """steps between two grids of predictions in TensorBoard"""
    checkpoint: int = at_least(500, 1)
    """steps between two checkpoints"""
    snapshots: int | None = at_least(None, 1)
    """steps between two copies of the network as it would be exported, for compare.py to choose from; null: none"""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    head: Literal["main", "aux", "mean", "union"] = "main"
    """which head decides: main, aux, the mean of both probabilities, or cloud where either says so"""
    pictures: int = at_least(8, 1)
    """images in each overview of masks, errors, entropies and class activation"""
    parts: str = bounded(
        ",".join(PARTS), (lambda x: {*x.split(",")} <= {*PARTS}, f"a comma-separated choice of {', '.join(PARTS)}")
    )
    """what to make, comma-separated; what was made before stays"""
    weights: str | None = None
    """a weights file (.safetensors) to evaluate in place of the run's own models"""
    cam_layer: str = ""
    """layer for Grad-CAM, a dotted name such as backbone.blocks.3; empty: the features that each head reads"""
    tsne_pixels: int = at_least(300, 2)
    """feature pixels of each class and domain in the t-SNE"""


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    out: str = "runs/demo"
    """the run's directory; an existing one is continued, or refused if it was made with other settings"""
    seed: int = at_least(0, 0)
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
    net: NetConfig = field(default_factory=NetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    intra: IntraConfig = field(default_factory=IntraConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)
    """the released code's ways"""
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


KEYS = (*flatten(Config(generated=GeneratedConfig())),)  # the full names of all

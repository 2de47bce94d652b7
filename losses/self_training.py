"""Self-training: rules that turn the EMA network's predictions of an unlabelled batch into something to train on.

All rules have one signature, `rule(labelled, unlabelled, ema_logits, progress, generator, **options)`:
    labelled: `image` (B, C, H, W) in [0, 1], `label` (B, H, W) int64 with 255, `valid` (B, H, W) bool.
    unlabelled: `image` and `valid` alike, and for `stored` the `label` that an earlier stage wrote.
    ema_logits: scores of the EMA network on the unlabelled image by head, (B, K, H, W).
    progress: the time in the training.
    generator: a CPU generator, the only source of randomness.
They give a `PseudoLabelledBatch`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from losses.inputs import TrainingProgress
from losses.u2pl import entropy_drop as drop_uncertain
from nets.segmenter import HEADS
from utils.labels import IGNORE

Samples = Mapping[str, Tensor]


class PseudoLabelledBatch(NamedTuple):
    """What the trainee sees of the unlabelled batch.

    Attributes:
        image: (B, C, H, W).
        label: classes by head, 255 for a pixel that does not count, (B, H, W) int64.
        weight: by head, (B, H, W) or a scalar, for `weighted_cross_entropy`.
        accepted: share of the unlabelled pixels whose pseudo-label of the main head counts, a scalar for the log.
    """

    image: Tensor
    label: dict[str, Tensor]
    weight: dict[str, Tensor]
    accepted: Tensor


def stored(
    labelled: Samples, unlabelled: Samples, ema_logits: Samples, progress: TrainingProgress, generator: torch.Generator
) -> PseudoLabelledBatch:
    """The label that an earlier stage wrote, for every head (ESL, Saporta et al., 2020); the scores are not needed."""
    label = unlabelled["label"].masked_fill(~unlabelled["valid"], IGNORE)
    by_head, weight = dict.fromkeys(HEADS, label), dict.fromkeys(HEADS, torch.ones((), device=label.device))
    return PseudoLabelledBatch(unlabelled["image"], by_head, weight, (label != IGNORE).float().mean())


def entropy_drop(
    labelled: Samples,
    unlabelled: Samples,
    ema_logits: Samples,
    progress: TrainingProgress,
    generator: torch.Generator,
    start: float = 80.0,
    end: float = 100.0,
) -> PseudoLabelledBatch:
    """The EMA argmax without its most uncertain pixels, by head (U2PL, Wang et al., CVPR 2022).

    The percentile grows linearly from `start` to `end`. The weight is the number of all pixels over those kept.
    """
    percent = start + (end - start) * progress.fraction
    label = {head: drop_uncertain(_argmax(z, unlabelled["valid"]), z, percent) for head, z in ema_logits.items()}
    weight = {head: y.numel() / (y != IGNORE).sum().clamp(min=1) for head, y in label.items()}
    return PseudoLabelledBatch(unlabelled["image"], label, weight, (label["main"] != IGNORE).float().mean())


def classmix(
    labelled: Samples,
    unlabelled: Samples,
    ema_logits: Samples,
    progress: TrainingProgress,
    generator: torch.Generator,
    threshold: float = 0.968,
    strong: bool = True,
) -> PseudoLabelledBatch:
    """Pixels of labelled images pasted onto the unlabelled ones (DACS, Tranheden et al., WACV 2021).

    From each labelled image, half of the classes that it shows (of two one, of one that one) are pasted, with their
    labels and the weight 1. All other pixels keep the EMA argmax; they weigh as much as the share of the valid
    unlabelled pixels whose probability reaches `threshold`. `strong` adds `strong_colour`.
    """
    label = labelled["label"]
    classes = next(iter(ema_logits.values())).shape[1]
    known = (label != IGNORE) & labelled["valid"]
    index = label.masked_fill(~known, 0)
    present = torch.stack([((label == c) & known).flatten(1).any(1) for c in range(classes)], 1)  # (B, K)
    draw = torch.rand(present.shape, generator=generator).to(label.device)
    rank = draw.masked_fill(~present, 2.0).argsort(1).argsort(1)
    chosen = rank < (present.sum(1, keepdim=True) + 1) // 2
    paste = chosen.gather(1, index.flatten(1)).view_as(known) & known

    valid = unlabelled["valid"]
    share = {head: _confident_share(z, valid, threshold) for head, z in ema_logits.items()}
    mixed = {head: torch.where(paste, label, _argmax(z, valid)) for head, z in ema_logits.items()}
    weight = {head: one.masked_fill(paste, 1.0) for head, one in share.items()}
    image = torch.where(paste[:, None], labelled["image"], unlabelled["image"])
    if strong:
        image = strong_colour(image, progress.seed)
    return PseudoLabelledBatch(image, mixed, weight, share["main"])


def masked(
    labelled: Samples,
    unlabelled: Samples,
    ema_logits: Samples,
    progress: TrainingProgress,
    generator: torch.Generator,
    block: int = 16,
    ratio: float = 0.7,
    threshold: float = 0.968,
    strong: bool = True,
) -> PseudoLabelledBatch:
    """The unlabelled image with squares of `block` pixels hidden, to be labelled from what is around them.

    Each square gets the mean colour of the batch with probability `ratio`, after `strong_colour` if `strong`. The label
    is the EMA argmax of the whole image, and its weight the share of the valid pixels whose probability reaches
    `threshold` (MIC, Hoyer et al., CVPR 2023).
    """
    image, valid = unlabelled["image"], unlabelled["valid"]
    rows, columns = image.shape[-2:]
    draw = torch.rand(len(image), 1, math.ceil(rows / block), math.ceil(columns / block), generator=generator)
    hidden = (draw < ratio).repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :rows, :columns]
    if strong:
        image = strong_colour(image, progress.seed + 1)
    share = {head: _confident_share(z, valid, threshold) for head, z in ema_logits.items()}
    label = {head: _argmax(z, valid) for head, z in ema_logits.items()}
    image = torch.where(hidden.to(image.device), image.mean((0, 2, 3), keepdim=True), image)
    return PseudoLabelledBatch(image, label, share, share["main"])


def strong_colour(images: Tensor, seed: int, strength: float = 0.2) -> Tensor:
    """New images: the colours of each are changed with probability 0.8, and it is blurred with probability 0.5.

    It is the augmentation of mixed images in DACS (Tranheden et al., WACV 2021). Brightness, contrast and, with
    three bands, saturation change by factors in `1 -+ strength`, the hue of three bands by at most `strength` of the
    circle; the blur has a deviation of 0.15 to 1.15 pixels.

    Args:
        images: in [0, 1], any number of bands C, at least 5 pixels high and wide, (B, C, H, W).
        seed: of the random numbers, which are NumPy's: no tensor is read, so no device is waited for.
        strength: in [0, 0.5].
    """
    draws = np.random.default_rng(seed).random((len(images), 7)).tolist()
    return torch.stack([_recolour(image, draw, strength) for image, draw in zip(images, draws, strict=True)])


def _recolour(image: Tensor, draw: list[float], strength: float) -> Tensor:
    """One image of `strong_colour` by seven uniform numbers."""
    jitter, blur, deviation = draw[:3]
    brightness, contrast, saturation, hue = (strength * (2 * u - 1) for u in draw[3:])
    if jitter < 0.8:
        image = (image * (1 + brightness)).clamp(0, 1)  # torchvision would refuse other than one or three bands
        image = torch.lerp(image.mean(), image, 1 + contrast).clamp(0, 1)
        if len(image) == 3:
            image = T.adjust_hue(T.adjust_saturation(image, 1 + saturation), hue)
    if blur < 0.5:
        image = T.gaussian_blur(image, [9, 9], [0.15 + deviation, 0.15 + deviation])
    return image


def _argmax(logits: Tensor, valid: Tensor) -> Tensor:
    """Most probable class, 255 where not valid."""
    return logits.argmax(1).masked_fill(~valid, IGNORE)


def _confident_share(logits: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Share of the valid pixels whose probability reaches the threshold; 0 when none is valid."""
    confident = (logits.float().softmax(1).amax(1) >= threshold) & valid
    return confident.sum() / valid.sum().clamp(min=1)

"""Self-training: rules that turn the EMA network's view of an unlabelled batch into something to train on.

All rules have one signature, `rule(labelled, unlabelled, logits, moment, generator, **options) -> View`:
    labelled: `image` (B, C, H, W) in [0, 1], `label` (B, H, W) int64 with 255, `valid` (B, H, W) bool.
    unlabelled: `image` and `valid` alike, and for `stored` the `label` that an earlier stage wrote.
    logits: scores of the EMA network on the unlabelled image by head, (B, K, H, W).
    moment: the time in the training.
    generator: a CPU generator, the only source of randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from losses.side import Moment
from losses.u2pl import entropy_drop as drop_uncertain
from nets.segmenter import HEADS
from utils.labels import IGNORE

Batch = Mapping[str, Tensor]


class View(NamedTuple):
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


def weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight times cross-entropy over the labelled pixels, divided by their number.

    Args:
        logits: scores, (B, K, H, W).
        label: class indices 0..K-1, or 255 for a pixel that does not count, (B, H, W) int64.
        weight: >= 0, (B, H, W) or a scalar.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when every pixel is ignored.

    Reference:
        The loss of DACS (Tranheden et al., WACV 2021), but for the mean, which here leaves out the ignored pixels.
    """
    per_pixel = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")  # (B, H, W), 0 where ignored
    return (weight * per_pixel).sum() / (label != IGNORE).sum().clamp(min=1)


def stored(labelled: Batch, unlabelled: Batch, logits: Batch, moment: Moment, generator: torch.Generator) -> View:
    """The label that an earlier stage wrote, for every head (ESL, Saporta et al., 2020); the scores are not needed."""
    label = unlabelled["label"].masked_fill(~unlabelled["valid"], IGNORE)
    one = torch.ones((), device=label.device)
    return View(unlabelled["image"], dict.fromkeys(HEADS, label), dict.fromkeys(HEADS, one), _known_share(label))


def entropy_drop(
    labelled: Batch,
    unlabelled: Batch,
    logits: Batch,
    moment: Moment,
    generator: torch.Generator,
    start: float = 80.0,
    end: float = 100.0,
) -> View:
    """The EMA argmax without its most uncertain pixels, by head (U2PL, Wang et al., CVPR 2022).

    The percentile grows linearly from `start` to `end`. The weight is that of `unsupervised_loss`: all over kept.
    """
    percent = start + (end - start) * moment.progress
    label = {head: drop_uncertain(_argmax(z, unlabelled["valid"]), z, percent) for head, z in logits.items()}
    weight = {head: y.numel() / (y != IGNORE).sum().clamp(min=1) for head, y in label.items()}
    return View(unlabelled["image"], label, weight, _known_share(label["main"]))


def confident(
    labelled: Batch,
    unlabelled: Batch,
    logits: Batch,
    moment: Moment,
    generator: torch.Generator,
    floor: float = 0.9,
) -> View:
    """The EMA argmax where it is sure, by head, after the self-training step of SDCA (Li et al., 2021).

    A pixel is kept if its probability reaches `floor` or the median (the lower one) of its predicted class, whichever
    is less; SDCA takes the medians over the data set, this rule over the batch.
    """
    label = {head: _sure(z, unlabelled["valid"], floor) for head, z in logits.items()}
    one = torch.ones((), device=unlabelled["image"].device)
    return View(unlabelled["image"], label, dict.fromkeys(logits, one), _known_share(label["main"]))


def classmix(
    labelled: Batch,
    unlabelled: Batch,
    logits: Batch,
    moment: Moment,
    generator: torch.Generator,
    threshold: float = 0.968,
    strong: bool = True,
) -> View:
    """Pixels of labelled images pasted onto the unlabelled ones (DACS, Tranheden et al., WACV 2021).

    From each labelled image, half of the classes that it shows (of two one, of one that one) are pasted, with their
    labels and the weight 1. All other pixels keep the EMA argmax; they weigh as much as the share of the valid
    unlabelled pixels whose probability reaches `threshold`. `strong` adds `strong_colour`.
    """
    label = labelled["label"]
    classes = next(iter(logits.values())).shape[1]
    known = (label != IGNORE) & labelled["valid"]
    index = label.masked_fill(~known, 0)
    present = torch.stack([((label == c) & known).flatten(1).any(1) for c in range(classes)], 1)  # (B, K)
    draw = torch.rand(present.shape, generator=generator).to(label.device)
    rank = draw.masked_fill(~present, 2.0).argsort(1).argsort(1)
    chosen = rank < (present.sum(1, keepdim=True) + 1) // 2
    paste = chosen.gather(1, index.flatten(1)).view_as(known) & known

    image = torch.where(paste[:, None], labelled["image"], unlabelled["image"])
    valid = unlabelled["valid"]
    share = {head: _sure_share(z, valid, threshold) for head, z in logits.items()}
    return View(
        strong_colour(image, generator) if strong else image,
        {head: torch.where(paste, label, _argmax(z, valid)) for head, z in logits.items()},
        {head: one.masked_fill(paste, 1.0) for head, one in share.items()},
        share["main"],
    )


def masked(
    labelled: Batch,
    unlabelled: Batch,
    logits: Batch,
    moment: Moment,
    generator: torch.Generator,
    block: int = 16,
    ratio: float = 0.7,
    threshold: float = 0.968,
    strong: bool = True,
) -> View:
    """The unlabelled image with squares of `block` pixels hidden, to be labelled from what is around them.

    Each square gets the mean colour of the batch with probability `ratio`, after `strong_colour` if `strong`. The label
    is the EMA argmax of the whole image, and its weight the share of the valid pixels whose probability reaches
    `threshold` (MIC, Hoyer et al., CVPR 2023).
    """
    image, valid = unlabelled["image"], unlabelled["valid"]
    size, (rows, columns) = len(image), image.shape[-2:]
    draw = torch.rand(size, 1, math.ceil(rows / block), math.ceil(columns / block), generator=generator)
    hidden = (draw < ratio).repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :rows, :columns]
    if strong:
        image = strong_colour(image, generator)
    share = {head: _sure_share(z, valid, threshold) for head, z in logits.items()}
    label = {head: _argmax(z, valid) for head, z in logits.items()}
    image = torch.where(hidden.to(image.device), image.mean((0, 2, 3), keepdim=True), image)
    return View(image, label, share, share["main"])


Rule = Callable[..., View]

SELF_TRAINING: dict[str, Rule] = {
    "stored": stored,
    "entropy_drop": entropy_drop,
    "confident": confident,
    "classmix": classmix,
    "masked": masked,
}


def strong_colour(images: Tensor, generator: torch.Generator, strength: float = 0.2) -> Tensor:
    """Change the colours of each image with probability 0.8 and blur it with probability 0.5.

    Brightness, contrast and, with three bands, saturation change by factors in `1 -+ strength`, the hue of three bands
    by at most `strength` of the circle; the blur has a deviation of 0.15 to 1.15 pixels.

    Args:
        images: in [0, 1], any number of bands C, at least 5 pixels high and wide, (B, C, H, W).
        generator: a CPU generator.
        strength: in [0, 0.5].

    Returns:
        New images in [0, 1], same shape.

    Reference:
        The augmentation of mixed images in DACS (Tranheden et al., WACV 2021).
    """
    draws = torch.rand(len(images), 7, generator=generator).tolist()
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
    """Most probable class, 255 where not valid, (B, H, W)."""
    return logits.argmax(1).masked_fill(~valid, IGNORE)


def _known_share(label: Tensor) -> Tensor:
    """Share of the pixels that have a label, a scalar in [0, 1]."""
    return (label != IGNORE).float().mean()


def _sure_share(logits: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Share of the valid pixels whose probability reaches the threshold, a scalar in [0, 1]; 0 when none is valid."""
    sure = (logits.float().softmax(1).amax(1) >= threshold) & valid
    return sure.sum() / valid.sum().clamp(min=1)


def _sure(logits: Tensor, valid: Tensor, floor: float) -> Tensor:
    """The argmax of pixels whose probability reaches the floor or, if that is less, the median of their class."""
    best, label = logits.float().softmax(1).max(1)
    label = label.masked_fill(~valid, IGNORE)
    kept = torch.zeros_like(valid)
    for cls in range(logits.shape[1]):
        member = label == cls
        median = best.masked_fill(~member, torch.nan).nanmedian()  # NaN when the class has no pixel
        kept |= member & (best >= median.clamp(max=floor))
    return label.masked_fill(~kept, IGNORE)

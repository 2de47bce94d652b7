"""How long a stage lasts, and its learning rates as pure functions of the step: resuming needs no scheduler state."""

import math
from collections.abc import Mapping

import torch

from config.schema import Config
from losses.inputs import TrainingProgress
from utils.errors import DataError

POWER = 0.9  # DeepLab, ADVENT


def poly(base: float, step: int, steps: int) -> float:
    """Polynomial decay `base * (1 - step/steps)^POWER`."""
    return base * (1 - step / steps) ** POWER


def asda_released(epoch: int, warmup_epochs: int) -> float:
    """The released piecewise rate: a quadratic rise from 6e-4 to 8e-4, then a cosine between 2.5e-4 and 1e-6.

    The cosine's half period is 15 epochs whatever the length of the run, so the rate rises again after epoch 15.
    `epoch` counts those that are finished; `warmup_epochs` is 15 in stage 1, 0 in stage 3.
    """
    if epoch < warmup_epochs:
        return 6e-4 + 2e-4 * (epoch / warmup_epochs) ** 2
    return 1e-6 + 0.5 * (2.5e-4 - 1e-6) * (1 + math.cos(math.pi * epoch / 15))


def stage_length(steps: int, epochs: float | None, images: int, batch: int) -> tuple[int, int]:
    """Optimiser steps of a stage and of one epoch, an epoch being one pass over `images`."""
    epoch_steps = math.ceil(images / batch)
    return (steps if epochs is None else max(1, round(epochs * epoch_steps))), epoch_steps


def intra_length(config: Config, targets: int) -> tuple[int, int]:
    """The same for stage 3 with `targets` training images of the target, where an epoch is one pass over as many
    images as are hard, whatever a method learns from."""
    intra, teacher = config.intra, config.teacher
    hard = max(1, targets - int(config.split.ratio * targets) - int(config.released.split))
    if intra.steps is not None:
        return stage_length(intra.steps, intra.epochs, hard, intra.batch)
    steps, _ = stage_length(teacher.steps, teacher.epochs, targets, teacher.batch)
    return steps, math.ceil(hard / intra.batch)


def easy_count(images: int, ratio: float, one_more: bool = False) -> int:
    """Size of the easy split: `int(ratio * n)`; with `one_more`, as released, one more, but never all.

    Raises:
        DataError: one of the two splits would be empty.
    """
    count = int(ratio * images)
    if one_more:
        count = min(count + 1, images - 1)
    if not 0 < count < images:
        fix = "change split.ratio or give more target images"
        if images < 2:
            fix = (
                "give more target images, a smaller data.tile that cuts it, or --intra.enabled false for stage 1 alone"
            )
        raise DataError(
            f"split.ratio {ratio} of {images} target image(s) gives {count} easy and {images - count} hard; "
            f"both need at least one: {fix}"
        )
    return count


def set_rates(
    optimizers: Mapping[str, torch.optim.Optimizer], progress: TrainingProgress, config: Config, warmup_epochs: int
) -> float:
    """Set every group's learning rate for this step and return that of the segmenter's first group."""
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            if not config.released.schedule:
                group["lr"] = poly(group["base_lr"], progress.step, progress.steps)
            elif name == "segmenter":
                group["lr"] = asda_released(progress.epoch, warmup_epochs)
    return float(optimizers["segmenter"].param_groups[0]["lr"])

"""Optimisers of the two sides of the training game; every parameter stands in one group, once."""

from collections.abc import Iterable

import torch
from torch import nn

from config.schema import OptimConfig
from nets.segmenter import Segmenter

MOMENTUM = 0.9  # of SGD: DeepLab, ADVENT
BETAS = (0.9, 0.99)  # of the discriminators' Adam: ADVENT


def segmenter_optimizer(
    segmenter: Segmenter,
    optim: OptimConfig,
    extra: Iterable[nn.Parameter] = (),
    factor: float = 1.0,
) -> torch.optim.Optimizer:
    """SGD or AdamW over the backbone at `factor * optim.lr`, over decoder, heads and `extra` at `head_factor` times it.

    Args:
        extra: parameters beside the segmenter's own, such as the projection head.
    """
    lr = optim.lr * factor
    groups = [
        {"params": list(segmenter.backbone_parameters()), "lr": lr},
        {"params": [*segmenter.head_parameters(), *extra], "lr": lr * optim.head_factor},
    ]
    if optim.algorithm == "adamw":
        return _with_base_lr(torch.optim.AdamW(groups, weight_decay=optim.weight_decay))
    return _with_base_lr(torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=optim.weight_decay))


def discriminator_optimizer(discriminators: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Adam over all discriminators at `optim.discriminator_lr`."""
    return _with_base_lr(torch.optim.Adam(discriminators.parameters(), lr=optim.discriminator_lr, betas=BETAS))


def _with_base_lr(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]  # the schedule is a pure function of this and the step
    return optimizer

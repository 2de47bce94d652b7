"""Optimisers of the two sides of the training game; every parameter stands in one group, once."""

from collections.abc import Iterable

import torch
from torch import nn

from config.schema import OptimConfig
from nets.segmenter import Segmenter

MOMENTUM = 0.9  # of SGD: DeepLab, ADVENT
BETAS = (0.9, 0.99)  # of the discriminators' Adam: ADVENT
NEW_LAYER_FACTOR = 10.0  # as DeepLab's new layers beside a pretrained backbone


def segmenter_optimizer(
    segmenter: Segmenter,
    optim: OptimConfig,
    extra: Iterable[nn.Parameter] = (),
    factor: float = 1.0,
    new_layers: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """SGD or AdamW over the backbone at `factor * optim.lr` and over heads and `extra` at `head_factor` times that.

    Args:
        extra: parameters beside the segmenter's own, such as the projection head.
        new_layers: those of the segmenter that start anew among trained ones; they learn at `NEW_LAYER_FACTOR` times
            `optim.lr`.
    """
    late, lr = list(new_layers), optim.lr * factor
    heads = [parameter for parameter in segmenter.head_parameters() if all(parameter is not one for one in late)]
    groups = [
        {"params": list(segmenter.backbone_parameters()), "lr": lr},
        {"params": [*heads, *extra], "lr": lr * optim.head_factor},
        *([{"params": late, "lr": optim.lr * NEW_LAYER_FACTOR}] if late else []),
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

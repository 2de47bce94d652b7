"""Adversarial alignment of two domains on entropy maps (AdvEnt, Vu et al. 2019), for any number of heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from losses.adversarial import SOURCE, TARGET, discriminator_loss
from losses.entropy import weighted_self_information


def entropy_map(logits: Tensor, valid: Tensor) -> Tensor:
    """What a discriminator sees: weighted self-information (B, K, H, W) of logits, 0 outside `valid` (B, H, W)."""
    return weighted_self_information(logits.softmax(1)) * valid[:, None]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Losses computed inside give no gradient to the module's parameters, but still flow through it to its input."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def alignment(
    discriminators: nn.ModuleDict, source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The segmenter's and the discriminators' adversarial losses, one pair per head.

    Args:
        discriminators: one per head, by the head's name.
        source: the source side's maps (B, K, H, W) by head; only their values are used.
        target: the target side's maps (B, K, H, W) by head, connected to the segmenter.

    Returns:
        `adv[head]`: the target's map should pass for the source's; its gradient reaches the segmenter alone.
        `dis[head]`: half the sum of both domains' classification losses; its gradient reaches the discriminator alone.
    """
    adv, dis = {}, {}
    for head, discriminator in discriminators.items():
        with frozen(discriminator):
            adv[head] = discriminator_loss(discriminator(target[head]), SOURCE)
        both = discriminator(torch.cat([source[head], target[head]]).detach())
        on_source, on_target = both.split([len(source[head]), len(target[head])])
        dis[head] = 0.5 * (discriminator_loss(on_source, SOURCE) + discriminator_loss(on_target, TARGET))
    return adv, dis

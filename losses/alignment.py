"""How unlabelled target images draw on the segmenter in training: the alignments that a config may choose from.

An alignment is a module, so that its discriminators are trained, saved and resumed with everything else. It is built
with the weights of its terms and called with the outputs of both domains; it returns its terms, weighted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.adversarial import SOURCE, TARGET, discriminator_loss
from losses.category import discrepancy, weight_divergence, weighted_discriminator_loss
from losses.entropy import entropy_loss, weighted_self_information
from losses.inputs import DomainOutputs, TrainingProgress

Terms = dict[str, tuple[float, Tensor]]
Heads = Mapping[str, Sequence[Tensor]]  # the parameters of the segmenter's classifiers


def entropy_map(logits: Tensor, valid: Tensor) -> Tensor:
    """What a discriminator sees: weighted self-information (B, K, H, W) of logits, 0 outside `valid` (B, H, W)."""
    return weighted_self_information(logits.softmax(1)) * valid[:, None]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Losses computed inside give no gradient to the module's parameters, but still flow through it to its input."""
    trained = nn.ParameterList(parameter for parameter in module.parameters() if parameter.requires_grad)
    trained.requires_grad_(False)
    try:
        yield
    finally:
        trained.requires_grad_(True)


def alignment(
    discriminators: nn.ModuleDict, source: Mapping[str, Tensor], target: Mapping[str, Tensor], valid: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The segmenter's and the discriminators' adversarial losses, one pair per head; a position of a discriminator's
    output counts as much as the share of valid pixels below it.

    Args:
        discriminators: one per head, by the head's name.
        source, target: the maps (B, K, H, W) by head; only the target's are connected to the segmenter.
        valid: where both have data, (B, H, W) bool, see `valid_in_both`; the maps are 0 elsewhere.

    Returns:
        `adv[head]`: the target's map should pass for the source's; its gradient reaches the segmenter alone.
        `dis[head]`: half the sum of both domains' classification losses; its gradient reaches the discriminator alone.
    """
    adv, dis = {}, {}
    for head, discriminator in discriminators.items():
        with frozen(discriminator):
            on_map = discriminator(target[head])
        weight = F.adaptive_avg_pool2d(valid[:, None].to(on_map.dtype), on_map.shape[-2:])  # (B, 1, h, w)
        adv[head] = discriminator_loss(on_map, SOURCE, weight)
        on_source, on_target = discriminator(torch.cat([source[head], target[head]]).detach()).chunk(2)
        losses = discriminator_loss(on_source, SOURCE, weight) + discriminator_loss(on_target, TARGET, weight)
        dis[head] = 0.5 * losses
    return adv, dis


def valid_in_both(source: DomainOutputs, target: DomainOutputs) -> Tensor:
    """Where image i of both domains has data, (B, H, W) bool: the one mask through which discriminators see both.

    A margin, a hole or the padding of one domain blanks the other as well, so that it cannot tell the two apart.
    """
    return source.valid & target.valid


class Alignment(nn.Module):
    """Base of the alignments.

    Args:
        classes: K.
        discriminator: makes a discriminator of maps with that many channels.
        weights: weight of the segmenter's term by head.
    """

    def __init__(self, classes: int, discriminator: Callable[[int], nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, source: DomainOutputs, target: DomainOutputs, heads: Heads, progress: TrainingProgress) -> Terms:
        """The weighted terms of one step."""
        raise NotImplementedError


class EntropyAlignment(Alignment):
    """One discriminator per head on maps of weighted self-information (AdvEnt, Vu et al., CVPR 2019; ASDA)."""

    def __init__(self, classes: int, discriminator: Callable[[int], nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__(classes, discriminator, weights)
        self.discriminators = nn.ModuleDict({head: discriminator(classes) for head in weights})

    view = staticmethod(entropy_map)

    def forward(self, source: DomainOutputs, target: DomainOutputs, heads: Heads, progress: TrainingProgress) -> Terms:
        valid = valid_in_both(source, target)
        on_source, on_target = (
            {head: self.view(domain.logits[head], valid) for head in self.weights} for domain in (source, target)
        )
        adv, dis = alignment(self.discriminators, on_source, on_target, valid)
        terms = {f"adv_{head}": (weight, adv[head]) for head, weight in self.weights.items()}
        return terms | {f"dis_{head}": (1.0, dis[head]) for head in self.weights}


class SoftmaxAlignment(EntropyAlignment):
    """One discriminator per head on class probabilities (AdaptSegNet, Tsai et al., CVPR 2018)."""

    @staticmethod
    def view(logits: Tensor, valid: Tensor) -> Tensor:
        return logits.softmax(1) * valid[:, None]


class EntropyMinimisation(Alignment):
    """No adversary: the entropy of target predictions itself is minimised (MinEnt, Vu et al., CVPR 2019)."""

    def forward(self, source: DomainOutputs, target: DomainOutputs, heads: Heads, progress: TrainingProgress) -> Terms:
        return {
            f"ent_{head}": (weight, entropy_loss(target.logits[head].softmax(1), target.valid))
            for head, weight in self.weights.items()
        }


class CategoryAlignment(Alignment):
    """Category-level adversary (CLAN, Luo et al., CVPR 2019).

    Two classifiers, which have to read the same features, are kept different (`divergence`); one discriminator sees the
    softmax of the sum of their scores, and where they disagree on the target, its loss weighs more. All but the
    discriminator's own loss fade linearly to the end of the stage.

    Args:
        weights: that of `main` is the adversary's; `aux` is not used.
        epsilon, lambda_local: a target pixel weighs `epsilon + lambda_local * discrepancy`.
        divergence: weight of the divergence of the classifiers' weights.
        preheat: share of the stage in which every pixel weighs 1.
    """

    def __init__(
        self,
        classes: int,
        discriminator: Callable[[int], nn.Module],
        weights: Mapping[str, float],
        epsilon: float = 0.4,
        lambda_local: float = 40.0,
        divergence: float = 0.02,
        preheat: float = 0.05,
    ) -> None:
        super().__init__(classes, discriminator, weights)
        self.discriminator = discriminator(classes)
        self.epsilon, self.lambda_local = epsilon, lambda_local
        self.divergence, self.preheat = divergence, preheat

    def forward(self, source: DomainOutputs, target: DomainOutputs, heads: Heads, progress: TrainingProgress) -> Terms:
        valid = valid_in_both(source, target)[:, None]  # (B, 1, H, W)
        on_source, on_target = (
            (domain.logits["main"] + domain.logits["aux"]).softmax(1) * valid for domain in (source, target)
        )
        gap: Tensor | None = None
        if progress.fraction >= self.preheat:
            gap = discrepancy(target.logits["main"].softmax(1), target.logits["aux"].softmax(1)).detach()
        with frozen(self.discriminator):
            adv = self.judge(on_target, SOURCE, valid, gap)
        dis = self.judge(on_source.detach(), SOURCE, valid) + self.judge(on_target.detach(), TARGET, valid, gap)
        fading = 1 - progress.fraction
        return {
            "adv_main": (self.weights["main"] * fading, adv),
            "divergence": (self.divergence * fading, weight_divergence(heads["main"], heads["aux"])),
            "dis_main": (1.0, dis),
        }

    def judge(self, view: Tensor, domain: int, valid: Tensor, gap: Tensor | None = None) -> Tensor:
        """The discriminator's loss at every valid pixel of the image, weighted by the gap where there is one."""
        logits = F.interpolate(self.discriminator(view), view.shape[-2:], mode="bilinear", align_corners=True)
        if gap is None:
            return discriminator_loss(logits, domain, valid.to(logits.dtype))
        return weighted_discriminator_loss(logits, domain, gap, self.epsilon, self.lambda_local, valid)

"""Contrast between clear and uncertain pixels, as ASDA describes it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.contrast import Contrast, ContrastTerm, FeatureBank, draw_anchors, extremes, info_nce, mean_over_classes
from losses.entropy import normalised_entropy
from losses.inputs import DomainOutputs, TrainingProgress
from utils.labels import IGNORE


class ContrastMemory(FeatureBank):
    """Class prototypes beside a bank of reliable unit features; `momentum` in [0, 1] weighs the old one in an update.

    Attributes:
        prototypes: running class means of unit features, (K, D); zero before the first update of a class.
        has_prototype: True once a class has one, (K,) bool.
    """

    prototypes: Tensor
    has_prototype: Tensor

    def __init__(self, classes: int, dim: int, capacity: int = 4096, momentum: float = 0.99) -> None:
        super().__init__(classes, dim, capacity)
        self.momentum = momentum
        self.register_buffer("prototypes", torch.zeros(classes, dim))
        self.register_buffer("has_prototype", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, features: Tensor, label: Tensor, low_mask: Tensor) -> None:
        """Move the prototypes towards, and push into the bank, the reliable features of each class.

        A class without a reliable pixel is left as it is. A prototype starts at the mean of its first batch.

        Args:
            features: features of the EMA network, of any length, (B, D, h, w).
            label: class indices, 255 for a pixel that does not count, (B, h, w) int64.
            low_mask: True where the entropy is low, (B, h, w) bool.
        """
        classes, _, dim = self.bank.shape
        unit = F.normalize(features.to(self.bank.dtype), dim=1).movedim(1, -1).reshape(-1, dim)  # (P, D)
        cls = torch.arange(classes, device=label.device)[:, None]
        member = (label.flatten() == cls) & low_mask.flatten()  # (K, P)
        count = member.sum(1)  # (K,)

        mean = member.to(unit.dtype) @ unit / count.clamp(min=1)[:, None]
        moved = self.momentum * self.prototypes + (1.0 - self.momentum) * mean
        started = torch.where(self.has_prototype[:, None], moved, mean)
        self.prototypes.copy_(torch.where((count > 0)[:, None], started, self.prototypes))
        self.has_prototype |= count > 0

        self.push(unit, member)

    def sample_negatives(self, cls: int, anchors: int, negatives: int, generator: torch.Generator) -> Tensor:
        """Draw unit features (`anchors`, `negatives`, D) of all classes but `cls`, uniformly and with replacement, by a
        CPU generator; zeros if none."""
        classes = len(self.bank)
        others = (torch.arange(1, classes, device=self.bank.device) + cls) % classes  # (K-1,)
        size = self.stored[others]
        end = size.cumsum(0)
        # Integers and not uniform floats: a float just below 1 times a size may round up to the size.
        draw = torch.randint(2**62, (anchors, negatives), generator=generator).to(end.device) % end[-1].clamp(min=1)
        row = torch.searchsorted(end, draw, right=True).clamp(max=classes - 2)
        return self.bank[others[row], draw - (end - size)[row]]


def high_entropy_contrast(
    anchor_features: Tensor,
    ema_features: Tensor,
    entropy: Tensor,
    label: Tensor,
    memory: ContrastMemory,
    progress: float,
    *,
    generator: torch.Generator,
    anchors_per_class: int = 256,
    negatives: int = 50,
    temperature: float = 0.5,
    low_percent: float = 20.0,
) -> ContrastTerm:
    """Pull uncertain pixels to the prototype of their pseudo-class and away from reliable features of the others.

    The partition, the counts and the temperature are U2PL's; that anchors come from the high-entropy region is ASDA's
    description of its contrast.

    With `a = low_percent * (1 - progress)`, the valid pixels whose entropy is at most the `a`-th percentile are
    reliable: they update `memory`, without gradient and before the loss is taken. Those at or above the
    `(100 - a)`-th percentile are uncertain: up to `anchors_per_class` of each class are drawn as anchors for
    `info_nce`. The loss is the mean over the classes that have an anchor, a prototype and a negative.

    Args:
        anchor_features, ema_features: of the trainee, the only input with gradient, and of the EMA, (B, D, h, w).
        entropy: normalised entropy of the EMA prediction in [0, 1], float32 or float64, (B, h, w).
        label: pseudo-label, 255 for a pixel that does not count, (B, h, w) int64.
        memory: prototypes and bank; the loss is computed in its dtype.
        progress: elapsed share of the training, in [0, 1].
        generator: a CPU generator, the only source of randomness.
        negatives: number of negatives of an anchor.
        temperature: divides the cosine similarities.

    Returns:
        The loss, a scalar >= 0, exactly 0 and still connected to the graph when fewer than two classes have a
        prototype or none qualifies; and for the log, beside the scalars of `mean_over_classes`, `prototypes` (number of
        classes that have one) and `bank` (features stored for the class that has fewest).

    Raises:
        ValueError: if `progress` is outside [0, 1] or the shapes do not belong together.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], got {progress}")
    grid = (anchor_features.shape[0], *anchor_features.shape[2:])
    if anchor_features.shape != ema_features.shape or entropy.shape != grid or label.shape != grid:
        raise ValueError(
            "expected two features (B, D, h, w) with entropy and label (B, h, w), got "
            f"{tuple(anchor_features.shape)}, {tuple(ema_features.shape)}, {tuple(entropy.shape)}, {tuple(label.shape)}"
        )
    share = low_percent / 100.0 * (1.0 - progress)
    low, high = extremes(entropy.detach(), label != IGNORE, share, 1.0 - share)
    memory.update(ema_features, label, low)

    drawn = []
    for cls in range(len(memory.prototypes)):
        index, chosen = draw_anchors(((label == cls) & high).flatten(), anchors_per_class, generator)
        drawn.append((index, chosen, memory.sample_negatives(cls, len(index), negatives, generator)))
    # Anchors alone are taken from the maps, of all classes at once: no copy of the maps, and one of their gradient.
    place = torch.stack([index for index, _, _ in drawn])  # (K, M)
    size = label[0].numel()
    anchors = anchor_features.flatten(2)[place // size, :, place % size].to(memory.bank.dtype)  # (K, M, D)
    # A class with a prototype and a class with stored features: two classes at least have a prototype.
    able = memory.has_prototype & (memory.stored.sum() - memory.stored > 0)
    terms = [
        (info_nce(anchors[cls], memory.prototypes[cls], others, temperature, chosen), able[cls] & chosen.any(), chosen)
        for cls, (_, chosen, others) in enumerate(drawn)
    ]
    loss, stats = mean_over_classes(terms)
    prototypes, fewest = memory.has_prototype.sum().float(), memory.stored.min().float()
    return loss, stats | {"prototypes": prototypes, "bank": fewest}


class HighEntropyContrast(Contrast):
    """`high_entropy_contrast` of the labelled domain's projected features, with a memory of that `momentum`."""

    def __init__(self, classes: int, features: int, projected: int, momentum: float = 0.99) -> None:
        super().__init__(classes, features, projected)
        self.memory = ContrastMemory(classes, projected, momentum=momentum)

    def forward(self, labelled: DomainOutputs, unlabelled: DomainOutputs, progress: TrainingProgress) -> ContrastTerm:
        assert labelled.projected is not None and labelled.ema_projected is not None and labelled.ema_scores is not None
        return high_entropy_contrast(
            labelled.projected,
            labelled.ema_projected,
            normalised_entropy(labelled.ema_scores.softmax(1)),
            labelled.grid_label(),
            self.memory,
            progress.fraction,
            generator=progress.generator(),
        )

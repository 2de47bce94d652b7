"""Contrast between clear and uncertain pixels, as the method describes it and as it was released."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.entropy import normalised_entropy
from losses.side import Moment, Side
from utils.labels import IGNORE


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE over the anchors, on cosine similarities.

    For one anchor `h` with positive `p` and negatives `n_j` it is
    `-log(exp(cos(h,p)/t) / (exp(cos(h,p)/t) + sum_j exp(cos(h,n_j)/t)))`.

    Args:
        anchors: features of any length, (M, D).
        positives: one per anchor (M, D), or one for all (D,).
        negatives: (M, N, D).
        temperature: `t` > 0.
        valid: True where an anchor counts, (M,) bool; None for all.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when no anchor counts.

    Reference:
        The pixel contrast of U2PL, after van den Oord et al., 2018.
    """
    anchors = F.normalize(anchors, dim=-1)
    attract = (anchors * F.normalize(positives, dim=-1)).sum(-1, keepdim=True)  # (M, 1)
    # Products are divided instead of features: no copy of all negatives, which are most of the memory.
    repel = torch.einsum("md,mnd->mn", anchors, negatives) / negatives.norm(dim=-1).clamp(min=1e-12)
    per_anchor = -F.log_softmax(torch.cat([attract, repel], 1) / temperature, 1)[:, 0]  # (M,)
    if valid is None:
        return per_anchor.sum() / max(len(per_anchor), 1)
    return per_anchor.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def draw_anchors(candidate: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose up to `count` of the candidates at random; the results have a fixed size, so that no device is waited for.

    Args:
        candidate: True where a pixel may be chosen, (P,) bool.
        count: largest number of anchors.
        generator: a CPU generator.

    Returns:
        Pixel indices (M,) with M = min(count, P), and True where an index is a candidate's, (M,) bool.
    """
    # The candidates of highest rank in a random order; when they are too few, others fill up and do not count.
    rank = torch.randperm(len(candidate), generator=generator).to(candidate.device)
    rank, index = rank.masked_fill(~candidate, -1).topk(min(count, len(candidate)))
    return index, rank >= 0


class FeatureBank(nn.Module):
    """A first-in-first-out bank of features per class, carried across steps and checkpoints.

    It holds buffers only. All work is done in tensors of fixed size, so that no step waits for the device.

    Args:
        classes: number of classes K.
        dim: feature length D.
        capacity: features kept per class.

    Attributes:
        bank: features, (K, capacity, D). Slot `pushed % capacity` is the next to be overwritten.
        pushed: features ever pushed per class, (K,) int64.
    """

    bank: Tensor
    pushed: Tensor

    def __init__(self, classes: int, dim: int, capacity: int = 4096) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(classes, capacity, dim))
        self.register_buffer("pushed", torch.zeros(classes, dtype=torch.int64))

    @property
    def stored(self) -> Tensor:
        """Features now in the bank of each class, (K,) int64."""
        return self.pushed.clamp(max=self.bank.shape[1])

    @torch.no_grad()
    def push(self, features: Tensor, member: Tensor) -> None:
        """Append to the bank of each class, in their order, those of the features (P, D) that `member` (K, P) marks."""
        classes, capacity, _ = self.bank.shape
        count = member.sum(1)  # (K,)
        # Which pixel lands in which slot. Pixels that are not pushed, and those that later ones of the same batch
        # would overwrite, all go to one spare slot at the end, which is cut off.
        order = member.cumsum(1) - 1
        kept = member & (order >= (count - capacity)[:, None])
        slot = torch.where(kept, (self.pushed[:, None] + order) % capacity, capacity)  # (K, P)
        pixel = torch.arange(len(features), device=slot.device).expand_as(slot)
        origin = slot.new_full((classes, capacity + 1), -1).scatter(1, slot, pixel)[:, :capacity]
        self.bank.copy_(torch.where((origin >= 0)[..., None], features[origin.clamp(min=0)], self.bank))
        self.pushed += count

    def sample(self, cls: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw features (*shape, D) of one class, uniformly and with replacement, by a CPU generator; zeros if none."""
        draw = torch.randint(2**62, shape, generator=generator).to(self.bank.device)
        return self.bank[cls, draw % self.stored[cls].clamp(min=1)]


class ContrastMemory(FeatureBank):
    """Class prototypes beside a bank of reliable unit features of each class.

    Args:
        classes: number of classes K.
        dim: feature length D.
        capacity: features kept per class.
        momentum: weight of the old prototype in an update, in [0, 1].

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

        A class with no reliable pixel is left as it is. A prototype starts at the mean of its first batch.

        Args:
            features: features of the EMA network, of any length, (B, D, h, w).
            label: class indices, 255 for a pixel that does not count, (B, h, w) int64.
            low_mask: True where the entropy is low, (B, h, w) bool.
        """
        classes, _, dim = self.bank.shape
        unit = F.normalize(features.to(self.bank.dtype), dim=1).movedim(1, -1).reshape(-1, dim)  # (P, D)
        class_index = torch.arange(classes, device=label.device)[:, None]
        member = (label.flatten() == class_index) & low_mask.flatten()  # (K, P)
        count = member.sum(1)  # (K,)

        mean = member.to(unit.dtype) @ unit / count.clamp(min=1)[:, None]
        moved = self.momentum * self.prototypes + (1.0 - self.momentum) * mean
        started = torch.where(self.has_prototype[:, None], moved, mean)
        self.prototypes.copy_(torch.where((count > 0)[:, None], started, self.prototypes))
        self.has_prototype |= count > 0

        self.push(unit, member)

    def sample_negatives(self, cls: int, anchors: int, negatives: int, generator: torch.Generator) -> Tensor:
        """Draw features of all classes but one, uniformly and with replacement.

        Args:
            cls: the class to leave out.
            anchors: number of rows M.
            negatives: features per row N.
            generator: a CPU generator.

        Returns:
            Unit features, (M, N, D); zeros when no other class has any.
        """
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pull uncertain pixels to the prototype of their pseudo-class and away from reliable features of the others.

    With `a = low_percent * (1 - progress)`, the valid pixels whose entropy is at most the `a`-th percentile are
    reliable: they update `memory`, without gradient and before the loss is taken. Those at or above the
    `(100 - a)`-th percentile are uncertain: up to `anchors_per_class` of each class are drawn as anchors for
    `info_nce`. The loss is the mean over the classes that have an anchor, a prototype and a negative. A new random
    choice is made at each call; it costs no wait for the device.

    Args:
        anchor_features: features of the trainee, the only input with gradient, (B, D, h, w).
        ema_features: features of the EMA network, (B, D, h, w).
        entropy: normalised entropy of the EMA prediction in [0, 1], float32 or float64, (B, h, w).
        label: pseudo-label, 255 for a pixel that does not count, (B, h, w) int64.
        memory: prototypes and bank; the loss is computed in its dtype.
        progress: elapsed share of the training, in [0, 1].
        generator: a CPU generator, the only source of randomness.
        anchors_per_class: largest number of anchors M of one class.
        negatives: number of negatives N of an anchor.
        temperature: divides the cosine similarities.
        low_percent: size in percent of each of the two sets at the start.

    Returns:
        The loss, a scalar >= 0, exactly 0 and still connected to the graph when fewer than two classes have a
        prototype or none qualifies; and scalars for the log: `anchors` (number used), `classes` (number in the loss),
        `prototypes` (number of classes that have one), `bank` (features stored for the class that has fewest).

    Raises:
        ValueError: if `progress` is outside [0, 1] or the shapes do not belong together.

    Reference:
        The partition, the counts and the temperature are U2PL's; that anchors come from the high-entropy region is
        ASDA's description of its contrast.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], got {progress}")
    grid = (anchor_features.shape[0], *anchor_features.shape[2:])
    if anchor_features.shape != ema_features.shape or entropy.shape != grid or label.shape != grid:
        raise ValueError(
            "expected two features (B, D, h, w) with entropy and label (B, h, w), got "
            f"{tuple(anchor_features.shape)}, {tuple(ema_features.shape)}, {tuple(entropy.shape)}, {tuple(label.shape)}"
        )
    valid = label != IGNORE
    share = low_percent / 100.0 * (1.0 - progress)
    counted = entropy.detach().masked_fill(~valid, torch.nan)
    low = counted <= torch.nanquantile(counted, share)  # a comparison with NaN is False
    high = counted >= torch.nanquantile(counted, 1.0 - share)
    memory.update(ema_features, label, low)

    drawn = []
    for cls in range(len(memory.prototypes)):
        index, chosen = draw_anchors(((label == cls) & high).flatten(), anchors_per_class, generator)
        drawn.append((index, chosen, memory.sample_negatives(cls, len(index), negatives, generator)))
    # Anchors alone are taken from the maps, of all classes at once: no copy of the maps, and one of their gradient.
    place = torch.stack([index for index, _, _ in drawn])  # (K, M)
    size = label[0].numel()
    anchors = anchor_features.flatten(2)[place // size, :, place % size].to(memory.bank.dtype)  # (K, M, D)
    total = anchors.new_zeros(())
    used_anchors = used_classes = torch.zeros((), device=anchors.device)
    for cls, (_, chosen, others) in enumerate(drawn):
        loss = info_nce(anchors[cls], memory.prototypes[cls], others, temperature, chosen)
        rivals = memory.stored.sum() - memory.stored[cls]
        # A class with a prototype and a class with stored features: two classes at least have a prototype.
        used = memory.has_prototype[cls] & (rivals > 0) & chosen.any()
        total = total + loss * used
        used_classes = used_classes + used
        used_anchors = used_anchors + chosen.sum() * used
    stats = {
        "anchors": used_anchors,
        "classes": used_classes,
        "prototypes": memory.has_prototype.sum().float(),
        "bank": memory.stored.min().float(),
    }
    return total / used_classes.clamp(min=1), stats


def pix_contrast(logits: Tensor, label: Tensor, epoch: int, epochs: int) -> Tensor:
    """Reproduce the contrast term of the released code; for parity only, it does not do what its name says.

    The release compares the one-channel cloud mask with the scores inside and outside it. The outside term is zero at
    every pixel, so that no negative pair exists; what is left is `v`, the mean over pixels of `cos((1, 1), z)` on cloud
    and 0 elsewhere. The loss is `0.8 v` below `v = -0.2` and `0.5 v` otherwise; from epoch 5 on it is multiplied by
    `(1 - q) / (q + 1e-5)` with `q = epoch / epochs`. It lowers the sum of the two scores of a cloud pixel, to which
    the softmax is blind, so a common shift changes it. `high_entropy_contrast` is the term to train with.

    Args:
        logits: scores, (B, 2, H, W).
        label: 0 background, 1 cloud, 255 for a pixel that does not count, (B, H, W) int64.
        epoch: current epoch, from 0.
        epochs: length of the training in epochs.

    Returns:
        A scalar that may be negative; exactly 0, and still connected to the graph, when every pixel is ignored.

    Raises:
        ValueError: if there are not two classes.

    Reference:
        `PixContrasrt` of the ASDA repository.
    """
    if logits.shape[1] != 2:
        raise ValueError(f"the released contrast is defined for 2 classes, got {logits.shape[1]}")
    cloud_logits = logits.masked_fill((label != 1)[:, None], 0.0)
    cosine = F.cosine_similarity(torch.ones_like(logits), cloud_logits, dim=1)  # (B, H, W), 0 off the clouds
    inside = cosine.sum() / (label != IGNORE).sum().clamp(min=1)
    loss = torch.where(inside + 0.2 < 0.0, 0.8 * inside, 0.5 * inside)
    if epoch < 5:
        return loss
    elapsed = epoch / epochs
    return loss * ((1.0 - elapsed) / (elapsed + 1e-5))


class Contrast(nn.Module):
    """A contrast term of the training: what it carries from step to step is in its buffers; it has no parameters.

    Args:
        classes: number of classes K.
        features: channels D of `Side.features`.
        projected: channels P of `Side.projected`.
        options: settings of the kind; the base has none.

    Raises:
        TypeError: if an option is not known.

    Attributes:
        two_sided: True where the unlabelled side must have labels too.
        looks_at_features: True where `Side.features` is needed; it is large.
    """

    two_sided = False
    looks_at_features = False

    def __init__(self, classes: int, features: int, projected: int, **options: Any) -> None:
        if options:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(options)}")
        super().__init__()

    def forward(self, labelled: Side, unlabelled: Side, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the loss, a scalar that is connected to the graph, and detached scalars for the log."""
        raise NotImplementedError


class HighEntropyContrast(Contrast):
    """`high_entropy_contrast` on the labelled side, with its memory.

    Args:
        classes: number of classes K.
        features: not used.
        projected: channels P of `Side.projected`.
        momentum: weight of the old prototype in an update, in [0, 1].
    """

    def __init__(self, classes: int, features: int, projected: int, momentum: float = 0.99) -> None:
        super().__init__(classes, features, projected)
        self.memory = ContrastMemory(classes, projected, momentum=momentum)

    def forward(self, labelled: Side, unlabelled: Side, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base; the unlabelled side is not used."""
        assert labelled.projected is not None and labelled.ema_projected is not None
        assert labelled.ema_scores is not None
        return high_entropy_contrast(
            labelled.projected,
            labelled.ema_projected,
            normalised_entropy(labelled.ema_scores.softmax(1)),
            labelled.grid_label("main"),
            self.memory,
            moment.progress,
            generator=torch.Generator().manual_seed(moment.seed),
        )


class PixContrast(Contrast):
    """`pix_contrast` of the labelled side, summed over the heads; for parity with the released code only."""

    def forward(self, labelled: Side, unlabelled: Side, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base; the unlabelled side is not used and nothing is logged."""
        terms = [
            pix_contrast(logits, labelled.label[head], moment.epoch, moment.epochs)
            for head, logits in labelled.logits.items()
        ]
        return torch.stack(terms).sum(), {}

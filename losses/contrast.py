"""What the contrasts of stage 3 have in common: base, InfoNCE, choice of pixels, mean over classes, feature bank."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.inputs import DomainOutputs, TrainingProgress

ContrastTerm = tuple[Tensor, dict[str, Tensor]]  # the loss, connected to the graph, and detached scalars for the log


class Contrast(nn.Module):
    """A contrast term of the training: what it carries from step to step is in its buffers; it has no parameters.

    It is built of the number of classes K and the channels of `DomainOutputs.features` and `DomainOutputs.projected`. A
    kind may add options with a default.

    Attributes:
        both_domains: True where the unlabelled domain must have labels too.
        reads_features: True where `DomainOutputs.features` is needed; it is large.
    """

    both_domains = False
    reads_features = False

    def __init__(self, classes: int, features: int, projected: int) -> None:
        super().__init__()

    def forward(self, labelled: DomainOutputs, unlabelled: DomainOutputs, progress: TrainingProgress) -> ContrastTerm:
        """The term of one step."""
        raise NotImplementedError


def info_nce(
    anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float, valid: Tensor | None = None
) -> Tensor:
    """Mean InfoNCE over the anchors, on cosine similarities (van den Oord et al., 2018, as the pixel contrast of U2PL).

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
    """
    anchors = F.normalize(anchors, dim=-1)
    attract = (anchors * F.normalize(positives, dim=-1)).sum(-1, keepdim=True)  # (M, 1)
    # Products are divided instead of features: no copy of all negatives, which are most of the memory.
    repel = torch.einsum("md,mnd->mn", anchors, negatives) / negatives.norm(dim=-1).clamp(min=1e-12)
    per_anchor = -F.log_softmax(torch.cat([attract, repel], 1) / temperature, 1)[:, 0]  # (M,)
    if valid is None:
        return per_anchor.sum() / max(len(per_anchor), 1)
    return per_anchor.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def extremes(entropy: Tensor, valid: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The valid pixels of low entropy, at most its quantile `low` over them, and those at or above quantile `high`."""
    counted = entropy.masked_fill(~valid, torch.nan)  # a comparison with NaN is False
    return counted <= torch.nanquantile(counted, low), counted >= torch.nanquantile(counted, high)


def draw_anchors(candidate: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose up to `count` of the candidates at random; the results have a fixed size, so that no device is waited for.

    Args:
        candidate: True where a pixel may be chosen, (P,) bool.
        generator: a CPU generator.

    Returns:
        Pixel indices (M,) with M = min(count, P), and True where an index is a candidate's, (M,) bool.
    """
    # The candidates of highest rank in a random order; when they are too few, others fill up and do not count.
    rank = torch.randperm(len(candidate), generator=generator).to(candidate.device)
    rank, index = rank.masked_fill(~candidate, -1).topk(min(count, len(candidate)))
    return index, rank >= 0


def mean_over_classes(terms: Sequence[tuple[Tensor, Tensor, Tensor]]) -> ContrastTerm:
    """The mean loss of the classes that take part; the log gets `anchors` (number used) and `classes` (in the loss).

    Args:
        terms: of each class its loss, True where it takes part, and True where one of its anchors counts, (M,) bool.
    """
    loss, used, anchors = (torch.stack(parts) for parts in zip(*terms, strict=True))
    classes = used.sum().float()
    stats = {"anchors": (anchors.sum(1) * used).sum().float(), "classes": classes}
    return (loss * used).sum() / classes.clamp(min=1), stats


class FeatureBank(nn.Module):
    """A first-in-first-out bank of `capacity` features of length `dim` per class, carried across steps and checkpoints.

    All work is done in tensors of fixed size, so that no step waits for the device.

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

"""Unreliable pseudo-labels: uncertain pixels leave the cross-entropy and serve as negatives of a contrast instead."""

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.contrast import Contrast, ContrastTerm, FeatureBank, draw_anchors, extremes, info_nce, mean_over_classes
from losses.inputs import DomainOutputs, TrainingProgress
from utils.labels import IGNORE


def _entropy(logits: Tensor) -> Tensor:
    """Entropy (B, ...) in nats of the softmax of scores (B, K, ...), without gradient, in float32 at least."""
    log_prob = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return -(log_prob.exp() * log_prob).sum(1)


def entropy_drop(target_label: Tensor, teacher_logits: Tensor, percent: float) -> Tensor:
    """The label with 255 at its most uncertain pixels (U2PL, Wang et al., CVPR 2022).

    Args:
        target_label: class indices, 255 for a pixel that does not count, (B, H, W) int64.
        teacher_logits: scores of the EMA network, (B, K, H, W).
        percent: pixels whose entropy is at or above this percentile of the known pixels are dropped, in [0, 100]; 100
            drops those at the maximum only.
    """
    entropy = _entropy(teacher_logits).masked_fill(target_label == IGNORE, torch.nan)
    highest = torch.nanquantile(entropy, percent / 100.0)
    return target_label.masked_fill(entropy >= highest, IGNORE)


class UncertainContrast(Contrast):
    """Contrast of reliable pixels with pixels that are surely not, or wrongly taken to be, of their class (U2PL).

    With `a = low_percent * (1 - progress)`, every labelled pixel is reliable, and of the unlabelled ones those whose
    entropy is at most the `a`-th percentile of the valid pixels. For each class c
        the anchors are trainee features of reliable pixels of both domains, labelled c, with `p_c > min_prob` (EMA);
        the positive is the mean EMA feature of the reliable pixels labelled c of this step;
        the negatives are drawn from a bank of EMA features: of unlabelled pixels whose entropy is at or above the
        `(100 - a)`-th percentile and for which c is not the most probable class, and of labelled pixels of another
        class that are taken for c.
    Percentiles need no label, so an unlabelled pixel that is 255 because it is uncertain can be a negative. Of the
    ranks of a class, only the first counts (`low_rank` 1), the one choice that means anything for two classes.

    The released code (Wang et al., CVPR 2022) asks that a negative of c be labelled c, which leaves the bank all but
    empty, and finds a class by its place in a list of those present; neither is so here.

    Options:
        capacity: negatives kept per class.
        anchors_per_class, negatives: most anchors of a class, and the number of negatives of each.
        temperature: divides the cosine similarities.

    Attributes:
        bank: `bank.bank[c]` holds the unit EMA features that are negatives of c.
    """

    both_domains = True

    def __init__(
        self,
        classes: int,
        features: int,
        projected: int,
        capacity: int = 4096,
        anchors_per_class: int = 256,
        negatives: int = 50,
        temperature: float = 0.5,
        low_percent: float = 20.0,
        min_prob: float = 0.3,
    ) -> None:
        super().__init__(classes, features, projected)
        self.bank = FeatureBank(classes, projected, capacity)
        self.anchors_per_class, self.negatives, self.temperature = anchors_per_class, negatives, temperature
        self.low_percent, self.min_prob = low_percent, min_prob

    def forward(self, labelled: DomainOutputs, unlabelled: DomainOutputs, progress: TrainingProgress) -> ContrastTerm:
        """The mean over the classes that have an anchor and a negative; the log also gets `bank`, the negatives stored
        for the class that has fewest."""
        share = self.low_percent / 100.0 * (1.0 - progress.fraction)
        pixels = [self._pixels(labelled, 1.0, share), self._pixels(unlabelled, share, share)]
        features, ema, prob, label, low, high = (torch.cat(parts) for parts in zip(*pixels, strict=True))
        is_labelled = torch.arange(len(label), device=label.device) < len(pixels[0][0])

        cls = torch.arange(len(self.bank.bank), device=label.device)[:, None]  # (K, 1)
        predicted = prob.argmax(1)
        uncertain = ~is_labelled & high & (predicted != cls)  # (K, P)
        mistaken = is_labelled & (label != IGNORE) & (label != cls) & (predicted == cls)
        self.bank.push(ema, uncertain | mistaken)

        reliable = low & (label == cls)
        positives = reliable.to(ema.dtype) @ ema  # (K, D), the sum: only the direction matters
        stored = self.bank.stored
        generator = progress.generator()
        terms = []
        for c, positive in enumerate(positives):
            index, chosen = draw_anchors(reliable[c] & (prob[:, c] > self.min_prob), self.anchors_per_class, generator)
            negatives = self.bank.sample(c, (len(index), self.negatives), generator)
            loss = info_nce(features[index], positive, negatives, self.temperature, chosen)
            terms.append((loss, (stored[c] > 0) & chosen.any(), chosen))
        loss, stats = mean_over_classes(terms)
        return loss, stats | {"bank": stored.min().float()}

    def _pixels(self, outputs: DomainOutputs, low_share: float, high_share: float) -> tuple[Tensor, ...]:
        """Trainee and unit EMA features (P, D), EMA probabilities (P, K), label, low and high entropy (P,)."""
        assert outputs.projected is not None and outputs.ema_projected is not None and outputs.ema_scores is not None
        dtype = self.bank.bank.dtype
        valid = outputs.on_grid(outputs.valid)
        label = outputs.grid_label().masked_fill(~valid, IGNORE)
        low, high = extremes(_entropy(outputs.ema_scores), valid, low_share, 1.0 - high_share)
        unit = F.normalize(outputs.ema_projected.to(dtype), dim=1)
        maps = (outputs.projected.to(dtype), unit, outputs.ema_scores.softmax(1))
        features, ema, prob = (m.movedim(1, -1).flatten(0, -2) for m in maps)
        return features, ema, prob, label.flatten(), low.flatten(), high.flatten()

"""Contrast with the distribution of each class, by the statistics of all labelled pixels seen so far."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.contrast import Contrast, ContrastTerm
from losses.inputs import DomainOutputs, TrainingProgress
from losses.segmentation import cross_entropy
from utils.labels import IGNORE


class ClassStatistics(nn.Module):
    """Running mean and diagonal variance of the features of each class: those of all pixels seen, not a decaying mean.

    The estimator of SDCA (Li et al., 2021); batches are merged as by Chan et al., 1983. The buffers are float64: a
    training sees more pixels than float32 can count one by one (2^24), and the share of a new batch in a mean soon
    falls to the precision of float32.

    Attributes:
        mean, variance: of the population, (K, D), zero for a class without pixels.
        count: pixels seen, (K,).
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        for name, shape in (("mean", (classes, dim)), ("variance", (classes, dim)), ("count", (classes,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, features: Tensor, label: Tensor) -> None:
        """Count more pixels: features (P, D) of any length, classes (P,) int64, 255 for a pixel that does not count."""
        known = label != IGNORE
        x = features.double().masked_fill(~known[:, None], 0.0)
        member = (label == torch.arange(len(self.mean), device=label.device)[:, None]).double()  # (K, P)
        number = member.sum(1)
        share = member / number.clamp(min=1)[:, None]
        mean = share @ x
        variance = share @ (x - mean[label.masked_fill(~known, 0)]).square()

        total = self.count + number
        part = (number / total.clamp(min=1))[:, None]
        step = mean - self.mean
        self.variance.copy_((1 - part) * self.variance + part * variance + part * (1 - part) * step.square())
        self.mean += part * step
        self.count.copy_(total)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, also where the squares of their elements would overflow; a row of zeros stays."""
    return F.normalize(x / x.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny), dim=-1)


def semantic_contrast(features: Tensor, label: Tensor, statistics: ClassStatistics, temperature: float) -> Tensor:
    """Pull features to the distribution of their class and away from those of the others (SDCA, Li et al., 2021).

    It is an upper bound of InfoNCE with infinitely many positives and negatives drawn from Gaussians. With `f` the unit
    feature and `M`, `V` the rows of mean and variance scaled to unit length, `s_c = 0.5 * sum_d f_d^2 V_cd / T`; the
    loss is the cross-entropy of the scores `(f . M_c + s_c) / T` plus the mean of `s_y / T` for the labels `y`.

    Args:
        features: of any length, the only input with gradient, (P, D).
        label: class indices, 255 for a pixel that does not count, (P,) int64.
        statistics: of K classes; a class that has no pixels takes no part, neither as label nor as rival.
        temperature: `T` > 0.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when no pixel counts.
    """
    seen = statistics.count > 0
    known = label != IGNORE
    known = known & seen[label.masked_fill(~known, 0)]
    label = label.masked_fill(~known, IGNORE)

    unit = _unit(features.masked_fill(~known[:, None], 0.0))
    mean, variance = (_unit(s).to(unit.dtype) for s in (statistics.mean, statistics.variance))
    spread = 0.5 * (unit.square() @ variance.T) / temperature  # (P, K)
    scores = (unit @ mean.T + spread) / temperature
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)  # not -inf: all classes may be unseen
    own = spread.gather(1, label.masked_fill(~known, 0)[:, None])[:, 0] / temperature
    return cross_entropy(scores, label) + own.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)


class SemanticContrast(Contrast):
    """`semantic_contrast` of both domains at two levels: the features and the main head's scores on their grid.

    The statistics are those of the labelled domain alone. Domains and levels add up. SDCA (Li et al., 2021) takes the
    temperature 100, where the scores of a few classes differ so little that the term is the constant ln K; at 0.5 two
    opposite cosines differ by 4 in the scores, while the variance term, which grows as 1/T^2, stays of their size even
    for vectors as short as the scores.
    """

    both_domains = True
    reads_features = True

    def __init__(self, classes: int, features: int, projected: int, temperature: float = 0.5) -> None:
        super().__init__(classes, features, projected)
        self.temperature = temperature
        self.feature_statistics = ClassStatistics(classes, features)
        self.score_statistics = ClassStatistics(classes, classes)

    def forward(self, labelled: DomainOutputs, unlabelled: DomainOutputs, progress: TrainingProgress) -> ContrastTerm:
        """The log gets the two levels by name. Uncertain pixels are 255 already."""
        feature = self._level(self.feature_statistics, labelled, unlabelled, "features")
        score = self._level(self.score_statistics, labelled, unlabelled, "scores")
        return feature + score, {"feature": feature.detach(), "score": score.detach()}

    def _level(
        self, statistics: ClassStatistics, labelled: DomainOutputs, unlabelled: DomainOutputs, name: str
    ) -> Tensor:
        domains = labelled, unlabelled
        rows = [getattr(domain, name).movedim(1, -1).flatten(0, -2) for domain in domains]  # (P, D)
        label = [domain.grid_label().flatten() for domain in domains]
        statistics.update(rows[0], label[0])
        first, second = (semantic_contrast(*one, statistics, self.temperature) for one in zip(rows, label, strict=True))
        return first + second

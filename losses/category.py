"""Category-level alignment: the adversarial pressure is strongest where two classifiers of one network disagree."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.adversarial import domain_cross_entropy


def discrepancy(prob_a: Tensor, prob_b: Tensor) -> Tensor:
    """One minus the cosine of two classifiers' probabilities (B, K, H, W) at each pixel: CLAN's local alignment score.

    It is (B, H, W) in [0, 1]: 0 where the classifiers agree, 1 where they are sure of different classes. It has a
    gradient; detach it for a weight that nothing can lower.
    """
    return (1.0 - F.cosine_similarity(prob_a, prob_b, dim=1)).clamp(0.0, 1.0)


def weighted_discriminator_loss(
    logits: Tensor,
    domain: int,
    weight: Tensor,
    epsilon: float = 0.4,
    lambda_local: float = 40.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean binary cross-entropy against one domain, times `epsilon + lambda_local * weight` at each valid pixel.

    This is the self-adaptive adversarial loss of CLAN (Luo et al., CVPR 2019; `lambda_local` 40 for GTA, 10 for
    SYNTHIA).

    Args:
        logits: discriminator scores before the sigmoid, (B, 1, H, W).
        domain: `SOURCE` (0) or `TARGET` (1).
        weight: the discrepancy of the classifiers, (B, H, W) or (B, 1, H, W).
        epsilon, lambda_local: what a pixel counts where the classifiers agree, and how much more where they do not.
        valid: where there is data, (B, 1, H, W), True or 1; None for everywhere.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when no pixel is valid.

    Raises:
        ValueError: if the weight does not cover the logits.
    """
    if weight.dim() == logits.dim() - 1:
        weight = weight[:, None]
    if weight.shape != logits.shape:
        raise ValueError(f"weight {tuple(weight.shape)} does not cover the logits {tuple(logits.shape)}")
    weighted = domain_cross_entropy(logits, domain) * (epsilon + lambda_local * weight)
    return weighted.mean() if valid is None else (weighted * valid).sum() / valid.sum().clamp(min=1)


def weight_divergence(weights_a: Sequence[Tensor], weights_b: Sequence[Tensor]) -> Tensor:
    """Cosine of all parameters of two classifiers, plus one; lowered, it keeps them two different views.

    The weight discrepancy loss of CLAN (Luo et al., CVPR 2019): a scalar in [0, 2], 1 for orthogonal directions.

    Raises:
        ValueError: if the shapes, in their order, differ.
    """
    if [w.shape for w in weights_a] != [w.shape for w in weights_b]:
        raise ValueError("the two classifiers have parameters of different shapes")
    flat_a, flat_b = (torch.cat([w.flatten() for w in weights]) for weights in (weights_a, weights_b))
    return F.cosine_similarity(flat_a, flat_b, dim=0) + 1.0

"""Anchor self-guidance: pseudo-labels from the frozen anchor network and the EMA network."""

import torch
from torch import Tensor

from utils.labels import IGNORE

FUSION_RULES = ("union", "anchor", "ema", "agree", "mean")


def fuse(anchor_prob: Tensor, ema_prob: Tensor, rule: str, floor: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """Merge two predictions into one label map.

    Each rule gives a pixel a label and a confidence; a pixel whose confidence is below `floor` (or NaN) becomes 255, as
    in PTDA. `union` is the anchor self-guidance of ASDA. A tie between classes goes to the lower class index.

    Rules:
        `union`: cloud (1) if either network says cloud, else background (0). One vote makes a cloud, so its
            confidence is the larger of the two cloud probabilities; background takes both, so its confidence is the
            smaller of the two background probabilities. A floor therefore removes background sooner than cloud.
        `anchor`: the anchor's argmax with its probability.
        `ema`: the same of the EMA network.
        `agree`: the common argmax with the smaller of the two probabilities; 255 where the networks disagree.
        `mean`: argmax of the averaged probabilities with the averaged probability.

    Args:
        anchor_prob, ema_prob: probabilities of the two networks, in [0, 1], (B, K, H, W).
        floor: lowest confidence that is kept, in [0, 1]; 0 keeps all.
        valid: False where a pixel must not be labelled (padding, no data), (B, H, W) bool; None for all valid.

    Returns:
        Class indices, 255 where undecided, (B, H, W) int64.

    Raises:
        ValueError: shapes differ, the rule is unknown, the floor is outside [0, 1], or `union` meets K other than 2.
    """
    if anchor_prob.shape != ema_prob.shape:
        raise ValueError(f"networks differ in shape: anchor {tuple(anchor_prob.shape)}, ema {tuple(ema_prob.shape)}")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"confidence floor must lie in [0, 1], got {floor}")
    anchor_best, anchor_label = anchor_prob.max(1)  # (B, H, W)
    ema_best, ema_label = ema_prob.max(1)
    if rule == "union":
        if anchor_prob.shape[1] != 2:
            raise ValueError(f"rule 'union' is defined for 2 classes, got {anchor_prob.shape[1]}; use 'mean'")
        label = anchor_label | ema_label
        cloud = torch.maximum(anchor_prob[:, 1], ema_prob[:, 1])
        background = torch.minimum(anchor_prob[:, 0], ema_prob[:, 0])
        confidence = torch.where(label == 1, cloud, background)
    elif rule == "anchor":
        label, confidence = anchor_label, anchor_best
    elif rule == "ema":
        label, confidence = ema_label, ema_best
    elif rule == "agree":
        label = anchor_label.masked_fill(anchor_label != ema_label, IGNORE)
        confidence = torch.minimum(anchor_best, ema_best)
    elif rule == "mean":
        confidence, label = ((anchor_prob + ema_prob) / 2).max(1)
    else:
        raise ValueError(f"unknown fusion rule {rule!r}; choose one of {', '.join(FUSION_RULES)}")
    decided = confidence >= floor if valid is None else (confidence >= floor) & valid
    return label.masked_fill(~decided, IGNORE)


def mask_to_probabilities(label: Tensor, ema_prob: Tensor) -> Tensor:
    """A stored mask (B, H, W) of classes as probabilities (B, K, H, W); the EMA's own where the mask is 255."""
    certain = torch.zeros_like(ema_prob).scatter_(1, label.masked_fill(label == IGNORE, 0)[:, None], 1.0)
    return torch.where((label == IGNORE)[:, None], ema_prob, certain)

"""Losses and pseudo-label rules: pure functions of tensors, with the ignore label 255 kept out of every mean."""

from losses.adversarial import SOURCE, TARGET, discriminator_loss
from losses.consistency import consistency
from losses.contrast import ContrastMemory, high_entropy_contrast, info_nce, pix_contrast
from losses.entropy import entropy_loss, mean_entropy, normalised_entropy, weighted_self_information
from losses.pseudo_label import FUSION_RULES, fuse
from losses.segmentation import IGNORE, cross_entropy, soft_jaccard

__all__ = [
    "FUSION_RULES",
    "IGNORE",
    "SOURCE",
    "TARGET",
    "ContrastMemory",
    "consistency",
    "cross_entropy",
    "discriminator_loss",
    "entropy_loss",
    "fuse",
    "high_entropy_contrast",
    "info_nce",
    "mean_entropy",
    "normalised_entropy",
    "pix_contrast",
    "soft_jaccard",
    "weighted_self_information",
]

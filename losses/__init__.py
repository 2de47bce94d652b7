"""Losses and pseudo-label rules: pure functions of tensors, with the ignore label 255 kept out of every mean."""

from losses.adversarial import SOURCE, TARGET, discriminator_loss
from losses.category import discrepancy, weight_divergence, weighted_discriminator_loss
from losses.class_threshold import EntropyHistogram, below_threshold, class_median_entropy, quantise
from losses.consistency import consistency
from losses.contrast import (
    Contrast,
    ContrastMemory,
    FeatureBank,
    HighEntropyContrast,
    PixContrast,
    high_entropy_contrast,
    info_nce,
    pix_contrast,
)
from losses.entropy import entropy_loss, mean_entropy, normalised_entropy, weighted_self_information
from losses.pseudo_label import FUSION_RULES, fuse
from losses.registry import CONTRASTS, SELF_TRAINING
from losses.segmentation import IGNORE, cross_entropy, focal, soft_jaccard
from losses.self_training import View, strong_colour, weighted_cross_entropy
from losses.semantic import ClassStatistics, SemanticContrast, semantic_contrast
from losses.side import Moment, Side
from losses.u2pl import UncertainContrast, entropy_drop, unsupervised_loss

__all__ = [
    "CONTRASTS",
    "FUSION_RULES",
    "IGNORE",
    "SELF_TRAINING",
    "SOURCE",
    "TARGET",
    "ClassStatistics",
    "Contrast",
    "ContrastMemory",
    "EntropyHistogram",
    "FeatureBank",
    "HighEntropyContrast",
    "Moment",
    "PixContrast",
    "SemanticContrast",
    "Side",
    "UncertainContrast",
    "View",
    "below_threshold",
    "class_median_entropy",
    "consistency",
    "cross_entropy",
    "discrepancy",
    "discriminator_loss",
    "entropy_drop",
    "entropy_loss",
    "focal",
    "fuse",
    "high_entropy_contrast",
    "info_nce",
    "mean_entropy",
    "normalised_entropy",
    "pix_contrast",
    "quantise",
    "semantic_contrast",
    "soft_jaccard",
    "strong_colour",
    "unsupervised_loss",
    "weight_divergence",
    "weighted_cross_entropy",
    "weighted_discriminator_loss",
    "weighted_self_information",
]

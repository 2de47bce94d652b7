"""Samples to predictions: segmentation network, discriminator, EMA copy, projection head and weight files."""

from nets.discriminator import Discriminator
from nets.ema import EMA
from nets.projection import ProjectionHead
from nets.segmenter import AtrousHead, Prediction, Segmenter, resize_logits
from nets.weights import import_deeplab_v2, load_segmenter, load_weights, save_weights

__all__ = [
    "EMA",
    "AtrousHead",
    "Discriminator",
    "Prediction",
    "ProjectionHead",
    "Segmenter",
    "import_deeplab_v2",
    "load_segmenter",
    "load_weights",
    "resize_logits",
    "save_weights",
]

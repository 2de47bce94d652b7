"""The choices that a configuration can name; `config/schema.py` lists the same names."""

from losses.alignment import ALIGNMENTS
from losses.contrast import Contrast, HighEntropyContrast, PixContrast
from losses.self_training import SELF_TRAINING
from losses.semantic import SemanticContrast
from losses.u2pl import UncertainContrast

CONTRASTS: dict[str, type[Contrast]] = {
    "hec": HighEntropyContrast,
    "pix": PixContrast,
    "u2pl": UncertainContrast,
    "sdca": SemanticContrast,
}

__all__ = ["ALIGNMENTS", "CONTRASTS", "SELF_TRAINING"]

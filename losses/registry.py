"""The choices of a configuration by name; `config/` lists the names again, since it does not import torch."""

from collections.abc import Callable

from losses.alignment import Alignment, CategoryAlignment, EntropyAlignment, EntropyMinimisation, SoftmaxAlignment
from losses.contrast import Contrast
from losses.high_entropy import HighEntropyContrast
from losses.released import PixContrast
from losses.self_training import PseudoLabelledBatch, classmix, entropy_drop, masked, stored
from losses.semantic import SemanticContrast
from losses.u2pl import UncertainContrast

ALIGNMENTS: dict[str, type[Alignment]] = {
    "entropy": EntropyAlignment,
    "softmax": SoftmaxAlignment,
    "minent": EntropyMinimisation,
    "clan": CategoryAlignment,
}
CONTRASTS: dict[str, type[Contrast]] = {
    "hec": HighEntropyContrast,
    "pix": PixContrast,
    "u2pl": UncertainContrast,
    "sdca": SemanticContrast,
}
SELF_TRAINING: dict[str, Callable[..., PseudoLabelledBatch]] = {
    "stored": stored,
    "entropy_drop": entropy_drop,
    "classmix": classmix,
    "masked": masked,
}

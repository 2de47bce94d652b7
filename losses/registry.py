"""What a configuration may choose by name, and where it is defined.

Nothing is imported here, so that a configuration is checked before torch is; `engine.build` resolves a name on use.
"""

ALIGNMENTS = {  # teacher.alignment, intra.alignment
    "entropy": "losses.alignment.EntropyAlignment",
    "softmax": "losses.alignment.SoftmaxAlignment",
    "minent": "losses.alignment.EntropyMinimisation",
    "clan": "losses.alignment.CategoryAlignment",
}
CONTRASTS = {  # intra.contrast
    "hec": "losses.high_entropy.HighEntropyContrast",
    "pix": "losses.released.PixContrast",
    "u2pl": "losses.u2pl.UncertainContrast",
    "sdca": "losses.semantic.SemanticContrast",
}
SELF_TRAINING = {  # intra.self_training
    "stored": "losses.self_training.stored",
    "entropy_drop": "losses.self_training.entropy_drop",
    "classmix": "losses.self_training.classmix",
    "masked": "losses.self_training.masked",
}

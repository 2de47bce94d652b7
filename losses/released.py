"""The contrast of the released code of ASDA, for parity only."""

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.contrast import Contrast, ContrastTerm
from losses.inputs import DomainOutputs, TrainingProgress
from utils.labels import IGNORE


def pix_contrast(logits: Tensor, label: Tensor, epoch: int, epochs: int) -> Tensor:
    """`PixContrasrt` of the ASDA repository, for parity only: it does not do what its name says.

    The release compares the one-channel cloud mask with the scores inside and outside it. The outside term is zero at
    every pixel, so that no negative pair exists; what is left is `v`, the mean over pixels of `cos((1, 1), z)` on cloud
    and 0 elsewhere. The loss is `0.8 v` below `v = -0.2` and `0.5 v` otherwise; from epoch 5 on it is multiplied by
    `(1 - q) / (q + 1e-5)` with `q = epoch / epochs`. It lowers the sum of the two scores of a cloud pixel, to which
    the softmax is blind, so a common shift changes it. `high_entropy_contrast` is the term to train with.

    Args:
        logits: scores, (B, 2, H, W).
        label: 0 background, 1 cloud, 255 for a pixel that does not count, (B, H, W) int64.
        epoch: current epoch, from 0, of `epochs`.

    Returns:
        A scalar that may be negative; exactly 0, and still connected to the graph, when every pixel is ignored.

    Raises:
        ValueError: if there are not two classes.
    """
    if logits.shape[1] != 2:
        raise ValueError(f"the released contrast is defined for 2 classes, got {logits.shape[1]}")
    cloud_logits = logits.masked_fill((label != 1)[:, None], 0.0)
    cosine = F.cosine_similarity(torch.ones_like(logits), cloud_logits, dim=1)  # (B, H, W), 0 off the clouds
    inside = cosine.sum() / (label != IGNORE).sum().clamp(min=1)
    loss = torch.where(inside + 0.2 < 0.0, 0.8 * inside, 0.5 * inside)
    elapsed = epoch / epochs
    return loss if epoch < 5 else loss * ((1.0 - elapsed) / (elapsed + 1e-5))


class PixContrast(Contrast):
    """`pix_contrast` of the labelled domain, summed over the heads."""

    def forward(self, labelled: DomainOutputs, unlabelled: DomainOutputs, progress: TrainingProgress) -> ContrastTerm:
        time = progress.epoch, progress.epochs
        terms = [pix_contrast(logits, labelled.label[head], *time) for head, logits in labelled.logits.items()]
        return torch.stack(terms).sum(), {}

"""What a term of the training may look at: when it is computed, and what both networks say of one domain's images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nets.segmenter import grid_places


class TrainingProgress(NamedTuple):
    """Where a training stage stands: `step` of `steps`, `epoch_steps` steps an epoch, and the seed of this step."""

    step: int
    steps: int
    epoch_steps: int
    seed: int

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, in [0, 1)."""
        return self.step / self.steps

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return self.step // self.epoch_steps

    @property
    def epochs(self) -> int:
        """Number of epochs of the stage, at least 1."""
        return max(1, math.ceil(self.steps / self.epoch_steps))

    def generator(self) -> torch.Generator:
        """A CPU generator of this step's random numbers: a pure function of the seed."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class DomainOutputs:
    """One domain's B images (H, W) of a step, easy and hard being two domains; K classes, (h, w) the features' grid.

    Attributes:
        logits: the trainee's scores by head, (B, K, H, W).
        valid: False on padding and where there is no data, (B, H, W) bool.
        label: classes by head, 255 where nothing is known, (B, H, W) int64; empty where no term asks for labels.
        features: what the trainee's main head reads, (B, D, h, w), where the contrast looks at it.
        projected: the trainee's projection of it, (B, P, h, w).
        scores: the trainee's main head on the features' grid, (B, K, h, w).
        ema_projected: as `projected`, of the EMA network, without gradient.
        ema_scores: as `scores`, of the EMA network, without gradient.
        align_corners: whether the corners of the features' grid are the image's; else its pixels tile the image.
    """

    logits: Mapping[str, Tensor]
    valid: Tensor
    label: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    projected: Tensor | None = None
    scores: Tensor | None = None
    ema_projected: Tensor | None = None
    ema_scores: Tensor | None = None
    align_corners: bool = True

    def on_grid(self, layer: Tensor) -> Tensor:
        """A layer (B, H, W) where the features stand, (B, h, w)."""
        grid = next(maps for maps in (self.features, self.projected, self.scores) if maps is not None)
        rows, columns = (
            grid_places(full, low, self.align_corners, layer.device)
            for full, low in zip(layer.shape[-2:], grid.shape[-2:], strict=True)
        )
        return layer[:, rows[:, None], columns]

    def grid_label(self) -> Tensor:
        """The main head's label (B, h, w) where the features stand."""
        return self.on_grid(self.label["main"])

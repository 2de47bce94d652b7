"""What a term of the training may look at: one half of a step's batch as both networks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Moment(Protocol):
    """When a term is computed; `engine.schedule.Clock` is one."""

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1)."""
        ...

    @property
    def epoch(self) -> int: ...

    @property
    def epochs(self) -> int: ...

    @property
    def seed(self) -> int:
        """Another one at each step."""
        ...


@dataclass(frozen=True)
class Side:
    """The labelled or the unlabelled half of a batch of B images (H, W), K classes; (h, w) is the features' grid.

    Attributes:
        logits: the trainee's scores by head, (B, K, H, W).
        valid: False on padding and where there is no data, (B, H, W) bool.
        label: classes by head, 255 where nothing is known, (B, H, W) int64; empty where no term asks for labels.
        features: the trainee's last backbone level, (B, D, h, w), where the contrast looks at it.
        projected: the trainee's projection of it, (B, P, h, w).
        scores: the trainee's main head on the features' grid, (B, K, h, w).
        ema_projected: as `projected`, of the EMA network, without gradient.
        ema_scores: as `scores`, of the EMA network, without gradient.
    """

    logits: Mapping[str, Tensor]
    valid: Tensor
    label: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    projected: Tensor | None = None
    scores: Tensor | None = None
    ema_projected: Tensor | None = None
    ema_scores: Tensor | None = None

    def grid_label(self, head: str = "main") -> Tensor:
        """The label (B, h, w) where the features stand: the corners of a grid of logits are those of the image."""
        shown = next(maps for maps in (self.features, self.projected, self.scores) if maps is not None)
        label = self.label[head]
        rows, columns = (
            torch.linspace(0, full - 1, low, device=label.device).round().long()
            for full, low in zip(label.shape[-2:], shown.shape[-2:], strict=True)
        )
        return label[:, rows[:, None], columns]

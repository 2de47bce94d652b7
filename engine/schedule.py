"""Learning rates as pure functions of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math
from typing import NamedTuple

POWER = 0.9  # DeepLab, ADVENT


class Clock(NamedTuple):
    """Where a training stage stands: `step` of `steps`, `epoch_steps` steps an epoch, and the seed of this step."""

    step: int
    steps: int
    epoch_steps: int
    seed: int

    @property
    def progress(self) -> float:
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


def poly(base: float, step: int, steps: int) -> float:
    """Polynomial decay `base * (1 - step/steps)^POWER`."""
    return base * (1 - step / steps) ** POWER


def asda_released(epoch: int, warmup_epochs: int) -> float:
    """The released piecewise rate: a quadratic rise from 6e-4 to 8e-4, then a cosine between 2.5e-4 and 1e-6.

    The cosine's half period is 15 epochs whatever the length of the run, so the rate rises again after epoch 15.

    Args:
        epoch: finished epochs.
        warmup_epochs: 15 in stage 1, 0 in stage 3.
    """
    if epoch < warmup_epochs:
        return 6e-4 + 2e-4 * (epoch / warmup_epochs) ** 2
    return 1e-6 + 0.5 * (2.5e-4 - 1e-6) * (1 + math.cos(math.pi * epoch / 15))

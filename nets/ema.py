"""The exponential moving average of a network: the model that labels, is evaluated and is exported."""

import copy
from typing import Any

import torch
from torch import nn


class EMA(nn.Module):
    """A frozen copy of `model` in eval mode whose state follows the trainee: `ema <- d * ema + (1 - d) * trainee`.

    Every floating entry of the state dict is averaged, batch-norm statistics included; integer entries are copied.
    With equal weights on both sides an update changes no bit.

    `decay` is d, in [0, 1). With `ramp`, d at step t is `min(1 - 1 / (t + 1), decay)`, t counting the updates made
    before this one: the first update copies the trainee, and the early ones average over what there is.
    Without it d is constant, as in the released ASDA code.

    Source: mean teacher (Tarvainen and Valpola, NeurIPS 2017).
    """

    def __init__(self, model: nn.Module, decay: float = 0.995, ramp: bool = True) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the EMA decay must be in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp = decay, ramp
        self.eval()

    def forward(self, *args: Any) -> Any:
        return self.model(*args)

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode, also as part of a module that is put in train mode."""
        return super().train(False)

    def decay_at(self, step: int) -> float:
        """The decay of the update number `step`, counted from 0."""
        return min(1.0 - 1.0 / (step + 1), self.decay) if self.ramp else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the copy towards `model`; `step` is the number of updates made before this one.

        Raises:
            ValueError: the state dicts have different entries, as those of a wrapped network have.
        """
        weight = 1.0 - self.decay_at(step)
        current, averages = model.state_dict(), self.model.state_dict()
        if current.keys() != averages.keys():
            names = sorted(current.keys() ^ averages.keys())[:4]
            raise ValueError(f"the EMA follows a network with the same state dict, these entries differ: {names}")
        floating = [name for name, average in averages.items() if average.is_floating_point()]
        # a + w * (b - a) keeps a where a == b; d * a + (1 - d) * b would round. On a GPU all tensors are one call.
        torch._foreach_lerp_([averages[name] for name in floating], [current[name] for name in floating], weight)
        for name in averages.keys() - set(floating):
            averages[name].copy_(current[name])

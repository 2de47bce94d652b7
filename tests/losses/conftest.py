"""The deterministic inputs of the known answers, which were computed once with the published code of each method."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Known(NamedTuple):
    """Two score maps (2, 2, 8, 12) float64 and a label map (2, 8, 12) without ignored pixels."""

    z1: Tensor
    z2: Tensor
    y: Tensor


@pytest.fixture
def known() -> Known:
    b, c, i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 2, 8, 12)), indexing="ij")
    phase = 0.37 * b + 1.3 * c + 0.11 * i + 0.07 * j
    label = ((i // 3 + j // 5 + b) % 2)[:, 0].long()
    return Known(2 * torch.sin(phase), 2 * torch.sin(phase + 0.9), label)

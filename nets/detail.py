"""A small branch at full resolution that sharpens the logits of a coarse head."""

import torch
from torch import Tensor, nn


class DetailBranch(nn.Module):
    """What to add to upsampled logits, from them and the image: three convolutions that see 7x7 pixels.

    A head of stride 16 tells a cloud from snow, but draws it in blocks; colour tells to the pixel where it ends. The
    last layer starts at 0, so that training starts from the head's own logits.

    Shape: image (B, `bands`, H, W), normalised, and logits (B, `classes`, H, W) to logits of the same shape.

    Source: the detail branch of two-branch networks (BiSeNet, Yu et al., ECCV 2018), here on the logits of a head.
    """

    def __init__(self, bands: int, classes: int, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, classes, kernel_size=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.get_parameter("bias"))
        self.layers = nn.Sequential(
            nn.Conv2d(bands + classes, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=2, dilation=2),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, image: Tensor, logits: Tensor) -> Tensor:
        return logits + self.layers(torch.cat([image, logits], 1))

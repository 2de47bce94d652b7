"""The domain discriminator of entropy-map adversarial training."""

from itertools import pairwise

from torch import Tensor, nn

MIN_SIZE = 32  # five halvings leave one pixel


class Discriminator(nn.Module):
    """Fully convolutional patch discriminator: five 4x4 convolutions of stride 2, LeakyReLU 0.2 between them.

    Shape: entropy map (B, `channels`, H, W), values in [0, 1], to domain logits (B, 1, H // 32, W // 32);
    a positive logit says target. `width` is the number of channels of the first layer, doubled three times.

    Source: the DCGAN-style discriminator of ADVENT (Vu et al., CVPR 2019).
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.channels = channels
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        layers.append(nn.Conv2d(widths[-1], 1, kernel_size=4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, entropy_map: Tensor) -> Tensor:
        self.require_size(entropy_map)
        return self.layers(entropy_map)

    def require_size(self, entropy_map: Tensor) -> None:
        """Raise ValueError where the map has another number of channels, or less than 32 pixels on one side."""
        channels, height, width = entropy_map.shape[-3:]
        if channels != self.channels or min(height, width) < MIN_SIZE:
            raise ValueError(
                f"the discriminator needs {self.channels} channels of at least {MIN_SIZE}x{MIN_SIZE} pixels, "
                f"got a map of shape {tuple(entropy_map.shape)}; raise the training input size"
            )

"""The projection head in whose space the pixel contrast is computed."""

from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """Per-pixel embedding of unit length: 1x1 convolution, ReLU, 1x1 convolution, L2 normalisation.

    Shape: features (B, `in_channels`, h, w) to embeddings (B, `out`, h, w) with norm 1 along dimension 1.
    Used in training only; the exported network does not contain it.
    """

    def __init__(self, in_channels: int, hidden: int = 256, out: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, kernel_size=1), nn.ReLU(inplace=True), nn.Conv2d(hidden, out, kernel_size=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features), dim=1)

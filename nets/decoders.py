"""Decoders: from the levels of a backbone to one map of features, which a 1x1 convolution classifies.

Those of segmentation_models.pytorch, without aligned corners and dropout; and the heads of DeepLab-v2.
"""

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, FusionBlock
from segmentation_models_pytorch.decoders.fpn.decoder import Conv3x3GNReLU, FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from nets.backbone import is_plain
from utils.errors import ConfigError

PYRAMIDS = ((2, 4, 8, 16, 32), (4, 8, 16, 32))  # strides of the levels that all but dpt read


def build_decoder(name: str, strides: Sequence[int], channels: Sequence[int], width: int) -> nn.Module:
    """The decoder of a list of maps, from fine to coarse, into features (B, `width`, h, w) that tile the image.

    The list holds the image, which gives its size alone, an empty map (B, 0, H / 2, W / 2) where the levels begin at
    stride 4, and the levels.

    Args:
        name: "fpn" (Kirillov et al., CVPR 2019), "segformer" (linear layers; Xie et al., NeurIPS 2021) and "upernet"
            (pools over the whole window; Xiao et al., ECCV 2018) give a quarter of the image's size; "unet"
            (Ronneberger et al., MICCAI 2015) half of it; "dpt" (Ranftl et al., ICCV 2021) eight times that of levels
            of one size.
        strides, channels: of the levels.

    Raises:
        ConfigError: there is no such decoder; or such levels cannot feed it: names the decoders that they can.
    """
    pyramid, plain = tuple(strides) in PYRAMIDS, is_plain(strides)
    if not (plain if name == "dpt" else pyramid):
        fit = ["fpn", "unet", "segformer", "upernet"] * pyramid + ["dpt"] * plain + ["deeplab_v2"]
        found = f"a backbone whose levels have the strides {', '.join(map(str, strides))}"
        raise ConfigError(f"decoder {name} cannot be fed by {found}; set decoder to {' or '.join(fit)}")
    maps = [3, *([0] if strides[0] == 4 else []), *channels]  # no decoder reads the image's bands
    depth = len(maps) - 1
    if name == "dpt":
        return DPT(channels, width)
    if name == "fpn":
        return _window_independent(FPNDecoder(maps, depth, width, width, dropout=0))
    if name == "unet":
        return UnetDecoder(maps, (4 * width, 2 * width, width, width), n_blocks=depth - 1)
    if name == "segformer":
        return SegformerDecoder(maps, depth, width)
    if name == "upernet":
        decoder = UPerNetDecoder(maps, depth, width)
        for block in decoder.psp.blocks:
            block[0] = AdaptiveMean(block[0].output_size)
        return decoder
    raise ConfigError(f"there is no decoder {name!r}; there are fpn, unet, segformer, upernet, dpt and deeplab_v2")


def _window_independent(decoder: FPNDecoder) -> FPNDecoder:
    """The library's pyramid with batch in place of group normalisation, whose means are over all that it is shown, and
    resized about the pixels' centres in place of aligned corners, which move with the size of what it is shown."""
    for block in [module for module in decoder.modules() if isinstance(module, Conv3x3GNReLU)]:
        block.block[1] = nn.BatchNorm2d(decoder.out_channels)
        if block.upsample:
            block.upsample = False
            block.block.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    decoder.merge = _Sum()
    return decoder


class AdaptiveMean(nn.Module):
    """Adaptive average pooling to `size` x `size` as two products of matrices, which ONNX has at any map size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        rows, columns = (self._means(length, maps) for length in maps.shape[-2:])
        return rows @ maps @ columns.T

    def _means(self, length: int, like: Tensor) -> Tensor:
        """(size, length): row i gives the mean over the i-th part."""
        part = torch.arange(self.size, device=like.device)[:, None]
        place = torch.arange(length, device=like.device)
        inside = (place >= part * length // self.size) & (place < ((part + 1) * length + self.size - 1) // self.size)
        weights = inside.to(like.dtype)
        return weights / weights.sum(1, keepdim=True)


class _Sum(nn.Module):
    """Adds maps one by one, where the library stacks them first, which takes a fifth of a prediction's time."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, *others = maps
        return sum(others, first)


class DPT(DPTDecoder):
    """The decoder of a transformer without pyramid; its levels become 4, 2, 1 and half as large, whatever its patch."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        widths = [width * 2**level for level in range(len(channels))]
        super().__init__(channels, [16] * len(channels), False, "ignore", widths, width)
        for block in self.fusion_blocks:
            block.__class__ = _CentredFusion

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward(list(maps[1:]), [None] * len(maps[1:]))


class _CentredFusion(FusionBlock):
    """Doubles about the pixels' centres, where the library's aligns corners."""

    def forward(self, feature: Tensor, previous_feature: Tensor | None = None) -> Tensor:
        fused = self.residual_conv_block1(feature)
        if previous_feature is not None:
            fused = fused + previous_feature
        return self.project(F.interpolate(self.residual_conv_block2(fused), scale_factor=2, mode="bilinear"))


class AtrousHead(nn.Module):
    """The sum of four 3x3 convolutions of dilation 6, 12, 18 and 24, started from a normal of deviation 0.01.

    Shape: features (B, `in_channels`, h, w) to logits (B, `classes`, h, w).

    Source: DeepLab-v2 (Chen et al., TPAMI 2018), atrous spatial pyramid pooling.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, classes, kernel_size=3, padding=rate, dilation=rate) for rate in (6, 12, 18, 24)
        )
        for branch in self.branches:
            nn.init.normal_(branch.get_parameter("weight"), std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        first, *others = self.branches
        return sum((branch(features) for branch in others), first(features))


def level_head(in_channels: int, classes: int, width: int) -> nn.Sequential:
    """What classifies a level of the backbone itself: 3x3 convolution, batch normalisation, ReLU, 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, classes, kernel_size=1),
    )

"""The segmentation network: a backbone of timm, a decoder, and two heads."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Literal, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nets.backbone import (
    build_dilated,
    build_pyramid,
    feature_levels,
    freeze_batch_norm,
    is_plain,
    kaiming_init,
    repeat_borders,
    to_deeplab_v2,
)
from nets.decoders import AtrousHead, build_decoder, level_head
from nets.pretrained import load_backbone
from utils.errors import ConfigError

HEADS = ("main", "aux")
Head = Literal["main", "aux"]


class Prediction(NamedTuple):
    """What the network says about a batch of images (B, C, H, W).

    `main` and `aux` (B, K, H, W) are the logits of the two heads. `features` (B, D, h, w) is what the main head
    classifies, the decoder's output, and `scores` (B, K, h, w) its logits there. `projected` (B, P, h, w) is there
    where a projection head was trained beside the network.
    """

    main: Tensor
    aux: Tensor
    features: Tensor
    scores: Tensor
    projected: Tensor | None = None


def resize_logits(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize logits (B, K, h, w) bilinearly to `size` (H, W)."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)


def logits_by_head(prediction: Prediction) -> dict[str, Tensor]:
    """Both heads' logits by the names in `HEADS`."""
    return {head: getattr(prediction, head) for head in HEADS}


def grid_places(length: int, low: int, align_corners: bool, device: torch.device | None = None) -> Tensor:
    """The pixels of an axis of `length` on which the `low` pixels of a coarser grid stand, (low,) int64."""
    if align_corners:
        return torch.linspace(0, length - 1, low, device=device).round().long()
    return (2 * torch.arange(low, device=device) + 1) * length // (2 * low)


class Segmenter(nn.Module):
    """A backbone of timm, a decoder of its levels, the main head on that, and the auxiliary head beside it.

    Shape: image (B, `in_channels`, H, W), float in [0, 1], to a `Prediction`. The network normalises the image itself,
    and fills it up to whole pixels of the coarsest level by repeating its border, as its convolutions do, so H and W
    may be any.

    Args:
        backbone: the name of a timm model that gives features.
        classes, in_channels: K, and the number of image bands.
        decoder: a name of `nets.decoders.build_decoder`; or "deeplab_v2", two atrous heads on the last two levels, as
            the published checkpoints have them, the corners of whose grids are aligned with the image's.
        decoder_width: D of a decoder, and the inner width of the auxiliary head; nothing to deeplab_v2.
        output_stride: of deeplab_v2, input pixels per feature pixel, by dilation; None: the backbone's own strides.
        layout: "timm" takes the backbone as its weights were trained. "deeplab_v2" is that of the ADVENT and ASDA
            checkpoints: stride on a stage's first 1x1, ceil-mode pooling, every block of the last two stages dilated.
        pretrained: "hub" for timm's weights, the path of a local file in timm's naming, or None.
        freeze_bn: keep scale and shift of the backbone's batch normalisation fixed, while running statistics follow
            the data. Without pretrained weights they are fixed at 1 and 0.
        mean, std: per band, or one number for all; None takes the pretrained backbone's own, or ImageNet's.
            0 and 1 feed the image as it is.
        init: "kaiming" starts every convolution from a fan-in normal and batch-norm scales from N(1, 0.02), biases 0;
            pretrained weights are loaded on top.
        aux_level: what the auxiliary head reads: the last but one level, or the features of the main head (CLAN).

    Attributes:
        num_features: D, channels of what the main head reads.
        align_corners: whether the corners of the features' grid are the image's; else its pixels tile the image.
        architecture: JSON of the arguments that build this network again, to be filled with its weights.

    Raises:
        ConfigError, WeightsError: no such backbone, or one that cannot be built or filled this way.

    Random numbers come from torch's global generator alone, so `torch.manual_seed` before it fixes every bit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str = "resnet50",
        classes: int = 2,
        in_channels: int = 3,
        decoder: str = "fpn",
        decoder_width: int = 64,
        output_stride: int | None = None,
        layout: Literal["timm", "deeplab_v2"] = "timm",
        pretrained: str | None = None,
        freeze_bn: bool = False,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        init: Literal["default", "kaiming"] = "default",
        aux_level: Literal["previous", "last"] = "previous",
    ) -> None:
        super().__init__()
        self.aux_level = aux_level
        self.align_corners = decoder == "deeplab_v2"
        self.decoder: nn.Module | None = None
        self.multiple = 1  # of pixels, that an image is filled up to
        if self.align_corners:
            extractor = build_dilated(backbone, in_channels, output_stride)
            if layout == "deeplab_v2":
                to_deeplab_v2(backbone, extractor)
            self.backbone: nn.Module = extractor
            previous, self.num_features = extractor.feature_info.channels()
            self.head_aux: nn.Module = AtrousHead(self.num_features if aux_level == "last" else previous, classes)
            self.head_main: nn.Module = AtrousHead(self.num_features, classes)
        else:
            extractor = build_pyramid(backbone, in_channels)
            self.backbone, self.num_features = extractor, decoder_width
            strides, channels = extractor.feature_info.reduction(), extractor.feature_info.channels()
            self.decoder = build_decoder(decoder, strides, channels, decoder_width)
            self.gap = strides[0] == 4  # no level is half as large as the image
            self.multiple = 2 * strides[-1] if is_plain(strides) else strides[-1]
            self.head_aux = nn.Conv2d(decoder_width, classes, kernel_size=1)
            if aux_level == "previous":
                self.head_aux = level_head(channels[-2], classes, decoder_width)
            self.head_main = nn.Conv2d(decoder_width, classes, kernel_size=1)
            repeat_borders(self)

        if init == "kaiming":
            kaiming_init(self)
        if freeze_bn:
            freeze_batch_norm(extractor, restart=pretrained is None and init == "default")
        statistics = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        if pretrained:
            load_backbone(extractor, backbone, pretrained)
            statistics |= extractor.pretrained_cfg
        self.register_buffer("mean", _per_band("mean", mean, statistics["mean"], in_channels))
        self.register_buffer("std", _per_band("std", std, statistics["std"], in_channels))

        self.classes, self.in_channels = classes, in_channels
        built = dict(backbone=backbone, classes=classes, in_channels=in_channels, freeze_bn=freeze_bn)
        built |= dict(decoder=decoder, decoder_width=decoder_width, aux_level=aux_level)
        built |= dict(output_stride=output_stride, layout=layout)
        self.architecture = json.dumps(built, sort_keys=True)

    def forward(self, image: Tensor) -> Prediction:
        features, aux_features = self._features(image)
        scores = self.head_main(features)
        main, aux = (self.on_image(logits, image) for logits in (scores, self.head_aux(aux_features)))
        sizes = zip(features.shape[-2:], image.shape[-2:], self._filled(image), strict=True)
        rows, columns = (math.ceil(low * length / filled) for low, length, filled in sizes)
        return Prediction(main, aux, features[..., :rows, :columns], scores[..., :rows, :columns])

    def main_scores(self, image: Tensor) -> Tensor:
        """The main head's logits alone (B, K, h, w), which `on_image` brings to the image's size."""
        return self.head_main(self._features(image)[0])

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the main and the auxiliary head read, on grids that cover the filled-up image."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected images (B, {self.in_channels}, H, W), got {tuple(image.shape)}")
        image = (image - self.mean) / self.std
        height, width = self._filled(image)
        if self.multiple > 1:
            image = F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), mode="replicate")
        levels = feature_levels(self.backbone, image)
        features = levels[-1]
        if self.decoder is not None:
            empty = [image.new_empty(len(image), 0, height // 2, width // 2)] * self.gap
            features = self.decoder([image, *empty, *levels])
        return features, features if self.aux_level == "last" else levels[-2]

    def on_image(self, logits: Tensor, image: Tensor) -> Tensor:
        """Logits of a head on the grid of the image, without what it was filled up by."""
        height, width = image.shape[-2:]
        return resize_logits(logits, self._filled(image), self.align_corners)[..., :height, :width]

    def _filled(self, image: Tensor) -> tuple[int, int]:
        """Height and width of an image once it is filled up."""
        height, width = image.shape[-2:]
        return height + -height % self.multiple, width + -width % self.multiple

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters of the backbone, each once."""
        return (parameter for parameter in self.backbone.parameters() if parameter.requires_grad)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters of the decoder and the two heads, each once."""
        heads = nn.ModuleList([self.head_aux, self.head_main, self.decoder or nn.Identity()])
        return (parameter for parameter in heads.parameters() if parameter.requires_grad)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The classifiers by the names in `HEADS`."""
        return {"main": self.head_main, "aux": self.head_aux}


@contextmanager
def statistics_held(network: nn.Module, held: bool = True) -> Iterator[None]:
    """Within it, batch normalisation in train mode uses the batch's statistics but leaves its running ones alone."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)] if held else []
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it, every module of a network is in evaluation mode; afterwards each is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _per_band(name: str, given: float | Sequence[float] | None, usual: Sequence[float], bands: int) -> Tensor:
    """Shape (1, bands, 1, 1). The usual statistics are averaged for one band and repeated for more than they have."""
    if given is None:
        given = [sum(usual) / len(usual)] if bands == 1 else list(islice(cycle(usual), bands))
    values = [float(value) for value in (given if isinstance(given, Sequence) else [given])]
    if len(values) not in (1, bands):
        raise ConfigError(f"{name} must have one value or {bands}, one for each band, got {values}")
    if name == "std" and min(values) <= 0:
        raise ConfigError(f"std must be positive in every band, got {values}")
    return torch.tensor(values).expand(bands).reshape(1, bands, 1, 1).clone()

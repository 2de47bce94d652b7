"""The segmentation network: DeepLab-v2 with two heads on the last two feature levels of a timm backbone."""

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Format
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nets.depthwise import quick_backward
from nets.detail import DetailBranch
from nets.pretrained import load_backbone
from utils.errors import ConfigError

HEADS = ("main", "aux")
Head = Literal["main", "aux"]
DEEPLAB_V2_BACKBONES = ("resnet50", "resnet101")


class Prediction(NamedTuple):
    """What the network says about a batch, at feature resolution unless said otherwise.

    `main` (B, K, h, w) and `aux` (B, K, h', w') are logits on the last and, unless `aux_level` says otherwise, the last
    but one backbone level, `features` (B, D, h, w) is the last level itself. With an output stride (h', w') is (h, w);
    with the backbone's own strides the auxiliary level is usually twice as fine. With a detail branch `main` has the
    size of the image. `projected` (B, P, h, w) is there where a projection head was trained beside the network.
    """

    main: Tensor
    aux: Tensor
    features: Tensor
    projected: Tensor | None = None


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resize logits (B, K, h, w) bilinearly, corners aligned, to `size` (H, W)."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


def upsampled(prediction: Prediction, size: Sequence[int]) -> dict[str, Tensor]:
    """Both heads' logits (B, K, H, W) at `size` (H, W), by the names in `HEADS`."""
    return {head: resize_logits(getattr(prediction, head), size) for head in HEADS}


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


class Segmenter(nn.Module):
    """DeepLab-v2 with an auxiliary head on the last but one and a main head on the last level of any timm backbone.

    Shape: image (B, `in_channels`, H, W), float in [0, 1], to a `Prediction`. The network normalises the image itself.

    Args:
        backbone: the name of a timm model that gives features.
        classes, in_channels: K, and the number of image bands.
        output_stride: input pixels per feature pixel, by dilation; None leaves the backbone's own strides.
        layout: "timm" takes the backbone as its weights were trained. "deeplab_v2" is that of the ADVENT and ASDA
            checkpoints: stride on a stage's first 1x1, ceil-mode pooling, every block of the last two stages dilated.
        pretrained: "hub" for timm's weights, the path of a local file in timm's naming, or None.
        freeze_bn: keep scale and shift of batch normalisation fixed, while running statistics follow the data.
            Without pretrained weights they are fixed at 1 and 0.
        mean, std: per band, or one number for all; None takes the pretrained backbone's own, or ImageNet's.
            0 and 1 feed the image as it is.
        init: "kaiming" starts every convolution from a fan-in normal and batch-norm scales from N(1, 0.02), biases 0;
            pretrained weights are loaded on top.
        aux_level: what the auxiliary head reads: the last but one level, or the last one as the main head does (CLAN).
        detail: channels of a branch that sharpens the main head's logits at full resolution; 0: none.

    Attributes:
        num_features: D, channels of the last level.
        stride: input pixels per pixel of the last level.
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
        output_stride: int | None = 8,
        layout: Literal["timm", "deeplab_v2"] = "timm",
        pretrained: str | None = None,
        freeze_bn: bool = False,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        init: Literal["default", "kaiming"] = "default",
        aux_level: Literal["previous", "last"] = "previous",
        detail: int = 0,
    ) -> None:
        super().__init__()
        extractor = _build_backbone(backbone, in_channels, output_stride)
        if layout == "deeplab_v2":
            if backbone.split(".")[0] not in DEEPLAB_V2_BACKBONES or output_stride != 8:
                raise ConfigError(
                    f"layout deeplab_v2 is that of {' and '.join(DEEPLAB_V2_BACKBONES)} at output_stride 8, "
                    f"got backbone {backbone} at output_stride {output_stride}; set layout: timm"
                )
            _to_deeplab_v2(extractor)
        quick_backward(extractor)
        self.backbone: nn.Module = extractor
        previous, self.num_features = extractor.feature_info.channels()
        self.aux_level = aux_level
        self.stride: int = extractor.feature_info.reduction()[-1]
        self.head_aux = AtrousHead(self.num_features if aux_level == "last" else previous, classes)
        self.head_main = AtrousHead(self.num_features, classes)
        self.detail = DetailBranch(in_channels, classes, detail) if detail else None

        if init == "kaiming":
            _kaiming_init(self)
        if freeze_bn:
            _freeze_bn(extractor, restart=pretrained is None and init == "default")
        statistics = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        if pretrained:
            load_backbone(extractor, backbone, pretrained)
            statistics |= extractor.pretrained_cfg
        self.register_buffer("mean", _per_band("mean", mean, statistics["mean"], in_channels))
        self.register_buffer("std", _per_band("std", std, statistics["std"], in_channels))

        self.classes, self.in_channels = classes, in_channels
        built = dict(backbone=backbone, classes=classes, in_channels=in_channels, output_stride=output_stride)
        built |= dict(layout=layout, freeze_bn=freeze_bn, aux_level=aux_level, detail=detail)
        self.architecture = json.dumps(built, sort_keys=True)

    def add_detail(self, channels: int) -> DetailBranch:
        """Put a detail branch on the main head, which at first changes nothing but the size of its logits."""
        self.detail = DetailBranch(self.in_channels, self.classes, channels)
        self.architecture = json.dumps(json.loads(self.architecture) | {"detail": channels}, sort_keys=True)
        return self.detail

    def forward(self, image: Tensor) -> Prediction:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected images (B, {self.in_channels}, H, W), got {tuple(image.shape)}")
        image = (image - self.mean) / self.std
        aux_features, features = self.backbone(image)
        if getattr(self.backbone, "output_fmt", None) == Format.NHWC:
            aux_features, features = aux_features.permute(0, 3, 1, 2), features.permute(0, 3, 1, 2)
        if self.aux_level == "last":
            aux_features = features
        main = self.head_main(features)
        if self.detail is not None:
            main = self.detail(image, resize_logits(main, image.shape[-2:]))
        return Prediction(main=main, aux=self.head_aux(aux_features), features=features)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The classifiers by the names in `HEADS`."""
        return {"main": self.head_main, "aux": self.head_aux}

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters of the backbone, each once."""
        return (parameter for parameter in self.backbone.parameters() if parameter.requires_grad)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters of the two heads and the detail branch, each once."""
        heads = nn.ModuleList([self.head_aux, self.head_main, self.detail or nn.Identity()])
        return (parameter for parameter in heads.parameters() if parameter.requires_grad)


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


def _build_backbone(name: str, in_channels: int, output_stride: int | None) -> Any:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        raise ConfigError(f"timm has no model {name!r}; nearest names: {', '.join(near) or 'none'}")
    options: dict[str, Any] = {"features_only": True, "out_indices": (-2, -1), "in_chans": in_channels}
    if output_stride is not None:
        options["output_stride"] = output_stride
    call = f"timm.create_model({name!r}, {', '.join(f'{key}={value!r}' for key, value in options.items())})"
    advice = "set output_stride: null or use another backbone" if output_stride else "use another backbone"
    try:
        backbone: Any = timm.create_model(name, **options)
    except Exception as error:  # each family refuses an option in its own way
        raise ConfigError(f"{call} failed with {type(error).__name__}: {error}; {advice}") from error
    stride = backbone.feature_info.reduction()[-1]
    if output_stride is not None and stride != output_stride:
        raise ConfigError(f"{call} gave features of stride {stride}; {advice}")
    return backbone


def _to_deeplab_v2(resnet: Any) -> None:
    """Change a timm bottleneck ResNet of output stride 8 to the layout of the original DeepLab-v2; weights stay."""
    resnet.maxpool.ceil_mode = True
    resnet.layer2[0].conv1.stride, resnet.layer2[0].conv2.stride = (2, 2), (1, 1)
    for stage, dilation in ((resnet.layer3, 2), (resnet.layer4, 4)):
        stage[0].conv2.dilation = stage[0].conv2.padding = (dilation, dilation)


def _kaiming_init(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _freeze_bn(network: nn.Module, restart: bool) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)
            if restart:  # timm starts a residual branch's last scale at 0: frozen, the branch would stay off for good
                nn.init.ones_(module.weight)


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

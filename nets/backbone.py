"""Backbones of timm as extractors of feature levels, at their own strides or dilated for DeepLab-v2."""

import difflib
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.layers import Conv2dSame, Format
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import ConfigError

DEEPLAB_V2_BACKBONES = ("resnet50", "resnet101")
LEVELS = 4  # of a transformer without pyramid
ANY_SIZE: dict[str, dict[str, Any]] = {  # module of timm -> what makes its models take images of any size
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "vision_transformer": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
}


def build_pyramid(name: str, in_channels: int) -> Any:
    """A timm model that gives all its levels at its own strides; of a transformer without pyramid, four of them.

    Raises:
        ConfigError: timm has no such model, or it gives no features.
    """
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    options |= ANY_SIZE.get(_require_model(name).rpartition(".")[2], {})
    with torch.device("meta"):
        strides = _create(name, options, "use another backbone").feature_info.reduction()
        if is_plain(strides):
            depth = len(cast(Any, timm.create_model(name)).feature_info)
            options["out_indices"] = [depth * level // LEVELS - 1 for level in range(1, LEVELS + 1)]
    return _create(name, options, "use another backbone")


def build_dilated(name: str, in_channels: int, output_stride: int | None) -> Any:
    """A timm model that gives its last two levels, at an output stride by dilation; None leaves its own strides.

    Raises:
        ConfigError: timm has no such model, or it cannot be built so.
    """
    _require_model(name)
    options: dict[str, Any] = {"features_only": True, "out_indices": (-2, -1), "in_chans": in_channels}
    if output_stride is not None:
        options["output_stride"] = output_stride
    advice = "set output_stride: null or use another backbone" if output_stride else "use another backbone"
    backbone = _create(name, options, advice)
    stride = backbone.feature_info.reduction()[-1]
    if output_stride is not None and stride != output_stride:
        raise ConfigError(f"{_call(name, options)} gave features of stride {stride}; {advice}")
    return backbone


def is_plain(strides: Sequence[int]) -> bool:
    """Whether levels of these strides are those of a transformer without pyramid: all alike."""
    return len({*strides}) == 1


def feature_levels(backbone: Any, image: Tensor) -> list[Tensor]:
    """The levels (B, D, h, w) of a backbone of timm, from fine to coarse."""
    levels = backbone(image)
    nhwc = getattr(backbone, "output_fmt", None) == Format.NHWC
    return [level.permute(0, 3, 1, 2) if nhwc else level for level in levels]


def to_deeplab_v2(name: str, resnet: Any) -> None:
    """Change a timm bottleneck ResNet of output stride 8 to the layout of the original DeepLab-v2; weights stay.

    Raises:
        ConfigError: it is another backbone, or of another output stride.
    """
    stride = resnet.feature_info.reduction()[-1]
    if name.split(".")[0] not in DEEPLAB_V2_BACKBONES or stride != 8:
        raise ConfigError(
            f"layout deeplab_v2 is that of {' and '.join(DEEPLAB_V2_BACKBONES)} at output_stride 8, "
            f"got backbone {name} at output_stride {stride}; set layout: timm"
        )
    resnet.maxpool.ceil_mode = True
    resnet.layer2[0].conv1.stride, resnet.layer2[0].conv2.stride = (2, 2), (1, 1)
    for stage, dilation in ((resnet.layer3, 2), (resnet.layer4, 4)):
        stage[0].conv2.dilation = stage[0].conv2.padding = (dilation, dilation)


def repeat_borders(network: nn.Module) -> None:
    """Have convolutions fill up borders by what is there, not by zeros: these tell a layer where a window ends, and it
    learns to use them, so that larger windows are seen otherwise than the training crop."""
    for module in network.modules():
        if type(module) is Conv2dSame:
            module.__class__ = _RepeatingSame
        elif type(module) is nn.Conv2d and not isinstance(module.padding, str) and max(module.padding) > 0:
            module.padding_mode = "replicate"


class _RepeatingSame(Conv2dSame):
    """TensorFlow's padding, of which the larger part is behind, for maps of whole strides: then it is the same at every
    size, and torch.export can follow it."""

    def forward(self, image: Tensor) -> Tensor:
        borders: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            missing = max(dilation * (kernel - 1) + 1 - stride, 0)
            borders = [missing // 2, missing - missing // 2, *borders]  # F.pad begins with the last axis
        image = F.pad(image, borders, mode="replicate")
        return F.conv2d(image, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def trace_windows(network: nn.Module) -> None:
    """Have Swin's blocks cut their windows in steps that torch.export can follow at any size of the map, to the same
    bits: timm's own fill the map up by remainders and mark its zones slice by slice, over which the tracing does not
    end."""
    for module in network.modules():
        if type(module) in _TRACED:
            module.__class__ = _TRACED[type(module)]


class _TracedWindows:
    """Attention within shifted windows (Liu et al., ICCV 2021, section 3.2) of a map (B, h, w, D)."""

    window_size: tuple[int, int]
    shift_size: tuple[int, int]
    attn: Any

    def _attn(self, levels: Tensor) -> Tensor:
        _, height, width, channels = levels.shape
        (high, wide), (down, right) = self.window_size, self.shift_size
        rows, columns = (height + high - 1) // high, (width + wide - 1) // wide
        full_height, full_width = rows * high, columns * wide

        def windows(of: Tensor) -> Tensor:  # (B, full_height, full_width, D) to (B * windows, pixels, D)
            cut = of.reshape(-1, rows, high, columns, wide, of.shape[-1])
            return cut.transpose(2, 3).reshape(-1, high * wide, of.shape[-1])

        shifted = torch.roll(levels, (-down, -right), (1, 2))
        shifted = F.pad(shifted, (0, 0, 0, full_width - width, 0, full_height - height))
        mask = None
        if down or right:  # what the shift brought together from opposite borders does not attend to each other
            y, x = (torch.arange(size, device=levels.device) for size in (full_height, full_width))
            y = (y >= full_height - high).long() + (y >= full_height - down).long()
            x = (x >= full_width - wide).long() + (x >= full_width - right).long()
            zones = windows((3 * y[:, None] + x)[None, :, :, None]).squeeze(-1)
            mask = torch.where(zones[:, None] != zones[:, :, None], -100.0, 0.0).to(levels.dtype)
        attended = self.attn(windows(shifted), mask=mask)
        attended = attended.reshape(-1, rows, columns, high, wide, channels).transpose(2, 3)
        attended = attended.reshape(-1, full_height, full_width, channels)[:, :height, :width]
        return torch.roll(attended, (down, right), (1, 2))


class _TracedSwin(_TracedWindows, SwinTransformerBlock):
    pass


class _TracedSwinV2(_TracedWindows, SwinTransformerV2Block):
    pass


_TRACED = {SwinTransformerBlock: _TracedSwin, SwinTransformerV2Block: _TracedSwinV2}


def kaiming_init(network: nn.Module) -> None:
    """Start every convolution from a fan-in normal, scales of batch normalisation from N(1, 0.02), biases from 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def freeze_batch_norm(network: nn.Module, restart: bool) -> None:
    """Fix scale and shift of batch normalisation, with `restart` at 1 and 0."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)
            if restart:  # timm starts a residual branch's last scale at 0: frozen, the branch would stay off for good
                nn.init.ones_(module.weight)


def _require_model(name: str) -> str:
    """The module of timm that has a model; ConfigError, with the nearest names, if there is none."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        raise ConfigError(f"timm has no model {name!r}; nearest names: {', '.join(near) or 'none'}")
    return str(timm.model_entrypoint(name).__module__)


def _create(name: str, options: dict[str, Any], advice: str) -> Any:
    try:
        backbone = timm.create_model(name, **options)
    except Exception as error:  # each family refuses an option in its own way
        raise ConfigError(f"{_call(name, options)} failed with {type(error).__name__}: {error}; {advice}") from error
    trace_windows(backbone)
    return backbone


def _call(name: str, options: dict[str, Any]) -> str:
    return f"timm.create_model({name!r}, {', '.join(f'{key}={value!r}' for key, value in options.items())})"

"""Dilated depthwise convolutions with a quick backward pass on CPUs, where PyTorch's own is slow (bench/depthwise.py).

Values and gradients are the same up to rounding; nothing else changes.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Convolution(torch.autograd.Function):
    """Depthwise convolution of stride 1 with a square kernel; backward, autocast is as it was forward."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, image: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(image, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        image, weight = ctx.saved_tensors
        padding, dilation, side = ctx.padding, ctx.dilation, weight.shape[-1]
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        to_image = None
        if ctx.needs_input_grad[0]:  # the transposed convolution is one with the kernel turned round
            around = dilation * (side - 1) - padding
            to_image = F.conv2d(gradient, weight.flip(-1, -2), None, 1, around, dilation, len(weight))
        # One element of the kernel has seen the image shifted by its place, so its gradient is one product of the two.
        shifted = F.pad(image, (padding,) * 4).permute(0, 2, 3, 1)  # channels last in memory, so this is no copy
        seen = gradient.permute(0, 2, 3, 1)
        rows, columns = seen.shape[1:3]
        places = product(range(0, dilation * side, dilation), repeat=2)
        products = [(shifted[:, y : y + rows, x : x + columns] * seen).sum((0, 1, 2)) for y, x in places]
        return to_image, torch.stack(products, 1).view_as(weight), None, None


class DilatedDepthwise(nn.Conv2d):
    """What `quick_backward` makes of a layer; the weights and their names stay."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.padding[0], self.dilation[0])


def quick_backward(network: nn.Module) -> None:
    """Change, in place, every dilated depthwise convolution of stride 1 and square kernel without bias."""
    for layer in network.modules():
        if type(layer) is not nn.Conv2d or isinstance(layer.padding, str):
            continue
        depthwise = layer.groups == layer.in_channels == layer.out_channels > 1
        square = layer.kernel_size[0] == layer.kernel_size[1] and layer.dilation[0] == layer.dilation[1] > 1
        padded = layer.padding[0] == layer.padding[1] <= layer.dilation[0] * (layer.kernel_size[0] - 1)
        plain = layer.stride == (1, 1) and layer.padding_mode == "zeros" and layer.bias is None
        if depthwise and square and padded and plain:
            layer.__class__ = DilatedDepthwise

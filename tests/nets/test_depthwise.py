"""Dilated depthwise convolutions: the values and gradients of PyTorch's own."""

import pytest
import timm
import torch
from torch import nn

from nets.depthwise import DilatedDepthwise, quick_backward


def layers(channels: int, side: int, dilation: int, padding: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, side, 1, padding, dilation, groups=channels, bias=False).double()
    quick = nn.Sequential(nn.Conv2d(channels, channels, side, 1, padding, dilation, groups=channels, bias=False))
    quick.double().load_state_dict({"0.weight": plain.weight.detach().clone()})
    quick_backward(quick)
    assert isinstance(quick[0], DilatedDepthwise)
    return plain, quick[0]


@pytest.mark.parametrize(("side", "dilation", "padding"), [(3, 2, 2), (5, 2, 4), (5, 3, 6), (3, 4, 0), (3, 2, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_pytorch(
    side: int, dilation: int, padding: int, memory_format: torch.memory_format
) -> None:
    plain, quick = layers(4, side, dilation, padding)
    image = torch.rand(2, 4, 13, 11, dtype=torch.float64).contiguous(memory_format=memory_format)
    found = []
    for layer in (plain, quick):
        mine = image.clone().requires_grad_()
        result = layer(mine)
        (result * torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)).sum().backward()
        found.append((result, mine.grad, layer.weight.grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_numerical_gradient() -> None:
    _, quick = layers(2, 3, 2, 2)
    image = torch.rand(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(quick, {"weight": w}, x), (image, quick.weight)
    )


def test_an_image_that_needs_no_gradient_gets_none() -> None:
    _, quick = layers(2, 3, 2, 2)
    quick(torch.rand(1, 2, 6, 6, dtype=torch.float64)).sum().backward()
    assert quick.weight.grad is not None


def test_what_else_a_backbone_holds_stays_as_it_is() -> None:
    backbone = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16)
    before = {name: (type(layer), getattr(layer, "dilation", None)) for name, layer in backbone.named_modules()}
    state = list(backbone.state_dict())
    quick_backward(backbone)
    changed = {name for name, layer in backbone.named_modules() if type(layer) is not before[name][0]}
    assert changed and all(before[name][1] == (2, 2) for name in changed)
    assert list(backbone.state_dict()) == state


def test_bfloat16_of_autocast_is_close_and_gradients_keep_their_types() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 3, 1, 2, 2, groups=8, bias=False)
    quick = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 2, 2, groups=8, bias=False))
    quick.load_state_dict({"0.weight": plain.weight.detach().clone()})
    quick_backward(quick)
    image, found = torch.rand(2, 8, 12, 12), []
    for layer in (plain, quick):
        mine = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(mine)
        assert result.dtype == torch.bfloat16
        (result.float() ** 2).sum().backward()
        found.append((result, mine.grad, next(layer.parameters()).grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02 * float(expected.detach().abs().max()))

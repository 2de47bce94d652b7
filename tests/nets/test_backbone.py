import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import nn

from nets.backbone import trace_windows


@pytest.mark.parametrize("kind", [SwinTransformerBlock, SwinTransformerV2Block])
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(14, 21), (15, 20), (3, 40)])
def test_windows_that_can_be_traced_are_timms_own_to_the_bit(kind: type, shift: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = kind(12, (56, 56), num_heads=3, window_size=7, shift_size=shift, dynamic_mask=True).eval()
    levels = torch.randn(2, *size, 12)
    expected = block._attn(levels)
    trace_windows(nn.ModuleList([block]))
    assert type(block) is not kind
    assert torch.equal(block._attn(levels), expected)

"""Every decoder: where its pixels stand, what feeds it, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nets.decoders import AdaptiveMean, build_decoder
from nets.segmenter import Segmenter
from utils.errors import ConfigError

PYRAMID = ("fpn", "unet", "segformer", "upernet")
CHANNELS = {2: 6, 4: 8, 8: 10, 16: 12, 32: 14}  # of a level, by its stride


def pyramid(height: int, width: int) -> list[Tensor]:
    """An image and its levels, all random, in double precision."""
    generator = torch.Generator().manual_seed(0)
    sizes = {1: 3, **CHANNELS}
    return [torch.rand(1, of, height // s, width // s, generator=generator).double() for s, of in sizes.items()]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_decoder(name, list(CHANNELS), list(CHANNELS.values()), 32).eval().double()


def symmetric(network: nn.Module) -> nn.Module:
    """The network with kernels that are their own mirror images, but for those of a stride, which have no centre."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.kernel_size[0] > 1:
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    return network


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (4, 7), (12, 5)])
def test_adaptive_means_are_those_of_pytorch(shape: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *shape).double()
    for size in (1, 2, 3, 6):
        torch.testing.assert_close(AdaptiveMean(size)(maps), F.adaptive_avg_pool2d(maps, size))


@pytest.mark.parametrize("name", ["fpn", "unet", "segformer"])
def test_a_decoder_sees_inside_a_window_what_it_sees_in_the_whole(name: str) -> None:
    """No feature drifts with its distance from the border. (upernet pools over all that it is shown.)"""
    decoder, whole = made(name), pyramid(64, 1024)
    window = [layer[..., layer.shape[-1] // 4 :] for layer in whole]  # from pixel 256 on
    with torch.no_grad():
        features, part = decoder(whole), decoder(window)
    skip = math.ceil(200 * features.shape[-1] / 1024)  # as far as the border reaches
    inside = features[..., features.shape[-1] // 4 + skip : -skip]
    torch.testing.assert_close(part[..., skip:-skip], inside, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PYRAMID)
def test_a_mirrored_image_has_mirrored_features(name: str) -> None:
    """What is left of an offset of half a pixel, or of corners that are aligned on one level alone, shows here."""
    decoder, whole = symmetric(made(name)), pyramid(64, 96)
    with torch.no_grad():
        features, mirrored = decoder(whole), decoder([layer.flip(-1) for layer in whole])
    assert features.std() > 0.01
    torch.testing.assert_close(mirrored.flip(-1), features, rtol=0, atol=1e-9)


def test_the_levels_of_dpt_lie_on_one_another() -> None:
    """A spot in one place of every level is a spot there in the features; the coarsest, of stride 2, has no centre."""
    torch.manual_seed(0)
    decoder = symmetric(build_decoder("dpt", [16] * 4, [12] * 4, 8)).eval().double()
    whole = [torch.rand(1, of, *size).double() for of, *size in [(3, 64, 96), *[(12, 4, 6)] * 3]]
    flat = torch.zeros(1, 12, 4, 6).double()
    with torch.no_grad():
        decoder.get_submodule("reassemble_blocks.3.project_to_feature_dim").get_parameter("weight").zero_()
        features, mirrored = (decoder([*maps, flat]) for maps in (whole, [layer.flip(-1) for layer in whole]))
    assert features.shape == (1, 8, 32, 48) and features.std() > 0.01
    torch.testing.assert_close(mirrored.flip(-1), features, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decoder", [*PYRAMID, "deeplab_v2"])
def test_any_size_is_taken_and_given_back(decoder: str) -> None:
    network = Segmenter("resnet10t", decoder=decoder, decoder_width=32).eval()
    with torch.no_grad():
        prediction = network(torch.rand(1, 3, 101, 77))
    assert prediction.main.shape == prediction.aux.shape == (1, 2, 101, 77)
    assert prediction.features.shape[-2:] == prediction.scores.shape[-2:]
    image = torch.rand(1, 3, 101, 77)
    torch.testing.assert_close(network.on_image(network.main_scores(image), image), network(image).main)


@pytest.mark.parametrize("decoder", ["fpn", "unet", "segformer"])
def test_a_shift_by_the_stride_shifts_the_mask(decoder: str) -> None:
    torch.manual_seed(0)
    network = Segmenter("resnet10t", decoder=decoder, decoder_width=32, init="kaiming").eval().double()
    image = torch.rand(1, 3, 64, 704).double()
    with torch.no_grad():
        here, there = (network(part).main for part in (image[..., :672], image[..., 32:]))
    middle = slice(304, 336)  # where no border is seen
    assert here[..., middle].std() > 0
    torch.testing.assert_close(there[..., middle], here[..., 336:368], rtol=1e-9, atol=1e-9)


class Pooled(nn.Module):
    """A backbone without an opinion on where its pixels stand: means over tiles."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image.mean(1, keepdim=True), s).expand(-1, c, -1, -1) for s, c in CHANNELS.items()]


@pytest.mark.parametrize("decoder", PYRAMID)
def test_a_symmetric_image_has_a_symmetric_mask_in_windows_of_any_size(decoder: str) -> None:
    torch.manual_seed(0)
    network = Segmenter("resnet10t", decoder=decoder, decoder_width=32).eval()
    network.decoder, network.backbone = made(decoder).float(), Pooled()
    network.head_aux[0] = nn.Conv2d(CHANNELS[16], 32, 3, padding=1, bias=False)  # type: ignore[operator]
    symmetric(network)
    row = torch.arange(256)[:, None] - 127.5
    disc = ((row.square() + row.T.square()).sqrt() < 40).float().expand(1, 3, -1, -1)
    for side in (128, 192, 256):
        cut = slice((256 - side) // 2, (256 + side) // 2)
        with torch.no_grad():
            prediction = network(disc[..., cut, cut])
        for logits in (prediction.main, prediction.aux):
            assert logits.std() > 1e-3
            torch.testing.assert_close(logits.flip(-1), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        ("vit_tiny_patch16_224", "dpt"),
        ("vit_small_patch14_dinov2", "dpt"),
        ("vit_small_patch16_dinov3", "dpt"),
        ("swin_tiny_patch4_window7_224", "segformer"),
        ("swinv2_tiny_window8_256", "upernet"),
        ("convnext_atto", "unet"),
        ("resnet50", "fpn"),
        ("mobilenetv3_small_050", "fpn"),
        ("tf_efficientnet_lite0", "fpn"),
    ],
)
def test_every_kind_of_backbone_feeds_a_decoder(backbone: str, decoder: str) -> None:
    with torch.device("meta"):
        network = Segmenter(backbone, classes=3, decoder=decoder, decoder_width=32)
        prediction = network(torch.empty(2, 3, 100, 150))
    assert prediction.main.shape == prediction.aux.shape == (2, 3, 100, 150)
    (prediction.main.sum() + prediction.aux.sum()).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not [name for name in without if not name.startswith("backbone.")]


@pytest.mark.parametrize(
    ("backbone", "decoder", "fit"),
    [
        ("vit_tiny_patch16_224", "fpn", "strides 16, 16, 16, 16; set decoder to dpt or deeplab_v2"),
        ("resnet18", "dpt", "2, 4, 8, 16, 32; set decoder to fpn or unet or segformer or upernet or deeplab_v2"),
        ("vgg11", "unet", "set decoder to deeplab_v2"),
    ],
)
def test_a_backbone_that_cannot_feed_it_is_refused_with_those_that_fit(backbone: str, decoder: str, fit: str) -> None:
    with pytest.raises(ConfigError, match=f"decoder {decoder} cannot be fed by .*{fit}"), torch.device("meta"):
        Segmenter(backbone, decoder=decoder)


def test_norms_of_the_backbone_are_its_own() -> None:
    network: Any = Segmenter("convnext_atto")
    assert not [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]

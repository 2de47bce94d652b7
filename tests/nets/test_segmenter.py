import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from nets.decoders import AtrousHead
from nets.segmenter import Segmenter, grid_places, resize_logits, statistics_held
from utils.errors import ConfigError, WeightsError

FIXED = ("backbone", "head_aux", "head_main", "mean", "std")
LITE0 = Path(__file__).parents[3] / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"


def on_meta(*args: Any, **kwargs: Any) -> Any:
    """A network without storage: shapes only, built in no time."""
    with torch.device("meta"):
        return Segmenter(*args, **kwargs)


def small(**kwargs: Any) -> Any:
    return Segmenter("resnet18", **kwargs)


def deeplab_v2(backbone: str, output_stride: int | None = 8, layout: Any = "deeplab_v2", **kwargs: Any) -> Any:
    return on_meta(backbone, decoder="deeplab_v2", output_stride=output_stride, layout=layout, **kwargs)


def count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(("backbone", "parameters"), [("resnet50", 23_729_232), ("resnet101", 42_721_360)])
def test_known_parameter_counts(backbone: str, parameters: int) -> None:
    assert count(deeplab_v2(backbone).parameters()) == parameters


def test_known_parameter_groups_of_resnet50() -> None:
    free = deeplab_v2("resnet50")
    assert count(free.backbone_parameters()) == 23_508_032
    frozen = deeplab_v2("resnet50", freeze_bn=True)
    assert count(p for p in frozen.parameters() if p.requires_grad) == 23_676_112
    assert count(frozen.head_parameters()) == 221_200
    assert count(frozen.backbone_parameters()) == 23_676_112 - 221_200


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_every_trainable_parameter_stands_in_one_group_once(freeze_bn: bool) -> None:
    network = small(freeze_bn=freeze_bn)
    listed = [id(p) for p in (*network.backbone_parameters(), *network.head_parameters())]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in network.parameters() if p.requires_grad}


@pytest.mark.parametrize(("layout", "size"), [("deeplab_v2", 33), ("timm", 32)])
def test_feature_size_at_256(layout: Any, size: int) -> None:
    prediction = deeplab_v2("resnet50", layout=layout)(torch.empty(1, 3, 256, 256, device="meta"))
    assert prediction.main.shape == prediction.aux.shape == (1, 2, 256, 256)
    assert prediction.scores.shape == (1, 2, size, size)
    assert prediction.features.shape == (1, 2048, size, size)


def test_layouts_differ_in_strides_dilations_and_pooling_only() -> None:
    ours, theirs = deeplab_v2("resnet50", layout="timm"), deeplab_v2("resnet50")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}

    def geometry(network: nn.Module) -> dict[str, tuple[Any, Any, Any]]:
        return {n: (m.stride, m.dilation, m.padding) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}

    changed = {name for name, value in geometry(theirs).items() if geometry(ours)[name] != value}
    assert changed == {
        f"backbone.{n}" for n in ("layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2")
    }
    for stage, dilation in (("layer3", 2), ("layer4", 4)):
        for block in theirs.backbone.get_submodule(stage):
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
            assert block.conv2.stride == block.conv1.stride == (1, 1)
    assert theirs.backbone.layer2[0].conv1.stride == (2, 2)
    assert theirs.backbone.maxpool.ceil_mode and not ours.backbone.maxpool.ceil_mode


@pytest.mark.parametrize(("backbone", "stride"), [("resnet18", 8), ("resnet50", 16), ("resnet50d", 8)])
def test_deeplab_v2_layout_is_refused_elsewhere(backbone: str, stride: int) -> None:
    with pytest.raises(ConfigError, match=f"{backbone} at output_stride {stride}; set layout: timm"):
        deeplab_v2(backbone, stride)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "tf_efficientnet_lite0", "convnext_atto"])
def test_any_backbone_trains(backbone: str) -> None:
    network: Any = Segmenter(backbone, classes=3, decoder="deeplab_v2", output_stride=8)
    prediction = network(torch.rand(2, 3, 64, 48))
    assert prediction.main.shape == prediction.aux.shape == (2, 3, 64, 48)
    assert prediction.scores.shape == (2, 3, 8, 6)
    assert prediction.features.shape == (2, network.num_features, 8, 6)
    (prediction.main.sum() + prediction.aux.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_native_strides() -> None:
    network = deeplab_v2("efficientvit_b0", None, "timm")
    prediction = network(torch.empty(1, 3, 128, 128, device="meta"))
    assert prediction.scores.shape[-2:] == prediction.features.shape[-2:] == (4, 4)


@pytest.mark.parametrize("backbone", ["densenet121", "efficientvit_b0"])
def test_backbone_without_dilation_names_the_call_and_the_key(backbone: str) -> None:
    with pytest.raises(ConfigError, match=rf"timm.create_model\('{backbone}', .*output_stride=8.*output_stride: null"):
        deeplab_v2(backbone, layout="timm")


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'resnet_50'; nearest names: .*resnet50"):
        Segmenter("resnet_50")


def test_resize_logits_about_centres_or_with_corners_aligned() -> None:
    logits = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    expected = torch.tensor([[[[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]]])
    torch.testing.assert_close(resize_logits(logits, (3, 3), align_corners=True), expected)
    row = resize_logits(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
    torch.testing.assert_close(row, torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))
    assert resize_logits(logits, (2, 2)) is logits


def test_the_pixels_on_which_a_grid_stands() -> None:
    assert grid_places(9, 3, align_corners=True).tolist() == [0, 4, 8]
    assert grid_places(9, 3, align_corners=False).tolist() == [1, 4, 7]
    assert grid_places(8, 2, align_corners=False).tolist() == [2, 6]


def test_atrous_head_is_the_sum_of_its_branches() -> None:
    head: Any = AtrousHead(4, 2)
    features = torch.randn(1, 4, 30, 30)
    assert [branch.dilation[0] for branch in head.branches] == [6, 12, 18, 24]
    torch.testing.assert_close(head(features), torch.stack([branch(features) for branch in head.branches]).sum(0))
    kernels = [p.flatten() for name, p in AtrousHead(64, 2).named_parameters() if name.endswith("weight")]
    assert torch.cat(kernels).std().item() == pytest.approx(0.01, rel=0.1)


def test_state_dict_prefixes() -> None:
    assert {key.split(".")[0] for key in deeplab_v2("resnet50").state_dict()} == {*FIXED}
    assert {key.split(".")[0] for key in small().state_dict()} == {*FIXED, "decoder"}


def test_normalisation_is_part_of_the_network() -> None:
    torch.manual_seed(0)
    plain = small(mean=0, std=1).eval()
    torch.manual_seed(0)
    usual = small().eval()
    image = torch.rand(1, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (image - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    torch.testing.assert_close(usual(image).main, plain(normalised).main)


def test_statistics_of_other_band_counts() -> None:
    assert small(in_channels=4).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406, 0.485])
    assert small(in_channels=1).std.flatten().tolist() == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    assert small(in_channels=2, mean=[0.1, 0.2], std=0.5).std.flatten().tolist() == [0.5, 0.5]


def test_unusable_statistics() -> None:
    with pytest.raises(ConfigError, match=r"mean must have one value or 4"):
        small(in_channels=4, mean=[0.5, 0.5, 0.5])
    with pytest.raises(ConfigError, match=r"std must be positive"):
        small(std=[1.0, 0.0, 1.0])


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 1, 32, 32\)"):
        small()(torch.rand(1, 1, 32, 32))


def test_frozen_batch_norm_still_follows_the_data() -> None:
    network = small(freeze_bn=True)
    before = network.backbone.bn1.running_mean.clone()
    network(torch.rand(2, 3, 32, 32))
    assert not torch.equal(network.backbone.bn1.running_mean, before)
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert all(bool((norm.weight == 1).all()) for norm in norms)


def test_held_statistics_stay_and_the_output_is_that_of_training() -> None:
    network = small().train()
    image = torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
    with statistics_held(network):
        held = network(image)
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers() if name in before)
    momenta = {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.1}
    free = network(image)
    assert torch.equal(held.main, free.main)
    assert any(not torch.equal(value, before[name]) for name, value in network.named_buffers() if name in before)


def test_statistics_are_followed_again_after_an_error() -> None:
    network = small()
    with pytest.raises(ValueError, match="expected images"), statistics_held(network):
        network(torch.rand(1))
    assert network.backbone.bn1.momentum == 0.1


def test_kaiming_init() -> None:
    network = small(init="kaiming", freeze_bn=True)
    weight = network.backbone.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.02)
    scale = network.backbone.layer4[1].bn2.weight
    assert scale.std().item() == pytest.approx(0.02, rel=0.2)
    assert scale.mean().item() == pytest.approx(1.0, abs=0.005)
    biases = [parameter for name, parameter in network.backbone.named_parameters() if name.endswith("bias")]
    assert not any(bool(parameter.any()) for parameter in biases)


@pytest.mark.parametrize("init", ["default", "kaiming"])
def test_same_seed_same_bits(init: Any) -> None:
    networks = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        networks.append(small(init=init).state_dict())
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])
    assert not torch.equal(networks[0]["backbone.conv1.weight"], networks[2]["backbone.conv1.weight"])


def test_architecture_builds_the_same_network() -> None:
    network = small(classes=4, in_channels=2, decoder="unet", decoder_width=8)
    twin = Segmenter(**json.loads(network.architecture))
    twin.load_state_dict(network.state_dict())
    assert twin.architecture == network.architecture


# ---- pretrained weights


@pytest.fixture
def resnet18(tmp_path: Path) -> tuple[Any, Path]:
    model: Any = timm.create_model("resnet18")
    for module in model.modules():
        if hasattr(module, "running_mean"):
            nn.init.uniform_(module.running_mean)
    path = tmp_path / "resnet18.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_pretrained_file_is_loaded_whole(resnet18: tuple[Any, Path]) -> None:
    model, path = resnet18
    for init in ("default", "kaiming"):
        backbone = small(pretrained=str(path), init=init).backbone.state_dict()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in backbone.items())


def test_pretrained_pth_and_files_without_batch_counters(resnet18: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = resnet18
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    backbone = small(pretrained=str(tmp_path / "old.pth")).backbone
    assert torch.equal(backbone.layer4[1].bn2.running_mean, model.layer4[1].bn2.running_mean)


def test_pretrained_names_that_the_extractor_flattens(tmp_path: Path) -> None:
    model: Any = timm.create_model("convnext_atto")
    save_file(model.state_dict(), tmp_path / "atto.safetensors")
    network: Any = Segmenter("convnext_atto", pretrained=str(tmp_path / "atto.safetensors"))
    assert torch.equal(network.backbone.stages_3.blocks[1].mlp.fc1.weight, model.stages[3].blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize("bands", [1, 5])
def test_pretrained_first_convolution_is_adapted_as_timm_does(resnet18: tuple[Any, Path], bands: int) -> None:
    _, path = resnet18
    network = small(in_channels=bands, pretrained=str(path))
    oracle: Any = timm.create_model(
        "resnet18", pretrained=True, in_chans=bands, pretrained_cfg_overlay={"file": str(path)}
    )
    assert torch.equal(network.backbone.conv1.weight, oracle.conv1.weight)


def test_incomplete_pretrained_file(resnet18: tuple[Any, Path], tmp_path: Path) -> None:
    state = resnet18[0].state_dict()
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:3].clone()
    del state["layer2.0.bn1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError) as caught:
        small(pretrained=str(tmp_path / "part.safetensors"))
    for part in (
        "part.safetensors",
        "backbone resnet18",
        "1 missing: layer2.0.bn1.weight",
        "layer1.0.conv1.weight (3, 64",
    ):
        assert part in str(caught.value)


def test_file_of_a_deeper_network_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.safetensors")
    with pytest.raises(
        WeightsError, match=r"resnet34.safetensors: does not fit backbone resnet18\. .* left over: layer1\.2"
    ):
        small(pretrained=str(tmp_path / "resnet34.safetensors"))


def test_missing_and_unsafe_pretrained_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        small(pretrained=str(tmp_path / "none.pth"))
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "broken.pth").write_bytes(b"broken")
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")
    torch.save([1], tmp_path / "list.pth")
    for name in ("broken.safetensors", "broken.pth", "code.pth", "list.pth"):
        with pytest.raises(WeightsError, match=name):
            small(pretrained=str(tmp_path / name))


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_network(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.raises(WeightsError) as caught:
        small(pretrained="hub")
    for part in (
        "no route",
        "huggingface.co/timm/resnet18",
        "model.safetensors",
        "give its path as weights",
        "null to start without",
    ):
        assert part in str(caught.value)


def test_hub_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    models: list[Any] = []

    def with_hub(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        models.append(create(name, **kwargs))
        return models[-1]

    monkeypatch.setattr(timm, "create_model", with_hub)
    network = small(pretrained="hub")
    assert torch.equal(network.backbone.conv1.weight, models[-1].conv1.weight)
    assert network.backbone is models[-2]


@pytest.mark.skipif(not LITE0.exists(), reason="the weights file of tf_efficientnet_lite0 is not here")
def test_imagenet_weights_of_lite0() -> None:
    torch.manual_seed(0)
    loaded = Segmenter("tf_efficientnet_lite0", pretrained=str(LITE0)).eval()
    torch.manual_seed(0)
    random = Segmenter("tf_efficientnet_lite0").eval()
    image = torch.rand(1, 3, 64, 64)
    assert loaded.mean.flatten().tolist() == loaded.std.flatten().tolist() == [0.5] * 3
    assert loaded(image).features.shape == (1, 64, 16, 16)
    assert not torch.allclose(loaded(image).features, random(image).features)

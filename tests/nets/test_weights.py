import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from nets.pretrained import load_exactly, read_checkpoint
from nets.segmenter import Segmenter
from nets.weights import (
    ARCHITECTURE,
    import_deeplab_v2,
    is_segmenter_file,
    load_segmenter,
    load_weights,
    save_segmenter,
    save_weights,
)
from utils.errors import ConfigError, DataError, WeightsError

# ---- an independent DeepLab-v2, named as in the reference checkpoints


class Block(nn.Module):
    downsample: nn.Module

    def __init__(self, channels: int, width: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if shortcut:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + (self.downsample(x) if self.shortcut else x)).relu()


class Pyramid(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(nn.Conv2d(channels, classes, 3, 1, d, d) for d in (6, 12, 18, 24))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([conv(x) for conv in self.conv2d_list]).sum(0)


class Reference(nn.Module):
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for index, (depth, stride, dilation) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            width = 64 * 2**index
            blocks = [Block(channels, width, stride, dilation, True)]
            blocks += [Block(4 * width, width, 1, dilation, False) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            channels = 4 * width
        self.layer5 = Pyramid(1024, classes)
        self.layer6 = Pyramid(2048, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.layer5(x), self.layer6(self.layer4(x))


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(3)
    network = Reference().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                nn.init.uniform_(getattr(module, name), 0.3, 1.0)
    return network


DEEPLAB_V2: dict[str, Any] = {"decoder": "deeplab_v2", "output_stride": 8, "layout": "deeplab_v2"}


def ours(**kwargs: Any) -> Any:
    return Segmenter("resnet50", **DEEPLAB_V2, mean=0, std=1, **kwargs).eval()


LAYOUTS: dict[str, Any] = {
    "advent": lambda state: state,
    "asda": lambda state: {"featuremodel": state, "domainmodel_aux": {}, "domainmodel_main": {}},
    "asda_parallel": lambda state: {"featuremodel": {f"module.{key}": value for key, value in state.items()}},
    "without_counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


@torch.inference_mode()
def test_imported_checkpoints_give_the_reference_outputs(reference: Reference, tmp_path: Path) -> None:
    image = torch.rand(1, 3, 64, 64)
    aux, main = (F.interpolate(logits, (64, 64), mode="bilinear", align_corners=True) for logits in reference(image))
    segmenter = ours()
    for name, layout in LAYOUTS.items():
        path = tmp_path / "checkpoint.pth"
        torch.save(layout(reference.state_dict()), path)
        nn.init.zeros_(segmenter.head_main.branches[3].weight)
        nn.init.zeros_(segmenter.backbone.conv1.weight)
        import_deeplab_v2(path, segmenter)
        prediction = segmenter(image)
        assert prediction.scores.shape == (1, 2, 9, 9), name
        torch.testing.assert_close(prediction.aux, aux, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prediction.main, main, atol=1e-5, rtol=1e-5)


def on_meta(make: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return make(*args, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.1.bn2.weight"), r"1 missing: backbone\.layer2\.1\.bn2\.weight"),
        (lambda state: state.update({"layer7.weight": torch.empty(1)}), r"1 left over: backbone\.layer7\.weight"),
        (lambda state: state.update({"conv1.weight": 3}), r"mis-shaped: backbone\.conv1\.weight int instead of"),
    ],
)
def test_every_key_is_accounted_for(change: Any, message: str) -> None:
    state = on_meta(Reference).state_dict()
    change(state)
    segmenter = on_meta(ours)
    with pytest.raises(WeightsError, match=rf"given state dict: .* resnet50 and 2 classes\. .*{message}"):
        import_deeplab_v2(state, segmenter)


def test_other_classes_depths_and_formats_are_refused(tmp_path: Path) -> None:
    segmenter = on_meta(ours)
    with pytest.raises(WeightsError, match=r"16 mis-shaped: head_aux\.branches\.0\.weight \(19, 1024, 3, 3\) instead"):
        import_deeplab_v2(on_meta(Reference, classes=19).state_dict(), segmenter)
    with pytest.raises(WeightsError, match=r"left over: backbone\.layer3\.6"):
        import_deeplab_v2(on_meta(Reference, (3, 4, 23, 3)).state_dict(), segmenter)
    with pytest.raises(WeightsError, match="'featuremodel' holds a int"):
        import_deeplab_v2({"featuremodel": 3}, segmenter)
    with pytest.raises(ConfigError, match=r"needs decoder and layout deeplab_v2"):
        import_deeplab_v2({}, on_meta(Segmenter, "resnet50"))
    torch.save(nn.Linear(1, 1), tmp_path / "code.pth")
    with pytest.raises(WeightsError, match=r"code\.pth"):
        import_deeplab_v2(tmp_path / "code.pth", segmenter)


def test_resnet101_checkpoints_fit() -> None:
    state = on_meta(Reference, (3, 4, 23, 3), classes=19).state_dict()
    segmenter = on_meta(Segmenter, "resnet101", classes=19, **DEEPLAB_V2)
    import_deeplab_v2(state, segmenter)


# ---- files of this project


def small(**kwargs: Any) -> Segmenter:
    return Segmenter("mobilenetv3_small_050", **kwargs)


def test_segmenter_survives_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    network = small(classes=3, in_channels=2, output_stride=16, freeze_bn=True, mean=[0.1, 0.2], std=[0.3, 0.4])
    network(torch.rand(2, 2, 64, 64))  # move the running statistics
    save_segmenter(path, network, {"stage": "teacher"})
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    loaded = load_segmenter(path)
    assert torch.equal(torch.rand(1), expected), "loading must not move the random generator"
    assert not loaded.training
    assert loaded.architecture == network.architecture
    assert load_weights(path)[1]["stage"] == "teacher"
    assert is_segmenter_file(path)
    image = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(image).main, network.eval()(image).main)


def test_equal_weights_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    module, contents = nn.Linear(3, 5), set()
    for attempt in range(8):
        keys = "abcdefgh"[:: 1 if attempt % 2 else -1]
        path = tmp_path / f"{attempt}.safetensors"
        save_weights(path, module, {key: key for key in keys})
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {key: key for key in "abcdefgh"}
        assert torch.equal(file.get_tensor("weight"), module.weight)
        assert torch.equal(file.get_tensor("bias"), module.bias)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(1, 1), {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        DataError, match=r"w\.safetensors: cannot be written \(no space left\); [0-9]+ bytes are needed"
    ):
        save_weights(path, nn.Linear(2, 2), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "foreign.safetensors", nn.Linear(1, 1), {"by": "someone"})
    assert not is_segmenter_file(tmp_path / "foreign.safetensors")
    assert not is_segmenter_file(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"foreign.safetensors: has no 'architecture'"):
        load_segmenter(tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match=r"none.safetensors: cannot be read"):
        load_segmenter(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"0" * 20)
    with pytest.raises(WeightsError, match=r"broken.safetensors: cannot be read"):
        load_weights(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("architecture", ["{", '{"depth": 3}', '{"backbone": "renset50"}', "[1]"])
def test_unusable_architectures(tmp_path: Path, architecture: str) -> None:
    save_weights(tmp_path / "w.safetensors", nn.Linear(1, 1), {"architecture": architecture})
    with pytest.raises(WeightsError, match=r"w.safetensors: cannot build its architecture"):
        load_segmenter(tmp_path / "w.safetensors")


def test_architecture_of_other_tensors(tmp_path: Path) -> None:
    other = json.dumps(json.loads(small().architecture) | {"classes": 5})
    save_weights(tmp_path / "w.safetensors", small(), {"architecture": other})
    with pytest.raises(WeightsError, match=r"w.safetensors: does not fit .*4 mis-shaped: head_aux\.3\.weight"):
        load_segmenter(tmp_path / "w.safetensors")


def test_a_file_that_says_nothing_of_its_decoder_is_of_deeplab_v2(tmp_path: Path) -> None:
    network = small(decoder="deeplab_v2", output_stride=16).eval()
    arguments = json.loads(network.architecture)
    old = {key: arguments[key] for key in arguments if not key.startswith("decoder")} | {"detail": 0}
    save_weights(tmp_path / "w.safetensors", network, {"architecture": json.dumps(old)})
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_segmenter(tmp_path / "w.safetensors")(image).main, network(image).main)
    save_weights(tmp_path / "w.safetensors", network, {"architecture": json.dumps(old | {"detail": 16})})
    with pytest.raises(WeightsError, match=r"w\.safetensors: cannot build .* it has a branch of detail"):
        load_segmenter(tmp_path / "w.safetensors")


# ---- files that ask for more than weights


def test_the_keys_of_an_architecture_are_those_that_are_written() -> None:
    assert set(json.loads(small().architecture)) == set(ARCHITECTURE)


@pytest.mark.parametrize("change", [{"pretrained": "hub"}, {"pretrained": "other.pth"}, {"mean": 0.5}])
def test_a_file_cannot_have_other_files_read_or_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    monkeypatch.setattr("nets.segmenter.load_backbone", lambda *_: pytest.fail("other weights were asked for"))
    wanted = json.dumps(json.loads(small().architecture) | change)
    save_weights(tmp_path / "w.safetensors", small(), {"architecture": wanted})
    with pytest.raises(WeightsError, match=r"w\.safetensors: cannot build .*expected a mapping with the keys backbone"):
        load_segmenter(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        *({"backbone": ["resnet50"]}, {"backbone": None}, {"backbone": ""}, {"decoder": "x"}, {"decoder": None}),
        *({"decoder": "deeplab_v2", "output_stride": "8"}, {"decoder": "dpt"}, {"decoder_width": 0}),
        *({"classes": "2"}, {"classes": 2.0}, {"classes": 0}, {"classes": -1}, {"classes": True}, {"classes": 10**12}),
        *({"in_channels": 10**12}, {"in_channels": None}, {"in_channels": []}),
    ],
)
def test_architectures_of_no_meaning_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    wanted = json.dumps(json.loads(small().architecture) | change)
    save_weights(tmp_path / "w.safetensors", small(), {"architecture": wanted})
    with pytest.raises(WeightsError, match=r"w\.safetensors: cannot build its architecture"):
        load_segmenter(tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["[]", "3", "[" * 99_999])
def test_architectures_that_are_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    save_weights(tmp_path / "w.safetensors", small(), {"architecture": text})
    with pytest.raises(WeightsError, match=r"w\.safetensors: cannot build its architecture") as caught:
        load_segmenter(tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 2000


def test_a_network_that_is_not_in_the_file_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may name a network of gigabytes: its shapes are looked at before there is memory for any."""
    wanted = json.dumps(json.loads(small().architecture) | {"backbone": "convnext_xxlarge", "output_stride": None})
    save_weights(tmp_path / "w.safetensors", small(), {"architecture": wanted})
    built: list[torch.device] = []
    build = Segmenter.__init__

    def watched(self: Segmenter, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        built.append(self.mean.device)

    monkeypatch.setattr(Segmenter, "__init__", watched)
    with pytest.raises(WeightsError, match=r"w\.safetensors: does not fit its architecture"):
        load_segmenter(tmp_path / "w.safetensors")
    assert built == [torch.device("meta")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """Their masks would be clear ground everywhere, and nobody would know why."""
    broken = small()
    with torch.no_grad():
        broken.head_main.get_parameter("weight")[0, 0, 0, 0] = value
    save_segmenter(tmp_path / "w.safetensors", broken)
    with pytest.raises(WeightsError, match=r"w\.safetensors: head_main\.weight holds NaN or infinity"):
        load_segmenter(tmp_path / "w.safetensors")


def test_keys_that_are_no_names_are_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: has the key 0, expected names"):
        read_checkpoint(tmp_path / "a.pth")


def test_tensors_that_cannot_be_copied_are_named() -> None:
    layer = nn.Linear(2, 2)
    state = layer.state_dict() | {"weight": torch.zeros(2, 2).to_sparse()}
    with pytest.raises(WeightsError, match=r"a\.pth: cannot be copied into a layer: .*weight"):
        load_exactly(layer, state, source="a.pth", expected="a layer")

"""Grad-CAM shows where a network looks, and leaves no trace in it."""

import pytest
import torch
from torch import Tensor, nn

from nets.segmenter import Prediction, Segmenter
from report.gradcam import find_layer, grad_cam
from utils.errors import ConfigError


class Corner(Segmenter):
    """Cloud where the upper left corner is bright: one feature channel passes that corner alone, the other the rest."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.classes, self.multiple, self.align_corners = 2, 1, False
        self.backbone = nn.Conv2d(3, 2, 1, bias=False)
        nn.init.constant_(self.backbone.weight, 1 / 3)
        self.head_main = nn.Conv2d(2, 2, 1, bias=False)
        self.head_aux = nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad():
            for head in (self.head_main, self.head_aux):
                head.weight.copy_(torch.tensor([[-1.0, 1.0], [1.0, -1.0]])[..., None, None])

    def forward(self, image: Tensor) -> Prediction:
        corner = torch.zeros(1, 2, *image.shape[-2:])
        corner[:, 0, :4, :4] = 1
        corner[:, 1] = 1 - corner[:, 0]
        features = self.backbone(image) * corner
        scores = self.head_main(features)
        return Prediction(main=scores, aux=self.head_aux(features), features=features, scores=scores)


def state_of(network: nn.Module) -> tuple[object, ...]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()]
    return (
        [m.training for m in network.modules()],
        hooks,
        [p.requires_grad for p in network.parameters()],
        [p.grad is None for p in network.parameters()],
    )


@pytest.mark.parametrize("head", ["main", "aux"])
def test_it_peaks_where_the_network_looks(head: str) -> None:
    image = torch.ones(1, 3, 16, 16)
    cloud = grad_cam(Corner(), image, 1, head)  # type: ignore[arg-type]
    assert cloud.shape == (16, 16) and cloud.min() == 0 and cloud.max() == 1
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[:4, :4] = True
    assert bool((cloud[inside] == 1).all()) and bool((cloud[~inside] == 0).all())
    clear = grad_cam(Corner(), image, 0, head)  # type: ignore[arg-type]
    assert bool((clear[inside] == 0).all()) and bool((clear[~inside] == 1).all())


def test_a_class_that_nothing_speaks_for_gives_zeros() -> None:
    assert not bool(grad_cam(Corner(), torch.zeros(1, 3, 8, 8), 1).any())


@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_is_as_before(frozen: bool) -> None:
    torch.manual_seed(0)
    network = Segmenter("mobilenetv3_small_050").train()
    network.head_aux.eval()
    network.requires_grad_(not frozen)
    before, weights = state_of(network), {k: v.clone() for k, v in network.state_dict().items()}
    image = torch.rand(1, 3, 64, 48)
    cam = grad_cam(network, image, 1, layer="backbone.blocks.2")
    assert cam.shape == (64, 48) and 0 <= cam.min() <= cam.max() <= 1
    assert state_of(network) == before
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not image.requires_grad
    torch.testing.assert_close(cam, grad_cam(network.eval(), image, 1, layer="backbone.blocks.2"))


def test_the_default_layer_is_what_the_head_reads() -> None:
    torch.manual_seed(0)
    network = Segmenter("mobilenetv3_small_050").eval()
    image = torch.rand(1, 3, 64, 64)
    features = network(image).features.detach().requires_grad_(True)
    logits = network.on_image(network.head_main(features), image)[0]
    chosen = logits.argmax(0) == 1
    (gradient,) = torch.autograd.grad(logits[1][chosen].sum() if chosen.any() else logits[1].sum(), features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()[0]
    found = grad_cam(network, image, 1)
    peak = expected.detach().flatten().argmax().item()
    rows, columns = expected.shape
    row, column = peak // columns * 64 // rows + 2, peak % columns * 64 // columns + 2
    assert found[row, column] == pytest.approx(found.max().item(), abs=0.05)


def test_unknown_and_useless_layers_are_named() -> None:
    network = Segmenter("mobilenetv3_small_050")
    with pytest.raises(ConfigError, match=r"no layer 'backbone.block'; nearest: backbone"):
        find_layer(network, "backbone.block")
    before = state_of(network)
    with pytest.raises(ConfigError, match="the main head does not depend on 'head_aux'"):
        grad_cam(network, torch.rand(1, 3, 32, 32), 1, layer="head_aux")
    with pytest.raises(ConfigError, match="'backbone' gives no feature map"):
        grad_cam(network, torch.rand(1, 3, 32, 32), 1, layer="backbone")
    assert state_of(network) == before

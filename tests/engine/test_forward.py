"""A batch in pieces and in another precision; several processes have their tests in tests/test_processes.py."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from config.load import load_config
from engine.forward import ForwardBatchDiscriminator, ForwardMode, forward_batch, forward_mode
from nets.segmenter import Prediction, Segmenter
from train_intra import train_intra
from train_teacher import train_teacher

Words = Callable[..., list[str]]


class Levels(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU())

    def forward(self, image: Tensor) -> Prediction:
        features = self.layers(image)
        return Prediction(features[:, :2], features[:, 2:], features, features[:, 1:3])


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def gradients(network: nn.Module, batch: Tensor, how: ForwardMode) -> tuple[Tensor, list[Tensor]]:
    """The input's and the parameters' gradients of a loss in which every output stands beside every other."""
    batch = batch.clone().requires_grad_()
    with forward_mode(how):
        output = forward_batch(network, batch)
        flat = torch.cat([part.flatten() for part in output if part is not None])
        found = torch.autograd.grad((flat.softmax(0) * flat).sum(), [batch, *network.parameters()])
    return found[0], list(found[1:])


def test_pieces_give_outputs_and_gradients_in_the_order_of_the_batch() -> None:
    network, batch = Levels().double(), images().double()
    whole, parts = network(batch), None
    with forward_mode(ForwardMode(pieces=4)):
        parts = forward_batch(network, batch)
    for one, other in zip(whole[:4], parts[:4], strict=True):
        torch.testing.assert_close(other.double(), one, rtol=1e-6, atol=1e-7)
    expected = gradients(network, batch, ForwardMode())
    for found in (gradients(network, batch, ForwardMode(pieces=2)), gradients(network, batch, ForwardMode(pieces=8))):
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-9)


def test_statistics_see_each_piece_once() -> None:
    network, batch = Levels(norm=True), images()
    twice = deepcopy(network)
    for half in (batch[::2], batch[1::2]):
        twice(half)
    with forward_mode(ForwardMode(pieces=2)):
        forward_batch(network, batch).main.sum().backward()
    for name, buffer in twice.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer)
    assert int(network.get_buffer("layers.1.num_batches_tracked")) == 2


def test_a_field_that_nobody_needs_is_left_out_and_others_are_float32() -> None:
    for how in (ForwardMode(), ForwardMode(pieces=2), ForwardMode(torch.bfloat16)):
        with forward_mode(how):
            output = forward_batch(Levels(), images(), without="features")
        assert output.features is None and output.projected is None
        assert output.main.dtype == torch.float32


def test_bfloat16_is_close() -> None:
    torch.manual_seed(0)
    network = Segmenter("mobilenetv3_small_050").eval()
    batch = torch.rand(2, 3, 64, 64)
    exact = network(batch).main
    with forward_mode(ForwardMode(torch.bfloat16)):
        rounded = forward_batch(network, batch).main
    assert not torch.equal(rounded, exact)
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


def test_the_way_ends_with_its_block_and_holds_for_discriminators() -> None:
    discriminator, entropy = ForwardBatchDiscriminator(2, width=4), torch.rand(4, 2, 64, 64)
    plain = discriminator(entropy)
    with forward_mode(ForwardMode(torch.bfloat16, pieces=2)):
        assert not torch.equal(discriminator(entropy), plain)
    assert torch.equal(discriminator(entropy), plain)


def test_what_cannot_be_divided_is_refused() -> None:
    with (
        forward_mode(ForwardMode(pieces=3)),
        pytest.raises(ValueError, match="8 images cannot be divided among 1 processes"),
    ):
        forward_batch(Levels(), images())


@pytest.mark.slow
def test_a_compiled_stage_trains_as_it_would_otherwise(tmp_path: Path, tiny_arguments: Words) -> None:
    found = []
    for compiled in ("false", "true"):
        words = tiny_arguments(tmp_path, "--speed.compile", compiled, "--teacher.steps", "2")
        words[1] = str(tmp_path / compiled)
        train_teacher(load_config(words))
        rows = (tmp_path / compiled / "teacher" / "metrics.jsonl").read_text("utf-8").splitlines()
        found.append(json.loads(rows[-1])["loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_two_pieces_of_four_train_as_a_batch_of_eight(tmp_path: Path, tiny_arguments: Words) -> None:
    """Both stages, each of one step from the same start, with a network without batch normalisation."""
    net = ["--net.backbone", "convnext_atto", "--net.decoder", "deeplab_v2"]
    size = ["--teacher.batch", "8", "--intra.batch", "8", "--teacher.steps", "1", "--intra.steps", "1"]
    found = []
    for pieces in (1, 2):
        words = tiny_arguments(tmp_path, *net, *size, "--speed.pieces", str(pieces), "--intra.init", "fresh")
        words[1] = str(tmp_path / f"run{pieces}")
        config = load_config([*words, "--intra.step", "source_target"])
        train_teacher(config)
        train_intra(config)
        found.append(
            [torch.load(Path(config.out) / stage / "checkpoint.pt")["networks"] for stage in ("teacher", "intra")]
        )
    for one, two in zip(*found, strict=True):
        assert {"alignment", "ledger"} < one.keys() == two.keys()
        for name in one:
            first, second = (
                torch.cat([tensor.double().flatten() for tensor in state[name].values()]) for state in (one, two)
            )
            assert torch.dist(first, second) <= 1e-5 * first.norm(), name

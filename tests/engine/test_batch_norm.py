"""Batch normalisation measured anew: the statistics of a plain computation over the same batches."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from config.load import load_config
from config.schema import AugmentConfig
from engine.batch_norm import BATCHES, estimate_statistics
from engine.batches import ready
from engine.build import training_stream
from engine.domains import training_images
from nets.segmenter import Segmenter

Arguments = Callable[..., list[str]]


def test_statistics_are_means_over_batches_of_the_domain(tmp_path: Path, tiny_arguments: Arguments) -> None:
    config = load_config(tiny_arguments(tmp_path))
    stream = training_stream(config, training_images(config, "target", labels=False), "target", AugmentConfig())
    torch.manual_seed(0)
    network = Segmenter("resnet10t", decoder_width=32)
    first = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    estimate_statistics(network, stream, config)
    assert len(seen) == BATCHES
    assert first.running_mean is not None and first.running_var is not None and first.momentum == 0.1
    torch.testing.assert_close(first.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    batch = ready(next(stream.batches(config.teacher.batch, 0, 1)), torch.device("cpu"))
    assert len(batch["image"]) == len(seen[0])

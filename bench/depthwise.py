"""Backward pass of dilated depthwise convolutions, and a training step that has some, beside PyTorch's own.

    python bench/depthwise.py

First the largest layer of EfficientNet-Lite0 at stride 16: 1,152 channels of 8x8 pixels, 5x5, dilation 2, batch of 8.
Then forward and backward of that whole segmentation network, 8 images of 128x128. One thread, channels-last; both ways
have the same weights and inputs, calls alternate in one process, and medians of their processor times count.
"""

import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from nets.depthwise import quick_backward
from nets.segmenter import Segmenter

NETWORK = "tf_efficientnet_lite0"
CALLS, WARM = 12, 2


def compared(what: str, ways: dict[str, nn.Module], image: Tensor, loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Print the medians of both ways, their ratio and the largest difference of a gradient of the image."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    gradients: dict[str, Tensor] = {}
    for _ in range(WARM + CALLS):
        for way, network in ways.items():
            mine = image.clone(memory_format=torch.channels_last).requires_grad_()
            began = time.process_time()
            loss(network, mine).backward()
            times[way].append(time.process_time() - began)
            assert mine.grad is not None
            gradients[way] = mine.grad
    medians = {way: 1e3 * float(np.median(seconds[WARM:])) for way, seconds in times.items()}
    plain, quick = gradients["PyTorch"], gradients["project"]
    print(
        f"{what}: PyTorch {medians['PyTorch']:.1f} ms, project {medians['project']:.1f} ms, "
        f"ratio {medians['PyTorch'] / medians['project']:.2f}; gradients differ by at most "
        f"{float((plain - quick).abs().max() / plain.abs().max()):.1e} of the largest"
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(1152, 1152, 5, padding=4, dilation=2, groups=1152, bias=False))
    quick_layer = copy.deepcopy(layer)
    quick_backward(quick_layer)
    compared(
        "one layer",
        {"PyTorch": layer, "project": quick_layer},
        torch.rand(8, 1152, 8, 8),
        lambda network, image: network(image).square().sum(),
    )

    network = Segmenter(NETWORK, output_stride=16)
    with mock.patch("nets.segmenter.quick_backward"):
        plain = Segmenter(NETWORK, output_stride=16)
    plain.load_state_dict(network.state_dict())
    for each in (plain, network):
        each.to(memory_format=torch.channels_last).eval()
    compared(
        "forward and backward of the network",
        {"PyTorch": plain, "project": network},
        torch.rand(8, 3, 128, 128),
        lambda network, image: network(image).main.square().sum(),
    )


if __name__ == "__main__":
    main()

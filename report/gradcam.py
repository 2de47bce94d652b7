"""Grad-CAM: where in an image a layer argues for a class.

Own code because the package of that name pulls in a second OpenCV that needs a window system.
Source: Selvaraju et al., ICCV 2017; for segmentation the score is summed over the pixels of interest (Vinogradova et
al., AAAI 2020).
"""

import difflib

import torch
from timm.layers import Format
from torch import Tensor, nn
from torch.nn import functional as F

from nets.segmenter import Head, Segmenter, evaluating
from utils.errors import ConfigError


def grad_cam(
    segmenter: Segmenter, image: Tensor, target: int, head: Head = "main", layer: str = "", valid: Tensor | None = None
) -> Tensor:
    """Where `layer` speaks for class `target`, (H, W) in [0, 1]; all 0 where nothing does.

    The score is the sum of a head's logits of the class over the pixels that the head gives to it (over all pixels if
    there is none). Evaluation mode; weights, gradients, mode and hooks of the network are as before afterwards.

    Args:
        image: (1, C, H, W) in [0, 1].
        layer: dotted name of a module whose output is a feature map, such as "backbone.blocks.2"; "" takes the
            features that the head reads.
        valid: False where there is no data, (H', W') bool of any size; such pixels are none of those that are summed.

    Raises:
        ConfigError: no such layer, or one without a feature map.
    """
    kept: list[Tensor] = []
    head_module = segmenter.head_main if head == "main" else segmenter.head_aux

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        kept.append(inputs[0] if output is None else output)

    hook = find_layer(segmenter, layer).register_forward_hook(keep) if layer else None
    hook = hook or head_module.register_forward_pre_hook(keep)
    with hook, evaluating(segmenter), torch.enable_grad():
        # A leaf that wants a gradient makes the graph, also in a network whose parameters are frozen.
        prediction = segmenter(image.detach().clone().requires_grad_(True))
        logits = getattr(prediction, head)[0]  # (K, h, w)
        chosen = logits.argmax(0) == target
        if valid is not None:
            known = F.interpolate(valid[None, None].float(), chosen.shape, mode="nearest")[0, 0] > 0
            chosen &= known.to(chosen.device)
        score = logits[target][chosen].sum() if bool(chosen.any()) else logits[target].sum()
        if not kept or not isinstance(kept[-1], Tensor) or kept[-1].ndim != 4:
            raise ConfigError(f"eval.cam_layer: {layer!r} gives no feature map (1, D, h, w); name another layer")
        activation = kept[-1]
        (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
    if gradient is None:
        raise ConfigError(f"eval.cam_layer: the {head} head does not depend on {layer!r}; name a layer before it")
    with torch.no_grad():
        if layer and getattr(segmenter.backbone, "output_fmt", None) == Format.NHWC:
            gradient, activation = gradient.permute(0, 3, 1, 2), activation.permute(0, 3, 1, 2)
        cam = F.relu((gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True))
        cam = segmenter.on_image(cam, image)[0, 0]
        return cam / cam.max() if bool(cam.max() > 0) else torch.zeros_like(cam)


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The module of a dotted name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    modules = dict(network.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3)
        raise ConfigError(f"eval.cam_layer: the network has no layer {name!r}; nearest: {', '.join(near) or 'none'}")
    return modules[name]

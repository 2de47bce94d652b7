"""From what the loaders send to what a stage looks at: whole batches on its device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine import processes


def ready(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch of `datasets.samples.Sample` as the stages want it, on `device`; no GPU is waited for.

    Of several processes, each gives its share and gets the whole batch.

    Returns:
        `image` (B, C, H, W) float32 in [0, 1] with its change of colour, 0 where padded; `label` (B, H, W) int64, where
        there is one; `valid` and `name` as they are.
    """
    changes, boxes = processes.gather(batch["colour"]), processes.gather(batch["box"])
    parts: dict[str, Any] = {}
    for key, part in batch.items():
        tensor = isinstance(part, Tensor)
        parts[key] = processes.gather(part.to(device, non_blocking=True)) if tensor else processes.whole_batch(part)
    image, colour = parts["image"].float().div_(255), parts.pop("colour")
    del parts["box"]
    # What there is to do is asked of the tensors on the CPU, so that no GPU is waited for.
    same = torch.eye(*changes.shape[1:])
    for i in (changes != same).flatten(1).any(1).nonzero()[:, 0].tolist():
        linear, offset = colour[i, :, :-1], colour[i, :, -1:]
        top, left, height, width = boxes[i].tolist()
        inside = image[i, :, top : top + height, left : left + width]
        inside.copy_(torch.addmm(offset, linear, inside.flatten(1)).view_as(inside).clamp_(0, 1))
    parts["image"] = image
    if "label" in parts:
        parts["label"] = parts["label"].long()
    return parts

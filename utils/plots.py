"""Pictures: masks in the paper's colours, grids while training, the overview of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from losses import normalised_entropy
from nets.segmenter import Segmenter, resize_logits

CLEAR, CLOUD, UNKNOWN = (176, 235, 180), (255, 255, 255), (90, 90, 90)


def colour_mask(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) of 0, 1, 255 as (H, W, 3) uint8: clear pale green, cloud white, unknown grey."""
    colours = np.empty((*mask.shape, 3), np.uint8)
    colours[:] = UNKNOWN
    colours[mask == 0], colours[mask == 1] = CLEAR, CLOUD
    return colours


def colour_entropy(entropy: np.ndarray) -> np.ndarray:
    """Normalised entropy (H, W) in [0, 1] as (H, W, 3) uint8, from yellow (reliable) to red (unreliable)."""
    position = np.clip(entropy, 0, 1)[..., None]
    return np.round((1 - position) * (255, 237, 120) + position * (189, 0, 38)).astype(np.uint8)


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Tiles (h, w, 3) of one size as one white-ruled picture."""
    height, width = rows[0][0].shape[:2]
    canvas = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            canvas[i * (height + gap) :, j * (width + gap) :][:height, :width] = tile
    return canvas


@torch.no_grad()
def prediction_grid(segmenter: Segmenter, batch: Mapping[str, Mapping[str, Any]], images: int = 4) -> np.ndarray:
    """Per stream of a batch: images, labels where the stream has them, predicted masks, entropy maps."""
    was_training = segmenter.training
    segmenter.eval()
    rows = []
    for samples in batch.values():
        image: Tensor = samples["image"][:images]
        prob = resize_logits(segmenter(image).main, image.shape[-2:]).softmax(1)
        rows.append([_pixels(i) for i in image])
        if "label" in samples:
            rows.append([colour_mask(label.cpu().numpy()) for label in samples["label"][:images]])
        rows.append([colour_mask(mask.cpu().numpy()) for mask in prob.argmax(1)])
        rows.append([colour_entropy(entropy.cpu().numpy()) for entropy in normalised_entropy(prob)])
    segmenter.train(was_training)
    return grid(rows)


def _pixels(image: Tensor) -> np.ndarray:
    return (image[:3].permute(1, 2, 0).clamp(0, 1) * 255).byte().cpu().numpy()


def mask_overview(path: Path, names: Sequence[str], columns: Mapping[str, Sequence[np.ndarray]], caption: str) -> None:
    """Draw image, label and every model's mask side by side, one row per image, as a PNG for a paper.

    Args:
        names: one per row.
        columns: title -> one picture (H, W, 3) uint8 per row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 1.55
    figure = Figure(figsize=(side * len(columns), side * len(names) + 0.45), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for j, (title, pictures) in enumerate(columns.items()):
        axes[0][j].set_title(title, fontsize=8)
        for i, picture in enumerate(pictures):
            axes[i][j].imshow(picture)
            axes[i][j].set(xticks=[], yticks=[])
            if j == 0:
                axes[i][j].set_ylabel(names[i], fontsize=6)
    figure.supxlabel(caption, fontsize=7)
    figure.savefig(path)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or RGB (H, W, 3) uint8 pixels; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(data.tobytes())

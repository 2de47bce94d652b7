"""Masks, entropies and images as pictures of numpy arrays, and PNG files; without torch and matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.decoded import Decoded
from utils.files import whole
from utils.labels import IGNORE

CLEAR, CLOUD, UNKNOWN = (176, 235, 180), (255, 255, 255), (90, 90, 90)
MISS, FALSE_ALARM = (213, 62, 79), (50, 100, 190)
RELIABLE, UNRELIABLE = (255, 237, 120), (189, 0, 38)
OUTLINE = (255, 220, 0)
MASK_COLOURS = {0: CLEAR, 1: CLOUD, IGNORE: UNKNOWN}
ERROR_KEY = (  # of `colour_errors`
    ("cloud, found", CLOUD),
    ("clear, found", CLEAR),
    ("missed cloud", MISS),
    ("false alarm", FALSE_ALARM),
    ("no label", UNKNOWN),
)
SHOWN = 1024  # pixels of a side that are kept of a large image


def colour_mask(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) of 0, 1, 255 as (H, W, 3) uint8: clear pale green, cloud white, unknown grey."""
    colours = np.full((*mask.shape, 3), UNKNOWN, np.uint8)
    colours[mask == 0], colours[mask == 1] = CLEAR, CLOUD
    return colours


def colour_entropy(entropy: np.ndarray) -> np.ndarray:
    """Normalised entropy (H, W) in [0, 1] as (H, W, 3) uint8, from yellow (reliable) to red (unreliable)."""
    position = np.clip(entropy, 0, 1)[..., None]
    return np.round((1 - position) * RELIABLE + position * UNRELIABLE).astype(np.uint8)


def colour_errors(label: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where a mask is right and wrong, (H, W, 3) uint8: as `colour_mask`, but missed cloud red, false alarm blue."""
    colours = colour_mask(label)
    colours[(label == 1) & (mask == 0)] = MISS
    colours[(label == 0) & (mask == 1)] = FALSE_ALARM
    return colours


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 with the outline of the cloud (mask (H, W) of 0, 1, 255) drawn over it."""
    contours, _ = cv2.findContours((mask == 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, OUTLINE, max(1, max(mask.shape) // 200))


def laid_over(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map (H, W) in [0, 1] over the greyed image (H, W, 3) uint8, from dark (0) to bright (1)."""
    colours = cv2.applyColorMap((np.clip(heat, 0, 1) * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = image.mean(2, keepdims=True)
    return np.round(0.45 * grey + 0.55 * cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)).astype(np.uint8)


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Tiles (h, w, 3) of one size as one white-ruled picture."""
    height, width = rows[0][0].shape[:2]
    canvas = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            canvas[i * (height + gap) :, j * (width + gap) :][:height, :width] = tile
    return canvas


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) for the eye, (H, W, 3): its first three bands; of one or two bands the first, in grey."""
    return image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]


def visible(decoded: Decoded) -> np.ndarray:
    """A picture (H, W, 3) of a whole image file, black where it has no data; a large one is thinned."""
    return thinned(decoded.placed(as_rgb(decoded.image), 0))


def thinned(raster: np.ndarray) -> np.ndarray:
    """Every n-th pixel of a raster (H, W, ...), so many that a side has at most `SHOWN` of them."""
    step = -(-max(raster.shape[:2]) // SHOWN)
    return raster if step == 1 else raster[::step, ::step].copy()


def read_png(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) of what `write_png` wrote in colour."""
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, path
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or RGB (H, W, 3) pixels; the folder is made if need be, the file is whole or not there (`whole`)."""
    done, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    with whole(path, data.nbytes) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data.tobytes())

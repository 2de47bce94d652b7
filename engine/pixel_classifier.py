"""A second opinion on pseudo-labels: a classifier of single pixels, taught by the network on the same images.

The network looks at shapes, on a grid of its stride, and was taught on another sensor. A classifier that sees a pixel's
colour and its near surroundings can only repeat what the network says of most such pixels *in this domain*. So it mends
what is a matter of place: a block that reaches over the edge of a cloud, or a cloud that the network missed although it
looks like all the others. What the network gets wrong wherever it occurs, such as snow, it learns as it is told.

Source: co-training (Blum and Mitchell, COLT 1998), with a per-pixel gradient-boosted classifier as in s2cloudless.
"""

import math
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from datasets.files import Item
from datasets.images import ImageSet
from engine import processes
from engine.pseudo_labels import LEVELS, read_layer, write_pseudo_label
from utils.labels import IGNORE

PIXELS, MOST = 40_000, 200_000  # of all images together, to learn from: at least, and at most
ENOUGH = 500  # of each image, where there are many
SURROUNDINGS = (2, 8)  # pixels, deviation of the Gaussian


def pixel_features(image: np.ndarray, valid: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
    """What the classifier sees of each pixel, (H, W, F) float32; of some valid pixels alone, (N, F).

    Mean, smallest, range, and first less last of the bands; mean and deviation of that brightness in its surroundings;
    and of all valid pixels of the image the brightness's mean and its 10th and 90th percentile.

    Args:
        image: (H, W, C) uint8, 0 where not valid.
        valid: (H, W) bool, True somewhere.
        places: (N,) which of the valid pixels, in their order; with them, no more than a few layers are in memory.
    """

    def taken(layer: np.ndarray) -> np.ndarray:
        return layer if places is None else layer[valid][places]

    scale = np.float32(1 / 255)
    brightness, darkest = image.mean(2, dtype=np.float32) * scale, image.min(2) * scale
    first_less_last = image[..., 0].astype(np.float32) - image[..., -1]
    layers = [taken(layer) for layer in (brightness, darkest, image.max(2) * scale - darkest, first_less_last * scale)]
    weight = valid.astype(np.float32)
    for deviation in SURROUNDINGS:
        blurred = partial(cv2.GaussianBlur, ksize=(0, 0), sigmaX=deviation)
        known = np.maximum(blurred(weight), 1e-6)
        mean, square = blurred(brightness * weight) / known, blurred(brightness**2 * weight) / known
        layers += [taken(mean), taken(np.sqrt(np.maximum(square - mean**2, 0)))]
    whole = (brightness[valid].mean(), *np.percentile(brightness[valid], (10, 90)))
    return np.stack([*layers, *(np.full_like(layers[0], value) for value in whole)], -1)


def fit(features: np.ndarray, cloud: np.ndarray) -> HistGradientBoostingClassifier | None:
    """A classifier of `features` (N, F), taught by probabilities of cloud (N,) in [0, 1].

    A pixel weighs as much as it is sure, `|2 cloud - 1|`; None where all that weigh anything are of one class.
    """
    label, weight = cloud > 0.5, np.abs(2 * cloud - 1)
    if not 0 < weight[label].sum() < weight.sum():
        return None
    classifier = HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=8, min_samples_leaf=200, l2_regularization=1, early_stopping=False, random_state=0
    )
    return classifier.fit(features, label, sample_weight=weight)


def relabel(images: ImageSet, folder: Path, floor: float) -> float:
    """Write the pseudo-labels anew, as the pixel classifier says that was taught by the network.

    Args:
        folder: of stage 2, with the layer "cloud", the network's probability of cloud.
        floor: where neither class reaches it, a pixel has no label.

    Returns:
        The share of the pixels with data that has a label.
    """
    drawn = processes.divided(partial(_draw, images, folder), list(images), desc="pixels", unit="image")
    features, cloud = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    classifier = fit(features, cloud)
    if classifier is None:
        print("pixel classifier: the teacher sees one class alone, so its masks stay as they are")
        return 1.0
    write = partial(_write, images, folder, classifier, floor)
    kept, known = np.sum(processes.divided(write, list(images), desc="relabel", unit="image"), axis=0)
    return float(kept / known)


def drawn_places(name: str, pixels: int, images: int) -> np.ndarray:
    """Which of an image's `pixels` valid ones, 1 or more, to learn from, (N,) in [0, pixels): with repetition, by its
    name; the fewer `images` there are, the more of each."""
    number = max(math.ceil(PIXELS / images), min(ENOUGH, math.ceil(MOST / images)))
    return np.random.default_rng(list(name.encode())).integers(pixels, size=number)


def _draw(images: ImageSet, folder: Path, item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Features and probability of the drawn pixels of an image."""
    decoded = images.read(item)
    cloud = decoded.taken(read_layer(folder, "cloud", item.name))[decoded.valid]
    chosen = drawn_places(item.name, len(cloud), len(images))
    return pixel_features(decoded.image, decoded.valid, chosen), cloud[chosen] / LEVELS


def _write(
    images: ImageSet, folder: Path, classifier: HistGradientBoostingClassifier, floor: float, item: Item
) -> tuple[int, int]:
    """One pseudo-label; how many pixels have a class, and how many have data."""
    decoded = images.read(item)
    features = pixel_features(decoded.image, decoded.valid)
    cloud = classifier.predict_proba(features.reshape(-1, features.shape[2]))[:, 1].reshape(decoded.valid.shape)
    label = np.where(np.maximum(cloud, 1 - cloud) < floor, IGNORE, cloud > 0.5).astype(np.uint8)
    write_pseudo_label(folder, item.name, decoded.placed(label, IGNORE))
    return int((label[decoded.valid] != IGNORE).sum()), int(decoded.valid.sum())

"""One pass over a domain's images with every model: scores, and the mask and entropy map of each image."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from config.schema import Config, DomainConfig
from datasets.files import Item
from datasets.images import ImageSet
from engine import processes
from engine.domains import Role
from engine.inference import decide, decided, probabilities
from engine.pictures import UNKNOWN, colour_entropy, colour_errors, colour_mask, write_png
from engine.pixel_classifier import drawn_places, pixel_features
from losses.entropy import normalised_entropy
from nets.segmenter import Segmenter
from report.metrics import brightness_counts, calibration_bins, confusion_matrix
from report.repeatability import repeatability
from utils.labels import IGNORE


class Domain(NamedTuple):
    """The evaluation images of one domain; `views` holds them as those models see them that have another scaling."""

    role: Role
    config: DomainConfig
    protocol: str
    images: ImageSet
    views: Mapping[str, ImageSet] = MappingProxyType({})

    def seen_by(self, model: str) -> ImageSet:
        """The images as a model sees them: each with the scaling that it was trained with."""
        return self.views.get(model, self.images)

    @property
    def labelled(self) -> int:
        """Number of images that have a label."""
        return sum(item.label is not None for item in self.images)

    @property
    def scenes(self) -> list[str] | None:
        """The scene of each image, or None where scenes are unknown."""
        found = [item.scene for item in self.images]
        return None if None in found else [scene for scene in found if scene is not None]


@dataclass
class ModelScores:
    """What one model said about a domain, image by image, in the order of the items.

    `matrices` holds (2, 2) counts, or None for an image without a label; `entropy`, `heads` and `cloud` are means over
    an image's pixels with data: normalised entropy, agreement of the two heads' masks, share of predicted cloud.
    `calibration` and `repeatability` are those of all masks together, see `calibration_bins` and `repeatability`.
    """

    matrices: list[np.ndarray | None]
    calibration: np.ndarray | float
    entropy: list[float]
    heads: list[float]
    cloud: list[float]
    repeatability: float = math.nan

    @property
    def matrix(self) -> np.ndarray:
        """The confusion matrix of all labelled images."""
        return sum((m for m in self.matrices if m is not None), np.zeros((2, 2), np.int64))


class DomainScores(NamedTuple):
    """All counts of a domain: those of each model, the share of pixels on which each pair of models agrees in each
    image, and the labelled pixels (2, 256) by class and brightness."""

    domain: Domain
    models: dict[str, ModelScores]
    agreement: dict[tuple[str, str], list[float]]
    brightness: np.ndarray


class Evaluation(NamedTuple):
    """What figures are drawn from: the domains, target first, and the scores of each, as far as they are predicted."""

    config: Config
    folder: Path
    models: Mapping[str, Segmenter]
    domains: Sequence[Domain]
    scores: Sequence[DomainScores]


def evaluate_domain(
    domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path, pictures: Collection[str] = ()
) -> DomainScores:
    """Predict every image of a domain with every model.

    Into `folder` go, for `pictures` with "masks", masks/ROLE/MODEL/NAME.png and, of labelled images, the same below
    errors/; with "entropy", the same below entropy/.
    """
    predict = partial(evaluate_image, domain, models, config, folder, pictures)
    images = processes.divided(predict, list(domain.images), desc=f"predict {domain.role}", unit="image")
    of_models, agreements, brightness, features = zip(*images, strict=True)
    scores = {}
    for name in models:
        every = zip(*(of_image[name] for of_image in of_models), strict=True)
        matrices, calibration, entropies, heads, cloud, drawn = map(list, every)
        repeatable = repeatability(features, drawn, domain.scenes)
        scores[name] = ModelScores(matrices, sum(calibration), entropies, heads, cloud, repeatable)
    agreement = {pair: [of_image[pair] for of_image in agreements] for pair in combinations(models, 2)}
    return DomainScores(domain, scores, agreement, np.sum(brightness, axis=0))


def evaluate_image(
    domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path, pictures: Collection[str], item: Item
) -> tuple[dict[str, tuple[Any, ...]], dict[tuple[str, str], float], np.ndarray, np.ndarray]:
    """Predict one image with every model: its part of `DomainScores`, and the features (N, F) of the drawn pixels; with
    what each model said, in the order of the fields of `ModelScores`, its probability of cloud (N,) at these."""
    decoded = domain.images.read(item)
    image, label, valid = decoded.image, decoded.label, decoded.valid
    predicted: dict[str, np.ndarray] = {}
    scores: dict[str, tuple[Any, ...]] = {}
    places = drawn_places(item.name, int(valid.sum()), len(domain.images))
    for name, model in models.items():
        seen = domain.views[name].read(item).image if name in domain.views else image
        probability = probabilities(model, seen, config.data, valid)
        chosen = decided(probability, config.eval.head)
        uncertain = normalised_entropy(chosen[None])[0].numpy()
        same = (decide(probability, "main") == decide(probability, "aux")).numpy()
        confidence, classes = chosen.max(0)
        mask = classes.byte().numpy()
        predicted[name] = mask[valid]
        matrix, calibration = None, np.zeros(())
        if label is not None:
            matrix = confusion_matrix(label=label, prediction=mask)
            calibration = calibration_bins(label=label, prediction=mask, confidence=confidence.numpy())
        entropy, heads = float(uncertain[valid].mean(dtype=np.float64)), float(same[valid].mean())
        drawn = chosen[1].numpy()[valid][places]
        scores[name] = (matrix, calibration, entropy, heads, float(predicted[name].mean()), drawn)
        file = Path(domain.role, name, f"{item.name}.png")
        if "masks" in pictures:
            whole = decoded.placed(mask, IGNORE)
            write_png(folder / "masks" / file, colour_mask(whole))
            if label is not None:
                write_png(folder / "errors" / file, colour_errors(decoded.placed(label, IGNORE), whole))
        if "entropy" in pictures:
            write_png(folder / "entropy" / file, decoded.placed(colour_entropy(uncertain), UNKNOWN))
    agreement = {(a, b): float((predicted[a] == predicted[b]).mean()) for a, b in combinations(models, 2)}
    brightness = np.zeros((2, 256), np.int64) if label is None else brightness_counts(image, label)
    return scores, agreement, brightness, pixel_features(image, valid, places)

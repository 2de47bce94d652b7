"""One pass over a domain's images with every model: what is counted, and the mask and entropy map of each image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from config.schema import Config, DomainConfig
from datasets.files import Item
from datasets.images import ImageSet
from engine import processes
from engine.domains import Role
from engine.inference import decide, decided, probabilities
from engine.pixel_classifier import drawn_places, pixel_features
from losses.entropy import normalised_entropy
from nets.segmenter import Segmenter
from report.metrics import brightness_counts, calibration_bins, confusion_matrix
from report.plots import UNKNOWN, colour_entropy, colour_errors, colour_mask, write_png
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
class Tally:
    """What one model said about a domain, image by image, in the order of the items.

    `matrices` holds (2, 2) counts, or None for an image without a label; `entropy`, `heads` and `cloud` are means over
    an image's pixels with data: normalised entropy, agreement of the two heads' masks, share of predicted cloud.
    `repeatability` is that of all masks together, see `confidence.repeatability`.
    """

    matrices: list[np.ndarray | None] = field(default_factory=list)
    calibration: np.ndarray | float = 0.0
    entropy: list[float] = field(default_factory=list)
    heads: list[float] = field(default_factory=list)
    cloud: list[float] = field(default_factory=list)
    repeatability: float = math.nan

    @property
    def matrix(self) -> np.ndarray:
        """The confusion matrix of all labelled images."""
        return sum((m for m in self.matrices if m is not None), np.zeros((2, 2), np.int64))


class Survey(NamedTuple):
    """All counts of a domain: a tally per model, the share of pixels on which each pair of models agrees in each image,
    and the labelled pixels (2, 256) by class and brightness."""

    domain: Domain
    tallies: dict[str, Tally]
    agreement: dict[tuple[str, str], list[float]]
    brightness: np.ndarray


def survey(
    domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path, *, masks: bool, entropy: bool
) -> Survey:
    """Predict every image of a domain with every model.

    Args:
        folder: with `masks`, receives masks/ROLE/MODEL/NAME.png and, for labelled images, errors/ROLE/MODEL/NAME.png;
            with `entropy`, entropy/ROLE/MODEL/NAME.png.

    Raises:
        DataError: an image cannot be read, or a picture cannot be written.
    """
    look = partial(_look, domain, models, config, folder, masks=masks, entropy=entropy)
    found = processes.divided(look, list(domain.images), desc=f"predict {domain.role}", unit="image")
    result = Survey(domain, {name: Tally() for name in models}, {}, np.zeros((2, 256), np.int64))
    for one in found:
        result.brightness[:] += one.brightness
        for pair, share in one.agreement.items():
            result.agreement.setdefault(pair, []).append(share)
        for name, counts in one.counts.items():
            tally = result.tallies[name]
            tally.matrices.append(counts.matrix)
            tally.calibration += counts.calibration
            tally.entropy.append(counts.entropy)
            tally.heads.append(counts.heads)
            tally.cloud.append(counts.cloud)
    features = [one.features for one in found]
    for name, tally in result.tallies.items():
        drawn = [one.counts[name].drawn for one in found]
        tally.repeatability = repeatability(features, drawn, domain.scenes)
    return result


class _Counts(NamedTuple):
    """What one model said about one image, see `Tally`; `drawn` is the probability of cloud (N,) at some pixels."""

    matrix: np.ndarray | None
    calibration: np.ndarray | float
    entropy: float
    heads: float
    cloud: float
    drawn: np.ndarray


class _Looked(NamedTuple):
    """All that is counted in one image; `features` (N, F) are those of the drawn pixels."""

    counts: dict[str, _Counts]
    agreement: dict[tuple[str, str], float]
    brightness: np.ndarray | int
    features: np.ndarray


def _look(
    domain: Domain,
    models: Mapping[str, Segmenter],
    config: Config,
    folder: Path,
    item: Item,
    *,
    masks: bool,
    entropy: bool,
) -> _Looked:
    decoded = domain.images.read(item)
    image, label, valid = decoded.image, decoded.label, decoded.valid
    found: dict[str, np.ndarray] = {}
    counts: dict[str, _Counts] = {}
    places = drawn_places(item.name, int(valid.sum()), len(domain.images))
    features = pixel_features(image, valid, places)
    for name, model in models.items():
        seen = domain.views[name].read(item).image if name in domain.views else image
        probability = probabilities(model, seen, config.data)
        chosen = decided(probability, config.eval.head)
        mask = decide(probability, config.eval.head)
        uncertain = normalised_entropy(chosen[None])[0].numpy()
        same = (decide(probability, "main") == decide(probability, "aux")).numpy()
        predicted = mask.byte().numpy()
        found[name] = predicted[valid]
        matrix, calibration = None, np.zeros(())
        if label is not None:
            matrix = confusion_matrix(label=label, prediction=predicted)
            confidence = chosen.gather(0, mask[None])[0].numpy()
            calibration = calibration_bins(label=label, prediction=predicted, confidence=confidence)
        counts[name] = _Counts(
            matrix,
            calibration,
            entropy=float(uncertain[valid].mean(dtype=np.float64)),
            heads=float(same[valid].mean()),
            cloud=float(found[name].mean()),
            drawn=chosen[1].numpy()[valid][places],
        )
        place = Path(domain.role, name, f"{item.name}.png")
        if masks:
            whole = decoded.placed(predicted, IGNORE)
            write_png(folder / "masks" / place, colour_mask(whole))
            if label is not None:
                write_png(folder / "errors" / place, colour_errors(decoded.placed(label, IGNORE), whole))
        if entropy:
            write_png(folder / "entropy" / place, decoded.placed(colour_entropy(uncertain), UNKNOWN))
    agreement = {pair: float((found[pair[0]] == found[pair[1]]).mean()) for pair in combinations(found, 2)}
    return _Looked(counts, agreement, 0 if label is None else brightness_counts(image, label), features)

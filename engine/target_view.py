"""In which colours, and normalised by whose statistics, a trained network sees the target; chosen without labels.

What the target looks like to a network decides more than any loss, and no one view suits every pair of sensors: the
target's batch statistics mend a target of other contrasts and spoil one whose few images say little. So stage 1 tries
four views with the network that it has trained: the source's mean and deviation, band by band, or those of its clear
and its cloudy pixels, which hold where the target has more cloud or less than the source; each with the statistics of
batch normalisation that training left, and with the target's. It keeps the view whose masks change least when the
images are shown smaller: what a network knows it knows at both sizes. docs/results.md has what that choice is worth.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from config.schema import AugmentConfig, Config
from datasets.decoded import Decoded
from datasets.files import Item
from datasets.geometry import filled
from datasets.images import ImageSet
from datasets.scaling import Stretch
from engine import processes
from engine.agreement import counts_of, kappa
from engine.batch_norm import estimate_statistics
from engine.build import training_stream
from engine.domains import training_images, view_path
from engine.inference import mean_over_scales
from nets.segmenter import Segmenter
from utils.labels import IGNORE
from utils.records import write_json

IMAGES = 24  # that views are judged on, and colours of classes measured
ROUNDS = 2  # of predicting clouds and measuring their colours
SCALE = 0.7  # the other size at which an image is shown
CONTRAST = 4  # times: the most by which the classes' contrast may differ from that of all pixels


class View(NamedTuple):
    """Colours of the target, by "moments" or by "classes", and the statistics that normalise it, "trained" or those of
    the "target"."""

    colours: str
    statistics: str


class Candidate(NamedTuple):
    """What a view is made of: the scaling of the target's files, and the network with its statistics."""

    scaling: Stretch
    segmenter: Segmenter


def choose_view(segmenter: Segmenter, source: ImageSet, config: Config) -> None:
    """Choose the view under which the segmenter sees the target best, leave its statistics in the segmenter, and write
    its colours to view.json beside its weights, where `engine.domains.decoder_of` finds them from then on.

    `source` has the labelled images that it was trained on.
    """
    images = training_images(config, "target", labels=False, chosen=False)
    candidates = candidate_views(segmenter, source, images, config)
    scores = {
        view: scale_agreement(network, recoloured(images, scaling), config)
        for view, (scaling, network) in candidates.items()
    }
    best = max(scores, key=lambda view: scores[view])
    scaling, network = candidates[best]
    for view, score in scores.items():
        mark = " <- chosen" * (view == best)
        print(f"view: {view.colours}, {view.statistics} statistics: agreement over scales {score:.3f}{mark}")
    segmenter.load_state_dict(network.state_dict())
    if processes.is_first():
        rows = [view._asdict() | {"agreement": score} for view, score in scores.items()]
        write_json(view_path(config), {"chosen": best._asdict(), "scaling": list(scaling), "views": rows})
    processes.barrier()


def candidate_views(segmenter: Segmenter, source: ImageSet, images: ImageSet, config: Config) -> dict[View, Candidate]:
    """The views of the target's training `images`, whose scaling is that of "moments"."""
    moments = images.decoder.scaling
    assert isinstance(moments, Stretch)
    adapted = with_statistics_of(images, segmenter, config)
    sums = partial(_label_sums, source)
    chosen = spread(source, 4 * IMAGES)
    wanted = class_means(processes.divided(sums, chosen, desc="colours of the source", unit="image"))
    classes = class_stretch(segmenter, images, wanted, config)
    adapted_classes = class_stretch(adapted, images, wanted, config)
    return {
        View("moments", "trained"): Candidate(moments, segmenter),
        View("moments", "target"): Candidate(moments, adapted),
        View("classes", "trained"): Candidate(classes, segmenter),
        View("classes", "target"): Candidate(
            adapted_classes, with_statistics_of(recoloured(images, adapted_classes), segmenter, config)
        ),
    }


def with_statistics_of(images: ImageSet, segmenter: Segmenter, config: Config) -> Segmenter:
    """A copy of the network with the statistics of images."""
    adapted = copy.deepcopy(segmenter)
    estimate_statistics(adapted, training_stream(config, images, "target", AugmentConfig()), config)
    return adapted


def spread(images: ImageSet, most: int = IMAGES) -> Sequence[Item]:
    """At most so many of the images, from all over the domain."""
    return images.items[:: -(-len(images) // most)]


def recoloured(images: ImageSet, scaling: Stretch | str | None) -> ImageSet:
    """The same images under another scaling; what was decoded before is not used."""
    return replace(images, decoder=replace(images.decoder, scaling=scaling), cache=None)


def cloud_of(segmenter: Segmenter, decoded: Decoded, config: Config, scale: float = 1.0) -> np.ndarray:
    """The main head's probability of cloud (H, W) of an image, seen at a scale."""
    image = filled(decoded.image, decoded.valid)
    found: np.ndarray = mean_over_scales(segmenter, image, config.data, [scale])["main"][1].numpy()
    return found


def class_stretch(segmenter: Segmenter, images: ImageSet, wanted: np.ndarray, config: Config) -> Stretch:
    """The stretch that gives the target's predicted clear and cloudy pixels the mean colours `wanted` (2, C), those of
    the source's, 8-bit levels.

    Moments of all pixels move with the share of cloud, those of a class do not; which pixels are cloud, the network
    says, of the target as the last stretch shows it. A band keeps its stretch where cloud and clear are not told apart.

    Source: the colour transfer of `matched_stretch`, by class, in the manner of expectation and maximisation.
    """
    scaling = images.decoder.scaling
    assert isinstance(scaling, Stretch)
    for _ in range(ROUNDS):
        seen = recoloured(images, scaling)
        sums = processes.divided(
            partial(_predicted_sums, segmenter, seen, config),
            spread(images),
            desc="colours of the target",
            unit="image",
        )
        scaling = matched_classes(scaling, class_means(sums), wanted)
    return scaling


def class_means(sums: Iterable[np.ndarray]) -> np.ndarray:
    """Mean values (2, C) of clear and cloud from sums (2, C + 1) of values and pixels; NaN where a class has none."""
    total = np.sum(list(sums), axis=0)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = total[:, :-1] / total[:, -1:]
    return means


def matched_classes(scaling: Stretch, found: np.ndarray, wanted: np.ndarray) -> Stretch:
    """A stretch that takes the values `found` (2, C), of clear and of cloud, to the 8-bit levels `wanted` (2, C); of a
    band with another contrast than `CONTRAST` allows, as is.
    """
    low, high = np.array(scaling.low), np.array(scaling.high)
    before = 255 / (high - low)
    levels = 255 * (wanted / 255) ** scaling.gamma
    apart = found[1] - found[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = (levels[1] - levels[0]) / apart
        sound = (unit > before / CONTRAST) & (unit < before * CONTRAST)
        first = found[0] - levels[0] / unit
    low, high = np.where(sound, first, low), np.where(sound, first + 255 / unit, high)
    return scaling._replace(low=tuple(map(float, low)), high=tuple(map(float, high)))


def _sums(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Sums (2, C + 1) of values (H, W, C), and of pixels, of the classes 0 and 1 of (H, W)."""
    parts = [values[classes == of].astype(np.float64) for of in (0, 1)]
    return np.stack([[*part.sum(0), len(part)] for part in parts])


def _label_sums(source: ImageSet, item: Item) -> np.ndarray:
    decoded = source.read(item)
    assert decoded.label is not None
    return _sums(decoded.image, decoded.label)


def _predicted_sums(segmenter: Segmenter, images: ImageSet, config: Config, item: Item) -> np.ndarray:
    decoded = images.read(item)
    mask = np.where(decoded.valid, cloud_of(segmenter, decoded, config) > 0.5, np.uint8(IGNORE))
    return _sums(images.decoder.native(item)[0], decoded.placed(mask.astype(np.uint8), IGNORE))


def scale_agreement(segmenter: Segmenter, images: ImageSet, config: Config) -> float:
    """Cohen's kappa, at most 1, of a network's masks of images at full size and at `SCALE` of it."""
    counts = partial(_scale_counts, segmenter, images, config)
    return kappa(np.sum(processes.divided(counts, spread(images), desc="views", unit="image"), axis=0))


def _scale_counts(segmenter: Segmenter, images: ImageSet, config: Config, item: Item) -> np.ndarray:
    decoded = images.read(item)
    masks = (cloud_of(segmenter, decoded, config, scale)[decoded.valid] > 0.5 for scale in (1.0, SCALE))
    return counts_of(*masks)

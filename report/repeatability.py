"""Did adaptation help? A score of a model's masks on a domain that needs no labels.

Within one domain clouds look alike, so right masks can be predicted: a classifier of single pixels that learns from the
masks of most images gives those of the others. Mistakes that come from a change of sensor hang on the place,
and cannot. Entropy is no such sign: self-training lowers it, right or wrong. Nor is this one a proof: a model that
takes all snow for cloud is as regular as one that does not.

Source: the agreement of two views as a bound on error (Blum and Mitchell, COLT 1998; Dasgupta et al., NeurIPS 2001);
docs/results.md has its correlation with the true gain.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from engine.agreement import counts_of, kappa
from engine.pixel_classifier import fit

PARTS = 8  # of a domain's scenes, each predicted from the others; with two the score says less, see docs/results.md


def repeatability(
    features: Sequence[np.ndarray], cloud: Sequence[np.ndarray], scenes: Sequence[str] | None = None
) -> float:
    """Cohen's kappa of a model's masks and what they say of one another, on drawn pixels: at most 1, 0 for masks that
    are unrelated or all of one class, NaN for fewer than two images or scenes.

    Scenes, or images where scenes are unknown, are dealt in turn to `PARTS` parts, as many as there are scenes where
    these are fewer; a classifier predicts the masks of each part, having learnt those of all others.

    Args:
        features: (N, F) of each image, see `pixel_classifier.pixel_features`.
        cloud: (N,) of each image, the model's probability of cloud in [0, 1].
        scenes: of each image, if known.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(scenes or map(str, range(len(cloud)))))}
    if len(places) < 2:
        return math.nan
    part_of = np.repeat([places[name] % PARTS for name in scenes or places], [len(one) for one in cloud])
    seen, taught = np.concatenate(features), np.concatenate(cloud)
    predicted = np.empty(len(taught), bool)
    for part in np.unique(part_of):
        here = part_of == part
        classifier = fit(seen[~here], taught[~here])
        predicted[here] = taught[~here].mean() > 0.5 if classifier is None else classifier.predict(seen[here])
    return kappa(counts_of(taught > 0.5, predicted))


def adaptation_warnings(scores: Mapping[str, float]) -> list[str]:
    """Warnings where an adapted model's masks are less repeatable than those of the model trained on the source alone,
    by the repeatability of a run's models on its target."""
    before = scores.get("source_only", math.nan)
    return [
        f"{name}: adaptation may have harmed. Its masks are less repeatable ({100 * scores[name]:.1f}) than those of "
        f"source_only ({100 * before:.1f}); look at both before you trust it"
        for name in ("teacher", "student")
        if scores.get(name, math.nan) < before
    ]

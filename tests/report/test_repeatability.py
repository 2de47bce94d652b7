"""Repeatability of masks: known answers, and that it falls where a mask hangs on the place and not on the pixel."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from engine.agreement import kappa
from report.repeatability import adaptation_warnings, repeatability


def images(seed: int, number: int = 6, pixels: int = 2000) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features of which the first one tells bright pixels, and a sure probability of cloud for these."""
    rng = np.random.default_rng(seed)
    features = [rng.random((pixels, 4), np.float32) for _ in range(number)]
    return features, [0.02 + 0.96 * (one[:, 0] > 0.6) for one in features]


def test_masks_that_follow_the_pixels_are_repeatable_and_noise_is_not() -> None:
    features, cloud = images(0)
    assert repeatability(features, cloud) > 0.97
    rng = np.random.default_rng(1)
    noise = [rng.permutation(one) for one in cloud]
    assert abs(repeatability(features, noise)) < 0.1


def test_it_falls_with_the_share_of_mistakes() -> None:
    features, cloud = images(0)
    rng = np.random.default_rng(2)
    found = []
    for share in (0.0, 0.1, 0.2, 0.4):
        wrong = [rng.random(len(one)) < share for one in cloud]
        found.append(
            repeatability(features, [np.where(flip, 1 - one, one) for flip, one in zip(wrong, cloud, strict=True)])
        )
    assert found == sorted(found, reverse=True) and found[0] - found[-1] > 0.5


def test_a_rule_that_changes_from_image_to_image_is_not_repeatable() -> None:
    """Whole images of false alarms: half of the images call dark pixels cloud."""
    features, cloud = images(0, number=8)
    flipped = [1 - one if number in (0, 1, 4, 5) else one for number, one in enumerate(cloud)]
    assert repeatability(features, flipped) < 0.2 < repeatability(features, cloud)


def test_images_of_one_scene_stay_together() -> None:
    """Two scenes with opposite rules predict each other wrongly, though each is regular in itself."""
    features, cloud = images(0, number=8)
    scenes = ["a", "a", "b", "b"] * 2
    flipped = [1 - one if scene == "b" else one for scene, one in zip(scenes, cloud, strict=True)]
    assert repeatability(features, flipped, scenes) < -0.9
    assert repeatability(features, cloud, scenes) > 0.97
    assert math.isnan(repeatability(features, cloud, ["a"] * 8))


@pytest.mark.parametrize("value", [0.01, 0.99])
def test_masks_of_one_class_are_worth_nothing(value: float) -> None:
    features, _ = images(0)
    assert repeatability(features, [np.full(2000, value)] * 6) == 0


def test_fewer_than_two_images_have_none() -> None:
    features, cloud = images(0, number=1)
    assert math.isnan(repeatability(features, cloud)) and math.isnan(repeatability([], []))


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, (2, 2))
    first = np.repeat([0, 0, 1, 1], counts.ravel())
    second = np.repeat([0, 1, 0, 1], counts.ravel())
    assert kappa(counts) == pytest.approx(cohen_kappa_score(first, second))


def test_a_warning_only_where_the_score_falls() -> None:
    assert adaptation_warnings({"source_only": 0.5, "teacher": 0.6, "student": 0.5}) == []
    (warning,) = adaptation_warnings({"source_only": 0.5, "teacher": 0.55, "student": 0.4})
    assert warning.startswith("student: adaptation may have harmed") and "(40.0)" in warning and "(50.0)" in warning
    assert adaptation_warnings({"teacher": 0.1}) == adaptation_warnings({"source_only": math.nan, "student": 0.1}) == []

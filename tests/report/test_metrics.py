"""Scores under their true names, against hand-made matrices, the published tables and torchmetrics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics import functional as tm

from report.metrics import (
    best_threshold,
    bootstrap,
    brightness_counts,
    calibration_bins,
    calibration_error,
    confusion_matrix,
    interval,
    scores,
    trivial,
)


def test_known_answer_8() -> None:
    label, prediction = np.array([0, 0, 1, 1, 1, 255]), np.array([0, 1, 1, 1, 0, 1])
    matrix = confusion_matrix(label=label, prediction=prediction)
    assert matrix.tolist() == [[1, 1], [1, 2]] and matrix.dtype == np.int64
    assert scores(matrix)["iou"] == {"clear": 1 / 3, "cloud": 1 / 2}


def test_rows_are_true_and_columns_predicted() -> None:
    """90 cloud pixels of which 30 are found, and 10 clear ones called cloud: precision 30/40, recall 30/90."""
    matrix = confusion_matrix(
        label=np.repeat([0, 0, 1, 1], [50, 10, 60, 30]), prediction=np.repeat([0, 1, 0, 1], [50, 10, 60, 30])
    )
    assert matrix.tolist() == [[50, 10], [60, 30]]
    values = scores(matrix)
    assert values["precision"] == {"clear": 50 / 110, "cloud": 30 / 40}
    assert values["recall"] == {"clear": 50 / 60, "cloud": 30 / 90}
    assert values["iou"] == {"clear": 50 / 120, "cloud": 30 / 100}
    assert values["f1"]["cloud"] == pytest.approx(2 * (3 / 4) * (1 / 3) / (3 / 4 + 1 / 3))
    assert values["pixel_accuracy"] == 80 / 150
    assert values["balanced_accuracy"] == pytest.approx((50 / 60 + 30 / 90) / 2)
    assert values["miou"] == pytest.approx((50 / 120 + 30 / 100) / 2)
    assert values["confusion"] == [[50, 10], [60, 30]]


def test_published_table_closes() -> None:
    """Known answer 21: IoU 73.98/53.76, accuracy 80.03 and precision of cloud 90.88 leave one confusion matrix."""
    total = 10**8
    wrong = (1 - 0.8003) * total
    hit = wrong * 0.5376 / (1 - 0.5376)  # IoU of cloud = hit / (hit + wrong)
    false_cloud = hit / 0.9088 - hit
    missed = wrong - false_cloud
    matrix = np.round([[total - hit - wrong, false_cloud], [missed, hit]]).astype(np.int64)
    values = scores(matrix)
    assert values["iou"]["clear"] == pytest.approx(0.7398, abs=2e-4)
    assert values["precision"]["cloud"] == pytest.approx(0.9088, abs=2e-4)
    assert values["recall"]["cloud"] == pytest.approx(0.5683, abs=2e-4)
    assert values["balanced_accuracy"] == pytest.approx(0.7644, abs=2e-4)
    assert matrix.sum(1)[1] / total == pytest.approx(0.4087, abs=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_torchmetrics_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 255], (3, 20, 30), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.7, label % 255, rng.integers(0, 2, label.shape))
    values = scores(confusion_matrix(label=label, prediction=prediction))
    options: dict[str, Any] = {"num_classes": 2, "ignore_index": 255, "average": None}
    target, found = torch.from_numpy(label.astype(np.int64)), torch.from_numpy(prediction.astype(np.int64))
    for name, oracle in (
        ("iou", tm.classification.multiclass_jaccard_index),
        ("precision", tm.classification.multiclass_precision),
        ("recall", tm.classification.multiclass_recall),
        ("f1", tm.classification.multiclass_f1_score),
    ):
        assert list(values[name].values()) == pytest.approx(oracle(found, target, **options).tolist(), abs=1e-6), name
    for name, average in (("pixel_accuracy", "micro"), ("balanced_accuracy", "macro")):
        oracle_value = tm.classification.multiclass_accuracy(found, target, **(options | {"average": average}))
        assert values[name] == pytest.approx(float(oracle_value), abs=1e-6), name
    assert values["miou"] == pytest.approx(np.mean(list(values["iou"].values())))


masks = arrays(np.uint8, (4, 6), elements=st.sampled_from([0, 1, 255]))
found_masks = arrays(np.uint8, (4, 6), elements=st.sampled_from([0, 1]))


@settings(max_examples=50, deadline=None)
@given(masks, found_masks, found_masks)
def test_ignored_pixels_never_count(label: np.ndarray, prediction: np.ndarray, other: np.ndarray) -> None:
    changed = np.where(label == 255, other, prediction)
    matrix = confusion_matrix(label=label, prediction=prediction)
    assert np.array_equal(matrix, confusion_matrix(label=label, prediction=changed))
    assert matrix.sum() == (label != 255).sum()


def test_matrices_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 2, (2, 10, 10))
    whole = confusion_matrix(label=label, prediction=prediction)
    parts = [confusion_matrix(label=label[i : i + 5], prediction=prediction[i : i + 5]) for i in (0, 5)]
    assert np.array_equal(whole, parts[0] + parts[1])


def test_absent_class_has_no_score_and_leaves_the_mean() -> None:
    values = scores(np.array([[8, 0], [0, 0]]))
    assert all(math.isnan(values[name]["cloud"]) for name in ("iou", "precision", "recall", "f1"))
    assert values["miou"] == values["iou"]["clear"] == values["balanced_accuracy"] == 1


def test_absent_but_predicted_class_counts_as_an_error() -> None:
    values = scores(np.array([[6, 2], [0, 0]]))
    assert values["iou"] == {"clear": 0.75, "cloud": 0.0} and values["miou"] == 0.375
    assert math.isnan(values["recall"]["cloud"]) and values["precision"]["cloud"] == 0
    assert values["balanced_accuracy"] == 0.75  # recall of what exists


def test_nothing_known_gives_no_scores() -> None:
    matrix = confusion_matrix(label=np.full(4, 255), prediction=np.zeros(4, int))
    assert matrix.tolist() == [[0, 0], [0, 0]]
    values = scores(matrix)
    assert math.isnan(values["miou"]) and math.isnan(values["pixel_accuracy"])


@pytest.mark.parametrize(
    ("label", "prediction"), [([0, 2], [0, 1]), ([0, 1], [0, 2]), ([0, 1], [0, 255]), ([0, -1], [0, 1])]
)
def test_values_out_of_range(label: list[int], prediction: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        confusion_matrix(label=np.array(label), prediction=np.array(prediction))


def test_shapes_must_agree_and_names_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"\(4,\).*\(2, 2\)"):
        confusion_matrix(label=np.zeros(4, int), prediction=np.zeros((2, 2), int))
    with pytest.raises(TypeError, match="positional"):
        confusion_matrix(np.zeros(4, int), np.zeros(4, int))  # type: ignore[misc]


def test_more_classes() -> None:
    matrix = confusion_matrix(label=np.array([0, 2, 2, 255]), prediction=np.array([0, 1, 2, 0]), classes=3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]


def test_trivial_baselines_are_those_masks() -> None:
    label = np.repeat([0, 1, 255], [7, 3, 5])
    matrix = confusion_matrix(label=label, prediction=np.zeros_like(label))
    other = confusion_matrix(label=label, prediction=np.arange(15) % 2)
    for base in (matrix, other):  # whatever the model said
        baselines = trivial(base)
        for name, value in (("all_clear", 0), ("all_cloud", 1)):
            expected = confusion_matrix(label=label, prediction=np.full_like(label, value))
            assert np.array_equal(baselines[name], expected), name
    assert scores(trivial(matrix)["all_cloud"])["recall"] == {"clear": 0, "cloud": 1}


@pytest.mark.parametrize("classes", [2, 3, 7, 15])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_counting_in_bytes_equals_counting_one_by_one(classes: int, dtype: Any) -> None:
    rng = np.random.default_rng(classes)
    label = rng.choice([*range(classes), 255], (61, 47)).astype(dtype)
    prediction = rng.integers(0, classes, label.shape).astype(dtype)
    expected = np.zeros((classes, classes), np.int64)
    for true, found in zip(label.flat, prediction.flat, strict=True):
        if true != 255:
            expected[true, found] += 1
    assert np.array_equal(confusion_matrix(label=label, prediction=prediction, classes=classes), expected)


@pytest.mark.parametrize("bad", [2, 128, 254, -1, 256, 511])
def test_a_wrong_class_never_wraps_round_into_a_right_one(bad: int) -> None:
    right, wrong = np.zeros((2, 3), np.int64), np.full((2, 3), bad)
    with pytest.raises(ValueError, match="found"):
        confusion_matrix(label=wrong, prediction=right)
    with pytest.raises(ValueError, match="found"):
        confusion_matrix(label=right, prediction=wrong)
    with pytest.raises(ValueError, match="found classes"):
        confusion_matrix(label=right, prediction=np.full((2, 3), 255))


def test_large_images_are_counted_exactly() -> None:
    """A float32 histogram of one bin would stop at 2**24 = 16777216."""
    label = np.zeros(20_000_001, np.uint8)
    assert confusion_matrix(label=label, prediction=label).tolist() == [[20_000_001, 0], [0, 0]]


def test_no_pixels() -> None:
    assert confusion_matrix(label=np.zeros((0,), np.uint8), prediction=np.zeros((0,), np.uint8)).sum() == 0


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_against_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cloud = rng.random((40, 50))
    label = np.where(rng.random(cloud.shape) < cloud**2, 1, 0).astype(np.uint8)
    label[rng.random(cloud.shape) < 0.1] = 255
    prediction = (cloud > 0.5).astype(np.uint8)
    confidence = np.maximum(cloud, 1 - cloud)
    halves = [np.s_[:17], np.s_[17:]]
    binned = sum(calibration_bins(label=label[h], prediction=prediction[h], confidence=confidence[h]) for h in halves)
    assert isinstance(binned, np.ndarray) and binned[0].sum() == (label != 255).sum()
    scores_of = torch.from_numpy(np.stack([1 - cloud, cloud], -1)).reshape(-1, 2)
    oracle = tm.classification.multiclass_calibration_error(
        scores_of, torch.from_numpy(label.astype(np.int64)).flatten(), num_classes=2, n_bins=15, ignore_index=255
    )
    assert calibration_error(binned) == pytest.approx(float(oracle), abs=1e-6)


def test_calibration_of_a_sure_and_half_right_prediction_is_one_half() -> None:
    binned = calibration_bins(
        label=np.array([0, 1, 0, 1, 255]), prediction=np.zeros(5, int), confidence=np.ones(5), bins=10
    )
    assert binned[:, -1].tolist() == [4, 4, 2] and calibration_error(binned) == 0.5
    assert math.isnan(calibration_error(np.zeros((3, 15))))


def test_bootstrap_of_equal_images_has_no_spread_and_of_unequal_ones_covers_the_estimate() -> None:
    one = np.array([[50, 10], [5, 35]])
    assert np.ptp(bootstrap(np.stack([one] * 5))) < 1e-12
    rng = np.random.default_rng(0)
    groups = rng.integers(1, 100, (30, 2, 2))
    drawn = bootstrap(groups, draws=500, seed=1)
    low, high = interval(drawn)
    assert drawn.shape == (500,) and low < scores(groups.sum(0))["miou"] < high
    assert np.array_equal(drawn, bootstrap(groups, draws=500, seed=1))
    assert not np.array_equal(drawn, bootstrap(groups, draws=500, seed=2))


def test_bootstrap_resamples_whole_groups_and_pairs_the_models() -> None:
    """Two images, one all right and one all wrong: the mIoU of a resample is one of three values, the same for both."""
    right, wrong = np.array([[10, 0], [0, 10]]), np.array([[0, 10], [10, 0]])
    groups = np.stack([right, wrong])
    first, second = bootstrap(np.stack([groups, groups]), draws=200)
    assert np.array_equal(first, second)
    assert set(np.round(first, 6)) == {0, round(1 / 3, 6), 1}


def test_interval() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx([25, 975])


def test_best_brightness_threshold() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[0] = [[10, 10, 10], [20, 20, 20], [90, 90, 90], [95, 95, 95]]
    image[1] = [[200, 200, 200], [0, 0, 0], [0, 0, 0], [20, 20, 23]]
    label = np.array([[0, 0, 1, 1], [0, 255, 255, 0]], np.uint8)  # one bright clear pixel, two unknown ones
    counts = brightness_counts(image, label)
    assert counts.sum() == 6 and counts[0, 21] == 1 and counts[0, 0] == 0
    threshold, matrix = best_threshold(counts)
    assert 21 <= threshold < 90
    assert matrix.tolist() == [[3, 1], [0, 2]]
    every = [
        scores(
            np.array(
                [
                    [counts[0, : t + 1].sum(), counts[0, t + 1 :].sum()],
                    [counts[1, : t + 1].sum(), counts[1, t + 1 :].sum()],
                ]
            )
        )["miou"]
        for t in range(256)
    ]
    assert scores(matrix)["miou"] == max(every)

"""The choice of the target's view: colours of classes by known answers, and that later stages keep to the choice."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.load import load_config
from config.schema import Config
from datasets.scaling import Stretch, recorded_scaling
from engine.data_record import images_of
from engine.domains import training_images
from engine.target_view import class_means, class_stretch, matched_classes
from nets.weights import load_weights
from split_entropy import split_entropy
from train_intra import train_intra
from train_teacher import train_teacher

Arguments = Callable[..., list[str]]
level = st.floats(20, 120)


def test_class_means_are_over_all_pixels() -> None:
    one, other = np.array([[10.0, 2], [90, 1]]), np.array([[20.0, 1], [0, 0]])
    assert class_means([one, other]).tolist() == [[10], [90]]
    assert np.isnan(class_means([other])[1]).all()


@given(clear=level, contrast=st.floats(20, 120), seen=level, seen_contrast=st.floats(20, 120))
def test_both_classes_get_the_wanted_levels(clear: float, contrast: float, seen: float, seen_contrast: float) -> None:
    wanted, found = np.array([[clear], [clear + contrast]]), np.array([[seen], [seen + seen_contrast]])
    before = Stretch((0.0,), (255.0 * seen_contrast / contrast * 2,), dtype="uint8")
    stretch = matched_classes(before, found, wanted)
    (low,), (high,) = stretch.low, stretch.high
    np.testing.assert_allclose(255 * (found - low) / (high - low), wanted, atol=1e-6)
    assert stretch.dtype == before.dtype


def test_a_tone_curve_comes_after_the_stretch() -> None:
    before = Stretch((0.0,), (1000.0,), 2.0)
    stretch = matched_classes(before, np.array([[100.0], [600.0]]), np.array([[51.0], [204.0]]))
    shown = stretch.applied(np.array([[[100.0], [600.0]]]))
    np.testing.assert_allclose(shown.ravel(), [51, 204], atol=1)


@pytest.mark.parametrize("found", [[50.0, 50.0], [50.0, 40.0], [50.0, 50.5], [50.0, np.nan]])
def test_a_band_without_contrast_stays_as_it_is(found: list[float]) -> None:
    before = Stretch((0.0, 0.0), (255.0, 255.0))
    values = np.array([[found[0], 20.0], [found[1], 80.0]])
    stretch = matched_classes(before, values, np.array([[40.0, 40.0], [160.0, 160.0]]))
    assert (stretch.low[0], stretch.high[0]) == (0, 255)
    assert (stretch.low[1], stretch.high[1]) != (0, 255)


def scaling_in(weights: Path) -> object:
    return images_of(weights, load_weights(weights)[1]).decoder.scaling


def test_later_stages_keep_to_the_view_that_stage_1_chose(
    tmp_path: Path, tiny_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Config] = []

    def scored(segmenter, images, config):  # type: ignore[no-untyped-def]
        asked.append(config)
        return 0.9 if len(asked) == 4 else 0.5

    def shifted(*arguments):  # type: ignore[no-untyped-def]
        found = class_stretch(*arguments)
        return found._replace(low=tuple(low - 9 for low in found.low))

    monkeypatch.setattr("engine.target_view.scale_agreement", scored)
    monkeypatch.setattr("engine.target_view.class_stretch", shifted)
    config = load_config(tiny_arguments(tmp_path, "--target.scaling", "auto"))
    train_teacher(config)
    record = json.loads((tmp_path / "run" / "teacher" / "view.json").read_text())
    assert record["chosen"] == {"colours": "classes", "statistics": "target"}
    assert [row["agreement"] for row in record["views"]] == [0.5, 0.5, 0.5, 0.9]
    split_entropy(config)
    train_intra(config)
    assert scaling_in(tmp_path / "run/teacher/teacher.safetensors") == recorded_scaling(record["scaling"], 3)
    student = scaling_in(tmp_path / "run/intra/student.safetensors")
    assert student == scaling_in(tmp_path / "run/teacher/teacher.safetensors")
    assert training_images(config, "target", labels=False).decoder.scaling == student
    assert training_images(config, "target", labels=False, chosen=False).decoder.scaling != student

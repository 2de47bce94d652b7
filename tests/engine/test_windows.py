"""Windows: they cover everything, and their weights sum to one, whatever the length, the window and the overlap."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.schema import DataConfig
from engine.windows import Rows, blended, plan, spans, usual_window


def require_partition(length: int, window: int, overlap: int) -> None:
    found = spans(length, window, overlap)
    assert found[0].start == 0 and found[-1].stop == length
    total = np.zeros(length)
    for span in found:
        assert span.stop - span.start == len(span.weight) == min(window, length)
        assert (span.weight > 0).all() and (span.weight <= 1).all()
        total[span.start : span.stop] += span.weight
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
    steps = [after.start - span.start for span, after in pairwise(found)]
    assert all(0 < step <= window - overlap for step in steps) and max(steps, default=0) - min(steps, default=0) <= 1
    assert len(found) == 1 or length > (len(found) - 1) * (window - overlap) + overlap  # one less would not do


@given(st.data())
def test_weights_are_a_partition_of_unity(data: st.DataObject) -> None:
    length, window = data.draw(st.integers(1, 400), "length"), data.draw(st.integers(1, 120), "window")
    require_partition(length, window, data.draw(st.integers(0, window - 1), "overlap"))


@pytest.mark.parametrize("overlap", [0, 1, 8, 16, 24, 31])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 200])
def test_weights_sum_to_one_everywhere(length: int, overlap: int) -> None:
    require_partition(length, 32, overlap)


def test_windows_are_spaced_evenly() -> None:
    assert [span.start for span in spans(100, 32, 8)] == [0, 23, 45, 68]
    assert [span.start for span in spans(104, 32, 8)] == [0, 24, 48, 72]


def test_weights_of_half_overlap_are_a_tent_and_of_less_a_ramp_over_what_is_shared() -> None:
    place = np.arange(32) + 0.5
    np.testing.assert_allclose(spans(64, 32, 16)[1].weight, np.minimum(place, 32 - place) / 16, rtol=1e-6)
    ramp = np.minimum(1, np.minimum(place, 32 - place) / 8)
    np.testing.assert_allclose(spans(80, 32, 8)[1].weight, ramp, rtol=1e-6)
    np.testing.assert_array_equal(spans(64, 32, 0)[1].weight, np.ones(32))


@pytest.mark.parametrize(
    ("data", "shape", "seen"),
    [
        (DataConfig(size=32, geometry="crop"), (100, 20), (32, 20)),
        (DataConfig(size=32, geometry="letterbox", tile=64), (100, 20), (32, 10)),
        (DataConfig(size=32, geometry="letterbox", tile=64), (64, 20), (32, 10)),
        (DataConfig(size=32, geometry="letterbox", tile=None), (100, 20), (32, 6)),
    ],
)
def test_a_window_is_what_the_network_was_trained_on(
    data: DataConfig, shape: tuple[int, int], seen: tuple[int, int]
) -> None:
    windows = plan(*shape, data)
    assert windows.seen == seen
    assert windows.whole == (data.geometry == "letterbox" and (data.tile is None or max(shape) <= data.tile))
    assert plan(1, 1, DataConfig(size=32, geometry="crop"), window=1).rows[0].stop == 1


@pytest.mark.parametrize(
    ("data", "decoder", "window"),
    [
        (DataConfig(size=128, geometry="crop"), "fpn", 512),
        (DataConfig(size=600, geometry="crop"), "unet", 600),
        (DataConfig(size=128, geometry="crop"), "upernet", None),
        (DataConfig(size=128, geometry="crop"), "deeplab_v2", None),
        (DataConfig(size=128, geometry="crop"), None, None),
        (DataConfig(size=128, geometry="letterbox"), "fpn", None),
    ],
)
def test_a_window_is_larger_than_in_training_where_the_decoder_is_local(
    data: DataConfig, decoder: str | None, window: int | None
) -> None:
    architecture = json.dumps({"backbone": "resnet50"} | ({"decoder": decoder} if decoder else {}))
    assert usual_window(data, architecture) == window


def test_windows_share_a_quarter_of_the_training_crop_or_of_their_own() -> None:
    crop = DataConfig(size=128, geometry="crop")
    for window, overlap in ((512, 32), (128, 32), (40, 10)):
        rows = plan(1000, 100, crop, window).rows
        assert min(before.stop - after.start for before, after in pairwise(rows)) >= overlap
        assert len(rows) == len(spans(1000, window, overlap))


@pytest.mark.parametrize("shape", [(20, 30), (75, 50)])
def test_layers_of_any_number_are_blended(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    layers = (2, 3)

    def values(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        assert windows.shape[1:3] == size
        return np.stack([number * windows[..., 0] for number in np.arange(6, dtype=np.float32)], 1).reshape(
            len(windows), *layers, *size
        )

    ticks: list[tuple[int, int]] = []
    windows = plan(*shape, DataConfig(size=32, geometry="crop"))
    slabs = iter([Rows(image, np.ones(shape, bool))])
    rows = list(blended(values, slabs, windows, layers=layers, at_once=2, tick=lambda *count: ticks.append(count)))
    found = np.concatenate([part.layer for part in rows], axis=-2)
    expected = np.arange(6).reshape(*layers, 1, 1) * image[..., 0].astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    count = len(windows.rows) * len(windows.columns)
    assert ticks[-1] == (count, count) and len(ticks) == len(windows.rows)

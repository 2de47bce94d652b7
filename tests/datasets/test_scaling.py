"""The scaling to 8 bits as a weights file holds it."""

import json
import math

import pytest

from datasets.scaling import Stretch, recorded_scaling


@pytest.mark.parametrize("value", [None, "shift8"])
def test_recorded_scalings_without_numbers(value: str | None) -> None:
    assert recorded_scaling(value, 3) == value


def test_recorded_scaling_is_the_stretch_that_was_written() -> None:
    stretch = Stretch((0.0, 1.0), (2.0, 3.0), 2.2, "int16")
    assert recorded_scaling(json.loads(json.dumps(stretch)), 2) == stretch
    assert recorded_scaling([[0, 1], [2, 3]], 2) == Stretch((0.0, 1.0), (2.0, 3.0))


@pytest.mark.parametrize(
    "value",
    [
        *(1, "shift9", [], {}, [[0, 0]], [[0, 0], [1]], [[0], [1]], [[0, 0], [1, 0]], [[0, 0], [1, math.inf]]),
        *([[0, 0], [1, math.nan]], [[0, 0], [1, 1e300]], [[0, "a"], [1, 1]], [[0, 0], [1, 1], 0], [None, None]),
        *([[0, 0], [1, 1], "a"], [[0, 0], [1, 1], 1, "int64"], [[0, 0], [1, 1], 1, None, 1]),
    ],
)
def test_recorded_scaling_of_no_meaning(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        recorded_scaling(value, 2)

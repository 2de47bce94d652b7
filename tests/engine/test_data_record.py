"""What a weights file says of its images, and what is made of a damaged record."""

import json
from pathlib import Path
from typing import Any

import pytest

from datasets.decode import RGB
from datasets.decoder import Decoder
from datasets.scaling import Stretch
from engine.data_record import Images, images_of
from utils.errors import WeightsError

RECORD = {
    "bands": RGB,
    "size": 64,
    "geometry": "crop",
    "tile": None,
    "target": {"bands": None, "scaling": None, "nodata": "file"},
}


def test_a_record_survives_a_weights_file() -> None:
    decoder = Decoder(("nir", "red"), ("red", "nir"), Stretch((1.0, 2.0), (3.0, 4.0), 2.0), nodata=-1.0)
    of = Images(decoder, 96, "letterbox", 512)
    assert images_of(Path("student.safetensors"), of.metadata) == of


def test_a_file_without_a_record_takes_the_config_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {size: 96, geometry: letterbox, tile: 256}\n")
    assert images_of(tmp_path / "student.safetensors", {}) == Images(Decoder(RGB), 96, "letterbox", 256)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(WeightsError, match=r"does not say what images it is for, .*config\.yaml"):
        images_of(tmp_path / "student.safetensors", {})


@pytest.mark.parametrize("text", ["no json", "{}", '{"target": 1}'])
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="is not a weights file with a sound record of its data"):
        images_of(Path("student.safetensors"), {"data": text})


@pytest.mark.parametrize(
    "change",
    [
        {"size": "64"},
        {"size": 0},
        {"size": 10**9},
        {"size": True},
        {"size": 64.0},
        {"geometry": "stretch"},
        {"geometry": []},
        {"tile": 1},
        {"tile": "512"},
        {"bands": "rgb"},
        {"bands": []},
        {"bands": [1, 2, 3]},
        {"target": {"bands": "rgb", "scaling": None, "nodata": "file"}},
        {"target": {"bands": None, "scaling": [[0, 0, 0], [1, 1, 1], 0], "nodata": "file"}},
        {"target": {"bands": None, "scaling": [[0, 0, 0], [1, "x", 1]], "nodata": "file"}},
        {"target": {"bands": None, "scaling": [[0, 0, 0], [1, 1, 1], 1, "int64"], "nodata": "file"}},
        {"target": {"bands": None, "scaling": [[1, 1, 1], [0, 0, 0]], "nodata": "file"}},
        {"target": {"bands": None, "scaling": "shift9", "nodata": "file"}},
        {"target": {"bands": None, "scaling": None, "nodata": [0]}},
    ],
)
def test_a_record_of_no_meaning_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(
        WeightsError, match=r"student\.safetensors: is not a weights file with a sound record of its data \(\w+Error: "
    ):
        images_of(Path("student.safetensors"), {"data": json.dumps(RECORD | change)})


def test_a_record_that_is_too_deep_is_refused() -> None:
    with pytest.raises(WeightsError, match="is not a weights file with a sound record of its data"):
        images_of(Path("student.safetensors"), {"data": "[" * 99_999})


@pytest.mark.parametrize("text", ["data: {size: x, geometry: crop}", "data: 1", "a: &a [*a]", "[" * 9999])
def test_a_damaged_config_beside_a_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(WeightsError, match=r"does not say what images it is for, .*config\.yaml"):
        images_of(tmp_path / "student.safetensors", {})

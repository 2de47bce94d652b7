"""Published scores, to stand beside ours."""

from pathlib import Path
from typing import Any, NamedTuple

from config.load import read_mapping
from utils.errors import ConfigError


class Published(NamedTuple):
    """One row of a published table, in percent."""

    method: str
    miou: float
    iou_clear: float | None
    iou_cloud: float | None
    source: str


KNOWN = ", ".join(Published._fields)


def read_published(path: Path, pair: str) -> list[Published]:
    """The published scores of a pair; none if the file does not name it.

    The file is YAML: pair -> rows of method, miou, iou_clear and iou_cloud (may be left out) and source. One that
    cannot be read, or a row that holds something else, raises ConfigError.
    """
    rows = read_mapping(path, "a YAML file", "a mapping of pairs to rows").get(pair, [])
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: {pair} is {type(rows).__name__}, expected a list of rows")
    return [_published(row, f"{path}: {pair}[{i}]") for i, row in enumerate(rows)]


def _published(row: Any, place: str) -> Published:
    if not isinstance(row, dict):
        raise ConfigError(f"{place} is {type(row).__name__}, expected a mapping with the keys {KNOWN}")
    if unknown := [key for key in row if key not in Published._fields]:
        raise ConfigError(f"{place}.{unknown[0]}: unknown key; known are {KNOWN}")
    fields: dict[str, Any] = dict.fromkeys(Published._fields) | row
    for key, value in fields.items():
        sound, expected = type(value) in (int, float) and 0 <= value <= 100, "a percentage from 0 to 100"
        if key in ("method", "source"):
            sound, expected = isinstance(value, str) and value != "", "a text"
        if not sound and (value is not None or key not in ("iou_clear", "iou_cloud")):
            raise ConfigError(f"{place}.{key}: found {value!r}, expected {expected}")
    return Published(**fields)

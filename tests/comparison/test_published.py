"""Published scores."""

from pathlib import Path

import pytest

from comparison.published import read_published
from utils.errors import ConfigError

PUBLISHED = Path(__file__).parents[2] / "configs/compare/published.yaml"


def test_published_file_agrees_with_itself() -> None:
    pairs = [read_published(PUBLISHED, pair) for pair in ("ms_to_whu", "whu_to_95cloud")]
    for entry in (entry for rows in pairs for entry in rows if None not in entry):
        assert (entry.iou_clear + entry.iou_cloud) / 2 == pytest.approx(entry.miou, abs=0.01)
    assert [len(rows) for rows in pairs] == [12, 12] and read_published(PUBLISHED, "other") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("[]", "found list, expected a mapping"),
        ("p: 3", "p is int, expected a list"),
        ("p: [3]", r"p\[0\] is int"),
        ("p: [{method: a, miuo: 3}]", r"p\[0\].miuo: unknown key"),
        ("p: [{method: a, source: s}]", r"p\[0\].miou: found None"),
        ("p: [{method: a, source: s, miou: 1}, {method: a, source: s, miou: 101}]", r"p\[1\].miou: found 101"),
        ("p: [{method: a, miou: 3}]", r"p\[0\].source: found None, expected a text"),
    ],
)
def test_faults_in_published_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"published.yaml: .*{message}"):
        read_published(path, "p")


def test_missing_published_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml: cannot be read"):
        read_published(tmp_path / "nothing.yaml", "p")

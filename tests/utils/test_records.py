"""Records that are read: damage is named."""

from pathlib import Path

import pytest

from utils.errors import ConfigError, DataError
from utils.records import read_json, reading


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"a": []}', b'{"a": null}', b"\xff", b"9" * 5000, b"[" * 9999, b'{"a": {"b": "x"}}']
)
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match=r"record\.json: is not a record \(\w+: .*\); make it again$"),
        reading(path, "a record", "make it again"),
    ):
        int(read_json(path)["a"]["b"])


def test_a_missing_record_is_named_and_errors_of_the_project_pass(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"gone\.json: cannot be read \(No such file or directory\); make it again"),
        reading(tmp_path / "gone.json", "a record", "make it again", ConfigError),
    ):
        read_json(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"^as it is$"), reading(tmp_path, "a record", "make it again"):
        raise ConfigError("as it is")

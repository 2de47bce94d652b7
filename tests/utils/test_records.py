"""Records that are read: YAML that does not multiply, and damage that is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from utils.errors import ConfigError, DataError
from utils.records import read_json, read_yaml, reading


def layers(first: str, layer: str, count: int = 12) -> str:
    """Each layer holds the one before it nine times: 9^12 parts in a kilobyte."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i + 1}: &a{i + 1} {layer.format(', '.join([f'*a{i}'] * 9))}" for i in range(count)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        layers("[x, x]", "[{}]"),
        layers("{x: 1}", "{{<<: [{}]}}"),  # merged while it is built
        "a: &a [*a]",
        "a: &a {b: *a}",
        "\n".join(f"k{i}: 0" for i in range(10_000)),
    ],
)
def test_yaml_that_multiplies_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(yaml.YAMLError, match="more than 10000 parts, or aliases that make more"):
        read_yaml(tmp_path / "a.yaml")


def test_aliases_that_do_not_multiply_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &base {lr: 1, steps: 2}\none: {<<: *base, lr: 3}\ntwo: *base\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "base": {"lr": 1, "steps": 2},
        "one": {"lr": 3, "steps": 2},
        "two": {"lr": 1, "steps": 2},
    }


def test_a_tag_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]")
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        read_yaml(tmp_path / "a.yaml")
    assert not (tmp_path / "made").exists()


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

"""The keys of a comparison: names stay within its folder, and nothing that it names is called."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from config.load import load_compare_config
from utils.errors import ConfigError

Write = Callable[..., list[str]]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "a\nb", "a\0b"])
@pytest.mark.parametrize("key", ["pairs", "methods", "name"])
def test_names_of_a_comparison_that_lead_out_of_its_folder_are_refused(file: Write, key: str, name: str) -> None:
    values = {"pairs": {"p": "p.yaml"}, "methods": {"asda": None}, "name": "table"}
    values[key] = name if key == "name" else {name: values[key].popitem()[1]}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="to name a folder below out"):
        load_compare_config(file(yaml.safe_dump(values)))


@pytest.mark.parametrize("where", ["methods: {asda: {%s}}", "protocol: {%s}", "set: {%s}"])
def test_a_comparison_does_not_call_what_it_names(file: Write, tmp_path: Path, where: str) -> None:
    made = tmp_path / "made"
    call = f"class_path: pathlib.Path.mkdir, init_args: {{self: {made}}}"
    with contextlib.suppress(ConfigError):
        load_compare_config(file(f"pairs: {{p: p.yaml}}\n{where % call}\n"))
    assert not made.exists()

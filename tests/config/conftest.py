"""A YAML file and the words that name it."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., list[str]]:
    """Write YAML and return its arguments."""

    def write(text: str, name: str = "given.yaml") -> list[str]:
        (tmp_path / name).write_text(text)
        return ["--config", str(tmp_path / name)]

    return write

"""No range of requirements.txt allows a version with a known fault that docs/reliability.md lists."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(r"^\| (\S+) \| ([\d.]+) \| .*(?:CVE|GHSA)-", (ROOT / "docs/reliability.md").read_text("utf-8"), re.M)
LINES = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines())
RANGES = {wanted.name: wanted.specifier for wanted in (Requirement(line) for line in LINES if line)}


def test_the_list_is_read() -> None:
    assert len(ROWS) >= 8 and {"torch", "pillow", "onnx"} <= {name for name, _ in ROWS}


@pytest.mark.parametrize(("name", "mended"), ROWS)
def test_faulty_versions_are_out_of_range(name: str, mended: str) -> None:
    assert Version(version(name)) >= Version(mended)
    if name in RANGES:  # others come with one of these
        lowest = min(Version(part.version) for part in RANGES[name] if part.operator == ">=")
        assert lowest >= Version(mended), f"{name}>={lowest} allows what was mended in {mended}"

"""One version: every script prints it, and the citation and the changelog are of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def printed(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "-m datasets check"])
def test_every_script_prints_it(script: str) -> None:
    assert printed(sys.executable, *script.split(), "--version") == f"asda {VERSION}\n"


@pytest.mark.parametrize("script", ["bash.sh", "eval.sh"])
def test_so_do_the_shell_scripts_and_run_nothing(script: str) -> None:
    assert printed("bash", script, "configs/demo.yaml", "--version") == f"asda {VERSION}\n"


def test_citation_and_changelog_are_of_it() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    cited = re.search(r"^version: (\S+)\ndate-released: (\S+)$", citation, re.M)
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert cited and newest and cited.groups() == newest.groups() and cited[1] == VERSION

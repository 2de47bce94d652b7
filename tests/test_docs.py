"""What the documents point to exists, and the commands that they show are understood."""

import re
import shlex
from pathlib import Path

import pytest

from config.load import load_compare_config, load_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"bash.sh", "eval.sh"}
STAGES = {"train_teacher.py", "split_entropy.py", "train_intra.py", "eval.py"}
COMPARE = "compare.py"


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = (document.parent / file).resolve() if file else document
            assert path.exists(), f"{document.name} points to {target}"
            assert not anchor or anchor in anchors(path), f"{document.name} points to {target}"


def commands() -> list[str]:
    """Lines of the fenced blocks, and of the scripts' docstrings, that start one of the project's programs."""
    texts = [block for path in DOCUMENTS for block in re.findall(r"```\n(.*?)```", path.read_text("utf-8"), re.S)]
    texts += [(ROOT / script).read_text("utf-8").split('"""')[1] for script in STAGES | {COMPARE}]
    lines = [
        part.strip()
        for text in texts
        for line in text.replace("\\\n", " ").splitlines()
        for part in re.split(r";| do ", line)
    ]
    found = sorted({line for line in lines if re.match(r"(OMP_NUM_THREADS=1 )?(bash|python) ", line)})
    return [line.split("  #")[0].removeprefix("OMP_NUM_THREADS=1 ") for line in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_example_configurations_load(document: Path, tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", document.read_text("utf-8"), re.S)):
        if re.search(r"^out:", block, re.M) and "methods:" not in block:
            path = tmp_path / f"{number}.yaml"
            path.write_text(block, "utf-8")
            load_config(["--config", str(path)])


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    _, script, *arguments = shlex.split(command.replace("$s", "1").replace("$S", "1"))
    if script == "-m" and arguments[0] == "pytest":
        files = [word for word in arguments if word.endswith(".py")]
        assert files and all((ROOT / file).is_file() for file in files)
        return
    if script == "-m":
        module = arguments[0].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists()
        if module == "datasets" and "configs/mine.yaml" not in arguments:
            assert arguments[1] == "check"
            load_config([str(ROOT / word) if word.startswith("configs/") else word for word in arguments[2:]])
        return
    assert (ROOT / script).is_file()
    if script in SHELL and arguments and not arguments[0].startswith("--"):
        arguments = ["--config", *arguments]
    if script in SHELL | STAGES | {COMPARE}:
        arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
        for name in ("configs/mine.yaml",):  # the reader's own
            if str(ROOT / name) in arguments:
                pytest.skip(f"{name} is an example")
        if script == COMPARE:
            load_compare_config(arguments)
            return
        load_config(arguments if "--config" in arguments else [*arguments, "--config", str(ROOT / "configs/demo.yaml")])
